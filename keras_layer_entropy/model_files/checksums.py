"""Checksums inside the files of a saved model.

An archive has them; HDF5 files and JSON files do not, and a flipped bit in a weight would go
unnoticed. They stand inside the files, so that who writes the model anew by other means takes them
away.
"""

import hashlib
import json

import h5py
import numpy as np

_NAME = "sha256"
_CONFIG = "config_sha256"
_ASSETS = "assets_sha256"


def add(path, kind):
    """Writes checksums into a model that was just saved: a `"directory"` or an `"h5"` file."""
    weights = path / "model.weights.h5" if kind == "directory" else path
    with h5py.File(weights, "r+") as file:
        file.attrs[_NAME] = _of_hdf5(file)
    if kind == "directory":
        metadata = json.loads((path / "metadata.json").read_text())
        metadata[_CONFIG] = _of_bytes((path / "config.json").read_bytes())
        metadata[_ASSETS] = {
            name: _of_bytes(file.read_bytes()) for name, file in _assets_in(path).items()
        }
        (path / "metadata.json").write_text(json.dumps(metadata))


def verify_hdf5(file):
    """Raises ValueError if an `h5py.File` with a checksum is not what was written."""
    if _NAME in file.attrs and file.attrs[_NAME] != _of_hdf5(file):
        raise ValueError(
            "The weights are damaged: they do not have the checksum they were saved with."
        )


def verify_config(text, metadata):
    """Raises ValueError if the bytes of a config.json are not what was written."""
    if _CONFIG in metadata and metadata[_CONFIG] != _of_bytes(text):
        raise ValueError(
            "config.json was changed since the model was saved. If that was you, remove "
            f"{_CONFIG!r} from metadata.json."
        )


def verify_assets(path, metadata):
    """Raises ValueError if the assets in a directory are not what was written."""
    there = _assets_in(path)
    for name, checksum in metadata.get(_ASSETS, {}).items():
        if name not in there or _of_bytes(there[name].read_bytes()) != checksum:
            raise ValueError(f"{name} was changed since the model was saved, or is not there.")


def assets(metadata):
    """Which files of a directory are assets that `add` knew of; None if it wrote none down."""
    if _ASSETS not in metadata:
        return None
    names = metadata[_ASSETS]
    return [name for name in names if name.startswith("assets/") and ".." not in name]


def _assets_in(path):
    files = [file for file in (path / "assets").rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): file for file in files}


def _of_bytes(data):
    return hashlib.sha256(data).hexdigest()


def _of_hdf5(file):
    digest = hashlib.sha256()
    items = {"/": file}
    file.visititems(lambda name, item: items.update({name: item}))
    for name in sorted(items):
        item = items[name]
        attributes = {k: np.asarray(v).tolist() for k, v in item.attrs.items() if k != _NAME}
        digest.update(repr((name, sorted(attributes.items()))).encode())
        if isinstance(item, h5py.Dataset):
            value = item[()]
            digest.update(repr((item.dtype.str, item.shape)).encode())
            digest.update(value.tobytes() if item.dtype.kind != "O" else repr(value).encode())
    return digest.hexdigest()
