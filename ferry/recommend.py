"""Load tests of the released model on real instances: SageMaker Inference Recommender, and its answer as settings.

What a job is given and what it needs: SageMaker Developer Guide, "Inference Recommender" (prerequisites, recommendation jobs,
load tests).
"""

import datetime
import gzip
import io
import math
import secrets
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ferry import aws
from ferry.console import Report
from ferry.doors import request_body
from ferry.errors import FerryError, Refused
from ferry.registry import newest_approved
from ferry.release import current_release
from infra.release import Release
from infra.settings import RELEASES_PREFIX, Settings
from model_code.environment import SIGNATURE_FILE
from model_code.inference.codecs import JSON
from model_code.inference.contract import ModelDescription, parse_model_json

PAYLOAD = "sample-payload.tar.gz"
MAX_LOAD_TEST_SECONDS = 18_000  # RecommendationJobInputConfig.JobDurationInSeconds
_UNDER_WAY = ("PENDING", "IN_PROGRESS", "STOPPING")
# RecommendationJobContainerConfig.Framework knows these; what the model was trained with, as the container's is not there.
_FRAMEWORKS = {"torch": "PYTORCH", "scikit-learn": "SAGEMAKER-SCIKIT-LEARN"}
_MILLISECONDS = 1000


@dataclass(frozen=True)
class Phase:
    """Part of a load test: `users` to begin with, `spawned` more a minute, for `seconds`."""

    users: int
    spawned: int
    seconds: int


@dataclass(frozen=True)
class LoadTest:
    """What an Advanced job is held to: instance types, traffic, how many invocations a minute and what latency is enough."""

    instance_types: tuple[str, ...]
    phases: tuple[Phase, ...]
    max_invocations: int
    latency_ms: int


@dataclass(frozen=True)
class Recommendation:
    """One row of the answer. Costs in USD, latency in ms at the most invocations a minute; None where not measured.

    Either `instance_type` and `instance_count`, or `memory_mb` and `max_concurrency` of a serverless endpoint.
    """

    instance_type: str | None
    instance_count: int | None
    memory_mb: int | None
    max_concurrency: int | None
    cost_per_hour: float | None
    cost_per_inference: float | None
    max_invocations: int | None
    model_latency_ms: float | None

    @property
    def place(self) -> str:
        if self.memory_mb is not None:
            return f"serverless {self.memory_mb} MB, {self.max_concurrency} at once"
        return f"{self.instance_count or 1} x {self.instance_type}"

    def toml(self) -> str:
        """What to put into the settings."""
        if self.memory_mb is not None:
            return (
                f'[hosting]\nmode = "serverless"\n\n[hosting.serverless]\nmemory_mb = {self.memory_mb}\n'
                f"max_concurrency = {self.max_concurrency}\n"
            )
        return f'[hosting]\ninstance_type = "{self.instance_type}"\ninstance_count = {self.instance_count or 1}\n'


