"""What every solver of the package returns."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class SolverResult:
    """Solution of an inner (and, where there is one, an outer) problem.

    Attributes
    ----------
    inner : Any
        Inner variables, as the solver was given them.
    outer : Any
        Outer variables; None for a problem of one level.
    history : dict of str to list of float
        One value an iteration for each quantity that the solver follows.
    n_iter : int
        Number of iterations.
    converged : bool
        Whether the tolerance was met within the iterations allowed.
    """

    inner: Any
    outer: Any
    history: dict[str, list[float]]
    n_iter: int
    converged: bool
