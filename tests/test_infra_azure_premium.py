"""hosting = "premium", and the network of every Function App: what must never change about them, in sentences."""

from pathlib import Path
from typing import Any

import pytest

from tests.azure_stack import VARIANTS, azure_settings, one, read_template, synthesize_template, the_app
from tests.azurerm_versions import Template

Resource = dict[str, Any]


@pytest.fixture(scope="module")
def premium(tmp_path_factory: pytest.TempPathFactory) -> Template:
    return synthesized(tmp_path_factory.mktemp("premium"), "premium")


@pytest.fixture(scope="module")
def private(tmp_path_factory: pytest.TempPathFactory) -> Template:
    """With private endpoints and Entra."""
    return synthesized(tmp_path_factory.mktemp("private"), "premium-entra-private")


@pytest.fixture(scope="module")
def restricted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Template]:
    """Both kinds of Function App with a list of allowed networks."""
    network = {"network": {"allowed_cidrs": ["203.0.113.0/24", "198.51.100.7/32"]}}
    kinds = {"azurerm_function_app_flex_consumption": "flex", "azurerm_linux_function_app": "premium"}
    return {kind: synthesized(tmp_path_factory.mktemp(variant), variant, **network) for kind, variant in kinds.items()}


def synthesized(folder: Path, variant: str, **changes: Any) -> Template:
    return read_template(synthesize_template(folder, azure_settings(**VARIANTS[variant] | changes)))


def test_the_host_reaches_its_storage_without_a_key(premium: Template) -> None:
    assert the_app(premium)["storage_uses_managed_identity"] is True
    assert "storage_account_access_key" not in the_app(premium)
    settings = the_app(premium)["app_settings"]
    assert settings["AzureWebJobsStorage__credential"] == "managedidentity"
    assert settings["AzureWebJobsStorage__clientId"].endswith("app_identity.client_id}")
    assert "access_key}" not in str(premium)


def test_no_setting_is_given_that_the_provider_takes_away_when_it_reads(premium: Template) -> None:
    dropped = {
        "APPLICATIONINSIGHTS_CONNECTION_STRING",
        "AzureWebJobsStorage",
        "AzureWebJobsStorage__accountName",
        "FUNCTIONS_EXTENSION_VERSION",
        "FUNCTIONS_WORKER_RUNTIME",
        "WEBSITE_HEALTHCHECK_MAXPINGFAILURES",
        "WEBSITE_VNET_ROUTE_ALL",
    }
    assert not dropped & the_app(premium)["app_settings"].keys()
    assert "content_share_force_disabled" not in the_app(premium)
    assert the_app(premium)["builtin_logging_enabled"] is False


def test_the_package_is_run_from_its_blob_with_the_apps_identity(premium: Template) -> None:
    settings = the_app(premium)["app_settings"]
    assert settings["WEBSITE_RUN_FROM_PACKAGE"].endswith("/released-package.zip")
    assert "?" not in settings["WEBSITE_RUN_FROM_PACKAGE"]  # no signature: the identity is what opens it
    identity = settings["WEBSITE_RUN_FROM_PACKAGE_BLOB_MI_RESOURCE_ID"]
    assert the_app(premium)["identity"] == {"type": "UserAssigned", "identity_ids": [identity]}


def test_it_takes_https_only_and_no_basic_publishing(premium: Template) -> None:
    assert the_app(premium)["https_only"] is True
    assert the_app(premium)["ftp_publish_basic_authentication_enabled"] is False
    assert the_app(premium)["webdeploy_publish_basic_authentication_enabled"] is False
    site = the_app(premium)["site_config"]
    assert (site["ftps_state"], site["minimum_tls_version"], site["scm_minimum_tls_version"]) == (
        "Disabled",
        "1.2",
        "1.2",
    )


@pytest.mark.parametrize(("sku", "processes"), [("EP1", "1"), ("EP2", "2"), ("EP3", "4")])
def test_there_is_one_process_for_each_core(sku: str, processes: str, tmp_path: Path) -> None:
    template = synthesized(tmp_path, "premium", premium={"sku": sku})
    settings = the_app(template)["app_settings"]
    assert (settings["FUNCTIONS_WORKER_PROCESS_COUNT"], settings["PYTHON_THREADPOOL_THREAD_COUNT"]) == (processes, "2")
    assert one(template, "azurerm_service_plan")["sku_name"] == sku


