"""What an NVIDIA GPU changes, where this Python can reach one: an epoch of training, and images a second of ONNX Runtime.

    python -m bench.gpu [--quick] [--data FOLDER] [RELEASE_DIR]     the data are the four MNIST files

Neither cloud's serving image has a GPU, and no goal rests on this. What cannot be measured is listed with the reason. For the
second part, put onnxruntime-gpu of the same version in the place of onnxruntime: both cannot stand in one environment.
"""

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch

from bench.core import golden_pixels, one_thread, take_turn, unpack
from bench.parts import arguments, write_part
from bench.scale_setup import SIZES
from bench.training import ours, read
from ferry.archive import ArchiveError
from infra.release import ReleaseError
from model_code.inference.contract import Signature
from model_code.inference.errors import ModelInvalid
from model_code.inference.preprocess import normalise

CUDA = "CUDAExecutionProvider"
CPU = "CPUExecutionProvider"
ROUNDS = 5


class Missing(Exception):
    """What cannot be measured in this Python on this machine; the message says why."""


def train_an_epoch(data: Path | None) -> dict[str, Any]:
    """Seconds of one epoch of our loop and its test, twice: the first also starts CUDA and tries cuDNN's algorithms."""
    if not torch.cuda.is_available():
        raise Missing(f"torch {torch.__version__} finds no CUDA device")
    if data is None:
        raise Missing("no folder with the MNIST files was given: --data FOLDER, or make bench DATA=FOLDER")
    arrays = [read(data, prefix) for prefix in ("train", "t10k")]
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        judge = ours(arrays[0], arrays[1], epochs=1)
        seconds.append(time.perf_counter() - started)
    scores = judge()
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "seconds": seconds,
        "accuracy": scores.accuracy,
        "loss": scores.loss,
    }


def infer(
    signature: Signature, model: Path, provider: str, rounds: int, sizes: Sequence[int] = SIZES
) -> dict[str, Any]:
    """Images a second of a plain `session.run` by images a run, the way to the device and back included.

    The provider has ONNX Runtime's default options, and has to give the CPU's labels. Raises Missing.
    """
    if provider not in ort.get_available_providers():
        raise Missing(f"onnxruntime {ort.__version__} has no {provider}; onnxruntime-gpu has, in its place")
    if provider == CUDA:
        ort.preload_dlls()  # CUDA and cuDNN may lie in torch's or NVIDIA's own Python packages
    session = ort.InferenceSession(model, one_thread(), providers=list(dict.fromkeys((provider, CPU))))
    # Where a provider's libraries do not load, ONNX Runtime goes on without it.
    if session.get_providers()[0] != provider:
        raise Missing(f"{provider} did not start; ONNX Runtime would have used {session.get_providers()[0]}")
    reference = ort.InferenceSession(model, one_thread(), providers=[CPU])
    measured = {}
    for count in sizes:
        feed = {signature.input.name: normalise(golden_pixels(signature, count), signature.preprocessing)}
        labels, expected = (one.run(None, feed)[0].argmax(axis=1).tolist() for one in (session, reference))
        if labels != expected:
            raise Missing(f"{provider} gives other labels than {CPU} with {count} images")
        seconds = [statistics.median(take_turn(partial(session.run, None, feed))) for _ in range(rounds)]
        measured[str(count)] = {"images_per_second": count / statistics.median(seconds)}
        print(f"{provider}, {count} a run: {measured[str(count)]['images_per_second']:.0f} images/s", flush=True)
    return measured


def measure(release_dir: Path, data: Path | None, rounds: int) -> dict[str, Any]:
    """The report's share: `training` and `inference`, each with its numbers or with `missing`."""
    report: dict[str, Any] = {"device": device_name()}
    with tempfile.TemporaryDirectory(prefix="ferry-bench-") as name:
        signature = unpack(release_dir, Path(name)).description.signature
        model = Path(name) / "model.onnx"
        measurements: dict[str, Callable[[], dict[str, Any]]] = {
            "training": partial(train_an_epoch, data),
            "inference": partial(infer, signature, model, CUDA, rounds),
        }
        for part, measurement in measurements.items():
            try:
                report[part] = measurement()
            except Missing as error:
                report[part] = {"missing": str(error)}
                print(f"gpu, {part}: missing: {error}", flush=True)
    return {"gpu": report}


def device_name() -> str | None:
    """What NVIDIA's driver calls the GPUs; None where there is no driver."""
    program = shutil.which("nvidia-smi")
    if not program:
        return None
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    return finished.stdout.strip().replace("\n", ", ") if finished.returncode == 0 else None


def parse() -> argparse.Namespace:
    parser = arguments("bench.gpu", __doc__ or "")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="the four MNIST files, raw or as .gz")
    return parser.parse_args()


def main() -> None:
    given = parse()
    try:
        measured = measure(given.release_dir, given.data, 1 if given.quick else ROUNDS)
    except (ReleaseError, ArchiveError, ModelInvalid, OSError) as error:
        raise SystemExit(str(error)) from error
    write_part("gpu", measured, quick=given.quick)


if __name__ == "__main__":
    main()
