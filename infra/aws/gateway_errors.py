"""How errors leave API Gateway: the envelope of the serving core, whoever made the error.

What SageMaker answers is in botocore's model of sagemaker-runtime (InvokeEndpoint, errors); what its messages say is not in
any contract, so they only choose between answers, and none of them goes any further: they name account, endpoint and bucket.

The templates are VTL without one backslash and without a method that is not Java's String's: a backslash means something
else to every engine, and the tests interpret the templates with another one than API Gateway.
"""

from dataclasses import dataclass

from infra.settings import Settings

# Request body by hosting.mode, bytes: InvokeEndpoint's BodyBlob, which is also the serving core's limit; "Invoke a serverless
# endpoint", 4 MB; InvokeEndpointAsync's Body, past which the request is an object in S3.
MAX_BODY_BYTES = {"realtime": 6 * 1024 * 1024, "serverless": 4 * 1024 * 1024, "async": 128_000}
RETRY_AFTER_HEADER = "Retry-After"
RETRY_AFTER_SECONDS = "1"
# URL-encoded characters of an error of the container that are looked at; those of the core have less than a tenth.
MAX_ERROR_CHARACTERS = 4000


@dataclass(frozen=True)
class OwnResponse:
    """What API Gateway answers itself: its response type, the status (None keeps API Gateway's), the body's template."""

    type: str
    status: str | None
    template: str
    retry: bool = False


@dataclass(frozen=True)
class IntegrationError:
    """What SageMaker answered (`pattern` matches its status), the status to give by default, and the body's template.

    No pattern: everything that no other line takes. API Gateway keeps its answers by status, so each stands here once.
    """

    pattern: str | None
    status: str
    template: str
    retry: bool = False


def envelope(code: str, message: str) -> str:
    """The envelope around a fixed message, for both template languages of API Gateway."""
    return f'{{"error":{{"code":"{code}","message":"{message}","request_id":"$context.requestId"}}}}'


def _own_envelope(code: str) -> str:
    """The envelope around API Gateway's own message, which comes quoted. These templates know variables only, no VTL."""
    return f'{{"error":{{"code":"{code}","message":$context.error.messageString,"request_id":"$context.requestId"}}}}'


UNAVAILABLE = envelope("UNAVAILABLE", "the model cannot answer now; try again")
_OVERLOADED = envelope("OVERLOADED", "too many requests at once; try again")
_LATE = envelope("DEADLINE_EXCEEDED", "the model did not answer in time; try again, or with fewer instances")
_CONTAINER_REFUSED = envelope("BAD_REQUEST", "the model refused the request and did not say why in a form for callers")
_REFUSED = envelope("BAD_REQUEST", "SageMaker refused the request before the model saw it")
_REFUSED_ASYNC = envelope(
    "BAD_REQUEST", "SageMaker refused the request: give a body or X-Amzn-SageMaker-InputLocation, and not both"
)
# What a caller names where an endpoint holds more than one model, and what SageMaker's message then speaks of.
_UNKNOWN_TARGET = {
    "multi-model": (
        ("model data", "target model"),
        envelope("NOT_FOUND", "no release under X-Amzn-SageMaker-Target-Model; it is RELEASE_ID/model.tar.gz"),
    ),
    "multi-container": (
        ("container",),
        envelope("NOT_FOUND", "no container is called what X-Amzn-SageMaker-Target-Container-Hostname says"),
    ),
}


def _too_large(settings: Settings) -> str:
    mode = settings.hosting.mode
    instead = "; put it into S3 and name it in X-Amzn-SageMaker-InputLocation" if mode == "async" else ""
    return envelope("BODY_TOO_LARGE", f"the body is larger than {MAX_BODY_BYTES[mode]} bytes{instead}")


def own_responses(settings: Settings) -> tuple[OwnResponse, ...]:
    """The codes are the core's where the core has one."""
    named = _own_envelope("$context.error.responseType")
    return (
        OwnResponse("DEFAULT_4XX", None, named),
        OwnResponse("DEFAULT_5XX", None, named),
        OwnResponse("REQUEST_TOO_LARGE", "413", _too_large(settings)),
        OwnResponse("THROTTLED", "429", _OVERLOADED, retry=True),
        OwnResponse("INTEGRATION_FAILURE", "503", UNAVAILABLE, retry=True),
        OwnResponse("INTEGRATION_TIMEOUT", "504", _LATE),
    )


