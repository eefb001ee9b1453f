"""Images as they are shown: turned the right way up, in colours without transparency. The home of Pillow."""

import io
import warnings
from functools import cache
from typing import TYPE_CHECKING, Any

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.content.decoding import decoded, undecodable

if TYPE_CHECKING:
    from PIL.Image import Image

ENDINGS = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"))
# What a file holds decides how it is read, whatever its ending; of what Pillow knows, nothing that runs other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_LARGEST_BYTES = 128 << 20
_MOST_PIXELS = 89_478_485  # Pillow's own limit, from which on it warns: a quarter of a GiB in colours
_WHITE = (255, 255, 255, 255)


@cache
def _pillow() -> Any:
    from PIL import Image

    warnings.simplefilter("error", Image.DecompressionBombWarning)
    return Image


def read_image(uri: str) -> "Image":
    """Return an image in red, green and blue: the first one of several, what is transparent on white.

    Args:
        uri: path or address of the file.

    Raises:
        UserError: it cannot be read; the text is a reason.
        TryAgainError: the store did not answer.
    """
    return decoded(uri, _decoded, limit=_LARGEST_BYTES, reason=_reason)


def _decoded(data: bytes) -> "Image":
    from PIL import ImageOps

    images = _pillow()
    with images.open(io.BytesIO(data), formats=_FORMATS) as file:
        if file.width * file.height > _MOST_PIXELS:
            raise UserError(_too_large())
        image = ImageOps.exif_transpose(file)
        if image.mode.startswith("I"):  # 16 bits
            image = image.point(lambda value: value / 256).convert("L")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = images.alpha_composite(images.new("RGBA", image.size, _WHITE), image)
        converted: Image = image.convert("RGB")
        return converted


def _reason(error: Exception) -> str:
    kind = type(error).__name__
    if kind in ("DecompressionBombError", "DecompressionBombWarning"):
        return _too_large()
    if kind == "UnidentifiedImageError":
        return f"it is no image of {', '.join(_FORMATS)}"
    return undecodable(error)


def _too_large() -> str:
    return f"it has more than {_MOST_PIXELS:,} pixels"
