"""The hypergradient of weighted linear models in the log weights of groups, with its errors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from skbilevel.estimators.gradient_result import GradientResult
from skbilevel.objectives.reweighting import ReweightedLinear
from skbilevel.objectives.two_sample import TwoSampleScores, grouped_linear_scores
from skbilevel.solvers.weighted_newton import Minimum, inverse_product, minimum


class GroupGradient(NamedTuple):
    """A hypergradient, and the model at which it was taken.

    Attributes
    ----------
    result : GradientResult
    theta : ndarray of shape (p k,)
    converged : bool
        Whether the model and all linear systems were solved.
    """

    result: GradientResult
    theta: np.ndarray
    converged: bool


def group_gradient(
    problem: ReweightedLinear, weights: np.ndarray, groups: np.ndarray, n_groups: int
) -> GroupGradient:
    """Of the loss of the target rows, in the log weights of groups of the training rows.

    Parameters
    ----------
    problem : ReweightedLinear
        Whose target rows are a sample by themselves.
    weights : ndarray of shape (n,)
    groups : ndarray of shape (n,), int
        From 0 to ``n_groups - 1``.
    n_groups : int

    Returns
    -------
    GroupGradient
    """
    shares, codes = torch.from_numpy(weights), torch.from_numpy(groups)
    at = minimum(problem, shares, Minimum(shares.new_zeros(problem.n_parameters)))
    solved = [at.converged]

    def solve(right: torch.Tensor) -> torch.Tensor:
        found = inverse_product(problem, shares, at, right)
        solved.append(found.converged)
        return found.value

    scores = grouped_linear_scores(problem, shares, codes, n_groups, at.theta, solve)
    return GroupGradient(two_sample_result(scores), at.theta.numpy(), all(solved))


def two_sample_result(scores: TwoSampleScores) -> GradientResult:
    """Sum of the means of both samples, whose covariances add up.

    Rows of both are told as one sample of N: a deviation from the mean of n rows times
    ``N / sqrt(n (n - 1))``, around the gradient. Their mean is the gradient then, and the sum of
    squares of their deviations is N^2 times its covariance, so that both samples count for what
    they are in a multiplier bootstrap.
    """
    parts = [scores.outer.numpy(), scores.inner.numpy()]
    total = sum(len(part) for part in parts)
    gradient = np.sum([part.mean(axis=0) for part in parts], axis=0)
    deviations = np.vstack(
        [total / np.sqrt(len(p) * (len(p) - 1)) * (p - p.mean(axis=0)) for p in parts]
    )
    return GradientResult(gradient, deviations.T @ deviations / total**2, gradient + deviations)
