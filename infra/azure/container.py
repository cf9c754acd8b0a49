"""hosting = "container": the image that SageMaker runs, on Azure Container Apps; `fetch` brings it the released model."""

import json
import math
from collections.abc import Sequence
from typing import Any

from infra.azure.deployment import Deployment, HostedApp
from infra.azure.network import Network
from infra.azure.terraform import (
    Container,
    ContainerApp,
    ContainerAppEnvironment,
    ContainerAppIdentity,
    ContainerAppRegistry,
    ContainerAppTemplate,
    ContainerEnv,
    DiagnosticSetting,
    EnabledLog,
    HttpScaleRule,
    Ingress,
    IngressIpRestriction,
    IngressTraffic,
    LivenessProbe,
    LogAnalyticsWorkspace,
    ReadinessProbe,
    RoleAssignment,
    StartupProbe,
    StorageBlob,
    TemplateDeployment,
    UserAssignedIdentity,
    WorkloadProfile,
)
from infra.settings_azure import ContainerSettings
from model_code import environment

_HEALTH = "/ping"
_PROFILE = "Consumption"
# The server answers what it has accepted within 25 seconds of SIGTERM (model_code/container/launch.py).
_GRACE_SECONDS = 35
_AUTHENTICATION_API = "2024-03-01"


def container_app(
    deployment: Deployment,
    *,
    archive_url: str,
    identity: UserAssignedIdentity,
    workspace: LogAnalyticsWorkspace,
    network: Network | None,
    after: Sequence[StorageBlob | RoleAssignment],
) -> HostedApp:
    """Environment and app; `archive_url` is the blob of the release's archive, which the app reads with its identity."""
    settings = deployment.settings
    host = _environment(deployment, workspace, network)
    app = ContainerApp(
        deployment.stack,
        "container_app",
        name=settings.container_app,
        resource_group_name=deployment.group.name,
        tags=deployment.app_tags,
        container_app_environment_id=host.id,
        workload_profile_name=_PROFILE,
        revision_mode="Single",
        identity=ContainerAppIdentity(type="UserAssigned", identity_ids=[identity.id]),
        registry=_registry(deployment, identity),
        ingress=_ingress(deployment),
        template=_template(deployment, archive_url, identity),
        depends_on=[*after, *(network.endpoints if network else [])],
    )
    if network and _reachable(deployment):
        network.private_domain("environment", host.default_domain, host.static_ip_address)
    if settings.azure.door == "entra":
        container_authentication(deployment, app)
    return HostedApp(app.id, app.name, app.ingress.fqdn, _HEALTH, "/invocations")


def container_authentication(deployment: Deployment, app: ContainerApp) -> None:
    """The platform's own check of Entra tokens, as an ARM template: azurerm has no resource for it.

    Tokens are only validated, nobody is signed in: hence no client secret, and 401 in place of a login page. Probes carry no
    token, and /ping tells nothing but the release id.
    """
    entra = deployment.settings.azure.entra
    assert entra is not None, "the settings have the table wherever the door is entra"
    registration = {
        "clientId": entra.client_id,
        "openIdIssuer": f"https://login.microsoftonline.com/{entra.tenant_id}/v2.0",
    }
    resource = {
        "type": "Microsoft.App/containerApps/authConfigs",
        "apiVersion": _AUTHENTICATION_API,
        "name": f"{deployment.settings.container_app}/current",
        "properties": {
            "platform": {"enabled": True},
            "globalValidation": {"unauthenticatedClientAction": "Return401", "excludedPaths": [_HEALTH]},
            "httpSettings": {"requireHttps": True},
            "identityProviders": {
                "azureActiveDirectory": {
                    "enabled": True,
                    "registration": registration,
                    "validation": {"allowedAudiences": entra.audiences},
                }
            },
            "login": {"tokenStore": {"enabled": False}},
        },
    }
    template = {
        "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
        "contentVersion": "1.0.0.0",
        "resources": [resource],
    }
    TemplateDeployment(
        deployment.stack,
        "container_authentication",
        name=f"authentication-{deployment.settings.prefix}",
        resource_group_name=deployment.group.name,
        deployment_mode="Incremental",
        # As the provider writes it back into the state.
        template_content=json.dumps(template, sort_keys=True, separators=(",", ":")),
        tags=dict(deployment.tags),
        depends_on=[app],
    )


def _settings(deployment: Deployment) -> ContainerSettings:
    container = deployment.settings.azure.container
    assert container is not None, "the settings have the table wherever the hosting is container"
    return container


