"""Outputs in files are those of `predict`, whatever the data, also after a break."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_layer_entropy import ActivationProbe


@pytest.fixture
def probe():
    block = keras.Sequential([layers.Dense(6, "relu", name="dense")], name="block")
    model = keras.Sequential([keras.Input((4,)), block, layers.Dense(3, name="out")])
    return ActivationProbe(model)


@pytest.fixture
def x(random):
    return random.normal(size=(70, 4)).astype("float32")


def check(files, probe, x):
    want = probe.predict(x, verbose=0)
    assert {path: file.name for path, file in files.items()} == {
        "block/dense": "block__dense.npy",
        "out": "out.npy",
    }
    for path, file in files.items():
        # Other batch sizes, another order of float32 sums.
        np.testing.assert_allclose(np.load(file), want[path], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("given", ["arrays", "pairs", "generator"])
def test_all_that_evaluate_takes(given, probe, x, tmp_path):
    data = {
        "arrays": x,
        "pairs": (x, np.zeros(70)),
        "generator": (x[i : i + 16] for i in range(0, 70, 16)),
    }[given]
    steps = {"steps": 5} if given == "generator" else {}
    check(probe.predict_to(tmp_path / "new" / "folder", data, batch_size=16, **steps), probe, x)


class Broken(keras.utils.PyDataset):
    """Batches, of which one cannot be read the first time."""

    def __init__(self, x):
        super().__init__()
        self.x, self.broken, self.read = x, True, []

    def __len__(self):
        return 7

    def __getitem__(self, index):
        self.read.append(index)
        if index == 4 and self.broken:
            raise OSError("the disk is gone")
        return self.x[10 * index : 10 * index + 10], np.zeros(10)


def test_it_goes_on_after_a_break(probe, x, tmp_path, monkeypatch):
    data = Broken(x)
    with pytest.raises(Exception, match="the disk is gone"):
        probe.predict_to(tmp_path, data)
    data.broken = False
    computed = []
    plain = probe.predict_on_batch
    monkeypatch.setattr(
        type(probe),
        "predict_on_batch",
        lambda _, batch: computed.append(len(batch)) or plain(batch),
    )
    # A break while a batch is written leaves rows that nobody counted.
    with open(tmp_path / "out.npy", "ab") as file:
        file.write(b"half a row")
    files = probe.predict_to(tmp_path, data)
    monkeypatch.undo()
    check(files, probe, x)
    assert len(computed) == 7 - 4 + 1  # of the four that there were, the last once more


def test_what_is_refused(probe, x, tmp_path):
    probe.predict_to(tmp_path, x)
    with pytest.raises(FileExistsError, match="holds outputs already"):
        probe.predict_to(tmp_path, x)
    check(probe.predict_to(tmp_path, x, overwrite=True), probe, x)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds thesis\.txt"):
        probe.predict_to(tmp_path / "other", x, overwrite=True)
    with pytest.raises(ValueError, match="steps"):
        probe.predict_to(tmp_path / "endless", (x for _ in range(3)))


def test_another_network_does_not_go_on(probe, x, tmp_path):
    data = Broken(x)
    with pytest.raises(Exception, match="the disk is gone"):
        probe.predict_to(tmp_path, data)
    data.broken = False
    other = ActivationProbe(probe.model, layers="out")
    with pytest.raises(
        ValueError, match=r"of \['block/dense', 'out'\], and these are of \['out'\]"
    ):
        other.predict_to(tmp_path, data)


@pytest.mark.parametrize("what", ["data", "fewer", "order", "batch_size", "weights"])
def test_others_do_not_go_on(what, probe, x, tmp_path):
    with pytest.raises(Exception, match="the disk is gone"):
        probe.predict_to(tmp_path, Broken(x))
    data, options = x.copy(), {"batch_size": 10}
    if what == "weights":
        probe.model.set_weights([2 * w for w in probe.model.get_weights()])
    elif what == "batch_size":
        options = {"batch_size": 7}
    elif what == "order":
        data = data[::-1]
    elif what == "fewer":
        data = data[:20]
    else:
        data += 0.1
    with pytest.raises(ValueError, match="for other data, another batch_size or other weights"):
        probe.predict_to(tmp_path, data, **options)


def test_samples_of_several_sizes_are_told(tmp_path):
    model = keras.Sequential([keras.Input((None, 4)), layers.Dense(3, name="a")])
    parts = (np.ones((2, steps, 4), "float32") for steps in (5, 6))
    with pytest.raises(ValueError, match=r"a gives \(6, 3\) for a sample, and \(5, 3\)"):
        ActivationProbe(model).predict_to(tmp_path, parts, steps=2)
