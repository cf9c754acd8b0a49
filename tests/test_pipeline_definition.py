"""The pipeline definition as SageMaker would read it, for every choice that the settings offer; and proof that the checks see."""

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from infra.aws.pipeline_definition import pipeline_definition
from infra.aws.pipeline_requests import (
    CONTENT_TYPES,
    MAX_PAYLOAD_MB,
    RESPONSE_TYPES,
    PipelineResources,
    TrainingCode,
)
from infra.settings import Settings, SettingsError, TrainingSettings
from model_code import environment
from model_code.container import evaluation
from model_code.inference import codecs
from tests.pipeline_checks import Definition, all_steps, problems, resolved
from tests.stack_fixtures import dev_settings

REGISTRY = "111122223333.dkr.ecr.eu-west-1.amazonaws.com"
ROLE = "arn:aws:iam::111122223333:role"
KEY = "arn:aws:kms:eu-west-1:111122223333:key/00000000-0000-0000-0000-000000000000"
SCRIPT_MODE = TrainingCode(f"{REGISTRY}/pytorch:2", "s3://assets/source.tar.gz", "sha256:1")
OWN_IMAGE = TrainingCode(f"{REGISTRY}/training:3", None, "sha256:2")
RESOURCES = PipelineResources(
    datasets_uri="s3://data/datasets",
    output_uri="s3://artifacts/training",
    code=SCRIPT_MODE,
    processing_image=f"{REGISTRY}/serving:1-processing",
    serving_image=f"{REGISTRY}/serving:1",
    training_role_arn=f"{ROLE}/training",
    evaluation_role_arn=f"{ROLE}/evaluation",
    key_arn=KEY,
    volume_key_arns={"ml.m5.xlarge": KEY, "ml.m5.large": KEY},
)
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "own image": {"image": "own"},
    "spot": {"spot": True, "max_wait_seconds": 7200, "checkpoints": True},
    "several instances": {"instance_count": 4, "checkpoints": True},
    "GPU": {"instance_type": "ml.g5.xlarge", "max_runtime_seconds": 28 * 86400},
    "cached": {"cache_days": 30},
    "preprocessed": {"preprocess": True},
    "approved": {"approval": "Approved"},
    "everything": {
        "image": "own",
        "spot": True,
        "max_wait_seconds": 3600,
        "checkpoints": True,
        "instance_count": 2,
        "preprocess": True,
    },
}


def settings_with(**training: Any) -> Settings:
    return dev_settings().model_copy(update={"training": TrainingSettings(**training)})


def define(**training: Any) -> Definition:
    code = OWN_IMAGE if training.get("image") == "own" else SCRIPT_MODE
    resources = PipelineResources(**{**RESOURCES.__dict__, "code": code})
    return pipeline_definition(settings_with(**training), resources)


@pytest.mark.parametrize("training", VARIANTS.values(), ids=VARIANTS)
def test_sagemaker_would_take_the_definition(training: dict[str, Any]) -> None:
    assert problems(define(**training)) == []


@pytest.mark.parametrize("training", VARIANTS.values(), ids=VARIANTS)
def test_the_definition_is_the_same_bytes_each_time(training: dict[str, Any]) -> None:
    first, second = json.dumps(define(**training)), json.dumps(define(**training))
    assert first == second


def test_the_steps_are_the_documented_ones() -> None:
    definition = define()
    assert [step["Name"] for step in definition["Steps"]] == ["Train", "Evaluate", "CheckAccuracy"]
    branches = definition["Steps"][-1]["Arguments"]
    assert [step["Name"] for step in branches["IfSteps"]] == ["Register", "CreateModel", "Transform"]
    assert [step["Name"] for step in branches["ElseSteps"]] == ["BelowGate"]
    assert define(preprocess=True)["Steps"][0]["Name"] == "Preprocess"


def test_every_step_that_can_be_retried_is() -> None:
    for step in all_steps(define(preprocess=True)).values():
        retried = {name for policy in step.get("RetryPolicies", []) for name in policy["ExceptionType"]}
        match step["Type"]:
            case "Training" | "Processing" | "Transform":
                assert len(retried) == 5
            case "Model" | "RegisterModel":
                assert retried == {"Step.SERVICE_FAULT", "Step.THROTTLING"}
            case _:
                assert not retried


