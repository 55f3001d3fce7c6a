"""The same analysis on many machines, by Apache Beam (extra `[beam]`).

The statistics add up, so that a worker measures a piece of the data and nothing but sums and kept
samples move: `PartialAnalysis`. Runs wherever Beam does, on this machine with several processes,
on Flink, Spark or Dataflow.
"""

import dataclasses
import functools
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
import keras
from apache_beam.io.filesystems import FileSystems
from apache_beam.utils.shared import Shared

from keras_layer_entropy.analysis.analyzer import EntropyAnalyzer
from keras_layer_entropy.analysis.partial import PartialAnalysis
from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.backend import Data
from keras_layer_entropy.datasets import DatasetSpec, cut, load_dataset
from keras_layer_entropy.measures.registry import MeasureChoice
from keras_layer_entropy.model_files import load_model, objects_of
from keras_layer_entropy.recording.labels import ClassChoice
from keras_layer_entropy.recording.layers import LayerChoice
from keras_layer_entropy.recording.untrained import untrained

_TWIN = "untrained"


class Analyze(beam.PTransform):
    """Measures a saved model on a data set that lies in shards; gives one `EntropyProfile`.

    Equal to `analyze_model` on the same samples in one process, up to rounding: however the data
    are cut, each sample is counted once, and measures that compare single samples keep the same
    ones. A piece that is measured again, because a worker died, gives the same. The model is opened
    once in each process.

    Args:
        model: path of a saved model, which workers can read: of this machine, or one that Beam's
            own file systems read, such as `gs://bucket/model.keras`.
        data: a TFDS data set, `datasets.DatasetSpec`; or a pattern of TFRecord files,
            `"records/test-*"`, with `parse`.
        parse: makes `(x, y)`, or `(x, y, sample_weight)`, of a serialized record, with TensorFlow's
            operations.
        samples: how many samples of a TFDS data set are a piece. A TFRecord file is one.
        layers, num_classes, measures: as for `EntropyAnalyzer`.
        batch_size: samples a batch.
        baseline, seed: as for `analyze_model`.
        custom_objects: modules with layers of your own, which workers can import.
        allow_unsafe: as for `load_model`.

    Raises:
        ValueError: data that are not cut, no file that fits the pattern, a pattern without `parse`.

    Example:

    >>> import numpy as np
    >>> import tensorflow as tf
    >>> from keras_layer_entropy import save_model
    >>> folder = tempfile.mkdtemp()
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, name="out")])
    >>> path = save_model(model, f"{folder}/model.keras")
    >>> def parse(record):
    ...     values = tf.io.decode_raw(record, tf.float32)
    ...     return values[:4], tf.cast(values[4], tf.int32)
    >>> for shard in range(2):
    ...     with tf.io.TFRecordWriter(f"{folder}/part-{shard}") as writer:
    ...         for number in range(6):
    ...             writer.write(np.array([1, 2, 3, 4, number % 3], "float32").tobytes())
    >>> with beam.Pipeline() as pipeline:
    ...     profiles = pipeline | Analyze(path, f"{folder}/part-*", parse=parse)
    ...     _ = profiles | beam.Map(lambda profile: print(profile.count.tolist()))
    [4, 4, 4]
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        data: DatasetSpec | str,
        *,
        parse: Callable[[Any], Any] | None = None,
        samples: int = 10_000,
        layers: LayerChoice = None,
        num_classes: ClassChoice = None,
        measures: MeasureChoice = ("activation_entropy",),
        batch_size: int = 256,
        baseline: bool = False,
        seed: int = 0,
        custom_objects: Sequence[str] = (),
        allow_unsafe: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(data, DatasetSpec):
            if parse is not None:
                raise ValueError(f"parse is for TFRecord files; {data.name} has its own features.")
            self._pieces = [_Piece(start, spec=spec) for start, spec in cut(data, samples)]
        else:
            if parse is None:
                raise ValueError(
                    f"data={data!r} are TFRecord files: pass parse=, what makes (x, y) of a "
                    "record. (Data sets by name: datasets.DatasetSpec.)"
                )
            self._pieces = _files(data)
        request = {"layers": layers, "num_classes": num_classes, "measures": measures}
        self._work = _Work(
            _Model(os.fspath(model), tuple(custom_objects), allow_unsafe, request),
            parse,
            batch_size,
            seed if baseline else None,
        )

    def expand(self, begin: Any) -> Any:
        """The steps, from a pipeline."""
        return (
            begin
            | "Pieces" >> beam.Create(self._pieces)
            | "Spread" >> beam.Reshuffle()
            | "Measure" >> beam.ParDo(_Measure(self._work))
            | "Join" >> beam.CombineGlobally(JoinParts()).without_defaults()
            | "Profile" >> beam.ParDo(_Profile(self._work, self._pieces[0]))
        )


class JoinParts(beam.CombineFn):
    """Joins dicts of `PartialAnalysis`, each with those of the same key."""

    def create_accumulator(self) -> dict[str, PartialAnalysis]:
        """Nothing yet."""
        return {}

    def add_input(
        self, accumulator: dict[str, PartialAnalysis], parts: Mapping[str, PartialAnalysis]
    ) -> dict[str, PartialAnalysis]:
        """What there is and one more."""
        return self.merge_accumulators([accumulator, parts])

    def merge_accumulators(
        self, accumulators: Iterable[Mapping[str, PartialAnalysis]]
    ) -> dict[str, PartialAnalysis]:
        """All of them; ValueError for parts that were not measured alike."""
        parts: dict[str, list[PartialAnalysis]] = {}
        for accumulator in accumulators:
            for name, part in accumulator.items():
                parts.setdefault(name, []).append(part)
        return {name: PartialAnalysis.joined(found) for name, found in parts.items()}

    def extract_output(self, accumulator: dict[str, PartialAnalysis]) -> dict[str, PartialAnalysis]:
        """The whole."""
        return accumulator


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A piece of the data, and the number of its first sample among all.

    Attributes:
        spec: of TFDS; None of a TFRecord file.
        path: of a TFRecord file.
    """

    start: int
    spec: DatasetSpec | None = None
    path: str | None = None


