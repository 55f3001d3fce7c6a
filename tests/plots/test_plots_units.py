"""Figures of units hold what their profiles say."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from profiles import make

from keras_layer_entropy import UnitProfile, plots
from keras_layer_entropy.measures import MeasureResult
from keras_layer_entropy.plots.style import BLUE, VERMILION

pytestmark = pytest.mark.tensorflow  # figures are the same on every backend


def unit_profile(**changes):
    """Three units: 1 says less than 0 and nothing else, 2 tells little; class y has no samples."""
    values = dict(
        layer="conv",
        classes=("x", "y", "$z$"),
        count=[5, 0, 7],
        information_labels=[0.9, 0.8, 0.05],
        information_labels_shuffled=[0.01, -0.01, 0.0],
        information_input=[3.3, 3.2, 0.5],
        information_per_class=[[0.9, np.nan, 0.8], [0.8, np.nan, 0.7], [0.05, np.nan, 0.04]],
        pairwise=[[3.3, 2.9, 0.1], [2.9, 3.2, 0.2], [0.1, 0.2, 0.5]],
        feature_entropy=[[2.0, np.nan, 3.0], [1.0, np.nan, 1.5], [3.5, np.nan, 3.9]],
        selective_rate=[[1.0, np.nan, 0.9], [0.8, np.nan, 0.7], [0.05, np.nan, 0.0]],
    )
    return UnitProfile(**values | changes)


def of_maps(per_class):
    """The feature entropy of layers of which the first and the third have maps."""
    nan = np.nan
    whole = {"selective_rate": [0.9, nan, 0.5, nan], "noise": [3.1, nan, 2.9, nan]}
    return MeasureResult(per_class, whole)


def convolutions(**changes):
    """An `EntropyProfile` whose layers a and c have maps."""
    nan = np.nan
    values = dict(
        layers=("a", "dense", "c", "out"),
        results={
            "feature_entropy": of_maps([[3.0, nan, 2.0], [nan] * 3, [1.0, nan, 2.0], [nan] * 3])
        },
    )
    return make(**values | changes)


def test_unit_information():
    profiles = [
        unit_profile(epoch=epoch, information_labels=np.array([0.9, 0.8, 0.05]) * (epoch + 2))
        for epoch in (-1, 0, 3)
    ]
    labels, input_, *_ = plots.unit_information(profiles).axes
    found = labels.images[0].get_array()
    np.testing.assert_array_equal(found[:, 2], profiles[2].information_labels)
    np.testing.assert_array_equal(input_.images[0].get_array()[:, 0], profiles[0].information_input)
    assert [t.get_text() for t in labels.get_xticklabels()] == ["0", "1", "4"]
    assert labels.get_xlabel() == "epoch (0: untrained)"
    assert [t.get_text() for t in labels.get_yticklabels()] == ["0", "1", "2"]
    assert labels.get_title() == "I(unit; labels), bits"
    assert labels.images[0].get_clim() == (0, profiles[2].information_labels.max())


def test_figures_over_epochs_are_of_one_layer():
    for draw in (plots.unit_information, plots.unit_ranks):
        with pytest.raises(ValueError, match="2 profiles of 2 different layers"):
            draw([unit_profile(), unit_profile(layer="other")])
        with pytest.raises(ValueError, match="0 profiles"):
            draw([])


def test_unit_classes():
    profile = unit_profile()
    axes = plots.unit_classes(profile, "Mine").axes[0]
    np.testing.assert_array_equal(
        axes.images[0].get_array().filled(np.nan), profile.information_per_class
    )
    assert [t.get_text() for t in axes.get_xticklabels()] == ["x", "y", r"\$z\$"]  # no formula
    assert axes.get_title(loc="left") == "Mine"


def test_many_units_and_classes_stay_legible():
    many = 300
    profile = unit_profile(
        classes=tuple(map(str, range(many))), count=np.ones(many), pairwise=np.eye(many),
        information_labels=np.linspace(0, 1, many), information_labels_shuffled=np.zeros(many),
        information_input=np.ones(many), information_per_class=np.ones((many, many)),
        feature_entropy=np.ones((many, many)), selective_rate=np.ones((many, many)),
    )  # fmt: skip
    for figure in (plots.unit_classes(profile), plots.unit_pairs(profile)):
        assert max(figure.get_size_inches()) <= 8
        assert len(figure.axes[0].get_xticks()) <= 32
        assert len(figure.axes[0].get_yticks()) <= 32
    ranks = plots.unit_ranks([profile]).axes[0]
    assert len(ranks.lines) == many
    assert len(ranks.texts) <= 32


def test_unit_ranks():
    profiles = [
        unit_profile(information_labels=labels)
        for labels in ([0.9, 0.8, 0.1], [0.2, 0.8, 0.2], [0.1, 0.5, 1])
    ]
    axes = plots.unit_ranks(profiles).axes[0]
    ranks = {line.get_label(): line.get_ydata().tolist() for line in axes.lines}
    # Of equal ones the earlier unit comes first.
    assert ranks == {"0": [1, 2, 3], "1": [2, 1, 2], "2": [3, 3, 1]}
    assert axes.lines[0].get_xdata().tolist() == [1, 2, 3]
    assert axes.get_xlabel() == "epoch"
    assert {text.get_text(): text.xy[1] for text in axes.texts} == {"0": 3, "1": 2, "2": 1}
    assert axes.get_ylim() == (3.5, 0.5)  # rank 1 above


def test_unit_pairs():
    profile = unit_profile()
    figure = plots.unit_pairs(profile)
    axes = figure.axes[0]
    shown = axes.images[0].get_array()
    np.testing.assert_array_equal(shown[0, 1:], profile.pairwise[0, 1:])
    assert shown.mask.tolist() == np.eye(3, dtype=bool).tolist()
    redundant, little = axes.lines
    assert redundant.get_xydata().tolist() == [[0, 1]]  # column 0 says what row 1 does
    assert little.get_xydata().tolist() == [[2, 2]]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts[0].startswith("redundant (1)")
    assert texts[1].startswith("less effective (1)")
    _, little = plots.unit_pairs(profile, [True, False, False]).axes[0].lines
    assert little.get_xydata().tolist() == [[0, 0]]
    with pytest.raises(ValueError, match=r"shape \(2,\); expected one entry for each of 3 units"):
        plots.unit_pairs(profile, [True, False])


def test_unit_ranking(random):
    profile = unit_profile()
    images, maps = random.normal(size=(8, 5, 5, 1)), random.normal(size=(8, 4, 4, 3))
    ranking, *pictures = plots.unit_ranking(profile, images, maps).axes
    np.testing.assert_array_equal(ranking.lines[0].get_ydata(), [1.25, 2.5, 3.7])
    assert [t.get_text() for t in ranking.get_xticklabels()] == ["1", "0", "2"]
    spread = [path.vertices[:, 1].tolist() for path in ranking.collections[0].get_paths()]
    assert spread == [[1.0, 1.5], [2.0, 3.0], [3.5, 3.9]]
    grid = np.reshape(pictures, (3, 6))  # the first six images
    np.testing.assert_array_equal(grid[0, 5].images[0].get_array(), images[5, ..., 0])
    np.testing.assert_array_equal(grid[1, 5].images[0].get_array(), maps[5, ..., 1])
    np.testing.assert_array_equal(grid[2, 0].images[0].get_array(), maps[0, ..., 2])
    assert [row[0].get_ylabel() for row in grid] == ["images", "best, 1", "worst, 2"]
    with pytest.raises(ValueError, match=r"expected .* \[n, height, width, 3\]"):
        plots.unit_ranking(profile, images, maps[..., :2])
    unknown = unit_profile(feature_entropy=np.full((3, 3), np.nan))
    with pytest.raises(ValueError, match="of no unit of 'conv' is known"):
        plots.unit_ranking(unknown, images, maps)


def test_feature_entropy_by_depth():
    profile = convolutions(
        baseline=convolutions(results={"feature_entropy": of_maps(np.full((4, 3), 3.5))})
    )
    upper, lower = plots.feature_entropy_by_depth(profile).axes
    lines = {line.get_label(): line for line in upper.lines}
    assert list(lines) == ["trained", "untrained", "noise of the same size"]
    assert lines["trained"].get_ydata().tolist() == [2.5, 1.5]  # of the two layers with maps
    assert lines["untrained"].get_ydata().tolist() == [3.5, 3.5]
    assert lines["noise of the same size"].get_ydata().tolist() == [3.1, 2.9]
    assert [line.get_ydata().tolist() for line in lower.lines] == [[0.9, 0.5]] * 2
    assert [to_hex(line.get_color(), keep_alpha=False).upper() for line in lower.lines] == [
        BLUE,
        VERMILION,
    ]
    assert [t.get_text() for t in lower.get_xticklabels()] == ["a (4)", "c (4)"]
    with pytest.raises(ValueError, match="holds no feature_entropy, only .*'state_entropy'"):
        plots.feature_entropy_by_depth(make())
    with pytest.raises(ValueError, match="None of the layers a, dense, c, out"):
        plots.feature_entropy_by_depth(
            convolutions(results={"feature_entropy": of_maps(np.full((4, 3), np.nan))})
        )


def test_feature_entropy_and_loss():
    profiles = [convolutions(epoch=epoch, metrics={"loss": 2.0 - epoch}) for epoch in (0, 1)]
    figure = plots.feature_entropy_and_loss(profiles)
    upper, lower = figure.axes
    assert [line.get_label() for line in upper.lines] == ["a (4)", "c (4)"]
    assert upper.lines[1].get_xydata().tolist() == [[1, 1.5], [2, 1.5]]
    assert lower.lines[0].get_xydata().tolist() == [[1, 2.0], [2, 1.0]]
    assert lower.get_ylim()[1] > 2.0
    assert upper.get_ylim()[0] == lower.get_ylim()[0] == 0  # small changes look small
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a (4)", "c (4)"]
    with pytest.raises(ValueError, match="hold no loss"):
        plots.feature_entropy_and_loss([convolutions(metrics={})])
    with pytest.raises(ValueError, match="0 profiles"):
        plots.feature_entropy_and_loss([])
    with pytest.raises(ValueError, match="2 different lists of layers"):
        plots.feature_entropy_and_loss([convolutions(), make()])


def test_nothing_is_drawn_on_a_global_figure():
    import matplotlib.pyplot as plt

    plots.unit_pairs(unit_profile())
    plots.unit_classes(unit_profile())
    assert plt.get_fignums() == []


def test_figures_with_one_axes_stand_in_those_of_a_user():
    profile = unit_profile()
    for draw in (
        lambda ax: plots.unit_classes(profile, ax=ax),
        lambda ax: plots.unit_ranks([profile] * 3, ax=ax),
        lambda ax: plots.unit_pairs(profile, ax=ax),
    ):
        figure = Figure()
        mine, other = figure.subplots(1, 2)
        assert draw(mine) is figure
        assert mine.has_data()
        assert not other.has_data()
        assert not figure.legends
        alone = draw(None)
        assert alone is not figure
        assert alone.axes[0].get_title("left") == mine.get_title("left")
