"""`fetch`, which brings the released model into a container: the real process, with a server that plays Azure."""

import gzip
import io
import json
import signal
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from ferry.archive import write_archive
from infra.settings import ROOT
from model_code.container.fetching import MAX_ARCHIVE_BYTES, FetchError, fetch
from model_code.container.release_archive import SIZE_LIMITS
from model_code.environment import (
    ARCHIVE_URL,
    IDENTITY_CLIENT_ID,
    IDENTITY_ENDPOINT,
    IDENTITY_HEADER,
    MODEL_FILE,
    RELEASE_ID,
    SIGNATURE_FILE,
)
from model_code.inference.contract import MAX_MODEL_JSON_BYTES, model_json_bytes
from tests import serving_models
from tests.scripted_server import Reply, Server, scripted
from tests.serving_processes import SERVE, container, container_variables

FETCH = ROOT / "model_code" / "container" / "fetch"
BLOB = "/deployment/released-model.tar.gz"
TOKEN = "a-token-for-storage"
NO_ROLE_YET = Reply(403, headers={"x-ms-error-code": "AuthorizationPermissionMismatch"})


@dataclass(frozen=True)
class Released:
    """A release: its id, its two files, and the archive of them."""

    release_id: str
    members: dict[str, bytes]

    @property
    def archive(self) -> bytes:
        return write_archive(self.members)


@pytest.fixture(scope="module")
def released() -> Released:
    model = serving_models.onnx_bytes()
    description = serving_models.describe(model)
    signature = model_json_bytes(description)
    return Released(f"mnist-{description.onnx.sha256[:12]}", {SIGNATURE_FILE: signature, MODEL_FILE: model})


@contextmanager
def azure(*blob: Reply, identity: Sequence[Reply] = ()) -> Iterator[Server]:
    """The identity endpoint and the storage account, each with its answers in turn."""
    token = Reply(200, json.dumps({"access_token": TOKEN}).encode())
    with scripted({"GET /msi/token": identity or [token], f"GET {BLOB}": blob}) as server:
        yield server


