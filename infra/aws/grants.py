"""What a role may be granted, one statement each, and the statements that several roles share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from infra.settings import Settings


@dataclass(frozen=True)
class Grant:
    """One statement of a role's policy. Every resource with a "*" needs `wildcard`, the reason for it."""

    sid: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    conditions: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    wildcard: str = ""


class CommonGrants:
    """Statements about the environment's own key, buckets, images and logs, which the settings name."""

    _settings: Settings
    _partition: str
    _key_arn: str

    def _use_key_through_s3(self, *actions: str) -> Grant:
        via = {"StringEquals": {"kms:ViaService": f"s3.{self._settings.aws.region}.amazonaws.com"}}
        return Grant("UseKeyThroughS3", actions, (self._key_arn,), via)

    def _encrypt_volume(self) -> Grant:
        """SageMaker hands the key on to the volumes of its instances, and to nothing that is not an AWS resource."""
        condition = {"Bool": {"kms:GrantIsForAWSResource": "true"}}
        return Grant("EncryptVolume", ("kms:CreateGrant",), (self._key_arn,), condition)

    def _pull_image(self, *repository_arns: str) -> list[Grant]:
        return [
            Grant(
                "PullImage",
                ("ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"),
                repository_arns,
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

    def _s3(self, bucket: str, key: str = "") -> str:
        return f"arn:{self._partition}:s3:::{bucket}" + (f"/{key}" if key else "")

    def _arn(self, service: str, resource: str) -> str:
        aws = self._settings.aws
        return f"arn:{self._partition}:{service}:{aws.region}:{aws.account}:{resource}"
