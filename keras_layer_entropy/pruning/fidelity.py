"""How close a smaller model stays to the original, and training to that: without labels."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops, tree

from keras_layer_entropy.backend import Data, Tensor, strategy_scope
from keras_layer_entropy.pruning.paired import Comparison, Spread, standard_error
from keras_layer_entropy.pruning.rewrite import without
from keras_layer_entropy.recording.passes import Source

PROBABILITIES, LOGITS, NUMBERS = "probabilities", "logits", "numbers"
_SUM_TOLERANCE = 1e-2  # of half precision, whose rows add up to 1 to about three digits


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How far the outputs of a model agree with those of the original.

    Of a classifier (all of its outputs are probabilities, or logits, of more than one class) the
    share of samples, or positions, whose largest output is the same; else the relative error,

        sqrt(mean (s - t)^2 / mean (t - mean t)^2),

    with t the original's outputs, s the model's and the mean of t for each unit of the output. Of
    several outputs the mean, with the share that disagrees where some are of one kind and some of
    the other.

    Attributes:
        original: a copy of the original.
        kinds: what each of its outputs holds, in the order in which `tree.flatten` gives them.
        widths: how many units each has.
    """

    original: keras.Model
    kinds: tuple[str, ...]
    widths: tuple[int, ...]

    @classmethod
    def of(cls, model: keras.Model, x: Any) -> "Fidelity":
        """Of a built Sequential or functional model, which is not changed.

        Args:
            model: what it is compared with.
            x: inputs of a batch.
        """
        copy, _ = without(model, None)
        outputs = tree.flatten(copy(x, training=False))
        losses = _losses(copy, len(outputs))
        widths = tuple(x.shape[-1] if len(x.shape) > 1 else 1 for x in outputs)
        return cls(copy, tuple(map(_kind, outputs, losses)), widths)

    @property
    def counts(self) -> bool:
        """Whether it is the share that agrees, of which more is better; else a relative error."""
        return NUMBERS not in self.kinds

    @property
    def words(self) -> str:
        """What it is called."""
        return "agreement with the original" if self.counts else "relative error to the original"

    def measure(
        self, model: keras.Model, data: Data, batch_size: int = 256, steps: int | None = None
    ) -> float:
        """Of a model on data.

        Args:
            model: any with outputs as the original has them.
            data: as for `analyze_model`; labels are not looked at.
            batch_size: batch size for arrays.
            steps: number of batches, None for all.

        Example:

        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> model.layers[0].set_weights([np.eye(2), np.zeros(2)])
        >>> x = np.array([[0.0, 1.0], [2.0, 5.0]])
        >>> reference = Fidelity.of(model, x)
        >>> model.layers[0].set_weights([np.eye(2), np.array([0.0, 1.0])])
        >>> round(reference.measure(model, x), 4)  # mean of 1 and 0, over one of 1 and 4
        0.4472
        """
        with strategy_scope(model):
            statistics = [
                _Error(width) if kind == NUMBERS else _Disagreement()
                for kind, width in zip(self.kinds, self.widths, strict=True)
            ]

            def look(outputs: Any, targets: Any, y: Any) -> None:
                pairs = zip(tree.flatten(targets), tree.flatten(outputs), strict=True)
                for statistic, pair in zip(statistics, pairs, strict=True):
                    statistic.update_state(*pair)

            comparison = Comparison(model, self.original, statistics, look)
        comparison.run(Source(data, batch_size, steps))
        error = float(np.mean([float(statistic.result()) for statistic in statistics]))
        return 1 - error if self.counts else error

    def standard_error(
        self, model: keras.Model, data: Data, batch_size: int = 256, steps: int | None = None
    ) -> float | None:
        """That of the share that agrees; None for a relative error, which is no mean."""

        def differences(outputs: Any, targets: Any, y: Any) -> Tensor:
            pairs = zip(tree.flatten(targets), tree.flatten(outputs), strict=True)
            found = [_differ(*pair) for pair in pairs]
            means = [ops.mean(x, axis=tuple(range(1, x.ndim))) if x.ndim > 1 else x for x in found]
            return sum(means) / len(means)

        if not self.counts:
            return None
        return standard_error(model, self.original, differences, data, batch_size, steps)

    def distilled(self, model: keras.Model) -> keras.Model:
        """A model that trains another one to give what the original gives, with its optimizer.

        The loss is the Kullback-Leibler divergence of probabilities (of logits, after softmax)
        from the original's, and of other outputs the mean squared error; of several outputs their
        sum. Penalties on weights and weights of samples count as in any training.

        Args:
            model: compiled, with outputs as the original has them.
        """
        return _Distilled(model, self.original, self.kinds)


