"""Two profiles, models or searches side by side: the table, the notes, the figure."""

import dataclasses
import math

import keras
import numpy as np
import pytest
from keras import layers
from models import Subclassed
from profiles import make

from keras_layer_entropy import PruningOptions, PruningResult, compare, plots
from keras_layer_entropy.measures import ActivationEntropy, LinearProbe, LogDet, MeasureResult
from keras_layer_entropy.pruning import PruningStep, Quality, count_flops

ENTROPY = "Activation entropy (normalised, 0 to 1), mean of the classes"
OTHER_NETWORKS = (
    "The networks have other layers or widths, which moves such numbers whatever was learned: "
    "compare each with its untrained twin, too."
)


def cells(comparison, title):
    """Name of each row of the section whose title begins so -> its other cells."""
    (section,) = (x for x in comparison.sections if x.title.startswith(title))
    assert all(len(row) == len(section.columns) for row in section.rows)
    return {row[0]: list(row[1:]) for row in section.rows}


def other():
    """The profile of `make` without its layer b, with one more, c narrower, other numbers."""
    return make(
        layers=("a", "new", "c", "out"),
        widths=(4, 6, 2, 3),
        results={
            "activation_entropy": [
                [0.8, np.nan, 0.75],
                [0.5, np.nan, 0.5],
                [0.25, np.nan, 0.8],
                [0.1, np.nan, 0.0],
            ],
            "state_entropy": np.full((4, 3), 0.25),
        },
        metrics={"loss": 0.25, "accuracy": 0.875},
        epoch=7,
    )


@pytest.mark.tensorflow
def test_profiles_layer_by_layer():
    comparison = compare(make(), other())
    assert comparison.names == ("epoch 4", "epoch 8")  # counted as `fit` prints them
    # By hand from the numbers of both: means of two classes, y has none.
    assert cells(comparison, ENTROPY) == {
        "a": ["4", "0.800", "0.775", "-0.025", "-0.100 (x)", "-"],
        "b": ["4", "0.797", "-", "-", "-", "gone"],
        "new": ["6", "-", "0.500", "-", "-", "new"],
        "c": ["4 -> 2", "0.875", "0.525", "-0.350", "-0.700 (x)", "rises"],
        "out": ["3", "0.150", "0.050", "-0.100", "-0.200 (z)", "output"],
    }
    state = cells(comparison, "On/off state entropy (bits), mean")
    assert state["a"] == ["4", "0.500", "0.250", "-0.250", "-0.250 (x)"]
    assert cells(comparison, "Activation entropy by class, mean of the layers that both") == {
        "x": ["5", "0.650", "0.383", "-0.267", "-0.700 (c)"],  # a, c and out
        "y": ["0", "-", "-", "-", "-"],
        "z": ["7", "0.567", "0.517", "-0.050", "-0.200 (out)"],
    }
    assert cells(comparison, "The model's own") == {
        "loss": ["0.5", "0.25", "-0.25"],
        "odd": ["-", "-", "-"],
        "accuracy": ["-", "0.875", "-"],
    }
    assert comparison.notes == [
        "Only epoch 4 has the layers b.",
        "Only epoch 8 has the layers new.",
        OTHER_NETWORKS,
    ]


@pytest.mark.tensorflow
def test_profiles_that_are_alike_have_nothing_to_say():
    comparison = compare(make(), make())
    assert comparison.names == ("first", "second")
    assert comparison.notes == []
    assert {row[3] for row in cells(comparison, ENTROPY).values()} == {"+0.000"}


@pytest.mark.tensorflow
def test_what_was_measured_otherwise_is_said():
    per_sample = ActivationEntropy("per_sample", normalization="none")
    second = make(
        measures={"activation_entropy": per_sample}, count=[5, 1, 9], settings={"data": 1}
    )
    comparison = compare(make(settings={"data": 2}), second, names=["one", "another"])
    units = f"'normalised, 0 to 1' and {per_sample.unit!r}"
    options = [
        "pattern='mean_then_softmax' of one, 'per_sample' of another",
        "normalization='log' of one, 'none' of another",
    ]
    assert comparison.notes == [
        *(f"activation_entropy was measured with {words}." for words in options),
        f"activation_entropy is in other units, {units}: they have no difference.",
        "The samples differ: 12 of one, 15 of another.",
        "one has no samples of y: the means are over other classes.",
        "The data differ: 2; 1.",
    ]
    rows = cells(comparison, "Activation entropy (normalised, 0 to 1 and ")
    assert rows["a"] == ["4", "0.800", "0.800", "-", "-", "-"]
    assert {row[3] for row in cells(comparison, "Activation entropy by").values()} == {"-"}
    assert cells(comparison, "On/off")["a"][3] == "+0.000"
    lower = comparison.figure().axes[1]
    assert np.isnan([bar.get_height() for bar in lower.patches]).all()


