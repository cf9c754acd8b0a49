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

from infra.azure.function_stack import synthesize
from infra.release import ReleaseError
from infra.settings import ROOT, AzureStateSettings, Settings, load_settings
from tests.azure_stack import STACK, Template, read_template, synthesize_template, write_package
from tests.local_settings import write_settings
from tests.snapshots import TemplateSnapshot, without_asset_hashes
from tests.stack_fixtures import dev_settings, make_release, write_release

Synthesize = Callable[..., Template]


def with_azure(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update={"azure": settings.azure.model_copy(update=changes)})


@pytest.fixture(scope="session")
def synthesized(tmp_path_factory: pytest.TempPathFactory) -> Synthesize:
    """Synthesizes in this process and returns the Terraform JSON."""

    def synthesized(**changes: Any) -> Template:
        return read_template(synthesize_template(tmp_path_factory.mktemp("azure"), **changes))

    return synthesized


@pytest.fixture(scope="session")
def template(synthesized: Synthesize) -> Template:
    """The stack with the default, identity for every access to storage."""
    return synthesized()


@pytest.fixture(scope="session")
def fallback(synthesized: Synthesize) -> Template:
    """The stack with storage_auth = "connection-string"."""
    return synthesized(settings=with_azure(dev_settings(), storage_auth="connection-string"))


def one(template: Template, kind: str) -> dict[str, Any]:
    """The only resource of its kind."""
    (resource,) = template["resource"][kind].values()
    return dict(resource)


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


@pytest.mark.parametrize("storage_auth", ["identity", "connection-string"])
def test_the_stack_is_the_reviewed_one(
    storage_auth: str, template: Template, fallback: Template, snapshot: SnapshotAssertion
) -> None:
    document = template if storage_auth == "identity" else fallback
    kept = frozenset({make_release(dev_settings()).model_json.sha256})
    assert without_asset_hashes(document, kept) == snapshot(extension_class=TemplateSnapshot)


def test_two_synths_give_the_same_bytes(tmp_path: Path) -> None:
    release = make_release(dev_settings())
    package = write_package(tmp_path, release)
    program = (
        "import sys; from pathlib import Path\n"
        "from infra.azure.function_stack import synthesize\n"
        "from tests.stack_fixtures import dev_settings, make_release, write_release\n"
        "synthesize(dev_settings(), make_release(dev_settings()), Path(sys.argv[1]))"
    )
    written = []
    for seed in ("1", "2"):
        folder = tmp_path / f"run-{seed}"
        folder.mkdir()
        variables = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
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
    variables = {"PATH": os.pathsep.join(binaries), "HOME": str(tmp_path), "FERRY_ENV": str(path)}
    variables |= {"CHECKPOINT_DISABLE": "1", "CI": "1"}
    subprocess.run(["cdktf", "synth", "--output", str(tmp_path / "out")], check=True, cwd=ROOT, env=variables)
    written = tmp_path / "out" / "stacks" / settings.stack("azure") / "cdk.tf.json"
    assert written.read_bytes() == synthesize_template(tmp_path / "here", settings, release).read_bytes()


@pytest.mark.parametrize("name", ["template", "fallback"])
def test_no_path_of_this_machine_is_in_the_template(name: str, request: pytest.FixtureRequest) -> None:
    absolute = [
        (path, value)
        for path, value in leaves(request.getfixturevalue(name))
        if isinstance(value, str) and (value.startswith("/") or str(ROOT) in value or str(Path.home()) in value)
    ]
    assert absolute == []


