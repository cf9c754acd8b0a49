"""Uploads the package to a deployed Function App, for those who deploy code apart from infrastructure.

The protocol is the one of `az functionapp deployment source config-zip` and `func azure functionapp publish` on the Flex
Consumption plan: POST the zip to /api/publish of the app's deployment service, then follow the deployment that it names.
"""

import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError, InvalidHeader

from ferry import azure
from ferry.console import Report
from ferry.doors import HttpDoor, NotServing, azure_door
from ferry.errors import FerryError, Refused
from infra.azure.package import read_package
from infra.release import Release, ReleaseError, read_release
from infra.settings import Settings

# The package needs no build: its wheels are in it, and a build on Azure would resolve them again.
_PUBLISH = "/api/publish?type=zip&RemoteBuild=false"
_TIMEOUT = urllib3.Timeout(connect=10, read=300)
# Kudu's DeployStatus; the others, 0 to 2, are pending, building and deploying.
_CANCELLED, _FAILED, _SUCCESS, _CONFLICT, _PARTIAL = -1, 3, 4, 5, 6
_UNDER_WAY = {0: "pending", 1: "building", 2: "deploying"}
_LOG_LINES = 10


@dataclass(frozen=True)
class Patience:
    """How long to try: `seconds` in all, `pause` before the second attempt, doubled up to `longest_pause`."""

    seconds: float = 900
    pause: float = 2
    longest_pause: float = 30


class _Later(FerryError):
    """An answer that may be another one soon; `after` is the service's own wish, in seconds."""

    def __init__(self, message: str, after: float | None = None) -> None:
        super().__init__(message)
        self.after = after


def publish(settings: Settings, scm: str, report: Report, credential: azure.Credential | None = None) -> None:
    """Upload the package of the current release to the deployed Function App, whose deployment service is at `scm`.

    Refuses, before anything is sent, a hosting that takes no upload, a package of another release, and an app that serves
    another release: its app settings declare that one, so it would refuse this package's model and answer 503.
    """
    refuse_hosting(settings)
    release = check_package(settings.package_path, settings.release_path)
    credential = credential or azure.signed_in()
    refuse_other_release(azure_door(settings, credential), release)
    upload(settings.package_path, scm, credential, report)


def refuse_hosting(settings: Settings) -> None:
    """Raises Refused for an environment whose app takes no upload."""
    if settings.local is not None:
        raise Refused(
            f"environment {settings.environment!r} runs its Function on this machine; "
            "`ferry local up azure` starts it from the package"
        )
    if settings.azure.hosting != "flex":
        runs = "from the package's blob" if settings.azure.hosting == "premium" else "the image, and the release's blob"
        raise Refused(
            f"azure.hosting is {settings.azure.hosting!r}: the app runs {runs}, so an upload would change nothing; "
            "`cdktf deploy` brings both up to date"
        )


def check_package(package: Path, release_path: Path) -> Release:
    """The current release, after `package` was seen to hold it. Raises Refused with what to do."""
    try:
        release = read_release(release_path)
        read_package(package, release)
    except ReleaseError as error:
        raise Refused(str(error)) from error
    return release


def refuse_other_release(door: HttpDoor, release: Release) -> None:
    """Raises Refused where a healthy app serves another release than `release`; an app without code yet is fine."""
    try:
        served = door.release()
    except NotServing:
        return
    if served != release.release_id:
        raise Refused(
            f"{door.health} reports release {served}, the package holds {release.release_id}: which release the app takes is "
            "declared in its settings, and only `cdktf deploy` moves that; `ferry publish azure` is for other code with the "
            "same release"
        )


def upload(
    package: Path, scm: str, credential: azure.Credential, report: Report, patience: Patience | None = None
) -> None:
    """Send `package` to the deployment service at the base URL `scm` and return when it is deployed.

    What may pass is tried again until `patience` ends: roles and DNS names that have not reached every place yet (401, 403,
    404), another deployment that runs (409), 429, 5xx, a lost connection. Raises FerryError with the last answer.
    """
    patience = patience or Patience()
    deadline, pause = time.monotonic() + patience.seconds, patience.pause
    service = _Service(scm, credential)
    while True:
        try:
            report(f"uploading {package.name}, {package.stat().st_size / 2**20:.1f} MiB, to {scm}")
            deployment = service.post(package)
            report(f"accepted  deployment {deployment}")
            _follow(service, deployment, deadline, patience, report)
        except _Later as later:
            wait = max(later.after or 0, pause)
            if time.monotonic() + wait > deadline:
                raise FerryError(
                    f"{later}; gave up after {patience.seconds:g} s. The command can be run again"
                ) from later
            report(f"again in {wait:g} s: {later}")
            time.sleep(wait)
            pause = min(pause * 2, patience.longest_pause)
        else:
            report(f"deployed  {deployment}")
            return