@pytest.mark.tensorflow
def test_options_of_functions_are_told_by_name():
    def root(units):
        return math.sqrt(units)

    measures = {"activation_entropy": ActivationEntropy(normalization=root)}
    notes = compare(make(), make(measures=measures)).notes
    assert any("normalization='log' of first, 'root' of second" in note for note in notes)
    assert compare(make(measures=measures), make(measures=measures)).notes == []


@pytest.mark.tensorflow
def test_samples_as_many_but_not_the_same():
    notes = compare(make(), make(count=[6, 0, 6])).notes
    assert notes == ["The samples differ: as many, but not of the same classes."]


@pytest.mark.tensorflow
def test_classes_are_matched_by_name():
    first = make()
    swapped = first.entropy[:, [2, 0, 1]]
    second = make(
        classes=("z", "x", "y"), count=[7, 5, 0], results={"activation_entropy": swapped - 0.05}
    )
    comparison = compare(first, second)
    assert comparison.notes == ["Of first alone is known: state_entropy."]
    rows = cells(comparison, "Activation entropy by class")
    assert [row[3] for row in rows.values()] == ["-0.050", "-", "-0.050"]
    assert [title for title in comparison.sections if "state" in title.title] == []


@pytest.mark.tensorflow
def test_other_classes_have_no_rows():
    comparison = compare(make(), make(classes=("x", "y", "w")))
    (note,) = comparison.notes
    assert note.endswith(
        "only their means stand here: first has x, y and z; second has x, y and w."
    )
    assert not any("by class" in section.title for section in comparison.sections)
    assert cells(comparison, ENTROPY)["b"] == ["4", "0.797", "0.797", "+0.000", "flat"]
    assert len(comparison.figure().axes[1].lines) == 1  # the zero, no marks of classes


@pytest.mark.tensorflow
def test_of_many_classes_those_that_change_most():
    names, shape = tuple(f"c{i}" for i in range(30)), (4, 30)
    change = np.where(np.arange(30) % 3 == 1, 0.01, 0.02 + 0.001 * np.arange(30))
    first, second = (
        make(classes=names, count=[1] * 30, results={"activation_entropy": 0.5 + x})
        for x in (np.zeros(shape), np.broadcast_to(change, shape))
    )
    comparison = compare(first, second)
    rows = cells(comparison, "Activation entropy by class, the 20 of 30 that change most")
    assert list(rows) == [name for i, name in enumerate(names) if i % 3 != 1]


@pytest.mark.tensorflow
def test_numbers_of_layers_as_a_whole():
    def profile(beta, shift):
        result = MeasureResult(np.full((4, 3), 1.0), {"input": [1.0, 2.0, np.nan, 4.0 + shift]})
        return make(results={"logdet": result}, measures={"logdet": LogDet(beta=beta)})

    comparison = compare(profile(1.0, 0.0), profile(2.0, 0.5))
    rows = cells(comparison, LogDet().words("input").title)
    assert rows["out"] == ["4.000", "4.500", "+0.500"]
    assert rows["c"] == ["-", "-", "-"]
    assert comparison.notes == ["logdet was measured with beta=1.0 of first, 2.0 of second."]
    assert comparison.figure().axes[0].get_ylabel().startswith("logdet")


@pytest.mark.tensorflow
def test_another_measure_of_the_same_name_is_not_compared():
    results = {"x": np.ones((4, 3)), "state_entropy": np.ones((4, 3))}
    first = make(results=results, measures={"x": LogDet(name="x")})
    second = make(results=results, measures={"x": LinearProbe(name="x")})
    comparison = compare(first, second)
    assert comparison.notes[0].startswith("x is another measure in each, logdet and linear_probe")
    assert [x.title for x in comparison.sections if "LogDet" in x.title] == []


