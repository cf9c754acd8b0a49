"""PNG and JPEG bodies: which files become which pixels, and how everything else is refused before it is decoded."""

import io
import json
import random
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from infra.settings import ROOT
from model_code.inference.contract import Request, Response
from model_code.inference.predictor import Predictor
from model_code.inference.preprocess import normalise
from model_code.inference.respond import preprocess, respond
from tests import serving_models

PNG, JPEG, NPY = "image/png", "image/jpeg", "application/x-npy"
GREY = np.random.default_rng(1).integers(0, 256, size=(28, 28)).astype(np.uint8)
COLOUR = np.random.default_rng(2).integers(0, 256, size=(4, 6, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def grey(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("grey")
    serving_models.write_model(folder)
    return Predictor.load(folder)


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    folder = tmp_path_factory.mktemp("colour")
    serving_models.write_colour_model(folder)
    return Predictor.load(folder)


def saved(pixels: NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, kind, **options)
    return stream.getvalue()


def ask(predictor: Predictor, body: bytes, content_type: str = PNG) -> Response:
    return respond(predictor, Request(body, content_type, None, "request-1"))


def inputs_of(predictor: Predictor, body: bytes, content_type: str = PNG) -> NDArray[np.float32]:
    """What the model is given for a body."""
    answer = preprocess(predictor.description, Request(body, content_type, None, "request-1"))
    assert answer.status == 200, answer.body
    return np.asarray(np.load(io.BytesIO(answer.body)))


def refusal(predictor: Predictor, body: bytes, content_type: str = PNG) -> tuple[int, str, str]:
    response = ask(predictor, body, content_type)
    error = json.loads(response.body)["error"]
    return response.status, error["code"], error["message"]


def expected_inputs(predictor: Predictor, pixels: NDArray[Any]) -> NDArray[np.float32]:
    """`pixels` is (rows, columns) or (rows, columns, 3)."""
    channels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
    return normalise(np.ascontiguousarray(channels[None]), predictor.description.signature.preprocessing)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(rows: int, columns: int, *, depth: int = 8, colour: int = 0, before: bytes = b"", data: bytes = b"") -> bytes:
    """A PNG of our own making: what no encoder would write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, depth, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("inference.py", "print()")
    return stream.getvalue()


# What is accepted


def test_a_png_is_classified_as_its_pixels_are(grey: Predictor) -> None:
    from_json = respond(grey, Request(json.dumps({"images": [GREY.tolist()]}).encode(), None, None, "request-1"))
    assert ask(grey, saved(GREY)).body == from_json.body
    np.testing.assert_array_equal(inputs_of(grey, saved(GREY)), expected_inputs(grey, GREY))


def test_a_colour_png_keeps_its_channels_in_order(colour: Predictor) -> None:
    np.testing.assert_array_equal(inputs_of(colour, saved(COLOUR)), expected_inputs(colour, COLOUR))
    answer = serving_models.colour_probabilities(expected_inputs(colour, COLOUR)).argmax(axis=1)
    assert json.loads(ask(colour, saved(COLOUR)).body) == {"colours": [("warm", "cold")[answer[0]]]}


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("kind", ["L", "RGB"])
def test_a_jpeg_is_decoded_as_pillow_decodes_it(colour: Predictor, kind: str, progressive: bool) -> None:
    body = saved(Image.fromarray(COLOUR).convert(kind), "JPEG", progressive=progressive, restart_marker_blocks=1)
    pixels = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))
    np.testing.assert_array_equal(inputs_of(colour, body, JPEG), expected_inputs(colour, pixels))


def test_grey_becomes_colour_and_colour_grey_as_the_model_wants(grey: Predictor, colour: Predictor) -> None:
    np.testing.assert_array_equal(
        inputs_of(colour, saved(GREY[:4, :6])), expected_inputs(colour, np.stack([GREY[:4, :6]] * 3, axis=2))
    )
    rgb = np.random.default_rng(3).integers(0, 256, size=(28, 28, 3)).astype(np.uint8)
    luma = np.asarray(Image.fromarray(rgb).convert("L"))
    np.testing.assert_array_equal(inputs_of(grey, saved(rgb)), expected_inputs(grey, luma))


def test_palettes_and_low_depths_are_the_colours_that_they_stand_for(grey: Predictor, colour: Predictor) -> None:
    few = np.where(COLOUR > 127, 255, 0).astype(np.uint8)
    palette = Image.fromarray(few).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    np.testing.assert_array_equal(inputs_of(colour, saved(palette)), expected_inputs(colour, few))
    one_bit = Image.fromarray(GREY).point(lambda value: 255 * (value > 127)).convert("1")
    np.testing.assert_array_equal(
        inputs_of(grey, saved(one_bit)), expected_inputs(grey, np.where(GREY > 127, 255, 0).astype(np.uint8))
    )
    # Two bits a pixel: 0, 85, 170, 255.
    levels = np.random.default_rng(4).integers(0, 4, size=(28, 28)).astype(np.uint8)
    rows = (levels[:, 0::4] << 6 | levels[:, 1::4] << 4 | levels[:, 2::4] << 2 | levels[:, 3::4]).astype(np.uint8)
    body = png(28, 28, depth=2, data=zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows)))
    np.testing.assert_array_equal(inputs_of(grey, body), expected_inputs(grey, levels * 85))


def test_text_and_other_chunks_change_nothing(grey: Predictor) -> None:
    plain = saved(GREY)
    with_text = plain[:33] + chunk(b"tEXt", b"Comment\0hello") + chunk(b"gAMA", struct.pack(">I", 20000)) + plain[33:]
    assert ask(grey, with_text).body == ask(grey, plain).body


def test_an_upright_orientation_is_fine(grey: Predictor) -> None:
    exif = Image.Exif()
    exif[0x0112] = 1
    assert ask(grey, saved(GREY, "JPEG", exif=exif), JPEG).status == 200


# What is refused


def transparent() -> bytes:
    return saved(np.dstack([np.stack([GREY] * 3, axis=2), GREY]))


def turned(kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return saved(GREY, kind, exif=exif)


def animated() -> bytes:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    return saved(frames[0], save_all=True, append_images=frames[1:])


def flipped(body: bytes, position: int) -> bytes:
    return body[:position] + bytes([body[position] ^ 1]) + body[position + 1 :]


GOOD_PNG, GOOD_JPEG = saved(GREY), saved(GREY, "JPEG")
REFUSED: dict[str, tuple[str, bytes, str]] = {
    "png-cut": (PNG, GOOD_PNG[:-20], "cut off"),
    "png-without-end": (PNG, GOOD_PNG[:-12], "cut off"),
    "png-header-only": (PNG, GOOD_PNG[:20], "cut off"),
    "png-signature-only": (PNG, GOOD_PNG[:8], "cut off"),
    "png-flipped-pixel": (PNG, flipped(GOOD_PNG, 60), "damaged"),
    "png-bad-zlib": (PNG, png(28, 28, data=b"no zlib"), "cannot be decoded"),
    "png-few-rows": (PNG, png(28, 28, data=zlib.compress(b"\0" * 100)), "cannot be decoded"),
    "png-no-data": (PNG, png(28, 28), "cannot be decoded"),
    "png-two-headers": (
        PNG,
        png(28, 28, before=chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)), data=b""),
        "second header",
    ),
    "png-and-zip": (PNG, GOOD_PNG + zipped(), "behind its end"),
    "png-animated": (PNG, animated(), "animated"),
    "png-alpha": (PNG, transparent(), "transparency"),
    "png-transparent-grey": (PNG, saved(GREY, transparency=0), "transparency"),
    "png-16-bit": (PNG, saved(Image.fromarray(GREY.astype(np.uint16) * 257)), "16 bits"),
    "png-turned": (PNG, turned("PNG"), "orientation 6"),
    "png-as-jpeg": (JPEG, GOOD_PNG, "does not start like"),
    "jpeg-as-png": (PNG, GOOD_JPEG, "does not start like"),
    "gif-as-png": (PNG, saved(GREY, "GIF"), "does not start like"),
    "webp-as-jpeg": (JPEG, b"RIFF\0\0\0\0WEBPVP8 ", "does not start like"),
    "jpeg-cut": (JPEG, GOOD_JPEG[:-20], "cut off"),
    "jpeg-without-end": (JPEG, GOOD_JPEG[:-2], "cut off"),
    "jpeg-header-only": (JPEG, GOOD_JPEG[:100], "cut off"),
    "jpeg-start-only": (JPEG, b"\xff\xd8", "cut off"),
    "jpeg-nothing-in-it": (JPEG, b"\xff\xd8\xff\xd9", "no frame"),
    "jpeg-and-zip": (JPEG, GOOD_JPEG + zipped(), "behind its end"),
    "jpeg-and-jpeg": (JPEG, GOOD_JPEG + GOOD_JPEG, "behind its end"),
    "jpeg-turned": (JPEG, turned("JPEG"), "orientation 6"),
    "jpeg-cmyk": (JPEG, saved(Image.fromarray(GREY).convert("CMYK"), "JPEG"), "4 channels"),
    "png-taken-for-utf-8": (PNG, GOOD_PNG.decode("utf-8", "replace").encode(), "taken for text"),
    "png-taken-for-latin-1": (PNG, GOOD_PNG.decode("latin-1").encode(), "taken for text"),
    "jpeg-taken-for-utf-8": (JPEG, GOOD_JPEG.decode("utf-8", "replace").encode(), "taken for text"),
    "jpeg-taken-for-latin-1": (JPEG, GOOD_JPEG.decode("latin-1").encode(), "taken for text"),
}


@pytest.mark.parametrize(("content_type", "body", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_that_is_not_one_plain_image_is_400_and_says_why(
    grey: Predictor, content_type: str, body: bytes, reason: str
) -> None:
    status, code, message = refusal(grey, body, content_type)
    assert (status, code) == (400, "BAD_IMAGE")
    assert reason in message


@pytest.mark.parametrize(("kind", "content_type"), [("PNG", PNG), ("JPEG", JPEG)])
@pytest.mark.parametrize("shape", [(28, 29), (27, 28), (1, 1), (56, 56)])
def test_another_size_than_the_models_names_both(
    grey: Predictor, kind: str, content_type: str, shape: tuple[int, int]
) -> None:
    status, code, message = refusal(grey, saved(np.zeros(shape, np.uint8), kind), content_type)
    assert (status, code) == (400, "BAD_SHAPE")
    assert message.endswith(f"{shape[0]} rows × {shape[1]} columns; expected 28 rows × 28 columns")


def test_rows_and_columns_are_not_mixed_up(colour: Predictor) -> None:
    assert refusal(colour, saved(COLOUR.transpose(1, 0, 2)))[1] == "BAD_SHAPE"


@pytest.mark.parametrize("content_type", [PNG, JPEG])
def test_an_enormous_image_is_413_by_its_header_alone(content_type: str) -> None:
    """30,000 × 30,000, in a process that could not hold the pixels and where Pillow must not even be imported."""
    bodies = {
        PNG: png(30_000, 30_000, data=zlib.compress(b"\0" * 30_000_000)),
        JPEG: b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 30_000, 30_000, 1) + b"\1\x11\0\xff\xd9",
    }
    script = (
        "import resource, sys\n"
        "from model_code.inference.contract import Request, Signature, TensorSpec\n"
        "from model_code.inference.respond import error_response\n"
        "from model_code.inference.images import read_jpeg, read_png\n"
        "sys.modules['PIL'] = None\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (400 * 2**20, 400 * 2**20))\n"
        "read = read_png if sys.argv[1] == 'image/png' else read_jpeg\n"
        "try:\n"
        "    read(sys.stdin.buffer.read(), 1, 28, 28)\n"
        "except Exception as error:\n"
        "    print(error_response(error, 'x').status, error.code)\n"
    )
    command = [sys.executable, "-c", script, content_type]
    finished = subprocess.run(command, cwd=ROOT, input=bodies[content_type], capture_output=True, check=True)
    assert finished.stdout.split() == [b"413", b"IMAGE_TOO_LARGE"]


def test_a_model_of_tables_takes_no_images(tmp_path: Path) -> None:
    serving_models.write_table_model(tmp_path)
    status, code, message = refusal(Predictor.load(tmp_path), GOOD_PNG)
    assert (status, code) == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert "one or three channels" in message


@pytest.mark.parametrize(("body", "content_type"), [(GOOD_PNG, PNG), (GOOD_JPEG, JPEG)])
def test_whatever_happens_to_a_file_it_is_answered_and_never_with_500(
    grey: Predictor, body: bytes, content_type: str
) -> None:
    rng = random.Random(5)
    seen: set[int] = set()
    for _ in range(1500):
        changed = bytearray(body)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        if content_type == PNG:  # past the checksums, to the decoder
            changed = bytearray(with_checksums(bytes(changed)))
        seen.add(
            ask(grey, bytes(changed[: rng.choice([len(changed), rng.randrange(1, len(changed))])]), content_type).status
        )
    assert seen <= {200, 400, 413}
    assert {400} <= seen
    assert ask(grey, body, content_type).status == 200


def with_checksums(body: bytes) -> bytes:
    parts, position = [body[:8]], 8
    while position + 12 <= len(body):
        (length,) = struct.unpack_from(">I", body, position)
        if position + 12 + length > len(body):
            break
        parts.append(chunk(body[position + 4 : position + 8], body[position + 8 : position + 8 + length]))
        position += 12 + length
    return b"".join(parts) + body[position:]


@pytest.mark.parametrize("make", [lambda: GOOD_PNG, lambda: GOOD_JPEG], ids=["png", "jpeg"])
def test_pillow_is_imported_by_the_first_image_and_by_nothing_before(tmp_path: Path, make: Callable[[], bytes]) -> None:
    serving_models.write_model(tmp_path)
    body = make()
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from model_code.inference.contract import Request\n"
        "from model_code.inference.predictor import Predictor\n"
        "from model_code.inference.respond import respond\n"
        "predictor = Predictor.load(Path(sys.argv[1]))\n"
        "print(respond(predictor, Request(b'{\"data\": []}', None, None, 'x')).status, 'PIL' in sys.modules)\n"
        "print(respond(predictor, Request(sys.stdin.buffer.read(), sys.argv[2], None, 'x')).status, 'PIL' in sys.modules)\n"
        "print(sorted(name for name in sys.modules if name.startswith('PIL.') and name.endswith('ImagePlugin')))\n"
    )
    content_type = PNG if body is GOOD_PNG else JPEG
    command = [sys.executable, "-c", script, str(tmp_path), content_type]
    finished = subprocess.run(command, cwd=ROOT, input=body, capture_output=True, check=True)
    before, after, plugins = finished.stdout.decode().splitlines()
    assert (before, after) == ("400 False", "200 True")
    other = "Jpeg" if content_type == PNG else "Png"
    assert f"PIL.{other}ImagePlugin" not in plugins
