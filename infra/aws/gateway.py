"""The public door: a REST API in front of the SageMaker runtime, with nothing of ours in between."""

import json

import aws_cdk as cdk
from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_sns as sns
from constructs import Construct

from infra.aws import gateway_errors, gateway_routes
from infra.aws.foundation import FoundationStack
from infra.aws.gateway_alarms import gateway_alarms
from infra.aws.gateway_auth import authorization
from infra.aws.gateway_health import health_integration
from infra.aws.gateway_waf import Firewall
from infra.aws.hosting import HostingStack
from infra.aws.stack import EnvironmentStack, acknowledge
from infra.settings import Settings

STAGE = "v1"
# API Gateway passes these through as they are; everything else is text to it.
BINARY_TYPES = ["application/x-npy", "image/jpeg", "image/png"]


class GatewayStack(EnvironmentStack):
    """POST /classify, or POST /classify/async for an async endpoint, and GET /health, all behind the same authorization.

    Errors of the container reach the caller with their own status and envelope.
    """

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
        self._authorization = authorization(api, settings)
        path = self._classify(api, hosting.endpoint_name)
        self._health(api, hosting)
        self._execution_logs(api)
        self._firewall(api)
        topic_arn = self.format_arn(service="sns", resource=settings.alarm_topic)
        gateway_alarms(api, settings, topic=sns.Topic.from_topic_arn(self, "AlarmTopic", topic_arn))
        host = f"{api.rest_api_id}.execute-api.{self.region}.{self.url_suffix}"
        cdk.CfnOutput(self, "Url", value=f"https://{host}/{STAGE}/{path}")

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
        return api

    def _own_errors(self, api: apigateway.RestApi) -> None:
        """What API Gateway answers itself (no signature, throttled, timed out) speaks the same envelope."""
        retry = {gateway_errors.RETRY_AFTER_HEADER: f"'{gateway_errors.RETRY_AFTER_SECONDS}'"}
        for response in gateway_errors.own_responses(self.settings):
            api.add_gateway_response(
                response.type,
                type=apigateway.ResponseType.of(response.type),
                status_code=response.status,
                response_headers=retry if response.retry else None,
                templates={"application/json": response.template},
            )

    def _classify(self, api: apigateway.RestApi, endpoint_name: str) -> str:
        """The core refuses bad bodies with the same status and code at every door, so the validator has no body model.

        Returns the path of the method.
        """
        role = self._foundation.roles.gateway
        resource = api.root.add_resource("classify")
        if self.settings.hosting.mode == "async":
            resource = resource.add_resource("async")
            integration = gateway_routes.async_invocation(self.settings, endpoint_name, role=role)
        else:
            integration = gateway_routes.invocation(self.settings, endpoint_name, role=role)
        self._method(
            resource,
            "POST",
            integration,
            gateway_routes.method_responses(self.settings),
            gateway_routes.request_headers(self.settings),
        )
        return resource.path.removeprefix("/")

    def _health(self, api: apigateway.RestApi, hosting: HostingStack) -> None:
        integration = health_integration(
            hosting.endpoint_name, hosting.release.release_id, role=self._foundation.roles.gateway
        )
        retry = {f"method.response.header.{gateway_errors.RETRY_AFTER_HEADER}": True}
        responses = [
            apigateway.MethodResponse(status_code="200"),
            apigateway.MethodResponse(status_code="503", response_parameters=retry),
        ]
        self._method(api.root.add_resource("health"), "GET", integration, responses, {})

    def _method(
        self,
        resource: apigateway.IResource,
        verb: str,
        integration: apigateway.AwsIntegration,
        responses: list[apigateway.MethodResponse],
        headers: dict[str, bool],
    ) -> None:
        method = resource.add_method(
            verb,
            integration,
            **self._authorization.method,
            request_parameters=headers,
            request_validator_options=apigateway.RequestValidatorOptions(
                validate_request_body=True, validate_request_parameters=True
            ),
            method_responses=responses,
        )
        self._authorization.accept(method)

    def _execution_logs(self, api: apigateway.RestApi) -> None:
        """API Gateway would make this group itself, without encryption and for ever."""
        logs = self.log_group(
            "ExecutionLogs", key=self._foundation.key, name=f"API-Gateway-Execution-Logs_{api.rest_api_id}/{STAGE}"
        )
        api.deployment_stage.node.add_dependency(logs)

    def _firewall(self, api: apigateway.RestApi) -> None:
        """The log group is there whatever the settings say: one that is kept could not be made again under its name."""
        name = f"{self.settings.waf_log_prefix}{api.rest_api_id}"
        log_group = self.log_group("FirewallLogs", key=self._foundation.key, name=name)
        waf = self.settings.gateway.waf
        if waf is None:
            acknowledge(
                api.deployment_stage,
                "APIG3",
                "gateway.waf is not set: callers are authorized and throttled, and a web ACL costs money each month.",
            )
            return
        Firewall(
            self,
            "Firewall",
            settings=self.settings,
            waf=waf,
            stage=api.deployment_stage,
            log_group=log_group,
        )


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
