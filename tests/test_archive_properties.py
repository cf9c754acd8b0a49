"""For any archive and any manifest: the right answer or the documented error, and never anything else.

The examples are the same on every machine (derandomized), so a failure here is one for everybody.
"""

import gzip
import json
import re
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from ferry.archive import ArchiveError, read_archive
from infra.release import MAX_RELEASE_BYTES, ReleaseError, parse_release
from model_code.container.artifact import read_artifact
from model_code.container.release_archive import ArchiveInvalid, lay_down
from model_code.inference.contract import model_json_bytes, parse_model_json
from model_code.inference.errors import ModelInvalid
from tests.hostile_archives import Member, member, pax_record, raw_member, tar
from tests.serving_models import describe, onnx_bytes
from tests.stack_fixtures import dev_settings, make_release

WANTED = ("model.json", "model.onnx")
RELEASE = make_release(dev_settings()).to_bytes()
MODEL_JSON = model_json_bytes(describe(onnx_bytes()))
KINDS = [tarfile.REGTYPE] * 6 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE]

few = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

names = st.sampled_from((*WANTED, "./model.json", "./model.onnx")) | st.sampled_from(
    ("code/inference.py", "Model.onnx", "../model.onnx", "/model.json", "a//b", "a\\b", "C:x", "ż" * 60, "x" * 150, ".")
)
contents = st.binary(max_size=40) | st.integers(0, 3000).map(bytes)


@st.composite
def listed(draw: st.DrawFn) -> list[Member]:
    """Members in an order of their own; often the two that are wanted are among them."""
    found = [
        member(draw(names), content if kind == tarfile.REGTYPE else b"", kind, "/etc/passwd")
        for kind, content in draw(st.lists(st.tuples(st.sampled_from(KINDS), contents), max_size=3))
    ]
    if draw(st.booleans()):
        found += [member(name, draw(contents)) for name in WANTED]
    return list(draw(st.permutations(found)))


def expected(members: list[Member]) -> dict[str, bytes] | None:
    """What a reader has to find, told from the list and not from the archive; None where it has to refuse."""
    found: dict[str, bytes] = {}
    for info, content in members:
        if info.name in ("../model.onnx", "/model.json", "a//b", "a\\b", "C:x"):
            return None
        name = info.name.removeprefix("./")
        if name in WANTED:
            if name in found or not info.isreg():
                return None
            found[name] = content
    return found if len(found) == 2 else None


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model in it, and beside it the archive."""
    folder = tmp_path_factory.mktemp("scratch") / "model"
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"the model before")
    return folder


def answers(raw: bytes, scratch: Path) -> list[dict[str, bytes] | None]:
    """What the two readers of artifacts find, None for the documented error; nothing but the archive itself is written."""
    archive = scratch.parent / "model.tar.gz"
    archive.write_bytes(raw)
    before = sorted(path.name for path in scratch.parent.rglob("*"))
    found: list[dict[str, bytes] | None] = []
    said: list[str] = []
    tracemalloc.start()
    try:
        for name in ("release", "evaluate"):
            try:
                found.append(read_archive(raw, "a") if name == "release" else read_artifact(archive))
            except (ArchiveError, ArchiveInvalid) as error:
                found.append(None)
                said.append(str(error))
        with pytest.raises(ArchiveInvalid):
            lay_down(archive, scratch, "mnist-000000000000")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    assert all(message.isprintable() and len(message) < 400 for message in said), said
    assert sorted(path.name for path in scratch.parent.rglob("*")) == before
    assert (scratch / "model.onnx").read_bytes() == b"the model before"
    return found


@few
@given(
    members=listed(),
    format=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    cut=st.data(),
)
def test_what_is_read_is_what_was_packed_or_is_refused(
    scratch: Path, members: list[Member], format: int, cut: st.DataObject
) -> None:
    whole = tar(*members, format=format)
    split = cut.draw(st.integers(0, len(whole)))
    raw = gzip.compress(whole[:split], 1) + gzip.compress(whole[split:], 1)
    assert answers(raw, scratch) == [expected(members)] * 2


@few
@given(
    members=listed(), edits=st.lists(st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=12)), max_size=4)
)
def test_a_tar_with_any_bytes_overwritten_gives_members_that_stand_in_it_or_is_refused(
    scratch: Path, members: list[Member], edits: list[tuple[int, bytes]]
) -> None:
    edited = bytearray(tar(*members))
    for place, content in edits:
        place %= len(edited)
        edited[place : place + len(content)] = content
    first, second = answers(gzip.compress(bytes(edited), 1), scratch)
    assert first == second
    for content in (first or {}).values():
        assert content in edited


@few
@given(
    records=st.lists(
        st.builds(
            pax_record,
            st.sampled_from(
                ["path", "size", "linkpath", "GNU.sparse.name", "GNU.sparse.realsize", "hdrcharset", "comment"]
            ),
            st.sampled_from(["model.onnx", "model.json", "../x", "-1", "0", "512", "9" * 30, "BINARY", ""]),
        )
        | st.binary(max_size=30),
        max_size=3,
    ),
    kind=st.sampled_from([b"x", b"g", b"X", b"L", b"K"]),
    content=contents,
)
def test_no_extended_header_makes_up_a_member(scratch: Path, records: list[bytes], kind: bytes, content: bytes) -> None:
    described = raw_member(b"model.json", b"{}")
    raw = described + raw_member(b"x", b"".join(records), kind) + raw_member(b"y", content) + bytes(1024)
    first, second = answers(gzip.compress(raw, 1), scratch)
    assert first == second
    if first is not None:
        assert first["model.json"] == b"{}"
        assert content.startswith(first["model.onnx"])


@few
@given(raw=st.binary(max_size=400), place=st.integers(0, 2**12), flipped=st.integers(1, 255))
def test_any_bytes_and_any_damage_of_the_gzip_end_in_the_documented_error(
    scratch: Path, raw: bytes, place: int, flipped: int
) -> None:
    assert answers(raw, scratch) == [None, None]
    assert answers(b"\x1f\x8b\x08\x00" + raw, scratch) == [None, None]
    good = {"model.json": b"{}", "model.onnx": raw}
    damaged = bytearray(gzip.compress(tar(*(member(name, content) for name, content in good.items())), 1))
    damaged[place % len(damaged)] ^= flipped
    first, second = answers(bytes(damaged), scratch)
    assert first == second
    assert first in (good, None)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["a/b", "~", "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


def places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a document holds something."""
    found = [place]
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        found += places(each, (*place, key))
    return found


