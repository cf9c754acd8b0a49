"""Deletes an environment on Azure with Terraform or OpenTofu, on the stack folder that `cdktf synth` wrote.

What goes is what a saved plan says goes: the plan is read, shown, held against what has to stay, and then applied as it is.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ferry.console import Report
from ferry.destruction import Ask
from ferry.errors import FerryError, Refused
from ferry.tools import run
from infra.settings import ROOT, Settings

RESOURCE_GROUP = "azurerm_resource_group"
# What holds data, and cannot be made again from the release: packages with their earlier versions, logs, measurements.
DATA_KINDS = frozenset(
    {
        RESOURCE_GROUP,
        "azurerm_storage_account",
        "azurerm_storage_container",
        "azurerm_storage_blob",
        "azurerm_log_analytics_workspace",
        "azurerm_application_insights",
    }
)


@dataclass(frozen=True)
class Resource:
    """One managed resource of a state: address, type, and the addresses of everything it depends on, near and far."""

    address: str
    kind: str
    needs: frozenset[str]


def destroy_azure(settings: Settings, data: bool, ask: Ask, report: Report) -> list[str]:
    """Delete the environment's Azure side, after `ask` agreed; returns what remains, in words.

    Without `data` everything that holds data stays, with it everything goes; an imported resource group always stays.
    Raises Refused where nothing was done, FerryError otherwise.
    """
    if settings.local is not None:
        raise Refused(
            f"environment {settings.environment!r} has nothing on Azure: its Function is a process on this machine, and "
            "`ferry local down` ends it"
        )
    terraform = Terraform(stack_folder(settings), settings.build_path / "destroy", report)
    terraform.init()
    resources = terraform.resources()
    if resources is None:
        raise FerryError(
            f"{terraform.folder}: there is no state, so nothing is known of what was deployed. Run it where `cdktf deploy` "
            f"ran, or with the same [azure.state]; what stands is in the resource group: "
            f"az resource list --resource-group {settings.resource_group}"
        )
    imported = settings.azure.import_resource_group
    kept = kept_addresses(resources, data=data, imported=imported)
    doomed = [resource.address for resource in resources if resource.address not in kept]
    if doomed:
        with tempfile.TemporaryDirectory(prefix="ferry-destroy-") as folder:  # a plan holds secrets
            plan = Path(folder) / "plan"
            ask("Azure", terraform.plan_destruction(doomed, kept, plan), sorted(kept))
            terraform.apply(plan)
    else:
        report("nothing of it is left to delete")
    return _remaining(terraform, imported=imported, forget=data)


def stack_folder(settings: Settings) -> Path:
    """Where `cdktf synth` puts the environment's stack. Raises Refused where it is not."""
    output = Path(os.environ.get("CDKTF_OUTDIR") or ROOT / "cdktf.out").resolve()
    folder = output / "stacks" / settings.stack("azure")
    if not (folder / "cdk.tf.json").is_file():
        raise Refused(f"{folder}: no synthesized stack; write it with `FERRY_ENV={settings.environment} cdktf synth`")
    return folder


def kept_addresses(resources: Iterable[Resource], *, data: bool, imported: bool) -> set[str]:
    """The addresses that stay: what holds data unless `data`, the group where it is imported, and all that those need.

    What a kept resource needs has to stay, or Terraform would delete the kept one with it: the deployer's role on the
    container, for instance, or the network that a storage account's rules name.
    """
    resources = list(resources)
    kinds = {RESOURCE_GROUP} if imported else set()
    if not data:
        kinds |= DATA_KINDS
    kept = {resource.address for resource in resources if resource.kind in kinds}
    needed = {address for resource in resources if resource.address in kept for address in resource.needs}
    return kept | {resource.address for resource in resources if _block(resource.address) in needed}


def _block(address: str) -> str:
    """A resource's address without its index: dependencies name blocks, not instances."""
    return re.sub(r"\[[^\]]*\]$", "", address)


def _remaining(terraform: "Terraform", *, imported: bool, forget: bool) -> list[str]:
    """What the state still holds. With `forget` an imported group leaves the state, where it is the last to be there."""
    left = terraform.resources() or []
    groups = [resource.address for resource in left if imported and resource.kind == RESOURCE_GROUP]
    if forget:
        for address in groups:
            terraform.forget(address)
    return [
        resource.address + (" (imported, so it is not ours to delete)" if resource.address in groups else "")
        for resource in left
    ]