@pytest.mark.tensorflow
def test_networks_that_were_made_one_after_the_other():
    """Keras counts on in the names of layers that have none."""
    names = ("dense", "dense_1", "block/dense_1#2", "out"), ("dense_3", "dense_4")
    first, second = make(layers=names[0]), make(layers=(*names[1], "block/dense_4#2", "out"))
    comparison = compare(first, dataclasses.replace(second, baseline=second))
    assert list(cells(comparison, ENTROPY)) == list(names[0])
    assert cells(comparison, ENTROPY)["dense_1"][:4] == ["4", "0.797", "0.797", "+0.000"]
    assert comparison.notes == [
        "The paths of layers differ in their numbers alone: the layers are taken in order."
    ]
    assert len(comparison.figure().axes[0].lines) == 3
    # A network that lost another layer keeps the names of the rest.
    pruned = make(layers=("dense", "dense_2", "block/dense_1#2", "out"))
    assert "dense_2" in cells(compare(first, pruned), ENTROPY)


@pytest.mark.tensorflow
def test_figure_of_profiles():
    comparison = compare(make(baseline=make()), other())
    above, below = comparison.figure().axes
    lines = {line.get_label(): line.get_ydata() for line in above.lines}
    assert list(lines) == ["epoch 4, untrained", "epoch 4", "epoch 8"]
    # In the order a, b, new, c, out; gaps where one has no such layer.
    np.testing.assert_allclose(lines["epoch 4"], [0.8, 0.7975, np.nan, 0.875, 0.15])
    np.testing.assert_allclose(lines["epoch 8"], [0.775, np.nan, 0.5, 0.525, 0.05])
    heights = [bar.get_height() for bar in below.patches]
    np.testing.assert_allclose(heights, [-0.025, np.nan, np.nan, -0.35, -0.1], atol=1e-12)
    marks = below.lines[0]
    assert marks.get_label() == "change of each class"
    np.testing.assert_allclose(
        np.reshape(marks.get_ydata(), (5, 3))[3], [-0.7, np.nan, 0.0], atol=1e-12
    )
    assert [x.get_text() for x in below.get_xticklabels()] == [
        "a (4)", "b (4)", "new (6)", "c (4 -> 2)", "out (3)"
    ]  # fmt: skip
    assert above.get_ylabel() == "activation entropy (normalised, 0 to 1)"
    assert above.get_ylim() == pytest.approx((-0.03, 1.03))
    tiny = make(results={"activation_entropy": make().entropy - 0.001})
    low, high = compare(make(), tiny).figure().axes[1].get_ylim()
    assert (low, high) == (-0.05, 0.05)  # a change of next to nothing does not fill the axes


@pytest.mark.tensorflow
def test_what_is_printed():
    first = make(layers=("[red]a[/red]", "b" * 90, "c", "out"))
    comparison = compare(first, first, names=("[b]one[/b]", "two"))
    text = str(comparison)
    assert text == repr(comparison)
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith(f"{ENTROPY}\n")  # in one line
    assert "[red]a[/red]" in text
    assert "[b]one[/b]" in text
    assert "Note" not in text
    assert str(compare(make(), other())).splitlines()[-2:] == [
        "Note: The networks have other layers or widths, which moves such numbers",
        "whatever was learned: compare each with its untrained twin, too.",
    ]
    plots.pixels(comparison.figure())  # lays it out


def stack(*units, name=None):
    """Dense layers of so many units, the last one the output."""
    hidden = [layers.Dense(n, "relu", name=f"d{i}") for i, n in enumerate(units[:-1])]
    output = layers.Dense(units[-1], name="out")
    return keras.Sequential([keras.Input((4,)), *hidden, output], name=name)


def heights(axes):
    return ["-" if np.isnan(x) else x for x in (bar.get_height() for bar in axes.patches)]


