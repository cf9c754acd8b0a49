"""What callers see at the door: answers 5xx, and how long they wait."""

import aws_cdk as cdk
from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as actions
from aws_cdk import aws_sns as sns

from infra.settings import Settings

# What a caller waits for beside the model, ms: SageMaker's and API Gateway's part, which a cold start of serverless makes
# seconds. An async endpoint only takes the request.
OVERHEAD_MS = {"realtime": 250, "serverless": 5000, "async": 1000}


def gateway_alarms(api: apigateway.RestApi, settings: Settings, *, topic: sns.ITopic) -> None:
    """Two alarms that tell `topic`. Silence is no alarm: a door that nobody opens is not broken."""
    alarms, mode = settings.hosting.alarms, settings.hosting.mode
    model_ms = 0 if mode == "async" else alarms.model_latency_ms
    minute = cdk.Duration.minutes(1)
    for construct_id, metric, threshold, minutes, meaning in (
        (
            "Errors",
            api.deployment_stage.metric_server_error(statistic="Sum", period=minute),
            alarms.errors_5xx,
            1,
            "Callers got 5xx from the API; its access log says from where.",
        ),
        (
            "Latency",
            api.deployment_stage.metric_latency(statistic="p95", period=minute),
            model_ms + OVERHEAD_MS[mode],
            5,
            "Callers wait longer than the model and its way may take.",
        ),
    ):
        alarm = cloudwatch.Alarm(
            api,
            construct_id,
            metric=metric,
            alarm_description=meaning,
            threshold=threshold,
            evaluation_periods=minutes,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
        )
        alarm.add_alarm_action(actions.SnsAction(topic))
