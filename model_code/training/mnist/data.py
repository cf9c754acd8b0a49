"""Handwritten digits, 28×28 pixels of 0 to 255: what this network takes, and what it makes of a channel."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_code.inference.contract import Preprocessing
from model_code.inference.preprocess import normalise
from model_code.training.errors import BadData
from model_code.training.examples import Examples
from model_code.training.idx import read_labelled_images
from model_code.training.log import report

IMAGE_SIZE = (28, 28)
LABELS: tuple[int | str, ...] = tuple(range(10))
RESPONSE_KEY = "digits"
# Mean and standard deviation of MNIST's training pixels, as in the published example.
PREPROCESSING = Preprocessing(scale=1 / 255, mean=(0.1307,), std=(0.3081,))


def read_channel(folder: Path, channel: str) -> Examples:
    """Read one channel and normalise it once, with the very function that serving uses. Raises BadData."""
    images, labels = read_labelled_images(folder, channel)
    if images.shape[1:] != IMAGE_SIZE:
        found, allowed = ("×".join(map(str, size)) for size in (images.shape[1:], IMAGE_SIZE))
        raise BadData(
            f"IMAGE_SIZE channel {channel!r}: images of {found} pixels; allowed: {allowed}",
            "Scale the images, or give the model a network for this size.",
        )
    wrong = np.flatnonzero(labels >= len(LABELS))
    if wrong.size:
        raise BadData(
            f"LABEL_RANGE channel {channel!r}: label {labels[wrong[0]]} at index {wrong[0]:,}; "
            f"allowed: {LABELS[0]} to {LABELS[-1]}",
            "Check that the labels belong to these images.",
        )
    _report_doubts(images, labels, channel)
    return Examples(normalise(images[:, np.newaxis], PREPROCESSING), labels.astype(np.int64))


def _report_doubts(images: NDArray[np.uint8], labels: NDArray[np.uint8], channel: str) -> None:
    """Data may be poor and still be what somebody wants; only one class cannot be learned at all."""
    absent = [label for label in LABELS if label not in labels]
    if len(absent) >= len(LABELS) - 1:
        raise BadData(
            f"ONE_CLASS channel {channel!r}: every label is {labels[0]}; allowed: two classes or more",
            "Check that the labels belong to these images.",
        )
    report(f"channel {channel!r}: {len(images):,} images")
    if absent:
        report(f"warning: channel {channel!r} has no image of {', '.join(map(str, absent))}")
    if images.min() == images.max():
        report(f"warning: channel {channel!r}: every pixel of every image is {images.min()}")
