"""The outputs of layers on disk, batch by batch: one `.npy` file for each layer."""

import json
import pathlib

import keras
import numpy as np
from keras import tree
from keras.src.trainers.data_adapters import get_data_adapter

from keras_layer_entropy.backend import as_in_a_step, batches_of
from keras_layer_entropy.files import claimed, local_path, replacing
from keras_layer_entropy.recording.passes import Source

PROGRESS = "progress.json"


def predict_to(probe, path, data, *, batch_size=256, steps=None, overwrite=False):
    """As `ActivationProbe.predict_to`, of a probe.

    Args:
        probe: `ActivationProbe`.
        path, data, batch_size, steps, overwrite: likewise.
    """
    source, folder = Source(data, batch_size, steps, must_end=True), local_path(path)
    folder.mkdir(parents=True, exist_ok=True)
    with claimed(folder / PROGRESS):
        return _write(probe, folder, source, overwrite)


def _write(probe, folder, source, overwrite):
    known = _read(folder)
    foreign = [x.name for x in folder.iterdir()] if known is None else []
    if foreign := [name for name in foreign if not name.startswith((PROGRESS, f".{PROGRESS}"))]:
        raise FileExistsError(f"{folder} holds {foreign[0]}: choose another folder.")
    if known and known["complete"] and not overwrite:
        raise FileExistsError(
            f"{folder} holds outputs already: choose another folder, or pass overwrite=True."
        )
    if known is None or overwrite:
        known = {"batches": 0, "samples": 0, "complete": False, "files": {}}
    if known["batches"] and not source.repeatable:
        raise ValueError(
            f"{folder} holds a part of the outputs, and a generator does not begin anew: pass "
            "overwrite=True, or data that can be read again."
        )
    files = {layer: _Rows(folder / name) for layer, name in known["files"].items()}
    for rows in files.values():
        rows.cut(known["samples"])
    start, goes_on = known["batches"], not known["batches"]
    for number, batch in enumerate(_batches(source)):
        if source.steps is not None and number >= source.steps:
            break
        if number + 1 < start:
            continue
        x, _, _ = keras.utils.unpack_x_y_sample_weight(tree.map_structure(as_in_a_step, batch))
        outputs = probe.predict_on_batch(x)
        if not files:
            files = {layer: _Rows(folder / _file(layer)) for layer in outputs}
            for layer, rows in files.items():
                rows.begin(outputs[layer])
        if set(outputs) != set(files):
            raise ValueError(
                f"{folder} holds a part of the outputs of {sorted(files)}, and these are of "
                f"{sorted(outputs)}: pass overwrite=True, or choose another folder."
            )
        if number < start:  # the last that is there, by which others are told
            goes_on = all(files[layer].ends_with(values) for layer, values in outputs.items())
            if not goes_on:
                break
            continue
        for layer, values in outputs.items():
            files[layer].add(values)
        known = {
            "batches": number + 1,
            "samples": next(iter(files.values())).count,
            "complete": False,
            "files": {layer: rows.path.name for layer, rows in files.items()},
        }
        _keep(folder, known)
    if not goes_on:  # also where there are fewer batches than were written
        raise ValueError(
            f"{folder} holds a part of the outputs for other data, another batch_size or other "
            "weights: pass overwrite=True, or choose another folder."
        )
    _keep(folder, known | {"complete": True})
    return {layer: rows.path for layer, rows in files.items()}


def _batches(source):
    keywords = dict(source.keywords)
    size = keywords.pop("batch_size", None)
    return batches_of(get_data_adapter(**keywords, **({"batch_size": size} if size else {})))


def _read(folder):
    path = folder / PROGRESS
    return json.loads(path.read_text()) if path.exists() else None


def _keep(folder, known):
    with replacing(folder / PROGRESS) as temporary:
        temporary.write_text(json.dumps(known, indent=1) + "\n")


def _file(layer):
    """The name of a layer's file: paths hold slashes."""
    return f"{layer.replace('/', '__')}.npy"


class _Rows:
    """A `.npy` file that grows: NumPy leaves room in its header for the number of rows.

    Attributes:
        path: of the file.
        count: number of rows.
    """

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.count = 0
        self._shape = self._dtype = None

    def begin(self, values):
        """A file without rows, of the shape and dtype of these."""
        self._shape, self._dtype = values.shape[1:], values.dtype
        with open(self.path, "wb") as file:
            self._write_header(file)
            self._start = file.tell()

    def cut(self, count):
        """Opens a file that was begun, and forgets what it holds beyond so many rows."""
        with open(self.path, "r+b") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, self._dtype = read(file)
            self._start, self._shape, self.count = file.tell(), shape[1:], count
            file.truncate(self._start + count * self._size)
            self._write_header(file)

    def add(self, values):
        """Adds rows; ValueError where these are of another size."""
        if values.shape[1:] != self._shape:
            raise ValueError(
                f"{self.path.stem} gives {values.shape[1:]} for a sample, and {self._shape} for "
                "those before: pad the samples to one size."
            )
        with open(self.path, "r+b") as file:
            file.seek(self._start + self.count * self._size)
            file.write(np.ascontiguousarray(values, self._dtype).data)
            self.count += len(values)
            self._write_header(file)

    def ends_with(self, values):
        """Whether the last rows are these, but for the order of sums."""
        if values.shape[1:] != self._shape or len(values) > self.count:
            return False
        last = np.load(self.path, mmap_mode="r")[self.count - len(values) :]
        size = np.max(np.abs(values), where=np.isfinite(values), initial=0)
        return np.allclose(last, values, rtol=0, atol=1e-3 * size, equal_nan=True)

    @property
    def _size(self):
        """Bytes of a row."""
        return self._dtype.itemsize * int(np.prod(self._shape))

    def _write_header(self, file):
        file.seek(0)
        shape = (self.count, *self._shape)
        descr = np.lib.format.dtype_to_descr(self._dtype)
        header = {"descr": descr, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
