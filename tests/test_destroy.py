"""`ferry destroy` takes what it said it would take, keeps the rest, and can be run again."""

import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from moto.backends import get_backend

from ferry import aws
from ferry.cli import main
from ferry.console import Report
from ferry.destroy import destroy
from ferry.destroy_aws import destroy_aws
from ferry.destroy_azure import Resource, Terraform, destroy_azure, kept_addresses, stack_folder
from ferry.errors import FerryError, Refused
from ferry.tools import run
from infra.settings import ROOT, Settings, load_settings
from tests.emulator_server import emulator_server
from tests.local_settings import write_settings
from tests.stack_fixtures import dev_settings

TERRAFORM = shutil.which("terraform") or shutil.which("tofu")
needs_terraform = pytest.mark.skipif(TERRAFORM is None, reason="neither terraform nor tofu is installed")
needs_cdk = pytest.mark.skipif(
    not (ROOT / "node_modules" / ".bin" / "cdk").exists(), reason="the cdk command is not installed"
)

# A stack in small: `store` stands for what holds data, `role` for what the upload into it needs.
BLOCKS: dict[str, dict[str, Any]] = {
    "group": {},
    "store": {"input": "${terraform_data.group.id}"},
    "role": {"input": "${terraform_data.store.id}"},
    "blob": {"input": "${terraform_data.store.id}", "depends_on": ["terraform_data.role"]},
    "app": {"input": "${terraform_data.blob.id}"},
    "alert": {"input": "${terraform_data.app.id}"},
}


def silent(_: str) -> None:
    return None


def agree(cloud: str, goes: Sequence[str], stays: Sequence[str]) -> None:
    return None


class Recorder:
    """Agrees, and keeps what it was shown."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, list[str], list[str]]] = []

    def __call__(self, cloud: str, goes: Sequence[str], stays: Sequence[str]) -> None:
        self.shown.append((cloud, list(goes), list(stays)))


# Azure


def resource(address: str, *needs: str) -> Resource:
    return Resource(address, address.split(".")[0], frozenset(needs))


STACK = [
    resource("azurerm_resource_group.group"),
    resource("azurerm_storage_account.account", "azurerm_resource_group.group"),
    resource("azurerm_role_assignment.deployer", "azurerm_storage_account.account", "azurerm_resource_group.group"),
    resource("azurerm_storage_blob.package", "azurerm_storage_account.account", "azurerm_role_assignment.deployer"),
    resource("azurerm_user_assigned_identity.app", "azurerm_resource_group.group"),
    resource("azurerm_role_assignment.app[0]", "azurerm_user_assigned_identity.app"),
    resource("azurerm_function_app_flex_consumption.app", "azurerm_storage_blob.package"),
]


def test_data_stays_with_everything_that_it_needs() -> None:
    assert kept_addresses(STACK, data=False, imported=False) == {
        "azurerm_resource_group.group",
        "azurerm_storage_account.account",
        "azurerm_role_assignment.deployer",
        "azurerm_storage_blob.package",
    }


def test_with_data_nothing_stays_but_an_imported_group() -> None:
    assert kept_addresses(STACK, data=True, imported=False) == set()
    assert kept_addresses(STACK, data=True, imported=True) == {"azurerm_resource_group.group"}


def test_what_kept_things_need_stays_whatever_its_index() -> None:
    needing = [*STACK, resource("azurerm_storage_blob.other", "azurerm_role_assignment.app")]
    assert "azurerm_role_assignment.app[0]" in kept_addresses(needing, data=False, imported=False)


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A folder with BLOCKS applied; its state is beside it, as the stack's is."""
    folder = tmp_path / "stacks" / "trial"
    write_stack(folder)
    for arguments in (["init"], ["apply", "-auto-approve"]):
        assert TERRAFORM is not None
        subprocess.run([TERRAFORM, *arguments, "-input=false"], cwd=folder, check=True, capture_output=True)
    return folder


