"""Data sources by name, from real files."""

import os
import pathlib

import keras
import numpy as np
import pytest

from keras_layer_entropy.datasets import DatasetSpec, load_dataset, load_parts

pytestmark = pytest.mark.tensorflow


def test_digits():
    parts = {
        s: load_dataset(DatasetSpec("digits", split=s)) for s in ("train", "validation", "test")
    }
    assert [len(part.arrays[1]) for part in parts.values()] == [1078, 359, 360]
    from sklearn.datasets import load_digits

    images = load_digits().images / 16
    joined = np.concatenate([part.arrays[0][..., 0] for part in parts.values()])
    # The same images, each once.
    order = lambda a: a[np.lexsort(a.reshape(len(a), -1).T)]  # noqa: E731
    np.testing.assert_allclose(order(joined.round(4)), order(images.round(4)), atol=1e-6)
    test = load_dataset("digits")
    assert (test.spec.split, test.spec.scale) == ("test", 1 / 16)
    assert test.classes == tuple("0123456789")
    with pytest.raises(ValueError, match="digits has no split 'dev', only"):
        load_dataset(DatasetSpec("digits", split="dev"))
    with pytest.raises(ValueError, match=r"takes inputs of shape \(9,\), but those of digits have"):
        load_dataset(DatasetSpec("digits", shape=(9,)))


def test_npz(tmp_path, random):
    x, y = random.integers(0, 255, (6, 2, 2), dtype="uint8"), np.arange(6)
    np.savez(tmp_path / "one.npz", x=x, y=y)
    np.savez(tmp_path / "split.npz", x_train=x[:4], y_train=y[:4], x_test=x[4:], y_test=y[4:])
    one = load_dataset(str(tmp_path / "one.npz"))
    np.testing.assert_array_equal(one.arrays[0], x)
    scaled = load_dataset(DatasetSpec(str(tmp_path / "one.npz"), scale=0.5, shape=(4,)))
    np.testing.assert_array_equal(scaled.arrays[0], x.reshape(6, 4) * np.float32(0.5))
    assert load_dataset(str(tmp_path / "split.npz")).arrays[1].tolist() == [4, 5]
    train = DatasetSpec(str(tmp_path / "split.npz"), split="train")
    assert load_dataset(train).arrays[1].tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"holds the arrays \['x', 'y'\]; expected .*x_dev"):
        load_dataset(DatasetSpec(str(tmp_path / "one.npz"), split="dev"))
    with pytest.raises(ValueError, match="There is no file"):
        load_dataset(str(tmp_path / "none.npz"))
    (tmp_path / "bad.npz").write_text("no archive")
    with pytest.raises(ValueError, match="bad.npz"):
        load_dataset(str(tmp_path / "bad.npz"))


def test_image_folder(tmp_path, random):
    for split in ("train", "test"):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(3):
                pixels = np.full((4, 4, 3), 100 * label + i + 10 * (split == "test"))
                keras.utils.save_img(tmp_path / split / name / f"{i}.png", pixels, scale=False)
    dataset = load_dataset(DatasetSpec(str(tmp_path), shape=(4, 4, 3)))
    x, y = dataset.arrays
    assert dataset.classes == ("cat", "dog")
    assert dataset.spec.split == "test"
    assert y.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(x[:, 0, 0, 0] * 255, [10, 11, 12, 110, 111, 112], rtol=1e-6)
    flat = load_dataset(DatasetSpec(str(tmp_path / "train"), shape=(2, 2, 1)))
    assert flat.arrays[0].shape == (6, 2, 2, 1)
    with pytest.raises(ValueError, match="Images are resized to the model's input"):
        load_dataset(str(tmp_path))
    with pytest.raises(ValueError, match="no folder with one folder of images per class"):
        load_dataset(DatasetSpec(str(tmp_path / "train" / "cat"), shape=(4, 4, 3)))


def test_tfds(tmp_path):
    """A real TFDS data set, made here."""
    import tensorflow_datasets as tfds

    images = np.arange(5 * 4, dtype="uint8").reshape(5, 2, 2, 1)

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(2, 2, 1)),
                    "label": tfds.features.ClassLabel(names=["no", "yes"]),
                }
            )
            return tfds.core.DatasetInfo(
                builder=self, features=features, supervised_keys=("image", "label")
            )

        def _split_generators(self, manager):
            return {"train": self._generate_examples(), "test": self._generate_examples()}

        def _generate_examples(self):
            for i, image in enumerate(images):
                yield i, {"image": image, "label": i % 2}

    Tiny(data_dir=str(tmp_path)).download_and_prepare()
    dataset = load_dataset(DatasetSpec("tiny", data_dir=str(tmp_path), shape=(4,)))
    x, y = dataset.arrays
    order = np.argsort(x[:, 0])
    np.testing.assert_allclose(x[order] * 255, images.reshape(5, 4), rtol=1e-6)
    assert y[order].tolist() == [0, 1, 0, 1, 0]
    assert dataset.classes == ("no", "yes")
    assert (dataset.spec.scale, dataset.spec.split) == (1 / 255, "test")
    with pytest.raises(ValueError, match="tiny has no split 'dev', only"):
        load_dataset(DatasetSpec("tiny", data_dir=str(tmp_path), split="dev"))
    parts = load_parts(DatasetSpec("tiny", data_dir=str(tmp_path), split="train"))
    assert [len(part.arrays[0]) for part in (parts.train, parts.validation, parts.test)] == [
        3,
        1,
        1,
    ]
    assert "split by position" in parts.notes[0]
    whole = np.concatenate([p.arrays[0] for p in (parts.train, parts.validation, parts.test)])
    assert len(np.unique(whole.reshape(5, -1), axis=0)) == 5
    with pytest.raises(ValueError, match="There is no data set 'nothing_like_it'"):
        load_dataset(DatasetSpec("nothing_like_it", data_dir=str(tmp_path)))


