"""What SageMaker may do with the hosting role and with that of a shadow experiment, statement by statement.

Whole and by name: a statement that is not listed here is one that nobody needs.
"""

from pathlib import Path
from typing import Any

import pytest

from infra.aws.grants import Grant
from infra.aws.hosting_grants import HostingGrants
from infra.settings import Settings
from tests.hosting_variants import VARIANTS, variant_settings
from tests.stack_fixtures import dev_settings

ARTIFACTS = f"arn:aws:s3:::{dev_settings().artifact_bucket}"
ENDPOINT = dev_settings().endpoint
EC2 = "arn:aws:ec2:eu-west-1:111122223333:"
KEY = "key"
VIA_S3 = {"StringEquals": {"kms:ViaService": "s3.eu-west-1.amazonaws.com"}}

# Sid: actions, resources, and the condition where there is one.
Granted = dict[str, tuple[Any, ...]]
PULL = {"ecr:BatchCheckLayerAvailability", "ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"}
OUR_IMAGE = {f"arn:aws:ecr:eu-west-1:111122223333:repository/{dev_settings().repository}"}
READ_RELEASES: Granted = {"ReadReleases": ({"s3:GetObject"}, {f"{ARTIFACTS}/releases/*"})}
READ_WITH_KEY: Granted = {"UseKeyThroughS3": ({"kms:Decrypt"}, {KEY}, VIA_S3)}
WRITE_WITH_KEY: Granted = {"UseKeyThroughS3": ({"kms:Decrypt", "kms:GenerateDataKey"}, {KEY}, VIA_S3)}
CAPTURE: Granted = {"WriteCapture": ({"s3:PutObject"}, {f"{ARTIFACTS}/capture/*"})}
MACHINE: Granted = {
    "EncryptVolume": ({"kms:CreateGrant"}, {KEY}, {"Bool": {"kms:GrantIsForAWSResource": "true"}}),
    "PullImage": (PULL, OUR_IMAGE),
    "LogInToRegistry": ({"ecr:GetAuthorizationToken"}, {"*"}),
}


def logs(group: str) -> Granted:
    arn = f"arn:aws:logs:eu-west-1:111122223333:log-group:/aws/sagemaker/{group}"
    write = {"logs:CreateLogGroup", "logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"}
    namespaces = {"StringLike": {"cloudwatch:namespace": "/aws/sagemaker/*"}}
    return {
        "WriteLogs": (write, {arn, f"{arn}:*"}),
        "PutMetrics": ({"cloudwatch:PutMetricData"}, {"*"}, namespaces),
    }


def listed(sid: str, prefix: str) -> Granted:
    return {sid: ({"s3:ListBucket"}, {ARTIFACTS}, {"StringLike": {"s3:prefix": f"{prefix}/*"}})}


REALTIME = READ_RELEASES | READ_WITH_KEY | MACHINE | logs(f"Endpoints/{ENDPOINT}")
ASYNC = REALTIME | WRITE_WITH_KEY | listed("ListRequests", "async") | {
    "ReadRequests": ({"s3:GetObject"}, {f"{ARTIFACTS}/async/input/*"}),
    "WriteAnswers": (
        {"s3:AbortMultipartUpload", "s3:PutObject"},
        {f"{ARTIFACTS}/async/output/*", f"{ARTIFACTS}/async/failure/*"},
    ),
    "TellOutcome": (
        {"sns:Publish"},
        {f"arn:aws:sns:eu-west-1:111122223333:{ENDPOINT}-{outcome}" for outcome in ("success", "error")},
    ),
    "UseKeyThroughSns": (
        {"kms:Decrypt", "kms:GenerateDataKey"},
        {KEY},
        {"StringEquals": {"kms:ViaService": "sns.eu-west-1.amazonaws.com"}},
    ),
}  # fmt: skip
BATCH = READ_RELEASES | WRITE_WITH_KEY | MACHINE | logs("TransformJobs") | listed("ListBatch", "batch") | {
    "ReadBatch": ({"s3:GetObject"}, {f"{ARTIFACTS}/batch/*/input/*"}),
    "WriteBatch": ({"s3:AbortMultipartUpload", "s3:PutObject"}, {f"{ARTIFACTS}/batch/*/output/*"}),
    "EncryptOutput": ({"kms:Encrypt"}, {KEY}),
}  # fmt: skip
NETWORK: Granted = {
    "UseInterfaces": (
        {
            "ec2:CreateNetworkInterface",
            "ec2:CreateNetworkInterfacePermission",
            "ec2:DeleteNetworkInterface",
            "ec2:DeleteNetworkInterfacePermission",
        },
        {f"{EC2}network-interface/*"},
    ),
    "SeeNetwork": (
        {
            f"ec2:Describe{each}"
            for each in ("DhcpOptions", "NetworkInterfaces", "SecurityGroups", "Subnets", "VpcEndpoints", "Vpcs")
        },
        {"*"},
    ),
}
OWN_NETWORK: Granted = {
    "UseSubnets": (
        {"ec2:CreateNetworkInterface"},
        {f"{EC2}subnet/*", f"{EC2}security-group/*"},
        {"StringEquals": {"aws:ResourceTag/project": "modelferry", "aws:ResourceTag/environment": "dev"}},
    )
}
YOUR_NETWORK: Granted = {
    "UseSubnets": (
        {"ec2:CreateNetworkInterface"},
        {
            f"{EC2}subnet/subnet-0a1b2c3d4e5f60718",
            f"{EC2}subnet/subnet-1a1b2c3d4e5f60718",
            f"{EC2}security-group/sg-0a1b2c3d4e5f60718",
        },
    )
}
TRANSLATE = "arn:aws:ecr:eu-west-1:111122223333:repository/team/translate"
SEVERAL_IMAGES: Granted = {"PullImage": (PULL, OUR_IMAGE | {TRANSLATE})}
AWS_IMAGE: Granted = {"PullImage": (PULL, {"arn:aws:ecr:eu-west-1:763104351884:repository/pytorch-inference"})}

