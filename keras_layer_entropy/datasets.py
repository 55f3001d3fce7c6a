"""Data sources by name for the command lines: digits, TFDS, .npz, image folders."""

import dataclasses
import itertools
import math
import os
import pathlib
import zipfile
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_layer_entropy.backend import Data, Tensor
from keras_layer_entropy.files import local_path

SOURCES = """\
  digits            1,797 handwritten digits that come with scikit-learn, no download
  mnist, cifar10    or any other name in TensorFlow Datasets (--data_dir or TFDS_DATA_DIR)
  file.npz          arrays x and y, or x_test and y_test, x_train and y_train, ...; labels of a
                    model with several outputs by their names, y.height and y_test.height, say
  folder/           a folder of images with one folder per class (or test/, train/ with these)"""
_PARTS = {"train": ("train",), "validation": ("validation", "val", "valid"), "test": ("test",)}
_MOST_IN_MEMORY = 2**30  # bytes


@dataclasses.dataclass(frozen=True)
class DatasetSpec:
    """Names a data set and how its inputs are made ready for a model.

    Attributes:
        name: `digits`, a TFDS name, a path that ends in `.npz`, or a folder of images.
        split: which part; None for the source's test part.
        data_dir: where TFDS keeps its data; None for its default or `TFDS_DATA_DIR`.
        scale: what inputs are multiplied by; None for the source's own (1/16 for digits, 1/255
            for 8-bit images, 1 for `.npz`).
        shape: shape that each input is given; None to leave it as it is. Images in folders are
            resized to it.
    """

    name: str
    split: str | None = None
    data_dir: str | None = None
    scale: float | None = None
    shape: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A loaded data set.

    Attributes:
        spec: what it is, with every default filled in.
        classes: names of the classes, or None where the source has none.
    """

    spec: DatasetSpec
    classes: tuple[str, ...] | None
    _arrays: tuple[np.ndarray, Any] | None = None
    _stream: Any = None

    def batches(self, batch_size: int = 256) -> Data:
        """The data as `analyze_model` and `fit` take them: arrays `(x, y)` or batched tf.data."""
        return self._arrays if self._stream is None else self._stream.batch(batch_size)

    @property
    def arrays(self) -> tuple[np.ndarray, Any]:
        """`(x, y)` NumPy arrays, y a dict for several outputs; a stream is read to its end."""
        if self._arrays is not None:
            return self._arrays
        x, y = zip(*self._stream.batch(1000).as_numpy_iterator(), strict=True)
        return np.concatenate(x), np.concatenate(y)

    def in_memory(self, most: int = _MOST_IN_MEMORY) -> "Dataset":
        """The data set as arrays, where they surely take no more than `most` bytes."""
        if self._stream is None:
            return self
        samples = int(self._stream.cardinality())  # negative where it is not known
        shapes = [(part.shape, part.dtype.size) for part in self._stream.element_spec]
        if samples < 0 or any(None in shape for shape, _ in shapes):
            return self
        if samples * sum(math.prod(shape) * size for shape, size in shapes) > most:
            return self
        return dataclasses.replace(self, _arrays=self.arrays, _stream=None)

    def training_batches(self, batch_size: int, seed: int = 0) -> Data:
        """Like `batches`, shuffled where a search does not do it itself, as the seed decides."""
        if self._stream is None:
            return self._arrays
        return self._stream.shuffle(10_000, seed=seed).batch(batch_size).prefetch(2)


@dataclasses.dataclass(frozen=True)
class Parts:
    """The three parts that a search needs.

    Attributes:
        train, validation, test: `Dataset`s without a sample in common.
        notes: what had to be split, in words.
    """

    train: Dataset
    validation: Dataset
    test: Dataset
    notes: tuple[str, ...]


def load_dataset(spec: DatasetSpec | str) -> Dataset:
    """Opens a data set.

    Args:
        spec: `DatasetSpec`, or a name.

    Returns:
        `Dataset`.

    Raises:
        ValueError: no such data set or split, or inputs that do not fit `spec.shape`.

    Example:

    >>> x, y = load_dataset(DatasetSpec("digits", split="train", shape=(64,))).arrays
    >>> x.shape, float(x.max()), sorted(set(y.tolist()))
    ((1078, 64), 1.0, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    if isinstance(spec, str):
        spec = DatasetSpec(spec)
    path = local_path(spec.name)
    if spec.name == "digits":
        return _digits(spec)
    if path.suffix == ".npz":
        return _npz(spec, path)
    if path.is_dir():
        return _image_folder(spec, path)
    return _tfds(spec)


def cut(spec: DatasetSpec, samples: int) -> list[tuple[int, DatasetSpec]]:
    """A part of a TFDS data set in pieces of so many samples, by position.

    Args:
        spec: names the part, which may be a slice.
        samples: of each piece; the last one has what is left.

    Returns:
        List of (number of the first sample, what names the piece).

    Raises:
        ValueError: no TFDS data set, or one that is not in place.
    """
    if spec.name == "digits" or local_path(spec.name).exists():
        raise ValueError(
            f"{spec.name} is read as a whole: only TFDS data sets, which lie in shards, are cut."
        )
    import tensorflow_datasets as tfds

    spec = _with_defaults(spec, split="test", data_dir=os.environ.get("TFDS_DATA_DIR"))
    splits = _tfds_builder(spec).info.splits
    pieces, start = [], 0
    for whole in tfds.core.ReadInstruction.from_spec(spec.split).to_absolute(splits):
        first, last = whole.from_ or 0, whole.to
        if last is None:
            last = splits[whole.splitname].num_examples
        for begin in range(first, last, samples):
            end = min(begin + samples, last)
            split = f"{whole.splitname}[{begin}:{end}]"
            pieces.append((start, dataclasses.replace(spec, split=split)))
            start += end - begin
    return pieces


def load_parts(spec: DatasetSpec | str, seed: int = 0) -> Parts:
    """Opens the training, validation and test part of a data set.

    Parts that the source does not have are split off: a tenth of the training data for validation;
    60, 20 and 20 per cent of data that are one part. Arrays and images are split at random with the
    seed, class by class where that can be done; TFDS data by position.

    Args:
        spec: `DatasetSpec`, or a name. `spec.split` may name one part, which is split, or three,
            comma-separated: `"train[:90%],train[90%:],test"`.
        seed: seed of the split.

    Returns:
        `Parts`.

    Raises:
        ValueError: as `load_dataset`, or another number of splits.

    Example:

    >>> parts = load_parts(DatasetSpec("digits", shape=(64,)))
    >>> [len(part.arrays[0]) for part in (parts.train, parts.validation, parts.test)]
    [1078, 359, 360]
    """
    if isinstance(spec, str):
        spec = DatasetSpec(spec)
    names = spec.split.split(",") if spec.split else _named_parts(spec)
    if len(names) == 3:
        train, validation, test = (_load(spec, name) for name in names)
        return Parts(train, validation, test, notes=())
    if len(names) == 2:
        (train, validation), note = _split(spec, names[0], (0.9, 0.1), seed)
        return Parts(train, validation, _load(spec, names[1]), (note,))
    if len(names) > 3:
        raise ValueError(f"split={spec.split!r}; expected one part, or three comma-separated.")
    found, note = _split(spec, names[0] if names else None, (0.6, 0.2, 0.2), seed)
    train, validation, test = found
    return Parts(train, validation, test, notes=(note,))


def _named_parts(spec: DatasetSpec) -> list[str]:
    """The names of the parts of a source: three, two (train, test), one, or none."""
    path = local_path(spec.name)
    if spec.name == "digits":
        return list(_PARTS)
    if path.suffix == ".npz":
        there = [name.removeprefix("x_") for name in _read_npz(path) if name.startswith("x_")]
    elif path.is_dir():
        there = [child.name for child in path.iterdir() if child.is_dir()]
    else:
        there = list(_tfds_builder(spec).info.splits)
    found = [next((n for n in names if n in there), None) for names in _PARTS.values()]
    train, validation, test = found
    if train and test:
        return [train, validation, test] if validation else [train, test]
    if train and validation:  # what there is for checking is kept for the end
        return [train, validation]
    return [name for name in found if name][:1]


def _load(spec: DatasetSpec, split: str | None) -> Dataset:
    return load_dataset(dataclasses.replace(spec, split=split)).in_memory()


def _split(
    spec: DatasetSpec, name: str | None, shares: Sequence[float], seed: int
) -> tuple[list[Dataset], str]:
    """One part in several: `(list of Dataset, note)`."""
    what = f"{name} part of {spec.name}" if name else spec.name
    percent = ", ".join(f"{share:.0%}" for share in shares)
    is_tfds = not (spec.name == "digits" or local_path(spec.name).exists())
    if is_tfds:
        if "[" in (name or ""):
            raise ValueError(f"split={name!r} cannot be split: name three parts, comma-separated.")
        edges = [round(100 * sum(shares[:i])) for i in range(len(shares) + 1)]
        pieces = [f"{name}[{a}%:{b}%]" for a, b in itertools.pairwise(edges)]
        note = f"The {what} is split by position, {percent}: {', '.join(pieces)}."
        return [_load(spec, piece) for piece in pieces], note
    whole = load_dataset(dataclasses.replace(spec, split=name))
    x, y = whole.arrays
    found, rest = [], np.arange(len(x))
    for i in range(len(shares) - 1):
        part = shares[i] / sum(shares[i:])
        taken, rest = _random_split(rest, y, part, seed)
        found.append(taken)
    datasets = [
        Dataset(
            whole.spec,
            whole.classes,
            _arrays=(x[rows], tree.map_structure(lambda part, at=rows: part[at], y)),
        )
        for rows in (*found, rest)
    ]
    return datasets, f"The {what} is split at random (seed {seed}), {percent}."


def _random_split(rows: np.ndarray, y: Any, share: float, seed: int) -> Sequence[np.ndarray]:
    from sklearn.model_selection import train_test_split

    try:
        return train_test_split(rows, train_size=share, random_state=seed, stratify=y[rows])
    except (ValueError, TypeError):  # labels that are no classes, or of several outputs, or few
        return train_test_split(rows, train_size=share, random_state=seed)


def _digits(spec: DatasetSpec) -> Dataset:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    spec = _with_defaults(spec, split="test", scale=1 / 16)
    if spec.split not in _PARTS:
        raise ValueError(f"digits has no split {spec.split!r}, only {tuple(_PARTS)}.")
    x, y = load_digits(return_X_y=True)
    # Always the same 60, 20 and 20 per cent, class by class.
    halves = dict(random_state=0, stratify=y)
    train, rest = train_test_split(np.arange(len(y)), test_size=0.4, **halves)
    validation, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=y[rest])
    rows = dict(zip(_PARTS, (train, validation, test), strict=True))[spec.split]
    return _from_arrays(spec, x[rows].reshape(-1, 8, 8, 1), y[rows], map(str, range(10)))


