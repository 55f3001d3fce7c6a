"""Command lines start in silence; what is not known is told, and the library holds nothing."""

import os
import subprocess
import sys

import pytest
from command_lines import run

from keras_layer_entropy import quiet

pytestmark = pytest.mark.tensorflow


def environment():
    return {k: v for k, v in os.environ.items() if not k.startswith("TF_CPP")} | {
        "PYTHONPATH": os.pathsep.join(sys.path)
    }


@pytest.mark.slow
def test_a_command_says_nothing_but_its_own(tmp_path, monkeypatch):
    monkeypatch.delenv("TF_CPP_MIN_LOG_LEVEL")
    code, _, err = run("analyze", "--model", tmp_path / "none")
    assert code == 2
    assert err.splitlines()[0].startswith("error: ")
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_what_is_not_known_is_told():
    program = (
        "import os, sys; sys.orig_argv = ['python', '-m', 'keras_layer_entropy.analyze']\n"
        "from keras_layer_entropy.quiet import starting\n"
        "try:\n"
        "  with starting():\n"
        "    os.write(2, b'I0000 00:00:1 9 port.cc:153] oneDNN\\nsomething new\\n')\n"
        "    raise RuntimeError('inside')\n"
        "except RuntimeError as error:\n"
        "  print(error, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment()
    )
    assert done.stderr.splitlines() == ["something new", "inside"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["python", "-m", "keras_layer_entropy"], True),
        (["python", "-m", "keras_layer_entropy.prune", "--model=x"], True),
        (["python", "-m", "pytest"], False),
        (["python", "train.py", "-m"], False),
        (["python", "-c", "import keras_layer_entropy"], False),
    ],
)
def test_who_is_a_command(words, wanted, monkeypatch):
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(sys, "argv", words[-1:])
    assert quiet.is_command() == wanted
    monkeypatch.setattr(sys, "argv", ["/usr/bin/keras-layer-entropy"])
    assert quiet.is_command()