HOSTING: dict[str, Granted] = {
    "realtime-single": REALTIME,
    "realtime-multi-model": REALTIME | listed("ListReleases", "releases"),
    "realtime-multi-container": REALTIME | SEVERAL_IMAGES,
    "realtime-serial-pipeline": REALTIME | SEVERAL_IMAGES,
    "serverless-single": REALTIME,
    "async-single": ASYNC,
    "batch-single": BATCH,
    "batch-serial-pipeline": BATCH,
    "realtime-scaling": REALTIME,
    "serverless-scaling": REALTIME,
    "async-scaling-to-zero": ASYNC,
    "realtime-canary": REALTIME,
    "realtime-linear": REALTIME,
    "realtime-rolling": REALTIME,
    "async-canary": ASYNC,
    "realtime-shadow-variant": REALTIME | WRITE_WITH_KEY | CAPTURE,
    "realtime-shadow-experiment": REALTIME | WRITE_WITH_KEY | CAPTURE,
    "realtime-data-capture": REALTIME | WRITE_WITH_KEY | CAPTURE,
    "realtime-own-network": REALTIME | NETWORK | OWN_NETWORK,
    "realtime-own-network-open": REALTIME | NETWORK | OWN_NETWORK,
    "realtime-your-network": REALTIME | NETWORK | YOUR_NETWORK,
    "realtime-local-storage": REALTIME,
    "realtime-inferentia-1": REALTIME,
    "realtime-pytorch-dlc": REALTIME | AWS_IMAGE,
}
CONFIGURATIONS = "arn:aws:sagemaker:eu-west-1:111122223333:endpoint-config/*"
EXPERIMENT = READ_RELEASES | WRITE_WITH_KEY | CAPTURE | MACHINE | {
    "MoveEndpoint": (
        {"sagemaker:DescribeEndpoint", "sagemaker:UpdateEndpoint"},
        {f"arn:aws:sagemaker:eu-west-1:111122223333:endpoint/{ENDPOINT}", CONFIGURATIONS},
    ),
    "ConfigureShadow": (
        {
            "sagemaker:AddTags",
            "sagemaker:CreateEndpointConfig",
            "sagemaker:DeleteEndpointConfig",
            "sagemaker:DescribeEndpointConfig",
        },
        {CONFIGURATIONS},
    ),
    "DescribeModels": ({"sagemaker:DescribeModel"}, {f"arn:aws:sagemaker:eu-west-1:111122223333:model/{ENDPOINT}-*"}),
}  # fmt: skip


def granted(grants: list[Grant]) -> Granted:
    """Sid: actions, resources and condition; an environment without the latter has two parts."""
    found = {
        each.sid: (set(each.actions), set(each.resources), *([dict(each.conditions)] if each.conditions else []))
        for each in grants
    }
    assert len(found) == len(grants)
    return found


def grants_of(settings: Settings) -> HostingGrants:
    return HostingGrants(settings, partition="aws", key_arn=KEY)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_hosting_role_may_do_exactly_this(name: str, tmp_path: Path) -> None:
    assert granted(grants_of(variant_settings(name, tmp_path)).hosting()) == HOSTING[name]


def test_the_role_of_an_experiment_may_do_exactly_this(tmp_path: Path) -> None:
    settings = variant_settings("realtime-shadow-experiment", tmp_path)
    assert granted(grants_of(settings).experiment()) == EXPERIMENT


def test_every_wildcard_of_a_statement_has_a_reason(tmp_path: Path) -> None:
    for name in VARIANTS:
        for grant in grants_of(variant_settings(name, tmp_path)).hosting():
            assert not any("*" in resource for resource in grant.resources) or grant.wildcard, grant.sid