def _npz(spec: DatasetSpec, path: pathlib.Path) -> Dataset:
    spec, arrays = _with_defaults(spec, scale=1.0), _read_npz(path)
    choices = [("x", "y"), ("x_test", "y_test")]
    if spec.split is not None:
        choices = [(f"x_{spec.split}", f"y_{spec.split}")]
    for x, y in choices:
        several = {k.partition(".")[2]: v for k, v in arrays.items() if k.startswith(f"{y}.")}
        if x in arrays and (y in arrays or several):
            return _from_arrays(spec, arrays[x], arrays.get(y, several), None)
    raise ValueError(
        f"{path} holds the arrays {list(arrays)}; expected {' or '.join(map(str, choices))}. (Data "
        "without labels can be used from Python.)"
    )


def _read_npz(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            return dict(archive)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}.") from error


def _image_folder(spec: DatasetSpec, path: pathlib.Path) -> Dataset:
    spec = _with_defaults(spec, scale=1 / 255)
    if spec.split is not None or (path / "test").is_dir():
        path /= spec.split or "test"
        spec = dataclasses.replace(spec, split=path.name)
    if not path.is_dir() or not any(child.is_dir() for child in path.iterdir()):
        raise ValueError(f"{path} is no folder with one folder of images per class.")
    if spec.shape is None or len(spec.shape) != 3 or spec.shape[-1] not in (1, 3, 4):
        raise ValueError(
            f"Images are resized to the model's input, [height, width, 1, 3 or 4]; it is "
            f"{spec.shape}."
        )
    height, width, channels = spec.shape
    images = keras.utils.image_dataset_from_directory(
        path,
        image_size=(height, width),
        color_mode={1: "grayscale", 3: "rgb", 4: "rgba"}[channels],
        shuffle=False,
        batch_size=None,
        verbose=False,
    )
    return _from_stream(spec, images, images.class_names)


