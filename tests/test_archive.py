"""A model artifact is untrusted: whatever an archive holds, nothing is extracted and nothing is guessed."""

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable

import pytest

from ferry.archive import ArchiveError, read_archive, write_archive

GOOD = {"model.json": b"{}", "model.onnx": bytes(range(256)) * 40}


def packed(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def good_members() -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(member(name), content) for name, content in GOOD.items()]


def test_the_two_members_are_read() -> None:
    assert read_archive(write_archive(GOOD), "a") == GOOD


def test_members_as_tar_writes_them_from_a_folder_are_read() -> None:
    names = [(member("./"), b""), *[(member(f"./{name}"), content) for name, content in GOOD.items()]]
    names[0][0].type = tarfile.DIRTYPE
    assert read_archive(packed(*names), "a") == GOOD


def test_the_same_members_give_the_same_bytes_in_any_order() -> None:
    assert write_archive(GOOD) == write_archive(dict(reversed(GOOD.items())))


def test_what_else_a_training_job_left_is_ignored_and_never_read() -> None:
    extra = [(member("code/inference.py"), b"raise SystemExit"), (member("model.pt"), b"\x80\x04.")]
    assert read_archive(packed(*good_members(), *extra), "a") == GOOD


def test_a_release_holds_nothing_else() -> None:
    with pytest.raises(ArchiveError, match=r"UNEXPECTED_MEMBER a: 'code/inference\.py'"):
        read_archive(packed(*good_members(), (member("code/inference.py"), b"")), "a", exact=True)


@pytest.mark.parametrize(
    "name",
    ["../model.onnx", "/etc/passwd", "C:\\x", "C:/x", "a//b", "a/../../b", "a\\b", "./../x", "a/./b", "x\ny", ".."],
)
def test_a_name_that_leaves_its_folder_is_refused(name: str) -> None:
    with pytest.raises(ArchiveError, match="UNSAFE_MEMBER"):
        read_archive(packed(*good_members(), (member(name), b"")), "a")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE])
def test_a_needed_member_must_be_a_regular_file(kind: bytes) -> None:
    with pytest.raises(ArchiveError, match="UNSAFE_MEMBER"):
        read_archive(packed((member("model.json"), b"{}"), (member("model.onnx", kind, "/etc/passwd"), b"")), "a")


def test_a_member_that_stands_twice_is_refused() -> None:
    with pytest.raises(ArchiveError, match="DUPLICATE_MEMBER"):
        read_archive(packed(*good_members(), (member("model.onnx"), b"other")), "a")


def test_missing_members_are_named() -> None:
    with pytest.raises(ArchiveError, match=r"MISSING_MEMBER a: no model\.onnx"):
        read_archive(packed((member("model.json"), b"{}")), "a")


def test_an_archive_cut_after_its_first_members_is_refused() -> None:
    tar = gzip.decompress(write_archive(GOOD))
    with pytest.raises(ArchiveError):
        read_archive(gzip.compress(tar[:1024]), "a")


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_archive_is_refused(position: float) -> None:
    raw = write_archive(GOOD)
    with pytest.raises(ArchiveError):
        read_archive(raw[: int(len(raw) * position)], "a")


def test_a_flipped_bit_in_the_checksum_is_noticed() -> None:
    raw = bytearray(write_archive(GOOD))
    raw[-8] ^= 1
    with pytest.raises(ArchiveError, match="CORRUPT_ARCHIVE"):
        read_archive(bytes(raw), "a")


def plain_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model.onnx", b"x")
    return buffer.getvalue()


@pytest.mark.parametrize("content", [lambda: b"", lambda: b"no archive", plain_zip])
def test_what_is_no_archive_is_said_to_be_none(content: Callable[[], bytes]) -> None:
    with pytest.raises(ArchiveError, match="NOT_AN_ARCHIVE"):
        read_archive(content(), "a")


def test_a_member_that_claims_more_than_the_limit_is_refused_before_it_is_read() -> None:
    info = member("model.json")
    info.size = 2**40
    header = info.tobuf(format=tarfile.GNU_FORMAT)
    with pytest.raises(ArchiveError, match="TOO_LARGE"):
        read_archive(gzip.compress(header), "a")


def test_an_archive_of_zeros_that_unpacks_to_gigabytes_is_refused() -> None:
    info = member("padding.bin")
    info.size = 5 * 2**30
    with pytest.raises(ArchiveError, match="TOO_LARGE"):
        read_archive(gzip.compress(info.tobuf(format=tarfile.GNU_FORMAT)), "a")
