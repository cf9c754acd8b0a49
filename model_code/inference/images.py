"""PNG and JPEG files to the pixels of one instance. Whatever could mean two things is refused and not guessed.

Refused with 400: a file of another type than the declared one, one with bytes behind its end, a truncated or damaged one,
another size than the model's, transparency (there is no background that would be right), 16 bits a channel (raw pixels are 0
to 255), animation (one image is one instance), CMYK, and an EXIF orientation that would turn the image: whether pixels are
turned has to be seen in the pixels. Accepted: greyscale, RGB and palettes, interlaced or progressive or not. Colour becomes
grey by ITU-R 601 luma, as Pillow converts; grey becomes colour by repetition; colour profiles and gamma are not applied.

The file is walked to its end before anything is decoded, so that an enormous image is refused by its header alone, and what a
decoder would pass over in silence is seen. Pillow is imported by the first image: no other request pays for it.
"""

import io
import re
import struct
import warnings
import zlib
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from model_code.inference.errors import BadImage, BadShape, ImageTooLarge

# Any size but the model's is refused; past this one it is no mistake any more.
MAX_PIXELS = 2**24
# Chunks of a PNG, segments of a JPEG: a file of the largest size written in pieces of 8 KiB has 768. Without a limit one of
# nothing but empty pieces would keep a thread busy for seconds.
MAX_PIECES = 4096

_PNG_START = b"\x89PNG\r\n\x1a\n"
# W3C PNG, section 11.2.1: grey, RGB, palette; grey and RGB with transparency.
_PNG_PALETTE = 3
_PNG_COLOURS, _PNG_TRANSPARENT = (0, 2, _PNG_PALETTE), (4, 6)
_JPEG_START = b"\xff\xd8"
# Baseline, extended and progressive Huffman coding (ITU-T T.81, table B.1); all other frames are hardly ever written.
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
_JPEG_OTHER_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF)
_JPEG_SCAN, _JPEG_END = 0xDA, 0xD9
# What ends the data of a scan: a marker that is neither a stuffed 0xff nor a restart.
_AFTER_SCAN = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]")
# How the first bytes of both look where somebody took the file for text (Azure's host did: azure-functions-host issue 4032).
_TAKEN_FOR_TEXT = (b"\xef\xbf\xbd", b"\xc2\x89", b"\xc3\xbf")
_ORIENTATION = 0x0112  # tag of EXIF; 1 is upright
# What Pillow raises for files that are no images ("Writing your own image plugin", and what its plugins do).
_UNREADABLE = (OSError, SyntaxError, ValueError, LookupError, TypeError, EOFError, struct.error, zlib.error)
# Pillow warns of EXIF that it cannot read to the end: a line that is none of the log's, once for every caller's file.
warnings.filterwarnings("ignore", module=r"PIL\.")


@dataclass(frozen=True)
class _Size:
    rows: int
    columns: int


def read_png(body: bytes, channels: int, rows: int, columns: int) -> NDArray[np.uint8]:
    """Pixels (channels, rows, columns), 0 to 255. Raises BadImage, BadShape or ImageTooLarge."""
    if not body.startswith(_PNG_START):
        _refuse_type("png", body)
    if len(body) < 33 or body[8:16] != b"\x00\x00\x00\x0dIHDR":
        raise BadImage("png: the header is missing or cut off")
    found_columns, found_rows, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", body[16:29])
    _check_size("png", _Size(found_rows, found_columns), _Size(rows, columns))
    if colour in _PNG_TRANSPARENT:
        raise BadImage("png: transparency; save it without an alpha channel, on the background that is meant")
    if depth == 16:
        raise BadImage("png: 16 bits a channel; save it with 8, which are the raw pixels 0 to 255")
    # Pillow takes the one method that there is, whatever the header says.
    if colour not in _PNG_COLOURS or compression or filtering or interlace > 1:
        raise BadImage(
            "png: a type of colour, or a method of compression, filtering or interlacing, that does not exist"
        )
    _walk_png(body, needs_palette=colour == _PNG_PALETTE)

    from PIL.PngImagePlugin import PngImageFile

    return _decode("png", PngImageFile, body, channels, _Size(rows, columns))


def read_jpeg(body: bytes, channels: int, rows: int, columns: int) -> NDArray[np.uint8]:
    """As `read_png`."""
    if not body.startswith(_JPEG_START):
        _refuse_type("jpeg", body)
    try:
        _walk_jpeg(body, _Size(rows, columns))
    except (IndexError, struct.error):
        raise BadImage("jpeg: the file is cut off") from None

    from PIL.JpegImagePlugin import JpegImageFile

    return _decode("jpeg", JpegImageFile, body, channels, _Size(rows, columns))


