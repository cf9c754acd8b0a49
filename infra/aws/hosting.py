"""How a release is served: SageMaker model and, for every mode but batch, endpoint configuration and endpoint."""

import hashlib
import json
from typing import Any

import aws_cdk as cdk
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from infra.aws.endpoint_config import EndpointContent
from infra.aws.foundation import FoundationStack
from infra.aws.hosting_containers import Containers
from infra.aws.hosting_releases import HostedReleases
from infra.aws.stack import EnvironmentStack
from infra.settings import Settings

DIGEST_LENGTH = 12


class HostingStack(EnvironmentStack):
    """The releases of one environment behind one endpoint, or as the model of its transform jobs.

    SageMaker's models and endpoint configurations cannot be changed, only replaced. Their names carry a hash of their
    content, so that a change makes new ones, moves the endpoint over, and removes the old ones last.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        foundation: FoundationStack,
        releases: HostedReleases,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            purpose="hosting",
            description="SageMaker model that transform jobs use."
            if settings.hosting.mode == "batch"
            else "SageMaker endpoint that serves one release.",
            release=releases.deployed,
        )
        self.release = releases.deployed
        self.endpoint_name = settings.endpoint
        self._foundation = foundation
        self._key = foundation.key
        self._vpc_config = self._network()
        self._containers = Containers(settings, url_suffix=self.url_suffix)
        model = self._model("Model", self._containers.of(releases))
        cdk.CfnOutput(self, "ModelName", value=model.attr_model_name)
        cdk.CfnOutput(self, "ReleaseId", value=self.release.release_id)
        if settings.hosting.mode != "batch":
            self._serve(model, self._shadow_model(releases, model))

    def _serve(self, model: sagemaker.CfnModel, shadow: sagemaker.CfnModel | None) -> None:
        """The endpoint, with what watches it before it and what depends on it behind."""
        from infra.aws.operations import Operations
        from infra.aws.rollout import RollbackAlarms, deployment_config

        alarms = RollbackAlarms(self, "Rollback", settings=self.settings).alarms
        Operations(
            self,
            "Operations",
            settings=self.settings,
            endpoint_name=self.endpoint_name,
            key=self._key,
            alarms=alarms,
        )
        endpoint = sagemaker.CfnEndpoint(
            self,
            "Endpoint",
            endpoint_name=self.endpoint_name,
            endpoint_config_name=self._endpoint_configuration(model, shadow).attr_endpoint_config_name,
            deployment_config=deployment_config(self.settings, alarms),
        )
        self._scale(endpoint)
        self._experiment(endpoint, model, shadow)
        cdk.CfnOutput(self, "EndpointName", value=endpoint.attr_endpoint_name)

    def _network(self) -> sagemaker.CfnModel.VpcConfigProperty | None:
        vpc = self.settings.hosting.network.vpc
        if vpc is None:
            return None
        if vpc.cidr is None:
            return sagemaker.CfnModel.VpcConfigProperty(
                subnets=vpc.subnet_ids, security_group_ids=vpc.security_group_ids
            )
        from infra.aws.hosting_network import HostingNetwork

        return HostingNetwork(self, "Network", settings=self.settings, table=vpc, key=self._key).vpc_config

    def _model(self, construct_id: str, containers: dict[str, Any]) -> sagemaker.CfnModel:
        content = containers | {
            "execution_role_arn": self._foundation.roles.hosting.role_arn,
            "enable_network_isolation": self._isolated,
            "vpc_config": self._vpc_config,
        }
        vpc = self.settings.hosting.network.vpc
        name = self._named_by(content, vpc.cidr if vpc else None)
        return sagemaker.CfnModel(self, construct_id, model_name=name, **content)

    @property
    def _isolated(self) -> bool:
        """Serverless knows no network isolation, neither on nor off by choice."""
        hosting = self.settings.hosting
        return hosting.network.isolation and hosting.mode != "serverless"

    def _shadow_model(self, releases: HostedReleases, model: sagemaker.CfnModel) -> sagemaker.CfnModel | None:
        """The candidate's model; the deployed one where it is the same release on another instance type."""
        if releases.shadow is None:
            return None
        if releases.shadow == releases.deployed:
            return model
        return self._model("ShadowModel", self._containers.single(releases.shadow))

    def _endpoint_configuration(
        self, model: sagemaker.CfnModel, shadow: sagemaker.CfnModel | None
    ) -> sagemaker.CfnEndpointConfig:
        variant = shadow if self._shadow_form == "variant" else None
        content = EndpointContent(self.settings, key_arn=self._key.key_arn).of(
            model.attr_model_name,
            shadow_model_name=variant.attr_model_name if variant else None,
            topics=self._topics(),
        )
        return sagemaker.CfnEndpointConfig(
            self,
            "EndpointConfig",
            endpoint_config_name=self._named_by(content, model.model_name, variant.model_name if variant else None),
            **content,
        )

    @property
    def _shadow_form(self) -> str | None:
        shadow = self.settings.hosting.shadow
        return shadow.form if shadow else None

    def _topics(self) -> dict[str, str] | None:
        """The topics of an async endpoint, ARN by outcome."""
        if self.settings.hosting.mode != "async":
            return None
        from infra.aws.async_topics import async_topics

        topics = async_topics(self, settings=self.settings, key=self._key)
        for outcome, arn in topics.items():
            cdk.CfnOutput(self, f"Async{outcome.capitalize()}Topic", value=arn)
        return topics

    def _scale(self, endpoint: sagemaker.CfnEndpoint) -> None:
        table = self.settings.hosting.autoscaling
        if table is None:
            return
        from infra.aws.autoscaling import VariantScaling

        VariantScaling(self, "Scaling", settings=self.settings, table=table, endpoint_name=endpoint.attr_endpoint_name)

    def _experiment(
        self, endpoint: sagemaker.CfnEndpoint, model: sagemaker.CfnModel, shadow: sagemaker.CfnModel | None
    ) -> None:
        table, role = self.settings.hosting.shadow, self._foundation.roles.experiment
        if table is None or shadow is None or role is None:
            return
        from infra.aws.shadow import shadow_experiment

        shadow_experiment(
            self,
            "Experiment",
            settings=self.settings,
            table=table,
            endpoint=endpoint,
            model_name=model.attr_model_name,
            shadow_model_name=shadow.attr_model_name,
            role_arn=role.role_arn,
            key_arn=self._key.key_arn,
        )

    def _named_by(self, content: dict[str, Any], *references: str | None) -> str:
        """The endpoint's name and a hash of the content; `references` are names that content holds only as tokens.

        At most 63 characters, which is SageMaker's limit: the settings keep the endpoint's name to 50.
        """
        text = json.dumps([self.resolve(content), references], sort_keys=True)
        return f"{self.settings.endpoint}-{hashlib.sha256(text.encode()).hexdigest()[:DIGEST_LENGTH]}"
