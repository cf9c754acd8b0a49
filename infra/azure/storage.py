"""The storage account of a deployment, and the one blob in it that is the release."""

from typing import Any

from infra.azure.deployment import Deployment
from infra.azure.network import Network
from infra.azure.package import ReleaseFile
from infra.azure.terraform import (
    AssetType,
    BlobProperties,
    BlobRetention,
    ClientConfig,
    ContainerRetention,
    LocalExecProvisioner,
    RoleAssignment,
    SasPolicy,
    StorageAccount,
    StorageBlob,
    StorageContainer,
    StorageNetworkRules,
    TerraformAsset,
    blob_location,
)

_DELETED_BLOBS_KEPT_DAYS = 7
# Azure takes up to some minutes until a new role assignment reaches the storage data plane, and the upload of a blob is not
# tried again after a 403. A deployment that still comes too early continues where it stopped when it is run again.
_ROLE_PROPAGATION_SECONDS = 120


class Storage:
    """Account and deployment container; nothing in them is public, and no key is needed for any of it."""

    def __init__(self, deployment: Deployment, network: Network | None) -> None:
        self._deployment = deployment
        self._network = network
        self._private = deployment.settings.azure.network.private_endpoints
        self.account = self._account()
        self.container = StorageContainer(
            deployment.stack,
            "deployment_container",
            name=deployment.settings.deployment_container,
            storage_account_id=self.account.id,
            container_access_type="private",
        )
        if network and self._private:
            # Queues and tables are the Functions host's.
            services = ["blob"] if deployment.settings.azure.hosting == "container" else ["blob", "queue", "table"]
            for service in services:
                network.private_endpoint(service, self.account.id, service)

    def _account(self) -> StorageAccount:
        keyless = self._deployment.settings.azure.storage_auth == "identity"
        return StorageAccount(
            self._deployment.stack,
            "storage_account",
            **self._deployment.place,
            name=self._deployment.settings.storage_account,
            account_tier="Standard",
            account_replication_type="LRS",
            shared_access_key_enabled=not keyless,
            default_to_oauth_authentication=True,
            allow_nested_items_to_be_public=False,
            https_traffic_only_enabled=True,
            min_tls_version="TLS1_2",
            cross_tenant_replication_enabled=False,
            local_user_enabled=False,
            infrastructure_encryption_enabled=True,
            **self._firewall(),
            sas_policy=SasPolicy(expiration_period="00.01:00:00"),
            blob_properties=BlobProperties(
                delete_retention_policy=BlobRetention(days=_DELETED_BLOBS_KEPT_DAYS),
                container_delete_retention_policy=ContainerRetention(days=_DELETED_BLOBS_KEPT_DAYS),
            ),
        )

    def _firewall(self) -> dict[str, Any]:
        """Closed to everybody outside the virtual network but the deployers that the settings name."""
        if not self._private:
            return {"public_network_access_enabled": True}
        # A single address goes without its prefix length: the account refuses /32.
        deployers = [cidr.removesuffix("/32") for cidr in self._deployment.settings.azure.network.deployer_cidrs]
        rules = StorageNetworkRules(default_action="Deny", bypass=["None"], ip_rules=deployers)
        return {"public_network_access_enabled": bool(deployers), "network_rules": rules}

    def release_blob(self, file: ReleaseFile) -> StorageBlob:
        """The release, uploaded by whoever deploys: the role for that is part of the deployment, unless it is there already.

        Other content replaces the blob. For a moment there is none, which only an instance that starts just then notices;
        soft delete keeps the one before.
        """
        stack = self._deployment.stack
        # The hash is ours: CDKTF's own depends on the file's path.
        asset = TerraformAsset(
            stack, "package", path=str(file.path.resolve()), type=AssetType.FILE, asset_hash=file.sha256
        )
        return StorageBlob(
            stack,
            "package_blob",
            name=file.blob_name,
            **blob_location(self.account, self.container),
            type="Block",
            content_type=file.content_type,
            source=asset.path,
            content_md5=file.md5,
            metadata={"release_id": self._deployment.release.release_id, "sha256": file.sha256},
            depends_on=[*self._deployer_role(), *(self._network.endpoints if self._network else [])],
        )

    def _deployer_role(self) -> list[RoleAssignment]:
        if not self._deployment.settings.azure.grant_deployer:
            return []
        stack = self._deployment.stack
        return [
            RoleAssignment(
                stack,
                "deployer_blobs",
                scope=self.container.id,
                role_definition_name="Storage Blob Data Contributor",
                principal_id=ClientConfig(stack, "deployer").object_id,
                provisioners=[LocalExecProvisioner(type="local-exec", command=f"sleep {_ROLE_PROPAGATION_SECONDS}")],
            )
        ]

    @property
    def container_url(self) -> str:
        """Without a slash at its end; the endpoint of an account has one."""
        return f"{self.account.primary_blob_endpoint}{self.container.name}"
