"""How a release is served: SageMaker model, endpoint configuration, endpoint."""

import hashlib
import json
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from infra.aws.foundation import FoundationStack
from infra.aws.image import image_uri
from infra.aws.instance_types import volume_key
from infra.aws.stack import EnvironmentStack
from infra.release import Release, ReleaseError
from infra.settings import RELEASES_PREFIX, Settings
from model_code import environment

# Deployment guardrails demand that the variant keeps its name from one configuration to the next.
VARIANT = "AllTraffic"
DIGEST_LENGTH = 12


class HostingStack(EnvironmentStack):
    """One release behind one endpoint.

    SageMaker's models and endpoint configurations cannot be changed, only replaced. Their names carry a hash of their
    content, so that a change makes new ones, moves the endpoint over, and removes the old ones last.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, settings: Settings, foundation: FoundationStack, release: Release
    ) -> None:
        _check_deployable(release, settings)
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            purpose="hosting",
            description="SageMaker endpoint that serves one release.",
            release=release,
        )
        self.release = release
        self.endpoint_name = settings.endpoint
        self._foundation = foundation
        model = self._model(release)
        configuration = self._endpoint_configuration(model)
        endpoint = self._endpoint(configuration)
        cdk.CfnOutput(self, "EndpointName", value=endpoint.attr_endpoint_name)
        cdk.CfnOutput(self, "ReleaseId", value=release.release_id)

    def _model(self, release: Release) -> sagemaker.CfnModel:
        container = sagemaker.CfnModel.ContainerDefinitionProperty(
            image=image_uri(self.settings, url_suffix=self.url_suffix),
            mode="SingleModel",
            model_data_url=release.archive.uri,
            environment={
                environment.RELEASE_ID: release.release_id,
                environment.MODEL_JSON_SHA256: release.model_json.sha256,
            },
        )
        content: dict[str, Any] = {
            "execution_role_arn": self._foundation.roles.hosting.role_arn,
            "enable_network_isolation": True,
            "primary_container": container,
        }
        return sagemaker.CfnModel(self, "Model", model_name=self._named_by(content), **content)

    def _endpoint_configuration(self, model: sagemaker.CfnModel) -> sagemaker.CfnEndpointConfig:
        hosting = self.settings.hosting
        variant = sagemaker.CfnEndpointConfig.ProductionVariantProperty(
            variant_name=VARIANT,
            model_name=model.attr_model_name,
            instance_type=hosting.instance_type,
            initial_instance_count=hosting.instance_count,
            initial_variant_weight=1,
        )
        content: dict[str, Any] = {
            "production_variants": [variant],
            "kms_key_id": volume_key(hosting.instance_type, self._foundation.key.key_arn),
        }
        return sagemaker.CfnEndpointConfig(
            self,
            "EndpointConfig",
            endpoint_config_name=self._named_by(content, model.model_name),
            **content,
        )

    def _endpoint(self, configuration: sagemaker.CfnEndpointConfig) -> sagemaker.CfnEndpoint:
        return sagemaker.CfnEndpoint(
            self,
            "Endpoint",
            endpoint_name=self.endpoint_name,
            endpoint_config_name=configuration.attr_endpoint_config_name,
        )

    def _named_by(self, content: dict[str, Any], *references: str | None) -> str:
        """The endpoint's name and a hash of the content; `references` are names that content holds only as tokens.

        At most 63 characters, which is SageMaker's limit: the settings keep the endpoint's name to 50.
        """
        text = json.dumps([self.resolve(content), references], sort_keys=True)
        return f"{self.settings.endpoint}-{hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]}"


def _check_deployable(release: Release, settings: Settings) -> None:
    """Refuse what the stack could create but what could never serve. Raises ReleaseError."""
    if release.model != settings.model.name:
        raise ReleaseError(
            f"release {release.release_id}: model is {release.model!r}; environment {settings.environment!r} serves "
            f"{settings.model.name!r}"
        )
    prefix = f"s3://{settings.artifact_bucket}/{RELEASES_PREFIX}/"
    if not release.archive.uri.startswith(prefix):
        raise ReleaseError(
            f"release {release.release_id}: archive.uri is {release.archive.uri!r}; the hosting role of environment "
            f"{settings.environment!r} reads below {prefix} only; publish the release there with `ferry release`"
        )
