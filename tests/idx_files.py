"""Tiny IDX datasets and the folders of a training job, for tests."""

import gzip
import json
import struct
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_code.environment import MlPaths


def idx(values: NDArray[np.uint8]) -> bytes:
    """The bytes of an IDX file of unsigned bytes."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def digit_like(count: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images (count, 28, 28) that can be learned in seconds, and their labels: each class is a square in a place of its own."""
    generator = np.random.default_rng(seed)
    labels = (np.arange(count) % 10).astype(np.uint8)
    images = generator.integers(0, 60, (count, 28, 28), dtype=np.uint8)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = 4 + 10 * (label % 2), 2 + 5 * (label // 2)
        image[top : top + 8, left : left + 4] = generator.integers(180, 256)
    return images, labels


def write_channels(paths: MlPaths, *, suffix: str = ".gz") -> None:
    """Channels `training` (256 images) and `testing` (60); an empty `suffix` leaves the files uncompressed."""
    for channel, prefix, count in (("training", "train", 256), ("testing", "t10k", 60)):
        folder = paths.channel(channel)
        folder.mkdir(parents=True, exist_ok=True)
        images, labels = digit_like(count, seed=count)
        for name, values in (("images-idx3", images), ("labels-idx1", labels)):
            raw = idx(values)
            (folder / f"{prefix}-{name}-ubyte{suffix}").write_bytes(gzip.compress(raw) if suffix else raw)


def write_job(base: Path, hyperparameters: Mapping[str, object], *, suffix: str = ".gz") -> MlPaths:
    """The whole /opt/ml below `base`, as SageMaker lays it out for one host."""
    paths = MlPaths(base)
    write_channels(paths, suffix=suffix)
    write_config(paths, hyperparameters, {"TrainingInputMode": "File"})
    return paths


def write_config(paths: MlPaths, hyperparameters: Mapping[str, object], channel: Mapping[str, str]) -> None:
    """The files below input/config, `channel` being the entry of both channels, and the empty model folder."""
    documents = {
        paths.hyperparameters: hyperparameters,
        paths.input_data_config: dict.fromkeys(("training", "testing"), channel),
        # The one name that resolves everywhere: AWS's toolkit waits until every host does.
        paths.resource_config: {"current_host": "localhost", "hosts": ["localhost"], "network_interface_name": "lo"},
    }
    for path, document in documents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(document))
    paths.model.mkdir()
