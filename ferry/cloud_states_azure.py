"""What stands on Azure and who works on it: the app's state, and the lock of the Terraform state.

A lock is looked at and never broken: two runs on one state lose what one of them made.
"""

import base64
import fcntl
import json
import os
import struct
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

from ferry import aws, azure
from ferry.cloud_states import State
from ferry.errors import FerryError, Refused
from infra.settings import ROOT, Settings

_WEB_API = "2023-12-01"
_CONTAINER_API = "2024-03-01"
_BLOB_API = "2023-11-03"


def subscription(settings: Settings) -> str:
    """The subscription that Terraform would deploy to: the settings' before ARM_SUBSCRIPTION_ID. Raises Refused."""
    found = settings.azure.subscription_id or os.environ.get("ARM_SUBSCRIPTION_ID")
    if not found:
        raise Refused(
            "no subscription is named: set ARM_SUBSCRIPTION_ID (`az account show --query id --output tsv` prints the one that "
            "is chosen), or azure.subscription_id in the settings"
        )
    return found


def app_resource(settings: Settings, base: str = azure.MANAGEMENT) -> str:
    """URL of the app in Azure Resource Manager, whichever way it is hosted."""
    group = f"{base}/subscriptions/{subscription(settings)}/resourceGroups/{settings.resource_group}/providers"
    if settings.azure.hosting == "container":
        return f"{group}/Microsoft.App/containerApps/{settings.container_app}?api-version={_CONTAINER_API}"
    return f"{group}/Microsoft.Web/sites/{settings.function_app}?api-version={_WEB_API}"


def app_state(
    settings: Settings, credential: azure.Credential, base: str = azure.MANAGEMENT
) -> tuple[State, str | None] | None:
    """How the app stands and the release that its tag declares; None where there is no app. Raises FerryError."""
    try:
        document, _ = azure.ask(credential, app_resource(settings, base))
    except azure.NotFound:
        return None
    properties, declared = document["properties"], (document.get("tags") or {}).get("release-id")
    if settings.azure.hosting == "container":
        return _container(properties), declared
    status, group = properties.get("state"), settings.resource_group
    if status is None:
        return State("unknown", "repair", "Azure tells no state of it; the portal may"), declared
    if properties.get("usageState") == "Exceeded":
        advice = (
            "its plan's quota is used up, and it answers 403 until the quota begins anew or the plan is a larger one"
        )
        return State("Exceeded", "repair", advice), declared
    if status == "Running":
        return State(status, "ready"), declared
    start = f"`az functionapp start --name {settings.function_app} --resource-group {group}` starts it"
    return State(status, "repair", f"it answers 403 to everybody; {start}"), declared


def _container(properties: dict[str, Any]) -> State:
    """A container app: provisioning and running are two things (Microsoft.App, ContainerAppProvisioningState)."""
    provisioning, running = properties.get("provisioningState", ""), properties.get("runningStatus", "Running")
    if provisioning in ("InProgress", "Deleting"):
        return State(provisioning, "busy", "wait until it has ended")
    if provisioning in ("Failed", "Canceled"):
        return State(provisioning, "repair", "its last deployment did not end well; `cdktf deploy` tries again")
    if running != "Running":
        return State(
            running, "repair", "`az containerapp revision list` says why, and `az containerapp start` starts it"
        )
    return State(running, "ready")


def state_file(settings: Settings) -> Path:
    """Where the Terraform state is without [azure.state]: beside cdktf.out, in the repository's folder."""
    return Path(os.environ.get("CDKTF_OUTDIR") or ROOT / "cdktf.out").resolve().parent / _key(settings)


def lock_holder(settings: Settings, credential: azure.Credential | None, connect: aws.Connect) -> str | None:
    """Who works on the Terraform state now, in words; None where nobody does. Raises FerryError and ClientError."""
    state = settings.azure.state
    if state is None:
        return local_lock(state_file(settings))
    if state.backend == "s3":
        return _s3_lock(settings, connect)
    assert credential is not None
    account = f"https://{state.storage_account}.blob.core.windows.net"
    return blob_lock(f"{account}/{state.container}/{_key(settings)}", credential)


