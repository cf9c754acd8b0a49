"""A Transform step on this machine: the container's `serve` process, asked for every object below the input's prefix."""

import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import urllib3

from ferry import processes
from ferry.archive import read_archive
from ferry.errors import FerryError
from ferry.files import write_atomically
from ferry.steps import objects
from ferry.steps.job import EXECUTABLES, STOP_SECONDS, StepJob, inherited, mark, own_image
from infra.settings import ROOT, Settings
from model_code import environment
from model_code.environment import MlPaths

_MEGABYTE = 2**20
_DEFAULT_PAYLOAD_MB = 6
_START_SECONDS = 90
_DEFAULT_TIMEOUT_SECONDS = 600  # ModelClientConfig.InvocationsTimeoutInSeconds
_INPUT, _OUTPUT = "SageMakerInput", "SageMakerOutput"  # DataProcessing, JoinSource


class TransformFailed(FerryError):
    """Some objects have no result; `reasons` has the key of each and what the container said to it."""

    def __init__(self, job: str, reasons: dict[str, str]) -> None:
        super().__init__("\n".join(f"transform job {job}: {key}: {reason}" for key, reason in reasons.items()))
        self.reasons = reasons


class _NoResult(Exception):
    """Why one object has none."""


def refusals(settings: Settings, arguments: dict[str, Any]) -> list[str]:
    """What of a CreateTransformJob request cannot be done on this machine."""
    data, processing = arguments["TransformInput"], arguments.get("DataProcessing", {})
    found = []
    if data["DataSource"]["S3DataSource"]["S3DataType"] != "S3Prefix":
        found.append(f"S3DataType {data['DataSource']['S3DataSource']['S3DataType']}")
    if data.get("CompressionType", "None") != "None":
        found.append(f"CompressionType {data['CompressionType']}")
    if data.get("SplitType", "None") not in ("None", "Line"):
        found.append(f"SplitType {data['SplitType']}")
    if processing.get("JoinSource", "None") != "None" and data.get("SplitType") != "Line":
        found.append("JoinSource without SplitType Line")
    if {"InputFilter", "OutputFilter"} & set(processing):
        found.append("DataProcessing with a filter")
    return found


def run(job: StepJob, arguments: dict[str, Any]) -> dict[str, Any]:
    """Run the batch transform of a CreateTransformJob request; returns what DescribeTransformJob would answer.

    Each object gives one object with the same name and ".out". One that fails gives none and ends nothing: the others are still
    transformed (Developer Guide, "Use batch transform"). Raises TransformFailed in the end where any did.
    """
    s3 = job.client("s3")
    model = job.client("sagemaker").describe_model(ModelName=arguments["ModelName"]).get("PrimaryContainer")
    if model is None:
        raise FerryError(f"transform job {job.name}: {arguments['ModelName']} has several containers; one is run here")
    if not own_image(job.settings, model["Image"]):
        raise FerryError(f"transform job {job.name}: image {model['Image']} is not built here")
    source = arguments["TransformInput"]["DataSource"]["S3DataSource"]["S3Uri"]
    keys = objects.list_keys(s3, source)
    if not keys:
        raise FerryError(f"transform job {job.name}: nothing is at {source}; upload a dataset first: ferry data upload")
    reasons: dict[str, str] = {}
    _unpack_model(s3, model["ModelDataUrl"], MlPaths(job.folder))
    with _serving(job, model.get("Environment", {}) | _batch_variables(arguments)) as url:
        for key in keys:
            try:
                _transform(s3, job, arguments, key, url)
            except _NoResult as error:
                reasons[key] = str(error)
                job.report(f"  {key}: {error}")
    if reasons:
        raise TransformFailed(job.name, reasons)
    return arguments | {
        "TransformJobName": job.name,
        "TransformJobArn": job.arn("transform-job"),
        "TransformJobStatus": "Completed",
    }


def _unpack_model(s3: Any, uri: str, paths: MlPaths) -> None:
    bucket, key = objects.split_uri(uri)
    raw = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    for name, content in read_archive(raw, uri).items():
        write_atomically(paths.model / name, content)


def _batch_variables(arguments: dict[str, Any]) -> dict[str, str]:
    """What SageMaker adds in a batch transform; the last three only where the request holds them."""
    given = {
        environment.MAX_PAYLOAD: arguments.get("MaxPayloadInMB"),
        "SAGEMAKER_BATCH_STRATEGY": {"MultiRecord": "MULTI_RECORD", "SingleRecord": "SINGLE_RECORD"}.get(
            arguments.get("BatchStrategy", "")
        ),
        "SAGEMAKER_MAX_CONCURRENT_TRANSFORMS": arguments.get("MaxConcurrentTransforms"),
    }
    named = {name: str(value) for name, value in given.items() if value is not None}
    own: dict[str, str] = arguments.get("Environment", {})
    return {environment.BATCH: "true"} | named | own


