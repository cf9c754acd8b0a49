"""Synthesizes the Azure stack for tests, each way of hosting it, with the smallest file that it takes for a release."""

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from infra.azure.stack import synthesize
from infra.release import Release
from infra.settings import Settings
from infra.settings_azure import AzureSettings
from tests.azurerm_versions import Template, as_azurerm_4
from tests.stack_fixtures import dev_settings, make_release

STACK = "modelferry-dev-azure"
SUBSCRIPTION = "12345678-1234-1234-1234-123456789012"
_IMAGE = "crteam.azurecr.io/modelferry-serving@sha256:" + "3c" * 32
_REGISTRY = (
    f"/subscriptions/{SUBSCRIPTION}/resourceGroups/rg-team/providers/Microsoft.ContainerRegistry/registries/crteam"
)
_ENTRA = {
    "tenant_id": "11111111-2222-3333-4444-555555555555",
    "client_id": "66666666-7777-8888-9999-000000000000",
    "audiences": ["api://66666666-7777-8888-9999-000000000000"],
}
_CONTAINER = {"hosting": "container", "container": {"image": _IMAGE, "registry_id": _REGISTRY}}

# What [azure] says beyond config/dev.toml, by variant; each has a snapshot.
VARIANTS: dict[str, dict[str, Any]] = {
    "flex": {},
    "flex-connection-string": {"storage_auth": "connection-string"},
    "flex-entra": {"authorization": "entra", "entra": _ENTRA},
    "flex-restricted": {
        "flex": {"always_ready_instances": 2, "instance_memory_mb": 4096},
        "network": {"allowed_cidrs": ["203.0.113.0/24", "198.51.100.7/32"]},
    },
    "flex-private": {"network": {"private_endpoints": True}},
    "flex-imported-group": {
        "subscription_id": SUBSCRIPTION,
        "resource_group": "rg-team",
        "import_resource_group": True,
    },
    "premium": {"hosting": "premium"},
    "premium-entra-private": {
        "hosting": "premium",
        "authorization": "entra",
        "entra": _ENTRA,
        "network": {"private_endpoints": True},
    },
    "container": _CONTAINER,
    "container-entra": {**_CONTAINER, "authorization": "entra", "entra": _ENTRA},
    "container-anonymous-restricted": {
        **_CONTAINER,
        "authorization": "anonymous",
        "network": {"allowed_cidrs": ["203.0.113.0/24"]},
    },
    "container-private": {**_CONTAINER, "network": {"private_endpoints": True}},
    "container-entra-private": {
        **_CONTAINER,
        "authorization": "entra",
        "entra": _ENTRA,
        "network": {"private_endpoints": True, "deployer_cidrs": ["203.0.113.7/32"]},
    },
}


def azure_settings(**changes: Any) -> Settings:
    """The settings of config/dev.toml with other keys in [azure], validated as a file's would be."""
    settings = dev_settings()
    azure = AzureSettings.model_validate(settings.azure.model_dump() | changes)
    return Settings.model_validate(settings.model_dump() | {"azure": azure.model_dump()})


def write_package(folder: Path, release: Release, code: str = "") -> Path:
    """A package of `release` whose only code is `code`; the same arguments give the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "released-package.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(zipfile.ZipInfo("release/release.json"), release.to_bytes())
        archive.writestr(zipfile.ZipInfo("function_app.py"), code)
    return path


def write_release_file(settings: Settings, folder: Path, release: Release, code: str = "") -> tuple[Path, Release]:
    """What the stack uploads for `release`, and the release: for a container with the digest of the written archive."""
    if settings.azure.hosting != "container":
        return write_package(folder, release, code), release
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.tar.gz"
    path.write_bytes(f"the archive of {release.release_id}".encode())
    archive = release.archive.model_copy(update={"sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    return path, release.model_copy(update={"archive": archive})


def synthesize_template(
    folder: Path, settings: Settings | None = None, release: Release | None = None, code: str = ""
) -> Path:
    """The path of cdk.tf.json below `folder`, made in this process."""
    settings = settings or dev_settings()
    file, release = write_release_file(settings, folder, release or make_release(settings), code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CDKTF_OUTDIR", str(folder / "cdktf.out"))
        synthesize(settings, release, file)
    return folder / "cdktf.out" / "stacks" / settings.stack("azure") / "cdk.tf.json"


def read_template(path: Path) -> Template:
    """The Terraform JSON as azurerm 4 takes it, so that the reviewed stack is one, whichever kit wrote it."""
    return as_azurerm_4(json.loads(path.read_bytes()))


def one(template: Template, kind: str) -> dict[str, Any]:
    """The only resource of its kind."""
    (resource,) = template["resource"][kind].values()
    return dict(resource)


def the_app(template: Template) -> dict[str, Any]:
    """The app of a variant, whatever kind of resource it is."""
    kinds = ("azurerm_function_app_flex_consumption", "azurerm_linux_function_app", "azurerm_container_app")
    (kind,) = (kind for kind in kinds if kind in template["resource"])
    return one(template, kind)
