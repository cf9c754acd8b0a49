"""Where logs and metrics go: a Log Analytics workspace, and Application Insights that takes no keys."""

from infra.azure.deployment import Deployment, HostedApp
from infra.azure.storage import Storage
from infra.azure.terraform import (
    ApplicationInsights,
    DiagnosticSetting,
    EnabledLog,
    EnabledMetric,
    LogAnalyticsWorkspace,
    telemetry_without_keys,
)


class Telemetry:
    """One workspace for everything that the deployment says of itself."""

    def __init__(self, deployment: Deployment) -> None:
        self._deployment = deployment
        settings = deployment.settings
        self.workspace = LogAnalyticsWorkspace(
            deployment.stack,
            "log_workspace",
            **deployment.place,
            name=settings.log_workspace,
            sku="PerGB2018",
            local_authentication_enabled=False,
            retention_in_days=settings.azure.log_retention_days,
        )
        self.insights = ApplicationInsights(
            deployment.stack,
            "app_insights",
            **deployment.place,
            name=settings.app_insights,
            application_type="web",
            workspace_id=self.workspace.id,
            **telemetry_without_keys(),
        )

    def diagnostics(self, app: HostedApp, storage: Storage) -> None:
        """What the platform itself records: the host's log, who reads and writes blobs, the metrics of both."""
        function_logs = [] if self._deployment.settings.azure.hosting == "container" else ["FunctionAppLogs"]
        self._diagnostics("app_diagnostics", app.resource_id, function_logs, "AllMetrics")
        self._diagnostics(
            "blob_diagnostics",
            f"{storage.account.id}/blobServices/default",
            ["StorageRead", "StorageWrite", "StorageDelete"],
            "Transaction",
        )

    def _diagnostics(self, name: str, resource_id: str, logs: list[str], metrics: str) -> None:
        DiagnosticSetting(
            self._deployment.stack,
            name,
            name="to-workspace",
            target_resource_id=resource_id,
            log_analytics_workspace_id=self.workspace.id,
            enabled_log=[EnabledLog(category=category) for category in logs] or None,
            enabled_metric=[EnabledMetric(category=metrics)],
        )
