"""How a model is made: the SageMaker pipeline, the registry of what it made, and what starts it: data, and a schedule."""

import tempfile
from pathlib import Path

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_events as events
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3_assets as assets
from aws_cdk import aws_sagemaker as sagemaker
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from infra.aws.foundation import FoundationStack
from infra.aws.image import (
    image_uri,
    own_training_image_uri,
    processing_image_uri,
    training_image_tag,
)
from infra.aws.instance_types import volume_key
from infra.aws.pipeline_definition import pipeline_definition
from infra.aws.pipeline_requests import PipelineResources, TrainingCode
from infra.aws.source_bundle import source_bundle
from infra.aws.stack import EnvironmentStack, acknowledge
from infra.aws.training_image import training_image
from infra.settings import DATASETS_PREFIX, ROOT, TRAINING_PREFIX, Settings, SettingsError

MAX_EVENT_AGE_SECONDS = 3600
MAX_EVENT_RETRIES = 24


class TrainingStack(EnvironmentStack):
    """SageMaker pipeline, model package group, and what starts the pipeline, with a dead-letter queue and alarms."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings, foundation: FoundationStack) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            purpose="training",
            description="SageMaker pipeline that an upload of training data starts.",
        )
        _check_preprocessing(settings)
        self._foundation = foundation
        self._model_package_group()
        pipeline = self._pipeline(self._own_image() if settings.training.image == "own" else self._script_mode())
        dead_letters = self._dead_letters()
        rule = self._trigger(pipeline, dead_letters)
        self._schedule(pipeline, dead_letters)
        self._alarms(rule, dead_letters)

    def _script_mode(self) -> TrainingCode:
        """AWS's image, which fetches the source bundle that is uploaded with the stack."""
        bundle = source_bundle(ROOT)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sourcedir.tar.gz"
            path.write_bytes(bundle.archive)
            source = assets.Asset(
                self, "Source", path=str(path), asset_hash=bundle.digest, asset_hash_type=cdk.AssetHashType.CUSTOM
            )
        self._grant_source(source)
        return TrainingCode(
            image=training_image(self.settings.aws.region, url_suffix=self.url_suffix),
            source_uri=source.s3_object_url,
            revision=f"sha256:{bundle.digest}",
        )

    def _own_image(self) -> TrainingCode:
        return TrainingCode(
            image=own_training_image_uri(self.settings, url_suffix=self.url_suffix),
            source_uri=None,
            revision=f"sha256:{training_image_tag(ROOT)}",
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

    def _pipeline(self, code: TrainingCode) -> sagemaker.CfnPipeline:
        roles, training = self._foundation.roles, self.settings.training
        resources = PipelineResources(
            datasets_uri=f"s3://{self.settings.data_bucket}/{DATASETS_PREFIX}",
            output_uri=f"s3://{self.settings.artifact_bucket}/{TRAINING_PREFIX}",
            code=code,
            processing_image=processing_image_uri(self.settings, url_suffix=self.url_suffix),
            serving_image=image_uri(self.settings, url_suffix=self.url_suffix),
            training_role_arn=roles.training.role_arn,
            evaluation_role_arn=roles.evaluation.role_arn,
            key_arn=self._foundation.key.key_arn,
            volume_key_arns=self._volume_keys(
                training.instance_type, training.processing_instance_type, training.transform_instance_type
            ),
        )
        definition = pipeline_definition(self.settings, resources)
        return sagemaker.CfnPipeline(
            self,
            "Pipeline",
            pipeline_name=self.settings.pipeline,
            pipeline_description=f"Trains {self.settings.model.name} on {self.settings.model.dataset}.",
            pipeline_definition={"PipelineDefinitionBody": self.to_json_string(definition)},
            role_arn=roles.pipeline.role_arn,
        )

    def _volume_keys(self, *instance_types: str) -> dict[str, str]:
        keys = {each: volume_key(each, self._foundation.key.key_arn) for each in instance_types}
        return {each: key for each, key in keys.items() if key}

    @property
    def _pipeline_arn(self) -> str:
        return self.format_arn(service="sagemaker", resource="pipeline", resource_name=self.settings.pipeline)

    def _dead_letters(self) -> sqs.Queue:
        queue = sqs.Queue(
            self,
            "DeadLetters",
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            retention_period=cdk.Duration.days(14),
        )
        acknowledge(queue, "SQS3", "It is the dead-letter queue of what starts the pipeline.")
        return queue

    def _trigger(self, pipeline: sagemaker.CfnPipeline, dead_letters: sqs.Queue) -> events.CfnRule:
        """A version is announced after all of its files, so half an upload starts nothing; the object that announces it is named
        by the sha256 of the manifest and written once (`ferry data upload`), so the same data twice starts one execution.

        The name is what holds: the bucket encrypts with a KMS key, and then an ETag says nothing about the content. The key is
        also all that EventBridge can pass on, a JSON path and no text around it: so the key is the version, whose files an
        execution reads while a later upload writes others. EventBridge has no L2 target for pipelines.
        """
        rule = events.CfnRule(
            self,
            "NewData",
            name=self.settings.pipeline,
            description="A version of the dataset that the data bucket did not hold before starts the pipeline.",
            event_pattern={
                "source": ["aws.s3"],
                "detail-type": ["Object Created"],
                "detail": {
                    "bucket": {"name": [self.settings.data_bucket]},
                    "object": {"key": [{"prefix": self.settings.dataset_versions}]},
                },
            },
            targets=[
                events.CfnRule.TargetProperty(
                    id="Pipeline",
                    arn=self._pipeline_arn,
                    role_arn=self._foundation.roles.trigger.role_arn,
                    dead_letter_config=events.CfnRule.DeadLetterConfigProperty(arn=dead_letters.queue_arn),
                    retry_policy=events.CfnRule.RetryPolicyProperty(
                        maximum_event_age_in_seconds=MAX_EVENT_AGE_SECONDS, maximum_retry_attempts=MAX_EVENT_RETRIES
                    ),
                    sage_maker_pipeline_parameters=events.CfnRule.SageMakerPipelineParametersProperty(
                        pipeline_parameter_list=[
                            events.CfnRule.SageMakerPipelineParameterProperty(
                                name="DatasetVersion", value="$.detail.object.key"
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

    def _schedule(self, pipeline: sagemaker.CfnPipeline, dead_letters: sqs.Queue) -> None:
        """Starts the pipeline with its defaults: on the version of the dataset that was uploaded last."""
        role = self._foundation.roles.schedule
        if role is None:
            return
        # EventBridge Scheduler writes to the queue with the role of its target, and a rule needs the queue's leave instead.
        policy = iam.Policy(
            self,
            "KeepFailedStarts",
            roles=[role],
            statements=[
                iam.PolicyStatement(
                    sid="KeepFailedStarts", actions=["sqs:SendMessage"], resources=[dead_letters.queue_arn]
                )
            ],
        )
        schedule = scheduler.CfnSchedule(
            self,
            "Schedule",
            name=self.settings.pipeline,
            description="Starts the pipeline on the data that were uploaded last.",
            schedule_expression=self.settings.training.schedule or "",
            flexible_time_window=scheduler.CfnSchedule.FlexibleTimeWindowProperty(mode="OFF"),
            target=scheduler.CfnSchedule.TargetProperty(
                arn=self._pipeline_arn,
                role_arn=role.role_arn,
                dead_letter_config=scheduler.CfnSchedule.DeadLetterConfigProperty(arn=dead_letters.queue_arn),
                retry_policy=scheduler.CfnSchedule.RetryPolicyProperty(
                    maximum_event_age_in_seconds=MAX_EVENT_AGE_SECONDS, maximum_retry_attempts=MAX_EVENT_RETRIES
                ),
            ),
        )
        schedule.add_resource_dependency(pipeline)
        schedule.node.add_dependency(policy)

    def _alarms(self, rule: events.CfnRule, dead_letters: sqs.Queue) -> None:
        """They show in CloudWatch; who is told is the account's decision, so they have no action."""
        undelivered = cloudwatch.Metric(
            namespace="AWS/Events",
            metric_name="FailedInvocations",
            dimensions_map={"RuleName": rule.ref},
            statistic="Sum",
        )
        waiting = dead_letters.metric_approximate_number_of_messages_visible(statistic="Maximum")
        # Developer Guide, "SageMaker Pipelines Metrics"; the namespace is written like this.
        failed = cloudwatch.Metric(
            namespace="AWS/Sagemaker/ModelBuildingPipeline",
            metric_name="ExecutionFailed",
            dimensions_map={"PipelineName": self.settings.pipeline},
            statistic="Sum",
        )
        for construct_id, metric, meaning in (
            ("TriggerFailed", undelivered, "EventBridge could not start the pipeline."),
            ("EventsLost", waiting, "What should have started the pipeline waits in the dead-letter queue."),
            ("PipelineFailed", failed, "An execution of the pipeline failed, or its model was below the gate."),
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


def _check_preprocessing(settings: Settings) -> None:
    """Raises SettingsError where the model has none: the step would fail only in the cloud."""
    script = f"model_code/training/{settings.model.name}/preprocess.py"
    if settings.training.preprocess and not (ROOT / script).is_file():
        raise SettingsError(f"training.preprocess: true, but there is no {script}; add it, or set preprocess = false")
