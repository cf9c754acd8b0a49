"""What is half done on AWS or Azure has a name, a reason and a way out; and no state is left that nobody thought of."""

import base64
import datetime
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import botocore.session
import pytest

from ferry.aws import QUICK
from ferry.azure import NotFound
from ferry.cloud_states import (
    ENDPOINT_RULES,
    STACK_RULES,
    DeployedStack,
    describe_endpoint,
    endpoint_state,
    stack_state,
)
from ferry.cloud_states_azure import app_state, blob_lock, local_lock, lock_holder, state_file
from ferry.errors import FerryError
from infra.settings import Settings
from infra.settings_azure import AzureStateSettings
from tests.scripted_aws import connect_to, refuses, says
from tests.scripted_server import Reply, SignedIn, scripted
from tests.stack_fixtures import dev_settings

TERRAFORM = shutil.which("terraform")
STARTED = datetime.datetime(2026, 11, 20, 9, 30, tzinfo=datetime.UTC)
STACK_ID = "arn:aws:cloudformation:eu-west-1:111122223333:stack/modelferry-dev-hosting/0a1b"


def members(service: str, shape: str) -> set[str]:
    return set(botocore.session.get_session().get_service_model(service).shape_for(shape).enum)


def event(resource: str, status: str, reason: str | None = None, minute: int = 0, kind: str = "") -> dict[str, Any]:
    """One entry of DescribeStackEvents; the stack's own events carry its id as their resource."""
    own = resource == "modelferry-dev-hosting"
    return {
        "StackId": STACK_ID,
        "EventId": f"{resource}-{minute}",
        "StackName": "modelferry-dev-hosting",
        "LogicalResourceId": resource,
        "PhysicalResourceId": STACK_ID if own else f"{resource}-id",
        "ResourceType": "AWS::CloudFormation::Stack" if own else kind or "AWS::SageMaker::Endpoint",
        "Timestamp": STARTED + datetime.timedelta(minutes=minute),
        "ResourceStatus": status,
        **({"ResourceStatusReason": reason} if reason else {}),
        **({"ClientRequestToken": "cdk-deploy-5e1f"} if own else {}),
    }


def begin(status: str = "UPDATE_IN_PROGRESS") -> dict[str, Any]:
    return event("modelferry-dev-hosting", status, "User Initiated")


def look(status: str, *events: dict[str, Any], outputs: dict[str, str] | None = None) -> DeployedStack | None:
    """The stack Hosting in a state, with the events of its newest operation, the newest first."""
    stack = {
        "StackName": "modelferry-dev-hosting",
        "StackId": STACK_ID,
        "CreationTime": STARTED,
        "StackStatus": status,
        "Outputs": [{"OutputKey": key, "OutputValue": value} for key, value in (outputs or {}).items()],
    }
    replies = {
        "DescribeStacks": [says("cloudformation", "DescribeStacks", {"Stacks": [stack]})],
        "DescribeStackEvents": [says("cloudformation", "DescribeStackEvents", {"StackEvents": list(events)})],
    }
    with scripted(replies) as server:
        settings = dev_settings()
        return stack_state(settings, connect_to(server)(settings, "cloudformation"), "Hosting")


def text(found: DeployedStack | None) -> str:
    assert found is not None
    return str(found.state)


def test_every_state_of_a_stack_has_a_rule() -> None:
    assert set(STACK_RULES) == members("cloudformation", "StackStatus")


def test_every_state_of_an_endpoint_has_a_rule() -> None:
    assert set(ENDPOINT_RULES) == members("sagemaker", "EndpointStatus")


