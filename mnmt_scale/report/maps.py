"""What maps of numbers are drawn with: coloured cells, their colour scale, text that can be read on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SHAPES_UP_TO, _PIXELS = 400, 8
"""Cells up to which a map is drawn as shapes; pixels along a cell's side beyond."""


def draw_cells(axes: Axes, matrix: np.ndarray, name: str, span: tuple[float, float]) -> Any:
    """The cells of a map, first row on top, cell (i, j) centred on x = j, y = i; what was not measured is grey. Few cells
    are shapes, many an embedded picture in which a cell has several pixels, so that no viewer blurs it into the next."""
    import matplotlib

    rows, columns = matrix.shape
    colors = matplotlib.colormaps[name].with_extremes(bad=("#9a9a9a", 0.45))
    if matrix.size <= _SHAPES_UP_TO:
        edges = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
        cells: Any = axes.pcolormesh(*edges, np.ma.masked_invalid(matrix), cmap=colors, vmin=span[0], vmax=span[1])
        cells.set_edgecolor("face")
        cells.set_linewidth(0.3)
        axes.set_ylim(rows - 0.5, -0.5)
        return cells
    fine = np.repeat(np.repeat(matrix, _PIXELS, axis=0), _PIXELS, axis=1)
    place = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    return axes.imshow(fine, cmap=colors, vmin=span[0], vmax=span[1], interpolation="none", extent=place, aspect="auto")


def readable(image: Any, value: float) -> str:
    """Black or white, whichever can be read on the cell's colour."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return "#111111" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.5 else "#ffffff"


def short(value: float) -> str:
    """Two digits, and no minus before zero."""
    return f"{round(float(value), 2) + 0.0:.2f}"


def bare(axes: Axes) -> None:
    """No grid and no frame."""
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def draw_scale(figure: Figure, axes: Axes, image: Any, *, limit: float, **place: float) -> None:
    """The colour scale beside a map, in few steps: it is drawn as shapes."""
    low = image.norm.vmin
    bar = figure.colorbar(image, ax=axes, pad=0.015, **place, values=list(np.linspace(low, limit, 33)))
    bar.set_ticks([low, 0.0, limit] if low < 0 else [low, limit])
    bar.ax.set_yticklabels([f"{tick:.2g}" for tick in bar.get_ticks()], fontsize=7.5)
    bar.outline.set_visible(False)
    bar.solids.set_edgecolor("face")  # else thin gaps between the shapes show
