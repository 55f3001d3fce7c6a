"""CIFAR-10 as a network for it that lies on disk takes it, and training with that as the teacher.

The inputs are images divided by 255, minus the mean image of the training data.
"""

import keras
import numpy as np
import tensorflow_datasets as tfds

from keras_layer_entropy import simplify_model


def arrays():
    """Training images and labels, test images and labels; the images are not centred."""
    return [
        part
        for split in ("train", "test")
        for whole in [tfds.as_numpy(tfds.load("cifar10", split=split, batch_size=-1))]
        for part in (whole["image"] / np.float32(255), whole["label"])
    ]


def accuracy(model, x, y):
    """Per cent that a model has right."""
    return 100 * np.mean(model.predict(x, batch_size=500, verbose=0).argmax(axis=1) == y)


def calibration_rows(x, seed, count=500):
    """Rows of some samples."""
    return np.random.default_rng(seed).permutation(len(x))[:count]


PEAK = 3e-4  # of the learning rate


class Distilled(keras.utils.PyDataset):
    """Batches of images, cropped and flipped, with their labels and the logits of a teacher."""

    def __init__(self, x, y, teacher, batch_size=128):
        super().__init__()
        self._x = np.pad(x, ((0, 0), (4, 4), (4, 4), (0, 0)))  # black, before they are centred
        self._mean, self._labels = x.mean(axis=0), np.eye(10, dtype="float32")[y]
        self._teacher, self._batch_size = teacher, batch_size
        self._random = np.random.default_rng(0)
        self.on_epoch_end()

    def __len__(self):
        return len(self._x) // self._batch_size

    def __getitem__(self, index):
        rows = self._order[index * self._batch_size :][: self._batch_size]
        images = np.empty((len(rows), *self._mean.shape), "float32")
        draws = self._random.integers([9, 9, 2], size=(len(rows), 3))
        for image, row, (top, left, flip) in zip(images, rows, draws, strict=True):
            crop = self._x[row, top : top + 32, left : left + 32]
            image[:] = crop[:, ::-1] if flip else crop
        images -= self._mean
        logits = self._teacher.predict_on_batch(images)
        return images, np.stack([self._labels[rows], logits], axis=1)

    def on_epoch_end(self):
        self._order = self._random.permutation(len(self._x))


def distillation(temperature=4.0, weight=0.9):
    """The loss of Hinton, Vinyals & Dean (2015), of `[labels, logits of the teacher]`."""
    entropy = keras.losses.CategoricalCrossentropy(from_logits=True, reduction=None)

    def loss(wanted, logits):
        soft = keras.ops.softmax(wanted[:, 1] / temperature)
        return (1 - weight) * entropy(wanted[:, 0], logits) + (
            weight * temperature**2 * entropy(soft, logits / temperature)
        )

    return loss


def retrain(model, smaller, train, test, epochs):
    """Trains what is left of a model on labels and on what the model itself says of each image.

    Prints how good both are, and the smaller one after each epoch. Decay of weights is that of the
    network's own regularizers.
    """
    (x, y), (xt, yt) = train, test
    mean = x.mean(axis=0)
    for network in (model, smaller):
        network.layers[-1].activation = keras.activations.linear  # logits, for the loss
    batches = Distilled(x, y, simplify_model(model))
    print("\n| % right of test images | the first 2,000 | all |\n|---|---|---|")

    def tell(what, network):
        first, whole = (accuracy(network, xt[:n] - mean, yt[:n]) for n in (2000, len(yt)))
        print(f"| {what} | {first:.2f} | {whole:.2f} |", flush=True)

    tell("the network itself", model)
    tell("right after the removal", smaller)
    rate = keras.optimizers.schedules.CosineDecay(
        2e-5, epochs * len(batches) - 100, warmup_target=PEAK, warmup_steps=100
    )
    smaller.compile(keras.optimizers.Adam(rate), distillation())
    ends = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, _: tell(f"after epoch {epoch + 1}", smaller)
    )
    smaller.fit(batches, epochs=epochs, callbacks=[ends], verbose=0)
