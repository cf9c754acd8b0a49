"""What all stacks of an environment have in common: name, account, region, tags; and how a policy finding is accepted."""

import aws_cdk as cdk
from aws_cdk import aws_kms as kms
from aws_cdk import aws_logs as logs
from constructs import Construct, IConstruct

from infra.release import Release
from infra.settings import Settings


class EnvironmentStack(cdk.Stack):
    """A stack of one environment; `purpose` is the last part of its name.

    The tags are the stack's: CloudFormation puts them on every resource that can carry tags, so no template repeats them.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        purpose: str,
        description: str,
        release: Release | None = None,
        termination_protection: bool = False,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            stack_name=settings.stack(purpose),
            description=description,
            env=cdk.Environment(account=settings.aws.account, region=settings.aws.region),
            termination_protection=termination_protection,
            tags=_tags(settings, release),
        )
        self.settings = settings

    @property
    def removal_policy(self) -> cdk.RemovalPolicy:
        """What happens to data and logs when the stack is deleted. Buckets that still hold objects are never emptied.

        What a failed first deployment made goes with it (RetainExceptOnCreate): it is empty, and left behind its fixed name
        would be in the way of the next one.
        """
        retain = cdk.RemovalPolicy.RETAIN_ON_UPDATE_OR_DELETE
        return retain if self.settings.aws.retain_data else cdk.RemovalPolicy.DESTROY

    def log_group(self, construct_id: str, *, key: kms.IKey, name: str | None = None) -> logs.CfnLogGroup:
        """An encrypted log group with the environment's retention; without a `name` CloudFormation finds one."""
        group = logs.CfnLogGroup(
            self,
            construct_id,
            log_group_name=name,
            kms_key_id=key.key_arn,
            retention_in_days=self.settings.aws.log_retention_days,
        )
        group.apply_removal_policy(self.removal_policy)
        return group


def _tags(settings: Settings, release: Release | None) -> dict[str, str]:
    tags = settings.tags | {"project": settings.project, "environment": settings.environment}
    return tags | ({"release-id": release.release_id} if release else {})


def acknowledge(construct: IConstruct, finding: str, reason: str) -> None:
    """Accept one finding of cdk-nag's AwsSolutions rules, with the reason, beside the resource that it is about.

    The acknowledgement is part of aws-cdk-lib; the rules themselves run in the tests.
    """
    cdk.Validations.of(construct).acknowledge(
        cdk.Acknowledgment(id=f"AwsSolutions::AwsSolutions-{finding}", reason=reason)
    )
