"""The AWS stacks: what must never change about them, in sentences. Their whole templates are in test_infra_snapshots.py."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import aws_cdk as cdk
import pytest
from aws_cdk import aws_s3 as s3
from cdk_nag import AwsSolutionsChecks

from infra.aws import image, image_build, training
from infra.aws.image import image_tag, training_image_tag
from infra.aws.instance_types import volume_key
from infra.aws.source_bundle import source_bundle
from infra.aws.sources import SERVING_SOURCES, TRAINING_IMAGE_SOURCES, digest, read_sources, without_comments
from infra.aws.training_image import training_image
from infra.release import ReleaseError
from infra.settings import ROOT, Settings, SettingsError, TrainingSettings, load_settings
from model_code import environment
from tests.aws_stacks import STACKS, Template, compose, one, plain, resources, synthesize
from tests.nag import acknowledged, nag_reports
from tests.pipeline_checks import problems, resolved
from tests.stack_fixtures import dev_settings, make_release, write_release

Run = subprocess.CompletedProcess[str]
KEEPERS = ("AWS::KMS::Key", "AWS::S3::Bucket", "AWS::ECR::Repository", "AWS::Logs::LogGroup")


def with_hosting(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"hosting": settings.hosting.model_copy(update=changes)})


def with_training(**changes: Any) -> Settings:
    return dev_settings().model_copy(update={"training": TrainingSettings(**changes)})


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    settings = dev_settings()
    return synthesize(tmp_path_factory.mktemp("cdk.out"), settings, make_release(settings))


# app.py as the CDK CLI calls it


def run_app(folder: Path, cloud: str = "aws", *, seed: str = "0", ferry_env: str = "dev", **context: str) -> Run:
    """Run app.py with nothing in its environment but what is given here: no credentials, no region, no home."""
    variables = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}/usr/bin{os.pathsep}/bin",
        "PYTHONHASHSEED": seed,
        "FERRY_ENV": ferry_env,
        "CDK_OUTDIR": str(folder),
        "CDK_CONTEXT_JSON": json.dumps(context),
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "app.py"), cloud], cwd=folder.parent, env=variables, capture_output=True, text=True
    )


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_synths_are_the_same_bytes(tmp_path: Path) -> None:
    release = write_release(make_release(dev_settings()), tmp_path / "release")
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda seed: run_app(tmp_path / seed, seed=seed, release=str(release)), ("1", "2")))
    assert [run.returncode for run in runs] == [0, 0], runs[0].stderr
    first, second = files(tmp_path / "1"), files(tmp_path / "2")
    assert first == second
    assert {f"{stack}.template.json" for stack in STACKS} <= set(first)
    machine = {str(ROOT).encode(), str(tmp_path).encode()}
    assert not [name for name, content in first.items() for path in machine if path in content]


def test_without_a_release_hosting_and_gateway_wait_and_say_for_what(tmp_path: Path) -> None:
    settings = tmp_path / "fresh.toml"
    settings.write_text(f'build_dir = "{tmp_path}/build"\n' + (ROOT / "config" / "dev.toml").read_text())
    run = run_app(tmp_path / "out", ferry_env=str(settings))
    assert run.returncode == 0, run.stderr
    assert "Hosting and Gateway wait for a release" in run.stderr
    assert "ferry release" in run.stderr
    templates = {path.name for path in (tmp_path / "out").glob("*.template.json")}
    assert templates == {f"{stack}.template.json" for stack in ("Foundation", "Image", "Training")}


def test_the_environment_of_the_context_wins_over_ferry_env(tmp_path: Path) -> None:
    run = run_app(tmp_path / "out", ferry_env="no-such-environment", env="dev", release="nowhere.json")
    assert run.returncode == 2
    assert run.stderr.startswith("nowhere.json: cannot be read")


@pytest.mark.parametrize(
    ("cloud", "release", "reason"),
    [
        ("aws", "{}", "/release_id"),
        ("aws", "not JSON", "not a release.json"),
        ("aws", None, "make it with `ferry release`"),
        ("azure", None, "make it with `ferry release`"),
        ("gcp", None, "usage: python app.py aws|azure"),
    ],
)
def test_what_cannot_be_deployed_stops_before_anything_is_synthesized(
    tmp_path: Path, cloud: str, release: str | None, reason: str
) -> None:
    path = tmp_path / "release.json"
    if release is not None:
        path.write_text(release)
    settings = tmp_path / "fresh.toml"
    settings.write_text(f'build_dir = "{tmp_path}/build"\n' + (ROOT / "config" / "dev.toml").read_text())
    run = run_app(tmp_path / "out", cloud, ferry_env=str(settings), release=str(path))
    assert run.returncode == 2
    assert reason in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.glob("out/*"))


def test_bad_settings_stop_before_anything_is_synthesized(tmp_path: Path) -> None:
    settings = tmp_path / "typo.toml"
    settings.write_text((ROOT / "config" / "dev.toml").read_text().replace("region", "regoin"))
    run = run_app(tmp_path / "out", ferry_env=str(settings))
    assert run.returncode == 2
    assert "did you mean 'region'?" in run.stderr
    assert "Traceback" not in run.stderr
    assert not list(tmp_path.glob("out/*"))


# Policies


def grants(template: Template, purpose: str) -> dict[str, dict[str, Any]]:
    """The statements of one role, by Sid."""
    (role,) = (
        role for role in resources(template, "AWS::IAM::Role") if role.get("RoleName", "").split("-")[2] == purpose
    )
    (policy,) = role["Policies"]
    return {statement["Sid"]: statement for statement in policy["PolicyDocument"]["Statement"]}


def test_there_are_seven_roles_and_none_has_a_policy_that_aws_manages(templates: dict[str, Template]) -> None:
    roles = resources(templates["Foundation"], "AWS::IAM::Role")
    purposes = {role["RoleName"].split("-")[2] for role in roles}
    assert purposes == set(GRANTS)
    assert not [role for role in roles if "ManagedPolicyArns" in role]


def test_services_take_the_roles_for_this_account_only(templates: dict[str, Template]) -> None:
    for role in resources(templates["Foundation"], "AWS::IAM::Role"):
        (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
        # API Gateway does not send aws:SourceAccount when it takes an integration's role.
        if statement["Principal"] != {"Service": "apigateway.amazonaws.com"}:
            assert statement["Condition"] == {"StringEquals": {"aws:SourceAccount": dev_settings().aws.account}}


def test_the_hosting_role_reads_only_released_archives(templates: dict[str, Template]) -> None:
    statements = grants(templates["Foundation"], "hosting")
    assert statements["ReadReleases"]["Resource"] == f"arn:aws:s3:::{dev_settings().artifact_bucket}/releases/*"
    touching_s3 = [sid for sid, each in statements.items() if "s3:" in json.dumps(each["Action"])]
    assert touching_s3 == ["ReadReleases"]


@pytest.mark.parametrize("purpose", ["training", "evaluation"])
def test_the_roles_of_the_jobs_write_only_training_output(templates: dict[str, Template], purpose: str) -> None:
    statements = grants(templates["Foundation"], purpose)
    writes = [each["Resource"] for each in statements.values() if "s3:Put" in json.dumps(each["Action"])]
    assert writes == [f"arn:aws:s3:::{dev_settings().artifact_bucket}/training/*"]


DATASET = {"ListDataset", "ReadDataset"}
OUTPUT = {"WriteOutput", "UseKeyThroughS3", "EncryptOutput"}
CONTAINER = {"EncryptVolume", "PullImage", "LogInToRegistry", "WriteLogs", "PutMetrics"}
READ_OUTPUT = {"ListTrainingOutput", "ReadTrainingOutput"}
GRANTS = {
    "training": DATASET | OUTPUT | CONTAINER | {"ListOnce", "ReadOnce"},
    "evaluation": DATASET | READ_OUTPUT | OUTPUT | CONTAINER,
    "pipeline": {"RunJobs", "CreateCandidate", "Register", "UseKeyThroughS3", "PassJobRoles"} | READ_OUTPUT,
    "hosting": {"ReadReleases", "UseKeyThroughS3"} | CONTAINER,
    "gateway": {"InvokeEndpoint", "DescribeEndpoint"},
    "build": {"PushImages", "LogInToRegistry", "UseKey"},
    "trigger": {"StartPipeline"},
}


def test_every_role_is_granted_exactly_this(templates: dict[str, Template]) -> None:
    assert {purpose: set(grants(templates["Foundation"], purpose)) for purpose in GRANTS} == GRANTS


def test_what_is_switched_on_in_the_settings_is_granted_and_no_more(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "model_code" / "training" / "mnist" / "preprocess.py").write_text("# makes both channels\n")
    monkeypatch.setattr(training, "ROOT", checkout)
    settings = with_training(checkpoints=True, preprocess=True, schedule="rate(7 days)")
    foundation = synthesize(tmp_path / "out", settings, None)["Foundation"]
    expected = GRANTS | {
        "training": GRANTS["training"] | READ_OUTPUT | {"ListCheckpoints", "KeepCheckpoints"},
        "schedule": {"StartPipeline"},
    }
    assert {purpose: set(grants(foundation, purpose)) for purpose in expected} == expected
    statements = grants(foundation, "training")
    output = f"arn:aws:s3:::{settings.artifact_bucket}/training"
    assert statements["ReadTrainingOutput"]["Resource"] == f"{output}/*/preprocess/*"
    assert statements["KeepCheckpoints"]["Resource"] == f"{output}/*/checkpoints*"


def test_the_pipeline_role_makes_only_what_is_named_after_pipelines_and_registers_only_in_its_group(
    templates: dict[str, Template],
) -> None:
    statements = grants(templates["Foundation"], "pipeline")
    jobs = {resource.rsplit(":", 1)[1] for resource in statements["RunJobs"]["Resource"]}
    assert jobs == {f"{kind}-job/pipelines-*" for kind in ("training", "processing", "transform")}
    verbs = {action.removeprefix("sagemaker:") for action in statements["RunJobs"]["Action"]}
    assert verbs == {"AddTags"} | {
        f"{verb}{kind}Job"
        for verb in ("Create", "Describe", "Stop")
        for kind in ("Training", "Processing", "Transform")
    }
    assert statements["CreateCandidate"]["Resource"].endswith(":model/pipelines-*")
    group = dev_settings().model_package_group
    registered = {resource.rsplit(":", 1)[1] for resource in statements["Register"]["Resource"]}
    assert registered == {f"model-package-group/{group}", f"model-package/{group}/*"}


def test_our_own_training_image_is_pulled_from_our_own_repository(tmp_path: Path) -> None:
    settings = with_training(image="own")
    templates = synthesize(tmp_path, settings, None)
    pulled = grants(templates["Foundation"], "training")["PullImage"]["Resource"]
    assert pulled.endswith(f":111122223333:repository/{settings.training_repository}")
    assert "AWS::IAM::Policy" not in {each["Type"] for each in templates["Training"]["Resources"].values()}
    definition = definition_of(templates["Training"])
    assert problems(definition) == []
    image_of_job = resolved(definition, "Train")["AlgorithmSpecification"]["TrainingImage"]
    assert image_of_job.endswith(f"/{settings.training_repository}:{training_image_tag(ROOT)}")


def test_the_trigger_role_starts_one_pipeline_and_nothing_else(templates: dict[str, Template]) -> None:
    (statement,) = grants(templates["Foundation"], "trigger").values()
    assert statement["Action"] == "sagemaker:StartPipelineExecution"
    assert statement["Resource"].endswith(f":pipeline/{dev_settings().pipeline}")


def test_the_pipeline_role_passes_the_roles_of_its_jobs_to_sagemaker_only(templates: dict[str, Template]) -> None:
    statement = grants(templates["Foundation"], "pipeline")["PassJobRoles"]
    passed = [resource["Fn::GetAtt"][0] for resource in statement["Resource"]]
    assert [name.startswith(role) for name, role in zip(passed, ("RolesTraining", "RolesEvaluation"), strict=True)]
    assert statement["Condition"] == {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}


@pytest.mark.parametrize(
    "changes",
    [{}, {"image": "own", "checkpoints": True, "schedule": "rate(7 days)"}],
    ids=["default", "with what the settings can add"],
)
def test_d20_cdk_nag_finds_nothing_that_is_not_acknowledged(tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = with_training(**changes)
    app = compose(tmp_path, settings, make_release(settings))
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    app.synth()
    (report,) = (each for each in nag_reports(tmp_path) if each["pluginName"] == "AwsSolutions")
    assert report["violations"] == []
    # Every acknowledgement silences a finding: proof that the rules looked, and that none outlived its finding.
    found = {(each["acknowledgedAt"], each["acknowledgedId"]) for each in report["suppressedViolations"]}
    assert found == acknowledged(tmp_path)
    assert {path.split("/")[0] for path, _ in found} == {"Foundation", "Training", "Gateway"}


def test_d20_cdk_nag_refuses_a_bucket_that_anybody_may_read_without_tls(tmp_path: Path) -> None:
    app = cdk.App(auto_synth=False, outdir=str(tmp_path))
    s3.Bucket(cdk.Stack(app, "Careless"), "Bucket")
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    with pytest.raises(RuntimeError, match="alidation"):
        app.synth()
    (report,) = (each for each in nag_reports(tmp_path) if each["pluginName"] == "AwsSolutions")
    assert {each["ruleName"] for each in report["violations"]} >= {"AwsSolutions-S1", "AwsSolutions-S10"}


# Foundation


def test_every_bucket_is_versioned_private_encrypted_and_wants_tls(templates: dict[str, Template]) -> None:
    foundation = templates["Foundation"]
    buckets = resources(foundation, "AWS::S3::Bucket")
    assert {bucket["BucketName"] for bucket in buckets} == {
        dev_settings().data_bucket,
        dev_settings().artifact_bucket,
        dev_settings().log_bucket,
    }
    for bucket in buckets:
        assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
        (encryption,) = bucket["BucketEncryption"]["ServerSideEncryptionConfiguration"]
        algorithm = encryption["ServerSideEncryptionByDefault"]["SSEAlgorithm"]
        # S3 delivers access logs only where it owns the encryption.
        assert algorithm == ("AES256" if bucket["BucketName"] == dev_settings().log_bucket else "aws:kms")
    policies = resources(foundation, "AWS::S3::BucketPolicy")
    denials = [s for p in policies for s in p["PolicyDocument"]["Statement"] if s["Effect"] == "Deny"]
    assert [each["Condition"] for each in denials] == [{"Bool": {"aws:SecureTransport": "false"}}] * 3


def test_releases_never_expire(templates: dict[str, Template]) -> None:
    (artifacts,) = (
        bucket
        for bucket in resources(templates["Foundation"], "AWS::S3::Bucket")
        if bucket["BucketName"] == dev_settings().artifact_bucket
    )
    expiring = [
        rule
        for rule in artifacts["LifecycleConfiguration"]["Rules"]
        if {"ExpirationInDays", "NoncurrentVersionExpiration"} & set(rule)
    ]
    assert [rule["Prefix"] for rule in expiring] == ["training/", "async/", "batch/", "capture/"]
    days = {rule["Prefix"]: rule["ExpirationInDays"] for rule in expiring}
    kept = dev_settings().aws.log_retention_days
    assert days == {"training/": 180, "async/": kept, "batch/": kept, "capture/": kept}


def test_no_stack_brings_a_function_of_its_own(templates: dict[str, Template]) -> None:
    kinds = {each["Type"] for template in templates.values() for each in template["Resources"].values()}
    assert not [kind for kind in kinds if kind.startswith(("AWS::Lambda", "Custom::", "AWS::CloudFormation::Custom"))]


@pytest.mark.parametrize(("environment_name", "policy"), [("dev", "Delete"), ("prod", "RetainExceptOnCreate")])
def test_retain_data_decides_what_survives_the_stacks(tmp_path: Path, environment_name: str, policy: str) -> None:
    settings = load_settings(environment_name)
    templates = synthesize(tmp_path, settings, make_release(settings))
    policies = {
        each["DeletionPolicy"]
        for template in templates.values()
        for each in template["Resources"].values()
        if each["Type"] in KEEPERS
    }
    assert policies == {policy}
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    protected = manifest["artifacts"]["Foundation"]["properties"].get("terminationProtection", False)
    assert protected is settings.aws.retain_data


def test_every_stack_is_tagged_and_the_served_release_is_one_of_the_tags(tmp_path: Path) -> None:
    settings = dev_settings()
    release = make_release(settings)
    synthesize(tmp_path, settings, release)
    artifacts = json.loads((tmp_path / "manifest.json").read_bytes())["artifacts"]
    common = settings.tags | {"project": settings.project, "environment": settings.environment}
    released = common | {"release-id": release.release_id}
    tags = {stack: artifacts[stack]["properties"]["tags"] for stack in STACKS}
    before = dict.fromkeys(("Foundation", "Image", "Training"), common)
    assert tags == {**before, "Hosting": released, "Gateway": released}


def test_stacks_depend_on_each_other_in_one_direction(tmp_path: Path) -> None:
    settings = dev_settings()
    synthesize(tmp_path, settings, make_release(settings))
    artifacts = json.loads((tmp_path / "manifest.json").read_bytes())["artifacts"]
    depends = {stack: {name for name in artifacts[stack]["dependencies"] if name in STACKS} for stack in STACKS}
    assert depends == {
        "Foundation": set(),
        "Image": {"Foundation"},
        "Training": {"Foundation"},
        "Hosting": {"Foundation"},
        "Gateway": {"Foundation", "Hosting"},
    }


# Training


def definition_of(training: Template) -> dict[str, Any]:
    """The pipeline as SageMaker reads it out of the deployed template."""
    body = one(training, "AWS::SageMaker::Pipeline")["PipelineDefinition"]["PipelineDefinitionBody"]
    definition: dict[str, Any] = json.loads(plain(body))
    return definition


@pytest.fixture(scope="module")
def definition(templates: dict[str, Template]) -> dict[str, Any]:
    return definition_of(templates["Training"])


@pytest.fixture(scope="module")
def training_job(definition: dict[str, Any]) -> dict[str, Any]:
    return resolved(definition, "Train")


def test_sagemaker_would_take_the_deployed_definition(definition: dict[str, Any]) -> None:
    assert problems(definition) == []


def test_the_training_job_reads_both_channels_of_its_dataset(training_job: dict[str, Any]) -> None:
    sources = {each["ChannelName"]: each["DataSource"]["S3DataSource"] for each in training_job["InputDataConfig"]}
    dataset = f"s3://{dev_settings().data_bucket}/datasets/mnist"
    assert {name: (source["S3DataType"], source["S3Uri"]) for name, source in sources.items()} == {
        "training": ("ManifestFile", f"{dataset}/train.manifest"),
        "testing": ("ManifestFile", f"{dataset}/test.manifest"),
        "manifest": ("S3Prefix", f"{dataset}/manifest.json"),
    }


def test_the_training_job_runs_our_program_on_the_settings_dataset(training_job: dict[str, Any]) -> None:
    assert training_job["Environment"][environment.DATASET] == dev_settings().model.dataset
    program = training_job["HyperParameters"]["sagemaker_program"]
    assert program in bundle_members(source_bundle(ROOT).archive)
    assert training_job["HyperParameters"]["epochs"] == "1"


@pytest.mark.parametrize(
    ("changes", "encrypted"),
    [
        ({}, False),
        ({"instance_count": 2}, True),
        ({"instance_count": 2, "encrypt_inter_container_traffic": False}, False),
    ],
)
def test_what_several_instances_send_each_other_is_encrypted_unless_a_setting_says_no(
    changes: dict[str, Any], encrypted: bool, tmp_path: Path
) -> None:
    definition = definition_of(synthesize(tmp_path, with_training(**changes), None)["Training"])
    assert problems(definition) == []
    assert resolved(definition, "Train")["EnableInterContainerTrafficEncryption"] is encrypted


def test_the_training_role_may_read_the_bundle_that_the_job_names(
    templates: dict[str, Template], training_job: dict[str, Any]
) -> None:
    (statement,) = one(templates["Training"], "AWS::IAM::Policy")["PolicyDocument"]["Statement"]
    bundle = training_job["HyperParameters"]["sagemaker_submit_directory"].removeprefix("s3://")
    assert (statement["Action"], statement["Resource"]) == ("s3:GetObject", f"arn:aws:s3:::{bundle}")


def test_a_version_that_was_never_there_starts_the_pipeline_on_its_data(
    templates: dict[str, Template], definition: dict[str, Any]
) -> None:
    settings = dev_settings()
    rule = one(templates["Training"], "AWS::Events::Rule")
    (pattern,) = rule["EventPattern"]["detail"]["object"]["key"]
    assert rule["EventPattern"]["detail"]["bucket"] == {"name": [settings.data_bucket]}
    assert settings.dataset_version("0f" * 32).startswith(pattern["prefix"])
    # The files of a dataset, and what names the newest version, are written first, and must start nothing.
    assert not f"{settings.dataset_prefix}/".startswith(pattern["prefix"])
    (target,) = rule["Targets"]
    given = {each["Name"]: each["Value"] for each in target["SageMakerPipelineParameters"]["PipelineParameterList"]}
    assert given == {"DatasetVersion": "$.detail.object.key"}
    assert set(given) <= {each["Name"] for each in definition["Parameters"]}
    assert target["Arn"].endswith(f":pipeline/{settings.pipeline}")
    assert target["DeadLetterConfig"]


def test_without_a_schedule_only_data_and_people_start_the_pipeline(templates: dict[str, Template]) -> None:
    assert resources(templates["Training"], "AWS::Scheduler::Schedule") == []


def test_a_schedule_starts_the_pipeline_with_a_role_and_a_queue_of_its_own(tmp_path: Path) -> None:
    settings = with_training(schedule="cron(0 3 ? * MON *)")
    templates = synthesize(tmp_path, settings, None)
    schedule = one(templates["Training"], "AWS::Scheduler::Schedule")
    assert schedule["ScheduleExpression"] == "cron(0 3 ? * MON *)"
    target = schedule["Target"]
    assert plain(target["Arn"]).endswith(f":pipeline/{settings.pipeline}")
    assert target["DeadLetterConfig"]["Arn"] == {"Fn::GetAtt": [queue_id(templates["Training"]), "Arn"]}
    (statement,) = (
        statement
        for policy in resources(templates["Training"], "AWS::IAM::Policy")
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Sid"] == "KeepFailedStarts"
    )
    assert (statement["Action"], statement["Resource"]) == ("sqs:SendMessage", target["DeadLetterConfig"]["Arn"])
    assert set(grants(templates["Foundation"], "schedule")) == {"StartPipeline"}


def queue_id(template: Template) -> str:
    (identifier,) = (name for name, each in template["Resources"].items() if each["Type"] == "AWS::SQS::Queue")
    return identifier


def test_a_failed_execution_a_failed_start_and_a_lost_event_each_raise_an_alarm(
    templates: dict[str, Template],
) -> None:
    alarms = resources(templates["Training"], "AWS::CloudWatch::Alarm")
    watched = {(each["Namespace"], each["MetricName"]): each["Dimensions"][0] for each in alarms}
    assert watched.keys() == {
        ("AWS/Events", "FailedInvocations"),
        ("AWS/SQS", "ApproximateNumberOfMessagesVisible"),
        ("AWS/Sagemaker/ModelBuildingPipeline", "ExecutionFailed"),
    }
    pipeline = {"Name": "PipelineName", "Value": dev_settings().pipeline}
    assert watched["AWS/Sagemaker/ModelBuildingPipeline", "ExecutionFailed"] == pipeline


def test_preprocessing_without_a_script_is_refused_by_its_key(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"training\.preprocess: .*model_code/training/mnist/preprocess\.py"):
        compose(tmp_path, with_training(preprocess=True), None)


@pytest.mark.parametrize("instance_type", ["ml.m5d.large", "ml.g4dn.xlarge", "ml.g5.2xlarge", "ml.p4d.24xlarge"])
def test_instances_with_local_storage_get_no_volume_key(instance_type: str) -> None:
    assert volume_key(instance_type, "arn:key") is None


@pytest.mark.parametrize(
    "instance_type", ["ml.m5.xlarge", "ml.c6i.large", "ml.m6g.large", "ml.p3.2xlarge", "ml.inf2.xlarge"]
)
def test_instances_without_local_storage_get_the_volume_key(instance_type: str) -> None:
    assert volume_key(instance_type, "arn:key") == "arn:key"


def test_a_region_without_training_images_is_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"aws\.region: .*'eu-nowhere-1'.*eu-west-1"):
        training_image("eu-nowhere-1", url_suffix="amazonaws.com")


# What is built from sources


def bundle_members(archive: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as bundle:
        return bundle.getnames()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the images and the training job are built from, which a test may edit."""
    shutil.copytree(ROOT / "model_code", tmp_path / "model_code", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / ".dockerignore", tmp_path)
    return tmp_path


