"""What each measure is called, its unit, its options, what it says and what it does not."""

import dataclasses
import numbers
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Description:
    """A measure in words.

    Attributes:
        title: its name as a heading.
        unit: its unit; None where the normalization of the profile decides.
        largest: the largest value it can have in that unit; None where there is none.
        meaning: how to read it.
        caveat: how far to trust it.
        options: name -> default of what can be chosen for it, `measures={"logdet": {"beta": 1.0}}`.
    """

    title: str
    unit: str | None
    largest: float | None
    meaning: str
    caveat: str
    options: Mapping = dataclasses.field(default_factory=dict)


# What one pass over sums gives for every layer.
ENTROPIES = ("activation_entropy", "instability", "state_entropy")

# How many samples are kept for measures that compare them with one another.
MOST_SAMPLES = 2000

_PATTERNS = {
    "mean_then_softmax": (
        "All samples of one class are fed in and each neuron's output is averaged; the softmax "
        "over the layer's neurons is the activation pattern, and this is its entropy"
    ),
    "softmax_then_mean": (
        "All samples of one class are fed in; the softmax over the layer's neurons, averaged over "
        "these samples, is the activation pattern, and this is its entropy"
    ),
    "per_sample": (
        "The softmax over the layer's neurons is the activation pattern of a sample; this is the "
        "mean of the entropies of the samples of one class"
    ),
}
_NORMALIZATIONS = {
    "log": (
        ", divided by the largest it could be: near 1 when all neurons answer alike, near 0 when "
        "a few neurons answer for the class."
    ),
    "none": (
        ", in nats: the logarithm of the number of neurons when all answer alike, near 0 when a "
        "few neurons answer for the class."
    ),
}


def activation_entropy_meaning(pattern="mean_then_softmax", normalization="log"):
    """What the activation entropy says, for the options it was measured with.

    Example:

    >>> activation_entropy_meaning(normalization="none")[-54:]
    'alike, near 0 when a few neurons answer for the class.'
    """
    other = ", divided by a number for each layer: low when a few neurons answer for the class."
    return _PATTERNS[pattern] + _NORMALIZATIONS.get(normalization, other)


DESCRIPTIONS = {
    "activation_entropy": Description(
        title="Activation entropy",
        unit=None,
        largest=1.0,
        meaning=activation_entropy_meaning(),
        caveat=(
            "It depends on the scale of activations: the same pattern, three times as large, has a "
            "much lower entropy. A falling curve can be plain growth of magnitudes: compare it "
            "with the untrained network and with the state entropy. A layer over which entropy "
            "does not fall is a suspect, not a verdict: take it out and measure the accuracy."
        ),
    ),
    "instability": Description(
        title="Instability within a class",
        unit=None,
        largest=1.0,
        meaning=(
            "How much the pattern varies from sample to sample inside a class: the entropy of the "
            "mean of the samples' patterns minus the mean of their entropies. 0 when all samples "
            "of the class share one pattern."
        ),
        caveat="Like the activation entropy, it depends on the scale of activations.",
    ),
    "state_entropy": Description(
        title="On/off state entropy",
        unit="bits",
        largest=1.0,
        meaning=(
            "A neuron is on for a sample when what goes into its activation function is positive. "
            "This is the mean over neurons of the binary entropy of the share of samples for which "
            "it is on: 0 when each is always on or always off for the class, 1 when each is on for "
            "half of the samples."
        ),
        caveat=(
            "It does not change with the scale of weights, but says nothing of how far a neuron is "
            "on."
        ),
    ),
    "logdet": Description(
        title="LogDet entropy within a class",
        unit="nats",
        largest=None,
        meaning=(
            "How many directions the samples of a class fill in the layer, and how far: half the "
            "sum over these directions of the logarithm of 1 + beta times the variance. 0 when all "
            "samples of the class give the same."
        ),
        caveat=(
            "It grows with the scale of activations, with the number of neurons and, where they "
            "are few, with the number of samples of the class, and depends on beta: compare "
            "networks of one architecture on the same data, measured with one beta, and look at "
            "the untrained one. No differential entropy."
        ),
        options={"beta": None, "samples": MOST_SAMPLES},
    ),
    "mutual_information": Description(
        title="Information on a class",
        unit="bits",
        largest=None,
        meaning=(
            "What the layer tells of whether a sample is of the class: the mutual information of "
            "the layer's output, with a little noise added, and that yes or no. With ten classes "
            "of one size it is 0.469 bits at most."
        ),
        caveat=(
            "Estimated by kernel density, or by rounding to bins, from at most some thousand "
            "samples: where no two samples lie near one another it says that everything is known, "
            "even of random labels. It depends on the scale of activations and on the variance of "
            "the noise or the number of bins."
        ),
        options={"variance": 0.1, "bins": None, "samples": MOST_SAMPLES},
    ),
    "feature_entropy": Description(
        title="Feature entropy of convolution units",
        unit="nats",
        largest=None,
        meaning=(
            "How regularly the units of a convolution answer to a class: for each image the rank "
            "of brightness at which the first loop appears in a unit's map, and the entropy of "
            "this rank over the images of the class, averaged over units. Low when a unit answers "
            "to the images of the class with one structure. A unit that finds a loop in fewer than "
            "a tenth of the images counts as nearly as high as possible."
        ),
        caveat=(
            "It depends on the size of the map: pooling alone changes it. Compare it with noise of "
            "the same size and with the untrained network. Layers without maps have none."
        ),
        options={"max_density": 0.8, "max_rank": 50},
    ),
}

