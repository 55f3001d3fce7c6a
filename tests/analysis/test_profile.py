"""The finished measurement."""

import csv
import dataclasses
import json
import pickle

import numpy as np
import pytest
from profiles import make, with_patterns

from keras_layer_entropy import EntropyProfile, report
from keras_layer_entropy.measures import ActivationEntropy, LogDet, MeasureResult

pytestmark = pytest.mark.tensorflow  # no backend in it


def test_derived_numbers():
    profile = make()
    np.testing.assert_allclose(profile.mean, [0.8, 0.7975, 0.875, 0.15])
    np.testing.assert_allclose(profile.gradient, [np.nan, 0.0025, -0.0775, 0.725])
    np.testing.assert_allclose(profile.entropy_nats[3], np.log(3) * np.array([0.1, np.nan, 0.2]))
    assert profile.flat() == ("b", "c")
    assert profile.flat(tolerance=0) == ("c",)
    assert profile.flat(tolerance=1.0) == ("b", "c")  # neither the first nor the output
    assert (profile.is_monotone(), profile.is_monotone(0.08)) == (False, True)
    assert profile.entropy_unit == "normalised, 0 to 1"


def test_a_layer_without_known_class_is_nan():
    profile = make(results={"activation_entropy": np.full((4, 3), np.nan)})
    assert np.isnan(profile.mean).all()
    assert profile.flat() == ()


def same(one, other):
    """Whether two profiles hold the same, but for what JSON rounds."""
    for name in ("layers", "widths", "is_output", "classes", "epoch", "settings"):
        assert getattr(one, name) == getattr(other, name)
    np.testing.assert_array_equal(one.count, other.count)
    assert list(one.results) == list(other.results)
    for name, want in one.results.items():
        found = other[name]
        assert (found.unit, repr(other.measures[name])) == (want.unit, repr(one.measures[name]))
        np.testing.assert_array_equal(found.per_class, want.per_class)
        np.testing.assert_array_equal(found.normalizer, want.normalizer)
        for key, values in want.columns(name).items():
            np.testing.assert_array_equal(found.columns(name)[key], values)
        assert {k: list(v) for k, v in found.details.items()} == {
            k: list(v) for k, v in want.details.items()
        }
    assert (one.baseline is None) == (other.baseline is None)
    if one.baseline is not None:
        same(one.baseline, other.baseline)


