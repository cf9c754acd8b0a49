"""The CDKTF kit that writes the Azure stack: cdktf, archived, for azurerm 4; or cdktn, its living successor, for azurerm 5.

Both have the same classes in packages of other names. The stack knows the default's names (infra/azure/terraform.py); this
module finds each of them in the chosen kit, and imports no more of it than is asked for.
"""

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from infra.settings import SettingsError

ENVIRONMENT_VARIABLE = "FERRY_CDKTF_KIT"


@dataclass(frozen=True)
class Kit:
    """A core package, its bindings of the azurerm provider, and that provider's major version."""

    core: str
    bindings: str
    azurerm: int
    installation: str

    @property
    def installed(self) -> bool:
        return all(importlib.util.find_spec(package) for package in (self.core, self.bindings))


DEFAULT = Kit("cdktf", "cdktf_cdktf_provider_azurerm", azurerm=4, installation="make setup")
_CDKTN = Kit(
    "cdktn",
    "cdktn_provider_azurerm",
    azurerm=5,
    installation=".venv/bin/python -m pip install -c constraints.txt -e '.[cdktn]'",
)
KITS = {kit.core: kit for kit in (DEFAULT, _CDKTN)}


def chosen_kit(environment: Mapping[str, str] = os.environ) -> Kit:
    """The kit that FERRY_CDKTF_KIT names; raises SettingsError for any other value and for a kit that is not installed."""
    name = environment.get(ENVIRONMENT_VARIABLE, DEFAULT.core)
    if name not in KITS:
        raise SettingsError(f"{ENVIRONMENT_VARIABLE}={name!r} is no CDKTF kit; allowed: {', '.join(KITS)}")
    kit = KITS[name]
    if not kit.installed:
        raise SettingsError(
            f"{ENVIRONMENT_VARIABLE}={name}: {kit.core} or {kit.bindings} is not installed; install both: {kit.installation}"
        )
    return kit


def names_from(kit: Kit, source: Path) -> Callable[[str], Any]:
    """A module's `__getattr__`: every name that `source` imports from the default kit, out of `kit`, when first asked for.

    So one list of imports serves the type checker and both kits, and a stack loads only the resources that it uses.
    """
    origins = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module
        and node.module.split(".")[0] in (DEFAULT.core, DEFAULT.bindings)
        for alias in node.names
    }
    packages = {DEFAULT.core: kit.core, DEFAULT.bindings: kit.bindings}
    _do_not_execute(kit.bindings)

    @cache
    def find(name: str) -> Any:
        if name not in origins:
            raise AttributeError(f"{source.name} has no {name}")
        module, attribute = origins[name]
        package, *submodules = module.split(".")
        return getattr(importlib.import_module(".".join([packages[package], *submodules])), attribute)

    return find


def _do_not_execute(package: str) -> None:
    """Spare the bindings' package its own code: as soon as one of its 1,500 modules is imported, that imports all of them.

    343 MB and 8 seconds, 30 without bytecode. An entry for the package that was never executed finds a module just as well.
    """
    spec = importlib.util.find_spec(package)
    if spec is not None and package not in sys.modules:
        sys.modules[package] = importlib.util.module_from_spec(spec)
