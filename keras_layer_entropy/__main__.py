"""See what the layers of a Keras network do, and take out what does not earn its cost.

    python -m keras_layer_entropy analyze --model saved_model/    measure a model on data
    python -m keras_layer_entropy prune --model saved_model/      a smaller one, as good
    python -m keras_layer_entropy compare A B                     two models or profiles

`... analyze --help` lists the flags of each. `keras-layer-entropy` is the same.
"""

import runpy
import sys

from keras_layer_entropy.version import __version__

COMMANDS = {"analyze": "analyze", "prune": "prune", "compare": "differences"}


def main() -> None:
    """Runs one of the commands, or says which there are."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command in ("--help", "-h", "help"):
        print(__doc__, end="")
    elif command == "--version":
        print(__version__)
    elif command not in COMMANDS:
        print(f"error: {command!r}; expected one of {', '.join(COMMANDS)}.", file=sys.stderr)
        sys.exit(2)
    else:
        del sys.argv[1]
        name = f"keras_layer_entropy.{COMMANDS[command]}"
        runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
