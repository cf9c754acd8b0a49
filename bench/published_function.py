"""The Azure Function of the published multi-cloud example, in our words: an ONNX Runtime session for every request."""

import json
from pathlib import Path

import azure.functions as func
import numpy as np
import onnxruntime as ort

_MODEL = Path(__file__).resolve().parent / "release" / "model.onnx"

app = func.FunctionApp(http_auth_level=func.AuthLevel.FUNCTION)


@app.route(route="classify", methods=["POST"])
def classify(req: func.HttpRequest) -> func.HttpResponse:
    """Digits for {"data": (n, 1, 28, 28) normalised floats}."""
    images = np.array(req.get_json()["data"], dtype=np.float32)
    session = ort.InferenceSession(_MODEL, providers=["CPUExecutionProvider"])
    outputs = session.run(None, {session.get_inputs()[0].name: images})[0]
    digits = np.argmax(outputs, axis=1).tolist()
    return func.HttpResponse(json.dumps({"digits": digits}), mimetype="application/json")
