"""What a pass over a part of the data came to: parts add up to the whole."""

import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from keras_layer_entropy.files import AnyPath, check_writable, local_path, replacing
from keras_layer_entropy.measures import states

_HEADER = "header"
_FORMAT = 1


@dataclasses.dataclass(frozen=True, eq=False)
class PartialAnalysis:
    """What measuring a part of the data came to, made by `EntropyAnalyzer.analyze_part`.

    Parts that were measured alike, on one machine after the other or on many at once, join to what
    measuring all of the data would have come to; `EntropyAnalyzer.profile_of` makes a profile of
    that. How they are cut, and in which order they join, changes no more than rounding does.

    Attributes:
        header: what was measured, JSON: a fingerprint of the model's weights, its layers, classes,
            measures with their options, what is kept of samples. Parts whose header differs do not
            join.
        arrays: name -> array, sums and counts and what is kept of single samples.

    Example:

    >>> import keras
    >>> from keras_layer_entropy import EntropyAnalyzer
    >>> model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    >>> x, y = np.random.normal(size=(90, 4)), np.arange(90) % 3
    >>> analyzer = EntropyAnalyzer(model)
    >>> first = analyzer.analyze_part((x[:50], y[:50]), verbose=0)
    >>> second = analyzer.analyze_part((x[50:], y[50:]), start=50, verbose=0)
    >>> profile = analyzer.profile_of(PartialAnalysis.joined([first, second]))
    >>> profile.count.tolist()
    [30, 30, 30]
    """

    header: Mapping[str, Any]
    arrays: Mapping[str, np.ndarray]

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """What several parts come to together; ValueError where they were not measured alike."""
        if not parts:
            raise ValueError("There are no parts to join.")
        for part in parts[1:]:
            parts[0].check_like(part.header)
        return cls(parts[0].header, states.joined([part.arrays for part in parts]))

    def check_like(self, header: Mapping[str, Any]) -> None:
        """Raises ValueError, which names the differences, where the header is another one."""
        names = [*self.header, *(name for name in header if name not in self.header)]
        differing = [name for name in names if self.header.get(name) != header.get(name)]
        if differing:
            words = "; ".join(
                f"{name}: {self.header.get(name)} and {header.get(name)}" for name in differing
            )
            raise ValueError(
                f"Parts that were not measured alike cannot be joined, {words[:600]}: measure all "
                "of them with the same model, layers, classes and measures."
            )

    def save(self, path: AnyPath, overwrite: bool = False) -> None:
        """Writes an `.npz` file, as a whole or not at all."""
        path = local_path(path)
        if path.suffix != ".npz":
            raise ValueError(f"{path}: a part is written to a file whose name ends in .npz.")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists: choose another path, or overwrite=True.")
        check_writable(path)
        header = json.dumps({"format": _FORMAT, **self.header})
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, **{_HEADER: np.array(header), **self.arrays})

    @classmethod
    def load(cls, path: AnyPath) -> Self:
        """Reads what `save` wrote; ValueError for any other file."""
        path = local_path(path)
        if not path.is_file():
            raise ValueError(f"There is no file {path}.")
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = dict(archive)
            header = json.loads(str(arrays.pop(_HEADER)))
            if header.pop("format") != _FORMAT:
                raise ValueError("it was written by another version")
        except (ValueError, OSError, KeyError, AttributeError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"{path} is no part of an analysis, as PartialAnalysis.save writes them: {error}."
            ) from error
        return cls(header, arrays)
