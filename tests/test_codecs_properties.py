"""The decoders against an oracle that is slow and obviously right: the standard library, numpy and Pillow.

Both ways: what the oracle takes is taken, with float32 values that are equal bit for bit; what it does not is refused with a
documented error, and never with anything else.
"""

import io
import json
import math
import re
import struct
import zlib
from dataclasses import dataclass
from random import Random
from typing import Any, NoReturn

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from model_code.inference import codecs, json_body
from model_code.inference.codecs import CSV, DECODERS, JSON, JSON_LINES, NPY, PNG
from model_code.inference.contract import Golden, Preprocessing, Signature, TensorSpec
from model_code.inference.errors import RequestError
from model_code.inference.preprocess import normalise

MOST = 4  # instances
CLASSES = 2


def signature(*sizes: int) -> Signature:
    """Of a model whose inputs are (n, *sizes)."""
    rng = np.random.default_rng(0)
    return Signature(
        input=TensorSpec("input", (None, *sizes), "float32"),
        output=TensorSpec("output", (None, CLASSES), "float32"),
        activation="logits",
        preprocessing=Preprocessing(1 / 255, (0.25,) * sizes[0], (0.5,) * sizes[0]),
        labels=tuple(range(CLASSES)),
        response_key="labels",
        golden=Golden(rng.normal(size=(1, *sizes)).astype(np.float32), np.zeros((1, CLASSES), np.float32)),
    )


TABLE, IMAGE, COLOUR = signature(3), signature(1, 2, 3), signature(3, 2, 2)
SIGNATURES = st.sampled_from([TABLE, IMAGE, COLOUR])


def found(media_type: str, body: bytes, model: Signature) -> tuple[NDArray[np.float32], bool] | str:
    """What the decoder makes of a body, or the code of its refusal; any other exception is the test's failure."""
    try:
        batch = DECODERS[media_type](body, model, MOST)
    except RequestError as error:
        return error.code
    assert batch.inputs.dtype == np.float32
    assert batch.inputs.flags.c_contiguous
    return batch.inputs, batch.probabilities


def expect(media_type: str, body: bytes, model: Signature, expected: tuple[NDArray[np.float32], bool] | None) -> None:
    """`expected` is None where the oracle takes nothing."""
    answer = found(media_type, body, model)
    if expected is None or isinstance(answer, str):
        assert isinstance(answer, str), "the oracle refuses it"
        assert expected is None, f"the oracle takes it, the decoder says {answer}"
    else:
        assert answer[0].shape == expected[0].shape
        assert answer[0].tobytes() == expected[0].tobytes()
        assert answer[1] == expected[1]


def properties(examples: int) -> settings:
    return settings(
        max_examples=examples, derandomize=True, deadline=None, database=None, suppress_health_check=[*HealthCheck]
    )


each_length = pytest.mark.parametrize("examples", [200, pytest.param(5_000, marks=pytest.mark.slow)])