def variables(server: Server, release_id: str) -> dict[str, str]:
    """What the container app and the platform say to the container."""
    return {
        ARCHIVE_URL: server.url + BLOB,
        RELEASE_ID: release_id,
        IDENTITY_CLIENT_ID: "66666666-7777-8888-9999-000000000000",
        IDENTITY_ENDPOINT: f"{server.url}/msi/token",
        IDENTITY_HEADER: "the-header-of-this-container",
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def packed(write: Callable[[tarfile.TarFile], None]) -> bytes:
    """A model.tar.gz that ferry would never write."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as archive:
        write(archive)
    return raw.getvalue()


def link(name: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
    return member


def add_twice(archive: tarfile.TarFile) -> None:
    archive.addfile(tarfile.TarInfo(MODEL_FILE))
    archive.addfile(tarfile.TarInfo(MODEL_FILE))


def test_the_release_is_laid_down_with_the_apps_identity(released: Released, tmp_path: Path) -> None:
    with azure(Reply(200, released.archive)) as server:
        fetch(variables(server, released.release_id), tmp_path / "model")
    assert files(tmp_path / "model") == released.members
    asked_token, asked_blob = server.asked
    assert asked_token.headers["X-Identity-Header"] == "the-header-of-this-container"
    assert parse_qs(urlsplit(asked_token.path).query) == {
        "resource": ["https://storage.azure.com/"],
        "api-version": ["2019-08-01"],
        "client_id": ["66666666-7777-8888-9999-000000000000"],
    }
    assert asked_blob.headers["Authorization"] == f"Bearer {TOKEN}"
    assert asked_blob.headers["X-Ms-Version"] == "2021-12-02"


def test_it_waits_for_a_role_that_is_on_its_way_and_says_so(
    released: Released, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with azure(NO_ROLE_YET, Reply(200, released.archive)) as server:
        fetch(variables(server, released.release_id), tmp_path)
    assert files(tmp_path) == released.members
    waiting, done = [json.loads(line) for line in capsys.readouterr().err.splitlines()]
    assert (waiting["level"], done["level"]) == ("WARNING", "INFO")
    assert "403 AuthorizationPermissionMismatch" in waiting["message"]
    assert TOKEN not in str([waiting, done])


def test_a_broken_connection_is_tried_again(released: Released, tmp_path: Path) -> None:
    cut = {"Content-Length": str(len(released.archive)), "Connection": "close"}
    with azure(Reply(200, released.archive[:1000], cut), Reply(200, released.archive)) as server:
        fetch(variables(server, released.release_id), tmp_path)
    assert files(tmp_path) == released.members


def test_an_identity_endpoint_that_is_not_ready_is_asked_again(released: Released, tmp_path: Path) -> None:
    ready = Reply(200, json.dumps({"access_token": TOKEN}).encode())
    with azure(Reply(200, released.archive), identity=[Reply(500), ready]) as server:
        fetch(variables(server, released.release_id), tmp_path)
    assert files(tmp_path) == released.members


def test_at_the_deadline_it_names_the_role_that_is_missing(released: Released, tmp_path: Path) -> None:
    with (
        azure(NO_ROLE_YET) as server,
        pytest.raises(FetchError, match=r"403 Auth.*gave up.*Storage Blob Data Reader"),
    ):
        fetch(variables(server, released.release_id), tmp_path, seconds=0)


@pytest.mark.parametrize("reply", [Reply(401), Reply(302, headers={"Location": "/elsewhere"})])
def test_what_cannot_pass_is_not_tried_again_and_the_token_goes_nowhere_else(
    reply: Reply, released: Released, tmp_path: Path
) -> None:
    with azure(reply) as server, pytest.raises(FetchError, match=str(reply.status)):
        fetch(variables(server, released.release_id), tmp_path)
    assert server.paths("GET")[1:] == [BLOB]


def test_a_blob_that_is_too_large_is_refused_before_it_is_read(released: Released, tmp_path: Path) -> None:
    announced = {"Content-Length": str(MAX_ARCHIVE_BYTES + 1)}
    with azure(Reply(200, headers=announced)) as server, pytest.raises(FetchError, match="at most"):
        fetch(variables(server, released.release_id), tmp_path)
    assert files(tmp_path) == {}


def bad_archives(released: Released) -> dict[str, tuple[bytes, str]]:
    """Archives that are no release, and what is said of each."""
    signature = json.loads(released.members[SIGNATURE_FILE])
    declared = json.dumps(signature | {"onnx": signature["onnx"] | {"sha256": "0" * 64}}).encode()
    huge = tarfile.TarInfo(SIGNATURE_FILE)
    huge.size = MAX_MODEL_JSON_BYTES + 1
    raw = gzip.decompress(released.archive)
    return {
        "another member": (write_archive(released.members | {"run.sh": b"#!"}), "holds 'run.sh'"),
        "a path": (write_archive({"../model.onnx": b""}), r"holds '\.\./model\.onnx'"),
        "a link": (packed(lambda archive: archive.addfile(link(MODEL_FILE))), "model.onnx is no plain file"),
        "twice": (packed(add_twice), "model.onnx stands in it twice"),
        "only one": (write_archive({MODEL_FILE: b"model"}), "no model.json in it"),
        "a huge member": (gzip.compress(huge.tobuf(tarfile.USTAR_FORMAT)), "at most"),
        "cut": (released.archive[:-2000], "no archive that can be read"),
        "a wrong checksum": (released.archive[:-8] + bytes(4) + released.archive[-4:], "no archive that can be read"),
        "something after it": (gzip.compress(raw + b"#!/bin/sh"), "something follows"),
        "no archive": (b"<html>", "no archive that can be read"),
        "another digest": (write_archive(released.members | {SIGNATURE_FILE: declared}), "sha256 of model.onnx is"),
        "no description": (write_archive(released.members | {SIGNATURE_FILE: b"[]"}), "does not describe a model"),
    }


@pytest.mark.parametrize(
    "kind",
    [
        "another member",
        "a path",
        "a link",
        "twice",
        "only one",
        "a huge member",
        "cut",
        "a wrong checksum",
        "something after it",
        "no archive",
        "another digest",
        "no description",
    ],
)
def test_m1_m7_m8_m10_m11_an_archive_that_is_no_release_leaves_the_folder_as_it_was(
    kind: str, released: Released, tmp_path: Path
) -> None:
    archive, message = bad_archives(released)[kind]
    before = {MODEL_FILE: b"the model before"}
    (tmp_path / MODEL_FILE).write_bytes(before[MODEL_FILE])
    with azure(Reply(200, archive)) as server, pytest.raises(FetchError, match=message):
        fetch(variables(server, released.release_id), tmp_path)
    assert files(tmp_path) == before


def test_m11_another_release_than_the_declared_one_is_refused(released: Released, tmp_path: Path) -> None:
    with (
        azure(Reply(200, released.archive)) as server,
        pytest.raises(FetchError, match=f"it is release {released.release_id}; FERRY_RELEASE_ID says mnist-0"),
    ):
        fetch(variables(server, "mnist-000000000000"), tmp_path)
    assert files(tmp_path) == {}


def test_variables_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(FetchError, match="FERRY_ARCHIVE_URL, IDENTITY_ENDPOINT, IDENTITY_HEADER not set"):
        fetch({RELEASE_ID: "mnist-000000000000"}, tmp_path)


def test_m25_a_folder_that_cannot_be_written_is_named(released: Released, tmp_path: Path) -> None:
    (tmp_path / "model").write_text("a file")
    with azure(Reply(200, released.archive)) as server, pytest.raises(FetchError, match="cannot be written"):
        fetch(variables(server, released.release_id), tmp_path / "model")


def test_model_json_may_be_as_large_as_its_reader_takes() -> None:
    assert SIZE_LIMITS[SIGNATURE_FILE] == MAX_MODEL_JSON_BYTES


# The process


def start(
    server: Server, base: Path, release_id: str, *command: str, limit: int | None = None
) -> subprocess.Popen[str]:
    """`fetch` and its command; `limit` is the largest file that they may write, in KiB."""
    environment = container_variables(base, 0) | variables(server, release_id)
    limited = ["bash", "-c", f'ulimit -f {limit}; exec "$@"', "bash"] if limit else []
    return subprocess.Popen(
        [*limited, str(FETCH), *command], env=environment, cwd=base, stderr=subprocess.PIPE, text=True
    )


def test_it_becomes_the_command(released: Released, tmp_path: Path) -> None:
    with azure(Reply(200, released.archive)) as server:
        process = start(server, tmp_path, released.release_id, "sh", "-c", "echo $$ > pid; exit 7")
        process.communicate(timeout=30)
    assert process.returncode == 7
    assert int((tmp_path / "pid").read_text()) == process.pid
    assert files(tmp_path / "model") == released.members


@pytest.mark.parametrize(("command", "status"), [(["no-such-command"], 1), ([], 2)])
def test_a_command_that_cannot_be_is_one_line(
    command: list[str], status: int, released: Released, tmp_path: Path
) -> None:
    with azure(Reply(200, released.archive)) as server:
        process = start(server, tmp_path, released.release_id, *command)
        _, log = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in log
    assert json.loads(log.splitlines()[-1])["level"] in ("CRITICAL", "ERROR")


def test_what_went_wrong_is_one_line_and_exit_code_1(released: Released, tmp_path: Path) -> None:
    with azure(Reply(401)) as server:
        process = start(server, tmp_path, released.release_id, "true")
        _, log = process.communicate(timeout=30)
    (line,) = log.splitlines()
    assert (process.returncode, json.loads(line)["level"]) == (1, "CRITICAL")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_m25_killed_in_the_middle_it_leaves_no_half_model_and_runs_again(
    number: signal.Signals, released: Released, tmp_path: Path
) -> None:
    stalled = Reply(200, released.archive[:5000], {"Content-Length": str(len(released.archive))})
    part = tmp_path / "model" / "archive.part"
    with azure(stalled, Reply(200, released.archive)) as server:
        process = start(server, tmp_path, released.release_id, "true")
        while process.poll() is None and not part.exists():
            time.sleep(0.01)
        process.send_signal(number)
        process.communicate(timeout=30)
        assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL)
        assert not set(files(tmp_path / "model")) & {MODEL_FILE, SIGNATURE_FILE}

        again = start(server, tmp_path, released.release_id, "true")
        again.communicate(timeout=30)
    assert again.returncode == 0
    assert files(tmp_path / "model") == released.members


def test_m25_a_disk_that_is_full_is_one_line_and_leaves_the_model_that_was_there(
    released: Released, tmp_path: Path
) -> None:
    """No file may become larger than 8 KiB, which a process is told as it is told that a disk is full."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / MODEL_FILE).write_bytes(b"the model before")
    with azure(Reply(200, released.archive)) as server:
        process = start(server, tmp_path, released.release_id, "true", limit=8)
        _, log = process.communicate(timeout=60)
    (line,) = log.splitlines()
    said = json.loads(line)
    assert (process.returncode, said["level"]) == (1, "CRITICAL")
    assert "File too large" in said["message"]
    assert files(tmp_path / "model") == {MODEL_FILE: b"the model before"}


def test_fetch_serve_answers_with_the_declared_release(released: Released, tmp_path: Path) -> None:
    with (
        azure(NO_ROLE_YET, Reply(200, released.archive)) as server,
        container(
            tmp_path, command=(str(FETCH), str(SERVE)), port=None, **variables(server, released.release_id)
        ) as serving,
    ):
        reply = serving.ask("GET", "/ping")
    assert (reply.status, reply.headers["x-release-id"]) == (200, released.release_id)
