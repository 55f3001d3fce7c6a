"""What a search holds on to: accuracy, loss, any compiled metric, or fidelity to the original."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from keras_layer_entropy.backend import Data
from keras_layer_entropy.measures.measure import listed
from keras_layer_entropy.pruning.accuracies import (
    NoAccuracyError,
    accuracy_metrics,
    check_compiled,
    compiled_metrics,
)
from keras_layer_entropy.pruning.evaluation import accuracy, compiled_with, logs_of, loss_on_data
from keras_layer_entropy.pruning.fidelity import Fidelity
from keras_layer_entropy.pruning.options import PruningOptions
from keras_layer_entropy.pruning.paired import (
    Differences,
    accuracy_differences,
    loss_differences,
    standard_error,
)
from keras_layer_entropy.pruning.rewrite import without
from keras_layer_entropy.recording.passes import Source

_POINTS, _SHARE, _RELATIVE_ERROR = 0.01, 0.05, 0.05  # how far each may fall where nobody says


@dataclasses.dataclass(frozen=True)
class Quality:
    """A number of a model on data, and how far it may fall.

    Attributes:
        name: `"accuracy"`, `"loss"`, `"fidelity"`, or that of a compiled metric.
        higher: whether more of it is better.
        drop: how much worse than the original's it may become; `math.inf` for no limit.
        relative: whether `drop` is a share of the original's.
        metrics: what a model has to be compiled with to tell it, arguments of `compile`.
        reference: the `Fidelity` to the original, where it is that.
        differences: a function that gives those of `paired.standard_error`, None of what is no mean
            over samples; a search asks for them, a plan does not.

    Example:

    >>> loss = Quality("loss", higher=False, drop=0.05, relative=True)
    >>> loss.limit(2.0), loss.better(1.9, 2.0), loss.words
    (2.1, True, 'loss')
    """

    name: str = "accuracy"
    higher: bool = True
    drop: float = _POINTS
    relative: bool = False
    metrics: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reference: Fidelity | None = None
    differences: Callable[[], Differences | None] = lambda: None

    @property
    def words(self) -> str:
        """What it is called: `"loss"`, `"agreement with the original"`."""
        return self.name if self.reference is None else self.reference.words

    def limit(self, original: float) -> float:
        """The worst that is accepted, given the original's; infinite where all is."""
        drop = self.drop * abs(original) if self.relative else self.drop
        return original - drop if self.higher else original + drop

    def better(self, value: float, other: float) -> bool:
        """Whether one value is better than another; NaN never is."""
        return bool(value > other if self.higher else value < other)

    def accepts(self, value: float, limit: float, error: float = 0.0) -> bool:
        """Whether a value is no worse than a limit, by one standard error; NaN never is.

        A search stops where what it sees just holds, and what it sees is its best of many looks.
        """
        return bool(value - error >= limit if self.higher else value + error <= limit)

    def said(self) -> str:
        """What is held on to, in a sentence."""
        if self.drop == math.inf:
            return f"Quality: validation {self.words}, without a limit."
        much = f"{100 * self.drop:.4g}%" if self.relative else f"{self.drop:.4g}"
        side = "below" if self.higher else "above"
        return f"Quality: validation {self.words}, at most {much} {side} the original's."

    def text(self, value: float) -> str:
        """A value of it, rounded: shares to four decimals, others to four digits."""
        shares = self.name in ("accuracy", "fidelity") or 0.1 <= abs(value) < 10
        return f"{value:.4f}" if shares else f"{value:.4g}"

    @contextlib.contextmanager
    def compiled(self, model: keras.Model) -> Iterator[keras.Model]:
        """While the block runs, a model is compiled so that it tells this quality."""
        with compiled_with(model, self.metrics) if self.metrics else contextlib.nullcontext():
            yield model

    def read(self, logs: Mapping[str, Any], model: keras.Model) -> float:
        """The value in the logs of a model, of one that is no fidelity."""
        if self.name == "loss":
            return loss_on_data(logs, model)
        return accuracy(logs) if self.name == "accuracy" else float(logs[self.name])

    def measure(
        self, model: keras.Model, data: Data, batch_size: int = 256, steps: int | None = None
    ) -> float:
        """The value of a model on data; within `compiled`."""
        if self.reference is not None:
            return self.reference.measure(model, data, batch_size, steps)
        return self.read(logs_of(model, data, batch_size, steps), model)

    def standard_error(
        self,
        model: keras.Model,
        original: keras.Model,
        data: Data,
        batch_size: int = 256,
        steps: int | None = None,
    ) -> float | None:
        """That of how much a model has lost on data, from what each sample lost.

        None for what is no mean over samples, as recall and AUC are not, and where samples have
        weights or are masked.
        """
        if self.reference is not None:
            return self.reference.standard_error(model, data, batch_size, steps)
        differences = self.differences()
        if differences is None:
            return None
        return standard_error(model, original, differences, data, batch_size, steps)

    def of(self, model: keras.Model, data: Data, batch_size: int = 256) -> float:
        """The value of any compiled model, which is not changed."""
        copy, _ = without(model, None)
        with self.compiled(copy):
            return self.measure(copy, data, batch_size)


