"""Blocks taken out by the command line, on real files, in processes of their own."""

import html
import json
import os
import re

import keras
import numpy as np
import pytest
from command_lines import call, kill_when, run, start

from keras_layer_entropy import load_model, save_model
from keras_layer_entropy.datasets import DatasetSpec, load_dataset

pytestmark = pytest.mark.tensorflow
BLOCKS = ("--remove=blocks", "--epochs=0", "--calibration_samples=500")


def accuracy(model, split):
    x, y = load_dataset(DatasetSpec("digits", split=split, shape=(64,))).arrays
    return np.mean(model.predict(x, verbose=0).argmax(axis=1) == y)


@pytest.fixture(scope="module")
def residual(tmp_path_factory):
    """A network of five branches, trained."""
    keras.utils.set_random_seed(0)
    layers = keras.layers
    inputs = keras.Input((64,))
    x = layers.Dense(32, "relu")(inputs)
    for number in range(5):
        branch = layers.Dense(32, name=f"end_{number}")(layers.Dense(64, "relu")(x))
        x = layers.Add(name=f"sum_{number}")([x, branch])
    model = keras.Model(inputs, layers.Dense(10, "softmax", name="out")(x))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    x, y = load_dataset(DatasetSpec("digits", split="train", shape=(64,))).arrays
    model.fit(x, y, epochs=8, verbose=0)
    return save_model(model, tmp_path_factory.mktemp("saved") / "residual", dataset="digits")


@pytest.mark.slow
def test_blocks_go_while_accuracy_stays(residual, tmp_path):
    code, out, err = run(
        "prune", "--model", residual, *BLOCKS, "--output", tmp_path / "small", "--report",
        tmp_path / "page.html",
    )  # fmt: skip
    assert code == 0, out + err
    record = json.loads((tmp_path / "small" / "pruning.json").read_text())
    before, after = load_model(residual), load_model(tmp_path / "small")
    gone = [step["part"] for step in record["steps"] if step["accepted"]]
    assert gone
    assert set(gone) <= {f"sum_{number}" for number in range(5)}
    names = {layer.name for layer in after.layers}
    assert not names & set(gone)
    assert record["cost"]["after"]["parameters"] == after.count_params() < before.count_params()
    assert accuracy(after, "validation") >= accuracy(before, "validation") - 0.01
    assert f"{len(gone)} block{'s' if len(gone) > 1 else ''} went (" in out
    assert "retrained" not in out  # there was no training
    assert (tmp_path / "small" / "pruning.png").read_bytes().startswith(b"\x89PNG")
    page = html.unescape((tmp_path / "page.html").read_text())
    text = " ".join(re.sub("<[^>]*>", " ", page).split())
    for name in gone:
        assert f"{name} removed" in text


def test_a_dry_run_names_every_block_and_what_it_costs(residual):
    code, out, err = call("prune", "--model", residual, *BLOCKS, "--dry_run", "--keep=sum_3")
    assert code == 0, err
    for number in (0, 1, 2, 4):
        # 64 * 32 + 64 + 32 * 64 + 32, less 32 * 32 + 32 of what stands in
        line = rf"\d\. sum_{number} \(block\) +3,136 .+ [\d.]+%  with a Dense layer instead"
        assert re.search(line, out), out
    assert "sum_3 stays: it is to be kept" in out


@pytest.mark.slow
def test_nothing_stands_in_where_that_is_said(residual, tmp_path):
    code, out, err = call(
        "prune", "--model", residual, *BLOCKS, "--stand_in=none", "--max_removals=1",
        "--target_parameters=0.9", "--output", tmp_path / "small",
    )  # fmt: skip
    assert code == 0, out + err
    assert "with nothing instead" in out
    assert not any("linear" in x.name for x in load_model(tmp_path / "small").layers)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--stand_in=2", "an odd number"),
        ("--stand_in=round", "an odd number"),
        ("--criterion=linearity", "output_change"),
        ("--layers=sum_9", "'sum_9' is no block"),
    ],
)
def test_errors_are_one_line_and_code_2(residual, tmp_path, flag, message):
    code, out, err = call(
        "prune", "--model", residual, *BLOCKS, flag, "--output", tmp_path / "small"
    )
    assert code == 2, out + err
    assert message in err
    assert "Traceback" not in out + err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_killed_run_ends_as_one_without_a_break(residual, tmp_path):
    """Blocks, then units where none may go: the same to the last bit, in processes of their own."""
    options = ("--model", residual, "--epochs=1", "--max_drop=1", "--max_removals=4", "--remove")
    options = (*options, "blocks,units", "--keep=sum_0,sum_1,sum_2", "--output")
    code, out, err = run("prune", *options, tmp_path / "whole")
    assert code == 0, out + err
    process = start("prune", *options, tmp_path / "killed")
    second = os.path.join("killed.partial", "step-002")
    assert kill_when(process, tmp_path, lambda paths: second in paths), process.communicate()
    process.communicate()
    code, out, err = run("prune", *options, tmp_path / "killed", "--resume")
    assert code == 0, out + err
    assert "Resuming after step 2" in out
    whole, killed = (
        json.loads((tmp_path / name / "pruning.json").read_text()) for name in ("whole", "killed")
    )
    assert {step["kind"] for step in whole["steps"]} == {"block", "unit"}
    for step in (*whole["steps"], *killed["steps"]):
        step["seconds"] = 0
    assert whole["steps"] == killed["steps"]
    models = [load_model(tmp_path / name) for name in ("whole", "killed")]
    for one, other in zip(*(model.weights for model in models), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=one.path)
