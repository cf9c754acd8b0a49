"""`ferry preflight` finds what would stop a deployment before it starts, names the way out, and changes nothing."""

import datetime
import json
import socket
import ssl
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from azure.core.exceptions import ClientAuthenticationError
from botocore.exceptions import BotoCoreError, ClientError
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ferry import aws
from ferry.aws_errors import explain
from ferry.cli import main
from ferry.cloud_states import STACKS
from ferry.preflight import BLOCKING, Check, Finding, preflight, refusal
from ferry.preflight_aws import aws_checks
from ferry.preflight_azure import azure_checks
from infra.settings import Settings, load_settings
from infra.settings_azure import AzureSettings
from tests.local_settings import local_settings
from tests.scripted_account import (
    DIGEST,
    account,
    artifact,
    bootstrap,
    caller,
    configuration,
    endpoint,
    quota,
    serving_uri,
)
from tests.scripted_aws import connect_to, refuses, says
from tests.scripted_server import Reply, Script, Server, SignedIn, scripted
from tests.stack_fixtures import dev_settings, make_release, write_release

DENIED = "User: arn:aws:sts::111122223333:assumed-role/ada is not authorized to perform: {} on resource: {}"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Real-cloud settings with a build folder of their own, which holds a release."""
    made = dev_settings().model_copy(update={"build_dir": str(tmp_path / "build")})
    write_release(make_release(made), made.release_path.parent)
    return made


def found(checks: list[Check], seconds: float = 30) -> dict[str, Finding]:
    return {check.name: finding for check, finding in preflight(checks, seconds)}


def look(settings: Settings, *names: str, **changes: Script) -> tuple[dict[str, Finding], Server]:
    """What the AWS checks, or those with these names, find in an account that differs from a good one in `changes`."""
    with scripted(account(settings, make_release(settings)) | changes) as server:
        reach = connect_to(server, aws.QUICK)

        def connect(given: Settings, service: str) -> Any:
            return aws.refuse_unreadable(aws.expect_owner(given, reach(given, service)))

        checks = aws_checks(settings, connect)
        return found([check for check in checks if not names or check.name in (*names, "credentials")]), server


def exit_code(findings: dict[str, Finding]) -> int:
    error = refusal(
        [(Check("aws", name, lambda finding=finding: finding), finding) for name, finding in findings.items()]
    )
    return 0 if error is None else error.exit_code


def verdicts(findings: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.verdict for name, finding in findings.items()}


def only(findings: dict[str, Finding], *names: str, code: int = 1) -> str:
    """The words of the checks that block a deployment, which have to be exactly `names`; the command ends with `code`."""
    assert {name for name, finding in findings.items() if finding.verdict in BLOCKING} == set(names), findings
    assert exit_code(findings) == (code if names else 0), findings
    return " | ".join(findings[name].text for name in names)


def test_an_account_where_all_is_well_is_only_read(settings: Settings) -> None:
    findings, server = look(settings)
    assert set(verdicts(findings).values()) == {"ok"}, findings
    asked = {_operation(request.headers, request.body, request.method) for request in server.asked}
    assert all(name.startswith(("Get", "Describe", "List", "BatchGet", "HEAD", "GET")) for name in asked), asked
    heads = [request.headers.get("x-amz-expected-bucket-owner") for request in server.asked if request.method == "HEAD"]
    assert heads == [settings.aws.account] * 4  # the artifact and three buckets


def _operation(headers: Any, body: bytes, method: str) -> str:
    if target := headers.get("X-Amz-Target"):
        return str(target).rpartition(".")[2]
    if method == "POST":
        return dict(pair.split("=", 1) for pair in body.decode().split("&"))["Action"]
    return method


def test_every_question_about_our_buckets_names_their_owner_and_no_other_does(settings: Settings) -> None:
    listing = Reply(200, b"<ListBucketResult/>", {"Content-Type": "application/xml"})
    with scripted({f"GET /{settings.data_bucket}": [listing], "GET /somebody-elses": [listing]}) as server:
        client = aws.expect_owner(settings, connect_to(server)(settings, "s3"))
        client.list_objects_v2(Bucket=settings.data_bucket)
        list(client.get_paginator("list_objects_v2").paginate(Bucket=settings.data_bucket))
        client.list_objects_v2(Bucket="somebody-elses")
    owners = [request.headers.get("x-amz-expected-bucket-owner") for request in server.asked]
    assert owners == [settings.aws.account, settings.aws.account, None]


def test_before_the_first_deployment_nothing_has_to_be_repaired(settings: Settings) -> None:
    settings.release_path.unlink()
    replies = account(settings, None, stacks={}) | {
        "DescribeImages": [refuses("ecr", "RepositoryNotFoundException", "no such repository")],
        "DescribeEndpoint": [refuses("sagemaker", "ValidationException", "Could not find endpoint")],
    }
    with scripted(replies) as server:
        findings = found(aws_checks(settings, connect_to(server)))
    assert only(findings) == ""
    waiting = {name for name, finding in findings.items() if finding.verdict == "none yet"}
    assert {"release", "artifact", "image", "buckets", "endpoint", "stack Hosting"} <= waiting


# Nobody, and somebody else.


def test_d1_no_credentials_at_all_end_in_two_and_nothing_is_asked_for_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    outcome = CliRunner().invoke(main, ["--env", "dev", "preflight", "aws"])
    assert outcome.exit_code == 2
    assert "aws   credentials      set up      no AWS credentials on this machine" in outcome.output
    assert "bootstrap        not checked needs credentials first" in outcome.output


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("ExpiredToken", "the credentials have expired; sign in"),
        ("InvalidClientTokenId", "AWS does not know the credentials; sign in"),
        ("SignatureDoesNotMatch", "the secret access key does not belong to the access key id"),
    ],
)
def test_d1_credentials_that_aws_refuses_say_why(settings: Settings, code: str, words: str) -> None:
    findings, server = look(settings, GetCallerIdentity=[refuses("sts", code, "The security token is bad", 403)])
    assert words in only(findings, "credentials", code=2)
    assert len(server.asked) == 1
    assert findings["bootstrap"].verdict == "not checked"


def test_d1_another_account_is_named_with_the_one_that_was_wanted(settings: Settings) -> None:
    findings, server = look(settings, GetCallerIdentity=[caller("999988887777")])
    text = only(findings, "credentials", code=2)
    assert "account 999988887777" in text
    assert "wants 111122223333" in text
    assert len(server.asked) == 1


class Nobody:
    """A credential as azure-identity has it where nobody is signed in."""

    def get_token(self, *scopes: str) -> Any:
        raise ClientAuthenticationError("DefaultAzureCredential failed to retrieve a token.\nAttempted: …")


def test_d1_only_one_cloud_signed_in_leaves_the_other_ones_checks_whole(settings: Settings) -> None:
    with scripted(account(settings, make_release(settings))) as server:
        checks = [*aws_checks(settings, connect_to(server)), *azure_checks(settings, Nobody(), base=server.url)]
        findings = {(check.cloud, check.name): finding for check, finding in preflight(checks, 30)}
    assert {finding.verdict for (cloud, _), finding in findings.items() if cloud == "aws"} == {"ok"}
    assert findings["azure", "login"].verdict == "set up"
    assert "`az login`" in findings["azure", "login"].text
    assert "\n" not in findings["azure", "login"].text
    assert findings["azure", "subscription"].verdict == "not checked"


SUBSCRIPTION = "22222222-2222-2222-2222-222222222222"


def hosted(settings: Settings, **changes: Any) -> Settings:
    table = settings.azure.model_dump(exclude_unset=True) | {"subscription_id": SUBSCRIPTION, **changes}
    return settings.model_copy(update={"azure": AzureSettings.model_validate(table)})


def azure(settings: Settings, **changes: Reply) -> tuple[dict[str, Finding], Server]:
    """What the Azure checks find in a subscription that differs from a good one in `changes`."""
    path = f"/subscriptions/{SUBSCRIPTION}"
    regions = {"value": [{"name": "West Europe"}, {"name": "North Europe"}]}
    site = f"{path}/resourceGroups/rg-modelferry-dev/providers/Microsoft.Web/sites/func-modelferry-dev-dev01"
    good = {
        "subscription": Reply(200, json.dumps({"displayName": "Team", "state": "Enabled"}).encode()),
        "regions": Reply(200, json.dumps(regions).encode()),
        "site": Reply(200, json.dumps({"properties": {"state": "Running"}}).encode()),
    } | changes
    replies = {
        f"GET {path}": [good["subscription"]],
        f"GET {path}/providers/Microsoft.Web/geoRegions": [good["regions"]],
        f"GET {site}": [good["site"]],
    }
    with scripted(replies) as server:
        return found(azure_checks(settings, SignedIn(), base=server.url)), server


def write_package(settings: Settings, *members: str, size: int = 1) -> None:
    settings.package_path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(settings.package_path, "w") as archive:
        archive.writestr("release/release.json", make_release(settings).to_bytes())
        for name in members:
            archive.writestr(name, b"\0" * size)


@pytest.fixture
def packed(settings: Settings) -> Settings:
    made = hosted(settings)
    write_package(made, "host.json", "function_app.py")
    return made


def test_a_subscription_where_all_is_well_is_only_read(packed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "sh")
    findings, server = azure(packed)
    assert set(verdicts(findings).values()) == {"ok"}, findings
    assert {request.method for request in server.asked} == {"GET"}


def test_d1_a_subscription_that_nobody_names_sees_or_may_use_is_said(
    packed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "sh")
    unnamed = packed.model_copy(update={"azure": dev_settings().azure})
    assert "set ARM_SUBSCRIPTION_ID" in only(azure(unnamed)[0], "subscription", code=2)
    missing = {"error": {"code": "SubscriptionNotFound", "message": "The subscription could not be found."}}
    text = only(azure(packed, subscription=Reply(404, json.dumps(missing).encode()))[0], "subscription", code=2)
    assert f"sees no subscription {SUBSCRIPTION}" in text
    assert "SubscriptionNotFound" in text
    disabled = Reply(200, json.dumps({"displayName": "Team", "state": "Disabled"}).encode())
    findings, server = azure(packed, subscription=disabled)
    assert "Team (2222" in only(findings, "subscription", code=2)
    assert findings["app"].verdict == "not checked"
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"AZURE_TENANT_ID": "no tenant!", "AZURE_CLIENT_SECRET": "x"}, "Invalid tenant ID"),
        ({"AZURE_CLIENT_CERTIFICATE_PATH": "/no/such.pem"}, "/no/such.pem"),
        ({"AZURE_AUTHORITY_HOST": "http://login.example.com", "AZURE_CLIENT_SECRET": "x"}, "invalid authority"),
        ({"AZURE_TOKEN_CREDENTIALS": "nonsense"}, "Invalid value for AZURE_TOKEN_CREDENTIALS"),
    ],
)
def test_d1_variables_that_cannot_sign_in_to_azure_are_told(
    variables: dict[str, str], words: str, packed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "sh")
    for name, value in ({"AZURE_TENANT_ID": SUBSCRIPTION, "AZURE_CLIENT_ID": SUBSCRIPTION} | variables).items():
        monkeypatch.setenv(name, value)
    assert words in only(found(azure_checks(packed, base="http://127.0.0.1:9")), "login", code=2)


def test_d1_a_token_of_another_tenant_is_no_sign_in(packed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "sh")
    refused = {"error": {"code": "InvalidAuthenticationTokenTenant", "message": "wrong issuer"}}
    text = only(azure(packed, subscription=Reply(401, json.dumps(refused).encode()))[0], "subscription", code=2)
    assert "InvalidAuthenticationTokenTenant" in text
    assert "`az login --tenant <tenant>`" in text


_CONFIGURATIONS = {
    "an sso session that has ended": (
        "[profile p]\nsso_session = s\nsso_account_id = 111122223333\nsso_role_name = r\n"
        "[sso-session s]\nsso_region = eu-west-1\nsso_start_url = https://example.com/start\n",
        "`aws sso login`",
    ),
    "an aws login that has ended": ("[profile p]\nlogin_session = arn:aws:iam::111122223333:user/ada\n", "aws login"),
    "a helper that fails": ("[profile p]\ncredential_process = false\n", "no AWS credentials on this machine"),
    "a file that is none": ("[profile p\nregion", "correct that file"),
    "a profile that leads to none": (
        "[profile p]\nrole_arn = arn:aws:iam::1:role/r\nsource_profile = q\n",
        "correct that file",
    ),
}


@pytest.mark.parametrize("case", _CONFIGURATIONS)
def test_d1_a_configuration_that_leads_to_nobody_says_what_would(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, words = _CONFIGURATIONS[case]
    (tmp_path / "config").write_text(content)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_PROFILE", "p")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    outcome = CliRunner().invoke(main, ["--env", "dev", "preflight", "aws"])
    assert outcome.exit_code == 2, outcome.output
    assert "aws   credentials      set up" in outcome.output
    assert words in outcome.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.2", "[::1]", "0.0.0.0", "aws.localhost", "s3.localhost.localstack.cloud"]
)
def test_d1_an_emulator_is_not_taken_for_a_real_account_by_whatever_name(
    host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:9")
    outcome = CliRunner().invoke(main, ["--env", "dev", "preflight", "aws"])
    assert outcome.exit_code == 2
    assert "this machine, but environment 'dev' stands for a real account" in outcome.stderr.splitlines()[-1]


# One action is not allowed.


def test_d2_a_denied_action_fails_its_own_check_with_action_and_resource_and_no_other(settings: Settings) -> None:
    resource = "arn:aws:ssm:eu-west-1:111122223333:parameter/cdk-bootstrap/hnb659fds/version"
    denied = refuses("ssm", "AccessDeniedException", DENIED.format("ssm:GetParameter", resource))
    findings, _ = look(settings, GetParameter=[denied])
    text = only(findings, "bootstrap")
    assert "access denied to GetParameter" in text
    assert f"not authorized to perform: ssm:GetParameter on resource: {resource}" in text
    assert {finding.verdict for name, finding in findings.items() if name != "bootstrap"} == {"ok"}


def test_d2_a_bucket_that_may_not_be_seen_names_the_action_that_a_head_cannot(settings: Settings) -> None:
    findings, _ = look(settings, "buckets", **{f"HEAD /{settings.log_bucket}": [Reply(403)]})
    text = only(findings, "buckets")
    assert f"s3:ListBucket on arn:aws:s3:::{settings.log_bucket}" in text
    assert "another account owns it" in text


def test_d2_an_artifact_that_may_not_be_seen_names_what_is_lacking(settings: Settings) -> None:
    key = make_release(settings).archive.uri.removeprefix("s3://")
    text = only(look(settings, "artifact", **{f"HEAD /{key}": [Reply(403)]})[0], "artifact")
    assert f"s3:GetObjectVersion on arn:aws:s3:::{key}" in text
    sealed = artifact(make_release(settings))
    locked = lambda asked: Reply(403) if "x-amz-checksum-mode" in asked.headers else sealed  # noqa: E731
    findings, _ = look(settings, "artifact", **{f"HEAD /{key}": locked})
    assert findings["artifact"].verdict == "not checked"
    assert "lacks kms:Decrypt on its KMS key" in findings["artifact"].text


def test_d2_a_denied_call_of_any_command_ends_with_action_and_resource() -> None:
    message = DENIED.format("sagemaker:CreateModel", "arn:aws:sagemaker:eu-west-1:111122223333:model/m")
    error = ClientError({"Error": {"Code": "AccessDeniedException", "Message": message}}, "CreateModel")
    assert explain(error).startswith("access denied to CreateModel: ")
    assert message in explain(error)


# What a deployment stands on.


def test_d3_an_account_without_bootstrap_gets_the_exact_line(settings: Settings) -> None:
    findings, _ = look(settings, "bootstrap", GetParameter=[refuses("ssm", "ParameterNotFound", "")])
    assert only(findings, "bootstrap", code=2).endswith("cdk bootstrap aws://111122223333/eu-west-1")


def test_d3_a_bootstrap_that_cannot_roll_back_is_too_old(settings: Settings) -> None:
    findings, _ = look(settings, "bootstrap", GetParameter=[bootstrap("22")])
    text = only(findings, "bootstrap", code=2)
    assert "version 22" in text
    assert "needs 23: cdk bootstrap aws://111122223333/eu-west-1" in text
    findings, _ = look(settings, "bootstrap", GetParameter=[bootstrap("23")])
    assert only(findings) == ""


def test_d3_a_bootstrap_version_that_is_no_number_is_none(settings: Settings) -> None:
    findings, _ = look(settings, "bootstrap", GetParameter=[bootstrap("28-ours")])
    assert "'28-ours', and a version is a number: cdk bootstrap aws" in only(findings, "bootstrap", code=2)


@pytest.mark.parametrize("code", ["OptInRequired", "RegionDisabledException", "SubscriptionRequiredException"])
def test_d4_a_service_or_region_that_the_account_has_not_enabled_is_told(settings: Settings, code: str) -> None:
    findings, _ = look(settings, "quota", ListServiceQuotas=[refuses("service-quotas", code, "not subscribed")])
    assert "has that service or that region not enabled" in only(findings, "quota", code=2)


def test_d4_a_region_without_sagemaker_is_told_without_asking_anybody(settings: Settings) -> None:
    moved = settings.model_copy(update={"aws": settings.aws.model_copy(update={"region": "eu-west-9"})})
    (region,) = [check for check in aws_checks(moved) if check.name == "region"]
    finding = region.look()
    assert finding.verdict == "set up"
    assert "aws.region is eu-west-9" in finding.text
    assert "eu-west-1" in finding.text


def test_d4_a_quota_of_nothing_stops_and_one_that_may_not_be_read_is_not_called_fine(settings: Settings) -> None:
    text = only(look(settings, "quota", ListServiceQuotas=[quota(settings, 0)])[0], "quota", code=2)
    assert f"{settings.hosting.instance_type} for endpoint usage is 0, hosting.instance_count wants 1" in text
    assert "request-service-quota-increase" in text
    denied = refuses("service-quotas", "AccessDeniedException", DENIED.format("servicequotas:ListServiceQuotas", "*"))
    other = says("service-quotas", "ListServiceQuotas", {"Quotas": [{"QuotaName": "another", "Value": 9.0}]})
    for reply in (denied, other):
        findings, _ = look(settings, "quota", ListServiceQuotas=[reply])
        assert findings["quota"].verdict == "not checked"
    assert only(findings) == ""


def test_d4_a_location_without_the_plan_names_those_that_have_it(
    packed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "sh")
    findings, server = azure(packed, regions=Reply(200, json.dumps({"value": [{"name": "North Europe"}]}).encode()))
    text = only(findings, "location", code=2)
    assert "azure.location is westeurope" in text
    assert "choose one of northeurope" in text
    assert any("sku=FlexConsumption&" in request.path for request in server.asked)


# The release, its object and its image.


def stored(settings: Settings) -> str:
    return f"HEAD /{make_release(settings).archive.uri.removeprefix('s3://')}"


def test_d11_an_artifact_that_is_missing_empty_or_of_another_environment_stops(settings: Settings) -> None:
    text = only(look(settings, "artifact", **{stored(settings): [Reply(404)]})[0], "artifact")
    assert f"ARTIFACT_MISSING {make_release(settings).archive.uri} (version " in text
    text = only(
        look(settings, "artifact", **{stored(settings): [artifact(make_release(settings), size=0)]})[0], "artifact"
    )
    assert f"ARTIFACT_MISSING {make_release(settings).archive.uri} (version " in text
    assert "it holds 0 bytes, release.json says 101322" in text
    elsewhere = make_release(settings).model_copy(
        update={
            "archive": make_release(settings).archive.model_copy(
                update={"uri": "s3://other-bucket/releases/m/model.tar.gz"}
            )
        }
    )
    write_release(elsewhere, settings.release_path.parent)
    findings, _ = look(settings, "release", **{"HEAD /other-bucket/releases/m/model.tar.gz": [artifact(elsewhere)]})
    assert "ferry --env dev release s3://other-bucket/releases/m/model.tar.gz" in only(findings, "release")
    assert f"ARTIFACT_MISSING {elsewhere.archive.uri}: " in findings["release"].text


def test_d11_an_artifact_whose_key_is_disabled_or_pending_deletion_is_not_called_missing(settings: Settings) -> None:
    sealed = artifact(make_release(settings))
    sealed = Reply(200, b"", {**sealed.headers, "x-amz-server-side-encryption-aws-kms-key-id": "arn:aws:kms:k"})
    locked = lambda asked: Reply(400) if "x-amz-checksum-mode" in asked.headers else sealed  # noqa: E731
    text = only(look(settings, "artifact", **{stored(settings): locked})[0], "artifact")
    assert "ARTIFACT_MISSING" not in text
    assert "its KMS key arn:aws:kms:k does not decrypt it: disabled, or its deletion is pending" in text
    assert "`aws kms cancel-key-deletion`" in text


def test_d11_a_bucket_in_another_region_than_the_endpoint_stops(settings: Settings) -> None:
    abroad = Reply(200, headers={"x-amz-bucket-region": "us-east-1"})
    text = only(look(settings, "buckets", **{f"HEAD /{settings.artifact_bucket}": [abroad]})[0], "buckets")
    assert f"ARTIFACT_MISSING s3://{settings.artifact_bucket}: {settings.artifact_bucket} is in us-east-1" in text
    assert "the endpoint's region, eu-west-1" in text


def test_d12_an_artifact_with_another_digest_stops_and_one_without_any_is_not_called_fine(settings: Settings) -> None:
    other = artifact(make_release(settings), sha256="ab" * 32)
    text = only(look(settings, "artifact", **{stored(settings): [other]})[0], "artifact")
    assert f"DIGEST_MISMATCH {make_release(settings).archive.uri}" in text
    assert f"found sha256 {'ab' * 32}, release.json says sha256 {'1e' * 32}" in text
    bare = Reply(200, headers={"Content-Length": "101322"})
    findings, server = look(settings, "artifact", **{stored(settings): [bare]})
    assert findings["artifact"].verdict == "not checked"
    (asked,) = [request for request in server.asked if "/releases/" in request.path]
    assert "versionId=3sL4kqtJlcpXroDTDmJrmSpXd3dIbrHY" in asked.path
    assert asked.headers["x-amz-checksum-mode"] == "ENABLED"


def test_d12_a_tag_that_has_moved_since_it_was_pushed_stops(settings: Settings) -> None:
    tag = serving_uri(settings).rpartition(":")[2]
    settings.image_path.write_text(json.dumps({"tag": tag, "digest": f"sha256:{'77' * 32}"}))
    text = only(look(settings, "image")[0], "image")
    assert f"is {DIGEST}" in text
    assert "the tag has moved" in text


def test_d13_an_image_that_is_absent_is_named_and_so_is_the_half_of_a_push(settings: Settings) -> None:
    absent = refuses("ecr", "ImageNotFoundException", "The image with imageId does not exist")
    text = only(look(settings, "image", DescribeImages=[absent])[0], "image")
    assert serving_uri(settings) in text
    assert "`ferry image push`" in text
    settings.image_path.write_text(json.dumps({"tag": serving_uri(settings).rpartition(":")[2], "digest": DIGEST}))
    assert f"{serving_uri(settings).rpartition(':')[0]}@{DIGEST}" in only(
        look(settings, "image", DescribeImages=[absent])[0], "image"
    )

    def half(asked: Any) -> Reply:
        if "-processing" in asked.body.decode():
            return absent
        good = account(settings, None)["DescribeImages"]
        assert callable(good)
        return good(asked)

    text = only(look(settings, "image", DescribeImages=half)[0], "image")
    assert f"{serving_uri(settings)}-processing" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"DescribeImages": [says("ecr", "DescribeImages", {"imageDetails": []})]}, "not in ECR: "),
        ({"BatchGetImage": [says("ecr", "BatchGetImage", {"images": []})]}, "no manifest of sha256:5e5e"),
        ({"GET /configuration": [Reply(200, b'{"architecture": "amd')]}, "or half of one; delete its tag"),
        ({"GET /configuration": [Reply(200, b"[]")]}, "or half of one; delete its tag"),
    ],
)
def test_d13_what_is_half_in_ecr_is_named(settings: Settings, changes: dict[str, Script], words: str) -> None:
    text = only(look(settings, "image", **changes)[0], "image")
    assert words in text
    assert "`ferry image push`" in text


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (configuration(architecture="arm64"), "built for arm64, and the instances are amd64"),
        (configuration(labels={}), "lacks the label com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true"),
    ],
)
def test_d13_an_image_that_sagemaker_would_refuse_is_named_by_digest(
    settings: Settings, wrong: Reply, words: str
) -> None:
    text = only(look(settings, "image", **{"GET /configuration": [wrong]})[0], "image")
    assert words in text
    assert f"@{DIGEST}" in text


def test_d14_a_package_without_its_root_files_of_another_release_or_too_large_stops(
    packed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "sh")
    write_package(packed, "app/host.json", "function_app.py")
    assert "host.json not at its root; build it with `ferry package`" in only(azure(packed)[0], "package")
    with packed.package_path.open("ab") as file:  # a zip may begin late, so what comes before it counts as size only
        file.truncate(0)
        file.write(b"\0" * (46 * 2**20))
    with zipfile.ZipFile(packed.package_path, "a") as archive:
        archive.writestr("release/release.json", make_release(packed).to_bytes())
        archive.writestr("host.json", "{}")
        archive.writestr("function_app.py", "")
    assert "46.0 MiB, at most 45 MiB" in only(azure(packed)[0], "package")
    write_release(make_release(packed, "aa" * 32), packed.release_path.parent)
    assert "holds another release than mnist-aaaaaaaaaaaa" in only(azure(packed)[0], "package")


def test_a_machine_without_terraform_says_what_would_do(packed: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "no-such-terraform")
    assert "no-such-terraform: not on the PATH" in only(azure(packed)[0], "terraform", code=2)


# What is half done.


@pytest.mark.parametrize(
    ("status", "verdict"),
    [("UPDATE_IN_PROGRESS", "busy"), ("UPDATE_ROLLBACK_FAILED", "repair"), ("REVIEW_IN_PROGRESS", "ok")],
)
def test_d8_stacks_that_no_deployment_can_start_from_stop_it(settings: Settings, status: str, verdict: str) -> None:
    events = says("cloudformation", "DescribeStackEvents", {"StackEvents": []})
    replies = account(settings, make_release(settings), {"Foundation": "CREATE_COMPLETE", "Hosting": status}) | {
        "DescribeStackEvents": [events]
    }
    with scripted(replies) as server:
        findings = found(aws_checks(settings, connect_to(server)))
    assert findings["stack Hosting"].verdict == verdict
    assert findings["stack Hosting"].text.startswith("BUSY " if verdict == "busy" else status)
    assert findings["stack Foundation"].verdict == "ok"
    assert findings["stack Gateway"].verdict == "none yet"


def test_d10_an_endpoint_that_failed_says_so_before_a_deployment_would(settings: Settings) -> None:
    failed = endpoint(settings, "Failed", make_release(settings), "no capacity")
    assert "Failed; no capacity; SageMaker allows delete now" in only(
        look(settings, "endpoint", **failed)[0], "endpoint"
    )


def test_d17_what_was_deleted_by_hand_is_told_and_nothing_makes_it_again_by_itself(settings: Settings) -> None:
    text = only(look(settings, "buckets", **{f"HEAD /{settings.data_bucket}": [Reply(404)]})[0], "buckets")
    assert f"{settings.data_bucket}: deleted outside of CloudFormation" in text
    assert "`cdk deploy Foundation --revert-drift` does, empty" in text
    gone = refuses("sagemaker", "ValidationException", 'Could not find endpoint "modelferry-dev-mnist".')
    text = only(look(settings, "endpoint", DescribeEndpoint=[gone])[0], "endpoint")
    assert "modelferry-dev-mnist was deleted outside of CloudFormation" in text
    assert "`cdk deploy Hosting --revert-drift` makes it again" in text


def test_d17_a_repository_that_was_deleted_by_hand_is_not_taken_for_one_to_come(settings: Settings) -> None:
    gone = refuses("ecr", "RepositoryNotFoundException", "no such repository")
    text = only(look(settings, "image", "stack Foundation", DescribeImages=[gone])[0], "image")
    assert "deleted outside of CloudFormation: `cdk drift Foundation` shows it" in text


def test_d17_what_another_stack_or_an_earlier_one_left_in_the_way_is_named(settings: Settings) -> None:
    release = make_release(settings)
    buckets = {name: reply for name, reply in account(settings, None).items() if name.startswith("HEAD ")}
    with scripted(account(settings, release, {}) | endpoint(settings, "InService", release) | buckets) as server:
        findings = found(aws_checks(settings, connect_to(server)))
    text = only(findings, "buckets", "endpoint")
    assert f"{settings.log_bucket}: there already, and the stack Foundation" in text
    assert "`cdk deploy Foundation --import-existing-resources`" in text
    assert "modelferry-dev-mnist is there already, and the stack Hosting, which would make it, is not" in text


@pytest.mark.parametrize("content", ['{"version": 4, "resour', "<<<<<<< HEAD", "[]", ""])
def test_d17_a_terraform_state_that_is_damaged_stops_before_everything_is_made_twice(
    content: str, packed: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "sh")
    monkeypatch.setenv("CDKTF_OUTDIR", str(tmp_path / "cdktf.out"))
    path = tmp_path / "terraform.modelferry-dev-azure.tfstate"
    path.write_text(content)
    backup = path.with_name(f"{path.name}.backup")
    backup.write_text(json.dumps({"version": 4, "resources": [{"type": "azurerm_storage_account"}]}))
    text = only(azure(packed)[0], "state lock")
    assert f"look at {backup}" in text
    assert path.read_text() == content
    backup.unlink()
    path.write_text("")  # as Terraform leaves it before its first apply
    assert only(azure(packed)[0]) == ""


# The way there.


_PAGE = Reply(200, b"<html><body>Sign in to this network</body></html>", {"Content-Type": "text/html"})
_HALF = Reply(200, b"<DescribeStacksResponse><DescribeStacksRes", {"Content-Type": "text/xml"})
_TORN = Reply(200, b'{"Parameter": {"Value": "2', {"Content-Type": "application/x-amz-json-1.1"})


@pytest.mark.parametrize(
    ("name", "operation", "reply"),
    [
        ("credentials", "GetCallerIdentity", _PAGE),
        ("stack Hosting", "DescribeStacks", _HALF),
        ("bootstrap", "GetParameter", _PAGE),
        ("bootstrap", "GetParameter", _TORN),
        ("quota", "ListServiceQuotas", _PAGE),
    ],
)
def test_d16_a_page_of_somebody_elses_and_half_an_answer_are_not_taken_for_aws(
    settings: Settings, name: str, operation: str, reply: Reply
) -> None:
    text = only(look(settings, name, **{operation: [reply]})[0], name)
    assert f"what answers {operation} there is not AWS, or was cut off: '" in text


@pytest.mark.parametrize("body", [_PAGE.body, b'{"properties": {"sta'])
def test_d16_a_page_of_somebody_elses_is_not_taken_for_azure(
    body: bytes, packed: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRAFORM_BINARY_NAME", "sh")
    assert "is not Azure, or was cut off: '" in only(azure(packed, site=Reply(200, body))[0], "app")


def test_d16_a_service_that_throttles_is_asked_twice_and_then_named(settings: Settings) -> None:
    throttled = refuses("ssm", "ThrottlingException", "Rate exceeded")
    findings, server = look(settings, "bootstrap", GetParameter=[throttled])
    assert "too many requests" in only(findings, "bootstrap")
    assert len([request for request in server.asked if "GetParameter" in request.headers.get("X-Amz-Target", "")]) == 2
    findings, _ = look(settings, "bootstrap", GetParameter=[throttled, bootstrap("28")])
    assert only(findings) == ""


def test_d16_a_service_that_fails_is_asked_twice_and_then_named(settings: Settings) -> None:
    broken = refuses("cloudformation", "InternalFailure", "oops", 503)
    findings, _ = look(settings, DescribeStacks=[broken])
    stacks = [name for name in findings if name.startswith("stack ")]
    assert "the service itself fails" in only(findings, "buckets", *stacks)


@pytest.mark.parametrize("minutes", [-10, 10])
def test_d16_a_clock_ten_minutes_off_is_named_as_the_cause(settings: Settings, minutes: int) -> None:
    theirs = datetime.datetime.now(datetime.UTC) - datetime.timedelta(minutes=minutes)
    date = {"Date": format_datetime(theirs, usegmt=True)}
    direction = "ahead of" if minutes > 0 else "behind"
    refused = refuses("sts", "SignatureDoesNotMatch", "Signature expired: 2026 is now earlier than 2026", 403, date)
    for reply in (refused, caller(settings.aws.account, date)):
        text = only(look(settings, "credentials", GetCallerIdentity=[reply])[0], "credentials", code=2)
        assert f"this machine's clock is 10 minutes {direction} AWS's" in text


def failure(url: str) -> str:
    client = connect_to(url, aws.QUICK)(dev_settings(), "sts")
    with pytest.raises((BotoCoreError, ClientError)) as caught:
        client.get_caller_identity()
    return explain(caught.value)


@contextmanager
def intercepted(folder: Path) -> Iterator[str]:
    """An HTTPS server with a certificate that nobody vouches for, as a proxy that looks into TLS shows it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Corporate Proxy")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "proxy.pem"
    unencrypted = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted)
    path.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"https://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_d16_an_intercepted_tls_connection_is_called_one_on_both_clouds(packed: Settings, tmp_path: Path) -> None:
    with intercepted(tmp_path) as url:
        assert "AWS_CA_BUNDLE=<file with that proxy's CA>" in failure(url)
        findings = found(azure_checks(packed, SignedIn(), base=url))
    assert "a certificate that this machine does not trust" in findings["subscription"].text


