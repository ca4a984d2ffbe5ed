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


def action_map(actions: np.ndarray, agents: np.ndarray, nvec: np.ndarray) -> np.ndarray:
    """A picture of what the agents of a map do: a map for each field, in cells that act the number of the choice.

    Args:
        actions: (H, W) or (H, W, K) int, a choice for each cell; those of cells without an agent do not count.
        agents: (H, W), 1 where the cell holds an agent.
        nvec: (K,) choices in each field, which get a colour each.

    Returns:
        (24 * H, 24 * (K * W + K - 1), 3) uint8: the maps stand side by side.
    """
    cell = 24
    (height, width), fields = agents.shape, len(nvec)
    image, draw = canvas((fields * width + fields - 1) * cell, height * cell)
    for k, y, x in np.ndindex(fields, height, width):
        left, top = (k * (width + 1) + x) * cell, y * cell
        choice = actions.reshape(height, width, fields)[y, x, k]
        color = f"hsl({360 * choice // nvec[k]}, 55%, 75%)" if agents[y, x] else PAPER
        draw.rectangle([left, top, left + cell - 1, top + cell - 1], fill=color, outline=GRID)
        if agents[y, x]:
            text(draw, (left + cell / 2, top + cell / 2), str(choice), cell // 2)
    return pixels(image)
