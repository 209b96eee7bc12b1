"""matplotlib figures as inline SVG that follows the page: transparent, text and axes in the page's own colour.

matplotlib cannot write CSS variables, so figures are drawn with three stand-in colours that the SVG then exchanges. Ids
are made unique per figure, since all figures of a page share one document.
"""

from __future__ import annotations

import io
import re
import warnings
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, PAPER = "#010203", "#040506", "#070809"
"""Stand-ins: text and axes, grid lines, the page behind."""

_CSS = {INK: "currentColor", FAINT: "var(--line)", PAPER: "var(--paper)"}

_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mnmt_scale",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.size": 9.0,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
}
"""matplotlib settings of every figure; ``parse_math`` is off since names are never formulas."""


def to_svg(figure: Figure, number: int, label: str) -> str:
    """``figure`` as an <svg> element for HTML.

    Args:
        number: of the figure on its page; makes its ids unique.
        label: what a screen reader says; escaped here.
    """
    buffer = io.StringIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's browser has its own fonts
        figure.savefig(buffer, format="svg", dpi=200, metadata={"Date": None, "Creator": None})
    root = ET.fromstring(_NOT_XML.sub("\N{REPLACEMENT CHARACTER}", buffer.getvalue()))
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}metadata"):
                parent.remove(child)
    referenced = _references(root)
    for element in root.iter():
        element.tag = element.tag.partition("}")[2] or element.tag
        element.attrib = {
            name.partition("}")[2] or name: _attribute(value, number)
            for name, value in element.attrib.items()
            if not (name == "id" and value not in referenced)
        }
        if "id" in element.attrib:
            element.attrib["id"] = f"f{number}-{element.attrib['id']}"
        if element.tag == "style" and element.text:
            element.text = None  # matplotlib's global rule for line joins: the page has it, scoped
    width, height = root.attrib.pop("width", ""), root.attrib.pop("height", "")
    root.attrib |= {"role": "img", "aria-label": label, "class": "figure", "style": f"max-width:{width};max-height:{height}"}
    return ET.tostring(root, encoding="unicode")


def _references(root: ET.Element) -> set[str]:
    found: set[str] = set()
    for element in root.iter():
        for name, value in element.attrib.items():
            found.update(re.findall(r"url\(#([^)]+)\)", value))
            if name.endswith("href") and value.startswith("#"):
                found.add(value[1:])
    return found


def _attribute(value: str, number: int) -> str:
    """Stand-in colours to CSS, references to this figure's ids."""
    for color, css in _CSS.items():
        value = value.replace(color, css)
    value = re.sub(r"url\(#", f"url(#f{number}-", value)
    return re.sub(r"^#(?=[a-zA-Z])", f"#f{number}-", value)
