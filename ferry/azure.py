"""How the operator reaches Azure: the address of the deployed app, tokens from whoever is signed in, Resource Manager."""

import json
import logging
import os
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import urlsplit

import urllib3
from azure.core.exceptions import AzureError

from ferry.errors import FerryError, Refused
from infra.settings import Settings

AZURE_URL = "FERRY_AZURE_URL"
# What Kudu, the deployment service of a Function App, takes tokens for, and where Azure Resource Manager answers.
MANAGEMENT = "https://management.azure.com"
STORAGE = "https://storage.azure.com"

_LOOPBACK = {"localhost", "127.0.0.1", "::1"}


class AccessToken(Protocol):
    """The part of azure.core's AccessToken that a request needs."""

    @property
    def token(self) -> str: ...


class Credential(Protocol):
    """azure.core's TokenCredential: every credential of azure-identity is one."""

    def get_token(self, *scopes: str) -> AccessToken:
        """A token for `scopes`, from a cache while it is valid."""


def signed_in() -> Credential:
    """Whoever this machine is signed in as: environment variables, workload or managed identity, `az login`.

    Raises Refused for variables that cannot be used.
    """
    from azure.identity import DefaultAzureCredential  # half a second, and most commands need none

    # It logs what it also raises, and the error's message is ours to show.
    logging.getLogger("azure.identity").setLevel(logging.ERROR)
    try:
        credential: Credential = DefaultAzureCredential()
    except (ValueError, OSError) as error:  # a variable that is none, a certificate that is not there
        said = str(error).partition(". ")[0].rstrip(".")
        raise Refused(
            f"the AZURE_* variables of this machine lead to no sign-in: {said}; correct them, or unset them and use `az login`"
        ) from error
    return credential


def bearer(credential: Credential, audience: str) -> dict[str, str]:
    """The header that carries a token for `audience`. Raises FerryError where nobody is signed in."""
    try:
        token = credential.get_token(f"{audience}/.default").token
    except AzureError as error:
        raise FerryError(
            f"Entra gave no token for {audience}. Sign in with `az login`, or set AZURE_TENANT_ID, AZURE_CLIENT_ID and a "
            f"credential of a service principal. What was tried:\n{error}"
        ) from error
    return {"Authorization": f"Bearer {token}"}


class NotFound(FerryError):
    """Azure has no such resource."""


def ask(
    credential: Credential,
    url: str,
    *,
    audience: str = MANAGEMENT,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
) -> tuple[Any, Mapping[str, str]]:
    """One question to an API of Azure, without a repetition: the document, None where there is none, and the headers.

    Raises NotFound for 404, FerryError with Azure's own words and what to do for everything else that is no answer.
    """
    sent = bearer(credential, audience) | dict(headers or {})
    try:
        answer = urllib3.request(method, url, headers=sent, timeout=_SECONDS, retries=False, redirect=False)
    except urllib3.exceptions.SSLError as error:
        raise FerryError(
            f"{urlsplit(url).netloc}: {error}. Something between here and Azure, as a proxy that looks into TLS does, shows a "
            "certificate that this machine does not trust; add that proxy's CA to the system's (SSL_CERT_FILE, "
            "REQUESTS_CA_BUNDLE)"
        ) from error
    except urllib3.exceptions.HTTPError as error:
        raise FerryError(
            f"{urlsplit(url).netloc}: {error}; name resolution, a firewall or a proxy may be why"
        ) from error
    if 200 <= answer.status < 300:
        return _document(url, answer), answer.headers
    # The answer to a HEAD has no body.
    said = _said(answer.data) or answer.headers.get("x-ms-error-code", "")
    message = f"{method} {url.partition('?')[0]}: HTTP {answer.status}: {said}"
    if answer.status == 404:
        raise NotFound(message)
    if answer.status == 429:
        after = answer.headers.get("Retry-After")
        wait = f"{after} s" if after else "a minute"
        raise FerryError(f"{message}. Azure answers too many requests at once; wait {wait}")
    kind = Refused if answer.status == 401 else FerryError
    raise kind(message + _ADVICE.get(answer.status // 100 if answer.status >= 500 else answer.status, ""))


def _document(url: str, answer: urllib3.BaseHTTPResponse) -> Any:
    try:
        return json.loads(answer.data) if answer.data else None
    except ValueError as error:
        beginning = " ".join(answer.data[:80].decode(errors="replace").split())
        raise FerryError(
            f"{url.partition('?')[0]}: what answers there is not Azure, or was cut off: {beginning!r}. A proxy, or a network that "
            "wants a sign-in first, may be why; run it again"
        ) from error


_SECONDS = urllib3.Timeout(connect=2, read=4)
_ADVICE = {
    5: ". The service itself fails; https://status.azure.com says whether it knows",
    401: ". The token is none for this tenant: `az login --tenant <tenant>`",
    403: ". Whoever is signed in (`az account show`) lacks a role there: Reader is enough to look",
}


def _said(content: bytes) -> str:
    """`Code: message` of an error of Azure Resource Manager, else the beginning of what came."""
    try:
        error = json.loads(content)["error"]
        return f"{error['code']}: {error['message']}"
    except (ValueError, TypeError, KeyError):
        return content[:300].decode(errors="replace")


def app_url(settings: Settings) -> str:
    """Base URL of the app, without a slash at its end; FERRY_AZURE_URL wins over what the settings make of it.

    Raises Refused where only Terraform knows the address.
    """
    if settings.local is not None:
        return f"http://127.0.0.1:{settings.local.azure_port}"
    given = os.environ.get(AZURE_URL)
    if given is not None:
        return _checked(given)
    if settings.azure.hosting != "container":
        return f"https://{settings.function_app}.azurewebsites.net"
    reason = (
        "is open inside its environment only, as azure.authorization is not set: from a machine that reaches it"
        if settings.azure.door == "internal"
        else "gets its address from Azure:"
    )
    raise Refused(
        f"the container app {settings.container_app} {reason} set {AZURE_URL} to https://<its address>; "
        f"az containerapp show --name {settings.container_app} --resource-group {settings.resource_group} "
        "--query properties.configuration.ingress.fqdn shows it"
    )


def scm_url(settings: Settings) -> str:
    """Base URL of the Function App's deployment service."""
    return f"https://{settings.function_app}.scm.azurewebsites.net"


def _checked(given: str) -> str:
    """Keys and tokens go to this address: over TLS, or to this machine."""
    parts = urlsplit(given)
    safe = parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK)
    if not safe or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise Refused(
            f"{AZURE_URL}: found {given!r}; allowed: https://<host>, the app's base URL without a query, "
            "or http:// on this machine"
        )
    return given.rstrip("/")
