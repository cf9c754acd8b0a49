"""Points both clouds back at an earlier release. Releases are immutable and stay stored, so nothing is built again."""

import datetime
from dataclasses import dataclass
from typing import Any

from ferry import aws
from ferry.console import Report
from ferry.errors import Refused
from ferry.release import lay_in_place, pinned_members, stored_release
from infra.release import MAX_RELEASE_BYTES, Release, ReleaseError, read_release
from infra.settings import RELEASES_PREFIX, Settings
from model_code import environment


@dataclass(frozen=True)
class StoredRelease:
    """A release in the artifacts bucket, when it was stored, and whether it is the current one of this machine."""

    release: Release
    stored: datetime.datetime
    current: bool


def list_releases(settings: Settings, report: Report) -> list[StoredRelease]:
    """Every release below releases/ in the artifacts bucket, the newest first; `report` is told what cannot be read."""
    s3 = aws.client(settings, "s3")
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=settings.artifact_bucket, Prefix=f"{RELEASES_PREFIX}/")
    current = _current(settings)
    found = []
    for entry in (entry for page in pages for entry in page.get("Contents", [])):
        if not entry["Key"].endswith(f"/{environment.RELEASE_FILE}"):
            continue
        try:
            release = _manifest(s3, settings, entry["Key"])
        except ReleaseError as error:
            report(f"left out  {error}")
            continue
        found.append(StoredRelease(release, entry["LastModified"], release.release_id == current))
    # S3 knows whole seconds only.
    return sorted(found, key=lambda each: (each.stored, each.release.training_end_time), reverse=True)


def rollback(settings: Settings, identifier: str | None, report: Report) -> Release:
    """Fetch a stored release, verify every digest, and make it the current one of this machine; nothing is deleted.

    None takes the release that was stored before the current one. Raises Refused for one that is not stored, FerryError
    where a byte differs; then the current release is what it was.
    """
    release = _chosen(list_releases(settings, report), identifier)
    content, _ = pinned_members(aws.client(settings, "s3"), release)
    report(f"verified  {release.release_id}: every digest")
    lay_in_place(settings, release, content, report)
    report(f"current   {settings.release_path}")
    if identifier is None:
        report(
            f"again     `ferry rollback {release.release_id}`: without its id, the command goes one release further back"
        )
    return release


def deploy_commands(settings: Settings) -> list[str]:
    """What brings the current release of this machine to both clouds, and proves it, in this order."""
    package = [] if settings.azure.hosting == "container" else ["ferry package"]
    return ["cdk deploy Hosting Gateway", *package, "cdktf deploy", "ferry verify"]


def _chosen(stored: list[StoredRelease], identifier: str | None) -> Release:
    known = ", ".join(each.release.release_id for each in stored) or "none yet; `ferry release` stores one"
    if identifier is not None:
        for each in stored:
            if each.release.release_id == identifier:
                return each.release
        raise Refused(f"no release {identifier!r} is stored; stored, newest first: {known}")
    for place, each in enumerate(stored):
        if each.current:
            if place + 1 == len(stored):
                raise Refused(f"{each.release.release_id} is the oldest release; stored, newest first: {known}")
            return stored[place + 1].release
    raise Refused(f"which release is current is not known on this machine; name the one you want: {known}")


def _current(settings: Settings) -> str | None:
    try:
        return read_release(settings.release_path).release_id
    except ReleaseError:
        return None


def _manifest(s3: Any, settings: Settings, key: str) -> Release:
    answer = s3.get_object(Bucket=settings.artifact_bucket, Key=key)
    return stored_release(answer["Body"].read(MAX_RELEASE_BYTES + 1), settings.artifact_bucket, key)