def test_models_layer_by_layer():
    first, second = stack(8, 6, 2, name="big"), stack(4, 2, name="small")
    comparison = compare(first, second)
    assert comparison.names == ("big", "small")
    # Inputs times units, and a bias for each unit.
    assert cells(comparison, "Layers with weights") == {
        "d0": ["8", "4", "40", "20", "-50%"],
        "d1": ["6", "-", "54", "-", "gone"],
        "out": ["2", "2", "14", "10", "-29%"],
    }
    flops = [count_flops(model).total for model in (first, second)]
    assert cells(comparison, "Costs") == {
        "Dense layers": ["3", "2", "-33%"],
        "parameters": ["108", "30", "-72%"],
        "FLOPs per sample": [*map(str, flops), f"{100 * (flops[1] / flops[0] - 1):.0f}%"],
    }
    assert comparison.notes == ["Only big has the layers d1."]
    assert cells(compare(second, first), "Layers with weights")["d1"][-1] == "new"
    units, parameters = comparison.figure().axes
    assert heights(units) == [8, 6, 2, 4, "-", 2]
    assert heights(parameters) == [40, 54, 14, 20, "-", 10]
    assert [x.get_text() for x in parameters.get_xticklabels()] == ["d0", "d1", "out"]
    assert units.get_legend_handles_labels()[1] == ["big", "small"]


def everything():
    """Weights in layers inside layers, in wrappers, cells and layers of several kinds."""
    inputs = keras.Input((6, 5), name="in")
    x = layers.MultiHeadAttention(3, 4, name="mha")(inputs, inputs)
    x = layers.TimeDistributed(layers.Dense(7, name="inner"), name="td")(x)
    x = layers.LayerNormalization(name="norm")(layers.Conv1D(9, 2, name="conv")(x))
    x = layers.Bidirectional(layers.LSTM(4), name="both")(x)
    x = keras.Sequential([layers.Dropout(0.5), layers.Dense(6, name="dense")], name="block")(x)
    return keras.Model(inputs, layers.Dense(2, name="out")(x), name="everything")


def test_every_parameter_has_its_layer():
    model = everything()
    comparison = compare(model, stack(3, 2))
    rows = cells(comparison, "Layers with weights")
    # Kernels and biases by hand: 5 features, 3 heads of 4.
    assert {path: row[:3:2] for path, row in rows.items() if not path.startswith("both")} == {
        "mha/query": ["12", "72"],
        "mha/key": ["12", "72"],
        "mha/value": ["12", "72"],
        "mha/attention_output": ["5", "65"],
        "td/inner": ["7", "42"],
        "conv": ["9", "135"],
        "norm": ["-", "18"],
        "block/dense": ["6", "54"],
        "d0": ["-", "-"],
        "out": ["2", "14"],
    }
    cells_of_lstm = [row for path, row in rows.items() if path.startswith("both")]
    assert [row[:3:2] for row in cells_of_lstm] == [["4", "224"]] * 2  # 4 (9 + 4 + 1) 4
    counts = [int(row[2].replace(",", "")) for row in rows.values() if row[2] != "-"]
    assert sum(counts) == model.count_params()
    title = comparison.figure().axes[0].get_title(loc="left")
    share = 18 / (model.count_params() + stack(3, 2).count_params())
    assert title.endswith(f"of each layer (other layers: {share:.1%} of all parameters)")


def test_models_that_are_code():
    first = Subclassed()
    first(np.zeros((1, 8), "float32"))
    comparison = compare(first, stack(5, 2, name="stack"), names=("code", "graph"))
    assert comparison.notes[0] == "The FLOPs of code are not counted: its call is code."
    assert cells(comparison, "Costs")["FLOPs per sample"][0] == "unknown"
    rows = cells(comparison, "Layers with weights")
    assert rows["first/first_a"] == ["6", "-", "54", "-", "gone"]

    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.scale = self.add_weight(shape=(3,), name="scale")

        def call(self, inputs):
            return inputs * self.scale

    own = Own()
    own(np.zeros((1, 3), "float32"))
    comparison = compare(own, own, names=("a", "b"))
    assert cells(comparison, "Layers with weights")["(the model itself)"][2:] == ["3", "3", "0%"]
    assert len(comparison.figure().axes[0].patches) == 2  # no layer has units: all are shown


def test_layers_without_weights_and_of_other_kinds():
    def model(*between, last):
        return keras.Sequential([keras.Input((4, 4)), *between, last])

    first = model(layers.Dropout(0.5, name="drop"), last=layers.Dense(3, name="last"))
    second = model(last=layers.Conv1D(3, 1, name="last"))
    assert compare(first, second, names=("a", "b")).notes == [
        "Only a has, without weights of their own, drop.",
        "last is a Dense in a, a Conv1D in b.",
    ]


