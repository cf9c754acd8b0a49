"""The pipeline's evaluation, as the executable that SageMaker starts, in the folders of a processing job below a temporary base.

It runs from a copy of exactly the files that its image holds, and without torch: what is missing in the image is missing here.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.aws.sources import SERVING_SOURCES, read_sources
from infra.settings import ROOT
from model_code import environment
from model_code.container import evaluation
from model_code.environment import ProcessingPaths
from model_code.inference.contract import MAX_INSTANCES
from model_code.training.mnist.data import read_channel
from tests import serving_models
from tests.idx_files import digit_like, idx

Run = subprocess.CompletedProcess[str]
EXAMPLES = 60
MANIFEST = b'{"schema_version": 1}\n'
BLOCKED = ("torch", "onnx", "sklearn", "boto3")


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image holds below /opt/program; importing a training framework fails as it does there."""
    folder = tmp_path_factory.mktemp("program")
    for name, content in read_sources(ROOT, SERVING_SOURCES).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        shutil.copymode(ROOT / name, path)
    for name in BLOCKED:
        (folder / f"{name}.py").write_text("raise ImportError('not in the image')\n")
    return folder


@pytest.fixture
def job(tmp_path: Path) -> ProcessingPaths:
    """The inputs of an evaluation: a good artifact, sixty digits, a manifest."""
    paths = ProcessingPaths(tmp_path / "opt-ml")
    serving_models.write_artifact(paths.model / environment.ARCHIVE_FILE, extra_members={"notes.txt": b"left behind"})
    write_testing(paths, EXAMPLES)
    for folder in (paths.manifest, paths.evaluation, paths.requests):
        folder.mkdir(parents=True)  # SageMaker mounts the outputs too
    (paths.manifest / "manifest.json").write_bytes(MANIFEST)
    return paths


