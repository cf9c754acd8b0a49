"""The SageMaker pipeline as a plain value (definition schema 2020-12-01); no CDK here, so a test can read every step.

[Preprocess] ─▶ Train ─▶ Evaluate ─▶ CheckAccuracy ─ yes ─▶ Register, CreateModel ─▶ Transform
                                                   └ no ──▶ BelowGate
"""

from typing import Any

from infra.aws.pipeline_functions import join, parameter, property_value
from infra.aws.pipeline_requests import (
    CREATE_MODEL,
    EVALUATE,
    EVALUATION,
    EVALUATION_REPORT,
    PREPROCESS,
    TRAIN,
    TRANSFORM,
    PipelineResources,
    candidate_model,
    evaluation_job,
    hyperparameter_names,
    model_package,
    preprocessing_job,
    training_job,
    transform_job,
)
from infra.settings import Settings, SettingsError
from model_code import environment

Step = dict[str, Any]

# What passes by itself. The first kind SageMaker would retry anyway, with waits of its own; the second, which takes a new job,
# only where a policy says so (Developer Guide, "Retry Policy for Pipeline Steps").
SERVICE_RETRIES = {
    "ExceptionType": ["Step.SERVICE_FAULT", "Step.THROTTLING"],
    "IntervalSeconds": 30,
    "BackoffRate": 2.0,
    "MaxAttempts": 5,
}
JOB_RETRIES = {
    "ExceptionType": ["SageMaker.JOB_INTERNAL_ERROR", "SageMaker.CAPACITY_ERROR", "SageMaker.RESOURCE_LIMIT"],
    "IntervalSeconds": 300,
    "BackoffRate": 2.0,
    "MaxAttempts": 4,
}


def pipeline_definition(settings: Settings, resources: PipelineResources) -> dict[str, Any]:
    """Train the environment's model on its dataset, judge it, and register what passes the gate.

    Raises SettingsError where a hyperparameter cannot be a parameter of the pipeline.
    """
    return {
        "Version": "2020-12-01",
        "Metadata": {},
        "Parameters": _parameters(settings, resources),
        "Steps": [
            *_preprocess(settings, resources),
            _job(TRAIN, "Training", training_job(settings, resources), cache=_cache(settings)),
            _evaluate(settings, resources),
            _check_accuracy(settings, resources),
        ],
    }


def _parameters(settings: Settings, resources: PipelineResources) -> list[dict[str, Any]]:
    """What an execution may be started with. The version's default, the model's name, is what was uploaded last."""
    training, dataset = settings.training, settings.datasets[settings.model.dataset]
    parameters: list[dict[str, Any]] = [
        _text("Dataset", settings.model.dataset),
        _text("DatasetVersion", settings.model.name),
        _text("TrainingInstanceType", training.instance_type),
        _text("ProcessingInstanceType", training.processing_instance_type),
        _text("TransformInstanceType", training.transform_instance_type),
        _text("ApprovalStatus", training.approval),
        {"Name": "Gate", "Type": "Float", "DefaultValue": dataset.gate},
        _text("Quantize", settings.model.quantize) | {"EnumValues": list(environment.QUANTIZATIONS)},
        *(_text(name, dataset.hyperparameters[key]) for key, name in hyperparameter_names(settings).items()),
    ]
    names = [each["Name"] for each in parameters]
    for key, name in hyperparameter_names(settings).items():
        if names.count(name) > 1:
            raise SettingsError(
                f"datasets.{settings.model.dataset}.hyperparameters: {key!r} is the pipeline parameter {name!r}, and so is "
                "something else; rename it in the settings and in the model's train.py"
            )
    return parameters


def _preprocess(settings: Settings, resources: PipelineResources) -> list[Step]:
    if not settings.training.preprocess:
        return []
    return [_job(PREPROCESS, "Processing", preprocessing_job(settings, resources), cache=_cache(settings))]


def _evaluate(settings: Settings, resources: PipelineResources) -> Step:
    report = {
        "PropertyFileName": EVALUATION_REPORT,
        "OutputName": EVALUATION,
        "FilePath": environment.EVALUATION_FILE,
    }
    step = _job(EVALUATE, "Processing", evaluation_job(settings, resources), cache=_cache(settings))
    return step | {"PropertyFiles": [report]}


def _check_accuracy(settings: Settings, resources: PipelineResources) -> Step:
    accuracy = property_value(EVALUATE, EVALUATION_REPORT, environment.ACCURACY_PATH)
    register = {
        "Name": "Register",
        "Type": "RegisterModel",
        "Arguments": model_package(settings, resources),
        "RetryPolicies": [SERVICE_RETRIES],
    }
    create_model = {
        "Name": CREATE_MODEL,
        "Type": "Model",
        "Arguments": candidate_model(resources),
        "RetryPolicies": [SERVICE_RETRIES],
    }
    message = join(
        " ",
        "GATE_FAILED: accuracy",
        accuracy,
        "is below",
        parameter("Gate"),
        "which is the gate of dataset",
        parameter("Dataset"),
        "and nothing was registered",
    )
    return {
        "Name": "CheckAccuracy",
        "Type": "Condition",
        "Arguments": {
            "Conditions": [
                {"Type": "GreaterThanOrEqualTo", "LeftValue": accuracy, "RightValue": parameter("Gate")},
            ],
            "IfSteps": [register, create_model, _job(TRANSFORM, "Transform", transform_job(settings, resources))],
            "ElseSteps": [{"Name": "BelowGate", "Type": "Fail", "Arguments": {"ErrorMessage": message}}],
        },
    }


def _job(name: str, kind: str, request: dict[str, Any], cache: dict[str, Any] | None = None) -> Step:
    """A step that runs a job, with what it is retried on."""
    step = {"Name": name, "Type": kind, "Arguments": request, "RetryPolicies": [SERVICE_RETRIES, JOB_RETRIES]}
    return step | ({"CacheConfig": cache} if cache else {})


def _cache(settings: Settings) -> dict[str, Any]:
    days = settings.training.cache_days
    return {"Enabled": False} if days is None else {"Enabled": True, "ExpireAfter": f"P{days}D"}


def _text(name: str, default: str) -> dict[str, Any]:
    return {"Name": name, "Type": "String", "DefaultValue": default}
