"""The compiled reader of JSON arrays: nothing but the grammar, the shape and the numbers that the standard library finds."""

import itertools
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.aws.sources import NATIVE_SOURCES, read_sources
from infra.settings import ROOT
from model_code.inference import arrays
from model_code.inference.arrays import all_finite, read_arrays
from model_code.native import build
from model_code.native.build import BuildError, compile_library, this_machine

EDGES = Path(__file__).with_name("arrays_at_the_edge.py")


def read(text: str, *sizes: int, fewer: bool = False, raw: bool = False) -> NDArray[np.float32] | None:
    """The text in the middle of a body, as it stands there."""
    body = f"{{ {text} }}".encode()
    return read_arrays(body, 2, len(body) - 2, sizes, fewer=fewer, raw=raw)


def bits(text: str) -> int | None:
    """Those of one number, or None where it is refused."""
    found = read(f"[{text}]", 1)
    return None if found is None else int(found.view(np.uint32)[0])


def expected(text: str) -> int:
    """int and float as the general reader has them: a whole number has no -0."""
    with np.errstate(over="ignore"):
        return int(np.float64(json.loads(text)).astype(np.float32).view(np.uint32))


def test_a_set_up_has_compiled_it() -> None:
    assert arrays.LIBRARY.is_file()
    assert read("[1]", 1) is not None


def test_without_the_library_everything_is_left_to_the_general_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrays, "LIBRARY", tmp_path / "libarrays.so")
    assert arrays._load() == (None, None)
    (tmp_path / "libarrays.so").write_bytes(b"\x7fELF, of another machine")
    for name, function in zip(("_read", "_all_finite"), arrays._load(), strict=True):
        monkeypatch.setattr(arrays, name, function)
    assert read("[1]", 1) is None
    assert not all_finite(np.zeros(4, np.float32).tobytes(), 0, 4)


@pytest.mark.parametrize("wrong", [0x7F800000, 0xFF800000, 0x7F800001, 0xFF800001, 0x7FC00000, 0xFFFFFFFF], ids=hex)
def test_infinity_and_every_kind_of_nan_are_not_finite_wherever_they_stand(wrong: int) -> None:
    for count in range(1, 40):
        for place in range(count):
            numbers = np.full(count, 0xFF7FFFFF, np.uint32)
            numbers[place] = wrong
            assert not all_finite(b"header" + numbers.tobytes(), 6, count)


def test_every_other_number_is_finite() -> None:
    numbers = np.array([0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x7F7FFFFF, 0xFF7FFFFF], np.uint32)
    for count in range(1, 8):
        # What stands around them is none of them.
        assert all_finite(b"\xff\xff\xff" + numbers[:count].tobytes() + b"\xff\xff\xff\xff", 3, count)
    assert all_finite(b"", 0, 0)
    random = np.random.default_rng(0).integers(0, 2**32, 100_000, np.uint32)
    for part in random.reshape(-1, 20):
        assert all_finite(part.tobytes(), 0, 20) == np.isfinite(part.view(np.float32)).all()


# Numbers


WRITTEN = [
    "0",
    "-0",
    "0.0",
    "-0.0",
    "1",
    "-1",
    "255",
    "0.1",
    "-0.4242",
    "2.8215",
    "1e0",
    "1E+2",
    "1.5e-7",
    "-2.5E-3",
    "0e5",
    "0.34509803921568627",
    "-0.42421296238899231",
    "16777217",
    "16777217.0",
    "33554433",
    "3.4028234e38",
    "1e-37",
    "123456789012345678",
    "0.000000000000001",
    "9007199254740993",
    "0.1234567890123456789",
    "3.141592653589793238e-20",
]


@pytest.mark.parametrize("text", WRITTEN)
def test_a_number_is_the_float32_next_to_the_float64_next_to_its_text(text: str) -> None:
    assert bits(text) == expected(text)


@pytest.mark.parametrize("form", ["{!r}", "{:.4f}", "{:g}", "{:.8e}", "{:.18e}", "{:.17g}", "{:.15f}"])
def test_what_programs_write_is_read_at_once(form: str) -> None:
    rng = np.random.default_rng(1)
    values = np.concatenate([rng.normal(size=2000), rng.uniform(-3, 3, 2000).astype(np.float32), [0.0, 1.0, -1.0]])
    texts = [form.format(float(value)) for value in values]
    found = read(f"[{', '.join(texts)}]", len(texts))
    assert found is not None
    assert found.tobytes() == np.array([float(text) for text in texts]).astype(np.float32).tobytes()


