"""Brings the released model into a container that nobody gives one to, then becomes the command that needs it.

SageMaker unpacks the model into /opt/ml/model before it starts a container; on Azure Container Apps the container reads the
release's archive from its blob, with the app's managed identity and no key. `fetch serve` is the whole start there.
"""

import json
import os
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from model_code.container.release_archive import ArchiveInvalid, lay_down
from model_code.environment import (
    ARCHIVE_URL,
    IDENTITY_CLIENT_ID,
    IDENTITY_ENDPOINT,
    IDENTITY_HEADER,
    RELEASE_ID,
    MlPaths,
)

# A new role reaches the storage after up to some minutes. The platform starts a container again that gave up, so this is
# shorter than what its startup probe allows (infra/azure/container.py).
WAIT_SECONDS = 120.0
MAX_ARCHIVE_BYTES = 2**31
_LONGEST_PAUSE_SECONDS = 15.0
_REQUEST_SECONDS = 30.0
# What passes by itself: a role or a blob that is not there yet, too many requests, a service that restarts.
_RETRIED = frozenset({403, 404, 408, 429, 500, 502, 503, 504})
_TOKEN_API = "2019-08-01"
_STORAGE_API = "2021-12-02"
_STORAGE_AUDIENCE = "https://storage.azure.com/"
_ARCHIVE_PART = "archive.part"
_CHUNK = 1024 * 1024
_ADVICE = (
    "The app's identity needs the role Storage Blob Data Reader on the container, a few minutes before; the network has to "
    "let the app reach the storage account"
)

T = TypeVar("T")


class FetchError(Exception):
    """The model cannot be had; the message says why, and what to do."""


class _TryAgain(Exception):
    """What was asked for may be there a moment later."""


def main(command: list[str]) -> int:
    """Fetch the model and become `command`; returns 1, with one line about why, where that is not possible."""
    # The first process of a container ignores the signal unless it says otherwise.
    signal.signal(signal.SIGTERM, _end)
    if not command:
        _say("ERROR", "fetch: no command to go on with; usage: fetch COMMAND [ARGUMENT]...")
        return 2
    try:
        fetch(os.environ, MlPaths.from_environment().model)
        os.execvp(command[0], command)
    except FetchError as error:
        _say("CRITICAL", str(error))
    except OSError as error:
        _say("CRITICAL", f"{command[0]}: cannot be started ({error.strerror}); the model is there")
    return 1


def fetch(variables: Mapping[str, str], folder: Path, *, seconds: float = WAIT_SECONDS) -> None:
    """Put the release that `variables` name into `folder`.

    Raises FetchError: at once where trying again cannot help, else after `seconds`.
    """
    wanted = {name: variables.get(name, "") for name in (ARCHIVE_URL, RELEASE_ID, IDENTITY_ENDPOINT, IDENTITY_HEADER)}
    missing = [name for name, value in wanted.items() if not value]
    if missing:
        raise FetchError(
            f'{", ".join(missing)} not set; deploy with hosting = "container", which sets it, or give the container its '
            "model and start `serve` without `fetch`"
        )
    url, release_id = wanted[ARCHIVE_URL], wanted[RELEASE_ID]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        size = _bring(url, variables, folder, release_id, time.monotonic() + seconds)
    except ArchiveInvalid as error:
        raise FetchError(f"{url}: {error}; deploy the release again") from error
    except OSError as error:
        raise FetchError(f"{folder}: cannot be written ({error}); this user needs to write there") from error
    _say("INFO", f"fetched {release_id}, {size} bytes, from {url}")


def _bring(url: str, variables: Mapping[str, str], folder: Path, release_id: str, deadline: float) -> int:
    """Download and lay down; returns the size of the archive, which does not stay."""
    archive = folder / _ARCHIVE_PART
    try:
        token = _patiently(lambda: _token(variables), variables[IDENTITY_ENDPOINT], deadline)
        size = _patiently(lambda: _download(url, token, archive), url, deadline)
        lay_down(archive, folder, release_id)
    finally:
        archive.unlink(missing_ok=True)
    return size


def _patiently(attempt: Callable[[], T], what: str, deadline: float) -> T:
    """What `attempt` returns, as soon as it raises _TryAgain no longer. Raises FetchError at the deadline."""
    pause = 1.0
    while True:
        try:
            return attempt()
        except _TryAgain as error:
            left = deadline - time.monotonic()
            if left < pause:
                raise FetchError(f"{what}: {error}; gave up waiting. {_ADVICE}") from error
            _say("WARNING", f"{what}: {error}; trying again in {pause:g} seconds, for {left:.0f} at most")
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


def _token(variables: Mapping[str, str]) -> str:
    """A token for Azure Storage from the platform's own endpoint, which knows the container by the header it was given."""
    query = {"resource": _STORAGE_AUDIENCE, "api-version": _TOKEN_API}
    if client_id := variables.get(IDENTITY_CLIENT_ID):
        query["client_id"] = client_id
    request = urllib.request.Request(
        f"{variables[IDENTITY_ENDPOINT]}?{urllib.parse.urlencode(query)}",
        headers={"X-IDENTITY-HEADER": variables[IDENTITY_HEADER]},
    )
    with _open(request) as response:
        answer = next(_chunks(response), b"")
    try:
        return str(json.loads(answer)["access_token"])
    except (ValueError, KeyError, TypeError) as error:
        raise _TryAgain(f"the answer holds none ({type(error).__name__})") from error


def _download(url: str, token: str, archive: Path) -> int:
    """Write the blob to `archive`; returns its size."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}", "x-ms-version": _STORAGE_API})
    with _open(request) as response, archive.open("wb") as file:
        announced = response.headers["Content-Length"]
        if announced is None or not announced.isdigit() or int(announced) > MAX_ARCHIVE_BYTES:
            raise FetchError(f"{url}: announces {announced} bytes; a release has at most {MAX_ARCHIVE_BYTES}")
        for chunk in _chunks(response):
            file.write(chunk)
        size = file.tell()
    if size != int(announced):
        raise _TryAgain(f"the connection ended after {size} of {announced} bytes")
    return size


def _open(request: urllib.request.Request) -> HTTPResponse:
    """The answer to a request that succeeded. Raises _TryAgain where a later one may, and FetchError where not."""
    try:
        response: HTTPResponse = _OPENER.open(request, timeout=_REQUEST_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            code = error.headers.get("x-ms-error-code", error.reason)
        if error.code in _RETRIED:
            raise _TryAgain(f"answered {error.code} {code}") from error
        raise FetchError(f"{request.full_url}: answered {error.code} {code}. {_ADVICE}") from error
    except (OSError, HTTPException) as error:
        raise _TryAgain(f"no answer ({error})") from error
    return response


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    """The body, in pieces of at most a MiB. Raises _TryAgain where the connection breaks."""
    while True:
        try:
            chunk = response.read(_CHUNK)
        except (OSError, HTTPException) as error:
            raise _TryAgain(f"the connection broke ({type(error).__name__})") from error
        if not chunk:
            return
        yield chunk


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Neither storage nor the identity endpoint redirects, and a token goes nowhere else."""

    def redirect_request(self, *_: Any) -> None:
        return None


# Without a proxy: the identity endpoint is the container's own, and storage is next door.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _NoRedirect)


def _say(level: str, message: str) -> None:
    """One JSON object a line, with the names that the server's log has."""
    event = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "level": level,
        "logger": __name__,
        "process": os.getpid(),
        "message": message,
    }
    print(json.dumps(event), file=sys.stderr, flush=True)


def _end(*_: object) -> NoReturn:
    sys.exit(128 + signal.SIGTERM)