def local_lock(path: Path) -> str | None:
    """The process that holds Terraform's lock on a state file of this machine, in words.

    Terraform locks the file itself (fcntl) and notes beside it who does. A kill leaves the note and no lock, so the kernel is
    asked, which changes nothing.
    """
    try:
        with path.open("rb") as file:
            asked = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
            kind, _, _, _, holder = struct.unpack("hhqqi4x", fcntl.fcntl(file, fcntl.F_GETLK, asked))
    except FileNotFoundError:
        return None
    if kind == fcntl.F_UNLCK:
        return None
    note = path.with_name(f".{path.name}.lock.info")
    return f"process {holder} on this machine holds it{_noted(note.read_bytes() if note.exists() else b'')}"


def refuse_unreadable_state(path: Path) -> None:
    """Raises FerryError for a state file of this machine from which Terraform would not know what it made.

    An empty one is none: Terraform makes it before its first apply. With a backup that holds resources it is a loss.
    """
    backup = path.with_name(f"{path.name}.backup")
    content = path.read_bytes() if path.exists() else b""
    if content and _resources(content) is None:
        wrong = "is no Terraform state that can be read"
    elif path.exists() and not content and backup.exists() and _resources(backup.read_bytes()):
        wrong = "is empty, and its backup is not"
    else:
        return
    back = (
        f"look at {backup}, and copy it there when it is the right one"
        if backup.exists()
        else "bring back a copy of it"
    )
    raise FerryError(f"{path}: {wrong}; {back}. Without its state Terraform would make everything a second time")


def _resources(content: bytes) -> list[Any] | None:
    """What a state holds; None for what is none (statefile of Terraform, version 4)."""
    try:
        document = json.loads(content)
        return list(document["resources"]) if document["version"] else None
    except (ValueError, TypeError, KeyError):
        return None


def blob_lock(url: str, credential: azure.Credential) -> str | None:
    """The lease that Terraform's azurerm backend takes on the state's blob, with its note in the blob's metadata."""
    try:
        _, headers = azure.ask(
            credential, url, audience=azure.STORAGE, method="HEAD", headers={"x-ms-version": _BLOB_API}
        )
    except azure.NotFound as error:
        if "ContainerNotFound" in str(error):
            raise FerryError(
                f"{url}: the container of the Terraform state is not there. Where it was deleted by hand, undelete it (`az "
                "storage container restore`); without its state Terraform would make everything a second time"
            ) from error
        return None
    if headers.get("x-ms-lease-state") != "leased":
        return None
    return f"the blob {url} is leased{_noted(headers.get('x-ms-meta-terraformlockid', '').encode(), encoded=True)}"


def _s3_lock(settings: Settings, connect: aws.Connect) -> str | None:
    """The object beside the state that Terraform's s3 backend writes with use_lockfile."""
    state = settings.azure.state
    assert state is not None
    key = f"{_key(settings)}.tflock"
    try:
        content = connect(settings, "s3").get_object(Bucket=state.bucket, Key=key)["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] == "NoSuchBucket":
            raise FerryError(
                f"s3://{state.bucket}: the bucket of the Terraform state is not there; correct azure.state.bucket. Where it was "
                "deleted, bring the state back before anything else: without it Terraform would make everything a second time"
            ) from error
        if error.response["Error"]["Code"] != "NoSuchKey":
            raise
        return None
    return f"s3://{state.bucket}/{key} is there{_noted(content)}"


def _noted(content: bytes, *, encoded: bool = False) -> str:
    """Terraform's own note of a lock (statemgr.LockInfo), in words; `encoded` is in base64."""
    try:
        note = json.loads(base64.b64decode(content) if encoded else content)
        return f": {note['Operation']} by {note['Who']} since {note['Created']}, lock id {note['ID']}"
    except (ValueError, TypeError, KeyError):
        return ""


def _key(settings: Settings) -> str:
    return f"terraform.{settings.stack('azure')}.tfstate"
