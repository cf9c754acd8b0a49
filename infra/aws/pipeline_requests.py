"""The requests that the pipeline's steps make: what CreateTrainingJob, CreateProcessingJob and the others are sent.

What an execution leaves in the artifacts bucket lies below training/<execution id>/<step>/, so that two executions never
write to the same place. What it reads of the dataset is named by one object, an S3DataType ManifestFile, that names the files of
one version; no upload changes those, so no job reads half of an old and half of a new dataset.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.aws.pipeline_functions import (
    EXECUTION_ARN,
    EXECUTION_ID,
    join,
    output_uri,
    parameter,
    property_value,
    step_property,
)
from infra.settings import MANIFEST_FILE, Settings
from model_code import environment
from model_code.environment import MlPaths, ProcessingPaths

Request = dict[str, Any]

# The steps whose outputs another one reads.
PREPROCESS, TRAIN, EVALUATE, CREATE_MODEL, TRANSFORM = "Preprocess", "Train", "Evaluate", "CreateModel", "Transform"
# Outputs of the processing steps.
EVALUATION, REQUESTS = "evaluation", "requests"
# The property file of Evaluate.
EVALUATION_REPORT = "Evaluation"
# A channel that carries no examples: the manifest of the dataset.
MANIFEST_CHANNEL = "manifest"
# What `input_manifest` calls all files of a dataset, beside those of one channel.
ALL_FILES = "dataset"
# What the container takes and gives; a test holds them against the codecs of the serving core.
RESPONSE_TYPES = ("application/json", "application/x-npy", "text/csv", "application/jsonlines")
CONTENT_TYPES = (*RESPONSE_TYPES, "image/png", "image/jpeg")
# Evaluate cuts the testing channel into bodies that fit (container/evaluation.py).
MAX_PAYLOAD_MB = 6
PROCESSING_SECONDS = 3600
_ML, _PROCESSING = MlPaths(Path("/opt/ml")), ProcessingPaths(Path("/opt/ml"))


@dataclass(frozen=True)
class TrainingCode:
    """What the training job runs: an image and, in script mode, the s3:// object of the source bundle that it fetches.

    `source_uri` is None for our own image, which holds its code; `revision` names the code either way.
    """

    image: str
    source_uri: str | None
    revision: str


@dataclass(frozen=True)
class PipelineResources:
    """What the pipeline works with; every value may be a token that only the deployment resolves.

    `datasets_uri`, that of all datasets, and `output_uri` are s3:// prefixes without a trailing slash. The role ARNs are those
    of the training job, and of everything that runs our processing or serving image. `key_arn` encrypts what the jobs write;
    `volume_key_arns` hold it for every instance type of the settings that takes a key for its volume.
    """

    datasets_uri: str
    output_uri: str
    code: TrainingCode
    processing_image: str
    serving_image: str
    training_role_arn: str
    evaluation_role_arn: str
    key_arn: str
    volume_key_arns: Mapping[str, str]


def hyperparameter_names(settings: Settings) -> dict[str, str]:
    """The pipeline parameter of each hyperparameter: `batch_size` is BatchSize."""
    names = settings.datasets[settings.model.dataset].hyperparameters
    return {name: parameter_name(name) for name in names}


def parameter_name(hyperparameter: str) -> str:
    """Words joined by underscores as words that begin with a capital."""
    return "".join(f"{part[:1].upper()}{part[1:]}" for part in hyperparameter.split("_"))


def input_manifest(files: str) -> str:
    """The name of the object that names the files of a channel's folder, or all of them, in one version of a dataset."""
    return f"{files}.manifest"


def preprocessing_job(settings: Settings, resources: PipelineResources) -> Request:
    """CreateProcessingJob: the model's preprocess.py makes both channels of the dataset as it was uploaded."""
    folders = {"train": _PROCESSING.train, "test": _PROCESSING.test}
    return {
        **_processing_job(settings, resources),
        "AppSpecification": {
            "ImageUri": resources.processing_image,
            "ContainerEntrypoint": ["python", "-m", f"model_code.training.{settings.model.name}.preprocess"],
        },
        "ProcessingInputs": [
            _input("raw", _version_uri(resources, input_manifest(ALL_FILES)), _PROCESSING.raw, "ManifestFile"),
            _input("manifest", _manifest_uri(resources), _PROCESSING.manifest),
        ],
        "ProcessingOutputConfig": _outputs(resources, PREPROCESS, folders),
    }


