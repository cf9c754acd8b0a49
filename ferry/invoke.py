"""One request to a deployed model, as a person makes it: what is sent, through which door, and what the answer looks like."""

import io
import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.text import Text

from ferry import data
from ferry.batch import CONTENT_TYPES
from ferry.console import Report
from ferry.doors import Door, EndpointDoor, Question, Reply, azure_door, local_door, read_answer
from ferry.doors_async import AsyncDoor
from ferry.doors_gateway import gateway_door
from ferry.errors import FerryError, Refused
from ferry.release import current_release
from infra.settings import Settings
from model_code.environment import CHANNEL_FOLDERS, SIGNATURE_FILE
from model_code.inference.codecs import CSV, JPEG, JSON, JSON_LINES, NPY, PNG
from model_code.inference.contract import Signature, parse_model_json
from model_code.inference.errors import InferenceError
from model_code.inference.images import read_jpeg, read_png
from model_code.training.dataset import Dataset

DOORS = ("endpoint", "gateway", "local", "azure")
_BAR = 30  # characters of a probability of 1
# From paper to ink, for a place that is no terminal.
_RAMP = " .:-=+*#%@"
Label = int | str


@dataclass(frozen=True, eq=False)  # arrays have no truth value
class Asked:
    """A request and, where it came out of the test data, what the right answer is; `picture` is (rows, columns), 0 to 255."""

    question: Question
    expected: Label | None = None
    picture: NDArray[np.uint8] | None = None


def open_door(settings: Settings, name: str | None, report: Report, *, wait: float, pause: float = 1.0) -> Door:
    """The named door; None is the container in a local environment, else the endpoint. Raises Refused."""
    chosen = name or ("local" if settings.local is not None else "endpoint")
    if chosen == "azure":
        return azure_door(settings)
    if chosen == "local":
        return local_door(settings)
    if chosen == "endpoint" and settings.local is not None:
        raise Refused(
            f"environment {settings.environment!r} has no endpoint that runs a container; --door local asks the container of "
            "`ferry local up sagemaker`"
        )
    if settings.hosting.mode == "batch":
        raise Refused("hosting.mode is 'batch': there is no endpoint and no gateway; `ferry batch` asks the model")
    gateway = gateway_door(settings) if chosen == "gateway" else None
    if settings.hosting.mode == "async":
        return AsyncDoor(settings, report, gateway=gateway, wait=wait, pause=pause)
    return gateway or EndpointDoor(settings)


def file_question(settings: Settings, path: Path, *, probabilities: bool) -> Asked:
    """A file as one request, its kind told by its name. Raises Refused.

    Probabilities are asked for in JSON only, so that any other kind of file is decoded here and sent as JSON then.
    """
    kind = CONTENT_TYPES.get(path.suffix.lower())
    if kind is None or kind == JSON_LINES:
        allowed = ", ".join(name for name, each in CONTENT_TYPES.items() if each != JSON_LINES)
        raise Refused(f"{path}: the kind of a request is told by its name; allowed: {allowed}")
    try:
        body = path.read_bytes()
    except OSError as error:
        raise Refused(f"{path}: cannot be read ({error.strerror})") from error
    if not probabilities:
        return Asked(Question(body, kind))
    try:
        document = _document(settings, body, kind)
    except (ValueError, TypeError, EOFError) as error:
        raise Refused(f"{path}: cannot be read as {kind}: {error}") from error
    return Asked(Question(_json(document | {"probabilities": True})))


def random_question(settings: Settings, source: str | None, report: Report) -> Asked:
    """A random example of the environment's testing channel, with its label. `source` is as for `ferry data upload`."""
    folder = settings.build_path / "data" / settings.model.dataset
    if source is None and (folder / CHANNEL_FOLDERS["testing"]).is_dir():
        dataset = Dataset(settings.model.dataset, folder, str(folder))
    else:
        dataset = data.prepare(settings, source, report)
    examples = data.read_test_set(settings, dataset)
    place = secrets.randbelow(len(examples.labels))
    report(f"example   {place} of {len(examples.labels):,} in {dataset.origin}")
    values, index = examples.inputs[place], int(examples.labels[place])
    signature = _signature(settings)
    expected = signature.labels[index] if signature else index
    picture = _stretched(values[0]) if values.ndim == 3 and values.shape[0] == 1 else None
    body = _json({"data": examples.inputs[[place]].tolist(), "probabilities": True})
    return Asked(Question(body), expected, picture)