def test_json_round_trip(tmp_path):
    logdet = MeasureResult(np.ones((4, 3)), {"input": range(4)}, {"input": [np.nan] * 4}, "nats")
    results = {**make().results, "wide": logdet}
    profile = make(
        baseline=make(epoch=None), results=results, measures={"wide": LogDet(beta=2.0, name="wide")}
    )
    profile.save(tmp_path / "deep" / "profile.json")
    loaded = EntropyProfile.load(tmp_path / "deep" / "profile.json")
    same(profile, loaded)
    assert loaded.metrics["loss"] == 0.5
    assert np.isnan(loaded.metrics["odd"])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["profile.json"]
    text = (tmp_path / "deep" / "profile.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["format_version"] == 2


def test_a_normalization_of_ones_own_comes_back(tmp_path):
    """A function cannot be written, but what it gave is."""
    measure = ActivationEntropy(normalization=lambda n: n**0.5)
    profile = make(
        results={"activation_entropy": np.full((4, 3), 0.5)},
        measures={"activation_entropy": measure},
    )
    profile.save(tmp_path / "p.json")
    loaded = EntropyProfile.load(tmp_path / "p.json")
    np.testing.assert_allclose(loaded.entropy_nats[:, 0], 0.5 * np.sqrt([4, 4, 4, 3]))
    assert loaded.entropy_unit == "normalised"
    normalization = loaded.measures["activation_entropy"].options["normalization"]
    assert normalization.__name__ == "<lambda>"
    assert [normalization(4), normalization(3)] == [2.0, 3**0.5]


def test_a_measure_that_is_not_known_here(tmp_path):
    profile = make()
    profile.save(tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text())
    data["measures"]["state_entropy"]["measure"] = "somebody_elses"
    (tmp_path / "p.json").write_text(json.dumps(data))
    loaded = EntropyProfile.load(tmp_path / "p.json")
    np.testing.assert_array_equal(
        loaded["state_entropy"].per_class, profile["state_entropy"].per_class
    )
    assert loaded.measures["state_entropy"].title == "state entropy"
    assert "not known here" in loaded.report(tmp_path / "r.html").read_text()
    again = tmp_path / "again.json"
    loaded.save(again)
    assert json.loads(again.read_text())["measures"] == data["measures"]


VERSION_1 = {
    "format_version": 1,
    "layers": ["a", "out"], "units": [4, 1], "outputs": [False, True], "classes": ["x", "y"],
    "count": [3, 4], "normalizer": [1.5, 2.5], "metrics": {"loss": None}, "epoch": 2,
    "values": {
        "activation_entropy": [[0.5, None], [0.25, 0.125]],
        "logdet": [[1.0, 2.0], [3.0, 4.0]],
    },
    "layer_values": {"logdet_input": [5.0, 6.0], "logdet_input_shuffled": [0.5, 0.25],
                     "logdet_total_correlation": [0.0, 1.0]},
    "patterns": {"a": [[0.25] * 4, [0.5, 0.5, 0.0, 0.0]], "out": [[0.5, 0.5], [0.25, 0.75]]},
    "settings": {"pattern": "softmax_then_mean", "normalization": "own", "model": "m",
                 "measures": {"logdet": {"beta": 1.0, "samples": 50}}},
}  # fmt: skip


def test_what_0_1_wrote_opens(tmp_path):
    old = {**VERSION_1, "baseline": {**VERSION_1, "baseline": None}}
    del old["baseline"]["format_version"]
    (tmp_path / "p.json").write_text(json.dumps(old))
    profile = EntropyProfile.load(tmp_path / "p.json")
    assert (profile.widths, profile.is_output) == ((4, 1), (False, True))
    np.testing.assert_array_equal(profile.entropy, [[0.5, np.nan], [0.25, 0.125]])
    np.testing.assert_array_equal(profile.entropy_nats[1], [0.625, 0.3125])
    assert profile.entropy_unit == "normalised"
    assert profile.measures["activation_entropy"].options["pattern"] == "softmax_then_mean"
    assert profile.measures["logdet"].options == {"beta": 1.0, "samples": 50}
    np.testing.assert_array_equal(profile["logdet"].whole["input"], [5, 6])
    np.testing.assert_array_equal(profile["logdet"].whole["total_correlation"], [0, 1])
    np.testing.assert_array_equal(profile["logdet"].shuffled["input"], [0.5, 0.25])
    assert set(profile["logdet"].whole) == {"input", "total_correlation"}
    np.testing.assert_array_equal(profile.patterns["out"], [[0.5, 0.5], [0.25, 0.75]])
    np.testing.assert_array_equal(profile.baseline.entropy, profile.entropy)
    for missing in ("patterns", "layer_values"):  # as the first versions wrote them
        del old[missing], old["baseline"][missing]
    (tmp_path / "p.json").write_text(json.dumps(old))
    assert EntropyProfile.load(tmp_path / "p.json").patterns == {}
    profile.save(tmp_path / "new.json")
    same(profile, EntropyProfile.load(tmp_path / "new.json"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not JSON"),
        ("[1]", "no profile"),
        ('{"format_version": 3}', "format version 3; this library reads versions up to 2"),
        ('{"format_version": 1}', "damaged"),
        ('{"format_version": 2}', "damaged"),
    ],
)
def test_other_files_are_refused(text, message, tmp_path):
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        EntropyProfile.load(tmp_path / "p.json")


def test_csv_and_records(tmp_path):
    profile = make()
    profile.to_csv(tmp_path / "p.csv")
    with open(tmp_path / "p.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(profile.to_records()) == 12
    assert rows[0] == {
        "layer": "a",
        "units": "4",
        "output": "False",
        "class": "x",
        "count": "5",
        "activation_entropy": "0.9",
        "state_entropy": "0.5",
    }
    assert rows[1]["activation_entropy"] == ""
    assert np.isnan(profile.to_records()[1]["activation_entropy"])


def test_immutable():
    profile = make()
    with pytest.raises(dataclasses.FrozenInstanceError):
        profile.epoch = 4
    with pytest.raises(ValueError, match="read-only"):
        profile.entropy[0, 0] = 1


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"count has shape \(2,\); expected \(3,\)"):
        make(count=[1, 2])
    with pytest.raises(ValueError, match="widths has 1 entries for 4 layers"):
        make(widths=(4,))
    with pytest.raises(ValueError, match="holds no activation_entropy, only"):
        _ = make(results={"state_entropy": np.full((4, 3), 0.5)}).entropy


def test_with_classes():
    profile = make(baseline=make()).with_classes(["cat", "dog", "cow"])
    assert profile.classes == profile.baseline.classes == ("cat", "dog", "cow")


def test_details_are_kept_to_six_digits(tmp_path):
    patterns = {x: np.full((3, n), 1 / 3) for x, n in zip("abc", (4, 4, 4), strict=True)}
    patterns["out"] = np.array([[0.1, 0.2, 0.7], [np.nan] * 3, [1e-9, 0.5, 0.5]])
    profile = with_patterns(patterns)
    profile.save(tmp_path / "p.json")
    loaded = EntropyProfile.load(tmp_path / "p.json")
    for layer, want in patterns.items():
        np.testing.assert_allclose(loaded.patterns[layer], want, rtol=1e-6)
    assert loaded.with_classes("uvw").patterns["out"][2, 1] == 0.5


def test_names_that_are_not_there():
    with pytest.raises(ValueError, match="holds no logdet, only .*'activation_entropy'"):
        make()["logdet"]
    with pytest.raises(ValueError, match="measures='mine'; expected some of"):
        make(results={"mine": np.ones((4, 3))})


def test_report(tmp_path):
    path = make().report(tmp_path / "report.html")
    assert "Layer entropy of" in path.read_text()
    with pytest.raises(FileExistsError, match="report.html exists: choose another name"):
        make().report(path)
    make().report(path, overwrite=True)
    with pytest.raises(ValueError, match="activation_entropy"):
        make(results={"state_entropy": np.ones((4, 3))}).report(tmp_path / "other.html")
    assert [child.name for child in tmp_path.iterdir()] == ["report.html"]


def test_profiles_are_pickled_whatever_their_normalization():
    measure = ActivationEntropy(normalization=lambda n: 2.0 * n)
    profile = make(
        results={"activation_entropy": np.full((4, 3), 0.5)},
        measures={"activation_entropy": measure},
        baseline=make(),
    )
    again = pickle.loads(pickle.dumps(profile))
    same(again, profile)
    with pytest.raises(ValueError, match="'<lambda>' of a saved profile nobody knows what it is"):
        again.measures["activation_entropy"].options["normalization"](77)


def test_some_layers_come_in_the_order_of_the_profile():
    part = with_patterns({x: np.full((3, 4), 0.25) for x in "abc"} | {"out": np.ones((3, 3))})
    assert list(part.of_layers(["c", "a"]).patterns) == ["a", "c"]


def test_patterns_have_the_shape_of_their_layer():
    patterns = {x: np.full((3, 4), 0.25) for x in ("a", "b", "c", "out")}
    with pytest.raises(ValueError, match=r"pattern of 'out' has shape \(3, 4\); expected \(3, 3\)"):
        with_patterns(patterns)


def test_a_layer_that_is_not_finite_is_told_where_nothing_else_is_known():
    values = np.full((4, 3), 0.5)
    values[1] = np.nan
    profile = make(results={"activation_entropy": values, "state_entropy": np.full((4, 3), 0.5)})
    assert profile.judged.tolist() == [True] * 4
    assert report.summary(profile) == "No entropy of b: the activations are not finite."
