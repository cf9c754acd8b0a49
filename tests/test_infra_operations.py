"""Alarms, their topic and the dashboard, by hosting mode."""

import json
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import aws_cloudwatch as cloudwatch
from cdk_nag import AwsSolutionsChecks

from infra.aws.foundation import FoundationStack
from infra.aws.operations import Operations, instance_cores
from infra.aws.stack import EnvironmentStack
from infra.settings import Settings
from infra.settings_hosting import HostingSettings
from tests.aws_stacks import Template, one, plain, resources
from tests.gateway_stacks import app_in
from tests.nag import nag_reports
from tests.stack_fixtures import dev_settings

EMAILS = ["first@example.com", "second@example.com"]
MODES: dict[str, dict[str, Any]] = {
    "realtime": {},
    "serverless": {"mode": "serverless"},
    "provisioned": {"mode": "serverless", "serverless": {"provisioned_concurrency": 2}},
    "async": {"mode": "async"},
}
# What each mode is watched for, beside the alarm that rolls back.
WATCHED = {
    "realtime": {"MemoryUtilization", "CPUUtilization", "DiskUtilization"},
    "serverless": {"MemoryUtilization", "ServerlessConcurrentExecutionsUtilization"},
    "provisioned": {
        "MemoryUtilization",
        "ServerlessConcurrentExecutionsUtilization",
        "ServerlessProvisionedConcurrencySpilloverInvocations",
    },
    "async": {
        "MemoryUtilization",
        "CPUUtilization",
        "DiskUtilization",
        "InvocationFailures",
        "ApproximateAgeOfOldestRequest",
        "HasBacklogWithoutCapacity",
    },
}
# "The metrics below are an exhaustive list" (Developer Guide, alarms and logs of asynchronous and of serverless endpoints).
UNPUBLISHED = {
    "async": {"Invocations", "OverheadLatency"},
    "serverless": {"CPUUtilization", "DiskUtilization"},
    "provisioned": {"CPUUtilization", "DiskUtilization"},
    "realtime": set[str](),
}


def mode_settings(mode: str, **changes: Any) -> Settings:
    hosting = HostingSettings.model_validate({**MODES[mode], **changes, "alarms": {"emails": EMAILS}})
    return dev_settings().model_copy(update={"hosting": hosting})


def compose(folder: Path, settings: Settings) -> cdk.App:
    app = app_in(folder)
    foundation = FoundationStack(app, "Foundation", settings=settings)
    stack = EnvironmentStack(app, "Hosting", settings=settings, purpose="hosting", description="-")
    metric = cloudwatch.Metric(namespace="AWS/SageMaker", metric_name="Invocation5XXErrors")
    rollback = cloudwatch.Alarm(stack, "Rollback", metric=metric, threshold=1, evaluation_periods=1)
    Operations(
        stack, "Operations", settings=settings, endpoint_name=settings.endpoint, key=foundation.key, alarms=[rollback]
    )
    return app


def synthesize(folder: Path, settings: Settings) -> dict[str, Template]:
    compose(folder, settings).synth()
    return {name: json.loads((folder / f"{name}.template.json").read_bytes()) for name in ("Foundation", "Hosting")}


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Template]]:
    return {mode: synthesize(tmp_path_factory.mktemp(mode), mode_settings(mode)) for mode in MODES}


def alarms_of(templates: dict[str, dict[str, Template]], mode: str) -> dict[str, dict[str, Any]]:
    """By metric, without the alarm that rolls back."""
    alarms = {each["MetricName"]: each for each in resources(templates[mode]["Hosting"], "AWS::CloudWatch::Alarm")}
    return {name: each for name, each in alarms.items() if name != "Invocation5XXErrors"}


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_is_watched_for_what_can_go_wrong_in_it(templates: dict[str, dict[str, Template]], mode: str) -> None:
    assert alarms_of(templates, mode).keys() == WATCHED[mode]


@pytest.mark.parametrize("mode", MODES)
def test_every_alarm_tells_the_topic_the_ones_that_roll_back_included(
    templates: dict[str, dict[str, Template]], mode: str
) -> None:
    template = templates[mode]["Hosting"]
    (topic,) = (name for name, each in template["Resources"].items() if each["Type"] == "AWS::SNS::Topic")
    alarms = resources(template, "AWS::CloudWatch::Alarm")
    assert len(alarms) == len(WATCHED[mode]) + 1
    assert [each["AlarmActions"] for each in alarms] == [[{"Ref": topic}]] * len(alarms)


@pytest.mark.parametrize("mode", MODES)
def test_silence_is_no_alarm(templates: dict[str, dict[str, Template]], mode: str) -> None:
    for alarm in alarms_of(templates, mode).values():
        assert alarm["TreatMissingData"] == "notBreaching"
        assert alarm["ComparisonOperator"] == "GreaterThanOrEqualToThreshold"


