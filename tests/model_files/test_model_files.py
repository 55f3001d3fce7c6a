"""Opening by content, saving whole."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import h5py
import keras
import models
import numpy as np
import pytest

from keras_layer_entropy import files
from keras_layer_entropy.datasets import DatasetSpec
from keras_layer_entropy.files import replacing
from keras_layer_entropy.model_files import dataset_record, load_model, save_model

pytestmark = pytest.mark.tensorflow  # files are the same on every backend


@pytest.fixture
def case():
    return models.sequential()


@pytest.mark.parametrize(
    ("saved", "found"), [("m.keras", "m.H5"), ("m.keras", "m"), ("m.h5", "m.KERAS"), ("m.h5", "m")]
)
def test_formats_are_told_apart_by_content(saved, found, case, tmp_path):
    save_model(case.model, tmp_path / saved)
    os.rename(tmp_path / saved, tmp_path / found)
    loaded = load_model(tmp_path / found)
    np.testing.assert_array_equal(
        loaded.predict(case.x, verbose=0), case.model.predict(case.x, verbose=0)
    )


def test_dataset_is_recorded(case, tmp_path):
    spec = DatasetSpec("digits", split="test", scale=0.5, shape=(8,))
    directory = save_model(case.model, tmp_path / "model", dataset=spec)
    assert json.loads((directory / "dataset.json").read_text())["scale"] == 0.5
    file = save_model(case.model, tmp_path / "model.keras", dataset="mnist")
    assert (tmp_path / "model.keras.dataset.json").is_file()
    assert dataset_record(file) == {"name": "mnist"}
    assert DatasetSpec(**dataset_record(directory)).name == "digits"
    load_model(directory)
    for text in ("{", "[]", "{}"):
        (directory / "dataset.json").write_text(text)
        with pytest.raises(ValueError, match="record of the data"):
            dataset_record(directory)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "saved_model"])
def test_existing_models_are_kept(name, case, tmp_path):
    path = save_model(case.model, tmp_path / name)
    other = models.functional().model
    with pytest.raises(FileExistsError, match="exists: choose another path, or overwrite=True"):
        save_model(other, path)
    assert load_model(path).layers[-1].activation is keras.activations.softmax
    save_model(other, path, overwrite=True)
    assert load_model(path).layers[-1].activation is keras.activations.linear
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, "There is no model at"),
        (lambda p: p.write_bytes(b""), "an empty file"),
        (lambda p: p.write_text("hello"), "no zip archive and no HDF5 file"),
        (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n junk"), "The h5 model .* cannot be opened"),
        (lambda p: p.mkdir(), "a directory without config.json"),
        (
            lambda p: (p.mkdir(), (p / "saved_model.pb").write_text("")),
            "an export without layers",
        ),
    ],
)
def test_other_files_are_refused(make, message, tmp_path):
    path = tmp_path / "model"
    make(path)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_model(path)


def test_failed_saving_leaves_the_old(case, tmp_path):
    path = save_model(case.model, tmp_path / "saved_model")
    with pytest.raises(RuntimeError, match="full"), replacing(path) as temporary:
        temporary.mkdir()
        (temporary / "half").write_text("")
        raise RuntimeError("the disk is full")
    load_model(path)
    assert os.listdir(tmp_path) == ["saved_model"]


def test_a_reader_never_sees_half(tmp_path):
    """Who has the old file open goes on reading the old file, whole: it is replaced, not filled."""
    target = tmp_path / "target"
    target.write_text("old " * 1_000_000)
    with open(target) as reader:
        assert reader.read(4) == "old "
        with replacing(target) as temporary:
            temporary.write_text("new " * 1_000_000)
            assert target.read_text() == "old " * 1_000_000
        assert reader.read() == "old " * 999_999
    assert target.read_text() == "new " * 1_000_000


def test_killed_saving_leaves_the_old(tmp_path):
    """A process that rewrites one file again and again is killed; a whole file is left."""
    # by itself, because the package around it takes seconds to import
    folder = pathlib.Path(files.__file__).parent
    script = tmp_path / "write.py"
    script.write_text(
        "import itertools, sys\n"
        f"sys.path.insert(0, {str(folder)!r})\n"
        "from files import replacing\n"
        "for i in itertools.count():\n"
        "    with replacing(sys.argv[1]) as path:\n"
        "        path.write_text(str(i % 10) * 1_000_000)\n"
        "    print(i, flush=True)\n"
    )
    target = tmp_path / "target"
    for wait in (0.0, 0.003, 0.011):
        process = subprocess.Popen([sys.executable, script, target], stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        text = target.read_text()
        assert len(text) == 1_000_000
        assert len(set(text)) == 1


def test_overwriting_never_takes_other_things_along(case, tmp_path):
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds other things than a model"):
        save_model(case.model, tmp_path / "project", overwrite=True)
    assert (tmp_path / "project" / "thesis.txt").read_text() == "years of work"

    path = save_model(case.model, tmp_path / "m.keras", dataset="digits")
    save_model(case.model, path, overwrite=True)
    assert dataset_record(path) is None
    os.symlink(path, tmp_path / "link.keras")
    save_model(case.model, tmp_path / "link.keras", overwrite=True)
    assert (tmp_path / "link.keras").is_symlink()
    with pytest.raises(ValueError, match="expected a name, a path, a DatasetSpec"):
        save_model(case.model, tmp_path / "other.keras", dataset=["digits"])


def test_an_unknown_loss_is_left_out(case, tmp_path):
    def my_loss(y, p):
        return keras.ops.mean(p)

    case.model.compile("sgd", my_loss)
    path = save_model(case.model, tmp_path / "m.keras")
    with pytest.warns(UserWarning, match="without its loss and metrics.*my_loss"):
        assert not load_model(path).compiled


def test_what_is_doubtful_is_said(case, tmp_path):
    layer = case.model.layers[-1]
    layer.bias.assign(np.full(layer.bias.shape, np.nan))
    case.model.compile("adam", "sparse_categorical_crossentropy")
    save_model(case.model, tmp_path / "model")
    metadata = json.loads((tmp_path / "model" / "metadata.json").read_text())
    (tmp_path / "model" / "metadata.json").write_text(
        json.dumps(metadata | {"keras_version": "99.1.0"})
    )
    with (
        pytest.warns(UserWarning, match=f"NaN or infinite: .*{layer.name}/bias"),
        pytest.warns(UserWarning, match=r"saved by Keras 99\.1\.0, this is Keras"),
    ):
        load_model(tmp_path / "model")


def test_missing_state_of_the_optimizer_is_said(case, tmp_path):
    case.model.compile("adam", "sparse_categorical_crossentropy")
    case.model.save(tmp_path / "m.h5")
    with h5py.File(tmp_path / "m.h5", "r+") as file:
        del file["optimizer_weights"]
    with pytest.warns(UserWarning, match="starts without its state"):
        assert load_model(tmp_path / "m.h5").compiled


def test_checksums_are_inside_and_go_with_what_they_sum(case, tmp_path):
    """Who writes the model anew with Keras alone leaves no stale checksum behind."""
    path = save_model(case.model, tmp_path / "m.h5")
    layer = case.model.layers[-1]
    layer.bias.assign(layer.bias + 1)
    case.model.save(path)
    np.testing.assert_array_equal(load_model(path).layers[-1].bias, layer.bias)

    path = save_model(case.model, tmp_path / "model")
    with h5py.File(path / "model.weights.h5", "r+") as file:
        names = []
        file.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
        file[names[0]][...] = file[names[0]][...] + 1
    with pytest.raises(ValueError, match="weights are damaged"):
        load_model(path)

    path = save_model(case.model, tmp_path / "other")
    config = (path / "config.json").read_text()
    (path / "config.json").write_text(config.replace('"relu"', '"selu"'))
    with pytest.raises(ValueError, match="config.json was changed since the model was saved"):
        load_model(path)


def test_weights_alone_are_named(case, tmp_path):
    case.model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match="weights only, no layers. Save the whole model"):
        load_model(tmp_path / "m.weights.h5")


def test_custom_objects(tmp_path):
    class Scale(keras.layers.Layer):
        def call(self, x):
            return 2 * x

    model = keras.Sequential([keras.Input((3,)), Scale()])
    save_model(model, tmp_path / "m.keras")
    with pytest.raises(ValueError, match="Scale, which is not one of Keras's.*custom objects"):
        load_model(tmp_path / "m.keras")
    loaded = load_model(tmp_path / "m.keras", custom_objects={"Scale": Scale})
    np.testing.assert_array_equal(loaded.predict(np.ones((1, 3)), verbose=0), np.full((1, 3), 2))


def test_other_files_in_a_models_directory_stay(case, tmp_path):
    path = save_model(case.model, tmp_path / "model", dataset="digits")
    (path / "labels.txt").write_text("cat\ndog\n")
    (path / "logs").mkdir()
    (path / "logs" / "train.csv").write_text("1,2\n")
    shutil.copytree(path, path / "epoch_10")
    (path / "assets" / "logo.png").write_bytes(b"png")
    other = models.functional().model
    save_model(other, path, overwrite=True)
    assert load_model(path).layers[-1].activation is keras.activations.linear
    assert load_model(path / "epoch_10").layers[-1].activation is keras.activations.softmax
    assert (path / "labels.txt").read_text() == "cat\ndog\n"
    assert (path / "logs" / "train.csv").read_text() == "1,2\n"
    assert (path / "assets" / "logo.png").read_bytes() == b"png"
    assert dataset_record(path) is None  # it was of the model that was there


@pytest.mark.parametrize("owner", ["transformers", "a user"])
def test_a_config_alone_makes_no_model(owner, case, tmp_path):
    config = {"architectures": ["Bert"]} if owner == "transformers" else ["mine"]
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "config.json").write_text(json.dumps(config))
    with pytest.raises(FileExistsError, match="holds other things than a model"):
        save_model(case.model, tmp_path / "project", overwrite=True)
    assert json.loads((tmp_path / "project" / "config.json").read_text()) == config


def test_records_of_others_stay(case, tmp_path):
    record = tmp_path / "m.keras.dataset.json"
    record.write_text('{"rows": 3}')  # none of ours
    path = save_model(case.model, tmp_path / "m.keras")
    save_model(case.model, path, overwrite=True)
    assert record.read_text() == '{"rows": 3}'
    path.unlink()
    record.write_text('{"name": "digits"}')
    with pytest.raises(FileExistsError, match=r"dataset\.json exists"):
        save_model(case.model, path)
    with pytest.raises(FileExistsError, match="other things than a model"):
        (tmp_path / "folder.keras").mkdir()
        save_model(case.model, tmp_path / "folder.keras", overwrite=True)
    with pytest.raises(FileExistsError, match="is a file; a name that ends in neither"):
        (tmp_path / "file").write_text("")
        save_model(case.model, tmp_path / "file", overwrite=True)


@pytest.mark.parametrize("name", ["m.keras", "m.h5", "model"])
def test_permissions_of_a_model_stay(name, case, tmp_path):
    path = save_model(case.model, tmp_path / name)
    files = [path] if path.is_file() else [path, path / "model.weights.h5"]
    for file, mode in zip(files, (0o750, 0o640), strict=False):
        file.chmod(mode)
    save_model(case.model, path, overwrite=True)
    assert [file.stat().st_mode & 0o777 for file in files] == [0o750, 0o640][: len(files)]
