"""Who may call: AWS principals that sign, holders of an API key, or users of Cognito user pools."""

from dataclasses import dataclass, field
from typing import Any

from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_cognito as cognito

from infra.aws.stack import acknowledge
from infra.settings import Settings


@dataclass(frozen=True)
class Authorization:
    """`method` are the arguments that every method of the API takes; `findings` what cdk-nag says to each, and our reason."""

    method: dict[str, Any]
    findings: dict[str, str] = field(default_factory=dict)

    def accept(self, method: apigateway.Method) -> None:
        for finding, reason in self.findings.items():
            acknowledge(method, finding, reason)


def authorization(api: apigateway.RestApi, settings: Settings) -> Authorization:
    """What gateway.authorization says, with what it needs beside the methods."""
    gateway = settings.gateway
    if gateway.authorization == "api-key":
        _usage_plan(api, settings)
        return Authorization(
            {"authorization_type": apigateway.AuthorizationType.NONE, "api_key_required": True},
            {
                "APIG4": "gateway.authorization is api-key: every method wants a key of the usage plan. AWS calls that "
                "metering, not authorization; iam and cognito are there for what must not be open to whoever has the key.",
                "COG4": "Callers hold an API key; they are no Cognito users.",
            },
        )
    if gateway.authorization == "cognito":
        pools = [
            cognito.UserPool.from_user_pool_arn(api, f"UserPool{index}", arn)
            for index, arn in enumerate(gateway.cognito_user_pool_arns)
        ]
        authorizer = apigateway.CognitoUserPoolsAuthorizer(api, "Authorizer", cognito_user_pools=pools)
        return Authorization({"authorization_type": apigateway.AuthorizationType.COGNITO, "authorizer": authorizer})
    return Authorization(
        {"authorization_type": apigateway.AuthorizationType.IAM},
        {"COG4": "Callers are AWS principals that sign their requests (SigV4), not Cognito users."},
    )


def _usage_plan(api: apigateway.RestApi, settings: Settings) -> None:
    """One key to begin with; its value is API Gateway's, and no template ever holds it."""
    gateway = settings.gateway
    plan = apigateway.UsagePlan(
        api,
        "UsagePlan",
        name=settings.endpoint,
        description=f"Callers of {settings.endpoint}",
        throttle=apigateway.ThrottleSettings(rate_limit=gateway.rate_limit, burst_limit=gateway.burst_limit),
        api_stages=[apigateway.UsagePlanPerApiStage(api=api, stage=api.deployment_stage)],
    )
    plan.add_api_key(apigateway.ApiKey(api, "Key", api_key_name=settings.endpoint))
