"""The names of the images that we build: the tag of each is the hash of what it is built from.

Tags never move, so the same tag is the same image. Both targets of model_code/container/Dockerfile go into one repository,
the one for processing jobs under the serving image's tag with a suffix.
"""

from pathlib import Path

from infra.aws.sources import (
    PREPROCESSING_SOURCES,
    SERVING_SOURCES,
    TRAINING_IMAGE_SOURCES,
    digest,
    read_sources,
)
from infra.settings import ROOT, Settings

PROCESSING_SUFFIX = "-processing"


def image_tag(root: Path) -> str:
    """64 hex digits, the same for the same serving sources below the repository's `root`; the tag to build and push."""
    return digest(read_sources(root, SERVING_SOURCES, PREPROCESSING_SOURCES))


def training_image_tag(root: Path) -> str:
    """The same for our own training image."""
    return digest(read_sources(root, TRAINING_IMAGE_SOURCES))


def image_uri(settings: Settings, *, url_suffix: str = "amazonaws.com") -> str:
    """The serving image: by digest where the settings pin one, else by the tag that names its sources.

    `url_suffix` is the partition's; a stack passes its own.
    """
    pinned = settings.hosting.image_digest
    reference = f"@{pinned}" if pinned else f":{image_tag(ROOT)}"
    return f"{_registry(settings, url_suffix)}/{settings.repository}{reference}"


def processing_image_uri(settings: Settings, *, url_suffix: str = "amazonaws.com") -> str:
    """The image of the processing jobs: the serving image's content, run by root."""
    return f"{_registry(settings, url_suffix)}/{settings.repository}:{image_tag(ROOT)}{PROCESSING_SUFFIX}"


def own_training_image_uri(settings: Settings, *, url_suffix: str = "amazonaws.com") -> str:
    """The training image of our own."""
    return f"{_registry(settings, url_suffix)}/{settings.training_repository}:{training_image_tag(ROOT)}"


def _registry(settings: Settings, url_suffix: str) -> str:
    return f"{settings.aws.account}.dkr.ecr.{settings.aws.region}.{url_suffix}"
