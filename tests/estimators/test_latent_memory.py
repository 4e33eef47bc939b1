"""Memory beside the rows, of a network that is fitted to many and imputes them."""

import sys

import pytest

from tests.resident_memory import peaks

PEAK = """
import sys
import warnings
import numpy as np
from skbilevel import NotMIWAEImputer

warnings.simplefilter("ignore")
rng = np.random.default_rng(0)
X = rng.normal(size=(int(sys.argv[1]), 3)) @ rng.normal(size=(3, 20))
X += 0.3 * rng.normal(size=X.shape)
X[:, :10][X[:, :10] > 0.5] = np.nan
imputer = NotMIWAEImputer(mechanism="censored", signs=1, max_iter=1, random_state=0)
imputer.fit(X[:500]).transform(X[:500])
out = np.zeros_like(X)
steps = (lambda: imputer.fit(X), lambda: imputer.transform(X, out=out))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_rows():
    """From one block of rows on. Results held between the large tensors of two parts once
    took 2 MB for every 1,000 rows."""
    few, many = peaks(PEAK, 40_000), peaks(PEAK, 100_000)
    assert all(grown < before + 30 for grown, before in zip(many, few, strict=True)), (few, many)
    assert max(many) < 80
