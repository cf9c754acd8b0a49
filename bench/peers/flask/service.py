"""The predictor of AWS's "bring your own container" sample, with our model in it."""

from digits import NPY, Digits
from flask import Flask, Response, jsonify, request

app = Flask(__name__)
model = Digits()


@app.post("/invocations")
def invocations() -> Response:
    if request.content_type == NPY:
        return jsonify(model.answer_npy(request.get_data()))
    return jsonify(model.answer(request.get_json()["data"]))
