"""Transform jobs: inputs up, the deployed model over all of them, results down.

Everything of a job lies below batch/<job>/ in the artifacts bucket, so a job can be gone on with by its name alone. In a local
environment the job is really run, on this machine, over the emulator's S3.
"""

import datetime
import hashlib
import itertools
import json
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from ferry import aws
from ferry.batch_results import Result, read_results, write_results
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.files import write_atomically
from ferry.log_tail import LogTail
from ferry.progress import progress
from ferry.stack_outputs import stack_output
from ferry.steps import objects, transform
from ferry.steps.job import StepJob, alone, end_abandoned
from infra.aws.instance_types import volume_key
from infra.settings import BATCH_PREFIX, Settings
from model_code.inference.codecs import CSV, JPEG, JSON, JSON_LINES, NPY, PNG

CONTENT_TYPES: Mapping[str, str] = {
    ".json": JSON,
    ".jsonl": JSON_LINES,
    ".npy": NPY,
    ".csv": CSV,
    ".png": PNG,
    ".jpg": JPEG,
    ".jpeg": JPEG,
}
# Files that are records, one a line; of any other a line is nothing.
_OF_LINES = (".jsonl", ".csv")
_LOG_GROUP = "/aws/sagemaker/TransformJobs"
# SageMaker writes what it has to say about an object into the job's data-log: <time>:[sagemaker logs]: <bucket>/<key>: <text>.
_SAID = re.compile(r"\[sagemaker logs\]: (?P<object>\S+?): (?P<text>.*)")
_UNDER_WAY = ("InProgress", "Stopping")
_MEGABYTE = 2**20
_RESULT = ".out"


@dataclass(frozen=True)
class Input:
    """One object to transform: its name below the job's input, and a file of this machine or an s3:// URI."""

    name: str
    source: Path | str


@dataclass(frozen=True)
class Collected:
    """What a job gave: how SageMaker says it ended, the table and where it lies, and why each other file has no result."""

    job: str
    status: str
    reason: str | None
    table: Path
    results: tuple[Result, ...]
    failed: dict[str, str]


def new_job(settings: Settings) -> str:
    """A name for a job, at most 63 characters."""
    return f"{settings.prefix}-batch-{datetime.datetime.now(datetime.UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def start(
    settings: Settings, job: str, inputs: Sequence[str], report: Report, *, connect: aws.Connect = aws.client
) -> dict[str, Any]:
    """Upload what is not there yet and start the job, unless it was started before; returns its CreateTransformJob request.

    `inputs` are files, folders and s3:// prefixes; empty for a job that has its inputs. Raises Refused for a mode without
    transform jobs, for files that the settings would send as something else than they are, and for a job that is not known.
    """
    if settings.hosting.mode != "batch":
        raise Refused(
            f"hosting.mode is {settings.hosting.mode!r}; transform jobs need an environment with mode = 'batch', as the role "
            f"of the model reads and writes below {BATCH_PREFIX}/ in that mode alone"
        )
    if (known := _request_of(settings, job, connect)) is not None:
        if inputs:
            report(f"{job} was started before; its inputs stay as they are")
        return known
    if not inputs:
        raise Refused(f"no transform job {job}; give it inputs: ferry batch --job {job} FILE...")
    found = _inputs(settings, inputs, connect)
    request = _request(settings, job, found, connect)
    if settings.local is not None and (refused := transform.refusals(settings, request)):
        raise Refused(f"this machine runs no transform job with {', '.join(refused)}")
    _upload(settings, job, found, report, connect)
    if settings.local is not None:
        write_atomically(_request_file(settings, job), json.dumps(request, indent=2).encode())
        return request
    arn = connect(settings, "sagemaker").create_transform_job(**request)["TransformJobArn"]
    report(f"started   {arn}")
    return request


