"""Choice of one regularisation value along a path."""

from collections.abc import Callable, Sequence
from typing import TypeVar

Value = TypeVar("Value")
Solution = TypeVar("Solution")


def best_along_path(
    values: Sequence[Value],
    solve: Callable[[Value, Solution | None], Solution],
    error: Callable[[Solution], float],
    patience: int = 2,
    on_step: Callable[[Solution], bool] | None = None,
) -> tuple[Value, Solution]:
    """Solve for one value after the other, each from the last solution, and keep the best.

    Parameters
    ----------
    values : sequence
        Candidates in the order in which they are tried.
    solve : callable
        ``solve(value, last_solution) -> solution``; ``last_solution`` is None at first.
    error : callable
        ``error(solution) -> float``, lower is better.
    patience : int, default=2
        Stop after this many values in a row without a better error.
    on_step : callable, optional
        ``on_step(solution) -> stop`` after every value.

    Returns
    -------
    value, solution
        The value with the lowest error and its solution.
    """
    best_value, best_solution, best_error = values[0], None, float("inf")
    solution, waited = None, 0
    for value in values:
        solution = solve(value, solution)
        current = error(solution)
        waited = 0 if current < best_error else waited + 1
        if current < best_error:
            best_value, best_solution, best_error = value, solution, current
        stopped = on_step is not None and on_step(solution)
        if stopped or waited == patience:
            break
    if best_solution is None:
        raise ArithmeticError("no value of the path gave a finite error")
    return best_value, best_solution
