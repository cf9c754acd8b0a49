"""How errors leave API Gateway: the envelope of the serving core, whoever made the error."""

from dataclasses import dataclass

# InvokeEndpoint's limit (botocore, BodyBlob), which is also the serving core's.
MAX_BODY_BYTES = 6 * 1024 * 1024


def envelope(code: str, message: str) -> str:
    """The envelope around a fixed message, for both template languages of API Gateway."""
    return f'{{"error":{{"code":"{code}","message":"{message}","request_id":"$context.requestId"}}}}'


def own_envelope(code: str) -> str:
    """The envelope around API Gateway's own message, which comes quoted. These templates know variables only, no VTL."""
    return f'{{"error":{{"code":"{code}","message":$context.error.messageString,"request_id":"$context.requestId"}}}}'


# Response type, status (None keeps API Gateway's), code. The codes are the core's where the core has one.
OWN_RESPONSES: tuple[tuple[str, str | None, str], ...] = (
    ("DEFAULT_4XX", None, "$context.error.responseType"),
    ("DEFAULT_5XX", None, "$context.error.responseType"),
    ("REQUEST_TOO_LARGE", "413", "BODY_TOO_LARGE"),
    ("INTEGRATION_FAILURE", "503", "UNAVAILABLE"),
)


@dataclass(frozen=True)
class IntegrationError:
    """What SageMaker answered (`pattern` matches its status), the status to give by default, and the body's template."""

    pattern: str | None
    status: str
    template: str


_UNAVAILABLE = envelope("UNAVAILABLE", "the model cannot answer now; try again")
_TOO_LARGE = envelope("BODY_TOO_LARGE", f"the body is larger than {MAX_BODY_BYTES} bytes")
_REFUSED = envelope("BAD_REQUEST", "SageMaker refused the request before the model saw it")

# ModelError: the container answered with an error of its own. SageMaker wraps it, with status and body, into a 424.
_MODEL_ERROR = f"""\
#set($status = $input.path('$.OriginalStatusCode'))
#set($body = $input.path('$.OriginalMessage').trim())
#if($body.startsWith('{{"error"') && $body.endsWith('}}}}'))
#set($context.responseOverride.status = $status)
$body
#else
#set($context.responseOverride.status = 503)
{_UNAVAILABLE}
#end
"""

# ValidationError: SageMaker refused the call itself. Its message names account and endpoint, so it goes no further: an
# endpoint that does not exist is no mistake of the caller. VTL compares numbers in strings by length first.
_VALIDATION_ERROR = f"""\
#set($length = $input.params('Content-Length'))
#set($limit = '{MAX_BODY_BYTES}')
#if($input.json('$').contains('not found'))
#set($context.responseOverride.status = 503)
{_UNAVAILABLE}
#elseif($length.length() > $limit.length() || ($length.length() == $limit.length() && $length.compareTo($limit) > 0))
#set($context.responseOverride.status = 413)
{_TOO_LARGE}
#else
{_REFUSED}
#end
"""

INTEGRATION_ERRORS = (
    IntegrationError("424", "500", _MODEL_ERROR),
    IntegrationError("400", "400", _VALIDATION_ERROR),
    IntegrationError("413", "413", _TOO_LARGE),
    IntegrationError("429", "429", envelope("OVERLOADED", "too many requests at once; try again")),
    # No pattern: everything that no other line takes.
    IntegrationError(None, "503", _UNAVAILABLE),
)
