"""Information planes and the numbers of whole layers: what the figures hold."""

import dataclasses

import numpy as np
import pytest
from matplotlib.figure import Figure

from keras_layer_entropy import EntropyProfile, plots
from keras_layer_entropy.measures import MeasureResult

pytestmark = pytest.mark.tensorflow

CLASSES = 4


def make_profile(shift=0.0, **fields):
    """Two layers; what they know grows by `shift`."""
    half = np.full((2, CLASSES), 0.5)
    results = {
        "activation_entropy": half,
        "mutual_information": MeasureResult(
            half,
            {"input": [5.0, 3.0 + shift], "labels": [1.9, 1.5 + shift]},
            {"labels": [1.2, 0.1]},
        ),
        "logdet": MeasureResult(
            half,
            {
                "input": [90.0, 40.0 + shift],
                "labels": [9.0, 8.0 + shift],
                "previous": [np.nan, 30.0 + shift],
            },
        ),
        "feature_entropy": MeasureResult(
            half, {"noise": [2.0, np.nan], "selective_rate": [0.5, np.nan]}
        ),
    }
    given = dict(
        layers=("conv", "out"), widths=(8, CLASSES), is_output=(False, True), count=[5] * CLASSES,
        classes=tuple("abcd"), results=results,
    )  # fmt: skip
    return EntropyProfile(**{**given, **fields})


@pytest.fixture
def epochs():
    return [make_profile(0.1 * epoch, epoch=epoch) for epoch in range(3)]


def points(axes):
    """The points of each layer: those that were drawn with data."""
    offsets = [np.asarray(c.get_offsets()) for c in axes.collections]
    return [found for found in offsets if len(found)]


def test_plane_has_a_point_per_epoch_and_layer(epochs):
    axes = plots.information_plane(epochs).axes[0]
    conv, out = points(axes)[:2]
    np.testing.assert_allclose(conv, [[5.0, 1.9]] * 3)
    np.testing.assert_allclose(out, [[3.0 + 0.1 * e, 1.5 + 0.1 * e] for e in range(3)])
    assert axes.get_ylabel() == "I(layer; labels), bits"
    legend = [text.get_text() for text in axes.figure.legends[0].get_texts()]
    assert legend == ["conv (8)", "out (4)", "not possible"]
    assert axes.figure.axes[1].get_ylabel() == "epoch"


def test_what_is_not_possible_is_more_than_the_labels_hold(epochs):
    axes = plots.information_plane(epochs).axes[0]
    (shade,) = [x for x in axes.patches if x.get_label() == "not possible"]
    # H(Y) of four classes of one size is 2 bits.
    assert shade.get_y() == pytest.approx(2.0)
    assert shade.get_y() + shade.get_height() == pytest.approx(axes.get_ylim()[1])


def test_one_profile_needs_no_scale_of_epochs():
    figure = plots.information_plane(make_profile())
    assert len(figure.axes) == 1
    assert len(points(figure.axes[0])[0]) == 1


def test_logdet_has_no_border_and_another_unit(epochs):
    axes = plots.information_plane(epochs, "logdet").axes[0]
    assert axes.get_xlabel() == "I(input; layer), nats"
    assert "not possible" not in [x.get_label() for x in axes.patches]


def test_from_layer_to_layer_leaves_the_first_out(epochs):
    axes = plots.layer_to_layer_plane(epochs).axes[0]
    (out,) = points(axes)
    np.testing.assert_allclose(out[:, 0], [30.0, 30.1, 30.2])
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == ["out (4)"]


def test_planes_say_what_is_missing(epochs):
    bare = dataclasses.replace(epochs[0], results={"activation_entropy": np.ones((2, CLASSES))})
    with pytest.raises(ValueError, match="measure again with 'logdet' among measures"):
        plots.information_plane(bare, "logdet")
    with pytest.raises(
        ValueError, match=r"'feature_entropy' says nothing of \['input', 'labels'\]"
    ):
        plots.information_plane(epochs, "feature_entropy")
    with pytest.raises(ValueError, match="0 profiles"):
        plots.information_plane([])
    other = dataclasses.replace(epochs[0], layers=("a", "b"))
    with pytest.raises(ValueError, match="2 profiles of 2 different lists of layers"):
        plots.information_plane([epochs[0], other])


def test_layer_values_stand_beside_those_of_shuffled_pairs():
    axes = plots.layer_values(make_profile(), "mutual_information").axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {"input", "labels", "labels, shuffled"}
    np.testing.assert_allclose(lines["labels, shuffled"].get_ydata(), [1.2, 0.1])
    assert lines["labels"].get_color() == lines["labels, shuffled"].get_color()
    assert (lines["labels"].get_linestyle(), lines["labels, shuffled"].get_linestyle()) == (
        "-", "--",
    )  # fmt: skip


def test_layer_values_of_different_units_have_axes_of_their_own():
    figure = plots.layer_values(make_profile(), "feature_entropy")
    assert {axes.get_ylabel() for axes in figure.axes} == {"nats", "share"}
    with pytest.raises(ValueError, match="'activation_entropy' brings no numbers"):
        plots.layer_values(make_profile(), "activation_entropy")


def test_noise_stands_in_the_curve():
    lines = plots.entropy_curve(make_profile(), "feature_entropy").axes[0].lines
    (noise,) = [line for line in lines if line.get_label() == "noise"]
    np.testing.assert_allclose(noise.get_ydata(), [2.0, np.nan])


def test_figures_stand_in_axes_of_ones_own(epochs):
    """Whatever is drawn with axes of its own can be drawn into those of a user."""
    profile = epochs[0]
    for draw in (
        lambda ax: plots.entropy_curve(profile, ax=ax),
        lambda ax: plots.heatmap(profile, ax=ax),
        lambda ax: plots.compared_curves({"one": profile}, ax=ax),
        lambda ax: plots.entropy_over_epochs(epochs, ax=ax),
        lambda ax: plots.information_plane(epochs, ax=ax),
        lambda ax: plots.layer_to_layer_plane(epochs, ax=ax),
    ):
        figure = Figure()
        mine, other = figure.subplots(1, 2)
        assert draw(mine) is figure
        assert mine.get_title("left")
        assert mine.has_data()
        assert not other.has_data()
        assert not figure.legends
        alone = draw(None)
        assert alone is not figure
        assert alone.axes[0].get_title("left") == mine.get_title("left")