def write_stack(folder: Path, kind: str = "terraform_data") -> None:
    folder.mkdir(parents=True)
    document = {
        "terraform": {"backend": {"local": {"path": "../trial.tfstate"}}},
        "resource": {kind: BLOCKS},
    }
    (folder / "cdk.tf.json").write_text(json.dumps(document))


def addresses(terraform: Terraform) -> set[str]:
    return {found.address.removeprefix("terraform_data.") for found in terraform.resources() or []}


@needs_terraform
def test_exactly_the_plan_that_was_shown_is_applied(stack: Path, tmp_path: Path) -> None:
    lines: list[str] = []
    terraform = Terraform(stack, tmp_path / "logs", lines.append)
    terraform.init()
    plan = tmp_path / "plan"
    doomed = terraform.plan_destruction(["terraform_data.app"], ["terraform_data.blob"], plan)
    assert doomed == ["terraform_data.alert", "terraform_data.app"]  # what depends on a target goes with it
    assert addresses(terraform) == set(BLOCKS)
    terraform.apply(plan)
    assert addresses(terraform) == {"group", "store", "role", "blob"}
    assert [text for text in lines if "Destruction complete" in text]


@needs_terraform
def test_a_plan_that_would_take_kept_data_is_refused(stack: Path, tmp_path: Path) -> None:
    terraform = Terraform(stack, tmp_path / "logs", silent)
    with pytest.raises(FerryError, match=r"would delete terraform_data\.blob as well"):
        terraform.plan_destruction(["terraform_data.role"], ["terraform_data.blob"], tmp_path / "plan")
    assert addresses(terraform) == set(BLOCKS)


@needs_terraform
def test_the_state_says_what_each_resource_needs_near_and_far(stack: Path, tmp_path: Path) -> None:
    found = {each.address: each.needs for each in Terraform(stack, tmp_path / "logs", silent).resources() or []}
    assert found["terraform_data.blob"] == {"terraform_data.store", "terraform_data.role", "terraform_data.group"}


@needs_terraform
def test_what_leaves_the_state_is_not_destroyed(stack: Path, tmp_path: Path) -> None:
    terraform = Terraform(stack, tmp_path / "logs", silent)
    terraform.forget("terraform_data.alert")
    assert addresses(terraform) == set(BLOCKS) - {"alert"}


@needs_terraform
def test_a_failing_terraform_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "stacks" / "trial"
    write_stack(folder, kind="terraform_nonsense")
    terraform = Terraform(folder, tmp_path / "logs", silent)
    terraform.init()
    with pytest.raises(FerryError, match=r"(?s)ended with 1; .*terraform-plan\.log.*terraform_nonsense"):
        terraform.plan_destruction(["terraform_nonsense.app"], [], tmp_path / "plan")


@pytest.fixture
def azure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Real-cloud settings whose stack folder holds BLOCKS, not applied, and a build folder of the test's own."""
    monkeypatch.setenv("CDKTF_OUTDIR", str(tmp_path))
    settings = dev_settings().model_copy(update={"build_dir": str(tmp_path / "build")})
    write_stack(tmp_path / "stacks" / settings.stack("azure"))
    return settings


def apply(settings: Settings) -> None:
    for arguments in (["init"], ["apply", "-auto-approve"]):
        assert TERRAFORM is not None
        subprocess.run(
            [TERRAFORM, *arguments, "-input=false"], cwd=stack_folder(settings), check=True, capture_output=True
        )


@needs_terraform
def test_the_list_is_shown_then_all_of_it_goes_and_a_second_run_finds_nothing(azure: Settings) -> None:
    apply(azure)
    ask, lines = Recorder(), list[str]()
    assert destroy_azure(azure, False, ask, lines.append) == []  # none of its types holds data
    assert ask.shown == [("Azure", sorted(f"terraform_data.{name}" for name in BLOCKS), [])]
    assert destroy_azure(azure, True, ask, lines.append) == []
    assert len(ask.shown) == 1
    assert lines[-1] == "nothing of it is left to delete"


