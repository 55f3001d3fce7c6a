"""Look into a model file before anything is made of it: nothing in a file may run code.

Keras's `safe_mode` refuses lambdas; a configuration can name other classes and functions that load
files, fetch URLs or run code. So every class and function that it names has to be one that models
are made of, wherever it stands, and HDF5 files and archives may hold nothing but their own data.
"""

import json
import math
import pathlib
import re
import stat
import sys
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import h5py
import keras
from keras.src.backend.common import global_state
from keras.src.dtype_policies import DTypePolicy
from keras.src.quantizers import Quantizer
from keras.src.quantizers.quantization_config import QuantizationConfig

from keras_layer_entropy.files import AnyPath

_WEIGHTS = "model.weights.h5"
_ARCHIVE_NAMES = ("config.json", "metadata.json", _WEIGHTS)
_NESTING = 100  # levels of a configuration; a model nested ten deep has about 50
_EXPANSION = 100  # declared bytes for each one stored; weights hardly compress
# Options for which memory is taken as soon as an object is made, and how many they may ask for.
# Weights are counted; all other numbers ask for nothing.
_COUNTS = ("ngrams", "num_classes", "num_oov_indices", "num_thresholds")
_LARGEST = 2**24
_FLOOR = 2**20  # bytes that may be declared however few are stored
_WEIGHTS_FLOOR = 2**27  # of weights: those of a pruned network are nearly all zeros
_FILTERS = (1, 2, 3, 32000)  # deflate, shuffle, checksum, lzf

# What may be named in a configuration.
_CLASSES = (
    keras.Operation,  # layers and models, too
    keras.initializers.Initializer,
    keras.regularizers.Regularizer,
    keras.constraints.Constraint,
    keras.losses.Loss,
    keras.metrics.Metric,
    keras.optimizers.Optimizer,
    keras.optimizers.schedules.LearningRateSchedule,
    keras.random.SeedGenerator,
    DTypePolicy,
    Quantizer,
    QuantizationConfig,
)
_NAMESPACES = (
    keras.layers,
    keras.models,
    keras.activations,
    keras.losses,
    keras.metrics,
    keras.initializers,
    keras.regularizers,
    keras.constraints,
    keras.optimizers,
    keras.optimizers.schedules,
    keras.dtype_policies,
    keras.quantizers,
)
_FUNCTIONS = _NAMESPACES[2:8]
_NO_FUNCTIONS = ("get", "serialize", "deserialize")  # of these modules, but not of models
_VALUES = ("__keras_tensor__", "__tensor__", "__numpy__", "__bytes__", "__ellipsis__", "__slice__",
           "__tuple__", "TensorShape")  # fmt: skip
# Layers that hold code, or call what other frameworks made of a file.
REFUSED = ("Lambda", "TFSMLayer", "JaxLayer", "FlaxLayer", "TorchModuleWrapper", "TFOpLambda",
           "SlicingOpLambda", "__lambda__", "__typespec__")  # fmt: skip
# Options that hold regular expressions, which Keras matches against names: some take for ever.
_PATTERNS = ("policy_map", "optimizer_map", "exclude_layers", "filters")
_PLAIN = re.compile(r"[\w./ :-]*")
# Options that may hold a path, which the layer would read.
_PATHS = ("vocabulary", "idf_weights", "filepath")


class UnsafeModelError(ValueError):
    """A model file that could run code or exhaust the machine."""


class UnsafeNameError(UnsafeModelError):
    """A configuration that names what can run code or read files."""


class UnknownNameError(UnsafeNameError):
    """A configuration that names a class or function that is not Keras's."""


def inspect_config(config: Any, custom_objects: Mapping[str, Any] | None = None) -> None:
    """Refuses a configuration that names what models are not made of.

    Args:
        config: what a config.json holds, or an attribute of an `.h5` file.
        custom_objects: name -> class or function that may be named, too.

    Raises:
        UnsafeModelError: it does.

    Example:

    >>> inspect_config({"class_name": "Lambda", "config": {}})
    Traceback (most recent call last):
    keras_layer_entropy...UnsafeNameError: The model names 'Lambda', which can run code.
    """
    for value in _dicts(config):
        _check_named(value, custom_objects or {})


def optimizers_of_pytorch(config: Any) -> dict[str, type]:
    """Name -> class of the optimizers that a configuration names as Keras does on PyTorch.

    There each has a class of its own, which other backends cannot import without PyTorch.
    """
    named = {v.get("class_name") for v in _dicts(config) if _of_pytorch(v.get("module"))}
    found = {name: getattr(keras.optimizers, name, None) for name in named if isinstance(name, str)}
    return {name: each for name, each in found.items() if isinstance(each, type)}


def _of_pytorch(module: Any) -> bool:
    return str(module).startswith("keras.src.backend.torch.optimizers.")


def _dicts(config: Any) -> Iterator[dict[str, Any]]:
    """Every dict in a configuration."""
    todo = [(config, 0)]
    while todo:
        value, depth = todo.pop()
        if depth > _NESTING:
            raise UnsafeModelError(f"The configuration is nested more than {_NESTING} levels deep.")
        if isinstance(value, dict):
            yield value
            todo += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            todo += [(item, depth + 1) for item in value]


