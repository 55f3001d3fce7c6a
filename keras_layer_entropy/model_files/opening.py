"""Open a model of any format, after a look into it."""

import dataclasses
import functools
import importlib
import io
import os
import pathlib
import tempfile
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import keras
from keras import Model

from keras_layer_entropy.files import AnyPath, local_path
from keras_layer_entropy.model_files import checksums, inspection
from keras_layer_entropy.model_files.formats import model_format
from keras_layer_entropy.model_files.keras2 import hdf5
from keras_layer_entropy.model_files.keras2.rebuilding import rebuild, reserve_names


def load_model(
    path: AnyPath,
    custom_objects: Mapping[str, Any] | None = None,
    allow_unsafe: bool = False,
    weights: AnyPath | None = None,
) -> keras.Model:
    """Opens a Keras model; nothing that the file holds is run.

    Args:
        path: a `.keras` file, a Keras directory, an `.h5` file, a SavedModel directory of Keras 2,
            or the `.json` file of a Keras 2 architecture, beside which the one `.h5` file holds
            the weights; told apart by content.
        custom_objects: name -> class or function of your own that the model may be made of.
        allow_unsafe: open it whatever classes and functions it names, `Lambda` layers too. Whoever
            wrote the file can then run any code on this machine, as you.
        weights: the `.h5` file with the weights of an architecture in a `.json` file, where it is
            not the one beside it.

    Returns:
        `keras.Model`. What is missing or doubtful is said in a warning: no optimizer state, a loss
        that cannot be made, weights that are not finite, a newer Keras.

    Raises:
        FileNotFoundError: there is nothing at `path`, or at `weights`.
        ValueError: it is no such model, it is damaged, it could run code, it cannot be made, or
            `weights` are given to a model that has its own.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    >>> path = tempfile.mkdtemp() + "/model.keras"
    >>> model.save(path)
    >>> load_model(path).output_shape
    (None, 2)
    """
    path = local_path(path)
    kind = model_format(path)
    if weights is not None:
        _check_weights(path, kind, local_path(weights))
    opener = _Opener(custom_objects or {}, allow_unsafe, weights)
    try:
        with keras.saving.custom_object_scope(opener.custom_objects):
            model = getattr(opener, kind)(path)
    except inspection.UnsafeModelError as error:
        trusted = " If you trust who made it: allow_unsafe=True, --allow_unsafe."
        hint = trusted if isinstance(error, inspection.UnsafeNameError) else ""
        raise type(error)(f"{path} is refused: {error}{hint}") from None
    except RecursionError:
        raise inspection.UnsafeModelError(f"{path} is refused: it is nested too deep.") from None
    except Exception as error:
        text = " ".join(str(error).split()) or type(error).__name__
        first = text.rpartition("Exception encountered: ")[2][:400]  # Keras nests them
        raise ValueError(f"The {kind} model {path} cannot be opened: {first}") from error
    _warn_of_weights(model)
    return model


def objects_of(modules: Iterable[str]) -> dict[str, Any]:
    """Name -> class or function that modules define, for `custom_objects=`.

    Args:
        modules: names, to be imported.

    Raises:
        ValueError: one cannot be imported.
    """
    found = {}
    for name in modules:
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            raise ValueError(f"--custom_objects={name} cannot be imported: {error}.") from error
        own = {key: o for key, o in vars(module).items() if getattr(o, "__module__", None) == name}
        found.update(own)
    return found


def weights_of(path: AnyPath, weights: AnyPath | None = None) -> pathlib.Path:
    """The `.h5` file with the weights of an architecture in a `.json` file.

    Args:
        path, weights: as for `load_model`, likewise errors.
    """
    path = local_path(path)
    if weights is not None:
        return local_path(weights)
    found = sorted(path.parent.glob("*.h5"))
    own = [file for file in found if file.stem == path.stem] or found
    if len(own) != 1:
        beside = ", ".join(file.name for file in found) or "none"
        raise ValueError(
            f"one .h5 file with its weights is expected beside {path.name}; found {beside}: name "
            "it with weights=, --weights"
        )
    return own[0]


def _check_weights(path: pathlib.Path, kind: str, weights: pathlib.Path) -> None:
    if kind != "json":
        raise ValueError(
            f"weights={weights} are for an architecture in a .json file: {path} has its own."
        )
    if not weights.is_file():
        raise FileNotFoundError(f"There are no weights at {weights}; expected an .h5 file.")


