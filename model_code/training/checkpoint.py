"""Checkpoints of a training: each one whole or absent, and taken up only by the very same training.

SageMaker keeps /opt/ml/checkpoints and its S3 prefix alike (CheckpointConfig): what lies there when a job starts came from an
earlier or interrupted one, what is written goes to S3, and what is deleted here is deleted there. So the last checkpoint is
never deleted, and those of another training are neither read nor touched: the name of each starts with the fingerprint of
its own.

A file is the line MAGIC, the sha256 of the rest, and the rest: what torch.save makes of a state.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_code.training.errors import CheckpointFailed
from model_code.training.log import report

MAGIC = b"modelferry checkpoint 1\n"
KEPT = 2  # the newest, and the one before in case that it is damaged
_DIGEST_BYTES = hashlib.sha256().digest_size
_NAME = re.compile(r"(?P<fingerprint>[0-9a-f]{12})-(?P<step>[0-9]{10})\.checkpoint")
# In the folder itself: SageMaker mounts it, so that beside it may be another file system. No reader takes this name.
_UNFINISHED = ".unfinished"


class Checkpoints:
    """Those of one training in a folder. Any process may be killed at any moment of any method."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        self._folder = folder
        self._fingerprint = fingerprint

    @classmethod
    def open(cls, folder: Path, fingerprint: str) -> "Checkpoints | None":
        """None, with a warning in the log, where the folder cannot be written: that must not fail a job that needs none."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / _UNFINISHED).write_bytes(b"")
            (folder / _UNFINISHED).unlink()
        except OSError as error:
            report(f"warning: {folder}: no checkpoints will be written ({error.strerror or error})")
            return None
        return cls(folder, fingerprint)

    def save(self, step: int, state: Mapping[str, Any]) -> str:
        """Write `state` (tensors, numbers, texts, and lists and dicts of them) as that of `step` steps; returns the file's name.

        Older ones are deleted then, down to KEPT. Raises CheckpointFailed.
        """
        name = f"{self._fingerprint[:12]}-{step:010}.checkpoint"
        content = io.BytesIO()
        torch.save({"fingerprint": self._fingerprint, **state}, content)
        try:
            self._write(name, content.getbuffer())
            earlier = [path for path in self._own() if path.name < name]
            for path in earlier[KEPT - 1 :]:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointFailed(
                f"CHECKPOINT {name} cannot be written: {error.strerror or error}",
                "Give the job a larger volume, or a checkpoint folder that it may write; earlier checkpoints are kept.",
            ) from error
        return name

    def newest(self) -> bytes | None:
        """What `unpack` takes, from the newest checkpoint that is not damaged; None where the training starts anew."""
        self._report_others()
        for path in self._own():
            try:
                content = self._read(path)
            except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
                report(f"warning: checkpoint {path.name} cannot be used, the one before is tried: {error}")
            else:
                report(f"going on from checkpoint {path.name}")
                return content
        return None

    def _own(self) -> list[Path]:
        """Newest first."""
        return sorted(self._folder.glob(f"{self._fingerprint[:12]}-*.checkpoint"), reverse=True)

    def _report_others(self) -> None:
        names = [path.name for path in self._folder.glob("*") if _NAME.fullmatch(path.name)]
        others = [name for name in names if not name.startswith(self._fingerprint[:12])]
        if others:
            report(
                f"warning: {self._folder}: {len(others)} checkpoints are of other data, hyperparameters or code; "
                "they are left alone and this training does not go on from them"
            )

    def _write(self, name: str, content: memoryview) -> None:
        unfinished = self._folder / _UNFINISHED
        try:
            with unfinished.open("wb") as file:
                file.write(MAGIC)
                file.write(hashlib.sha256(content).digest())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self._folder / name)
        except OSError:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        descriptor = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _read(self, path: Path) -> bytes:
        """Raises one of the errors that `newest` knows where the file is not what `save` wrote."""
        raw = path.read_bytes()
        digest, content = raw[len(MAGIC) :][:_DIGEST_BYTES], raw[len(MAGIC) + _DIGEST_BYTES :]
        if not raw.startswith(MAGIC):
            raise ValueError(f"it starts with {raw[: len(MAGIC)]!r}, not with {MAGIC!r}")
        if hashlib.sha256(content).digest() != digest:
            raise ValueError(f"its {len(raw):,} bytes are not those that were written (sha256)")
        if unpack(content)["fingerprint"] != self._fingerprint:
            raise ValueError("it is of another training")
        return content


def unpack(content: bytes) -> dict[str, Any]:
    """The state that was saved, on the CPU. Tensors and plain values only: a checkpoint can run no code."""
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def fingerprint(settings: Mapping[str, Any], network: torch.nn.Module, arrays: Iterable[NDArray[Any]]) -> str:
    """What makes two trainings the same one, as 64 hex digits: hyperparameters, network, data, training code and torch."""
    summary = hashlib.sha256()
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    summary.update(json.dumps([settings, shapes, _code_digest(), torch.__version__], sort_keys=True).encode())
    for array in arrays:
        summary.update(f"{array.dtype} {array.shape}".encode())
        summary.update(np.ascontiguousarray(array).data)
    return summary.hexdigest()


def _code_digest() -> str:
    summary = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.rglob("*.py")):
        content = path.read_bytes()
        summary.update(f"{path.relative_to(folder)} {len(content)}\n".encode())
        summary.update(content)
    return summary.hexdigest()
