"""Save a model whole, with the data set it was made for."""

import dataclasses
import itertools
import json
import math
import os
import pathlib
import shutil
import tempfile
import types
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import keras
import numpy as np
from keras import tree

from keras_layer_entropy.files import AnyPath, check_writable, local_path, replacing
from keras_layer_entropy.model_files import checksums
from keras_layer_entropy.model_files.inspection import UnsafeNameError
from keras_layer_entropy.model_files.opening import load_model

# Names of files in each format; everything else is a directory.
FILE_SUFFIXES = {
    "keras": (".keras",),
    "h5": (".h5", ".hdf5"),
    "json": (".keras",),  # architecture and weights in two files: written as one
    "directory": (),
    "saved_model": (),  # of Keras 2; written again as a directory of Keras 3
}

_DIRECTORY = ("config.json", "metadata.json", "model.weights.h5", "model.weights.npz")
_RECORD = "dataset.json"


def save_model(
    model: keras.Model, path: AnyPath, dataset: Any = None, overwrite: bool = False
) -> pathlib.Path:
    """Saves a Keras model, whole or not at all.

    What was written is opened again and compared with the model before it takes its place.

    Args:
        model: `keras.Model`.
        path: a name that ends in `.keras` or `.h5`, or a directory, in which other files stay.
        dataset: the data the model was made for, recorded beside it (`dataset.json` in a
            directory, `<name>.dataset.json` beside a file), so that the command lines need no
            `--dataset`: a name, a mapping, or a `datasets.DatasetSpec`.
        overwrite: replace the model at `path`, and what was recorded of its data. Permissions and
            group stay.

    Returns:
        `pathlib.Path` of what was written. Where `load_model` will need more than the path
        (`custom_objects`, `allow_unsafe`), or opens it with a warning, that is said in a warning.

    Raises:
        FileExistsError: there is something at `path` and `overwrite` is False, or it is no model.
        OSError: it cannot be written there.
        ValueError: what was written cannot be opened again, or is not the same; nothing is left.

    Example:

    >>> import tempfile
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> save_model(model, tempfile.mkdtemp() + "/saved_model", dataset="digits").name
    'saved_model'
    """
    path = pathlib.Path(os.path.realpath(local_path(path)))  # not the link, what it points to
    is_file = any(path.suffix in suffixes for suffixes in FILE_SUFFIXES.values())
    record = _record(dataset)
    _check_free(path, is_file, overwrite)
    check_writable(path)
    _check_room(model, path)
    with replacing(path, () if is_file else model_parts(path)) as temporary:
        if not is_file:
            temporary.mkdir()
        compiled = dict(model._compile_config.config) if model.compiled else {}
        try:
            model.save(temporary, **({} if is_file else {"zipped": False}))
        except (OSError, RuntimeError) as error:  # h5py's
            first = str(error).partition("\n")[0]
            raise OSError(f"{path} cannot be written: {first}") from error
        except (AttributeError, NameError, TypeError) as error:  # somebody's get_config
            raise ValueError(
                f"{model.name!r} cannot be saved: get_config of a layer fails ({error})."
            ) from error
        finally:
            if compiled:  # Keras takes the optimizer out when it writes an .h5 file
                model._compile_config.config.update(compiled)
        if not is_file and record is not None:
            (temporary / _RECORD).write_text(record)
        if path.suffix not in FILE_SUFFIXES["keras"]:  # an archive has checksums of its own
            checksums.add(temporary, "h5" if is_file else "directory")
        _check_opens(model, temporary)
        if is_file and _has_record(path):
            _record_path(path).unlink()  # of the model that was there
    if is_file and record is not None:
        with replacing(_record_path(path)) as temporary:
            temporary.write_text(record)
    return path


def _check_free(path: pathlib.Path, is_file: bool, overwrite: bool) -> None:
    record = _record_path(path)
    for there in (path, record) if is_file and _has_record(path) else (path,):
        if os.path.lexists(there) and not overwrite:
            raise FileExistsError(f"{there} exists: choose another path, or overwrite=True.")
    if path.is_dir() and (is_file or (any(path.iterdir()) and not model_parts(path))):
        raise FileExistsError(f"{path} is a directory that holds other things than a model.")
    if path.is_file() and not is_file:
        raise FileExistsError(
            f"{path} is a file; a name that ends in neither .keras nor .h5 is that of a directory."
        )


def model_parts(path: AnyPath) -> tuple[str, ...]:
    """Names of what belongs to the model in a directory of Keras 3; `()` where there is none.

    Other things in it are somebody else's.
    """
    path = local_path(path)
    config, metadata = (_json(path / name) for name in ("config.json", "metadata.json"))
    if "class_name" not in config and "keras_version" not in metadata:
        return ()
    assets = checksums.assets(metadata)
    names = [*_DIRECTORY, *(["assets"] if assets is None else assets)]
    return (*names, _RECORD) if _has_record(path) else tuple(names)


