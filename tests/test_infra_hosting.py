"""The Hosting stack, mode by mode and layout by layout: what must never change about it, in sentences."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.aws import endpoint_config, hosting_network
from infra.aws.image import image_tag, image_uri
from infra.aws.training_image import registry_account
from infra.release import Release, ReleaseError
from infra.settings import ROOT, Settings, SettingsError, load_settings
from infra.settings_hosting import HostingSettings
from model_code import environment
from model_code.inference import codecs
from tests.aws_stacks import Template, compose_hosting, one, plain, read_templates, resources
from tests.hosting_requests import deployed
from tests.hosting_variants import CANDIDATE_SHA256, OTHER_IMAGE, PINNED, VARIANTS, hosting_settings, variant_settings
from tests.stack_fixtures import dev_settings, make_release, write_release

RELEASE = make_release(dev_settings())
CANDIDATE = make_release(dev_settings(), CANDIDATE_SHA256)
Variant = Callable[[str], Template]


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The Hosting template of a variant; each one once."""
    templates: dict[str, Template] = {}

    def synthesized(name: str) -> Template:
        if name not in templates:
            folder = tmp_path_factory.mktemp(name)
            templates[name] = template_of(folder / "out", variant_settings(name, folder))
        return templates[name]

    return synthesized


def template_of(folder: Path, settings: Settings, release: Release | None = None) -> Template:
    compose_hosting(folder, settings, release or make_release(settings)).synth()
    return read_templates(folder)["Hosting"]


def pins(release: Release) -> dict[str, str]:
    return {
        environment.RELEASE_ID: release.release_id,
        environment.MODEL_JSON_SHA256: release.model_json.sha256,
    }


def kinds(template: Template) -> set[str]:
    return {each["Type"] for each in template["Resources"].values()}


def configuration(template: Template) -> dict[str, Any]:
    return one(template, "AWS::SageMaker::EndpointConfig")


# Layouts


def test_a_multi_model_endpoint_reads_all_releases_and_pins_none(variant: Variant) -> None:
    container = one(variant("realtime-multi-model"), "AWS::SageMaker::Model")["PrimaryContainer"]
    assert container["Mode"] == "MultiModel"
    assert container["ModelDataUrl"] == f"s3://{dev_settings().artifact_bucket}/releases/"
    assert "Environment" not in container
    # What TargetModel names below that prefix is where `ferry release` puts an archive.
    assert RELEASE.archive.uri == f"{container['ModelDataUrl']}{RELEASE.release_id}/model.tar.gz"


def test_a_multi_container_endpoint_serves_each_release_with_its_own_pins(variant: Variant) -> None:
    model = one(variant("realtime-multi-container"), "AWS::SageMaker::Model")
    assert model["InferenceExecutionConfig"] == {"Mode": "Direct"}
    deployed_here, candidate, translate = model["Containers"]
    assert [each["ContainerHostname"] for each in model["Containers"]] == ["deployed", "candidate", "translate"]
    for container, release in ((deployed_here, RELEASE), (candidate, CANDIDATE)):
        assert container["Environment"] == pins(release)
        assert container["ModelDataUrl"] == release.archive.uri
    assert translate == {"ContainerHostname": "translate", "Image": OTHER_IMAGE}


@pytest.mark.parametrize("name", ["realtime-serial-pipeline", "batch-serial-pipeline"])
def test_a_serial_pipeline_decodes_first_and_predicts_second(name: str, variant: Variant) -> None:
    model = one(variant(name), "AWS::SageMaker::Model")
    assert model["InferenceExecutionConfig"] == {"Mode": "Serial"}
    first, second, *behind = model["Containers"]
    assert (first["ContainerHostname"], second["ContainerHostname"]) == ("preprocess", "model")
    assert first["Environment"] == pins(RELEASE) | {environment.STAGE: "preprocess"}
    assert second["Environment"] == pins(RELEASE)
    assert first["Image"] == second["Image"]
    assert first["ModelDataUrl"] == second["ModelDataUrl"] == RELEASE.archive.uri
    assert [each["Image"] for each in behind] == ([OTHER_IMAGE] if name.startswith("realtime") else [])


