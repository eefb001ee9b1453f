"""Pictures as PNG, in the light colours; TensorBoard brings what draws them."""

import io
from typing import Any

from diffmm_dist.charts.shapes import LIGHT, Box, Dot, Line, Picture, Shape, Text
from diffmm_dist.errors import UserError
from diffmm_dist.safe_text import visible

_SCALE = 2  # pixels of a unit, so that small letters can be read
_MARGIN = 8.0
_ANCHORS = {"start": "ls", "middle": "ms", "end": "rs"}


def png(picture: Picture) -> bytes:
    """Return a picture as a PNG file.

    Raises:
        UserError: Pillow is not installed, or too old to draw letters.
    """
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError as error:
        raise UserError("pictures as PNG need Pillow, which tensorboard brings; pip install pillow") from error
    size = round((picture.width + 2 * _MARGIN) * _SCALE), round((picture.height + 2 * _MARGIN) * _SCALE)
    image = Image.new("RGB", size, LIGHT["paper"])
    pen = _Pen(ImageDraw.Draw(image), ImageFont)
    for shape in picture.shapes:
        pen.draw(shape)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


class _Pen:
    """Draws shapes with Pillow, whose types differ between its releases."""

    def __init__(self, canvas: Any, fonts: Any) -> None:
        self._canvas, self._fonts = canvas, fonts

    def draw(self, shape: Shape) -> None:
        if isinstance(shape, Line):
            width = max(1, round(shape.width * _SCALE))
            self._canvas.line(
                [_pixel(x, y) for x, y in shape.points], fill=LIGHT[shape.ink], width=width, joint="curve"
            )
        elif isinstance(shape, Box):
            corners = [_pixel(shape.x, shape.y), _pixel(shape.x + shape.width, shape.y + shape.height)]
            outline = LIGHT[shape.outline] if shape.outline else None
            self._canvas.rounded_rectangle(corners, shape.corner * _SCALE, fill=LIGHT[shape.ink], outline=outline)
        elif isinstance(shape, Dot):
            low, high = (
                (shape.x - shape.radius, shape.y - shape.radius),
                (shape.x + shape.radius, shape.y + shape.radius),
            )
            self._canvas.ellipse([_pixel(*low), _pixel(*high)], fill=LIGHT[shape.ink])
        else:
            self._write(shape)

    def _write(self, text: Text) -> None:
        font = self._fonts.load_default(size=text.size * _SCALE)  # which has no bold letters
        place, anchor = _pixel(text.x, text.y), _ANCHORS[text.anchor]
        self._canvas.text(place, visible(text.text), fill=LIGHT[text.ink], font=font, anchor=anchor)


def _pixel(x: float, y: float) -> tuple[float, float]:
    return (x + _MARGIN) * _SCALE, (y + _MARGIN) * _SCALE
