"""hosting = "container": what must never change about it, in sentences."""

import json
from pathlib import Path
from typing import Any

import pytest

from model_code import environment
from model_code.container.fetching import WAIT_SECONDS
from model_code.container.launch import DRAIN_SECONDS
from tests.azure_stack import VARIANTS, azure_settings, one, read_template, synthesize_template, the_app
from tests.azurerm_versions import Template
from tests.stack_fixtures import make_release

Resource = dict[str, Any]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return synthesized(tmp_path_factory.mktemp("container"), "container")


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """Entra at the door, and the door in a virtual network."""
    network = {"network": {"private_endpoints": True}}
    return synthesized(tmp_path_factory.mktemp("private"), "container-entra", **network)


def synthesized(folder: Path, variant: str, **changes: Any) -> Template:
    return read_template(synthesize_template(folder, azure_settings(**VARIANTS[variant] | changes)))


def container(template: Template) -> Resource:
    (container,) = the_app(template)["template"]["container"]
    return dict(container)


def variables(template: Template) -> dict[str, str]:
    return {each["name"]: each["value"] for each in container(template)["env"]}


def test_it_runs_the_pinned_image_and_fetches_the_model_before_it_serves(template: Template) -> None:
    assert container(template)["image"].split("@")[1] == "sha256:" + "3c" * 32
    assert container(template)["args"] == ["fetch", "serve"]
    assert "command" not in container(template)  # the image's own entry point hands signals on
    assert variables(template)[environment.ARCHIVE_URL].endswith("/released-model.tar.gz")


def test_nothing_in_it_is_a_secret(template: Template, private: Template) -> None:
    for each in (template, private):
        assert "secret" not in the_app(each)
        assert not [name for name in variables(each) if "KEY" in name or "SECRET" in name]
        assert "access_key}" not in str(each)
        assert "shared_key" not in str(one(each, "azurerm_container_app_environment"))


def test_image_and_release_are_read_with_the_apps_identity(template: Template) -> None:
    identity = "${azurerm_user_assigned_identity.app_identity.id}"
    assert the_app(template)["identity"] == {"type": "UserAssigned", "identity_ids": [identity]}
    assert the_app(template)["registry"] == [{"server": "crteam.azurecr.io", "identity": identity}]
    assert variables(template)[environment.IDENTITY_CLIENT_ID].endswith("app_identity.client_id}")
    roles = template["resource"]["azurerm_role_assignment"].values()
    granted = {role["role_definition_name"] for role in roles if "app_identity" in role["principal_id"]}
    assert granted == {"Storage Blob Data Reader", "AcrPull"}


def test_a_public_registry_is_asked_without_an_identity(tmp_path: Path) -> None:
    image = {"image": VARIANTS["container"]["container"]["image"]}
    assert "registry" not in the_app(synthesized(tmp_path, "container", container=image))


def test_by_default_nobody_outside_the_environment_reaches_it(template: Template) -> None:
    ingress = the_app(template)["ingress"]
    assert ingress["external_enabled"] is False
    assert ingress["allow_insecure_connections"] is False
    assert ingress["target_port"] == environment.DEFAULT_PORT
    assert "azurerm_resource_group_template_deployment" not in template["resource"]


def test_another_release_changes_one_variable_and_one_tag_of_the_app(template: Template, tmp_path: Path) -> None:
    settings = azure_settings(**VARIANTS["container"])
    release, other = make_release(settings), make_release(settings, onnx_sha256="ab" * 32)
    before = json.dumps(the_app(template))
    after = json.dumps(the_app(read_template(synthesize_template(tmp_path, settings, other))))
    assert variables(template)[environment.RELEASE_ID] == the_app(template)["tags"]["release-id"] == release.release_id
    assert before.count(release.release_id) == 2
    assert before.replace(release.release_id, other.release_id) == after


@pytest.mark.parametrize(("cpu", "memory", "workers"), [(0.5, "1Gi", "1"), (2.0, "4Gi", "2"), (2.5, "5Gi", "3")])
def test_memory_and_workers_follow_the_cores(cpu: float, memory: str, workers: str, tmp_path: Path) -> None:
    settings = VARIANTS["container"]["container"] | {"cpu": cpu}
    template = synthesized(tmp_path, "container", container=settings)
    assert (container(template)["cpu"], container(template)["memory"]) == (cpu, memory)
    assert variables(template)[environment.WORKERS] == workers


