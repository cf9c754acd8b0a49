"""The names of the images that we build: the tag of each is the hash of what it is built from.

Tags never move, so the same tag is the same image. Both targets of model_code/container/Dockerfile go into one repository,
the one for processing jobs under the serving image's tag with a suffix.
"""

import json
import re
from pathlib import Path

from infra.aws.sources import (
    PREPROCESSING_SOURCES,
    SERVING_SOURCES,
    TRAINING_IMAGE_SOURCES,
    digest,
    read_sources,
)
from infra.settings import ROOT, Settings, SettingsError

PROCESSING_SUFFIX = "-processing"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def image_tag(root: Path) -> str:
    """64 hex digits, the same for the same serving sources below the repository's `root`; the tag to build and push."""
    return digest(read_sources(root, SERVING_SOURCES, PREPROCESSING_SOURCES))


def training_image_tag(root: Path) -> str:
    """The same for our own training image."""
    return digest(read_sources(root, TRAINING_IMAGE_SOURCES))


def image_uri(settings: Settings, *, url_suffix: str = "amazonaws.com") -> str:
    """The serving image: by digest where one is known, else by the tag that names its sources.

    Known is what the settings pin, or what `ferry image push` noted for the same tag. `url_suffix` is the partition's; a stack
    passes its own. Raises SettingsError where the note is none.
    """
    tag = image_tag(ROOT)
    pinned = settings.hosting.image_digest or _pushed_digest(settings.image_path, tag)
    reference = f"@{pinned}" if pinned else f":{tag}"
    return f"{_registry(settings, url_suffix)}/{settings.repository}{reference}"


def processing_image_uri(settings: Settings, *, url_suffix: str = "amazonaws.com") -> str:
    """The image of the processing jobs: the serving image's content, run by root."""
    return f"{_registry(settings, url_suffix)}/{settings.repository}:{image_tag(ROOT)}{PROCESSING_SUFFIX}"


def own_training_image_uri(settings: Settings, *, url_suffix: str = "amazonaws.com") -> str:
    """The training image of our own."""
    return f"{_registry(settings, url_suffix)}/{settings.training_repository}:{training_image_tag(ROOT)}"


def _pushed_digest(note: Path, tag: str) -> str | None:
    """The digest of the image that was pushed under this tag; None where nothing or another one was."""
    try:
        noted = json.loads(note.read_bytes())
        pushed, digest_of_it = str(noted["tag"]), str(noted["digest"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SettingsError(
            f'{note}: not a note of a pushed image, {{"tag": …, "digest": "sha256:…"}} ({error!r}); write it again with '
            "`ferry image push`, or delete it"
        ) from error
    if pushed != tag:
        return None
    if not _DIGEST.fullmatch(digest_of_it):
        raise SettingsError(f"{note}: digest is {digest_of_it!r}; sha256: and 64 hex digits are allowed")
    return digest_of_it


def _registry(settings: Settings, url_suffix: str) -> str:
    return f"{settings.aws.account}.dkr.ecr.{settings.aws.region}.{url_suffix}"
