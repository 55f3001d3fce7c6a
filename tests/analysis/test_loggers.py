"""What loggers and tuners make of the logs, with the real packages, offline."""

import csv
import json
import os

import keras
import numpy as np
import pytest

from keras_layer_entropy import EntropyMonitor

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.fits_once,  # loggers count what they are told
]
MEASURES = ["activation_entropy", "activation_health"]
KEYS = {"val_hidden_entropy", "val_hidden_silent", "val_hidden_activation_health_dead"}


def network():
    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, "relu", name="hidden"),
            keras.layers.Dense(3, "softmax", name="out"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy")
    return model


def fitted(*callbacks):
    """The History of a fit with a monitor before some callbacks."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(90, 4)).astype("float32"), np.arange(90) % 3
    return network().fit(
        x, y, epochs=2, verbose=0, validation_data=(x, y),
        callbacks=[EntropyMonitor(measures=MEASURES), *callbacks],
    ).history  # fmt: skip


def test_weights_and_biases(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "WANDB_MODE", "offline")
    monkeypatch.setitem(os.environ, "WANDB_SILENT", "true")
    import wandb
    from wandb.integration.keras import WandbMetricsLogger

    run = wandb.init(project="layers", dir=tmp_path)
    history = fitted(WandbMetricsLogger())
    found = dict(run.summary)
    run.finish()
    for key in KEYS:
        assert found[f"epoch/{key}"] == pytest.approx(history[key][-1])


def test_mlflow(tmp_path, monkeypatch):
    monkeypatch.setitem(os.environ, "MLFLOW_ALLOW_FILE_STORE", "true")
    import mlflow.keras

    mlflow.set_tracking_uri(f"file:{tmp_path / 'runs'}")
    with mlflow.start_run() as run:
        history = fitted(mlflow.keras.MlflowCallback())
    found = mlflow.get_run(run.info.run_id).data.metrics
    for key in KEYS:
        assert found[key] == pytest.approx(history[key][-1])


def test_keras_tuner(tmp_path):
    import keras_tuner

    random = np.random.default_rng(0)
    x, y = random.normal(size=(90, 4)).astype("float32"), np.arange(90) % 3
    tuner = keras_tuner.RandomSearch(
        lambda hp: network(), directory=tmp_path, max_trials=1,
        objective=keras_tuner.Objective("val_hidden_entropy", "min"),
    )  # fmt: skip
    tuner.search(x, y, epochs=2, verbose=0, validation_data=(x, y), callbacks=[EntropyMonitor()])
    (trial,) = tuner.oracle.get_best_trials(1)
    told = json.loads(
        (tmp_path / "untitled_project" / f"trial_{trial.trial_id}" / "trial.json").read_text()
    )
    assert 0 < trial.score < 1
    assert told["score"] == trial.score


def test_a_table_on_disk(tmp_path):
    history = fitted(keras.callbacks.CSVLogger(tmp_path / "log.csv"))
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for key in KEYS:
        assert [float(row[key]) for row in rows] == pytest.approx(history[key])


def test_numbers_that_there_are_not_are_left_out():
    history = fitted()
    assert "val_out_activation_health_saturated" in history
    assert "val_hidden_activation_health_saturated" not in history  # a ReLU has no end