def test_d16_a_name_that_does_not_resolve_and_a_port_without_a_listener_say_what_may_be_why() -> None:
    assert "name resolution, a firewall or a missing proxy" in failure("https://sts.no-such-region.invalid")
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        assert "HTTPS_PROXY" in failure(f"http://127.0.0.1:{unused.getsockname()[1]}")


def test_d16_a_proxy_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.delenv("no_proxy")
    assert "HTTPS_PROXY names a proxy that does not answer" in failure("https://sts.eu-west-1.example.com")


def test_a_check_that_hangs_does_not_keep_the_command_and_the_others_are_told() -> None:
    release = threading.Event()

    def hang() -> Finding:
        release.wait()
        return Finding("ok", "late")

    checks = [
        Check("aws", "slow", hang),
        Check("aws", "after", lambda: Finding("ok", "never"), "slow"),
        Check("aws", "quick", lambda: Finding("ok", "here")),
    ]
    findings = found(checks, seconds=1.5)
    release.set()
    assert findings["quick"] == Finding("ok", "here")
    assert findings["slow"].verdict == findings["after"].verdict == "repair"
    assert "no answer within 1.5 s" in findings["slow"].text


def test_a_fault_of_a_check_itself_is_not_taken_for_a_finding() -> None:
    def wrong() -> Finding:
        raise KeyError("a bug")

    with pytest.raises(KeyError, match="a bug"):
        found([Check("aws", "wrong", wrong)])


