"""What is PyTorch's own about a trained model: its outputs, and its export to ONNX."""

import copy
import logging
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_code.inference.contract import Preprocessing
from model_code.training.examples import Examples
from model_code.training.quantise import calibration_sample
from model_code.training.trained import INPUT_NAME, OPSET, OUTPUT_NAME, TrainedModel

_BATCH = 1000


def torch_model(
    module: nn.Module,
    *,
    activation: str,
    preprocessing: Preprocessing,
    labels: tuple[int | str, ...],
    response_key: str,
    hyperparameters: Mapping[str, Any],
    testing: Examples,
    training: Examples | None = None,
) -> TrainedModel:
    """A trained network that gives (n, classes) for inputs (n, ...), on whatever device it was trained.

    Without `training`, the training channel, it cannot be quantised.
    """
    # What is exported is also what is compared: plain float32 on a CPU, whatever device and layout it was trained in.
    network = copy.deepcopy(module).to("cpu", torch.float32).eval()
    network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]  # torch's stubs lack it

    def outputs(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(raw_outputs(network, torch.from_numpy(inputs)).numpy(), np.float32)

    return TrainedModel(
        outputs=outputs,
        to_onnx=lambda: _to_onnx(network, testing.inputs.shape[1:]),
        activation=activation,
        preprocessing=preprocessing,
        labels=labels,
        response_key=response_key,
        hyperparameters=hyperparameters,
        framework="torch",
        framework_versions={"torch": torch.__version__},
        testing=testing,
        calibration=None if training is None else calibration_sample(training.inputs),
    )


def raw_outputs(module: nn.Module, inputs: Tensor) -> Tensor:
    """Outputs (n, classes) for inputs (n, ...), in batches, without dropout; the module is left in the mode in which it was found."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            return torch.cat([module(batch) for batch in torch.split(inputs, _BATCH)])
    finally:
        module.train(was_training)


def _to_onnx(network: nn.Module, input_shape: tuple[int, ...]) -> onnx.ModelProto:
    # It warns about torchvision's operators, which nobody asked for.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the exporter's use of its own older helpers
        program = torch.onnx.export(
            network,
            (torch.zeros(2, *input_shape),),  # two: torch would take a batch of one for a constant
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    assert program is not None  # only without dynamo
    return program.model_proto
