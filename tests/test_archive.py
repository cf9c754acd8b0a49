"""A model artifact is untrusted: whatever an archive holds, nothing is extracted and nothing is guessed.

Four places read one: `ferry release` (and whatever takes a release, which has to hold two members exactly), the pipeline's
Evaluate step in the container, and `fetch` before a container starts on Azure. A fault is shown to all of them.
"""

import gzip
import io
import random
import sys
import tarfile
import tracemalloc
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ferry.archive import ArchiveError, read_archive, write_archive
from model_code.container import artifact, release_archive
from model_code.container.artifact import read_artifact
from model_code.container.release_archive import ArchiveInvalid, lay_down
from model_code.inference.contract import model_json_bytes
from tests.hostile_archives import (
    LOOK_ALIKES,
    UNSAFE_NAMES,
    damaged,
    member,
    packed,
    pax_record,
    raw_header,
    raw_member,
    tar,
)
from tests.serving_models import describe, onnx_bytes

MODEL = onnx_bytes()
DESCRIPTION = describe(MODEL)
GOOD = {"model.json": model_json_bytes(DESCRIPTION), "model.onnx": MODEL}
DAMAGED = damaged(GOOD)

Reader = Callable[[bytes], dict[str, bytes]]


class Sandbox:
    """Folders in which a reader may write nothing, but `fetch` the two files into one of them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.model = root / "base" / "model"
        self.model.mkdir(parents=True)
        (self.model / "model.onnx").write_bytes(b"the model before")
        (root / "canary").write_bytes(b"alive")
        self.before = self.tree()

    def tree(self) -> dict[str, bytes | None]:
        return {str(path): path.read_bytes() if path.is_file() else None for path in self.root.rglob("*")}

    def release(self, raw: bytes) -> dict[str, bytes]:
        return read_archive(raw, "a")

    def exact(self, raw: bytes) -> dict[str, bytes]:
        return read_archive(raw, "a", exact=True)

    def evaluate(self, raw: bytes) -> dict[str, bytes]:
        return read_artifact(self.file(raw))

    def fetch(self, raw: bytes) -> dict[str, bytes]:
        lay_down(self.file(raw), self.model, DESCRIPTION.release_id)
        return {path.name: path.read_bytes() for path in self.model.iterdir()}

    def file(self, raw: bytes) -> Path:
        path = self.root.with_suffix(".tar.gz")
        path.write_bytes(raw)
        return path

    def readers(self) -> dict[str, Reader]:
        return {"release": self.release, "exact": self.exact, "evaluate": self.evaluate, "fetch": self.fetch}


@pytest.fixture
def sandbox(tmp_path: Path) -> Sandbox:
    (tmp_path / "sandbox").mkdir()
    return Sandbox(tmp_path / "sandbox")


def refused(sandbox: Sandbox, raw: bytes, *names: str) -> str:
    """Every reader (or the named ones) refuses, changes nothing and takes little memory; returns what `ferry` says."""
    said = ""
    for name, read in sandbox.readers().items():
        if names and name not in names:
            continue
        tracemalloc.start()
        try:
            with pytest.raises((ArchiveError, ArchiveInvalid)) as refusal:
                read(raw)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 16 * 2**20, name
        assert sandbox.tree() == sandbox.before, name
        message = str(refusal.value)
        assert len(message) < 400, message
        assert message.isprintable(), message
        said = message if name == "release" or not said else said
    return said


def test_the_two_members_are_read_alike_everywhere(sandbox: Sandbox) -> None:
    for name, read in sandbox.readers().items():
        assert read(write_archive(GOOD)) == GOOD, name


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_as_tar_writes_them_from_a_folder_are_read(sandbox: Sandbox, format: int) -> None:
    listed = [member("./", kind=tarfile.DIRTYPE), *[member(f"./{name}", content) for name, content in GOOD.items()]]
    deep = member("checkpoints/" + "x" * 90 + "/" + "y" * 90, b"weights")
    deeper = (
        [] if format == tarfile.USTAR_FORMAT else [member("checkpoints/" + "ż" * 200, b"weights", pax={"mtime": "1.5"})]
    )
    raw = packed(*listed, deep, *deeper, member("latest", kind=tarfile.SYMTYPE, target="deep"), format=format)
    assert sandbox.release(raw) == sandbox.evaluate(raw) == GOOD
    assert sandbox.exact(packed(*listed, format=format)) == GOOD


def test_the_same_members_give_the_same_bytes_in_any_order() -> None:
    assert write_archive(GOOD) == write_archive(dict(reversed(GOOD.items())))


def test_the_order_of_members_and_gzip_in_several_parts_change_nothing(sandbox: Sandbox) -> None:
    backwards = tar(*(member(name, content) for name, content in reversed(GOOD.items())))
    parts = b"".join(gzip.compress(backwards[start : start + 5000]) for start in range(0, len(backwards), 5000))
    for name, read in sandbox.readers().items():
        assert read(parts) == GOOD, name


@pytest.mark.parametrize("name", UNSAFE_NAMES, ids=repr)
def test_m1_a_name_that_leaves_its_folder_is_refused_before_anything_is_written(sandbox: Sandbox, name: bytes) -> None:
    good = [raw_member(key.encode(), content) for key, content in GOOD.items()]
    said = refused(sandbox, gzip.compress(b"".join((*good, raw_member(name, b"x"), bytes(1024))), 1))
    assert said.startswith("UNSAFE_MEMBER a: ")
    for way in (pax_record("path", name.decode("utf-8", "surrogateescape")), name + b"\0"):
        kind = b"x" if way[:1].isdigit() and b"path=" in way else tarfile.GNUTYPE_LONGNAME
        lie = raw_member(b"x", way, kind) + raw_member(b"harmless", b"x")
        refused(sandbox, gzip.compress(b"".join((*good, lie, bytes(1024))), 1))


def test_m1_a_nul_ends_no_name_early(sandbox: Sandbox) -> None:
    first = raw_member(b"model.json", GOOD["model.json"])
    lie = raw_member(b"x", pax_record("path", "model.onnx\0.txt"), b"x") + raw_member(b"y", MODEL)
    said = refused(sandbox, gzip.compress(first + lie + bytes(1024), 1))
    assert said.startswith("UNSAFE_MEMBER a: 'model.onnx\\x00.txt'")


@pytest.mark.parametrize("name", LOOK_ALIKES, ids=lambda name: ascii(name)[:30])
def test_m1_a_name_that_only_looks_like_a_members_is_another_one(sandbox: Sandbox, name: str) -> None:
    raw = packed(member("model.json", GOOD["model.json"]), member(name, MODEL))
    assert refused(sandbox, raw).startswith("MISSING_MEMBER a: no model.onnx")
    both = packed(*(member(key, content) for key, content in GOOD.items()), member(name, b"other"))
    assert sandbox.release(both) == sandbox.evaluate(both) == GOOD
    refused(sandbox, both, "exact", "fetch")


def test_m3_owner_and_mode_of_a_member_mean_nothing(sandbox: Sandbox) -> None:
    members = [member(name, content) for name, content in GOOD.items()]
    for info, _ in members:
        info.mode, info.uid, info.gid, info.uname = 0o7777, 0, 0, "root"
    raw = packed(*members, format=tarfile.USTAR_FORMAT)
    assert sandbox.fetch(raw) == GOOD
    for path in sandbox.model.iterdir():
        assert path.stat().st_mode & 0o7111 == 0, path
    with tarfile.open(fileobj=io.BytesIO(write_archive(sandbox.release(raw)))) as written:
        assert {(info.mode, info.uid, info.gid, info.uname) for info in written} == {(0o644, 0, 0, "")}


@pytest.mark.parametrize("part", range(20))
def test_m5_a_truncated_archive_is_refused_and_leaves_nothing(sandbox: Sandbox, part: int) -> None:
    raw = write_archive(GOOD)
    said = refused(sandbox, raw[: len(raw) * part // 20])
    assert said.startswith("NOT_AN_ARCHIVE a: " if part == 0 else "CORRUPT_ARCHIVE a: ")


def test_m5_a_flipped_bit_is_refused_or_changes_nothing(sandbox: Sandbox) -> None:
    raw = write_archive(GOOD)
    chance = random.Random(20_260_102)
    places = [*range(10), *(len(raw) - place for place in range(1, 9)), *chance.sample(range(len(raw)), 60)]
    for place in places:
        flipped = raw[:place] + bytes([raw[place] ^ 1 << chance.randrange(8)]) + raw[place + 1 :]
        for name, read in sandbox.readers().items():
            try:
                assert read(flipped) == GOOD, (name, place)
            except (ArchiveError, ArchiveInvalid):
                continue


def test_m7_members_that_are_missing_are_named(sandbox: Sandbox) -> None:
    whole = tar(*(member(name, content) for name, content in GOOD.items()))
    first_only = whole[: 512 + len(GOOD["model.json"]) + -len(GOOD["model.json"]) % 512]
    assert refused(sandbox, gzip.compress(first_only)).startswith("CORRUPT_ARCHIVE a: ")
    assert refused(sandbox, gzip.compress(first_only + bytes(1024))) == "MISSING_MEMBER a: no model.onnx at its root"
    assert refused(sandbox, packed(member("readme", b"x"))).startswith(
        "MISSING_MEMBER a: no model.json and no model.onnx"
    )


def test_m8_what_else_a_training_job_left_is_never_read_and_a_release_holds_nothing_else(sandbox: Sandbox) -> None:
    good = [member(name, content) for name, content in GOOD.items()]
    for name in ("inference.py", "code/inference.py", "code/requirements.txt", "sitecustomize.py", "model.onnx.data"):
        raw = packed(*good, member(name, b"raise SystemExit"))
        assert sandbox.release(raw) == sandbox.evaluate(raw) == GOOD
        assert (
            refused(sandbox, raw, "exact")
            == f"UNEXPECTED_MEMBER a: '{name}'; a release holds exactly model.json, model.onnx"
        )
        refused(sandbox, raw, "fetch")


@pytest.mark.parametrize(
    "what", ["empty", "text", "zip", "xz", *[name for name in DAMAGED if name.startswith("gzip of")]]
)
def test_m10_what_is_no_archive_is_said_to_be_none(sandbox: Sandbox, what: str) -> None:
    assert refused(sandbox, DAMAGED[what]()).startswith("NOT_AN_ARCHIVE a: no archive that can be read")


@pytest.mark.parametrize("what", DAMAGED)
def test_a_lying_archive_is_refused_by_every_reader_alike(sandbox: Sandbox, what: str) -> None:
    refused(sandbox, DAMAGED[what]())


def test_m19_a_stream_that_never_ends_is_given_up(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "MAX_UNPACKED", 2 * 2**20)
    whole = tar(*(member(name, content) for name, content in GOOD.items()))
    zeros = bytes(3 * 2**20)
    behind, inside = gzip.compress(whole + zeros, 1), gzip.compress(raw_header(b"x", len(zeros)) + zeros + whole, 1)
    assert refused(sandbox, behind).startswith("TOO_LARGE a: more than 2,097,152 bytes")
    assert refused(sandbox, inside).startswith("TOO_LARGE a: more than 2,097,152 bytes")


def test_m19_an_archive_of_members_without_end_is_given_up(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifact, "MAX_MEMBERS", 100)
    good = [member(name, content) for name, content in GOOD.items()]
    assert sandbox.release(packed(*good, *(member(f"{n}") for n in range(98)))) == GOOD
    assert refused(sandbox, packed(*good, *(member(f"{n}") for n in range(99)))).startswith(
        "TOO_LARGE a: more than 100"
    )
    headers = b"".join(raw_member(b"x", b"y" * n, tarfile.GNUTYPE_LONGLINK) for n in range(1, 102))
    assert refused(sandbox, gzip.compress(headers)).startswith("TOO_LARGE a: more than 100 members")


GZIP_FIELDS = {"name": 8, "comment": 16}


def with_gzip_field(flag: int, field: bytes) -> bytes:
    """The good archive whose gzip header has a field that ends with a NUL."""
    plain = write_archive(GOOD)
    return plain[:3] + bytes([flag]) + plain[4:10] + field + b"\0" + plain[10:]


def calls_of(read: Callable[[], object]) -> int:
    """How many functions and builtins Python calls for it: a measure of work that no busy machine changes."""
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        read()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("field", GZIP_FIELDS)
def test_m19_megabytes_in_a_gzip_header_or_of_zeros_behind_it_cost_no_work_for_each_byte(
    sandbox: Sandbox, field: str
) -> None:
    cheap = calls_of(lambda: sandbox.release(write_archive(GOOD)))
    for raw in (with_gzip_field(GZIP_FIELDS[field], b"n" * 2**20), write_archive(GOOD) + bytes(2**20)):
        for name, read in sandbox.readers().items():
            assert calls_of(partial(read, raw)) < cheap + 1000, name
            assert read(raw) == GOOD, name


def test_m5_a_gzip_header_without_an_end_is_refused(sandbox: Sandbox) -> None:
    for flag in GZIP_FIELDS.values():
        refused(sandbox, with_gzip_field(flag, b"n" * 2**20)[: 2**20])


def test_m19_gzip_in_parts_without_end_is_given_up(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(release_archive, "MAX_GZIP_PARTS", 1000)
    nothing = gzip.compress(b"")
    assert sandbox.release(nothing * 999 + write_archive(GOOD)) == GOOD
    assert "TOO_LARGE a: more than 1,000 gzip parts" in refused(sandbox, nothing * 1000 + write_archive(GOOD))


def test_m19_a_name_longer_than_a_path_is_refused(sandbox: Sandbox) -> None:
    def named(length: int) -> bytes:
        long_name = raw_member(b"././@LongLink", b"a" * length, tarfile.GNUTYPE_LONGNAME) + raw_member(b"x", b"")
        return gzip.compress(long_name + tar(*(member(name, content) for name, content in GOOD.items())))

    assert sandbox.release(named(artifact.MAX_NAME)) == GOOD
    assert "TOO_LARGE a: a name of 4,097 characters" in refused(sandbox, named(artifact.MAX_NAME + 1))


def test_m21_a_pickle_is_passed_over_as_a_hidden_member_and_is_no_model(sandbox: Sandbox) -> None:
    pickle = b"cos\nsystem\n(S'touch canary2'\ntR."
    raw = packed(
        *(member(name, content) for name, content in GOOD.items()), member("model.pt", pickle), member(".p", pickle)
    )
    assert sandbox.release(raw) == sandbox.evaluate(raw) == GOOD
    refused(sandbox, raw, "exact", "fetch")
    refused(sandbox, write_archive(GOOD | {"model.onnx": pickle}), "fetch")
    assert sandbox.tree() == sandbox.before
