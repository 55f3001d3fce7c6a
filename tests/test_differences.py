"""`compare` as a command: two profiles, two models, what is refused, and the commands by name."""

import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from command_lines import call, run

from keras_layer_entropy import EntropyProfile, __version__, analyze_model, save_model
from keras_layer_entropy.datasets import DatasetSpec
from keras_layer_entropy.files import local_path

pytestmark = pytest.mark.tensorflow


def network(units, seed=0):
    keras.utils.set_random_seed(seed)
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(units, "relu", name="a"),
            keras.layers.Dense(12, "relu", name="b"),
            keras.layers.Dense(10, "softmax", name="out"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


@pytest.fixture
def models(tmp_path):
    spec = DatasetSpec("digits", split="validation", scale=1 / 16, shape=(64,))
    return [
        save_model(network(units), tmp_path / name, dataset=spec)
        for units, name in ((16, "whole"), (6, "half"))
    ]


@pytest.fixture
def profiles(tmp_path):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(60, 64)).astype("float32"), np.arange(60) % 10
    paths = []
    for seed, name in ((0, "seed 0.json"), (1, "seed 1.json")):
        analyze_model(network(16, seed), (x, y), verbose=0).save(tmp_path / name)
        paths.append(tmp_path / name)
    return paths


@pytest.mark.slow
def test_two_models_and_what_is_measured_of_them(models, tmp_path):
    page = tmp_path / "diff.html"
    code, out, err = run("__main__", "compare", *models, "--report", page)
    assert code == 0, err
    assert re.search(r"whole +half +change", out)
    assert re.search(r"parameters +1,374 +604 +-56%", out)  # 16: 1040 204 130; 6: 390 84 130
    assert "Activation entropy" in out
    text = page.read_text()
    assert "<script" not in text
    assert "<h1>whole and half</h1>" in text
    # By hand: what changed most comes first, of every table with changes.
    for table in re.findall(r"<table>.*?</table>", text, re.DOTALL):
        header = re.findall(r'<th scope="col">(.*?)</th>', table, re.DOTALL)
        if "change" not in header:
            continue
        rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table, re.DOTALL)
        cells = [re.findall(r"<td>(.*?)</td>", row) for row in rows]
        place = len(cells[0]) - (len(header) - header.index("change"))
        changes = [row[place].replace("gone", "inf").rstrip("%") for row in cells]
        sizes = [abs(float(change)) for change in changes if change != "-"]
        assert sizes == sorted(sizes, reverse=True)
    assert "of the model" not in err

    code, _, err = call("differences", *models, "--report", page)
    assert code == 2
    assert "diff.html exists: choose another name" in err


def test_two_profiles(profiles):
    code, out, err = call("differences", *profiles)
    assert code == 0, err
    assert re.search(r"seed 0\.json +seed 1\.json +change", out)
    one, other = (EntropyProfile.load(path) for path in profiles)
    assert f"{other.mean[0] - one.mean[0]:+.3f}" in out
    code, out, _ = call("differences", *profiles, "--names=first seed,second seed")
    assert re.search(r"first seed +second seed", out)


def test_models_without_data_are_compared_as_they_are(tmp_path):
    paths = [tmp_path / "one.keras", tmp_path / "two.keras"]
    for path, units in zip(paths, (16, 6), strict=True):
        network(units).save(path)
    code, out, err = call("differences", *paths)
    assert code == 0, err
    assert "nothing was measured" in " ".join(out.split())
    assert re.search(r"one.keras +two.keras", out)


def test_data_that_are_recorded_beside_the_second(models, tmp_path):
    network(16).save(tmp_path / "plain.keras")
    code, out, err = call("differences", tmp_path / "plain.keras", models[1])
    assert code == 0, err
    assert "Activation entropy" in out


def test_what_is_refused(models, profiles, tmp_path):
    for arguments, words in (
        ([models[0]], "expected the path of a model or profile and that of another, and flags"),
        ([models[0], profiles[0]], "is a model"),
        ([models[0], tmp_path / "none"], "none"),
        ([*profiles, "--names=one"], "expected two different names"),
        ([*profiles, "--name=one"], "Unknown command line flag 'name'"),
    ):
        code, out, err = call("differences", *arguments)
        assert code == 2, out
        assert "error: " in err
        assert words in err


def test_a_profile_that_is_damaged_is_no_model(tmp_path, profiles):
    profiles[0].write_text("{")
    code, _, err = call("differences", *profiles)
    assert code == 2
    assert "is no profile: not JSON" in err


def test_paths_are_those_of_this_machine():
    with pytest.raises(ValueError, match="gs://"):
        local_path("gs://bucket/model")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 0, "keras_layer_entropy analyze --model"),
        (["--help"], 0, "keras_layer_entropy compare A B"),
        (["--version"], 0, __version__),
        (["analyse"], 2, "'analyse'; expected one of analyze, prune, compare"),
        (["analyze", "--help"], 0, "--measures"),
        (["prune", "--modle=x"], 2, "Unknown command line flag 'modle'"),
    ],
)
def test_commands_by_name(arguments, code, words):
    done = subprocess.run(
        [sys.executable, "-m", "keras_layer_entropy", *arguments], capture_output=True, text=True
    )
    # absl's own --help ends with 1.
    assert done.returncode == (1 if arguments == ["analyze", "--help"] else code), done.stderr
    assert words in done.stdout + done.stderr
