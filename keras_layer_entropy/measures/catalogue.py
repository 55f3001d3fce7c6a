"""What each measure is called, its unit, what it says and what it does not, in plain words."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Description:
    """A measure in words.

    Attributes:
        title: its name as a heading.
        unit: its unit; None where the normalization of the profile decides.
        largest: the largest value it can have in that unit; None where there is none.
        meaning: how to read it.
        caveat: how far to trust it.
    """

    title: str
    unit: str | None
    largest: float | None
    meaning: str
    caveat: str


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
}
