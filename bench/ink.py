"""What all pictures are drawn with: Pillow, at twice the size, for screens that show it."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

INK, FAINT, LIMIT = "#1b1f24", "#d7dce2", "#c0392b"
_SCALE = 2


class Canvas:
    """A white picture; all sizes and places are in its own pixels, of which each becomes two by two."""

    def __init__(self, width: float, height: float) -> None:
        self.image = Image.new("RGB", (round(width * _SCALE), round(height * _SCALE)), "white")
        self._pen = ImageDraw.Draw(self.image)

    def box(self, left: float, top: float, right: float, bottom: float, colour: str) -> None:
        self._pen.rectangle([left * _SCALE, top * _SCALE, right * _SCALE, bottom * _SCALE], fill=colour)

    def line(self, points: Sequence[tuple[float, float]], colour: str) -> None:
        """Straight from point to point, with a dot on each."""
        scaled = [(x * _SCALE, y * _SCALE) for x, y in points]
        self._pen.line(scaled, colour, width=2 * _SCALE)
        for x, y in scaled:
            self._pen.circle((x, y), 3 * _SCALE, colour)

    def text(self, x: float, y: float, text: str, size: int, anchor: str = "lm", colour: str = INK) -> None:
        font = ImageFont.load_default(size * _SCALE)
        self._pen.text((x * _SCALE, y * _SCALE), text, colour, font, anchor)