@needs_terraform
def test_a_no_leaves_everything(azure: Settings, tmp_path: Path) -> None:
    apply(azure)

    def decline(cloud: str, goes: Sequence[str], stays: Sequence[str]) -> None:
        raise Refused("no")

    with pytest.raises(Refused):
        destroy_azure(azure, True, decline, silent)
    assert addresses(Terraform(stack_folder(azure), tmp_path, silent)) == set(BLOCKS)


@needs_terraform
def test_without_a_state_nothing_is_known(azure: Settings) -> None:
    with pytest.raises(FerryError, match=r"nothing is known.*az resource list --resource-group rg-modelferry-dev"):
        destroy_azure(azure, False, agree, silent)


def test_without_a_stack_folder_it_says_what_writes_one(azure: Settings) -> None:
    shutil.rmtree(stack_folder(azure))
    with pytest.raises(Refused, match="FERRY_ENV=dev cdktf synth"):
        destroy_azure(azure, False, agree, silent)


def test_without_a_binary_it_says_which_ones_would_do(azure: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "no-such-terraform")
    with pytest.raises(Refused, match="no-such-terraform: not on the PATH"):
        destroy_azure(azure, False, agree, silent)


# Plays `terraform` with a state of azurerm types, which the real one shows only where that provider is installed.
PLAYED = """#!{python}
import json, pathlib, sys
state = pathlib.Path("state.json")
resources = json.loads(state.read_text())
match sys.argv[1:]:
    case ["init", *_]:
        pass
    case ["state", "pull"]:
        print(json.dumps(resources))
    case ["show", "-json"]:
        print(json.dumps({{"values": {{"root_module": {{"resources": resources}}}}}}))
    case ["plan", "-destroy", *options]:
        (out,) = [option.removeprefix("-out=") for option in options if option.startswith("-out=")]
        targets = [option.removeprefix("-target=") for option in options if option.startswith("-target=")]
        gone = [each["address"] for each in resources if {{each["address"], *each["depends_on"]}} & set(targets)]
        pathlib.Path(out).write_text(json.dumps(gone))
    case ["show", "-json", plan]:
        gone = json.loads(pathlib.Path(plan).read_text())
        print(json.dumps({{"resource_changes": [{{"address": each, "change": {{"actions": ["delete"]}}}} for each in gone]}}))
    case ["apply", *_, plan]:
        gone = json.loads(pathlib.Path(plan).read_text())
        print(*(f"{{each}}: Destroying..." for each in gone), sep="\\n")
        state.write_text(json.dumps([each for each in resources if each["address"] not in gone]))
    case ["state", "rm", *_, address]:
        state.write_text(json.dumps([each for each in resources if each["address"] != address]))
    case _:
        sys.exit(f"not played: {{sys.argv}}")
"""