def finish(
    settings: Settings,
    request: Mapping[str, Any],
    folder: Path,
    report: Report,
    *,
    form: str = "csv",
    connect: aws.Connect = aws.client,
    pause: float = 5.0,
    bar: bool = True,
) -> Collected:
    """Follow a started job to its end, or run it here in a local environment, and bring its results into `folder`: its own
    files below output/, and results.csv or results.jsonl, by `form`.

    A job that failed has results, too: SageMaker goes on with the other files when one fails, and writes none for that
    one (Developer Guide, "Use batch transform"). Interrupted, a job on SageMaker goes on, and that is said.
    """
    job: str = request["TransformJobName"]
    s3 = connect(settings, "s3")
    if settings.local is not None:
        status, reason, reasons = _run_here(settings, s3, request, report)
    else:
        try:
            status, reason = _follow(settings, s3, job, report, connect, pause, bar)
        except (KeyboardInterrupt, BotoCoreError):
            report(f"{job} goes on by itself; to see it again: ferry batch --job {job}")
            raise
        reasons = {}
    given, done = _names(s3, settings, job)
    missing = [name for name in given if name not in done]
    if missing and settings.local is None:
        reasons = _said_about(settings, job, connect(settings, "logs"))
    results = _download(s3, settings, request, [name for name in given if name in done], folder, report, bar)
    table = folder / f"results.{form}"
    write_results(table, results, _labels(settings, connect))
    unexplained = reason or "it has no result, and neither SageMaker nor the job's data-log says why"
    failed = {name: reasons.get(f"{_prefix(job)}/input/{name}", unexplained) for name in missing}
    return Collected(job, status, reason, table, tuple(results), failed)


def default_folder(settings: Settings, job: str) -> Path:
    """Where results go without another place."""
    return settings.build_path / "batch" / job


def _prefix(job: str) -> str:
    return f"{BATCH_PREFIX}/{job}"


def _request_file(settings: Settings, job: str) -> Path:
    return settings.build_path / "batch" / job / "request.json"


def _request_of(settings: Settings, job: str, connect: aws.Connect) -> dict[str, Any] | None:
    """The request of a job that was started before; None where there is none."""
    if settings.local is not None:
        path = _request_file(settings, job)
        return dict(json.loads(path.read_bytes())) if path.exists() else None
    try:
        return dict(connect(settings, "sagemaker").describe_transform_job(TransformJobName=job))
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("ValidationException", "ResourceNotFound"):
            raise
        return None


def _inputs(settings: Settings, given: Sequence[str], connect: aws.Connect) -> list[Input]:
    """Files, folders and prefixes as single objects. Raises Refused where one is missing, or two have one name."""
    found: list[Input] = []
    for each in given:
        if each.startswith("s3://"):
            bucket, prefix = objects.split_uri(each)
            keys = objects.list_keys(connect(settings, "s3"), each)
            found += [Input(objects.relative_name(key, prefix), f"s3://{bucket}/{key}") for key in keys]
            if not keys:
                raise Refused(f"{each}: nothing is there")
            continue
        path = Path(each)
        if not path.exists():
            raise Refused(f"{each}: no such file or folder; give files, folders or an s3:// prefix")
        below = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
        found += [Input(file.relative_to(path if path.is_dir() else path.parent).as_posix(), file) for file in below]
    names = [each.name for each in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise Refused(f"two inputs are called {twice}; results are found by name, so give one of them another")
    if not found:
        raise Refused(f"{', '.join(given)}: no file is there")
    return found


def _request(settings: Settings, job: str, inputs: Sequence[Input], connect: aws.Connect) -> dict[str, Any]:
    """CreateTransformJob for these inputs: what the settings say, and what follows from the kind of the files."""
    batch, hosting = settings.hosting.batch, settings.hosting
    content_type = _content_type(settings, inputs)
    lines = batch.split_type == "Line"
    model = stack_output(settings, connect(settings, "cloudformation"), "Hosting", "ModelName")
    key = f"arn:aws:kms:{settings.aws.region}:{settings.aws.account}:alias/{settings.prefix}"
    volume = volume_key(hosting.instance_type, key)
    base = f"s3://{settings.artifact_bucket}/{_prefix(job)}"
    tags = settings.tags | {"project": settings.project, "environment": settings.environment}
    return {
        "TransformJobName": job,
        "ModelName": model,
        "MaxPayloadInMB": batch.max_payload_mb,
        "MaxConcurrentTransforms": batch.max_concurrent_transforms,
        "ModelClientConfig": {
            "InvocationsTimeoutInSeconds": batch.invocations_timeout_seconds,
            "InvocationsMaxRetries": batch.max_retries,
        },
        # It needs a SplitType (CreateTransformJob, BatchStrategy).
        **({"BatchStrategy": batch.strategy} if lines else {}),
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"{base}/input/"}},
            "ContentType": content_type,
            "CompressionType": "None",
            "SplitType": batch.split_type,
        },
        "TransformOutput": {
            "S3OutputPath": f"{base}/output",
            # A result a line for records of lines: several in one request are as many lines in its answer.
            "Accept": content_type if content_type in (CSV, JSON_LINES) else JSON,
            "AssembleWith": "Line" if lines else "None",
            "KmsKeyId": key,
        },
        "TransformResources": {
            "InstanceType": hosting.instance_type,
            "InstanceCount": hosting.instance_count,
            **({"VolumeKmsKeyId": volume} if volume else {}),
        },
        **({"DataProcessing": {"JoinSource": "Input"}} if batch.join else {}),
        "Tags": [{"Key": name, "Value": value} for name, value in sorted(tags.items())],
    }