def test_awss_image_serves_the_archive_that_a_release_has_for_it(variant: Variant) -> None:
    model = one(variant("realtime-pytorch-dlc"), "AWS::SageMaker::Model")
    container = model["PrimaryContainer"]
    assert model["EnableNetworkIsolation"] is True
    assert container["Environment"]["SAGEMAKER_PROGRAM"] == "inference.py"
    assert pins(RELEASE).items() <= container["Environment"].items()
    prefix = f"s3://{dev_settings().artifact_bucket}/releases/{RELEASE.release_id}/pytorch/"
    assert container["ModelDataUrl"].startswith(prefix)
    assert container["ModelDataUrl"].endswith("/model.tar.gz")
    assert plain(container["Image"]).startswith(f"{registry_account('eu-west-1')}.dkr.ecr.eu-west-1.amazonaws.com/")


# Modes


def test_a_serverless_endpoint_has_memory_and_concurrency_and_no_instance(variant: Variant) -> None:
    template = variant("serverless-scaling")
    (one_variant,) = configuration(template)["ProductionVariants"]
    assert one_variant["ServerlessConfig"] == {
        "MaxConcurrency": 20,
        "MemorySizeInMB": 2048,
        "ProvisionedConcurrency": 2,
    }
    assert not {"InstanceType", "InitialInstanceCount"} & set(one_variant)
    assert "DeploymentConfig" not in one(template, "AWS::SageMaker::Endpoint")
    # One process with one copy of the model, as the Developer Guide asks.
    container = one(template, "AWS::SageMaker::Model")["PrimaryContainer"]
    assert container["Environment"] == pins(RELEASE) | {environment.WORKERS: "1"}


def test_the_container_is_told_how_many_instances_to_join_where_the_settings_say_so(tmp_path: Path) -> None:
    template = template_of(tmp_path, hosting_settings(mode="async", dynamic_batch=1))
    variables = one(template, "AWS::SageMaker::Model")["PrimaryContainer"]["Environment"]
    assert variables[environment.DYNAMIC_BATCH] == "1"
    assert environment.DEADLINE in variables


def test_an_async_endpoint_answers_into_the_bucket_and_tells_two_topics(variant: Variant) -> None:
    template = variant("async-single")
    config = configuration(template)["AsyncInferenceConfig"]
    place = f"s3://{dev_settings().artifact_bucket}/async"
    assert config["ClientConfig"] == {"MaxConcurrentInvocationsPerInstance": 4}
    assert config["OutputConfig"]["S3OutputPath"] == f"{place}/output/"
    assert config["OutputConfig"]["S3FailurePath"] == f"{place}/failure/"
    told = {
        key: template["Resources"][topic["Ref"]]["Properties"]["TopicName"]
        for key, topic in config["OutputConfig"]["NotificationConfig"].items()
    }
    names = {"SuccessTopic": f"{dev_settings().endpoint}-success", "ErrorTopic": f"{dev_settings().endpoint}-error"}
    assert told == names
    assert set(template["Outputs"]) == {
        "AsyncErrorTopic",
        "AsyncSuccessTopic",
        "EndpointName",
        "ModelName",
        "ReleaseId",
    }


@pytest.mark.parametrize("name", ["batch-single", "batch-serial-pipeline"])
def test_for_batch_there_is_a_model_and_nothing_else(name: str, variant: Variant) -> None:
    assert kinds(variant(name)) == {"AWS::SageMaker::Model"}
    assert set(variant(name)["Outputs"]) == {"ModelName", "ReleaseId"}


# Endpoint configuration


def test_data_capture_writes_text_as_text_and_everything_else_as_base64(variant: Variant) -> None:
    capture = configuration(variant("realtime-data-capture"))["DataCaptureConfig"]
    assert capture["EnableCapture"] is True
    assert capture["InitialSamplingPercentage"] == 20
    assert capture["CaptureOptions"] == [{"CaptureMode": "Input"}, {"CaptureMode": "Output"}]
    assert capture["DestinationS3Uri"] == f"s3://{dev_settings().artifact_bucket}/capture/"
    text = {each for each in codecs.DECODERS if each.startswith(("application/json", "text/"))}
    assert text == {*endpoint_config.CSV_TYPES, *endpoint_config.JSON_TYPES}


