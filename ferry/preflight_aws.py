"""The checks of `ferry preflight` on AWS, in the order in which a deployment would stumble."""

import base64
import json
import threading
from concurrent.futures import Future
from typing import Any
from urllib.parse import urlsplit

import botocore.session
from botocore.exceptions import BotoCoreError, ClientError

from ferry import aws
from ferry.aws_errors import CLOCK_SECONDS, clock_skew, is_denied, skewed
from ferry.cloud_states import STACKS, DeployedStack, describe_endpoint, endpoint_state, stack_state
from ferry.errors import FerryError, Refused
from ferry.image import absent_images
from ferry.preflight import Check, Finding, of_state
from infra.release import Release, ReleaseError, read_release
from infra.settings import ROOT, Settings

# What the stacks ask for themselves is version 6; `cdk rollback`, the way out of a failed update, needs 23 (CDK Developer
# Guide, "cdk rollback").
BOOTSTRAP_VERSION = 23
_QUALIFIER = "hnb659fds"  # the default of the CDK, and of `cdk bootstrap`
_CREDENTIALS = "credentials"
_QUOTA_PAGES = 40
_BY_HAND = (
    "It was deleted outside of CloudFormation: `cdk drift Foundation` shows it, `cdk deploy Foundation --revert-drift` makes it "
    "again, empty"
)
_WAYS_BACK = (
    "`ferry rollback --list` shows what is stored; `ferry release --approved` makes the newest approved one again"
)


def aws_checks(settings: Settings, connect: aws.Connect = aws.quick_client) -> list[Check]:
    """Everything that `cdk deploy` needs on AWS; for a local environment what the emulator can answer."""
    account = _Account(settings, aws.shared(connect))
    alone = [("region", account.region), ("release", account.release), (_CREDENTIALS, account.credentials)]
    asked = [
        ("bootstrap", account.bootstrap),
        ("artifact", account.artifact),
        *([] if settings.local is not None else [("image", account.image)]),
        *((f"stack {name}", lambda name=name: account.stack(name)) for name in STACKS),
        ("buckets", account.buckets),
        ("endpoint", account.endpoint),
        *([] if settings.local is not None else [("quota", account.quota)]),
    ]
    return [
        *(Check("aws", name, look) for name, look in alone),
        *(Check("aws", name, look, _CREDENTIALS) for name, look in asked),
    ]


