"""Observed cells, weighted as missing ones are distributed.

How well an imputation does can only be seen at observed cells. Where other columns decide what is
missing, rows with missing cells are not like the others, and an average over observed cells is
about the wrong rows. Each cell gets the odds that one like it is missing, given the other columns,
as in importance weighting for covariate shift; missing at random is what makes that right.
"""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

# Weights are kept within these bounds, relative to their mean: larger ones rest on few cells, of
# which there are too few to tell anything.
_LEAST, _MOST, _FEWEST = 1 / 3, 3.0, 10
# Log odds are cut here, before they overflow.
_C, _FARTHEST = 0.1, 20.0


def missing_odds(observed: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """Weights of all cells, (n, d), with mean 1 over the observed ones of each column.

    Parameters
    ----------
    observed : ndarray of shape (n, d), bool
    filled : ndarray of shape (n, d)
        About standardised rows, complete.
    """
    weights = np.ones(observed.shape)
    for j, known in enumerate(observed.T):
        if min(known.sum(), (~known).sum()) < _FEWEST or observed.shape[1] == 1:
            continue
        others = np.delete(filled, j, axis=1)
        model = LogisticRegression(C=_C).fit(others, ~known)
        odds = np.exp(np.clip(model.decision_function(others), -_FARTHEST, _FARTHEST))
        odds = np.clip(odds / odds[known].mean(), _LEAST, _MOST)
        weights[:, j] = odds / odds[known].mean()
    return weights
