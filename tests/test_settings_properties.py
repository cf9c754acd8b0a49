"""Whatever is done to a settings file that was right: it is taken word for word, or refused by the key that is wrong."""

import copy
import datetime
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.settings import ROOT, SettingsError, load_settings
from tests.hosting_variants import VARIANTS

DOCUMENTS = {path.stem: tomllib.loads(path.read_text()) for path in sorted((ROOT / "config").glob("*.toml"))}
# Tables that no shipped file has, so that their keys change, too.
DOCUMENTS |= {
    f"dev with {name}": DOCUMENTS["dev"] | {"hosting": {key: each for key, each in table.items() if each is not None}}
    for name, table in VARIANTS.items()
}
OTHERS = st.one_of(
    st.sampled_from([0, -1, 1, 2**63, 2**200, 0.0, -0.5, 1e308, float("inf"), float("nan"), True, False, "", " ", "0", "1"]),
    st.sampled_from(["ml.m5.large", "eu-west-1", "../..", "a" * 300, "é", "\u0000", "${x}", "{environment}", "[]", "-"]),
    st.sampled_from([[], {}, [{}], [[]], {"a": {}}, [1], ["a", 1], datetime.date(2026, 1, 1), datetime.time(1)]),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.datetimes(timezones=st.just(datetime.UTC)),
)  # fmt: skip
Place = tuple[str | int, ...]


def places(value: Any, here: Place = ()) -> Iterator[Place]:
    """Of every value below `value`, tables and lists included."""
    if here:
        yield here
    if isinstance(value, dict):
        for key, each in value.items():
            yield from places(each, (*here, key))
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from places(each, (*here, index))


def at(document: Any, place: Place) -> Any:
    for part in place:
        document = document[part]
    return document


@st.composite
def changed(draw: st.DrawFn) -> tuple[dict[str, Any], Place]:
    """A document with a change at one place (removed, of another name, doubled, of another value or type), and the names there."""
    document: dict[str, Any] = copy.deepcopy(DOCUMENTS[draw(st.sampled_from(sorted(DOCUMENTS)))])
    place = draw(st.sampled_from(sorted(places(document), key=str)))
    parent, name = at(document, place[:-1]), place[-1]
    kind = draw(st.sampled_from(["remove", "rename", "replace", "add"]))
    if kind == "replace":
        parent[name] = draw(OTHERS)
    elif kind == "remove":
        del parent[name]
    elif isinstance(name, str):
        other = draw(st.sampled_from([name + "s", name[:-1], name.upper(), f" {name}", "", "environment", "tags"]))
        parent[other] = copy.deepcopy(parent[name])
        place = (*place, other)
        if kind == "rename" and other != name:
            del parent[name]
    return document, place


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


@settings(derandomize=True, deadline=None, max_examples=300)
@given(change=changed())
def test_a_changed_file_is_taken_as_it_is_written_or_refused_by_its_key(
    folder: Path, change: tuple[dict[str, Any], Place]
) -> None:
    document, place = change
    path = folder / "changed.toml"
    path.write_text(tomli_w.dumps({"environment": "dev"} | document))
    written = tomllib.loads(path.read_text())
    try:
        found = load_settings(str(path)).model_dump()
    except SettingsError as error:
        message = str(error)
        assert message.startswith(f"{path}:")
        assert len(message) < 4000
        # The key, or where a rule of two keys is broken, the table that it is about.
        assert any((str(part) or "''") in message for part in place), message
    else:
        for each in places(written):
            taken = at(found, each)
            assert isinstance(taken, dict | list | tuple) or taken == at(written, each), each


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    content=st.one_of(
        st.binary(max_size=200), st.text(alphabet="[]{}='\".,#\\\n\r\t ab0-_é\x00", max_size=80).map(str.encode)
    )
)
def test_any_bytes_are_a_settings_file_or_refused_with_their_path(folder: Path, content: bytes) -> None:
    path = folder / "bytes.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as refused:
        load_settings(str(path))
    assert str(refused.value).startswith(f"{path}:")
