"""The public door: a REST API that hands POST /classify to the SageMaker runtime, with nothing of ours in between."""

import json

import aws_cdk as cdk
from aws_cdk import aws_apigateway as apigateway
from constructs import Construct

from infra.aws import gateway_errors
from infra.aws.foundation import FoundationStack
from infra.aws.hosting import HostingStack
from infra.aws.stack import EnvironmentStack, acknowledge
from infra.settings import Settings

RELEASE_ID_HEADER = "x-release-id"
STAGE = "v1"
# API Gateway passes these through as they are; everything else is text to it.
BINARY_TYPES = ["application/x-npy", "image/jpeg", "image/png"]
# The longest that a regional API waits without a raised quota.
TIMEOUT_SECONDS = 29


class GatewayStack(EnvironmentStack):
    """Callers sign their requests (SigV4); errors of the container reach them with their own status and envelope."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        foundation: FoundationStack,
        hosting: HostingStack,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            purpose="gateway",
            description="REST API in front of the SageMaker endpoint.",
            release=hosting.release,
        )
        # By name, not by export: an export that is in use could never follow the endpoint to another name.
        self.add_stack_dependency(hosting)
        self._foundation = foundation
        api = self._api()
        self._own_errors(api)
        self._classify(api, hosting.endpoint_name)
        self._execution_logs(api)
        host = f"{api.rest_api_id}.execute-api.{self.region}.{self.url_suffix}"
        cdk.CfnOutput(self, "Url", value=f"https://{host}/{STAGE}/classify")

    def _api(self) -> apigateway.RestApi:
        """API Gateway writes logs with one role for the whole account; this stack sets it, as CDK does, and never removes it.

        Without the role the first deployment into an account fails; with it, other APIs log as before, because the policy is
        the one that AWS asks for. It stays when the stack goes, as other APIs may depend on it by then.
        """
        access_logs = self.log_group("AccessLogs", key=self._foundation.key)
        api = apigateway.RestApi(
            self,
            "Api",
            rest_api_name=self.settings.prefix,
            description=f"Classification by {self.settings.endpoint}",
            endpoint_configuration=apigateway.EndpointConfiguration(types=[apigateway.EndpointType.REGIONAL]),
            binary_media_types=BINARY_TYPES,
            cloud_watch_role=True,
            cloud_watch_role_removal_policy=cdk.RemovalPolicy.RETAIN,
            deploy_options=apigateway.StageOptions(
                stage_name=STAGE,
                throttling_rate_limit=self.settings.gateway.rate_limit,
                throttling_burst_limit=self.settings.gateway.burst_limit,
                access_log_destination=apigateway.LogGroupLogDestination(access_logs),
                access_log_format=_access_log_format(),
                logging_level=apigateway.MethodLoggingLevel.ERROR,
                data_trace_enabled=False,
                metrics_enabled=True,
                tracing_enabled=True,
            ),
        )
        # An own "Url" output with the whole path replaces the L2's, which ends at the stage.
        api.node.try_remove_child("Endpoint")
        acknowledge(
            api,
            "IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/AmazonAPIGatewayPushToCloudWatchLogs]",
            "The role is account-wide: a narrower policy would silence the logs of other APIs.",
        )
        acknowledge(
            api.deployment_stage,
            "APIG3",
            "Callers are signed and throttled; a web ACL belongs to the account's own edge, which knows its callers.",
        )
        return api

    def _own_errors(self, api: apigateway.RestApi) -> None:
        """What API Gateway answers itself (no signature, throttled, timed out) speaks the same envelope."""
        for response_type, status, code in gateway_errors.OWN_RESPONSES:
            api.add_gateway_response(
                response_type,
                type=apigateway.ResponseType.of(response_type),
                status_code=status,
                templates={"application/json": gateway_errors.own_envelope(code)},
            )

    def _classify(self, api: apigateway.RestApi, endpoint_name: str) -> None:
        """The core refuses bad bodies with the same status and code at every door, so the validator has no body model."""
        method = api.root.add_resource("classify").add_method(
            "POST",
            self._integration(endpoint_name),
            authorization_type=apigateway.AuthorizationType.IAM,
            request_parameters={
                "method.request.header.Accept": False,
                "method.request.header.Content-Type": False,
            },
            request_validator_options=apigateway.RequestValidatorOptions(
                validate_request_body=True, validate_request_parameters=True
            ),
            method_responses=[
                apigateway.MethodResponse(
                    status_code="200",
                    response_parameters={
                        "method.response.header.Content-Type": True,
                        f"method.response.header.{RELEASE_ID_HEADER}": True,
                    },
                ),
                *(apigateway.MethodResponse(status_code=error.status) for error in gateway_errors.INTEGRATION_ERRORS),
            ],
        )
        acknowledge(method, "COG4", "Callers are AWS principals that sign their requests (SigV4), not Cognito users.")

    def _integration(self, endpoint_name: str) -> apigateway.AwsIntegration:
        return apigateway.AwsIntegration(
            service="runtime.sagemaker",
            path=f"endpoints/{endpoint_name}/invocations",
            integration_http_method="POST",
            options=apigateway.IntegrationOptions(
                credentials_role=self._foundation.roles.gateway,
                passthrough_behavior=apigateway.PassthroughBehavior.WHEN_NO_MATCH,
                timeout=cdk.Duration.seconds(TIMEOUT_SECONDS),
                request_parameters={
                    "integration.request.header.Accept": "method.request.header.Accept",
                    "integration.request.header.Content-Type": "method.request.header.Content-Type",
                    # The container takes it as its request id: one id in both logs and in every envelope.
                    "integration.request.header.X-Amzn-SageMaker-Inference-Id": "context.requestId",
                },
                integration_responses=[
                    apigateway.IntegrationResponse(
                        status_code="200",
                        selection_pattern="200",
                        response_parameters={
                            "method.response.header.Content-Type": "integration.response.header.Content-Type",
                            # The one header of a container that SageMaker lets through.
                            f"method.response.header.{RELEASE_ID_HEADER}": (
                                "integration.response.header.X-Amzn-SageMaker-Custom-Attributes"
                            ),
                        },
                    ),
                    *(
                        apigateway.IntegrationResponse(
                            status_code=error.status,
                            selection_pattern=error.pattern,
                            response_templates={"application/json": error.template},
                        )
                        for error in gateway_errors.INTEGRATION_ERRORS
                    ),
                ],
            ),
        )

    def _execution_logs(self, api: apigateway.RestApi) -> None:
        """API Gateway would make this group itself, without encryption and for ever."""
        logs = self.log_group(
            "ExecutionLogs", key=self._foundation.key, name=f"API-Gateway-Execution-Logs_{api.rest_api_id}/{STAGE}"
        )
        api.deployment_stage.node.add_dependency(logs)


def _access_log_format() -> apigateway.AccessLogFormat:
    fields = {
        "request_id": "$context.requestId",
        "caller": "$context.identity.caller",
        "ip": "$context.identity.sourceIp",
        "time": "$context.requestTime",
        "method": "$context.httpMethod",
        "path": "$context.resourcePath",
        "status": "$context.status",
        "endpoint_status": "$context.integration.status",
        "endpoint_latency_ms": "$context.integration.latency",
        "latency_ms": "$context.responseLatency",
        "response_bytes": "$context.responseLength",
        "error": "$context.error.responseType",
    }
    return apigateway.AccessLogFormat.custom(json.dumps(fields))
