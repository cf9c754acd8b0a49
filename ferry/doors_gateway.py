"""The door that API Gateway is, with what gateway.authorization asks of its callers."""

import os

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest

from ferry import aws
from ferry.doors import HttpDoor, Sign
from ferry.errors import Refused
from ferry.stack_outputs import stack_output
from infra.settings import Settings

API_KEY = "FERRY_GATEWAY_KEY"
TOKEN = "FERRY_GATEWAY_TOKEN"
_DENIED = {
    "iam": "the caller's AWS credentials need execute-api:Invoke on this API",
    "api-key": f"{API_KEY} is no key of this API's usage plan, or its quota is used up",
    "cognito": f"{TOKEN} is no valid token of a user of gateway.cognito_user_pool_arns; tokens end after an hour",
}


def gateway_door(settings: Settings, connect: aws.Connect = aws.client) -> HttpDoor:
    """The deployed stage. Raises Refused where there is none, or where a key, a token or credentials are missing."""
    if settings.local is not None:
        raise Refused(
            f"environment {settings.environment!r} has no API Gateway that would call anything; --door local asks the container"
        )
    if settings.hosting.mode == "batch":
        raise Refused("hosting.mode is 'batch': there is no endpoint and no gateway; `ferry batch` asks the model")
    url = stack_output(settings, connect(settings, "cloudformation"), "Gateway", "Url")
    kind = settings.gateway.authorization
    headers = {} if kind == "iam" else _given(settings, kind)
    sign = _signature(settings.aws.region) if kind == "iam" else None
    base = url.rsplit("/classify", 1)[0]
    return HttpDoor("gateway", url, headers, health=f"{base}/health", denied=_DENIED[kind], sign=sign)


def _given(settings: Settings, kind: str) -> dict[str, str]:
    """The header with the key or the token in the caller's environment."""
    if kind == "api-key":
        name, header = API_KEY, "x-api-key"
        how = (
            f"aws apigateway get-api-keys --name-query {settings.endpoint} --include-values shows the keys; the usage plan "
            f"{settings.endpoint} says which of them opens the stage"
        )
    else:
        name, header = TOKEN, "Authorization"
        how = "a user's ID token, as Cognito gives it after signing in"
    value = os.environ.get(name)
    if not value:
        raise Refused(f"gateway.authorization is {kind!r} and {name} is not set: {how}")
    return {header: value}


def _signature(region: str) -> Sign:
    """SigV4 for API Gateway's service name, with whatever credentials the AWS SDK finds."""
    credentials = boto3.Session().get_credentials()
    if credentials is None:
        raise Refused(
            "gateway.authorization is 'iam' and no AWS credentials are found; sign in as for any other AWS command"
        )

    def sign(method: str, url: str, body: bytes | None, headers: dict[str, str]) -> dict[str, str]:
        request = AWSRequest(method=method, url=url, data=body, headers=headers)
        SigV4Auth(credentials.get_frozen_credentials(), "execute-api", region).add_auth(request)
        return dict(request.headers.items())

    return sign
