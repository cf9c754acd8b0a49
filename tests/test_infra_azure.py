"""The Azure stack: its whole Terraform JSON as a snapshot, and in sentences what must never change about it.

There is no Terraform provider in a test, so references are checked here; what the real provider refuses beyond that was
found once with it and is written into the stack.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

from infra.azure.stack import synthesize
from infra.release import ReleaseError
from infra.settings import ROOT, load_settings
from tests.azure_stack import (
    STACK,
    SUBSCRIPTION,
    VARIANTS,
    Template,
    azure_settings,
    one,
    read_template,
    synthesize_template,
    the_app,
    write_package,
)
from tests.local_settings import write_settings
from tests.snapshots import TemplateSnapshot, without_asset_hashes
from tests.stack_fixtures import dev_settings, make_release, write_release

Synthesize = Callable[..., Template]


@pytest.fixture(scope="session")
def synthesized(tmp_path_factory: pytest.TempPathFactory) -> Synthesize:
    """Synthesizes in this process and returns the Terraform JSON."""

    def synthesized(**changes: Any) -> Template:
        return read_template(synthesize_template(tmp_path_factory.mktemp("azure"), **changes))

    return synthesized


@pytest.fixture(scope="session")
def variant(synthesized: Synthesize) -> Callable[[str], Template]:
    """The template of a variant, synthesized once."""
    made: dict[str, Template] = {}

    def variant(name: str) -> Template:
        if name not in made:
            made[name] = synthesized(settings=azure_settings(**VARIANTS[name]))
        return made[name]

    return variant


@pytest.fixture(params=VARIANTS)
def any_template(request: pytest.FixtureRequest, variant: Callable[[str], Template]) -> Template:
    """Each variant in turn: what holds for every way of hosting."""
    return variant(request.param)


@pytest.fixture(params=[name for name in VARIANTS if not name.startswith("container")])
def function_template(request: pytest.FixtureRequest, variant: Callable[[str], Template]) -> Template:
    """Each variant that is a Function App."""
    return variant(request.param)


@pytest.fixture(scope="session")
def template(variant: Callable[[str], Template]) -> Template:
    """The stack with the default, identity for every access to storage."""
    return variant("flex")


@pytest.fixture(scope="session")
def fallback(variant: Callable[[str], Template]) -> Template:
    """The stack with storage_auth = "connection-string"."""
    return variant("flex-connection-string")


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every scalar of a document with its path."""
    if isinstance(value, dict | list):
        for key, nested in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(nested, f"{path}/{key}")
    else:
        yield path, value


def changed(before: Template, after: Template) -> set[str]:
    """Paths of all values that are not the same in both."""
    return {path for path, _ in set(leaves(before)) ^ set(leaves(after))}


@pytest.mark.parametrize("name", VARIANTS)
def test_the_stack_is_the_reviewed_one(
    name: str, variant: Callable[[str], Template], snapshot: SnapshotAssertion
) -> None:
    kept = frozenset({"3c" * 32})  # the image's digest is what the settings say
    assert without_asset_hashes(variant(name), kept) == snapshot(extension_class=TemplateSnapshot)


def test_two_synths_give_the_same_bytes(tmp_path: Path) -> None:
    release = make_release(dev_settings())
    package = write_package(tmp_path, release)
    program = (
        "import sys; from pathlib import Path\n"
        "from infra.azure.stack import synthesize\n"
        "from tests.stack_fixtures import dev_settings, make_release, write_release\n"
        "synthesize(dev_settings(), make_release(dev_settings()), Path(sys.argv[1]))"
    )
    written = []
    for seed in ("1", "2"):
        folder = tmp_path / f"run-{seed}"
        folder.mkdir()
        variables = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", program, str(package)], check=True, cwd=folder, env=variables)
        outputs = sorted(path for path in folder.rglob("*") if path.is_file())
        written.append({path.relative_to(folder): path.read_bytes() for path in outputs})
    assert written[0] == written[1]
    assert Path("cdktf.out/stacks", STACK, "cdk.tf.json") in written[0]


