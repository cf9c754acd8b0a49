"""The Azure side: the released model behind one app, whatever hosts it.

One `cdktf deploy` ships everything: the release goes up as a blob into the container that the app starts from. What the
real provider makes of each argument (azurerm 4.55.0) decides several of them; those carry their reason.
"""

import os
import sys
from pathlib import Path

from infra.azure.alerts import Alerts
from infra.azure.deployment import Deployment, HostedApp
from infra.azure.identity import AppIdentity
from infra.azure.network import Network
from infra.azure.package import Package, ReleaseFile, read_archive, read_package
from infra.azure.storage import Storage
from infra.azure.telemetry import Telemetry
from infra.azure.terraform import (
    App,
    AzurermBackend,
    AzurermProvider,
    LocalBackend,
    ProviderFeatures,
    ResourceGroup,
    ResourceGroupFeatures,
    RoleAssignment,
    S3Backend,
    StorageBlob,
    StorageFeatures,
    TemplateDeploymentFeatures,
    TerraformOutput,
    TerraformResourceLifecycle,
    TerraformStack,
)
from infra.release import Release
from infra.settings import Settings
from model_code import environment


def synthesize(settings: Settings, release: Release, package: Path) -> None:
    """Write the Terraform JSON and a copy of the released file below CDKTF_OUTDIR, or cdktf.out where that is not set.

    `package` is what `ferry package` built, or for hosting = "container" the release's own archive. Raises ReleaseError when
    it is missing or holds another release than `release`. An app that asks nobody who they are is warned of on stderr.
    """
    file = read_archive(package, release) if settings.azure.container else read_package(package, release)
    if settings.azure.door == "anonymous":
        print(
            "warning: azure.authorization is 'anonymous': whoever knows the app's address may ask it for inferences, at your "
            "cost; 'entra' lets nobody in without a token",
            file=sys.stderr,
        )
    app = App(outdir=str(Path(os.environ.get("CDKTF_OUTDIR") or "cdktf.out").resolve()), stack_traces=False)
    AzureStack(app, settings=settings, release=release, file=file)
    app.synth()


