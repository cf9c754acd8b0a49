"""The SageMaker pipeline as a plain value (definition schema 2020-12-01); no CDK here, so a test can read every step."""

from dataclasses import dataclass
from typing import Any

from infra.settings import Settings
from model_code import environment


@dataclass(frozen=True)
class PipelineResources:
    """What the pipeline works with; every value may be a token that only the deployment resolves.

    `dataset_uri` and `output_uri` are s3:// prefixes without a trailing slash, `source_uri` is the s3:// object of the source
    bundle, `role_arn` the execution role of the jobs. The keys encrypt output and volumes; some instance types take none for
    their volume.
    """

    dataset_uri: str
    output_uri: str
    source_uri: str
    training_image: str
    role_arn: str
    output_key_arn: str
    volume_key_arn: str | None


def pipeline_definition(settings: Settings, resources: PipelineResources) -> dict[str, Any]:
    """Train the environment's model on its dataset."""
    return {
        "Version": "2020-12-01",
        "Metadata": {},
        "Parameters": [
            _parameter("DatasetUri", resources.dataset_uri),
            _parameter("TrainingInstanceType", settings.training.instance_type),
        ],
        "Steps": [
            {
                "Name": "Train",
                "Type": "Training",
                "Arguments": _training_job(settings, resources),
                "RetryPolicies": [
                    {
                        "ExceptionType": ["Step.SERVICE_FAULT", "Step.THROTTLING"],
                        "IntervalSeconds": 30,
                        "BackoffRate": 2.0,
                        "MaxAttempts": 5,
                    }
                ],
            }
        ],
    }


def _training_job(settings: Settings, resources: PipelineResources) -> dict[str, Any]:
    """The CreateTrainingJob request. Script mode fetches its code with the role, so the job has a network."""
    dataset = settings.datasets[settings.model.dataset]
    instances: dict[str, Any] = {
        "InstanceType": {"Get": "Parameters.TrainingInstanceType"},
        "InstanceCount": 1,
        "VolumeSizeInGB": settings.training.volume_size_gb,
    }
    if resources.volume_key_arn:
        instances["VolumeKmsKeyId"] = resources.volume_key_arn
    return {
        "AlgorithmSpecification": {
            "TrainingImage": resources.training_image,
            "TrainingInputMode": "File",
            "EnableSageMakerMetricsTimeSeries": True,
            "MetricDefinitions": [{"Name": name, "Regex": regex} for name, regex in environment.METRIC_DEFINITIONS],
        },
        "RoleArn": resources.role_arn,
        "InputDataConfig": [_channel(name, folder) for name, folder in environment.CHANNEL_FOLDERS.items()],
        "OutputDataConfig": {
            "S3OutputPath": resources.output_uri,
            "KmsKeyId": resources.output_key_arn,
            "CompressionType": "GZIP",
        },
        "ResourceConfig": instances,
        "StoppingCondition": {"MaxRuntimeInSeconds": settings.training.max_runtime_seconds},
        "HyperParameters": dataset.hyperparameters
        | {
            "sagemaker_program": f"model_code/training/{settings.model.name}/train.py",
            "sagemaker_region": settings.aws.region,
            "sagemaker_submit_directory": resources.source_uri,
        },
        "Environment": {environment.MODEL_NAME: settings.model.name, environment.DATASET: settings.model.dataset},
        "EnableInterContainerTrafficEncryption": True,
        "EnableManagedSpotTraining": False,
        "EnableNetworkIsolation": False,
    }


def _parameter(name: str, default: str) -> dict[str, str]:
    return {"Name": name, "Type": "String", "DefaultValue": default}


def _channel(name: str, folder: str) -> dict[str, Any]:
    return {
        "ChannelName": name,
        "DataSource": {
            "S3DataSource": {
                "S3DataType": "S3Prefix",
                "S3Uri": {"Std:Join": {"On": "/", "Values": [{"Get": "Parameters.DatasetUri"}, f"{folder}/"]}},
                "S3DataDistributionType": "FullyReplicated",
            }
        },
        "CompressionType": "None",
        "RecordWrapperType": "None",
    }
