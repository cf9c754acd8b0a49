"""From raw values to what the network was trained with."""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_code.inference.contract import Preprocessing


def normalise(raw: NDArray[Any], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """(raw * scale - mean) / std in float32; `raw` is (n, channels, ...) of any number type, mean and std go by channel."""
    scale, mean, std = _constants(preprocessing, raw.ndim)
    # In place: the images of a training set are there twice at most.
    images = raw.astype(np.float32)
    images *= scale
    images -= mean
    images /= std
    return images


# Making them takes half as long as all else for one image of digits.
@lru_cache(maxsize=64)
def _constants(preprocessing: Preprocessing, rank: int) -> tuple[np.float32, NDArray[np.float32], NDArray[np.float32]]:
    """scale, mean and std for an array of this rank."""
    per_channel = (-1, *(1,) * (rank - 2))
    mean = np.reshape(np.asarray(preprocessing.mean, np.float32), per_channel)
    std = np.reshape(np.asarray(preprocessing.std, np.float32), per_channel)
    return np.float32(preprocessing.scale), mean, std