def test_the_source_bundle_holds_what_training_needs_and_nothing_else() -> None:
    members = bundle_members(source_bundle(ROOT).archive)
    assert members == sorted(members)
    assert "requirements.txt" in members
    assert "model_code/inference/contract.py" in members
    assert not [name for name in members if "container" in name or "__pycache__" in name]


def test_the_source_bundle_follows_its_files_and_only_them(checkout: Path) -> None:
    before = source_bundle(checkout)
    assert before == source_bundle(ROOT)
    (checkout / "model_code" / "__pycache__").mkdir()
    (checkout / "model_code" / "__pycache__" / "environment.pyc").write_bytes(b"bytecode")
    os.utime(checkout / "model_code" / "environment.py", (0, 0))
    assert source_bundle(checkout) == before
    append(checkout / "model_code" / "environment.py", "EDITED = True\n")
    assert source_bundle(checkout).digest != before.digest


def test_the_image_tag_follows_the_serving_sources_and_only_them(checkout: Path) -> None:
    before = image_tag(checkout)
    assert before == image_tag(ROOT)
    append(checkout / "model_code" / "training" / "job.py", "EDITED = True\n")
    assert image_tag(checkout) == before
    append(checkout / "model_code" / "container" / "Dockerfile", "# edited\n")
    assert image_tag(checkout) != before