def _check_named(value: dict[str, Any], custom_objects: Mapping[str, Any]) -> None:
    for key in _PATHS:
        if isinstance(value.get(key), str):
            raise UnsafeNameError(
                f"The model's option {key}={value[key]!r} is a file that it would read."
            )
    for key in _COUNTS:
        given = value.get(key)
        if isinstance(given, int) and given > _LARGEST:
            raise UnsafeModelError(f"The model's option {key}={given} asks for too much memory.")
    for node in value.get("inbound_nodes") or () if "class_name" in value else ():
        if isinstance(node, dict) and "__keras_tensor__" not in repr(node):
            raise UnsafeModelError("The model computes something while it is opened.")
    for key in _PATTERNS:
        given = value.get(key)
        for pattern in given if isinstance(given, list | dict) else [given]:
            if isinstance(pattern, str) and not _PLAIN.fullmatch(pattern):
                raise UnsafeNameError(f"The model's option {key} has the pattern {pattern[:60]!r}.")
    name = value.get("class_name")
    if name is None and "config" not in value:
        return
    names = (name, value.get("registered_name"), value.get("config"))
    for given in names[:2]:
        if given is not None and not isinstance(given, str):
            raise UnsafeNameError(
                f"The model names {given!r} where the name of a class is expected."
            )
    texts = [given for given in names if isinstance(given, str)]
    for refused in [text for text in texts if text.rpartition(">")[2] in REFUSED]:
        raise UnsafeNameError(f"The model names {refused!r}, which can run code.")
    if name is None or name in _VALUES:
        return
    registered = value.get("registered_name")
    if registered not in (None, name, value.get("config")) and not _registered(
        registered, custom_objects
    ):
        raise UnknownNameError(f"The model names {registered!r}, which is not registered.")
    if name == "function":
        _check_function(value, custom_objects)
    elif not _registered(value.get("registered_name") or name, custom_objects):
        _check_class(name, value.get("module"))


def _registered(name: Any, custom_objects: Mapping[str, Any]) -> bool:
    return keras.saving.get_registered_object(name, custom_objects=custom_objects) is not None


def _check_class(name: Any, module: Any) -> None:
    found = _find(name, module)
    if not (isinstance(found, type) and issubclass(found, _CLASSES)):
        raise _unknown(module)(
            f"The model names the class {module + '.' if module else ''}{name}, which is not one "
            "of Keras's. Classes of your own have to be given as custom objects."
        )


def _unknown(module: Any) -> type[UnsafeNameError]:
    """The error for a name: one that is not of Keras may be one of the user's own."""
    return UnsafeNameError if str(module).partition(".")[0] == "keras" else UnknownNameError


def _find(name: Any, module: Any) -> Any:
    """What Keras would find, without importing anything."""
    if name == "Functional":  # no public name
        return keras.Model
    if module is None:  # the older formats have no modules
        found = [getattr(space, name, None) for space in _NAMESPACES]
        return next((each for each in found if isinstance(each, type)), None)
    if not isinstance(module, str) or module.partition(".")[0] != "keras":
        return None
    return getattr(sys.modules.get(module), name, None)


def _check_function(value: dict[str, Any], custom_objects: Mapping[str, Any]) -> None:
    name, module = value.get("config"), value.get("module")
    if not isinstance(name, str):
        raise UnsafeNameError(f"The model names {name!r} where the name of a function is expected.")
    if _registered(name, custom_objects) or _registered(
        value.get("registered_name") or name, custom_objects
    ):
        return
    spaces = [space for space in _FUNCTIONS if module in (None, "builtins", space.__name__)]
    if name in _NO_FUNCTIONS or not any(callable(getattr(s, name, None)) for s in spaces):
        raise _unknown(module)(
            f"The model names the function {module}.{name}, which is no activation, loss, metric, "
            "initializer, regularizer or constraint of Keras. Functions of your own have to be "
            "given as custom objects."
        )


def parsed(text: str | bytes, what: str) -> dict[str, Any]:
    """JSON from a file.

    Raises ValueError if it is none.
    """
    try:
        value = json.loads(text)
    except RecursionError:
        raise UnsafeModelError(f"{what} is nested too deep.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{what} is no configuration of a model.")
    return value


def inspect_hdf5(file: h5py.File) -> None:
    """Refuses an `h5py.File` with anything in it but groups and arrays of its own.

    Raises:
        UnsafeModelError: links to other places or files, arrays whose data are not there.
    """
    stored = file.id.get_filesize()
    declared, seen, todo = 0, set(), [file["/"]]
    while todo:
        group = todo.pop()
        seen.add(_address(group))
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                raise UnsafeModelError(
                    f"{group.name}/{name} in the HDF5 file is a {type(link).__name__}."
                )
            item = group[name]
            if item.name.count("/") > _NESTING:
                raise UnsafeModelError(f"The HDF5 file is nested more than {_NESTING} levels deep.")
            if isinstance(item, h5py.Dataset):
                _check_dataset(item)
                declared += item.size * item.dtype.itemsize
            elif not isinstance(item, h5py.Group) or _address(item) in seen:
                raise UnsafeModelError(
                    f"{item.name} in the HDF5 file is a link to itself, or no data."
                )
            else:
                todo.append(item)
    if declared > _EXPANSION * stored + _WEIGHTS_FLOOR:
        raise UnsafeModelError(f"The HDF5 file declares {declared:,} bytes, but has {stored:,}.")


