"""Reads the two files of a model out of a model.tar.gz, into memory and without extracting anything.

The artifact comes from a job that ran somebody's code, so it is untrusted: other members are passed over, and a link, a
second file of the same name, a damaged stream or a size past the limits is an error. The headers are walked here and not by
`tarfile`, whose reader believes sizes: it takes an extended header of gigabytes into memory, searches one with regular
expressions that never end (CVE-2024-6232), fills the holes of a sparse file, and takes a broken header for the archive's end.

`ferry.archive` reads with this, too, so that the pipeline's Evaluate step and `ferry release` never judge differently;
`release_archive` reads the same two files from an archive that `ferry release` wrote, far more narrowly and onto the disk.
"""

import io
import re
import reprlib
import tarfile
import zlib
from pathlib import Path
from typing import BinaryIO, NoReturn

from model_code import environment
from model_code.container.release_archive import SIZE_LIMITS, ArchiveInvalid, gunzip

# A training job may leave checkpoints beside the model.
MAX_MEMBERS = 10_000
MAX_UNPACKED = 4 * 2**30
# What pax adds to a member, and of it a name: PATH_MAX.
MAX_EXTENDED = 64 * 1024
MAX_NAME = 4096
_CHUNK = 2**20
_END = bytes(tarfile.BLOCKSIZE)
_PAX_RECORD = re.compile(rb"(\d{1,5}) ([^=]+)=")
_SIZE = re.compile(rb"\d{1,19}")
_NO_TEXT = re.compile("[\x00-\x1f\udc80-\udcff]")


def read_artifact(path: Path) -> dict[str, bytes]:
    """The content of model.json and model.onnx by name. Raises ArchiveInvalid."""
    with path.open("rb") as packed:
        return read_members(packed)


def read_members(packed: BinaryIO, *, exact: bool = False) -> dict[str, bytes]:
    """The same out of an open archive; with `exact`, any other member is an error. Raises ArchiveInvalid."""
    found: dict[str, bytes] = {}
    try:
        with gunzip(packed) as unpacked:
            reader = _Reader(unpacked)
            while (member := reader.next_member()) is not None:
                name = _safe_name(member.name)
                if name not in SIZE_LIMITS:
                    if exact and not (name == "." and member.isdir()):
                        wanted = ", ".join(SIZE_LIMITS)
                        raise ArchiveInvalid(
                            f"{_short(member.name)}; a release holds exactly {wanted}", "UNEXPECTED_MEMBER"
                        )
                    reader.skip(member)
                elif name in found:
                    raise ArchiveInvalid(f"{name} stands in it twice", "DUPLICATE_MEMBER")
                else:
                    found[name] = reader.content(member, name)
            reader.expect_nothing_more()
    except (EOFError, zlib.error, tarfile.HeaderError) as error:
        reason = f"no archive that can be read ({error}); a model.tar.gz as SageMaker packs it is needed"
        raise ArchiveInvalid(reason, _what(packed)) from error
    missing = [name for name in (environment.SIGNATURE_FILE, environment.MODEL_FILE) if name not in found]
    if missing:
        raise ArchiveInvalid(f"no {' and no '.join(missing)} at its root", "MISSING_MEMBER")
    return found


class _Reader:
    """Walks a tar forward, counting what it reads, so that no number in it decides how much memory or time it takes."""

    def __init__(self, unpacked: BinaryIO) -> None:
        self._unpacked = unpacked
        self._left = MAX_UNPACKED
        self._headers = 0

    def next_member(self) -> tarfile.TarInfo | None:
        """The next member, under the name and size that extended headers before it give; None at the archive's end."""
        extended: dict[str, bytes] = {}
        while True:
            block = self._read(tarfile.BLOCKSIZE)
            if block == _END and not extended:
                return None
            self._headers += 1
            if self._headers > MAX_MEMBERS:
                raise ArchiveInvalid(f"more than {MAX_MEMBERS:,} members", "TOO_LARGE")
            member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            if member.size < 0:
                raise tarfile.HeaderError(f"{_short(member.name)} has {member.size} bytes")
            if member.type not in _EXTENSIONS:
                return _named(member, extended)
            given = _EXTENSIONS[member.type](self._extension(member))
            if twice := given.keys() & extended.keys():
                raise tarfile.HeaderError(f"two extended headers give the {min(twice)} of one member")
            extended |= given

    def content(self, member: tarfile.TarInfo, name: str) -> bytes:
        """What a plain file holds."""
        if not member.isreg():
            raise ArchiveInvalid(f"{name} is no plain file", "UNSAFE_MEMBER")
        if member.size > SIZE_LIMITS[name]:
            raise ArchiveInvalid(f"{name} has {member.size} bytes; at most {SIZE_LIMITS[name]}", "TOO_LARGE")
        return self._exactly(member, name)

    def skip(self, member: tarfile.TarInfo) -> None:
        """Go past a member's data; as in `tarfile`, what is known and no file has none."""
        left = member.size if member.isreg() or member.type not in tarfile.SUPPORTED_TYPES else 0
        left += -left % tarfile.BLOCKSIZE
        self._expect_room(left)
        while left:
            left -= len(self._read(min(_CHUNK, left)) or self._cut(member.name))

    def expect_nothing_more(self) -> None:
        """To the stream's end, where gzip compares its checksum: zeros only, as another tool may read on behind them."""
        while block := self._read(_CHUNK):
            if any(block):
                raise ArchiveInvalid("something follows its last member", "CORRUPT_ARCHIVE")

    def _extension(self, member: tarfile.TarInfo) -> bytes:
        if member.size > MAX_EXTENDED:
            raise ArchiveInvalid(f"an extended header of {member.size:,} bytes; at most {MAX_EXTENDED:,}", "TOO_LARGE")
        return self._exactly(member, "an extended header")

    def _exactly(self, member: tarfile.TarInfo, name: str) -> bytes:
        """The data of a member and nothing of its padding; memory grows with what is there and not with what is said."""
        content = io.BytesIO()
        while left := member.size - content.tell():
            content.write(self._read(min(_CHUNK, left)) or self._cut(name, content.tell(), member.size))
        self._read(-member.size % tarfile.BLOCKSIZE)
        return content.getvalue()

    def _read(self, size: int) -> bytes:
        self._expect_room(size)
        self._left -= size
        return self._unpacked.read(size)

    def _expect_room(self, size: int) -> None:
        if size > self._left:
            raise ArchiveInvalid(f"more than {MAX_UNPACKED:,} bytes unpacked", "TOO_LARGE")

    @staticmethod
    def _cut(name: str, after: int = 0, size: int = 0) -> NoReturn:
        where = f"{_short(name)} ends after {after} of {size} bytes" if size else f"it ends inside {_short(name)}"
        raise ArchiveInvalid(where, "CORRUPT_ARCHIVE")


