"""Makes the int8 release of a float32 release, with the training job's own quantiser, to be measured beside it.

    python -m bench.quantised DATA [RELEASE_DIR]     DATA: what the model's dataset takes, for digits a folder with MNIST's files

It is written to build/bench/int8. What a training job refuses, such as too high a cost in accuracy, is refused here too.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import tempfile
from pathlib import Path

from bench.core import unpack
from bench.environments import BUILD
from bench.parts import RELEASE_DIR
from ferry.archive import ArchiveError, write_archive
from infra.release import ReleaseError, parse_release, read_release, release_id
from model_code.environment import ARCHIVE_FILE, CHANNEL_FOLDERS, MODEL_FILE, RELEASE_FILE, SIGNATURE_FILE
from model_code.inference.contract import model_json_bytes
from model_code.inference.errors import ModelInvalid
from model_code.training.errors import TrainingError
from model_code.training.examples import Examples
from model_code.training.quantise import calibration_sample, quantise

INT8_DIR = BUILD / "int8"


def make(release_dir: Path, source: str, target: Path) -> str:
    """Write release.json and model.tar.gz of the int8 release into `target`; returns what the quantiser says of it.

    `source` are the data that it was trained on. Raises ReleaseError, ArchiveError, ModelInvalid and TrainingError.
    """
    release = read_release(release_dir / RELEASE_FILE)
    with tempfile.TemporaryDirectory(prefix="ferry-bench-") as name:
        folder = Path(name)
        predictor = unpack(release_dir, folder)
        training, testing = _channels(release.model, source, folder)
        made = quantise(
            (folder / MODEL_FILE).read_bytes(),
            predictor.description,
            calibration_sample(training.inputs),
            testing,
            predictor.run(testing.inputs, seconds=600),
        )
    members = {MODEL_FILE: made.raw, SIGNATURE_FILE: model_json_bytes(made.description)}
    archive = write_archive(members)
    document = release.model_dump() | {
        "release_id": release_id(release.model, made.description.onnx.sha256),
        "archive": release.archive.model_dump() | _digest(archive),
        "onnx": _digest(made.raw),
        "model_json": _digest(members[SIGNATURE_FILE]),
        "metrics": dict(made.description.metrics),
        "gate": release.gate.model_dump() | {"value": made.description.metrics["accuracy"]},
    }
    target.mkdir(parents=True, exist_ok=True)
    (target / ARCHIVE_FILE).write_bytes(archive)
    (target / RELEASE_FILE).write_bytes(parse_release(json.dumps(document).encode(), str(target)).to_bytes())
    return made.report


def _channels(model: str, source: str, folder: Path) -> tuple[Examples, Examples]:
    dataset, data = (importlib.import_module(f"model_code.training.{model}.{name}") for name in ("dataset", "data"))
    with contextlib.redirect_stdout(io.StringIO()):  # it is the job that reports to standard output
        prepared = dataset.prepare(source, folder / "data", print)
        training, testing = (
            data.read_channel(prepared.folder / CHANNEL_FOLDERS[name], name) for name in ("training", "testing")
        )
    return training, testing


def _digest(content: bytes) -> dict[str, str | int]:
    return {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.quantised", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", metavar="DATA", help="the data that the release was trained on")
    parser.add_argument("release_dir", nargs="?", type=Path, default=RELEASE_DIR, metavar="RELEASE_DIR")
    given = parser.parse_args()
    try:
        print(f"{make(given.release_dir, given.data, INT8_DIR)}\n{INT8_DIR}")
    except (ReleaseError, ArchiveError, ModelInvalid, OSError) as error:
        raise SystemExit(str(error)) from error
    except TrainingError as error:
        raise SystemExit(f"{error}\n{error.hint}") from error


if __name__ == "__main__":
    main()
