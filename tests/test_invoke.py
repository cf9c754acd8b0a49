"""`ferry invoke`: which door gets what, with whose permission, and what a person or a script sees of the answer.

The container is the project's own server on loopback; API Gateway, the SageMaker runtime and CloudFormation are scripted.
"""

import gzip
import hashlib
import json
import secrets
import struct
import threading
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from ferry import invoke
from ferry.archive import write_archive
from ferry.cli import main
from ferry.doors import EndpointDoor, HttpDoor, Question, local_door
from ferry.doors_async import AsyncDoor
from ferry.doors_gateway import gateway_door
from ferry.errors import FerryError, Refused
from ferry.release import lay_in_place
from infra.release import FileDigest, StoredArchive
from infra.settings import Settings, load_settings
from infra.settings_hosting import GatewaySettings, HostingSettings
from model_code.inference.contract import ModelDescription, Request, Response
from model_code.inference.predictor import Predictor
from model_code.inference.respond import health, respond
from tests.emulator_server import emulator_server
from tests.idx_files import digit_like, idx
from tests.local_settings import write_settings
from tests.scripted_aws import connect_to, make_bucket
from tests.scripted_server import Reply, Server, scripted
from tests.serving_models import log_probabilities, write_model
from tests.stack_fixtures import dev_settings, make_release

RUNTIME = "POST /endpoints/modelferry-dev-mnist/invocations"
ASYNC_RUNTIME = "POST /endpoints/modelferry-dev-mnist/async-invocations"
GOOD = b'{"digits": [7], "probabilities": [[0.1, 0.9]]}'
ENVELOPE = b'{"error":{"code":"BAD_SHAPE","message":"data: expected shape [n, 1, 28, 28]","request_id":"r-1"}}'


def silent(_: str) -> None:
    return None


class Local:
    """A local environment with a release and, on its port, the serving core that answers as the container does."""

    def __init__(self, folder: Path) -> None:
        self.path = write_settings(folder)
        self.settings = load_settings(str(self.path))
        self.description: ModelDescription = write_model(folder / "model")
        members = {name: (folder / "model" / name).read_bytes() for name in ("model.json", "model.onnx")}
        release_here(self.settings, members)
        self.predictor = Predictor.load(folder / "model")
        self.asked: list[Request] = []

    def ferry(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, ["--env", str(self.path), *arguments])


