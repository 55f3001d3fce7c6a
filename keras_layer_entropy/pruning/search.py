"""Remove, refit, retrain, check, keep or roll back: the search for a smaller network."""

import dataclasses
import math
import numbers
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_layer_entropy.analysis.analyzer import analyze_model
from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.backend import Data
from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE
from keras_layer_entropy.pruning.accuracies import accuracy_metrics
from keras_layer_entropy.pruning.cost import Cost
from keras_layer_entropy.pruning.criteria import CRITERIA, Situation, rank
from keras_layer_entropy.pruning.evaluation import Scores, accuracy, compiled_with, evaluate
from keras_layer_entropy.pruning.graph import flat_graph
from keras_layer_entropy.pruning.layer_parts import LayerPart, removable_layers
from keras_layer_entropy.pruning.optimizer_state import (
    fresh_metrics,
    learning_rate_of,
    recompile,
    set_learning_rate,
)
from keras_layer_entropy.pruning.parts import Plan, Prediction
from keras_layer_entropy.pruning.rewrite import without
from keras_layer_entropy.pruning.shuffling import Shuffled
from keras_layer_entropy.recording.labels import ClassChoice
from keras_layer_entropy.recording.layers import LayerChoice, choose_layers
from keras_layer_entropy.recording.passes import Source

MEASURES = ("activation_entropy", "state_entropy")


@dataclasses.dataclass(frozen=True)
class PruningOptions:
    """How to search.

    Attributes:
        criterion: which layer goes first, a name in `criteria.CRITERIA`.
        tolerance: entropy_gradient takes out layers over which entropy falls by less.
        max_accuracy_drop: how much validation accuracy may fall below that of the original, 0.01
            is one point.
        epochs: epochs of training after each removal; the best of them is kept. 0 for none.
        learning_rate: learning rate of that training; None for the optimizer's own.
        batch_size: batch size for arrays.
        max_removals: most layers to take out; None for no limit.
        layers: which layers may go, as for `ActivationProbe`; None for every Dense.
        keep: names or paths of layers that must stay.
        refit: refit the layers behind in closed form; otherwise they keep their kernels where
            these fit, or start with fresh ones.
        seed: seed of everything random in the search: the shuffles and the seed generators (of
            Dropout, say) of each step's training, fresh kernels, `random`. Equal searches give
            equal models, and one that goes on with `resume` the one that it would have given
            without a break.
        num_classes: as for `EntropyAnalyzer`: whose labels tell the classes of a model with several
            outputs.
        steps_per_epoch, validation_steps: batches of the training data for an epoch, and for a
            regression; batches of the validation data. None for all; for data without an end they
            have to be given.
    """

    criterion: str = "entropy_gradient"
    tolerance: float = FLAT_TOLERANCE
    max_accuracy_drop: float = 0.01
    epochs: int = 3
    learning_rate: float | None = None
    batch_size: int = 128
    max_removals: int | None = None
    layers: LayerChoice = None
    keep: str | Collection[str] = ()
    refit: bool = True
    seed: int = 0
    num_classes: ClassChoice = None
    steps_per_epoch: int | None = None
    validation_steps: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,))
        checks = {
            "criterion": (self.criterion in CRITERIA, f"one of {tuple(CRITERIA)}"),
            "tolerance": (math.isfinite(self.tolerance), "a number"),
            "max_accuracy_drop": (0 <= self.max_accuracy_drop <= 1, "a number in 0..1"),
            "epochs": (_is_count(self.epochs, 0), "a number of epochs, 0 for none"),
            "learning_rate": (
                self.learning_rate is None or 0 < self.learning_rate < math.inf,
                "a positive number, or None",
            ),
            "batch_size": (_is_count(self.batch_size), "at least 1"),
        }
        for name in ("max_removals", "steps_per_epoch", "validation_steps"):
            value = getattr(self, name)
            checks[name] = (value is None or _is_count(value), "at least 1, or None")
        for name, (good, expected) in checks.items():
            if not good:
                raise ValueError(f"{name}={getattr(self, name)!r}; expected {expected}.")


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, numbers.Integral) and int(value) >= least


