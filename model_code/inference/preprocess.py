"""From raw values to what the network was trained with."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_code.inference.contract import Preprocessing


def normalise(raw: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(raw * scale - mean) / std in float32; `raw` is (n, channels, ...) of any number type, mean and std go by channel."""
    per_channel = (-1, *(1,) * (raw.ndim - 2))
    mean = np.asarray(preprocessing.mean, np.float32).reshape(per_channel)
    std = np.asarray(preprocessing.std, np.float32).reshape(per_channel)
    # In place: the images of a training set are there twice at most.
    images = raw.astype(np.float32)
    images *= np.float32(preprocessing.scale)
    images -= mean
    images /= std
    return images
