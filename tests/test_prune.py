"""The command line on real files; in a process of its own where that matters."""

import html
import itertools
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import h5py
import keras
import numpy as np
import pytest
from command_lines import call, kill_when, run, start

from keras_layer_entropy import EntropyProfile, load_model, save_model
from keras_layer_entropy.datasets import DatasetSpec, load_dataset

pytestmark = pytest.mark.tensorflow
QUICK = ("--criterion=last", "--epochs=1", "--max_drop=1", "--max_removals=2")


def trained():
    hidden = [keras.layers.Dense(n, "relu", name=f"h{n}") for n in (32, 24, 16)]
    model = keras.Sequential([keras.Input((64,)), *hidden])
    model.add(keras.layers.Dense(10, "softmax", name="out"))
    model.compile(
        keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    x, y = load_dataset(DatasetSpec("digits", split="train", shape=(64,))).arrays
    model.fit(x, y, epochs=5, verbose=0)
    return model


@pytest.fixture(scope="module")
def original():
    return trained()


@pytest.fixture
def saved(original, tmp_path):
    return save_model(original, tmp_path / "saved_model", dataset="digits")


def contents(path):
    """Name -> bytes of every file."""
    files = [path] if path.is_file() else path.rglob("*")
    return {str(file): file.read_bytes() for file in files if file.is_file()}


def hidden_files(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


def measured(*paths):
    """Accuracies and parameters of each saved model, measured by a process of its own."""
    code = """
import sys
import numpy as np
from keras_layer_entropy import load_model
from keras_layer_entropy.datasets import DatasetSpec, load_dataset
for model in map(load_model, sys.argv[1:]):
    for split in ("validation", "test"):
        x, y = load_dataset(DatasetSpec("digits", split=split, shape=(64,))).arrays
        print(np.mean(np.argmax(model(x), axis=-1) == y), end=" ")
    print(model.count_params())
"""
    command = [sys.executable, "-c", code, *map(str, paths)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [[float(number) for number in line.split()] for line in out.stdout.splitlines()]


@pytest.mark.slow
def test_the_model_alone_is_enough(saved, tmp_path):
    before = contents(saved)
    code, out, err = run("prune", "--model", saved, "--epochs=2")
    assert code == 0, err
    assert contents(saved) == before
    output = tmp_path / "saved_model_pruned"
    assert sorted(os.listdir(tmp_path)) == ["saved_model", "saved_model_pruned"]
    record = json.loads((output / "pruning.json").read_text())
    removed = [step["part"] for step in record["steps"] if step["accepted"]]
    assert removed
    model = load_model(output)
    assert [x.name for x in model.layers] == [
        name for name in ("h32", "h24", "h16", "out") if name not in removed
    ]
    # the table is true when another process measures the saved files
    first, second = measured(saved, output)
    for i, name in enumerate(("validation", "test")):
        assert record["quality"][name] == pytest.approx([first[i], second[i]], abs=1e-6)
        row = next(line for line in out.splitlines() if line.startswith(f"{name} accuracy"))
        assert row.split()[2:4] == [f"{first[i]:.4f}", f"{second[i]:.4f}"]
    row = next(line for line in out.splitlines() if line.startswith("parameters"))
    assert row.split()[1:3] == [f"{first[2]:,.0f}", f"{second[2]:,.0f}"]
    assert second[0] >= first[0] - 0.01
    step = record["steps"][0]
    assert {"reason", "entropy", "quality_before", "quality_removed", "seconds"} <= set(step)
    profiles = [EntropyProfile.load(output / f"{name}.json") for name in ("before", "after")]
    assert profiles[0].layers == ("h32", "h24", "h16", "out")
    assert profiles[1].layers == tuple(x.name for x in model.layers)
    assert (output / "pruning.png").read_bytes().startswith(b"\x89PNG")
    assert (record["quality"]["name"], record["quality"]["mode"]) == ("accuracy", "max")
    first_line = "Quality: validation accuracy, at most 0.01 below the original's."
    assert out.splitlines()[0] == first_line
    for word in ("train: digits, split train", "step 1: ", "it is an output layer"):
        assert word in out

    # and it can be pruned and analysed again, with nothing said about its data
    code, out, err = call("prune", "--model", output, "--dry_run", "--criterion=linearity")
    assert code == 0, err
    for layer in model.layers[:-1]:  # one with few units left is cheaper than none
        assert f". {layer.name} " in out or f"{layer.name} stays: " in out
    assert "out stays: it is an output layer" in out
    assert "Dry run: nothing was written." in out
    assert sorted(os.listdir(tmp_path)) == ["saved_model", "saved_model_pruned"]


@pytest.mark.slow
def test_a_regression_is_held_to_its_loss(tmp_path, random):
    x = random.normal(size=(200, 6)).astype("float32")
    y = x[:, :2] * x[:, 2:4]
    np.savez(tmp_path / "data.npz", x=x, y=y)
    model = keras.Sequential([keras.Input((6,))])
    for name in ("a", "b", "c"):
        model.add(keras.layers.Dense(8, "relu", name=name))
    model.add(keras.layers.Dense(2, name="out"))
    model.compile("adam", "mse", metrics=["mae"])
    path = save_model(model, tmp_path / "model.keras")
    common = ("prune", "--model", path, "--dataset", tmp_path / "data.npz", *QUICK[:2])
    code, out, err = call(*common, "--max_removals=1", "--report", tmp_path / "r.html")
    assert code == 0, err
    words = "Quality: validation loss, at most 5% above the original's."
    assert out.splitlines()[0] == words
    record = json.loads((tmp_path / "model_pruned.pruning.json").read_text())
    assert record["quality"]["name"] == "loss"
    assert "validation loss" in (tmp_path / "r.html").read_text()
    assert f"validation loss {record['steps'][0]['quality_before']:.4f}, right after" in out
    distilled = ("--quality=mae", "--max_relative_drop=0.5", "--distill", "--overwrite")
    code, out, err = call(*common, *distilled, "--max_removals=1")
    assert code == 0, err
    assert out.startswith("Quality: validation mae, at most 50% above the original's.")
    code, _, err = call(*common, "--quality=accuracy", "--overwrite")
    assert code == 2
    assert 'quality="loss" does' in err


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_single_files(original, tmp_path, suffix):
    path = save_model(original, tmp_path / f"model{suffix}", dataset="digits")
    code, _, err = call("prune", "--model", path, *QUICK[:3], "--max_removals=1", "--keep=h16")
    assert code == 0, err
    assert [x.name for x in load_model(tmp_path / f"model_pruned{suffix}").layers] == [
        *("h32", "h16", "out"),
    ]
    assert sorted(os.listdir(tmp_path)) == sorted(
        f"model{name}"
        for name in (
            *(suffix, f"{suffix}.dataset.json", f"_pruned{suffix}"),
            *(f"_pruned{suffix}.dataset.json", "_pruned.pruning.json", "_pruned.before.json"),
            *("_pruned.after.json", "_pruned.pruning.png"),
        )
    )


@pytest.mark.slow
def test_data_with_one_part_are_split_with_the_seed(saved, tmp_path):
    x, y = (np.concatenate(parts) for parts in zip(
        *(load_dataset(DatasetSpec("digits", split=s)).arrays for s in ("train", "test")),
        strict=True,
    ))  # fmt: skip
    np.savez(tmp_path / "all.npz", x=x, y=y)
    code, out, err = call(
        "prune",
        "--model",
        saved,
        "--dataset",
        tmp_path / "all.npz",
        "--scale=1",
        "--seed=3",
        "--dry_run",
    )
    assert code == 0, err
    assert "all.npz is split at random (seed 3), 60%, 20%, 20%." in out


@pytest.mark.slow
def test_an_existing_output_is_refused_and_overwritten_only_when_told(original, saved, tmp_path):
    output = save_model(original, tmp_path / "mine", dataset="digits")
    before = contents(output)
    arguments = ("--model", saved, "--output", output, *QUICK[:3], "--max_removals=1")
    code, _, err = call("prune", *arguments)
    assert (code, contents(output)) == (2, before)
    assert "exists: choose another --output, or pass --overwrite" in err
    code, _, err = call("prune", *arguments, "--overwrite")
    assert code == 0, err
    assert [layer.name for layer in load_model(output).layers] == ["h32", "h24", "out"]
    assert hidden_files(tmp_path) == []


def test_overwrite_removes_nothing_but_models(saved, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(saved)
    before = contents(tmp_path)
    for output in ("mine", ".", "..", "link", "mine/../saved_model"):
        code, _, err = call(
            "prune", "--model", saved, "--output", tmp_path / output, "--overwrite", *QUICK
        )
        assert code == 2
        assert "is no model" in err or "would write over the input" in err
        assert contents(tmp_path) == before


@pytest.mark.slow
def test_what_others_put_into_its_folder_stays(saved, tmp_path):
    notes = tmp_path / "saved_model_pruned.partial" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    code, _, err = call("prune", "--model", saved, *QUICK[:3], "--max_removals=1")
    assert code == 0, err
    assert notes.read_text() == "mine"


def write_bad_files(original, tmp_path):
    """Model and data files of every bad kind."""
    save_model(original, tmp_path / "good", dataset="digits")
    bad = load_model(tmp_path / "good")
    bad.get_layer("h24").kernel.assign(np.full((32, 24), np.nan, "float32"))
    save_model(bad, tmp_path / "nan", dataset="digits")
    shape = keras.Sequential([keras.Input((5,)), keras.layers.Dense(10, "softmax")])
    shape.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    save_model(shape, tmp_path / "shape", dataset="digits")
    few = keras.Sequential([keras.Input((64,)), keras.layers.Dense(4), keras.layers.Dense(3)])
    few.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    save_model(few, tmp_path / "few", dataset="digits")
    plain = keras.Sequential([keras.Input((64,)), keras.layers.Dense(10)])
    save_model(plain, tmp_path / "uncompiled", dataset="digits")
    save_model(few, tmp_path / "nodata")
    inputs = keras.Input((64,))
    two = [keras.layers.Dense(10, "softmax")(inputs) for _ in range(2)]
    both = keras.Model(inputs, two, name="two")
    both.compile("adam", ["sparse_categorical_crossentropy"] * 2)
    save_model(both, tmp_path / "two", dataset="digits")
    np.savez(tmp_path / "one.npz", x=np.random.default_rng(0).normal(size=(50, 64)), y=[1] * 50)
    (tmp_path / "file").write_text("")


@pytest.fixture(scope="module")
def folder(original, tmp_path_factory):
    path = tmp_path_factory.mktemp("bad")
    write_bad_files(original, path)
    return path


BAD = {
    "no model": ([], "--model=PATH is missing"),
    "nothing there": (["--model=nowhere"], "There is no model at nowhere"),
    "NaN weights": (["--model=nan"], "'h24' hold NaN or infinite values"),
    "wrong shape": (["--model=shape"], "inputs of shape (5,), but those of digits have shape"),
    "labels that do not fit": (["--model=few"], "no class"),
    "one class": (["--model=good", "--dataset=one.npz"], "one class only"),
    "not compiled": (["--model=uncompiled"], "is not compiled"),
    "no data": (["--model=nodata"], "none is recorded beside the model"),
    "criterion": (["--model=good", "--criterion=best"], "criterion='best'; expected one of"),
    "layer": (["--model=good", "--layers=h99"], "There is no layer 'h99'"),
    "kept layer": (["--model=good", "--keep=h99"], "There is no layer 'h99'"),
    "split": (["--model=good", "--split=a,b,c,d"], "expected one part, or three"),
    "nothing to resume": (["--model=good", "--resume"], "nothing to resume"),
    "over itself": (["--model=good", "--output=good"], "would write over the input"),
    "other format": (["--model=good", "--output=x.keras"], "leave out .keras"),
    "in a file": (["--model=good", "--output=file/x", *QUICK], "file"),
    "target": (["--model=good", "--remove=units", "--target_flops=50"], "between 0 and 1"),
    "target that is no number": (["--model=good", "--target_flops=x"], "--target_flops=x"),
    "what goes": (["--model=good", "--remove=all"], "remove=['all']; expected some of"),
    "criterion of layers": (
        ["--model=good", "--remove=units", "--criterion=linearity"],
        "criterion='linearity'; expected one of ('reconstruction', ",
    ),
    "no such flag": (["--model=good", "--targets=0.5"], "Unknown command line flag 'targets'"),
    "no loss": (["--model=uncompiled", "--dataset=nowhere.npz"], "pass --loss"),
    "loss": (["--model=uncompiled", "--loss=best"], "--loss: 'best' is nothing that Keras knows"),
    "two outputs": (["--model=two", "--dataset=digits"], "'two' has the outputs "),
    "optimizer": (
        ["--model=uncompiled", "--loss=mse", "--optimizer=best"],
        "--optimizer: 'best' is nothing that Keras knows",
    ),
    "metrics": (["--model=uncompiled", "--loss=mse", "--metrics=best"], "--metrics: 'best' is"),
    "compiled twice": (
        ["--model=good", "--loss=mse", "--metrics=acc"],
        "--loss and --metrics: for",
    ),
    "weights": (["--model=good", "--weights=few"], "good has its own"),
    "surplus": (["--model=good", "linearity"], "Unknown arguments ['linearity']"),
    "model in a cloud": (["--model=gs://b/m.keras"], "--model: 'gs://b/m.keras' is a URL"),
    "output in a cloud": (["--model=good", "--output=s3://b/m"], "--output: 's3://b/m' is a URL"),
    "report in a cloud": (["--model=good", "--report=gs://b/r"], "--report: 'gs://b/r' is a URL"),
    "data in a cloud": (["--model=good", "--dataset=gs://b/d.npz"], "'gs://b/d.npz' is a URL"),
    "empty output": (["--model=good", "--output="], "--output: The path is empty"),
    "report in a file": (["--model=good", "--report=file/r.html"], "file/r.html cannot be written"),
    "report is a folder": (["--model=good", "--report=good", "--overwrite"], "good"),
    "report over the output": (
        ["--model=good", "--output=small", "--report=small"],
        "--report=small would write over",
    ),
    "report into the input": (["--model=good", "--report=good/r.html"], "would write over"),
    "report over a record": (
        ["--model=good", "--report=good_pruned/after.json"],
        "would write over",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_line_and_code_2(case, folder, monkeypatch):
    arguments, message = BAD[case]
    before = contents(folder)
    monkeypatch.chdir(folder)
    execute = run if case == "NaN weights" else call  # once as it is really started
    code, out, err = execute("prune", *arguments)
    assert code == 2, out + err
    assert message in err
    assert "Traceback" not in out + err
    told = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1
    assert contents(folder) == before


def convolutional():
    """Two convolutions of which one is added to the other, and a head."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((8, 8, 1))
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu", name="stem")(inputs)
    y = layers.Conv2D(8, 3, padding="same", name="outer")(x)
    x = layers.Flatten(name="flat")(layers.Add(name="sum")([x, y]))
    x = layers.Dense(16, "relu", name="hidden")(x)
    model = keras.Model(inputs, layers.Dense(10, "softmax", name="out")(x))
    model.compile(
        keras.optimizers.Adam(5e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    images, labels = load_dataset(DatasetSpec("digits", split="train", shape=(8, 8, 1))).arrays
    model.fit(images, labels, epochs=4, verbose=0)
    return model


UNITS = ("--remove=units", "--epochs=0", "--calibration_samples=300", "--step_share=0.15")


@pytest.fixture(scope="module")
def convolutions(tmp_path_factory):
    return save_model(convolutional(), tmp_path_factory.mktemp("cnn") / "cnn", dataset="digits")


@pytest.fixture(scope="module")
def thinned(convolutions, tmp_path_factory):
    """A run of its own with a target: folder of the output, the page, what was said."""
    folder = tmp_path_factory.mktemp("thinned")
    code, out, err = run(
        "prune", "--model", convolutions, *UNITS, "--target_flops=0.6", "--output",
        folder / "small", "--report", folder / "page.html",
    )  # fmt: skip
    assert code == 0, out + err
    return folder / "small", html.unescape((folder / "page.html").read_text()), out


@pytest.mark.slow
def test_units_go_until_a_target(thinned, convolutions):
    """The record agrees with the two files, which are opened to count."""
    output, _, out = thinned
    record = json.loads((output / "pruning.json").read_text())
    before, after = load_model(convolutions), load_model(output)
    assert record["target_met"] is True
    assert record["cost"]["before"]["parameters"] == before.count_params()
    assert record["cost"]["after"]["parameters"] == after.count_params()
    widths = {
        name: [model.get_layer(name).kernel.shape[-1] for model in (before, after)]
        for name in ("stem", "outer", "hidden", "out")
    }
    assert record["widths"] == widths
    assert widths["stem"] == widths["outer"]  # their sum
    gone = record["units"]
    assert sum(map(len, gone.values())) == sum(one - other for one, other in widths.values()) > 0
    assert gone.get("stem") == gone.get("outer")
    for name, indices in gone.items():
        assert len(set(indices)) == len(indices) == widths[name][0] - widths[name][1]
        assert set(indices) <= set(range(widths[name][0]))
    found = {}
    for step in record["steps"]:
        for path, indices in step["units"].items():
            found.setdefault(path, []).extend(indices)
    assert {path: sorted(indices) for path, indices in found.items()} == gone
    count = sum(map(len, gone.values()))
    assert f"{count} of {8 + 8 + 16 + 10} units went, of {len(gone)} layers; FLOPs -" in out
    assert "The target, at most 60% of the FLOPs, is met." in out
    assert "step 1: removed " in out
    assert "retrained" not in out  # there was no training
    assert (output / "pruning.png").read_bytes().startswith(b"\x89PNG")


def test_the_page_shows_the_widths(thinned):
    output, page, _ = thinned
    record = json.loads((output / "pruning.json").read_text())
    text = " ".join(re.sub("<[^>]*>", " ", re.sub("<svg.*?</svg>", "", page, flags=re.S)).split())
    start = text.index("Units that went layer")
    for name, (before, after) in record["widths"].items():
        shown = f" {name} {before} {after} " in text[start:]
        assert shown == (before > after), name
    for step in record["steps"]:
        assert f"{step['part']} removed {step['quality_before']:.4f}" in text
    assert "no unit was taken out" not in text


@pytest.mark.slow
def test_a_target_out_of_reach_is_exit_code_3_and_the_model_is_written(convolutions, tmp_path):
    code, out, err = call(
        "prune", "--model", convolutions, *UNITS[:3], "--step_share=1", "--target_flops=0.001",
        "--output", tmp_path / "small",
    )  # fmt: skip
    assert code == 3, out + err
    model = load_model(tmp_path / "small")
    assert [model.get_layer(name).kernel.shape[-1] for name in ("stem", "hidden")] == [1, 1]
    assert "The target, at most 0.1% of the FLOPs, is not met" in out
    assert json.loads((tmp_path / "small" / "pruning.json").read_text())["target_met"] is False
    assert sorted(os.listdir(tmp_path)) == ["small"]  # nothing to go on with


def test_a_dry_run_names_units_and_writes_nothing(convolutions):
    before = contents(convolutions.parent)
    code, out, err = call(
        "prune", "--model", convolutions, *UNITS, "--target_flops=0.6", "--dry_run"
    )
    assert code == 0, err
    assert re.search(
        r"\d\. hidden \(units\) .+  \d+ of 16 units, that cost least for what they", out
    )
    assert re.search(r"\d\. stem \(units\) .+  \d of 8 units, .+; with outer", out)
    left = re.search(r"([\d.]+)% of the FLOPs and ([\d.]+)% of the parameters would be left", out)
    assert 0 < float(left[1]) <= 60.0
    assert contents(convolutions.parent) == before


@pytest.mark.slow
def test_a_killed_run_for_units_goes_on(thinned, convolutions, tmp_path):
    """It ends with the model that the run without a break gave."""
    arguments = ("--model", convolutions, *UNITS, "--target_flops=0.6", "--output")
    process = start("prune", *arguments, tmp_path / "small")
    assert kill_when(process, tmp_path, lambda p: any(x.endswith("partial/step-001") for x in p))
    process.communicate()
    assert not (tmp_path / "small").exists()
    code, out, err = call("prune", *arguments, tmp_path / "small", "--resume")
    assert code == 0, out + err
    assert "Resuming after step 1" in out
    first, again = (
        json.loads((folder / "pruning.json").read_text())
        for folder in (thinned[0], tmp_path / "small")
    )
    assert again["units"] == first["units"]
    assert len(again["steps"]) == len(first["steps"]) > 1
    for one, other in zip(
        load_model(thinned[0]).weights, load_model(tmp_path / "small").weights, strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)  # float32, other threads
    assert sorted(os.listdir(tmp_path)) == ["small"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "json"])
def test_models_that_are_not_compiled(original, kind, tmp_path):
    """With --loss they are pruned, and written compiled; two files are written as one."""
    model = keras.Sequential([keras.Input((64,)), *original.layers])
    if kind == "json":
        path = tmp_path / "net.json"
        write_pair(model, path, tmp_path / "net.h5")
        (tmp_path / "other.h5").write_bytes((tmp_path / "net.h5").read_bytes())
    else:
        path = save_model(model, tmp_path / "net.keras")
    before = contents(tmp_path)
    arguments = ("--model", path, "--dataset=digits", *QUICK[:3], "--max_removals=1")
    code, _, err = call("prune", *arguments)
    assert (code, contents(tmp_path)) == (2, before)
    assert "is not compiled: pass --loss" in err
    code, _, err = call("prune", *arguments, "--loss=sparse_categorical_crossentropy")
    assert code == 0, err
    smaller = load_model(tmp_path / "net_pruned.keras")
    assert [layer.name for layer in smaller.layers] == ["h32", "h24", "out"]
    assert smaller.loss == "sparse_categorical_crossentropy"
    assert smaller.optimizer.name == "adam"
    settings = json.loads((tmp_path / "net_pruned.pruning.json").read_text())["settings"]
    assert settings["loss"] == "sparse_categorical_crossentropy"
    assert (settings["weights"] is None) == (kind == "keras")
    assert {name: data for name, data in contents(tmp_path).items() if name in before} == before


def test_weights_of_an_architecture_that_lie_elsewhere(original, tmp_path):
    (tmp_path / "far").mkdir()
    path, weights = tmp_path / "net.json", tmp_path / "far" / "w.h5"
    write_pair(original, path, weights)
    np.testing.assert_array_equal(load_model(path, weights=weights).weights[0], original.weights[0])
    flags = ("--model", path, "--dataset=digits", "--loss=sparse_categorical_crossentropy", *QUICK)
    for given, words in (
        ([], "one .h5 file with its weights is expected beside net.json; found none: name it"),
        (["--weights", tmp_path / "no.h5"], "There are no weights at"),
        (["--weights", path], "cannot be opened"),
        (["--weights", weights, "--report", weights, "--overwrite"], "would write over"),
    ):
        before = contents(tmp_path)
        code, _, err = call("prune", *flags, *given)
        assert (code, contents(tmp_path)) == (2, before)
        assert words in err
    code, out, err = call("prune", *flags, "--weights", weights, "--dry_run")
    assert code == 0, err
    assert "1. h16" in out


def write_pair(model, path, weights):
    """A stack of Dense layers as Keras 2 wrote an architecture and its weights."""
    layers = [
        {"class_name": "Dense", "config": {
            "name": layer.name, "units": layer.units, "use_bias": True, "dtype": "float32",
            "activation": keras.activations.serialize(layer.activation), "trainable": True,
            **({} if i else {"batch_input_shape": [None, *model.input_shape[1:]]}),
        }}
        for i, layer in enumerate(model.layers)
    ]  # fmt: skip
    config = {"name": "sequential", "layers": layers}
    path.write_text(json.dumps(
        {"class_name": "Sequential", "config": config, "keras_version": "2.4.0",
         "backend": "tensorflow"}
    ))  # fmt: skip
    with h5py.File(weights, "w") as file:
        file.attrs["layer_names"] = [layer.name.encode() for layer in model.layers]
        for layer in model.layers:
            group = file.create_group(layer.name)
            names = [f"{layer.name}/{name}:0" for name in ("kernel", "bias")]
            group.attrs["weight_names"] = [name.encode() for name in names]
            for name, weight in zip(names, layer.weights, strict=True):
                group[name] = np.asarray(weight)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_leaves_nothing(saved, small_disk):
    code, out, err = call("prune", "--model", saved, "--output", small_disk / "small", *QUICK)
    assert code == 2, out + err
    assert "cannot be written: it may take" in err
    assert "Traceback" not in err
    assert contents(small_disk) == {}
    assert contents(saved)


KILLS = {
    "while the first step is saved": lambda p: any("partial/..step-001" in x for x in p),
    "after the first step": lambda p: any(x.endswith("partial/step-001") for x in p),
    "while the second step is saved": lambda p: any("partial/..step-002" in x for x in p),
    "while the result is written": lambda p: any(
        x.startswith("..saved_model_pruned.") and "/" in x for x in p
    ),
}


@pytest.mark.slow
def test_a_killed_run_loses_nothing_and_goes_on(saved, tmp_path):
    """Killed at every moment in turn, each time going on with what the last one left."""
    before, output = contents(saved), tmp_path / "saved_model_pruned"
    arguments, states = ("--model", saved, *QUICK), []
    for moment, seen in KILLS.items():
        process = start("prune", *arguments, *(["--resume"] if states else []))
        assert kill_when(process, tmp_path, seen), (moment, process.communicate())
        assert contents(saved) == before
        assert not output.exists()
        states = sorted((tmp_path / "saved_model_pruned.partial").glob("step-*"))
        if "first step is saved" not in moment:
            assert states, moment
        for state in states:  # the last accepted model is whole
            assert load_model(state).output_shape == (None, 10)

    code, _, err = call("prune", *arguments)
    assert code == 2
    assert "unfinished run" in err
    assert "--resume" in err
    code, _, err = call("prune", *arguments, "--resume", "--epochs=2")
    assert code == 2
    assert "had epochs=1, not 2" in err
    code, out, err = call("prune", *arguments, "--resume")
    assert code == 0, out + err
    assert "Resuming after step 2" in out
    assert [x.name for x in load_model(output).layers] == ["h32", "out"]
    steps = json.loads((output / "pruning.json").read_text())["steps"]
    assert [step["part"] for step in steps] == ["h16", "h24"]
    assert sorted(os.listdir(tmp_path)) == ["saved_model", "saved_model_pruned"]


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_model_and_data_alone(original, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = (
        np.concatenate(parts)
        for parts in zip(
            *(load_dataset(DatasetSpec("digits", split=s)).arrays for s in ("train", "test")),
            strict=True,
        )
    )
    np.savez("d.npz", x=x[:600], y=y[:600])
    path = save_model(original, "net.keras", dataset=DatasetSpec("d.npz", scale=1.0))
    process = start("prune", "--model", path, *QUICK)
    assert kill_when(process, tmp_path, lambda p: any(x.endswith("partial/step-001") for x in p))
    state = contents(tmp_path)

    def refused(words):
        code, _, err = call("prune", "--model", path, *QUICK, "--resume")
        assert code == 2
        assert words in err
        assert "--overwrite" in err

    x[7] += 0.25  # nothing else tells: name, number and size of the file are the same
    np.savez("d.npz", x=x[:600], y=y[:600])
    refused("began with other data: what is in them has changed")
    for file, content in state.items():
        pathlib.Path(file).write_bytes(content)
    original.layers[-1].bias.assign_add(np.ones(10))
    save_model(original, path, dataset=DatasetSpec("d.npz", scale=1.0), overwrite=True)
    original.layers[-1].bias.assign_add(-np.ones(10))
    refused("began with another model: its files have changed")
    for file, content in state.items():
        pathlib.Path(file).write_bytes(content)
    code, _, err = call("prune", "--model", path, *QUICK, "--resume")
    assert code == 0, err


@pytest.mark.slow
def test_one_run_at_a_time(saved, tmp_path):
    """Whether it begins, begins anew or goes on, and for reports, too; a kill ends the claim."""
    output, page = tmp_path / "small", tmp_path / "report.html"
    flags = ("--model", saved, *QUICK[:2], "--max_drop=1", "--output")
    first = start("prune", *flags, output, "--report", page, "--epochs=300")
    while not list(tmp_path.glob("small.partial/step-001")) and first.poll() is None:
        time.sleep(0.01)
        if list(tmp_path.glob(".small*.lock")):
            break
    for extra in (["--resume"], ["--overwrite"], []):
        code, _, err = call("prune", *flags, output, "--epochs=300", *extra)
        assert code == 2, extra
        assert f"Another run is writing to {output}" in err
    code, _, err = call("prune", *flags, tmp_path / "other", "--report", page)
    assert code == 2
    assert f"Another run is writing to {page}" in err
    assert first.poll() is None
    first.send_signal(signal.SIGKILL)
    first.communicate()
    code, _, err = call("prune", *flags, output, *QUICK, "--overwrite")
    assert code == 0, err
    assert hidden_files(tmp_path) == [".report.html.in-use-by-another-run.lock"]


def test_what_cannot_be_written_is_said_before_anything_is_trained(saved, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "small").mkdir()

    def trained(*_, **__):
        raise AssertionError("it was trained")

    monkeypatch.setattr(keras.Model, "fit", trained)
    monkeypatch.setattr(keras.Model, "evaluate", trained)
    for arguments in (
        ["--output", tmp_path / "file" / "x"],
        ["--output", "/proc/small"],
        ["--report", "/proc/report.html"],
        ["--report", tmp_path / "file" / "report.html"],
        ["--report", tmp_path / "small", "--overwrite"],
        ["--output", tmp_path / ("n" * 240)],
    ):
        before = contents(tmp_path)
        code, _, err = call("prune", "--model", saved, *QUICK, *arguments)
        assert code == 2, arguments
        assert "cannot be written" in err or "is a folder" in err, err
        assert contents(tmp_path) == before


@pytest.mark.slow
def test_advice_leads_somewhere(saved, tmp_path):
    """What is in the way of a run that goes on is replaced with the flags that the error names."""
    arguments = ("--model", saved, *QUICK)
    process = start("prune", *arguments)
    assert kill_when(process, tmp_path, lambda p: any(x.endswith("partial/step-001") for x in p))
    save_model(load_model(saved), tmp_path / "saved_model_pruned")
    code, _, err = call("prune", *arguments, "--resume")
    assert code == 2
    assert "pass --overwrite with --resume, to replace it" in err
    code, out, err = call("prune", *arguments, "--resume", "--overwrite")
    assert code == 0, err
    assert "Resuming after step 1" in out


@pytest.mark.slow
def test_report_shows_every_step(saved, tmp_path):
    path, output = tmp_path / "report.html", tmp_path / "small"
    code, out, err = call("prune", "--model", saved, "--output", output, *QUICK, "--report", path)
    assert code == 0, err
    assert f"wrote {path}" in out
    page = html.unescape(path.read_text())
    record = json.loads((output / "pruning.json").read_text())
    for step in record["steps"]:
        assert f"{step['quality_removed']:.4f}" in page
        assert f"{step['quality_retrained']:.4f}" in page
    assert "2 of 4 Dense layers went (h16 and h24)" in page
    assert "python -m keras_layer_entropy.prune --model" in page
    # The patterns of both networks, measured for the page.
    data = re.search(r'<script type="application/json" id="patterns">(.*?)</script>', page)
    patterns = json.loads(data[1])
    assert {key: [x["name"] for x in v["layers"]] for key, v in patterns.items()} == {
        "before": ["h32", "h24", "h16", "out"],
        "after": ["h32", "out"],
    }
    code, _, err = call("prune", "--model", saved, "--output", tmp_path / "b", "--report", path)
    assert code == 2
    assert "report.html exists" in err
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_help_says_which_criterion_to_use():
    code, out, _ = run("prune", "--help")
    assert code != 2
    for word in (
        "--criterion",
        "--max_drop",
        "--[no]resume",
        "--model",
        "units alone",
    ):
        assert word in out
    assert all(len(line) < 101 for line in itertools.islice(out.splitlines(), 20))


def test_convolutions_out_of_reach_are_told_and_none_are_not(recwarn):
    """The report does without units that cannot be looked at, but says so."""
    from keras_layer_entropy import prune

    if not prune.FLAGS.is_parsed():
        prune.FLAGS(["prune"])
    head = [keras.layers.Flatten(), keras.layers.Dense(3)]
    conv = keras.layers.TimeDistributed(keras.layers.Conv2D(2, 3))
    hidden = keras.Sequential([keras.Input((2, 8, 8, 1)), conv, *head])
    data = np.ones((6, 2, 8, 8, 1)), np.arange(6) % 3
    with pytest.warns(UserWarning, match="left out of the report: .*inside TimeDistributed"):
        assert prune._ranked_units(hidden, data) == ()
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    recwarn.clear()
    assert prune._ranked_units(dense, (np.ones((6, 4)), np.arange(6) % 3)) == ()
    assert not recwarn.list


@pytest.mark.slow
def test_a_criterion_that_chooses_nothing_says_so_in_numbers(saved, tmp_path):
    code, out, _ = call(
        "prune", "--model", saved, *QUICK, "--criterion=entropy_gradient", "--tolerance=-9",
        "--output", tmp_path / "small",
    )  # fmt: skip
    assert code == 0
    assert re.search(r"entropy falls by -?\d\.\d{3} or more over each \(h\d+\), and by", out)
    assert "A larger tolerance, or another criterion, would change that." in out


@pytest.mark.slow
def test_what_makes_no_model_smaller_is_not_offered(tmp_path):
    """Without the narrow layer two wide ones meet."""
    model = keras.Sequential([
        keras.Input((64,)), keras.layers.Dense(4, "tanh", name="narrow"),
        keras.layers.Dense(10, name="out"),
    ])  # fmt: skip
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    path = save_model(model, tmp_path / "m.keras")
    code, out, err = call(
        "prune", "--model", path, "--dataset=digits", "--epochs=0", "--max_drop=1",
        "--remove=layers",
    )  # fmt: skip
    assert code == 0, err
    assert "narrow: the model would be no smaller without it" in out
    assert load_model(tmp_path / "m_pruned.keras").count_params() == model.count_params()
