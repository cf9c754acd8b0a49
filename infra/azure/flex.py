"""hosting = "flex": a Function App on the Flex Consumption plan, started from the package in its deployment container."""

from collections.abc import Mapping, Sequence

from infra.azure.authorization import entra_authentication
from infra.azure.deployment import Deployment, HostedApp
from infra.azure.network import Network, ip_restrictions
from infra.azure.storage import Storage
from infra.azure.terraform import (
    ApplicationInsights,
    FlexAlwaysReady,
    FlexAuthSettings,
    FlexIdentity,
    FlexIpRestriction,
    FlexSiteConfig,
    FunctionAppFlexConsumption,
    RoleAssignment,
    ServicePlan,
    StorageBlob,
    UserAssignedIdentity,
)
from infra.settings import FUNCTION_PYTHON
from model_code import environment


def flex_app(
    deployment: Deployment,
    *,
    storage: Storage,
    identity: UserAssignedIdentity,
    insights: ApplicationInsights,
    network: Network | None,
    app_settings: Mapping[str, str],
    after: Sequence[StorageBlob | RoleAssignment],
) -> HostedApp:
    """Plan and app. Never zip_deploy_file: the provider posts it to an address that Flex Consumption does not have."""
    settings = deployment.settings
    azure, flex = settings.azure, settings.azure.flex_plan
    keyless = azure.storage_auth == "identity"
    authentication = entra_authentication(settings)
    plan = ServicePlan(
        deployment.stack,
        "service_plan",
        **deployment.place,
        name=settings.service_plan,
        os_type="Linux",
        sku_name="FC1",
    )
    app = FunctionAppFlexConsumption(
        deployment.stack,
        "function_app",
        **deployment.place | {"tags": deployment.app_tags},
        name=settings.function_app,
        service_plan_id=plan.id,
        runtime_name="python",
        runtime_version=FUNCTION_PYTHON,
        instance_memory_in_mb=flex.instance_memory_mb,
        maximum_instance_count=flex.maximum_instance_count,
        http_concurrency=flex.http_concurrency,
        always_ready=[FlexAlwaysReady(name="http", instance_count=flex.always_ready_instances)]
        if flex.always_ready_instances
        else None,
        storage_container_type="blobContainer",
        storage_container_endpoint=storage.container_url,
        storage_authentication_type="UserAssignedIdentity" if keyless else "StorageAccountConnectionString",
        storage_user_assigned_identity_id=identity.id if keyless else None,
        storage_access_key=None if keyless else storage.account.primary_access_key,
        identity=FlexIdentity(type="UserAssigned", identity_ids=[identity.id]),
        https_only=True,
        public_network_access_enabled=not azure.network.private_endpoints,
        virtual_network_subnet_id=network.app_subnet_id if network else None,
        webdeploy_publish_basic_authentication_enabled=False,
        auth_settings_v2=FlexAuthSettings(**authentication) if authentication else None,
        site_config=FlexSiteConfig(
            application_insights_connection_string=insights.connection_string,
            minimum_tls_version="1.2",
            scm_minimum_tls_version="1.2",
            **ip_restrictions(deployment, FlexIpRestriction),
        ),
        app_settings={
            **app_settings,
            environment.WORKER_THREADS: str(flex.threads),
            **(_host_storage(storage, identity) if keyless else {}),
        },
        depends_on=[*after, *(network.endpoints if network else [])],
    )
    if network and azure.network.private_endpoints:
        network.private_endpoint("app", app.id, "sites")
    return HostedApp(app.id, app.name, app.default_hostname, "/api/health", "/api/classify")


def _host_storage(storage: Storage, identity: UserAssignedIdentity) -> dict[str, str]:
    return {
        # The provider adds an AzureWebJobsStorage with an empty key, and the host would not start with it. Its merge
        # ignores case and its read does not: with a lower-case a the value is replaced and no plan shows a change.
        "azureWebJobsStorage": "",
        "AzureWebJobsStorage__accountName": storage.account.name,
        "AzureWebJobsStorage__credential": "managedidentity",
        "AzureWebJobsStorage__clientId": identity.client_id,
    }
