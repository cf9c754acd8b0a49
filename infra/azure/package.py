"""The one file that is uploaded: a package for a Function App, the release's own archive for a container.

What is checked is that it holds the release; its digests decide what a deployment changes.
"""

import hashlib
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

from infra.release import Release, ReleaseError
from model_code import environment

# The one blob name that a Flex Consumption app looks for in its deployment container.
PACKAGE_BLOB = "released-package.zip"
ARCHIVE_BLOB = "released-model.tar.gz"
_RELEASE_FOLDER = "release/"
_AGAIN = "build it with `ferry package`"


@dataclass(frozen=True)
class ReleaseFile:
    """One file on disk and the blob that it becomes; digests of the whole file, in hex."""

    path: Path
    blob_name: str
    content_type: str
    sha256: str
    md5: str


@dataclass(frozen=True)
class Package(ReleaseFile):
    """The zip that a Function App runs from; `code_sha256` is of everything in it but the release."""

    code_sha256: str


def read_package(path: Path, release: Release) -> Package:
    """Check that `path` is a package of `release`, and digest it. Raises ReleaseError where it is none."""
    try:
        content = path.read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            packed = archive.read(f"{_RELEASE_FOLDER}{environment.RELEASE_FILE}")
    except (OSError, zipfile.BadZipFile, KeyError) as error:
        raise ReleaseError(f"{path}: no package that can be read ({error}); {_AGAIN}") from error
    if packed != release.to_bytes():
        raise ReleaseError(f"{path}: holds another release than {release.release_id}; {_AGAIN}")
    return Package(
        path=path,
        blob_name=PACKAGE_BLOB,
        content_type="application/zip",
        **_digests(content),
        code_sha256=code_sha256(content),
    )


def read_archive(path: Path, release: Release) -> ReleaseFile:
    """Check that `path` is the archive of `release`, byte for byte. Raises ReleaseError where it is not."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ReleaseError(f"{path}: cannot be read ({error.strerror}); make it with `ferry release`") from error
    digests = _digests(content)
    if digests["sha256"] != release.archive.sha256:
        raise ReleaseError(
            f"{path}: sha256 is {digests['sha256']}, the release says {release.archive.sha256}; make it with `ferry release`"
        )
    return ReleaseFile(path=path, blob_name=ARCHIVE_BLOB, content_type="application/gzip", **digests)


def _digests(content: bytes) -> dict[str, str]:
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "md5": hashlib.md5(content, usedforsecurity=False).hexdigest(),
    }


def code_sha256(package: bytes) -> str:
    """sha256 in hex over name, CRC-32 and size of each member of the zip `package` outside its release.

    Another model leaves it as it is, another line of code or another wheel does not: as an app setting it restarts the app
    only where the code changed. The CRCs stand in the zip's directory, so nothing is unpacked; that they are no secure
    digests does no harm, as this secures nothing. Raises zipfile.BadZipFile.
    """
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        code = sorted(
            f"{member.filename}\0{member.CRC}\0{member.file_size}\n"
            for member in archive.infolist()
            if not member.filename.startswith(_RELEASE_FOLDER)
        )
    return hashlib.sha256("".join(code).encode()).hexdigest()
