"""The table and the files."""

import io
import os

import numpy as np
import pytest
import rich.console
from test_profile import make

from keras_layer_entropy import EntropyProfile, report

pytestmark = pytest.mark.tensorflow  # no backend in it


def rendered(table):
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(table)
    return [line.split() for line in console.export_text().splitlines() if line.strip()]


def test_table():
    lines = rendered(report.table(make(baseline=make())))
    rows = {line[0]: line for line in lines}
    assert rows["a"] == "a 4 0.800 0.700 (z) 0.900 (x) - 0.800 0.500".split()
    assert rows["b"] == "b 4 0.797 0.695 (z) 0.900 (x) +0.003 flat 0.797 0.500".split()
    assert rows["c"] == "c 4 0.875 0.800 (z) 0.950 (x) -0.078 rises 0.875 0.500".split()
    assert rows["out"] == "out 3 0.150 0.100 (x) 0.200 (z) +0.725 output 0.150 0.500".split()
    assert rendered(report.table(make(), tolerance=0.001))[-3][8] == "falls"


def test_table_of_unknown_values():
    values = {"activation_entropy": np.full((4, 3), np.nan)}
    lines = rendered(report.table(make(values=values)))
    assert lines[-1] == "out 3 - - - - output".split()


def test_files(tmp_path):
    profile = make()
    paths = report.save_profile(profile, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == list(report.FILES)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == sorted(report.FILES)
    np.testing.assert_array_equal(EntropyProfile.load(paths[0]).entropy, profile.entropy)
    for path in paths[2:]:
        assert path.read_bytes().startswith(b"\x89PNG")
    before = paths[0].stat().st_mtime_ns
    with pytest.raises(FileExistsError, match="would be overwritten"):
        report.save_profile(profile, tmp_path / "new" / "folder")
    assert paths[0].stat().st_mtime_ns == before
    report.save_profile(profile, tmp_path / "new" / "folder", overwrite=True)
