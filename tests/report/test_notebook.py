"""What notebooks show: pictures and tables in one piece, for every kind of thing."""

import base64
import html.parser
import io
import re

import keras
import matplotlib.image
import numpy as np
import pytest

from keras_layer_entropy import (
    EntropyMonitor,
    EntropyProfile,
    analyze_model,
    analyze_units,
    compare,
    prune_model,
)
from keras_layer_entropy.analysis import live
from keras_layer_entropy.report.notebook import fragment
from keras_layer_entropy.report.tables import table_of

pytestmark = pytest.mark.tensorflow


class Page(html.parser.HTMLParser):
    """Which elements are open where, and the texts of cells."""

    def __init__(self, text):
        super().__init__()
        self.open, self.cells, self.tags = [], [], set()
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells.append(data)


def check(shown):
    page = shown._repr_html_()
    assert len(page) <= 200_000
    found = Page(page)
    assert found.tags <= {"p", "strong", "img", "table", "caption", "tr", "th", "td"}
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert all(matplotlib.image.imread(io.BytesIO(base64.b64decode(x))).size for x in pictures)
    return found.cells, len(pictures)


def network(**names):
    dense = keras.layers.Dense
    model = keras.Sequential(
        [keras.Input((4,)), dense(8, "relu", name="a"), dense(8, "relu", name="b"),
         dense(3, "softmax", name="out")],
        **names,
    )  # fmt: skip
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def data(random, samples=90):
    return random.normal(size=(samples, 4)).astype("float32"), np.arange(samples) % 3


@pytest.mark.parametrize("measures", ["activation_entropy", "linear_probe", "activation_health"])
def test_profiles(measures, random):
    profile = analyze_model(network(), data(random), measures=measures, verbose=0)
    profile = profile.with_classes(["<i>", "two", "three"])
    cells, pictures = check(profile)  # in which there is no element <i>
    assert cells.count("b") == 1
    assert pictures == 1
    name = "mean" if measures == "activation_entropy" else "mean of classes"
    assert name in cells
    assert f"{profile[measures].mean[0]:.3f}" in cells


def test_units(random):
    (first, *_) = analyze_units(network(), data(random), verbose=0)
    cells, pictures = check(first)
    assert pictures == 1
    best = int(np.argmax(first.information_labels))
    assert cells[cells.index("0" if best == 0 else str(best)) + 1] == (
        f"{first.information_labels[best]:.3f}"
    )


def test_results_and_comparisons(random):
    model = network()
    result = prune_model(
        model, data(random), data(random), remove="layers", criterion="last", max_removals=1,
        max_drop=1.0, epochs=0,
    )  # fmt: skip
    cells, pictures = check(result)
    assert cells[cells.index(result.removed[0]) :][1:3] == ["layer", "yes"]
    assert pictures == 1
    assert check(compare(model, result.model))[1] == 1
    assert check(compare(result.before, result.after))[1] == 1


def test_a_profile_of_nothing():
    nothing = EntropyProfile(
        layers=(), widths=(), is_output=(), classes=("all",), count=[3], results={}
    )
    assert check(nothing) == ([], 0)


def test_many_rows_and_large_pictures_are_cut(random):
    from matplotlib.figure import Figure

    rows = table_of(None)
    for number in range(100):
        rows.add_row(str(number))
    figure = Figure(figsize=(20, 20))
    figure.add_subplot().imshow(random.normal(size=(900, 900)), interpolation="nearest")
    page = fragment("noise", [rows], figure)
    assert page.count("<td>") == 30
    assert "and 70 more rows" in page
    assert len(page) <= 200_000


def test_nothing_is_drawn_outside_of_notebooks(random, monkeypatch):
    monkeypatch.setattr(live.plots, "entropy_over_epochs", lambda *_: pytest.fail("drawn"))
    monitor = EntropyMonitor(plot=True)
    x, y = data(random)
    network().fit(x, y, verbose=0, callbacks=[monitor])
    assert len(monitor.profiles) == 1
