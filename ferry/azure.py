"""How the operator reaches Azure: the address of the deployed app, and tokens from whoever is signed in."""

import logging
import os
from typing import Protocol
from urllib.parse import urlsplit

from azure.core.exceptions import AzureError

from ferry.errors import FerryError, Refused
from infra.settings import Settings

AZURE_URL = "FERRY_AZURE_URL"
# What Kudu, the deployment service of a Function App, takes tokens for.
MANAGEMENT = "https://management.azure.com"

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
    """Whoever this machine is signed in as: environment variables, workload or managed identity, `az login`."""
    from azure.identity import DefaultAzureCredential  # half a second, and most commands need none

    # It logs what it also raises, and the error's message is ours to show.
    logging.getLogger("azure.identity").setLevel(logging.ERROR)
    credential: Credential = DefaultAzureCredential()
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