def test_an_instance_that_does_not_answer_is_replaced_and_another_one_is_warm(premium: Template) -> None:
    site = the_app(premium)["site_config"]
    assert (site["health_check_path"], site["health_check_eviction_time_in_min"]) == ("/api/health", 2)
    assert (site["elastic_instance_minimum"], site["pre_warmed_instance_count"]) == (1, 1)
    assert site["app_scale_limit"] == one(premium, "azurerm_service_plan")["maximum_elastic_worker_count"] == 10


def test_all_its_traffic_goes_through_its_subnet(premium: Template) -> None:
    assert the_app(premium)["virtual_network_subnet_id"] == "${azurerm_subnet.app_subnet.id}"
    assert the_app(premium)["site_config"]["vnet_route_all_enabled"] is True
    (delegation,) = one(premium, "azurerm_subnet")["delegation"]
    assert delegation["service_delegation"]["name"] == "Microsoft.Web/serverFarms"
    assert "azurerm_private_endpoint" not in premium["resource"]


def test_with_private_endpoints_neither_app_nor_storage_is_public(private: Template) -> None:
    assert the_app(private)["public_network_access_enabled"] is False
    assert one(private, "azurerm_storage_account")["public_network_access_enabled"] is False
    endpoints = private["resource"]["azurerm_private_endpoint"].values()
    assert {endpoint["private_service_connection"]["subresource_names"][0] for endpoint in endpoints} == {
        "blob",
        "queue",
        "sites",
        "table",
    }
    assert {endpoint["subnet_id"] for endpoint in endpoints} == {"${azurerm_subnet.endpoint_subnet.id}"}


def test_every_private_endpoint_has_a_name_inside_the_network(private: Template) -> None:
    zones, links = (
        private["resource"][f"azurerm_private_dns_zone{suffix}"] for suffix in ("", "_virtual_network_link")
    )
    for endpoint in private["resource"]["azurerm_private_endpoint"].values():
        (zone,) = endpoint["private_dns_zone_group"]["private_dns_zone_ids"]
        name = zone.split(".")[1]
        assert zones[name]["name"].startswith("privatelink.")
        assert endpoint["depends_on"] == [f"azurerm_private_dns_zone_virtual_network_link.{name}_link"]
        assert links[f"{name}_link"]["virtual_network_id"] == "${azurerm_virtual_network.virtual_network.id}"


def test_the_app_starts_when_its_private_storage_can_be_reached(private: Template) -> None:
    waits_for = {f"azurerm_private_endpoint.{name}_endpoint" for name in ("blob", "queue", "table")}
    assert waits_for <= set(the_app(private)["depends_on"])


def test_every_subnet_has_a_security_group_and_endpoints_take_https_only(private: Template) -> None:
    guarded = private["resource"]["azurerm_subnet_network_security_group_association"].values()
    subnets = private["resource"]["azurerm_subnet"]
    assert {each["subnet_id"] for each in guarded} == {f"${{azurerm_subnet.{name}.id}}" for name in subnets}
    assert subnets["endpoint_subnet"]["private_endpoint_network_policies"] == "NetworkSecurityGroupEnabled"
    rules = private["resource"]["azurerm_network_security_rule"].values()
    assert {(rule["access"], rule["source_address_prefix"], rule["destination_port_range"]) for rule in rules} == {
        ("Allow", "VirtualNetwork", "443"),
        ("Deny", "*", "*"),
    }


@pytest.mark.parametrize("kind", ["azurerm_function_app_flex_consumption", "azurerm_linux_function_app"])
def test_only_the_allowed_networks_and_the_availability_test_get_through(
    kind: str, restricted: dict[str, Template]
) -> None:
    site = one(restricted[kind], kind)["site_config"]
    assert site["ip_restriction_default_action"] == "Deny"
    assert site["scm_use_main_ip_restriction"] is True
    assert [rule.get("ip_address") or rule["service_tag"] for rule in site["ip_restriction"]] == [
        "203.0.113.0/24",
        "198.51.100.7/32",
        "ApplicationInsightsAvailability",
    ]
    assert {rule["action"] for rule in site["ip_restriction"]} == {"Allow"}
    assert len({rule["priority"] for rule in site["ip_restriction"]}) == 3


def test_without_allowed_networks_there_is_no_restriction(premium: Template) -> None:
    assert "ip_restriction" not in the_app(premium)["site_config"]
    assert "ip_restriction_default_action" not in the_app(premium)["site_config"]