@contextmanager
def _serving(job: StepJob, variables: dict[str, str]) -> Iterator[str]:
    """The container's `serve` on a free port of loopback, until the block ends; gives its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, str(EXECUTABLES / "serve")]
    own = {
        environment.BASE_DIR: str(job.folder),
        environment.BIND_TO_PORT: str(port),
        environment.BIND_ADDRESS: "127.0.0.1",
        "PYTHONPATH": str(ROOT),
    }
    process = processes.start(mark(job.settings), command, inherited() | variables | own, job.folder, job.log)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait(job, process, f"{url}/ping")
        yield url
    finally:
        processes.stop(mark(job.settings), STOP_SECONDS)


def _wait(job: StepJob, process: Any, url: str) -> None:
    started = time.monotonic()
    while not _answers(url):
        if process.poll() is not None or time.monotonic() - started > _START_SECONDS:
            raise FerryError(
                f"transform job {job.name}: the container did not come up; {job.log} ends:\n{processes.log_tail(job.log)}"
            )
        processes.pause(started)


def _answers(url: str) -> bool:
    try:
        return bool(urllib3.request("GET", url, timeout=2, retries=False).status == 200)
    except urllib3.exceptions.HTTPError:
        return False


def _transform(s3: Any, job: StepJob, arguments: dict[str, Any], key: str, url: str) -> None:
    data, output = arguments["TransformInput"], arguments["TransformOutput"]
    bucket, prefix = objects.split_uri(data["DataSource"]["S3DataSource"]["S3Uri"])
    content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    headers = {"Content-Type": data.get("ContentType"), "Accept": output.get("Accept")}
    joins = arguments.get("DataProcessing", {}).get("JoinSource", "None") == "Input"
    answers = []
    for body in _bodies(content, arguments):
        answer = _invoke(url, body, {name: value for name, value in headers.items() if value}, arguments)
        answers.append(_joined(body, answer, data.get("ContentType", "")) if joins else answer)
    lines = output.get("AssembleWith", "None") == "Line"
    joined = b"".join(answer.rstrip(b"\n") + b"\n" if lines else answer for answer in answers)
    target, folder = objects.split_uri(output["S3OutputPath"])
    name = f"{folder.rstrip('/')}/{objects.relative_name(key, prefix)}.out"
    s3.put_object(Bucket=target, Key=name, Body=joined, ChecksumAlgorithm="SHA256")
    job.report(f"  {key}: requests {len(answers)}, {len(joined):,} bytes to s3://{target}/{name}")


def _invoke(url: str, body: bytes, headers: dict[str, str], arguments: dict[str, Any]) -> bytes:
    seconds = arguments.get("ModelClientConfig", {}).get("InvocationsTimeoutInSeconds", _DEFAULT_TIMEOUT_SECONDS)
    try:
        answer = urllib3.request(
            "POST", f"{url}/invocations", body=body, headers=headers, timeout=seconds, retries=False
        )
    except urllib3.exceptions.HTTPError as error:
        raise _NoResult(f"no answer from the container: {error}") from error
    if answer.status != 200:
        raise _NoResult(f"HTTP {answer.status}: {answer.data[:500].decode(errors='replace')}")
    return answer.data


def _joined(body: bytes, answer: bytes, content_type: str) -> bytes:
    """Every line of a request with its result: more columns of CSV, or the key SageMakerOutput of a JSON object
    (DataProcessing, JoinSource)."""
    records, results = body.splitlines(), answer.splitlines()
    if len(records) != len(results):
        raise _NoResult(f"{len(results)} results for {len(records)} records; they cannot be joined")
    if content_type == "text/csv":
        return b"".join(record + b"," + result + b"\n" for record, result in zip(records, results, strict=True))
    lines = []
    for record, result in zip(records, results, strict=True):
        given, said = json.loads(record), json.loads(result)
        whole = given | {_OUTPUT: said} if isinstance(given, dict) else {_INPUT: given, _OUTPUT: said}
        lines.append(json.dumps(whole).encode() + b"\n")
    return b"".join(lines)


def _bodies(content: bytes, arguments: dict[str, Any]) -> Iterator[bytes]:
    """The requests of one object: the whole of it, or its lines, as many at once as the payload takes or one by one."""
    if arguments["TransformInput"].get("SplitType", "None") == "None":
        yield content
        return
    limit = arguments.get("MaxPayloadInMB", _DEFAULT_PAYLOAD_MB) * _MEGABYTE
    single = arguments.get("BatchStrategy") == "SingleRecord"
    batch = b""
    for line in content.splitlines(keepends=True):
        if batch and (single or len(batch) + len(line) > limit):
            yield batch
            batch = b""
        batch += line
    if batch:
        yield batch