def test_models_that_were_made_one_after_the_other():
    def model(units):
        inner = [layers.Dense(units, "relu"), layers.Dropout(0.5), layers.Dense(units)]
        return keras.Sequential([keras.Input((4,)), *inner, layers.Dense(2, name="out")])

    first, second = model(8), model(4)
    comparison = compare(first, second)
    names = [layer.name for layer in first.layers if layer.weights]
    rows = cells(comparison, "Layers with weights")
    assert list(rows) == names
    assert rows[names[1]] == ["8", "4", "72", "20", "-72%"]
    assert comparison.notes == [
        "The paths of layers differ in their numbers alone: the layers are taken in order."
    ]


def test_sizes_that_are_open_and_models_that_stay_as_they_are():
    inputs = keras.Input((None, 3))
    x = layers.Dropout(0.5)(layers.Lambda(lambda x: 2 * x, name="own")(inputs))
    model = keras.Model(inputs, layers.Dense(2, name="out")(x), name="open")
    before = [np.array(x) for x in model.variables]
    comparison = compare(model, model, names=("a", "b"))
    assert cells(comparison, "Costs")["FLOPs per sample"] == ["unknown", "unknown", "-"]
    assert "pass x, one sample or more" in comparison.notes[0]
    sample = np.ones((2, 5, 3), "float32")
    comparison = compare(model, model, names=("a", "b"), x=sample)
    flops = str(count_flops(model, sample).total)
    assert cells(comparison, "Costs")["FLOPs per sample, without own"] == [flops, flops, "0%"]
    assert comparison.notes == []
    for old, new in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, np.array(new))


def step(part, accepted=True, **changes):
    values = dict(
        kind="unit" if "units" in changes else "layer",
        part=part, members=(part,), criterion="last", score=0.0, reason="", accepted=accepted,
        quality_before=0.9, quality_removed=0.5, quality_retrained=0.8, residual=None,
        parameters=50, entropy={}, seconds=1.5, flops=100,
    )  # fmt: skip
    return PruningStep(**values | changes)


def result(*steps, model=None, before=None, quality=None, target_met=None, **options):
    before = before or make()
    return PruningResult(
        model=model or stack(8, 6, 2), steps=steps, before=before, after=before, reasons={},
        options=PruningOptions(**options), quality=quality or Quality(), target_met=target_met,
    )  # fmt: skip


def searches():
    first = result(
        step("b"), step("c", False),
        step("d", quality_retrained=0.7, standard_error=0.01, flops=80),
        model=stack(8, 2), criterion="last", target_met=True,
    )  # fmt: skip
    second = result(
        step("d", quality_before=0.9, quality_retrained=0.75, flops=90),
        step("units", units={"out": (0,), "d0": (1, 2, 3)}, quality_retrained=0.85, flops=70),
        step("units", units={"d1": (5,)}, accepted=False),
        step("e", kind="block", quality_retrained=0.82, flops=60),
        model=stack(4, 2), criterion="random", seed=5, target_met=False,
    )  # fmt: skip
    return first, second


def test_results():
    comparison = compare(*searches(), names=("one", "two"))
    # Five parameters for each unit of the first layer, and of the second one for each and a bias.
    assert cells(comparison, "The smaller networks")["parameters"] == ["58", "30", "-48%"]
    assert cells(comparison, "Quality on the validation data") == {
        "accuracy of the original": ["0.9000", "0.9000", "+0.0000"],
        "accuracy of the smaller one": ["0.7000", "0.8200", "+0.1200"],
        "standard error of what was lost": ["0.0100", "-", ""],
    }
    assert cells(comparison, "The searches") == {
        "steps": ["3", "4"],
        "of these rolled back": ["1", "1"],
        "seconds": ["4.5", "6.0"],
        "layers and blocks that went": ["2", "2"],
        "units that went": ["0", "4"],
        "target met": ["yes", "no"],
    }
    assert cells(comparison, "Options that differ") == {
        "criterion": ["last", "random"],
        "seed": ["0", "5"],
    }
    assert cells(comparison, "What went") == {
        "layer b": ["1", "-"],
        "layer d": ["2", "1"],
        "block e": ["-", "3"],
    }
    assert cells(comparison, "Units that went") == {
        "d0": ["-", "3", "0"],
        "out": ["-", "1", "0"],
    }
    assert comparison.notes == []