def test_a_comment_in_the_sources_changes_no_template_and_code_does(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, edited = dev_settings(), checkout / "model_code" / "environment.py"
    for module in (image, image_build, training):
        monkeypatch.setattr(module, "ROOT", checkout)
    before = synthesize(tmp_path / "1", settings, make_release(settings))
    append(edited, "# edited\n")
    assert synthesize(tmp_path / "2", settings, make_release(settings)) == before
    append(edited, "EDITED = True\n")
    after = synthesize(tmp_path / "3", settings, make_release(settings))
    assert [stack for stack in STACKS if after[stack] != before[stack]] == ["Image", "Training", "Hosting"]


def test_comments_are_told_from_code_alike_on_every_python() -> None:
    """What this prints was the same on 3.11, 3.12 and 3.13, whose tokenizers see f-strings differently."""
    python = (
        "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n# gone\nvalue = f\"{1:#x} # stays {'#'}\"  # gone\n"
        '    # gone, whatever its indentation\ntext = """\n# stays\n"""\r\n\nlist_ = [  # gone\r\n    1,\n    # gone\n]\n'
    )
    assert without_comments(python.encode()).decode() == (
        "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\nvalue = f\"{1:#x} # stays {'#'}\"\n"
        'text = """\n# stays\n"""\r\n\nlist_ = [\r\n    1,\n]\n'
    )
    assert without_comments(b"not = 'python # at all") == b"not = 'python # at all"
    assert digest({"a.py": b"x = 1\n"}) == digest({"a.py": b"# why\nx = 1  # one\n"})
    assert digest({"a.py": b'"""A."""\n'}) != digest({"a.py": b'"""B."""\n'})
    assert digest({"Dockerfile": b"# why\n"}) != digest({"Dockerfile": b""})


def test_the_tag_of_the_serving_image_follows_a_preprocessing_script(checkout: Path) -> None:
    before = image_tag(checkout)
    (checkout / "model_code" / "training" / "mnist" / "preprocess.py").write_text("# new\n")
    assert image_tag(checkout) != before


def test_the_tag_of_the_training_image_follows_the_training_sources_and_only_them(checkout: Path) -> None:
    before = training_image_tag(checkout)
    assert before == training_image_tag(ROOT)
    append(checkout / "model_code" / "container" / "server.py", "EDITED = True\n")
    assert training_image_tag(checkout) == before
    append(checkout / "model_code" / "training" / "job.py", "EDITED = True\n")
    assert training_image_tag(checkout) != before


@pytest.mark.parametrize(
    ("ignore_file", "sources"),
    [
        (".dockerignore", SERVING_SOURCES),
        ("model_code/container/Dockerfile.training.dockerignore", TRAINING_IMAGE_SOURCES),
    ],
    ids=["serving", "training"],
)
def test_the_image_tag_covers_the_build_context_of_the_image(ignore_file: str, sources: tuple[str, ...]) -> None:
    lines = (ROOT / ignore_file).read_text().splitlines()
    patterns = [line.removeprefix("!") for line in lines if line.startswith("!")]
    context = {path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern)}
    assert set(read_sources(ROOT, sources)) == context


