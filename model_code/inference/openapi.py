"""The OpenAPI 3.1 document of a door: what the released model takes and answers there, made from the model's own signature.

Statuses and codes are those of `errors` and of the table in `respond`, media types those of `codecs`, sizes those of the
signature and the limits: nothing of them is written down a second time.
"""

import json
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any

import numpy as np

from model_code.inference import errors
from model_code.inference.codecs import CSV, ENCODERS, JPEG, JSON, JSON_LINES, NPY, PNG
from model_code.inference.contract import DEFAULT_LIMITS, RELEASE_ID_HEADER, Limits, ModelDescription, Signature
from model_code.inference.respond import status_of

OPENAPI_VERSION = "3.1.0"
# An example is one instance in figures; one with more of them tells nobody anything.
MAX_EXAMPLE_VALUES = 4096

Schema = dict[str, Any]
ErrorClass = type[errors.InferenceError]

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_NUMBER: Schema = {"type": "number", "minimum": -_FLOAT32_MAX, "maximum": _FLOAT32_MAX}
_PIXEL: Schema = {"type": "number", "minimum": 0, "maximum": 255}
_CSV_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
_BINARY: Schema = {"type": "string", "format": "binary"}

# What a request for an answer can meet: these classes and all below them, but for what only doors say that load models or
# read bodies themselves.
_REFUSED: tuple[ErrorClass, ...] = (
    errors.MalformedRequest,
    errors.RequestTooLarge,
    errors.NotAcceptable,
    errors.UnsupportedMediaType,
    errors.NotReady,
    errors.DeadlineExceeded,
)
_OF_SOME_DOORS: frozenset[ErrorClass] = frozenset({errors.BadModel, errors.BadLength})
# What nobody meets who asks for the normalised batch alone.
_BEHIND_PREPROCESSING: frozenset[ErrorClass] = frozenset({errors.NotAcceptable, errors.OutputNotFinite})


@dataclass(frozen=True)
class Door:
    """Where a door answers what: the path of the inference, of this document, and `others`, the path items beside them.

    `reads` is what it may say of how a body arrives.
    """

    classify: str
    document: str
    others: Callable[[ModelDescription], Mapping[str, Schema]]
    reads: tuple[ErrorClass, ...] = ()


def openapi_document(
    description: ModelDescription,
    door: Door,
    *,
    limits: Limits = DEFAULT_LIMITS,
    preprocessing: bool = False,
    security: Mapping[str, Schema] | None = None,
) -> Schema:
    """What `door` takes and answers with this model, as plain JSON.

    With `preprocessing` the answer is the normalised batch, as `respond.preprocess` gives it. `security` holds, by its name, the
    scheme by which the door asks for callers, where it asks for them.
    """
    signature = description.signature
    protected: Schema = {"security": [{name: []} for name in security or {}]}
    refused = (
        {"401": {"description": "not let in; the platform's own answer, without this envelope"}} if security else {}
    )
    answer = _normalised(signature, limits) if preprocessing else _answers(signature, limits)
    never = (_OF_SOME_DOORS | (_BEHIND_PREPROCESSING if preprocessing else set())) - {*door.reads}
    classify = {
        "operationId": "classify",
        "summary": "Normalise a batch" if preprocessing else "Classify a batch",
        "requestBody": {"required": True, "content": _request_bodies(signature, limits)},
        "responses": {
            "200": {"description": "one answer for each instance", "headers": _release(description), "content": answer},
            **_refusals((*_REFUSED, *door.reads), never),
            "500": _refusal(500, [errors.InferenceError.code]),
            **refused,
        },
    }
    document = {
        "operationId": "openapi",
        "summary": "This document",
        "responses": {
            "200": {"description": "OpenAPI 3.1", "content": {JSON: {"schema": {"type": "object"}}}},
            **_refusals((errors.NotReady,)),
            **refused,
        },
    }
    return {
        "openapi": OPENAPI_VERSION,
        "info": {
            "title": f"Classification with {description.model}",
            "version": description.release_id,
            "description": _about(limits),
        },
        "servers": [{"url": "/"}],
        "paths": {
            door.classify: {"post": classify | protected},
            door.document: {"get": document | protected},
            **door.others(description),
        },
        "components": {"schemas": {"Line": _line(signature)}, "securitySchemes": dict(security or {})},
    }