@dataclasses.dataclass(frozen=True)
class PruningStep:
    """One try to take a layer out.

    Attributes:
        part: path of the Dense layer.
        members: paths of what went with it.
        criterion, score, reason: why it.
        accepted: whether the model without it was.
        accuracy_before, accuracy_removed, accuracy_retrained: validation accuracy with it, right
            after its removal and refit, and after retraining.
        residual: relative residual of the refit, the mean over the layers behind; None without.
        parameters: number of parameters of the model without it.
        entropy: path -> mean normalised activation entropy of each layer, with it.
        seconds: how long it took.
    """

    part: str
    members: tuple[str, ...]
    criterion: str
    score: float
    reason: str
    accepted: bool
    accuracy_before: float
    accuracy_removed: float
    accuracy_retrained: float
    residual: float | None
    parameters: int
    entropy: dict[str, float]
    seconds: float


@dataclasses.dataclass(frozen=True)
class PruningResult:
    """What the search found.

    Attributes:
        model: the smaller model, compiled as the original was.
        steps: every `PruningStep`, also those rolled back.
        before, after: `EntropyProfile` of the original and of the smaller model, on validation
            data, each with its untrained twin.
        reasons: path of each Dense layer that stayed -> why.
        options: `PruningOptions`.
    """

    model: keras.Model
    steps: tuple[PruningStep, ...]
    before: EntropyProfile
    after: EntropyProfile
    reasons: dict[str, str]
    options: PruningOptions

    @property
    def removed(self) -> tuple[str, ...]:
        """Paths of the Dense layers that went, in the order in which they went."""
        return tuple(step.part for step in self.steps if step.accepted)


def prune_model(
    model: keras.Model,
    train_data: Data,
    validation_data: Data,
    options: PruningOptions | None = None,
    *,
    on_step: Callable[[keras.Model, PruningStep], object] | None = None,
    resume: tuple[keras.Model, Sequence[PruningStep]] | None = None,
    callbacks: Iterable[keras.callbacks.Callback] = (),
) -> PruningResult:
    """Takes out Dense layers one by one while validation accuracy stays.

    In each step the criterion chooses a layer; it goes, the layers behind it are refitted in closed
    form on the training data, the model is trained for some epochs, and it is kept if its
    validation accuracy is at most `max_accuracy_drop` below the original's. A layer without which
    accuracy falls by more stays, and the next one is tried. Which layers can go is asked
    anew of each smaller model. Accuracy is that of `accuracies.accuracy_metrics`; of several
    outputs it is the mean.

    Args:
        model: a built and compiled Sequential or functional model; it is not changed.
        train_data, validation_data: `(x, y)` arrays, `tf.data.Dataset` or `PyDataset`. Arrays are
            shuffled anew in every epoch; a dataset should shuffle itself for training. `train_data`
            may be a function of a seed, called in each step, that returns a dataset shuffled by
            that seed, so that a search that goes on sees the orders that it would have seen.
        options: `PruningOptions`; None for the defaults.
        on_step: called with `(model, step)` after each step: the model as it stands, and the
            `PruningStep`.
        resume: `(model, steps)` as an earlier search left them, to go on from there.
        callbacks: Keras callbacks for the training.

    Returns:
        `PruningResult`.

    Raises:
        ValueError: options or layers that do not exist, a model that is subclassed, not compiled or
            has weights that are not finite, data with one class, labels that do not fit or targets
            that are no classes, data without an end and no number of steps.

    Example:

    >>> random = np.random.default_rng(0)
    >>> x = random.normal(size=(300, 4)).astype("float32")
    >>> y = (x[:, 0] > 0).astype(int)
    >>> dense = keras.layers.Dense
    >>> model = keras.Sequential([keras.Input((4,)), dense(8, "relu", name="a"),
    ...                           dense(8, name="b"), dense(2, "softmax", name="out")])
    >>> model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    >>> result = prune_model(model, (x, y), (x, y), PruningOptions(
    ...     criterion="last", max_removals=1, epochs=1, max_accuracy_drop=1.0))
    >>> result.removed, [layer.name for layer in result.model.layers]
    (('b',), ['a', 'out'])
    """
    search = _Search(model, train_data, validation_data, options or PruningOptions(), resume)
    while True:
        step = search.step(callbacks)
        if step is None:
            return search.result()
        if on_step is not None:
            on_step(search.model, step)


