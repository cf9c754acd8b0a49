"""Our own training image: exactly the files that it holds are enough for `train`, for every model.

What a job does with good data is in test_model_training.py; here nothing but the files of the image can be imported.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.aws.sources import TRAINING_IMAGE_SOURCES, read_sources
from infra.settings import ROOT
from model_code import environment
from model_code.environment import MlPaths

MODELS = sorted(path.parent.name for path in (ROOT / "model_code" / "training").glob("*/train.py"))


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the image holds below /opt/program."""
    folder = tmp_path_factory.mktemp("program")
    for name, content in read_sources(ROOT, TRAINING_IMAGE_SOURCES).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        shutil.copymode(ROOT / name, path)
    return folder


def test_there_are_models() -> None:
    assert "mnist" in MODELS


@pytest.mark.parametrize("model", MODELS)
def test_train_starts_the_model_and_gets_as_far_as_its_data(program: Path, tmp_path: Path, model: str) -> None:
    paths = MlPaths(tmp_path)
    paths.hyperparameters.parent.mkdir(parents=True)
    paths.hyperparameters.write_text("{}")
    hosts = {"current_host": "localhost", "hosts": ["localhost"], "network_interface_name": "lo"}
    paths.resource_config.write_text(json.dumps(hosts))
    variables = {
        "PATH": os.pathsep.join(map(str, (program / "model_code" / "container", Path(sys.executable).parent))),
        "PYTHONPATH": str(program),
        environment.BASE_DIR: str(tmp_path),
        environment.MODEL_NAME: model,
    }
    # As the image's own entry point starts it.
    run = subprocess.run(["/usr/bin/env", "train"], env=variables, cwd=tmp_path, capture_output=True, timeout=120)
    assert run.returncode == 1, run.stderr
    assert paths.failure.read_text().startswith("channel 'training' is missing")
