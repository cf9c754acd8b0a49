"""One training job through the SageMaker Python SDK (v3, ModelTrainer), with the arguments of the deployed pipeline's Train step.

For trying something out: nothing is evaluated, gated or registered. The SDK is an extra of its own, because its tree is large
and wants other versions of some packages; it is imported when it is used.
"""

import os
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import boto3

from ferry import aws
from ferry.console import Report
from ferry.errors import FerryError, Refused
from ferry.pipeline import deployed_definition, start_parameters, uploaded_data
from ferry.pipeline_values import Scope, resolve, typed_parameters
from ferry.steps.source import PROGRAM, fetch_source
from infra.settings import TRAINING_PREFIX, Settings

INSTALL = "python3 -m venv sagemaker-venv && sagemaker-venv/bin/pip install '.[local,sagemaker]'"
_STEP = "Train"
# The SDK puts the code that it stages below this key, in the artifacts bucket.
_STAGING = "once"
_REQUIREMENTS = "requirements.txt"
_NO_TELEMETRY = {
    "SchemaVersion": "1.0",
    "SageMaker": {"PythonSDK": {"Modules": {"TelemetryOptOut": True}}},
}


def train_once(settings: Settings, dataset: str, given: Mapping[str, str], report: Report) -> str:
    """Run one training job and follow it; returns the s3:// URI of its model artifact.

    Interrupted, the job goes on, and that is said. Raises Refused where the SDK is not installed, no pipeline is deployed, or its Train step needs another step first;
    FerryError where the job fails.
    """
    trainer_type = _model_trainer()
    arguments = training_arguments(settings, dataset, given)
    with tempfile.TemporaryDirectory(prefix="ferry-source-") as folder:
        trainer = model_trainer(settings, trainer_type, arguments, Path(folder), _session(settings))
        try:
            return _train(trainer)
        except KeyboardInterrupt:
            report(
                f"a job that SageMaker has taken goes on, and is paid for: its name begins with {settings.pipeline}; "
                "aws sagemaker stop-training-job ends it"
            )
            raise


def training_arguments(settings: Settings, dataset: str, given: Mapping[str, str]) -> dict[str, Any]:
    """The CreateTrainingJob request that the deployed pipeline's Train step would send, with the output in a place of its own.

    Raises Refused, as `ferry train` does, and where the step's input is another step's output.
    """
    definition = deployed_definition(settings, aws.client(settings, "sagemaker"))
    data = uploaded_data(settings, aws.client(settings, "s3"), dataset)
    parameters = typed_parameters(definition["Parameters"], start_parameters(settings, definition, data, given))
    identifier = f"{_STAGING}-{secrets.token_hex(4)}"
    (step,) = (each for each in definition["Steps"] if each["Name"] == _STEP)
    try:
        arguments: dict[str, Any] = resolve(
            step["Arguments"], Scope(parameters, {"PipelineExecutionId": identifier, "PipelineName": settings.pipeline})
        )
    except Refused as error:
        raise Refused(
            f"--once runs {_STEP} alone, and it needs more than that: {error}; run the whole pipeline"
        ) from error
    return arguments