def _content_type(settings: Settings, inputs: Sequence[Input]) -> str:
    """What all inputs are. Raises Refused for a mixture, and for files that the settings would cut or send wrongly."""
    batch = settings.hosting.batch
    extensions = {PurePosixPath(each.name).suffix.lower(): each.name for each in inputs}
    for extension, name in extensions.items():
        if extension not in CONTENT_TYPES:
            raise Refused(f"{name}: the kind of a file is told by its name; allowed: {', '.join(CONTENT_TYPES)}")
        if batch.split_type == "Line" and extension not in _OF_LINES:
            raise Refused(
                f"{name}: hosting.batch.split_type is 'Line', and {extension} files are not records a line; it takes "
                f"{' and '.join(_OF_LINES)}, or set split_type = 'None'"
            )
    types = {CONTENT_TYPES[extension] for extension in extensions}
    if len(types) > 1:
        found = " and ".join(sorted(extensions.values()))
        raise Refused(f"{found} are of different kinds; a transform job has one ContentType, so give each kind a job")
    _check_sizes(settings, inputs)
    return types.pop()


def _check_sizes(settings: Settings, inputs: Sequence[Input]) -> None:
    """Raises Refused for a local file that is one request, and a larger one than SageMaker makes."""
    batch = settings.hosting.batch
    for each in inputs:
        if batch.split_type == "None" and isinstance(each.source, Path):
            size = each.source.stat().st_size / _MEGABYTE
            if size > batch.max_payload_mb:
                raise Refused(
                    f"{each.name}: {size:.1f} MB; hosting.batch.max_payload_mb is {batch.max_payload_mb}: raise it, cut the "
                    f"file, or set split_type = 'Line' for {' and '.join(_OF_LINES)}"
                )


def _upload(settings: Settings, job: str, inputs: Sequence[Input], report: Report, connect: aws.Connect) -> None:
    s3, bucket = connect(settings, "s3"), settings.artifact_bucket
    with progress("uploaded", len(inputs), report) as done:
        for number, each in enumerate(inputs, start=1):
            key = f"{_prefix(job)}/input/{each.name}"
            if isinstance(each.source, Path):
                _upload_file(s3, each.source, bucket, key)
            else:
                source_bucket, source_key = objects.split_uri(each.source)
                s3.copy({"Bucket": source_bucket, "Key": source_key}, bucket, key)
            done(number)


