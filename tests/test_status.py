"""`ferry status` says what serves where, and PARTIAL where the clouds do not serve the same release."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ferry import aws
from ferry.cli import main
from ferry.preflight import BLOCKING, preflight
from ferry.preflight_aws import aws_checks
from ferry.status import NOT_DEPLOYED, UNKNOWN, Row, Status, status
from infra.release import Release
from infra.settings import Settings, load_settings
from infra.settings_azure import AzureSettings
from model_code import environment
from tests.emulator_server import emulator_server
from tests.local_settings import write_settings
from tests.scripted_account import account
from tests.scripted_aws import connect_to, refuses
from tests.scripted_server import Reply, Script, SignedIn, scripted
from tests.stack_fixtures import dev_settings, make_release, write_release

OTHER = "aa" * 32
SUBSCRIPTION = "22222222-2222-2222-2222-222222222222"
SITE = (
    f"GET /subscriptions/{SUBSCRIPTION}/resourceGroups/rg-modelferry-dev/providers/Microsoft.Web/sites/"
    "func-modelferry-dev-dev01"
)
HEALTH = "GET /api/health"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Real-cloud settings with a build folder of their own, which holds a release."""
    base = dev_settings()
    azure = AzureSettings.model_validate(base.azure.model_dump(exclude_unset=True) | {"subscription_id": SUBSCRIPTION})
    made = base.model_copy(update={"build_dir": str(tmp_path / "build"), "azure": azure})
    write_release(make_release(made), made.release_path.parent)
    return made


def healthy(release: Release) -> dict[str, Script]:
    site = {"properties": {"state": "Running"}, "tags": {"release-id": release.release_id}}
    return {
        SITE: [Reply(200, json.dumps(site).encode())],
        HEALTH: [Reply(200, headers={"x-release-id": release.release_id})],
    }


def look(settings: Settings, replies: dict[str, Script], monkeypatch: pytest.MonkeyPatch) -> Status:
    with scripted(replies) as server:
        monkeypatch.setenv("FERRY_AZURE_URL", server.url)
        connect = connect_to(server, aws.QUICK)
        monkeypatch.setattr(aws, "client", connect)  # what `ferry rollback --list` asks, too
        return status(settings, connect=connect, credential=SignedIn(), base=server.url)


def rows(seen: Status) -> dict[str, Row]:
    return {row.where: row for row in seen.rows}


def stored(settings: Settings, *releases: Release) -> dict[str, Script]:
    """A bucket with these releases, the first one stored first."""
    entries = "".join(
        f"<Contents><Key>releases/{release.release_id}/release.json</Key>"
        f"<LastModified>2026-11-0{place}T00:00:00Z</LastModified></Contents>"
        for place, release in enumerate(releases, start=1)
    )
    listing = f"<ListBucketResult>{entries}</ListBucketResult>".encode()
    bucket = f"GET /{settings.artifact_bucket}"
    objects: dict[str, Script] = {
        f"{bucket}/releases/{release.release_id}/release.json": [Reply(200, release.to_bytes())] for release in releases
    }
    return {bucket: [Reply(200, listing, {"Content-Type": "application/xml"})], **objects}


