"""hosting = "premium": a Function App on the Elastic Premium plan, in a virtual network, run from the package's blob."""

from collections.abc import Mapping, Sequence

from infra.azure.authorization import entra_authentication
from infra.azure.deployment import Deployment, HostedApp
from infra.azure.network import Network, ip_restrictions
from infra.azure.terraform import (
    ApplicationInsights,
    LinuxApplicationStack,
    LinuxAuthSettings,
    LinuxFunctionApp,
    LinuxIdentity,
    LinuxIpRestriction,
    LinuxSiteConfig,
    RoleAssignment,
    ServicePlan,
    StorageAccount,
    StorageBlob,
    UserAssignedIdentity,
)
from infra.settings import FUNCTION_PYTHON
from model_code import environment

_HEALTH = "/api/health"
# The shortest that Azure takes: an instance that has not answered for so long is replaced.
_EVICTION_MINUTES = 2


def premium_app(
    deployment: Deployment,
    *,
    account: StorageAccount,
    package_url: str,
    identity: UserAssignedIdentity,
    insights: ApplicationInsights,
    network: Network,
    app_settings: Mapping[str, str],
    after: Sequence[StorageBlob | RoleAssignment],
) -> HostedApp:
    """Plan and app; `package_url` is the blob that the app mounts, read with its identity."""
    settings = deployment.settings
    private = settings.azure.network.private_endpoints
    authentication = entra_authentication(settings)
    app = LinuxFunctionApp(
        deployment.stack,
        "function_app",
        **deployment.place | {"tags": deployment.app_tags},
        name=settings.function_app,
        service_plan_id=_plan(deployment).id,
        # Keyless. The provider makes AzureWebJobsStorage__accountName of these two and then needs no content share: naming
        # that setting among app_settings, or content_share_force_disabled, which it never reads back, would show in each plan.
        storage_account_name=account.name,
        storage_uses_managed_identity=True,
        identity=LinuxIdentity(type="UserAssigned", identity_ids=[identity.id]),
        https_only=True,
        public_network_access_enabled=not private,
        virtual_network_subnet_id=network.app_subnet_id,
        ftp_publish_basic_authentication_enabled=False,
        webdeploy_publish_basic_authentication_enabled=False,
        # Otherwise it adds AzureWebJobsDashboard, which Functions 4 no longer knows.
        builtin_logging_enabled=False,
        auth_settings_v2=LinuxAuthSettings(**authentication) if authentication else None,
        site_config=_site_config(deployment, insights),
        app_settings={**app_settings, **_host_settings(deployment, package_url, identity)},
        depends_on=[*after, *network.endpoints],
    )
    if private:
        network.private_endpoint("app", app.id, "sites")
    return HostedApp(app.id, app.name, app.default_hostname, _HEALTH, "/api/classify")


def _plan(deployment: Deployment) -> ServicePlan:
    premium = deployment.settings.azure.premium_plan
    return ServicePlan(
        deployment.stack,
        "service_plan",
        **deployment.place,
        name=deployment.settings.service_plan,
        os_type="Linux",
        sku_name=premium.sku,
        maximum_elastic_worker_count=premium.maximum_instances,
    )


def _site_config(deployment: Deployment, insights: ApplicationInsights) -> LinuxSiteConfig:
    premium = deployment.settings.azure.premium_plan
    return LinuxSiteConfig(
        application_stack=LinuxApplicationStack(python_version=FUNCTION_PYTHON),
        application_insights_connection_string=insights.connection_string,
        elastic_instance_minimum=premium.minimum_instances,
        app_scale_limit=premium.maximum_instances,
        # Left out, the provider sends 0, and no instance would be warm when the next one is needed.
        pre_warmed_instance_count=1,
        health_check_path=_HEALTH,
        health_check_eviction_time_in_min=_EVICTION_MINUTES,
        http2_enabled=True,
        vnet_route_all_enabled=True,
        ftps_state="Disabled",
        minimum_tls_version="1.2",
        scm_minimum_tls_version="1.2",
        **ip_restrictions(deployment, LinuxIpRestriction),
    )


def _host_settings(deployment: Deployment, package_url: str, identity: UserAssignedIdentity) -> dict[str, str]:
    premium = deployment.settings.azure.premium_plan
    return {
        "AzureWebJobsStorage__credential": "managedidentity",
        "AzureWebJobsStorage__clientId": identity.client_id,
        "WEBSITE_RUN_FROM_PACKAGE": package_url,
        "WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID": identity.id,
        "FUNCTIONS_WORKER_PROCESS_COUNT": str(premium.processes),
        environment.WORKER_THREADS: str(premium.worker_threads),
    }
