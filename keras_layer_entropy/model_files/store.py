"""Save a model whole, with the data set it was made for."""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import shutil
import types
from collections.abc import Mapping

import keras
import numpy as np
from keras import tree

from keras_layer_entropy.files import local_path, replacing
from keras_layer_entropy.model_files import checksums

# Names of files in each format; everything else is a directory.
FILE_SUFFIXES = {
    "keras": (".keras",),
    "h5": (".h5", ".hdf5"),
    "directory": (),
    "saved_model": (),  # of Keras 2; written again as a directory of Keras 3
}


def save_model(model, path, dataset=None, overwrite=False):
    """Saves a Keras model, whole or not at all.

    What was written is opened again and compared with the model before it takes its place.

    Args:
        model: `keras.Model`.
        path: a name that ends in `.keras` or `.h5`, or a directory.
        dataset: the data the model was made for, recorded beside it (`dataset.json` in a
            directory, `<name>.dataset.json` beside a file), so that the command lines need no
            `--dataset`: a name, a mapping, or a `datasets.DatasetSpec`.
        overwrite: replace what is at `path`.

    Returns:
        `pathlib.Path` of what was written.

    Raises:
        FileExistsError: there is something at `path` and `overwrite` is False.
        ValueError: what was written cannot be opened again, or is not the same; nothing is left.

    Example:

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> save_model(model, tempfile.mkdtemp() + "/saved_model", dataset="digits").name
    'saved_model'
    """
    path = pathlib.Path(os.path.realpath(local_path(path)))  # what a link points to, not the link
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists: choose another path, or overwrite=True.")
    if path.is_dir() and any(path.iterdir()) and not (path / "config.json").is_file():
        raise FileExistsError(f"{path} is a directory that holds other things than a model.")
    is_file = any(path.suffix in suffixes for suffixes in FILE_SUFFIXES.values())
    record = _record(dataset)
    _check_room(model, path)
    with replacing(path) as temporary:
        if not is_file:
            temporary.mkdir()
        compiled = dict(model._compile_config.config) if model.compiled else {}
        try:
            model.save(temporary, **({} if is_file else {"zipped": False}))
        except (OSError, RuntimeError) as error:  # h5py's
            first = str(error).partition("\n")[0]
            raise OSError(f"{path} cannot be written: {first}") from error
        finally:
            if compiled:  # Keras takes the optimizer out when it writes an .h5 file
                model._compile_config.config.update(compiled)
        if not is_file and record is not None:
            _record_path(temporary).write_text(record)
        if path.suffix not in FILE_SUFFIXES["keras"]:  # an archive has checksums of its own
            checksums.add(temporary, "h5" if is_file else "directory")
        _compare(model, temporary)
    if is_file and record is not None:
        with replacing(_record_path(path)) as temporary:
            temporary.write_text(record)
    elif is_file:
        _record_path(path).unlink(missing_ok=True)  # of the model that was there
    return path


def _check_room(model, path):
    # HDF5 says of a full disk more than anybody wants to read.
    variables = [*model.variables, *(model.optimizer.variables if model.compiled else ())]
    # At most 8 bytes a number; Keras writes some formats twice.
    needed = 2 * sum(8 * math.prod(v.shape) for v in variables) + 2**16
    parent = next(folder for folder in path.parents if folder.exists())
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise OSError(
            f"{path} cannot be written: it may take {needed:,} bytes, and {parent} has {free:,} "
            "left."
        )


def _compare(model, path):
    try:
        # Only what this model itself is made of runs here.
        again = keras.saving.load_model(
            path, custom_objects=custom_objects(model), compile=False, safe_mode=False
        )
    except Exception as error:
        raise ValueError(f"{model.name!r} cannot be opened again once saved: {error}") from error
    pairs = itertools.zip_longest(model.weights, again.weights)
    for mine, other in pairs if again.built else ():
        if mine is None or other is None or not _equal(mine, other):
            raise ValueError(
                f"{model.name!r} does not come back from its file as it was: "
                f"{(mine or other).path} differs."
            )


def _equal(mine, other):
    mine, other = map(keras.ops.convert_to_numpy, (mine, other))
    nan = np.issubdtype(mine.dtype, np.floating)
    return np.array_equal(mine, other, equal_nan=nan)


def custom_objects(model):
    """What Keras does not know of itself but needs to make the model again from its configuration.

    Args:
        model: any Keras model.

    Returns:
        Dict for `keras.saving.custom_object_scope`: name -> class or function.

    Example:

    >>> class Scale(keras.layers.Layer):
    ...     def call(self, x):
    ...         return 2 * x
    >>> custom_objects(keras.Sequential([Scale(), keras.layers.Dense(2)]))
    {'Scale': <class '...Scale'>}
    """
    parts = list(model._flatten_layers())
    parts += [operation for part in parts for operation in getattr(part, "operations", ())]
    values = [value for part in parts for value in (part, *vars(part).values())]
    if model.compiled:  # optimizer, loss, metrics as they were given
        values += tree.flatten(dict(model._compile_config.config))
    found = {}
    for value in values:
        is_function = isinstance(value, types.FunctionType)
        made_by = value if is_function else type(value)
        if made_by.__module__.partition(".")[0] not in ("keras", "builtins") and (
            is_function or hasattr(made_by, "get_config")
        ):
            found[made_by.__name__] = made_by
    return found


def dataset_record(path):
    """What `save_model` recorded of the data, a dict; None if nothing was recorded.

    Raises ValueError when the record is damaged.
    """
    file = _record_path(local_path(path))
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}, the record of the data, is not JSON: {error}.") from error
    if not isinstance(record, dict) or "name" not in record:
        raise ValueError(f"{file}, the record of the data, has no name of a data set.")
    return record


def _record(dataset):
    if dataset is None:
        return None
    if isinstance(dataset, str | os.PathLike):
        dataset = {"name": os.fspath(dataset)}
    elif dataclasses.is_dataclass(dataset):
        dataset = dataclasses.asdict(dataset)
    if not isinstance(dataset, Mapping) or "name" not in dataset:
        raise ValueError(
            f"dataset={dataset!r}; expected a name, a path, a DatasetSpec or a mapping with a name."
        )
    return json.dumps(dict(dataset), indent=1) + "\n"


def _record_path(path):
    return path / "dataset.json" if path.is_dir() else path.with_name(f"{path.name}.dataset.json")
