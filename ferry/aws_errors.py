"""What an error of an AWS call means for whoever has to mend it: the cause by its name, and what to do."""

import datetime
import re
from email.utils import parsedate_to_datetime

from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConfigParseError,
    ConnectTimeoutError,
    CredentialRetrievalError,
    EndpointConnectionError,
    InfiniteLoopConfigError,
    InvalidConfigError,
    LoginError,
    MetadataRetrievalError,
    MissingDependencyException,
    NoAuthTokenError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    ProxyConnectionError,
    ReadTimeoutError,
    SSLError,
    SSOError,
    TokenRetrievalError,
    UnknownCredentialError,
)

# Past five minutes AWS takes a request for a replayed one (IAM User Guide, "Troubleshoot Signature Version 4 for AWS API
# requests"); S3 allows fifteen.
CLOCK_SECONDS = 300
DENIED = frozenset({"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError", "403"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_UNKNOWN_KEY = frozenset({"InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId", "AuthFailure"})
_SIGNATURE = frozenset({"SignatureDoesNotMatch", "InvalidSignatureException", "RequestTimeTooSkewed"})
_THROTTLED = frozenset(
    {
        "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException", "SlowDown",
        "RequestLimitExceeded", "TooManyRequestsException", "ProvisionedThroughputExceededException",
        "BandwidthLimitExceeded", "PriorRequestNotComplete", "429",
    }
)  # fmt: skip
_NOT_ENABLED = frozenset({"OptInRequired", "RegionDisabledException", "SubscriptionRequiredException"})
_NOBODY = (
    NoCredentialsError, PartialCredentialsError, CredentialRetrievalError, MetadataRetrievalError, UnknownCredentialError,
    ProfileNotFound, ConfigParseError, InvalidConfigError, InfiniteLoopConfigError, MissingDependencyException,
    SSOError, LoginError, TokenRetrievalError, NoAuthTokenError,
)  # fmt: skip
_SIGN_IN = "sign in (`aws sso login`, `aws login`), or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


class Unreadable(BotoCoreError):  # type: ignore[misc]
    """What came as the answer to a call cannot be the service's."""

    fmt = (
        "{endpoint}: what answers {operation} there is not AWS, or was cut off: {beginning!r}. A proxy, or a network that wants "
        "a sign-in first, may be why; run it again"
    )


def is_denied(error: Exception) -> bool:
    """Whether the caller lacks a permission, as distinct from being nobody."""
    return isinstance(error, ClientError) and error.response["Error"]["Code"] in DENIED


def is_nobody(error: Exception) -> bool:
    """Whether AWS was not asked, or did not answer, for want of credentials that it knows and takes there."""
    if isinstance(error, ClientError):
        return error.response["Error"]["Code"] in _EXPIRED | _UNKNOWN_KEY | _SIGNATURE | _NOT_ENABLED
    return isinstance(error, _NOBODY)


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
    if code in _NOT_ENABLED:
        return f"the account has that service or that region not enabled; enable it in the AWS console, or choose another. {said}"
    if code == "NoSuchBucket" and (bucket := error.response["Error"].get("BucketName")):
        return (
            f"the bucket {bucket} is not there; `cdk deploy Foundation` makes those of this environment, and where one was "
            f"deleted by hand `cdk deploy Foundation --revert-drift` does, empty. {said}"
        )
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
        case LoginError():
            return f"the sign-in has ended ({error}); `aws login` renews it"
        case SSOError() | TokenRetrievalError() | NoAuthTokenError():
            return f"the sign-in has ended ({error}); `aws sso login` renews it"
        case ConfigParseError() | InvalidConfigError() | InfiniteLoopConfigError():
            return f"{error}; correct that file of AWS's configuration, or set AWS_PROFILE to another profile"
        case (
            CredentialRetrievalError()
            | MetadataRetrievalError()
            | UnknownCredentialError()
            | MissingDependencyException()
        ):
            return f"no AWS credentials on this machine ({error}); {_SIGN_IN}"
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
