"""Settings of jax that come from outside: a run has the same bits, or one line names the variable."""

import os
import subprocess
import sys

import pytest

import fedjax_rec
from fedjax_rec.client.keys import key_of
from fedjax_rec.testing import tiny_population

SCRIPT = """
import sys
import numpy as np
import fedjax_rec as fr
from fedjax_rec.testing import tiny_population
try:
    state, _ = fr.simulate(fr.fedmf(dim=2, cohort=5), tiny_population(), rounds=1)
except ValueError as error:
    sys.exit(f"refused: {error}")
print(np.asarray(state.server.tables["vector"]).tobytes().hex())
"""


def _run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environment |= {"JAX_PLATFORMS": "cpu", **variables}
    return subprocess.run(  # noqa: S603 - our own script
        [sys.executable, *command], env=environment, capture_output=True, text=True, check=False, timeout=300
    )


def test_another_kind_of_key_by_default():
    """Runs name their kind of key, and have the bits of any other."""
    ours = _run("-c", SCRIPT, JAX_DEFAULT_PRNG_IMPL="rbg")
    assert ours.returncode == 0, ours.stderr
    state, _ = fedjax_rec.simulate(
        fedjax_rec.fedmf(dim=2, cohort=5), tiny_population(), rounds=1, seed=key_of(0)
    )
    assert ours.stdout.strip() == state.server.tables["vector"].__array__().tobytes().hex()


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("JAX_ENABLE_X64", "1"),
        ("JAX_DISABLE_JIT", "1"),
        ("JAX_NUMPY_DTYPE_PROMOTION", "strict"),
        ("JAX_THREEFRY_PARTITIONABLE", "0"),
    ],
)
def test_what_changes_the_rounds_is_refused(variable, value):
    """In one line, before anything is computed, which names the variable."""
    refused = _run("-c", SCRIPT, **{variable: value})
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("refused: ")
    assert f"({variable}) is" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_platform_that_is_not_there(tmp_path):
    """The command line names the variable, and shows no traceback."""
    arguments = ("-m", "fedjax_rec", "run", "--rounds", "1", "--out", str(tmp_path / "run"))
    refused = _run(*arguments, JAX_PLATFORMS="tpu")
    assert refused.returncode == 2
    assert "JAX_PLATFORMS is 'tpu'" in refused.stderr
    assert "Traceback" not in refused.stderr
