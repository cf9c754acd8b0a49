"""The Azure side: one Function App on the Flex Consumption plan that serves a release from its package.

One `cdktf deploy` ships everything: the package goes up as a blob into the container that the app starts from. What the
real provider makes of each argument (azurerm 4.55.0) decides several of them; those carry their reason.
"""

import hashlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

from infra.azure.terraform import (
    App,
    ApplicationInsights,
    AssetType,
    AzurermBackend,
    AzurermProvider,
    BlobProperties,
    BlobRetention,
    ClientConfig,
    ContainerRetention,
    FunctionAppFlexConsumption,
    FunctionAppIdentity,
    LocalBackend,
    LocalExecProvisioner,
    LogAnalyticsWorkspace,
    ProviderFeatures,
    ResourceGroup,
    RoleAssignment,
    SasPolicy,
    ServicePlan,
    SiteConfig,
    StorageAccount,
    StorageBlob,
    StorageContainer,
    StorageFeatures,
    TerraformAsset,
    TerraformOutput,
    TerraformStack,
    UserAssignedIdentity,
)
from infra.release import Release, ReleaseError
from infra.settings import FUNCTION_PYTHON, Settings
from model_code import environment

# The one blob name that a Flex Consumption app looks for in its deployment container.
PACKAGE_BLOB = "released-package.zip"

_RESOURCE_PROVIDERS = [
    "Microsoft.Insights",
    "Microsoft.ManagedIdentity",
    "Microsoft.OperationalInsights",
    "Microsoft.Storage",
    "Microsoft.Web",
]
# The roles that the Functions host needs on its storage account when it has no key.
_HOST_STORAGE_ROLES = {
    "host_blobs": "Storage Blob Data Owner",
    "host_queues": "Storage Queue Data Contributor",
    "host_tables": "Storage Table Data Contributor",
}
_DELETED_BLOBS_KEPT_DAYS = 7
# Azure takes up to some minutes until a new role assignment reaches the storage data plane, and the upload of a blob is not
# tried again after a 403. A deployment that still comes too early continues where it stopped when it is run again.
_ROLE_PROPAGATION_SECONDS = 120


def synthesize(settings: Settings, release: Release, package: Path) -> None:
    """Write the Terraform JSON and a copy of the package below CDKTF_OUTDIR, or cdktf.out where that is not set.

    Raises ReleaseError when `package` is missing or holds another release than `release`.
    """
    _check_package(package, release)
    app = App(outdir=str(Path(os.environ.get("CDKTF_OUTDIR") or "cdktf.out").resolve()), stack_traces=False)
    FunctionStack(app, settings=settings, release=release, package=package)
    app.synth()


