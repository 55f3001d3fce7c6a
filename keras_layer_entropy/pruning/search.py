"""Remove, refit, retrain, check, keep or roll back: the search for a smaller network."""

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_layer_entropy.analysis.analyzer import analyze_model
from keras_layer_entropy.analysis.measurement import OtherPositionsError
from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.backend import Data, many_models
from keras_layer_entropy.pruning.accuracies import accuracy_metrics
from keras_layer_entropy.pruning.channels import find_channels
from keras_layer_entropy.pruning.choices import check_choices
from keras_layer_entropy.pruning.cost import (
    Cost,
    batch_sizes,
    compare_costs,
    cost_of,
    counted,
    is_met,
)
from keras_layer_entropy.pruning.evaluation import Scores, compiled_with, evaluate, logs_of
from keras_layer_entropy.pruning.fidelity import Fidelity
from keras_layer_entropy.pruning.moves import cheapest_move, next_moves, whole_plan
from keras_layer_entropy.pruning.optimizer_state import (
    fresh_metrics,
    learning_rate_of,
    recompile,
    set_learning_rate,
)
from keras_layer_entropy.pruning.options import PruningOptions
from keras_layer_entropy.pruning.parts import Plan
from keras_layer_entropy.pruning.qualities import Quality, choose_quality
from keras_layer_entropy.pruning.rewrite import without
from keras_layer_entropy.pruning.simplify import simplify_model
from keras_layer_entropy.pruning.standing import Moves, PruningStep, Standing, units_gone
from keras_layer_entropy.pruning.timing import timed
from keras_layer_entropy.pruning.training import KeepBest, arguments, check_data, reseed
from keras_layer_entropy.recording.graph import flat_graph
from keras_layer_entropy.recording.labels import ClassChoice
from keras_layer_entropy.recording.layers import choose
from keras_layer_entropy.recording.passes import Source
from keras_layer_entropy.report.notebook import result_html

_ROUNDS = 15  # of measuring a latency
MEASURES = ("activation_entropy", "state_entropy")


@dataclasses.dataclass(frozen=True)
class PruningResult:
    """What the search found.

    Attributes:
        model: the smaller model, compiled as the original was.
        steps: every `PruningStep`, also those rolled back.
        before, after: `EntropyProfile` of the original and of the smaller model, on validation
            data, each with its untrained twin; of networks that lose units and have no Dense
            layers, of the layers that make units.
        reasons: path of each layer that stayed as it was -> why.
        options: `PruningOptions`.
        quality: `Quality`, what was held on to.
        target_met: whether no more is left than `target` says; None without a target.
    """

    model: keras.Model
    steps: tuple[PruningStep, ...]
    before: EntropyProfile
    after: EntropyProfile
    reasons: dict[str, str]
    options: PruningOptions
    quality: Quality
    target_met: bool | None = None

    @property
    def removed(self) -> tuple[str, ...]:
        """The Dense layers and blocks that went, in the order in which they went."""
        return tuple(step.part for step in self.steps if step.accepted and step.kind != "unit")

    @property
    def units(self) -> dict[str, tuple[int, ...]]:
        """Path of a layer -> indices of its units that went, as the original counts them."""
        return units_gone(self.steps)

    def _repr_html_(self) -> str:
        return result_html(self)


