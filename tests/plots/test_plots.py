"""Figures hold what the profile says."""

from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.colors import to_hex
from profiles import make, with_patterns

from keras_layer_entropy import plots
from keras_layer_entropy.measures import ActivationEntropy

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
        classes=("all",), count=[5], results={"state_entropy": np.linspace(1, 0, 4)[:, None]}
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
        results={"activation_entropy": np.full((4, many), 0.5)},
    )
    axes = plots.heatmap(profile).axes[0]
    assert not axes.texts
    assert 20 <= len(axes.get_xticks()) <= 30


def with_random_patterns(**changes):
    """A profile of layers a, b, c (4 units), out (3) and classes x, y (no samples), z."""
    random = np.random.default_rng(0)
    names, units = ("a", "b", "c", "out"), (4, 4, 4, 3)
    patterns = {k: random.dirichlet(np.ones(n), 3) for k, n in zip(names, units, strict=True)}
    return with_patterns(patterns, **changes)


def test_activation_probabilities_of_two_classes():
    profile = with_random_patterns()
    figure = plots.activation_probabilities(profile)
    assert len(figure.axes) == 4
    for axes, layer in zip(figure.axes, profile.layers, strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axes.lines}
        # The first two classes with samples; each neuron is a step, the last of them closed.
        assert list(lines) == ["class x", "class z", "uniform"]
        np.testing.assert_array_equal(lines["class x"][:-1], profile.patterns[layer][0])
        np.testing.assert_array_equal(lines["class z"][:-1], profile.patterns[layer][2])
        assert lines["uniform"][0] == 1 / len(profile.patterns[layer][0])
    assert [
        line.get_label() for line in plots.activation_probabilities(profile, ["z"]).axes[0].lines
    ]
    with pytest.raises(ValueError, match=r"no class 'q'; the classes are \('x', 'y', 'z'\)"):
        plots.activation_probabilities(profile, ["x", "q"])
    with pytest.raises(ValueError, match="keep_patterns=True"):
        plots.activation_probabilities(make())


def test_entropy_and_patterns():
    profile = with_random_patterns(baseline=make())
    curve, *panels = plots.entropy_and_patterns(profile, "z").axes
    lines = {line.get_label(): line.get_ydata() for line in curve.lines}
    np.testing.assert_array_equal(lines["trained"], profile.entropy[:, 2])
    np.testing.assert_array_equal(lines["untrained"], profile.baseline.entropy[:, 2])
    assert len(panels) == 4
    for axes, layer in zip(panels, profile.layers, strict=True):
        np.testing.assert_array_equal(axes.lines[0].get_ydata()[:-1], profile.patterns[layer][2])


def test_probability_histograms(random):
    patterns = {"a": random.dirichlet(np.ones(5), 40), "b": random.dirichlet(np.ones(3), 40)}
    figure = plots.probability_histograms(patterns, bins=8)
    for axes, values in zip(figure.axes, patterns.values(), strict=True):
        band, mean = (patch.get_data() for patch in axes.patches)
        assert len(mean.values) == 8
        counts = [np.histogram(v, mean.edges)[0] for v in values.T]
        np.testing.assert_allclose(mean.values, np.mean(counts, axis=0))
        np.testing.assert_allclose(band.values, np.quantile(counts, 0.9, axis=0))
        assert mean.values.sum() == pytest.approx(40)  # every image is in a bin, for every neuron
    with pytest.raises(ValueError, match=r"shape \(5,\); expected \[images, units\]"):
        plots.probability_histograms({"a": np.ones(5)})


def test_feature_maps(random):
    images, maps = random.normal(size=(2, 8, 8, 1)), random.normal(size=(2, 6, 6, 20))
    figure = plots.feature_maps(images, maps, "conv")
    assert len(figure.axes) == 2 * 17
    grid = np.reshape(figure.axes, (2, 17))
    np.testing.assert_array_equal(grid[1, 0].images[0].get_array(), images[1, ..., 0])
    np.testing.assert_array_equal(grid[1, 16].images[0].get_array(), maps[1, ..., 15])
    assert figure.get_suptitle() == "conv (the first 16 of 20 channels)"
    with pytest.raises(ValueError, match="one map per image"):
        plots.feature_maps(images[:1], maps)


