"""Reads and writes model.tar.gz without ever extracting one.

A model artifact comes from a job that ran somebody's code: it is untrusted. Members are read into memory by an allow-list;
nothing is written, linked or executed. Python's own extraction filter is not enough: before 3.11.13 it lets several kinds
of member escape, and no version notices a cut tail or a flipped CRC bit.
"""

import gzip
import io
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import PurePosixPath

from ferry.errors import FerryError
from model_code import environment
from model_code.inference.contract import MAX_MODEL_JSON_BYTES

MEMBERS = (environment.SIGNATURE_FILE, environment.MODEL_FILE)
# model.json: what its reader takes; model.onnx: far more than the memory of a Function App holds.
_SIZE_LIMITS = {environment.SIGNATURE_FILE: MAX_MODEL_JSON_BYTES, environment.MODEL_FILE: 2**31 - 1}
_MAX_UNPACKED = 4 * 2**30
_MAX_MEMBERS = 10_000


class ArchiveError(FerryError):
    """The archive is damaged, unsafe or incomplete."""


def read_archive(raw: bytes, origin: str, *, exact: bool = False) -> dict[str, bytes]:
    """The members that make a release, `model.json` and `model.onnx`, from the bytes of a model.tar.gz.

    Other members are ignored, as a training job may leave more; with `exact` they are refused, as a release has no more.
    `origin` is named in errors. Raises ArchiveError.
    """
    found: dict[str, bytes] = {}
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as unpacked, tarfile.open(fileobj=unpacked, mode="r|") as archive:
            total = 0
            for count, member in enumerate(archive, start=1):
                total += member.size
                if count > _MAX_MEMBERS or total > _MAX_UNPACKED:
                    raise ArchiveError(
                        f"TOO_LARGE {origin}: more than {_MAX_MEMBERS} members or {_MAX_UNPACKED} bytes unpacked"
                    )
                name = _safe_name(member.name, origin)
                if name not in MEMBERS:
                    if exact and not (name == "." and member.isdir()):
                        raise ArchiveError(
                            f"UNEXPECTED_MEMBER {origin}: {member.name!r}; a release holds exactly {', '.join(MEMBERS)}"
                        )
                    continue
                if name in found:
                    raise ArchiveError(f"DUPLICATE_MEMBER {origin}: {name} stands in it twice")
                found[name] = _read_member(archive, member, name, origin)
            # The stream must be read to its end: only there does gzip compare its checksum.
            while unpacked.read(2**20):
                pass
    except (EOFError, zlib.error, tarfile.TarError, gzip.BadGzipFile, UnicodeError, RecursionError) as error:
        code = "NOT_AN_ARCHIVE" if not raw.startswith(b"\x1f\x8b") else "CORRUPT_ARCHIVE"
        raise ArchiveError(f"{code} {origin}: {error}; a model.tar.gz as SageMaker packs it is needed") from error
    missing = [name for name in MEMBERS if name not in found]
    if missing:
        raise ArchiveError(f"MISSING_MEMBER {origin}: no {' and no '.join(missing)} at the archive's root")
    return found


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


def _safe_name(name: str, origin: str) -> str:
    """The normalised name of a member that stays inside the archive; `./model.onnx` is how `tar -C dir .` writes it."""
    parts = name.removesuffix("/").split("/")
    inner = parts[1:] if parts[0] == "." and len(parts) > 1 else parts
    unsafe = (
        name.startswith("/")
        or "\\" in name
        or (len(name) > 1 and name[1] == ":")
        or any(part in ("", "..") for part in inner)
        or (any(part == "." for part in inner) and inner != ["."])
        or any(ord(character) < 32 or 0xDC80 <= ord(character) <= 0xDCFF for character in name)
    )
    if unsafe:
        raise ArchiveError(f"UNSAFE_MEMBER {origin}: {name!r} could leave its folder; nothing was read from it")
    return str(PurePosixPath(*inner))


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str, origin: str) -> bytes:
    if not member.isreg():
        raise ArchiveError(f"UNSAFE_MEMBER {origin}: {name} is no regular file")
    if member.size > _SIZE_LIMITS[name]:
        raise ArchiveError(f"TOO_LARGE {origin}: {name} has {member.size} bytes; at most {_SIZE_LIMITS[name]}")
    stream = archive.extractfile(member)
    content = stream.read() if stream else b""
    if len(content) != member.size:
        raise ArchiveError(f"CORRUPT_ARCHIVE {origin}: {name} ends after {len(content)} of {member.size} bytes")
    return content
