"""What POST /classify and POST /classify/async hand to the SageMaker runtime, and how its answers come back.

The types of a body decide what API Gateway does with it (Developer Guide, "Content type conversions in API Gateway"): bytes
stay bytes where the type is one of the API's binary types, and for an answer the first type of the request's Accept decides
that. An error is text, so its conversion is switched off: for a caller who accepts application/x-npy the envelope would be
decoded as base64, which it is not.
"""

from collections.abc import Mapping

import aws_cdk as cdk
from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_iam as iam

from infra.aws import gateway_errors
from infra.settings import Settings

RELEASE_ID_HEADER = "x-release-id"
# The longest that a regional API waits without a raised quota.
TIMEOUT_SECONDS = 29
# What a caller has to say where an endpoint holds more than one model (sagemaker-runtime, InvokeEndpoint).
TARGET_HEADERS = {
    "multi-model": "X-Amzn-SageMaker-Target-Model",
    "multi-container": "X-Amzn-SageMaker-Target-Container-Hostname",
}
INPUT_LOCATION_HEADER = "X-Amzn-SageMaker-InputLocation"
FAILURE_LOCATION_HEADER = "X-Amzn-SageMaker-FailureLocation"
# The container takes it as its request id: one id in both logs and in every envelope.
_ONE_ID = {"integration.request.header.X-Amzn-SageMaker-Inference-Id": "context.requestId"}


def request_headers(settings: Settings) -> dict[str, bool]:
    """The method's request parameters, and whether a request without the header is refused."""
    headers = {"Accept": False, "Content-Type": False}
    if settings.hosting.mode == "async":
        headers[INPUT_LOCATION_HEADER] = False
    elif target := TARGET_HEADERS.get(settings.hosting.layout):
        headers[target] = True
    return {f"method.request.header.{name}": required for name, required in headers.items()}


def invocation(settings: Settings, endpoint_name: str, *, role: iam.IRole) -> apigateway.AwsIntegration:
    """InvokeEndpoint: the answer of the model, with its type and its release."""
    target = TARGET_HEADERS.get(settings.hosting.layout)
    passed = ["Accept", "Content-Type", *([target] if target else [])]
    return _runtime_call(
        settings,
        f"endpoints/{endpoint_name}/invocations",
        role=role,
        request={f"integration.request.header.{name}": f"method.request.header.{name}" for name in passed} | _ONE_ID,
        # No conversion: text stays text, and bytes are bytes to a caller who accepts them first.
        answer=apigateway.IntegrationResponse(
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
    )


def async_invocation(settings: Settings, endpoint_name: str, *, role: iam.IRole) -> apigateway.AwsIntegration:
    """InvokeEndpointAsync: where the answer will be.

    Where that is stands in headers of SageMaker's answer, and no template can read those into a body: the body holds the id.
    Types go in headers of other names than InvokeEndpoint's.
    """
    seconds = settings.hosting.async_inference.invocation_timeout_seconds
    return _runtime_call(
        settings,
        f"endpoints/{endpoint_name}/async-invocations",
        role=role,
        request={
            "integration.request.header.X-Amzn-SageMaker-Accept": "method.request.header.Accept",
            "integration.request.header.X-Amzn-SageMaker-Content-Type": "method.request.header.Content-Type",
            # The body's own type decides how API Gateway passes it on.
            "integration.request.header.Content-Type": "method.request.header.Content-Type",
            f"integration.request.header.{INPUT_LOCATION_HEADER}": f"method.request.header.{INPUT_LOCATION_HEADER}",
            "integration.request.header.X-Amzn-SageMaker-InvocationTimeoutSeconds": f"'{seconds}'",
        }
        | _ONE_ID,
        answer=apigateway.IntegrationResponse(
            status_code="202",
            selection_pattern="202",
            content_handling=apigateway.ContentHandling.CONVERT_TO_TEXT,
            response_parameters={
                "method.response.header.Location": "integration.response.header.X-Amzn-SageMaker-OutputLocation",
                f"method.response.header.{FAILURE_LOCATION_HEADER}": (
                    f"integration.response.header.{FAILURE_LOCATION_HEADER}"
                ),
            },
            response_templates={"application/json": ACCEPTED},
        ),
    )


# SageMaker answers with the id that it was given.
ACCEPTED = '{"inference_id":"$context.requestId"}'


def _runtime_call(
    settings: Settings,
    path: str,
    *,
    role: iam.IRole,
    request: Mapping[str, str],
    answer: apigateway.IntegrationResponse,
) -> apigateway.AwsIntegration:
    return apigateway.AwsIntegration(
        service="runtime.sagemaker",
        path=path,
        integration_http_method="POST",
        options=apigateway.IntegrationOptions(
            credentials_role=role,
            passthrough_behavior=apigateway.PassthroughBehavior.WHEN_NO_MATCH,
            timeout=cdk.Duration.seconds(TIMEOUT_SECONDS),
            request_parameters=request,
            integration_responses=[
                answer,
                *(_error_response(error) for error in gateway_errors.invocation_errors(settings)),
            ],
        ),
    )


def _error_response(error: gateway_errors.IntegrationError) -> apigateway.IntegrationResponse:
    seconds = f"'{gateway_errors.RETRY_AFTER_SECONDS}'"
    header = f"method.response.header.{gateway_errors.RETRY_AFTER_HEADER}"
    return apigateway.IntegrationResponse(
        status_code=error.status,
        selection_pattern=error.pattern,
        content_handling=apigateway.ContentHandling.CONVERT_TO_TEXT,
        response_parameters={header: seconds} if error.retry else None,
        response_templates={"application/json": error.template},
    )


def method_responses(settings: Settings) -> list[apigateway.MethodResponse]:
    """One for each status that an integration response declares; templates may still choose another status."""
    headers = (
        {"Location": True, FAILURE_LOCATION_HEADER: True}
        if settings.hosting.mode == "async"
        else {"Content-Type": True, RELEASE_ID_HEADER: True}
    )
    return [
        apigateway.MethodResponse(
            status_code="202" if settings.hosting.mode == "async" else "200", response_parameters=_declared(headers)
        ),
        *(
            apigateway.MethodResponse(
                status_code=error.status,
                response_parameters=_declared({gateway_errors.RETRY_AFTER_HEADER: True}) if error.retry else None,
            )
            for error in gateway_errors.invocation_errors(settings)
        ),
    ]


def _declared(headers: Mapping[str, bool]) -> dict[str, bool]:
    return {f"method.response.header.{name}": declared for name, declared in headers.items()}