def test_every_probe_asks_ping(template: Template) -> None:
    for kind in ("startup_probe", "readiness_probe", "liveness_probe"):
        (probe,) = container(template)[kind]
        assert (probe["path"], probe["port"], probe["transport"]) == ("/ping", environment.DEFAULT_PORT, "HTTP")


def test_fetch_says_what_is_missing_before_the_startup_probe_ends_it(template: Template) -> None:
    (probe,) = container(template)["startup_probe"]
    assert probe["initial_delay"] + probe["interval_seconds"] * probe["failure_count_threshold"] > WAIT_SECONDS
    assert probe["failure_count_threshold"] <= 10


def test_a_replica_that_goes_may_answer_what_it_has_accepted(template: Template) -> None:
    assert the_app(template)["template"]["termination_grace_period_seconds"] > DRAIN_SECONDS


def test_entra_validates_tokens_and_signs_nobody_in(private: Template) -> None:
    deployment = one(private, "azurerm_resource_group_template_deployment")
    assert deployment["deployment_mode"] == "Incremental"  # the other mode deletes what the template does not name
    assert deployment["depends_on"] == ["azurerm_container_app.container_app"]
    document = json.loads(deployment["template_content"])
    (resource,) = document["resources"]
    assert resource["name"] == f"{the_app(private)['name']}/current"
    properties = resource["properties"]
    assert properties["globalValidation"] == {
        "unauthenticatedClientAction": "Return401",
        "excludedPaths": ["/ping"],
    }
    entra = VARIANTS["container-entra"]["entra"]
    assert properties["identityProviders"]["azureActiveDirectory"] == {
        "enabled": True,
        "registration": {
            "clientId": entra["client_id"],
            "openIdIssuer": f"https://login.microsoftonline.com/{entra['tenant_id']}/v2.0",
        },
        "validation": {"allowedAudiences": entra["audiences"]},
    }
    compact = json.dumps(document, sort_keys=True, separators=(",", ":"))
    assert deployment["template_content"] == compact  # as the provider keeps it, so that no plan shows a change


def test_in_a_virtual_network_the_environment_has_no_public_address(private: Template) -> None:
    host = one(private, "azurerm_container_app_environment")
    assert host["internal_load_balancer_enabled"] is True
    assert host["public_network_access"] == "Disabled"
    assert host["infrastructure_subnet_id"] == "${azurerm_subnet.app_subnet.id}"
    assert host["infrastructure_resource_group_name"]  # else Azure's own name for it would replace the environment
    subnet = private["resource"]["azurerm_subnet"]["app_subnet"]
    assert subnet["delegation"][0]["service_delegation"]["name"] == "Microsoft.App/environments"


def test_in_a_virtual_network_its_name_is_known_there(private: Template) -> None:
    record = one(private, "azurerm_private_dns_a_record")
    host = "${azurerm_container_app_environment.container_app_environment"
    assert (record["name"], record["records"]) == ("*", [f"{host}.static_ip_address}}"])
    assert private["resource"]["azurerm_private_dns_zone"]["environment_zone"]["name"] == f"{host}.default_domain}}"


def test_its_logs_reach_the_workspace_without_a_key(template: Template) -> None:
    host = one(template, "azurerm_container_app_environment")
    assert host["logs_destination"] == "azure-monitor"
    assert "log_analytics_workspace_id" not in host
    settings = template["resource"]["azurerm_monitor_diagnostic_setting"]["environment_diagnostics"]
    assert {log["category"] for log in settings["enabled_log"]} == {
        "ContainerAppConsoleLogs",
        "ContainerAppSystemLogs",
    }


def test_allowed_networks_are_the_only_ones(tmp_path: Path) -> None:
    ingress = the_app(synthesized(tmp_path, "container-anonymous-restricted"))["ingress"]
    assert ingress["external_enabled"] is True
    assert [(rule["action"], rule["ip_address_range"]) for rule in ingress["ip_security_restriction"]] == [
        ("Allow", "203.0.113.0/24")
    ]
