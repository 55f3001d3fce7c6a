"""Paths, and files written whole."""

import pathlib

import models
import numpy as np
import pytest

from keras_layer_entropy import EntropyProfile, files, model_files, report
from keras_layer_entropy.pruning.checkpoint import Checkpoint, fingerprint

pytestmark = pytest.mark.tensorflow  # files are the same on every backend

PROFILE = EntropyProfile(
    layers=("dense", "logits"),
    units=(8, 2),
    outputs=(False, True),
    classes=("a", "b"),
    count=[5, 5],
    normalizer=[2.1, 0.7],
    values={"activation_entropy": [[0.9, 0.8], [0.1, 0.2]]},
)

# Everything that takes a path.
TAKE_PATHS = {
    "files.local_path": files.local_path,
    "files.replacing": lambda path: files.replacing(path).__enter__(),
    "files.recover": files.recover,
    "model_files.save_model": lambda path: model_files.save_model(
        models.sequential().model, path, overwrite=True
    ),
    "model_files.load_model": model_files.load_model,
    "model_files.model_format": model_files.model_format,
    "model_files.dataset_record": model_files.dataset_record,
    "EntropyProfile.save": PROFILE.save,
    "EntropyProfile.to_csv": PROFILE.to_csv,
    "EntropyProfile.report": lambda path: PROFILE.report(path, overwrite=True),
    "EntropyProfile.load": EntropyProfile.load,
    "report.save_profile": lambda path: report.save_profile(PROFILE, path, overwrite=True),
    "report.write_report": lambda path: report.write_report(path, PROFILE, overwrite=True),
    "report.check_new": report.check_new,
    "report.check_new_file": report.check_new_file,
    "Checkpoint": lambda path: Checkpoint(path, {}).exists(),
    "fingerprint": fingerprint,
}

NO_PATHS = [
    *("gs://bucket/model.keras", "s3://bucket/model", "hdfs://node/m.h5", "hf://user/repo"),
    *("https://example.org/m.keras", "abfss://box@account/m", "file:///tmp/m.keras"),
    *(pathlib.PurePosixPath("gs://bucket/m.keras"), "dbfs:/mnt/m.keras"),
    *("", " ", "a\0b", None, 3, b"model.keras", ["model.keras"]),
]


@pytest.mark.parametrize("name", TAKE_PATHS)
def test_what_is_no_local_path_is_refused_everywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given in NO_PATHS:
        with pytest.raises(ValueError, match="expected (a|the)|NUL character"):
            TAKE_PATHS[name](given)
    assert list(tmp_path.iterdir()) == []


def test_a_url_is_met_with_what_to_do():
    for given, words in {
        "s3://bucket/model": "'s3://bucket/model' is a URL.*copy .* local folder, or mount it",
        "file:///tmp/m": "leave out 'file://'",
        "": "path is empty",
        3: "3 is a int; expected a path",
    }.items():
        with pytest.raises(ValueError, match=words):
            files.local_path(given)


def test_ordinary_names_stay_as_they_are(monkeypatch, tmp_path):
    ordinary = ["model", "./a/b", "/tmp/x", "C:\\models\\m.keras", "C:/models", "epoch:10", "a b"]
    ordinary += ["ünï", "model 1.0:final/m.h5", "~model", ".", "..", "x~", np.str_("a")]
    for given in ordinary:
        assert files.local_path(given) == pathlib.Path(given)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.local_path("~/m.keras") == tmp_path / "m.keras"
