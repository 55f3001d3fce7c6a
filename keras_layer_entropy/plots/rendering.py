"""Figures as pixels and as SVG to stand in an HTML page."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from keras_layer_entropy.plots.style import GRID

# Drawn in place of what the page chooses, in light and in dark; no figure uses this colour itself.
_INK = "#010203"


def pixels(figure: Figure) -> np.ndarray:
    """The figure as pixels: uint8 `[height, width, 4]`."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())


def svg(draw: Callable[..., Figure], *args: Any, **kwargs: Any) -> str:
    """The figure that `draw(*args, **kwargs)` makes, as an `<svg>` element for an HTML page.

    Its text is text, in the font and colour of the page, and its ground is transparent.

    Example:

    >>> from matplotlib.figure import Figure
    >>> svg(Figure).startswith("<svg")
    True
    """
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style = dict.fromkeys(names, _INK) | {"svg.fonttype": "none", "legend.labelcolor": _INK}
    file = io.BytesIO()
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The browser has fonts of its own.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        draw(*args, **kwargs).savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue().decode()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    used = set(re.findall(r"#([\w.-]+)", text))
    # Matplotlib gives every part a name, the same in every figure of the page.
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    text = text.replace(_INK, "currentColor").replace(GRID.lower(), "var(--grid)")
    # As wide as the page, but no wider than it was drawn.
    width = re.compile(r' width="([\d.]+pt)" height="[\d.]+pt"')
    return width.sub(r' style="max-width: \1"', text, count=1).strip()
