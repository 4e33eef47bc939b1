"""Errors and calibration of imputations, spread of weights, and a scorer that needs no y."""

from skbilevel.metrics.imputation import (
    imputation_crps,
    imputation_mae,
    imputation_rmse,
    interval_coverage,
    row_normalized_loss,
)
from skbilevel.metrics.masked_scorer import MaskedScorer, make_masked_scorer
from skbilevel.metrics.weights import effective_sample_size, entropy

__all__ = [
    "MaskedScorer",
    "effective_sample_size",
    "entropy",
    "imputation_crps",
    "imputation_mae",
    "imputation_rmse",
    "interval_coverage",
    "make_masked_scorer",
    "row_normalized_loss",
]
