"""Which layer of one network is which of another."""

import re
from collections.abc import Sequence


def names_in_first(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """What the layers of the second network are called in the first.

    That is what they are called, but for networks that were made one after the other: Keras counts
    up the names of layers that have none, so that the same network is then called otherwise. Where
    all paths are the same but for such numbers, and none with a number is in both, the layers are
    taken in order.

    Args:
        first, second: paths of the layers of each.

    Example:

    >>> names_in_first(["dense", "dense_1", "output"], ["dense_2", "dense_3", "output"])
    ['dense', 'dense_1', 'output']
    >>> names_in_first(["dense_1", "dense_2"], ["dense_1", "dense_3"])
    ['dense_1', 'dense_3']
    """
    in_both = set(first) & set(second)
    alike = list(map(_unnumbered, first)) == list(map(_unnumbered, second))
    return list(first if alike and all(x == _unnumbered(x) for x in in_both) else second)


def said(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """A sentence, if layers are called otherwise in the second network."""
    if names_in_first(first, second) == list(second):
        return []
    return ["The paths of layers differ in their numbers alone: the layers are taken in order."]


def _unnumbered(path: str) -> str:
    return re.sub(r"_\d+(?=[/#@]|$)", "", path)