@pytest.mark.parametrize(
    ("dockerfile", "sources"),
    [
        ("model_code/container/Dockerfile", SERVING_SOURCES),
        ("model_code/container/Dockerfile.training", TRAINING_IMAGE_SOURCES),
    ],
    ids=["serving", "training"],
)
def test_the_dockerfile_copies_the_whole_build_context_and_nothing_that_is_not_in_it(
    dockerfile: str, sources: tuple[str, ...]
) -> None:
    context = set(read_sources(ROOT, sources)) - {dockerfile}
    copied: set[str] = set()
    text = (ROOT / dockerfile).read_text().replace("\\\n", " ")
    for line in text.splitlines():
        # What comes from another stage was made there, of what was copied there.
        if line.startswith("COPY ") and not line.startswith("COPY --from=native "):
            *names, target = line.split()[1:]
            for name in names:
                found = {each for each in context if PurePosixPath(each).match(name) or each.startswith(f"{name}/")}
                assert found, f"COPY {name}: not in the build context"
                copied |= found
            assert len(names) == 1 or target.endswith("/")
    assert copied == context


def append(path: Path, text: str) -> None:
    path.write_text(path.read_text() + text)


# Hosting


def names(template: Template) -> tuple[str, str, str]:
    return (
        one(template, "AWS::SageMaker::Model")["ModelName"],
        one(template, "AWS::SageMaker::EndpointConfig")["EndpointConfigName"],
        one(template, "AWS::SageMaker::Endpoint")["EndpointName"],
    )


