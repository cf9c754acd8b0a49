"""The checks of `ferry preflight` on Azure, in the order in which a deployment would stumble."""

import os
import zipfile
from functools import cache

from ferry import aws, azure
from ferry.cloud_states_azure import app_state, lock_holder, refuse_unreadable_state, state_file, subscription
from ferry.destroy_azure import binary
from ferry.errors import FerryError, Refused
from ferry.package import MAX_PACKAGE_BYTES
from ferry.preflight import Check, Finding, of_state
from infra.azure.package import read_archive, read_package
from infra.release import ReleaseError, read_release
from infra.settings import Settings

_LOGIN = "login"
# What Microsoft.Web calls the plans in its list of regions ("List Geo Regions"). Container Apps are not in it.
_PLANS = {"flex": "FlexConsumption", "premium": "ElasticPremium&linuxWorkersEnabled=true"}


def azure_checks(
    settings: Settings,
    credential: azure.Credential | None = None,
    *,
    base: str = azure.MANAGEMENT,
    connect: aws.Connect = aws.quick_client,
) -> list[Check]:
    """Everything that `cdktf deploy` needs on Azure; for a local environment only what it would upload.

    `credential` is who deploys; None is whoever this machine is signed in as.
    """
    look = _Deployment(settings, credential, base, connect)
    if settings.local is not None:
        return [Check("azure", "package", look.package)]
    remote = settings.azure.state is not None and settings.azure.state.backend == "azurerm"
    return [
        Check("azure", _LOGIN, look.login),
        Check("azure", "subscription", look.subscription, _LOGIN),
        Check("azure", "location", look.location, "subscription"),
        Check("azure", "package", look.package),
        Check("azure", "terraform", look.terraform),
        Check("azure", "state lock", look.lock, _LOGIN if remote else None),
        Check("azure", "app", look.app, "subscription"),
    ]


class _Deployment:
    """What the checks ask of one environment's subscription, and of the files that would go there."""

    def __init__(
        self, settings: Settings, credential: azure.Credential | None, base: str, connect: aws.Connect
    ) -> None:
        self._settings = settings
        self._credential = cache(lambda: credential or azure.signed_in())
        self._base = base
        self._connect = connect

    def login(self) -> Finding:
        try:
            azure.bearer(self._credential(), azure.MANAGEMENT)
        except FerryError as error:  # what follows its first sentences is a page of what was tried
            return Finding("set up", str(error).partition(" What was tried")[0])
        return Finding("ok", "Entra gives a token for Azure Resource Manager")

    def subscription(self) -> Finding:
        wanted = subscription(self._settings)
        try:
            document, _ = azure.ask(self._credential(), f"{self._base}/subscriptions/{wanted}?api-version=2022-12-01")
        except azure.NotFound as error:
            raise Refused(
                f"whoever is signed in sees no subscription {wanted}: `az login --tenant <its tenant>`, or correct "
                f"azure.subscription_id or ARM_SUBSCRIPTION_ID. {error}"
            ) from error
        found = f"{document['displayName']} ({wanted})"
        if document["state"] != "Enabled":
            return Finding("set up", f"{found} is {document['state']}: its owner enables it in the portal")
        overruled = os.environ.get("ARM_SUBSCRIPTION_ID", wanted)
        note = "" if overruled == wanted else f"; ARM_SUBSCRIPTION_ID is {overruled}, which the settings overrule"
        return Finding("ok", f"{found}{note}")

    def location(self) -> Finding:
        hosting, location = self._settings.azure.hosting, self._settings.azure.location
        if hosting not in _PLANS:
            return Finding("not checked", f'{location}: Azure has no list of regions for hosting = "{hosting}"')
        url = f"{self._base}/subscriptions/{subscription(self._settings)}/providers/Microsoft.Web/geoRegions"
        document, _ = azure.ask(self._credential(), f"{url}?sku={_PLANS[hosting]}&api-version=2023-12-01")
        # "West Europe" there is "westeurope" everywhere else.
        known = sorted({region["name"].lower().replace(" ", "") for region in document["value"]})
        if location in known:
            return Finding("ok", f'{location} offers hosting = "{hosting}"')
        return Finding(
            "set up",
            f'azure.location is {location}, which does not offer hosting = "{hosting}"; choose one of {", ".join(known)}',
        )

    def package(self) -> Finding:
        """What goes up: the package, or for a container the release's own archive."""
        settings, file = self._settings, self._settings.azure_release_file
        if not settings.release_path.exists():
            return Finding(
                "none yet", f"no {settings.release_path}; Azure waits for a release: `ferry approve` makes it"
            )
        try:
            release = read_release(settings.release_path)
            if settings.azure.hosting == "container":
                read_archive(file, release)
                return Finding("ok", f"{file.name} of {release.release_id}")
            read_package(file, release)
        except ReleaseError as error:
            raise FerryError(str(error)) from error
        with zipfile.ZipFile(file) as archive:
            missing = {"host.json", "function_app.py"} - set(archive.namelist())
        size = file.stat().st_size
        if missing:
            return Finding(
                "repair", f"{file}: {' and '.join(sorted(missing))} not at its root; build it with `ferry package`"
            )
        if size > MAX_PACKAGE_BYTES:
            return Finding(
                "repair",
                f"{file}: {size / 2**20:.1f} MiB, at most {MAX_PACKAGE_BYTES / 2**20:.0f} MiB; build it with `ferry package`",
            )
        return Finding("ok", f"{file.name} of {release.release_id}, {size / 2**20:.1f} MiB")

    def terraform(self) -> Finding:
        return Finding("ok", binary())

    def lock(self) -> Finding:
        state = self._settings.azure.state
        credential = self._credential() if state is not None and state.backend == "azurerm" else None
        holder = lock_holder(self._settings, credential, self._connect)
        if holder is None and state is None:
            refuse_unreadable_state(state_file(self._settings))
        if holder is None:
            return Finding("ok", "nobody works on the Terraform state")
        return Finding(
            "busy",
            f"BUSY {holder}. Wait until that run has ended; a lock is not broken by force, as two runs on one state lose what one "
            "of them made",
        )

    def app(self) -> Finding:
        found = app_state(self._settings, self._credential(), self._base)
        if found is None:
            return Finding("none yet", "not deployed; `cdktf deploy`")
        return of_state(found[0])