class Terraform:
    """`terraform` or `tofu` in one stack folder. Every failure is a FerryError with the end of what it said."""

    def __init__(self, folder: Path, logs: Path, report: Report) -> None:
        self.folder = folder
        self._logs = logs
        self._report = report
        self._binary = binary()
        self._environment = os.environ | {"TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "CHECKPOINT_DISABLE": "1"}

    def init(self) -> None:
        """Get providers and backend ready."""
        self._work("init", "-no-color")

    def resources(self) -> list[Resource] | None:
        """Everything managed that the state holds; None where there is no state at all."""
        if not self._ask("state", "pull").strip():
            return None
        values = json.loads(self._ask("show", "-json")).get("values", {})
        return [
            Resource(entry["address"], entry["type"], frozenset(entry.get("depends_on", ())))
            for entry in _entries(values.get("root_module", {}))
            if entry["mode"] == "managed"
        ]

    def plan_destruction(self, targets: Sequence[str], kept: Iterable[str], plan: Path) -> list[str]:
        """Write a plan that deletes `targets` to `plan`; returns the addresses that it deletes.

        A target takes with it whatever depends on it. Raises FerryError where one of `kept` would go.
        """
        options = [f"-target={address}" for address in targets]
        self._work("plan", "-destroy", "-no-color", "-lock-timeout=60s", f"-out={plan}", *options)
        changes = json.loads(self._ask("show", "-json", str(plan))).get("resource_changes", [])
        doomed = sorted(change["address"] for change in changes if "delete" in change["change"]["actions"])
        if wrong := sorted(set(kept) & set(doomed)):
            raise FerryError(
                f"the plan would delete {', '.join(wrong)} as well, which has to stay; nothing was deleted. "
                "`cdktf deploy` brings state and stack together; then run it again"
            )
        return doomed

    def apply(self, plan: Path) -> None:
        """Do exactly what `plan` says."""
        self._work("apply", "-no-color", "-lock-timeout=60s", str(plan))

    def forget(self, address: str) -> None:
        """Take a resource out of the state; it stays where it is."""
        self._ask("state", "rm", "-lock-timeout=60s", address)
        self._report(f"out of the state: {address}")

    def _work(self, verb: str, *arguments: str) -> None:
        log = self._logs / f"{Path(self._binary).name}-{verb}.log"
        signs = ("Destroying...", "Destruction complete", "Still destroying")
        try:
            run(
                [self._binary, verb, *arguments],
                environment=self._environment,
                folder=self.folder,
                log=log,
                shows=lambda text: any(sign in text for sign in signs),
                report=self._report,
            )
        except FerryError as error:
            if (held := _lock(log.read_text(encoding="utf-8", errors="replace"))) is None:
                raise
            raise FerryError(
                f"BUSY the Terraform state of {self.folder}: {held}. Wait until that run has ended, and run it again; a lock is not "
                f"broken by force. {log} has all of it"
            ) from error

    def _ask(self, *arguments: str) -> str:
        finished = subprocess.run(
            [self._binary, *arguments],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if finished.returncode != 0:
            raise FerryError(
                f"{Path(self._binary).name} {' '.join(arguments)} in {self.folder}: {finished.stderr.strip()}"
            )
        return finished.stdout


def binary() -> str:
    """Path of `terraform` or `tofu`: the binary that the cdktf command line would take, too. Raises Refused without one."""
    wanted = os.environ.get("TERRAFORM_BINARY_NAME")
    names = [wanted] if wanted else ["terraform", "tofu"]
    found = next((path for name in names if (path := shutil.which(name))), None)
    if found is None:
        raise Refused(
            f"{' or '.join(names)}: not on the PATH; install Terraform or OpenTofu, or name the binary in "
            "TERRAFORM_BINARY_NAME"
        )
    return found


def _lock(said: str) -> str | None:
    """Who holds the state, from what Terraform says where it gets no lock (statemgr.LockInfo); None where it got one."""
    if "Error acquiring the state lock" not in said:
        return None
    note = dict(re.findall(r"(ID|Operation|Who|Created):\s+(\S.*?)\s*$", said, re.MULTILINE))
    if len(note) < 4:
        return "somebody works on it"
    return f"{note['Operation']} by {note['Who']} since {note['Created']}, lock id {note['ID']}"


def _entries(module: Any) -> list[Any]:
    """The resources of a module and of the modules inside it."""
    inner = [entry for child in module.get("child_modules", []) for entry in _entries(child)]
    return [*module.get("resources", []), *inner]