def plan(
    model: keras.Model,
    train_data: Data,
    validation_data: Data,
    options: PruningOptions | None = None,
) -> Plan:
    """What `prune_model` would try at first, with no change to anything.

    Args, errors: as for `prune_model`.

    Returns:
        `Plan`.
    """
    search = _Search(model, train_data, validation_data, options or PruningOptions(), None)
    found = search.ranked()
    tried = {part.path for part in found}
    reasons = {path: why for path, why in search.reasons().items() if path not in tried}
    return Plan(tuple(found), tuple(found.values()), reasons)


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


class _Search:
    """The state of a search: the model as it stands, and what was tried."""

    def __init__(
        self,
        model: keras.Model,
        train_data: Data,
        validation_data: Data,
        options: PruningOptions,
        resume: tuple[keras.Model, Sequence[PruningStep]] | None,
    ) -> None:
        self._original, self._options = model, options
        self._train_data = train_data if callable(train_data) else lambda _: train_data
        self._validation = validation_data
        self._evaluated = (validation_data, options.batch_size, options.validation_steps)
        _check_data("train_data", self._train_data(options.seed), options, "steps_per_epoch")
        _check_data("validation_data", validation_data, options, "validation_steps")
        removable_layers(model, options.layers, options.keep)  # checks the names
        _check_weights(model)
        self._metrics = accuracy_metrics(model, *self._evaluated)
        self.before = self._analyze(model, baseline=True)
        if len(self.before.classes) > 1 and int((self.before.count > 0).sum()) < 2:
            raise ValueError(
                "The validation data hold one class only: accuracy says nothing about them."
            )
        start, steps = (model, ()) if resume is None else resume
        self._first = self._working_copy(model)
        self.model = self._first if resume is None else self._working_copy(start)
        # Targets of regressions come from what was trained, never from what was only refitted.
        self._teacher = self.model if options.epochs else self._first
        self._steps = list(steps)
        self._found: dict[str, Any] = {}  # of the model as it stands
        self._profile = self.before if resume is None else self._analyze(self.model)
        self._base = self._scored(self._first)
        self._now = self._base if resume is None else self._scored(self.model)

    def ranked(self) -> dict[LayerPart, Prediction]:
        """`Part` -> `Prediction` of what may go next, the first to go first."""
        if self._is_enough():
            return {}
        rejected = self._rejected()
        parts = [part for path, part in self._parts()[0].items() if path not in rejected]
        return rank(self._options.criterion, self._situation(), parts)

    def step(self, callbacks: Iterable[keras.callbacks.Callback]) -> PruningStep | None:
        """Tries the next layer; its `PruningStep`, or None when there is none left."""
        started = time.perf_counter()
        keras.utils.set_random_seed(self._seed)
        ranked = self.ranked()
        if not ranked:
            return None
        part, prediction = next(iter(ranked.items()))
        smaller, residuals = prediction.cut or self._situation().without(part)
        with compiled_with(smaller, self._metrics):
            removed = evaluate(smaller, *self._evaluated).accuracy
            retrained = self._retrain(smaller, removed, callbacks)
        accepted = bool(retrained >= self._base - self._options.max_accuracy_drop)
        step = PruningStep(
            part=part.path,
            members=part.members[1:],
            criterion=self._options.criterion,
            score=prediction.loss,
            reason=prediction.words,
            accepted=accepted,
            accuracy_before=self._now,
            accuracy_removed=removed,
            accuracy_retrained=retrained,
            residual=float(np.mean(list(residuals.values()))) if residuals else None,
            parameters=smaller.count_params(),
            entropy=dict(zip(self._profile.layers, map(float, self._profile.mean), strict=True)),
            seconds=time.perf_counter() - started,
        )
        self._steps.append(step)
        if accepted:
            self.model, self._now = smaller, retrained
            if self._options.epochs:
                self._teacher = smaller
            self._profile = self._analyze(smaller)
        return step

    def reasons(self) -> dict[str, str]:
        """Path of each Dense layer that stays -> why."""
        parts, reasons = self._parts()
        reasons, other = dict(reasons), "the criterion does not choose it"
        if self._is_enough():
            other = f"max_removals={self._options.max_removals} is reached"
        for path in parts:
            reasons[path] = self._rejected().get(path, other)
        return reasons

    def result(self) -> PruningResult:
        """What was found, compiled as the original was."""
        if self._options.learning_rate is not None:
            set_learning_rate(self.model, learning_rate_of(self._original))
        settings = fresh_metrics(self._original)
        recompile(self.model, **{**settings, "optimizer": self.model.optimizer})
        after = self._analyze(self.model, baseline=True)
        return PruningResult(
            self.model, tuple(self._steps), self.before, after, self.reasons(), self._options
        )

    def _parts(self) -> tuple[dict[str, LayerPart], dict[str, str]]:
        """As `removable_layers` of the model as it stands, of the layers that may go."""
        if self._found.get("model") is not self.model:
            self._found = {"model": self.model, "parts": self._find_parts()}
        return self._found["parts"]

    def _find_parts(self) -> tuple[dict[str, LayerPart], dict[str, str]]:
        options, keep = self._options, list(self._options.keep)
        chosen = choose_layers(self._original, options.layers)
        kept = choose_layers(self._original, keep) if keep else {}
        found, reasons = removable_layers(self.model, refit=options.refit)
        for path in found:
            if path in kept:
                reasons[path] = "it is to be kept"
            elif path not in chosen:
                reasons[path] = "it is not among the layers that may go"
        sample = tree.map_structure(lambda part: part[:1], Source(*self._evaluated).first()[0])
        parts = {}
        for path, part in found.items():
            if path not in reasons:
                try:
                    parts[path] = dataclasses.replace(part, saves=_saved(self.model, part, sample))
                except Exception as error:  # noqa: BLE001 - layers and backends may raise anything
                    reasons[path] = f"{error}".partition("\n")[0]
        return parts, reasons

    def _situation(self) -> Situation:
        options = self._options
        return Situation(
            student=self.model,
            teacher=self._teacher,
            profile=self._profile,
            train_data=self._train_data(self._seed),
            validation_data=self._validation,
            batch_size=options.batch_size,
            tolerance=options.tolerance,
            seed=self._seed,
            refit=options.refit,
            train_steps=options.steps_per_epoch,
            validation_steps=options.validation_steps,
        )

    def _is_enough(self) -> bool:
        """Whether as many parts went as may go."""
        most = self._options.max_removals
        return most is not None and sum(step.accepted for step in self._steps) >= most

    def _rejected(self) -> dict[str, str]:
        limit = self._base - self._options.max_accuracy_drop
        return {
            step.part: f"without it accuracy is {step.accuracy_retrained:.4f}, below {limit:.4f} "
            f"(step {number})"
            for number, step in enumerate(self._steps, start=1)
            if not step.accepted
        }

    @property
    def _seed(self) -> int:
        """The seed of the step that comes next."""
        return self._options.seed + len(self._steps)

    def _analyze(self, model: keras.Model, baseline: bool = False) -> EntropyProfile:
        return analyze_model(
            model,
            self._validation,
            measures=MEASURES,
            num_classes=self._options.num_classes,
            batch_size=self._options.batch_size,
            steps=self._options.validation_steps,
            baseline=baseline,
            seed=self._options.seed,
            verbose=0,
        )

    def _working_copy(self, model: keras.Model) -> keras.Model:
        copy, _ = without(model, None)
        if self._options.learning_rate is not None:
            set_learning_rate(copy, self._options.learning_rate)
        return copy

    def _scored(self, model: keras.Model) -> float:
        """Validation accuracy of a model that is to be gone on from."""
        with compiled_with(model, self._metrics):
            scores = evaluate(model, *self._evaluated)
        if math.isnan(scores.loss):
            raise ValueError(
                f"The loss of {model.name!r} is NaN on the validation data: look for labels that "
                "are no class of its, for inputs that are not finite, and at its weights."
            )
        return scores.accuracy

    def _retrain(
        self, model: keras.Model, removed: float, callbacks: Iterable[keras.callbacks.Callback]
    ) -> float:
        """Trains a model and leaves it at its best epoch; validation accuracy."""
        options = self._options
        if not options.epochs:
            return removed
        reseed(model, self._seed)
        best = _KeepBest(model, removed)
        validation = Source(*self._evaluated).keywords
        if "batch_size" in validation:  # arrays
            validation = {"x": tuple(validation[k] for k in ("x", "y", "sample_weight"))}
        model.fit(
            **_training(self._train_data(self._seed), options, self._seed),
            epochs=options.epochs,
            steps_per_epoch=options.steps_per_epoch,
            validation_data=validation["x"],
            validation_steps=options.validation_steps,
            verbose=0,
            callbacks=[best, *callbacks],
        )
        best.on_train_end()  # a callback may have put back weights of its own choice
        return evaluate(model, *self._evaluated).accuracy