@pytest.mark.parametrize("status", sorted(STACK_RULES))
def test_a_stack_in_any_state_is_ready_or_says_what_to_do(status: str) -> None:
    found = look(status, begin())
    rule = STACK_RULES[status]
    if status == "DELETE_COMPLETE":
        assert found is None
        return
    assert found is not None
    assert found.state.readiness == rule.readiness
    assert rule.readiness == "ready" or found.state.advice
    assert "{" not in found.state.advice
    # Only what is at rest may be deployed to, and whatever CloudFormation works on is waited for.
    assert (found.state.readiness == "busy") == (status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS")
    assert found.state.readiness != "ready" or not status.endswith("FAILED")


def test_d7_a_failed_rollback_names_both_reasons_and_the_way_out_and_is_never_just_tried_again() -> None:
    said = text(
        look(
            "UPDATE_ROLLBACK_FAILED",
            event("modelferry-dev-hosting", "UPDATE_ROLLBACK_FAILED", "The following resource(s) failed", 9),
            event("Endpoint", "UPDATE_FAILED", "Endpoint config modelferry-dev-mnist-0a does not exist", 8),
            event("modelferry-dev-hosting", "UPDATE_ROLLBACK_IN_PROGRESS", "The following resource(s) failed", 5),
            event("Rollback5xx", "UPDATE_FAILED", "Resource update cancelled", 4, "AWS::CloudWatch::Alarm"),
            event("Endpoint", "UPDATE_FAILED", "The primary container did not pass the ping health check", 4),
            begin(),
            event("Endpoint", "UPDATE_FAILED", "of an earlier operation"),
        )
    )
    assert "did not pass the ping health check; then Endpoint" in said
    assert "does not exist" in said
    assert "cancelled" not in said
    assert "earlier operation" not in said
    assert "`cdk rollback Hosting`" in said
    assert "cdk rollback Hosting --orphan Endpoint --orphan Rollback5xx" in said
    assert "Never just deploy again" in said


def test_d8_a_stack_at_work_says_since_when_under_whose_token_and_what_it_did_last() -> None:
    found = look("UPDATE_IN_PROGRESS", event("Endpoint", "UPDATE_IN_PROGRESS", minute=3), begin())
    assert found is not None
    assert found.state.readiness == "busy"
    assert text(found) == (
        "UPDATE_IN_PROGRESS; since 2026-11-20 09:30:00 UTC under the token cdk-deploy-5e1f, last at 2026-11-20 09:33:00 UTC: "
        "Endpoint is UPDATE_IN_PROGRESS; wait until it has ended; two operations at once are refused"
    )


def test_a_deployment_that_was_taken_back_is_ready_and_says_why_it_was() -> None:
    found = look("UPDATE_ROLLBACK_COMPLETE", event("Endpoint", "UPDATE_FAILED", "no capacity", 2), begin())
    assert found is not None
    assert found.state.readiness == "ready"
    assert "Endpoint (AWS::SageMaker::Endpoint) UPDATE_FAILED: no capacity" in text(found)


def test_d8_a_state_of_tomorrow_that_is_in_progress_is_waited_for() -> None:
    found = look("ROLLFORWARD_IN_PROGRESS", begin())
    assert found is not None
    assert found.state.readiness == "busy"
    found = look("ROLLFORWARD_FAILED", begin())
    assert found is not None
    assert found.state.readiness == "repair"


@pytest.mark.parametrize(("code", "status"), [("Throttling", 400), ("AccessDenied", 403)])
def test_d7_a_state_is_told_also_where_its_reasons_cannot_be_read(code: str, status: int) -> None:
    settings = dev_settings()
    stack = {"StackName": "modelferry-dev-hosting", "CreationTime": STARTED, "StackStatus": "UPDATE_ROLLBACK_FAILED"}
    replies = {
        "DescribeStacks": [says("cloudformation", "DescribeStacks", {"Stacks": [stack]})],
        "DescribeStackEvents": [refuses("cloudformation", code, "not now", status)],
    }
    with scripted(replies) as server:
        client = connect_to(server, QUICK)(settings, "cloudformation")
        said = text(stack_state(settings, client, "Hosting"))
    assert said.startswith("UPDATE_ROLLBACK_FAILED; its events cannot be read: ")
    assert "`cdk rollback Hosting`" in said


def test_a_stack_that_is_not_there_is_no_error_and_another_refusal_is_one() -> None:
    settings = dev_settings()
    missing = refuses("cloudformation", "ValidationError", "Stack with id modelferry-dev-hosting does not exist")
    with scripted({"DescribeStacks": [missing]}) as server:
        assert stack_state(settings, connect_to(server)(settings, "cloudformation"), "Hosting") is None
    with scripted({"DescribeStacks": [refuses("cloudformation", "AccessDenied", "no", 403)]}) as server:
        client = connect_to(server)(settings, "cloudformation")
        with pytest.raises(client.exceptions.ClientError, match="AccessDenied"):
            stack_state(settings, client, "Hosting")


def described(status: str, reason: str | None = None) -> dict[str, Any]:
    """DescribeEndpoint, through a real client."""
    document = {
        "EndpointName": "modelferry-dev-mnist",
        "EndpointArn": "arn:aws:sagemaker:eu-west-1:111122223333:endpoint/modelferry-dev-mnist",
        "EndpointStatus": status,
        "CreationTime": STARTED,
        "LastModifiedTime": STARTED,
        **({"FailureReason": reason} if reason else {}),
    }
    settings = dev_settings()
    with scripted({"DescribeEndpoint": [says("sagemaker", "DescribeEndpoint", document)]}) as server:
        found = describe_endpoint(settings, connect_to(server)(settings, "sagemaker"))
    assert found is not None
    return found


def test_d9_an_update_that_sagemaker_took_back_leaves_a_ready_endpoint_and_its_reason() -> None:
    state = endpoint_state(described("InService", "The primary container did not pass the ping health check"))
    assert state.readiness == "ready"
    assert (
        str(state)
        == "InService; the last update was taken back: The primary container did not pass the ping health check"
    )


def test_d10_failed_update_rollback_failed_and_system_updating_are_three_different_things() -> None:
    states = {name: endpoint_state(described(name, "no capacity")) for name in _THREE}
    assert {name: state.readiness for name, state in states.items()} == {
        "Failed": "repair",
        "UpdateRollbackFailed": "repair",
        "SystemUpdating": "busy",
    }
    assert len({state.advice for state in states.values()}) == 3
    assert all("no capacity" in str(state) for state in states.values())
    # What may be done is SageMaker's word, in the description of DescribeEndpoint's EndpointStatus.
    assert {name: ENDPOINT_RULES[name].allowed for name in _THREE} == {
        "Failed": ("delete",),
        "UpdateRollbackFailed": ("invoke", "update", "delete"),
        "SystemUpdating": ("invoke",),
    }
    assert "cdk destroy Gateway Hosting" in states["Failed"].advice
    assert "cdk destroy" not in states["UpdateRollbackFailed"].advice + states["SystemUpdating"].advice


_THREE = ("Failed", "UpdateRollbackFailed", "SystemUpdating")


def test_an_endpoint_that_is_at_work_says_since_when_and_no_operation_but_invoke_is_allowed() -> None:
    for name, rule in ENDPOINT_RULES.items():
        if rule.readiness == "busy":
            assert "since 2026-11-20 09:30:00 UTC" in str(endpoint_state(described(name)))
            assert set(rule.allowed) <= {"invoke"}


def test_an_endpoint_that_is_not_there_is_none() -> None:
    settings = dev_settings()
    missing = refuses("sagemaker", "ValidationException", 'Could not find endpoint "modelferry-dev-mnist".')
    with scripted({"DescribeEndpoint": [missing]}) as server:
        assert describe_endpoint(settings, connect_to(server)(settings, "sagemaker")) is None


_HOLDER = """\
import fcntl, json, sys
path, note = sys.argv[1:]
with open(path, "r+b") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    open(note, "w").write(json.dumps({"ID": "9c1b", "Operation": "OperationTypeApply", "Who": "ada@build", "Created": "2026"}))
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held(path: Path) -> Iterator[int]:
    """A process of its own that locks `path` and notes it as Terraform does; its pid."""
    note = path.with_name(f".{path.name}.lock.info")
    command = [sys.executable, "-c", _HOLDER, str(path), str(note)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def test_d8_a_lock_on_the_terraform_state_is_named_with_its_owner_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "terraform.tfstate"
    path.write_text("{}")
    with held(path) as pid:
        holder = local_lock(path)
        assert holder is not None
        assert f"process {pid} on this machine" in holder
        assert "OperationTypeApply by ada@build since 2026, lock id 9c1b" in holder
        assert local_lock(path) == holder
    # A kill leaves the note and no lock.
    assert path.with_name(".terraform.tfstate.lock.info").exists()
    assert local_lock(path) is None
    assert local_lock(tmp_path / "none.tfstate") is None


@pytest.mark.skipif(TERRAFORM is None, reason="no terraform on the PATH")
def test_d8_the_lock_of_a_real_terraform_is_seen(tmp_path: Path) -> None:
    assert TERRAFORM is not None
    os.mkfifo(tmp_path / "started")
    os.mkfifo(tmp_path / "go")
    wait = {"local-exec": {"command": "echo > started; cat go"}}
    document = {"resource": {"terraform_data": {"slow": {"provisioner": [wait]}}}}
    (tmp_path / "main.tf.json").write_text(json.dumps(document))
    subprocess.run([TERRAFORM, "init"], cwd=tmp_path, check=True, capture_output=True)
    command = [TERRAFORM, "apply", "-auto-approve", "-input=false"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        (tmp_path / "started").read_text()
        holder = local_lock(tmp_path / "terraform.tfstate")
        (tmp_path / "go").write_text("\n")
        assert process.wait() == 0
    assert holder is not None
    assert f"process {process.pid}" in holder
    assert "OperationTypeApply by" in holder
    assert local_lock(tmp_path / "terraform.tfstate") is None


NOTE = {"ID": "9c1b", "Operation": "OperationTypeApply", "Who": "ada@build", "Created": "2026-11-20"}


def test_d8_a_leased_state_blob_is_locked_by_whom_its_metadata_says() -> None:
    note = base64.b64encode(json.dumps(NOTE).encode()).decode()
    leased = Reply(200, headers={"x-ms-lease-state": "leased", "x-ms-meta-terraformlockid": note})
    credential = SignedIn()
    with scripted({"HEAD /state/terraform.tfstate": [leased]}) as server:
        holder = blob_lock(f"{server.url}/state/terraform.tfstate", credential)
    assert holder is not None
    assert holder.endswith("is leased: OperationTypeApply by ada@build since 2026-11-20, lock id 9c1b")
    assert credential.scopes == ["https://storage.azure.com/.default"]
    with scripted({"HEAD /state/terraform.tfstate": [Reply(200, headers={"x-ms-lease-state": "available"})]}) as server:
        assert blob_lock(f"{server.url}/state/terraform.tfstate", credential) is None
        assert blob_lock(f"{server.url}/state/none.tfstate", credential) is None


def test_d8_a_lock_whose_note_is_damaged_is_a_lock_all_the_same() -> None:
    for note in ("%%%", "abc", base64.b64encode(b"[1, 2]").decode()):
        leased = Reply(200, headers={"x-ms-lease-state": "leased", "x-ms-meta-terraformlockid": note})
        with scripted({"HEAD /state/terraform.tfstate": [leased]}) as server:
            assert (blob_lock(f"{server.url}/state/terraform.tfstate", SignedIn()) or "").endswith("is leased")


def test_d17_a_deleted_place_of_the_terraform_state_is_not_taken_for_a_first_deployment() -> None:
    gone = Reply(404, headers={"x-ms-error-code": "ContainerNotFound"})
    with (
        scripted({"HEAD /state/terraform.tfstate": [gone]}) as server,
        pytest.raises(FerryError, match="container of the Terraform state is not there"),
    ):
        blob_lock(f"{server.url}/state/terraform.tfstate", SignedIn())
    settings = azure_settings(state=AzureStateSettings(backend="s3", bucket="team-state", region="eu-west-1"))
    key = "GET /team-state/terraform.modelferry-dev-azure.tfstate.tflock"
    absent = Reply(404, b"<Error><Code>NoSuchBucket</Code><Message>no</Message></Error>", {"Content-Type": "text/xml"})
    with scripted({key: [absent]}) as server, pytest.raises(FerryError, match=r"s3://team-state: the bucket of the"):
        lock_holder(settings, None, connect_to(server))


def test_d8_the_lock_object_of_a_state_in_s3_is_read() -> None:
    state = AzureStateSettings(backend="s3", bucket="team-state", region="eu-west-1")
    settings = azure_settings(state=state)
    key = "GET /team-state/terraform.modelferry-dev-azure.tfstate.tflock"
    with scripted({key: [Reply(200, json.dumps(NOTE).encode())]}) as server:
        holder = lock_holder(settings, None, connect_to(server))
    assert holder is not None
    assert "ada@build" in holder
    absent = Reply(404, b"<Error><Code>NoSuchKey</Code><Message>no</Message></Error>", {"Content-Type": "text/xml"})
    with scripted({key: [absent]}) as server:
        assert lock_holder(settings, None, connect_to(server)) is None


def test_the_state_without_a_table_is_where_the_synthesized_stack_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CDKTF_OUTDIR", str(tmp_path / "cdktf.out"))
    path = state_file(dev_settings())
    assert path == tmp_path / "terraform.modelferry-dev-azure.tfstate"
    path.write_text("{}")
    with held(path) as pid:
        assert f"process {pid}" in (lock_holder(dev_settings(), None, connect_to("http://127.0.0.1:1")) or "")


def azure_settings(**changes: Any) -> Settings:
    settings = dev_settings()
    table = settings.azure.model_dump(exclude_unset=True) | {
        "subscription_id": "22222222-2222-2222-2222-222222222222",
        **changes,
    }
    return settings.model_copy(update={"azure": type(settings.azure).model_validate(table)})


SITE = (
    "GET /subscriptions/22222222-2222-2222-2222-222222222222/resourceGroups/rg-modelferry-dev/providers/Microsoft.Web/sites/"
    "func-modelferry-dev-dev01"
)


def site(state: str, release: str = "mnist-0f0f0f0f0f0f") -> Reply:
    """An app as Azure Resource Manager describes it (Microsoft.Web/sites), as far as anybody reads it."""
    document = {"name": "func-modelferry-dev-dev01", "properties": {"state": state}, "tags": {"release-id": release}}
    return Reply(200, json.dumps(document).encode())


def test_a_stopped_app_says_how_it_is_started_and_a_running_one_which_release_it_declares() -> None:
    with scripted({SITE: [site("Running"), site("Stopped")]}) as server:
        running = app_state(azure_settings(), SignedIn(), server.url)
        stopped = app_state(azure_settings(), SignedIn(), server.url)
    assert running is not None
    assert stopped is not None
    assert (running[0].readiness, running[1]) == ("ready", "mnist-0f0f0f0f0f0f")
    assert stopped[0].readiness == "repair"
    assert "az functionapp start --name func-modelferry-dev-dev01 --resource-group rg-modelferry-dev" in str(stopped[0])


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"properties": {"state": "Running", "usageState": "Exceeded"}}, "Exceeded; its plan's quota is used up"),
        ({"properties": {}, "tags": None}, "unknown; Azure tells no state of it"),
    ],
)
def test_an_app_that_runs_and_answers_nobody_is_not_called_fine(document: dict[str, Any], words: str) -> None:
    with scripted({SITE: [Reply(200, json.dumps(document).encode())]}) as server:
        found = app_state(azure_settings(), SignedIn(), server.url)
    assert found is not None
    assert found[0].readiness == "repair"
    assert str(found[0]).startswith(words)


def test_an_app_that_is_not_there_is_none_and_azures_refusals_are_said_in_its_own_words() -> None:
    missing = {"error": {"code": "ResourceNotFound", "message": "The Resource was not found."}}
    denied = {"error": {"code": "AuthorizationFailed", "message": "ada has no authorization to perform sites/read"}}
    with scripted({SITE: [Reply(404, json.dumps(missing).encode())]}) as server:
        assert app_state(azure_settings(), SignedIn(), server.url) is None
    with scripted({SITE: [Reply(403, json.dumps(denied).encode())]}) as server:
        with pytest.raises(FerryError, match=r"AuthorizationFailed: ada has no.*Reader is enough") as caught:
            app_state(azure_settings(), SignedIn(), server.url)
        assert not isinstance(caught.value, NotFound)
    with scripted({SITE: [Reply(429, b"{}", {"Retry-After": "17"})]}) as server:
        with pytest.raises(FerryError, match="wait 17 s"):
            app_state(azure_settings(), SignedIn(), server.url)
        assert len(server.asked) == 1


CONTAINER = (
    "GET /subscriptions/22222222-2222-2222-2222-222222222222/resourceGroups/rg-modelferry-dev/providers/Microsoft.App/"
    "containerApps/ca-modelferry-dev-dev01"
)


@pytest.mark.parametrize(
    ("properties", "readiness"),
    [
        ({"provisioningState": "Succeeded", "runningStatus": "Running"}, "ready"),
        ({"provisioningState": "InProgress"}, "busy"),
        ({"provisioningState": "Failed", "runningStatus": "Running"}, "repair"),
        ({"provisioningState": "Succeeded", "runningStatus": "Stopped"}, "repair"),
    ],
)
def test_a_container_app_is_asked_for_provisioning_and_for_running(properties: dict[str, str], readiness: str) -> None:
    image = f"registry.example.com/serving@sha256:{'0' * 64}"
    settings = azure_settings(hosting="container", container={"image": image})
    with scripted({CONTAINER: [Reply(200, json.dumps({"properties": properties}).encode())]}) as server:
        found = app_state(settings, SignedIn(), server.url)
    assert found is not None
    assert (found[0].readiness, found[1]) == (readiness, None)
