"""One request to one answer, the same behind every door: bytes -> decode -> predict -> encode -> bytes."""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from types import MappingProxyType
from typing import NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from model_code.inference import errors
from model_code.inference.batches import Batch
from model_code.inference.codecs import JSON, Answer, Encoder, encode_inputs, find_decoder, find_encoder
from model_code.inference.contract import (
    DEFAULT_LIMITS,
    MAX_STAGE_BYTES,
    RELEASE_ID_HEADER,
    Limits,
    ModelDescription,
    Request,
    Response,
)
from model_code.inference.predictor import Predictor

_log = logging.getLogger(__name__)

# The first class in an error's ancestry that stands here decides; everything else is our fault, 500.
STATUS: Mapping[type[BaseException], int] = MappingProxyType(
    {
        errors.MalformedRequest: 400,
        errors.BadHttp: 400,
        errors.NotFound: 404,
        errors.MethodNotAllowed: 405,
        errors.NotAcceptable: 406,
        errors.ReadTimeout: 408,
        errors.ModelLoaded: 409,
        errors.RequestTooLarge: 413,
        errors.UriTooLong: 414,
        errors.UnsupportedMediaType: 415,
        errors.HeadersTooLarge: 431,
        errors.NotReady: 503,
        errors.Overloaded: 503,
        errors.DeadlineExceeded: 504,
        errors.ResourcesExhausted: 507,
    }
)
_RETRY_AFTER_SECONDS = 1

P = ParamSpec("P")
T = TypeVar("T")


class _Asked(NamedTuple):
    """A request that was understood: what goes into the model, and how the answer is written."""

    request: Request
    predictor: Predictor
    batch: Batch
    media_type: str
    encode: Encoder


def respond(predictor: Predictor | None, request: Request, *, limits: Limits = DEFAULT_LIMITS) -> Response:
    """Answer one classification request; whatever goes wrong becomes an error answer. None means that no model is loaded.

    `limits.seconds` after its arrival, time in a queue included, a request gets no other answer than 504.
    """
    return _guarded(request, _classify, predictor, request, limits)


def respond_together(
    predictor: Predictor | None, requests: Sequence[Request], *, instances: int, limits: Limits = DEFAULT_LIMITS
) -> list[Response]:
    """Answer several requests, in their order, with one inference for as many of them as have up to `instances` together.

    Each gets the answer that `respond` gives it alone, bit for bit where `Predictor.joins(instances)` is true. Where an
    inference fails, each of its requests is asked alone: what one of them holds never costs another one its answer.
    """
    answers = [_guarded(request, _decode, predictor, request, limits) for request in requests]
    groups = _groups([answer for answer in answers if isinstance(answer, _Asked)], instances)
    responses = iter([response for group in groups for response in _infer_together(group, limits)])
    return [next(responses) if isinstance(answer, _Asked) else answer for answer in answers]


def _groups(asked: Sequence[_Asked], instances: int) -> list[list[_Asked]]:
    """Neighbours, in their order, as long as they have up to `instances` together."""
    groups: list[list[_Asked]] = []
    room = 0
    for one in asked:
        count = len(one.batch.inputs)
        if count > room:
            groups.append([])
            room = instances
        groups[-1].append(one)
        room -= count
    return groups


def _infer_together(group: Sequence[_Asked], limits: Limits) -> list[Response]:
    if len(group) > 1:
        try:
            seconds = min(_time_left(asked.request, limits.seconds) for asked in group)
            outputs = group[0].predictor.run(np.concatenate([asked.batch.inputs for asked in group]), seconds=seconds)
            ends = accumulate(len(asked.batch.inputs) for asked in group)
            return [
                _guarded(asked.request, _encode, asked, outputs[end - len(asked.batch.inputs) : end], limits)
                for asked, end in zip(group, ends, strict=True)
            ]
        except (Exception, SystemExit):
            pass  # asked alone, the one that is to blame gets its own error
    return [_guarded(asked.request, _infer, asked, limits) for asked in group]


def preprocess(description: ModelDescription | None, request: Request, *, limits: Limits = DEFAULT_LIMITS) -> Response:
    """Answer one request with its normalised batch, as the next container of a serial pipeline takes it.

    application/x-npy, or JSON where probabilities are asked for, which npy cannot say. The Accept header is the caller's and
    speaks to the last container. Otherwise as `respond`.
    """
    return _guarded(request, _normalise, description, request, limits)