_SHUFFLED = "The same for samples that are paired at random: what the estimate shows where "
_SHUFFLED += "nothing is known. Only what lies above it is information."
_FEW = "From few samples of many neurons far too large: look at it beside that of shuffled pairs."


def _layer_value(title, unit, meaning, caveat=""):
    return Description(title, unit, None, meaning, caveat)


# Numbers of a layer as a whole that come with a measure, whose name theirs begins with.
LAYER_DESCRIPTIONS = {
    "logdet_entropy": _layer_value(
        "LogDet entropy", "nats", "H(T), LogDet entropy of the layer over all samples."
    ),
    "logdet_input": _layer_value(
        "I(input; layer), LogDet",
        "nats",
        "I(X; T): how much of the input's variation shows in the layer's.",
        _FEW,
    ),
    "logdet_input_shuffled": _layer_value("I(input; layer), shuffled", "nats", _SHUFFLED),
    "logdet_labels": _layer_value(
        "I(layer; labels), LogDet",
        "nats",
        "I(T; Y): how much of the labels, taken as one-hot columns, shows in the layer.",
        _FEW,
    ),
    "logdet_labels_shuffled": _layer_value("I(layer; labels), shuffled", "nats", _SHUFFLED),
    "logdet_previous": _layer_value(
        "I(layer before; layer), LogDet",
        "nats",
        "How much of the variation of the layer before, in the order of the forward pass, shows in "
        "this one.",
        _FEW,
    ),
    "logdet_previous_shuffled": _layer_value("I(layer before; layer), shuffled", "nats", _SHUFFLED),
    "logdet_total_correlation": _layer_value(
        "Total correlation",
        "nats",
        "The sum of the LogDet entropies of the layers up to this one, minus their joint entropy: "
        "how much the layers repeat one another.",
        _FEW,
    ),
    "mutual_information_input": _layer_value(
        "I(input; layer)",
        "bits",
        "I(X; T): how well the layer's output, with a little noise added or rounded, tells samples "
        "apart; the binary logarithm of their number when it tells all.",
        "At its largest it says that the noise is small against the distances, and no more.",
    ),
    "mutual_information_labels": _layer_value(
        "I(layer; labels)",
        "bits",
        "I(T; Y): what the layer tells of the class; with ten classes of one size 3.32 bits at "
        "most.",
        "Where the layer tells all samples apart it is the largest possible whatever the labels: "
        "look at it beside that of shuffled labels.",
    ),
    "mutual_information_labels_shuffled": _layer_value(
        "I(layer; labels), shuffled", "bits", _SHUFFLED
    ),
    "feature_entropy_selective_rate": _layer_value(
        "Selective rate",
        "share",
        "Share of the images in which a unit's map has a loop, averaged over units and classes.",
    ),
    "feature_entropy_noise": _layer_value(
        "Feature entropy of noise",
        "nats",
        "Feature entropy of maps of the same size that are pure noise.",
    ),
}


def _is_int(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _is_positive(value):
    return isinstance(value, numbers.Real) and 0 < value < float("inf")


# What an option may be, in words and as a test.
_OPTIONS = {
    "beta": ("a positive number, or None", lambda x: x is None or _is_positive(x)),
    "variance": ("a positive number", _is_positive),
    "bins": ("a positive int, or None", lambda x: x is None or (_is_int(x) and x >= 1)),
    "samples": ("an int of at least 2", lambda x: _is_int(x) and x >= 2),
    "max_density": ("a share, in 0..1", lambda x: isinstance(x, numbers.Real) and 0 <= x <= 1),
    "max_rank": ("a positive int", lambda x: _is_int(x) and x >= 1),
}


def layer_value_names(profile, measure):
    """The numbers of layers that came with a measure, names in `profile.layer_values`."""
    return [name for name in profile.layer_values if name.startswith(f"{measure}_")]


def check_measures(measures):
    """The measures that are asked for, as a dict name -> options, defaults filled in.

    Args:
        measures: a name, several, or name -> options (None for the defaults).

    Raises:
        ValueError: an unknown name or option, or no measure at all.

    Example:

    >>> check_measures({"state_entropy": None, "logdet": {"beta": 1.0}})
    {'state_entropy': {}, 'logdet': {'beta': 1.0, 'samples': 2000}}
    """
    if not isinstance(measures, Mapping):
        measures = dict.fromkeys([measures] if isinstance(measures, str) else measures)
    unknown = [name for name in measures if name not in DESCRIPTIONS]
    if unknown or not measures:
        raise ValueError(f"measures={tuple(measures)}; expected some of {tuple(DESCRIPTIONS)}.")
    chosen = {}
    for name, options in measures.items():
        defaults = DESCRIPTIONS[name].options
        options = {} if options is None else options
        if not isinstance(options, Mapping) or any(option not in defaults for option in options):
            raise ValueError(
                f"measures={{{name!r}: {options}}}; {name} has "
                + (f"the options {tuple(defaults)}." if defaults else "no options.")
            )
        chosen[name] = {**defaults, **options}
        for option, value in chosen[name].items():
            words, fits = _OPTIONS[option]
            if not fits(value):
                raise ValueError(f"{option}={value!r} of {name}; expected {words}.")
    return chosen