class _KeepBest(keras.callbacks.Callback):
    """Leaves model and optimizer as they were after the epoch with the best validation accuracy."""

    def __init__(self, model: keras.Model, accuracy_at_start: float) -> None:
        super().__init__()
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        self._trained = model
        self._best, self._state = accuracy_at_start, self._copied()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        validation = {k[4:]: v for k, v in logs.items() if k.startswith("val_")}
        if accuracy(validation) > self._best:
            self._best, self._state = accuracy(validation), self._copied()

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        for variable, value in zip(self._variables(), self._state, strict=True):
            variable.assign(value)

    def _variables(self) -> list[keras.Variable]:
        return [*self._trained.variables, *self._trained.optimizer.variables]

    def _copied(self) -> list[np.ndarray]:
        return [np.array(ops.convert_to_numpy(variable)) for variable in self._variables()]


def reseed(model: keras.Model, seed: int) -> None:
    """Gives every seed generator in a model, of its Dropout layers say, a state of this seed."""
    generators = [g for layer in model._flatten_layers() for g in layer._seed_generators]
    for index, generator in enumerate(dict.fromkeys(generators)):
        (own,) = np.random.SeedSequence([seed, index]).generate_state(1)
        generator.state.assign(np.array([own >> 1, 0], generator.state.dtype))