def _follow(service: "_Service", deployment: str, deadline: float, patience: Patience, report: Report) -> None:
    """Return when the deployment succeeded. Raises FerryError when it failed, and _Later when it can be tried again."""
    pause, said = patience.pause, ""
    while True:
        try:
            status = service.status(deployment)
        except _Later as later:  # the deployment goes on, whoever is asked about it
            wait, seen = max(later.after or 0, pause), str(later)
        else:
            if status == _SUCCESS:
                return
            if status == _CONFLICT:
                raise _Later(f"deployment {deployment} gave way to another one")
            if status in (_CANCELLED, _FAILED, _PARTIAL):
                raise _failure(service, deployment, status)
            wait, seen = pause, _UNDER_WAY.get(status, "not known yet")
        if time.monotonic() + wait > deadline:
            raise FerryError(
                f"deployment {deployment} did not end within {patience.seconds:g} s, last seen: {seen}; "
                "`ferry verify azure` says what runs, and the command can be run again"
            )
        if seen != said:
            report(f"deploying {seen}")
            said = seen
        time.sleep(wait)


def _failure(service: "_Service", deployment: str, status: int) -> FerryError:
    log = service.log(deployment)
    how = {_CANCELLED: "was cancelled", _FAILED: "failed", _PARTIAL: "was done in part"}[status]
    message = f"deployment {deployment} {how}; its log ends:\n{log or '(no log)'}"
    # The deployment service stores the package with the app's identity, whose role may not have arrived yet.
    if status == _FAILED and re.search(r"Forbidden|AuthorizationPermissionMismatch|\b403\b", log):
        return _Later(message)
    return FerryError(message)


class _Service:
    """The deployment service of one app (Kudu), as far as a publish needs it."""

    def __init__(self, scm: str, credential: azure.Credential) -> None:
        self._scm = scm
        self._credential = credential
        # Never a redirect: every request carries a token.
        self._pool = urllib3.PoolManager(timeout=_TIMEOUT, retries=False)

    def post(self, package: Path) -> str:
        """Send the zip; returns the id of the deployment, or "latest" where the answer names none."""
        with package.open("rb") as body:
            answer = self._request(
                "POST",
                _PUBLISH,
                body=body,
                headers={"Content-Type": "application/zip", "Content-Length": str(package.stat().st_size)},
            )
        # The body is the id as a JSON string; Location is the deployment's address.
        named = [answer.data.decode(errors="replace").strip().strip('"'), answer.headers.get("Location", "")]
        ids = [re.search(r"(?:^|/)([0-9A-Za-z-]{8,64})$", text) for text in named]
        return next((found[1] for found in ids if found), "latest")

    def status(self, deployment: str) -> int:
        """Kudu's status of the deployment. Raises _Later where it cannot say it now."""
        missing = _Later(f"{self._scm} does not know deployment {deployment}")
        # The record of one deployment can vanish with the instance that made it; the latest one is kept apart.
        for name in dict.fromkeys((deployment, "latest")):
            try:
                document = self._json(f"/api/deployments/{name}")
                if deployment in (name, document["id"]):
                    return int(document["status"])
            except (TypeError, KeyError, ValueError):
                continue
            except _Later as later:
                missing = later
        raise missing

    def log(self, deployment: str) -> str:
        """The last lines of the deployment's log; empty where it is not to be had: the failure is what counts."""
        try:
            entries = self._json(f"/api/deployments/{deployment}/log")
            return "\n".join(f"  {entry['message']}" for entry in entries[-_LOG_LINES:])
        except (TypeError, KeyError, ValueError, FerryError):
            return ""

    def _json(self, path: str) -> Any:
        return json.loads(self._request("GET", path).data)

    def _request(self, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None) -> Any:
        headers = azure.bearer(self._credential, azure.MANAGEMENT) | (headers or {})
        try:
            answer = self._pool.request(method, f"{self._scm}{path}", body=body, headers=headers)
        except HTTPError as error:
            raise _Later(f"{self._scm}: {error}") from error
        if 200 <= answer.status < 300:
            return answer
        shown = answer.data[:500].decode(errors="replace").strip()
        message = f"{method} {self._scm}{path}: HTTP {answer.status}{_ADVICE.get(answer.status, '')}: {shown}"
        if answer.status in _ADVICE or answer.status == 429 or answer.status >= 500:
            raise _Later(message, _retry_after(answer.headers.get("Retry-After")))
        raise FerryError(message)


_ADVICE = {
    401: " (who is signed in, `az account show`, must be in the app's tenant)",
    403: " (who is signed in needs Website Contributor on the app; a new role takes some minutes. azure.network, where set, "
    "says from where)",
    404: " (no such app yet: `cdktf deploy` makes it, and its name takes some minutes to be known)",
    409: " (another deployment is running)",
}


def _retry_after(header: str | None) -> float | None:
    try:
        return urllib3.Retry().parse_retry_after(header) if header else None
    except InvalidHeader:
        return None
