"""The platform's own check of Microsoft Entra tokens in front of a Function App."""

from typing import Any

from infra.settings import Settings

# Probes carry no token, and health tells nothing but the release id.
_OPEN_PATHS = ["/api/health"]


def entra_authentication(settings: Settings) -> dict[str, Any] | None:
    """The block auth_settings_v2 of either kind of Function App; None unless `authorization` is entra.

    Tokens are only validated, nobody is signed in: hence no client secret, and 401 in place of a login page.
    """
    entra = settings.azure.entra
    if entra is None:
        return None
    return {
        "auth_enabled": True,
        "require_authentication": True,
        "unauthenticated_action": "Return401",
        "default_provider": "azureactivedirectory",
        "excluded_paths": _OPEN_PATHS,
        "active_directory_v2": {
            "client_id": entra.client_id,
            "tenant_auth_endpoint": f"https://login.microsoftonline.com/{entra.tenant_id}/v2.0",
            "allowed_audiences": entra.audiences,
        },
        "login": {"token_store_enabled": False},
    }
