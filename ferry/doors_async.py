"""The doors of an asynchronous endpoint: the request is an object in S3, and so is its answer, or its failure."""

import json
import time
import uuid
from collections.abc import Mapping

from botocore.exceptions import BotoCoreError, ClientError

from ferry import aws
from ferry.console import Report
from ferry.doors import Answer, HttpDoor, Question, Reply, envelope
from ferry.errors import FerryError, Refused
from ferry.steps import objects
from infra.settings import ASYNC_PREFIX, Settings

# Where the answer, or the failure, will be, as the gateway hands it on (infra/aws/gateway_routes.py).
OUTPUT_LOCATION, FAILURE_LOCATION = "Location", "X-Amzn-SageMaker-FailureLocation"
_INPUT_LOCATION = "X-Amzn-SageMaker-InputLocation"
_JSON = "application/json"
# Without s3:ListBucket a key that is not there yet is 403.
_NOT_YET = ("404", "403", "NoSuchKey", "NotFound", "AccessDenied")


class AsyncDoor:
    """An asynchronous endpoint, through the runtime API or through the gateway in front of it.

    `gateway` is the door of POST /classify/async; without it the runtime is called with the caller's own credentials. The
    request lies below async/input/ in the artifacts bucket; the answer is waited for, `wait` seconds at most, with a look
    every `pause` seconds.
    """

    def __init__(
        self,
        settings: Settings,
        report: Report,
        *,
        gateway: HttpDoor | None = None,
        wait: float,
        pause: float = 1.0,
        connect: aws.Connect = aws.client,
    ) -> None:
        self.name = "gateway" if gateway else "sagemaker"
        self.url = gateway.url if gateway else f"sagemaker://{settings.aws.region}/{settings.endpoint}"
        self._endpoint = settings.endpoint
        self._bucket = settings.artifact_bucket
        self._gateway = gateway
        self._wait = wait
        self._pause = pause
        self._report = report
        self._s3 = connect(settings, "s3")
        self._runtime = None if gateway else connect(settings, "sagemaker-runtime")

    def ask(self, question: Question) -> Reply:
        if question.target_model or question.container:
            raise Refused("an asynchronous endpoint hosts one model in one container; leave the targets out")
        key = f"{ASYNC_PREFIX}/input/{uuid.uuid4().hex}"
        source = f"s3://{self._bucket}/{key}"
        started = time.perf_counter()
        try:
            self._s3.put_object(
                Bucket=self._bucket, Key=key, Body=question.body, ContentType=question.content_type, ChecksumAlgorithm="SHA256"
            )  # fmt: skip
            self._report(f"uploaded  {source}")
            request_id, output, failure = self._invoke(source, question.content_type)
            content = self._answer(output, failure)
        except (ClientError, BotoCoreError) as error:
            raise FerryError(f"{self.name}: endpoint {self._endpoint}: {error}") from error
        # The object is the answer's body alone: the release that made it is not told.
        return Reply(content, None, request_id, time.perf_counter() - started)

    def classify(self, body: bytes) -> Answer:
        raise Refused("an asynchronous endpoint is asked with `ferry invoke`")

    def _invoke(self, source: str, content_type: str) -> tuple[str | None, str, str | None]:
        """The inference id, and where the answer or the failure will be."""
        if self._runtime is not None:
            answer = self._runtime.invoke_endpoint_async(
                EndpointName=self._endpoint, InputLocation=source, ContentType=content_type, Accept=_JSON
            )
            return answer.get("InferenceId"), answer["OutputLocation"], answer.get("FailureLocation")
        assert self._gateway is not None
        headers = {"Content-Type": content_type, "Accept": _JSON, _INPUT_LOCATION: source}
        said = self._gateway.post(b"", headers)
        if said.status != 202:
            why = envelope(said.data) or said.data[:500].decode(errors="replace")
            raise FerryError(f"gateway at {self.url}: HTTP {said.status}: {why}")
        return _accepted(said.headers, said.data)

    def _answer(self, output: str, failure: str | None) -> bytes:
        started = time.monotonic()
        self._report(f"waiting   {output}")
        while True:
            if (content := self._read(output)) is not None:
                return content
            if failure is not None and (content := self._read(failure)) is not None:
                said = envelope(content) or content[:500].decode(errors="replace")
                raise FerryError(f"{self.name}: endpoint {self._endpoint}: {said}; the whole of it: {failure}")
            if time.monotonic() - started + self._pause > self._wait:
                raise FerryError(
                    f"{self.name}: endpoint {self._endpoint}: no answer within {self._wait:g} s. It will be at {output}, a "
                    f"failure at {failure}; an endpoint without instances takes minutes to get one, --wait waits longer"
                )
            time.sleep(self._pause)

    def _read(self, uri: str) -> bytes | None:
        bucket, key = objects.split_uri(uri)
        try:
            content: bytes = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response["Error"]["Code"] not in _NOT_YET:
                raise
            return None
        return content


def _accepted(headers: Mapping[str, str], body: bytes) -> tuple[str | None, str, str | None]:
    """What the gateway hands on of the runtime's answer."""
    output = headers.get(OUTPUT_LOCATION)
    if output is None:
        raise FerryError(f"gateway: 202 without {OUTPUT_LOCATION}: {body[:200].decode(errors='replace')}")
    try:
        identifier = json.loads(body).get("inference_id")
    except (ValueError, AttributeError):
        identifier = None
    return identifier, output, headers.get(FAILURE_LOCATION)