@pytest.mark.parametrize(("captured", "modes"), [("input", ["Input"]), ("output", ["Output"])])
def test_data_capture_keeps_one_side_where_it_is_told_to(captured: str, modes: list[str], tmp_path: Path) -> None:
    settings = hosting_settings(data_capture={"capture": captured})
    capture = configuration(template_of(tmp_path, settings))["DataCaptureConfig"]
    assert [option["CaptureMode"] for option in capture["CaptureOptions"]] == modes


def test_the_variant_keeps_its_name_in_every_mode(variant: Variant) -> None:
    names = {
        each["VariantName"]
        for name in VARIANTS
        if not name.startswith("batch")
        for each in configuration(variant(name))["ProductionVariants"]
    }
    assert names == {endpoint_config.VARIANT}


def test_the_timeouts_of_the_settings_are_those_of_the_variant(tmp_path: Path) -> None:
    settings = hosting_settings(health_check_timeout_seconds=120, download_timeout_seconds=600)
    (one_variant,) = configuration(template_of(tmp_path, settings))["ProductionVariants"]
    assert one_variant["ContainerStartupHealthCheckTimeoutInSeconds"] == 120
    assert one_variant["ModelDataDownloadTimeoutInSeconds"] == 600


# Names by content


def named(template: Template) -> dict[str, str]:
    keys = {"AWS::SageMaker::Model": "ModelName", "AWS::SageMaker::EndpointConfig": "EndpointConfigName"}
    return {kind: one(template, kind)[key] for kind, key in keys.items()}


@pytest.mark.parametrize(
    ("changes", "changed"),
    [
        ({"alarms": {"errors_5xx": 9}}, set()),
        ({"rollout": {"termination_wait_seconds": 0}}, set()),
        ({"autoscaling": {"max_capacity": 2}}, set()),
        ({"instance_count": 3}, {"AWS::SageMaker::EndpointConfig"}),
        ({"data_capture": {}}, {"AWS::SageMaker::EndpointConfig"}),
        ({"health_check_timeout_seconds": 300}, {"AWS::SageMaker::EndpointConfig"}),
        ({"layout": "serial-pipeline"}, {"AWS::SageMaker::Model", "AWS::SageMaker::EndpointConfig"}),
        ({"network": {"isolation": False}}, {"AWS::SageMaker::Model", "AWS::SageMaker::EndpointConfig"}),
    ],
)
def test_what_changes_gets_a_new_name_and_what_does_not_keeps_its_own(
    changes: dict[str, Any], changed: set[str], variant: Variant, tmp_path: Path
) -> None:
    before = named(variant("realtime-single"))
    after = named(template_of(tmp_path, hosting_settings(image_digest=PINNED, **changes)))
    assert {kind for kind in before if before[kind] != after[kind]} == changed


def test_another_address_range_is_another_model(variant: Variant, tmp_path: Path) -> None:
    """The subnets stand in the model as references, which say nothing about a new range."""
    settings = hosting_settings(image_digest=PINNED, network={"vpc": {"cidr": "10.30.0.0/20"}})
    assert named(template_of(tmp_path, settings)) != named(variant("realtime-own-network"))


def test_the_same_settings_are_the_same_template(variant: Variant, tmp_path: Path) -> None:
    settings = variant_settings("realtime-shadow-experiment", tmp_path)
    assert template_of(tmp_path / "out", settings) == variant("realtime-shadow-experiment")


# Network


def test_a_network_of_its_own_has_two_zones_and_a_way_to_s3_only(variant: Variant) -> None:
    template = variant("realtime-own-network")
    subnets = resources(template, "AWS::EC2::Subnet")
    assert [each["CidrBlock"] for each in subnets] == ["10.20.0.0/21", "10.20.8.0/21"]
    assert [each["AvailabilityZone"] for each in subnets] == [
        {"Fn::Select": [index, {"Fn::GetAZs": ""}]} for index in (0, 1)
    ]
    (gateway,) = resources(template, "AWS::EC2::VPCEndpoint")
    assert gateway["VpcEndpointType"] == "Gateway"
    artifacts, layers = gateway["PolicyDocument"]["Statement"]
    account = {"StringEquals": {"aws:PrincipalAccount": dev_settings().aws.account}}
    assert artifacts["Condition"] == account
    assert {resource.split("/")[0] for resource in artifacts["Resource"]} == {
        f"arn:aws:s3:::{dev_settings().artifact_bucket}"
    }
    assert (layers["Action"], layers["Resource"]) == (
        "s3:GetObject",
        "arn:aws:s3:::prod-eu-west-1-starport-layer-bucket/*",
    )
    (log,) = resources(template, "AWS::EC2::FlowLog")
    (group,) = resources(template, "AWS::Logs::LogGroup")
    assert log["LogDestinationType"] == "cloud-watch-logs"
    assert group["KmsKeyId"]


