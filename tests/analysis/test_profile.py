"""The finished measurement."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from profiles import make

from keras_layer_entropy import EntropyProfile

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
    assert profile.unit == "normalised, 0 to 1"


def test_a_layer_without_known_class_is_nan():
    profile = make(values={"activation_entropy": np.full((4, 3), np.nan)})
    assert np.isnan(profile.mean).all()
    assert profile.flat() == ()


def test_json_round_trip(tmp_path):
    profile = make(baseline=make(epoch=None))
    profile.save(tmp_path / "deep" / "profile.json")
    loaded = EntropyProfile.load(tmp_path / "deep" / "profile.json")
    for field in dataclasses.fields(profile):
        if field.name not in ("baseline", "metrics", "values", "count", "normalizer"):
            assert getattr(loaded, field.name) == getattr(profile, field.name)
    for name, values in profile.values.items():
        np.testing.assert_array_equal(loaded.values[name], values)
        np.testing.assert_array_equal(loaded.baseline.values[name], values)
    np.testing.assert_array_equal(loaded.count, profile.count)
    np.testing.assert_array_equal(loaded.normalizer, profile.normalizer)
    assert loaded.metrics["loss"] == 0.5
    assert np.isnan(loaded.metrics["odd"])
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["profile.json"]
    text = (tmp_path / "deep" / "profile.json").read_text()
    assert "NaN" not in text
    assert json.loads(text)["format_version"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "not JSON"),
        ("[1]", "no profile"),
        ('{"format_version": 2}', "format version 2; this library reads version 1"),
        ('{"format_version": 1}', "damaged"),
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
    with pytest.raises(ValueError, match="units has 1 entries for 4 layers"):
        make(units=(4,))
    with pytest.raises(ValueError, match="holds no activation_entropy, only"):
        _ = make(values={"state_entropy": np.full((4, 3), 0.5)}).entropy


def test_with_classes():
    profile = make(baseline=make()).with_classes(["cat", "dog", "cow"])
    assert profile.classes == profile.baseline.classes == ("cat", "dog", "cow")


def test_patterns_are_kept_to_six_digits(tmp_path):
    patterns = {x: np.full((3, n), 1 / 3) for x, n in zip("abc", (4, 4, 4), strict=True)}
    patterns["out"] = np.array([[0.1, 0.2, 0.7], [np.nan] * 3, [1e-9, 0.5, 0.5]])
    profile = make(patterns=patterns)
    profile.save(tmp_path / "p.json")
    loaded = EntropyProfile.load(tmp_path / "p.json")
    for layer, want in patterns.items():
        np.testing.assert_allclose(loaded.patterns[layer], want, rtol=1e-6)
    assert loaded.with_classes("uvw").patterns["out"][2, 1] == 0.5
    with pytest.raises(ValueError, match=r"patterns\['out'\] has shape \(0,\); expected \(3, 3\)"):
        make(patterns={x: patterns[x] for x in "abc"})


def test_a_profile_of_an_earlier_version_opens(tmp_path):
    make().save(tmp_path / "p.json")
    data = json.loads((tmp_path / "p.json").read_text())
    del data["patterns"]
    (tmp_path / "p.json").write_text(json.dumps(data))
    assert EntropyProfile.load(tmp_path / "p.json").patterns == {}


def test_report(tmp_path):
    path = make().report(tmp_path / "report.html")
    assert "Layer entropy of" in path.read_text()
    with pytest.raises(FileExistsError, match="report.html exists: choose another name"):
        make().report(path)
    make().report(path, overwrite=True)
    with pytest.raises(ValueError, match="activation_entropy"):
        make(values={"state_entropy": np.ones((4, 3))}).report(tmp_path / "other.html")
    assert [child.name for child in tmp_path.iterdir()] == ["report.html"]