# The command.


def test_the_command_prints_a_line_a_check_and_ends_with_what_is_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trial.toml"
    settings = local_settings(tmp_path)
    assert load_settings(str(path)) == settings
    outcome = CliRunner().invoke(main, ["--env", str(path), "preflight"])
    assert outcome.exit_code == 1
    assert "start the emulator: ferry local up emulator" in outcome.output
    outcome = CliRunner().invoke(main, ["--env", str(path), "preflight", "azure"])
    assert outcome.exit_code == 0, outcome.output
    assert outcome.output.startswith("azure package          none yet    no ")
    document = CliRunner().invoke(main, ["--env", str(path), "preflight", "azure", "--json"]).stdout
    (row,) = json.loads(document)
    assert (row["cloud"], row["check"], row["verdict"]) == ("azure", "package", "none yet")


def ask(settings: Settings, monkeypatch: pytest.MonkeyPatch, **changes: Script) -> tuple[int, str]:
    """`ferry preflight aws` in an account that differs from a good one in `changes`: exit code, last line of stderr."""
    with scripted(account(settings, make_release(settings)) | changes) as server:
        checks = aws_checks(settings, connect_to(server, aws.QUICK))
        monkeypatch.setattr("ferry.preflight_aws.aws_checks", lambda _: checks)
        outcome = CliRunner().invoke(main, ["--env", "dev", "preflight", "aws"])
    return outcome.exit_code, (outcome.stderr.splitlines() or [""])[-1]


