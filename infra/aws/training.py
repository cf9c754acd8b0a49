"""How a model is made: the SageMaker pipeline, the registry of what it made, and the upload that starts it."""

import tempfile
from pathlib import Path

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_events as events
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3_assets as assets
from aws_cdk import aws_sagemaker as sagemaker
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from infra.aws.foundation import FoundationStack
from infra.aws.instance_types import volume_key
from infra.aws.pipeline_definition import PipelineResources, pipeline_definition
from infra.aws.source_bundle import source_bundle
from infra.aws.stack import EnvironmentStack, acknowledge
from infra.aws.training_image import training_image
from infra.settings import ROOT, TRAINING_PREFIX, Settings

MAX_EVENT_AGE_SECONDS = 3600
MAX_EVENT_RETRIES = 24


class TrainingStack(EnvironmentStack):
    """SageMaker pipeline, model package group, and the trigger with its dead-letter queue and alarms."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings, foundation: FoundationStack) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            purpose="training",
            description="SageMaker pipeline that an upload of training data starts.",
        )
        self._foundation = foundation
        self._dataset_uri = f"s3://{settings.data_bucket}/{settings.dataset_prefix}"
        source = self._source()
        self._grant_source(source)
        self._model_package_group()
        pipeline = self._pipeline(source)
        dead_letters = self._dead_letters()
        rule = self._trigger(pipeline, dead_letters)
        self._alarms(rule, dead_letters)

    def _source(self) -> assets.Asset:
        bundle = source_bundle(ROOT)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sourcedir.tar.gz"
            path.write_bytes(bundle.archive)
            return assets.Asset(
                self, "Source", path=str(path), asset_hash=bundle.digest, asset_hash_type=cdk.AssetHashType.CUSTOM
            )

    def _grant_source(self, source: assets.Asset) -> None:
        """Lets the training role read this one bundle. The policy lives here: new code must not change Foundation."""
        iam.Policy(
            self,
            "ReadSource",
            roles=[self._foundation.roles.training],
            statements=[
                iam.PolicyStatement(
                    sid="ReadSource",
                    actions=["s3:GetObject"],
                    resources=[source.bucket.arn_for_objects(source.s3_object_key)],
                )
            ],
        )

    def _model_package_group(self) -> None:
        group = sagemaker.CfnModelPackageGroup(
            self,
            "ModelPackageGroup",
            model_package_group_name=self.settings.model_package_group,
            model_package_group_description=f"Candidates of {self.settings.model.name}; an approved one becomes a release.",
        )
        group.apply_removal_policy(self.removal_policy)

    def _pipeline(self, source: assets.Asset) -> sagemaker.CfnPipeline:
        resources = PipelineResources(
            dataset_uri=self._dataset_uri,
            output_uri=f"s3://{self.settings.artifact_bucket}/{TRAINING_PREFIX}",
            source_uri=source.s3_object_url,
            training_image=training_image(self.settings.aws.region, url_suffix=self.url_suffix),
            role_arn=self._foundation.roles.training.role_arn,
            output_key_arn=self._foundation.key.key_arn,
            volume_key_arn=volume_key(self.settings.training.instance_type, self._foundation.key.key_arn),
        )
        definition = pipeline_definition(self.settings, resources)
        return sagemaker.CfnPipeline(
            self,
            "Pipeline",
            pipeline_name=self.settings.pipeline,
            pipeline_description=f"Trains {self.settings.model.name} on {self.settings.model.dataset}.",
            pipeline_definition={"PipelineDefinitionBody": self.to_json_string(definition)},
            role_arn=self._foundation.roles.pipeline.role_arn,
        )

    def _dead_letters(self) -> sqs.Queue:
        queue = sqs.Queue(
            self,
            "DeadLetters",
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            retention_period=cdk.Duration.days(14),
        )
        acknowledge(queue, "SQS3", "It is the dead-letter queue of the EventBridge rule.")
        return queue

    def _trigger(self, pipeline: sagemaker.CfnPipeline, dead_letters: sqs.Queue) -> events.CfnRule:
        """The manifest is uploaded last (`ferry data`), so half an upload starts nothing. EventBridge has no L2 target."""
        rule = events.CfnRule(
            self,
            "NewData",
            name=self.settings.pipeline,
            description="A new manifest in the data bucket starts the pipeline.",
            event_pattern={
                "source": ["aws.s3"],
                "detail-type": ["Object Created"],
                "detail": {
                    "bucket": {"name": [self.settings.data_bucket]},
                    "object": {"key": [f"{self.settings.dataset_prefix}/manifest.json"]},
                },
            },
            targets=[
                events.CfnRule.TargetProperty(
                    id="Pipeline",
                    arn=self.format_arn(service="sagemaker", resource="pipeline", resource_name=self.settings.pipeline),
                    role_arn=self._foundation.roles.trigger.role_arn,
                    dead_letter_config=events.CfnRule.DeadLetterConfigProperty(arn=dead_letters.queue_arn),
                    retry_policy=events.CfnRule.RetryPolicyProperty(
                        maximum_event_age_in_seconds=MAX_EVENT_AGE_SECONDS, maximum_retry_attempts=MAX_EVENT_RETRIES
                    ),
                    sage_maker_pipeline_parameters=events.CfnRule.SageMakerPipelineParametersProperty(
                        pipeline_parameter_list=[
                            events.CfnRule.SageMakerPipelineParameterProperty(
                                name="DatasetUri", value=self._dataset_uri
                            )
                        ]
                    ),
                )
            ],
        )
        rule.add_resource_dependency(pipeline)
        dead_letters.add_to_resource_policy(
            iam.PolicyStatement(
                sid="KeepFailedEvents",
                principals=[iam.ServicePrincipal("events.amazonaws.com")],
                actions=["sqs:SendMessage"],
                resources=[dead_letters.queue_arn],
                conditions={"ArnEquals": {"aws:SourceArn": rule.attr_arn}},
            )
        )
        return rule

    def _alarms(self, rule: events.CfnRule, dead_letters: sqs.Queue) -> None:
        """Both show in CloudWatch; who is told is the account's decision, so they have no action."""
        failed = cloudwatch.Metric(
            namespace="AWS/Events",
            metric_name="FailedInvocations",
            dimensions_map={"RuleName": rule.ref},
            statistic="Sum",
        )
        waiting = dead_letters.metric_approximate_number_of_messages_visible(statistic="Maximum")
        for construct_id, metric, meaning in (
            ("TriggerFailed", failed, "EventBridge could not start the pipeline."),
            ("EventsLost", waiting, "Events that should have started the pipeline wait in the dead-letter queue."),
        ):
            cloudwatch.Alarm(
                self,
                construct_id,
                metric=metric,
                alarm_description=meaning,
                threshold=1,
                evaluation_periods=1,
                comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD,
                treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
            )
