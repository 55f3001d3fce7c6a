"""One run at a time for each place, in processes of their own; a dead one is in nobody's way."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from keras_layer_entropy.files import claimed

pytestmark = pytest.mark.tensorflow
HOLD = """
import sys
from keras_layer_entropy.files import claimed
with claimed(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(path):
    """A process that has claimed a path and keeps it until its standard input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.readline() == "held\n", process.communicate()
    return process


@pytest.mark.slow
def test_a_place_belongs_to_one_run_at_a_time(tmp_path):
    path = tmp_path / "deep" / "out.keras"
    (tmp_path / "link.keras").symlink_to(path)
    process = holder(path)
    for same in (path, tmp_path / "deep" / ".." / "deep" / "out.keras", tmp_path / "link.keras"):
        words = r"Another run is writing to .*out\.keras"
        with pytest.raises(BlockingIOError, match=words), claimed(same):
            pass
    with claimed(tmp_path / "deep" / "other.keras"):
        pass
    process.communicate("")
    assert process.returncode == 0
    with claimed(path):
        assert path.parent.is_dir()
    assert os.listdir(tmp_path) == ["link.keras"]


@pytest.mark.slow
def test_a_killed_run_is_in_nobodys_way(tmp_path):
    path = tmp_path / "out"
    process = holder(path)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = os.listdir(tmp_path)
    assert len(left) == 1
    assert left[0].endswith(".lock")
    with claimed(path):
        pass
    assert os.listdir(tmp_path) == []


@pytest.mark.slow
def test_of_many_at_once_one_has_it(tmp_path):
    code = """
import os, sys, time
from keras_layer_entropy.files import claimed
for _ in range(100):
    try:
        with claimed(sys.argv[1]):
            with open(sys.argv[1] + ".only", "x"):
                pass
            time.sleep(0.0005)
            os.unlink(sys.argv[1] + ".only")
    except BlockingIOError:
        pass
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    processes = [
        subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    for process in processes:
        _, err = process.communicate()
        assert process.returncode == 0, err
    assert os.listdir(tmp_path) == []


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "x", tmp_path / ("n" * 240), pathlib.Path("/proc/x")):
        with pytest.raises(OSError, match="cannot be written"), claimed(path):
            pass
    with pytest.raises(ValueError, match="is a URL"), claimed("gs://bucket/x"):
        pass
    assert os.listdir(tmp_path) == ["file"]
    with pytest.raises(KeyError), claimed(tmp_path / "a" / "b" / "c"):
        raise KeyError
    with claimed(tmp_path / "a" / "b" / "c"):
        (tmp_path / "a" / "b" / "c").write_text("written")
    assert (tmp_path / "a" / "b" / "c").read_text() == "written"
