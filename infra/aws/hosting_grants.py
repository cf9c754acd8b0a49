"""What SageMaker does with the hosting role, by mode, layout and network; and with the role of a shadow experiment.

What CreateModel, AsyncInferenceConfig and DataCaptureConfig need: SageMaker Developer Guide, "SageMaker AI roles" (CreateModel
API), "Asynchronous inference, prerequisites", "Capture data from real-time endpoint", "Give SageMaker AI hosted endpoints
access to resources in your Amazon VPC".
"""

from infra.aws.grants import CommonGrants, Grant
from infra.aws.inference_image import inference_repository_arn
from infra.settings import ASYNC_PREFIX, BATCH_PREFIX, CAPTURE_PREFIX, RELEASES_PREFIX, Settings

# What the role does with network interfaces in a VPC, beside describing what is there.
_INTERFACE_ACTIONS = (
    "ec2:CreateNetworkInterface",
    "ec2:CreateNetworkInterfacePermission",
    "ec2:DeleteNetworkInterface",
    "ec2:DeleteNetworkInterfacePermission",
)
_DESCRIBE_ACTIONS = (
    "ec2:DescribeDhcpOptions",
    "ec2:DescribeNetworkInterfaces",
    "ec2:DescribeSecurityGroups",
    "ec2:DescribeSubnets",
    "ec2:DescribeVpcEndpoints",
    "ec2:DescribeVpcs",
)


