"""What is scikit-learn's own about a trained model: its outputs, and its export to ONNX with skl2onnx."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import skl2onnx
import sklearn
from numpy.typing import NDArray
from onnx import helper
from skl2onnx.common.data_types import FloatTensorType
from sklearn.base import ClassifierMixin
from sklearn.pipeline import Pipeline

from model_code.inference.contract import Preprocessing
from model_code.training.errors import BadData
from model_code.training.examples import Examples
from model_code.training.trained import INPUT_NAME, OPSET, OUTPUT_NAME, TrainedModel

_ML_DOMAIN = "ai.onnx.ml"
_ML_OPSET = 3  # skl2onnx declares the lowest version that its nodes need, up to this one
_PROBABILITIES = "probabilities"  # skl2onnx's name for them


def sklearn_model(
    classifier: ClassifierMixin | Pipeline,
    *,
    preprocessing: Preprocessing,
    labels: tuple[int | str, ...],
    response_key: str,
    hyperparameters: Mapping[str, Any],
    testing: Examples,
) -> TrainedModel:
    """A classifier, or a Pipeline that ends in one, fitted to float32 (n, features) and indices of `labels`.

    Raises BadData where the training channel lacked a class: the classifier has no output for it.
    """
    absent = [str(label) for index, label in enumerate(labels) if index not in classifier.classes_]
    if absent:
        raise BadData(
            f"CLASS_ABSENT the training channel has no example of {', '.join(absent)}; allowed: some of every class",
            "Add examples of it, or take the label out of the model's data.py.",
        )

    def outputs(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(classifier.predict_proba(inputs), np.float32)

    return TrainedModel(
        outputs=outputs,
        to_onnx=lambda: _to_onnx(classifier, testing.inputs.shape[1]),
        activation="probabilities",
        preprocessing=preprocessing,
        labels=labels,
        response_key=response_key,
        hyperparameters=hyperparameters,
        framework="scikit-learn",
        framework_versions={"scikit-learn": sklearn.__version__, "skl2onnx": skl2onnx.__version__},
        testing=testing,
    )


def _to_onnx(classifier: ClassifierMixin | Pipeline, features: int) -> onnx.ModelProto:
    model: onnx.ModelProto = skl2onnx.to_onnx(
        classifier,
        initial_types=[(INPUT_NAME, FloatTensorType([None, features]))],
        options={id(classifier): {"zipmap": False}},  # a tensor, not a sequence of maps
        target_opset={"": OPSET, _ML_DOMAIN: _ML_OPSET},
    )
    _keep_probabilities(model.graph, features, len(classifier.classes_))
    # It lists a domain once for each node that uses it; of each the highest version stays.
    versions = dict(sorted((entry.domain, entry.version) for entry in model.opset_import))
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in versions.items())
    return model


def _keep_probabilities(graph: onnx.GraphProto, features: int, classes: int) -> None:
    """One output, named and shaped as every model's: finding the label is left to who serves, and so are its nodes."""
    for node in graph.node:
        node.output[:] = [OUTPUT_NAME if name == _PROBABILITIES else name for name in node.output]
    needed = {OUTPUT_NAME}
    nodes = [node for node in reversed(graph.node) if _is_needed(node, needed)]
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.node[:], graph.initializer[:], graph.input[:], graph.output[:]
    graph.node.extend(reversed(nodes))
    graph.initializer.extend(initializers)
    graph.input.append(helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.FLOAT, ["batch", features]))
    graph.output.append(helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, ["batch", classes]))


def _is_needed(node: onnx.NodeProto, needed: set[str]) -> bool:
    """Whether the node makes one of the values that are `needed`; what it takes itself is needed then, too."""
    if not needed.intersection(node.output):
        return False
    needed.update(node.input)
    return True