@st.composite
def edited(draw: st.DrawFn, good: bytes) -> bytes:
    """The good document after an edit: a value replaced, a key removed, renamed, added or doubled; or its text damaged."""
    document = json.loads(good)
    *way, last = draw(st.sampled_from(places(document)[1:]))
    holder = document
    for key in way:
        holder = holder[key]
    match draw(st.sampled_from(["replace", "remove", "add", "double", "damage"])):
        case "replace":
            holder[last] = draw(values)
        case "remove":
            del holder[last]
        case "add" if isinstance(holder, dict):
            holder[draw(st.text(max_size=12) | st.just("a/b~\n"))] = draw(values)
        case "double" if isinstance(holder, dict):
            text = json.dumps(document)
            return text.replace(f'"{last}": ', f'"{last}": 1, "{last}": ', 1).encode()
        case "damage":
            place = draw(st.integers(0, len(good)))
            return good[:place] + draw(st.binary(max_size=4)) + good[place + draw(st.integers(0, 4)) :]
    return json.dumps(document).encode()


@few
@given(raw=edited(RELEASE))
def test_m13_a_release_json_is_read_or_refused_with_the_pointer_of_what_is_wrong(raw: bytes) -> None:
    assume(len(raw) <= MAX_RELEASE_BYTES)
    complaints: list[str] = []
    try:
        release = parse_release(raw, "release.json")
        # What is accepted says the same after it was written again, and is accepted again.
        assert parse_release(release.to_bytes(), "release.json") == release
    except ReleaseError as error:
        complaints = str(error).splitlines()
    for complaint in complaints:
        assert re.match(r"release\.json: /.*?: \S", complaint), complaint
        assert len(complaint) < 500, complaint


@few
@given(raw=edited(MODEL_JSON))
def test_m13_a_model_json_is_read_or_refused_with_the_pointer_of_what_is_wrong(raw: bytes) -> None:
    complaint = ""
    try:
        again = model_json_bytes(parse_model_json(raw))
        assert model_json_bytes(parse_model_json(again)) == again
    except ModelInvalid as error:
        complaint = str(error)
    assert not complaint or re.match(r"model\.json: (/.*|not strict JSON in UTF-8): ", complaint, re.DOTALL)
    assert len(complaint) < 1000
