"""The [azure] table: what the provider or Azure would refuse later is refused when settings are read, by its key."""

import json
from pathlib import Path

import pytest

from infra.settings import Settings, SettingsError, load_settings
from tests.local_settings import write_settings

TENANT = "11111111-2222-3333-4444-555555555555"
CLIENT = "66666666-7777-8888-9999-000000000000"
SUBSCRIPTION = "12345678-1234-1234-1234-123456789012"
DIGEST = "sha256:" + "3c" * 32
IMAGE = f"crteam.azurecr.io/modelferry-serving@{DIGEST}"
REGISTRY = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-team/providers/Microsoft.ContainerRegistry/registries/crteam"
)
ENTRA = f"[azure.entra]\ntenant_id = '{TENANT}'\nclient_id = '{CLIENT}'\naudiences = ['api://{CLIENT}']"
CONTAINER = f"[azure.container]\nimage = '{IMAGE}'"


def settings_with(folder: Path, azure: str = "", tables: str = "", tags: str = "") -> Settings:
    """Settings whose [azure] table has `azure` added, with further `tables`."""
    path = write_settings(folder)
    text = path.read_text().replace('location = "westeurope"\n', f'location = "westeurope"\n{azure}\n')
    path.write_text(f"{text}\n{tables}\n[tags]\n{tags}\n")
    return load_settings(str(path))


@pytest.mark.parametrize(
    ("azure", "tables", "door"),
    [
        ("", "", "function-key"),
        ("hosting = 'premium'", "", "function-key"),
        ("hosting = 'container'", CONTAINER, "internal"),
        ("authorization = 'entra'", ENTRA, "entra"),
        ("hosting = 'premium'\nauthorization = 'entra'", ENTRA, "entra"),
        ("hosting = 'container'\nauthorization = 'entra'", f"{ENTRA}\n{CONTAINER}", "entra"),
        ("authorization = 'anonymous'", "", "anonymous"),
        ("hosting = 'container'\nauthorization = 'anonymous'", CONTAINER, "anonymous"),
    ],
)
def test_nobody_gets_in_without_a_key_or_token_unless_a_setting_says_anonymous(
    tmp_path: Path, azure: str, tables: str, door: str
) -> None:
    assert settings_with(tmp_path, azure, tables).azure.door == door


