"""The name of the serving image: its tag is the hash of what it is built from."""

from pathlib import Path

from infra.aws.sources import SERVING_SOURCES, digest, read_sources
from infra.settings import ROOT, Settings


def image_tag(root: Path) -> str:
    """64 hex digits, the same for the same serving sources below the repository's `root`; the tag to build and push."""
    return digest(read_sources(root, SERVING_SOURCES))


def image_uri(settings: Settings, *, url_suffix: str = "amazonaws.com") -> str:
    """The serving image: by digest where the settings pin one, else by the tag that names its sources (tags never move).

    `url_suffix` is the partition's; a stack passes its own.
    """
    aws, pinned = settings.aws, settings.hosting.image_digest
    reference = f"@{pinned}" if pinned else f":{image_tag(ROOT)}"
    return f"{aws.account}.dkr.ecr.{aws.region}.{url_suffix}/{settings.repository}{reference}"