def _about(limits: Limits) -> str:
    return (
        f"A request holds at most {limits.instances} instances in {limits.body_bytes} bytes and is answered within "
        f"{limits.seconds:g} seconds. A body without a Content-Type is read as {JSON}, in UTF-8 without a byte order mark. "
        "A whole number in JSON fits 64 bits; a larger one is written with an exponent or a decimal point. Every error has a "
        "body of the same form, whose code is what clients may rely on."
    )


# What goes in


def _request_bodies(signature: Signature, limits: Limits) -> Schema:
    shape, most = signature.input.shape, limits.instances
    bodies: Schema = {
        JSON: {"schema": {"oneOf": _objects(signature, {"minItems": 1, "maxItems": most})}},
        NPY: {"schema": _BINARY | {"description": _about_npy(signature)}},
        JSON_LINES: {"schema": {"type": "string", "description": "an object a line: #/components/schemas/Line"}},
    }
    if len(shape) == 2:
        bodies[CSV] = {"schema": {"type": "string", "pattern": _csv_pattern(shape[1] or 1)}}
    if len(shape) == 4 and shape[1] in (1, 3):
        pixels = f"one image of {shape[2]} rows and {shape[3]} columns without transparency, 8 bits a channel"
        bodies |= {media_type: {"schema": _BINARY | {"description": pixels}} for media_type in (PNG, JPEG)}
    for media_type, example in _examples(signature).items():
        bodies[media_type]["examples"] = {"golden": {"summary": "one of the model's golden inputs", "value": example}}
    return bodies


def _objects(signature: Signature, batch: Schema | None) -> list[Schema]:
    """The objects of JSON, one for each key that holds the numbers; without `batch`, of one instance."""
    shape = signature.input.shape
    keys = [("data", _arrays(shape, batch, _NUMBER))]
    if len(shape) == 4:
        shapes = [shape, (None, *shape[2:])] if shape[1] == 1 else [shape]
        images = [_arrays(each, batch, _PIXEL) for each in shapes]
        keys.append(("images", images[0] if len(images) == 1 else {"anyOf": images}))
    return [
        {
            "type": "object",
            "properties": {key: numbers, "probabilities": {"type": "boolean", "default": False}},
            "required": [key],
            "additionalProperties": False,
        }
        for key, numbers in keys
    ]


def _arrays(shape: tuple[int | None, ...], batch: Schema | None, number: Schema) -> Schema:
    schema = number
    for size in reversed(shape[1:]):
        schema = {"type": "array", "minItems": size, "maxItems": size, "items": schema}
    return schema if batch is None else {"type": "array", **batch, "items": schema}


def _line(signature: Signature) -> Schema:
    return {"oneOf": _objects(signature, None), "description": f"a line of {JSON_LINES}: one instance"}


def _about_npy(signature: Signature) -> str:
    sizes = ", ".join(map(str, signature.input.shape[1:]))
    raw = "; uint8 is raw" if len(signature.input.shape) == 4 else ""
    return f"as numpy.save writes it: float32 or float64 of shape (n, {sizes}), normalised{raw}"


def _csv_pattern(columns: int) -> str:
    """Any number of rows: what a regular expression counts to ends below what a batch transform may send."""
    row = _CSV_NUMBER + (f"(,{_CSV_NUMBER}){{{columns - 1}}}" if columns > 1 else "")
    return rf"^{row}(\r?\n{row})*(\r?\n)?$"


def _examples(signature: Signature) -> Schema:
    """A body by its media type: the first golden input, where it is small enough to be read."""
    golden = signature.golden.inputs[:1]
    if golden.size > MAX_EXAMPLE_VALUES:
        return {}
    instance = golden.tolist()
    lines = json.dumps({"data": instance[0]}) + "\n"
    table = {CSV: ",".join(map(repr, instance[0])) + "\n"} if golden.ndim == 2 else {}
    return {JSON: {"data": instance, "probabilities": True}, JSON_LINES: lines, **table}


# What comes out


