"""What a search has found so far, on disk, whole at every moment."""

import dataclasses
import hashlib
import json
import os
import re
import shutil

import numpy as np
from keras import tree

from keras_layer_entropy.files import local_path, remove, replacing
from keras_layer_entropy.model_files import load_model, model_parts, save_model
from keras_layer_entropy.pruning.standing import PruningStep

RECORD = "pruning.json"
FORMAT_VERSION = 2  # of that file
# Also as a killed `replacing` leaves it, or one inside another.
_STATE = re.compile(r"step-\d{3,}|\.{1,2}step-\d{3,}(\.[0-9a-f]{8}){1,2}(\.old)?")


class _OtherVersionError(ValueError):
    """The record is of another version of the library."""


class Checkpoint:
    """A folder with the last accepted model and every step so far.

    Each state is a folder of its own, `step-003`, written under another name and then renamed, so
    that a search killed at any moment leaves the last one whole.

    Args:
        folder: made at the first `save`.
        settings: what the search was told, JSON-able; a search with others is not resumed.
    """

    def __init__(self, folder, settings):
        self.folder = local_path(folder)
        self._settings = settings

    def exists(self):
        """Whether there is something to resume."""
        return self._latest() is not None

    def save(self, model, steps):
        """Writes the model as it stands and all steps."""
        before = self._latest()
        path = self.folder / f"step-{len(steps):03d}"
        with replacing(path, (*model_parts(path), RECORD)) as temporary:
            save_model(model, temporary)
            record = {
                "format_version": FORMAT_VERSION,
                "settings": self._settings,
                "steps": [dataclasses.asdict(step) for step in steps],
            }
            (temporary / RECORD).write_text(json.dumps(record, indent=1))
        if before is not None and before != self._latest():
            _remove_state(before)

    def load(self, open_model=load_model):
        """`(model, steps)` of the last state; removes what a killed run left half-written.

        Args:
            open_model: path -> model.

        Raises:
            ValueError: there is none, it is damaged, or the settings are others.
        """
        latest = self._latest()
        if latest is None:
            raise ValueError(f"There is nothing to resume in {self.folder}.")
        try:
            record = json.loads((latest / RECORD).read_text())
            self._check_version(record["format_version"])
            steps = [PruningStep.from_json(step) for step in record["steps"]]
            settings = record["settings"]
        except _OtherVersionError:
            raise
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{latest / RECORD} is damaged: {error!r}.") from error
        for name, value in self._settings.items():
            if settings.get(name) != value:
                raise ValueError(
                    f"The unfinished run in {self.folder} {_difference(name, settings, value)}, or "
                    "start anew with --overwrite."
                )
        for child in self._own():
            if child != latest:
                _remove_state(child)
        return open_model(latest), steps

    def _check_version(self, version):
        if version != FORMAT_VERSION:
            raise _OtherVersionError(
                f"The unfinished run in {self.folder} was begun by another version of this "
                "library: finish it with that one, or start anew with --overwrite."
            )

    def remove(self):
        """Removes what it wrote, and the folders if nothing else is in them."""
        for child in self._own():
            _remove_state(child)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _own(self):
        """Its states, whole or half-written."""
        found = [path for path in self.folder.glob("*") if _STATE.fullmatch(path.name)]
        return [path for path in found if path.is_dir() and not path.is_symlink()]

    def _latest(self):
        found = sorted(path for path in self._own() if path.name.startswith("step-"))
        return found[-1] if found else None


def _remove_state(folder):
    if folder.name.startswith("step-"):
        remove(folder, (*model_parts(folder), RECORD))
    else:  # half-written: of a name that nobody else gives
        shutil.rmtree(folder)


def _difference(name, settings, value):
    if name == "model":
        return "began with another model: its files have changed since. Bring them back"
    if name == "contents":
        return "began with other data: what is in them has changed since. Bring them back"
    return f"had {name}={settings.get(name)!r}, not {value!r}: resume it with that"


def fingerprint(path):
    """SHA-256 of a file, or of all files in a folder with their names."""
    path = local_path(path)
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(os.fsencode(file.relative_to(path)))
            digest.update(file.read_bytes())
    return digest.hexdigest()


def data_fingerprint(data):
    """SHA-256 of arrays, or of every batch of a `tf.data.Dataset` in turn.

    Example:

    >>> x, y = np.arange(6.0), np.arange(6)
    >>> data_fingerprint((x, y)) == data_fingerprint((x + 1, y))
    False
    """
    digest = hashlib.sha256()
    batches = data.as_numpy_iterator() if hasattr(data, "element_spec") else [data]
    for batch in batches:
        for array in map(np.asarray, tree.flatten(batch)):
            digest.update(f"{array.dtype}{array.shape}".encode())
            plain = array.tolist() if array.dtype == object else None
            digest.update(
                np.ascontiguousarray(array).data if plain is None else repr(plain).encode()
            )
    return digest.hexdigest()
