"""The notebook runs as it stands, and shows what it was committed with: pictures and tables."""

import base64
import io
import os
import pathlib
import re

import matplotlib.image
import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

pytestmark = pytest.mark.tensorflow

TOUR = pathlib.Path(__file__).parents[2] / "examples" / "tour.ipynb"
SHOWN = ("profile", "compare(monitor", "result", "compare(model", "monitor = ")  # with pictures


def shown(notebook, beginning):
    """The last HTML of the cell with such a line."""
    (cell,) = (
        cell
        for cell in notebook.cells
        if cell.cell_type == "code"
        and re.search(rf"^{re.escape(beginning)}", cell.source, re.M)
        and (beginning not in ("profile", "result") or cell.source.endswith(f"\n{beginning}"))
    )
    return [x.data["text/html"] for x in cell.outputs if "text/html" in x.get("data", {})][-1]


def check(notebook):
    for beginning in SHOWN:
        page = shown(notebook, beginning)
        assert len(page) <= 200_000
        assert not re.search(r"<script|<style|https?://|class=", page)
        (picture,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
        pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(picture)))
        assert np.ptp(pixels[..., :3]) > 0.5
        assert ("<table>" in page) == (beginning != "monitor = ")
    assert "After epoch 12" in shown(notebook, "monitor = ")  # drawn anew until the last epoch


def test_it_was_committed_with_its_outputs():
    check(nbformat.read(TOUR, as_version=4))


@pytest.mark.slow
def test_it_runs(monkeypatch):
    notebook = nbformat.read(TOUR, as_version=4)
    for cell in notebook.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    monkeypatch.setitem(os.environ, "TF_CPP_MIN_LOG_LEVEL", "3")
    root = str(TOUR.parents[1])
    monkeypatch.setitem(
        os.environ,
        "PYTHONPATH",
        os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])]),
    )
    NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
    check(notebook)
    *_, accuracies = (cell for cell in notebook.cells if cell.cell_type == "code")
    found = eval(accuracies.outputs[-1].data["text/plain"])
    assert found["after"] >= found["before"] - 0.05
    if target := os.environ.get("WRITE_TOUR"):
        # Without what libraries write to standard error on this machine.
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = [x for x in cell.outputs if x.get("name") != "stderr"]
                cell.metadata.pop("execution", None)
        nbformat.write(notebook, target)
