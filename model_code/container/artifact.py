"""Reads the two files of a model out of a training job's model.tar.gz, into memory and without extracting anything.

The artifact comes from a job that ran somebody's code, so it is untrusted: other members are passed over, and a link, a
second file of the same name, a damaged stream or a size past the limits is an error. `release_archive` reads the same two
files from an archive that `ferry release` wrote, which holds nothing else and may be read far more narrowly.
"""

import gzip
import tarfile
import zlib
from pathlib import Path

from model_code import environment
from model_code.container.release_archive import SIZE_LIMITS, ArchiveInvalid

_MAX_MEMBERS = 10_000
_MAX_UNPACKED = 4 * 2**30
_CHUNK = 2**20


def read_artifact(path: Path) -> dict[str, bytes]:
    """The content of model.json and model.onnx by name. Raises ArchiveInvalid."""
    found: dict[str, bytes] = {}
    try:
        with gzip.open(path) as unpacked:
            with tarfile.open(fileobj=unpacked, mode="r|") as archive:
                total = 0
                for count, member in enumerate(archive, start=1):
                    total += member.size
                    if count > _MAX_MEMBERS or total > _MAX_UNPACKED:
                        raise ArchiveInvalid(f"more than {_MAX_MEMBERS:,} members or {_MAX_UNPACKED:,} bytes unpacked")
                    name = member.name.removeprefix("./")  # as `tar -C folder .` writes it
                    if name in SIZE_LIMITS:
                        if name in found:
                            raise ArchiveInvalid(f"{name} stands in it twice")
                        found[name] = _read_member(archive, member, name)
            # To the stream's end, where gzip compares its checksum.
            while unpacked.read(_CHUNK):
                pass
    except (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, UnicodeError) as error:
        raise ArchiveInvalid(f"no archive that can be read ({error})") from error
    missing = [name for name in (environment.SIGNATURE_FILE, environment.MODEL_FILE) if name not in found]
    if missing:
        raise ArchiveInvalid(f"no {' and no '.join(missing)} at its root")
    return found


def _read_member(archive: tarfile.TarFile, member: tarfile.TarInfo, name: str) -> bytes:
    if not member.isreg():
        raise ArchiveInvalid(f"{name} is no plain file")
    if member.size > SIZE_LIMITS[name]:
        raise ArchiveInvalid(f"{name} has {member.size} bytes; at most {SIZE_LIMITS[name]}")
    stream = archive.extractfile(member)
    content = stream.read() if stream else b""
    if len(content) != member.size:
        raise ArchiveInvalid(f"{name} ends after {len(content)} of {member.size} bytes")
    return content