def prune_model(
    model: keras.Model,
    train_data: Data,
    validation_data: Data,
    options: PruningOptions | None = None,
    *,
    on_step: Callable[[keras.Model, PruningStep], object] | None = None,
    resume: tuple[keras.Model, Sequence[PruningStep]] | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
    **settings: Any,
) -> PruningResult:
    """Takes out blocks, Dense layers and units of any layers, while the quality of the model stays.

    In each step a block, a layer or a batch of units goes, that which changes the outputs least for
    what it saves (`moves.cheapest_move`), or that a criterion chooses; the layers behind are
    refitted in closed form on the training data, the model is trained for some epochs, and it is
    kept if its quality on the validation data has fallen by no more than `max_drop`, also where it
    is one standard error lower. A part without which it falls by more stays, and the next one is
    tried; after a batch of units, one half as large, and after three of these no more units are.
    What can go is asked anew of each smaller model. The quality is accuracy, that of
    `accuracies.accuracy_metrics` (of several outputs the mean), or what `PruningOptions.quality`
    says.

    Args:
        model: a built and compiled Sequential or functional model; it is not changed.
        train_data, validation_data: `(x, y)` arrays, `tf.data.Dataset` or `PyDataset`, or the same
            of inputs alone: then the model is held to, and trained for, what the original
            gives (`PruningOptions.quality`, `.distill`). Arrays are
            shuffled anew in every epoch; a dataset should shuffle itself for training. `train_data`
            may be a function of a seed, called in each step, that returns a dataset shuffled by
            that seed, so that a search that goes on sees the orders that it would have seen.
        options: `PruningOptions`; None for the defaults.
        on_step: called with `(model, step)` after each step: the model as it stands, and the
            `PruningStep`.
        resume: `(model, steps)` as an earlier search left them, to go on from there.
        callbacks: Keras callbacks for the training.
        **settings: fields of `PruningOptions` by name, in place of those of `options`.

    Returns:
        `PruningResult`.

    Raises:
        ValueError: options or layers that do not exist, a model that is subclassed, not compiled or
            has weights that are not finite, data with one class, labels that do not fit, a quality
            that there is not, data without an end and no number of steps.

    Example:

    >>> random = np.random.default_rng(0)
    >>> x = random.normal(size=(300, 4)).astype("float32")
    >>> y = (x[:, 0] > 0).astype(int)
    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((4,)), dense(8, "relu", name="a"),
    ...                           dense(8, name="b"), dense(2, "softmax", name="out")])
    >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> result = prune_model(model, (x, y), (x, y), PruningOptions(
    ...     criterion="last", max_removals=1, epochs=1, max_drop=1.0))
    >>> result.removed, [layer.name for layer in result.model.layers]
    (('b',), ['a', 'out'])
    """
    return run_search(
        model, train_data, validation_data, _options(options, settings), on_step=on_step,
        resume=resume, callbacks=callbacks,
    )  # fmt: skip


def run_search(
    model: keras.Model,
    train_data: Data,
    validation_data: Data,
    options: PruningOptions,
    quality: Quality | None = None,
    *,
    on_step: Callable[[keras.Model, PruningStep], object] | None = None,
    resume: tuple[keras.Model, Sequence[PruningStep]] | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
) -> PruningResult:
    """`prune_model`, where the quality may be known.

    Args, errors: as for `prune_model`; and quality, what `choose_quality` gave for these, if it is
    known.
    """
    with many_models():
        state = _Search(model, train_data, validation_data, options, quality, resume)
        while (step := state.step(callbacks)) is not None:
            if on_step is not None:
                on_step(state.model, step)
        return state.result()


def plan(
    model: keras.Model,
    train_data: Data,
    validation_data: Data,
    options: PruningOptions | None = None,
    **settings: Any,
) -> Plan:
    """What `prune_model` could take out at first, with no change to anything.

    Of units, what the target takes; without a target, the first batch. Of several kinds, every part
    that may go by itself, and those first that cost least for what they save.

    Args, errors: as for `prune_model`.

    Returns:
        `Plan`, with the time that each part takes (`timing.timed`).
    """
    return look_ahead(model, train_data, validation_data, _options(options, settings))[0]


def look_ahead(
    model: keras.Model,
    train_data: Data,
    validation_data: Data,
    options: PruningOptions | None = None,
    quality: Quality | None = None,
    baseline: bool = False,
) -> tuple[Plan, EntropyProfile]:
    """`plan`, and the `EntropyProfile` of the model on the validation data.

    Args, errors: as for `plan`; and quality, what `choose_quality` gave for these, if it is known;
    baseline, whether the profile has its untrained twin, of which no plan needs anything.
    """
    options = options or PruningOptions()
    if options.target and counted(options.target) == options.target:
        options = dataclasses.replace(options, step_share=1.0)
    with many_models():
        start = _Start(model, train_data, validation_data, options, quality, baseline)
        return start.plan(), start.before


def _options(options: PruningOptions | None, settings: Mapping[str, Any]) -> PruningOptions:
    if options is None:
        return PruningOptions(**settings)
    return dataclasses.replace(options, **settings)


