"""Script-mode serving: the archive that AWS's PyTorch inference image unpacks, run by AWS's own handler service.

The processes here are given what the image gives them: the unpacked archive, its code/ at the head of the search path, and
AWS's toolkit behind it (sagemaker-pytorch-inference, the version of the image). None can import the repository.
"""

import base64
import hashlib
import io
import json
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ferry import aws
from ferry.archive import read_archive, write_archive
from ferry.errors import FerryError
from ferry.release import current_release, make_release
from ferry.rollback import rollback
from ferry.script_mode import IMAGE_PYTHON, script_mode_archive
from ferry.wheels import read_pins
from infra.aws import script_mode
from infra.aws.script_mode import script_mode_key
from infra.release import Release
from infra.settings import ROOT, Settings
from model_code import environment
from model_code.inference.contract import RELEASE_ID_HEADER
from tests import http_faults, serving_models
from tests.emulated_training import emulated
from tests.serving_processes import Reply, container
from tests.test_one_contract import BAD, BAD_TABLES, GOOD, GOOD_TABLES

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
WORKER = ROOT / "tests" / "script_mode_worker.py"
REQUIREMENTS = ROOT / "model_code" / "script_mode" / "requirements.txt"
WORKER_SECONDS = 120
Case = tuple[bytes, dict[str, str]]


# What only a server of our own needs.
SERVER = {"httptools", "uvloop"}


@dataclass(frozen=True)
class Worker:
    """What a worker process answered, in the order of the requests, and where its modules came from."""

    replies: list[Reply]
    modules: Mapping[str, str | None]


