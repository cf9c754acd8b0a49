"""The training code as SageMaker's training toolkit wants it: one tar.gz, the same bytes for the same files."""

import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from infra.aws.sources import TRAINING_REQUIREMENTS, TRAINING_SOURCES, digest, read_sources


@dataclass(frozen=True)
class SourceBundle:
    """`digest` names the files, not the archive: another zlib may pack the same files into other bytes."""

    digest: str
    archive: bytes


def source_bundle(root: Path) -> SourceBundle:
    """Pack the training code below the repository's `root`.

    The toolkit installs the requirements.txt that it finds at the archive's top (sagemaker-training, entry_point.install).
    """
    sources = read_sources(root, TRAINING_SOURCES)
    (requirements,) = read_sources(root, (TRAINING_REQUIREMENTS,)).values()
    sources = {"requirements.txt": requirements, **sources}
    return SourceBundle(digest=digest(sources), archive=_tar_gz(sources))


def _tar_gz(sources: dict[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in sorted(sources.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()