def score(
    model: keras.Model, data: Data, batch_size: int = 256, metrics: Mapping[str, Any] | None = None
) -> Scores:
    """The `Scores` of any compiled model.

    Args:
        model, data, batch_size: as for `accuracy_metrics`, likewise errors.
        metrics: what `accuracy_metrics` found before, so that models or data can be compared; None
            to look at these data.
    """
    copy, _ = without(model, None)
    if metrics is None:
        metrics = accuracy_metrics(model, data, batch_size)
    with compiled_with(copy, metrics):
        return evaluate(copy, data, batch_size)


class _Start:
    """What a search begins with: a model and data that fit together, before anything goes.

    Args:
        model, train_data, validation_data, options, quality, baseline: as for `look_ahead`.
    """

    def __init__(
        self,
        model: keras.Model,
        train_data: Data,
        validation_data: Data,
        options: PruningOptions,
        quality: Quality | None = None,
        baseline: bool = True,
    ) -> None:
        self._original, self._options = model, options
        self._train_data = train_data if callable(train_data) else lambda _: train_data
        self._validation = validation_data
        self._evaluated = (validation_data, options.batch_size, options.validation_steps)
        check_data("train_data", self._train_data(options.seed), options, "steps_per_epoch")
        check_data("validation_data", validation_data, options, "validation_steps")
        flat_graph(model)  # errors where the model is code
        check_choices(model, options)
        _check_weights(model)
        self._quality = quality or choose_quality(model, validation_data, options)
        first, targets, _ = Source(*self._evaluated).first()
        self._labelled = targets is not None
        self._sample = tree.map_structure(lambda part: part[:1], first)
        self._distilled = self._distillation()
        self._analyzed = _analyzed(model, options)
        self._num_classes = self._classes()
        self.before = self._analyzed_first(baseline)
        one_class = len(self.before.classes) > 1 and int((self.before.count > 0).sum()) < 2
        if one_class and self._quality.name == "accuracy":
            raise ValueError(
                "The validation data hold one class only: accuracy says nothing about them."
            )
        self.model = self._teacher = model
        self._steps: list[PruningStep] = []
        self._profile = self.before
        self._costs = (self._cost(model),) * 2
        self._limit = math.nan  # nothing is measured yet

    def plan(self) -> Plan:
        """All that could go, with what it costs and saves."""
        if self._quality.name != "accuracy":  # which has looked at all labels already
            self._scored(self._working_copy(self.model))
        keras.utils.set_random_seed(self._seed)
        return timed(whole_plan(self._standing()), self.model, self._sample)

    def _standing(self) -> Standing:
        return Standing(
            original=self._original,
            model=self.model,
            teacher=self._teacher,
            profile=self._profile,
            costs=self._costs,
            steps=tuple(self._steps),
            options=self._options,
            train_data=lambda: self._train_data(self._seed),
            validation_data=self._validation,
            sample=self._sample,
            seed=self._seed,
            quality=self._quality,
            limit=self._limit,
        )

    def _cost(self, model: keras.Model) -> Cost:
        return cost_of(model, self._sample)

    @property
    def _seed(self) -> int:
        """The seed of the step that comes next."""
        return self._options.seed + len(self._steps)

    def _analyze(self, model: keras.Model, baseline: bool = False) -> EntropyProfile:
        left, _ = choose(model, keras.Layer)
        return analyze_model(
            model,
            self._validation,
            layers=self._analyzed and [path for path in self._analyzed if path in left],
            measures=MEASURES,
            num_classes=self._num_classes,
            batch_size=self._options.batch_size,
            steps=self._options.validation_steps,
            baseline=baseline,
            seed=self._options.seed,
            verbose=0,
        )

    def _analyzed_first(self, baseline: bool) -> EntropyProfile:
        """Of the original; where labels are of some layers' positions alone, of all as one class.

        Criteria by entropy then go by these, too; to all others entropies are only shown.
        """
        try:
            return self._analyze(self._original, baseline)
        except OtherPositionsError as error:
            if self._options.num_classes is not None:
                raise
            warnings.warn(
                "Entropies are those of all samples together, and not of each class: "
                f"{str(error).partition(': choose')[0]}.",
                stacklevel=5,
            )
            self._num_classes = 1
            return self._analyze(self._original, baseline)

    def _working_copy(self, model: keras.Model) -> keras.Model:
        copy, _ = without(model, None)
        if self._options.learning_rate is not None:
            set_learning_rate(copy, self._options.learning_rate)
        return copy

    def _scored(self, model: keras.Model) -> float:
        """The quality of a model that is to be gone on from."""
        quality = self._quality
        with quality.compiled(model):
            if quality.reference is not None:
                found = {quality.words: quality.measure(model, *self._evaluated)}
            else:
                logs = logs_of(model, *self._evaluated)
                found = {"loss": float(logs["loss"]), quality.words: quality.read(logs, model)}
        for name, value in found.items():
            if math.isnan(value):
                raise ValueError(
                    f"The {name} of {model.name!r} is NaN on the validation data: look for labels "
                    "that are no class of its, for inputs that are not finite, and at its weights."
                )
        return found[quality.words]

    def _distillation(self) -> Callable[[keras.Model], keras.Model] | None:
        """What makes of a model one that trains it for what the original gives; None for labels."""
        options = self._options
        data = self._train_data(options.seed)
        x, y, _ = Source(data, options.batch_size, options.steps_per_epoch).first()
        for criterion, name, labelled in (
            ("loss_gap", "validation", self._labelled),
            ("mutual_information", "training", y is not None),
        ):
            if options.criterion == criterion and not labelled:
                raise ValueError(f"criterion={criterion!r} needs labels of the {name} data.")
        if not options.epochs or (y is not None and not options.distill):
            return None
        return (self._quality.reference or Fidelity.of(self._original, x)).distilled

    def _classes(self) -> ClassChoice:
        """Whose labels tell the classes apart: all samples are one where a model has none."""
        if self._options.num_classes is not None or self._quality.name == "accuracy":
            return self._options.num_classes
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it would decide by
                accuracy_metrics(self._original, *self._evaluated)
        except ValueError:
            return 1
        return None


