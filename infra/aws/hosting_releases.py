"""Which releases a Hosting stack serves: the one that is deployed, and those that the settings name beside it."""

from dataclasses import dataclass

from infra.release import Release, ReleaseError, read_release
from infra.settings import RELEASES_PREFIX, ROOT, Settings


@dataclass(frozen=True)
class HostedReleases:
    """`containers` by their place in hosting.containers, None for an image of its own; `shadow` where there is one."""

    deployed: Release
    containers: tuple[Release | None, ...] = ()
    shadow: Release | None = None


def hosted_releases(settings: Settings, deployed: Release) -> HostedReleases:
    """Read and check them all. Raises ReleaseError for what the stack could create but what could never serve."""
    hosting = settings.hosting
    _check_model(deployed, settings)
    containers: list[Release | None] = []
    for each in hosting.containers:
        named = read_release(ROOT / each.release) if each.release else deployed
        containers.append(None if each.image else named)
    shadow = read_release(ROOT / hosting.shadow.release) if hosting.shadow else None
    if shadow:
        _check_model(shadow, settings)
    for release in (deployed, shadow, *containers):
        if release:
            _check_place(release, settings)
    return HostedReleases(deployed=deployed, containers=tuple(containers), shadow=shadow)


def _check_model(release: Release, settings: Settings) -> None:
    """Another container may serve another model; the endpoint's own, and what is compared with it, may not."""
    if release.model != settings.model.name:
        raise ReleaseError(
            f"release {release.release_id}: model is {release.model!r}; environment {settings.environment!r} serves "
            f"{settings.model.name!r}"
        )


def _check_place(release: Release, settings: Settings) -> None:
    prefix = f"s3://{settings.artifact_bucket}/{RELEASES_PREFIX}/"
    if not release.archive.uri.startswith(prefix):
        raise ReleaseError(
            f"release {release.release_id}: archive.uri is {release.archive.uri!r}; the hosting role of environment "
            f"{settings.environment!r} reads below {prefix} only; publish the release there with `ferry release`"
        )