def choose_quality(model: keras.Model, data: Data, options: PruningOptions) -> Quality:
    """The quality that options ask for, or what a model is best told by.

    That is accuracy where a classifier has one (`accuracies.accuracy_metrics`), else the compiled
    loss; without labels, fidelity.

    Args:
        model: a compiled Sequential or functional model; it is not changed.
        data: the validation data.
        options: `PruningOptions`.

    Returns:
        `Quality`.

    Raises:
        ValueError: no such quality for this model and these data, a metric of which nothing tells
            whether more is better, or a limit that means nothing for it.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    >>> model.compile("sgd", "mse", metrics=["mae"])
    >>> data = np.ones((6, 4)), np.arange(6) / 4
    >>> choose_quality(model, data, PruningOptions()).name
    'loss'
    >>> choose_quality(model, data, PruningOptions(quality="mae")).said()
    "Quality: validation mae, at most 5% above the original's."
    """
    check_compiled(model)
    source = (data, options.batch_size, options.validation_steps)
    found = _chosen(model, source, options)
    if options.mode != "auto" and (options.mode == "max") != found.higher:
        more = "more" if found.higher else "less"
        raise ValueError(f"mode={options.mode!r}, but {more} {found.words} is better.")
    if options.max_drop is not None:
        if found.name == "accuracy" and options.max_drop > 1:
            raise ValueError(
                f"max_drop={options.max_drop!r}; expected a number in 0..1 for accuracy, of which "
                "0.01 is one point."
            )
        no_limit = found.name == "accuracy" and options.max_drop == 1
        drop = math.inf if no_limit else float(options.max_drop)
        return dataclasses.replace(found, drop=drop, relative=False)
    if options.max_relative_drop is not None:
        if found.name == "fidelity":
            raise ValueError("fidelity is relative to the original as it is: pass max_drop=.")
        return dataclasses.replace(found, drop=float(options.max_relative_drop), relative=True)
    return found if options.target is None else dataclasses.replace(found, drop=math.inf)


def _chosen(model: keras.Model, source: Any, options: PruningOptions) -> Quality:
    """The quality with its own limit."""
    name = options.quality
    batch = x, y, _ = Source(*source).first()
    if name == "fidelity" or (name is None and y is None):
        reference = Fidelity.of(model, x)
        drop = _POINTS if reference.counts else _RELATIVE_ERROR
        return Quality("fidelity", reference.counts, drop, reference=reference)
    if y is None:
        raise ValueError(
            f"quality={name!r}, but the validation data hold no targets: pass (x, y), or leave "
            'that out: quality="fidelity" needs none.'
        )
    if model._compile_config.config.get("loss") is None and not model.losses:
        raise ValueError(
            f"{model.name!r} is compiled without a loss: compile it with one, or choose "
            'quality="fidelity" and distill=True.'
        )
    if name in (None, "accuracy"):
        try:
            metrics = accuracy_metrics(model, *source)
            pairs = functools.partial(accuracy_differences, model, batch, metrics)
            return Quality(metrics=metrics, differences=functools.cache(pairs))
        except NoAccuracyError:
            if name is not None:
                raise
    if name in (None, "loss"):
        lost = functools.cache(functools.partial(loss_differences, model, batch))
        return Quality("loss", higher=False, drop=_SHARE, relative=True, differences=lost)
    found = compiled_metrics(model, *source)
    if name not in found:
        raise ValueError(
            f"quality={name!r}; expected accuracy, loss, fidelity or a metric that {model.name!r} "
            f"is compiled with, {listed(list(found)) if found else 'of which it has none'}."
        )
    if np.ndim(found[name].result()):
        raise ValueError(
            f"quality={name!r} is several numbers: compile the metric so that it is their mean."
        )
    return Quality(name, _more_is_better(found[name], name, options), _SHARE, relative=True)


def _more_is_better(metric: keras.metrics.Metric, name: str, options: PruningOptions) -> bool:
    direction = getattr(metric, "_direction", None)
    if options.mode != "auto":
        if direction is not None and (direction == "up") != (options.mode == "max"):
            less = "more" if direction == "up" else "less"
            raise ValueError(f"mode={options.mode!r}, but {less} {name} is better: leave mode out.")
        return options.mode == "max"
    if direction is None:
        raise ValueError(
            f"Nothing tells whether more of {name!r} is better, which is a "
            f'{type(metric).__name__}: pass mode="max" if it is, else mode="min".'
        )
    return bool(direction == "up")
