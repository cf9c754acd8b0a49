"""From the archive of a release to model.onnx and model.json in the model's folder, or to an error and an unchanged folder.

The archive is the one that `ferry release` writes: two plain files and nothing else. So this reads that much of the tar
format and no more: a link, a folder or an extended header is an error and not something to be handled. Standard library
only, because it runs before every start of a replica.
"""

import hashlib
import io
import json
import os
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

from model_code import environment

# model.json: what its reader takes (inference/contract.py); model.onnx: a Function App has 2 GiB of memory, and ONNX Runtime
# holds the file and its weights at the same time.
SIZE_LIMITS = {environment.SIGNATURE_FILE: 8 * 1024 * 1024, environment.MODEL_FILE: 512 * 1024 * 1024}
_PART = ".part"
_CHUNK = 1024 * 1024
_END = bytes(tarfile.BLOCKSIZE)
# After its last member a tar holds zeros, up to a full record of 20 blocks, and two empty blocks before that.
_MAX_PADDING = 20 * tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE
_GZIP = 16 + zlib.MAX_WBITS  # tells zlib to expect gzip's header and checksum
_PACKED_CHUNK = 64 * 1024
# bgzip begins a part every 64 KiB: 4 GiB of them have fewer.
MAX_GZIP_PARTS = 100_000


class ArchiveInvalid(ValueError):
    """The archive is damaged, unsafe, incomplete, or of another release; `code` says which in one word."""

    def __init__(self, message: str, code: str = "ARCHIVE_INVALID") -> None:
        super().__init__(message)
        self.code = code


def gunzip(packed: BinaryIO) -> BinaryIO:
    """What a gzip file holds, to be read forward only; damage raises EOFError, zlib.error or ArchiveInvalid.

    Python's own reader takes the name and the comment of a header, and the zeros behind a part, byte by byte: minutes for a
    few hundred megabytes of them.
    """
    return io.BufferedReader(_Parts(packed), _CHUNK)


class _Parts(io.RawIOBase):
    """The content of one gzip part after another; zlib compares their checksums, and zeros may lie behind each."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed = packed
        self._waiting = b""
        self._parts = 0
        self._part = zlib.decompressobj(_GZIP)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            fresh = self._waiting or self._packed.read(_PACKED_CHUNK)
            if not self._parts or self._part.eof:
                if not fresh:
                    return 0
                self._waiting = fresh.lstrip(b"\0") if self._parts else fresh
                if self._waiting:
                    self._begin_part()
                continue
            content = self._part.decompress(fresh, len(buffer))
            self._waiting = self._part.unconsumed_tail or self._part.unused_data
            if content:
                buffer[: len(content)] = content
                return len(content)
            if not fresh and not self._part.eof:
                raise EOFError("it ends before its last part does")

    def _begin_part(self) -> None:
        if self._parts == MAX_GZIP_PARTS:
            raise ArchiveInvalid(f"more than {MAX_GZIP_PARTS:,} gzip parts; pack it in one", "TOO_LARGE")
        self._parts += 1
        self._part = zlib.decompressobj(_GZIP)


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
        with archive.open("rb") as packed, gunzip(packed) as unpacked:
            while (member := _next_member(unpacked)) is not None:
                if member.name in digests:
                    raise ArchiveInvalid(f"{member.name} stands in it twice")
                digests[member.name] = _write_member(unpacked, member, parts[member.name])
            # To the stream's end, where gzip compares its checksum.
            if any(unpacked.read(_MAX_PADDING)) or unpacked.read(1):
                raise ArchiveInvalid("something follows its last member")
    except (EOFError, zlib.error, tarfile.HeaderError) as error:
        raise ArchiveInvalid(f"no archive that can be read ({error})") from error
    missing = [name for name in parts if name not in digests]
    if missing:
        raise ArchiveInvalid(f"no {' and no '.join(missing)} in it")
    return digests


def _next_member(unpacked: BinaryIO) -> tarfile.TarInfo | None:
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


def _write_member(unpacked: BinaryIO, member: tarfile.TarInfo, part: Path) -> str:
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
