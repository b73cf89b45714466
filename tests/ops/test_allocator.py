import os
import subprocess
import sys

import pytest

CODE = "import sys; from gptjax.allocator import tune; print(tune()); print('jax' in sys.modules)"


def run(**environment):
    return subprocess.run(
        [sys.executable, "-c", CODE],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc only")
def test_tuned_and_system():
    said, imported = run(GPTJAX_ALLOCATOR="tuned").stdout.splitlines()
    assert said.startswith("allocator: ") and imported == "False"
    assert run(GPTJAX_ALLOCATOR="system").stdout.splitlines()[0] == "allocator: system"


def test_other_values_are_refused():
    assert "must be 'tuned' or 'system', not 'fast'" in run(GPTJAX_ALLOCATOR="fast").stderr
