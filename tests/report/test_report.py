"""The table, the files and the words."""

import dataclasses
import io
import math
import os
import re

import numpy as np
import pytest
import rich.console
from profiles import make

from keras_layer_entropy import EntropyProfile, report
from keras_layer_entropy.pruning import (
    Cost,
    PruningOptions,
    PruningResult,
    PruningStep,
    Quality,
)
from keras_layer_entropy.report.tables import comparison_rows

pytestmark = pytest.mark.tensorflow  # no backend in it


def rendered(table):
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return [line.split() for line in console.export_text().splitlines() if line.strip()]


def test_table():
    lines = rendered(report.table(make(baseline=make())))
    rows = {line[0]: line for line in lines}
    assert rows["a"] == "a 4 0.800 0.700 (z) 0.900 (x) - 0.800 0.500".split()
    assert rows["b"] == "b 4 0.797 0.695 (z) 0.900 (x) +0.003 flat 0.797 0.500".split()
    assert rows["c"] == "c 4 0.875 0.800 (z) 0.950 (x) -0.078 rises 0.875 0.500".split()
    assert rows["out"] == "out 3 0.150 0.100 (x) 0.200 (z) +0.725 output 0.150 0.500".split()
    assert rendered(report.table(make(), tolerance=0.001))[-3][8] == "falls"


def test_table_of_unknown_values():
    values = {"activation_entropy": np.full((4, 3), np.nan)}
    lines = rendered(report.table(make(results=values)))
    assert lines[-1] == "out 3 - - - - output".split()


def test_files(tmp_path):
    profile = make()
    paths = report.save_profile(profile, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == list(report.FILES)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(report.FILES)
    np.testing.assert_array_equal(EntropyProfile.load(paths[0]).entropy, profile.entropy)
    for path in paths[2:]:
        assert path.read_bytes().startswith(b"\x89PNG")
    before = paths[0].stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="would be overwritten"):
        report.save_profile(profile, tmp_path / "new" / "folder")
    assert paths[0].stat().st_mtime_ns == before
    report.save_profile(profile, tmp_path / "new" / "folder", overwrite=True)


def summary(entropy, baseline=None, **options):
    """Of layers a, b, c, out with these means."""
    profiles = [
        make(results={"activation_entropy": np.repeat(np.reshape(x, (4, 1)), 3, axis=1)})
        for x in (entropy, baseline or entropy)
    ]
    twin = profiles[1] if baseline else None
    return report.summary(dataclasses.replace(profiles[0], baseline=twin), **options)


def test_summary():
    assert summary([0.9, 0.8, 0.7, 0.1]) == (
        "Entropy never rises with depth: 0.900 in a, 0.100 in out. No layer is flat: entropy falls "
        "by 0.01 or more over each."
    )
    assert summary([0.9, 0.895, 0.893, 0.1], [0.9, 0.9, 0.9, 0.7]) == (
        "Entropy never rises with depth: 0.900 in a, 0.100 in out. It falls by 0.800 in all; in "
        "the untrained network it falls by 0.200. b and c are candidates for removal: entropy "
        "falls by less than 0.01 over each."
    )
    assert summary([0.9, 0.95, 0.7, 0.95], [0.9, 0.9, 0.9, 0.98]) == (
        "Entropy rises over b and out: 0.900 in a, 0.950 in out. In the untrained network it rises "
        "by 0.080. b is a candidate for removal: entropy falls by less than 0.01 or rises over it."
    )
    assert summary([0.9, np.nan, 0.7, 0.1]) == "No entropy of b: the activations are not finite."
    assert summary([0.9, 0.9001, 0.7, 0.1], [0.9, 0.9, 0.9, 0.9001]) == (
        "Entropy never rises with depth: 0.900 in a, 0.100 in out. It falls by 0.800 in all; in "
        "the untrained network it stays the same. b is a candidate for removal: entropy falls by "
        "less than 0.01 over it."  # 0.0001 is no rise
    )
    assert "untrained network's activations are not finite" in summary(
        [0.9, 0.8, 0.7, 0.1], [0.9, 0.9, 0.9, np.nan]
    )
    assert report.summary(make(count=[0, 0, 0])) == "No class has samples."


