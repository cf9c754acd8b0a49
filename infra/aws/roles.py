"""The roles, each with the least it needs. Nobody gets a policy that AWS manages."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from constructs import Construct

from infra.aws.stack import acknowledge
from infra.aws.training_image import training_repository_arn
from infra.settings import ONCE_PREFIX, RELEASES_PREFIX, TRAINING_PREFIX, Settings

# SageMaker Pipelines names the jobs of every pipeline pipelines-<execution id>-<step>-<suffix>.
PIPELINE_JOB_PREFIX = "pipelines-"


@dataclass(frozen=True)
class Grant:
    """One statement of a role's policy. Every resource with a "*" needs `wildcard`, the reason for it."""

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    wildcard: str = ""


class Roles(Construct):
    """Training, evaluation, pipeline, hosting, gateway and trigger role, and one for the schedule where there is one.

    Resources are named by the settings, not by reference: a role may exist before what it may use, and a change of the
    endpoint or of the pipeline never touches the roles.
    """

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings, key_arn: str) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._stack = cdk.Stack.of(self)
        self._key_arn = key_arn
        self.training = self._role("training", "sagemaker", self._training())
        self.evaluation = self._role("evaluation", "sagemaker", self._evaluation())
        self.pipeline = self._role("pipeline", "sagemaker", self._pipeline())
        self.hosting = self._role("hosting", "sagemaker", self._hosting())
        self.gateway = self._role("gateway", "apigateway", self._gateway())
        self.trigger = self._role("trigger", "events", self._start_pipeline())
        self.schedule = (
            self._role("schedule", "scheduler", self._start_pipeline()) if settings.training.schedule else None
        )

    def _training(self) -> list[Grant]:
        """What a training job does with its role: read one dataset, write its output, pull its image, log."""
        training = self._settings.training
        return [
            *self._read_dataset(),
            *(self._read_training_output("*/preprocess/*", "What preprocessing made.") if training.preprocess else []),
            *(self._keep_checkpoints() if training.checkpoints else []),
            *(self._read_once() if training.image == "pytorch" else []),
            *self._write_training_output(),
            self._encrypt_volume(),
            *self._pull_image(self._training_repository()),
            *self._write_logs("/aws/sagemaker/TrainingJobs"),
        ]

    def _evaluation(self) -> list[Grant]:
        """The processing jobs, and the candidate model of the batch transform: all that runs our serving code on test data."""
        return [
            *self._read_dataset(),
            *self._read_training_output("*", "The artifact and the test data of every execution."),
            *self._write_training_output(),
            self._encrypt_volume(),
            *self._pull_image(self._arn("ecr", f"repository/{self._settings.repository}")),
            *self._write_logs("/aws/sagemaker/ProcessingJobs", "/aws/sagemaker/TransformJobs"),
        ]

    def _pipeline(self) -> list[Grant]:
        group = self._settings.model_package_group
        jobs = tuple(
            self._arn("sagemaker", f"{kind}/{PIPELINE_JOB_PREFIX}*")
            for kind in ("training-job", "processing-job", "transform-job")
        )
        verbs = [
            f"{verb}{kind}Job"
            for kind in ("Training", "Processing", "Transform")
            for verb in ("Create", "Describe", "Stop")
        ]
        named = "SageMaker Pipelines gives everything that it makes a new name; this is the part that it never changes."
        return [
            Grant("RunJobs", ("sagemaker:AddTags", *(f"sagemaker:{verb}" for verb in verbs)), jobs, wildcard=named),
            Grant(
                "CreateCandidate",
                ("sagemaker:AddTags", "sagemaker:CreateModel", "sagemaker:DescribeModel"),
                (self._arn("sagemaker", f"model/{PIPELINE_JOB_PREFIX}*"),),
                wildcard=named,
            ),
            Grant(
                "Register",
                ("sagemaker:AddTags", "sagemaker:CreateModelPackage", "sagemaker:DescribeModelPackage"),
                (
                    self._arn("sagemaker", f"model-package-group/{group}"),
                    self._arn("sagemaker", f"model-package/{group}/*"),
                ),
                wildcard="The versions of one group.",
            ),
            # The condition reads the accuracy itself.
            *self._read_training_output(
                "*/evaluate/evaluation/*", "Every execution has an evaluation.json of its own."
            ),
            self._use_key_through_s3("kms:Decrypt"),
            Grant(
                "PassJobRoles",
                ("iam:PassRole",),
                (self.training.role_arn, self.evaluation.role_arn),
                {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
            ),
        ]

    def _hosting(self) -> list[Grant]:
        released = self._s3(self._settings.artifact_bucket, f"{RELEASES_PREFIX}/*")
        return [
            Grant("ReadReleases", ("s3:GetObject",), (released,), wildcard="Every release has a key of its own."),
            self._use_key_through_s3("kms:Decrypt"),
            self._encrypt_volume(),
            *self._pull_image(self._arn("ecr", f"repository/{self._settings.repository}")),
            *self._write_logs(f"/aws/sagemaker/Endpoints/{self._settings.endpoint}"),
        ]

    def _gateway(self) -> list[Grant]:
        endpoint = self._arn("sagemaker", f"endpoint/{self._settings.endpoint}")
        return [Grant("InvokeEndpoint", ("sagemaker:InvokeEndpoint",), (endpoint,))]

    def _start_pipeline(self) -> list[Grant]:
        pipeline = self._arn("sagemaker", f"pipeline/{self._settings.pipeline}")
        return [Grant("StartPipeline", ("sagemaker:StartPipelineExecution",), (pipeline,))]

    def _training_repository(self) -> str:
        if self._settings.training.image == "own":
            return self._arn("ecr", f"repository/{self._settings.training_repository}")
        return training_repository_arn(self._settings.aws.region, partition=self._stack.partition)

    def _read_dataset(self) -> list[Grant]:
        data, prefix = self._settings.data_bucket, f"{self._settings.dataset_prefix}/*"
        return [
            Grant("ListDataset", ("s3:ListBucket",), (self._s3(data),), {"StringLike": {"s3:prefix": prefix}}),
            Grant("ReadDataset", ("s3:GetObject",), (self._s3(data, prefix),), wildcard="The files of one dataset."),
        ]

    def _read_training_output(self, keys: str, wildcard: str) -> list[Grant]:
        """`keys` is a pattern below the prefix of the training output, which starts with the id of an execution."""
        artifacts, pattern = self._settings.artifact_bucket, f"{TRAINING_PREFIX}/{keys}"
        listed = {"StringLike": {"s3:prefix": pattern}}
        return [
            Grant("ListTrainingOutput", ("s3:ListBucket",), (self._s3(artifacts),), listed),
            Grant("ReadTrainingOutput", ("s3:GetObject",), (self._s3(artifacts, pattern),), wildcard=wildcard),
        ]

    def _read_once(self) -> list[Grant]:
        """The SageMaker SDK stages what `ferry train --once` runs below a prefix of its own; SageMaker mounts it as a channel."""
        artifacts, pattern = self._settings.artifact_bucket, f"{ONCE_PREFIX}/*"
        listed = {"StringLike": {"s3:prefix": pattern}}
        return [
            Grant("ListOnce", ("s3:ListBucket",), (self._s3(artifacts),), listed),
            Grant(
                "ReadOnce", ("s3:GetObject",), (self._s3(artifacts, pattern),), wildcard="Every job has its own key."
            ),
        ]

    def _keep_checkpoints(self) -> list[Grant]:
        """SageMaker mirrors the folder: it brings back what is there, and deletes in S3 what the job deletes."""
        artifacts, pattern = self._settings.artifact_bucket, f"{TRAINING_PREFIX}/*/checkpoints*"
        listed = {"StringLike": {"s3:prefix": pattern}}
        return [
            Grant("ListCheckpoints", ("s3:ListBucket",), (self._s3(artifacts),), listed),
            Grant(
                "KeepCheckpoints",
                ("s3:DeleteObject", "s3:GetObject"),
                (self._s3(artifacts, pattern),),
                wildcard="Every execution keeps its checkpoints below its own id.",
            ),
        ]

    def _write_training_output(self) -> list[Grant]:
        return [
            Grant(
                "WriteOutput",
                ("s3:PutObject",),
                (self._s3(self._settings.artifact_bucket, f"{TRAINING_PREFIX}/*"),),
                wildcard="SageMaker puts the names of execution and job into the key.",
            ),
            self._use_key_through_s3("kms:Decrypt", "kms:GenerateDataKey"),
            # The API reference asks for it beside what S3 does with the key (CreateTrainingJob, OutputDataConfig.KmsKeyId).
            Grant("EncryptOutput", ("kms:Encrypt",), (self._key_arn,)),
        ]

    def _use_key_through_s3(self, *actions: str) -> Grant:
        via = {"StringEquals": {"kms:ViaService": f"s3.{self._settings.aws.region}.amazonaws.com"}}
        return Grant("UseKeyThroughS3", actions, (self._key_arn,), via)

    def _encrypt_volume(self) -> Grant:
        """SageMaker hands the key on to the volumes of its instances, and to nothing that is not an AWS resource."""
        condition = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
        return Grant("EncryptVolume", ("kms:CreateGrant",), (self._key_arn,), condition)

    def _pull_image(self, repository_arn: str) -> list[Grant]:
        return [
            Grant(
                "PullImage",
                ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"),
                (repository_arn,),
            ),
            Grant(
                "LogInToRegistry",
                ("ecr:GetAuthorizationToken",),
                ("*",),
                wildcard="ecr:GetAuthorizationToken knows no resources.",
            ),
        ]

    def _write_logs(self, *groups: str) -> list[Grant]:
        arns = [self._arn("logs", f"log-group:{group}") for group in groups]
        return [
            Grant(
                "WriteLogs",
                ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"),
                tuple(resource for arn in arns for resource in (arn, f"{arn}:*")),
                wildcard="The streams of one log group; SageMaker names them.",
            ),
            Grant(
                "PutMetrics",
                ("cloudwatch:PutMetricData",),
                ("*",),
                {"StringLike": {"cloudwatch:namespace": "/aws/sagemaker/*"}},
                wildcard="cloudwatch:PutMetricData knows no resources; the condition allows SageMaker's namespaces only.",
            ),
        ]

    def _role(self, purpose: str, service: str, grants: list[Grant]) -> iam.Role:
        policy = iam.PolicyDocument(
            statements=[
                iam.PolicyStatement(
                    sid=grant.sid,
                    actions=list(grant.actions),
                    resources=list(grant.resources),
                    conditions=dict(grant.conditions),
                )
                for grant in grants
            ]
        )
        role = iam.Role(
            self,
            purpose.capitalize(),
            role_name=self._settings.role(purpose),
            assumed_by=self._principal(service),
            inline_policies={purpose: policy},
        )
        for resource, reasons in _wildcards(grants).items():
            acknowledge(role, f"IAM5[Resource::{resource}]", " ".join(reasons))
        return role

    def _principal(self, service: str) -> iam.ServicePrincipal:
        """The service may take the role for this account only.

        API Gateway is the exception: it sends no aws:SourceAccount when it takes an integration's role, so that with the
        condition every call ends in 500 (aws-solutions-library-samples/accelerated-intelligent-document-processing-on-aws,
        pull request 479). The gateway role may invoke one endpoint and nothing else.
        """
        conditions = {"StringEquals": {"aws:SourceAccount": self._settings.aws.account}}
        return iam.ServicePrincipal(
            f"{service}.amazonaws.com", conditions=None if service == "apigateway" else conditions
        )

    def _s3(self, bucket: str, key: str = "") -> str:
        return f"arn:{self._stack.partition}:s3:::{bucket}" + (f"/{key}" if key else "")

    def _arn(self, service: str, resource: str) -> str:
        aws = self._settings.aws
        return f"arn:{self._stack.partition}:{service}:{aws.region}:{aws.account}:{resource}"


def _wildcards(grants: list[Grant]) -> dict[str, list[str]]:
    """Resources with a "*", and the reasons of all grants that name them: cdk-nag keeps one reason for each resource."""
    wildcards: dict[str, list[str]] = {}
    for grant in grants:
        for resource in grant.resources:
            if grant.wildcard and "*" in resource:
                wildcards.setdefault(resource, []).append(grant.wildcard)
    return wildcards
