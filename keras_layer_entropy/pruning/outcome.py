"""What a search was worth, and where its results lie on disk."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from keras_layer_entropy.backend import Data
from keras_layer_entropy.files import replacing
from keras_layer_entropy.model_files import model_parts, save_model
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.checkpoint import FORMAT_VERSION, RECORD
from keras_layer_entropy.pruning.cost import compare_costs
from keras_layer_entropy.pruning.search import PruningResult
from keras_layer_entropy.recording.passes import Source
from keras_layer_entropy.report import Pruning, Thinning

RECORDS = (RECORD, "before.json", "after.json", "pruning.png")


def compared(
    model: keras.Model, result: PruningResult, validation: Data, test: Data, batch_size: int = 256
) -> Pruning:
    """What the smaller model costs and how good it is, beside the original.

    Args:
        model: the original.
        result: `PruningResult`.
        validation, test: data that `evaluate` takes; the latter were not touched by the search.
        batch_size: batch size for arrays.

    Returns:
        `report.Pruning`.

    Example:

    >>> import keras
    >>> import numpy as np
    >>> from keras_layer_entropy import PruningOptions, prune_model
    >>> x, dense = np.random.normal(size=(90, 4)).astype("float32"), keras.layers.Dense
    >>> data, test = (x[:60], np.arange(60) % 2), (x[60:], np.arange(30) % 2)
    >>> model = keras.Sequential([keras.Input((4,)), dense(8, name="a"), dense(8, name="b"),
    ...                           dense(2, "softmax", name="out")])
    >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> options = PruningOptions(criterion="last", max_removals=1, epochs=0, max_drop=1.0)
    >>> result = prune_model(model, data, data, options)
    >>> search = compared(model, result, data, test)
    >>> [cost.parameters for cost in search.costs], sorted(search.qualities)
    ([130, 58], ['test', 'validation'])
    """
    models = [model, result.model]
    qualities = {
        name: [result.quality.of(each, data, batch_size) for each in models]
        for name, data in (("validation", validation), ("test", test))
    }
    costs = compare_costs(models, Source(validation, batch_size).first()[0])
    widths = _widths(model, result) if "units" in result.options.kinds else {}
    return Pruning(result, costs, qualities, widths=widths)


def _widths(model: keras.Model, result: PruningResult) -> dict[str, Thinning]:
    """Path of each layer that makes units -> what became of them, also of those that are tied."""
    before, after = find_channels(model), find_channels(result.model).makers
    gone = {
        root
        for path, units in result.units.items()
        if path in before.makers  # stand-ins of blocks are none of the original's
        for root in before.roots(path)[list(units)]
    }
    owners: dict[int, dict[str, None]] = {}
    for path in before.makers:
        for root in before.roots(path):
            owners.setdefault(root, {})[path] = None
    return {
        path: Thinning(
            before=len(units),
            after=len(after.get(path, ())),  # the layer went, or was merged into another
            gone=tuple(np.flatnonzero(np.isin(before.roots(path), list(gone))).tolist()),
            tied=tuple({x: None for root in before.roots(path) for x in owners[root] if x != path}),
        )
        for path, units in before.makers.items()
    }


@dataclasses.dataclass(frozen=True)
class Output:
    """Where a pruned model and the records of its search go.

    A model that is a directory holds the records; beside one that is a file, they begin with its
    name. An unfinished search lies beside both.

    Attributes:
        path: of the model.
        is_file: whether the model is a file.

    Example:

    >>> Output(pathlib.Path("a.keras"), is_file=True).records["pruning.json"].name
    'a.pruning.json'
    """

    path: pathlib.Path
    is_file: bool

    @property
    def records(self) -> dict[str, pathlib.Path]:
        """Name of each record -> its path."""
        if self.is_file:
            return {name: self.path.with_name(f"{self.path.stem}.{name}") for name in RECORDS}
        return {name: self.path / name for name in RECORDS}

    @property
    def unfinished(self) -> pathlib.Path:
        """The folder of a search that is not at its end."""
        return self.path.with_name(f"{self.path.name}.partial")

    def check_replaceable(self) -> None:
        """Raises FileExistsError where there is something that is no model."""
        path = self.path
        if self.is_file:
            is_model = not path.is_dir()
        else:
            is_model = bool(model_parts(path)) if path.is_dir() else not path.exists()
        if not is_model and (not path.is_dir() or any(path.iterdir())):
            raise FileExistsError(
                f"{path} is no model: it is not replaced. Choose another --output."
            )

    def taken(self) -> list[pathlib.Path]:
        """What is there already, of the model and the records: a list of paths."""
        return [path for path in (self.path, *self.records.values()) if path.exists()]

    def write(
        self, search: Pruning, settings: Mapping[str, Any] | None = None, dataset: Any = None
    ) -> None:
        """Writes the smaller model, what was measured of both, every step and the figure.

        What is there is replaced, whole or not at all.

        Args:
            search: `report.Pruning`.
            settings: what the search was told, JSON-able.
            dataset: as for `save_model`.
        """
        result = search.result
        record = {
            "format_version": FORMAT_VERSION,
            "settings": settings,
            "steps": [dataclasses.asdict(step) for step in result.steps],
            "units": {path: found.gone for path, found in search.thinned.items()},
            "widths": {path: (found.before, found.after) for path, found in search.widths.items()},
            "target_met": result.target_met,
            "reasons": result.reasons,
            "cost": dict(
                zip(("before", "after"), map(dataclasses.asdict, search.costs), strict=True)
            ),
            "quality": {
                "name": result.quality.name,
                "mode": "max" if result.quality.higher else "min",
                **search.qualities,
            },
        }
        if self.is_file:
            save_model(result.model, self.path, dataset=dataset, overwrite=True)
            _write_records(self.records, search, record)
            return
        with replacing(self.path, (*model_parts(self.path), *RECORDS)) as temporary:
            save_model(result.model, temporary, dataset=dataset)
            _write_records(Output(temporary, is_file=False).records, search, record)


def _write_records(
    paths: Mapping[str, pathlib.Path], search: Pruning, record: Mapping[str, Any]
) -> None:
    search.result.before.save(paths["before.json"])
    search.result.after.save(paths["after.json"])
    with replacing(paths["pruning.png"]) as temporary:
        search.figure().savefig(temporary, dpi=150)
    with replacing(paths[RECORD]) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")