def aimed(asked: Asked, target_model: str | None, container: str | None) -> Asked:
    """The same request at one of several models or containers; a release id alone means its archive."""
    model = target_model if target_model is None or "/" in target_model else f"{target_model}/model.tar.gz"
    question = Question(asked.question.body, asked.question.content_type, model, container)
    return Asked(question, asked.expected, asked.picture)


def answer_document(settings: Settings, door: Door, asked: Asked, reply: Reply) -> dict[str, Any]:
    """What was answered, for a script; `names` are the labels in the order of the probabilities, null where not known."""
    labels, probabilities = read_answer(door.name, reply.content)
    signature = _signature(settings)
    known = signature is not None and probabilities is not None and probabilities.shape[1] == len(signature.labels)
    return {
        "door": door.name,
        "url": door.url,
        "labels": labels,
        "expected": asked.expected,
        "probabilities": None if probabilities is None else probabilities.tolist(),
        "names": list(signature.labels) if signature is not None and known else None,
        "release_id": reply.release_id,
        "request_id": reply.request_id,
        "seconds": reply.seconds,
    }


def draw(picture: NDArray[np.uint8], *, colours: bool) -> Text:
    """A gray image in characters: two rows a line in half blocks where the terminal has colours, else two signs a pixel."""
    text = Text()
    if not colours:
        for row in picture:
            text.append("".join(_RAMP[int(value) * len(_RAMP) // 256] * 2 for value in row).rstrip() + "\n")
        return text
    even = picture if len(picture) % 2 == 0 else np.vstack([picture, np.zeros_like(picture[:1])])
    for upper, lower in zip(even[::2], even[1::2], strict=True):
        for top, bottom in zip(upper.tolist(), lower.tolist(), strict=True):
            text.append("▀", style=f"rgb({top},{top},{top}) on rgb({bottom},{bottom},{bottom})")
        text.append("\n")
    return text


def bars(probabilities: Sequence[float], names: Sequence[Label] | None) -> list[str]:
    """A line for each class: its label, a bar, its probability."""
    shown = [str(name) for name in names or range(len(probabilities))]
    width = max(map(len, shown))
    return [
        f"{name:>{width}} {'█' * round(value * _BAR):{_BAR}} {value:.4f}"
        for name, value in zip(shown, probabilities, strict=True)
    ]


def _document(settings: Settings, body: bytes, kind: str) -> dict[str, Any]:
    if kind == JSON:
        document = json.loads(body)
        if not isinstance(document, dict):
            raise ValueError("it is no object with data or images")
        return document
    if kind == CSV:
        return {"data": np.loadtxt(io.BytesIO(body), delimiter=",", ndmin=2).tolist()}
    if kind == NPY:
        values = np.load(io.BytesIO(body), allow_pickle=False)
        return {"images" if values.dtype == np.uint8 else "data": values.tolist()}
    assert kind in (PNG, JPEG)
    signature = _signature(settings)
    shape = () if signature is None else tuple(size for size in signature.input.shape if size is not None)
    if len(shape) != 3:
        raise Refused(
            "--probabilities sends an image as JSON, and what the model takes is not known on this machine or is no image; "
            "make its release the current one (`ferry rollback`), or leave --probabilities out"
        )
    read = read_png if kind == PNG else read_jpeg
    try:
        pixels = read(body, *shape)
    except InferenceError as error:
        raise ValueError(str(error)) from error
    return {"images": pixels.reshape(1, *shape).tolist()}


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def _signature(settings: Settings) -> Signature | None:
    """That of this machine's current release; None where there is none."""
    try:
        _, members = current_release(settings)
    except FerryError:
        return None
    return parse_model_json(members[SIGNATURE_FILE]).signature


def _stretched(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Normalised pixels over the whole range of gray."""
    low, high = float(values.min()), float(values.max())
    return np.asarray((values - low) * (255 / max(high - low, 1e-12)), np.uint8)