def _answers(signature: Signature, limits: Limits) -> Schema:
    label = {"enum": list(signature.labels)}
    classes = {"type": "array", "minItems": len(signature.labels), "maxItems": len(signature.labels)}
    batch = {"type": "array", "minItems": 1, "maxItems": limits.instances}
    schema = {
        "type": "object",
        "properties": {
            signature.response_key: batch | {"items": label},
            "probabilities": batch | {"items": classes | {"items": {"type": "number"}}},
        },
        "required": [signature.response_key],
        "additionalProperties": False,
    }
    text = {"schema": {"type": "string"}}
    content: Schema = {JSON: {"schema": schema}, NPY: {"schema": _BINARY}, CSV: text, JSON_LINES: text}
    return {media_type: content[media_type] for media_type in ENCODERS}


def _normalised(signature: Signature, limits: Limits) -> Schema:
    numbers = _arrays(signature.input.shape, {"minItems": 1, "maxItems": limits.instances}, _NUMBER)
    schema = {
        "type": "object",
        "properties": {"data": numbers, "probabilities": {"const": True}},
        "required": ["data", "probabilities"],
        "additionalProperties": False,
    }
    return {NPY: {"schema": _BINARY}, JSON: {"schema": schema}}


def _release(description: ModelDescription) -> Schema:
    return {RELEASE_ID_HEADER: {"required": True, "schema": {"const": description.release_id}}}


def _refusals(classes: tuple[ErrorClass, ...], never: Set[ErrorClass] = frozenset()) -> Schema:
    """The answers to errors of these classes and of those below them, by their status."""
    codes: dict[int, set[str]] = {}
    for leaf in {leaf for kind in classes for leaf in _leaves(kind)} - never:
        codes.setdefault(status_of(leaf), set()).add(leaf.code)
    return {str(status): _refusal(status, sorted(codes[status])) for status in sorted(codes)}


def _leaves(kind: ErrorClass) -> list[ErrorClass]:
    return [leaf for below in kind.__subclasses__() for leaf in _leaves(below)] or [kind]


def _refusal(status: int, codes: list[str]) -> Schema:
    text = {"type": "string", "minLength": 1}
    error = {
        "type": "object",
        "properties": {"code": {"enum": codes}, "message": text, "request_id": text},
        "required": ["code", "message", "request_id"],
        "additionalProperties": False,
    }
    envelope = {"type": "object", "properties": {"error": error}, "required": ["error"], "additionalProperties": False}
    retry = {"headers": {"retry-after": {"schema": {"type": "integer", "minimum": 1}}}} if status == 503 else {}
    return {"description": " or ".join(codes), "content": {JSON: {"schema": envelope}}, **retry}


# What else the doors answer


def _of_the_container(description: ModelDescription) -> Mapping[str, Schema]:
    ping = {
        "operationId": "ping",
        "summary": "Whether the model is loaded and has answered its golden inputs",
        "responses": {
            "200": {"description": "ready", "headers": _release(description)},
            **_refusals((errors.NotReady,)),
        },
    }
    schema = {
        "type": "object",
        "properties": {
            "MaxConcurrentTransforms": {"type": "integer", "minimum": 1},
            "BatchStrategy": {"const": "MULTI_RECORD"},
            "MaxPayloadInMB": {"type": "integer", "minimum": 1, "maximum": 100},
        },
        "required": ["MaxConcurrentTransforms", "BatchStrategy", "MaxPayloadInMB"],
        "additionalProperties": False,
    }
    parameters = {
        "operationId": "executionParameters",
        "summary": "What a batch transform does where its job does not say",
        "responses": {"200": {"description": "the settings of a transform job", "content": {JSON: {"schema": schema}}}},
    }
    return {"/ping": {"get": ping}, "/execution-parameters": {"get": parameters}}


def _of_the_function(description: ModelDescription) -> Mapping[str, Schema]:
    schema = {
        "type": "object",
        "properties": {
            "status": {"const": "ok"},
            "release_id": {"const": description.release_id},
            "onnx_sha256": {"const": description.onnx.sha256},
        },
        "required": ["status", "release_id", "onnx_sha256"],
        "additionalProperties": False,
    }
    health = {
        "operationId": "health",
        "summary": "Which release answers here",
        "security": [],
        "responses": {
            "200": {"description": "ready", "headers": _release(description), "content": {JSON: {"schema": schema}}},
            **_refusals((errors.NotReady,)),
        },
    }
    return {"/api/health": {"get": health}}


CONTAINER = Door(
    "/invocations", "/openapi.json", _of_the_container, (errors.BadLength, errors.ReadTimeout, errors.Overloaded)
)
FUNCTION = Door("/api/classify", "/api/openapi.json", _of_the_function)