def _check_data(name: str, data: Data, options: PruningOptions, steps: str) -> None:
    """Raises for data that cannot be read again and again, each time to an end."""
    if not Source(data, options.batch_size, steps=1).repeatable:
        raise ValueError(
            f"{name} is a {type(data).__name__}, which can be read only once: pass arrays, "
            "a tf.data.Dataset or a PyDataset."
        )
    try:
        Source(data, options.batch_size, getattr(options, steps), must_end=True)
    except ValueError as error:
        if getattr(options, steps) is not None or "steps" not in str(error):
            raise
        raise ValueError(f"{name} has no end that is known: give {steps}=. ({error})") from error


def _training(data: Data, options: PruningOptions, seed: int) -> dict[str, Any]:
    """Arguments of `fit` for training data: arrays are shuffled anew in every epoch."""
    train = Source(data, options.batch_size, options.steps_per_epoch).keywords
    if "batch_size" not in train:
        ordered = not isinstance(data, keras.utils.PyDataset) or data.num_batches is None
        return {**train, "shuffle": not ordered}  # a data set shuffles itself
    parts = tuple(train[k] for k in ("x", "y", "sample_weight") if train[k] is not None)
    if not all(hasattr(part, "__array__") for part in tree.flatten(parts)):
        return train  # sparse or ragged: Keras shuffles them
    arrays = tree.map_structure(np.asarray, parts)
    return {"x": Shuffled(arrays, train["batch_size"], seed)}


def _saved(model: keras.Model, part: LayerPart, sample: Any) -> Cost:
    """What a model saves without a part; errors of Keras where it cannot make or run that."""
    if part.input_shape == part.output_shape:
        gone = [call.operation for call in flat_graph(model).calls if call.path in part.members]
        weights = {id(v): v for operation in gone for v in getattr(operation, "weights", ())}
        saved = sum(math.prod(variable.shape) for variable in weights.values())
    else:
        smaller, _ = without(model, part)
        smaller(sample)  # layers that are built no longer look at shapes
        saved = model.count_params() - smaller.count_params()
    return Cost(dense_layers=1, parameters=saved, flops=None, latency={})


def _check_weights(model: keras.Model) -> None:
    for layer in model._flatten_layers(include_self=False):
        for variable in (*layer._trainable_variables, *layer._non_trainable_variables):
            value = ops.convert_to_numpy(variable)
            if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
                raise ValueError(
                    f"The weights of {layer.name!r} hold NaN or infinite values "
                    f"({variable.name}): this model cannot be pruned. Train it again."
                )
