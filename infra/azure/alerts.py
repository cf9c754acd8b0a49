"""Who is told, and of what: server errors, slow answers, silence, money."""

from infra.azure.deployment import Deployment, HostedApp
from infra.azure.telemetry import Telemetry
from infra.azure.terraform import (
    ActionGroup,
    AlertAction,
    AlertCriteria,
    AlertDimension,
    Budget,
    BudgetNotification,
    BudgetPeriod,
    EmailReceiver,
    MetricAlert,
    QueryAlert,
    QueryAlertAction,
    QueryAlertCriteria,
    QueryAlertPeriods,
    StandardWebTest,
    WebTestRequest,
    WebTestValidation,
)

_PROBE_SECONDS = 300
# Names of Azure's test locations: West Europe, East US, Southeast Asia.
_PROBE_LOCATIONS = ["emea-nl-ams-azr", "us-va-ash-azr", "apac-sg-sin-azr"]


class Alerts:
    """The action group and every rule that calls it."""

    def __init__(self, deployment: Deployment, telemetry: Telemetry, app: HostedApp) -> None:
        self._deployment = deployment
        self._telemetry = telemetry
        self._app = app
        self._settings = deployment.settings.azure
        self._group = self._action_group()

        probed = self._availability_test()
        if self._settings.hosting == "container":
            self._container_answers()
            self._silence(telemetry.workspace.id, f'AzureMetrics | where ResourceId =~ "{app.resource_id}"')
        else:
            self._function_answers()
            # Without a probe an idle Flex Consumption app runs nowhere, and its silence means nothing.
            if probed or self._settings.hosting == "premium":
                self._silence(telemetry.insights.id, "union requests, availabilityResults")
        self._budget()

    def _action_group(self) -> ActionGroup:
        settings = self._deployment.settings
        return ActionGroup(
            self._deployment.stack,
            "action_group",
            name=settings.action_group,
            resource_group_name=self._deployment.group.name,
            short_name=settings.environment[:12],
            email_receiver=[
                EmailReceiver(name=f"email-{index}", email_address=address, use_common_alert_schema=True)
                for index, address in enumerate(self._settings.alerts.emails)
            ]
            or None,
            tags=dict(self._deployment.tags),
        )

    def _availability_test(self) -> bool:
        """Ask for the app's health from outside, where outside can reach it; says whether it does."""
        network = self._settings.network
        shut_out = self._settings.door == "internal" or network.private_endpoints
        # The ingress of a container app knows addresses only, and no tag that stands for Azure's probes.
        if shut_out or (self._settings.hosting == "container" and network.allowed_cidrs):
            return False
        StandardWebTest(
            self._deployment.stack,
            "availability_test",
            **self._deployment.place,
            name=f"availability-{self._deployment.settings.prefix}",
            application_insights_id=self._telemetry.insights.id,
            geo_locations=_PROBE_LOCATIONS,
            frequency=_PROBE_SECONDS,
            timeout=30,
            enabled=True,
            retry_enabled=True,
            request=WebTestRequest(url=f"https://{self._app.host}{self._app.health}"),
            validation_rules=WebTestValidation(expected_status_code=200, ssl_check_enabled=True),
        )
        return True

    def _function_answers(self) -> None:
        """Application Insights' own metrics: the plans' metrics do not tell 5xx apart on Flex Consumption."""
        namespace, scope = "microsoft.insights/components", self._telemetry.insights.id
        server_errors = AlertCriteria(
            metric_namespace=namespace,
            metric_name="requests/count",
            aggregation="Count",
            operator="GreaterThan",
            threshold=self._settings.alerts.server_errors,
            dimension=[AlertDimension(name="request/resultCode", operator="StartsWith", values=["5"])],
            skip_metric_validation=True,  # a new component has no metrics yet
        )
        slow = AlertCriteria(
            metric_namespace=namespace,
            metric_name="requests/duration",
            aggregation="Average",
            operator="GreaterThan",
            threshold=self._settings.alerts.latency_ms,
            skip_metric_validation=True,
        )
        self._answers(scope, server_errors, slow)

    def _container_answers(self) -> None:
        namespace = "Microsoft.App/containerApps"
        server_errors = AlertCriteria(
            metric_namespace=namespace,
            metric_name="Requests",
            aggregation="Total",
            operator="GreaterThan",
            threshold=self._settings.alerts.server_errors,
            dimension=[AlertDimension(name="statusCodeCategory", operator="Include", values=["5xx"])],
        )
        slow = AlertCriteria(
            metric_namespace=namespace,
            metric_name="ResponseTime",
            aggregation="Average",
            operator="GreaterThan",
            threshold=self._settings.alerts.latency_ms,
        )
        self._answers(self._app.resource_id, server_errors, slow)

    def _answers(self, scope: str, server_errors: AlertCriteria, slow: AlertCriteria) -> None:
        self._metric_alert("server_errors", scope, server_errors, "PT5M", "Answers of 500 and above")
        self._metric_alert("latency", scope, slow, "PT15M", "The average answer is slow")

    def _metric_alert(self, name: str, scope: str, criteria: AlertCriteria, window: str, description: str) -> None:
        MetricAlert(
            self._deployment.stack,
            f"{name}_alert",
            name=f"{name.replace('_', '-')}-{self._deployment.settings.prefix}",
            resource_group_name=self._deployment.group.name,
            scopes=[scope],
            description=description,
            severity=1,
            frequency="PT1M",
            window_size=window,
            criteria=[criteria],
            action=[AlertAction(action_group_id=self._group.id)],
            tags=dict(self._deployment.tags),
        )

    def _silence(self, scope: str, query: str) -> None:
        """A query, because a metric that nobody sends raises no metric alert."""
        QueryAlert(
            self._deployment.stack,
            "no_data_alert",
            **self._deployment.place,
            name=f"no-data-{self._deployment.settings.prefix}",
            description="Nothing was heard of the app for 30 minutes",
            scopes=[scope],
            severity=1,
            evaluation_frequency="PT15M",
            window_duration="PT30M",
            criteria=[
                QueryAlertCriteria(
                    query=query,
                    time_aggregation_method="Count",
                    operator="LessThan",
                    threshold=1,
                    # What Azure takes where it is left out, so that no plan shows the difference.
                    failing_periods=QueryAlertPeriods(
                        minimum_failing_periods_to_trigger_alert=1, number_of_evaluation_periods=1
                    ),
                )
            ],
            auto_mitigation_enabled=True,
            action=QueryAlertAction(action_groups=[self._group.id]),
        )

    def _budget(self) -> None:
        budget = self._settings.budget
        if budget is None:
            return
        Budget(
            self._deployment.stack,
            "budget",
            name=self._deployment.settings.budget,
            resource_group_id=self._deployment.group.id,
            amount=budget.amount,
            time_grain="Monthly",
            time_period=BudgetPeriod(start_date=f"{budget.start.isoformat()}T00:00:00Z"),
            notification=[
                self._notification(80, "Actual"),
                self._notification(100, "Forecasted"),
            ],
        )

    def _notification(self, percent: int, kind: str) -> BudgetNotification:
        return BudgetNotification(
            operator="GreaterThan", threshold=percent, threshold_type=kind, contact_groups=[self._group.id]
        )
