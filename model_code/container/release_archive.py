"""From the archive of a release to model.onnx and model.json in the model's folder, or to an error and an unchanged folder.

The archive is the one that `ferry release` writes: two plain files and nothing else. So this reads that much of the tar
format and no more: a link, a folder or an extended header is an error and not something to be handled. Standard library
only, because it runs before every start of a replica.
"""

import gzip
import hashlib
import json
import os
import tarfile
import zlib
from pathlib import Path

from model_code import environment

# model.json: what its reader takes (inference/contract.py); model.onnx: a Function App has 2 GiB of memory, and ONNX Runtime
# holds the file and its weights at the same time.
SIZE_LIMITS = {environment.SIGNATURE_FILE: 8 * 1024 * 1024, environment.MODEL_FILE: 512 * 1024 * 1024}
_PART = ".part"
_CHUNK = 1024 * 1024
_END = bytes(tarfile.BLOCKSIZE)
# After its last member a tar holds zeros, up to a full record of 20 blocks, and two empty blocks before that.
_MAX_PADDING = 20 * tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE


class ArchiveInvalid(ValueError):
    """The archive is damaged, unsafe, incomplete, or of another release; `code` says which in one word."""

    def __init__(self, message: str, code: str = "ARCHIVE_INVALID") -> None:
        super().__init__(message)
        self.code = code


def lay_down(archive: Path, folder: Path, release_id: str) -> None:
    """Put the model of `release_id` into `folder`, whose files of the same names are replaced.

    Both files are written under other names first, and take their own only when they are complete and known to be that
    release's. Raises ArchiveInvalid.
    """
    parts = {name: folder / f"{name}{_PART}" for name in SIZE_LIMITS}
    try:
        digests = _unpack(archive, parts)
        _check(release_id, parts[environment.SIGNATURE_FILE], digests[environment.MODEL_FILE])
        for name, part in parts.items():
            os.replace(part, folder / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _unpack(archive: Path, parts: dict[str, Path]) -> dict[str, str]:
    """Write each member to its part; returns the sha256 of each, in hex."""
    digests: dict[str, str] = {}
    try:
        with gzip.open(archive) as unpacked:
            while (member := _next_member(unpacked)) is not None:
                if member.name in digests:
                    raise ArchiveInvalid(f"{member.name} stands in it twice")
                digests[member.name] = _write_member(unpacked, member, parts[member.name])
            # To the stream's end, where gzip compares its checksum.
            if any(unpacked.read(_MAX_PADDING)) or unpacked.read(1):
                raise ArchiveInvalid("something follows its last member")
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.HeaderError) as error:
        raise ArchiveInvalid(f"no archive that can be read ({error})") from error
    missing = [name for name in parts if name not in digests]
    if missing:
        raise ArchiveInvalid(f"no {' and no '.join(missing)} in it")
    return digests


def _next_member(unpacked: gzip.GzipFile) -> tarfile.TarInfo | None:
    """The next header, or None at the end. Raises ArchiveInvalid for everything that a release does not hold."""
    block = unpacked.read(tarfile.BLOCKSIZE)
    if block == _END:
        return None
    member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    if member.name not in SIZE_LIMITS:
        raise ArchiveInvalid(f"it holds {member.name!r}; a release holds {' and '.join(SIZE_LIMITS)} only")
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        raise ArchiveInvalid(f"{member.name} is no plain file")
    if not 0 <= member.size <= SIZE_LIMITS[member.name]:
        raise ArchiveInvalid(f"{member.name} has {member.size} bytes; at most {SIZE_LIMITS[member.name]}")
    return member


def _write_member(unpacked: gzip.GzipFile, member: tarfile.TarInfo, part: Path) -> str:
    checksum, missing = hashlib.sha256(), member.size
    with part.open("wb") as file:
        while missing:
            chunk = unpacked.read(min(_CHUNK, missing))
            if not chunk:
                raise ArchiveInvalid(f"{member.name} ends after {member.size - missing} of {member.size} bytes")
            checksum.update(chunk)
            file.write(chunk)
            missing -= len(chunk)
    unpacked.read(-member.size % tarfile.BLOCKSIZE)
    return checksum.hexdigest()


def _check(release_id: str, signature: Path, onnx_sha256: str) -> None:
    """The id of a release is `<model>-<first 12 hex digits of the sha256 of model.onnx>`."""
    try:
        description = json.loads(signature.read_bytes())
        model, declared = description["model"], description["onnx"]["sha256"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveInvalid(f"{environment.SIGNATURE_FILE} does not describe a model ({error!r})") from error
    if onnx_sha256 != declared:
        raise ArchiveInvalid(
            f"sha256 of {environment.MODEL_FILE} is {onnx_sha256}; {environment.SIGNATURE_FILE} says {declared}"
        )
    found = f"{model}-{onnx_sha256[:12]}"
    if found != release_id:
        raise ArchiveInvalid(f"it is release {found}; {environment.RELEASE_ID} says {release_id}")