def _json(file: pathlib.Path) -> dict[str, Any]:
    """What a JSON file holds, a dict; an empty one where it is none."""
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _check_room(model: keras.Model, path: pathlib.Path) -> None:
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


def _check_opens(model: keras.Model, path: pathlib.Path) -> None:
    """Opens what was written as anybody will, and compares it with the model."""
    again, needed, said = _opened(model, path)
    _compare(model.weights, again.weights, model.name)
    _compare_assets(model, again)
    for text in needed + said:
        warnings.warn(f"{model.name!r}, opened again: {text}", stacklevel=3)


def _opened(model: keras.Model, path: pathlib.Path) -> tuple[keras.Model, list[str], list[str]]:
    """The model, what `load_model` needs for that, and the warnings that it gives."""
    own, refused = custom_objects(model), []
    problem = f"{model.name!r} cannot be opened again once saved"
    for options in ({}, {"custom_objects": own}, {"custom_objects": own, "allow_unsafe": True}):
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                again = load_model(path, **options)
        except UnsafeNameError as error:
            refused.append(error)
            continue
        except Exception as error:
            raise ValueError(f"{problem}: {error}") from error
        needed = [f"it takes {_words(options, own)}."] if refused else []
        # Those of `load_model`, not of Keras.
        return again, needed, [str(w.message) for w in caught if w.filename == __file__]
    raise ValueError(f"{problem}: {refused[-1]}")


def _words(options: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    given = ", ".join(f"{name!r}: ..." for name in own if name.isidentifier())  # not of lambdas
    unsafe = ["allow_unsafe=True"] if "allow_unsafe" in options else []
    return " and ".join([f"custom_objects={{{given}}}"] * bool(given) + unsafe)


def _compare(mine: Iterable[keras.Variable], others: Iterable[keras.Variable], name: str) -> None:
    for one, other in itertools.zip_longest(mine, others):
        if one is None or other is None or not _equal(one, other):
            raise ValueError(
                f"{name!r} does not come back from its file as it was: "
                f"{(other if one is None else one).path} differs. Has every layer of your own its "
                "arguments in get_config?"
            )


def _compare_assets(model: keras.Model, again: keras.Model) -> None:
    mine, others = map(_assets, (model, again))
    if mine != others:
        raise ValueError(
            f"{model.name!r} does not come back from its file as it was: what its layers keep in "
            "files (vocabularies) differs. An .h5 file does not hold it: save it as .keras."
        )


def _assets(model: keras.Model) -> list[list[tuple[pathlib.Path, bytes]]]:
    """What the layers of a model keep in files of their own: names and contents, layer by layer."""
    found = []
    for part in model._flatten_layers():
        if hasattr(part, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                part.save_assets(folder)
                files = sorted(f for f in pathlib.Path(folder).rglob("*") if f.is_file())
                found.append([(f.relative_to(folder), f.read_bytes()) for f in files])
    return found


def _equal(mine: keras.Variable, other: keras.Variable) -> bool:
    mine, other = map(keras.ops.convert_to_numpy, (mine, other))
    nan = np.issubdtype(mine.dtype, np.floating)
    return np.array_equal(mine, other, equal_nan=nan)


def custom_objects(model: keras.Model) -> dict[str, Any]:
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


def dataset_record(path: AnyPath) -> dict[str, Any] | None:
    """What `save_model` recorded of the data, a dict; None if nothing was recorded.

    Raises ValueError when the record is damaged.
    """
    path = local_path(path)
    named = [_record_path(each) for each in (path, pathlib.Path(os.path.realpath(path)))]
    file = next((file for file in named if file.is_file()), None)
    if file is None:
        return None
    try:
        record = json.loads(file.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}, the record of the data, is not JSON: {error}.") from error
    if not isinstance(record, dict) or "name" not in record:
        raise ValueError(f"{file}, the record of the data, has no name of a data set.")
    return record


def _record(dataset: Any) -> str | None:
    if dataset is None:
        return None
    if isinstance(dataset, str | os.PathLike):
        dataset = {"name": os.fspath(dataset)}
    elif dataclasses.is_dataclass(dataset):
        dataset = dataclasses.asdict(dataset)  # type: ignore[arg-type]  # an instance
    if not isinstance(dataset, Mapping) or "name" not in dataset:
        raise ValueError(
            f"dataset={dataset!r}; expected a name, a path, a DatasetSpec or a mapping with a name."
        )
    return json.dumps(dict(dataset), indent=1) + "\n"


def _record_path(path: pathlib.Path) -> pathlib.Path:
    return path / _RECORD if path.is_dir() else path.with_name(f"{path.name}.{_RECORD}")


def _has_record(path: pathlib.Path) -> bool:
    return "name" in _json(_record_path(path))