# A text of JSON, URL-encoded: no quote (%22), no backslash (%5C) but one that JSON knows, no control character (%00 to %1F).
_TEXT = "%22(?:[^%]++|%(?!22|5C|[01])..|%5C(?:%22|%5C|%2F|[bfnrt]|u[0-9a-fA-F]{4}))*+%22"
_ENVELOPE = (
    f"%7B%22error%22%3A[+]?%7B%22code%22%3A[+]?%22[A-Z_]+%22%2C[+]?%22message%22%3A[+]?{_TEXT}"
    f"%2C[+]?%22request_id%22%3A[+]?{_TEXT}%7D%7D"
)


def _answer(status: str, body: str, *, retry: bool = False) -> str:
    """VTL that gives the answer another status than the declared one."""
    header = f"#set($context.responseOverride.header.{RETRY_AFTER_HEADER} = '{RETRY_AFTER_SECONDS}')\n" if retry else ""
    return f"#set($context.responseOverride.status = {status})\n{header}{body}\n"


# ModelError: the container answered with an error, or not in time (status 0). SageMaker wraps what it said, with its status,
# into a 424. Our envelope goes on as it is, if it is one, also where it comes escaped once more. Anything else stays here: a
# container that is not ours may tell of its insides.
_MODEL_ERROR = f"""\
#set($status = $input.path('$.OriginalStatusCode'))
#set($said = $input.path('$.OriginalMessage'))
#if(!$status)
#set($status = 0)
#end
#if(!$said)
#set($said = '')
#end
#set($text = $util.urlEncode($said.trim()))
#if($text.startsWith('%22%7B%5C%22error'))
#set($text = $text.substring(3))
#set($end = $text.length() - 3)
#set($text = $text.substring(0, $end))
#end
#if($text.startsWith('%7B%5C%22error'))
#set($text = $text.replaceAll('%5C%22', '%22').replaceAll('%5C%5C', '%5C'))
#end
#if($status >= 400 && $status <= 599 && $text.length() <= {MAX_ERROR_CHARACTERS} && $text.matches('{_ENVELOPE}'))
#if($status == 503)
#set($context.responseOverride.header.{RETRY_AFTER_HEADER} = '{RETRY_AFTER_SECONDS}')
#end
{_answer("$status", "$util.urlDecode($text)")}\
#elseif($said.contains('timed out'))
{_answer("504", _LATE)}\
#elseif($status >= 400 && $status <= 499)
{_answer("$status", _CONTAINER_REFUSED)}\
#else
{_answer("503", UNAVAILABLE, retry=True)}\
#end
"""


def _validation_error(settings: Settings) -> str:
    """VTL for a 400: SageMaker refused the call itself.

    An endpoint that does not exist is no mistake of the caller. JSON services answer throttling with 400, too. VTL compares
    numbers in strings, which is what headers are, by length first.
    """
    mode, layout = settings.hosting.mode, settings.hosting.layout
    words, unknown = _UNKNOWN_TARGET.get(layout, ((), ""))
    speaks = " || ".join(f"$said.contains('{word}')" for word in words)
    target = f"#elseif({speaks})\n{_answer('404', unknown)}" if words else ""
    return f"""\
#set($said = $input.json('$').toLowerCase())
#set($length = $input.params('Content-Length'))
#set($limit = '{MAX_BODY_BYTES[mode]}')
#if($said.contains('throttl') || $said.contains('rate exceeded'))
{_answer("429", _OVERLOADED, retry=True)}\
#elseif($length.length() > $limit.length() || ($length.length() == $limit.length() && $length.compareTo($limit) > 0))
{_answer("413", _too_large(settings))}\
{target}\
#elseif($said.contains('not found') || $said.contains('no capacity'))
{_answer("503", UNAVAILABLE, retry=True)}\
#else
{_REFUSED_ASYNC if mode == "async" else _REFUSED}
#end
"""


def invocation_errors(settings: Settings) -> tuple[IntegrationError, ...]:
    """What SageMaker's runtime answers instead of an answer of the model.

    Without a pattern arrive its own 500, 503 and 530 (InternalFailure, ServiceUnavailable, InternalDependencyException), and
    403, which means that our role is wrong. Only a call that waits for the model hears of the model's errors.
    """
    return (
        *(() if settings.hosting.mode == "async" else (IntegrationError("424", "500", _MODEL_ERROR),)),
        IntegrationError("400", "400", _validation_error(settings)),
        IntegrationError("413", "413", _too_large(settings)),
        # ModelNotReadyException, and what serverless answers past its concurrency.
        IntegrationError("429", "429", _OVERLOADED, retry=True),
        IntegrationError(None, "503", UNAVAILABLE, retry=True),
    )