def _long_name(content: bytes) -> dict[str, bytes]:
    return {"path": content.partition(b"\0")[0]}


def _nothing(_: bytes) -> dict[str, bytes]:
    return {}


def _pax(content: bytes) -> dict[str, bytes]:
    """Path and size out of the records "<length> <key>=<value>\\n" of POSIX.1-2001; the others change nothing here."""
    found: dict[str, bytes] = {}
    position = 0
    while position < len(content):
        record = _PAX_RECORD.match(content, position)
        end = position + int(record[1]) if record else position
        if record is None or end <= record.end() or content[end - 1 : end] != b"\n":
            raise tarfile.HeaderError("an extended header that cannot be read")
        key = record[2].decode("ascii", "replace")
        if key.startswith("GNU.sparse."):
            raise ArchiveInvalid("a sparse file is in it; pack it without --sparse", "UNSAFE_MEMBER")
        if key in ("path", "size"):
            found[key] = content[record.end() : end - 1]
        position = end
    return found


def _pax_for_all(content: bytes) -> dict[str, bytes]:
    if found := _pax(content):
        raise ArchiveInvalid(f"an extended header gives every member one {min(found)}", "UNSAFE_MEMBER")
    return {}


def _sparse(_: bytes) -> dict[str, bytes]:
    raise ArchiveInvalid("a sparse file is in it; pack it without --sparse", "UNSAFE_MEMBER")


# What describes the member after it: GNU's long names, and pax under its own letter and Solaris's.
_EXTENSIONS = {
    tarfile.GNUTYPE_LONGNAME: _long_name,
    tarfile.GNUTYPE_LONGLINK: _nothing,
    tarfile.GNUTYPE_SPARSE: _sparse,
    tarfile.XHDTYPE: _pax,
    tarfile.SOLARIS_XHDTYPE: _pax,
    tarfile.XGLTYPE: _pax_for_all,
}


def _named(member: tarfile.TarInfo, extended: dict[str, bytes]) -> tarfile.TarInfo:
    if "path" in extended:
        member.name = extended["path"].decode("utf-8", "surrogateescape")
    if "size" in extended:
        if not _SIZE.fullmatch(extended["size"]):
            raise tarfile.HeaderError(f"{_short(member.name)} has a size that is no number")
        member.size = int(extended["size"])
    return member


def _safe_name(name: str) -> str:
    """The name of a member that stays inside the archive; `./model.onnx` is how `tar -C folder .` writes it."""
    if len(name) > MAX_NAME:
        raise ArchiveInvalid(f"a name of {len(name):,} characters; at most {MAX_NAME:,}", "TOO_LARGE")
    parts = name.removesuffix("/").split("/")
    inner = parts[1:] if parts[0] == "." and len(parts) > 1 else parts
    unsafe = (
        name.startswith("/")
        or "\\" in name
        or (len(name) > 1 and name[1] == ":")
        or any(part in ("", "..") for part in inner)
        or (any(part == "." for part in inner) and inner != ["."])
        or _NO_TEXT.search(name) is not None
    )
    if unsafe:
        raise ArchiveInvalid(f"{_short(name)} could leave its folder; nothing was read from it", "UNSAFE_MEMBER")
    return "/".join(inner)


def _what(packed: BinaryIO) -> str:
    """Damaged, or never an archive: one begins as gzip does, with the header of a tar inside."""
    packed.seek(0)
    if packed.read(2) != b"\x1f\x8b":
        return "NOT_AN_ARCHIVE"
    packed.seek(0)
    try:
        with gunzip(packed) as unpacked:
            tarfile.TarInfo.frombuf(unpacked.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return "NOT_AN_ARCHIVE"
    except (EOFError, zlib.error):
        pass
    return "CORRUPT_ARCHIVE"


def _short(name: str) -> str:
    """A name for a message, as Python writes it: no line breaks, and not a megabyte."""
    return reprlib.repr(name)
