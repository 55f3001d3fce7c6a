"""The command line on real files; in a process of its own where that matters."""

import csv
import html
import os

import keras
import numpy as np
import pytest
from command_lines import call, run

from keras_layer_entropy import EntropyProfile, analyze_model, report, save_model
from keras_layer_entropy.datasets import DatasetSpec, load_dataset
from keras_layer_entropy.files import claimed
from keras_layer_entropy.measures import ActivationEntropy

pytestmark = pytest.mark.tensorflow


@pytest.fixture
def saved(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Dense(16, "relu", name="a"),
            keras.layers.Dense(10, "softmax", name="out"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    spec = DatasetSpec("digits", split="validation", scale=1 / 16, shape=(64,))
    return model, save_model(model, tmp_path / "saved_model", dataset=spec)


@pytest.mark.slow
def test_the_model_alone_is_enough(saved, tmp_path):
    model, path = saved
    code, out, err = run("analyze", "--model", path, "--output", tmp_path / "result")
    assert code == 0, err
    data = load_dataset(DatasetSpec("digits", split="validation", shape=(64,))).arrays
    want = analyze_model(model, data, baseline=True, verbose=0)
    found = EntropyProfile.load(tmp_path / "result" / "profile.json")
    np.testing.assert_allclose(found.entropy, want.entropy, atol=1e-6)
    np.testing.assert_allclose(found.baseline.entropy, want.baseline.entropy, atol=1e-6)
    assert found.metrics == pytest.approx(want.metrics, rel=1e-5)
    assert found.classes == tuple("0123456789")
    assert set(found.results) == {"activation_entropy", "instability", "state_entropy"}
    assert "digits, split validation, inputs times 0.0625, as (64,)" in out
    assert f"{want.mean[0]:.3f}" in out
    assert "trained" in out
    with open(tmp_path / "result" / "profile.csv") as file:
        assert len(list(csv.DictReader(file))) == 20
    assert sorted(os.listdir(tmp_path / "result")) == [
        "entropy.png",
        "heatmap.png",
        "profile.csv",
        "profile.json",
    ]

    code, _, err = call("analyze", "--model", path, "--output", tmp_path / "result")
    assert code == 2
    assert "would be overwritten: choose another folder, or pass --overwrite" in err


@pytest.mark.slow
def test_report(saved, tmp_path):
    path = tmp_path / "deep" / "report.html"
    arguments = ("analyze", "--model", saved[1], "--report", path)
    code, out, err = call(*arguments, "--output", tmp_path)
    assert code == 0, err
    assert f"wrote {path}" in out
    profile = EntropyProfile.load(tmp_path / "profile.json")
    assert report.summary(profile) in out
    page = path.read_text()
    assert "digits, split validation, inputs times 0.0625, as (64,)" in page
    command = f"python -m keras_layer_entropy.analyze --model {saved[1]} --report {path} --output"
    assert command in html.unescape(page)
    assert profile.settings["command"].startswith(command)
    assert "Patterns of" in page
    code, _, err = call(*arguments)
    assert code == 2
    assert "report.html exists: choose another name, or pass --overwrite" in err
    entropy = "activation_entropy:pattern=per_sample"
    code, out, err = call(*arguments, "--overwrite", f"--measures={entropy},logdet")
    assert code == 0, err
    assert "per_sample" in path.read_text()
    code, _, err = call("analyze", "--model", saved[1], "--report", tmp_path)
    assert code == 2
    assert "is a folder; expected the name of a file" in err


def test_options(saved, tmp_path):
    model, path = saved
    np.savez(tmp_path / "d.npz", x=np.ones((6, 8, 8)) / 3, y=[0, 1, 2, 3, 4, 5])
    entropy = "activation_entropy:pattern=per_sample"
    code, out, err = call(
        "analyze",
        *("--model", path, "--dataset", tmp_path / "d.npz", "--scale=2", "--nobaseline"),
        *("--layers=a", f"--measures=state_entropy,{entropy}:normalization=none"),
        *("--batch_size=2", "--output", tmp_path / "result"),
    )
    assert code == 0, err
    found = EntropyProfile.load(tmp_path / "result" / "profile.json")
    with pytest.warns(UserWarning, match="No sample belongs"):
        want = analyze_model(
            model,
            (np.full((6, 64), 2 / 3), np.arange(6)),
            layers="a",
            measures=ActivationEntropy("per_sample", "none"),
            verbose=0,
        )
    np.testing.assert_allclose(found.entropy, want.entropy, atol=1e-6)
    assert (found.layers, found.baseline) == (("a",), None)
    assert "warning: No sample belongs to 4 of 10 classes (6, 7, 8, 9)" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--model=PATH is missing"),
        (["--model=nowhere"], "There is no model at nowhere"),
        (["--model=MODEL", "--dataset=nothing_like_it"], "digits            1,797"),
        (["--model=MODEL", "--dataset=x.npz"], "There is no file x.npz"),
        (["--model=MODEL", "--split=dev"], "digits has no split 'dev'"),
        (["--model=MODEL", "--layers=b"], "There is no layer 'b'"),
        (["--model=MODEL", "--measures=b"], "measures='b'; expected some of"),
        (["--model=MODEL", "--measures=logdet:beta"], "each option once; found 'beta'"),
        (["--model=MODEL", "--measures=logdet:gamma=1"], "logdet has the options ('beta', 'sam"),
        (["--model=MODEL", "--measures=logdet:beta=x"], "beta='x' of logdet; expected a positive"),
        (["--model=MODEL", "surplus"], "Unknown arguments ['surplus']"),
        (["--model=MODEL", "--output=MODEL/config.json"], "config.json"),
        (["--model=gs://b/m.keras"], "--model: 'gs://b/m.keras' is a URL"),
        (["--model=MODEL", "--dataset=s3://b/d.npz"], "'s3://b/d.npz' is a URL"),
    ],
)
def test_errors_are_one_message_and_code_2(arguments, message, saved, tmp_path):
    arguments = [argument.replace("MODEL", str(saved[1])) for argument in arguments]
    code, out, err = call("analyze", *arguments)
    assert code == 2
    assert "error: " in err
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output=TMP/file/x"], "cannot be written"),
        (["--output=/proc/x"], "cannot be written"),
        (["--output=gs://b/x"], "--output: 'gs://b/x' is a URL"),
        (["--output=TMP/taken", "--overwrite"], "profile.csv is a folder"),
        (["--report=TMP/file/x.html"], "cannot be written"),
        (["--report=/proc/x.html"], "cannot be written"),
        (["--report=hf://b/x.html"], "--report: 'hf://b/x.html' is a URL"),
        (["--report=TMP/taken", "--overwrite"], "taken is a folder"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_pass(
    arguments, message, saved, tmp_path, monkeypatch
):
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "profile.csv").mkdir(parents=True)

    def measured(*_, **__):
        raise AssertionError("it was measured")

    monkeypatch.setattr(keras.Model, "evaluate", measured)
    arguments = [argument.replace("TMP", str(tmp_path)) for argument in arguments]
    code, _, err = call("analyze", "--model", saved[1], *arguments)
    assert code == 2
    assert message in err


