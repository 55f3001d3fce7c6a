"""Hostile files are refused and nothing in them runs; ordinary models are not refused."""

import contextlib
import time

import hostile
import keras
import numpy as np
import pytest

from keras_layer_entropy import load_model
from keras_layer_entropy.model_files import UnsafeModelError

pytestmark = pytest.mark.tensorflow
# They name something foreign as a loss or metric, as a model with a loss of one's own does: the
# model is opened without, and what is named is never looked up.
WITHOUT_LOSS = {
    f"{name} as {place}"
    for name in ("system", "exec", "foreign class")
    for place in ("loss", "function of a metric", "learning rate")
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", hostile.CATALOGUE, ids=str)
def test_hostile_files_are_refused(kind, tmp_path):
    path = tmp_path / f"model{hostile.SUFFIXES[kind.format]}"
    marker = tmp_path / hostile.MARKER
    kind.make(path, marker)
    began = time.monotonic()
    if kind.name in WITHOUT_LOSS:
        with pytest.warns(UserWarning, match="without its loss and metrics"):
            model = load_model(path)
        assert not model.compiled
        model.predict(np.zeros((2, *model.input_shape[1:])), verbose=0)
    else:
        with pytest.raises(ValueError, match="refused|cannot be opened") as caught:
            load_model(path)
        assert "\n" not in str(caught.value)
    assert not marker.exists()
    assert time.monotonic() - began < 20  # far more than any needs; the bombs would take minutes


@pytest.mark.parametrize(
    "kind", [k for k in hostile.CATALOGUE if k.runs_in_plain_keras == "load"], ids=str
)
def test_plain_keras_would_run_it(kind, tmp_path):
    """The files are dangerous: a test that they are refused can fail."""
    path = tmp_path / f"model{hostile.SUFFIXES[kind.format]}"
    kind.make(path, tmp_path / hostile.MARKER)
    with contextlib.suppress(Exception):  # what comes after the payload may fail
        keras.saving.load_model(path)
    assert (tmp_path / hostile.MARKER).exists()


ORDINARY = hostile.ordinary()


@pytest.mark.parametrize("name", ORDINARY)
@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_ordinary_models_are_not_refused(name, suffix, tmp_path):
    if suffix == ".h5" and name in hostile.NOT_IN_H5:
        pytest.skip("Keras itself cannot write this model to .h5")
    model = ORDINARY[name]()
    model.save(tmp_path / f"model{suffix}")
    loaded = load_model(tmp_path / f"model{suffix}")
    pairs = zip(model.weights, loaded.weights, strict=True)
    for mine, other in pairs if name != "low rank" else ():  # Keras merges its matrices
        np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, (mine, other)))


def test_unsafe_files_open_when_told_so(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: 2 * x)])
    model.save(tmp_path / "model.keras")
    with pytest.raises(UnsafeModelError, match="names 'Lambda', which can run code.*allow_unsafe"):
        load_model(tmp_path / "model.keras")
    loaded = load_model(tmp_path / "model.keras", allow_unsafe=True)
    np.testing.assert_array_equal(loaded.predict(np.ones((1, 3)), verbose=0), np.full((1, 3), 2))