@pytest.mark.parametrize(
    ("azure", "tables", "key", "allowed"),
    [
        ("hosting = 'consumption'", "", "azure.hosting", "'flex', 'premium' or 'container'"),
        ("authorization = 'admin'", "", "azure.authorization", "'function-key', 'entra' or 'anonymous'"),
        ("storage_auth = 'key'", "", "azure.storage_auth", "'identity' or 'connection-string'"),
        ("log_retention_days = 5", "", "azure.log_retention_days", "30"),
        ("log_retention_days = 731", "", "azure.log_retention_days", "730"),
        ("subscription_id = 'mine'", "", "azure.subscription_id", "pattern"),
        ("resource_group = 'rg-team.'", "", "azure.resource_group", "pattern"),
        ("resource_group = 'rg/team'", "", "azure.resource_group", "pattern"),
        (f"resource_group = 'r{'g' * 90}'", "", "azure.resource_group", "90"),
        ("", "[azure.flex]\ninstance_memory_mb = 1024", "azure.flex.instance_memory_mb", "512, 2048 or 4096"),
        ("", "[azure.flex]\nmaximum_instance_count = 10", "azure.flex.maximum_instance_count", "40"),
        ("", "[azure.flex]\nmaximum_instance_count = 1001", "azure.flex.maximum_instance_count", "1000"),
        ("", "[azure.flex]\nhttp_concurrency = 0", "azure.flex.http_concurrency", "1"),
        ("", "[azure.flex]\nhttp_concurrency = 1001", "azure.flex.http_concurrency", "1000"),
        ("", "[azure.flex]\nworker_threads = 0", "azure.flex.worker_threads", "1"),
        ("", "[azure.flex]\nalways_ready_instances = 41", "azure.flex", "maximum_instance_count is 40"),
        ("hosting = 'premium'", "[azure.premium]\nsku = 'ep1'", "azure.premium.sku", "'EP1', 'EP2' or 'EP3'"),
        ("hosting = 'premium'", "[azure.premium]\nminimum_instances = 0", "azure.premium.minimum_instances", "1"),
        ("hosting = 'premium'", "[azure.premium]\nmaximum_instances = 101", "azure.premium.maximum_instances", "100"),
        ("hosting = 'premium'", "[azure.premium]\nworker_processes = 11", "azure.premium.worker_processes", "10"),
        ("hosting = 'premium'", "[azure.premium]\nminimum_instances = 11", "azure.premium", "maximum_instances is 10"),
        (
            "hosting = 'container'",
            "[azure.container]\nimage = 'crteam.azurecr.io/x:latest'",
            "azure.container.image",
            "",
        ),
        ("hosting = 'container'", f"{CONTAINER}\ncpu = 0.3", "azure.container.cpu", "0.5"),
        ("hosting = 'container'", f"{CONTAINER}\ncpu = 4.5", "azure.container.cpu", "4"),
        ("hosting = 'container'", f"{CONTAINER}\nmin_replicas = 11", "azure.container", "max_replicas is 10"),
        ("hosting = 'container'", f"{CONTAINER}\nregistry_id = 'crteam'", "azure.container.registry_id", "pattern"),
        ("authorization = 'entra'", ENTRA.replace(TENANT, "contoso"), "azure.entra.tenant_id", "pattern"),
        ("authorization = 'entra'", ENTRA.replace(f"'api://{CLIENT}'", ""), "azure.entra.audiences", "at least 1"),
        ("", "[azure.network]\nallowed_cidrs = ['203.0.113.7/24']", "azure.network.allowed_cidrs.0", "203.0.113.0/24"),
        ("", "[azure.network]\nallowed_cidrs = ['2001:db8::/32']", "azure.network.allowed_cidrs.0", "IPv4"),
        ("", "[azure.network]\naddress_space = '10.0.0.0/28'", "azure.network.address_space", "/16 to /24"),
        ("", "[azure.network]\naddress_space = '203.0.113.0/24'", "azure.network.address_space", "private"),
        (
            "",
            "[azure.network]\nprivate_endpoints = true\ndeployer_cidrs = ['10.0.0.0/24']",
            "azure.network.deployer_cidrs.0",
            "public addresses",
        ),
        ("", "[azure.network]\ndeployer_cidrs = ['203.0.113.0/24']", "azure.network", "private_endpoints is false"),
        ("", "[azure.alerts]\nemails = ['nobody']", "azure.alerts.emails.0", "pattern"),
        ("", "[azure.alerts]\nlatency_ms = 0", "azure.alerts.latency_ms", "1"),
        ("", "[azure.budget]\namount = 0.99\nstart = 2026-11-01", "azure.budget.amount", "equal to 1"),
        ("", "[azure.budget]\namount = 10.0\nstart = 2026-11-15", "azure.budget.start", "first day of a month"),
        ("", "[azure.budget]\namount = 10.0", "azure.budget.start", "missing"),
        ("", "[azure.state]\nbackend = 'gcs'", "azure.state.backend", "'azurerm' or 's3'"),
        ("", "[azure.state]\nbackend = 's3'\nbucket = 'state'", "azure.state", "bucket and region"),
        (
            "",
            "[azure.state]\nbackend = 'azurerm'\nbucket = 'state'\nregion = 'eu-west-1'",
            "azure.state",
            "storage_account",
        ),
        ("", "[azure.flexx]\nhttp_concurrency = 1", "azure.flexx", "did you mean 'flex'?"),
    ],
)
def test_one_wrong_value_is_refused_with_its_key_and_what_is_allowed(
    tmp_path: Path, azure: str, tables: str, key: str, allowed: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_with(tmp_path, azure, tables)
    assert f"trial.toml: {key}: " in str(refused.value)
    assert allowed in str(refused.value)


@pytest.mark.parametrize(
    ("azure", "tables", "first", "second"),
    [
        ("", "[azure.premium]\nsku = 'EP1'", "hosting", "azure.premium"),
        ("hosting = 'premium'", "[azure.flex]\nhttp_concurrency = 4", "hosting", "azure.flex"),
        ("hosting = 'container'", "", "hosting", "azure.container"),
        ("hosting = 'container'\nauthorization = 'function-key'", CONTAINER, "hosting", "authorization"),
        ("authorization = 'entra'", "", "authorization", "azure.entra"),
        ("", ENTRA, "authorization", "azure.entra"),
        ("hosting = 'premium'\nstorage_auth = 'connection-string'", "", "storage_auth", "hosting"),
        (
            "storage_auth = 'connection-string'",
            "[azure.network]\nprivate_endpoints = true",
            "storage_auth",
            "private_endpoints",
        ),
        ("import_resource_group = true", "", "import_resource_group", "resource_group and subscription_id"),
        (
            "",
            "[azure.network]\nprivate_endpoints = true\nallowed_cidrs = ['203.0.113.0/24']",
            "private_endpoints",
            "allowed_cidrs",
        ),
    ],
)
def test_two_keys_that_cannot_go_together_are_refused_by_both_names(
    tmp_path: Path, azure: str, tables: str, first: str, second: str
) -> None:
    with pytest.raises(SettingsError) as refused:
        settings_with(tmp_path, azure, tables)
    assert first in str(refused.value)
    assert second in str(refused.value)


def test_a_misspelled_region_is_refused_with_the_nearest_one(tmp_path: Path) -> None:
    path = write_settings(tmp_path)
    path.write_text(path.read_text().replace('"westeurope"', '"westeuropa"'))
    with pytest.raises(SettingsError, match=r"azure\.location: found 'westeuropa'; .*did you mean 'westeurope'\?"):
        load_settings(str(path))


def test_both_clouds_run_the_same_image_or_none_is_accepted(tmp_path: Path) -> None:
    other = "sha256:" + "4d" * 32
    path = write_settings(tmp_path)
    text = path.read_text().replace('location = "westeurope"\n', 'location = "westeurope"\nhosting = "container"\n')
    text = text.replace("[hosting]\n", f'[hosting]\nimage_digest = "{other}"\n')
    path.write_text(f"{text}\n{CONTAINER}\n")
    with pytest.raises(SettingsError, match=r"hosting\.image_digest .* azure\.container\.image"):
        load_settings(str(path))
    path.write_text(path.read_text().replace(other, DIGEST))
    assert load_settings(str(path)).hosting.image_digest == DIGEST


@pytest.mark.parametrize(
    ("tags", "complaint"),
    [
        ("'a<b' = 'x'", "tags"),
        ("'aws:team' = 'x'", "tag of a cloud"),
        ("'Microsoft-team' = 'x'", "tag of a cloud"),
        ("'Release-Id' = 'x'", "tag of a cloud or of this project"),
        ("team = 'x'\nTeam = 'y'", "case only"),
        (f"team = '{'x' * 257}'", "256"),
        (f"{'t' * 129} = 'x'", "128"),
        ("team = 1", "string"),
    ],
)
def test_tags_that_one_of_the_clouds_refuses_are_refused(tmp_path: Path, tags: str, complaint: str) -> None:
    with pytest.raises(SettingsError, match=complaint):
        settings_with(tmp_path, tags=tags)


def test_the_subnets_are_the_halves_of_the_address_space(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, tables="[azure.network]\naddress_space = '10.9.0.0/20'")
    assert settings.azure.network.subnets == ("10.9.0.0/21", "10.9.8.0/21")


def test_threads_and_processes_follow_the_cores_of_the_instance(tmp_path: Path) -> None:
    small = settings_with(tmp_path / "a", tables="[azure.flex]\ninstance_memory_mb = 512").azure.flex_plan
    large = settings_with(tmp_path / "b", tables="[azure.flex]\ninstance_memory_mb = 4096").azure.flex_plan
    assert (small.threads, large.threads) == (2, 3)
    premium = settings_with(tmp_path / "c", "hosting = 'premium'", "[azure.premium]\nsku = 'EP3'").azure.premium_plan
    assert premium.processes == 4


def test_the_effective_settings_can_be_printed(tmp_path: Path) -> None:
    settings = settings_with(tmp_path, tables="[azure.budget]\namount = 10\nstart = 2026-11-01")
    assert json.loads(settings.model_dump_json())["azure"]["budget"] == {"amount": 10.0, "start": "2026-11-01"}
