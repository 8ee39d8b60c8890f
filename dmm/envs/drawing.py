"""Small pictures of grid worlds, in colours and shapes that do not need each other to be told apart."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import numpy as np

Colour = tuple[int, int, int]
Shape = Callable[[np.ndarray, np.ndarray], np.ndarray]
Mark = tuple[tuple[int, int], Shape, Colour]
"""Where, in which shape and in which colour."""

# Okabe and Ito's palette, safe for colour-blind readers
BLUE: Colour = (0, 114, 178)
ORANGE: Colour = (230, 159, 0)
GREEN: Colour = (0, 158, 115)
FLOOR: Colour = (250, 250, 250)
LINE: Colour = (214, 214, 214)
WALL: Colour = (90, 90, 90)

WIDTH = 360
"""Pixels of a picture's longer side, about."""


def square(across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """Where a shape covers a cell: `across` and `up` run from -1 to 1."""
    inside: np.ndarray = np.maximum(np.abs(across), np.abs(up)) < 0.9
    return inside


def disc(across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """As `square`, round."""
    inside: np.ndarray = across**2 + up**2 < 0.7**2
    return inside


def triangle(across: np.ndarray, up: np.ndarray) -> np.ndarray:
    """As `square`, pointing up."""
    inside: np.ndarray = (up > -0.6) & (np.abs(across) < (0.7 - up) / 2)
    return inside


def draw(
    columns: int, rows: int, marks: Sequence[Mark], walls: Container[tuple[int, int]] = ()
) -> np.ndarray:  # (height, width, 3) uint8
    """The grid with its marks, later ones on top; `(x, y)` counts from the lower left corner."""
    pixels = max(WIDTH // max(columns, rows), 5)
    ticks = (np.arange(pixels) + 0.5) / pixels * 2 - 1
    across, up = np.meshgrid(ticks, -ticks)
    picture = np.full((rows * pixels, columns * pixels, 3), FLOOR, dtype=np.uint8)
    picture[::pixels] = picture[:, ::pixels] = picture[-1] = picture[:, -1] = LINE

    def cell(x: int, y: int) -> np.ndarray:
        top = (rows - 1 - y) * pixels
        return picture[top : top + pixels, x * pixels : (x + 1) * pixels]

    for x, y in ((x, y) for x in range(columns) for y in range(rows) if (x, y) in walls):
        cell(x, y)[:] = WALL
    for where, shape, colour in marks:
        cell(*where)[shape(across, up)] = colour
    return picture
