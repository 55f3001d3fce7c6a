"""Arrays in a new order in every epoch, also after `set_random_seed`."""

import keras
import numpy as np
import pytest

from keras_layer_entropy.pruning.shuffling import Shuffled

pytestmark = [
    pytest.mark.tensorflow,  # what is mended is TensorFlow's
    pytest.mark.fits_once,
]


class Seen(keras.callbacks.Callback):
    """The batches of each epoch, as a model without weights saw them."""

    def on_epoch_begin(self, epoch, logs=None):
        self.model.seen.append([])


class Watcher(keras.Model):
    def __init__(self):
        super().__init__()
        self.seen = []

    def train_step(self, data):
        self.seen[-1].append(tuple(np.asarray(data[0]).ravel().astype(int).tolist()))
        return {"loss": 0.0}


def orders(data, **keywords):
    keras.utils.set_random_seed(3)
    model = Watcher()
    model.compile(run_eagerly=True)
    model.fit(data, epochs=3, verbose=0, callbacks=[Seen()], **keywords)
    return model.seen


def test_every_epoch_has_an_order_of_its_own():
    x = np.arange(50.0)[:, None]
    epochs = orders(Shuffled((x, x), batch_size=8, seed=0))
    assert all(sorted(sum(batches, ())) == list(range(50)) for batches in epochs)
    # Keras puts batches in another order itself; what is in them has to change, too.
    assert len({frozenset(map(frozenset, batches)) for batches in epochs}) == 3
    assert orders(Shuffled((x, x), batch_size=8, seed=0)) == epochs
    # What it is for: Keras's own shuffle repeats itself. Where this fails, it is needed no more.
    assert len({tuple(batches) for batches in orders(x, y=x, batch_size=8)}) == 1


def test_all_parts_of_a_sample_stay_together():
    x = {"a": np.arange(10), "b": 10 * np.arange(10)}
    data = Shuffled((x, np.arange(10), np.arange(10) / 10), batch_size=4, seed=1)
    assert [len(data[i][1]) for i in range(len(data))] == [4, 4, 2]
    for inputs, y, weight in (data[i] for i in range(len(data))):
        np.testing.assert_array_equal(inputs["a"], y)
        np.testing.assert_array_equal(inputs["b"], 10 * y)
        np.testing.assert_allclose(weight, y / 10)
