"""What the states of a CloudFormation stack and of a SageMaker endpoint mean for the next deployment.

Every member of botocore's StackStatus and EndpointStatus has its line here; a new one fails a test. What `cdk deploy` does
with a stack in a given state is read off its source (aws-cdk 2.1148.1, StackStatus and deployStack).
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from botocore.exceptions import ClientError

from infra.settings import Settings

# CDK ids of the stacks, in the order in which they can be deployed.
STACKS = ("Foundation", "Image", "Training", "Hosting", "Gateway")

Readiness = Literal["ready", "busy", "repair"]
# What SageMaker does with an endpoint.
Operation = Literal["invoke", "update", "delete"]

_EVENT_PAGES = 3  # of 100 events: an operation on the largest of our stacks has fewer than 200


@dataclass(frozen=True)
class Rule:
    """What one state means. `advice` may name {stack}, its CDK id, {name}, its own, and {orphans}, --orphan options."""

    readiness: Readiness
    advice: str = ""


_WAIT = Rule("busy", "wait until it has ended; two operations at once are refused")
_UNKNOWN = Rule("repair", "this version of ferry does not know that state; the console may")
_ROLL_BACK = Rule(
    "repair",
    "mend the reason, then `cdk rollback {stack}` and `cdk deploy {stack}`; rolling back needs bootstrap version 23",
)
STACK_RULES = {
    "CREATE_COMPLETE": Rule("ready"),
    "UPDATE_COMPLETE": Rule("ready"),
    "IMPORT_COMPLETE": Rule("ready"),
    "UPDATE_ROLLBACK_COMPLETE": Rule("ready", "the last deployment was taken back; what was before it stands"),
    "IMPORT_ROLLBACK_COMPLETE": Rule("ready", "the last import was taken back; what was before it stands"),
    "DELETE_COMPLETE": Rule("ready", "deleted"),
    # A change set that nobody has executed: there is no resource yet, and `cdk deploy` makes a change set of its own.
    "REVIEW_IN_PROGRESS": Rule("ready", "nothing of it exists yet, a change set waits; `cdk deploy {stack}` makes its own"),
    "CREATE_IN_PROGRESS": _WAIT,
    "UPDATE_IN_PROGRESS": _WAIT,
    "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS": _WAIT,
    "ROLLBACK_IN_PROGRESS": _WAIT,
    "UPDATE_ROLLBACK_IN_PROGRESS": _WAIT,
    "UPDATE_ROLLBACK_COMPLETE_CLEANUP_IN_PROGRESS": _WAIT,
    "DELETE_IN_PROGRESS": _WAIT,
    "IMPORT_IN_PROGRESS": _WAIT,
    "IMPORT_ROLLBACK_IN_PROGRESS": _WAIT,
    # The two states after `cdk deploy --no-rollback`. Without a state to go back to, rolling back deletes the stack.
    "CREATE_FAILED": _ROLL_BACK,
    "UPDATE_FAILED": _ROLL_BACK,
    # `cdk deploy` deletes such a stack and makes it anew. Only what has a DeletionPolicy of Retain outlives that, and its name
    # is then taken.
    "ROLLBACK_COMPLETE": Rule(
        "repair",
        "its first deployment failed. Mend the reason, then `cdk deploy {stack}`, which deletes the rest of it and starts again; "
        "where that says of something that it exists already, `cdk deploy {stack} --import-existing-resources` takes it over",
    ),
    "ROLLBACK_FAILED": Rule(
        "repair",
        "its first deployment failed, and so did its removal. Remove what the reason names, then "
        "`aws cloudformation delete-stack --stack-name {name}` and, when it is gone, `cdk deploy {stack}`",
    ),
    "UPDATE_ROLLBACK_FAILED": Rule(
        "repair",
        "neither the new nor the old stands whole. Mend the reason, then `cdk rollback {stack}`; what cannot be mended is left "
        "out with `cdk rollback {stack}{orphans}`, and `cdk deploy {stack}` follows. Never just deploy again",
    ),
    "DELETE_FAILED": Rule(
        "repair",
        "half of it is deleted. Remove what the reason names, then `aws cloudformation delete-stack --stack-name {name}`, and "
        "`cdk deploy {stack}` when it is gone",
    ),
    # CloudFormation has no operation that goes on from here but the deletion of the stack.
    "IMPORT_ROLLBACK_FAILED": Rule(
        "repair",
        "an import failed, and so did taking it back. Mend the reason, then `cdk drift {stack}` shows what differs; AWS Support "
        "resets the state where `cdk deploy {stack}` is refused",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class EndpointRule:
    """What one state of an endpoint allows (botocore, DescribeEndpoint's EndpointStatus), and what to do."""

    readiness: Readiness
    allowed: tuple[Operation, ...]
    advice: str = ""


_AGAIN = "`cdk destroy Gateway Hosting`, then `cdk deploy Hosting Gateway`; neither holds data"
ENDPOINT_RULES = {
    "InService": EndpointRule("ready", ("invoke", "update", "delete")),
    "Creating": EndpointRule("busy", (), "wait; it answers when it is InService"),
    "Updating": EndpointRule("busy", ("invoke",), "wait; until then the former configuration answers"),
    "SystemUpdating": EndpointRule(
        "busy", ("invoke",), "SageMaker maintains it and refuses updates, scaling and deletion meanwhile; wait"
    ),
    "RollingBack": EndpointRule(
        "busy", ("invoke",), "a change of its scale failed and is taken back; wait until it is InService, then read the reason"
    ),
    "Deleting": EndpointRule("busy", (), "wait until it is gone"),
    "OutOfService": EndpointRule(
        "repair", ("update", "delete"), f"it takes no requests. `cdk deploy Hosting` with another configuration, or {_AGAIN}"
    ),
    "Failed": EndpointRule(
        "repair", ("delete",), f"mend the reason, then {_AGAIN}"
    ),
    "UpdateRollbackFailed": EndpointRule(
        "repair",
        ("invoke", "update", "delete"),
        "a rolling update and its rollback both failed, so old and new instances answer side by side. Mend the reason (often "
        "capacity or a quota), then deploy the release that shall stand: `cdk deploy Hosting`; `ferry status` shows which that is",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class State:
    """The state of one thing: as the platform calls it, what it means, what to do, and the outputs or the like that it has."""

    name: str
    readiness: Readiness
    advice: str = ""
    reason: str = ""

    def __str__(self) -> str:
        return "; ".join(filter(None, (self.name, self.reason, self.advice)))


@dataclass(frozen=True)
class DeployedStack:
    """A stack as it stands, and the outputs that it has."""

    state: State
    outputs: dict[str, str]


def stack_state(settings: Settings, cloudformation: Any, stack: str) -> DeployedStack | None:
    """How a stack stands, `stack` as in `cdk deploy STACK`; None where it is not deployed. Raises ClientError."""
    name = settings.stack(stack.lower())
    try:
        (described,) = cloudformation.describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        # CloudFormation answers a name that it does not know with this code and "does not exist".
        if error.response["Error"]["Code"] != "ValidationError" or "does not exist" not in str(error):
            raise
        return None
    status = described["StackStatus"]
    if status == "DELETE_COMPLETE":
        return None
    rule = STACK_RULES.get(status, _WAIT if status.endswith("_IN_PROGRESS") else _UNKNOWN)
    reason, failed = "", []
    if rule.readiness != "ready" or status.endswith("ROLLBACK_COMPLETE"):
        try:
            events = _newest_operation(cloudformation, name)
        except ClientError as error:  # the state is known all the same
            events, reason = [], f"its events cannot be read: {error}"
        failed = _failed_resources(events)
        if not reason:
            reason = _progress(events) if rule.readiness == "busy" else _failure(events, described, failed)
    orphans = "".join(f" --orphan {each}" for each in failed)
    advice = rule.advice.format(stack=stack, name=name, orphans=orphans)
    outputs = {each["OutputKey"]: each["OutputValue"] for each in described.get("Outputs", [])}
    return DeployedStack(State(status, rule.readiness, advice, reason), outputs)


def endpoint_state(described: dict[str, Any]) -> State:
    """How an endpoint stands, from what DescribeEndpoint says of it."""
    status = described["EndpointStatus"]
    unknown = EndpointRule("repair", (), "this version of ferry does not know that state; the console may")
    rule = ENDPOINT_RULES.get(status, unknown)
    reason = described.get("FailureReason", "")
    if reason and status == "InService":  # the old configuration, after an update that SageMaker took back
        reason = f"the last update was taken back: {reason}"
    if rule.readiness == "busy" and "LastModifiedTime" in described:
        reason = "; ".join(filter(None, (f"since {_moment(described['LastModifiedTime'])}", reason)))
    advice = rule.advice
    if rule.readiness != "ready":
        advice = f"SageMaker allows {', '.join(rule.allowed) or 'nothing'} now; {advice}"
    return State(status, rule.readiness, advice, reason)


def describe_endpoint(settings: Settings, sagemaker: Any) -> dict[str, Any] | None:
    """What SageMaker says of the environment's endpoint; None where there is none. Raises ClientError."""
    try:
        return dict(sagemaker.describe_endpoint(EndpointName=settings.endpoint))
    except ClientError as error:
        # SageMaker's answer for a name that it does not know; the emulator's has the same code.
        if error.response["Error"]["Code"] != "ValidationException" or "ould not find" not in str(error):
            raise
        return None


def _newest_operation(cloudformation: Any, name: str) -> list[dict[str, Any]]:
    """The events of the operation that runs, or of the last one, the newest first."""
    events: list[dict[str, Any]] = []
    pages = cloudformation.get_paginator("describe_stack_events").paginate(
        StackName=name, PaginationConfig={"MaxItems": _EVENT_PAGES * 100}
    )
    for event in (event for page in pages for event in page["StackEvents"]):
        events.append(event)
        if event.get("ResourceStatusReason") == "User Initiated" and _of_the_stack(event):
            break
    return events


def _of_the_stack(event: dict[str, Any]) -> bool:
    return event.get("PhysicalResourceId") == event.get("StackId")


def _progress(events: Sequence[dict[str, Any]]) -> str:
    """Since when it runs, by whose token, and what it did last."""
    if not events:
        return ""
    first, last = events[-1], events[0]
    token = f" under the token {first['ClientRequestToken']}" if first.get("ClientRequestToken") else ""
    return (
        f"since {_moment(first['Timestamp'])}{token}, last at {_moment(last['Timestamp'])}: {last['LogicalResourceId']} is "
        f"{last['ResourceStatus']}"
    )


def _failure(events: Sequence[dict[str, Any]], described: dict[str, Any], stuck: Sequence[str]) -> str:
    """The resource that failed first, what failed later was mostly cancelled because of it; and what is stuck since."""
    failures = [event for event in reversed(events) if _failed(event) and not _of_the_stack(event)]
    causes = [event for event in failures if "cancelled" not in event.get("ResourceStatusReason", "")]
    if not causes:
        return str(described.get("StackStatusReason", ""))
    first, last = causes[0], causes[-1]
    later = f"; then {_words(last)}" if last is not first and last["LogicalResourceId"] in stuck else ""
    return f"{_words(first)}{later}"


def _failed(event: dict[str, Any]) -> bool:
    return str(event["ResourceStatus"]).endswith("FAILED")


def _words(event: dict[str, Any]) -> str:
    said = event.get("ResourceStatusReason", "no reason given")
    return f"{event['LogicalResourceId']} ({event['ResourceType']}) {event['ResourceStatus']}: {said}"


def _failed_resources(events: Sequence[dict[str, Any]]) -> list[str]:
    """Those whose rollback failed, each once: the newest event of each decides."""
    newest: dict[str, str] = {}
    for event in events:
        if not _of_the_stack(event):
            newest.setdefault(event["LogicalResourceId"], event["ResourceStatus"])
    return sorted(name for name, status in newest.items() if status.endswith("FAILED"))


def _moment(when: datetime.datetime) -> str:
    return f"{when.astimezone(datetime.UTC):%Y-%m-%d %H:%M:%S} UTC"
