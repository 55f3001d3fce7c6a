"""`compare`: which kinds of things can be set side by side."""

from collections.abc import Sequence
from typing import Any

import keras

from keras_layer_entropy.analysis.profile import EntropyProfile
from keras_layer_entropy.comparing.models import compare_models, names_of_models
from keras_layer_entropy.comparing.profiles import compare_profiles, names_of_profiles
from keras_layer_entropy.comparing.results import compare_results
from keras_layer_entropy.pruning.search import PruningResult
from keras_layer_entropy.report.side_by_side import Comparison


def compare(
    first: Any, second: Any, *, names: Sequence[str] | None = None, x: Any = None
) -> Comparison:
    """Sets two profiles, two models or two results of pruning side by side.

    Of profiles: each measure that both have, layer by layer, as the mean over the classes with the
    class that has changed most, and class by class as the mean over the layers; the trend; the
    model's own metrics. Of models: units and parameters of each layer, parameters and FLOPs in all.
    Of results: costs and quality of the smaller networks, what went in which step, which units went
    in both, options that differ. A change is always the second minus the first, of costs in per
    cent of the first. Layers are matched by their paths (in order, where these differ in Keras's
    numbers alone), classes by their names; what only one of the two has is a dash. What was
    measured otherwise, on other samples or classes for instance, is said in a note.

    Args:
        first, second: two `EntropyProfile`s, two built Keras models, or two `PruningResult`s.
        names: what the two are called; None for the epochs of profiles or the names of models where
            these differ, else `"first"` and `"second"`.
        x: inputs of the models, at least one sample, to count FLOPs where models leave sizes open.

    Returns:
        `Comparison`: `print` it, or take its `table()` (rich), `figure()` (matplotlib), `notes`.

    Raises:
        TypeError: two different kinds of things, or others.
        ValueError: profiles without a layer or a measure in common, a model that is not built,
            names that are not two different ones, x for profiles.

    Example:

    >>> def model(units, name):
    ...     return keras.Sequential([keras.Input((4,)), keras.layers.Dense(units, name="a"),
    ...                              keras.layers.Dense(2, name="out")], name=name)
    >>> print(compare(model(8, "whole"), model(4, "half")))
    Costs
                      whole  half  change
    ─────────────────────────────────────
    Dense layers          2     2      0%
    parameters           58    30    -48%
    FLOPs per sample    106    54    -49%
    <BLANKLINE>
    Layers with weights
              units  units  parameters  parameters
    layer     whole   half       whole        half  change
    ──────────────────────────────────────────────────────
    a             8      4          40          20    -50%
    out           2      2          18          10    -44%
    """
    kinds = [kind for kind in _KINDS if isinstance(first, kind) and isinstance(second, kind)]
    if not kinds:
        raise TypeError(
            f"compare was given {_article(first)} and {_article(second)}; expected two "
            "EntropyProfiles, two Keras models, or two PruningResults."
        )
    own_names, made = _KINDS[kinds[0]]
    given = names if names is not None else own_names(first, second) or ("first", "second")
    if not isinstance(given, list | tuple) or len(given) != 2 or given[0] == given[1]:
        raise ValueError(f"names={names!r}; expected two different names.")
    pair = str(given[0]), str(given[1])
    if kinds[0] is not EntropyProfile:
        return made(first, second, pair, x)
    if x is not None:
        raise ValueError("x is to count the FLOPs of models; profiles have none: leave it out.")
    return made(first, second, pair)


def _no_names(first: Any, second: Any) -> None:
    """Results of pruning have no names by themselves."""


# Kind -> what two of it are called by themselves, and how they are compared.
_KINDS: dict[type, tuple[Any, Any]] = {
    EntropyProfile: (names_of_profiles, compare_profiles),
    keras.Model: (names_of_models, compare_models),
    PruningResult: (_no_names, compare_results),
}


def _article(thing: Any) -> str:
    name = type(thing).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"
