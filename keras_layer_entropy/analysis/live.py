"""The curve of a training, drawn anew after each epoch in a notebook."""

import sys
from collections.abc import Sequence
from typing import Any

from keras_layer_entropy import plots
from keras_layer_entropy.measures.measure import Profile
from keras_layer_entropy.report.notebook import fragment


class LivePlot:
    """Shows the epochs so far below the cell that trains; outside of notebooks it does nothing."""

    def __init__(self) -> None:
        self._handle: Any = None

    def show(self, profiles: Sequence[Profile]) -> None:
        """Draws the first measure of the profiles, in the place of what was drawn before."""
        if not _in_notebook():
            return
        from IPython.display import HTML, display

        name = next(iter(profiles[-1].results))
        figure = plots.entropy_over_epochs(profiles, name)
        shown = HTML(fragment(f"After epoch {(profiles[-1].epoch or 0) + 1}", [], figure))
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)


def _in_notebook() -> bool:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return hasattr(shell, "kernel")