def _address(item: Any) -> int:
    return h5py.h5o.get_info(item.id).addr


def _check_dataset(item: h5py.Dataset) -> None:
    properties = item.id.get_create_plist()
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    problem = (
        ("has its data in another file" if item.external else None)
        or ("is a view of other files" if item.is_virtual else None)
        or ("is compressed in an unknown way" if set(filters) - set(_FILTERS) else None)
        or ("holds no numbers" if item.dtype.kind == "O" else None)
    )
    if problem:
        raise UnsafeModelError(f"The dataset {item.name} in the HDF5 file {problem}.")


def inspect_archive(archive: zipfile.ZipFile) -> None:
    """Refuses a `zipfile.ZipFile` that is no plain `.keras` file.

    Raises:
        UnsafeModelError: names that climb out, links, names that occur twice, bytes out of nothing.
    """
    names = set()
    for are_weights, floor in ((True, _WEIGHTS_FLOOR), (False, _FLOOR)):
        members = [m for m in archive.infolist() if (m.filename == _WEIGHTS) == are_weights]
        declared, stored = (
            sum(getattr(m, size) for m in members) for size in ("file_size", "compress_size")
        )
        if declared > _EXPANSION * stored + floor:
            raise UnsafeModelError("The archive grows too much when it is unpacked.")
    for member in archive.infolist():
        name = member.filename
        parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
        kind = stat.S_IFMT(member.external_attr >> 16)
        problem = (
            ("climbs out of it" if ".." in parts or name.startswith(("/", "\\")) else None)
            or ("is a link" if kind not in (0, stat.S_IFREG, stat.S_IFDIR) else None)
            or ("occurs twice" if name in names else None)
            or ("is encrypted" if member.flag_bits & 1 else None)
            or (
                "does not belong there"
                if name not in _ARCHIVE_NAMES and parts[0] != "assets" and not _is_left(parts)
                else None
            )
        )
        if problem:
            raise UnsafeModelError(f"{name!r} in the archive {problem}.")
        names.add(name)


def _is_left(parts: Sequence[str]) -> bool:
    """What macOS and Windows leave in folders and archives; nothing reads it."""
    left = parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini") or parts[-1].startswith("._")
    return left or parts[0] == "__MACOSX"


def inspect_assets(names: Iterable[str], config: Any, custom_objects: Mapping[str, Any]) -> None:
    """Refuses files that layers keep in an archive and that no layer of the model reads.

    Keras's own layers read vocabularies, `.txt`; those of one's own read what they wrote.

    Args:
        names: of the archive's members.
        config: what its config.json holds.
        custom_objects: as for `inspect_config`.

    Raises:
        UnsafeModelError: there are such.
    """
    named = (v.get("registered_name") or v.get("class_name") for v in _dicts(config))
    if any(isinstance(name, str) and _registered(name, custom_objects) for name in named):
        return
    for name in names:
        parts = pathlib.PurePosixPath(name).parts
        if parts[0] == "assets" and not (name.endswith((".txt", "/")) or _is_left(parts)):
            raise UnsafeModelError(f"{name!r} in the archive does not belong there.")


def inspect_directory(path: AnyPath) -> None:
    """Refuses a directory with links that lead out of it, or with what is no file."""
    root = pathlib.Path(path).resolve()
    for item in root.rglob("*"):
        if item.is_symlink() and not item.resolve().is_relative_to(root):
            raise UnsafeModelError(
                f"{item.name} is a link that leads out of the directory; copy the files (cp -rL)."
            )
        if not (item.is_file() or item.is_dir()):
            raise UnsafeModelError(f"{item.name} is neither a file nor a directory.")


def check_size(make: Callable[[], keras.Model], stored: int) -> None:
    """Refuses a model with far more weights than the file has numbers.

    Args:
        make: () -> `keras.Model`, from the configuration.
        stored: bytes of the file with the weights.

    Raises:
        UnsafeModelError: it has.
    """
    try:
        with keras.StatelessScope(initialize_variables=False):  # no weight gets memory here
            variables = make().variables
    except ValueError as error:
        if "in a stateless scope" not in str(error):
            raise
        variables = ()  # the state of a stateful RNN cannot be made there
    finally:
        global_state.set_global_attribute("uninitialized_variables", [])
    needed = sum(math.prod(variable.shape) for variable in variables)
    if needed > _EXPANSION * stored + _FLOOR:
        raise UnsafeModelError(
            f"The model needs {needed:,} numbers as its weights; the file has {stored:,}."
        )
