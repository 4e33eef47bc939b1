"""What a tilt adds to imputed rows."""

import numpy as np
import torch

from skbilevel.estimators.linear_model import ROWS_AT_A_TIME, LinearModel
from skbilevel.numerics.masked_inverse import masked_solve
from skbilevel.numerics.row_groups import row_block, slices


def tilt_shift(Z: np.ndarray, normal: LinearModel, tilt: np.ndarray) -> np.ndarray:
    """C gamma of each row, (b, d): eq. (1) of `skbilevel.objectives.shadow_tilt`.

    With the precision P it is (P_mm)^-1 gamma_m at the missing cells m of a row, and 0 at others,
    so that no covariance of a row is needed.

    Parameters
    ----------
    Z : ndarray of shape (b, d)
        Standardised rows with NaN at missing cells.
    normal : LinearModel
        About standardised rows.
    tilt : ndarray of shape (d,)
    """
    shift = np.zeros(Z.shape)
    if not tilt.any():
        return shift
    gamma, precision = torch.from_numpy(tilt), normal.precision.matrix
    zero = np.zeros(Z.shape[1])
    for part in slices(len(Z), ROWS_AT_A_TIME):
        for group, where in row_block(Z[part], zero, zero + 1).placed():
            if group.n_missing:
                moved = masked_solve(precision, group.missing, gamma[group.missing])
                shift[where + part.start, group.missing.numpy()] = moved.numpy()
    return shift
