"""The five roles, each with the least it needs. Nobody gets a policy that AWS manages."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from constructs import Construct

from infra.aws.stack import acknowledge
from infra.settings import RELEASES_PREFIX, TRAINING_PREFIX, Settings

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
    """Training, pipeline, hosting, gateway and trigger role.

    Resources are named by the settings, not by reference: a role may exist before what it may use, and a change of the
    endpoint or of the pipeline never touches the roles.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, settings: Settings, key_arn: str, training_repository_arn: str
    ) -> None:
        super().__init__(scope, construct_id)
        self._settings = settings
        self._stack = cdk.Stack.of(self)
        self._key_arn = key_arn
        self.training = self._role("training", "sagemaker", self._training(training_repository_arn))
        self.pipeline = self._role("pipeline", "sagemaker", self._pipeline())
        self.hosting = self._role("hosting", "sagemaker", self._hosting())
        self.gateway = self._role("gateway", "apigateway", self._gateway())
        self.trigger = self._role("trigger", "events", self._trigger())

    def _training(self, repository_arn: str) -> list[Grant]:
        """What a training job does with its role: read one dataset, write its output, pull AWS's image, log."""
        data, artifacts = self._settings.data_bucket, self._settings.artifact_bucket
        dataset = self._settings.dataset_prefix
        return [
            Grant("ListDataset", ("s3:ListBucket",), (self._s3(data),), {"StringLike": {"s3:prefix": f"{dataset}/*"}}),
            Grant(
                "ReadDataset",
                ("s3:GetObject",),
                (self._s3(data, f"{dataset}/*"),),
                wildcard="The files of one dataset.",
            ),
            Grant(
                "WriteOutput",
                ("s3:PutObject",),
                (self._s3(artifacts, f"{TRAINING_PREFIX}/*"),),
                wildcard="SageMaker puts the job's name into the key.",
            ),
            self._use_key_through_s3("kms:Decrypt", "kms:GenerateDataKey"),
            # The API reference asks for it beside what S3 does with the key (CreateTrainingJob, OutputDataConfig.KmsKeyId).
            Grant("EncryptOutput", ("kms:Encrypt",), (self._key_arn,)),
            self._encrypt_volume(),
            *self._pull_image(repository_arn),
            *self._write_logs("/aws/sagemaker/TrainingJobs"),
        ]

    def _pipeline(self) -> list[Grant]:
        jobs = self._arn("sagemaker", f"training-job/{PIPELINE_JOB_PREFIX}*")
        return [
            Grant(
                "RunTrainingJobs",
                (
                    "sagemaker:AddTags",
                    "sagemaker:CreateTrainingJob",
                    "sagemaker:DescribeTrainingJob",
                    "sagemaker:StopTrainingJob",
                ),
                (jobs,),
                wildcard="SageMaker Pipelines gives every job a new name; this is the part that it never changes.",
            ),
            Grant(
                "PassTrainingRole",
                ("iam:PassRole",),
                (self.training.role_arn,),
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

    def _trigger(self) -> list[Grant]:
        pipeline = self._arn("sagemaker", f"pipeline/{self._settings.pipeline}")
        return [Grant("StartPipeline", ("sagemaker:StartPipelineExecution",), (pipeline,))]

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

    def _write_logs(self, group: str) -> list[Grant]:
        arn = self._arn("logs", f"log-group:{group}")
        return [
            Grant(
                "WriteLogs",
                ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"),
                (arn, f"{arn}:*"),
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