def test_summary_of_one_layer_and_of_two():
    def of(**entropy):
        layers = tuple(entropy)
        return report.summary(EntropyProfile(
            layers=layers, widths=[4] * len(layers), is_output=[False] * len(layers),
            classes=("x",), count=[1],
            results={"activation_entropy": np.array([*entropy.values()])[:, None]},
        ))  # fmt: skip

    assert of(a=0.5) == "The one layer, a, has entropy 0.500."
    assert of(a=0.5, b=0.25).startswith("Entropy never rises with depth: 0.500 in a, 0.250 in b.")


def test_summary_takes_the_tolerance_and_shortens_lists():
    assert "No layer is flat: entropy falls by 0.001" in summary(
        [0.9, 0.89, 0.8, 0.1], tolerance=0.001
    )
    names = [f"d{i}" for i in range(10)]
    profile = EntropyProfile(
        layers=names, widths=[4] * 10, is_output=[False] * 10, classes=("x",), count=[1],
        results={"activation_entropy": np.full((10, 1), 0.5)},
    )  # fmt: skip
    assert "d1, d2, d3, d4, d5, d6 and 3 more are candidates" in report.summary(profile)


def test_a_history_of_another_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="history holds profiles of other layers"):
        make().report(tmp_path / "r.html", history=[make(layers=("a", "b", "c", "end"))])
    assert not list(tmp_path.iterdir())


def test_names_that_are_no_text(tmp_path):
    """Names of folders may hold bytes that are no UTF-8."""
    profile = make(classes=("\udce9t", "y", "z"), layers=("\ud800", "b", "c\n", "out"))
    assert "layers" in profile.report(tmp_path / "r.html").read_text()


def test_pruning_where_the_profiles_hold_other_measures(tmp_path):
    entropy = {"activation_entropy": make().entropy}
    result = PruningResult(None, (), make(), make(), {}, PruningOptions(), Quality())
    costs = (Cost(4, 0, 0, {1: 0.0}), Cost(4, 0, 0, {1: 0.0}))
    pruning = report.Pruning(result, costs, {"validation": (0.5, 0.5), "test": (0.5, 0.5)})
    page = make(results=entropy).report(tmp_path / "r.html", pruning=pruning).read_text()
    assert "<td>-</td>" in page  # no ratio of nothing to nothing


def test_operations_that_are_not_known_are_said():
    step = PruningStep(
        kind="layer", part="b", members=("b",), criterion="last", score=0.0, reason="it is last",
        accepted=True,
        quality_before=0.5, quality_removed=0.5, quality_retrained=0.5, residual=None,
        parameters=50, entropy={}, seconds=1.0,
    )  # fmt: skip
    result = PruningResult(None, (step,), make(), make(), {}, PruningOptions("last"), Quality())
    costs = (Cost(4, 100, 200, {}, ("own", "b")), Cost(3, 50, 100, {}, ("own",)))
    pruning = report.Pruning(result, costs, {"validation": (0.5, 0.5), "test": (0.5, 0.5)})
    assert pruning.summary().endswith("FLOPs leave out own and b, whose operations are not known.")
    rows = comparison_rows(*costs, Quality(), **pruning.qualities)
    assert rows[2] == ("FLOPs per sample, without own and b", "200", "100", "0.50")
    code = Cost(4, 100, None, {}, ("code",))
    rows = comparison_rows(code, costs[1], Quality(), **pruning.qualities)
    assert rows[2] == ("FLOPs per sample, without code and own", "unknown", "100", "-")


def of_units(steps, widths=(), target=None, met=None, **options):
    options = PruningOptions(remove="units", target=target, **options)
    quality = Quality() if target is None else Quality(drop=math.inf)
    result = PruningResult(None, steps, make(), make(), {}, options, quality, target_met=met)
    costs = (Cost(2, 1000, 4000, {}), Cost(2, 500, 1000, {}))
    qualities = {"validation": (0.9, 0.8), "test": (0.88, 0.77)}
    return report.Pruning(result, costs, qualities, widths=dict(widths))


def batch(**changes):
    return PruningStep(**{**dict(
        kind="unit", part="3 units of 2 layers", members=("a", "b"), criterion="reconstruction",
        score=0.1,
        reason="it is cheap", accepted=True, quality_before=0.9, quality_removed=0.7,
        quality_retrained=0.8, residual=0.1, parameters=500, entropy={}, seconds=1.0,
        units={"a": (1,), "b": (0, 2)}, flops=1000,
    ), **changes})  # fmt: skip


WIDTHS = {
    "a": report.Thinning(4, 3, (1,)),
    "b": report.Thinning(5, 3, (0, 2)),
    "out": report.Thinning(3, 3),
}