def test_next_to_the_border_of_two_float32_it_is_the_right_one_or_none() -> None:
    """Where rounding in two steps, or a digit too few, would show: borders, and the decimals around them."""
    rng = np.random.default_rng(2)
    lower = np.abs(rng.integers(0x00800000, 0x7F000000, 3000, np.int32).view(np.float32))
    asked = taken = 0
    for value, digits in itertools.product(lower, (7, 9, 16, 17, 18, 19)):
        border = (Decimal(float(value)) + Decimal(float(np.nextafter(value, np.float32(np.inf))))) / 2
        exact = f"{border:.{digits - 1}e}"
        mantissa, exponent = exact.split("e")
        shifted = int(mantissa.replace(".", ""))
        for step in (-1, 0, 1):
            number = str(shifted + step)
            text = f"{number[0]}.{number[1:]}e{exponent}"
            found = bits(text)
            assert found in (None, expected(text)), text
            asked, taken = asked + 1, taken + (found is not None)
    assert taken > asked / 3  # nearly all with 7 and 9 digits, which are not as near


def test_numbers_of_all_sizes_are_the_right_ones_or_refused() -> None:
    rng = np.random.default_rng(3)
    for exponent in range(-60, 61):
        for digits in (1, 5, 15, 17, 19, 21):
            mantissa = "".join(map(str, rng.integers(1, 10, digits)))
            for text in (f"{mantissa}e{exponent}", f"-{mantissa[0]}.{mantissa[1:]}0E{exponent:+03}"):
                assert bits(text) in (None, expected(text)), text


NO_NUMBERS = [
    "-",
    "+1",
    "01",
    "-01",
    "1.",
    ".5",
    "1.e5",
    "1e",
    "1e+",
    "1e-",
    "0x1",
    "1_0",
    "1a",
    "--1",
    "1-",
    "1.2.3",
    "1e5e5",
    "NaN",
    "nan",
    "Infinity",
    "-Infinity",
    "inf",
    "null",
    "true",
    '"1"',
    "[]",
    "{}",
    "١",
]
NO_FLOAT32 = ["1e39", "-1e39", "3.4028236e38", "1e99999999999999999999", "1e-400", "1e-45", "18446744073709551616"]


@pytest.mark.parametrize("text", [*NO_NUMBERS, *NO_FLOAT32, "", "1 1", "1\x00", "\x0c1", "1\xa0"])
def test_what_is_no_number_or_none_of_float32_is_refused(text: str) -> None:
    assert bits(text) is None


@pytest.mark.parametrize("text", ["0", "255", "255.0", "-0.0", "127.5"])
def test_a_raw_pixel_is_from_0_to_255(text: str) -> None:
    assert read(f"[{text}]", 1, raw=True) is not None


@pytest.mark.parametrize(
    "text", ["-1", "256", "255.00001", "255.00000000000002", "255.00000000000003", "255.00000000000000001", "-1e-30"]
)
def test_no_rounding_brings_a_pixel_into_its_range(text: str) -> None:
    assert read(f"[{text}]", 1, raw=True) is None


def test_a_number_with_the_text_of_the_one_before_it_has_its_value() -> None:
    """Texts that begin alike, of all lengths, one after the other."""
    texts = [f"0.{'1234567890' * 3}"[:length] for length in range(3, 21)]
    texts = (
        [text for text in texts for _ in range(3)] + [f"{text}5" for text in texts] + ["1", "1", "1.0", "1", "12", "1"]
    )
    for separator in (",", ", ", " ,\n\t"):
        found = read(f"[{separator.join(texts)}]", len(texts))
        assert found is not None
        assert found.tobytes() == np.array([float(text) for text in texts]).astype(np.float32).tobytes()


# Shapes


def shape(value: object) -> tuple[int, ...] | None:
    """That of nested lists of numbers, None for ragged ones."""
    if type(value) in (int, float):
        return ()
    if not isinstance(value, list) or not value:
        return None
    inner = {shape(each) for each in value}
    return None if len(inner) > 1 or None in inner else (len(value), *inner.pop())  # type: ignore[misc]