def test_an_output_that_another_run_writes_to_is_refused(saved, tmp_path):
    for flag in ("--output", "--report"):
        with claimed(tmp_path / "x"):
            code, _, err = call("analyze", "--model", saved[1], flag, tmp_path / "x")
        assert code == 2
        assert "Another run is writing to" in err
    assert sorted(os.listdir(tmp_path)) == ["saved_model"]


def test_no_data_set_anywhere(saved, tmp_path):
    path = save_model(saved[0], tmp_path / "model.keras")
    code, _, err = call("analyze", "--model", path)
    assert code == 2
    assert "none is recorded beside the model" in err
    assert "file.npz" in err


@pytest.mark.slow
def test_help_lists_sources():
    code, out, _ = run("analyze", "--help")
    assert "handwritten digits" in out
    assert "--model" in out


def test_custom_objects_and_unsafe_files(tmp_path, monkeypatch):
    (tmp_path / "my_layers.py").write_text(
        "import keras\n\n\nclass Scale(keras.layers.Layer):\n"
        "    def call(self, x):\n        return 2 * x\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    from my_layers import Scale

    model = keras.Sequential([keras.Input((64,)), Scale(), keras.layers.Dense(10, name="out")])
    path = save_model(model, tmp_path / "own", dataset="digits")
    code, _, err = call("analyze", "--model", path, "--nobaseline")
    assert code == 2
    assert "my_layers.Scale" in err
    code, out, err = call("analyze", "--model", path, "--nobaseline", "--custom_objects=my_layers")
    assert code == 0, err
    assert "out" in out
    code, _, err = call("analyze", "--model", path, "--custom_objects=no_such_module")
    assert code == 2
    assert "--custom_objects=no_such_module cannot be imported" in err
    keras.saving.get_custom_objects().clear()

    layers = [keras.Input((64,)), keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(10)]
    path = save_model(keras.Sequential(layers), tmp_path / "lambda", dataset="digits")
    code, _, err = call("analyze", "--model", path, "--nobaseline")
    assert code == 2
    assert "names 'Lambda', which can run code" in err
    code, _, err = call("analyze", "--model", path, "--nobaseline", "--allow_unsafe")
    assert code == 0, err
