"""Who the app is, and the few things that it may do."""

from infra.azure.deployment import Deployment
from infra.azure.storage import Storage
from infra.azure.telemetry import Telemetry
from infra.azure.terraform import RoleAssignment, UserAssignedIdentity

# The roles that the Functions host needs on its storage account when it has no key.
_HOST_STORAGE_ROLES = {
    "host_blobs": "Storage Blob Data Owner",
    "host_queues": "Storage Queue Data Contributor",
    "host_tables": "Storage Table Data Contributor",
}


class AppIdentity:
    """A user-assigned identity, so that its roles exist before the app starts."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        self.identity = UserAssignedIdentity(
            deployment.stack, "app_identity", **deployment.place, name=deployment.settings.app_identity
        )

    def roles(self, storage: Storage, telemetry: Telemetry) -> list[RoleAssignment]:
        """What the chosen hosting needs, and no more."""
        azure = self._deployment.settings.azure
        if azure.container:
            pull = [("pull_image", "AcrPull", azure.container.registry_id)] if azure.container.registry_id else []
            granted = [("read_release", "Storage Blob Data Reader", storage.container.id), *pull]
        else:
            granted = [("telemetry", "Monitoring Metrics Publisher", telemetry.insights.id)]
            if azure.storage_auth == "identity":
                granted += [(name, role, storage.account.id) for name, role in _HOST_STORAGE_ROLES.items()]
        return [self._role(name, role, scope) for name, role, scope in granted]

    def _role(self, name: str, role: str, scope: str) -> RoleAssignment:
        return RoleAssignment(
            self._deployment.stack,
            name,
            scope=scope,
            role_definition_name=role,
            principal_id=self.identity.principal_id,
            principal_type="ServicePrincipal",
        )