def release_here(settings: Settings, members: dict[str, bytes]) -> str:
    """Make these members the current release of the environment; returns its id."""

    def digest(content: bytes) -> FileDigest:
        return FileDigest(sha256=hashlib.sha256(content).hexdigest(), size=len(content))

    archive = write_archive(members)
    release = make_release(settings, digest(members["model.onnx"]).sha256)
    stored = StoredArchive(uri=release.archive.uri, version_id="v", **digest(archive).model_dump())
    release = release.model_copy(
        update={"archive": stored, "onnx": digest(members["model.onnx"]), "model_json": digest(members["model.json"])}
    )
    lay_in_place(settings, release, archive, silent)
    return release.release_id


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Local]:
    place = Local(tmp_path)
    assert place.settings.local is not None

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = Request(body, self.headers.get("Content-Type"), self.headers.get("Accept"), "an-id")
            place.asked.append(request)
            self._send(respond(place.predictor, request))

        def do_GET(self) -> None:
            self._send(health(place.predictor, "an-id"))

        def _send(self, said: Response) -> None:
            self.send_response(said.status)
            for name, value in {**said.headers, "content-length": str(len(said.body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(said.body)

        def log_message(self, format: str, *args: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", place.settings.local.sagemaker_port), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield place
    server.shutdown()
    server.server_close()
    thread.join()


def png(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """A gray PNG of these pixels (rows, columns)."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    rows, columns = pixels.shape
    header = struct.pack(">IIBBBBB", columns, rows, 8, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


# Files and the container


def test_a_random_digit_is_shown_with_the_label_that_is_right_and_bars(local: Local) -> None:
    images, labels = digit_like(20, seed=4)
    folder = local.settings.build_path / "data" / "mnist" / "test"
    folder.mkdir(parents=True)
    for name, values in (("images-idx3", images), ("labels-idx1", labels)):
        (folder / f"t10k-{name}-ubyte.gz").write_bytes(gzip.compress(idx(values)))
    said = local.ferry("invoke")
    assert said.exit_code == 0, said.stderr
    (request,) = local.asked
    document = json.loads(request.body)
    assert document["probabilities"] is True
    label = int(log_probabilities(np.asarray(document["data"])).argmax())
    lines = said.stdout.splitlines()
    picture = [text for text in lines if text and set(text) <= set(" .:-=+*#%@")]
    assert len(picture) >= 8
    assert max(map(len, picture)) > 20
    assert any(text.startswith(f"{label}   expected ") for text in lines)
    assert len([text for text in lines if "█" in text]) >= 1
    assert any(text.startswith(f"release    {local.predictor.release_id}") for text in lines)


def test_a_script_gets_one_document(local: Local) -> None:
    (local.settings.build_path / "x").mkdir(parents=True)
    path = local.settings.build_path / "x" / "two.npy"
    inputs = np.random.default_rng(1).normal(size=(2, 1, 28, 28)).astype(np.float32)
    np.save(path, inputs)
    said = json.loads(local.ferry("invoke", str(path), "--probabilities", "--json").stdout)
    expected = log_probabilities(inputs)
    assert said["labels"] == expected.argmax(axis=1).tolist()
    np.testing.assert_allclose(said["probabilities"], np.exp(expected), atol=1e-5)
    assert said["names"] == list(range(10))
    assert said["release_id"] == local.predictor.release_id
    assert said["request_id"]
    assert said["seconds"] > 0


@pytest.mark.parametrize("probabilities", [False, True])
def test_an_image_goes_out_as_it_is_or_as_json_where_probabilities_are_asked_for(
    local: Local, tmp_path: Path, probabilities: bool
) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (28, 28), dtype=np.uint8)
    path = tmp_path / "digit.png"
    path.write_bytes(png(pixels))
    said = local.ferry("invoke", str(path), "--json", *(["--probabilities"] if probabilities else []))
    assert said.exit_code == 0, said.stderr
    (request,) = local.asked
    assert request.content_type == ("application/json" if probabilities else "image/png")
    if probabilities:
        assert json.loads(request.body)["images"] == [[pixels.tolist()]]
    assert (json.loads(said.stdout)["probabilities"] is not None) == probabilities


def test_an_error_of_the_service_is_shown_with_code_and_message(local: Local, tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text('{"data": [[1, 2]]}')
    said = local.ferry("invoke", str(tmp_path / "bad.json"))
    assert said.exit_code == 1
    assert "HTTP 400: BAD_SHAPE: data: expected shape" in said.stderr


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["x.txt"], "the kind of a request is told by its name; allowed: .json, .npy"),
        (["none.json"], "cannot be read"),
        (["x.json", "--random"], "give a FILE, or --random"),
        (["--door", "endpoint"], "--door local asks the container"),
        (["--door", "gateway"], "--door local asks the container"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: list[str], problem: str) -> None:
    refused = CliRunner().invoke(main, ["--env", str(write_settings(tmp_path)), "invoke", *arguments])
    assert refused.exit_code == 2
    assert problem in refused.stderr


def test_the_container_of_this_machine_is_no_door_of_an_account() -> None:
    with pytest.raises(Refused, match="use --env local"):
        local_door(dev_settings())


def test_the_picture_is_half_blocks_on_a_terminal_and_two_signs_a_pixel_elsewhere() -> None:
    picture = np.zeros((3, 2), np.uint8)
    picture[0, 1] = 255
    assert invoke.draw(picture, colours=False).plain == "  @@".rstrip() + "\n\n\n"
    coloured = invoke.draw(picture, colours=True)
    assert coloured.plain == "▀▀\n▀▀\n"
    assert str(coloured.spans[1].style) == "rgb(255,255,255) on rgb(0,0,0)"


# Doors of an account


def hosted(mode: str = "realtime", **gateway: Any) -> Settings:
    return dev_settings().model_copy(
        update={"hosting": HostingSettings(mode=mode), "gateway": GatewaySettings(**gateway)}  # type: ignore[arg-type]
    )


def stacks(url: str) -> Reply:
    return Reply(
        200,
        f"""<DescribeStacksResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/"><DescribeStacksResult>
        <Stacks><member><StackName>modelferry-dev-gateway</StackName><CreationTime>2026-11-21T00:00:00Z</CreationTime>
        <StackStatus>CREATE_COMPLETE</StackStatus><Outputs><member><OutputKey>Url</OutputKey>
        <OutputValue>{url}</OutputValue></member></Outputs></member></Stacks></DescribeStacksResult>
        </DescribeStacksResponse>""".encode(),
    )


def through_the_gateway(settings: Settings, replies: list[Reply]) -> Server:
    with scripted({"POST /v1/classify": replies}) as api:
        with scripted({"POST /": [stacks(f"{api.url}/v1/classify")]}) as cloudformation:
            door = gateway_door(settings, connect_to(cloudformation))
        door.ask(Question(b"{}", target_model="mnist-0/model.tar.gz"))
    return api


def test_the_gateway_gets_a_signature_for_its_own_service_where_authorization_is_iam() -> None:
    api = through_the_gateway(hosted(), [Reply(200, GOOD)])
    (request,) = api.asked
    authorization = request.headers["Authorization"]
    assert authorization.startswith("AWS4-HMAC-SHA256 Credential=test/")
    assert "/eu-west-1/execute-api/aws4_request" in authorization
    assert request.headers["X-Amzn-SageMaker-Target-Model"] == "mnist-0/model.tar.gz"


def test_a_key_or_a_token_comes_from_the_environment_and_its_absence_says_where_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pool = "arn:aws:cognito-idp:eu-west-1:111122223333:userpool/eu-west-1_abc"
    kinds: list[tuple[dict[str, Any], str, str]] = [
        ({"authorization": "api-key"}, "FERRY_GATEWAY_KEY", "x-api-key"),
        ({"authorization": "cognito", "cognito_user_pool_arns": [pool]}, "FERRY_GATEWAY_TOKEN", "Authorization"),
    ]
    for table, variable, header in kinds:
        with pytest.raises(Refused, match=f"{variable} is not set: "):
            through_the_gateway(hosted(**table), [Reply(200, GOOD)])
        monkeypatch.setenv(variable, "a-secret")
        (request,) = through_the_gateway(hosted(**table), [Reply(200, GOOD)]).asked
        assert request.headers[header] == "a-secret"
        with pytest.raises(FerryError, match=f"HTTP 403: .*; {variable} is no"):
            through_the_gateway(hosted(**table), [Reply(403, b"Forbidden")])


def runtime_door(
    replies: dict[str, list[Reply]], monkeypatch: pytest.MonkeyPatch, question: Question
) -> tuple[Any, Server]:
    with scripted(replies) as server:
        monkeypatch.setattr("ferry.aws.client", connect_to(server))
        return EndpointDoor(dev_settings()).ask(question), server


def test_the_runtime_gets_the_targets_and_tells_release_and_request(monkeypatch: pytest.MonkeyPatch) -> None:
    headers = {
        "Content-Type": "application/json",
        "x-amzn-RequestId": "r-7",
        "X-Amzn-SageMaker-Custom-Attributes": "mnist-1",
    }
    question = Question(b"{}", target_model="mnist-0/model.tar.gz", container="second")
    reply, server = runtime_door({RUNTIME: [Reply(200, GOOD, headers)]}, monkeypatch, question)
    assert (reply.release_id, reply.request_id, reply.content) == ("mnist-1", "r-7", GOOD)
    (request,) = server.asked
    assert request.headers["X-Amzn-SageMaker-Target-Model"] == "mnist-0/model.tar.gz"
    assert request.headers["X-Amzn-SageMaker-Target-Container-Hostname"] == "second"


def test_an_error_of_the_container_behind_the_runtime_is_unwrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    body = json.dumps(
        {"OriginalStatusCode": 400, "OriginalMessage": ENVELOPE.decode(), "Message": "Received client error"}
    )
    refused = Reply(424, body.encode(), {"x-amzn-errortype": "ModelError", "Content-Type": "application/json"})
    with pytest.raises(
        FerryError, match=r"the container answered HTTP 400: BAD_SHAPE: data: expected .* \(request r-1\)"
    ):
        runtime_door({RUNTIME: [refused]}, monkeypatch, Question(b"{}"))


def test_a_release_id_is_enough_to_name_a_model() -> None:
    asked = invoke.Asked(Question(b"{}"))
    assert invoke.aimed(asked, "mnist-0123456789ab", None).question.target_model == "mnist-0123456789ab/model.tar.gz"


# Asynchronous endpoints


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    with emulator_server() as url:
        yield url


def asynchronously(s3_url: str, comes: dict[str, bytes], wait: float = 20) -> tuple[Any, Server, list[str]]:
    """Ask an asynchronous endpoint whose answer or failure, by folder, comes a moment after it is waited for."""
    settings = hosted("async")
    s3 = connect_to(s3_url)(settings, "s3")
    make_bucket(s3, settings.artifact_bucket)
    identifier = secrets.token_hex(4)
    uris = {name: f"s3://{settings.artifact_bucket}/async/{name}/{identifier}" for name in ("output", "failure")}
    locations = {
        "X-Amzn-SageMaker-OutputLocation": uris["output"],
        "X-Amzn-SageMaker-FailureLocation": uris["failure"],
        "Content-Type": "application/json",
    }
    said: list[str] = []

    def arrive() -> None:
        for name, body in comes.items():
            s3.put_object(Bucket=settings.artifact_bucket, Key=f"async/{name}/{identifier}", Body=body)

    def report(text: str) -> None:
        said.append(text)
        if text.startswith("waiting"):
            threading.Timer(0.1, arrive).start()

    with scripted({ASYNC_RUNTIME: [Reply(202, b'{"InferenceId": "i-1"}', locations)]}) as server:
        runtime = connect_to(server)

        def connect(settings: Settings, service: str) -> Any:
            return s3 if service == "s3" else runtime(settings, service)

        door = AsyncDoor(settings, report, wait=wait, pause=0.02, connect=connect)
        return door.ask(Question(b"{}", "image/png")), server, said


def test_an_asynchronous_answer_is_waited_for_in_s3(s3_url: str) -> None:
    reply, server, said = asynchronously(s3_url, {"output": GOOD})
    assert (reply.content, reply.request_id, reply.release_id) == (GOOD, "i-1", None)
    (call,) = server.asked
    source = call.headers["X-Amzn-SageMaker-InputLocation"]
    assert source.startswith("s3://modelferry-dev-artifacts-111122223333-eu-west-1/async/input/")
    assert call.headers["X-Amzn-SageMaker-Content-Type"] == "image/png"
    assert said[0] == f"uploaded  {source}"


def test_an_asynchronous_failure_says_why(s3_url: str) -> None:
    with pytest.raises(FerryError, match=r"BAD_SHAPE: data: expected .*; the whole of it: s3://.*/async/failure/"):
        asynchronously(s3_url, {"failure": ENVELOPE})


def test_waiting_for_an_asynchronous_answer_has_an_end_that_says_where_it_will_be(s3_url: str) -> None:
    with pytest.raises(FerryError, match=r"no answer within 0\.05 s. It will be at s3://.*/async/output/"):
        asynchronously(s3_url, {}, wait=0.05)


def test_an_asynchronous_endpoint_behind_the_gateway_is_told_where_the_request_lies(s3_url: str) -> None:
    settings = hosted("async", authorization="api-key")
    s3 = connect_to(s3_url)(settings, "s3")
    make_bucket(s3, settings.artifact_bucket)
    output = f"s3://{settings.artifact_bucket}/async/output/behind-the-gateway"
    s3.put_object(Bucket=settings.artifact_bucket, Key="async/output/behind-the-gateway", Body=GOOD)
    accepted = Reply(202, b'{"inference_id":"i-2"}', {"Location": output})
    with scripted({"POST /v1/classify/async": [accepted]}) as api:
        gateway = HttpDoor("gateway", f"{api.url}/v1/classify/async", {"x-api-key": "k"}, health="")
        door = AsyncDoor(settings, silent, gateway=gateway, wait=20, pause=0.02, connect=lambda *_: s3)
        reply = door.ask(Question(b"{}", "application/json"))
    assert (reply.content, reply.request_id) == (GOOD, "i-2")
    (call,) = api.asked
    assert call.headers["X-Amzn-SageMaker-InputLocation"].startswith(f"s3://{settings.artifact_bucket}/async/input/")
    assert call.headers["x-api-key"] == "k"