def training_job(settings: Settings, resources: PipelineResources) -> Request:
    """CreateTrainingJob. Script mode fetches its code with the role, so that job has a network; our own image needs none."""
    training = settings.training
    examples = [_channel(name, *_channel_source(settings, resources, name)) for name in environment.CHANNEL_FOLDERS]
    request: Request = {
        "AlgorithmSpecification": {
            "TrainingImage": resources.code.image,
            "TrainingInputMode": "File",
            "EnableSageMakerMetricsTimeSeries": True,
            "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in environment.METRIC_DEFINITIONS],
        },
        "RoleArn": resources.training_role_arn,
        "InputDataConfig": [*examples, _channel(MANIFEST_CHANNEL, _manifest_uri(resources))],
        "OutputDataConfig": {
            "S3OutputPath": _step_uri(resources, TRAIN),
            "KmsKeyId": resources.key_arn,
            "CompressionType": "GZIP",
        },
        "ResourceConfig": {
            "InstanceType": parameter("TrainingInstanceType"),
            "InstanceCount": training.instance_count,
            **_volume(settings, resources, training.instance_type),
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": training.max_runtime_seconds},
        "HyperParameters": _hyperparameters(settings, resources),
        "Environment": {
            environment.MODEL_NAME: settings.model.name,
            environment.DATASET: parameter("Dataset"),
            environment.SOURCE_REVISION: resources.code.revision,
            environment.QUANTIZE: parameter("Quantize"),
        },
        "EnableInterContainerTrafficEncryption": training.instance_count > 1
        and training.encrypt_inter_container_traffic,
        "EnableManagedSpotTraining": training.spot,
        "EnableNetworkIsolation": resources.code.source_uri is None,
    }
    if training.max_wait_seconds is not None:
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = training.max_wait_seconds
    if training.checkpoints:
        request["CheckpointConfig"] = {
            "S3Uri": _step_uri(resources, TRAIN, "checkpoints"),
            "LocalPath": str(_ML.checkpoints),
        }
    return request


def evaluation_job(settings: Settings, resources: PipelineResources) -> Request:
    """CreateProcessingJob: `evaluate` judges the artifact of Train on the testing channel."""
    folders = {EVALUATION: _PROCESSING.evaluation, REQUESTS: _PROCESSING.requests}
    testing, data_type = _channel_source(settings, resources, "testing")
    return {
        **_processing_job(settings, resources),
        "AppSpecification": {
            "ImageUri": resources.processing_image,
            "ContainerEntrypoint": ["/usr/bin/env", "evaluate"],
        },
        "Environment": {environment.MODEL_NAME: settings.model.name},
        "ProcessingInputs": [
            _input("model", _artifact_uri(), _PROCESSING.model),
            _input("testing", testing, _PROCESSING.testing, data_type),
            _input("manifest", _manifest_uri(resources), _PROCESSING.manifest),
        ],
        "ProcessingOutputConfig": _outputs(resources, EVALUATE, folders),
    }


def model_package(settings: Settings, resources: PipelineResources) -> Request:
    """CreateModelPackage: the artifact, what serves it, how good it is, and where it comes from.

    The sha256 of the manifest is what Evaluate found, not what the execution was told: whoever starts one gives at most the
    manifest's key, which is all that EventBridge can pass on.
    """
    return {
        "ModelPackageGroupName": settings.model_package_group,
        "ModelPackageDescription": join(" ", settings.model.name, "trained on", parameter("Dataset")),
        "ModelApprovalStatus": parameter("ApprovalStatus"),
        "InferenceSpecification": {
            "Containers": [{"Image": resources.serving_image, "ModelDataUrl": _artifact_uri()}],
            "SupportedContentTypes": list(CONTENT_TYPES),
            "SupportedResponseMIMETypes": list(RESPONSE_TYPES),
            "SupportedRealtimeInferenceInstanceTypes": [settings.hosting.instance_type],
            "SupportedTransformInstanceTypes": [settings.training.transform_instance_type],
        },
        "ModelMetrics": {
            "ModelQuality": {
                "Statistics": {
                    "ContentType": "application/json",
                    "S3Uri": join("/", output_uri(EVALUATE, EVALUATION), environment.EVALUATION_FILE),
                }
            }
        },
        "CustomerMetadataProperties": {
            "model": settings.model.name,
            "dataset": parameter("Dataset"),
            "data_manifest_sha256": property_value(EVALUATE, EVALUATION_REPORT, environment.MANIFEST_SHA256_PATH),
            "source_revision": resources.code.revision,
            "pipeline_execution": EXECUTION_ARN,
        },
    }


def candidate_model(resources: PipelineResources) -> Request:
    """CreateModel: the artifact in the serving image, for the batch transform only."""
    return {
        "ExecutionRoleArn": resources.evaluation_role_arn,
        "PrimaryContainer": {
            "Image": resources.serving_image,
            "Mode": "SingleModel",
            "ModelDataUrl": _artifact_uri(),
        },
        "EnableNetworkIsolation": True,
    }


def transform_job(settings: Settings, resources: PipelineResources) -> Request:
    """CreateTransformJob: the whole testing channel through the container, one file of Evaluate's output a request.

    A file is an array of float32 inputs, `application/x-npy`, cut so that the container takes it; so nothing is split here,
    and every model's channel can be sent, whatever files it came in.
    """
    instance_type = settings.training.transform_instance_type
    volume = _volume(settings, resources, instance_type)
    volume.pop("VolumeSizeInGB")  # a transform job has none to choose
    return {
        "ModelName": step_property(CREATE_MODEL, "ModelName"),
        "BatchStrategy": "SingleRecord",
        "MaxPayloadInMB": MAX_PAYLOAD_MB,
        "MaxConcurrentTransforms": 1,
        "TransformInput": {
            "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": output_uri(EVALUATE, REQUESTS)}},
            "ContentType": "application/x-npy",
            "CompressionType": "None",
            "SplitType": "None",
        },
        "TransformOutput": {
            "S3OutputPath": _step_uri(resources, TRANSFORM),
            "Accept": "application/json",
            "AssembleWith": "None",
            "KmsKeyId": resources.key_arn,
        },
        "TransformResources": {"InstanceType": parameter("TransformInstanceType"), "InstanceCount": 1, **volume},
    }


