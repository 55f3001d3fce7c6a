"""Benchmarks that are for machines that nobody has here run small."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.slow
@pytest.mark.tensorflow
def test_the_benchmark_of_accelerators_runs_small():
    """Every number is that of NumPy in float64: float32 and float32 sums leave 1e-4 at most."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "gpu.py", "--small", "--pairs=1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| (\S*) ?\| (\S*) ?\|$", done.stdout, re.M)
    assert [row[0] for row in rows] == [
        *("analysis, 12 Dense", "analysis, 12 Dense, mixed_bfloat16"),
        *("analysis, ViT", "analysis, ViT, mixed_bfloat16", "births of loops", "LogDet"),
        *("refit of a Dense layer", "refit of a convolution", "half of three convolutions"),
    ]
    differences = [float(row[3]) for row in rows if row[3]]
    assert len(differences) == 8
    assert max(differences) < 1e-4