def test_containers_that_are_not_isolated_reach_awss_services_by_interface(variant: Variant) -> None:
    template = variant("realtime-own-network-open")
    interfaces = [
        each for each in resources(template, "AWS::EC2::VPCEndpoint") if each["VpcEndpointType"] == "Interface"
    ]
    services = {each["ServiceName"].removeprefix("com.amazonaws.eu-west-1.") for each in interfaces}
    assert services == set(hosting_network.INTERFACE_SERVICES)
    assert all(each["PrivateDnsEnabled"] and len(each["SubnetIds"]) == 2 for each in interfaces)
    ingress = one(template, "AWS::EC2::SecurityGroupIngress")
    assert (ingress["IpProtocol"], ingress["FromPort"], ingress["ToPort"]) == ("tcp", 443, 443)


def test_the_model_is_in_the_subnets_of_the_settings(variant: Variant) -> None:
    template = variant("realtime-your-network")
    config = one(template, "AWS::SageMaker::Model")["VpcConfig"]
    assert config == {
        "SecurityGroupIds": ["sg-0a1b2c3d4e5f60718"],
        "Subnets": ["subnet-0a1b2c3d4e5f60718", "subnet-1a1b2c3d4e5f60718"],
    }
    assert not {kind for kind in kinds(template) if kind.startswith("AWS::EC2")}


# Autoscaling