def write_testing(paths: ProcessingPaths, count: int) -> None:
    paths.testing.mkdir(parents=True, exist_ok=True)
    images, labels = digit_like(count, seed=count)
    (paths.testing / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (paths.testing / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


def evaluate(program: Path, paths: ProcessingPaths, model: str | None = "mnist") -> Run:
    folders = (program / "model_code" / "container", Path(sys.executable).parent)
    variables = {
        "PATH": os.pathsep.join(map(str, folders)),
        "PYTHONPATH": str(program),
        environment.BASE_DIR: str(paths.base),
    } | ({environment.MODEL_NAME: model} if model is not None else {})
    command = ["/usr/bin/env", "evaluate"]  # the ContainerEntrypoint of the pipeline's Evaluate step
    return subprocess.run(command, env=variables, cwd=paths.base, capture_output=True, text=True, timeout=120)


def report_of(paths: ProcessingPaths) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((paths.evaluation / environment.EVALUATION_FILE).read_bytes())
    return report


def at(document: Any, path: str) -> Any:
    for part in path.split("."):
        document = document[part]
    return document


def test_the_numbers_are_those_that_numpy_alone_computes(program: Path, job: ProcessingPaths) -> None:
    run = evaluate(program, job)
    assert run.returncode == 0, run.stderr
    examples = read_channel(job.testing, "testing")
    expected = serving_models.log_probabilities(examples.inputs)
    metrics = report_of(job)["multiclass_classification_metrics"]
    assert metrics["accuracy"] == {
        "value": pytest.approx((expected.argmax(axis=1) == examples.labels).mean()),
        "standard_deviation": "NaN",
    }
    right = expected[np.arange(EXAMPLES), examples.labels]
    assert metrics["log_loss"]["value"] == pytest.approx(-right.mean(), rel=1e-4)
    assert f"on {EXAMPLES} examples" in run.stdout
    assert not job.message.exists()


def test_the_pipeline_finds_what_it_reads(program: Path, job: ProcessingPaths) -> None:
    assert evaluate(program, job).returncode == 0
    report = report_of(job)
    assert 0 <= at(report, environment.ACCURACY_PATH) <= 1
    assert at(report, environment.MANIFEST_SHA256_PATH) == hashlib.sha256(MANIFEST).hexdigest()


def test_the_same_inputs_give_the_same_report(program: Path, job: ProcessingPaths) -> None:
    assert evaluate(program, job).returncode == 0
    first = (job.evaluation / environment.EVALUATION_FILE).read_bytes()
    assert evaluate(program, job).returncode == 0
    assert (job.evaluation / environment.EVALUATION_FILE).read_bytes() == first


def test_the_batch_transform_gets_the_whole_channel_in_bodies_that_the_container_takes(
    program: Path, job: ProcessingPaths
) -> None:
    write_testing(job, MAX_INSTANCES + 76)
    (job.requests / "part-00007.npy").write_bytes(b"of an earlier run on this machine")
    assert evaluate(program, job).returncode == 0
    parts = sorted(job.requests.iterdir())
    assert len(parts) == 2
    assert all(part.stat().st_size <= evaluation.MAX_BODY_BYTES for part in parts)
    arrays = [np.load(part) for part in parts]
    assert max(map(len, arrays)) == MAX_INSTANCES
    assert np.array_equal(np.concatenate(arrays), read_channel(job.testing, "testing").inputs)


def test_a_second_model_is_evaluated_by_the_same_image(program: Path, job: ProcessingPaths) -> None:
    run = evaluate(program, job, "iris")
    assert run.returncode == 1  # the artifact is of mnist; what counts is that the data module of iris could be loaded
    assert "holds a 'mnist' model; expected: 'iris'" in run.stderr


# Failures


def failed(run: Run, paths: ProcessingPaths) -> str:
    """The one line that log and ExitMessage both hold."""
    assert run.returncode == 1
    assert "Traceback" not in run.stderr
    (line,) = run.stderr.splitlines()
    assert paths.message.read_text() == line[:1024]
    assert line.startswith("evaluation failed: ")
    assert not (paths.evaluation / environment.EVALUATION_FILE).exists()
    return line


@pytest.mark.parametrize("model", [None, "", "../mnist", "unknown"])
def test_an_unknown_model_is_told_with_those_that_are_known(
    program: Path, job: ProcessingPaths, model: str | None
) -> None:
    assert "FERRY_MODEL is" in failed(evaluate(program, job, model), job)


def test_a_missing_artifact_is_told(program: Path, job: ProcessingPaths) -> None:
    (job.model / environment.ARCHIVE_FILE).unlink()
    assert environment.ARCHIVE_FILE in failed(evaluate(program, job), job)


def _member(archive: tarfile.TarFile, name: str, content: bytes = b"", **changes: Any) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for key, value in changes.items():
        setattr(member, key, value)
    archive.addfile(member, io.BytesIO(content))


def _archive(**members: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in members.items():
            _member(archive, name.replace("_", "."), content)
    return packed.getvalue()


def _with_link(_: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        _member(archive, "model.json", type=tarfile.SYMTYPE, linkname="/etc/hostname")
    return packed.getvalue()


def _twice(_: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        _member(archive, "model.json", b"{}")
        _member(archive, "./model.json", b"{}")
    return packed.getvalue()


def _flipped(raw: bytes) -> bytes:
    return raw[:-6] + bytes([raw[-6] ^ 1]) + raw[-5:]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: b"PK\x03\x04", "no archive that can be read"),
        (lambda raw: raw[: len(raw) // 2], "no archive that can be read"),
        (_flipped, "no archive that can be read"),
        (lambda raw: _archive(model_onnx=b"onnx"), "no model.json at its root"),
        (_with_link, "model.json is no plain file"),
        (_twice, "model.json stands in it twice"),
        (lambda raw: _archive(model_json=b"{}", model_onnx=b"onnx"), "MODEL_INVALID"),
        (lambda raw: _archive(model_json=b" " * (8 * 2**20 + 1)), "at most 8388608"),
    ],
    ids=["no gzip", "cut", "flipped bit", "member missing", "link", "twice", "no model", "too large"],
)
def test_an_artifact_that_cannot_be_trusted_is_told(
    program: Path, job: ProcessingPaths, damage: Any, said: str
) -> None:
    path = job.model / environment.ARCHIVE_FILE
    path.write_bytes(damage(path.read_bytes()))
    assert said in failed(evaluate(program, job), job)


def test_a_testing_channel_that_cannot_be_read_is_told(program: Path, job: ProcessingPaths) -> None:
    (job.testing / "t10k-labels-idx1-ubyte.gz").unlink()
    assert "channel 'testing'" in failed(evaluate(program, job), job)


def test_without_the_one_manifest_nothing_is_evaluated(program: Path, job: ProcessingPaths) -> None:
    (job.manifest / "another.json").write_bytes(MANIFEST)
    assert "needed: one, the manifest" in failed(evaluate(program, job), job)