def test_an_execution_can_be_started_with_every_hyperparameter_of_the_dataset() -> None:
    settings = dev_settings()
    dataset = settings.datasets["mnist"].model_copy(update={"hyperparameters": {"epochs": "2", "batch_size": "64"}})
    definition = pipeline_definition(settings.model_copy(update={"datasets": {"mnist": dataset}}), RESOURCES)
    assert problems(definition) == []
    defaults = {each["Name"]: each["DefaultValue"] for each in definition["Parameters"]}
    assert (defaults["Epochs"], defaults["BatchSize"]) == ("2", "64")
    given = all_steps(definition)["Train"]["Arguments"]["HyperParameters"]
    assert given["batch_size"] == {"Get": "Parameters.BatchSize"}


def test_a_hyperparameter_that_is_another_parameters_name_is_refused() -> None:
    settings = dev_settings()
    dataset = settings.datasets["mnist"].model_copy(update={"hyperparameters": {"gate": "1"}})
    with pytest.raises(SettingsError, match=r"datasets\.mnist\.hyperparameters: 'gate' .*'Gate'"):
        pipeline_definition(settings.model_copy(update={"datasets": {"mnist": dataset}}), RESOURCES)


def test_script_mode_names_its_program_and_needs_a_network() -> None:
    job = resolved(define(), "Train")
    assert job["HyperParameters"]["sagemaker_program"] == "model_code/training/mnist/train.py"
    assert job["HyperParameters"]["sagemaker_submit_directory"] == SCRIPT_MODE.source_uri
    assert job["EnableNetworkIsolation"] is False


def test_our_own_image_gets_no_toolkit_hyperparameter_and_no_network() -> None:
    job = resolved(define(image="own"), "Train")
    assert job["AlgorithmSpecification"]["TrainingImage"] == OWN_IMAGE.image
    assert job["HyperParameters"] == {"epochs": "1"}
    assert job["EnableNetworkIsolation"] is True


def test_both_images_train_with_the_same_channels_and_variables_but_for_the_revision() -> None:
    toolkit, own = resolved(define(), "Train"), resolved(define(image="own"), "Train")
    assert toolkit["InputDataConfig"] == own["InputDataConfig"]
    assert toolkit["Environment"].keys() == own["Environment"].keys()
    assert own["Environment"][environment.SOURCE_REVISION] == OWN_IMAGE.revision


def test_spot_training_waits_and_keeps_checkpoints_below_its_execution() -> None:
    job = resolved(define(spot=True, max_wait_seconds=7200, checkpoints=True), "Train")
    assert job["EnableManagedSpotTraining"] is True
    assert job["StoppingCondition"] == {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200}
    assert job["CheckpointConfig"] == {
        "S3Uri": "s3://artifacts/training/abcdefghijkl/train/checkpoints",
        "LocalPath": "/opt/ml/checkpoints",
    }


def test_without_checkpoints_nothing_is_mirrored() -> None:
    assert "CheckpointConfig" not in resolved(define(), "Train")


def test_instances_without_a_volume_key_get_none() -> None:
    assert "VolumeKmsKeyId" not in resolved(define(instance_type="ml.g5.xlarge"), "Train")["ResourceConfig"]
    assert resolved(define(), "Train")["ResourceConfig"]["VolumeKmsKeyId"] == KEY


def test_caching_is_off_unless_the_settings_say_how_long() -> None:
    assert all_steps(define())["Train"]["CacheConfig"] == {"Enabled": False}
    steps = all_steps(define(cache_days=30))
    cached = {name: step["CacheConfig"] for name, step in steps.items() if "CacheConfig" in step}
    on = {"Enabled": True, "ExpireAfter": "P30D"}
    assert cached == {"Train": on, "Evaluate": on}


@pytest.mark.parametrize(("step", "compared"), [("Train", "InputDataConfig"), ("Evaluate", "ProcessingInputs")])
def test_what_the_cache_compares_names_the_manifest_and_no_execution(step: str, compared: str) -> None:
    """Developer Guide, "Default cache key attributes by pipeline step type"; it compares arguments, never content."""
    text = json.dumps(all_steps(define(cache_days=30))[step]["Arguments"][compared])
    assert "Parameters.DatasetVersion" in text
    assert "Execution." not in text


def test_preprocessing_stands_between_the_dataset_and_both_jobs_that_read_it() -> None:
    definition = define(preprocess=True)
    entry = all_steps(definition)["Preprocess"]["Arguments"]["AppSpecification"]["ContainerEntrypoint"]
    assert entry == ["python", "-m", "model_code.training.mnist.preprocess"]
    for step in ("Train", "Evaluate"):
        text = json.dumps(all_steps(definition)[step]["Arguments"])
        assert "train.manifest" not in text
        assert "test.manifest" not in text
        assert "Steps.Preprocess.ProcessingOutputConfig.Outputs['test'].S3Output.S3Uri" in text


