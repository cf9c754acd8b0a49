"""What stands where: the stacks, the endpoint, the app, the stored releases and the one of this machine. Reads only.

Both clouds switch to a release one after the other, and either may fail; this says when they differ, and what brings them
together again.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError

from ferry import aws, azure
from ferry.aws_errors import explain
from ferry.cloud_states import STACKS, describe_endpoint, endpoint_state, stack_state
from ferry.cloud_states_azure import app_state
from ferry.doors import HttpDoor, NotServing, local_door
from ferry.errors import FerryError
from ferry.rollback import list_releases
from infra.release import ReleaseError, read_release
from infra.settings import RELEASES_PREFIX, Settings
from model_code import environment

NOT_DEPLOYED = "not deployed"
UNKNOWN = "unknown"

# SAME: both clouds serve the release of this machine. PARTIAL: something serves another one. INCOMPLETE: not every side serves
# one, or not every side could be asked.
Verdict = Literal["SAME", "PARTIAL", "INCOMPLETE"]


# State, release and note of one row.
Seen = tuple[str, str | None, str]
Look = Callable[[], Seen]
_NOT_DEPLOYED: Seen = (NOT_DEPLOYED, None, "")


@dataclass(frozen=True)
class Row:
    """One thing: where it is, how it stands, the release that it declares or serves, and what there is to say about it."""

    where: str
    state: str
    release_id: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Status:
    """Everything that was seen. `serving` has the release that answers on each cloud; None where that is not known."""

    rows: tuple[Row, ...]
    local: str | None
    serving: dict[str, str | None]

    @property
    def verdict(self) -> Verdict:
        served = {release for release in self.serving.values() if release}
        if len(served) > 1 or (self.local is not None and served - {self.local}):
            return "PARTIAL"
        complete = all(self.serving.values()) and served == {self.local}
        return "SAME" if complete else "INCOMPLETE"


def status(
    settings: Settings,
    *,
    connect: aws.Connect = aws.quick_client,
    credential: azure.Credential | None = None,
    base: str = azure.MANAGEMENT,
) -> Status:
    """Look at both clouds and at this machine. What cannot be reached is a row that says why, and the rest goes on."""
    connect = aws.shared(connect)
    rows = [_row("aws account", partial(_account, settings, connect))]
    reached = rows[0].state != UNKNOWN
    looks: dict[str, Look] = {f"aws stack {name}": partial(_stack, settings, connect, name) for name in STACKS}
    looks["aws endpoint"] = partial(_endpoint, settings, connect)
    looks["aws releases"] = partial(_stored, settings)
    if not reached:  # each of them would only say the same again
        looks.clear()
    if settings.local is None:
        looks["azure app"] = partial(_app, settings, credential, base)
        answers = {"aws": "aws endpoint", "azure": "azure health"}
    else:
        # The emulator's endpoint has no container; the one on this machine answers in its place.
        looks["container"] = lambda: _door(local_door(settings))
        answers = {"aws": "container", "azure": "azure health"}
    looks["azure health"] = lambda: _door(_health(settings))
    with ThreadPoolExecutor(max_workers=len(looks)) as pool:
        rows += pool.map(_row, looks, looks.values())
    if any(row.where == "azure app" and row.state == NOT_DEPLOYED for row in rows):
        rows[-1] = Row(rows[-1].where, NOT_DEPLOYED)
    local = _local(settings)
    released = {row.where: row.release_id for row in rows}
    if settings.hosting.mode == "batch" or settings.hosting.layout == "multi-model":
        # No endpoint, or one that holds every release: what Hosting was deployed with is the one that is meant.
        released["aws endpoint"] = released.get("aws stack Hosting")
    return Status((*rows, local), local.release_id, {cloud: released.get(where) for cloud, where in answers.items()})


def _row(where: str, look: Look) -> Row:
    try:
        state, release_id, note = look()
        return Row(where, state, release_id, note)
    except (ClientError, BotoCoreError) as error:
        return Row(where, UNKNOWN, None, explain(error))
    except (FerryError, OSError) as error:
        return Row(where, UNKNOWN, None, str(error))


def _local(settings: Settings) -> Row:
    where = "this machine"
    if not settings.release_path.exists():
        return Row(where, "no release", None, "`ferry approve` makes one, `ferry rollback` fetches a stored one")
    try:
        return Row(where, "current", read_release(settings.release_path).release_id, str(settings.release_path))
    except ReleaseError as error:
        return Row(where, UNKNOWN, None, str(error))


def _account(settings: Settings, connect: aws.Connect) -> Seen:
    account = connect(settings, "sts").get_caller_identity()["Account"]
    if account != settings.aws.account and settings.local is None:
        raise FerryError(
            f"the AWS credentials are account {account}'s, environment {settings.environment!r} is in {settings.aws.account}; "
            "sign in there, or choose another --env"
        )
    return account, None, settings.aws.region


def _stack(settings: Settings, connect: aws.Connect, name: str) -> Seen:
    found = stack_state(settings, connect(settings, "cloudformation"), name)
    if found is None:
        return _NOT_DEPLOYED
    note = "; ".join(filter(None, (found.state.reason, found.state.advice)))
    return (found.state.name, found.outputs.get("ReleaseId"), note)


def _endpoint(settings: Settings, connect: aws.Connect) -> Seen:
    sagemaker = connect(settings, "sagemaker")
    described = describe_endpoint(settings, sagemaker)
    if described is None:
        return _NOT_DEPLOYED
    state = endpoint_state(described)
    note = "; ".join(filter(None, (state.reason, state.advice)))
    try:
        releases = _served(sagemaker, described["EndpointConfigName"])
    except ClientError as error:  # a configuration or a model that somebody deleted; the endpoint answers all the same
        releases, note = [], "; ".join(filter(None, (f"which release is not told: {explain(error)}", note)))
    if len(releases) > 1:
        note = "; ".join(filter(None, (f"holds {', '.join(releases)}", note)))
    return (state.name, releases[0] if releases else None, note)


def _served(sagemaker: Any, configuration: str) -> list[str]:
    """The releases that an endpoint configuration's models hold, the first container's first, each once."""
    described = sagemaker.describe_endpoint_config(EndpointConfigName=configuration)
    found = []
    for variant in described["ProductionVariants"]:
        model = sagemaker.describe_model(ModelName=variant["ModelName"])
        containers = [*filter(None, [model.get("PrimaryContainer")]), *model.get("Containers", [])]
        found += [release for release in map(_held, containers) if release]
    return list(dict.fromkeys(found))


def _held(container: dict[str, Any]) -> str | None:
    """The release of one container: what its environment pins, else the folder of its archive below releases/."""
    if pinned := container.get("Environment", {}).get(environment.RELEASE_ID):
        return str(pinned)
    parts = PurePosixPath(urlsplit(container.get("ModelDataUrl", "")).path).parts[1:]
    return parts[1] if len(parts) > 2 and parts[0] == RELEASES_PREFIX else None


def _stored(settings: Settings) -> Seen:
    skipped: list[str] = []
    try:
        stored = list_releases(settings, skipped.append)
    except ClientError as error:
        if error.response["Error"]["Code"] != "NoSuchBucket":
            raise
        return _NOT_DEPLOYED
    if not stored:
        return ("none stored", None, "; ".join(skipped))
    newest = stored[0]
    note = "; ".join([f"newest of {len(stored)}, stored {newest.stored:%Y-%m-%d %H:%M:%S}", *skipped])
    return ("stored", newest.release.release_id, note)


def _app(settings: Settings, credential: azure.Credential | None, base: str) -> Seen:
    """What Azure Resource Manager says of the app; the release is the one that its tag declares."""
    found = app_state(settings, credential or azure.signed_in(), base)
    if found is None:
        return _NOT_DEPLOYED
    state, declared = found
    return (state.name, declared, state.advice)


def _health(settings: Settings) -> HttpDoor:
    """The app's health, which asks for neither key nor token: it tells the release and nothing else."""
    url = azure.app_url(settings)
    container = settings.local is None and settings.azure.hosting == "container"
    return HttpDoor("azure", url, health=f"{url}/ping" if container else f"{url}/api/health")


def _door(door: HttpDoor) -> Seen:
    try:
        return ("serving", door.release(), door.health)
    except NotServing as error:
        return ("not serving", None, str(error))