@dataclasses.dataclass(frozen=True)
class _Model:
    """A saved model and what is measured of it."""

    path: str
    custom_objects: tuple[str, ...]
    allow_unsafe: bool
    request: Mapping[str, Any]

    def analyzer(self) -> EntropyAnalyzer:
        """Opens it."""
        keras.saving.get_custom_objects().update(objects_of(self.custom_objects))
        with tempfile.TemporaryDirectory() as folder:
            path = _fetched(self.path, folder)
            model = load_model(path, allow_unsafe=self.allow_unsafe)
        return EntropyAnalyzer(model, **self.request)


@dataclasses.dataclass(frozen=True)
class _Work:
    """What is done with a piece.

    Attributes:
        parse: what makes samples of records, of TFRecord files.
        seed: of the untrained twin, None for none.
    """

    model: _Model
    parse: Callable[[Any], Any] | None
    batch_size: int
    seed: int | None
    _shared: Shared = dataclasses.field(default_factory=Shared, init=False, repr=False)

    def analyzer(self) -> EntropyAnalyzer:
        """Opened once in this process."""
        return self._shared.acquire(self.model.analyzer)

    def batches(self, piece: _Piece) -> Data:
        """A piece as `analyze_model` takes it."""
        if piece.spec is not None:
            return load_dataset(piece.spec).batches(self.batch_size)
        import tensorflow as tf

        return tf.data.TFRecordDataset(piece.path).map(self.parse).batch(self.batch_size)

    def measure(self, piece: _Piece) -> dict[str, PartialAnalysis]:
        """What a piece comes to, of the model and of its untrained twin."""
        analyzer = self.analyzer()
        measure = functools.partial(
            analyzer.analyze_part, self.batches(piece), start=piece.start, verbose=0
        )
        with analyzer.alone():
            found = {"model": measure()}
            if self.seed is not None:
                with untrained(analyzer.model, self.seed):
                    found[_TWIN] = measure()
        return found

    def profile(self, parts: Mapping[str, PartialAnalysis], piece: _Piece) -> EntropyProfile:
        """The profile of all pieces; one of them shows what form the data have."""
        analyzer, data = self.analyzer(), self.batches(piece)
        with analyzer.alone():
            profile = analyzer.profile_of(parts["model"], data)
            if self.seed is None:
                return profile
            with untrained(analyzer.model, self.seed):
                twin = analyzer.profile_of(parts[_TWIN], data, again=True)
        settings = {**profile.settings, "baseline_seed": self.seed}
        return dataclasses.replace(profile, baseline=twin, settings=settings)


