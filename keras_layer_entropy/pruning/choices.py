"""Which parts `PruningOptions.layers` and `.keep` mean, where several kinds may go."""

from collections.abc import Collection
from typing import Any

import keras

from keras_layer_entropy.pruning.block_parts import chosen_blocks, find_blocks
from keras_layer_entropy.pruning.options import PruningOptions
from keras_layer_entropy.recording.layers import choose_layers, listed


def check_choices(model: keras.Model, options: PruningOptions) -> None:
    """Raises ValueError for names that are none of any kind that may go."""
    if options.kinds == ("blocks",):
        chosen_blocks(model, options.layers, options.keep)
    else:
        layers_of(model, options)


def layers_of(model: keras.Model, options: PruningOptions) -> tuple[list[str] | None, list[str]]:
    """Paths of the layers that may go or lose units, None for all, and of those that may not.

    Args:
        model: the model that the names are of.
        options: `PruningOptions`.

    Raises:
        ValueError: a name that is none, not of a block either if blocks may go.
    """
    blocks = _names_of_blocks(model) if "blocks" in options.kinds else set()

    def paths(choices: Any) -> list[str]:
        given = listed(choices)
        if not blocks or not isinstance(given, Collection):
            return list(choose_layers(model, given)) if given else []
        found: dict[str, None] = {}
        for one in given:
            try:
                found.update(dict.fromkeys(choose_layers(model, one)))
            except ValueError:
                if not isinstance(one, str) or one not in blocks:
                    raise
        return list(found)

    return None if options.layers is None else paths(options.layers), paths(options.keep)


def blocks_of(model: keras.Model, options: PruningOptions) -> tuple[Any, Any]:
    """Names of the blocks that may go, None for all, and of those that may not.

    Where other kinds may go, too, the name of a layer lets that layer go, not a block that it is
    inside of; what is to be kept is kept in blocks, too.

    Args:
        model, options: as for `layers_of`.
    """
    if options.kinds == ("blocks",):
        return options.layers, options.keep
    blocks, named = find_blocks(model)[0], options.layers
    if named is not None:
        named = [one for one in listed(named) if isinstance(one, str) and one in blocks]
    inside = {x for block in blocks.values() for x in (block.path, *block.members)}
    kept = [*layers_of(model, options)[1], *options.keep]
    return named, [one for one in kept if isinstance(one, str) and one in inside]


def _names_of_blocks(model: keras.Model) -> set[str]:
    blocks, reasons = find_blocks(model)
    return {*blocks, *reasons}
