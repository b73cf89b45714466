"""A short form of benchmarks/faults.py: real runs, real kills, real damage."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "faults.py"


@pytest.mark.slow
def test_kills_and_damage_change_nothing(tmp_path):
    options = ["--kills=2", "--in-save=1", "--flips=12", "--pages=3", "--truncations=3"]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\d kills \(.*[1-9] in a save", done.stdout)
    assert "0 rows, 0 differ" in done.stdout and "all promises kept" in done.stdout
    assert not list(tmp_path.iterdir())
