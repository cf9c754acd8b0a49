"""How an endpoint moves to another configuration, and the alarms that move it back (Developer Guide, "Deployment guardrails")."""

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from infra.aws.endpoint_config import VARIANT
from infra.settings import Settings

_PERIOD = cdk.Duration.minutes(1)
# CloudWatch has ModelLatency in microseconds (Developer Guide, "SageMaker AI endpoint invocation metrics").
_MICROSECONDS_IN_A_MILLISECOND = 1000
_NO_GUARDRAILS = "ml.inf1."


class RollbackAlarms(Construct):
    """Three alarms about the variant: answers 5xx, failed invocations, slow answers. No invocation is no reason."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings) -> None:
        super().__init__(scope, construct_id)
        self._dimensions = {"EndpointName": settings.endpoint, "VariantName": VARIANT}
        alarms = settings.hosting.alarms
        self.alarms: list[cloudwatch.IAlarm] = [
            self._alarm(
                "Errors5xx",
                self._metric("Invocation5XXErrors"),
                alarms.errors_5xx,
                minutes=1,
                meaning=f"{alarms.errors_5xx} or more answers 5xx in a minute.",
            ),
            self._alarm(
                "InvocationErrors",
                self._failed_share(queued=settings.hosting.mode == "async"),
                alarms.invocation_errors_percent,
                minutes=2,
                meaning=f"{alarms.invocation_errors_percent} % or more of the invocations failed.",
            ),
            self._alarm(
                "ModelLatency",
                self._metric("ModelLatency", statistic="p95"),
                alarms.model_latency_ms * _MICROSECONDS_IN_A_MILLISECOND,
                minutes=2,
                meaning=f"Of 100 requests 5 take the container {alarms.model_latency_ms} ms or more.",
            ),
        ]

    def _failed_share(self, *, queued: bool) -> cloudwatch.MathExpression:
        """What failed of the invocations, %. An async endpoint publishes neither Invocations nor InvocationModelErrors.

        There each answer sends 1 or 0 to both metrics of errors, so their averages are shares (Developer Guide, "Monitor
        asynchronous endpoint").
        """
        expression = "100 * (client + server)" if queued else "100 * failed / invocations"
        metrics = (
            {
                "client": self._metric("Invocation4XXErrors", statistic="Average"),
                "server": self._metric("Invocation5XXErrors", statistic="Average"),
            }
            if queued
            else {
                "failed": self._metric("InvocationModelErrors"),
                "invocations": self._metric("Invocations"),
            }
        )
        return cloudwatch.MathExpression(
            expression=expression, label="Failed invocations, %", using_metrics=metrics, period=_PERIOD
        )

    def _metric(self, name: str, *, statistic: str = "Sum") -> cloudwatch.Metric:
        return cloudwatch.Metric(
            namespace="AWS/SageMaker",
            metric_name=name,
            dimensions_map=self._dimensions,
            statistic=statistic,
            period=_PERIOD,
        )

    def _alarm(
        self, construct_id: str, metric: cloudwatch.IMetric, threshold: float, *, minutes: int, meaning: str
    ) -> cloudwatch.Alarm:
        return cloudwatch.Alarm(
            self,
            construct_id,
            metric=metric,
            alarm_description=meaning,
            threshold=threshold,
            evaluation_periods=minutes,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )


def deployment_config(
    settings: Settings, alarms: list[cloudwatch.IAlarm]
) -> sagemaker.CfnEndpoint.DeploymentConfigProperty | None:
    """The settings' strategy with its alarms, or None where guardrails do not work: serverless, and Inferentia 1.

    Such an endpoint moves all at once and is not rolled back ("Deployment guardrails, exclusions").
    """
    hosting = settings.hosting
    if hosting.mode == "serverless" or hosting.instance_type.startswith(_NO_GUARDRAILS):
        return None
    endpoint = sagemaker.CfnEndpoint
    rollback = endpoint.AutoRollbackConfigProperty(
        alarms=[endpoint.AlarmProperty(alarm_name=alarm.alarm_name) for alarm in alarms]
    )
    if hosting.rollout.strategy == "rolling":
        return endpoint.DeploymentConfigProperty(
            rolling_update_policy=_rolling(settings), auto_rollback_configuration=rollback
        )
    return endpoint.DeploymentConfigProperty(
        blue_green_update_policy=_blue_green(settings), auto_rollback_configuration=rollback
    )


def _rolling(settings: Settings) -> sagemaker.CfnEndpoint.RollingUpdatePolicyProperty:
    rollout = settings.hosting.rollout
    return sagemaker.CfnEndpoint.RollingUpdatePolicyProperty(
        maximum_batch_size=_share(rollout.step_percent),
        wait_interval_in_seconds=rollout.wait_seconds,
        maximum_execution_timeout_in_seconds=rollout.maximum_execution_timeout_seconds,
    )


def _blue_green(settings: Settings) -> sagemaker.CfnEndpoint.BlueGreenUpdatePolicyProperty:
    """All at once knows no steps: there the alarms watch while the old fleet waits for its end."""
    rollout = settings.hosting.rollout
    kind = {"all-at-once": "ALL_AT_ONCE", "canary": "CANARY", "linear": "LINEAR"}[rollout.strategy]
    step = _share(rollout.step_percent)
    return sagemaker.CfnEndpoint.BlueGreenUpdatePolicyProperty(
        traffic_routing_configuration=sagemaker.CfnEndpoint.TrafficRoutingConfigProperty(
            type=kind,
            wait_interval_in_seconds=0 if kind == "ALL_AT_ONCE" else rollout.wait_seconds,
            canary_size=step if kind == "CANARY" else None,
            linear_step_size=step if kind == "LINEAR" else None,
        ),
        termination_wait_in_seconds=rollout.termination_wait_seconds,
        maximum_execution_timeout_in_seconds=rollout.maximum_execution_timeout_seconds,
    )


def _share(percent: int) -> sagemaker.CfnEndpoint.CapacitySizeProperty:
    return sagemaker.CfnEndpoint.CapacitySizeProperty(type="CAPACITY_PERCENT", value=percent)
