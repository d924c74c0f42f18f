"""Pictures inside a page: reduced, and written as data URIs, so that the page stays one file."""

import base64
import io
from typing import NamedTuple

import numpy as np
from PIL import Image


class Picture(NamedTuple):
    """A picture as the `src` of an img element."""

    src: str
    width: int  # pixels


def png(source, max_width: int = 1200) -> Picture:
    """A PNG of a file or of (H, W, 3) uint8, reduced where it is wider."""
    image = _opened(source)
    if image.width > max_width:
        size = (max_width, round(image.height * max_width / image.width))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return _picture(image, "PNG")


def jpeg(source, max_side: int) -> Picture:
    """A JPEG, smaller than a PNG of a photograph; its longer side is at most `max_side` pixels."""
    image = _opened(source)
    image.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return _picture(image, "JPEG", quality=85)


def _opened(source) -> Image.Image:
    if isinstance(source, Image.Image):
        return source.copy()
    if isinstance(source, np.ndarray):
        return Image.fromarray(source)
    with Image.open(source) as image:
        return image.convert("RGB")


def _picture(image, kind, **options) -> Picture:
    data = io.BytesIO()
    image.save(data, format=kind, optimize=True, **options)
    text = base64.b64encode(data.getvalue()).decode()
    return Picture(f"data:image/{kind.lower()};base64,{text}", image.width)
