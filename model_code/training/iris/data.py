"""Iris flowers, four lengths in centimetres: what this classifier takes, and what it makes of a channel."""

from pathlib import Path

from model_code.inference.contract import Preprocessing
from model_code.training.examples import Examples
from model_code.training.table import read_labelled_rows

FEATURES = ("sepal length", "sepal width", "petal length", "petal width")
LABELS: tuple[int | str, ...] = ("setosa", "versicolor", "virginica")
RESPONSE_KEY = "species"
# None: scaling is a part of the fitted pipeline, and so of the ONNX file.
PREPROCESSING = Preprocessing(scale=1.0, mean=(0.0,) * len(FEATURES), std=(1.0,) * len(FEATURES))


def read_channel(folder: Path, channel: str) -> Examples:
    """Read the CSV files of one channel, the species in the first column. Raises BadData."""
    return read_labelled_rows(folder, channel, LABELS, FEATURES)