def test_units_that_went_in_both():
    first = result(step("u", units={"d0": (1, 2), "d1": (0,)}), step("v", units={"d0": (5,)}))
    second = result(step("u", units={"d0": (5, 1, 7)}))
    assert cells(compare(first, second), "Units that went") == {
        "d0": ["3", "3", "2"],
        "d1": ["1", "-", "0"],
    }


def test_figure_of_results():
    axes = compare(*searches(), names=("one", "two")).figure().axes[0]
    lines = {line.get_label(): np.transpose(line.get_data()).tolist() for line in axes.lines}
    assert lines == {
        "one": [[100, 0.8], [80, 0.7]],
        "one, rolled back": [[100, 0.8]],
        "two": [[90, 0.75], [70, 0.85], [60, 0.82]],
        "two, rolled back": [[100, 0.8]],
        "one and two, original": [[0, 0.9], [1, 0.9]],
    }
    assert len(axes.lines) == len(lines)
    assert axes.xaxis_inverted()
    assert axes.get_xlabel() == "FLOPs per sample left"
    # Parameters, where a step does not know its FLOPs.
    unknown = compare(result(step("b", flops=None)), result(step("c")))
    assert unknown.figure().axes[0].get_xlabel() == "parameters left"


def test_results_of_other_searches():
    loss = Quality("loss", higher=False)
    steps = step("b", quality_before=2.0, quality_retrained=2.5)
    shorter = make(count=[5, 0, 4], widths=(5, 4, 4, 3))
    comparison = compare(result(step("b")), result(steps, quality=loss, before=shorter))
    assert cells(comparison, "Quality") == {
        "accuracy of the original": ["0.9000", "-", "-"],
        "accuracy of the smaller one": ["0.8000", "-", "-"],
        "loss of the original": ["-", "2.0000", "-"],
        "loss of the smaller one": ["-", "2.5000", "-"],
    }
    assert comparison.notes == [
        "The searches began with other networks: what went is not of the same one.",
        "The validation data differ: 12 samples of first, 9 of second.",
        "The searches held on to other qualities, which have no difference.",
    ]
    panels = comparison.figure().axes
    assert [axes.get_ylabel() for axes in panels] == ["validation accuracy", "validation loss"]
    assert [axes.lines[0].get_label() for axes in panels] == ["first", "second"]


def test_searches_that_began_otherwise_or_did_nothing():
    better = result(step("b", quality_before=0.95))
    assert "not equally good" in compare(result(step("b")), better).notes[0]
    comparison = compare(result(step("b")), result())
    assert cells(comparison, "Quality")["accuracy of the smaller one"] == ["0.8000", "-", "-"]
    assert comparison.notes == ["second tried nothing, and so tells no quality."]
    assert [line.get_label() for line in comparison.figure().axes[0].lines][-1] == "first, original"


@pytest.mark.parametrize(
    ("pair", "options", "error", "words"),
    [
        (lambda: (make(), stack(2)), {}, TypeError, "an EntropyProfile and a Sequential; expected"),
        (lambda: (result(), make()), {}, TypeError, "a PruningResult and an EntropyProfile"),
        (lambda: ([1], "a"), {}, TypeError, "a list and a str; expected two EntropyProfiles"),
        (lambda: (make(), make()), {"names": ("a", "a")}, ValueError, "two different names"),
        (lambda: (make(), make()), {"names": "ab"}, ValueError, "two different names"),
        (lambda: (make(), make()), {"names": 2}, ValueError, "two different names"),
        (lambda: (make(), make()), {"x": np.ones(2)}, ValueError, "profiles have none"),
        (
            lambda: (make(), make(layers=("k", "l", "m", "n"))),
            {}, ValueError, "no layer in common: a, b, c and out; k, l, m and n",
        ),
        (
            lambda: (make(), make(results={"logdet": np.ones((4, 3))})),
            {}, ValueError, "no measure in common",
        ),
        (
            lambda: (stack(2), keras.Sequential([layers.Dense(3)], name="unbuilt")),
            {}, ValueError, "'unbuilt' is not built",
        ),
    ],
)  # fmt: skip
def test_errors(pair, options, error, words):
    with pytest.raises(error, match=words):
        compare(*pair(), **options)
