"""A shadow test as an InferenceExperiment: SageMaker adds the candidate to the endpoint for a time and compares both."""

from datetime import UTC, datetime

from aws_cdk import aws_sagemaker as sagemaker
from constructs import Construct

from infra.aws.endpoint_config import CSV_TYPES, JSON_TYPES, SHADOW_VARIANT, VARIANT, capture_uri
from infra.aws.instance_types import volume_key
from infra.settings import Settings
from infra.settings_hosting import ShadowSettings


def shadow_experiment(
    scope: Construct,
    construct_id: str,
    *,
    settings: Settings,
    table: ShadowSettings,
    endpoint: sagemaker.CfnEndpoint,
    model_name: str,
    shadow_model_name: str,
    role_arn: str,
    key_arn: str,
) -> sagemaker.CfnInferenceExperiment:
    """The experiment of the settings on `endpoint`, which serves `model_name` and stays as it is for its callers.

    Its name stays, so that a new candidate updates it (UpdateInferenceExperiment takes other variants) and never begins a
    second experiment on the endpoint while the first one runs.
    """
    hosting = settings.hosting
    instance_type = table.instance_type or hosting.instance_type
    experiment = sagemaker.CfnInferenceExperiment
    return experiment(
        scope,
        construct_id,
        name=f"{settings.endpoint}-shadow",
        description=f"{settings.model.name}: the release that is deployed and a candidate.",
        type="ShadowMode",
        role_arn=role_arn,
        endpoint_name=endpoint.attr_endpoint_name,
        schedule=_schedule(table),
        model_variants=[
            _variant(VARIANT, model_name, hosting.instance_type, hosting.instance_count),
            _variant(SHADOW_VARIANT, shadow_model_name, instance_type, table.instance_count),
        ],
        shadow_mode_config=experiment.ShadowModeConfigProperty(
            source_model_variant_name=VARIANT,
            shadow_model_variants=[
                experiment.ShadowModelVariantConfigProperty(
                    shadow_model_variant_name=SHADOW_VARIANT, sampling_percentage=table.sampling_percent
                )
            ],
        ),
        data_storage_config=experiment.DataStorageConfigProperty(
            destination=capture_uri(settings),
            kms_key=key_arn,
            content_type=experiment.CaptureContentTypeHeaderProperty(
                csv_content_types=CSV_TYPES, json_content_types=JSON_TYPES
            ),
        )
        if hosting.data_capture
        else None,
        kms_key=key_arn if volume_key(hosting.instance_type, key_arn) and volume_key(instance_type, key_arn) else None,
    )


def _variant(
    name: str, model_name: str, instance_type: str, count: int
) -> sagemaker.CfnInferenceExperiment.ModelVariantConfigProperty:
    experiment = sagemaker.CfnInferenceExperiment
    return experiment.ModelVariantConfigProperty(
        variant_name=name,
        model_name=model_name,
        infrastructure_config=experiment.ModelInfrastructureConfigProperty(
            infrastructure_type="RealTimeInference",
            real_time_inference_config=experiment.RealTimeInferenceConfigProperty(
                instance_type=instance_type, instance_count=count
            ),
        ),
    )


def _schedule(table: ShadowSettings) -> sagemaker.CfnInferenceExperiment.InferenceExperimentScheduleProperty | None:
    """Without one SageMaker starts the experiment when it is made and ends it after 7 days."""
    if table.starts is None and table.ends is None:
        return None
    return sagemaker.CfnInferenceExperiment.InferenceExperimentScheduleProperty(
        start_time=_utc(table.starts), end_time=_utc(table.ends)
    )


def _utc(time: datetime | None) -> str | None:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if time else None