def start(
    settings: Settings,
    report: Report,
    *,
    load_test: LoadTest | None = None,
    role: str | None = None,
    connect: aws.Connect = aws.client,
) -> str:
    """Upload sample requests, start a job for the current release's model package, and return the job's name.

    Without a release from the registry it is the newest approved version. `role` is the ARN of the job's role, None the
    hosting role. Raises Refused in a local environment, and where nothing is registered.
    """
    refuse_local(settings)
    release, description = _released(settings)
    package = release.model_package or newest_approved(settings).arn
    uri = _upload_payload(settings, release, description, connect(settings, "s3"))
    report(f"payload   {uri}")
    job = f"{settings.prefix}-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    request = _request(settings, job, package, uri, description, load_test, role)
    # Before the job is there: whoever is killed right after that knows what to follow, and starts no second one.
    report(f"job       {job}; to see it again: ferry recommend --follow {job}")
    try:
        arn = connect(settings, "sagemaker").create_inference_recommendations_job(**request)["JobArn"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "AccessDeniedException":
            raise
        raise FerryError(
            f"AWS: {error}. You need sagemaker:CreateInferenceRecommendationsJob and iam:PassRole on {request['RoleArn']}"
        ) from error
    report(f"started   {arn}, for {package}")
    return job


def follow(
    settings: Settings, job: str, report: Report, *, connect: aws.Connect = aws.client, pause: float = 15.0
) -> list[Recommendation]:
    """Report the steps of a job until it has ended; returns what it recommends, the cheapest inference first.

    Interrupted, the job goes on, and that is said. Raises FerryError with the reason of a job that failed.
    """
    refuse_local(settings)
    sagemaker = connect(settings, "sagemaker")
    seen: dict[str, str] = {}
    try:
        while True:
            try:
                described = sagemaker.describe_inference_recommendations_job(JobName=job)
            except ClientError as error:
                if error.response["Error"]["Code"] != "ResourceNotFound":
                    raise
                raise Refused(f"no recommendation job {job}; `ferry recommend` starts one and says its name") from error
            _report_steps(sagemaker, job, seen, report)
            if seen.get("") != described["Status"]:
                seen[""] = described["Status"]
                report(f"{job}: {described['Status']}")
            if described["Status"] not in _UNDER_WAY:
                break
            time.sleep(pause)
    except (KeyboardInterrupt, BotoCoreError):
        report(f"{job} goes on by itself; to see it again: ferry recommend --follow {job}")
        raise
    if described["Status"] != "COMPLETED":
        raise FerryError(f"{job}: {described['Status']}: {described.get('FailureReason', 'no reason given')}")
    found = [_recommendation(each) for each in described.get("InferenceRecommendations", [])]
    return sorted(found, key=lambda each: math.inf if each.cost_per_inference is None else each.cost_per_inference)


def refuse_local(settings: Settings) -> None:
    """Raises Refused for an environment of this machine."""
    if settings.local is not None:
        raise Refused(
            f"environment {settings.environment!r} is this machine: Inference Recommender measures on SageMaker's own instances, "
            "and nothing here would tell their speed or price; use an environment with an AWS account"
        )


def _released(settings: Settings) -> tuple[Release, ModelDescription]:
    release, members = current_release(settings)
    return release, parse_model_json(members[SIGNATURE_FILE])


def _upload_payload(settings: Settings, release: Release, description: ModelDescription, s3: Any) -> str:
    """Put the golden inputs, as one request each and as one for all, beside the release, where the hosting role reads."""
    key = f"{RELEASES_PREFIX}/{release.release_id}/{PAYLOAD}"
    inputs = description.signature.golden.inputs
    requests = {f"golden-{place}.json": request_body(inputs[[place]]) for place in range(len(inputs))}
    body = _tar_gz(requests | {"golden.json": request_body(inputs)})
    s3.put_object(Bucket=settings.artifact_bucket, Key=key, Body=body, ChecksumAlgorithm="SHA256")
    return f"s3://{settings.artifact_bucket}/{key}"


def _tar_gz(files: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in sorted(files.items()):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o644
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _request(
    settings: Settings,
    job: str,
    package: str,
    payload_uri: str,
    description: ModelDescription,
    load_test: LoadTest | None,
    role: str | None,
) -> dict[str, Any]:
    image = len(description.signature.input.shape) == 4
    framework = next((name for each, name in _FRAMEWORKS.items() if each in description.framework_versions), None)
    container = {
        "Domain": "COMPUTER_VISION" if image else "MACHINE_LEARNING",
        "Task": "IMAGE_CLASSIFICATION" if image else "CLASSIFICATION",
        **({"Framework": framework} if framework else {}),
        "PayloadConfig": {"SamplePayloadUrl": payload_uri, "SupportedContentTypes": [JSON]},
        "SupportedResponseMIMETypes": [JSON],
    }
    key = f"arn:aws:kms:{settings.aws.region}:{settings.aws.account}:alias/{settings.prefix}"
    tags = settings.tags | {"project": settings.project, "environment": settings.environment}
    request: dict[str, Any] = {
        "JobName": job,
        "JobType": "Default" if load_test is None else "Advanced",
        "RoleArn": role or f"arn:aws:iam::{settings.aws.account}:role/{settings.role('hosting')}",
        "InputConfig": {"ModelPackageVersionArn": package, "ContainerConfig": container, "VolumeKmsKeyId": key},
        "OutputConfig": {"KmsKeyId": key},
        "Tags": [{"Key": name, "Value": value} for name, value in sorted(tags.items())],
    }
    return request if load_test is None else _with_load_test(request, load_test)


def _with_load_test(request: dict[str, Any], load_test: LoadTest) -> dict[str, Any]:
    phases = [
        {"InitialNumberOfUsers": phase.users, "SpawnRate": phase.spawned, "DurationInSeconds": phase.seconds}
        for phase in load_test.phases
    ]
    tests = len(load_test.instance_types)
    request["InputConfig"] |= {
        "EndpointConfigurations": [{"InstanceType": name} for name in load_test.instance_types],
        "TrafficPattern": {"TrafficType": "PHASES", "Phases": phases},
        "ResourceLimit": {"MaxNumberOfTests": tests, "MaxParallelOfTests": min(tests, 3)},
        "JobDurationInSeconds": MAX_LOAD_TEST_SECONDS,
    }
    return request | {
        "StoppingConditions": {
            "MaxInvocations": load_test.max_invocations,
            "ModelLatencyThresholds": [{"Percentile": "P95", "ValueInMilliseconds": load_test.latency_ms}],
        }
    }


def _report_steps(sagemaker: Any, job: str, seen: dict[str, str], report: Report) -> None:
    pages = sagemaker.get_paginator("list_inference_recommendations_job_steps").paginate(JobName=job)
    for step in (step for page in pages for step in page["Steps"]):
        benchmark = step.get("InferenceBenchmark") or {}
        place = (benchmark.get("EndpointConfiguration") or {}).get("InstanceType", step["StepType"].lower())
        # An instance type may be measured with several environments; each step has a name of its own.
        name = f"{step['JobName']} {place}"
        if seen.get(name) != step["Status"]:
            seen[name] = step["Status"]
            why = f": {benchmark['FailureReason']}" if benchmark.get("FailureReason") else ""
            report(f"{place}: {step['Status']}{why}")


def _recommendation(found: dict[str, Any]) -> Recommendation:
    metrics, endpoint = found.get("Metrics", {}), found["EndpointConfiguration"]
    serverless = endpoint.get("ServerlessConfig") or {}
    latency = _number(metrics.get("ModelLatency"))
    invocations = _number(metrics.get("MaxInvocations"))
    return Recommendation(
        instance_type=endpoint.get("InstanceType"),
        instance_count=endpoint.get("InitialInstanceCount"),
        memory_mb=serverless.get("MemorySizeInMB"),
        max_concurrency=serverless.get("MaxConcurrency"),
        cost_per_hour=_number(metrics.get("CostPerHour")),
        cost_per_inference=_number(metrics.get("CostPerInference")),
        max_invocations=None if invocations is None else int(invocations),
        model_latency_ms=None if latency is None else latency / _MILLISECONDS,
    )


def _number(value: Any) -> float | None:
    """SageMaker says NaN for what was not measured."""
    return None if value is None or math.isnan(float(value)) else float(value)


def phases(given: Sequence[str]) -> tuple[Phase, ...]:
    """USERS:SPAWNED:SECONDS, repeated. Raises Refused."""
    found = []
    for text in given:
        parts = text.split(":")
        if len(parts) != 3 or not all(part.isdecimal() and part.isascii() for part in parts):
            raise Refused(f"--traffic: found {text!r}; allowed: USERS:SPAWNED:SECONDS, such as 1:1:120")
        phase = Phase(*map(int, parts))
        # Phase, its three members.
        if not (1 <= phase.users <= 3 and 120 <= phase.seconds <= 3600):
            raise Refused(f"--traffic: found {text!r}; a phase begins with 1 to 3 users and takes 120 to 3600 seconds")
        found.append(phase)
    return tuple(found)