def test_the_gate_compares_what_the_evaluation_measured_and_the_failure_says_it() -> None:
    step = all_steps(define())["CheckAccuracy"]
    (condition,) = step["Arguments"]["Conditions"]
    measured = {
        "Std:JsonGet": {
            "PropertyFile": {"Get": "Steps.Evaluate.PropertyFiles.Evaluation"},
            "Path": "multiclass_classification_metrics.accuracy.value",
        }
    }
    gate = {"Get": "Parameters.Gate"}
    assert condition == {"Type": "GreaterThanOrEqualTo", "LeftValue": measured, "RightValue": gate}
    (fail,) = step["Arguments"]["ElseSteps"]
    values = fail["Arguments"]["ErrorMessage"]["Std:Join"]["Values"]
    assert measured in values
    assert gate in values


def test_the_model_package_says_what_it_is_made_of() -> None:
    package = resolved(define(), "Register")
    assert package["CustomerMetadataProperties"].keys() == {
        "model",
        "dataset",
        "data_manifest_sha256",
        "source_revision",
        "pipeline_execution",
    }
    statistics = package["ModelMetrics"]["ModelQuality"]["Statistics"]
    assert statistics["S3Uri"].endswith("/evaluation.json")
    assert package["ModelApprovalStatus"] == "PendingManualApproval"


def test_the_registered_types_are_those_of_the_serving_core() -> None:
    assert set(CONTENT_TYPES) == set(codecs.DECODERS)
    assert set(RESPONSE_TYPES) == set(codecs.ENCODERS)


def test_the_batch_transform_sends_each_file_of_the_evaluation_as_one_request_that_fits() -> None:
    job = resolved(define(), "Transform")
    assert (job["TransformInput"]["SplitType"], job["BatchStrategy"]) == ("None", "SingleRecord")
    assert job["TransformInput"]["ContentType"] in codecs.DECODERS
    assert job["TransformOutput"]["Accept"] in codecs.ENCODERS
    assert evaluation.MAX_BODY_BYTES <= MAX_PAYLOAD_MB * 1_000_000


def test_what_an_execution_writes_lies_below_its_own_id() -> None:
    definition = define(preprocess=True, checkpoints=True)
    written = [
        resolved(definition, "Train")["OutputDataConfig"]["S3OutputPath"],
        resolved(definition, "Train")["CheckpointConfig"]["S3Uri"],
        resolved(definition, "Transform")["TransformOutput"]["S3OutputPath"],
        *(
            each["S3Output"]["S3Uri"]
            for step in ("Preprocess", "Evaluate")
            for each in resolved(definition, step)["ProcessingOutputConfig"]["Outputs"]
        ),
    ]
    assert all(uri.startswith("s3://artifacts/training/abcdefghijkl/") for uri in written)
    assert len(set(written)) == 7


# The checks themselves: each breaks a good definition in one place


def _train(definition: Definition) -> dict[str, Any]:
    return all_steps(definition)["Train"]


def _unknown_step(definition: Definition) -> None:
    (package,) = all_steps(definition)["Register"]["Arguments"]["InferenceSpecification"]["Containers"]
    package["ModelDataUrl"] = {"Get": "Steps.Trian.ModelArtifacts.S3ModelArtifacts"}


def _unknown_property(definition: Definition) -> None:
    (package,) = all_steps(definition)["Register"]["Arguments"]["InferenceSpecification"]["Containers"]
    package["ModelDataUrl"] = {"Get": "Steps.Train.ModelArtifacts.S3ModelArtefacts"}


def _unknown_output(definition: Definition) -> None:
    all_steps(definition)["Evaluate"]["Arguments"]["ProcessingOutputConfig"]["Outputs"][1]["OutputName"] = "bodies"


def _unknown_parameter(definition: Definition) -> None:
    _train(definition)["Arguments"]["ResourceConfig"]["InstanceType"] = {"Get": "Parameters.InstanceType"}


def _unknown_execution_variable(definition: Definition) -> None:
    _train(definition)["Arguments"]["OutputDataConfig"]["S3OutputPath"] = {"Get": "Execution.Id"}