def model_trainer(settings: Settings, trainer_type: Any, arguments: dict[str, Any], folder: Path, session: Any) -> Any:
    """The SDK's ModelTrainer for a CreateTrainingJob request; the source bundle is unpacked into `folder`.

    `session` is the SDK's Session. In script mode the SDK uploads that folder and starts the program itself; the
    toolkit's own hyperparameters are for the pipeline.
    """
    from sagemaker.core import shapes
    from sagemaker.core.training import configs

    hyperparameters = arguments.get("HyperParameters", {})
    algorithm, resources = arguments["AlgorithmSpecification"], arguments["ResourceConfig"]
    stopping, output = arguments["StoppingCondition"], arguments["OutputDataConfig"]
    checkpoints = arguments.get("CheckpointConfig")
    source = None
    if PROGRAM in hyperparameters:
        fetch_source(aws.client(settings, "s3"), hyperparameters, folder)
        source = configs.SourceCode(
            source_dir=str(folder), entry_script=hyperparameters[PROGRAM], requirements=_REQUIREMENTS
        )
    trainer = trainer_type(
        sagemaker_session=session,
        role=arguments["RoleArn"],
        base_job_name=settings.pipeline,
        input_s3_key_prefix=_STAGING,
        training_image=algorithm["TrainingImage"],
        training_input_mode=algorithm["TrainingInputMode"],
        source_code=source,
        compute=configs.Compute(
            instance_type=resources["InstanceType"],
            instance_count=resources["InstanceCount"],
            volume_size_in_gb=resources["VolumeSizeInGB"],
            volume_kms_key_id=resources.get("VolumeKmsKeyId"),
            enable_managed_spot_training=arguments.get("EnableManagedSpotTraining", False),
        ),
        networking=configs.Networking(
            enable_network_isolation=arguments["EnableNetworkIsolation"],
            enable_inter_container_traffic_encryption=arguments["EnableInterContainerTrafficEncryption"],
        ),
        stopping_condition=shapes.StoppingCondition(
            max_runtime_in_seconds=stopping["MaxRuntimeInSeconds"],
            max_wait_time_in_seconds=stopping.get("MaxWaitTimeInSeconds"),
        ),
        output_data_config=shapes.OutputDataConfig(
            s3_output_path=output["S3OutputPath"],
            kms_key_id=output.get("KmsKeyId"),
            compression_type=output["CompressionType"],
        ),
        input_data_config=[
            configs.InputData(channel_name=channel["ChannelName"], data_source=_data_source(shapes, channel))
            for channel in arguments["InputDataConfig"]
        ],
        checkpoint_config=checkpoints
        and shapes.CheckpointConfig(s3_uri=checkpoints["S3Uri"], local_path=checkpoints["LocalPath"]),
        environment=arguments.get("Environment", {}),
        hyperparameters={
            name: value
            for name, value in hyperparameters.items()
            if source is None or not name.startswith("sagemaker_")
        },
    )
    return trainer.with_metric_definitions(
        [
            shapes.MetricDefinition(name=each["Name"], regex=each["Regex"])
            for each in algorithm.get("MetricDefinitions", [])
        ]
    )


def _data_source(shapes: Any, channel: dict[str, Any]) -> Any:
    """The S3DataSource of a channel; of a text the SDK would make a prefix, and a channel may be a manifest."""
    source = channel["DataSource"]["S3DataSource"]
    return shapes.S3DataSource(
        s3_data_type=source["S3DataType"],
        s3_uri=source["S3Uri"],
        s3_data_distribution_type=source["S3DataDistributionType"],
    )


def _model_trainer() -> Any:
    try:
        from sagemaker.train import ModelTrainer
    except ImportError as error:
        raise Refused(
            f"--once needs the SageMaker Python SDK, which is not here ({error}); install it into an environment of its own, "
            f"it is about 2 GB: {INSTALL}; then use that environment's ferry"
        ) from error
    return ModelTrainer


def _session(settings: Settings) -> Any:
    """The SDK's session: what it stages goes to the artifacts bucket, and it tells nobody what is done here."""
    from sagemaker.core.helper.session_helper import Session

    # Else it asks IAM what the role may do, for which an operator needs a right of their own.
    os.environ.setdefault("SAGEMAKER_VALIDATE_ROLE", "false")
    return Session(
        boto_session=boto3.Session(region_name=settings.aws.region),
        default_bucket=settings.artifact_bucket,
        default_bucket_prefix=TRAINING_PREFIX,
        sagemaker_config=_NO_TELEMETRY,
    )


def _train(trainer: Any) -> str:
    from sagemaker.core.utils.exceptions import SageMakerCoreError

    try:
        trainer.train()
    except SageMakerCoreError as error:
        raise FerryError(f"the training job did not end well: {error}") from error
    # The SDK has no public name for the job that it has just run.
    return str(trainer._latest_training_job.model_artifacts.s3_model_artifacts)
