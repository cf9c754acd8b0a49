"""The model as every peer serves it: one session a process, one thread, as many processes as cores.

ONNX Runtime's default, one thread a core in each process, halves the throughput of every server here.
"""

import io
import os
from typing import Any

import numpy as np
import onnxruntime as ort

JSON = "application/json"
NPY = "application/x-npy"


class Digits:
    """Labels of normalised images (n, 1, 28, 28)."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def answer(self, images: Any) -> dict[str, list[int]]:
        """For what a client sends as "data", a nested list or an array."""
        outputs = self._session.run(None, {self._input: np.asarray(images, dtype=np.float32)})[0]
        return {"digits": outputs.argmax(axis=1).tolist()}

    def answer_npy(self, body: bytes) -> dict[str, list[int]]:
        """For the bytes of a .npy file; pickled objects are refused."""
        return self.answer(np.load(io.BytesIO(body), allow_pickle=False))
