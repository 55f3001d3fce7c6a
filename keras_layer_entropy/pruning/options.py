"""How to search for a smaller network."""

import dataclasses
import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any

from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE
from keras_layer_entropy.measures.measure import listed
from keras_layer_entropy.pruning.cost import check_target, with_sizes
from keras_layer_entropy.pruning.criteria import CRITERIA
from keras_layer_entropy.pruning.stand_ins import AUTO, check_stand_in
from keras_layer_entropy.pruning.unit_criteria import GREEDY, UNIT_CRITERIA
from keras_layer_entropy.recording.labels import ClassChoice
from keras_layer_entropy.recording.layers import LayerChoice

MODES = ("auto", "max", "min")
# What may go -> what can say which of it goes first.
KINDS = {
    "blocks": ("output_change",),
    "layers": tuple(CRITERIA),
    "units": (GREEDY, *UNIT_CRITERIA),
}


@dataclasses.dataclass(frozen=True)
class PruningOptions:
    """How to search.

    Attributes:
        criterion: which goes first, a name in `criteria.CRITERIA` for layers, for units
            `"reconstruction"` or a name in `unit_criteria.UNIT_CRITERIA`, for blocks
            `"output_change"`. None for what costs least of what is predicted to show in the
            outputs: `"output_change"` of blocks and layers, `"reconstruction"` of units.
        remove: what goes, some of `"blocks"`, `"layers"` (Dense layers) and `"units"`; of several
            kinds, in each step, that whose removal changes the outputs least for what it saves.
            None for all, or for what the criterion is for (of units and layers, layers).
        target: `"flops"`, `"parameters"`, `"latency"` -> share of the original's that may remain:
            the search ends when all are reached. Latency is that of `predict_on_batch` with 256
            samples, or with one for `"latency@1"`, measured beside the original's after each step
            that is kept. None to go on while the quality stays.
        tolerance: entropy_gradient takes out layers over which entropy falls by less.
        quality: what is held on to, on the validation data: `"accuracy"`, `"loss"`, `"fidelity"`
            to the original (`fidelity.Fidelity`, which needs no labels), or the name that
            `evaluate` gives a compiled metric. None for accuracy where a classifier has one, else
            the loss; without labels, fidelity. The loss is that without penalties on weights.
        mode: whether more of a metric is better, `"max"`, or less, `"min"`; `"auto"` for what Keras
            says of it.
        max_drop: how much worse the quality may become than that of the original; of accuracy 0.01
            is one point.
        max_relative_drop: the same as a share of that of the original. Where both are None,
            `max_drop=0.01` for accuracy and the share of samples that agree with the original,
            `max_drop=0.05` for the relative error to it, `max_relative_drop=0.05` for the loss
            and metrics; with a target, no limit.
        distill: train for what the original gives (`Fidelity.distilled`) in place of the labels.
            Data without labels are always trained for so.
        epochs: epochs of training after each removal; the best of them is kept. 0 for none.
        learning_rate: learning rate of that training; None for the optimizer's own.
        batch_size: batch size for arrays.
        max_removals: most layers, or batches of units, to take out; None for no limit.
        layers: which layers may go, or lose units, as for `ActivationProbe`; None for every Dense,
            or every layer that makes units. Of blocks, names of these or of layers inside.
        keep: names or paths of layers that must stay as they are, or of blocks.
        step_share: where units go, the share of what the model still costs that goes with one
            batch; half as much after a batch without which the quality fell too far.
        multiple_of: as for `choose_units`.
        calibration_samples: training samples that units or blocks are chosen and layers refitted
            on where these go.
        stand_in: what stands in for a block, as for `remove_blocks`.
        simplify: take out what changes no output (`simplify_model`), at the end, because a network
            without its normalisation trains differently.
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

    criterion: str | None = None
    remove: str | Collection[str] | None = None
    target: Mapping[str, float] | None = None
    tolerance: float = FLAT_TOLERANCE
    quality: str | None = None
    mode: str = "auto"
    max_drop: float | None = None
    max_relative_drop: float | None = None
    distill: bool = False
    epochs: int = 5
    learning_rate: float | None = None
    batch_size: int = 128
    max_removals: int | None = None
    layers: LayerChoice = None
    keep: str | Collection[str] = ()
    step_share: float = 0.25
    multiple_of: int = 1
    calibration_samples: int = 1000
    stand_in: str | int | None = AUTO
    simplify: bool = False
    refit: bool = True
    seed: int = 0
    num_classes: ClassChoice = None
    steps_per_epoch: int | None = None
    validation_steps: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.keep, str):
            object.__setattr__(self, "keep", (self.keep,))
        kinds = self.kinds
        criteria = KINDS[kinds[0]] if len(kinds) == 1 else ()
        if None not in (self.max_drop, self.max_relative_drop):
            raise ValueError("max_drop and max_relative_drop say the same: give one of them.")
        if self.target is not None:
            check_target(self.target, measured=True)
            object.__setattr__(self, "target", with_sizes(self.target))
        check_stand_in(self.stand_in)
        if kinds != ("layers",) and not self.refit:
            raise ValueError(
                f"refit=False is for layers: what is behind {listed(kinds)} is always refitted."
            )
        checks = {
            "criterion": (
                self.criterion is None or self.criterion in criteria,
                f"one of {criteria}" if criteria else "None where several kinds may go",
            ),
            "step_share": (0 < self.step_share <= 1, "a share over 0 and at most 1"),
            "multiple_of": (_is_count(self.multiple_of), "an int of at least 1"),
            "calibration_samples": (_is_count(self.calibration_samples), "at least 1"),
            "tolerance": (math.isfinite(self.tolerance), "a number"),
            "mode": (self.mode in MODES, f"one of {MODES}"),
            "max_drop": (_is_drop(self.max_drop), "0 or more, or None"),
            "max_relative_drop": (_is_drop(self.max_relative_drop), "0 or more, or None"),
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

    @property
    def kinds(self) -> tuple[str, ...]:
        """What may go, names in the order of `KINDS`."""
        given = self.remove
        if given is None and self.criterion is not None:
            # Of criteria for several kinds, layers come first.
            order = ("layers", *KINDS)
            given = next((kind for kind in order if self.criterion in KINDS[kind]), "layers")
        elif given is None:
            given = tuple(KINDS) if self.refit else "layers"
        named = [given] if isinstance(given, str) else list(given)
        if not named or set(named) - set(KINDS):
            raise ValueError(f"remove={given!r}; expected some of {tuple(KINDS)}.")
        return tuple(kind for kind in KINDS if kind in named)


def _is_drop(value: float | None) -> bool:
    return value is None or 0 <= float(value) < math.inf


def _is_count(value: Any, least: int = 1) -> bool:
    return isinstance(value, numbers.Integral) and int(value) >= least