@pytest.fixture(params=["compiled", "general"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the compiled library and without it: nobody may tell from an answer which of them it was."""
    if request.param == "general":
        monkeypatch.setattr(json_body, "read_arrays", lambda *arguments, **options: None)
        monkeypatch.setattr(codecs, "all_finite", lambda *arguments: False)


# The oracle


class Refused(Exception):
    """The oracle does not take it."""


def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({key for key, _ in items}) != len(items):
        raise Refused
    for key, _ in items:
        key.encode()  # half a surrogate pair is no text
    return dict(items)


def refuse(text: str) -> NoReturn:
    raise Refused


def whole(text: str) -> int:
    if len(text) > 20 or not -(2**63) <= int(text) < 2**64:
        raise Refused
    # As every reader of doubles: 0 has no sign in a whole number, and no more digits than a double has.
    return int(text)


def strictly(body: bytes) -> Any:
    """JSON as its standard has it: UTF-8, no mark, no constants, no key twice, whole numbers of 64 bits."""
    try:
        return json.loads(body.decode("utf-8"), object_pairs_hook=pairs, parse_constant=refuse, parse_int=whole)
    except (ValueError, RecursionError) as error:
        raise Refused from error


def numbers(value: Any) -> NDArray[np.float64]:
    """Nested lists of numbers as an array, every list of a level as long as the others."""

    def check(node: Any) -> None:
        if isinstance(node, list):
            for each in node:
                check(each)
        elif type(node) not in (int, float) or not math.isfinite(node):
            raise Refused

    check(value)
    try:
        return np.array(value, dtype=np.float64)
    except ValueError as error:  # ragged
        raise Refused from error


def to_float32(values: NDArray[np.float64]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32)
    if not np.isfinite(rounded).all():
        raise Refused
    return rounded


def inputs_of(document: Any, model: Signature, *, batch: bool) -> tuple[NDArray[np.float32], bool]:
    sizes = model.input.shape[1:]
    keys = set(document) if isinstance(document, dict) else set()
    if keys - {"probabilities"} not in ({"data"}, {"images"}) or type(document.get("probabilities", False)) is not bool:
        raise Refused
    key = (keys - {"probabilities"}).pop()
    if not isinstance(document[key], list):
        raise Refused
    values = numbers(document[key] if batch else [document[key]])
    if key == "images" and len(sizes) == 3:
        if sizes[0] == 1 and values.shape[1:] == sizes[1:]:
            values = values[:, None]
        if values.shape[1:] != sizes or not 0 < len(values) <= MOST or values.min() < 0 or values.max() > 255:
            raise Refused
        return normalise(values, model.preprocessing), document.get("probabilities", False)
    if key == "images" or values.shape[1:] != sizes or not 0 < len(values) <= MOST:
        raise Refused
    return to_float32(values), document.get("probabilities", False)


def oracle_json(body: bytes, model: Signature) -> tuple[NDArray[np.float32], bool] | None:
    try:
        return inputs_of(strictly(body), model, batch=True)
    except Refused:
        return None


def oracle_lines(body: bytes, model: Signature) -> tuple[NDArray[np.float32], bool] | None:
    lines = body.removesuffix(b"\n").split(b"\n")
    try:
        read = [inputs_of(strictly(line), model, batch=False) for line in lines]
    except Refused:
        return None
    if len(read) > MOST or len({probabilities for _, probabilities in read}) > 1:
        return None
    return np.concatenate([values for values, _ in read]), read[0][1]


_CSV_NUMBER = re.compile(rb"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def oracle_csv(body: bytes, model: Signature) -> tuple[NDArray[np.float32], bool] | None:
    rows = [row.removesuffix(b"\r").split(b",") for row in body.removesuffix(b"\n").split(b"\n")]
    sizes = model.input.shape[1:]
    if len(rows) > MOST or any((len(row),) != sizes for row in rows):
        return None
    if not all(_CSV_NUMBER.fullmatch(cell) for row in rows for cell in row):
        return None
    try:
        return to_float32(np.array([[float(cell) for cell in row] for row in rows])), False
    except Refused:
        return None


def oracle_npy(body: bytes, model: Signature) -> tuple[NDArray[np.float32], bool] | None:
    """numpy.load, for the five types that are taken and nothing behind the array."""
    stream = io.BytesIO(body)
    try:
        values = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=10_000)
    except Exception:
        return None
    sizes = model.input.shape[1:]
    if stream.read() or not values.ndim or not 0 < len(values) <= MOST:
        return None
    if values.dtype == np.uint8 and len(sizes) == 3:
        values = values[:, None] if sizes[0] == 1 and values.shape[1:] == sizes[1:] else values
        return (normalise(values, model.preprocessing), False) if values.shape[1:] == sizes else None
    if values.dtype.kind != "f" or values.dtype.itemsize not in (4, 8) or values.shape[1:] != sizes:
        return None
    try:
        return np.ascontiguousarray(to_float32(values.astype(np.float64))), False
    except Refused:
        return None


# What is sent

_EXPONENTS = st.builds("{}{}{}".format, st.sampled_from("eE"), st.sampled_from(["", "+", "-"]), st.integers(0, 50))
_DECIMALS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "-"]),
    st.one_of(st.just("0"), st.integers(1, 10**25).map(str)),
    st.one_of(st.just(""), st.text(st.sampled_from("0123456789"), min_size=1, max_size=25).map(".{}".format)),
    st.one_of(st.just(""), _EXPONENTS),
)
# Where float32, float64 and whole numbers end, and where a reader that rounds twice would be seen.
_EDGES = st.sampled_from(
    [
        "-0",
        "-0.0",
        "0e5",
        "1e-400",
        "-1e-46",
        "1.4e-45",
        "7.006492321624085e-46",
        "7.00649232162408535461864791644958e-46",
        "3.4028234663852886e38",
        "3.4028235677973362e38",
        "3.4028235677973366e38",
        "3.5e38",
        "1e308",
        "1e309",
        "-1e400",
        "9007199254740993",
        "18446744073709551615",
        "18446744073709551616",
        "-9223372036854775808",
        "-9223372036854775809",
        "1.00000005960464477539062",
        "16777217",
        "0.1",
        "1E+2",
        "255",
        "255.0000001",
        "256",
        "-1e-5",
        "1000000000000000000000000000000",
    ]
)
_STRANGE = st.sampled_from(
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "nan",
        "01",
        "+1",
        ".5",
        "5.",
        "1e",
        "--1",
        "0x1",
        "1_0",
        "1 2",
        "\u0663",
        "",
        "null",
        "true",
        '"1"',
        '"\\ud800"',
        "{}",
        '{"[":1}',
        "[]",
        "[1]",
    ]
)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False).map(repr)
_FLOATS_32 = st.floats(width=32, allow_nan=False, allow_infinity=False).map(repr)
_GOOD_NUMBERS = st.one_of(st.integers(0, 255).map(str), _FLOATS_32, _FLOATS_32, _FLOATS, _DECIMALS)
_PIXELS = st.one_of(st.integers(0, 255).map(str), st.floats(0, 255).map(repr))
_NUMBERS = st.one_of(_GOOD_NUMBERS, _EDGES, _STRANGE)


@dataclass(frozen=True)
class Writer:
    """Writes nested arrays in one of many ways; which, `random` decides, for a seed that hypothesis chose."""

    random: Random
    pool: list[str]
    ragged: bool

    def space(self) -> str:
        return self.random.choice(("", "", "", " ", "\t", "\n", "\r", " \r\n\t "))

    def arrays(self, sizes: tuple[int, ...]) -> str:
        """Of these sizes, with white space anywhere; where `ragged`, one or the other holds more or less than it should."""
        if not sizes:
            return self.random.choice(self.pool)
        size = max(0, sizes[0] + (self.random.choice([0] * 20 + [-1, 1]) if self.ragged else 0))
        items = [self.space() + self.arrays(sizes[1:]) + self.space() for _ in range(size)]
        return f"[{','.join(items)}]"


_SEEDS = st.integers(0, 2**32).map(Random)
_KEYS = ['"data"'] * 6 + ['"images"'] * 4 + ['"d\\u0061ta"', '"\\u0069mages"', '"Data"', '""', '"data\\u0000"']
_OTHER_FIELDS = ['"probabilities":true', '"probabilities" : false'] * 4 + [
    '"probabilities":1',
    '"probabilities":null',
    '"probabilities":true,"probabilities":true',
    '"data":[]',
    '"images":[[]]',
    '"x":{"y":NaN}',
]


@st.composite
def objects(draw: st.DrawFn, sizes: tuple[int, ...]) -> str:
    """An object with a key for the numbers, and now and then with more than it should have."""
    random, calm = draw(_SEEDS), draw(st.booleans())
    key = random.choice(_KEYS[:10] if calm else _KEYS)
    good = _PIXELS if "mages" in key else _GOOD_NUMBERS
    writer = Writer(random, draw(st.lists(good if calm else _NUMBERS, min_size=1, max_size=4)), ragged=not calm)
    fields = [f"{key}{writer.space()}:{writer.space()}{writer.arrays(sizes)}"]
    if random.random() < 0.3:
        fields.append(random.choice(_OTHER_FIELDS[:2] if calm else _OTHER_FIELDS))
    random.shuffle(fields)
    return f"{writer.space()}{{{writer.space()}{','.join(fields)}{writer.space()}}}{writer.space()}"


def sizes_of(model: Signature) -> st.SearchStrategy[tuple[int, ...]]:
    """Those of one instance, now and then without its channel or with something else wrong."""
    sizes = tuple(size for size in model.input.shape if size is not None)
    return st.sampled_from([sizes] * 12 + [sizes[1:] or (1,)] * 2 + [(*sizes, 1), (2, *sizes), (math.prod(sizes),)])


@st.composite
def rearranged(draw: st.DrawFn) -> tuple[Signature, bytes]:
    """A good body of which a few bytes of structure stand elsewhere: the counts are right, and only the places are wrong."""
    model = draw(SIGNATURES)
    sizes = tuple(size for size in model.input.shape if size is not None)
    key = draw(st.sampled_from(['"data"', '"images"', '"da ta"', '"1data"', '"d\\u0061ta"', '"data[]"', '"[[["']))
    numbers = st.sampled_from(["1", "1.0", "1E0", "-0", "0.5", "255", "1e-400", "1e39", "[1]", "[]", "1,2", ""])
    pool = draw(st.lists(st.one_of(st.just("1"), numbers), min_size=1, max_size=3))
    writer = Writer(draw(_SEEDS), pool, ragged=False)
    others = ["", "", "", ',"probabilities":true', ',"probabi lities":true', ',"data":5', ',"probabilities":[1]']
    characters = list(f"{{{key}:{writer.arrays((draw(st.integers(1, 2)), *sizes))}{draw(st.sampled_from(others))}}}")
    places = [place for place, character in enumerate(characters) if character in "[],"]
    for _ in range(draw(st.integers(0, 2))):
        one, other = draw(st.sampled_from(places)), draw(st.sampled_from(places))
        characters[one], characters[other] = characters[other], characters[one]
    if draw(st.booleans()):
        moved = characters.pop(draw(st.sampled_from(places)))
        characters.insert(draw(st.integers(0, len(characters))), moved)
    return model, "".join(characters).encode()


_COUNTS = st.sampled_from([1, 2, 3, MOST] * 3 + [0, MOST + 1])


@st.composite
def damaged(draw: st.DrawFn, good: st.SearchStrategy[bytes]) -> bytes:
    """Mostly as it is; else cut off, or with other bytes in it or behind it."""
    body = draw(good)
    kind = draw(st.sampled_from(["as it is"] * 6 + ["cut", "other", "more"]))
    if kind == "cut":
        return body[: draw(st.integers(0, len(body)))]
    if kind == "other" and body:
        place = draw(st.integers(0, len(body) - 1))
        return body[:place] + draw(st.binary(min_size=1, max_size=2)) + body[place + 1 :]
    return body + draw(st.binary(max_size=3)) if kind == "more" else body


@st.composite
def json_requests(draw: st.DrawFn) -> tuple[Signature, bytes]:
    model = draw(SIGNATURES)
    return model, draw(damaged(objects((draw(_COUNTS), *draw(sizes_of(model)))).map(str.encode)))


@st.composite
def line_requests(draw: st.DrawFn) -> tuple[Signature, bytes]:
    model = draw(SIGNATURES)
    # White space in a line is anything but its end.
    lines = [draw(objects(draw(sizes_of(model)))).replace("\n", " ") for _ in range(draw(st.integers(1, 3)))]
    lines += draw(st.sampled_from([[]] * 9 + [[""], lines * 2]))
    end = draw(st.sampled_from(["\n", "\r\n"]))
    body = end.join(lines) + draw(st.sampled_from(["", end]))
    return model, draw(damaged(st.just(body.encode())))


@st.composite
def csv_requests(draw: st.DrawFn) -> tuple[Signature, bytes]:
    random, calm = draw(_SEEDS), draw(st.booleans())
    pool = draw(st.lists(_GOOD_NUMBERS if calm else _NUMBERS, min_size=1, max_size=4))
    widths = [3] if calm else [3] * 12 + [2, 4]
    rows = [",".join(random.choices(pool, k=random.choice(widths))) for _ in range(draw(_COUNTS))]
    end = random.choice(["\n", "\r\n"])
    return TABLE, draw(damaged(st.just((end.join(rows) + random.choice(["", end])).encode())))


@st.composite
def npy_requests(draw: st.DrawFn) -> tuple[Signature, bytes]:
    model = draw(SIGNATURES)
    random, sizes = draw(_SEEDS), (draw(_COUNTS), *draw(sizes_of(model)))
    dtype = random.choice(["<f4", ">f4", "<f8", ">f8", "|u1"] * 3 + ["<f2", "<i4", "<i8", "|b1", "<c8", "<U1"])
    kind = (
        st.floats(width=32, allow_nan=False, allow_infinity=False)
        if dtype in ("<f4", ">f4")
        else st.floats(-1e38, 1e38)
    )
    kind = (
        st.one_of(kind, kind, kind, st.sampled_from([0.0, -0.0, math.nan, math.inf, -math.inf]))
        if random.random() < 0.3
        else kind
    )
    pool = draw(st.lists(kind if dtype[1] == "f" and dtype != "<f2" else st.integers(0, 255), min_size=1, max_size=4))
    if dtype in ("<f8", ">f8") and random.random() < 0.2:
        pool.append(random.choice([1e39, -1e39, 3.4028235677973362e38, 3.4028235677973366e38]))
    array = np.array(random.choices(pool, k=math.prod(sizes))).astype(dtype).reshape(sizes)
    stream = io.BytesIO()
    ordered = np.asfortranarray(array) if random.random() < 0.5 else array
    np.lib.format.write_array(stream, ordered, version=random.choice([(1, 0), (2, 0), (3, 0)]))
    return model, draw(damaged(st.just(stream.getvalue())))


# Both ways


@each_length
@pytest.mark.usefixtures("reader")
def test_json_is_read_as_the_standard_library_reads_it(examples: int) -> None:
    @properties(examples)
    @given(json_requests())
    @example((TABLE, b'{"data":[[1E+2,-0.0,1.0e-5]]}'))
    @example(
        (TABLE, b'\t{\r\n "probabilities" : true ,"data"\n:[ [ -0,18446744073709551615 , 3.4028235677973362e38 ] ]}\n')
    )
    @example((TABLE, b'{"data":[[1,2,3.4028235677973366e38]]}'))
    @example((IMAGE, b'{"images":[[[0,1,2],[3.5,4,255]]]}'))
    @example((IMAGE, b'{"data":[[[[1,2,3],[4,5]],[6]]]}'))
    def run(request: tuple[Signature, bytes]) -> None:
        expect(JSON, request[1], request[0], oracle_json(request[1], request[0]))

    run()


ONE = signature(1)  # [] and [1] look alike without their numbers


@each_length
@pytest.mark.usefixtures("reader")
def test_no_structure_but_the_right_one_is_taken_for_it(examples: int) -> None:
    @properties(examples)
    @given(rearranged())
    @example((ONE, b'{"data":[[1],[]]}'))
    @example((ONE, b'{"data":[[1],[[]]]}'))
    @example((ONE, b'{"data":[[],[1]]}'))
    @example((ONE, b'{"data":[[]]}'))
    @example((ONE, b'{"data":[[1],[2]]}'))
    @example((TABLE, b'{"data":[[1,2],[3,4,5,6]]}'))
    @example((TABLE, b'{"data":[[1,[],2],[3,4,5]]}'))
    @example((TABLE, b'{"data":[[1,2,3],4]}'))
    @example((TABLE, b'{"da[[1,2,3]]ta":1}'))
    @example((TABLE, b'{"da[[,,]]ta":1}'))
    @example((TABLE, b'{"da-ta":[[1,2,3]]}'))
    @example((TABLE, b'{"data":[[1,2,3]],"probabilitis":true}'))
    @example((TABLE, b'{"data":7,"probabilities[[1,2,3]]":true}'))
    @example((TABLE, b'{"probabilities":true,"data":[[1,2,3]]}'))
    @example((TABLE, b'{"probabilities":[[1,2,3]],"data":true}'))
    @example((TABLE, b'{"data":[[1,2,3]],"data":[[1,2,3]]}'))
    @example((TABLE, b'{"images":[[1,2,3]]}'))
    @example((TABLE, b'{"data":[[1,2,1e39]]}'))
    @example((TABLE, b'{"data":[[1,2,"3"]]}'))
    @example((TABLE, b'{"data":[[1,2,{"":3}]]}'))
    @example((TABLE, b'{"data":[[1,2,18446744073709551616]]}'))
    @example((IMAGE, b'{"data":[[[[1,2],[3,4],[5,6]]]]}'))
    @example((IMAGE, b'{"images":[[[1,2,3]],[[4,5,6]]]}'))
    def run(request: tuple[Signature, bytes]) -> None:
        expect(JSON, request[1], request[0], oracle_json(request[1], request[0]))

    run()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b'{"images":[[]],"images":[[1,2,3]]}', "DUPLICATE_KEY"),
        (b'{"images":[[1,2,3]],"probabilities":[1]}', "BAD_DTYPE"),
        (b'{"imag es":[[1,2,3]]}', "BAD_FIELD"),
        (b'{"images":[[1,2,3]]}', "BAD_FIELD"),
        (b'{"data":[[1,2,3]],"probabilities":true,"data":[[1,2,3]]}', "DUPLICATE_KEY"),
        (b'{"data":[[1,2,3],[1,2,3],[1,2,3],[1,2,3],[1,2,3]]}', "TOO_MANY_INSTANCES"),
    ],
)
def test_a_body_that_looks_right_at_its_ends_is_refused_for_what_is_between_them(body: bytes, code: str) -> None:
    assert found(JSON, body, TABLE) == code


@pytest.mark.parametrize("where", range(7))
def test_white_space_may_stand_around_everything_however_much_it_is(where: int) -> None:
    """A body's limit of it: what looked at it more than once would take hours."""
    parts = ["", "{", '"probabilities"', ":true", ',"data":', "[[1,2,3]]", "}", ""]
    body = "".join(part + " " * (5_000_000 if number == where else 0) for number, part in enumerate(parts))
    good, bad = body.encode(), body.replace("]]", "]]]").encode()
    assert not isinstance(found(JSON, good, TABLE), str)
    for wrong in (bad, good.replace(b"}", b""), good.replace(b"}", b"]"), good.replace(b"data", b"date")):
        assert isinstance(found(JSON, wrong, TABLE), str)


@each_length
@pytest.mark.usefixtures("reader")
def test_each_line_is_read_as_the_standard_library_reads_it(examples: int) -> None:
    @properties(examples)
    @given(line_requests())
    @example((TABLE, b'{"data":[1,2,3]}\r\n{"data":[4,5e0,-0.0]}'))
    @example((IMAGE, b'{"images":[[0,1,2],[3,4,5]]}\n{"data":[[[0,1,2],[3,4,5]]]}\n'))
    def run(request: tuple[Signature, bytes]) -> None:
        expect(JSON_LINES, request[1], request[0], oracle_lines(request[1], request[0]))

    run()


@each_length
def test_csv_is_read_as_float_reads_its_cells(examples: int) -> None:
    @properties(examples)
    @given(csv_requests())
    @example((TABLE, b"+1,.5,5.\r\n-0,1E-400,1e+2\r\n"))
    def run(request: tuple[Signature, bytes]) -> None:
        expect(CSV, request[1], request[0], oracle_csv(request[1], request[0]))

    run()


@each_length
@pytest.mark.usefixtures("reader")
def test_npy_is_read_as_numpy_reads_it(examples: int) -> None:
    @properties(examples)
    @given(npy_requests())
    def run(request: tuple[Signature, bytes]) -> None:
        expect(NPY, request[1], request[0], oracle_npy(request[1], request[0]))

    run()


# PNG


@st.composite
def pictures(draw: st.DrawFn) -> tuple[Signature, bytes]:
    """A file of ours for the model, of any colour type and depth that is taken, with and without interlacing."""
    model = draw(st.sampled_from([IMAGE, COLOUR]))
    _, _, rows, columns = model.input.shape
    assert rows
    assert columns
    mode = draw(st.sampled_from(["1", "L", "P", "RGB"]))
    count = rows * columns * (3 if mode == "RGB" else 1)
    values = draw(st.binary(min_size=count, max_size=count))
    if mode == "P":
        image = Image.frombytes("P", (columns, rows), bytes(value % 4 for value in values))
        image.putpalette(draw(st.binary(min_size=12, max_size=12)))
    elif mode == "1":
        image = Image.frombytes("L", (columns, rows), values).convert("1")
    else:
        image = Image.frombytes(mode, (columns, rows), values)
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=draw(st.booleans()))
    return model, stream.getvalue()


@each_length
def test_a_png_is_the_pixels_that_pillow_sees_and_a_damaged_one_is_refused(examples: int) -> None:
    @properties(examples)
    @given(pictures(), st.data())
    def run(picture: tuple[Signature, bytes], data: st.DataObject) -> None:
        model, body = picture
        image = Image.open(io.BytesIO(body)).convert("L" if model is IMAGE else "RGB")
        pixels = np.asarray(image).reshape(*image.size[::-1], -1).transpose(2, 0, 1)[None]
        expect(PNG, body, model, (normalise(pixels, model.preprocessing), False))
        other = data.draw(damaged(st.just(body)))
        if other != body:
            expect(PNG, other, model, None)

    run()


# Adam7: where each of the seven passes begins, and how far apart its pixels are (W3C PNG, section 8.2).
_PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def test_an_interlaced_png_is_the_pixels_of_a_plain_one() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, size=(9, 11)).astype(np.uint8)
    data = b"".join(
        b"\0" + row.tobytes()
        for top, left, down, right in _PASSES
        for row in pixels[top::down, left::right]
        if row.size
    )

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 11, 9, 8, 0, 0, 0, 1)
    body = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    model = signature(1, 9, 11)
    expect(PNG, body, model, (normalise(pixels[None, None], model.preprocessing), False))
