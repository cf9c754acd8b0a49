"""Every legal mode and layout of the Hosting stack: the whole template as reviewed, and what must hold for each of them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest
from cdk_nag import AwsSolutionsChecks
from syrupy.assertion import SnapshotAssertion

from infra.aws.hosting_grants import HostingGrants
from infra.aws.script_mode import script_mode_key
from tests.aws_stacks import Template, compose_hosting, one, read_templates, resources
from tests.hosting_requests import request_problems
from tests.hosting_variants import CANDIDATE_SHA256, MODES_AND_LAYOUTS, OTHER_IMAGE, PINNED, VARIANTS, variant_settings
from tests.snapshots import TemplateSnapshot, without_asset_hashes
from tests.stack_fixtures import ONNX_SHA256, make_release

Variant = Callable[[str], Path]


@pytest.fixture(scope="module")
def variant(tmp_path_factory: pytest.TempPathFactory) -> Variant:
    """The folder that a variant is synthesized to, with cdk-nag's report; each one once."""
    folders: dict[str, Path] = {}

    def synthesized(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp(name)
            settings = variant_settings(name, folder)
            app = compose_hosting(folder / "out", settings, make_release(settings))
            cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
            try:
                app.synth()
            except RuntimeError:
                assert violations(folder / "out")  # the test about them says which
            folders[name] = folder / "out"
        return folders[name]

    return synthesized


@pytest.fixture(params=VARIANTS)
def name(request: pytest.FixtureRequest) -> str:
    """Each variant in turn."""
    return str(request.param)


@pytest.fixture
def folder(name: str, variant: Variant) -> Path:
    return variant(name)


@pytest.fixture
def hosting(folder: Path) -> Template:
    return read_templates(folder)["Hosting"]


def violations(folder: Path) -> list[dict[str, Any]]:
    reports = json.loads((folder / "validation-report.json").read_bytes())["pluginReports"]
    return [{"plugin": report["pluginName"], **each} for report in reports for each in report["violations"]]


def test_the_stack_is_the_reviewed_one(hosting: Template, name: str, snapshot: SnapshotAssertion) -> None:
    if name == "realtime-pytorch-dlc":
        hosting = without_code_digits(hosting)
    digests = (PINNED, OTHER_IMAGE.split("@")[1])
    kept = frozenset({each.removeprefix("sha256:") for each in digests} | {ONNX_SHA256, CANDIDATE_SHA256, "2d" * 32})
    assert without_asset_hashes(hosting, kept) == snapshot(extension_class=TemplateSnapshot)


def without_code_digits(hosting: Template) -> Template:
    """The archive of AWS's image is named after our code, and model and configuration after the archive."""
    text = json.dumps(hosting)
    for digits in {script_mode_key("any").split("/")[-2], *re.findall(r"-mnist-([0-9a-f]{12})\"", text)}:
        text = text.replace(digits, "<content>")
    document: Template = json.loads(text)
    return document


def test_every_legal_mode_and_layout_is_a_variant() -> None:
    modes = {(VARIANTS[name].get("mode", "realtime"), VARIANTS[name].get("layout", "single")) for name in VARIANTS}
    assert modes == {tuple(name.split("-", 1)) for name in MODES_AND_LAYOUTS}


# What SageMaker, CloudFormation and the rules of others say


def test_sagemaker_would_take_every_request(hosting: Template) -> None:
    assert request_problems(hosting) == []


def test_a_request_that_sagemaker_refuses_is_found(variant: Variant) -> None:
    template = read_templates(variant("realtime-single"))["Hosting"]
    one(template, "AWS::SageMaker::EndpointConfig")["ProductionVariants"][0]["InstanceType"] = "ml.none.large"
    one(template, "AWS::SageMaker::Model")["PrimaryContainer"]["Mode"] = "Single"
    assert len(request_problems(template)) == 2


def test_cfn_lint_finds_nothing(variant: Variant) -> None:
    """One run over all Hosting templates, and over the Foundation of each mode and layout; no rule is left out."""
    templates = [str(variant(name) / "Hosting.template.json") for name in VARIANTS]
    templates += [str(variant(name) / "Foundation.template.json") for name in MODES_AND_LAYOUTS]
    assert cfn_lint(*templates) == []


def test_cfn_lint_finds_a_property_that_does_not_exist(variant: Variant, tmp_path: Path) -> None:
    template = read_templates(variant("realtime-single"))["Hosting"]
    one(template, "AWS::SageMaker::Model")["NetworkIsolation"] = True
    path = tmp_path / "careless.template.json"
    path.write_text(json.dumps(template))
    assert [each["Rule"]["Id"] for each in cfn_lint(str(path))] == ["E3002"]


def cfn_lint(*templates: str) -> list[dict[str, Any]]:
    command = [str(Path(sys.executable).parent / "cfn-lint"), "--format", "json", "--regions", "eu-west-1", "--"]
    finished = subprocess.run([*command, *templates], capture_output=True, text=True, check=False)
    assert not finished.stderr
    findings: list[dict[str, Any]] = json.loads(finished.stdout or "[]")
    return findings


def test_cdk_nag_finds_nothing_that_is_not_acknowledged(folder: Path) -> None:
    assert violations(folder) == []
    reports = json.loads((folder / "validation-report.json").read_bytes())["pluginReports"]
    (nag,) = (report for report in reports if report["pluginName"] == "AwsSolutions")
    assert nag["suppressedViolations"]  # the wildcards of the roles: the rules did look


def test_the_hosting_role_is_granted_what_its_grants_say(folder: Path, name: str) -> None:
    settings = variant_settings(name, folder.parent)
    foundation = read_templates(folder)["Foundation"]
    (role,) = (
        role for role in resources(foundation, "AWS::IAM::Role") if role.get("RoleName", "").split("-")[2] == "hosting"
    )
    (policy,) = role["Policies"]
    granted = [statement["Sid"] for statement in policy["PolicyDocument"]["Statement"]]
    expected = HostingGrants(settings, partition="aws", key_arn="key").hosting()
    assert granted == [grant.sid for grant in expected]


# What none of them knows


def models(template: Template) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Every model, and its containers."""
    for model in resources(template, "AWS::SageMaker::Model"):
        yield model, model.get("Containers") or [model["PrimaryContainer"]]


def test_containers_reach_no_network_unless_they_may(hosting: Template, name: str) -> None:
    isolated = not name.startswith("serverless") and name != "realtime-own-network-open"
    assert {model["EnableNetworkIsolation"] for model, _ in models(hosting)} == {isolated}


def test_every_image_of_ours_and_of_others_is_pinned_by_digest(hosting: Template, name: str) -> None:
    images = [json.dumps(container["Image"]) for _, containers in models(hosting) for container in containers]
    pinned = [image for image in images if re.search(r"@sha256:[0-9a-f]{64}", image)]
    if name == "realtime-pytorch-dlc":
        assert not pinned
        assert images[0].endswith('/pytorch-inference:2.6.0-cpu-py312-ubuntu22.04-sagemaker"]]}')
    else:
        assert pinned == images


def test_what_an_endpoint_stores_is_encrypted_with_our_key(hosting: Template, name: str) -> None:
    """Volumes, captured traffic, answers of async. Local storage and Inferentia's encrypt in hardware and refuse a key."""
    for configuration in resources(hosting, "AWS::SageMaker::EndpointConfig"):
        refuses = name == "realtime-local-storage"
        assert ("KmsKeyId" in configuration) is not refuses
        for place in ("DataCaptureConfig", "AsyncInferenceConfig"):
            stored = configuration.get(place, {})
            assert not stored or "KmsKeyId" in {**stored, **stored.get("OutputConfig", {})}
    for experiment in resources(hosting, "AWS::SageMaker::InferenceExperiment"):
        assert experiment["KmsKey"]
        assert experiment["DataStorageConfig"]["KmsKey"]


def test_every_topic_is_encrypted_and_wants_tls(hosting: Template) -> None:
    topics = resources(hosting, "AWS::SNS::Topic")
    assert all(topic["KmsMasterKeyId"] for topic in topics)
    denied = [
        statement["Condition"]
        for policy in resources(hosting, "AWS::SNS::TopicPolicy")
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Deny"
    ]
    assert denied == [{"Bool": {"aws:SecureTransport": "false"}}] * len(topics)


def test_nothing_of_a_network_is_open_to_the_internet(hosting: Template) -> None:
    kinds = {each["Type"] for each in hosting["Resources"].values()}
    assert not kinds & {"AWS::EC2::InternetGateway", "AWS::EC2::NatGateway", "AWS::EC2::Route", "AWS::EC2::EIP"}
    assert not any(subnet["MapPublicIpOnLaunch"] for subnet in resources(hosting, "AWS::EC2::Subnet"))
    assert not [rule for rule in resources(hosting, "AWS::EC2::SecurityGroupIngress") if "CidrIp" in rule]
    assert all(log["TrafficType"] == "ALL" for log in resources(hosting, "AWS::EC2::FlowLog"))


def test_every_log_group_is_encrypted_and_ends(hosting: Template) -> None:
    for group in resources(hosting, "AWS::Logs::LogGroup"):
        assert group["KmsKeyId"]
        assert group["RetentionInDays"]
