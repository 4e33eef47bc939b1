"""Memory beside the rows, of a network that is fitted to many and imputes them."""

import subprocess
import sys

import pytest

PEAK = """
import sys
import warnings
import numpy as np
from skbilevel import NotMIWAEImputer

def resident(key, reset=False):
    if reset:
        open("/proc/self/clear_refs", "w").write("5")
    lines = dict(line.split(":") for line in open("/proc/self/status") if ":" in line)
    return int(lines[key].split()[0]) / 1024

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
X = rng.normal(size=(int(sys.argv[1]), 3)) @ rng.normal(size=(3, 20))
X += 0.3 * rng.normal(size=X.shape)
X[:, :10][X[:, :10] > 0.5] = np.nan
imputer = NotMIWAEImputer(mechanism="censored", signs=1, max_iter=1, random_state=0)
imputer.fit(X[:500]).transform(X[:500])
out = np.zeros_like(X)
for step in (lambda: imputer.fit(X), lambda: imputer.transform(X, out=out)):
    before = resident("VmRSS", reset=True)
    step()
    print(resident("VmHWM") - before)
"""


def peaks(n_rows):
    command = [sys.executable, "-c", PEAK, str(n_rows)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    return [float(line) for line in run.stdout.split()]


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_rows():
    """Results held between the large tensors of two parts once took 2 MB for every 1,000 rows."""
    few, many = peaks(10_000), peaks(100_000)
    assert all(grown < before + 30 for grown, before in zip(many, few, strict=True)), (few, many)
    assert max(many) < 80
