"""Reads and writes model.tar.gz without ever extracting one.

A model artifact comes from a job that ran somebody's code: it is untrusted. Members are read into memory by an allow-list;
nothing is written, linked or executed. Python's own extraction filter is not enough: before 3.11.13 it lets several kinds
of member escape, and no version notices a cut tail or a flipped CRC bit.
"""

import gzip
import io
import tarfile
from collections.abc import Mapping

from ferry.errors import FerryError
from model_code.container.artifact import read_members
from model_code.container.release_archive import ArchiveInvalid


class ArchiveError(FerryError):
    """The archive is damaged, unsafe or incomplete."""


def read_archive(raw: bytes, origin: str, *, exact: bool = False) -> dict[str, bytes]:
    """The members that make a release, `model.json` and `model.onnx`, from the bytes of a model.tar.gz.

    Other members are ignored, as a training job may leave more; with `exact` they are refused, as a release has no more.
    `origin` is named in errors. Raises ArchiveError.
    """
    try:
        return read_members(io.BytesIO(raw), exact=exact)
    except ArchiveInvalid as error:
        raise ArchiveError(f"{error.code} {origin}: {error}") from error


def write_archive(members: Mapping[str, bytes]) -> bytes:
    """A model.tar.gz of the given members; the same members give the same bytes (no time, no owner, sorted names)."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", compresslevel=6, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w|", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name in sorted(members):
            member = tarfile.TarInfo(name)
            member.size = len(members[name])
            member.mode = 0o644
            archive.addfile(member, io.BytesIO(members[name]))
    return packed.getvalue()