def test_all_cores_together_are_measured_against_all_cores(tmp_path: Path) -> None:
    settings = mode_settings("realtime", instance_type="ml.c6i.2xlarge")
    alarms = resources(synthesize(tmp_path, settings)["Hosting"], "AWS::CloudWatch::Alarm")
    (cpu,) = (each for each in alarms if each["MetricName"] == "CPUUtilization")
    assert cpu["Threshold"] == 8 * 90


@pytest.mark.parametrize(
    ("instance_type", "cores"),
    [
        ("ml.t2.medium", 2),
        ("ml.c6i.large", 2),
        ("ml.m5.xlarge", 4),
        ("ml.g4dn.12xlarge", 48),
        ("ml.p4d.24xlarge", 96),
        ("ml.x1.metal", None),
    ],
)
def test_the_size_of_an_instance_says_its_cores(instance_type: str, cores: int | None) -> None:
    assert instance_cores(instance_type) == cores


def test_an_instance_of_a_size_that_says_nothing_has_no_cpu_alarm(tmp_path: Path) -> None:
    settings = mode_settings("realtime", instance_type="ml.x1.metal")
    alarms = resources(synthesize(tmp_path, settings)["Hosting"], "AWS::CloudWatch::Alarm")
    assert "CPUUtilization" not in {each["MetricName"] for each in alarms}


def test_the_oldest_async_request_may_wait_twice_as_long_as_one_takes(
    templates: dict[str, dict[str, Template]],
) -> None:
    alarm = alarms_of(templates, "async")["ApproximateAgeOfOldestRequest"]
    assert alarm["Threshold"] == 2 * dev_settings().hosting.async_inference.invocation_timeout_seconds
    assert [each["Name"] for each in alarm["Dimensions"]] == ["EndpointName"]


# Topic


def test_the_topic_is_encrypted_wants_tls_and_lets_only_alarms_of_this_account_publish(
    templates: dict[str, dict[str, Template]],
) -> None:
    template = templates["realtime"]["Hosting"]
    topic = one(template, "AWS::SNS::Topic")
    assert topic["TopicName"] == dev_settings().alarm_topic
    assert plain(topic["KmsMasterKeyId"]).startswith("arn:aws:kms:")
    statements = one(template, "AWS::SNS::TopicPolicy")["PolicyDocument"]["Statement"]
    by_effect = {each["Effect"]: each for each in statements}
    assert len(statements) == 2
    assert by_effect["Deny"]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert by_effect["Allow"]["Principal"] == {"Service": "cloudwatch.amazonaws.com"}
    assert by_effect["Allow"]["Condition"] == {"StringEquals": {"aws:SourceAccount": dev_settings().aws.account}}


def test_alarms_may_use_the_key_of_the_topic(templates: dict[str, dict[str, Template]]) -> None:
    """Without this an alarm changes its state and nobody hears of it."""
    statements = one(templates["realtime"]["Foundation"], "AWS::KMS::Key")["KeyPolicy"]["Statement"]
    (statement,) = (each for each in statements if each["Principal"] == {"Service": "cloudwatch.amazonaws.com"})
    assert set(statement["Action"]) == {"kms:Decrypt", "kms:GenerateDataKey*"}
    assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": dev_settings().aws.account}}


def test_everybody_in_the_settings_is_told_by_mail(templates: dict[str, dict[str, Template]]) -> None:
    subscriptions = resources(templates["realtime"]["Hosting"], "AWS::SNS::Subscription")
    assert {(each["Protocol"], each["Endpoint"]) for each in subscriptions} == {("email", email) for email in EMAILS}


# Dashboard


@pytest.mark.parametrize("mode", MODES)
def test_the_dashboard_shows_what_the_mode_publishes_and_nothing_else(
    templates: dict[str, dict[str, Template]], mode: str
) -> None:
    dashboard = one(templates[mode]["Hosting"], "AWS::CloudWatch::Dashboard")
    assert dashboard["DashboardName"] == f"{dev_settings().endpoint}-{dev_settings().aws.region}"
    parts = dashboard["DashboardBody"]["Fn::Join"][1]
    body = json.loads("".join(part if isinstance(part, str) else dev_settings().aws.region for part in parts))
    metrics = [metric for widget in body["widgets"] for metric in widget["properties"]["metrics"]]
    shown = {metric[1] for metric in metrics}
    assert shown >= {"Invocation4XXErrors", "Invocation5XXErrors", "ModelLatency", "Count", "5XXError"}
    assert shown >= WATCHED[mode]
    assert not shown & UNPUBLISHED[mode]
    percentiles = {metric[-1]["stat"] for metric in metrics if metric[1] == "ModelLatency"}
    assert percentiles == {"p50", "p95", "p99"}


@pytest.mark.parametrize("mode", MODES)
def test_cdk_nag_finds_nothing(tmp_path: Path, mode: str) -> None:
    app = compose(tmp_path, mode_settings(mode))
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    app.synth()
    (report,) = (each for each in nag_reports(tmp_path) if each["pluginName"] == "AwsSolutions")
    assert report["violations"] == []
