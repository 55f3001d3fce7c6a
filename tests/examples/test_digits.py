"""The demo, run for real."""

import csv
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from keras_layer_entropy import EntropyProfile, load_model
from keras_layer_entropy.datasets import DatasetSpec, load_dataset

pytestmark = pytest.mark.tensorflow
ROOT = pathlib.Path(__file__).parents[2]


def demo(workdir, *arguments):
    return subprocess.run(
        [sys.executable, ROOT / "examples" / "digits.py", f"--workdir={workdir}", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("demo") / "digits"
    return workdir, demo(workdir)


@pytest.mark.slow
def test_files_and_table(result):
    workdir, process = result
    assert process.returncode == 0, process.stderr
    files = ["entropy.png", "heatmap.png", "profile.csv", "profile.json", "report.html"]
    assert sorted(os.listdir(workdir)) == [*files, "saved_model"]
    assert "val_dense_7_entropy" in process.stdout
    assert "dense_7" in process.stdout.split("flat?")[1]
    with open(workdir / "profile.csv") as file:
        assert len(list(csv.DictReader(file))) == 9 * 10
    again = demo(workdir, "--config.epochs=1")
    assert again.returncode != 0
    assert "holds results" in again.stderr


def test_entropy_falls_with_depth_and_the_untrained_twins_does_not(result):
    profile = EntropyProfile.load(result[0] / "profile.json")
    assert len(profile.layers) == 9
    # Every step down, by 0.98 in all; the twin's stays within 0.05 of where it starts.
    assert profile.is_monotone()
    assert profile.mean[0] - profile.mean[-1] > 0.9
    assert np.abs(profile.baseline.mean - profile.baseline.mean[0]).max() < 0.05
    assert not profile.baseline.is_monotone()


def test_the_saved_model_is_the_one_measured(result):
    profile = EntropyProfile.load(result[0] / "profile.json")
    model = load_model(result[0] / "saved_model")
    x, y = load_dataset(DatasetSpec("digits", split="test", shape=(64,))).arrays
    accuracy = np.mean(model.predict(x, verbose=0).argmax(axis=-1) == y)
    assert accuracy == pytest.approx(profile.metrics["accuracy"], abs=1e-6)
    assert accuracy > 0.94
