"""What an async endpoint tells of its requests: a topic for answers, and one for failures."""

from typing import Literal

from aws_cdk import aws_kms as kms
from aws_cdk import aws_sns as sns

from infra.aws.stack import EnvironmentStack
from infra.settings import Settings

OUTCOMES: tuple[Literal["success", "error"], ...] = ("success", "error")


def async_topics(scope: EnvironmentStack, *, settings: Settings, key: kms.IKey) -> dict[str, str]:
    """Their ARNs by outcome. Encrypted with our key, TLS only; the hosting role publishes, whoever wants to know subscribes."""
    return {
        outcome: sns.Topic(
            scope,
            f"Async{outcome.capitalize()}",
            topic_name=settings.async_topic(outcome),
            master_key=key,
            enforce_ssl=True,
        ).topic_arn
        for outcome in OUTCOMES
    }