def test_d8_d11_the_last_line_says_what_is_wrong_and_what_follows_and_the_code_is_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(settings, monkeypatch) == (0, "")
    missing: dict[str, Script] = {stored(settings): [Reply(404)]}
    code, said = ask(settings, monkeypatch, **missing)
    assert code == 1
    assert said.startswith(f"ferry: aws artifact: ARTIFACT_MISSING {make_release(settings).archive.uri}")
    assert said.endswith("makes the newest approved one again. Then run `ferry preflight` again")
    states = dict.fromkeys(STACKS, "UPDATE_COMPLETE") | {"Hosting": "UPDATE_ROLLBACK_IN_PROGRESS"}
    events = says("cloudformation", "DescribeStackEvents", {"StackEvents": []})
    busy = account(settings, make_release(settings), states)["DescribeStacks"]
    code, said = ask(settings, monkeypatch, DescribeStacks=busy, DescribeStackEvents=[events], **missing)
    assert code == 1
    assert said.startswith("ferry: aws artifact: ARTIFACT_MISSING")
    assert " Also aws stack Hosting, above." in said
    code, said = ask(settings, monkeypatch, DescribeStacks=busy, DescribeStackEvents=[events])
    assert said.startswith("ferry: aws stack Hosting: BUSY UPDATE_ROLLBACK_IN_PROGRESS; wait until it has ended")
    assert code == 1


