"""What the measurements of scale share: the release, the machine's cores, the load, and how long all of it takes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import onnxruntime as ort

from bench.core import one_thread
from bench.load import Load, find_generator
from bench.payloads import Payload, WrongAnswer, make_payload
from infra.release import Release
from model_code.inference.contract import Signature
from model_code.inference.predictor import Predictor

SIZES = tuple(2**power for power in range(11))
CORES = 2
# A machine that answers nothing in one cell is asked once more, for so many times as long.
_PATIENCE = 5


@dataclass(frozen=True)
class Plan:
    """Rounds in one process and over HTTP; seconds of a cell, of a longer one, of warming up and of the raw limit."""

    core_rounds: int
    rounds: int
    cell: float
    long_cell: float
    warm_up: float
    raw: float
    http_sizes: tuple[int, ...]
    most_models: int


FULL = Plan(3, 3, cell=1, long_cell=2, warm_up=1, raw=1, http_sizes=SIZES, most_models=64)
QUICK = Plan(1, 1, cell=1, long_cell=1, warm_up=1, raw=1, http_sizes=SIZES[::2], most_models=8)


@dataclass(frozen=True)
class Setup:
    """`folder` is an /opt/ml with the release in `model`; `cores` are all that this process may use."""

    plan: Plan
    release: Release
    predictor: Predictor
    folder: Path
    cores: Sequence[int]
    started: float = field(default_factory=time.monotonic)

    @property
    def signature(self) -> Signature:
        return self.predictor.description.signature

    @property
    def model(self) -> Path:
        return self.folder / "model" / "model.onnx"

    @cached_property
    def session(self) -> ort.InferenceSession:
        """The bare one, of one thread."""
        return ort.InferenceSession(self.model, one_thread(), providers=["CPUExecutionProvider"])

    def payload(self, name: str, images: int, content_type: str) -> Payload:
        return make_payload(self.signature, self.session, self.folder / name, images, content_type)

    def beside(self, server_cores: Sequence[int]) -> Sequence[int]:
        """The load generator's cores: those that the server has not, and all where it has all."""
        return [core for core in self.cores if core not in server_cores] or self.cores

    def load(
        self,
        url: str,
        payload: Payload,
        connections: int,
        seconds: float,
        server_cores: Sequence[int],
        paths: Sequence[str] = (),
    ) -> Load:
        """One cell. Raises WrongAnswer where nothing was answered."""
        generator = find_generator(self.beside(server_cores))
        for patience in (1, _PATIENCE):
            found = generator.run(url, payload, connections, seconds * patience, paths)
            if found.requests_per_second > 0:
                return found
        raise WrongAnswer(f"{payload.name}: no answer in {seconds * _PATIENCE:g} s, {found.errors} errors")

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self.started:5.0f} s  {what}", flush=True)