class AzureStack(TerraformStack):
    """Resource group, storage, identity, telemetry, alerts, and the app of one environment."""

    def __init__(self, app: App, *, settings: Settings, release: Release, file: ReleaseFile) -> None:
        super().__init__(app, settings.stack("azure"))
        self._settings = settings
        self._release = release

        self._state()
        self._provider()
        deployment = self._deployment()
        network = Network(deployment) if settings.azure.virtual_network else None
        storage = Storage(deployment, network)
        blob = storage.release_blob(file)
        identity = AppIdentity(deployment)
        telemetry = Telemetry(deployment)
        after: list[StorageBlob | RoleAssignment] = [blob, *identity.roles(storage, telemetry)]
        hosted = self._host(deployment, file, storage, identity, telemetry, network, after)
        telemetry.diagnostics(hosted, storage)
        Alerts(deployment, telemetry, hosted)
        self._outputs(deployment, hosted)

    def _state(self) -> None:
        """A file in the repository's folder (git ignores it), or the container or bucket of a team."""
        state = self._settings.azure.state
        key = f"terraform.{self.node.id}.tfstate"
        if state is None:
            # Relative to cdktf.out/stacks/<stack>, where Terraform runs: cdktf.out itself may be deleted at any time.
            LocalBackend(self, path=f"../../../{key}")
        elif state.storage_account and state.container:
            AzurermBackend(
                self,
                storage_account_name=state.storage_account,
                container_name=state.container,
                key=key,
                use_azuread_auth=True,
            )
        elif state.bucket and state.region:
            S3Backend(self, bucket=state.bucket, region=state.region, key=key, encrypt=True)
            # The kit is older than the bucket's own lock (Terraform 1.10, OpenTofu 1.10).
            self.add_override("terraform.backend.s3.use_lockfile", True)

    def _provider(self) -> None:
        """The credentials come from the provider's own sources, and without a setting the subscription does, too."""
        AzurermProvider(
            self,
            "azurerm",
            features=[
                ProviderFeatures(
                    resource_group=[ResourceGroupFeatures(prevent_deletion_if_contains_resources=True)],
                    # By default the provider polls the data plane of a new storage account; nobody has a role there yet, so
                    # the 403 would fail the deployment and mark the account for replacement.
                    storage=[StorageFeatures(data_plane_available=False)],
                    # What such a deployment made goes with the app that it belongs to.
                    template_deployment=[TemplateDeploymentFeatures(delete_nested_items_during_deletion=False)],
                )
            ],
            subscription_id=self._settings.azure.subscription_id,
            storage_use_azuread=True,
            resource_provider_registrations="none",
            resource_providers_to_register=self._resource_providers(),
        )

    def _resource_providers(self) -> list[str]:
        azure = self._settings.azure
        wanted = {"Insights", "ManagedIdentity", "OperationalInsights", "Storage"}
        wanted |= {"App"} if azure.hosting == "container" else {"Web"}
        # A Flex Consumption app enters a network through a subnet that belongs to Microsoft.App.
        wanted |= {"App", "Network"} if azure.virtual_network else set()
        wanted |= {"Consumption"} if azure.budget else set()
        return sorted(f"Microsoft.{name}" for name in wanted)

    def _deployment(self) -> Deployment:
        settings = self._settings
        tags = settings.tags | {"project": settings.project, "environment": settings.environment}
        imported = settings.azure.import_resource_group
        group = ResourceGroup(
            self,
            "resource_group",
            name=settings.resource_group,
            location=settings.azure.location,
            tags=tags,
            # Another location would replace the group, and everything that was in it before us.
            lifecycle=TerraformResourceLifecycle(ignore_changes=["location", "tags"]) if imported else None,
        )
        if imported:
            # Not the kit's import_from: it asks a terraform binary for its version while it synthesizes.
            group_id = f"/subscriptions/{settings.azure.subscription_id}/resourceGroups/{settings.resource_group}"
            self.add_override("import", {"to": "azurerm_resource_group.resource_group", "id": group_id})
        return Deployment(self, settings, self._release, group, tags)

    def _host(
        self,
        deployment: Deployment,
        file: ReleaseFile,
        storage: Storage,
        identity: AppIdentity,
        telemetry: Telemetry,
        network: Network | None,
        after: list[StorageBlob | RoleAssignment],
    ) -> HostedApp:
        """Each way of hosting is imported where it is chosen: the bindings of one take a second to load."""
        if isinstance(file, Package):
            app_settings = self._app_settings(identity, file)
            if self._settings.azure.hosting == "flex":
                from infra.azure.flex import flex_app

                return flex_app(
                    deployment,
                    storage=storage,
                    identity=identity.identity,
                    insights=telemetry.insights,
                    network=network,
                    app_settings=app_settings,
                    after=after,
                )
            from infra.azure.premium import premium_app

            assert network is not None, "the premium plan always has one"
            return premium_app(
                deployment,
                account=storage.account,
                package_url=f"{storage.container_url}/{file.blob_name}",
                identity=identity.identity,
                insights=telemetry.insights,
                network=network,
                app_settings=app_settings,
                after=after,
            )
        from infra.azure.container import container_app

        return container_app(
            deployment,
            archive_url=f"{storage.container_url}/{file.blob_name}",
            identity=identity.identity,
            workspace=telemetry.workspace,
            network=network,
            after=after,
        )

    def _app_settings(self, identity: AppIdentity, package: Package) -> dict[str, str]:
        """What every Function App of ours is told; of these only the first changes with the model."""
        return {
            environment.RELEASE_ID: self._release.release_id,
            environment.CODE_SHA256: package.code_sha256,
            environment.AUTHORIZATION: self._settings.azure.door,
            "APPLICATIONINSIGHTS_AUTHENTICATION_STRING": f"ClientId={identity.identity.client_id};Authorization=AAD",
        }

    def _outputs(self, deployment: Deployment, app: HostedApp) -> None:
        TerraformOutput(self, "function_url", value=f"https://{app.host}")
        TerraformOutput(self, "function_app_name", value=app.name)
        TerraformOutput(self, "resource_group_name", value=deployment.group.name)
        TerraformOutput(self, "release_id", value=self._release.release_id)
