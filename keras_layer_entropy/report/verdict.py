"""What a profile says, in a few sentences."""

from keras_layer_entropy.measures.entropy import FLAT_TOLERANCE
from keras_layer_entropy.measures.measure import Profile


def summary(profile: Profile, tolerance: float = FLAT_TOLERANCE) -> str:
    """The profile in a few sentences: what each of its measures says, and what to try.

    Args:
        profile: `EntropyProfile`.
        tolerance: below this gradient a layer is flat.

    Returns:
        Text.

    Example:

    >>> from keras_layer_entropy import EntropyProfile
    >>> profile = EntropyProfile(
    ...     layers=("dense", "dense_1", "logits"), widths=(8, 8, 2),
    ...     is_output=(False, False, True), classes=("a", "b"), count=[5, 5],
    ...     results={"activation_entropy": [[0.9, 0.8], [0.9, 0.8], [0.1, 0.2]]})
    >>> summary(profile)  # doctest: +NORMALIZE_WHITESPACE
    'Entropy never rises with depth: 0.850 in dense, 0.150 in logits. dense_1 is a candidate for
    removal: entropy falls by less than 0.01 over it.'
    """
    if not profile.count.any():
        return "No class has samples."
    found = [measure.verdict(profile, tolerance) for measure in profile.measures.values()]
    return " ".join(sentence for sentence in found if sentence)