def _no_property_file(definition: Definition) -> None:
    del all_steps(definition)["Evaluate"]["PropertyFiles"]


def _property_file_outside(definition: Definition) -> None:
    all_steps(definition)["Evaluate"]["PropertyFiles"][0]["OutputName"] = "report"


def _from_a_branch(definition: Definition) -> None:
    _train(definition)["Arguments"]["Environment"]["x"] = {"Get": "Steps.CreateModel.ModelName"}


def _circle(definition: Definition) -> None:
    output = "Steps.Evaluate.ProcessingOutputConfig.Outputs['evaluation'].S3Output.S3Uri"
    _train(definition)["Arguments"]["Environment"]["x"] = {"Get": output}


def _waits_for_itself(definition: Definition) -> None:
    _train(definition)["DependsOn"] = ["CheckAccuracy"]


def _same_name(definition: Definition) -> None:
    definition["Steps"].append(copy.deepcopy(_train(definition)))


def _unknown_member(definition: Definition) -> None:
    _train(definition)["Arguments"]["StoppingCondition"]["MaxRuntime"] = 60


def _wrong_type(definition: Definition) -> None:
    _train(definition)["Arguments"]["ResourceConfig"]["InstanceCount"] = "1"


def _missing_member(definition: Definition) -> None:
    del all_steps(definition)["Evaluate"]["Arguments"]["AppSpecification"]


def _given_name(definition: Definition) -> None:
    _train(definition)["Arguments"]["TrainingJobName"] = "mine"


def _no_such_instance(definition: Definition) -> None:
    (instance_type,) = (each for each in definition["Parameters"] if each["Name"] == "TransformInstanceType")
    instance_type["DefaultValue"] = "ml.t3.medium"


def _wrong_default(definition: Definition) -> None:
    (gate,) = (each for each in definition["Parameters"] if each["Name"] == "Gate")
    gate["DefaultValue"] = "0.98"


def _unread_parameter(definition: Definition) -> None:
    definition["Parameters"].append({"Name": "Unread", "Type": "String", "DefaultValue": ""})


def _unknown_retry(definition: Definition) -> None:
    _train(definition)["RetryPolicies"] = [{"ExceptionType": ["SageMaker.JOB_CAPACITY_ERROR"], "MaxAttempts": 1}]


def _job_retry_of_a_model(definition: Definition) -> None:
    all_steps(definition)["CreateModel"]["RetryPolicies"] = _train(definition)["RetryPolicies"]


def _cached_without_end(definition: Definition) -> None:
    _train(definition)["CacheConfig"] = {"Enabled": True, "ExpireAfter": "30 days"}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_unknown_step, "Register: Steps.Trian.ModelArtifacts.S3ModelArtifacts: there is no step Trian"),
        (_unknown_property, "Train has no such property"),
        (_unknown_output, "Transform: .*Evaluate has no such property"),
        (_unknown_parameter, "Train: Parameters.InstanceType does not exist"),
        (_unknown_execution_variable, "Train: Execution.Id does not exist"),
        (_no_property_file, "CheckAccuracy: .*Evaluate has no such property file"),
        (_property_file_outside, "Evaluate: property file Evaluation is in report, which is no output"),
        (_from_a_branch, "Train: .*CreateModel stands in a branch"),
        (_circle, "Train.*: wait for each other"),
        (_waits_for_itself, "Train.*: wait for each other"),
        (_same_name, "Train: two steps have this name"),
        (_unknown_member, "Train: .*MaxRuntime"),
        (_wrong_type, "Train: .*InstanceCount"),
        (_missing_member, "Evaluate: .*AppSpecification"),
        (_given_name, "Train: TrainingJobName is SageMaker Pipelines' own"),
        (_no_such_instance, "Transform: .*'ml.t3.medium' is none of"),
        (_wrong_default, "parameter Gate: the default is no Float"),
        (_unread_parameter, "parameter Unread: nobody reads it"),
        (_unknown_retry, "Train: cannot be retried on"),
        (_job_retry_of_a_model, "CreateModel: cannot be retried on"),
        (_cached_without_end, "Train: cannot be cached"),
    ],
    ids=lambda value: value.__name__.strip("_") if callable(value) else "",
)
def test_a_broken_definition_is_told(damage: Callable[[Definition], None], said: str) -> None:
    definition = copy.deepcopy(define())
    damage(definition)
    found = problems(definition)
    assert [text for text in found if re.search(said, text, re.DOTALL)], found
