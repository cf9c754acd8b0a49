"""What the parts of one Azure deployment share: where their resources go, and what each way of hosting gives back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra.azure.terraform import ResourceGroup, TerraformStack
from infra.release import Release
from infra.settings import RESERVED_TAGS, Settings


@dataclass(frozen=True)
class Deployment:
    """The stack as the scope of every resource, and what all of them carry."""

    stack: TerraformStack
    settings: Settings
    release: Release
    group: ResourceGroup
    tags: Mapping[str, str]

    @property
    def place(self) -> dict[str, Any]:
        """Arguments that every resource with a location takes.

        The location is the settings' and not the group's: an imported group may lie elsewhere.
        """
        return {
            "resource_group_name": self.group.name,
            "location": self.settings.azure.location,
            "tags": dict(self.tags),
        }

    @property
    def own_tags(self) -> dict[str, str]:
        """For DNS, where Azure takes 15 tags and no space or leading digit in their names: only those that we choose."""
        return {name: value for name, value in self.tags.items() if name in RESERVED_TAGS}

    @property
    def app_tags(self) -> dict[str, str]:
        """Tags of the app itself: with the release that it serves. No other resource changes with a release."""
        return {**self.tags, "release-id": self.release.release_id}


@dataclass(frozen=True)
class HostedApp:
    """The app that serves the release, whatever hosts it.

    `host` is its host name without scheme; `health` and `classify` are paths on it.
    """

    resource_id: str
    name: str
    host: str
    health: str
    classify: str