def _refuse_type(name: str, body: bytes) -> NoReturn:
    if body.startswith(_TAKEN_FOR_TEXT):
        raise BadImage(
            f"{name}: the bytes were taken for text on their way and are lost; send them as they are in the file"
        )
    raise BadImage(f"{name}: the body does not start like a file of this type; Content-Type names the type of the file")


def _check_size(name: str, found: _Size, expected: _Size) -> None:
    if found.rows * found.columns > MAX_PIXELS:
        raise ImageTooLarge(
            f"{name}: {found.rows} rows × {found.columns} columns; at most {MAX_PIXELS} pixels are looked at"
        )
    if found != expected:
        raise BadShape(
            f"{name}: {found.rows} rows × {found.columns} columns; expected {expected.rows} rows × {expected.columns} columns"
        )


def _check_pieces(name: str, count: int) -> None:
    if count > MAX_PIECES:
        raise BadImage(f"{name}: more than {MAX_PIECES} pieces; save it anew")


def _walk_png(body: bytes, *, needs_palette: bool) -> None:
    """All chunks, each with its checksum, to the last byte: Pillow does not compare those of the pixels, nor miss a palette."""
    view, position, kind, pieces = memoryview(body), len(_PNG_START), b"", 0
    while kind != b"IEND":
        pieces += 1
        _check_pieces("png", pieces)
        if position + 12 > len(body):
            raise BadImage("png: the file is cut off")
        (length,) = struct.unpack_from(">I", body, position)
        kind, end = body[position + 4 : position + 8], position + 12 + length
        if end > len(body):
            raise BadImage("png: the file is cut off")
        if zlib.crc32(view[position + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            raise BadImage(f"png: the chunk at byte {position} is damaged")
        needs_palette = needs_palette and kind != b"PLTE"
        if kind == b"IDAT" and needs_palette:
            raise BadImage("png: the palette is missing")
        if kind == b"tRNS":
            raise BadImage("png: transparency; save it without, on the background that is meant")
        if kind == b"acTL":
            raise BadImage("png: animated; one image is one instance")
        if kind == b"IHDR" and position != len(_PNG_START):
            raise BadImage("png: a second header")
        position = end
    if position != len(body):
        raise BadImage(f"png: {len(body) - position} bytes behind its end")


def _walk_jpeg(body: bytes, expected: _Size) -> None:
    """All segments to the last byte. IndexError or struct.error means that the file is cut off."""
    position, framed, marker, pieces = len(_JPEG_START), False, 0, 0
    while marker != _JPEG_END:
        pieces += 1
        _check_pieces("jpeg", pieces)
        if body[position] != 0xFF:
            raise BadImage(f"jpeg: no marker at byte {position}")
        while body[position] == 0xFF:
            position += 1
        marker, position = body[position], position + 1
        if marker == _JPEG_END:
            break
        (length,) = struct.unpack_from(">H", body, position)
        if marker in _JPEG_OTHER_FRAMES or (marker in _JPEG_FRAMES and framed):
            raise BadImage("jpeg: neither baseline nor progressive, or more than one frame; save it as baseline")
        if marker in _JPEG_FRAMES:
            depth, rows, columns, components = struct.unpack_from(">BHHB", body, position + 2)
            _check_size("jpeg", _Size(rows, columns), expected)
            if depth != 8 or components not in (1, 3):
                raise BadImage(f"jpeg: {components} channels of {depth} bits; save it as greyscale or RGB with 8 bits")
            framed = True
        position += max(length, 2)
        if marker == _JPEG_SCAN:
            after = _AFTER_SCAN.search(body, position)
            if after is None:
                raise BadImage("jpeg: the file is cut off")
            position = after.start()
    if not framed:
        raise BadImage("jpeg: no frame in it")
    if position != len(body):
        raise BadImage(f"jpeg: {len(body) - position} bytes behind its end")


def _decode(name: str, kind: type, body: bytes, channels: int, size: _Size) -> NDArray[np.uint8]:
    """The pixels, by the one decoder that `kind` is; nothing else of Pillow sees the bytes."""
    try:
        with kind(io.BytesIO(body)) as image:
            image.load()
            orientation = image.getexif().get(_ORIENTATION, 1)
            pixels = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    except _UNREADABLE as error:
        raise BadImage(f"{name}: the file is damaged and cannot be decoded") from error
    if orientation != 1:
        raise BadImage(f"{name}: EXIF says orientation {orientation}; turn the pixels and save it with orientation 1")
    if pixels.shape[:2] != (size.rows, size.columns):
        raise BadImage(f"{name}: the file says two sizes")
    return np.ascontiguousarray(pixels.reshape(size.rows, size.columns, channels).transpose(2, 0, 1))
