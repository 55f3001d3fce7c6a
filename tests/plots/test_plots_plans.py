"""Figures of what could go hold every part."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from keras_layer_entropy import plots
from keras_layer_entropy.plots.plans import best

pytestmark = pytest.mark.tensorflow  # figures are the same on every backend

PARTS = [
    ("stage/sum_1", "block", {"FLOPs": 0.20, "time": 0.30}, 0.05),
    ("stage/sum_2", "block", {"FLOPs": 0.20, "time": 0.10}, 0.08),
    ("dense", "layer", {"FLOPs": 0.02, "time": 0.05}, 0.04),
    ("conv", "unit", {"FLOPs": 0.10, "time": 0.08}, 0.01),
]


def shown(axes):
    return {text.get_text() for text in axes.texts}


def test_a_point_for_each_part_in_a_panel_for_each_cost():
    figure = plots.plan_points(PARTS, title="My network")
    for axes, key in zip(figure.axes, ("FLOPs", "time"), strict=True):
        assert axes.get_xlabel() == f"{key} saved (per cent)"
        lines = {line.get_label(): line for line in axes.lines}
        assert list(lines) == ["block", "layer", "units of a layer"]
        assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 3
        for kind, label in zip(("block", "layer", "unit"), lines, strict=True):
            expected = [[100 * x[key], 100 * y] for _, of, x, y in PARTS if of == kind]
            np.testing.assert_allclose(lines[label].get_xydata(), expected, rtol=1e-12)
        left, right = axes.get_xlim()
        assert left <= 0 < max(100 * x[key] for _, _, x, _ in PARTS) < right
    assert figure.axes[0].get_title(loc="left") == "My network"
    assert len(figure.legends) == 1


def test_parts_that_no_other_one_beats_are_named():
    left, right = plots.plan_points(PARTS).axes
    assert shown(left) == shown(right) == {"stage/sum_1", "conv"}


def test_the_best_are_those_that_no_other_one_beats():
    points = np.random.default_rng(0).uniform(size=(200, 2)).round(2)
    expected = [
        index
        for index, (saved, cost) in enumerate(points)
        if not any(
            (s > saved and c <= cost) or (s >= saved and c < cost) for s, c in points
        )
    ]  # fmt: skip
    found = best(points)
    assert {tuple(points[i]) for i in found} == {tuple(points[i]) for i in expected}
    assert found == sorted(found, key=lambda i: -points[i, 0])


def test_names_are_in_nobodys_way():
    """Neither in that of one another nor of a point, and inside the panel."""
    random = np.random.default_rng(1)
    places = zip(random.uniform(0, 0.1, 60), 10 ** random.uniform(-3, 0, 60), strict=True)
    parts = [(f"a_stage/a_block_{i}", "unit", {"FLOPs": x}, y) for i, (x, y) in enumerate(places)]
    parts += [(f"front_{i}", "block", {"FLOPs": 0.1 + i / 500}, 0.001 * 1.05**i) for i in range(9)]
    figure = plots.plan_points(parts)
    FigureCanvasAgg(figure).draw()
    (axes,) = figure.axes
    assert len(axes.texts) > 1
    boxes = [text.get_window_extent() for text in axes.texts]
    points = [axes.transData.transform(line.get_xydata()) for line in axes.lines]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not any(box.contains(*point) for point in np.concatenate(points))
        assert all(axes.get_window_extent().contains(*corner) for corner in box.corners())


@pytest.mark.parametrize(
    ("changes", "scale"),
    [((0.2, 0.3, 0.4), "linear"), ((0.001, 0.02, 0.4), "log"), ((0.0, 0.001, 0.4), "symlog")],
)
def test_decades_are_logarithmic_and_a_part_that_changes_nothing_is_there(changes, scale):
    parts = [(f"part_{i}", "layer", {"FLOPs": 0.1}, change) for i, change in enumerate(changes)]
    (axes,) = plots.plan_points(parts).axes
    assert axes.get_yscale() == scale
    low, high = axes.get_ylim()
    assert all(low <= 100 * change <= high for change in changes)
    assert "10" in [axes.yaxis.get_major_formatter()(tick) for tick in (10.0, 1.0)]


def test_no_parts_are_an_error():
    with pytest.raises(ValueError, match="no parts"):
        plots.plan_points([])