def test_d1_d3_d4_what_has_to_be_set_up_goes_before_what_has_to_be_repaired(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing: dict[str, Script] = {stored(settings): [Reply(404)]}
    code, said = ask(settings, monkeypatch, GetParameter=[bootstrap("22")], **missing)
    assert code == 2
    assert said.startswith("ferry: aws bootstrap: version 22")
    assert "Also aws artifact, above." in said
    code, said = ask(settings, monkeypatch, GetCallerIdentity=[caller("999988887777")], **missing)
    assert code == 2
    assert "wants 111122223333" in said
    code, said = ask(settings, monkeypatch, ListServiceQuotas=[quota(settings, 0)], **missing)
    assert code == 2
    assert said.startswith("ferry: aws quota: ")


def test_a_stack_is_asked_for_once_by_all_the_checks_that_want_to_know(settings: Settings) -> None:
    gone = refuses("sagemaker", "ValidationException", "Could not find endpoint")
    _, server = look(settings, DescribeEndpoint=[gone])
    names = [asked.body for asked in server.asked if b"Action=DescribeStacks" in asked.body]
    assert len(names) == len(set(names)) == len(STACKS)


def test_a_release_that_cannot_be_read_is_told_by_file_and_field(settings: Settings) -> None:
    settings.release_path.write_text('{"schema_version": 1}')
    text = only(look(settings)[0], "release", "artifact")
    assert f"{settings.release_path}: /schema_version" in text