def test_what_came_of_a_search_for_units():
    words = (
        "3 of 12 units went, of 2 layers; FLOPs -75%, parameters -50%. Validation accuracy 0.9000 "
        "before, 0.8000 after; test accuracy 0.8800 and 0.7700."
    )
    assert of_units((batch(),), WIDTHS).summary() == words
    target = {"flops": 0.3, "parameters": 0.3}
    wanted = "The target, at most 30% of the FLOPs and 30% of the parameters, is"
    assert of_units((batch(),), WIDTHS, target, True).summary() == f"{words} {wanted} met."
    steps = (batch(), batch(accepted=False))
    assert of_units(steps, WIDTHS, target, False).summary() == (
        f"{words} {wanted} not met: 25.0% of the FLOPs and 50.0% of the parameters are left. "
        "Batches of units that were rolled back: 1."
    )
    whole = {"out": WIDTHS["out"]}
    assert of_units((batch(accepted=False),), whole).summary() == (
        "No units were taken out: accuracy has to be at least 0.8900, and came no nearer than "
        "0.8000 without 3 units of 2 layers. A larger max_drop, or more epochs of training after "
        "each removal, would change that."
    )
    words = "No units were taken out: there are none that may go."
    assert of_units((), whole).summary() == words
    known = (batch(accepted=False, quality_retrained=0.895, standard_error=0.01),)
    assert of_units(known, whole).summary() == (
        "No units were taken out: accuracy has to be at least 0.8900, and came no nearer than "
        "0.8950 ± 0.0100, which counts against it, without 3 units of 2 layers. A larger "
        "max_drop, more validation samples, or more epochs of training after each removal, would "
        "change that."
    )


def test_the_points_of_a_search_for_units_lie_at_what_is_left():
    steps = (
        batch(flops=2000),
        batch(flops=1000, accepted=False, quality_retrained=0.2),
        batch(flops=1500),
    )
    expected = [
        (1.0, 0.9, "original"),
        (0.5, 0.7, "right after removal"),
        (0.5, 0.8, "after retraining"),
        (0.25, 0.2, "rolled back"),
        (0.375, 0.7, "right after removal"),
        (0.375, 0.8, "after retraining"),
    ]
    assert of_units(steps).points == expected
    assert of_units(steps, epochs=0).points == [x for x in expected if x[2] != "after retraining"]
    by_parameters = of_units(steps, WIDTHS, {"parameters": 0.5}, False)
    assert [place for place, _, kind in by_parameters.points if "right" in kind] == [0.5, 0.5]
    widths, accuracies = by_parameters.figure().axes
    assert [bar.get_height() for bar in widths.patches] == [4, 5, 3, 3, 3, 3]
    assert accuracies.get_xlabel() == "parameters left (per cent)"
    # With a target accuracy has no limit of its own, and none is drawn.
    assert "limit" not in [line.get_label() for line in accuracies.lines]
    limited = of_units(steps, WIDTHS).figure().axes[1]
    assert limited.lines[-1].get_ydata()[0] == pytest.approx(0.89)  # 0.9 - 0.01
    assert limited.xaxis_inverted()


def test_many_units_are_shortened():
    assert report.Thinning(30, 10, tuple(range(20))).words() == (
        f"{', '.join(map(str, range(12)))} and 8 more"
    )
    assert report.Thinning(3, 3).words() == "-"


def test_a_page_of_units_speaks_of_units(tmp_path):
    widths = {**WIDTHS, "c": report.Thinning(40, 10, tuple(range(30)), tied=("a", "b"))}
    pruning = of_units((batch(),), widths, {"flops": 0.3}, True, epochs=0)
    page = make().report(tmp_path / "r.html", pruning=pruning).read_text()
    section = page[page.index("What pruning did") : page.index("The network before")]
    text = " ".join(
        re.sub("<[^>]*>", " ", re.sub("<svg.*?</svg>", "", section, flags=re.S)).split()
    )
    assert "b 5 3 0 and 2 - " in text
    assert "c 40 10 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 and 18 more a , b " in text
    assert "out 3 3" not in text
    assert "1 3 units of 2 layers removed 0.9000 0.7000 - 1.0 it is cheap" in text
    assert "Every removal was accepted: accuracy had no limit." in text
    assert "retrain" not in text
    for word in ("this layer", "as layers went", "taken out"):
        assert word not in section
