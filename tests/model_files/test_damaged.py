"""Bytes that flip and files that end early: the right model, or one clear error."""

import zipfile

import h5py
import keras
import numpy as np
import pytest
from test_keras2 import FOLDER

from keras_layer_entropy import load_model, save_model

pytestmark = pytest.mark.tensorflow
TRIES = 250


def ours(name):
    def make(folder):
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(200, "relu")])
        model.add(keras.layers.Dense(2))
        model.compile("adam", "mse")
        model.fit(np.ones((4, 4)), np.ones((4, 2)), verbose=0)
        x = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
        return save_model(model, folder / name), x, model.predict(x, verbose=0)

    return make


def keras2(name):
    def make(folder):
        with zipfile.ZipFile(FOLDER / "mlp_called.zip") as archive:
            archive.extractall(folder)
        data = np.load(folder / "data.npz")
        return folder / name, data["x"], data["y_0"]

    return make


FORMATS = {
    "keras": ours("model.keras"),
    "directory": ours("model"),
    "h5": ours("model.h5"),
    "saved_model of Keras 2": keras2("saved_model"),
    "h5 of Keras 2": keras2("model.h5"),
    "keras of Keras 2": keras2("model.keras"),
}


def numbers_in(path):
    """The bytes of an HDF5 file that are numbers, which no checksum covers in Keras 2's files."""
    covered = set()

    def add(_, item):
        if isinstance(item, h5py.Dataset) and item.id.get_offset() is not None:
            start = item.id.get_offset()
            covered.update(range(start, start + item.id.get_storage_size()))

    with h5py.File(path) as file:
        file.visititems(add)
    return covered


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FORMATS)
def test_damage_is_found_or_harmless(name, tmp_path):
    path, x, want = FORMATS[name](tmp_path)
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    good = {file: file.read_bytes() for file in files}
    unprotected = numbers_in(path) if name == "h5 of Keras 2" else ()
    generator = np.random.default_rng(0)
    found = 0
    for i in range(TRIES):
        file = files[generator.integers(len(files))]
        data, place = bytearray(good[file]), generator.integers(len(good[file]))
        if i % 5 == 0:
            del data[place:]
        else:
            data[place] ^= 1 << generator.integers(8)
        file.write_bytes(data)
        error = None
        try:
            model = load_model(path)
        except (ValueError, FileNotFoundError) as caught:
            error, found = caught, found + 1
        if error is None:  # the same numbers, up to rounding
            right = np.allclose(model(x), want, rtol=1e-5, atol=1e-6)
            assert right or place in unprotected, f"{file.name}: byte {place}"
        assert error is None or "\n" not in str(error)
        file.write_bytes(good[file])
    assert found > TRIES / 10  # the damage was there
    assert np.allclose(load_model(path)(x), want, rtol=1e-5, atol=1e-6)
