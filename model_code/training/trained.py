"""A trained model as the job sees it, whichever framework made it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from model_code.inference.contract import Preprocessing
from model_code.training.examples import Examples

# How every model.onnx names what goes in and comes out, and its version of the standard operators.
INPUT_NAME = "input_0"
OUTPUT_NAME = "output_0"
OPSET = 18  # what torch's exporter writes without a conversion


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """What a framework made, and what serving must know about it. `torch_export` and `sklearn_export` make one.

    `outputs` gives the framework's own raw outputs (n, classes) for inputs (n, ...), both float32, and means them as
    `activation` says (model.json: log_softmax, logits or probabilities); `to_onnx` writes the same function as one
    self-contained ONNX model of OPSET, from INPUT_NAME (batch, ...) to OUTPUT_NAME (batch, classes), the same bytes for the
    same model. `testing` is the testing channel, `hyperparameters` are the effective ones. `framework` is a key of
    `framework_versions`, the versions of what trained and exported. `calibration` (n, ...) are inputs of the training channel,
    for int8; without them the model is released in float32 only.
    """

    outputs: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    to_onnx: Callable[[], onnx.ModelProto]
    activation: str
    preprocessing: Preprocessing
    labels: tuple[int | str, ...]
    response_key: str
    hyperparameters: Mapping[str, Any]
    framework: str
    framework_versions: Mapping[str, str]
    testing: Examples
    calibration: NDArray[np.float32] | None = None