def scaling(template: Template) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The scalable target, and the policies by type."""
    policies = resources(template, "AWS::ApplicationAutoScaling::ScalingPolicy")
    return one(template, "AWS::ApplicationAutoScaling::ScalableTarget"), {each["PolicyType"]: each for each in policies}


def test_a_realtime_endpoint_follows_its_invocations(variant: Variant) -> None:
    target, policies = scaling(variant("realtime-scaling"))
    assert target["ScalableDimension"] == "sagemaker:variant:DesiredInstanceCount"
    assert (target["MinCapacity"], target["MaxCapacity"]) == (1, 4)
    assert deployed(target["ResourceId"], variant("realtime-scaling")) == (
        f"endpoint/{dev_settings().endpoint}/variant/{endpoint_config.VARIANT}"
    )
    (policy,) = policies.values()
    assert policy["TargetTrackingScalingPolicyConfiguration"] == {
        "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
        "ScaleInCooldown": 300,
        "ScaleOutCooldown": 60,
        "TargetValue": 1000,
    }


def test_the_target_is_registered_after_the_endpoint_and_gone_before_it(variant: Variant) -> None:
    for name in ("realtime-scaling", "serverless-scaling", "async-scaling-to-zero"):
        target, _ = scaling(variant(name))
        assert {"Fn::GetAtt": ["Endpoint", "EndpointName"]} in target["ResourceId"]["Fn::Join"][1]


def test_a_serverless_endpoint_scales_its_provisioned_concurrency(variant: Variant) -> None:
    target, policies = scaling(variant("serverless-scaling"))
    assert target["ScalableDimension"] == "sagemaker:variant:DesiredProvisionedConcurrency"
    (policy,) = policies.values()
    tracking = policy["TargetTrackingScalingPolicyConfiguration"]
    assert tracking["PredefinedMetricSpecification"] == {
        "PredefinedMetricType": "SageMakerVariantProvisionedConcurrencyUtilization"
    }
    assert tracking["TargetValue"] == 0.7


def test_an_async_endpoint_goes_to_zero_and_a_waiting_request_brings_it_back(variant: Variant) -> None:
    template = variant("async-scaling-to-zero")
    target, policies = scaling(template)
    assert target["MinCapacity"] == 0
    tracking = policies["TargetTrackingScaling"]["TargetTrackingScalingPolicyConfiguration"]
    assert tracking["CustomizedMetricSpecification"]["MetricName"] == "ApproximateBacklogSizePerInstance"
    assert tracking["TargetValue"] == 5
    assert policies["StepScaling"]["StepScalingPolicyConfiguration"]["StepAdjustments"] == [
        {"MetricIntervalLowerBound": 0, "ScalingAdjustment": 1}
    ]
    (alarm,) = (each["Properties"] for name, each in template["Resources"].items() if name.startswith("ScalingWaiting"))
    assert alarm["MetricName"] == "HasBacklogWithoutCapacity"
    (action,) = alarm["AlarmActions"]
    assert template["Resources"][action["Ref"]]["Properties"] == policies["StepScaling"]
    assert (alarm["EvaluationPeriods"], alarm["Threshold"]) == (2, 1)


def test_an_async_endpoint_that_keeps_an_instance_needs_nobody_to_wake_it(tmp_path: Path) -> None:
    settings = hosting_settings(mode="async", autoscaling={"min_capacity": 1})
    _, policies = scaling(template_of(tmp_path, settings))
    assert set(policies) == {"TargetTrackingScaling"}


# Rollouts


@pytest.mark.parametrize(
    ("name", "routing"),
    [
        ("realtime-single", {"Type": "ALL_AT_ONCE", "WaitIntervalInSeconds": 0}),
        (
            "realtime-canary",
            {
                "Type": "CANARY",
                "WaitIntervalInSeconds": 300,
                "CanarySize": {"Type": "CAPACITY_PERCENT", "Value": 10},
            },
        ),
        (
            "realtime-linear",
            {
                "Type": "LINEAR",
                "WaitIntervalInSeconds": 300,
                "LinearStepSize": {"Type": "CAPACITY_PERCENT", "Value": 50},
            },
        ),
    ],
)
def test_traffic_moves_to_a_second_fleet_as_the_settings_say(
    name: str, routing: dict[str, Any], variant: Variant
) -> None:
    deployment = one(variant(name), "AWS::SageMaker::Endpoint")["DeploymentConfig"]
    assert deployment["BlueGreenUpdatePolicy"] == {
        "TrafficRoutingConfiguration": routing,
        "TerminationWaitInSeconds": 120,
        "MaximumExecutionTimeoutInSeconds": 3600,
    }


def test_a_rolling_update_replaces_batches(variant: Variant) -> None:
    deployment = one(variant("realtime-rolling"), "AWS::SageMaker::Endpoint")["DeploymentConfig"]
    assert deployment["RollingUpdatePolicy"] == {
        "MaximumBatchSize": {"Type": "CAPACITY_PERCENT", "Value": 50},
        "WaitIntervalInSeconds": 300,
        "MaximumExecutionTimeoutInSeconds": 3600,
    }
    assert "BlueGreenUpdatePolicy" not in deployment


@pytest.mark.parametrize("name", ["realtime-single", "realtime-rolling", "async-canary"])
def test_three_alarms_that_are_there_first_roll_an_update_back(name: str, variant: Variant) -> None:
    template = variant(name)
    alarms = one(template, "AWS::SageMaker::Endpoint")["DeploymentConfig"]["AutoRollbackConfiguration"]["Alarms"]
    # A reference to each: CloudFormation makes what is referred to first.
    referred = [template["Resources"][each["AlarmName"]["Ref"]]["Properties"] for each in alarms]
    metrics = {each.get("MetricName", "share") for each in referred}
    assert metrics == {"Invocation5XXErrors", "ModelLatency", "share"}
    assert all(each["TreatMissingData"] == "notBreaching" for each in referred)


def test_latency_is_compared_in_microseconds(tmp_path: Path) -> None:
    template = template_of(tmp_path, hosting_settings(alarms={"model_latency_ms": 250}))
    (alarm,) = (
        each
        for each in resources(template, "AWS::CloudWatch::Alarm")
        if each.get("MetricName") == "ModelLatency" and each.get("ExtendedStatistic") == "p95"
    )
    assert alarm["Threshold"] == 250_000


@pytest.mark.parametrize(
    ("name", "metrics"),
    [
        ("realtime-single", {"InvocationModelErrors", "Invocations"}),
        # Neither of these is published by an async endpoint.
        ("async-single", {"Invocation4XXErrors", "Invocation5XXErrors"}),
    ],
)
def test_the_share_of_failures_is_made_of_metrics_that_the_mode_publishes(
    name: str, metrics: set[str], variant: Variant
) -> None:
    (alarm,) = (
        each["Properties"]
        for identifier, each in variant(name)["Resources"].items()
        if identifier.startswith("RollbackInvocationErrors")
    )
    assert {each["MetricStat"]["Metric"]["MetricName"] for each in alarm["Metrics"] if "MetricStat" in each} == metrics


@pytest.mark.parametrize("name", ["serverless-single", "realtime-inferentia-1"])
def test_what_guardrails_exclude_gets_none_but_its_alarms_stay(name: str, variant: Variant) -> None:
    template = variant(name)
    assert "DeploymentConfig" not in one(template, "AWS::SageMaker::Endpoint")
    assert [identifier for identifier in template["Resources"] if identifier.startswith("RollbackErrors5xx")]


# Shadow tests


def test_a_shadow_variant_gets_its_share_of_copies_of_the_requests(variant: Variant) -> None:
    template = variant("realtime-shadow-variant")
    (production,), (shadow,) = (
        configuration(template)[key] for key in ("ProductionVariants", "ShadowProductionVariants")
    )
    assert (production["InitialVariantWeight"], shadow["InitialVariantWeight"]) == (1, 0.5)
    assert shadow["VariantName"] == endpoint_config.SHADOW_VARIANT
    model = template["Resources"][shadow["ModelName"]["Fn::GetAtt"][0]]["Properties"]
    assert model["PrimaryContainer"]["Environment"] == pins(CANDIDATE)
    assert configuration(template)["DataCaptureConfig"]
    assert "AWS::SageMaker::InferenceExperiment" not in kinds(template)


def test_an_experiment_compares_for_the_time_of_the_settings(variant: Variant) -> None:
    template = variant("realtime-shadow-experiment")
    experiment = one(template, "AWS::SageMaker::InferenceExperiment")
    assert experiment["Schedule"] == {"StartTime": "2026-11-30T08:00:00Z", "EndTime": "2026-12-14T08:00:00Z"}
    assert experiment["ShadowModeConfig"] == {
        "SourceModelVariantName": "AllTraffic",
        "ShadowModelVariants": [{"ShadowModelVariantName": "Shadow", "SamplingPercentage": 50}],
    }
    assert experiment["DataStorageConfig"]["Destination"] == f"s3://{dev_settings().artifact_bucket}/capture/"
    # The endpoint's own configuration is the one to go back to.
    assert "ShadowProductionVariants" not in configuration(template)


def test_without_times_sagemaker_starts_an_experiment_and_ends_it_itself(tmp_path: Path) -> None:
    path = write_release(CANDIDATE, tmp_path / "candidate")
    settings = hosting_settings(shadow={"release": str(path), "form": "experiment"})
    template = template_of(tmp_path / "out", settings)
    assert "Schedule" not in one(template, "AWS::SageMaker::InferenceExperiment")


def test_the_same_release_on_another_instance_type_is_one_model_in_both_variants(tmp_path: Path) -> None:
    path = write_release(RELEASE, tmp_path / "same")
    settings = hosting_settings(shadow={"release": str(path), "instance_type": "ml.m7i.large"})
    template = template_of(tmp_path / "out", settings)
    one(template, "AWS::SageMaker::Model")
    (shadow,) = configuration(template)["ShadowProductionVariants"]
    assert shadow["ModelName"] == configuration(template)["ProductionVariants"][0]["ModelName"]
    assert shadow["InstanceType"] == "ml.m7i.large"


def test_a_shadow_on_local_storage_leaves_the_key_of_the_volumes_out(tmp_path: Path) -> None:
    """One key is for the volumes of all variants, and such a type refuses any."""
    path = write_release(CANDIDATE, tmp_path / "candidate")
    settings = hosting_settings(shadow={"release": str(path), "instance_type": "ml.m5d.large"})
    assert "KmsKeyId" not in configuration(template_of(tmp_path / "out", settings))


# Releases beside the deployed one


def test_a_candidate_of_another_bucket_or_model_is_refused_like_the_release_itself(tmp_path: Path) -> None:
    archive = CANDIDATE.archive.model_copy(update={"uri": "s3://somewhere-else/releases/x/model.tar.gz"})
    path = write_release(CANDIDATE.model_copy(update={"archive": archive}), tmp_path / "candidate")
    settings = hosting_settings(shadow={"release": str(path)})
    with pytest.raises(ReleaseError, match=r"archive\.uri.*ferry release"):
        template_of(tmp_path / "out", settings)
    iris = dev_settings().model.model_copy(update={"name": "iris"})
    write_release(make_release(dev_settings().model_copy(update={"model": iris})), tmp_path / "candidate")
    with pytest.raises(ReleaseError, match=r"'iris'.*serves 'mnist'"):
        template_of(tmp_path / "out", settings)


def test_a_container_may_serve_another_model(tmp_path: Path) -> None:
    iris = dev_settings().model.model_copy(update={"name": "iris"})
    path = write_release(make_release(dev_settings().model_copy(update={"model": iris})), tmp_path / "iris")
    containers = [{"hostname": "mnist"}, {"hostname": "iris", "release": str(path)}]
    template = template_of(tmp_path / "out", hosting_settings(layout="multi-container", containers=containers))
    _, second = one(template, "AWS::SageMaker::Model")["Containers"]
    assert second["Environment"][environment.RELEASE_ID].startswith("iris-")


def test_a_candidate_that_is_not_there_is_named(tmp_path: Path) -> None:
    settings = hosting_settings(shadow={"release": "candidate/nowhere.json"})
    with pytest.raises(ReleaseError, match=r"candidate/nowhere\.json: cannot be read"):
        template_of(tmp_path, settings)


# The image


def with_note(folder: Path, note: object) -> Settings:
    settings = dev_settings().model_copy(update={"build_dir": str(folder)})
    folder.mkdir(exist_ok=True)
    settings.image_path.write_text(note if isinstance(note, str) else json.dumps(note))
    return settings


def test_the_image_is_pinned_by_the_settings_then_by_what_was_pushed_then_by_its_tag(tmp_path: Path) -> None:
    pushed = "sha256:" + "7d" * 32
    settings = with_note(tmp_path, {"tag": image_tag(ROOT), "digest": pushed})
    assert image_uri(settings).endswith(f"@{pushed}")
    assert image_uri(hosting_settings(settings, image_digest=PINNED)).endswith(f"@{PINNED}")
    older = with_note(tmp_path, {"tag": "0" * 64, "digest": pushed})
    assert image_uri(older).endswith(f":{image_tag(ROOT)}")
    older.image_path.unlink()
    assert image_uri(older).endswith(f":{image_tag(ROOT)}")


@pytest.mark.parametrize("note", ["not JSON", "[]", {"tag": "x"}, {"tag": image_tag(ROOT), "digest": "latest"}])
def test_a_note_of_a_pushed_image_that_is_none_is_refused_with_its_path(tmp_path: Path, note: object) -> None:
    settings = with_note(tmp_path, note)
    with pytest.raises(SettingsError, match=r"image\.json: .*(ferry image push|64 hex digits)"):
        image_uri(settings)


# app.py


def run_app(folder: Path, hosting: str) -> subprocess.CompletedProcess[str]:
    """Run app.py for config/dev.toml with `hosting` as its [hosting] table, with a release."""
    path = folder / "dev.toml"
    path.write_text((ROOT / "config" / "dev.toml").read_text() + f"\n[hosting]\n{hosting}\n")
    release = write_release(make_release(load_settings(str(path))), folder / "release")
    variables = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "FERRY_ENV": str(path),
        "CDK_OUTDIR": str(folder / "out"),
        "CDK_CONTEXT_JSON": json.dumps({"release": str(release)}),
    }
    command = [sys.executable, str(ROOT / "app.py"), "aws"]
    return subprocess.run(command, env=variables, cwd=folder, capture_output=True, text=True)


def test_batch_has_no_door(tmp_path: Path) -> None:
    run = run_app(tmp_path, "mode = 'batch'")
    assert run.returncode == 0, run.stderr
    assert not (tmp_path / "out" / "Gateway.template.json").exists()
    assert (tmp_path / "out" / "Hosting.template.json").exists()


def test_awss_image_comes_with_a_word_about_its_end(tmp_path: Path) -> None:
    run = run_app(tmp_path, "image = 'pytorch-dlc'")
    assert run.returncode == 0, run.stderr
    assert "hosting.image is 'pytorch-dlc'" in run.stderr
    assert "2026-06-30" in run.stderr


def test_the_settings_of_every_environment_begin_with_the_default_of_the_table() -> None:
    assert HostingSettings().mode == "realtime"
    assert {load_settings(name).hosting.layout for name in ("dev", "local", "prod")} == {"single"}