def test_the_model_is_isolated_and_pinned_to_its_release(templates: dict[str, Template]) -> None:
    model = one(templates["Hosting"], "AWS::SageMaker::Model")
    release = make_release(dev_settings())
    assert model["EnableNetworkIsolation"] is True
    assert model["PrimaryContainer"]["ModelDataUrl"] == release.archive.uri
    assert model["PrimaryContainer"]["Environment"] == {
        environment.RELEASE_ID: release.release_id,
        environment.MODEL_JSON_SHA256: release.model_json.sha256,
    }
    assert plain(model["PrimaryContainer"]["Image"]).endswith(f"/{dev_settings().repository}:{image_tag(ROOT)}")


def test_endpoint_configurations_change_name_when_their_content_changes(
    templates: dict[str, Template], tmp_path: Path
) -> None:
    settings = dev_settings()
    model, configuration, endpoint = names(templates["Hosting"])

    more = with_hosting(settings, instance_count=2)
    model_of_more, configuration_of_more, _ = names(synthesize(tmp_path / "1", more, make_release(more))["Hosting"])
    assert model_of_more == model
    assert configuration_of_more != configuration

    newer = make_release(settings, onnx_sha256="ab" * 32)
    model_of_newer, configuration_of_newer, endpoint_of_newer = names(
        synthesize(tmp_path / "2", settings, newer)["Hosting"]
    )
    assert model_of_newer != model
    assert configuration_of_newer != configuration
    assert endpoint_of_newer == endpoint