@pytest.mark.parametrize(("length", "sizes"), [(8, (2,)), (8, (1, 2)), (9, (2, 1)), (7, (1, 1, 1))])
def test_of_all_short_texts_only_those_of_the_shape_are_read(length: int, sizes: tuple[int, ...]) -> None:
    """Every text of these characters, whatever it is."""
    for characters in itertools.product("[],1", repeat=length):
        text = "".join(characters)
        for fewer in {False, len(sizes) > 1}:
            if read(text, *sizes, fewer=fewer) is not None:
                found = shape(json.loads(text))
                assert found == sizes or (fewer and found and 0 < found[0] <= sizes[0] and found[1:] == sizes[1:]), text


@pytest.mark.parametrize("sizes", [(1,), (3,), (2, 3), (2, 1, 3), (1, 1, 1, 1), (2, 2, 2, 2, 2, 2, 2, 2)])
@pytest.mark.parametrize("indent", [None, 1])
def test_arrays_of_the_shape_are_read_with_any_space(sizes: tuple[int, ...], indent: int | None) -> None:
    values = np.arange(np.prod(sizes), dtype=np.float32)
    found = read(json.dumps(values.reshape(sizes).tolist(), indent=indent), *sizes)
    assert found is not None
    assert found.tolist() == values.tolist()


def test_more_dimensions_than_eight_are_left_to_the_general_reader() -> None:
    assert read("[[[[[[[[[1]]]]]]]]]", *(1,) * 9) is None


@pytest.mark.parametrize(
    ("text", "taken"), [("[[1]]", 1), ("[[1],[2],[3]]", 3), ("[]", None), ("[[1],[2],[3],[4]]", None)]
)
def test_the_first_dimension_may_have_less_and_not_more(text: str, taken: int | None) -> None:
    found = read(text, 3, 1, fewer=True)
    assert (None if found is None else len(found)) == taken


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="the pages around the text are protected by Linux's mprotect")
@pytest.mark.parametrize(
    "flags", [(), ("-fsanitize=undefined", "-fsanitize-trap=undefined")], ids=["as built", "sanitised"]
)
def test_no_byte_outside_of_the_text_and_the_room_is_touched(flags: tuple[str, ...], tmp_path: Path) -> None:
    """Texts and rooms that end where a page ends, in a process of its own: one byte too far ends it."""
    (tmp_path / "libarrays.so").write_bytes(compile_library(this_machine(), *flags))
    finished = subprocess.run(
        [sys.executable, str(EDGES), str(tmp_path / "libarrays.so")], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) > 5000  # texts


# The compiler


@pytest.mark.parametrize("target", sorted(build._TARGETS.values()))
def test_for_every_machine_the_same_source_is_the_same_library(target: str) -> None:
    assert compile_library(target) == compile_library(target)


def test_the_library_here_is_that_of_the_source() -> None:
    assert arrays.LIBRARY.read_bytes() == compile_library(this_machine())


def test_the_image_compiles_it_from_what_its_dockerfile_copies(tmp_path: Path) -> None:
    for name, content in read_sources(ROOT, NATIVE_SOURCES).items():
        (tmp_path / "native").mkdir(exist_ok=True)
        (tmp_path / "native" / Path(name).name).write_bytes(content)
    subprocess.run([sys.executable, "-m", "native.build", "libarrays.so"], cwd=tmp_path, check=True)
    assert (tmp_path / "libarrays.so").read_bytes() == arrays.LIBRARY.read_bytes()
    assert (ROOT / "model_code/container/Dockerfile").read_text().count(
        "RUN python -m native.build libarrays.so\n"
    ) == 1


def test_a_source_that_is_refused_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "arrays.c").write_text("int read_arrays(void) { return missing; }\n")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "arrays.c")
    with pytest.raises(BuildError, match=r"arrays.c was not compiled:(.|\n)*missing"):
        compile_library(this_machine())


def test_an_unknown_machine_is_told_which_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: "riscv64")
    with pytest.raises(BuildError, match=r"no target for linux riscv64; known are linux x86_64, .*darwin arm64"):
        this_machine()
