"""docs/bring-your-own-model.md, followed to the letter in a copy of the checkout, as far as it goes without a deployment.

The sh blocks run one after the other, a Python block goes into the file that its first line names, and the TOML blocks go into
settings.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ferry.model_probe import probe_model
from infra.aws.image import image_tag
from infra.aws.source_bundle import source_bundle
from infra.settings import ROOT
from model_code import environment
from model_code.environment import MlPaths, ProcessingPaths
from model_code.inference.contract import Request, parse_model_json
from model_code.inference.predictor import Predictor
from model_code.inference.respond import respond
from model_code.training.evaluate import score
from model_code.training.examples import Examples
from model_code.training.table import read_labelled_rows

PAGE = (ROOT / "docs" / "bring-your-own-model.md").read_text()
MODEL = "model_code/training/wine"
SECONDS = 180


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


# Of any environment, and of the one that serves the new model.
DATASET_TABLE, MODEL_TABLE = blocks("toml")
FILES = {block.partition("\n")[0].removeprefix("# "): block for block in blocks("python")}


@dataclass(frozen=True)
class Followed:
    """A checkout after the page's commands, what they printed, and the folders of the training job."""

    checkout: Path
    printed: str
    job: MlPaths

    def run(self, *command: str, **variables: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            command,
            cwd=self.checkout,
            env=shell(self.checkout) | variables,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )


