"""Every example, run for real on small data."""

import importlib
import json
import subprocess
import sys

import numpy as np
import pytest

from keras_layer_entropy import EntropyProfile, load_model

pytestmark = pytest.mark.tensorflow


def run(example, config, workdir, **keywords):
    """`run(config, workdir)` of an example, with the `smoke` preset."""
    config = importlib.import_module(f"configs.{config}").get_config("smoke")
    return importlib.import_module(example).run(config, workdir, **keywords)


@pytest.mark.slow
def test_train_and_analyze(tmp_path):
    model, monitor = run("train", "mnist", tmp_path)
    assert [p.layers for p in monitor.profiles] == [("dense_1", "dense_2", "output")] * 2
    assert (tmp_path / "history.csv").read_text().count("\n") == 3
    page = (tmp_path / "report.html").read_text()
    assert "Over the epochs of training" in page
    assert "Instability within a class" in page
    saved = load_model(tmp_path / "saved_model")
    for found, want in zip(saved.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, want)

    profile = run("analyze", "mnist", tmp_path)
    assert profile.classes == tuple("0123456789")
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == [
        "activation_probabilities.png",
        "entropy.png",
        "feature_maps_conv_1.png",
        "feature_maps_conv_2.png",
        "heatmap.png",
        "probability_histograms.png",
        "stability.png",
    ]
    with pytest.raises(FileExistsError, match="holds results"):
        run("analyze", "mnist", tmp_path)


@pytest.mark.slow
def test_prune(tmp_path):
    result = run("prune", "pruning", tmp_path)
    smaller = load_model(tmp_path / "pruned")
    assert smaller.count_params() == result.model.count_params()
    page = (tmp_path / "report.html").read_text()
    assert "What pruning did" in page
    assert all(f"{step.quality_retrained:.4f}" in page for step in result.steps)


@pytest.mark.slow
def test_depth_study(tmp_path):
    records = run("depth_study", "cifar10", tmp_path)
    assert [(r["depth"], np.shape(r["entropy"])) for r in records] == [(2, (2, 10)), (3, (3, 10))]
    text = (tmp_path / "results.md").read_text()
    for record in records:
        assert f"{record['accuracy']:.4f}" in text
        assert (tmp_path / f"depth_{record['depth']}.png").exists()
    deep = records[1]
    # Nothing was taken out that was not flat, and the control trained only where something was.
    assert set(deep["refitted_removed"]) <= {"dense_2"}
    if not deep["retrained_removed"]:
        assert deep["kept_accuracy"] == deep["accuracy"]
    rises = np.diff(np.array(deep["entropy"]), axis=0) > 0
    assert f"{10 - rises.any(axis=0).sum()} of 10" in text.split("| 3 |")[1]
    assert json.loads((tmp_path / "results.json").read_text())[0]["depth"] == 2


@pytest.mark.slow
def test_repair(tmp_path):
    (record,) = run("repair", "repair", tmp_path)
    layers = ["dense_1", "dense_2", "dense_3", "output"]
    for number, removed in enumerate(["", *record["removed"]]):
        layers = [layer for layer in layers if layer != removed]
        profile = EntropyProfile.load(tmp_path / f"profile_{number}.json")
        assert list(profile.layers) == layers
        assert profile.metrics["accuracy"] == pytest.approx(record["accuracy"][number])
        assert (tmp_path / f"repair_{number}.png").exists()
    assert len(record["trained_as_long"]) == 2


@pytest.mark.slow
def test_controls(tmp_path):
    records = {r["network"]: r for r in run("controls", "controls", tmp_path)}
    trained, rescaled = records["trained"], records["trained, dense_2 x 3"]
    # The same function: accuracy and states stay, and entropy moves where the scale did.
    assert rescaled["accuracy"] == trained["accuracy"]
    np.testing.assert_allclose(rescaled["state_entropy"], trained["state_entropy"], atol=1e-6)
    moved = np.abs(np.subtract(rescaled["activation_entropy"], trained["activation_entropy"]))
    assert moved[1] > 0.01
    np.testing.assert_allclose(np.delete(moved, 1), 0, atol=1e-5)  # float32
    assert "narrowing, trained" in records
    assert (tmp_path / "controls_activation_entropy.png").exists()
    assert (tmp_path / "controls_state_entropy.png").exists()


@pytest.mark.slow
def test_an_example_is_a_command(tmp_path):
    command = [sys.executable, "examples/depth_study.py", "--config=configs/cifar10.py:smoke"]
    command += ["--config.depths=(2,)", "--config.epochs=1", f"--workdir={tmp_path}"]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stdout.startswith("seed 0, 2 Dense layers: ")
    assert (tmp_path / "results.md").read_text().strip() in process.stdout
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode != 0
    assert "choose another --workdir or --overwrite" in again.stderr


@pytest.mark.slow
def test_information_plane(tmp_path):
    records = run("information_plane", "information", tmp_path)
    networks = list(dict.fromkeys(r["network"] for r in records))
    assert networks == [
        f"{activation}, {state}"
        for activation in ("tanh", "relu")
        for state in ("untrained", "trained on labels", "trained on shuffled labels")
    ]
    by_network = {r["network"]: r for r in records if r["layer"] == "output"}
    # Two epochs are enough for the outputs to know more of the labels than before, and than with
    # labels that say nothing.
    for activation in ("tanh", "relu"):
        known = {
            state: by_network[f"{activation}, {state}"]["mutual_information_labels"]
            for state in ("untrained", "trained on labels", "trained on shuffled labels")
        }
        assert known["trained on labels"] > known["untrained"]
        assert known["trained on labels"] > known["trained on shuffled labels"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *(f"layer_to_layer_{activation}.png" for activation in ("relu", "tanh")),
        *(
            f"plane_{estimator}_{activation}.png"
            for estimator in ("logdet", "mutual_information")
            for activation in ("relu", "tanh")
        ),
        "results.json",
        "results.md",
    ]
    text = (tmp_path / "results.md").read_text()
    value = records[0]["logdet_input"], records[0]["logdet_input_shuffled"]
    assert "{:.2f} ({:.2f})".format(*value) in text
