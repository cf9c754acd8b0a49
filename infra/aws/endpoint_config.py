"""What an endpoint runs on and what it keeps: the content of CreateEndpointConfig, by mode."""

from typing import Any

from aws_cdk import aws_sagemaker as sagemaker

from infra.aws.instance_types import volume_key
from infra.settings import ASYNC_PREFIX, CAPTURE_PREFIX, Settings

# Deployment guardrails demand that the variant keeps its name from one configuration to the next.
VARIANT = "AllTraffic"
SHADOW_VARIANT = "Shadow"
# What data capture writes down as text; every other content type it keeps as base64 (CaptureContentTypeHeader).
CSV_TYPES, JSON_TYPES = ["text/csv"], ["application/json", "application/jsonlines"]

Variant = sagemaker.CfnEndpointConfig.ProductionVariantProperty


class EndpointContent:
    """The keywords of CfnEndpointConfig, each a value or None where the settings have no such thing."""

    def __init__(self, settings: Settings, *, key_arn: str) -> None:
        self._settings = settings
        self._hosting = settings.hosting
        self._key_arn = key_arn

    def of(self, model_name: str, *, shadow_model_name: str | None, topics: dict[str, str] | None) -> dict[str, Any]:
        """`topics` holds the ARNs for success and error of an async endpoint."""
        return {
            "production_variants": [self._variant(model_name)],
            "shadow_production_variants": [self._shadow(shadow_model_name)] if shadow_model_name else None,
            "kms_key_id": self._volume_key(),
            "async_inference_config": self._async(topics) if topics else None,
            "data_capture_config": self._capture(),
        }

    def _variant(self, model_name: str) -> Variant:
        hosting = self._hosting
        if hosting.mode == "serverless":
            return Variant(
                variant_name=VARIANT,
                model_name=model_name,
                initial_variant_weight=1,
                serverless_config=sagemaker.CfnEndpointConfig.ServerlessConfigProperty(
                    memory_size_in_mb=hosting.serverless.memory_mb,
                    max_concurrency=hosting.serverless.max_concurrency,
                    provisioned_concurrency=hosting.serverless.provisioned_concurrency,
                ),
            )
        return Variant(
            variant_name=VARIANT,
            model_name=model_name,
            instance_type=hosting.instance_type,
            initial_instance_count=hosting.instance_count,
            initial_variant_weight=1,
            **self._timeouts(),
        )

    def _shadow(self, model_name: str) -> Variant:
        """Its weight, against the production variant's 1, is the share of the requests that are copied."""
        shadow = self._hosting.shadow
        assert shadow is not None
        return Variant(
            variant_name=SHADOW_VARIANT,
            model_name=model_name,
            instance_type=shadow.instance_type or self._hosting.instance_type,
            initial_instance_count=shadow.instance_count,
            initial_variant_weight=shadow.sampling_percent / 100,
            **self._timeouts(),
        )

    def _timeouts(self) -> dict[str, Any]:
        return {
            "container_startup_health_check_timeout_in_seconds": self._hosting.health_check_timeout_seconds,
            "model_data_download_timeout_in_seconds": self._hosting.download_timeout_seconds,
        }

    def _volume_key(self) -> str | None:
        """One key for the volumes of all variants, so it is left out where one of their types refuses it."""
        if self._hosting.mode == "serverless":
            return self._key_arn
        shadow = self._hosting.shadow
        types = [self._hosting.instance_type, *([shadow.instance_type] if shadow and shadow.instance_type else [])]
        keys = [volume_key(each, self._key_arn) for each in types]
        return self._key_arn if all(keys) else None

    def _async(self, topics: dict[str, str]) -> sagemaker.CfnEndpointConfig.AsyncInferenceConfigProperty:
        queue, place = self._hosting.async_inference, f"s3://{self._settings.artifact_bucket}/{ASYNC_PREFIX}"
        config = sagemaker.CfnEndpointConfig
        return config.AsyncInferenceConfigProperty(
            output_config=config.AsyncInferenceOutputConfigProperty(
                s3_output_path=f"{place}/output/",
                s3_failure_path=f"{place}/failure/",
                kms_key_id=self._key_arn,
                notification_config=config.AsyncInferenceNotificationConfigProperty(
                    success_topic=topics["success"], error_topic=topics["error"]
                ),
            ),
            client_config=config.AsyncInferenceClientConfigProperty(
                max_concurrent_invocations_per_instance=queue.max_concurrent_invocations_per_instance
            ),
        )

    def _capture(self) -> sagemaker.CfnEndpointConfig.DataCaptureConfigProperty | None:
        capture = self._hosting.data_capture
        if capture is None:
            return None
        modes = {"input": ["Input"], "output": ["Output"], "both": ["Input", "Output"]}[capture.capture]
        config = sagemaker.CfnEndpointConfig
        return config.DataCaptureConfigProperty(
            enable_capture=True,
            initial_sampling_percentage=capture.sampling_percent,
            destination_s3_uri=capture_uri(self._settings),
            kms_key_id=self._key_arn,
            capture_options=[config.CaptureOptionProperty(capture_mode=mode) for mode in modes],
            capture_content_type_header=config.CaptureContentTypeHeaderProperty(
                csv_content_types=CSV_TYPES, json_content_types=JSON_TYPES
            ),
        )


def capture_uri(settings: Settings) -> str:
    """Where a sample of the traffic is kept; SageMaker adds endpoint, variant, date and hour."""
    return f"s3://{settings.artifact_bucket}/{CAPTURE_PREFIX}/"
