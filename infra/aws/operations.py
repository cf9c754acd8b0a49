"""Who is told when the endpoint is not well, and one page that shows how it is.

Metrics and their dimensions: SageMaker Developer Guide, "Amazon SageMaker AI metrics in Amazon CloudWatch", "Alarms and logs
for tracking metrics" from serverless and from asynchronous endpoints. Latencies are in microseconds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from constructs import Construct

from infra.aws.endpoint_config import VARIANT
from infra.settings import Settings

INVOCATIONS, INSTANCES = "AWS/SageMaker", "/aws/sagemaker/Endpoints"
MINUTE = cdk.Duration.minutes(1)
# Shares of what an instance has that are too much for minutes on end, %.
HIGH_UTILIZATION = 90
HIGH_MINUTES = 5
# An autoscaled endpoint that has no instance starts one within minutes; longer, and something keeps it from that.
WITHOUT_CAPACITY_MINUTES = 15
# How many times the time that one request may take the oldest one may wait.
LATE_FACTOR = 2
# SageMaker's sizes: two cores for medium and large, four for xlarge, 4 n for the nxlarge.
_SIZE = re.compile(r"\.(?:(medium|large)|(\d*)xlarge)$")


@dataclass(frozen=True)
class Watch:
    """One operational alarm: `metric` at or over `threshold` for `minutes` minutes on end."""

    name: str
    metric: cloudwatch.IMetric
    threshold: float
    minutes: int
    meaning: str


class Operations(Construct):
    """An encrypted topic that all alarms tell, the operational alarms of the hosting mode, and a dashboard.

    No alarm is about silence: an endpoint that nobody calls, or that is scaled to zero, is well. `alarms` are those that
    roll an update back.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        endpoint_name: str,
        key: kms.IKey,
        alarms: Sequence[cloudwatch.IAlarm],
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._endpoint_name = endpoint_name
        self.topic = self._topic(key)
        for alarm in (*alarms, *map(self._alarm, self._watches())):
            assert isinstance(alarm, cloudwatch.AlarmBase)
            alarm.add_alarm_action(actions.SnsAction(self.topic))
        self._dashboard()

    def _topic(self, key: kms.IKey) -> sns.Topic:
        """A policy of its own replaces the one that lets every service of the account publish, so it names CloudWatch."""
        topic = sns.Topic(self, "Topic", topic_name=self._settings.alarm_topic, master_key=key, enforce_ssl=True)
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                sid="AlarmsPublish",
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                actions=["sns:Publish"],
                resources=[topic.topic_arn],
                conditions={"StringEquals": {"aws:SourceAccount": self._settings.aws.account}},
            )
        )
        for email in self._settings.hosting.alarms.emails:
            topic.add_subscription(subscriptions.EmailSubscription(email))
        return topic

    def _alarm(self, watch: Watch) -> cloudwatch.Alarm:
        return cloudwatch.Alarm(
            self,
            watch.name,
            metric=watch.metric,
            alarm_description=watch.meaning,
            threshold=watch.threshold,
            evaluation_periods=watch.minutes,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )

    def _watches(self) -> list[Watch]:
        memory = self._instance("MemoryUtilization")
        watches = [
            Watch(
                "Memory", memory, HIGH_UTILIZATION, HIGH_MINUTES, "The containers use nearly all memory of an instance."
            )
        ]
        if self._settings.hosting.mode == "serverless":
            return [*watches, *self._serverless_watches()]
        cores = instance_cores(self._settings.hosting.instance_type)
        if cores:
            cpu = self._instance("CPUUtilization")
            threshold = HIGH_UTILIZATION * cores  # the metric is the sum over the cores
            watches.append(
                Watch("Cpu", cpu, threshold, HIGH_MINUTES, "The containers use nearly all cores of an instance.")
            )
        disk = self._instance("DiskUtilization")
        watches.append(Watch("Disk", disk, HIGH_UTILIZATION, HIGH_MINUTES, "The disk of an instance is nearly full."))
        return [*watches, *(self._async_watches() if self._settings.hosting.mode == "async" else [])]

    def _serverless_watches(self) -> list[Watch]:
        used = self._invocation("ServerlessConcurrentExecutionsUtilization", "Maximum")
        watches = [
            Watch("Throttled", used, 1, HIGH_MINUTES, "max_concurrency is used up; further requests are answered 429.")
        ]
        if self._settings.hosting.serverless.provisioned_concurrency:
            spilled = self._invocation("ServerlessProvisionedConcurrencySpilloverInvocations", "Sum")
            meaning = "Requests go past the provisioned concurrency, and some of them start cold."
            watches.append(Watch("Spillover", spilled, 1, HIGH_MINUTES, meaning))
        return watches

    def _async_watches(self) -> list[Watch]:
        seconds = LATE_FACTOR * self._settings.hosting.async_inference.invocation_timeout_seconds
        return [
            Watch(
                "Failures",
                self._invocation("InvocationFailures", "Sum"),
                self._settings.hosting.alarms.errors_5xx,
                1,
                "Requests failed; what came of each lies below async/failure/ in the artifacts bucket.",
            ),
            Watch(
                "Backlog",
                self._queue("ApproximateAgeOfOldestRequest"),
                seconds,
                HIGH_MINUTES,
                "A request waits longer than twice the time that one may take: too few instances, or none that works.",
            ),
            Watch(
                "NoCapacity",
                self._queue("HasBacklogWithoutCapacity"),
                1,
                WITHOUT_CAPACITY_MINUTES,
                "Requests wait, and the endpoint has no instance and gets none.",
            ),
        ]

    def _variant_metric(self, namespace: str, name: str, statistic: str, label: str | None = None) -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace=namespace,
            metric_name=name,
            dimensions_map={"EndpointName": self._endpoint_name, "VariantName": VARIANT},
            statistic=statistic,
            period=MINUTE,
            label=label,
        )

    def _instance(self, name: str, statistic: str = "Average") -> cloudwatch.Metric:
        return self._variant_metric(INSTANCES, name, statistic)

    def _invocation(self, name: str, statistic: str, label: str | None = None) -> cloudwatch.Metric:
        return self._variant_metric(INVOCATIONS, name, statistic, label)

    def _queue(self, name: str) -> cloudwatch.Metric:
        """The queue is the endpoint's and not a variant's."""
        return cloudwatch.Metric(
            namespace=INVOCATIONS,
            metric_name=name,
            dimensions_map={"EndpointName": self._endpoint_name},
            statistic="Maximum",
            period=MINUTE,
        )

    def _dashboard(self) -> None:
        """Dashboards are global in an account, so that the name carries the region, as a role's does."""
        mode = self._settings.hosting.mode
        graphs = [
            *([] if mode == "async" else [self._graph("Invocations", [self._invocation("Invocations", "Sum")])]),
            self._graph(
                "Errors of the container",
                [self._invocation(f"Invocation{kind}Errors", "Sum") for kind in ("4XX", "5XX")],
            ),
            self._graph("Model latency, µs", self._percentiles("ModelLatency")),
            *([] if mode == "async" else [self._graph("Overhead latency, µs", self._percentiles("OverheadLatency"))]),
            *(self._async_graphs() if mode == "async" else []),
            *(self._serverless_graphs() if mode == "serverless" else self._instance_graphs()),
            self._gateway_graph(),
        ]
        cloudwatch.Dashboard(
            self,
            "Dashboard",
            dashboard_name=f"{self._endpoint_name}-{self._settings.aws.region}",
            widgets=[graphs[index : index + 2] for index in range(0, len(graphs), 2)],
        )

    def _percentiles(self, name: str) -> list[cloudwatch.IMetric]:
        return [self._invocation(name, statistic, statistic) for statistic in ("p50", "p95", "p99")]

    def _instance_graphs(self) -> list[cloudwatch.IWidget]:
        names = ("CPUUtilization", "MemoryUtilization", "DiskUtilization")
        return [self._graph("Instances, %; CPU is the sum over the cores", [self._instance(name) for name in names])]

    def _serverless_graphs(self) -> list[cloudwatch.IWidget]:
        metrics = [self._invocation("ServerlessConcurrentExecutionsUtilization", "Maximum")]
        if self._settings.hosting.serverless.provisioned_concurrency:
            metrics += [
                self._invocation("ServerlessProvisionedConcurrencyUtilization", "Maximum"),
                self._invocation("ServerlessProvisionedConcurrencySpilloverInvocations", "Sum"),
            ]
        return [
            self._graph("Concurrency", metrics),
            self._graph("Cold starts, µs", [self._invocation("ModelSetupTime", "Maximum")]),
            self._graph("Memory, %", [self._instance("MemoryUtilization", "Maximum")]),
        ]

    def _async_graphs(self) -> list[cloudwatch.IWidget]:
        failures = ("InvocationFailures", "ExpiredRequests")
        return [
            self._graph(
                "Requests that wait",
                [
                    self._queue(name)
                    for name in (
                        "ApproximateBacklogSize",
                        "ApproximateBacklogSizePerInstance",
                        "HasBacklogWithoutCapacity",
                    )
                ],
            ),
            self._graph("Wait of the oldest request, s", [self._queue("ApproximateAgeOfOldestRequest")]),
            self._graph("Requests that failed", [self._invocation(name, "Sum") for name in failures]),
        ]

    def _gateway_graph(self) -> cloudwatch.IWidget:
        metrics = [
            cloudwatch.Metric(
                namespace="AWS/ApiGateway",
                metric_name=name,
                dimensions_map={"ApiName": self._settings.prefix},
                statistic="Sum",
                period=MINUTE,
            )
            for name in ("Count", "4XXError", "5XXError")
        ]
        return self._graph("Gateway", metrics)

    @staticmethod
    def _graph(title: str, metrics: Sequence[cloudwatch.IMetric]) -> cloudwatch.GraphWidget:
        return cloudwatch.GraphWidget(title=title, left=list(metrics), width=12)


def instance_cores(instance_type: str) -> int | None:
    """Virtual CPUs of an instance type, read off its size; None for a size that does not say."""
    found = _SIZE.search(instance_type)
    if not found:
        return None
    return 2 if found[1] else 4 * int(found[2] or 1)