class _Disagreement(keras.metrics.Mean):
    """The share of samples, or positions, whose largest output is another one."""

    def update_state(self, target, output):
        super().update_state(_differ(target, output))


class _Error(Spread):
    """The root mean squared difference over that of the targets from their mean."""

    def __init__(self, units, name="error"):
        super().__init__(units, name=name)
        self._difference = self.add_weight((), "zeros", name="difference")

    def update_state(self, target, output):
        rows = (-1, self.mean.shape[0])
        target, output = (ops.reshape(ops.cast(x, "float32"), rows) for x in (target, output))
        super().update_state(target)
        self._difference.assign_add(ops.sum(ops.square(output - target)))

    def result(self):
        return ops.sqrt(self._difference / self.total)


class _Distilled(keras.Model):
    """Trains a model on what the original gives."""

    def __init__(self, model, original, kinds):
        super().__init__(name="distillation")
        self._student = model
        self._targets = lambda x: original(x, training=False)  # which Keras does not track
        self.built = True
        losses = [_mean_squared if kind == NUMBERS else _divergence(kind) for kind in kinds]
        with strategy_scope(model):
            self.compile(
                model.optimizer,
                loss=losses[0] if len(losses) == 1 else losses,
                run_eagerly=model.run_eagerly,
                steps_per_execution=model.steps_per_execution,
                jit_compile=model.jit_compile,
                auto_scale_loss=False,  # the optimizer has been made ready for that
            )

    def call(self, x, training=None):
        return self._student(x, training=training)

    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        targets = tree.map_structure(ops.stop_gradient, tree.flatten(self._targets(x)))
        return super().compute_loss(x, targets, tree.flatten(y_pred), sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        return self.get_metrics_result()


def _differ(target: Tensor, output: Tensor) -> Tensor:
    return ops.cast(ops.argmax(target, axis=-1) != ops.argmax(output, axis=-1), "float32")


def _mean_squared(target: Tensor, output: Tensor) -> Tensor:
    return ops.mean(ops.square(output - target), axis=-1)


def _divergence(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The Kullback-Leibler divergence of outputs of a kind from targets, nats."""

    def divergence(target: Tensor, output: Tensor) -> Tensor:
        target, output = _logarithms(target, kind), _logarithms(output, kind)
        return ops.sum(ops.exp(target) * (target - output), axis=-1)

    return divergence


def _logarithms(outputs: Tensor, kind: str) -> Tensor:
    if kind == LOGITS:
        return ops.log_softmax(outputs, axis=-1)
    return ops.log(ops.clip(outputs, keras.config.epsilon(), 1.0))


def _kind(output: Tensor, loss: Any) -> str:
    """What an output holds: its rows add up to 1, or its loss says that it takes logits."""
    values = np.asarray(ops.convert_to_numpy(output), np.float64)
    if values.ndim < 2 or values.shape[-1] < 2:
        return NUMBERS
    if (values >= 0).all() and (abs(values.sum(axis=-1) - 1) < _SUM_TOLERANCE).all():
        return PROBABILITIES
    crossentropies = (
        keras.losses.SparseCategoricalCrossentropy,
        keras.losses.CategoricalCrossentropy,
        keras.losses.CategoricalFocalCrossentropy,
    )
    own = isinstance(loss, crossentropies) and loss.get_config().get("from_logits")
    return LOGITS if own else NUMBERS


def _losses(model: keras.Model, outputs: int) -> list[Any]:
    """What each output was compiled with, None where nothing tells."""
    loss = model._compile_config.config.get("loss") if model.compiled else None
    if isinstance(loss, dict):
        names = getattr(model, "output_names", [])
        found = [loss.get(name) for name in names]
    else:
        found = tree.flatten(loss)
    return found if len(found) == outputs else [None] * outputs
