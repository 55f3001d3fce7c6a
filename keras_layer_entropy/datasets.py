"""Data sources by name for the command lines: digits, TFDS, .npz, image folders."""

import dataclasses
import math
import os
import pathlib
import zipfile

import keras
import numpy as np

SOURCES = """\
  digits            1,797 handwritten digits that come with scikit-learn, no download
  mnist, cifar10    or any other name in TensorFlow Datasets (--data_dir or TFDS_DATA_DIR)
  file.npz          arrays x and y, or x_test and y_test, x_train and y_train, ...
  folder/           a folder of images with one folder per class (or test/, train/ with these)"""
_DIGITS_SPLITS = ("train", "validation", "test")


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
    shape: tuple | None = None


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A loaded data set.

    Attributes:
        spec: what it is, with every default filled in.
        classes: names of the classes, or None where the source has none.
    """

    spec: DatasetSpec
    classes: tuple | None
    _arrays: tuple | None = None
    _stream: object = None

    def batches(self, batch_size=256):
        """The data as `analyze_model` and `fit` take them: arrays `(x, y)` or batched tf.data."""
        return self._arrays if self._stream is None else self._stream.batch(batch_size)

    @property
    def arrays(self):
        """`(x, y)` NumPy arrays; a stream is read to its end."""
        if self._arrays is not None:
            return self._arrays
        x, y = zip(*self._stream.as_numpy_iterator(), strict=True)
        return np.stack(x), np.stack(y)


def load_dataset(spec):
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
    path = pathlib.Path(spec.name)
    if spec.name == "digits":
        return _digits(spec)
    if path.suffix == ".npz":
        return _npz(spec, path)
    if path.is_dir():
        return _image_folder(spec, path)
    return _tfds(spec)


def _digits(spec):
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    spec = _with_defaults(spec, split="test", scale=1 / 16)
    if spec.split not in _DIGITS_SPLITS:
        raise ValueError(f"digits has no split {spec.split!r}, only {_DIGITS_SPLITS}.")
    x, y = load_digits(return_X_y=True)
    # Always the same 60, 20 and 20 per cent, class by class.
    halves = dict(random_state=0, stratify=y)
    train, rest = train_test_split(np.arange(len(y)), test_size=0.4, **halves)
    validation, test = train_test_split(rest, test_size=0.5, random_state=0, stratify=y[rest])
    rows = dict(zip(_DIGITS_SPLITS, (train, validation, test), strict=True))[spec.split]
    return _from_arrays(spec, x[rows].reshape(-1, 8, 8, 1), y[rows], map(str, range(10)))


def _npz(spec, path):
    if not path.is_file():
        raise ValueError(f"There is no file {path}.")
    spec = _with_defaults(spec, scale=1.0)
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as .npz: {error}.") from error
    choices = [("x", "y"), ("x_test", "y_test")]
    if spec.split is not None:
        choices = [(f"x_{spec.split}", f"y_{spec.split}")]
    for x, y in choices:
        if x in arrays and y in arrays:
            return _from_arrays(spec, arrays[x], arrays[y], None)
    raise ValueError(
        f"{path} holds the arrays {list(arrays)}; expected {' or '.join(map(str, choices))}."
    )


def _image_folder(spec, path):
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


def _tfds(spec):
    import tensorflow_datasets as tfds

    spec = _with_defaults(spec, split="test")
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
    if spec.split not in builder.info.splits and "[" not in spec.split:
        raise ValueError(
            f"{spec.name} has no split {spec.split!r}, only {list(builder.info.splits)}."
        )
    if builder.info.supervised_keys is None:
        raise ValueError(f"{spec.name} does not say which of its features is the label.")
    stream = builder.as_dataset(split=spec.split, as_supervised=True, shuffle_files=False)
    label = builder.info.features[builder.info.supervised_keys[1]]
    inputs = stream.element_spec[0]
    if not (inputs.dtype.is_floating or inputs.dtype.is_integer):
        raise ValueError(f"{spec.name} has inputs of type {inputs.dtype.name}; expected numbers.")
    spec = _with_defaults(spec, scale=1 / 255 if inputs.dtype.name == "uint8" else 1.0)
    return _from_stream(spec, stream, getattr(label, "names", None))


def _from_arrays(spec, x, y, classes):
    x = np.asarray(x * spec.scale, np.float32) if spec.scale != 1 else x
    if spec.shape is not None:
        x = x.reshape(-1, *_checked_shape(spec, x.shape[1:]))
    return Dataset(spec, None if classes is None else tuple(classes), _arrays=(x, y))


def _from_stream(spec, stream, classes):
    import tensorflow as tf

    if spec.shape is not None:
        _checked_shape(spec, stream.element_spec[0].shape)

    def prepare(x, y):
        x = tf.cast(x, tf.float32) * spec.scale
        return (x if spec.shape is None else tf.reshape(x, spec.shape)), y

    stream = stream.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    return Dataset(spec, None if classes is None else tuple(classes), _stream=stream)


def _checked_shape(spec, found):
    if None in found or math.prod(found) == math.prod(spec.shape):
        return spec.shape
    raise ValueError(
        f"The model takes inputs of shape {tuple(spec.shape)}, but those of {spec.name} have shape "
        f"{tuple(found)}."
    )


def _with_defaults(spec, **defaults):
    missing = {name: value for name, value in defaults.items() if getattr(spec, name) is None}
    return dataclasses.replace(spec, **missing)
