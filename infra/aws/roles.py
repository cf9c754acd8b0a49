"""The roles, each with the least it needs. Nobody gets a policy that AWS manages."""

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from constructs import Construct

from infra.aws.grants import CommonGrants, Grant
from infra.aws.hosting_grants import HostingGrants
from infra.aws.stack import acknowledge
from infra.aws.training_image import training_repository_arn
from infra.settings import ONCE_PREFIX, TRAINING_PREFIX, Settings

# SageMaker Pipelines names the jobs of every pipeline pipelines-<execution id>-<step>-<suffix>.
PIPELINE_JOB_PREFIX = "pipelines-"


class Roles(CommonGrants, Construct):
    """Training, evaluation, pipeline, hosting, gateway, build and trigger role, and those of the schedule and of a shadow
    experiment where there is one.

    Resources are named by the settings, not by reference: a role may exist before what it may use, and a change of the
    endpoint or of the pipeline never touches the roles.
    """

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings, key_arn: str) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._partition = cdk.Stack.of(self).partition
        self._key_arn = key_arn
        self.training = self._role("training", "sagemaker", self._training())
        self.evaluation = self._role("evaluation", "sagemaker", self._evaluation())
        self.pipeline = self._role("pipeline", "sagemaker", self._pipeline())
        hosting = HostingGrants(settings, partition=self._partition, key_arn=key_arn)
        self.hosting = self._role("hosting", "sagemaker", hosting.hosting())
        self.gateway = self._role("gateway", "apigateway", self._gateway())
        self.build = self._role("build", "codebuild", self._build())
        self.trigger = self._role("trigger", "events", self._start_pipeline())
        self.schedule = (
            self._role("schedule", "scheduler", self._start_pipeline()) if settings.training.schedule else None
        )
        shadow = settings.hosting.shadow
        self.experiment = (
            self._role("experiment", "sagemaker", hosting.experiment())
            if shadow and shadow.form == "experiment"
            else None
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

    def _gateway(self) -> list[Grant]:
        endpoint = self._arn("sagemaker", f"endpoint/{self._settings.endpoint}")
        invoke = "InvokeEndpointAsync" if self._settings.hosting.mode == "async" else "InvokeEndpoint"
        return [Grant(name, (f"sagemaker:{name}",), (endpoint,)) for name in (invoke, "DescribeEndpoint")]

    def _build(self) -> list[Grant]:
        """The CodeBuild project: push images. Its sources and its log are granted where they are."""
        own_training = self._settings.training.image == "own"
        names = [self._settings.repository, *([self._settings.training_repository] if own_training else [])]
        return [
            # Amazon ECR User Guide, "IAM permissions for pushing an image", and DescribeImages to see whether a tag is there.
            Grant(
                "PushImages",
                (
                    "ecr:BatchCheckLayerAvailability",
                    "ecr:BatchGetImage",
                    "ecr:CompleteLayerUpload",
                    "ecr:DescribeImages",
                    "ecr:GetDownloadUrlForLayer",
                    "ecr:InitiateLayerUpload",
                    "ecr:PutImage",
                    "ecr:UploadLayerPart",
                ),
                tuple(self._arn("ecr", f"repository/{name}") for name in names),
            ),
            Grant(
                "LogInToRegistry",
                ("ecr:GetAuthorizationToken",),
                ("*",),
                wildcard="ecr:GetAuthorizationToken knows no resources.",
            ),
            Grant("UseKey", ("kms:Decrypt", "kms:Encrypt", "kms:GenerateDataKey"), (self._key_arn,)),
        ]

    def _start_pipeline(self) -> list[Grant]:
        pipeline = self._arn("sagemaker", f"pipeline/{self._settings.pipeline}")
        return [Grant("StartPipeline", ("sagemaker:StartPipelineExecution",), (pipeline,))]

    def _training_repository(self) -> str:
        if self._settings.training.image == "own":
            return self._arn("ecr", f"repository/{self._settings.training_repository}")
        return training_repository_arn(self._settings.aws.region, partition=self._partition)

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


def _wildcards(grants: list[Grant]) -> dict[str, list[str]]:
    """Resources with a "*", and the reasons of all grants that name them: cdk-nag keeps one reason for each resource."""
    wildcards: dict[str, list[str]] = {}
    for grant in grants:
        for resource in grant.resources:
            if grant.wildcard and "*" in resource:
                wildcards.setdefault(resource, []).append(grant.wildcard)
    return wildcards
