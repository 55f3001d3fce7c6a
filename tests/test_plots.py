"""Figures hold what the profile says."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from test_profile import make

from keras_layer_entropy import plots

pytestmark = pytest.mark.tensorflow  # figures are the same on every backend


def test_entropy_curve():
    profile = make(baseline=make(epoch=None))
    axes = plots.entropy_curve(profile, title="My network").axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == [
        "each class",
        "_class y",
        "_class z",
        "mean of the classes",
        "same network, untrained (mean)",
    ]
    np.testing.assert_array_equal(lines["each class"].get_ydata(), profile.entropy[:, 0])
    np.testing.assert_array_equal(lines["mean of the classes"].get_ydata(), profile.mean)
    twin = lines["same network, untrained (mean)"]
    np.testing.assert_array_equal(twin.get_ydata(), profile.baseline.mean)
    assert twin.get_linestyle() == "--"
    assert lines["mean of the classes"].get_linewidth() > lines["each class"].get_linewidth()
    assert len({to_hex(lines[k].get_color()) for k in list(lines)[2:]}) == 3
    assert [t.get_text() for t in axes.get_xticklabels()] == ["a (4)", "b (4)", "c (4)", "out (3)"]
    assert axes.get_ylabel() == "activation entropy (normalised, 0 to 1)"
    assert axes.get_title(loc="left") == "My network"


def test_curve_of_one_class_and_of_another_measure():
    profile = make(
        classes=("all",), count=[5], values={"state_entropy": np.linspace(1, 0, 4)[:, None]}
    )
    axes = plots.entropy_curve(profile, "state_entropy").axes[0]
    assert [line.get_label() for line in axes.lines] == ["all samples"]
    assert axes.get_ylabel() == "state entropy (bits)"


def test_legend_is_outside_the_axes():
    figure = plots.entropy_curve(make(baseline=make()))
    plots.pixels(figure)  # lays it out
    legend = figure.legends[0].get_window_extent()
    assert legend.y1 <= figure.axes[0].get_tightbbox().y0


def test_heatmap():
    profile = make()
    axes = plots.heatmap(profile).axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), profile.entropy)
    texts = [text.get_text() for text in axes.texts]
    assert texts[:3] == [".90", "-", ".70"]
    assert [t.get_text() for t in axes.get_xticklabels()] == ["x", "y", "z"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["a (4)", "b (4)", "c (4)", "out (3)"]


def test_heatmap_of_many_classes_has_no_numbers():
    many = 100
    profile = make(
        classes=[f"class {i}" for i in range(many)],
        count=np.ones(many),
        values={"activation_entropy": np.full((4, many), 0.5)},
    )
    axes = plots.heatmap(profile).axes[0]
    assert not axes.texts
    assert 20 <= len(axes.get_xticks()) <= 30


def test_nothing_global():
    import matplotlib.pyplot as plt

    plots.heatmap(make())
    plots.entropy_curve(make())
    assert plt.get_fignums() == []


def test_pixels():
    found = plots.pixels(plots.heatmap(make()))
    assert found.dtype == np.uint8
    assert found.shape[-1] == 4
    assert len(np.unique(found)) > 50


def test_unknown_measure():
    with pytest.raises(KeyError, match="instability"):
        plots.heatmap(make(), "instability")


def test_long_paths_keep_what_tells_them_apart():
    stem = "encoder/transformer/stack/"
    layers = [f"{stem}block_{i}/mlp/expand" for i in range(4)]
    axes = plots.entropy_curve(make(layers=layers)).axes[0]
    assert [t.get_text() for t in axes.get_xticklabels()] == [
        f"../block_{i}/mlp/expand ({n})" for i, n in zip(range(4), (4, 4, 4, 3), strict=True)
    ]
    layers = [f"a_name_that_is_really_long_{i}_and_ends_the_same_way_each_time" for i in range(4)]
    labels = [
        t.get_text() for t in plots.entropy_curve(make(layers=layers)).axes[0].get_xticklabels()
    ]
    assert len(set(labels)) == 4


def test_pruning_curves():
    before = make(baseline=make(epoch=None))
    after = make(
        layers=("a", "c", "out"),
        units=(4, 4, 3),
        outputs=(False, False, True),
        normalizer=before.normalizer[[0, 2, 3]],
        values={"activation_entropy": before.entropy[[0, 2, 3]] / 2},
    )
    points = [(0, 0.9, "original"), (1, 0.7, "right after removal"), (1, 0.92, "after retraining")]
    left, right = plots.pruning_curves(before, after, points, 0.89).axes
    lines = {line.get_label(): line for line in left.lines}
    assert list(lines) == ["before, untrained", "before", "after"]
    np.testing.assert_array_equal(lines["after"].get_xdata(), [0, 2, 3])
    np.testing.assert_array_equal(lines["after"].get_ydata(), after.mean)
    np.testing.assert_array_equal(lines["before"].get_ydata(), before.mean)
    marks = {line.get_label(): line.get_xydata().tolist() for line in right.lines}
    assert marks["after retraining"] == [[1, 0.92]]
    assert marks["right after removal"] == [[1, 0.7]]
    assert "rolled back" not in marks
    assert right.lines[-1].get_ydata()[0] == 0.89