class _Account:
    """What the checks ask of one environment's account."""

    def __init__(self, settings: Settings, connect: aws.Connect) -> None:
        self._settings = settings
        self._connect = connect
        self._stacks: dict[str, Future[DeployedStack | None]] = {}
        self._asking = threading.Lock()

    def _deployed(self, name: str) -> DeployedStack | None:
        """How a stack stands, asked once for all of the checks, which run side by side; an error is every asker's, too."""
        with self._asking:
            first = name not in self._stacks
            found = self._stacks.setdefault(name, Future())
        if first:
            try:
                found.set_result(stack_state(self._settings, self._client("cloudformation"), name))
            except Exception as error:
                found.set_exception(error)
        return found.result()

    def _client(self, service: str) -> Any:
        return self._connect(self._settings, service)

    def region(self) -> Finding:
        region = self._settings.aws.region
        session = botocore.session.get_session()
        partition = session.get_partition_for_region(region)
        known = sorted(session.get_available_regions("sagemaker", partition_name=partition))
        if region in known:
            return Finding("ok", f"{region} has SageMaker")
        return Finding("set up", f"aws.region is {region}, and SageMaker is in {', '.join(known)}; choose one of those")

    def release(self) -> Finding:
        """The current release of this machine, which the stacks would deploy."""
        release = self._current()
        if release is None:
            return _no_release(self._settings)
        bucket = urlsplit(release.archive.uri).netloc
        if bucket != self._settings.artifact_bucket:
            return Finding(
                "repair",
                f"ARTIFACT_MISSING {release.archive.uri}: {release.release_id} lies there, and the endpoint reads "
                f"{self._settings.artifact_bucket} only: make it again here with `ferry --env {self._settings.environment} release {release.archive.uri}`",
            )
        return Finding("ok", release.release_id)

    def credentials(self) -> Finding:
        answer = self._client("sts").get_caller_identity()
        if (skew := clock_skew(answer)) is not None and abs(skew) >= CLOCK_SECONDS:
            return Finding("set up", skewed(skew))
        found, wanted = answer["Account"], self._settings.aws.account
        if found != wanted and self._settings.local is None:
            return Finding(
                "set up",
                f"they are of account {found} ({answer['Arn']}); environment {self._settings.environment!r} wants {wanted}: "
                "set AWS_PROFILE to a profile of that account, or choose another --env",
            )
        return Finding("ok", f"{answer['Arn']}, account {found}")

    def _surely_absent(self, name: str) -> bool:
        """Whether CloudFormation says that it has no such stack; an error of its is another check's."""
        try:
            return self._deployed(name) is None
        except (ClientError, BotoCoreError):
            return False

    def bootstrap(self) -> Finding:
        """Whether `cdk bootstrap` made what a deployment stands on: roles, a bucket, and this parameter."""
        context = json.loads((ROOT / "cdk.json").read_text())["context"]
        qualifier = context.get("@aws-cdk/core:bootstrapQualifier", _QUALIFIER)
        name = f"/cdk-bootstrap/{qualifier}/version"
        option = "" if qualifier == _QUALIFIER else f" --qualifier {qualifier}"
        command = f"cdk bootstrap aws://{self._settings.aws.account}/{self._settings.aws.region}{option}"
        ssm = self._client("ssm")
        try:
            value = ssm.get_parameter(Name=name)["Parameter"]["Value"]
        except ssm.exceptions.ParameterNotFound:
            return Finding("set up", f"not there, the parameter {name} is missing: {command}")
        if not value.isdecimal():
            return Finding("set up", f"the parameter {name} is {value!r}, and a version is a number: {command}")
        version = int(value)
        if version < BOOTSTRAP_VERSION:
            return Finding(
                "set up", f"version {version}; a rollback of a failed deployment needs {BOOTSTRAP_VERSION}: {command}"
            )
        return Finding("ok", f"version {version}")

    def artifact(self) -> Finding:
        """The object in S3 that the current release pins; its bytes stay there, S3 keeps their digest."""
        release = self._current()
        if release is None:
            return Finding("none yet", "no release names one")
        archive = release.archive
        s3 = self._client("s3")
        uri = urlsplit(archive.uri)
        where = {"Bucket": uri.netloc, "Key": uri.path.lstrip("/"), "VersionId": archive.version_id}
        try:
            head = s3.head_object(**where, ChecksumMode="ENABLED")
        except ClientError as error:
            status = error.response["ResponseMetadata"]["HTTPStatusCode"]
            if status in (400, 403) and (locked := self._key_in_the_way(where, archive.uri, status)):
                return locked
            if status == 403:
                resource = f"arn:aws:s3:::{where['Bucket']}/{where['Key']}"
                raise FerryError(
                    f"{archive.uri}: access denied to HeadObject: whoever is signed in lacks s3:GetObjectVersion on {resource}, "
                    f"or it is not there and s3:ListBucket on arn:aws:s3:::{where['Bucket']} is lacking, too"
                ) from error
            if status not in (400, 404, 405):
                raise
            return Finding(
                "repair",
                f"ARTIFACT_MISSING {archive.uri} (version {archive.version_id}): not there, or deleted. {_WAYS_BACK}",
            )
        if head["ContentLength"] == 0:
            return Finding(
                "repair",
                f"ARTIFACT_MISSING {archive.uri} (version {archive.version_id}): it holds 0 bytes, release.json says "
                f"{archive.size}. {_WAYS_BACK}",
            )
        if head["ContentLength"] != archive.size:
            return _differs(release, f"{head['ContentLength']} bytes", f"{archive.size} bytes")
        if (checksum := head.get("ChecksumSHA256")) is None:
            return Finding(
                "not checked",
                f"{release.release_id}: its object in S3 has the right size and keeps no sha256. Whoever loads it compares digests",
            )
        found = base64.b64decode(checksum).hex()
        if found != archive.sha256:
            return _differs(release, f"sha256 {found}", f"sha256 {archive.sha256}")
        return Finding("ok", f"{release.release_id}, stored with the digest that it names")

    def _key_in_the_way(self, where: dict[str, str], uri: str, status: int) -> Finding | None:
        """What is said of an object that is there and whose checksum alone is refused: S3 keeps that under the object's key."""
        try:
            head = self._client("s3").head_object(**where)
        except ClientError:
            return None
        key = head.get("SSEKMSKeyId", "<key>")
        if status == 403:
            return Finding(
                "not checked", f"{uri} is there; whoever is signed in lacks kms:Decrypt on its KMS key {key}"
            )
        return Finding(
            "repair",
            f"{uri} is there, and its KMS key {key} does not decrypt it: disabled, or its deletion is pending. Look with `aws kms "
            f"describe-key --key-id {key}`; `aws kms cancel-key-deletion` and `aws kms enable-key` keep it. Once it is gone, so "
            "is everything under it",
        )

    def image(self) -> Finding:
        """The images that the stacks name, as ECR has them: the one that Hosting would pin, and those of the pipeline."""
        if self._settings.hosting.image == "pytorch-dlc":
            return Finding("ok", 'hosting.image is "pytorch-dlc", AWS\'s own image')
        try:
            absent = absent_images(self._settings, self._client("ecr"))
        except Refused as error:  # Foundation makes the repository, so it has to be deployable without
            if self._deployed("Foundation") is None:
                return Finding("none yet", str(error))
            return Finding("repair", f"{str(error).partition(';')[0]}. {_BY_HAND}")
        if not absent:
            return Finding("ok", "ECR has every image of these sources, of the right architecture and with its labels")
        text = f"not in ECR: {', '.join(absent)}; `ferry image push` brings it there"
        return Finding("none yet" if self._current() is None else "repair", text)

    def stack(self, name: str) -> Finding:
        found = self._deployed(name)
        if found is None:
            return Finding("none yet", f"not deployed; `cdk deploy {name}`")
        return of_state(found.state)

    def buckets(self) -> Finding:
        """The buckets of a deployed Foundation. CloudFormation does not notice that somebody deleted one."""
        names = (self._settings.data_bucket, self._settings.artifact_bucket, self._settings.log_bucket)
        found = {name: self._bucket_region(name) for name in names}
        if self._deployed("Foundation") is None:
            if taken := [name for name, region in found.items() if region is not None]:
                return Finding(
                    "repair",
                    f"{', '.join(taken)}: there already, and the stack Foundation, which would make them, is not; an earlier one "
                    "kept its data, or another stack has them. `cdk deploy Foundation --import-existing-resources` takes them "
                    "over; another project or environment in the settings leaves them alone",
                )
            return Finding("none yet", "Foundation makes them")
        if gone := [name for name, region in found.items() if region is None]:
            return Finding(
                "repair",
                f"{', '.join(gone)}: deleted outside of CloudFormation, with what was in it. `cdk drift Foundation` shows it; "
                "nothing makes it again by itself: `cdk deploy Foundation --revert-drift` does, empty",
            )
        if wrong := [f"{name} is in {region}" for name, region in found.items() if region != self._settings.aws.region]:
            missing = f"ARTIFACT_MISSING s3://{names[1]}: " if found[names[1]] != self._settings.aws.region else ""
            return Finding(
                "repair",
                f"{missing}{'; '.join(wrong)}; SageMaker wants model data in the endpoint's region, {self._settings.aws.region}",
            )
        return Finding("ok", f"{len(names)} in {self._settings.aws.region}, owned by {self._settings.aws.account}")

    def _bucket_region(self, name: str) -> str | None:
        try:
            answer = self._client("s3").head_bucket(Bucket=name)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 403:  # S3 gives no reason to a HEAD
                raise FerryError(
                    f"s3://{name}: access denied to HeadBucket: another account owns it, or whoever is signed in lacks "
                    f"s3:ListBucket on arn:aws:s3:::{name}"
                ) from error
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            return None
        return str(answer.get("BucketRegion", self._settings.aws.region))

    def endpoint(self) -> Finding:
        if self._settings.hosting.mode == "batch":
            return Finding("ok", 'hosting.mode is "batch", which has none')
        described = describe_endpoint(self._settings, self._client("sagemaker"))
        if described is not None and self._surely_absent("Hosting"):
            return Finding(
                "repair",
                f"{self._settings.endpoint} is there already, and the stack Hosting, which would make it, is not: another stack, or "
                f"somebody by hand, made it. `aws sagemaker describe-endpoint --endpoint-name {self._settings.endpoint}` shows it; "
                "where nobody needs it, `aws sagemaker delete-endpoint` makes room, else choose another project or environment",
            )
        if described is not None:
            return of_state(endpoint_state(described))
        hosting = self._deployed("Hosting")
        if hosting is None or "EndpointName" not in hosting.outputs:
            return Finding("none yet", "Hosting makes it")
        return Finding(
            "repair",
            f"{self._settings.endpoint} was deleted outside of CloudFormation, and an update of Hosting would fail for want of "
            "it: `cdk deploy Hosting --revert-drift` makes it again; `cdk drift Hosting` shows what else is missing",
        )

    def quota(self) -> Finding:
        """Service Quotas names each instance type's quota `<type> for endpoint usage`."""
        hosting = self._settings.hosting
        if hosting.mode not in ("realtime", "async"):
            return Finding("ok", f'hosting.mode is "{hosting.mode}", which keeps no instance')
        name, wanted = f"{hosting.instance_type} for endpoint usage", hosting.instance_count
        try:
            value = self._quota(name)
        except ClientError as error:
            if not is_denied(error):
                raise
            return Finding("not checked", f"{name}: {error}")
        if value is None:
            return Finding(
                "not checked", f"{name}: Service Quotas lists none of that name in {self._settings.aws.region}"
            )
        if value < wanted:
            return Finding(
                "set up",
                f"{name} is {value:g}, hosting.instance_count wants {wanted}: ask for more with `aws service-quotas "
                f"list-service-quotas --service-code sagemaker --query \"Quotas[?QuotaName=='{name}']\"` and "
                "`aws service-quotas request-service-quota-increase`, or choose another hosting.instance_type",
            )
        return Finding("ok", f"{name} is {value:g}, {wanted} wanted; what other endpoints use of it is not told")

    def _quota(self, name: str) -> float | None:
        pages = (
            self._client("service-quotas")
            .get_paginator("list_service_quotas")
            .paginate(ServiceCode="sagemaker", PaginationConfig={"MaxItems": 100 * _QUOTA_PAGES, "PageSize": 100})
        )
        values = (each["Value"] for page in pages for each in page["Quotas"] if each["QuotaName"] == name)
        return next(values, None)

    def _current(self) -> Release | None:
        """Raises FerryError for a release.json that says nothing valid."""
        if not self._settings.release_path.exists():
            return None
        try:
            return read_release(self._settings.release_path)
        except ReleaseError as error:
            raise FerryError(str(error)) from error


def _no_release(settings: Settings) -> Finding:
    return Finding(
        "none yet",
        f"no {settings.release_path}; Hosting, Gateway and Azure wait for one. `ferry approve` makes it, and `ferry rollback` "
        "fetches one that is stored",
    )


def _differs(release: Release, found: str, wanted: str) -> Finding:
    return Finding(
        "repair",
        f"DIGEST_MISMATCH {release.archive.uri} (version {release.archive.version_id}): found {found}, release.json says {wanted}. "
        f"`ferry rollback {release.release_id}` fetches the stored manifest and verifies every byte",
    )