class _Search(_Start):
    """The state of a search: the model as it stands, and what was tried."""

    def __init__(
        self,
        model: keras.Model,
        train_data: Data,
        validation_data: Data,
        options: PruningOptions,
        quality: Quality | None,
        resume: tuple[keras.Model, Sequence[PruningStep]] | None,
    ) -> None:
        super().__init__(model, train_data, validation_data, options, quality)
        start, steps = (model, ()) if resume is None else resume
        self._first = self._working_copy(model)
        self.model = self._first if resume is None else self._working_copy(start)
        # Targets of regressions come from what was trained, never from what was only refitted.
        self._teacher = self.model if options.epochs else self._first
        self._steps = list(steps)
        if resume is not None:
            self._profile = self._analyze(self.model)
        base = self._scored(self._first)
        self._now = base if resume is None else self._scored(self.model)
        self._limit = self._quality.limit(base)  # the worst that is accepted
        self._costs = self._cost(self._first), self._cost(self.model)
        for step in self._steps:
            if step.accepted:
                self._costs = _with_latency(self._costs, step)
        self._moves: Moves | None = None

    def moves(self) -> Moves:
        """What can be done next."""
        if self._moves is None:
            keras.utils.set_random_seed(self._seed)
            self._moves = next_moves(self._standing())
        return self._moves

    def step(self, callbacks: Iterable[keras.callbacks.Callback]) -> PruningStep | None:
        """Tries what comes next; its `PruningStep`, or None when there is none left."""
        started = time.perf_counter()
        if not self.moves().candidates:
            return None
        move, (smaller, residuals) = cheapest_move(self._standing(), self.moves().candidates)
        with self._quality.compiled(smaller):
            removed = self._quality.measure(smaller, *self._evaluated)
            retrained = self._retrain(smaller, removed, callbacks)
        error = self._quality.standard_error(smaller, self._first, *self._evaluated)
        accepted = self._quality.accepts(retrained, self._limit, error or 0.0)
        cost = self._cost(smaller)
        step = PruningStep(
            kind=move.kind,
            part=move.part,
            members=move.members,
            criterion=move.criterion,
            score=move.score,
            reason=move.reason,
            accepted=accepted,
            quality_before=self._now,
            quality_removed=removed,
            quality_retrained=retrained,
            residual=float(np.mean(list(residuals.values()))) if residuals else None,
            parameters=cost.parameters,
            entropy=dict(zip(self._profile.layers, map(float, self._profile.mean), strict=True)),
            seconds=time.perf_counter() - started,
            units=move.units,
            flops=cost.flops,
            standard_error=error,
            latency=self._latency(smaller) if accepted else {},
        )
        self._steps.append(step)
        self._moves = None
        if accepted:
            self.model, self._now = smaller, retrained
            self._costs = _with_latency((self._costs[0], cost), step)
            if self._options.epochs:
                self._teacher = smaller
            self._profile = self._analyze(smaller)
        return step

    def result(self) -> PruningResult:
        """What was found, compiled as the original was."""
        model = simplify_model(self.model) if self._options.simplify else self.model
        if self._options.learning_rate is not None:
            set_learning_rate(model, learning_rate_of(self._original))
        recompile(model, **{**fresh_metrics(self._original), "optimizer": model.optimizer})
        after = self._analyze(model, baseline=True)
        target = self._options.target
        return PruningResult(
            model=model,
            steps=tuple(self._steps),
            before=self.before,
            after=after,
            reasons=self.moves().plan.reasons,
            options=self._options,
            quality=self._quality,
            target_met=None if target is None else is_met(target, *self._costs),
        )

    def _latency(self, model: keras.Model) -> dict[int, tuple[float, float]]:
        """Batch size -> milliseconds of the original and of a model, where the target says any."""
        sizes = batch_sizes(self._options.target or {})
        if not sizes:
            return {}
        first, now = compare_costs([self._first, model], self._sample, sizes, _ROUNDS)
        return {size: (first.latency[size], now.latency[size]) for size in sizes}

    def _retrain(
        self, model: keras.Model, removed: float, callbacks: Iterable[keras.callbacks.Callback]
    ) -> float:
        """Trains a model and leaves it at its best epoch; its quality."""
        options = self._options
        if not options.epochs:
            return removed
        reseed(model, self._seed)
        quality, distilled = self._quality, self._distilled
        told = distilled is None and quality.reference is None

        def measured(logs: dict[str, Any]) -> float:
            if told:
                return quality.read(logs, model)
            return quality.measure(model, *self._evaluated)

        best = KeepBest(model, quality, removed, measured)
        validation = Source(*self._evaluated).keywords
        if "batch_size" in validation:  # arrays
            validation = {"x": tuple(validation[k] for k in ("x", "y", "sample_weight"))}
        (model if distilled is None else distilled(model)).fit(
            **arguments(self._train_data(self._seed), options, self._seed),
            epochs=options.epochs,
            steps_per_epoch=options.steps_per_epoch,
            # What is trained for labels cannot be validated without.
            validation_data=None if distilled is None and not self._labelled else validation["x"],
            validation_steps=options.validation_steps,
            verbose=0,
            callbacks=[best, *callbacks],
        )
        best.on_train_end()  # a callback may have put back weights of its own choice
        return quality.measure(model, *self._evaluated)


def _with_latency(costs: tuple[Cost, Cost], step: PruningStep) -> tuple[Cost, Cost]:
    """The costs of two models, with the latencies that a step measured of them."""
    before, after = ({size: pair[place] for size, pair in step.latency.items()} for place in (0, 1))
    return (
        dataclasses.replace(costs[0], latency=before),
        dataclasses.replace(costs[1], latency=after),
    )


def _analyzed(model: keras.Model, options: PruningOptions) -> list[str] | None:
    """Paths of the layers whose entropies are shown; None for all Dense layers.

    Units can go from a network without any: then of those that make them.
    """
    inside = model._flatten_layers(include_self=False)
    if options.kinds == ("layers",) or any(isinstance(x, keras.layers.Dense) for x in inside):
        return None
    makers = list(find_channels(model).makers)
    if not makers:
        raise ValueError(
            f"{model.name!r} has no layers that make units; expected Dense layers or convolutions."
        )
    return makers


def _check_weights(model: keras.Model) -> None:
    for layer in model._flatten_layers(include_self=False):
        for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
            value = ops.convert_to_numpy(variable)
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                raise ValueError(
                    f"The weights of {layer.name!r} hold NaN or infinite values "
                    f"({variable.name}): this model cannot be pruned. Train it again."
                )
