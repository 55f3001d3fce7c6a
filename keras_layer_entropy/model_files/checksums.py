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


def add(path, kind):
    """Writes checksums into a model that was just saved: a `"directory"` or an `"h5"` file."""
    weights = path / "model.weights.h5" if kind == "directory" else path
    with h5py.File(weights, "r+") as file:
        file.attrs[_NAME] = _of_hdf5(file)
    if kind == "directory":
        metadata = json.loads((path / "metadata.json").read_text())
        metadata[_CONFIG] = _of_bytes((path / "config.json").read_bytes())
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
