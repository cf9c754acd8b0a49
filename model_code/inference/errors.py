"""Everything that can go wrong between the bytes of a request and the bytes of its answer.

    InferenceError
    ├── ModelInvalid                 the files of the model cannot be trusted; nothing is served
    │   └── DigestMismatch           a file is not the one that the release or model.json names
    ├── NotReady                     no verified model is loaded
    ├── Overloaded                   more requests wait than the queue holds
    ├── ResourcesExhausted           memory, or another resource, does not suffice for the model
    ├── DeadlineExceeded             the answer was not ready in time
    └── RequestError                 the caller can repair it
        ├── MalformedRequest         the body cannot be used as it is
        │   ├── EmptyBody
        │   ├── BadLength            the body has another length than its Content-Length
        │   ├── BadJson
        │   ├── BadNpy
        │   ├── BadCsv
        │   ├── BadImage
        │   ├── BadModel             what is to be loaded is no model that can be served
        │   ├── BadField             a key that is unknown, missing, or excludes another
        │   ├── DuplicateKey
        │   ├── BadShape
        │   ├── BadDtype
        │   ├── NotFinite
        │   ├── OutOfRange
        │   ├── OutputNotFinite      good numbers, to which the model has no finite answer
        │   └── EmptyBatch
        ├── BadHttp                  what came on a connection is no request
        ├── UriTooLong
        ├── HeadersTooLarge
        ├── RequestTooLarge
        │   ├── BodyTooLarge
        │   ├── ImageTooLarge
        │   └── TooManyInstances
        ├── NotAcceptable            no encoder for what the caller accepts
        ├── UnsupportedMediaType     no decoder for what the caller sent
        ├── NotFound                 no such path
        │   └── ModelNotLoaded
        ├── ModelLoaded              there is a model of this name already
        ├── MethodNotAllowed         the path exists, for other methods
        └── ReadTimeout              the body did not arrive in time

A message says what was found, where, and what is allowed: it goes to the caller as it is, so it never holds a path of the
machine or a part of the body. The messages of ModelInvalid are for the operator's log only. This module knows no protocol:
which answer an error becomes is the one table in `respond.py`.
"""

from typing import ClassVar


class InferenceError(Exception):
    """Base of all errors that this package raises on purpose; `code` is what callers may rely on."""

    code: ClassVar[str] = "INTERNAL"


class ModelInvalid(InferenceError):
    """The model directory cannot be served; the message names the file, the field and what is allowed."""

    code = "MODEL_INVALID"


class DigestMismatch(ModelInvalid):
    """The bytes of a file are not those that the release, or model.json, promises."""

    code = "DIGEST_MISMATCH"


class NotReady(InferenceError):
    """No verified model is loaded."""

    code = "NOT_READY"


class Overloaded(InferenceError):
    """The queue in front of the model is full; the same request may succeed a moment later."""

    code = "OVERLOADED"


class DeadlineExceeded(InferenceError):
    """The time for an answer is over, in the queue or in the model; whatever ran for it has been ended."""

    code = "DEADLINE_EXCEEDED"


class ResourcesExhausted(InferenceError):
    """Memory, or another resource of this machine, does not suffice; it may once another model is unloaded."""

    code = "RESOURCES_EXHAUSTED"


class RequestError(InferenceError):
    """Base of everything that the caller can repair."""


class MalformedRequest(RequestError):
    """Base of everything that is wrong inside a body."""


class EmptyBody(MalformedRequest):
    code = "EMPTY_BODY"


class BadLength(MalformedRequest):
    code = "BAD_LENGTH"


class BadJson(MalformedRequest):
    code = "BAD_JSON"


class BadNpy(MalformedRequest):
    code = "BAD_NPY"


class BadCsv(MalformedRequest):
    code = "BAD_CSV"


class BadImage(MalformedRequest):
    code = "BAD_IMAGE"


class BadModel(MalformedRequest):
    code = "BAD_MODEL"


class BadField(MalformedRequest):
    code = "BAD_FIELD"


class DuplicateKey(MalformedRequest):
    code = "DUPLICATE_KEY"


class BadShape(MalformedRequest):
    code = "BAD_SHAPE"


class BadDtype(MalformedRequest):
    code = "BAD_DTYPE"


class NotFinite(MalformedRequest):
    code = "NOT_FINITE"


class OutOfRange(MalformedRequest):
    code = "OUT_OF_RANGE"


class OutputNotFinite(MalformedRequest):
    """Numbers past what the model's arithmetic holds. A model that answers its golden inputs so is not served at all."""

    code = "OUTPUT_NOT_FINITE"


class EmptyBatch(MalformedRequest):
    code = "EMPTY_BATCH"


class BadHttp(RequestError):
    code = "BAD_HTTP"


class UriTooLong(RequestError):
    code = "URI_TOO_LONG"


class HeadersTooLarge(RequestError):
    code = "HEADERS_TOO_LARGE"


class RequestTooLarge(RequestError):
    """Base of everything that is past a limit of `contract.py`."""


class BodyTooLarge(RequestTooLarge):
    code = "BODY_TOO_LARGE"


class ImageTooLarge(RequestTooLarge):
    code = "IMAGE_TOO_LARGE"


class TooManyInstances(RequestTooLarge):
    code = "TOO_MANY_INSTANCES"


class NotAcceptable(RequestError):
    code = "NOT_ACCEPTABLE"


class UnsupportedMediaType(RequestError):
    code = "UNSUPPORTED_MEDIA_TYPE"


class NotFound(RequestError):
    code = "NOT_FOUND"


class ModelNotLoaded(NotFound):
    code = "MODEL_NOT_LOADED"


class ModelLoaded(RequestError):
    code = "MODEL_LOADED"


class MethodNotAllowed(RequestError):
    """`allowed`: the methods that the path takes, for instance ("GET", "HEAD")."""

    code = "METHOD_NOT_ALLOWED"

    def __init__(self, message: str, allowed: tuple[str, ...]) -> None:
        super().__init__(message)
        self.allowed = allowed


class ReadTimeout(RequestError):
    code = "READ_TIMEOUT"