def _guarded(request: Request, answer: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | Response:
    try:
        return answer(*args, **kwargs)
    # SystemExit too: raised in a thread it would end that thread, in Azure's worker the process, and answer nobody.
    except (Exception, SystemExit) as error:
        return error_response(error, request.request_id)


def _classify(predictor: Predictor | None, request: Request, limits: Limits) -> Response:
    return _infer(_decode(predictor, request, limits), limits)


def _infer(asked: _Asked, limits: Limits) -> Response:
    return _encode(
        asked, asked.predictor.run(asked.batch.inputs, seconds=_time_left(asked.request, limits.seconds)), limits
    )


def _decode(predictor: Predictor | None, request: Request, limits: Limits) -> _Asked:
    if predictor is None:
        raise errors.NotReady("no model is loaded")
    _time_left(request, limits.seconds)
    decode = find_decoder(request.content_type)
    media_type, encode = find_encoder(request.accept)
    _check_body(request.body, limits)
    batch = decode(request.body, predictor.description.signature, limits.instances)
    return _Asked(request, predictor, batch, media_type, encode)


def _encode(asked: _Asked, outputs: NDArray[np.float32], limits: Limits) -> Response:
    predictor, signature = asked.predictor, asked.predictor.description.signature
    labels = [signature.labels[index] for index in outputs.argmax(axis=1).tolist()]
    answer = Answer(labels, predictor.probabilities(outputs) if asked.batch.probabilities else None)
    headers = {"content-type": asked.media_type, RELEASE_ID_HEADER: predictor.release_id}
    body = asked.encode(answer, signature)
    _time_left(asked.request, limits.seconds)
    return Response(200, body, headers)


def _normalise(description: ModelDescription | None, request: Request, limits: Limits) -> Response:
    if description is None:
        raise errors.NotReady("no model is loaded")
    _time_left(request, limits.seconds)
    decode = find_decoder(request.content_type)
    _check_body(request.body, limits)
    batch = decode(request.body, description.signature, limits.instances)
    media_type, body = encode_inputs(batch)
    if len(body) > MAX_STAGE_BYTES:
        raise errors.BodyTooLarge(
            f"the normalised batch takes {len(body)} bytes; at most {MAX_STAGE_BYTES} go from one container of a pipeline "
            "to the next. Send fewer instances"
        )
    _time_left(request, limits.seconds)
    return Response(200, body, {"content-type": media_type, RELEASE_ID_HEADER: description.release_id})


def _check_body(body: bytes, limits: Limits) -> None:
    if not body:
        raise errors.EmptyBody("the body is empty")
    check_body_size(len(body), limits.body_bytes)


def _time_left(request: Request, seconds: float) -> float:
    """Seconds until nobody waits for the answer any more. Raises DeadlineExceeded where none are left."""
    left = request.arrived + seconds - time.monotonic()
    if left <= 0:
        raise errors.DeadlineExceeded(f"no answer within {seconds:g} seconds; try again, or with fewer instances")
    return left


def check_body_size(size: int, most: int) -> None:
    """Hold the size of a body in bytes, received so far or announced, against the limit. Raises BodyTooLarge."""
    if size > most:
        raise errors.BodyTooLarge(f"the body is larger than {most} bytes")


def health(predictor: Predictor | None, request_id: str) -> Response:
    """Which release answers here: 200 with its id and the sha256 of its ONNX file, or 503 where no model is loaded."""
    if predictor is None:
        return error_response(errors.NotReady("no model is loaded"), request_id)
    document = {
        "status": "ok",
        "release_id": predictor.release_id,
        "onnx_sha256": predictor.description.onnx.sha256,
    }
    return Response(200, json.dumps(document).encode(), {"content-type": JSON, RELEASE_ID_HEADER: predictor.release_id})


def status_of(kind: type[BaseException]) -> int:
    """The status of the answer that an error of this class becomes."""
    return next((STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS), 500)


def error_response(error: BaseException, request_id: str) -> Response:
    """The answer to a failed request: {"error": {"code", "message", "request_id"}}.

    The message of an error that the caller cannot repair stays in the log, under the request id.
    """
    status = status_of(type(error))
    if status == 500:
        _log.error("request %s failed", request_id, exc_info=error)
    code = error.code if isinstance(error, errors.InferenceError) else errors.InferenceError.code
    message = str(error) if status != 500 else "the request failed on our side; the log has the cause under its id"
    envelope = {"error": {"code": code, "message": message, "request_id": request_id}}
    headers = {"content-type": JSON}
    if isinstance(error, errors.MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    if status == 503:
        headers["retry-after"] = str(_RETRY_AFTER_SECONDS)
    return Response(status, json.dumps(envelope).encode(), headers)
