"""Application Auto Scaling of the endpoint's variant: instances, or the provisioned concurrency of a serverless one.

What each mode tracks: SageMaker Developer Guide, "Autoscale an asynchronous endpoint", "Automatically scale provisioned
concurrency", "Automatic scaling". Application Auto Scaling acts with its service-linked role, so no role is named here.
"""

from aws_cdk import aws_applicationautoscaling as scaling
from aws_cdk import aws_cloudwatch as cloudwatch
from constructs import Construct

from infra.aws.endpoint_config import VARIANT
from infra.settings import Settings
from infra.settings_hosting import AutoscalingSettings

_TRACKING = scaling.CfnScalingPolicy.TargetTrackingScalingPolicyConfigurationProperty


class VariantScaling(Construct):
    """A scalable target and its policies.

    `endpoint_name` is a reference to the endpoint: the variant has to exist before it is registered, and the target goes
    before the endpoint does.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        table: AutoscalingSettings,
        endpoint_name: str,
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._table = table
        self._endpoint_name = endpoint_name
        self._target = self._scalable_target()
        self._policy("Tracking", policy_type="TargetTrackingScaling", target_tracking=self._tracking())
        if settings.hosting.mode == "async" and table.min_capacity == 0:
            self._wake()

    def _scalable_target(self) -> scaling.CfnScalableTarget:
        serverless = self._settings.hosting.mode == "serverless"
        dimension = "DesiredProvisionedConcurrency" if serverless else "DesiredInstanceCount"
        return scaling.CfnScalableTarget(
            self,
            "Target",
            service_namespace="sagemaker",
            scalable_dimension=f"sagemaker:variant:{dimension}",
            resource_id=f"endpoint/{self._endpoint_name}/variant/{VARIANT}",
            min_capacity=self._table.min_capacity,
            max_capacity=self._table.max_capacity,
        )

    def _tracking(self) -> scaling.CfnScalingPolicy.TargetTrackingScalingPolicyConfigurationProperty:
        mode, table = self._settings.hosting.mode, self._table
        if mode == "async":
            return self._track(table.backlog_per_instance, backlog=True)
        if mode == "serverless":
            return self._track(
                table.provisioned_concurrency_utilization, "SageMakerVariantProvisionedConcurrencyUtilization"
            )
        return self._track(table.invocations_per_instance, "SageMakerVariantInvocationsPerInstance")

    def _track(self, value: float, predefined: str | None = None, *, backlog: bool = False) -> _TRACKING:
        """Follows one of Application Auto Scaling's own metrics, or the queue of an async endpoint."""
        policy = scaling.CfnScalingPolicy
        return _TRACKING(
            target_value=value,
            predefined_metric_specification=policy.PredefinedMetricSpecificationProperty(
                predefined_metric_type=predefined
            )
            if predefined
            else None,
            customized_metric_specification=policy.CustomizedMetricSpecificationProperty(
                namespace="AWS/SageMaker",
                metric_name="ApproximateBacklogSizePerInstance",
                dimensions=[policy.MetricDimensionProperty(name="EndpointName", value=self._settings.endpoint)],
                statistic="Average",
            )
            if backlog
            else None,
            scale_in_cooldown=self._table.scale_in_cooldown_seconds,
            scale_out_cooldown=self._table.scale_out_cooldown_seconds,
        )

    def _wake(self) -> None:
        """The backlog per instance says nothing without an instance; a request that finds none brings the first one."""
        policy = scaling.CfnScalingPolicy
        wake = self._policy(
            "Wake",
            policy_type="StepScaling",
            steps=policy.StepScalingPolicyConfigurationProperty(
                adjustment_type="ChangeInCapacity",
                metric_aggregation_type="Average",
                cooldown=self._table.scale_out_cooldown_seconds,
                step_adjustments=[policy.StepAdjustmentProperty(metric_interval_lower_bound=0, scaling_adjustment=1)],
            ),
        )
        cloudwatch.CfnAlarm(
            self,
            "Waiting",
            alarm_description="Requests wait and no instance runs: Application Auto Scaling starts one.",
            namespace="AWS/SageMaker",
            metric_name="HasBacklogWithoutCapacity",
            dimensions=[cloudwatch.CfnAlarm.DimensionProperty(name="EndpointName", value=self._settings.endpoint)],
            statistic="Average",
            period=60,
            evaluation_periods=2,
            datapoints_to_alarm=2,
            threshold=1,
            comparison_operator="GreaterThanOrEqualToThreshold",
            treat_missing_data="missing",
            alarm_actions=[wake.ref],
        )

    def _policy(
        self,
        name: str,
        *,
        policy_type: str,
        target_tracking: _TRACKING | None = None,
        steps: scaling.CfnScalingPolicy.StepScalingPolicyConfigurationProperty | None = None,
    ) -> scaling.CfnScalingPolicy:
        return scaling.CfnScalingPolicy(
            self,
            name,
            policy_name=f"{self._settings.endpoint}-{name.lower()}",
            policy_type=policy_type,
            scaling_target_id=self._target.ref,
            target_tracking_scaling_policy_configuration=target_tracking,
            step_scaling_policy_configuration=steps,
        )