class _Measure(beam.DoFn):
    def __init__(self, work: _Work) -> None:
        super().__init__()
        self._work = work

    def process(self, piece: _Piece) -> Iterator[dict[str, PartialAnalysis]]:
        yield self._work.measure(piece)


class _Profile(beam.DoFn):
    def __init__(self, work: _Work, piece: _Piece) -> None:
        super().__init__()
        self._work, self._piece = work, piece

    def process(self, parts: Mapping[str, PartialAnalysis]) -> Iterator[EntropyProfile]:
        yield self._work.profile(parts, self._piece)


def analyze(
    model: str | os.PathLike[str],
    data: DatasetSpec | str,
    options: Sequence[str],
    **request: Any,
) -> EntropyProfile:
    """Runs `Analyze` as a pipeline of its own, and waits for the profile.

    Args:
        model, data: as for `Analyze`.
        options: list of Beam's own flags, `["--runner=DirectRunner", "--direct_num_workers=2"]`.
        **request: as for `Analyze`.

    Returns:
        The profile; it comes back through a file in Beam's `temp_location`, or in a temporary
        folder of this machine.
    """
    parsed = beam.options.pipeline_options.PipelineOptions(list(options))
    place = parsed.view_as(beam.options.pipeline_options.GoogleCloudOptions).temp_location
    with tempfile.TemporaryDirectory() as folder:
        name = f"profile-{os.getpid()}-{os.urandom(4).hex()}.json"
        path = FileSystems.join(place or folder, name)
        with beam.Pipeline(options=parsed) as pipeline:
            profiles = pipeline | Analyze(model, data, **request)
            _ = profiles | "Write" >> beam.Map(_write, path)
        local = pathlib.Path(folder) / name
        if place:
            local.write_bytes(_read(path))
            FileSystems.delete([path])
        return EntropyProfile.load(local)


def _write(profile: EntropyProfile, path: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        local = pathlib.Path(folder) / "profile.json"
        profile.save(local)
        with FileSystems.create(path) as file:
            file.write(local.read_bytes())


def _read(path: str) -> bytes:
    with FileSystems.open(path) as file:
        return file.read()


def _fetched(path: str, folder: str) -> pathlib.Path:
    """A model as it lies on this machine: what is elsewhere is copied into a folder."""
    if FileSystems.get_scheme(path) is None:
        return pathlib.Path(path)
    path = path.rstrip("/")
    local = pathlib.Path(folder) / path.rpartition("/")[2]
    found = _matching([f"{path}/**"]) or _matching([path])
    for file in found:
        target = local / file.removeprefix(path).strip("/") if file != path else local
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(_read(file))
    if not found:
        raise ValueError(f"There is no model at {path}.")
    return local


def _matching(patterns: list[str]) -> list[str]:
    found = FileSystems.match(patterns)
    return sorted({x.path for match in found for x in match.metadata_list})


def _files(pattern: str) -> list[_Piece]:
    """TFRecord files as pieces: numbers of samples are the files' places, far enough apart."""
    paths = _matching([pattern])
    if not paths:
        raise ValueError(f"No file is like {pattern!r}.")
    apart = 2**32 // len(paths)
    return [_Piece(i * apart, path=path) for i, path in enumerate(paths)]