def _reachable(deployment: Deployment) -> bool:
    """From outside the environment: the Internet, or with private endpoints the virtual network."""
    return deployment.settings.azure.door != "internal"


def _environment(
    deployment: Deployment, workspace: LogAnalyticsWorkspace, network: Network | None
) -> ContainerAppEnvironment:
    """Its logs go through Azure Monitor: sent straight to the workspace they would need the workspace's key."""
    name = deployment.settings.container_app_environment
    inside: dict[str, Any] = {}
    if network:
        inside = {
            "infrastructure_subnet_id": network.app_subnet_id,
            "internal_load_balancer_enabled": True,
            "public_network_access": "Disabled",
            # Azure would make one up, and the next plan would replace the environment to be rid of it.
            "infrastructure_resource_group_name": f"rg-{name}",
        }
    host = ContainerAppEnvironment(
        deployment.stack,
        "container_app_environment",
        **deployment.place,
        name=name,
        logs_destination="azure-monitor",
        workload_profile=[WorkloadProfile(name=_PROFILE, workload_profile_type=_PROFILE)],
        **inside,
    )
    DiagnosticSetting(
        deployment.stack,
        "environment_diagnostics",
        name="to-workspace",
        target_resource_id=host.id,
        log_analytics_workspace_id=workspace.id,
        enabled_log=[
            EnabledLog(category=category) for category in ("ContainerAppConsoleLogs", "ContainerAppSystemLogs")
        ],
    )
    return host


def _registry(deployment: Deployment, identity: UserAssignedIdentity) -> list[ContainerAppRegistry] | None:
    """None for a registry that asks nobody who they are."""
    container = _settings(deployment)
    if container.registry_id is None:
        return None
    return [ContainerAppRegistry(server=container.image.partition("/")[0], identity=identity.id)]


def _ingress(deployment: Deployment) -> Ingress:
    allowed = deployment.settings.azure.network.allowed_cidrs
    return Ingress(
        external_enabled=_reachable(deployment),
        allow_insecure_connections=False,
        target_port=environment.DEFAULT_PORT,
        transport="http",
        traffic_weight=[IngressTraffic(latest_revision=True, percentage=100)],
        ip_security_restriction=[
            IngressIpRestriction(name=f"allowed-{index}", action="Allow", ip_address_range=cidr)
            for index, cidr in enumerate(allowed)
        ]
        or None,
    )


def _template(deployment: Deployment, archive_url: str, identity: UserAssignedIdentity) -> ContainerAppTemplate:
    container = _settings(deployment)
    return ContainerAppTemplate(
        min_replicas=container.min_replicas,
        max_replicas=container.max_replicas,
        http_scale_rule=[HttpScaleRule(name="requests", concurrent_requests=str(container.concurrent_requests))],
        termination_grace_period_seconds=_GRACE_SECONDS,
        container=[
            Container(
                name="serving",
                image=container.image,
                cpu=container.cpu,
                memory=f"{2 * container.cpu:g}Gi",
                args=["fetch", "serve"],
                env=[
                    ContainerEnv(name=name, value=value)
                    for name, value in _variables(deployment, archive_url, identity).items()
                ],
                **_probes(),
            )
        ],
    )


def _variables(deployment: Deployment, archive_url: str, identity: UserAssignedIdentity) -> dict[str, str]:
    """Of these only the first changes with the model."""
    return {
        environment.RELEASE_ID: deployment.release.release_id,
        environment.ARCHIVE_URL: archive_url,
        environment.IDENTITY_CLIENT_ID: identity.client_id,
        # Inside a replica Python counts the cores of the machine below it.
        environment.WORKERS: str(math.ceil(_settings(deployment).cpu)),
    }


def _probes() -> dict[str, Any]:
    """GET /ping for all three.

    A start has some minutes, because roles reach the storage late: `fetch` waits for them, but not as long as the startup
    probe does (10 failures are the most that every version of the provider takes), so that it can say what is missing.
    """
    ping: dict[str, Any] = {"port": environment.DEFAULT_PORT, "transport": "HTTP", "path": _HEALTH}
    return {
        "startup_probe": [
            StartupProbe(**ping, initial_delay=5, interval_seconds=15, timeout=5, failure_count_threshold=10)
        ],
        "readiness_probe": [ReadinessProbe(**ping, interval_seconds=5, timeout=2, failure_count_threshold=3)],
        "liveness_probe": [LivenessProbe(**ping, interval_seconds=10, timeout=5, failure_count_threshold=3)],
    }