def _upload_file(s3: Any, path: Path, bucket: str, key: str) -> None:
    """Put one file, unless an interrupted command already did."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    try:
        if s3.head_object(Bucket=bucket, Key=key)["Metadata"].get("sha256") == sha256:
            return
    except ClientError as error:
        if error.response["Error"]["Code"] not in ("404", "NoSuchKey", "NotFound"):
            raise
    s3.upload_file(str(path), bucket, key, ExtraArgs={"Metadata": {"sha256": sha256}, "ChecksumAlgorithm": "SHA256"})


def _run_here(
    settings: Settings, s3: Any, request: Mapping[str, Any], report: Report
) -> tuple[str, str | None, dict[str, str]]:
    """Status, reason, and the reason of every object without a result, of a job that this machine has run."""
    job: str = request["TransformJobName"]
    given, done = _names(s3, settings, job)
    if given and set(given) <= set(done):
        end_abandoned(settings)  # killed behind the last result, a command leaves its container
        return "Completed", None, {}
    step = StepJob(settings, job, settings.build_path / "batch" / job / "container", report)
    try:
        with alone(settings):
            transform.run(step, dict(request))
    except transform.TransformFailed as error:
        return "Failed", "ClientError: See job logs for more information", error.reasons
    return "Completed", None, {}


def _follow(
    settings: Settings, s3: Any, job: str, report: Report, connect: aws.Connect, pause: float, bar: bool
) -> tuple[str, str | None]:
    sagemaker = connect(settings, "sagemaker")
    tail = LogTail(connect(settings, "logs"), _LOG_GROUP, f"{job}/", report)
    given, _ = _names(s3, settings, job)
    said = ""
    with progress("transformed", len(given), report, bar=bar) as done:
        for look in itertools.count():
            time.sleep(pause if look else 0)
            described = sagemaker.describe_transform_job(TransformJobName=job)
            if described["TransformJobStatus"] != said:
                said = described["TransformJobStatus"]
                report(f"{job}: {said}")
            tail.look()
            done(len(_names(s3, settings, job)[1]))
            if said not in _UNDER_WAY:
                break
    return said, described.get("FailureReason")


def _names(s3: Any, settings: Settings, job: str) -> tuple[list[str], set[str]]:
    """The names of the inputs, and of those that have a result."""
    base = f"s3://{settings.artifact_bucket}/{_prefix(job)}"
    given = [key.removeprefix(f"{_prefix(job)}/input/") for key in objects.list_keys(s3, f"{base}/input/")]
    made = [key.removeprefix(f"{_prefix(job)}/output/") for key in objects.list_keys(s3, f"{base}/output/")]
    return given, {name.removesuffix(_RESULT) for name in made if name.endswith(_RESULT)}


def _said_about(settings: Settings, job: str, logs: Any) -> dict[str, str]:
    """What the job's data-log says, by the key of the object that it is about."""
    lines: list[str] = []
    LogTail(logs, _LOG_GROUP, f"{job}/", lines.append).look()
    said: dict[str, list[str]] = {}
    for found in filter(None, map(_SAID.search, lines)):
        bucket, _, key = found["object"].partition("/")
        text = found["text"].strip()
        if bucket == settings.artifact_bucket and text and text != "Message:":
            said.setdefault(key, []).append(text)
    return {key: " ".join(texts)[:500] for key, texts in said.items()}


def _download(
    s3: Any,
    settings: Settings,
    request: Mapping[str, Any],
    names: Sequence[str],
    folder: Path,
    report: Report,
    bar: bool,
) -> list[Result]:
    output = request["TransformOutput"]
    joined = (request.get("DataProcessing") or {}).get("JoinSource") == "Input"
    below = folder / "output"
    results: list[Result] = []
    with progress("downloaded", len(names), report, bar=bar) as done:
        for number, name in enumerate(names, start=1):
            path = below / f"{name}{_RESULT}"
            if not path.resolve().is_relative_to(below.resolve()):
                raise FerryError(f"{name}: leads out of {below}; nothing was written for it")
            key = f"{_prefix(request['TransformJobName'])}/output/{name}{_RESULT}"
            content = s3.get_object(Bucket=settings.artifact_bucket, Key=key)["Body"].read()
            write_atomically(path, content)
            results += read_results(name, content, output.get("Accept", JSON), joined=joined)
            done(number)
    return results


def _labels(settings: Settings, connect: aws.Connect) -> tuple[int | str, ...] | None:
    """The labels of the deployed release, where it is this machine's current one."""
    from ferry.release import current_release
    from model_code.environment import SIGNATURE_FILE
    from model_code.inference.contract import parse_model_json

    try:
        release, members = current_release(settings)
        deployed = stack_output(settings, connect(settings, "cloudformation"), "Hosting", "ReleaseId")
    except FerryError:
        return None
    return parse_model_json(members[SIGNATURE_FILE]).signature.labels if deployed == release.release_id else None
