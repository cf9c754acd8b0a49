"""What outlives every model: key, buckets, image repositories, roles and the endpoint's log group."""

import aws_cdk as cdk
from aws_cdk import aws_ecr as ecr
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infra.aws.roles import Roles
from infra.aws.stack import EnvironmentStack
from infra.settings import ASYNC_PREFIX, BATCH_PREFIX, CAPTURE_PREFIX, TRAINING_PREFIX, Settings

# The serving repository gets two for each version of the sources: one serves, one runs the processing jobs.
KEPT_IMAGES = 40
OLD_VERSION_DAYS = 90
TRAINING_OUTPUT_DAYS = 180
ABORTED_UPLOAD_DAYS = 7


class FoundationStack(EnvironmentStack):
    """Key, buckets, repositories and roles of one environment; kept when everything else goes."""

    def __init__(self, scope: Construct, construct_id: str, *, settings: Settings) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            purpose="foundation",
            description="Key, buckets, image repositories and roles that outlive every model.",
            termination_protection=settings.aws.retain_data,
        )
        self.key = self._key()
        self._access_logs = self._log_bucket()
        self.data = self._data_bucket()
        self.artifacts = self._artifact_bucket()
        self.repository = self._repository("Repository", settings.repository)
        # There whatever training.image says: a repository of a fixed name that is kept could not be made a second time.
        self._repository("TrainingRepository", settings.training_repository)
        self.log_group("EndpointLogs", key=self.key, name=f"/aws/sagemaker/Endpoints/{settings.endpoint}")
        self.roles = Roles(
            self,
            "Roles",
            settings=settings,
            key_arn=self.key.key_arn,
        )
        # Without a release nobody reads these yet; exported only then, a first release would have to change Foundation.
        for role in (self.roles.hosting, self.roles.gateway, self.roles.experiment):
            if role:
                self.export_value(role.role_arn)

    def _key(self) -> kms.Key:
        key = kms.Key(
            self,
            "Key",
            alias=self.settings.prefix,
            description=f"Data, models and logs of {self.settings.prefix}",
            enable_key_rotation=True,
            removal_policy=self.removal_policy,
        )
        key.add_to_resource_policy(self._logs_may_use_key())
        key.add_to_resource_policy(self._alarms_may_use_key())
        return key

    def _logs_may_use_key(self) -> iam.PolicyStatement:
        """CloudWatch Logs encrypts with the key only for groups that the key's policy names by encryption context."""
        groups = (
            f"/aws/sagemaker/Endpoints/{self.settings.endpoint}",
            f"{self.settings.prefix}-*",
            "API-Gateway-Execution-Logs_*",
            f"{self.settings.waf_log_prefix}*",
        )
        arn = f"arn:{self.partition}:logs:{self.region}:{self.account}:log-group:"
        return iam.PolicyStatement(
            sid="EncryptLogGroups",
            principals=[iam.ServicePrincipal(f"logs.{self.region}.amazonaws.com")],
            actions=["kms:Decrypt", "kms:DescribeKey", "kms:Encrypt", "kms:GenerateDataKey*", "kms:ReEncrypt*"],
            resources=["*"],
            conditions={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": [arn + group for group in groups]}},
        )

    def _alarms_may_use_key(self) -> iam.PolicyStatement:
        """Alarms that publish to an encrypted topic use its key (Amazon SNS Developer Guide, "Managing Amazon SNS encryption keys",
        compatibility with AWS services); without this they change their state and tell nobody.
        """
        return iam.PolicyStatement(
            sid="EncryptAlarms",
            principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
            actions=["kms:Decrypt", "kms:GenerateDataKey*"],
            resources=["*"],
            conditions={"StringEquals": {"aws:SourceAccount": self.settings.aws.account}},
        )

    def _log_bucket(self) -> s3.Bucket:
        """S3 delivers access logs only to buckets with S3-managed encryption (Amazon S3 User Guide, ServerLogs)."""
        return s3.Bucket(
            self,
            "Logs",
            bucket_name=self.settings.log_bucket,
            encryption=s3.BucketEncryption.S3_MANAGED,
            lifecycle_rules=[
                self._abandoned_uploads(),
                s3.LifecycleRule(
                    id="ExpireLogs",
                    expiration=cdk.Duration.days(self.settings.aws.log_retention_days),
                    noncurrent_version_expiration=cdk.Duration.days(1),
                ),
            ],
            versioned=True,
            enforce_ssl=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            removal_policy=self.removal_policy,
        )

    def _data_bucket(self) -> s3.Bucket:
        bucket = self._bucket("Data", self.settings.data_bucket, self._old_versions())
        # The L2 switch for EventBridge deploys a Lambda function as a custom resource; the property does the same.
        resource = bucket.node.default_child
        assert isinstance(resource, s3.CfnBucket)
        resource.notification_configuration = s3.CfnBucket.NotificationConfigurationProperty(
            event_bridge_configuration=s3.CfnBucket.EventBridgeConfigurationProperty(event_bridge_enabled=True)
        )
        return bucket

    def _artifact_bucket(self) -> s3.Bucket:
        """Releases stay, with every version: release.json pins one. What training and callers left behind does not.

        The rules are there in every mode: what another mode left still goes.
        """
        training_output = s3.LifecycleRule(
            id="ExpireTrainingOutput",
            prefix=f"{TRAINING_PREFIX}/",
            expiration=cdk.Duration.days(TRAINING_OUTPUT_DAYS),
            noncurrent_version_expiration=cdk.Duration.days(OLD_VERSION_DAYS),
        )
        traffic = [
            s3.LifecycleRule(
                id=f"Expire{prefix.capitalize()}",
                prefix=f"{prefix}/",
                expiration=cdk.Duration.days(self.settings.aws.log_retention_days),
                noncurrent_version_expiration=cdk.Duration.days(1),
            )
            for prefix in (ASYNC_PREFIX, BATCH_PREFIX, CAPTURE_PREFIX)
        ]
        return self._bucket("Artifacts", self.settings.artifact_bucket, training_output, *traffic)

    def _bucket(self, construct_id: str, name: str, *lifecycle: s3.LifecycleRule) -> s3.Bucket:
        return s3.Bucket(
            self,
            construct_id,
            bucket_name=name,
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self.key,
            bucket_key_enabled=True,
            lifecycle_rules=[self._abandoned_uploads(), *lifecycle],
            server_access_logs_bucket=self._access_logs,
            server_access_logs_prefix=f"{construct_id.lower()}/",
            versioned=True,
            enforce_ssl=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            removal_policy=self.removal_policy,
        )

    @staticmethod
    def _abandoned_uploads() -> s3.LifecycleRule:
        return s3.LifecycleRule(
            id="AbortUploads", abort_incomplete_multipart_upload_after=cdk.Duration.days(ABORTED_UPLOAD_DAYS)
        )

    @staticmethod
    def _old_versions() -> s3.LifecycleRule:
        return s3.LifecycleRule(
            id="ExpireOldVersions", noncurrent_version_expiration=cdk.Duration.days(OLD_VERSION_DAYS)
        )

    def _repository(self, construct_id: str, name: str) -> ecr.Repository:
        return ecr.Repository(
            self,
            construct_id,
            repository_name=name,
            encryption=ecr.RepositoryEncryption.KMS,
            encryption_key=self.key,
            image_scan_on_push=True,
            image_tag_mutability=ecr.TagMutability.IMMUTABLE,
            lifecycle_rules=[ecr.LifecycleRule(max_image_count=KEPT_IMAGES)],
            empty_on_delete=not self.settings.aws.retain_data,
            removal_policy=self.removal_policy,
        )