def shell(checkout: Path) -> dict[str, str]:
    """What `. .venv/bin/activate` gives in the reader's checkout."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "PYTHONPATH": str(checkout), "TMPDIR": str(checkout / "build")}


def run_script(checkout: Path, script: str) -> str:
    """Run lines of a terminal up to the first that fails; returns what they printed."""
    answer = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=checkout,
        env=shell(checkout),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert answer.returncode == 0, answer.stdout
    return answer.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Followed:
    checkout = tmp_path_factory.mktemp("checkout")
    for name in ("config", "ferry", "infra", "model_code"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    (checkout / "build").mkdir()
    first, *others = blocks("sh")
    run_script(checkout, first)
    for name, content in FILES.items():
        (checkout / name).write_text(content)
    printed = run_script(checkout, "".join(others))
    (base,) = (path.parent for path in (checkout / "build").glob("*/input"))
    return Followed(checkout, printed, MlPaths(base))


def held_out_wines(followed: Followed) -> tuple[Examples, str]:
    """The held-out wines, and their rows as a client would send them."""
    folder = followed.job.channel("testing")
    signature = Predictor.load(followed.job.model).description.signature
    (features,) = signature.input.shape[1:]
    examples = read_labelled_rows(folder, "testing", signature.labels, [""] * (features or 0))
    lines = (folder / "wine.csv").read_text().splitlines()
    return examples, "".join(line.partition(",")[2] + "\n" for line in lines)


def test_the_page_has_every_file_of_a_model() -> None:
    files = ("data.py", "dataset.py", "model.py", "train.py")
    assert list(FILES) == [*(f"{MODEL}/{name}" for name in files), "build/ask.py"]


def test_the_job_leaves_a_model_above_the_gate_of_the_page(followed: Followed) -> None:
    table = tomllib.loads(DATASET_TABLE)["datasets"]["wine"]
    assert sorted(path.name for path in followed.job.model.iterdir()) == ["model.json", "model.onnx"]
    description = parse_model_json((followed.job.model / environment.SIGNATURE_FILE).read_bytes())
    assert description.model == "wine"
    assert description.metrics["accuracy"] >= table["gate"]
    effective = description.training.hyperparameters
    assert {name: effective[name] for name in table["hyperparameters"]} == {
        name: float(value) for name, value in table["hyperparameters"].items()
    }


def test_every_epoch_is_told_as_sagemaker_reads_it(followed: Followed) -> None:
    for _, regex in environment.METRIC_DEFINITIONS:
        assert len(re.findall(regex, followed.printed)) == 20


def test_asking_gives_the_answers_that_the_page_shows(followed: Followed) -> None:
    (shown,) = re.findall(r"^```\n(200 .*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert followed.printed.endswith(f"model.json\nmodel.onnx\n{shown}")


def test_csv_json_and_npy_get_the_same_answers(followed: Followed) -> None:
    predictor = Predictor.load(followed.job.model)
    examples, rows = held_out_wines(followed)
    stream = io.BytesIO()
    np.save(stream, examples.inputs)
    data = json.dumps({"data": examples.inputs.tolist(), "probabilities": True}).encode()
    bodies = {"text/csv": rows.encode(), "application/json": data, "application/x-npy": stream.getvalue()}
    answers: dict[str, Any] = {}
    for content_type, body in bodies.items():
        answer = respond(predictor, Request(body, content_type, None, "request-1"))
        assert answer.status == 200, answer.body
        answers[content_type] = json.loads(answer.body)
    probabilities = np.array(answers["application/json"]["probabilities"], np.float32)
    assert score(probabilities, examples.labels, "probabilities").accuracy >= 0.9
    said = [predictor.description.signature.labels[index] for index in probabilities.argmax(axis=1)]
    assert [answer["cultivar"] for answer in answers.values()] == [said] * 3


def test_the_release_check_accepts_the_artifact(followed: Followed) -> None:
    probe_model(followed.job.model, "the page's model.tar.gz")


def test_the_pipelines_evaluation_judges_it(followed: Followed, tmp_path: Path) -> None:
    paths = ProcessingPaths(tmp_path)
    for folder in (paths.model, paths.manifest):
        folder.mkdir(parents=True)
    with tarfile.open(paths.model / environment.ARCHIVE_FILE, "w:gz") as archive:
        for path in followed.job.model.iterdir():
            archive.add(path, path.name)
    shutil.copytree(followed.job.channel("testing"), paths.testing)
    (paths.manifest / "manifest.json").write_text("{}")
    variables = {environment.BASE_DIR: str(tmp_path), environment.MODEL_NAME: "wine"}
    answer = followed.run("model_code/container/evaluate", **variables)
    assert answer.returncode == 0, answer.stderr
    metrics = json.loads((paths.evaluation / environment.EVALUATION_FILE).read_bytes())
    assert metrics["multiclass_classification_metrics"]["accuracy"]["value"] >= 0.9


def test_ferry_knows_it_in_an_environment_of_its_own(followed: Followed) -> None:
    dev = (followed.checkout / "config" / "dev.toml").read_text()
    old = re.search(r"^\[model\]\n.*?\n\n", dev, re.DOTALL | re.MULTILINE)
    assert old
    own = dev.replace(old[0], f"{MODEL_TABLE}\n{DATASET_TABLE}\n").replace('suffix = "dev01"', 'suffix = "wine01"')
    (followed.checkout / "config" / "dev-wine.toml").write_text(own)
    answer = followed.run("ferry", "data", "upload", "--data", "elsewhere", FERRY_ENV="dev-wine")
    assert (answer.returncode, answer.stderr) == (2, "ferry: elsewhere: wine takes no other data. Leave --data out.\n")


def test_the_training_bundle_holds_it_and_the_serving_image_is_a_new_one(followed: Followed) -> None:
    with tarfile.open(fileobj=io.BytesIO(source_bundle(followed.checkout).archive)) as archive:
        ours = {name for name in archive.getnames() if name.startswith(f"{MODEL}/")}
    assert ours == {name for name in FILES if name.startswith(MODEL)} | {f"{MODEL}/__init__.py"}
    assert image_tag(followed.checkout) != image_tag(ROOT)


def test_the_code_of_the_page_is_formatted_and_lints(followed: Followed) -> None:
    shutil.copy(ROOT / "pyproject.toml", followed.checkout)
    for command in (("check",), ("format", "--check")):
        answer = followed.run("ruff", *command, "--no-cache", *FILES)
        assert answer.returncode == 0, answer.stdout + answer.stderr