class FunctionStack(TerraformStack):
    """Resource group, storage, package, identity, telemetry and the Function App of one environment."""

    def __init__(self, app: App, *, settings: Settings, release: Release, package: Path) -> None:
        super().__init__(app, settings.stack("azure"))
        self._settings = settings
        self._release = release
        self._package_sha256 = _digest(package, "sha256")
        self._tags = settings.tags | {
            "project": settings.project,
            "environment": settings.environment,
            "release-id": release.release_id,
        }

        self._state()
        self._provider()
        group = self._resource_group()
        account = self._storage_account(group)
        container = self._deployment_container(account)
        blob = self._package_blob(account, container, package)
        identity = self._app_identity(group)
        insights = self._app_insights(group)
        roles = self._app_roles(identity, account, insights)
        function_app = self._function_app(group, account, container, identity, insights, after=[blob, *roles])
        self._outputs(group, function_app)

    @property
    def _keyless(self) -> bool:
        return self._settings.azure.storage_auth == "identity"

    def _state(self) -> None:
        """A file in the repository's folder (git ignores it), or the blob container of a team."""
        state = self._settings.azure.state
        key = f"terraform.{self.node.id}.tfstate"
        if state is None:
            # Relative to cdktf.out/stacks/<stack>, where Terraform runs: cdktf.out itself may be deleted at any time.
            LocalBackend(self, path=f"../../../{key}")
        else:
            AzurermBackend(
                self,
                storage_account_name=state.storage_account,
                container_name=state.container,
                key=key,
                use_azuread_auth=True,
            )

    def _provider(self) -> None:
        """The subscription comes from ARM_SUBSCRIPTION_ID, the credentials from the provider's own sources."""
        AzurermProvider(
            self,
            "azurerm",
            # By default the provider polls the data plane of a new storage account; nobody has a role there yet, so the
            # 403 would fail the deployment and mark the account for replacement.
            features=[ProviderFeatures(storage=[StorageFeatures(data_plane_available=False)])],
            storage_use_azuread=True,
            resource_provider_registrations="none",
            resource_providers_to_register=_RESOURCE_PROVIDERS,
        )

    def _resource_group(self) -> ResourceGroup:
        return ResourceGroup(
            self,
            "resource_group",
            name=self._settings.resource_group,
            location=self._settings.azure.location,
            tags=self._tags,
        )

    def _storage_account(self, group: ResourceGroup) -> StorageAccount:
        return StorageAccount(
            self,
            "storage_account",
            name=self._settings.storage_account,
            resource_group_name=group.name,
            location=group.location,
            account_tier="Standard",
            account_replication_type="LRS",
            shared_access_key_enabled=not self._keyless,
            default_to_oauth_authentication=True,
            allow_nested_items_to_be_public=False,
            https_traffic_only_enabled=True,
            min_tls_version="TLS1_2",
            cross_tenant_replication_enabled=False,
            local_user_enabled=False,
            infrastructure_encryption_enabled=True,
            sas_policy=SasPolicy(expiration_period="00.01:00:00"),
            blob_properties=BlobProperties(
                delete_retention_policy=BlobRetention(days=_DELETED_BLOBS_KEPT_DAYS),
                container_delete_retention_policy=ContainerRetention(days=_DELETED_BLOBS_KEPT_DAYS),
            ),
            tags=self._tags,
        )

    def _deployment_container(self, account: StorageAccount) -> StorageContainer:
        return StorageContainer(
            self,
            "deployment_container",
            name=self._settings.deployment_container,
            storage_account_id=account.id,
            container_access_type="private",
        )

    def _package_blob(self, account: StorageAccount, container: StorageContainer, package: Path) -> StorageBlob:
        """The package, uploaded by whoever deploys: the role for that is part of the deployment.

        Another package replaces the blob. For a moment there is none, which only an instance that starts just then notices;
        soft delete keeps the one before.
        """
        uploads = RoleAssignment(
            self,
            "deployer_blobs",
            scope=container.id,
            role_definition_name="Storage Blob Data Contributor",
            principal_id=ClientConfig(self, "deployer").object_id,
            provisioners=[LocalExecProvisioner(type="local-exec", command=f"sleep {_ROLE_PROPAGATION_SECONDS}")],
        )
        # The hash is ours: CDKTF's own depends on the file's path.
        asset = TerraformAsset(
            self, "package", path=str(package.resolve()), type=AssetType.FILE, asset_hash=self._package_sha256
        )
        return StorageBlob(
            self,
            "package_blob",
            name=PACKAGE_BLOB,
            storage_account_name=account.name,
            storage_container_name=container.name,
            type="Block",
            content_type="application/zip",
            source=asset.path,
            content_md5=_digest(package, "md5"),
            metadata={"release_id": self._release.release_id, "sha256": self._package_sha256},
            depends_on=[uploads],
        )

    def _app_identity(self, group: ResourceGroup) -> UserAssignedIdentity:
        """User-assigned, so that its roles exist before the app starts."""
        return UserAssignedIdentity(
            self,
            "app_identity",
            name=self._settings.app_identity,
            resource_group_name=group.name,
            location=group.location,
            tags=self._tags,
        )

    def _app_insights(self, group: ResourceGroup) -> ApplicationInsights:
        workspace = LogAnalyticsWorkspace(
            self,
            "log_workspace",
            name=self._settings.log_workspace,
            resource_group_name=group.name,
            location=group.location,
            sku="PerGB2018",
            retention_in_days=self._settings.azure.log_retention_days,
            tags=self._tags,
        )
        return ApplicationInsights(
            self,
            "app_insights",
            name=self._settings.app_insights,
            resource_group_name=group.name,
            location=group.location,
            application_type="web",
            workspace_id=workspace.id,
            local_authentication_disabled=True,
            tags=self._tags,
        )

    def _app_roles(
        self, identity: UserAssignedIdentity, account: StorageAccount, insights: ApplicationInsights
    ) -> list[RoleAssignment]:
        granted = [("telemetry", "Monitoring Metrics Publisher", insights.id)]
        if self._keyless:
            granted += [(name, role, account.id) for name, role in _HOST_STORAGE_ROLES.items()]
        return [
            RoleAssignment(
                self,
                name,
                scope=scope,
                role_definition_name=role,
                principal_id=identity.principal_id,
                principal_type="ServicePrincipal",
            )
            for name, role, scope in granted
        ]

    def _function_app(
        self,
        group: ResourceGroup,
        account: StorageAccount,
        container: StorageContainer,
        identity: UserAssignedIdentity,
        insights: ApplicationInsights,
        *,
        after: Sequence[StorageBlob | RoleAssignment],
    ) -> FunctionAppFlexConsumption:
        plan = ServicePlan(
            self,
            "service_plan",
            name=self._settings.service_plan,
            resource_group_name=group.name,
            location=group.location,
            os_type="Linux",
            sku_name="FC1",
            tags=self._tags,
        )
        # Never zip_deploy_file: the provider posts it to an address that Flex Consumption does not have.
        return FunctionAppFlexConsumption(
            self,
            "function_app",
            name=self._settings.function_app,
            resource_group_name=group.name,
            location=group.location,
            service_plan_id=plan.id,
            runtime_name="python",
            runtime_version=FUNCTION_PYTHON,
            instance_memory_in_mb=self._settings.azure.instance_memory_mb,
            maximum_instance_count=self._settings.azure.maximum_instance_count,
            storage_container_type="blobContainer",
            # The endpoint ends in a slash.
            storage_container_endpoint=f"{account.primary_blob_endpoint}{container.name}",
            storage_authentication_type="UserAssignedIdentity" if self._keyless else "StorageAccountConnectionString",
            storage_user_assigned_identity_id=identity.id if self._keyless else None,
            storage_access_key=None if self._keyless else account.primary_access_key,
            identity=FunctionAppIdentity(type="UserAssigned", identity_ids=[identity.id]),
            https_only=True,
            public_network_access_enabled=True,
            webdeploy_publish_basic_authentication_enabled=False,
            site_config=SiteConfig(
                application_insights_connection_string=insights.connection_string,
                minimum_tls_version="1.2",
                scm_minimum_tls_version="1.2",
            ),
            app_settings=self._app_settings(account, identity),
            depends_on=list(after),
            tags=self._tags,
        )

    def _app_settings(self, account: StorageAccount, identity: UserAssignedIdentity) -> dict[str, str]:
        settings = {
            environment.RELEASE_ID: self._release.release_id,
            environment.MODEL_JSON_SHA256: self._release.model_json.sha256,
            environment.PACKAGE_SHA256: self._package_sha256,
            # Inference is bound by the one or two cores of an instance: one thread each, and one that answers health checks.
            "PYTHON_THREADPOOL_THREAD_COUNT": "3" if self._settings.azure.instance_memory_mb == 4096 else "2",
            "APPLICATIONINSIGHTS_AUTHENTICATION_STRING": f"ClientId={identity.client_id};Authorization=AAD",
        }
        if self._keyless:
            settings |= {
                # The provider adds an AzureWebJobsStorage with an empty key, and the host would not start with it. Its merge
                # ignores case and its read does not: with a lower-case a the value is replaced and no plan shows a change.
                "azureWebJobsStorage": "",
                "AzureWebJobsStorage__accountName": account.name,
                "AzureWebJobsStorage__credential": "managedidentity",
                "AzureWebJobsStorage__clientId": identity.client_id,
            }
        return settings

    def _outputs(self, group: ResourceGroup, function_app: FunctionAppFlexConsumption) -> None:
        TerraformOutput(self, "function_url", value=f"https://{function_app.default_hostname}")
        TerraformOutput(self, "function_app_name", value=function_app.name)
        TerraformOutput(self, "resource_group_name", value=group.name)
        TerraformOutput(self, "release_id", value=self._release.release_id)


def _check_package(package: Path, release: Release) -> None:
    again = "build it with `ferry package`"
    try:
        with zipfile.ZipFile(package) as archive:
            packed = archive.read(f"release/{environment.RELEASE_FILE}")
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise ReleaseError(f"{package}: no package that can be read ({error}); {again}") from error
    if packed != release.to_bytes():
        raise ReleaseError(f"{package}: holds another release than {release.release_id}; {again}")


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
