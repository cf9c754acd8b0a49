"""Deletes an environment on AWS with `cdk destroy`: what serves and trains first, what holds data only when told."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from ferry import aws
from ferry.cloud_states import stack_state
from ferry.console import Report
from ferry.destruction import Ask
from ferry.errors import FerryError, Refused
from ferry.tools import node_tool, run
from infra.settings import ROOT, Settings

# Stacks without data, those that use another before it; the last one is what they all stand on.
_SERVING = ("Gateway", "Hosting")
_STACKS = (*_SERVING, "Training", "Image")
_FOUNDATION = "Foundation"
# A deletion that is under way is followed to its end, and a stack in review holds nothing.
_PASSING = ("DELETE_IN_PROGRESS", "REVIEW_IN_PROGRESS")
_S3_BATCH = 1000  # keys in one DeleteObjects
_ECR_BATCH = 100  # images in one BatchDeleteImage


def destroy_aws(settings: Settings, environment_file: Path, data: bool, ask: Ask, report: Report) -> list[str]:
    """Delete the environment's AWS side, after `ask` agreed; returns what remains, in words.

    Foundation, with the buckets, the key and the image repository, goes only with `data`, and only where
    `aws.retain_data` is false; it is emptied first, old versions included. Raises Refused where nothing was done.
    """
    account = _Account(settings)
    account.refuse_another()
    states = account.stacks()
    account.refuse_busy(states)
    doomed = [name for name in _STACKS if name in states]
    emptied = data and not settings.aws.retain_data and _FOUNDATION in states
    if doomed or emptied:
        _refuse_without_release(settings, doomed)
        if emptied:
            account.refuse_protected()
        goes = [*map(account.describe, doomed), *(_data(settings, account) if emptied else [])]
        ask("AWS", goes, _stays(settings, states, data=data, emptied=emptied))
        assembly = _synthesize(settings, environment_file, report)
        if doomed:
            _destroy(settings, environment_file, assembly, account, doomed, report)
        if emptied:
            account.empty(report)
            _destroy(settings, environment_file, assembly, account, [_FOUNDATION], report)
    else:
        report("nothing of it is left to delete" + ("" if data else "; --data would take what holds data, too"))
    return account.remaining()


def _refuse_without_release(settings: Settings, doomed: Sequence[str]) -> None:
    """The app has Hosting and Gateway only with a release, and with mode = "batch" no Gateway; `cdk` deletes no stack that
    the app does not have."""
    if "Gateway" in doomed and settings.hosting.mode == "batch":
        stack = settings.stack("gateway")
        raise Refused(
            f"{stack} is deployed, and with hosting.mode = 'batch' `cdk` does not know it. Delete it first: "
            f"aws cloudformation delete-stack --stack-name {stack}"
        )
    serving = [settings.stack(name.lower()) for name in doomed if name in _SERVING]
    if serving and not settings.release_path.exists():
        by_hand = "; ".join(f"aws cloudformation delete-stack --stack-name {stack}" for stack in serving)
        raise Refused(
            f"{settings.release_path}: not there, and without a release `cdk` does not know {' and '.join(serving)}. "
            f"Make the release again with `ferry release`, or delete them without it: {by_hand}"
        )


def _data(settings: Settings, account: "_Account") -> list[str]:
    buckets = [f"bucket {name}, with every version of every object" for name in account.buckets()]
    repositories = [f"image repository {name}, with its images" for name in account.repositories()]
    return [
        f"{account.describe(_FOUNDATION)}, with its logs and its key, which KMS keeps for 30 days more",
        *buckets,
        *repositories,
    ]


def _stays(settings: Settings, states: dict[str, str], *, data: bool, emptied: bool) -> list[str]:
    if emptied or _FOUNDATION not in states:
        return []
    stack = settings.stack(_FOUNDATION.lower())
    if not data:
        return [f"stack {stack}: buckets, key, image repositories, roles; --data takes them, too"]
    return [
        f"stack {stack}: aws.retain_data is true, which protects it even from --data. To delete it, set that to false, "
        "`cdk deploy Foundation`, and run this again"
    ]


def _synthesize(settings: Settings, environment_file: Path, report: Report) -> Path:
    """Synthesize once, for every `cdk destroy` that follows."""
    report("cdk synth")
    output = settings.build_path / "destroy" / "cdk.out"
    _cdk(settings, environment_file, ["synth", "--quiet", "--output", str(output)], report)
    return output


def _destroy(
    settings: Settings,
    environment_file: Path,
    assembly: Path,
    account: "_Account",
    names: Sequence[str],
    report: Report,
) -> None:
    report(f"cdk destroy {' '.join(names)}")
    try:
        _cdk(
            settings,
            environment_file,
            ["destroy", *names, "--app", str(assembly), "--exclusively", "--force"],
            report,
        )
    except FerryError as error:
        left = account.left_over(names)
        raise FerryError(f"{error}\n{left}" if left else str(error)) from error
    if stuck := account.left_over(names):  # the tool's word is not taken for it
        raise FerryError(f"cdk destroy {' '.join(names)} ended, but:\n{stuck}")


def _cdk(settings: Settings, environment_file: Path, arguments: list[str], report: Report) -> None:
    cdk, variables = node_tool("cdk", settings, environment_file)
    run(
        [cdk, *arguments, "--ci", "--no-color", "--no-notices"],
        environment=variables,
        folder=ROOT,
        log=settings.build_path / "destroy" / f"cdk-{arguments[0]}.log",
        shows=lambda text: any(sign in text for sign in ("destroying...", "✅", "❌", "DELETE_FAILED")),
        report=report,
        alone=True,
    )


class _Account:
    """What of one environment is in its AWS account, asked of the account itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._cloudformation = aws.client(settings, "cloudformation")
        self._s3 = aws.client(settings, "s3")
        self._ecr = aws.client(settings, "ecr")

    def refuse_another(self) -> None:
        """Raises Refused where the credentials are another account's than the settings'."""
        if self._settings.local is not None:
            return
        account = aws.client(self._settings, "sts").get_caller_identity()["Account"]
        if account != self._settings.aws.account:
            raise Refused(
                f"the AWS credentials are account {account}'s, environment {self._settings.environment!r} is in "
                f"{self._settings.aws.account}; sign in there, or choose another --env"
            )

    def stacks(self) -> dict[str, str]:
        """Status of each stack that exists, in the order in which they can be deleted."""
        found = {name: self._stack(name) for name in (*_STACKS, _FOUNDATION)}
        return {name: stack["StackStatus"] for name, stack in found.items() if stack is not None}

    def refuse_busy(self, states: dict[str, str]) -> None:
        """Raises FerryError where CloudFormation works on a stack, with since when and by whose token; nothing is done then."""
        for name, state in states.items():
            if state.endswith("_IN_PROGRESS") and state not in _PASSING:
                found = stack_state(self._settings, self._cloudformation, name)
                raise FerryError(
                    f"BUSY stack {self._settings.stack(name.lower())}: {found.state if found else state}. CloudFormation is at work "
                    "there and deletes nothing meanwhile; run it again then"
                )

    def describe(self, name: str) -> str:
        stack = self._stack(name)
        state = stack["StackStatus"] if stack else "gone"
        again = ", which an earlier attempt left; it is tried again" if state == "DELETE_FAILED" else ""
        return f"stack {self._settings.stack(name.lower())} ({state}{again})"

    def refuse_protected(self) -> None:
        stack = self._stack(_FOUNDATION)
        if stack and stack.get("EnableTerminationProtection"):
            raise Refused(
                f"stack {stack['StackName']} was deployed with aws.retain_data = true and is protected against deletion; "
                "`cdk deploy Foundation` with today's settings lifts that, then run it again"
            )

    def left_over(self, names: Sequence[str]) -> str:
        """Those stacks that still exist, each with the resources that could not be deleted and why; or an empty text."""
        lines = []
        for name in names:
            stack = self._stack(name)
            if stack is None:
                continue
            lines.append(f"  stack {stack['StackName']} is {stack['StackStatus']}")
            pages = self._cloudformation.get_paginator("list_stack_resources").paginate(StackName=stack["StackName"])
            lines += [
                f"    {entry['LogicalResourceId']} ({entry['ResourceType']}, {entry.get('PhysicalResourceId', '')}): "
                f"{entry.get('ResourceStatusReason', 'no reason given')}"
                for page in pages
                for entry in page["StackResourceSummaries"]
                if entry["ResourceStatus"] == "DELETE_FAILED"
            ]
        if lines:
            lines.append("  Remove what the reasons name, or wait until it is done; then run the same command again")
        return "\n".join(lines)

    def buckets(self) -> list[str]:
        """The environment's buckets that exist; the one that gets the others' access logs last."""
        names = (self._settings.data_bucket, self._settings.artifact_bucket, self._settings.log_bucket)
        return [name for name in names if self._exists(name)]

    def repositories(self) -> list[str]:
        """The environment's image repositories that exist."""
        found = []
        for name in (self._settings.repository, self._settings.training_repository):
            try:
                self._ecr.describe_repositories(repositoryNames=[name])
            except ClientError as error:
                if error.response["Error"]["Code"] != "RepositoryNotFoundException":
                    raise
            else:
                found.append(name)
        return found

    def empty(self, report: Report) -> None:
        """Delete every version of every object, every delete marker and every image; what is gone already is no error."""
        for bucket in self.buckets():
            self._empty_bucket(bucket, report)
        for name in self.repositories():
            self._empty_repository(name, report)

    def remaining(self) -> list[str]:
        """Stacks, buckets and repositories that still exist, in words."""
        stacks = [f"stack {self._settings.stack(name.lower())} ({state})" for name, state in self.stacks().items()]
        buckets = [f"bucket {name}" for name in self.buckets()]
        return [*stacks, *buckets, *(f"image repository {name}" for name in self.repositories())]

    def _stack(self, name: str) -> Any:
        try:
            answer = self._cloudformation.describe_stacks(StackName=self._settings.stack(name.lower()))
        except ClientError as error:
            # What CloudFormation says of a stack that it has not, and of much else.
            if error.response["Error"]["Code"] != "ValidationError" or "does not exist" not in str(error):
                raise
            return None
        (stack,) = answer["Stacks"]
        return stack if stack["StackStatus"] != "DELETE_COMPLETE" else None

    def _exists(self, bucket: str) -> bool:
        try:
            self._s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=self._settings.aws.account)
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] != 404:
                raise
            return False
        return True

    def _empty_bucket(self, bucket: str, report: Report) -> None:
        owner = self._settings.aws.account
        deleted = 0
        for batch in self._versions(bucket):
            answer = self._s3.delete_objects(
                Bucket=bucket, Delete={"Objects": batch, "Quiet": True}, ExpectedBucketOwner=owner
            )
            if refused := answer.get("Errors"):
                first = refused[0]
                raise FerryError(
                    f"s3://{bucket}/{first['Key']}: {first['Code']}: {first['Message']}; {deleted:,} versions are deleted, "
                    f"{len(refused)} of the next {len(batch)} are not. Run it again when that is mended"
                )
            deleted += len(batch)
            report(f"emptied   s3://{bucket}: {deleted:,} versions and delete markers so far")
        report(f"empty     s3://{bucket}")

    def _versions(self, bucket: str) -> Iterator[list[dict[str, str]]]:
        pages = self._s3.get_paginator("list_object_versions").paginate(
            Bucket=bucket, ExpectedBucketOwner=self._settings.aws.account, PaginationConfig={"PageSize": _S3_BATCH}
        )
        for page in pages:
            entries = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
            if entries:
                yield [{"Key": entry["Key"], "VersionId": entry["VersionId"]} for entry in entries]

    def _empty_repository(self, name: str, report: Report) -> None:
        pages = self._ecr.get_paginator("list_images").paginate(
            repositoryName=name, PaginationConfig={"PageSize": _ECR_BATCH}
        )
        for batch in [page["imageIds"] for page in pages if page["imageIds"]]:
            failures = self._ecr.batch_delete_image(repositoryName=name, imageIds=batch).get("failures", [])
            # An image that another tag of the same batch took with it is gone, which is what was wanted.
            if wrong := [failure for failure in failures if failure["failureCode"] != "ImageNotFound"]:
                raise FerryError(f"image repository {name}: {wrong[0]['failureReason']}; run it again")
            report(f"emptied   {name}: {len(batch)} image tags")
