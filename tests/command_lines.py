"""Run the command lines: in a process of their own, or, faster, in this one."""

import contextlib
import importlib
import io
import os
import signal
import subprocess
import sys
import time
import warnings

from absl import flags

from keras_layer_entropy import command_line


def start(module, *arguments, **keywords):
    """`python -m keras_layer_entropy.<module> ...` as a `subprocess.Popen`."""
    return subprocess.Popen(
        [sys.executable, "-m", f"keras_layer_entropy.{module}", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        **keywords,
    )


def run(module, *arguments, **keywords):
    """Exit code, stdout and stderr of a process of its own."""
    process = start(module, *arguments, **keywords)
    out, err = process.communicate()
    return process.returncode, out, err


def kill_when(process, folder, seen):
    """Waits until `seen(paths in the folder)`; kills the process at that moment."""
    while process.poll() is None:
        found = [
            os.path.join(at, name) for at, dirs, files in os.walk(folder) for name in dirs + files
        ]
        if seen({os.path.relpath(path, folder) for path in found}):
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.001)
    return False


def call(module, *arguments):
    """The same in this process: everything but the start of Python, which takes seconds."""
    found = importlib.import_module(f"keras_layer_entropy.{module}")
    argv, sys.argv = sys.argv, [f"keras_layer_entropy.{module}", *map(str, arguments)]
    out, err, shown = io.StringIO(), io.StringIO(), warnings.formatwarning
    flags.FLAGS.unparse_flags()
    for flag in flags.FLAGS:
        flags.FLAGS[flag].unparse()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("always")
            warnings.showwarning = lambda *w: print(warnings.formatwarning(*w[:4]), file=sys.stderr)
            command_line.main(found.run, getattr(found, "TAKES", ()))
        code = 0
    except SystemExit as error:
        code = error.code or 0
    finally:
        sys.argv, warnings.formatwarning = argv, shown
    return code, out.getvalue(), err.getvalue()