@pytest.fixture
def deployed(azure: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose stack folder has STACK in its state."""
    binary = tmp_path / "terraform"
    binary.write_text(PLAYED.format(python=sys.executable))
    binary.chmod(0o755)
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", str(binary))
    entries = [
        {"address": each.address, "type": each.kind, "mode": "managed", "depends_on": sorted(each.needs)}
        for each in STACK
    ]
    (stack_folder(azure) / "state.json").write_text(json.dumps(entries))
    return azure


def state(settings: Settings) -> list[str]:
    return [entry["address"] for entry in json.loads((stack_folder(settings) / "state.json").read_bytes())]


def test_d18_data_is_shown_as_staying_and_stays(deployed: Settings) -> None:
    ask = Recorder()
    remaining = destroy_azure(deployed, False, ask, silent)
    kept = kept_addresses(STACK, data=False, imported=False)
    assert set(remaining) == set(state(deployed)) == kept
    assert ask.shown == [("Azure", sorted(each.address for each in STACK if each.address not in kept), sorted(kept))]
    assert destroy_azure(deployed, True, ask, silent) == state(deployed) == []


LOCKED = """#!/bin/sh
[ "$1" = plan ] || exec "$(dirname "$0")/terraform" "$@"
cat >&2 <<END
Error: Error acquiring the state lock

Error message: resource temporarily unavailable
Lock Info:
  ID:        9c1b
  Path:      ../trial.tfstate
  Operation: OperationTypeApply
  Who:       ada@build
  Version:   1.9.8
  Created:   2026-11-20 09:30:00 +0000 UTC
  Info:
END
exit 1
"""


def test_d8_a_locked_state_names_its_owner_and_nothing_goes(
    deployed: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "locked"
    binary.write_text(LOCKED)
    binary.chmod(0o755)
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", str(binary))
    with pytest.raises(FerryError) as caught:
        destroy_azure(deployed, True, agree, silent)
    assert str(caught.value).startswith("BUSY the Terraform state of ")
    assert "OperationTypeApply by ada@build since 2026-11-20 09:30:00 +0000 UTC, lock id 9c1b. Wait" in str(
        caught.value
    )
    assert caught.value.exit_code == 1
    assert set(state(deployed)) == {each.address for each in STACK}


def test_an_imported_group_leaves_the_state_and_is_not_deleted(deployed: Settings) -> None:
    imported = deployed.azure.model_copy(update={"import_resource_group": True})
    settings = deployed.model_copy(update={"azure": imported})
    ask, lines = Recorder(), list[str]()
    remaining = destroy_azure(settings, True, ask, lines.append)
    assert remaining == ["azurerm_resource_group.group (imported, so it is not ours to delete)"]
    assert "azurerm_resource_group.group" not in ask.shown[0][1]
    assert not [text for text in lines if text.startswith("azurerm_resource_group") and "Destroying" in text]
    assert state(settings) == []


# AWS


@pytest.fixture
def account(tmp_path: Path) -> Iterator[tuple[Settings, Path]]:
    """An emulated account with Foundation and Training in small: three buckets, one with old versions, and a repository."""
    # The emulator lives in this process: a name of its own keeps one test's stacks from the next one's.
    path = write_settings(tmp_path, name=f"t{hashlib.sha256(bytes(tmp_path)).hexdigest()[:8]}")
    settings = load_settings(str(path))
    assert settings.local is not None
    with emulator_server(settings.local.emulator_port):
        _stand(settings)
        yield settings, path


def _stand(settings: Settings) -> None:
    buckets = {"Data": settings.data_bucket, "Artifacts": settings.artifact_bucket, "Logs": settings.log_bucket}
    foundation: dict[str, Any] = {
        name: {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": bucket}} for name, bucket in buckets.items()
    }
    foundation["Images"] = {"Type": "AWS::ECR::Repository", "Properties": {"RepositoryName": settings.repository}}
    deploy(settings, "foundation", foundation)
    deploy(settings, "training", {"Queue": {"Type": "AWS::SQS::Queue", "Properties": {}}})
    fill(settings)


def deploy(settings: Settings, name: str, resources: dict[str, Any]) -> None:
    template = json.dumps({"Resources": resources})
    aws.client(settings, "cloudformation").create_stack(StackName=settings.stack(name), TemplateBody=template)


def fill(settings: Settings) -> None:
    s3 = aws.client(settings, "s3")
    s3.put_bucket_versioning(Bucket=settings.data_bucket, VersioningConfiguration={"Status": "Enabled"})
    for content in (b"first", b"second"):
        s3.put_object(Bucket=settings.data_bucket, Key="images", Body=content)
    s3.delete_object(Bucket=settings.data_bucket, Key="images")
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": {"mediaType": "application/json", "size": 1, "digest": f"sha256:{'0' * 64}"},
        "layers": [],
    }
    ecr = aws.client(settings, "ecr")
    ecr.put_image(repositoryName=settings.repository, imageManifest=json.dumps(manifest), imageTag="serving")


def set_status(settings: Settings, name: str, status: str) -> None:
    """What CloudFormation would say of a stack that is in a state that the emulator never gets into."""
    backend = get_backend("cloudformation")[settings.aws.account][settings.aws.region]
    (stack,) = [each for each in backend.stacks.values() if each.name == settings.stack(name)]
    stack.status = status


def remaining(settings: Settings) -> list[str]:
    return [
        f"stack {settings.stack('foundation')} (CREATE_COMPLETE)",
        *(f"bucket {name}" for name in (settings.data_bucket, settings.artifact_bucket, settings.log_bucket)),
        f"image repository {settings.repository}",
    ]


@pytest.mark.slow
@needs_cdk
def test_d18_data_stays_unless_told_and_then_goes_with_every_old_version(account: tuple[Settings, Path]) -> None:
    settings, path = account
    set_status(settings, "training", "DELETE_FAILED")  # an earlier attempt left it; it is tried again
    ask, lines = Recorder(), list[str]()
    assert destroy_aws(settings, path, False, ask, lines.append) == remaining(settings)
    _, goes, stays = ask.shown[0]
    assert goes == [
        f"stack {settings.stack('training')} (DELETE_FAILED, which an earlier attempt left; it is tried again)"
    ]
    assert "--data takes them, too" in stays[0]

    assert destroy_aws(settings, path, True, ask, lines.append) == []
    assert f"emptied   s3://{settings.data_bucket}: 3 versions and delete markers so far" in lines
    assert len(ask.shown[1][1]) == 5

    assert destroy_aws(settings, path, True, ask, lines.append) == []
    assert len(ask.shown) == 2  # nothing to ask about


def test_d18_retained_data_stays_even_when_told_and_it_says_how_it_would_go(account: tuple[Settings, Path]) -> None:
    settings, path = account
    aws.client(settings, "cloudformation").delete_stack(StackName=settings.stack("training"))
    retained = settings.model_copy(update={"aws": settings.aws.model_copy(update={"retain_data": True})})
    assert destroy_aws(retained, path, True, agree, silent) == remaining(settings)


def test_d18_retained_data_is_listed_as_staying_before_anything_goes(account: tuple[Settings, Path]) -> None:
    settings, path = account
    retained = settings.model_copy(update={"aws": settings.aws.model_copy(update={"retain_data": True})})
    shown: list[str] = []

    def decline(cloud: str, goes: Sequence[str], stays: Sequence[str]) -> None:
        shown.extend(stays)
        raise Refused("no")

    with pytest.raises(Refused):
        destroy_aws(retained, path, True, decline, silent)
    assert "aws.retain_data is true" in shown[0]
    assert "`cdk deploy Foundation`" in shown[0]


def test_d18_what_stays_is_listed_with_1_and_with_0_where_somebody_agreed_to_it(
    account: tuple[Settings, Path],
) -> None:
    settings, path = account
    aws.client(settings, "cloudformation").delete_stack(StackName=settings.stack("training"))
    left = CliRunner().invoke(main, ["--env", str(path), "destroy", "aws", "--yes"])
    assert left.exit_code == 1
    assert (
        f"aws: {len(remaining(settings))} remain, listed above; --data takes what holds data, and --keep" in left.stderr
    )
    kept = CliRunner().invoke(main, ["--env", str(path), "destroy", "aws", "--yes", "--keep"])
    assert kept.exit_code == 0, kept.stderr
    assert kept.stdout == left.stdout
    said = [line.strip() for line in kept.stdout.splitlines()]
    assert said[0] == "nothing of it is left to delete; --data would take what holds data, too"
    assert said[1:] == ["aws: what remains:", *remaining(settings)]
    unasked = CliRunner().invoke(main, ["--env", str(path), "destroy", "aws", "--data"])
    assert unasked.exit_code == 2
    assert "nobody is at this terminal to agree; --yes deletes without asking" in unasked.stderr
    s3 = aws.client(settings, "s3")
    versions = s3.list_object_versions(Bucket=settings.data_bucket)
    assert (len(versions["Versions"]), len(versions["DeleteMarkers"])) == (2, 1)


@pytest.mark.parametrize("status", ["UPDATE_IN_PROGRESS", "UPDATE_ROLLBACK_IN_PROGRESS"])
def test_d8_a_stack_that_cloudformation_works_on_is_waited_for_by_the_caller(
    status: str, account: tuple[Settings, Path]
) -> None:
    settings, path = account
    set_status(settings, "training", status)
    with pytest.raises(
        FerryError, match=rf"BUSY stack {settings.stack('training')}: {status}; since .*run it again"
    ) as caught:
        destroy_aws(settings, path, False, agree, silent)
    assert caught.value.exit_code == 1


def test_serving_stacks_without_a_release_are_refused_with_the_way_out(account: tuple[Settings, Path]) -> None:
    settings, path = account
    deploy(settings, "hosting", {"Topic": {"Type": "AWS::SNS::Topic"}})
    with pytest.raises(Refused, match=rf"`ferry release`.*delete-stack --stack-name {settings.stack('hosting')}"):
        destroy_aws(settings, path, False, agree, silent)


# Both


def test_the_failure_of_one_cloud_does_not_hide_the_other(azure: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "no-such-terraform")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(FerryError) as caught:
        destroy(azure, Path("dev.toml"), "all", False, agree, silent)
    assert "azure: no-such-terraform" in str(caught.value)
    assert "aws: AWS_ENDPOINT_URL" in str(caught.value)
    assert caught.value.exit_code == 1


def test_a_local_environment_has_nothing_on_azure(account: tuple[Settings, Path]) -> None:
    settings, path = account
    with pytest.raises(Refused, match="ferry local down"):
        destroy(settings, path, "azure", False, agree, silent)
    aws.client(settings, "cloudformation").delete_stack(StackName=settings.stack("training"))
    lines: list[str] = []
    destroy(settings, path, "all", False, agree, lines.append)
    assert lines[0] == f"azure: environment {settings.environment!r} has nothing there"
    assert lines[-len(remaining(settings)) :] == [f"  {each}" for each in remaining(settings)]


def test_an_interrupted_tool_is_told_once_and_ends_its_step(tmp_path: Path) -> None:
    script = """
import pathlib, signal, sys, time
told = []
signal.signal(signal.SIGINT, lambda *_: told.append(1))
print("ready", flush=True)
while not told:
    time.sleep(0.01)
time.sleep(0.2)
pathlib.Path("ended").write_text(str(len(told)))
"""
    lines: list[str] = []

    def interrupt(text: str) -> None:
        lines.append(text)
        if text == "ready":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            [sys.executable, "-c", script],
            environment={},
            folder=tmp_path,
            log=tmp_path / "tool.log",
            shows=lambda _: True,
            report=interrupt,
        )
    assert (tmp_path / "ended").read_text() == "1"
    assert "is told to end" in lines[1]


def test_a_tool_that_outlived_its_command_is_waited_for(tmp_path: Path) -> None:
    """`cdk` refuses a folder that another `cdk` writes to, so who runs a killed command again would have to wait for it."""
    tool = """
import pathlib, time
with open("order", "a", buffering=1) as order:
    order.write("begins\\n")
    until = time.monotonic() + 60
    while not pathlib.Path("go").exists() and time.monotonic() < until:
        time.sleep(0.01)
    order.write("ends\\n")
"""
    killed = subprocess.Popen([sys.executable, "-c", RUNS_ALONE, tool], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)})
    try:
        order = tmp_path / "order"
        while not (order.exists() and order.read_text()):
            assert killed.poll() is None
            time.sleep(0.01)
    finally:
        killed.kill()
        killed.wait()
    lines: list[str] = []

    def say(text: str) -> None:
        lines.append(text)
        (tmp_path / "go").touch()

    run_alone(tool, tmp_path, say)
    assert order.read_text().split() == ["begins", "ends", "begins", "ends"]
    name = Path(sys.executable).name
    assert lines == [f"another `{name}` command is at work in {tmp_path}; waiting for it to end"]


RUNS_ALONE = """
import sys
from pathlib import Path
from tests.test_destroy import run_alone
run_alone(sys.argv[1], Path.cwd(), print)
"""


def run_alone(script: str, folder: Path, report: Report) -> None:
    run(
        [sys.executable, "-c", script],
        environment={},
        folder=folder,
        log=folder / "tool.log",
        shows=lambda _: False,
        report=report,
        alone=True,
    )
