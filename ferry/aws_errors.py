"""What an error of an AWS call means for whoever has to mend it: the cause by its name, and what to do."""

import datetime
import re
from email.utils import parsedate_to_datetime

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
    SSOError,
    TokenRetrievalError,
)

# Past five minutes AWS takes a request for a replayed one (IAM User Guide, "Troubleshoot Signature Version 4 for AWS API
# requests"); S3 allows fifteen.
CLOCK_SECONDS = 300
DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError", "403"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_UNKNOWN_KEY = frozenset({"InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "AuthFailure"})
_SIGNATURE = frozenset({"SignatureDoesNotMatch", "InvalidSignatureException", "RequestTimeTooSkewed"})
_THROTTLED = frozenset(
    {"Throttling", "ThrottlingException", "ThrottledException", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown"}
)  # fmt: skip
_SIGN_IN = "sign in (`aws sso login`, `aws login`), or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def is_denied(error: Exception) -> bool:
    """Whether the caller lacks a permission, as distinct from being nobody."""
    return isinstance(error, ClientError) and error.response["Error"]["Code"] in DENIED


def clock_skew(response: dict[str, object]) -> float | None:
    """Seconds by which this machine's clock is ahead of AWS's, from the Date header of an answer; None without one."""
    metadata = response.get("ResponseMetadata")
    headers = metadata.get("HTTPHeaders", {}) if isinstance(metadata, dict) else {}
    try:
        theirs = parsedate_to_datetime(headers["date"])
    except (KeyError, TypeError, ValueError):
        return None
    return (datetime.datetime.now(datetime.UTC) - theirs).total_seconds()


def explain(error: BotoCoreError | ClientError) -> str:
    """The error in words: what was wrong and what to do next, with AWS's own message where AWS answered."""
    return _answered(error) if isinstance(error, ClientError) else _unanswered(error)


def skewed(seconds: float) -> str:
    """A clock that is wrong by so many seconds, ahead where they are positive, in words."""
    minutes, direction = abs(seconds) / 60, "ahead of" if seconds > 0 else "behind"
    return (
        f"this machine's clock is {minutes:.0f} minutes {direction} AWS's, and AWS refuses signatures more than "
        f"{CLOCK_SECONDS // 60} minutes off; set the clock (timedatectl set-ntp true)"
    )


def _answered(error: ClientError) -> str:
    code, said = error.response["Error"]["Code"], str(error)
    skew = clock_skew(dict(error.response))
    if code in _SIGNATURE | _EXPIRED and skew is not None and abs(skew) >= CLOCK_SECONDS:
        return f"{skewed(skew)}. {said}"
    if code == "RequestTimeTooSkewed" or (code in _SIGNATURE and re.search("expired|not yet", said)):
        return f"this machine's clock and AWS's differ too much; set the clock (timedatectl set-ntp true). {said}"
    if code in _SIGNATURE:
        return f"the secret access key does not belong to the access key id; {_SIGN_IN}. {said}"
    if code in _EXPIRED:
        return f"the credentials have expired; {_SIGN_IN}. {said}"
    if code in _UNKNOWN_KEY:
        return f"AWS does not know the credentials; {_SIGN_IN}. {said}"
    if code in DENIED:
        return f"access denied to {error.operation_name}: {said}"
    if code in _THROTTLED:
        return f"AWS answers too many requests of this account at once, after repetitions, too; wait a minute. {said}"
    if error.response["ResponseMetadata"]["HTTPStatusCode"] >= 500:
        return f"the service itself fails, after repetitions, too; https://health.aws.amazon.com says whether it knows. {said}"
    return said


def _unanswered(error: BotoCoreError) -> str:
    match error:
        case NoCredentialsError() | PartialCredentialsError():
            return f"no AWS credentials on this machine ({error}); {_SIGN_IN}"
        case ProfileNotFound():
            return f"{error}; AWS_PROFILE names a profile that ~/.aws/config does not have"
        case SSOError() | TokenRetrievalError():
            return f"the sign-in has ended ({error}); `aws sso login` renews it"
        case ProxyConnectionError():
            return f"{error}; HTTPS_PROXY names a proxy that does not answer: correct it, or exclude AWS in NO_PROXY"
        case SSLError():
            return (
                f"{error}. Something between here and AWS, as a proxy that looks into TLS does, shows a certificate that this "
                "machine does not trust; AWS_CA_BUNDLE=<file with that proxy's CA> makes it trusted"
            )
        case EndpointConnectionError() if "//localhost:" in str(error):
            return f"{error}; start the emulator: ferry local up emulator"
        case EndpointConnectionError():
            return f"{error}; name resolution, a firewall or a missing proxy (HTTPS_PROXY) may be why"
        case ConnectTimeoutError() | ReadTimeoutError():
            return (
                f"{error}; a firewall, a missing proxy (HTTPS_PROXY) or a VPC without a way to that service may be why"
            )
    return str(error)