def _tfds_builder(spec: DatasetSpec) -> Any:
    """The builder of a data set that is in place."""
    import tensorflow_datasets as tfds

    data_dir = spec.data_dir or os.environ.get("TFDS_DATA_DIR")
    try:
        builder = tfds.builder(spec.name, data_dir=data_dir)
    except (tfds.core.registered.DatasetNotFoundError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ValueError(
            f"There is no data set {spec.name!r} ({first}). Known:\n{SOURCES}"
        ) from error
    try:
        builder.download_and_prepare()
    except Exception as error:
        raise ValueError(
            f"The data set {spec.name!r} is not in {builder.data_dir} and cannot be downloaded "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0][:200]})."
        ) from error
    return builder


def _tfds(spec: DatasetSpec) -> Dataset:
    import tensorflow_datasets as tfds

    spec, builder = _with_defaults(spec, split="test"), _tfds_builder(spec)
    if spec.split not in builder.info.splits and "[" not in str(spec.split):
        raise ValueError(
            f"{spec.name} has no split {spec.split!r}, only {list(builder.info.splits)}."
        )
    if builder.info.supervised_keys is None:
        raise ValueError(f"{spec.name} does not say which of its features is the label.")
    # One shard after the other, so that the number of a sample is its position.
    order = tfds.ReadConfig(interleave_cycle_length=1)
    stream = builder.as_dataset(
        split=spec.split, as_supervised=True, shuffle_files=False, read_config=order
    )
    label = builder.info.features[builder.info.supervised_keys[1]]
    inputs = stream.element_spec[0]
    if not (inputs.dtype.is_floating or inputs.dtype.is_integer):
        raise ValueError(f"{spec.name} has inputs of type {inputs.dtype.name}; expected numbers.")
    spec = _with_defaults(spec, scale=1 / 255 if inputs.dtype.name == "uint8" else 1.0)
    return _from_stream(spec, stream, getattr(label, "names", None))


