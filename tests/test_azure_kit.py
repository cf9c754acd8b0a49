"""The Azure stack with both CDKTF kits: which one is taken, and that the second writes the same stack for azurerm 5.

A process has one kit, so each kit runs in a process of its own. The whole of the stack's tests runs with the second kit by
`make test-cdktn`; here is what does not need them.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infra.azure import kit
from infra.azure.kit import KITS, chosen_kit
from infra.settings import ROOT, SettingsError, load_settings
from tests.azurerm_versions import as_azurerm_4
from tests.local_settings import write_settings
from tests.stack_fixtures import make_release, write_release

INSTALLED = [
    pytest.param(
        name, marks=pytest.mark.skipif(not each.installed, reason=f"{name} is not installed: {each.installation}")
    )
    for name, each in KITS.items()
]
AZURERM = {"cdktf": "4.55.0", "cdktn": "5.10.0"}


def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with a kit, in the repository's folder."""
    variables = os.environ | {kit.ENVIRONMENT_VARIABLE: name}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=variables, capture_output=True, text=True)


def printed_by(name: str, program: str, *arguments: str) -> Any:
    """The JSON that a program prints under a kit; Node's own warnings go to stderr."""
    finished = run(name, "-c", program, *arguments)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The default stack as each installed kit writes it."""
    program = (
        "import sys; from pathlib import Path\n"
        "from tests.azure_stack import synthesize_template\n"
        "print(synthesize_template(Path(sys.argv[1])).read_text())"
    )
    folder = tmp_path_factory.mktemp("kits")
    installed = [name for name, each in KITS.items() if each.installed]
    return {name: printed_by(name, program, str(folder / name)) for name in installed}


def test_the_kit_is_cdktf_unless_the_variable_says_otherwise() -> None:
    assert chosen_kit({}).core == "cdktf"


@pytest.mark.parametrize("name", ["", "CDKTN", "terraform"])
def test_another_kit_is_refused_with_those_that_are_allowed(name: str) -> None:
    message = f"FERRY_CDKTF_KIT={name!r} is no CDKTF kit; allowed: cdktf, cdktn"
    with pytest.raises(SettingsError, match=re.escape(message)):
        chosen_kit({"FERRY_CDKTF_KIT": name})


def test_a_kit_that_is_not_installed_is_refused_with_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kit.KITS, "cdktn", replace(KITS["cdktn"], bindings="no_such_bindings"))
    with pytest.raises(SettingsError, match=r"no_such_bindings is not installed; .*pip install .*'\.\[cdktn]'"):
        chosen_kit({"FERRY_CDKTF_KIT": "cdktn"})


def test_the_command_line_says_which_kits_are_allowed_and_synthesizes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_settings(tmp_path)
    settings = load_settings(str(path))
    write_release(make_release(settings), settings.release_path.parent)
    monkeypatch.setenv("FERRY_ENV", str(path))
    monkeypatch.setenv("CDKTF_OUTDIR", str(tmp_path / "out"))
    finished = run("tofu", "app.py", "azure")
    assert finished.returncode == 2
    assert finished.stderr == "FERRY_CDKTF_KIT='tofu' is no CDKTF kit; allowed: cdktf, cdktn\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", INSTALLED)
def test_the_kit_has_every_name_that_the_stack_may_import(name: str) -> None:
    program = (
        "import ast, json; from pathlib import Path; from infra.azure import terraform\n"
        "tree = ast.parse(Path(terraform.__file__).read_text())\n"
        "imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module[:5] == 'cdktf']\n"
        "names = [alias.asname or alias.name for node in imports for alias in node.names]\n"
        "print(json.dumps({each: getattr(terraform, each).__module__.split('.')[0] for each in names}))"
    )
    packages = printed_by(name, program)
    assert len(packages) > 50
    assert set(packages.values()) == {KITS[name].core, KITS[name].bindings}


@pytest.mark.parametrize("name", INSTALLED)
def test_a_stack_loads_the_resources_that_it_names_only(name: str) -> None:
    program = (
        "import json, sys; from infra.azure.terraform import ResourceGroup\n"
        f"print(json.dumps([name for name in sys.modules if name.startswith('{KITS[name].bindings}.')]))"
    )
    assert {module.split(".")[1] for module in printed_by(name, program)} == {"_jsii", "resource_group"}


@pytest.mark.parametrize("name", INSTALLED)
def test_the_kit_pins_its_provider(name: str, templates: dict[str, dict[str, Any]]) -> None:
    required = templates[name]["terraform"]["required_providers"]
    assert required == {"azurerm": {"source": "azurerm", "version": AZURERM[name]}}


@pytest.mark.parametrize("name", INSTALLED)
def test_resource_providers_are_registered_by_name_only(name: str, templates: dict[str, dict[str, Any]]) -> None:
    (provider,) = templates[name]["provider"]["azurerm"]
    assert provider["resource_provider_registrations"] == "none"
    assert {"Microsoft.Storage", "Microsoft.Web"} <= set(provider["resource_providers_to_register"])
    assert provider["storage_use_azuread"] is True
    assert provider["features"][0]["storage"] == [{"data_plane_available": False}]


@pytest.mark.parametrize("name", INSTALLED)
def test_every_kit_writes_the_same_stack_but_for_the_arguments_that_azurerm_5_renamed(
    name: str, templates: dict[str, dict[str, Any]]
) -> None:
    assert as_azurerm_4(templates[name]) == templates["cdktf"]
    (blob,) = templates[name]["resource"]["azurerm_storage_blob"].values()
    (insights,) = templates[name]["resource"]["azurerm_application_insights"].values()
    places = {"storage_account_name", "storage_container_name", "storage_container_id"} & blob.keys()
    switches = {key: value for key, value in insights.items() if key.startswith("local_authentication")}
    if KITS[name].azurerm == 4:
        assert places == {"storage_account_name", "storage_container_name"}
        assert switches == {"local_authentication_disabled": True}
    else:
        assert places == {"storage_container_id"}
        assert switches == {"local_authentication_enabled": False}
