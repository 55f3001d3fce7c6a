"""The measures that are known by name: a new one is a line here."""

import ast
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from keras_layer_entropy.measures.activation_histogram import ActivationHistogram
from keras_layer_entropy.measures.entropy import ActivationEntropy, Instability, StateEntropy
from keras_layer_entropy.measures.feature_entropy import FeatureEntropy
from keras_layer_entropy.measures.health import ActivationHealth
from keras_layer_entropy.measures.linear_probe import LinearProbe
from keras_layer_entropy.measures.logdet import LogDet
from keras_layer_entropy.measures.measure import Measure
from keras_layer_entropy.measures.mutual_information import MutualInformation
from keras_layer_entropy.measures.unit_information import UnitInformation

MEASURES = {
    measure.key: measure
    for measure in (
        ActivationEntropy,
        Instability,
        StateEntropy,
        LogDet,
        MutualInformation,
        FeatureEntropy,
        UnitInformation,
        LinearProbe,
        ActivationHealth,
        ActivationHistogram,
    )
}

# What may be asked for as `measures`, see `get_measures`.
MeasureChoice = str | Measure | Iterable[str | Measure] | Mapping[str, Mapping[str, Any] | None]

# What a row of a profile's table holds besides the numbers of measures.
COLUMNS = ("layer", "units", "output", "class", "count")


def get_measures(measures: MeasureChoice) -> list[Measure]:
    """The measures that are asked for: a list of `Measure`, one for each name.

    Args:
        measures: a name, a `Measure`, or several of these; or name -> options (None for the
            defaults).

    Raises:
        ValueError: an unknown name or option, the same name twice, or no measure at all.

    Example:

    >>> get_measures(["state_entropy", LogDet(beta=1.0, name="of_one")])
    [StateEntropy(), LogDet(beta=1.0, name='of_one')]
    """
    if isinstance(measures, str | Measure):
        measures = [measures]
    if not isinstance(measures, Iterable):
        raise ValueError(f"measures={measures!r}; expected some of {tuple(MEASURES)}.")
    if isinstance(measures, Mapping):
        found = [get_measure(x, options) for x, options in measures.items()]
    else:
        found = [x if isinstance(x, Measure) else get_measure(x) for x in measures]
    names = [measure.name for measure in found]
    if not names:
        raise ValueError(f"measures={measures!r}; expected some of {tuple(MEASURES)}.")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(
            f"Several measures are called {', '.join(twice)}: give each a name= of its own."
        )
    _check_names(found)
    return found


def _check_names(found: Sequence[Measure]) -> None:
    """Raises where names would get into each other's way in columns, logs or profiles."""
    taken = dict.fromkeys(COLUMNS, "a column of every profile")
    for measure in found:
        other = MEASURES.get(measure.name, type(measure))
        if not isinstance(measure, other):
            raise ValueError(f"name={measure.name!r} is that of {other.__name__}: choose another.")
        for key in {
            measure.name,
            measure.log_name,
            *(f"{measure.name}_{x}" for x in measure.whole),
        }:
            if key in taken:
                raise ValueError(
                    f"The measure {measure.name!r} has a number called {key!r}, which is that of "
                    f"{taken[key]}: give it another name=."
                )
            taken[key] = repr(measure.name)


def get_measure(key: str, options: Mapping[str, Any] | None = None) -> Measure:
    """A measure by its name, with options.

    Args:
        key: a name in `MEASURES`.
        options: name -> value, None for the defaults.

    Raises:
        ValueError: an unknown name or option.
    """
    if not isinstance(key, str) or key not in MEASURES:
        raise ValueError(f"measures={key!r}; expected some of {tuple(MEASURES)}.")
    options = {} if options is None else options
    allowed = tuple(inspect.signature(MEASURES[key]).parameters)
    if not isinstance(options, Mapping) or any(option not in allowed for option in options):
        raise ValueError(f"measures={{{key!r}: {options}}}; {key} has the options {allowed}.")
    return MEASURES[key](**options)


def parse_measure(text: str) -> Measure:
    """A measure as a command line names it: `logdet:beta=1.0:samples=500`.

    Args:
        text: a name, then options as `name=value`, colons between.

    Raises:
        ValueError: an unknown name or option, or an option without a value.

    Example:

    >>> parse_measure("logdet:beta=1.0:samples=500")
    LogDet(beta=1.0, samples=500)
    """
    key, *parts = text.split(":")
    options = {}
    for part in parts:
        option, found, value = part.partition("=")
        if not found or option in options:
            raise ValueError(
                f"{text!r} is no measure: expected name:option=value:..., each option once; found "
                f"{part!r}."
            )
        try:
            options[option] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            options[option] = value  # a word
    return get_measure(key, options)
