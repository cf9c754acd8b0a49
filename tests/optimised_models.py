"""What ONNX Runtime makes of a model before it runs it."""

from pathlib import Path

import onnx
import onnxruntime
from onnx import ModelProto


def optimised(model: ModelProto, folder: Path) -> list[str]:
    """The operators that ONNX Runtime computes in the end, in their order."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3  # it warns that such a file is for this processor
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]