def test_entropy_over_epochs():
    layers = ("_a", "$b$", "c", "out")
    profiles = [make(epoch=epoch, layers=layers) for epoch in (1, 3)]
    figure = plots.entropy_over_epochs(profiles, "state_entropy")
    axes = figure.axes[0]
    # A leading underscore would leave a layer out of the legend, dollars begin a formula.
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == [" _a (4)", r"\$b\$ (4)", "c (4)", "out (3)"]
    assert axes.get_ylim() == pytest.approx((-0.03, 1.03))
    assert axes.lines[0].get_xydata().tolist() == [[2, 0.5], [4, 0.5]]  # counted from 1
    with pytest.raises(ValueError, match="2 different lists of layers"):
        plots.entropy_over_epochs([make(), make(layers=("a", "b", "c", "end"))])
    with pytest.raises(ValueError, match="0 profiles"):
        plots.entropy_over_epochs([])


def test_compared_curves():
    other = make(results={"activation_entropy": np.full((4, 3), 0.25)})
    axes = plots.compared_curves({"one": make(), "_other $": other}).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    np.testing.assert_array_equal(lines["one"], make().mean)
    # A leading underscore would leave it out of the legend, a dollar begin a formula.
    np.testing.assert_array_equal(lines[r" _other \$"], [0.25] * 4)
    with pytest.raises(ValueError, match="no profiles"):
        plots.compared_curves({})


def test_stability():
    pooled, per_sample = (
        make(
            measures={"activation_entropy": ActivationEntropy(pattern)},
            results={"activation_entropy": np.full((4, 3), value)},
        )
        for pattern, value in (("softmax_then_mean", 0.75), ("per_sample", 0.5))
    )
    lines = plots.stability(per_sample, pooled).axes[0].lines
    assert [line.get_ydata().tolist() for line in lines] == [[0.75] * 4, [0.5] * 4]
    with pytest.raises(ValueError, match="expected 'per_sample' and 'softmax_then_mean'"):
        plots.stability(pooled, per_sample)


def test_svg_takes_the_colours_of_its_page():
    found = plots.svg(plots.heatmap, make(classes=("<b>", "$x", "z")))
    root = ElementTree.fromstring(found)
    texts = [element.text for element in root.iter() if element.tag.endswith("text")]
    assert "<b>" in texts
    assert "$x" in texts
    assert "currentColor" in found
    assert "#010203" not in found
    assert "<metadata" not in found
    assert root.get("style").startswith("max-width:")
    ids = [element.get("id") for element in root.iter() if element.get("id")]
    assert [name for name in ids if f"#{name}" not in found] == []  # none that is not used


def test_deep_networks_stay_legible():
    n = 150
    profile = make(
        layers=[f"dense_{i}" for i in range(n)], widths=[4] * n, is_output=[False] * n,
        results={"activation_entropy": np.full((n, 3), 0.5)},
    )  # fmt: skip
    figure = plots.entropy_curve(profile)
    assert figure.get_figwidth() <= 16
    labels = [t.get_text() for t in figure.axes[0].get_xticklabels()]
    assert labels[:2] == ["dense_0 (4)", "dense_5 (4)"]


def test_cells_without_samples_are_readable_on_any_ground():
    found = plots.svg(plots.heatmap, make())
    lines = [line for line in found.splitlines() if ">-</text>" in line]
    assert len(lines) == 4
    assert all("currentColor" in line for line in lines)


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
    with pytest.raises(ValueError, match="holds no instability, only"):
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


def test_layers_in_place_of_blocks_stand_before_what_comes_behind_them():
    before = make()
    after = make(
        layers=("a", "new", "out"),
        widths=(4, 9, 3),
        is_output=(False, False, True),
        results={"activation_entropy": before.entropy[[0, 2, 3]] / 2},
    )
    left, right = plots.pruning_curves(before, after, [(0, 0.9, "original")], 0, "blocks").axes
    labels = [text.get_text() for text in left.get_xticklabels()]
    assert [label.partition(" ")[0] for label in labels] == ["a", "b", "c", "new", "out"]
    assert labels[3] == "new (9)"
    lines = {line.get_label(): line for line in left.lines}
    np.testing.assert_array_equal(lines["after"].get_xdata(), [0, 3, 4])
    np.testing.assert_array_equal(lines["before"].get_xdata(), [0, 1, 2, 4])
    assert right.get_xlabel() == "blocks removed"


def test_pruning_curves():
    before = make(baseline=make(epoch=None))
    after = make(
        layers=("a", "c", "out"),
        widths=(4, 4, 3),
        is_output=(False, False, True),
        results={"activation_entropy": before.entropy[[0, 2, 3]] / 2},
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
