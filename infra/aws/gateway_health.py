"""GET /health: what SageMaker says of the endpoint, and nothing else of its description."""

import json

import aws_cdk as cdk
from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_iam as iam

from infra.aws import gateway_errors

# Statuses in which requests are answered, by the release that is declared (CreateEndpoint, EndpointStatus: SystemUpdating is
# maintenance of the same configuration), and those in which another configuration may answer beside it or instead.
DECLARED_STATUSES = ("InService", "SystemUpdating")
MIXED_STATUSES = ("Updating", "RollingBack", "UpdateRollbackFailed")
TIMEOUT_SECONDS = 10

# DescribeEndpoint is a JSON 1.1 operation of the host api.sagemaker (botocore, sagemaker: endpointPrefix, targetPrefix,
# jsonVersion). API Gateway writes a host with a dot as {subdomain.service} (API reference, Integration, uri).
_SERVICE = "api.sagemaker"
_TARGET = "SageMaker.DescribeEndpoint"
_CONTENT_TYPE = "application/x-amz-json-1.1"


def health_template(release_id: str) -> str:
    """VTL over DescribeEndpoint's answer. While two configurations may answer, no release is named: each answer's header does."""
    return f"""\
#set($status = $input.path('$.EndpointStatus'))
#if(!$status)
#set($status = '')
#end
#if({_one_of(DECLARED_STATUSES)})
{{"status":"$status","release_id":"{release_id}"}}
#elseif({_one_of(MIXED_STATUSES)})
{{"status":"$status","release_id":null}}
#else
#set($context.responseOverride.status = 503)
#set($context.responseOverride.header.{gateway_errors.RETRY_AFTER_HEADER} = '{gateway_errors.RETRY_AFTER_SECONDS}')
#if($status.matches('[A-Za-z]{{1,32}}'))
{gateway_errors.envelope("UNAVAILABLE", "the endpoint cannot answer now: its status is $status")}
#else
{gateway_errors.UNAVAILABLE}
#end
#end
"""


def _one_of(statuses: tuple[str, ...]) -> str:
    return " || ".join(f"$status == '{status}'" for status in statuses)


def health_integration(endpoint_name: str, release_id: str, *, role: iam.IRole) -> apigateway.AwsIntegration:
    """DescribeEndpoint with the gateway's role; an endpoint that is not there is a 503 like one that does not serve."""
    return apigateway.AwsIntegration(
        service=_SERVICE,
        path="/",
        integration_http_method="POST",
        options=apigateway.IntegrationOptions(
            credentials_role=role,
            passthrough_behavior=apigateway.PassthroughBehavior.NEVER,
            timeout=cdk.Duration.seconds(TIMEOUT_SECONDS),
            request_parameters={
                "integration.request.header.Content-Type": f"'{_CONTENT_TYPE}'",
                "integration.request.header.X-Amz-Target": f"'{_TARGET}'",
            },
            request_templates={"application/json": json.dumps({"EndpointName": endpoint_name})},
            integration_responses=[
                apigateway.IntegrationResponse(
                    status_code="200",
                    selection_pattern="200",
                    content_handling=apigateway.ContentHandling.CONVERT_TO_TEXT,
                    response_templates={"application/json": health_template(release_id)},
                ),
                apigateway.IntegrationResponse(
                    status_code="503",
                    content_handling=apigateway.ContentHandling.CONVERT_TO_TEXT,
                    response_parameters={
                        f"method.response.header.{gateway_errors.RETRY_AFTER_HEADER}": f"'{gateway_errors.RETRY_AFTER_SECONDS}'"
                    },
                    response_templates={"application/json": gateway_errors.UNAVAILABLE},
                ),
            ],
        ),
    )