def members_of(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.json", "model.onnx")}


def unpack(archive: bytes, folder: Path) -> Path:
    """As SageMaker does before it starts the container."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as packed:
        packed.extractall(folder, filter="data")
    return folder


def worker_command(model: Path, requests: Path, answers: Path, batch_size: int = 1) -> list[str]:
    # -S and -P: no site-packages but those that are named, no folder of this script.
    return [sys.executable, "-S", "-P", str(WORKER), str(model), str(batch_size), str(requests), str(answers)]


def worker_variables(model: Path, **variables: str) -> dict[str, str]:
    libraries = sysconfig.get_path("purelib")
    search_path = [str(model / "code"), str(model), libraries]
    return {"PYTHONPATH": ":".join(search_path), **variables}


def ask_worker(model: Path, cases: Sequence[Case], folder: Path, **variables: str) -> Worker:
    requests, answers = folder / "requests.json", folder / "answers.json"
    written = [{"headers": headers, "body": base64.b64encode(body).decode()} for body, headers in cases]
    requests.write_text(json.dumps(written))
    finished = subprocess.run(
        worker_command(model, requests, answers),
        env=worker_variables(model, **variables),
        cwd=model,
        capture_output=True,
        text=True,
        timeout=WORKER_SECONDS,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    document = json.loads(answers.read_bytes())
    replies = [
        Reply(answer["status"], answer["headers"], base64.b64decode(answer["body"])) for answer in document["answers"]
    ]
    return Worker(replies, document["modules"])


def ask_own_container(base: Path, cases: Sequence[Case]) -> list[Reply]:
    with container(base) as server:
        return [server.ask("POST", "/invocations", body, headers) for body, headers in cases]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """For images and for tables: a folder with the archive unpacked in model/, libraries for this Python."""
    images, tables = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("tables")
    serving_models.write_model(images / "released")
    unpack(script_mode_archive(members_of(images / "released"), python_version=PYTHON), images / "model")
    serving_models.write_table_model(tables / "model")
    (tables / "model" / "code").symlink_to(images / "model" / "code")
    return {"images": images, "tables": tables}


CASES: dict[str, dict[str, Case]] = {
    "images": {**GOOD, **{f"bad-{name}": (case[2], case[3]) for name, case in BAD.items()}},
    "tables": {**GOOD_TABLES, **{f"bad-{name}": (case[2], case[3]) for name, case in BAD_TABLES.items()}},
}


@pytest.fixture(scope="module")
def answers(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, tuple[Reply, Reply]]]:
    """For each case, what script mode answers and what our own container answers."""
    return {
        model: dict(
            zip(
                cases,
                zip(
                    ask_worker(models[model] / "model", [*cases.values()], tmp_path_factory.mktemp("worker")).replies,
                    ask_own_container(models[model], [*cases.values()]),
                    strict=True,
                ),
                strict=True,
            )
        )
        for model, cases in CASES.items()
    }


@pytest.mark.parametrize(("model", "case"), [(model, case) for model, cases in CASES.items() for case in cases])
def test_script_mode_answers_as_our_own_container_does_bit_for_bit(
    answers: dict[str, dict[str, tuple[Reply, Reply]]], model: str, case: str
) -> None:
    ours, own = answers[model][case]
    assert (ours.status == 200) == (own.status == 200) == (not case.startswith("bad-"))
    assert ours.status == own.status
    for header in ("content-type", RELEASE_ID_HEADER, "x-amzn-sagemaker-custom-attributes"):
        assert ours.headers.get(header) == own.headers.get(header)
    if ours.status == 200:
        assert ours.body == own.body
    else:
        assert envelope(ours) == envelope(own)


def envelope(reply: Reply) -> dict[str, str]:
    """The error without its request id. A traceback behind it, as the toolkit would add, is no JSON."""
    error: dict[str, str] = json.loads(reply.body)["error"]
    assert error.pop("request_id")
    return error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "rows"), [("images", http_faults.IMAGES), ("tables", http_faults.TABLES)], ids=["images", "tables"]
)
def test_every_wrong_request_of_the_list_of_faults_gets_its_answer_in_script_mode_too(
    models: dict[str, Path], tmp_path: Path, model: str, rows: dict[str, http_faults.Faults]
) -> None:
    # A header that comes twice reaches a handler as one of both: TorchServe keeps them in a table.
    faults = {
        f"{row} {name}": fault
        for row, cases in rows.items()
        for name, fault in cases.items()
        if len(dict(fault.headers)) == len(fault.headers)
    }
    cases = [(fault.body, dict(fault.headers)) for fault in faults.values()]
    replies = ask_worker(models[model] / "model", cases, tmp_path).replies
    said = {name: (reply.status, envelope(reply)["code"]) for name, reply in zip(faults, replies, strict=True)}
    assert said == {name: (fault.status, fault.code) for name, fault in faults.items()}


def test_what_serves_comes_out_of_the_archive(models: dict[str, Path], tmp_path: Path) -> None:
    model = models["images"] / "model"
    body, headers = GOOD["data"]
    # So much space is for the general reader.
    modules = ask_worker(model, [GOOD["data"], (body + b" " * 200, headers)], tmp_path).modules
    ours = {
        name: Path(path)
        for name, path in modules.items()
        if path
        and name.partition(".")[0] in ("inference", "model_code", "numpy", "onnxruntime", "simdjson", "csimdjson")
    }
    assert {"inference", "model_code.inference.respond", "numpy", "onnxruntime", "simdjson"} <= ours.keys()
    assert {path.is_relative_to(model / "code") for path in ours.values()} == {True}
    assert not {name for name in modules if name.partition(".")[0] in ("ferry", "infra", "uvloop")}


def test_the_callers_inference_id_names_an_error(models: dict[str, Path], tmp_path: Path) -> None:
    headers = {"content-type": "application/json"}
    cases = [
        (b"x", {**headers, "X-Amzn-SageMaker-Inference-Id": "mine"}),
        (b"x", {**headers, "X-Amzn-SageMaker-Inference-Id": "not mine"}),
    ]
    replies = ask_worker(models["images"] / "model", cases, tmp_path).replies
    assert [json.loads(reply.body)["error"]["request_id"] for reply in replies] == ["mine", "request-1"]


def test_a_form_is_refused_and_the_next_request_is_answered(models: dict[str, Path], tmp_path: Path) -> None:
    cases = [(b"a=b", {"content-type": "application/x-www-form-urlencoded"}), GOOD["data"]]
    replies = ask_worker(models["images"] / "model", cases, tmp_path).replies
    assert [reply.status for reply in replies] == [415, 200]


def test_the_pinned_release_is_served(models: dict[str, Path], tmp_path: Path) -> None:
    description = serving_models.write_model(tmp_path / "same")
    pins = {environment.RELEASE_ID: f"mnist-{description.onnx.sha256[:12]}"}
    (reply,) = ask_worker(models["images"] / "model", [GOOD["data"]], tmp_path, **pins).replies
    assert reply.status == 200


@pytest.mark.parametrize(
    ("variables", "batch_size", "reason"),
    [
        ({environment.RELEASE_ID: "mnist-000000000000"}, 1, "release id is mnist-.*expected: mnist-000000000000"),
        ({environment.MODEL_JSON_SHA256: "0" * 64}, 1, "sha256 of model.json is"),
        ({}, 2, "SAGEMAKER_TS_BATCH_SIZE: found 2; allowed: 1"),
    ],
    ids=["another-release", "another-model-json", "batches"],
)
def test_what_cannot_be_served_ends_the_model_server_with_the_reason(
    models: dict[str, Path], tmp_path: Path, variables: dict[str, str], batch_size: int, reason: str
) -> None:
    model = models["images"] / "model"
    (tmp_path / "requests.json").write_text("[]")
    command = worker_command(model, tmp_path / "requests.json", tmp_path / "answers.json", batch_size)
    # The shell stands where java does: it has that argument, starts the worker, and would live on after it.
    finished = subprocess.run(
        ["/bin/sh", "-c", '"$@"; exec sleep 60', "org.pytorch.serve.ModelServer", *command],
        env=worker_variables(model, PATH="/usr/bin:/bin", **variables),
        cwd=model,
        stderr=subprocess.PIPE,
        text=True,
        timeout=WORKER_SECONDS,
        check=False,
    )
    assert finished.returncode == -signal.SIGTERM
    assert re.search(rf"the model cannot be served: .*{reason}", finished.stderr)
    assert not (tmp_path / "answers.json").exists()


def test_only_the_model_server_is_ended(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="release id is"):
        ask_worker(models["images"] / "model", [], tmp_path, **{environment.RELEASE_ID: "mnist-000000000000"})


def test_script_mode_has_the_versions_of_our_own_image() -> None:
    own = read_pins(ROOT / "model_code" / "container" / "requirements.txt", IMAGE_PYTHON)
    assert read_pins(REQUIREMENTS, IMAGE_PYTHON) == {name: pin for name, pin in own.items() if name not in SERVER}


def test_other_code_gives_the_same_release_another_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = script_mode_key("mnist-0123456789ab")
    assert key.startswith("releases/mnist-0123456789ab/pytorch/")
    shutil.copytree(ROOT / "model_code", tmp_path / "model_code", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(script_mode, "ROOT", tmp_path)
    assert script_mode_key("mnist-0123456789ab") == key
    with (tmp_path / "model_code" / "script_mode" / "inference.py").open("a") as handlers:
        handlers.write("CHANGED = True\n")
    assert script_mode_key("mnist-0123456789ab") != key


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An emulated account with a versioned artifacts bucket, and hosting.image = "own"."""
    with emulated(tmp_path_factory.mktemp("script-mode")) as settings:
        s3 = aws.client(settings, "s3")
        s3.create_bucket(Bucket=settings.artifact_bucket)
        s3.put_bucket_versioning(Bucket=settings.artifact_bucket, VersioningConfiguration={"Status": "Enabled"})
        yield settings


@pytest.fixture(scope="module")
def dlc(own: Settings) -> Settings:
    """The same with hosting.image = "pytorch-dlc"."""
    return own.model_copy(update={"hosting": own.hosting.model_copy(update={"image": "pytorch-dlc"})})


def stored(settings: Settings) -> dict[str, Any]:
    listing = aws.client(settings, "s3").list_object_versions(Bucket=settings.artifact_bucket)
    return {entry["Key"]: entry["VersionId"] for entry in listing.get("Versions", [])}


def silent(_: str) -> None:
    return None


@dataclass(frozen=True)
class Released:
    """A release made with hosting.image = "pytorch-dlc", its script-mode archive as it is stored, and what was reported."""

    release: Release
    artifact: Path
    archive: bytes
    lines: list[str]


@pytest.fixture(scope="module")
def released(dlc: Settings, tmp_path_factory: pytest.TempPathFactory) -> Released:
    artifact = tmp_path_factory.mktemp("artifact") / "model.tar.gz"
    lines: list[str] = []
    serving_models.write_artifact(artifact)
    release = make_release(dlc, str(artifact), lines.append)
    key = script_mode_key(release.release_id)
    archive = aws.client(dlc, "s3").get_object(Bucket=dlc.artifact_bucket, Key=key)["Body"].read()
    return Released(release, artifact, archive, lines)


def test_the_archive_holds_the_release_our_code_and_libraries_for_the_images_python(
    released: Released, tmp_path: Path
) -> None:
    members = read_archive(released.artifact.read_bytes(), "artifact")
    model = unpack(released.archive, tmp_path)
    names = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    assert members_of(model) == members
    assert {name for name in names if "/" not in name} == members.keys()
    for name in ("model_code/inference/respond.py", "model_code/environment.py", "model_code/__init__.py"):
        assert (model / "code" / name).read_bytes() == (ROOT / name).read_bytes()
    handlers = ROOT / "model_code" / "script_mode" / "inference.py"
    assert (model / "code" / "inference.py").read_bytes() == handlers.read_bytes()
    # The image would install what it names, over a network that an isolated container does not have.
    assert "code/requirements.txt" not in names
    compiled = {name for name in names if ".cpython-" in name}
    assert compiled
    assert {f".cpython-{IMAGE_PYTHON.replace('.', '')}-x86_64-linux-gnu" in name for name in compiled} == {True}


@pytest.mark.slow
def test_the_same_release_code_and_pins_make_the_same_archive_whose_digest_is_told(released: Released) -> None:
    members = read_archive(released.artifact.read_bytes(), "artifact")
    assert script_mode_archive(members) == released.archive
    key = script_mode_key(released.release.release_id)
    (told,) = [line for line in released.lines if line.startswith("script mode ")]
    assert told.endswith(
        f"/{key}: {len(released.archive):,} bytes, sha256 {hashlib.sha256(released.archive).hexdigest()}"
    )


def test_the_same_artifact_stores_no_archive_twice(released: Released, dlc: Settings) -> None:
    before = stored(dlc)
    assert make_release(dlc, str(released.artifact), silent) == released.release
    assert stored(dlc) == before


@pytest.mark.slow
def test_a_release_for_our_own_image_has_no_such_archive_until_it_is_rolled_back_to(
    released: Released, own: Settings, dlc: Settings, tmp_path: Path
) -> None:
    serving_models.write_artifact(tmp_path / "other.tar.gz", seed=1)
    other = make_release(own, str(tmp_path / "other.tar.gz"), silent)
    before = stored(own)
    assert script_mode_key(other.release_id) not in before
    assert rollback(dlc, released.release.release_id, silent) == released.release
    assert rollback(dlc, other.release_id, silent) == other
    assert stored(dlc).keys() - before.keys() == {script_mode_key(other.release_id)}


def test_another_model_under_the_archives_key_is_a_conflict_and_the_last_release_stays(
    released: Released, dlc: Settings, tmp_path: Path
) -> None:
    description = serving_models.write_artifact(tmp_path / "model.tar.gz", seed=2)
    serving_models.write_model(tmp_path / "another", seed=3)
    key = script_mode_key(description.release_id)
    body = write_archive(members_of(tmp_path / "another"))
    aws.client(dlc, "s3").put_object(Bucket=dlc.artifact_bucket, Key=key, Body=body)
    make_release(dlc, str(released.artifact), silent)
    with pytest.raises(FerryError, match=rf"CONFLICT s3://.*/{key}: another model stands there"):
        make_release(dlc, str(tmp_path / "model.tar.gz"), silent)
    assert current_release(dlc)[0] == released.release