@pytest.mark.skipif(
    not pathlib.Path(os.environ.get("TFDS_DATA_DIR", "-"), "mnist").is_dir(),
    reason="TFDS_DATA_DIR holds no mnist",
)
def test_mnist():
    x, y = load_dataset("mnist").arrays
    assert x.shape == (10_000, 28, 28, 1)
    assert (x.min(), x.max()) == (0, 1)
    assert np.bincount(y).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def rows(parts):
    """Each part's samples as a set of bytes."""
    return [
        {row.tobytes() for row in part.arrays[0]}
        for part in (parts.train, parts.validation, parts.test)
    ]


def test_parts_that_are_there_are_taken():
    parts = load_parts(DatasetSpec("digits"))
    assert [part.spec.split for part in (parts.train, parts.validation, parts.test)] == [
        *("train", "validation", "test"),
    ]
    assert parts.notes == ()


def test_one_part_is_split_with_the_seed_class_by_class(tmp_path):
    x, y = np.arange(200.0).reshape(100, 2), np.arange(100) % 4
    np.savez(tmp_path / "d.npz", x=x, y=y)
    parts, again, other = (load_parts(str(tmp_path / "d.npz"), seed) for seed in (1, 1, 2))
    sets = rows(parts)
    assert [len(s) for s in sets] == [60, 20, 20]
    assert set.union(*sets) == {row.tobytes() for row in x}
    assert rows(again) == sets != rows(other)
    for part in (parts.train, parts.validation, parts.test):
        assert len(set(np.bincount(part.arrays[1]).tolist())) == 1
    assert "split at random (seed 1), 60%, 20%, 20%" in parts.notes[0]


def test_validation_is_split_off_the_training_data(tmp_path):
    x = np.arange(220.0).reshape(110, 2)
    np.savez(
        tmp_path / "d.npz",
        x_train=x[:100],
        y_train=np.arange(100) % 2,
        x_test=x[100:],
        y_test=np.arange(10) % 2,
    )
    parts = load_parts(str(tmp_path / "d.npz"))
    assert [len(s) for s in rows(parts)] == [90, 10, 10]
    np.testing.assert_array_equal(parts.test.arrays[0], x[100:])
    assert "train part of" in parts.notes[0]
    one = load_parts(DatasetSpec(str(tmp_path / "d.npz"), split="train"))
    assert [len(s) for s in rows(one)] == [60, 20, 20]
    with pytest.raises(ValueError, match="one part, or three"):
        load_parts(DatasetSpec("digits", split="a,b,c,d"))


def test_labels_that_cannot_be_balanced_are_split_all_the_same(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.arange(20.0).reshape(10, 2), y=np.arange(10))
    assert [len(s) for s in rows(load_parts(str(tmp_path / "d.npz")))] == [6, 2, 2]


def test_image_folders_are_split(tmp_path):
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        for i in range(10):
            pixels = np.full((4, 4, 3), 100 * label + i)
            keras.utils.save_img(tmp_path / name / f"{i}.png", pixels, scale=False)
    parts = load_parts(DatasetSpec(str(tmp_path), shape=(4, 4, 3)))
    assert [len(s) for s in rows(parts)] == [12, 4, 4]
    assert parts.train.classes == ("cat", "dog")


def test_small_streams_are_held_in_memory_and_large_ones_shuffled(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(3):
            keras.utils.save_img(tmp_path / name / f"{i}.png", np.full((4, 4, 1), i), scale=False)
    stream = load_dataset(DatasetSpec(str(tmp_path), shape=(4, 4, 1)))
    x, y = stream.in_memory().training_batches(2)
    np.testing.assert_array_equal(x, stream.arrays[0])
    assert stream.in_memory(most=10) is stream
    seen = [batch for _, batch in stream.training_batches(6, seed=1).as_numpy_iterator()]
    assert sorted(seen[0].tolist()) == sorted(y.tolist())
