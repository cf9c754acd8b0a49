"""One request to one answer, the same behind every door: bytes -> decode -> predict -> encode -> bytes."""

import json
import logging
import time
from collections.abc import Mapping
from types import MappingProxyType

from model_code.inference import errors
from model_code.inference.codecs import JSON, Answer, find_decoder, find_encoder
from model_code.inference.contract import DEADLINE_SECONDS, MAX_BODY_BYTES, RELEASE_ID_HEADER, Request, Response
from model_code.inference.predictor import Predictor

_log = logging.getLogger(__name__)

# The first class in an error's ancestry that stands here decides; everything else is our fault, 500.
STATUS: Mapping[type[BaseException], int] = MappingProxyType(
    {
        errors.MalformedRequest: 400,
        errors.NotFound: 404,
        errors.MethodNotAllowed: 405,
        errors.NotAcceptable: 406,
        errors.ReadTimeout: 408,
        errors.RequestTooLarge: 413,
        errors.UnsupportedMediaType: 415,
        errors.NotReady: 503,
        errors.Overloaded: 503,
        errors.DeadlineExceeded: 504,
    }
)
_RETRY_AFTER_SECONDS = 1


def respond(predictor: Predictor | None, request: Request, *, seconds: float = DEADLINE_SECONDS) -> Response:
    """Answer one classification request; whatever goes wrong becomes an error answer. None means that no model is loaded.

    `seconds` after its arrival, time in a queue included, a request gets no other answer than 504.
    """
    try:
        return _classify(predictor, request, seconds)
    # SystemExit too: raised in a thread it would end that thread, in Azure's worker the process, and answer nobody.
    except (Exception, SystemExit) as error:
        return error_response(error, request.request_id)


def _classify(predictor: Predictor | None, request: Request, seconds: float) -> Response:
    if predictor is None:
        raise errors.NotReady("no model is loaded")
    _time_left(request, seconds)
    decode = find_decoder(request.content_type)
    media_type, encode = find_encoder(request.accept)
    if not request.body:
        raise errors.EmptyBody("the body is empty")
    check_body_size(len(request.body))
    signature = predictor.description.signature
    batch = decode(request.body, signature)
    outputs = predictor.run(batch.inputs, seconds=_time_left(request, seconds))
    labels = [signature.labels[index] for index in outputs.argmax(axis=1).tolist()]
    answer = Answer(labels, predictor.probabilities(outputs) if batch.probabilities else None)
    headers = {"content-type": media_type, RELEASE_ID_HEADER: predictor.release_id}
    body = encode(answer, signature)
    _time_left(request, seconds)
    return Response(200, body, headers)


def _time_left(request: Request, seconds: float) -> float:
    """Seconds until nobody waits for the answer any more. Raises DeadlineExceeded where none are left."""
    left = request.arrived + seconds - time.monotonic()
    if left <= 0:
        raise errors.DeadlineExceeded(f"no answer within {seconds:g} seconds; try again, or with fewer instances")
    return left


def check_body_size(size: int) -> None:
    """Hold the size of a body in bytes, received so far or announced, against the limit. Raises BodyTooLarge."""
    if size > MAX_BODY_BYTES:
        raise errors.BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")


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


def error_response(error: BaseException, request_id: str) -> Response:
    """The answer to a failed request: {"error": {"code", "message", "request_id"}}.

    The message of an error that the caller cannot repair stays in the log, under the request id.
    """
    status = next((STATUS[ancestor] for ancestor in type(error).__mro__ if ancestor in STATUS), 500)
    if status == 500:
        _log.error("request %s failed", request_id, exc_info=error)
    code = error.code if isinstance(error, errors.InferenceError) else errors.InferenceError.code
    message = str(error) if status != 500 else "the request failed on our side; the log has the cause under its id"
    envelope = {"error": {"code": code, "message": message, "request_id": request_id}}
    headers = {"content-type": JSON}
    if isinstance(error, errors.MethodNotAllowed):
        headers["allow"] = ", ".join(error.allowed)
    if isinstance(error, errors.Overloaded):
        headers["retry-after"] = str(_RETRY_AFTER_SECONDS)
    return Response(status, json.dumps(envelope).encode(), headers)
