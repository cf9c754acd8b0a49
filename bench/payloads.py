"""What is sent to every server, and the labels that ONNX Runtime itself gives for it."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from bench.core import as_json, as_npy, golden_pixels, one_thread, with_four_decimals
from model_code.inference.codecs import JSON, NPY
from model_code.inference.contract import Signature
from model_code.inference.preprocess import normalise

ANSWER_SECONDS = 10


class WrongAnswer(Exception):
    """A server gave no answer, or not the labels of ONNX Runtime."""


@dataclass(frozen=True)
class Payload:
    """One request body, in a file for the load generator."""

    name: str
    images: int
    content_type: str
    file: Path
    expected: bytes

    def check(self, url: str) -> None:
        """Raises WrongAnswer unless the server at `url` gives the labels of ONNX Runtime; OSError where none listens."""
        headers = {"content-type": self.content_type}
        request = urllib.request.Request(url, self.file.read_bytes(), headers)
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            raise WrongAnswer(f"{self.name}: {error.code} {error.read()[:200]!r}") from error
        try:
            right = json.loads(answer) == json.loads(self.expected)
        except ValueError:
            right = False
        if not right:
            raise WrongAnswer(f"{self.name}: {answer[:200]!r}; ONNX Runtime says {self.expected!r}")


def make_payloads(signature: Signature, model: Path, folder: Path) -> Iterator[Payload]:
    """Those of the comparison with other servers, in `folder`."""
    session = ort.InferenceSession(model, one_thread(), providers=["CPUExecutionProvider"])
    for name, images, content_type in (("json_1", 1, JSON), ("json_16", 16, JSON), ("binary_16", 16, NPY)):
        yield make_payload(signature, session, folder / name, images, content_type)


def make_payload(
    signature: Signature, session: ort.InferenceSession, file: Path, images: int, content_type: str
) -> Payload:
    """Real images, the release's golden ones: four decimals in JSON, which tell 256 levels of grey apart; float32 in npy."""
    exact = normalise(golden_pixels(signature, images), signature.preprocessing)
    written = with_four_decimals(exact) if content_type == JSON else exact
    outputs = session.run([signature.output.name], {signature.input.name: written.astype(np.float32)})[0]
    labels = [signature.labels[index] for index in outputs.argmax(axis=1)]
    file.write_bytes(as_json("data", written) if content_type == JSON else as_npy(exact))
    return Payload(file.name, images, content_type, file, json.dumps({signature.response_key: labels}).encode())
