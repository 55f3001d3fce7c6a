"""What a profile says, in a word per layer and in two sentences."""

import numpy as np

from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE

# Less than the third digit shows is no rise.
NOISE = 5e-4


def verdict(profile, tolerance=FLAT_TOLERANCE):
    """One word per layer: `flat`, `rises`, `falls`, or `output`, or nothing for the first."""
    words = []
    for gradient, output in zip(profile.gradient, profile.outputs, strict=True):
        if output:
            words.append("output")
        elif np.isnan(gradient):
            words.append("")
        else:
            rises = gradient < -NOISE
            words.append("rises" if rises else "flat" if gradient < tolerance else "falls")
    return words


def summary(profile, tolerance=FLAT_TOLERANCE):
    """The profile in two or three sentences: how entropy goes with depth, and what to try.

    Args:
        profile: `EntropyProfile` with activation_entropy.
        tolerance: below this gradient a layer is flat.

    Returns:
        Text.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "dense_1", "logits"), units=(8, 8, 2), outputs=(False, False, True),
    ...     classes=("a", "b"), count=[5, 5], normalizer=[2.1, 2.1, 0.7],
    ...     values={"activation_entropy": [[0.9, 0.8], [0.9, 0.8], [0.1, 0.2]]})
    >>> summary(profile)  # doctest: +NORMALIZE_WHITESPACE
    'Entropy never rises with depth: 0.850 in dense, 0.150 in logits. dense_1 is a candidate for
    removal: entropy falls by less than 0.01 over it.'
    """
    if not profile.count.any():
        return "No class has samples."
    profile = profile.of_layers(
        [x for x, y in zip(profile.layers, profile.judged, strict=True) if y]
    )
    unknown = [x for x, h in zip(profile.layers, profile.mean, strict=True) if not np.isfinite(h)]
    if unknown:
        return f"No entropy of {listed(unknown)}: the activations are not finite."
    if len(profile.layers) == 1:
        return f"The one layer, {profile.layers[0]}, has entropy {profile.mean[0]:.3f}."
    sentences = (_course(profile), _untrained(profile), _candidates(profile, tolerance))
    return " ".join(filter(None, sentences))


def _course(profile):
    ends = (
        f"{profile.mean[0]:.3f} in {profile.layers[0]}, "
        f"{profile.mean[-1]:.3f} in {profile.layers[-1]}"
    )
    risen = [x for x, g in zip(profile.layers, profile.gradient, strict=True) if g < -NOISE]
    if risen:
        return f"Entropy rises over {listed(risen)}: {ends}."
    return f"Entropy never rises with depth: {ends}."


def _untrained(profile):
    """How much of the fall was there before training."""
    if profile.baseline is None:
        return ""
    fall, untrained = (p.mean[0] - p.mean[-1] for p in (profile, profile.baseline))
    if not np.isfinite(untrained):
        return "The untrained network's activations are not finite."
    if abs(untrained) < NOISE:
        how = "stays the same"
    else:
        how = f"falls by {untrained:.3f}" if untrained > 0 else f"rises by {-untrained:.3f}"
    if fall < NOISE:
        return f"In the untrained network it {how}."
    return f"It falls by {fall:.3f} in all; in the untrained network it {how}."


def _candidates(profile, tolerance):
    flat = profile.flat(tolerance)
    if not flat:
        return f"No layer is flat: entropy falls by {tolerance:g} or more over each."
    what = "is a candidate" if len(flat) == 1 else "are candidates"
    over = "it" if len(flat) == 1 else "each"
    rises = any(word == "rises" for word in verdict(profile, tolerance))
    how = f"falls by less than {tolerance:g}" + (" or rises" if rises else "")
    return f"{listed(flat)} {what} for removal: entropy {how} over {over}."


def listed(layers, most=6):
    """Names as text: `a, b and c`; of many the first ones."""
    names = [*layers[:most], f"{len(layers) - most} more"] if len(layers) > most else list(layers)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