def test_the_cdktf_command_line_synthesizes_the_same_stack(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    settings = load_settings(str(path))
    release = make_release(settings)
    write_release(release, settings.release_path.parent)
    write_package(settings.package_path.parent, release)
    binaries = [str(ROOT / "node_modules" / ".bin"), str(ROOT / ".venv" / "bin"), os.environ["PATH"]]
    variables = os.environ | {"PATH": os.pathsep.join(binaries), "HOME": str(tmp_path), "FERRY_ENV": str(path)}
    variables |= {"CHECKPOINT_DISABLE": "1", "CI": "1"}
    subprocess.run(["cdktf", "synth", "--output", str(tmp_path / "out")], check=True, cwd=ROOT, env=variables)
    written = tmp_path / "out" / "stacks" / settings.stack("azure") / "cdk.tf.json"
    assert written.read_bytes() == synthesize_template(tmp_path / "here", settings, release).read_bytes()


def test_no_path_of_this_machine_is_in_the_template(any_template: Template) -> None:
    absolute = [
        (path, value)
        for path, value in leaves(any_template)
        if isinstance(value, str) and (str(ROOT) in value or str(Path.home()) in value or "/tmp/" in value)
    ]
    assert absolute == []


def test_every_reference_points_at_something_in_the_stack(any_template: Template) -> None:
    template = any_template
    known = {f"{kind}.{each}" for kind, resources in template["resource"].items() for each in resources}
    known |= {f"data.{kind}.{each}" for kind, sources in template["data"].items() for each in sources}
    values = [value for _, value in leaves(template) if isinstance(value, str)]
    references = {
        match for value in values for match in re.findall(r"\$\{((?:data\.)?azurerm_\w+\.\w+)\.[\w.\[\]]+}", value)
    }
    references |= {value for path, value in leaves(template) if "/depends_on/" in path}
    assert references
    assert references <= known
    assert sum(value.count("${") for value in values) == sum(
        len(re.findall(r"\$\{[\w.\[\]]+}", value)) for value in values
    )


def test_storage_refuses_public_blobs_and_plain_http(any_template: Template) -> None:
    account = one(any_template, "azurerm_storage_account")
    assert account["allow_nested_items_to_be_public"] is False
    assert account["https_traffic_only_enabled"] is True
    assert account["min_tls_version"] == "TLS1_2"
    assert one(any_template, "azurerm_storage_container")["container_access_type"] == "private"


def test_shared_keys_are_off_and_no_key_is_read_in_identity_mode(template: Template) -> None:
    account = one(template, "azurerm_storage_account")
    assert account["shared_access_key_enabled"] is False
    assert account["default_to_oauth_authentication"] is True
    assert template["provider"]["azurerm"][0]["storage_use_azuread"] is True
    app = one(template, "azurerm_function_app_flex_consumption")
    assert app["storage_authentication_type"] == "UserAssignedIdentity"
    assert "storage_access_key" not in app
    assert not [value for _, value in leaves(template) if "access_key}" in str(value)]


def test_the_host_setting_that_the_provider_breaks_is_replaced(template: Template, fallback: Template) -> None:
    settings = one(template, "azurerm_function_app_flex_consumption")["app_settings"]
    assert settings["azureWebJobsStorage"] == ""
    assert "AzureWebJobsStorage" not in settings
    assert settings["AzureWebJobsStorage__credential"] == "managedidentity"
    other = one(fallback, "azurerm_function_app_flex_consumption")["app_settings"]
    assert not [name for name in other if name.lower().startswith("azurewebjobsstorage")]


def test_the_fallback_reaches_storage_with_a_key_of_the_account(fallback: Template) -> None:
    app = one(fallback, "azurerm_function_app_flex_consumption")
    assert app["storage_authentication_type"] == "StorageAccountConnectionString"
    assert app["storage_access_key"].endswith(".primary_access_key}")
    assert "storage_user_assigned_identity_id" not in app
    assert one(fallback, "azurerm_storage_account")["shared_access_key_enabled"] is True


def test_the_app_takes_https_only_and_no_basic_publishing(function_template: Template) -> None:
    app = the_app(function_template)
    assert app["https_only"] is True
    assert app["webdeploy_publish_basic_authentication_enabled"] is False
    assert app["site_config"]["minimum_tls_version"] == "1.2"
    assert app["site_config"]["scm_minimum_tls_version"] == "1.2"


@pytest.mark.parametrize("name", ["template", "fallback"])
def test_the_app_has_nothing_that_flex_consumption_refuses(name: str, request: pytest.FixtureRequest) -> None:
    template: Template = request.getfixturevalue(name)
    app = one(template, "azurerm_function_app_flex_consumption")
    assert "zip_deploy_file" not in app
    refused = {
        "FUNCTIONS_EXTENSION_VERSION",
        "FUNCTIONS_WORKER_PROCESS_COUNT",
        "FUNCTIONS_WORKER_RUNTIME",
        "SCM_DO_BUILD_DURING_DEPLOYMENT",
        "WEBSITE_RUN_FROM_PACKAGE",
    }
    assert not refused & app["app_settings"].keys()
    assert one(template, "azurerm_service_plan")["sku_name"] == "FC1"
    assert (app["runtime_name"], app["runtime_version"]) == ("python", "3.12")


def test_nobody_has_a_role_that_is_not_listed_here(template: Template, fallback: Template) -> None:
    identity = "${azurerm_user_assigned_identity.app_identity.principal_id}"
    deployer = "${data.azurerm_client_config.deployer.object_id}"
    account = "${azurerm_storage_account.storage_account.id}"
    insights = "${azurerm_application_insights.app_insights.id}"
    container = "${azurerm_storage_container.deployment_container.id}"
    always = {
        (deployer, "Storage Blob Data Contributor", container),
        (identity, "Monitoring Metrics Publisher", insights),
    }
    keyless = {
        (identity, "Storage Blob Data Owner", account),
        (identity, "Storage Queue Data Contributor", account),
        (identity, "Storage Table Data Contributor", account),
    }
    assert granted(template) == always | keyless
    assert granted(fallback) == always


def granted(template: Template) -> set[tuple[str, str, str]]:
    roles = template["resource"]["azurerm_role_assignment"].values()
    return {(role["principal_id"], role["role_definition_name"], role["scope"]) for role in roles}


def test_a_deployer_who_may_upload_already_gets_no_role_and_waits_for_nothing(synthesized: Synthesize) -> None:
    template = synthesized(settings=azure_settings(grant_deployer=False))
    assert not [role for _, role, _ in granted(template) if role == "Storage Blob Data Contributor"]
    assert "data" not in template
    assert not [value for _, value in leaves(template) if "sleep" in str(value)]


def test_dns_carries_our_own_tags_only_because_azure_takes_few_there(synthesized: Synthesize) -> None:
    settings = azure_settings(network={"private_endpoints": True})
    tags = {f"cost center {number}": "x" for number in range(20)}
    template = synthesized(settings=settings.model_copy(update={"tags": tags}))
    for kind in ("azurerm_private_dns_zone", "azurerm_private_dns_zone_virtual_network_link"):
        assert all(set(each["tags"]) == {"project", "environment"} for each in template["resource"][kind].values())
    assert "cost center 1" in one(template, "azurerm_virtual_network")["tags"]


def test_telemetry_needs_an_identity(template: Template) -> None:
    assert one(template, "azurerm_application_insights")["local_authentication_disabled"] is True
    settings = one(template, "azurerm_function_app_flex_consumption")["app_settings"]
    assert settings["APPLICATIONINSIGHTS_AUTHENTICATION_STRING"].endswith(";Authorization=AAD")


def test_the_upload_waits_for_the_deployers_role_and_the_app_for_the_upload(template: Template) -> None:
    blob = one(template, "azurerm_storage_blob")
    assert blob["depends_on"] == ["azurerm_role_assignment.deployer_blobs"]
    app = one(template, "azurerm_function_app_flex_consumption")
    roles = {f"azurerm_role_assignment.{name}" for name in template["resource"]["azurerm_role_assignment"]}
    assert set(app["depends_on"]) == {"azurerm_storage_blob.package_blob"} | roles - set(blob["depends_on"])


def test_the_package_is_the_blob_that_the_app_starts_from(template: Template) -> None:
    blob = one(template, "azurerm_storage_blob")
    assert blob["name"] == "released-package.zip"
    app = one(template, "azurerm_function_app_flex_consumption")
    assert app["storage_container_endpoint"] == (
        "${azurerm_storage_account.storage_account.primary_blob_endpoint}"
        "${azurerm_storage_container.deployment_container.name}"
    )
    assert blob["storage_container_name"] == "${azurerm_storage_container.deployment_container.name}"


def test_the_app_is_told_which_release_it_serves(template: Template) -> None:
    release = make_release(dev_settings())
    settings = one(template, "azurerm_function_app_flex_consumption")["app_settings"]
    assert settings["FERRY_RELEASE_ID"] == release.release_id
    assert template["output"]["release_id"]["value"] == release.release_id


def test_the_release_is_a_tag_of_the_app_and_of_nothing_else(any_template: Template) -> None:
    release = make_release(dev_settings())
    assert the_app(any_template)["tags"]["release-id"] == release.release_id
    assert len([path for path, _ in leaves(any_template) if path.endswith("/tags/release-id")]) == 1


@pytest.mark.parametrize("name", ["flex", "premium", "container"])
def test_another_release_changes_the_blob_and_one_app_setting(
    name: str, variant: Callable[[str], Template], synthesized: Synthesize
) -> None:
    settings = azure_settings(**VARIANTS[name])
    other = synthesized(settings=settings, release=make_release(settings, onnx_sha256="ab" * 32))
    found = changed(variant(name), other)
    blob = {path for path in found if path.startswith("/resource/azurerm_storage_blob/package_blob/")}
    assert {path.rsplit("/", 1)[1] for path in blob} == {"content_md5", "source", "release_id", "sha256"}
    of_the_app = found - blob - {"/output/release_id/value"}
    (setting,) = (path for path in of_the_app if not path.endswith("/tags/release-id"))
    assert setting.endswith("/app_settings/FERRY_RELEASE_ID") or "/env/" in setting


def test_other_code_for_the_same_release_changes_the_package_and_restarts_the_app(
    template: Template, synthesized: Synthesize
) -> None:
    assert changed(template, synthesized(code="# changed")) == {
        "/resource/azurerm_function_app_flex_consumption/function_app/app_settings/FERRY_CODE_SHA256",
        "/resource/azurerm_storage_blob/package_blob/content_md5",
        "/resource/azurerm_storage_blob/package_blob/metadata/sha256",
        "/resource/azurerm_storage_blob/package_blob/source",
    }


def test_nobody_hears_of_silence_unless_there_is_something_to_hear(variant: Callable[[str], Template]) -> None:
    """An idle Flex Consumption app that no probe reaches runs nowhere: its silence is no fault."""
    query = "azurerm_monitor_scheduled_query_rules_alert_v2"
    assert query in variant("flex")["resource"]
    assert query in variant("premium-entra-private")["resource"]
    assert query in variant("container-private")["resource"]
    assert query not in variant("flex-private")["resource"]


def test_server_errors_and_slow_answers_raise_alerts_that_the_action_group_hears(any_template: Template) -> None:
    alerts = any_template["resource"]["azurerm_monitor_metric_alert"]
    assert set(alerts) == {"server_errors_alert", "latency_alert"}
    for alert in alerts.values():
        assert alert["action"] == [{"action_group_id": "${azurerm_monitor_action_group.action_group.id}"}]
    assert one(any_template, "azurerm_monitor_action_group")["email_receiver"][0]["email_address"]


def test_the_budget_tells_the_action_group(any_template: Template) -> None:
    budget = one(any_template, "azurerm_consumption_budget_resource_group")
    assert budget["time_period"] == {"start_date": "2026-11-01T00:00:00Z"}
    assert all(
        each["contact_groups"] == ["${azurerm_monitor_action_group.action_group.id}"] for each in budget["notification"]
    )


def test_nobody_probes_what_is_closed_from_outside(variant: Callable[[str], Template]) -> None:
    probe = "azurerm_application_insights_standard_web_test"
    probed = {name for name in VARIANTS if probe in variant(name)["resource"]}
    closed = {"flex-private", "premium-entra-private", "container", "container-private", "container-entra-private"}
    assert set(VARIANTS) - probed == closed | {"container-anonymous-restricted"}


def test_private_means_that_app_and_storage_have_no_public_address(variant: Callable[[str], Template]) -> None:
    for name in ("flex-private", "premium-entra-private"):
        private = variant(name)
        assert the_app(private)["public_network_access_enabled"] is False
        account = one(private, "azurerm_storage_account")
        assert account["public_network_access_enabled"] is False
        assert account["network_rules"]["default_action"] == "Deny"
        endpoints = private["resource"]["azurerm_private_endpoint"].values()
        reached = {each["private_service_connection"]["subresource_names"][0] for each in endpoints}
        assert reached == {"blob", "queue", "table", "sites"}


def test_a_deployer_outside_the_network_is_let_through_by_address_and_nobody_else(
    variant: Callable[[str], Template],
) -> None:
    account = one(variant("container-entra-private"), "azurerm_storage_account")
    assert account["public_network_access_enabled"] is True
    assert account["network_rules"] == {"bypass": ["None"], "default_action": "Deny", "ip_rules": ["203.0.113.7"]}


def test_nothing_is_uploaded_or_started_before_the_private_endpoints_exist(
    variant: Callable[[str], Template],
) -> None:
    for name in ("flex-private", "premium-entra-private", "container-private"):
        private = variant(name)
        storage = {
            f"azurerm_private_endpoint.{each}"
            for each in private["resource"]["azurerm_private_endpoint"]
            if each != "app_endpoint"
        }
        assert storage
        assert storage <= set(one(private, "azurerm_storage_blob")["depends_on"])
        assert storage <= set(the_app(private)["depends_on"])


def test_only_the_named_networks_and_azures_own_probes_get_through(variant: Callable[[str], Template]) -> None:
    site = the_app(variant("flex-restricted"))["site_config"]
    assert site["ip_restriction_default_action"] == "Deny"
    allowed = {rule.get("ip_address") or rule.get("service_tag") for rule in site["ip_restriction"]}
    assert allowed == {"203.0.113.0/24", "198.51.100.7/32", "ApplicationInsightsAvailability"}
    assert all(rule["action"] == "Allow" for rule in site["ip_restriction"])


def test_entra_stands_before_the_app_and_lets_only_health_pass(variant: Callable[[str], Template]) -> None:
    for name in ("flex-entra", "premium-entra-private"):
        app = the_app(variant(name))
        authentication = app["auth_settings_v2"]
        assert (authentication["auth_enabled"], authentication["require_authentication"]) == (True, True)
        assert authentication["unauthenticated_action"] == "Return401"
        assert authentication["excluded_paths"] == ["/api/health"]
        directory = authentication["active_directory_v2"]
        assert directory["allowed_audiences"] == ["api://66666666-7777-8888-9999-000000000000"]
        assert not [key for key in directory if "secret" in key]
        assert app["app_settings"]["FERRY_AUTHORIZATION"] == "entra"


def test_anonymous_is_said_aloud_at_synth(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthesize_template(tmp_path / "quiet", azure_settings())
    assert capsys.readouterr().err == ""
    synthesize_template(tmp_path / "open", azure_settings(authorization="anonymous"))
    assert "warning: azure.authorization is 'anonymous'" in capsys.readouterr().err


def test_an_existing_resource_group_is_taken_over_as_it_is(variant: Callable[[str], Template]) -> None:
    imported = variant("flex-imported-group")
    assert imported["import"] == {
        "id": f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-team",
        "to": "azurerm_resource_group.resource_group",
    }
    group = one(imported, "azurerm_resource_group")
    assert group["name"] == "rg-team"
    assert group["lifecycle"]["ignore_changes"] == ["location", "tags"]
    assert imported["provider"]["azurerm"][0]["subscription_id"] == SUBSCRIPTION


def test_the_providers_that_a_subscription_needs_are_registered_by_name(variant: Callable[[str], Template]) -> None:
    for name in VARIANTS:
        provider = variant(name)["provider"]["azurerm"][0]
        assert provider["resource_provider_registrations"] == "none"
        registered = set(provider["resource_providers_to_register"])
        assert registered >= {"Microsoft.Storage", "Microsoft.ManagedIdentity", "Microsoft.Insights"}
        assert ("Microsoft.Network" in registered) == ("azurerm_virtual_network" in variant(name)["resource"])


def test_the_state_is_a_file_outside_the_generated_folder(template: Template) -> None:
    assert template["terraform"]["backend"] == {"local": {"path": f"../../../terraform.{STACK}.tfstate"}}


def test_a_team_keeps_the_state_in_a_container_or_bucket_without_keys(synthesized: Synthesize) -> None:
    key = f"terraform.{STACK}.tfstate"
    blob = {"backend": "azurerm", "storage_account": "stteamstate", "container": "terraform"}
    assert synthesized(settings=azure_settings(state=blob))["terraform"]["backend"] == {
        "azurerm": {
            "container_name": "terraform",
            "key": key,
            "storage_account_name": "stteamstate",
            "use_azuread_auth": True,
        }
    }
    bucket = {"backend": "s3", "bucket": "team-state", "region": "eu-west-1"}
    assert synthesized(settings=azure_settings(state=bucket))["terraform"]["backend"] == {
        "s3": {"bucket": "team-state", "encrypt": True, "key": key, "region": "eu-west-1", "use_lockfile": True}
    }


@pytest.mark.skipif(
    shutil.which("terraform") is None or "TERRAFORM_PLUGIN_DIR" not in os.environ,
    reason="terraform, and azurerm 4.55.0 in a folder that TERRAFORM_PLUGIN_DIR names, are needed",
)
@pytest.mark.parametrize("name", VARIANTS)
def test_the_real_provider_validates_the_stack(name: str, tmp_path: Path) -> None:
    template = synthesize_template(tmp_path, azure_settings(**VARIANTS[name]))
    plugins = f"-plugin-dir={os.environ['TERRAFORM_PLUGIN_DIR']}"
    for command in (["init", "-backend=false", "-input=false", plugins], ["validate"]):
        subprocess.run(["terraform", *command], cwd=template.parent, check=True)


def test_a_package_of_another_release_is_refused(tmp_path: Path) -> None:
    settings = dev_settings()
    package = write_package(tmp_path, make_release(settings, onnx_sha256="ab" * 32))
    with pytest.raises(
        ReleaseError, match=r"holds another release than mnist-0f0f0f0f0f0f; build it with `ferry package`"
    ):
        synthesize(settings, make_release(settings), package)


@pytest.mark.parametrize("content", [None, b"", b"no zip"])
def test_a_missing_or_damaged_package_is_refused(content: bytes | None, tmp_path: Path) -> None:
    package = tmp_path / "released-package.zip"
    if content is not None:
        package.write_bytes(content)
    with pytest.raises(ReleaseError, match="no package that can be read"):
        synthesize(dev_settings(), make_release(dev_settings()), package)
