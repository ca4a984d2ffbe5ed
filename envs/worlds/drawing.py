"""One palette and a few Pillow helpers, so that all environments look like one family."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, GRID, MUTED = "#1f2933", "#fbf9f4", "#e4dfd3", "#9aa5b1"
LEGAL, ILLEGAL, ACCENT, GOLD = "#2a9d8f", "#d64545", "#3a6ea5", "#e9b44c"


def canvas(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A blank picture of `width` x `height` pixels and the pen that draws on it."""
    image = Image.new("RGB", (width, height), PAPER)
    return image, ImageDraw.Draw(image)


def text(
    draw: ImageDraw.ImageDraw, xy: tuple[float, float], message: str, size: int = 12, fill: str = INK, anchor="mm"
):
    """Write `message` at `xy`; `anchor` is Pillow's two letters (mm: centred on xy, la: xy is the top left corner)."""
    draw.text(xy, message, fill=fill, font=ImageFont.load_default(size), anchor=anchor)


def cross(draw: ImageDraw.ImageDraw, xy: tuple[float, float], radius: float, fill: str = ILLEGAL, width: int = 3):
    """The sign for an illegal action: an X of the given radius around `xy`."""
    x, y = xy
    draw.line([x - radius, y - radius, x + radius, y + radius], fill=fill, width=width)
    draw.line([x - radius, y + radius, x + radius, y - radius], fill=fill, width=width)


def pixels(image: Image.Image) -> np.ndarray:
    """The picture as an array (height, width, 3) uint8."""
    return np.asarray(image).copy()
