"""What TensorFlow says before its own logging starts, kept away from those who ran a command."""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# That there is no GPU, and how it rounds: nobody can act on it.
_KNOWN = re.compile(
    r"^(WARNING: All log messages before absl::InitializeLog"
    r"|I0000 .*(port\.cc|cudart_stub\.cc|cpu_feature_guard\.cc|util\.cc)"
    r"|To enable the following instructions:)"
)
_COMMAND = "keras_layer_entropy"


def is_command() -> bool:
    """Whether this process is one of this library's own command lines."""
    words = sys.orig_argv
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    script = os.path.basename(sys.argv[0]) if sys.argv else ""
    return module.partition(".")[0] == _COMMAND or script == _COMMAND.replace("_", "-")


@contextlib.contextmanager
def starting() -> Iterator[None]:
    """Holds back what a command line writes to standard error inside the block.

    Afterwards it is written, without the lines that are known, whatever happened inside.
    """
    if not is_command():
        yield
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held:
        before = os.dup(2)
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(before, 2)
            os.close(before)
            held.seek(0)
            for line in held.read().decode(errors="replace").splitlines(keepends=True):
                if not _KNOWN.match(line):
                    sys.stderr.write(line)
            sys.stderr.flush()