class _Opener:
    """How each format is opened."""

    def __init__(
        self, custom_objects: Mapping[str, Any], allow_unsafe: bool, weights: AnyPath | None
    ) -> None:
        self.custom_objects = custom_objects
        self.allow_unsafe = allow_unsafe
        self.weights = weights

    def keras(self, path: pathlib.Path) -> Model:
        with zipfile.ZipFile(path) as archive:
            inspection.inspect_archive(archive)
            config = inspection.parsed(archive.read("config.json"), "config.json")
            if not self.allow_unsafe:
                inspection.inspect_assets(archive.namelist(), config, self.custom_objects)
            metadata = inspection.parsed(archive.read("metadata.json"), "metadata.json")
            with h5py.File(io.BytesIO(archive.read("model.weights.h5"))) as weights:
                return self._modern(path, config, metadata, weights)

    def directory(self, path: pathlib.Path) -> Model:
        inspection.inspect_directory(path)
        text = (path / "config.json").read_bytes()
        config = inspection.parsed(text, "config.json")
        metadata = inspection.parsed((path / "metadata.json").read_bytes(), "metadata.json")
        checksums.verify_config(text, metadata)
        checksums.verify_assets(path, metadata)
        if not (path / "model.weights.h5").is_file():
            raise ValueError("model.weights.h5 is missing in it")
        with h5py.File(path / "model.weights.h5") as weights:
            return self._modern(path, config, metadata, weights)

    def _modern(
        self,
        path: pathlib.Path,
        config: dict[str, Any],
        metadata: dict[str, Any],
        weights: h5py.File,
    ) -> Model:
        inspection.inspect_hdf5(weights)
        checksums.verify_hdf5(weights)
        if _version(metadata.get("keras_version"))[0] < 3:
            return self._rebuilt(hdf5.read_keras(config, weights), weights.id.get_filesize())
        uncompiled = config | {"compile_config": None}
        self._inspect(uncompiled)
        training = config.get("compile_config")
        known = {**inspection.optimizers_of_pytorch(training), **self.custom_objects}
        with keras.saving.custom_object_scope(known):  # in the place of the scope around it
            compilable = self._compilable(training)
            self._check_size(uncompiled, weights.id.get_filesize())
            _warn_of_version(metadata.get("keras_version"))
            return self._through_keras(path, "" if path.is_dir() else ".keras", compilable)

    def h5(self, path: pathlib.Path) -> Model:
        with h5py.File(path) as file:
            inspection.inspect_hdf5(file)
            checksums.verify_hdf5(file)
            version = file.attrs.get("keras_version", "2")
            if _version(version)[0] < 2:
                raise ValueError(
                    f"it is of Keras 1 ({_text(version)}): open it with Keras 2.2 and save it again"
                )
            modern = _version(version)[0] >= 3
            parts = hdf5.read_modern_h5(file) if modern else hdf5.read_h5(file)
            if modern and not self._compilable(parts.training):
                parts = dataclasses.replace(parts, training=None)
            _warn_of_version(version)
            return self._rebuilt(parts, file.id.get_filesize())

    def json(self, path: pathlib.Path) -> Model:
        config = inspection.parsed(path.read_bytes(), path.name)
        if "class_name" not in config or _version(config.get("keras_version", "2"))[0] != 2:
            raise ValueError("it is no architecture of Keras 2, as model.to_json() wrote it")
        with h5py.File(weights_of(path, self.weights)) as weights:
            inspection.inspect_hdf5(weights)
            checksums.verify_hdf5(weights)
            parts = hdf5.read_pair(config, weights)
            return self._rebuilt(parts, weights.id.get_filesize())

    def saved_model(self, path: pathlib.Path) -> Model:
        # It needs TensorFlow, which is not there wherever JAX is.
        from keras_layer_entropy.model_files.keras2 import saved_model

        inspection.inspect_directory(path)
        stored = sum(file.stat().st_size for file in path.glob("variables/*"))
        return self._rebuilt(saved_model.read(path), stored)

    def _rebuilt(self, parts: Any, stored: int) -> Model:
        self._inspect(parts.config)
        reserve_names(parts.config)
        self._check_size(parts.config, stored)
        return rebuild(parts)

    def _inspect(self, config: Any) -> None:
        if not self.allow_unsafe:
            inspection.inspect_config(config, self.custom_objects)

    def _check_size(self, config: dict[str, Any], stored: int) -> None:
        make = functools.partial(
            keras.saving.deserialize_keras_object,
            _sized(config),
            safe_mode=not self.allow_unsafe,
        )
        inspection.check_size(make, stored)

    def _compilable(self, training: Any) -> bool:
        """Whether everything is known that the model was compiled with."""
        try:
            self._inspect(training)
        except inspection.UnknownNameError as error:
            _warn_uncompiled(error)
            return False
        return True

    def _through_keras(self, path: pathlib.Path, suffix: str, compilable: bool) -> Model:
        if path.suffix == suffix or not suffix:
            return self._load(path, compilable)
        # Keras goes by the name.
        with tempfile.TemporaryDirectory() as directory:
            link = pathlib.Path(directory) / f"model{suffix}"
            os.symlink(path.resolve(), link)
            return self._load(link, compilable)

    def _load(self, path: pathlib.Path, compilable: bool) -> Model:
        load = functools.partial(keras.saving.load_model, path, safe_mode=not self.allow_unsafe)
        if not compilable:
            return load(compile=False)
        try:
            return load()
        except Exception as error:  # noqa: BLE001 - Keras raises what the model's own code raises
            try:
                model = load(compile=False)
            except Exception:  # noqa: BLE001 - the first error says more
                raise error from None
            _warn_uncompiled(error)
            return model


def _sized(value: Any) -> Any:
    """A copy of a configuration to count weights with: not compiled, without states of its own."""
    if isinstance(value, list):
        return [_sized(item) for item in value]
    if isinstance(value, dict):
        made = {k: _sized(v) for k, v in value.items() if k != "compile_config"}
        return made | {"stateful": False} if made.get("stateful") is True else made
    return value


def _warn_uncompiled(error: Exception) -> None:
    warnings.warn(
        f"The model was loaded without its loss and metrics, which cannot be made: {error}",
        stacklevel=6,
    )


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _version(text: object) -> tuple[int, ...]:
    numbers = [int(part) for part in _text(text).split(".")[:2] if part.isdigit()]
    return tuple(numbers) or (3,)


def _warn_of_version(saved: object) -> None:
    if _version(saved) > _version(keras.__version__):
        warnings.warn(
            f"The model was saved by Keras {saved}, this is Keras {keras.__version__}: what is new "
            "there may be missing here.",
            stacklevel=5,
        )


def _warn_of_weights(model: keras.Model) -> None:
    bad = [
        weight.path
        for weight in model.weights
        if keras.backend.is_float_dtype(weight.dtype)
        and not bool(keras.ops.all(keras.ops.isfinite(weight)))
    ]
    if bad:
        warnings.warn(f"Weights are NaN or infinite: {', '.join(bad)}.", stacklevel=3)