def test_both_clouds_with_this_machines_release_are_the_same(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = make_release(settings)
    replies = account(settings, release) | healthy(release) | stored(settings, make_release(settings, OTHER), release)
    seen = look(settings, replies, monkeypatch)
    assert seen.verdict == "SAME"
    assert seen.serving == {"aws": release.release_id, "azure": release.release_id}
    found = rows(seen)
    assert (found["aws endpoint"].state, found["aws endpoint"].release_id) == ("InService", release.release_id)
    assert (found["azure app"].state, found["azure app"].release_id) == ("Running", release.release_id)
    assert (found["aws releases"].release_id, found["aws releases"].note[:11]) == (release.release_id, "newest of 2")
    assert found["aws stack Hosting"].release_id == release.release_id


@pytest.mark.parametrize(("on_aws", "on_azure"), [(OTHER, None), (None, OTHER), (OTHER, OTHER)])
def test_m24_clouds_that_do_not_both_serve_this_machines_release_are_partial(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, on_aws: str | None, on_azure: str | None
) -> None:
    there = make_release(settings, on_aws) if on_aws else make_release(settings)
    here = make_release(settings, on_azure) if on_azure else make_release(settings)
    seen = look(settings, account(settings, there) | healthy(here) | stored(settings), monkeypatch)
    assert seen.verdict == "PARTIAL"
    assert seen.serving == {"aws": there.release_id, "azure": here.release_id}


def test_d17_an_endpoint_whose_configuration_was_deleted_by_hand_is_still_told(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = make_release(settings)
    gone = refuses("sagemaker", "ValidationException", "Could not find endpoint configuration")
    replies = account(settings, release) | healthy(release) | stored(settings) | {"DescribeEndpointConfig": [gone]}
    row = rows(look(settings, replies, monkeypatch))["aws endpoint"]
    assert (row.state, row.release_id) == ("InService", None)
    assert "Could not find endpoint configuration" in row.note


def test_d22_while_one_cloud_is_down_the_other_is_told_and_the_down_one_is_unknown(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, now = make_release(settings, OTHER), make_release(settings)
    down = Reply(503, b"starting")
    seen = look(
        settings, account(settings, before) | {SITE: [down], HEALTH: [down]} | stored(settings, now), monkeypatch
    )
    assert seen.verdict == "PARTIAL"  # AWS serves another release than the one this machine would deploy
    assert seen.serving == {"aws": before.release_id, "azure": None}
    assert rows(seen)["azure app"].state == UNKNOWN
    assert "HTTP 503" in rows(seen)["azure app"].note
    assert rows(seen)["azure health"].state == "not serving"
    denied = refuses("sts", "ExpiredToken", "gone", 403)
    seen = look(settings, {"GetCallerIdentity": [denied]} | healthy(now), monkeypatch)
    assert seen.verdict == "INCOMPLETE"
    assert seen.serving == {"aws": None, "azure": now.release_id}
    assert [row.where for row in seen.rows if row.where.startswith("aws")] == ["aws account"]
    assert "the credentials have expired" in rows(seen)["aws account"].note


def test_without_anything_deployed_it_says_so(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.release_path.unlink()
    nothing = {
        "DescribeEndpoint": [refuses("sagemaker", "ValidationException", "Could not find endpoint")],
        f"GET /{settings.artifact_bucket}": [
            Reply(404, b"<Error><Code>NoSuchBucket</Code></Error>", {"Content-Type": "application/xml"})
        ],
    }
    seen = look(settings, account(settings, None, {}) | nothing, monkeypatch)
    found = rows(seen)
    assert seen.verdict == "INCOMPLETE"
    assert {row.state for where, row in found.items() if where not in ("aws account", "this machine")} == {NOT_DEPLOYED}
    assert found["this machine"].state == "no release"


def test_a_denied_question_is_one_unknown_row_and_the_rest_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = make_release(settings)
    denied = refuses("sagemaker", "AccessDeniedException", "not authorized to perform: sagemaker:DescribeEndpoint")
    replies = account(settings, release) | healthy(release) | stored(settings) | {"DescribeEndpoint": [denied]}
    seen = look(settings, replies, monkeypatch)
    assert rows(seen)["aws endpoint"].state == UNKNOWN
    assert "sagemaker:DescribeEndpoint" in rows(seen)["aws endpoint"].note
    assert rows(seen)["aws stack Gateway"].state == "UPDATE_COMPLETE"
    assert seen.verdict == "INCOMPLETE"


def test_another_account_is_not_looked_at(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = settings.model_copy(update={"aws": settings.aws.model_copy(update={"account": "999988887777"})})
    seen = look(elsewhere, account(settings, make_release(settings)), monkeypatch)
    assert "environment 'dev' is in 999988887777" in rows(seen)["aws account"].note


# On one machine: the emulator, and a container and a Function in whose place a server answers.

_STACK = {
    "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
    "Outputs": {"ReleaseId": {"Value": "mnist-0f0f0f0f0f0f"}},
}


@pytest.fixture
def local(tmp_path: Path) -> Iterator[tuple[Settings, Path]]:
    """A local environment whose emulator runs, and holds an endpoint, a stack and a stored release."""
    path = write_settings(tmp_path)
    settings = load_settings(str(path))
    assert settings.local is not None
    with emulator_server(settings.local.emulator_port):
        release = make_release(settings)
        _fill(settings, release)
        write_release(release, settings.release_path.parent)
        yield settings, path


def _fill(settings: Settings, release: Release) -> None:
    s3 = aws.client(settings, "s3")
    s3.create_bucket(Bucket=settings.artifact_bucket)
    key = f"releases/{release.release_id}/release.json"
    s3.put_object(Bucket=settings.artifact_bucket, Key=key, Body=release.to_bytes())
    aws.client(settings, "cloudformation").create_stack(
        StackName=settings.stack("hosting"), TemplateBody=json.dumps(_STACK)
    )
    sagemaker, name = aws.client(settings, "sagemaker"), settings.endpoint
    container = {"Image": "i", "Environment": {environment.RELEASE_ID: release.release_id}}
    role = "arn:aws:iam::123456789012:role/r"
    sagemaker.create_model(ModelName=name, ExecutionRoleArn=role, PrimaryContainer=container)
    variant = {"VariantName": "V", "ModelName": name, "InitialInstanceCount": 1, "InstanceType": "ml.c5.large"}
    sagemaker.create_endpoint_config(EndpointConfigName=name, ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName=name, EndpointConfigName=name)
    # The emulator loads a service when it is first asked, which may take longer than a quick client waits.
    aws.client(settings, "sts").get_caller_identity()
    aws.client(settings, "ssm").get_parameters(Names=["none"])


def test_on_one_machine_the_emulator_says_what_it_holds_and_the_command_prints_it(
    local: tuple[Settings, Path],
) -> None:
    settings, path = local
    outcome = CliRunner().invoke(main, ["--env", str(path), "status", "--json"])
    assert outcome.exit_code == 0, outcome.output
    document = json.loads(outcome.stdout)
    found = {row["where"]: row for row in document["rows"]}
    release = make_release(settings).release_id
    assert (found["aws endpoint"]["state"], found["aws endpoint"]["release_id"]) == ("InService", release)
    assert (found["aws stack Hosting"]["state"], found["aws stack Hosting"]["release_id"]) == (
        "CREATE_COMPLETE",
        release,
    )
    assert found["aws stack Gateway"]["state"] == NOT_DEPLOYED
    assert (found["aws releases"]["state"], found["aws releases"]["release_id"]) == ("stored", release)
    assert found["container"]["state"] == found["azure health"]["state"] == "not serving"
    assert (document["verdict"], document["local"]) == ("INCOMPLETE", release)
    findings = {check.name: finding for check, finding in preflight(aws_checks(settings), 60)}
    blocked = {name: finding.text for name, finding in findings.items() if finding.verdict in BLOCKING}
    assert set(blocked) == {"bootstrap", "artifact", "buckets"}
    assert "there already, and the stack Foundation" in blocked["buckets"]
    assert blocked["bootstrap"].endswith("cdk bootstrap aws://123456789012/us-east-1")
    printed = CliRunner().invoke(main, ["--env", str(path), "status"]).output
    assert f"aws endpoint         InService                {release}" in printed
    assert printed.splitlines()[-1].startswith("INCOMPLETE: aws serves none that is known")


def test_m24_a_partial_deployment_is_said_with_the_commands_that_end_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there, here = make_release(settings, OTHER), make_release(settings)
    seen = look(settings, account(settings, there) | healthy(here) | stored(settings), monkeypatch)
    monkeypatch.setattr("ferry.status.status", lambda settings: seen)
    output = CliRunner().invoke(main, ["--env", "dev", "status"]).output
    assert "PARTIAL: aws serves mnist-aaaaaaaaaaaa, azure serves mnist-0f0f0f0f0f0f" in output
    end = output.splitlines()[-4:]
    assert end == ["  cdk deploy Hosting Gateway", "  ferry package", "  cdktf deploy", "  ferry verify"]