def _from_arrays(
    spec: DatasetSpec, x: np.ndarray, y: Any, classes: Iterable[str] | None
) -> Dataset:
    for labels in tree.flatten(y):
        if len(x) != len(labels):
            raise ValueError(f"{spec.name} has {len(x)} inputs and {len(labels)} labels.")
    x = np.asarray(x * spec.scale, np.float32) if spec.scale != 1 else x
    if spec.shape is not None:
        x = x.reshape(-1, *_checked_shape(spec, x.shape[1:]))
    return Dataset(spec, None if classes is None else tuple(classes), _arrays=(x, y))


def _from_stream(spec: DatasetSpec, stream: Any, classes: Iterable[str] | None) -> Dataset:
    import tensorflow as tf

    if spec.shape is not None:
        _checked_shape(spec, stream.element_spec[0].shape)

    def prepare(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        x = tf.cast(x, tf.float32) * spec.scale
        return (x if spec.shape is None else tf.reshape(x, spec.shape)), y

    stream = stream.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return Dataset(spec, None if classes is None else tuple(classes), _stream=stream)


def _checked_shape(spec: Any, found: Sequence[Any]) -> Sequence[int]:
    if None in found or math.prod(found) == math.prod(spec.shape):
        return spec.shape
    raise ValueError(
        f"The model takes inputs of shape {tuple(spec.shape)}, but those of {spec.name} have shape "
        f"{tuple(found)}."
    )


def _with_defaults(spec: DatasetSpec, **defaults: Any) -> DatasetSpec:
    missing = {name: value for name, value in defaults.items() if getattr(spec, name) is None}
    return dataclasses.replace(spec, **missing)