class HostingGrants(CommonGrants):
    """The statements of both roles; each is there only where the settings need it."""

    def __init__(self, settings: Settings, *, partition: str, key_arn: str) -> None:
        self._settings = settings
        self._partition = partition
        self._key_arn = key_arn

    def hosting(self) -> list[Grant]:
        hosting = self._settings.hosting
        group = "TransformJobs" if hosting.mode == "batch" else f"Endpoints/{self._settings.endpoint}"
        return [
            *self._read_releases(),
            *(self._queue() if hosting.mode == "async" else []),
            *(self._transform() if hosting.mode == "batch" else []),
            *(self._capture() if hosting.data_capture else []),
            self._use_key(writes=hosting.mode in ("async", "batch") or hosting.data_capture is not None),
            self._encrypt_volume(),
            *self._pull_image(*self._repositories()),
            *(self._use_network() if hosting.network.vpc else []),
            *self._write_logs(f"/aws/sagemaker/{group}"),
        ]

    def experiment(self) -> list[Grant]:
        """CreateInferenceExperiment, RoleArn: "access model artifacts and container images, and manage endpoints".

        SageMaker makes an endpoint configuration with the shadow and moves the endpoint to it, and back when it ends. The
        Developer Guide ("Create a shadow test") attaches AmazonSageMakerFullAccess; this is the part of it that serves this.
        """
        named = "SageMaker chooses the names of an experiment's endpoint configurations."
        capture = self._settings.hosting.data_capture
        configurations = self._arn("sagemaker", "endpoint-config/*")
        endpoint = self._arn("sagemaker", f"endpoint/{self._settings.endpoint}")
        return [
            Grant(
                "MoveEndpoint",
                ("sagemaker:DescribeEndpoint", "sagemaker:UpdateEndpoint"),
                (endpoint, configurations),
                wildcard=named,
            ),
            Grant(
                "ConfigureShadow",
                (
                    "sagemaker:AddTags",
                    "sagemaker:CreateEndpointConfig",
                    "sagemaker:DeleteEndpointConfig",
                    "sagemaker:DescribeEndpointConfig",
                ),
                (configurations,),
                wildcard=named,
            ),
            Grant(
                "DescribeModels",
                ("sagemaker:DescribeModel",),
                (self._arn("sagemaker", f"model/{self._settings.endpoint}-*"),),
                wildcard="The names of this environment's models end in a hash of their content.",
            ),
            Grant(
                "ReadReleases", ("s3:GetObject",), (self._released(),), wildcard="Every release has a key of its own."
            ),
            *(self._capture() if capture else []),
            self._use_key(writes=capture is not None),
            self._encrypt_volume(),
            *self._pull_image(*self._repositories()),
        ]

    def _read_releases(self) -> list[Grant]:
        """A multi-model endpoint also lists: SageMaker looks up what TargetModel names."""
        artifacts, listed = self._settings.artifact_bucket, {"StringLike": {"s3:prefix": f"{RELEASES_PREFIX}/*"}}
        lists = self._settings.hosting.layout == "multi-model"
        return [
            *([Grant("ListReleases", ("s3:ListBucket",), (self._s3(artifacts),), listed)] if lists else []),
            Grant(
                "ReadReleases", ("s3:GetObject",), (self._released(),), wildcard="Every release has a key of its own."
            ),
        ]

    def _released(self) -> str:
        return self._s3(self._settings.artifact_bucket, f"{RELEASES_PREFIX}/*")

    def _use_key(self, *, writes: bool) -> Grant:
        return self._use_key_through_s3("kms:Decrypt", *(("kms:GenerateDataKey",) if writes else ()))

    def _queue(self) -> list[Grant]:
        """Requests in, answers and failures out, and a word about each to a topic that our key encrypts."""
        artifacts, region = self._settings.artifact_bucket, self._settings.aws.region
        topics = tuple(self._arn("sns", self._settings.async_topic(outcome)) for outcome in ("success", "error"))
        return [
            Grant(
                "ListRequests",
                ("s3:ListBucket",),
                (self._s3(artifacts),),
                {"StringLike": {"s3:prefix": f"{ASYNC_PREFIX}/*"}},
            ),
            Grant(
                "ReadRequests",
                ("s3:GetObject",),
                (self._s3(artifacts, f"{ASYNC_PREFIX}/input/*"),),
                wildcard="Every request has a key of its own.",
            ),
            Grant(
                "WriteAnswers",
                ("s3:AbortMultipartUpload", "s3:PutObject"),
                tuple(self._s3(artifacts, f"{ASYNC_PREFIX}/{folder}/*") for folder in ("output", "failure")),
                wildcard="SageMaker names every answer after its inference.",
            ),
            Grant("TellOutcome", ("sns:Publish",), topics),
            Grant(
                "UseKeyThroughSns",
                ("kms:Decrypt", "kms:GenerateDataKey"),
                (self._key_arn,),
                {"StringEquals": {"kms:ViaService": f"sns.{region}.amazonaws.com"}},
            ),
        ]

    def _transform(self) -> list[Grant]:
        """CreateTransformJob has no role of its own: the job acts with that of its model."""
        artifacts, every = self._settings.artifact_bucket, "Every transform job has a prefix of its own."
        return [
            Grant(
                "ListBatch",
                ("s3:ListBucket",),
                (self._s3(artifacts),),
                {"StringLike": {"s3:prefix": f"{BATCH_PREFIX}/*"}},
            ),
            Grant("ReadBatch", ("s3:GetObject",), (self._s3(artifacts, f"{BATCH_PREFIX}/*/input/*"),), wildcard=every),
            Grant(
                "WriteBatch",
                ("s3:AbortMultipartUpload", "s3:PutObject"),
                (self._s3(artifacts, f"{BATCH_PREFIX}/*/output/*"),),
                wildcard=every,
            ),
            # The API reference asks for it beside what S3 does with the key (TransformOutput.KmsKeyId).
            Grant("EncryptOutput", ("kms:Encrypt",), (self._key_arn,)),
        ]

    def _capture(self) -> list[Grant]:
        return [
            Grant(
                "WriteCapture",
                ("s3:PutObject",),
                (self._s3(self._settings.artifact_bucket, f"{CAPTURE_PREFIX}/*"),),
                wildcard="SageMaker puts endpoint, variant and hour into the key.",
            )
        ]

    def _repositories(self) -> tuple[str, ...]:
        """Those of our own image or of AWS's, and those of the containers that bring an image."""
        hosting, aws = self._settings.hosting, self._settings.aws
        if hosting.image == "pytorch-dlc":
            return (inference_repository_arn(aws.region, partition=self._partition),)
        others = {self._repository_of(each.image) for each in hosting.containers if each.image}
        return (self._arn("ecr", f"repository/{self._settings.repository}"), *sorted(others))

    def _repository_of(self, image: str) -> str:
        """The ARN of an image's repository; the settings let only ECR's names with a digest through."""
        registry, name = image.split("@")[0].split("/", 1)
        account, _, _, region = registry.split(".")[:4]
        return f"arn:{self._partition}:ecr:{region}:{account}:repository/{name}"

    def _use_network(self) -> list[Grant]:
        """Network interfaces in the model's subnets and in no others: by their ids, or by the tags of this environment."""
        account = self._arn("ec2", "")
        vpc = self._settings.hosting.network.vpc
        assert vpc is not None
        if vpc.cidr:
            places: tuple[str, ...] = (f"{account}subnet/*", f"{account}security-group/*")
            tags = {"project": self._settings.project, "environment": self._settings.environment}
            conditions = {"StringEquals": {f"aws:ResourceTag/{name}": value for name, value in tags.items()}}
        else:
            places = (
                *(f"{account}subnet/{each}" for each in vpc.subnet_ids),
                *(f"{account}security-group/{each}" for each in vpc.security_group_ids),
            )
            conditions = {}
        return [
            Grant(
                "UseSubnets",
                ("ec2:CreateNetworkInterface",),
                places,
                conditions,
                wildcard="The condition allows the subnets and security groups of this environment only.",
            ),
            Grant(
                "UseInterfaces",
                _INTERFACE_ACTIONS,
                (f"{account}network-interface/*",),
                wildcard="Network interfaces have no name before they exist.",
            ),
            Grant("SeeNetwork", _DESCRIBE_ACTIONS, ("*",), wildcard="EC2's descriptions know no resources."),
        ]