def _processing_job(settings: Settings, resources: PipelineResources) -> Request:
    """What both processing jobs have in common: one instance, no network."""
    return {
        "RoleArn": resources.evaluation_role_arn,
        "ProcessingResources": {
            "ClusterConfig": {
                "InstanceType": parameter("ProcessingInstanceType"),
                "InstanceCount": 1,
                **_volume(settings, resources, settings.training.processing_instance_type),
            }
        },
        "NetworkConfig": {"EnableNetworkIsolation": True},
        "StoppingCondition": {"MaxRuntimeInSeconds": PROCESSING_SECONDS},
    }


def _hyperparameters(settings: Settings, resources: PipelineResources) -> dict[str, Any]:
    """Those of the dataset as parameters of the pipeline, and for script mode what AWS's toolkit reads."""
    given: dict[str, Any] = {name: parameter(pascal) for name, pascal in hyperparameter_names(settings).items()}
    if resources.code.source_uri is None:
        return given
    return given | {
        "sagemaker_program": f"model_code/training/{settings.model.name}/train.py",
        "sagemaker_region": settings.aws.region,
        "sagemaker_submit_directory": resources.code.source_uri,
    }


def _volume(settings: Settings, resources: PipelineResources, instance_type: str) -> dict[str, Any]:
    volume: dict[str, Any] = {"VolumeSizeInGB": settings.training.volume_size_gb}
    if instance_type in resources.volume_key_arns:
        volume["VolumeKmsKeyId"] = resources.volume_key_arns[instance_type]
    return volume


def _artifact_uri() -> dict[str, Any]:
    return step_property(TRAIN, "ModelArtifacts.S3ModelArtifacts")


def _version_uri(resources: PipelineResources, name: str) -> dict[str, Any]:
    return join("/", resources.datasets_uri, parameter("DatasetVersion"), name)


def _manifest_uri(resources: PipelineResources) -> dict[str, Any]:
    return _version_uri(resources, MANIFEST_FILE)


def _channel_source(settings: Settings, resources: PipelineResources, channel: str) -> tuple[dict[str, Any], str]:
    """Where the files of a channel are, and the S3DataType of that: as they were uploaded, or as Preprocess wrote them."""
    folder = environment.CHANNEL_FOLDERS[channel]
    if settings.training.preprocess:
        return output_uri(PREPROCESS, folder), "S3Prefix"
    return _version_uri(resources, input_manifest(folder)), "ManifestFile"


def _step_uri(resources: PipelineResources, step: str, *folders: str) -> dict[str, Any]:
    return join("/", resources.output_uri, EXECUTION_ID, step.lower(), *folders)


def _channel(name: str, uri: dict[str, Any], data_type: str = "S3Prefix") -> dict[str, Any]:
    return {
        "ChannelName": name,
        "DataSource": {
            "S3DataSource": {"S3DataType": data_type, "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
        },
        "CompressionType": "None",
        "RecordWrapperType": "None",
    }


def _input(name: str, uri: dict[str, Any], path: Path, data_type: str = "S3Prefix") -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {
            "S3Uri": uri,
            "LocalPath": str(path),
            "S3DataType": data_type,
            "S3InputMode": "File",
            "S3DataDistributionType": "FullyReplicated",
            "S3CompressionType": "None",
        },
    }


def _outputs(resources: PipelineResources, step: str, folders: dict[str, Path]) -> dict[str, Any]:
    outputs = [
        {
            "OutputName": name,
            "S3Output": {
                "S3Uri": _step_uri(resources, step, name),
                "LocalPath": str(path),
                "S3UploadMode": "EndOfJob",
            },
        }
        for name, path in folders.items()
    ]
    return {"Outputs": outputs, "KmsKeyId": resources.key_arn}