@pytest.mark.parametrize("name", ["template", "fallback"])
def test_every_reference_points_at_something_in_the_stack(name: str, request: pytest.FixtureRequest) -> None:
    template: Template = request.getfixturevalue(name)
    known = {f"{kind}.{each}" for kind, resources in template["resource"].items() for each in resources}
    known |= {f"data.{kind}.{each}" for kind, sources in template["data"].items() for each in sources}
    values = [value for _, value in leaves(template) if isinstance(value, str)]
    references = {match for value in values for match in re.findall(r"\$\{((?:data\.)?azurerm_\w+\.\w+)\.\w+}", value)}
    references |= {value for path, value in leaves(template) if "/depends_on/" in path}
    assert references
    assert references <= known
    assert sum(value.count("${") for value in values) == sum(len(re.findall(r"\$\{[\w.]+}", value)) for value in values)


@pytest.mark.parametrize("name", ["template", "fallback"])
def test_storage_refuses_public_blobs_and_plain_http(name: str, request: pytest.FixtureRequest) -> None:
    template: Template = request.getfixturevalue(name)
    account = one(template, "azurerm_storage_account")
    assert account["allow_nested_items_to_be_public"] is False
    assert account["https_traffic_only_enabled"] is True
    assert account["min_tls_version"] == "TLS1_2"
    assert one(template, "azurerm_storage_container")["container_access_type"] == "private"


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


@pytest.mark.parametrize("name", ["template", "fallback"])
def test_the_app_takes_https_only_and_no_basic_publishing(name: str, request: pytest.FixtureRequest) -> None:
    app = one(request.getfixturevalue(name), "azurerm_function_app_flex_consumption")
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
    assert settings["FERRY_MODEL_JSON_SHA256"] == release.model_json.sha256
    assert template["output"]["release_id"]["value"] == release.release_id


def test_another_release_changes_the_package_the_release_settings_and_tags_only(
    template: Template, synthesized: Synthesize
) -> None:
    other = synthesized(release=make_release(dev_settings(), onnx_sha256="ab" * 32))
    app = "/resource/azurerm_function_app_flex_consumption/function_app/app_settings"
    blob = "/resource/azurerm_storage_blob/package_blob"
    expected = {f"{app}/FERRY_RELEASE_ID", f"{app}/FERRY_PACKAGE_SHA256", "/output/release_id/value"}
    expected |= {f"{blob}/{name}" for name in ("content_md5", "source", "metadata/release_id", "metadata/sha256")}
    assert {path for path in changed(template, other) if not path.endswith("/tags/release-id")} == expected


def test_other_code_for_the_same_release_changes_the_package_and_restarts_the_app(
    template: Template, synthesized: Synthesize
) -> None:
    assert changed(template, synthesized(code="# changed")) == {
        "/resource/azurerm_function_app_flex_consumption/function_app/app_settings/FERRY_PACKAGE_SHA256",
        "/resource/azurerm_storage_blob/package_blob/content_md5",
        "/resource/azurerm_storage_blob/package_blob/metadata/sha256",
        "/resource/azurerm_storage_blob/package_blob/source",
    }


def test_the_state_is_a_file_outside_the_generated_folder_or_a_container_of_the_team(
    template: Template, synthesized: Synthesize
) -> None:
    assert template["terraform"]["backend"] == {"local": {"path": f"../../../terraform.{STACK}.tfstate"}}
    state = AzureStateSettings(storage_account="stteamstate", container="terraform")
    shared = synthesized(settings=with_azure(dev_settings(), state=state))
    assert shared["terraform"]["backend"] == {
        "azurerm": {
            "container_name": "terraform",
            "key": f"terraform.{STACK}.tfstate",
            "storage_account_name": "stteamstate",
            "use_azuread_auth": True,
        }
    }


@pytest.mark.skipif(
    shutil.which("terraform") is None or "TERRAFORM_PLUGIN_DIR" not in os.environ,
    reason="terraform, and azurerm 4.55.0 in a folder that TERRAFORM_PLUGIN_DIR names, are needed",
)
@pytest.mark.parametrize("storage_auth", ["identity", "connection-string"])
def test_the_real_provider_validates_the_stack(storage_auth: str, tmp_path: Path) -> None:
    template = synthesize_template(tmp_path, with_azure(dev_settings(), storage_auth=storage_auth))
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