def test_a_first_release_changes_neither_foundation_nor_training(
    tmp_path: Path, templates: dict[str, Template]
) -> None:
    before = synthesize(tmp_path, dev_settings(), None)
    assert set(before) == {"Foundation", "Image", "Training"}
    assert {name: templates[name] for name in before} == before


def test_new_code_leaves_hosting_alone_when_the_digest_is_pinned(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = dev_settings()
    pinned = with_hosting(settings, image_digest="sha256:" + "3c" * 32)
    release = make_release(settings)
    before = synthesize(tmp_path / "1", pinned, release)
    append(checkout / "model_code" / "environment.py", "EDITED = True\n")
    monkeypatch.setattr(image, "ROOT", checkout)
    assert synthesize(tmp_path / "2", pinned, release)["Hosting"] == before["Hosting"]


def test_the_longest_names_stay_within_sagemakers_63_characters(tmp_path: Path) -> None:
    settings = dev_settings()
    model = settings.model.model_copy(update={"name": "m" * 16})
    # With these two the bucket names have 63 characters, which is all that the settings let through.
    settings = settings.model_copy(update={"project": "p" * 16, "environment": "e" * 13, "model": model})
    assert len(settings.artifact_bucket) == 63
    assert max(map(len, names(synthesize(tmp_path, settings, make_release(settings))["Hosting"]))) <= 63


def test_a_release_of_another_model_or_bucket_is_refused(tmp_path: Path) -> None:
    settings = dev_settings()
    release = make_release(settings)
    other_model = release.model_copy(update={"model": "iris"})
    with pytest.raises(ReleaseError, match=r"'iris'.*serves 'mnist'"):
        compose(tmp_path, settings, other_model)
    archive = release.archive.model_copy(update={"uri": "s3://somewhere-else/releases/x/model.tar.gz"})
    with pytest.raises(ReleaseError, match=r"archive\.uri.*ferry release"):
        compose(tmp_path, settings, release.model_copy(update={"archive": archive}))


# Logs


def test_every_log_group_is_encrypted_and_ends(templates: dict[str, Template]) -> None:
    groups = [each for template in templates.values() for each in resources(template, "AWS::Logs::LogGroup")]
    assert len(groups) == 5  # the endpoint's, the image build's, the gateway's three
    for group in groups:
        assert group["KmsKeyId"]
        assert group["RetentionInDays"] == dev_settings().aws.log_retention_days
