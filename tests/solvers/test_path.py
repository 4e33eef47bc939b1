import math

import pytest

from skbilevel.solvers.path import best_along_path


def trace(values, errors, **kwargs):
    """The result of a path whose i-th solution has the i-th error, and the calls of solve."""
    calls = []

    def solve(value, last):
        calls.append((value, last))
        return f"solution {value}"

    errors = {f"solution {value}": e for value, e in zip(values, errors, strict=True)}
    return best_along_path(values, solve, errors.__getitem__, **kwargs), calls


@pytest.mark.parametrize("errors", [[1.0, 2.0, 3.0], [3.0, 1.0, 2.0], [3.0, 2.0, 1.0]])
def test_the_value_with_the_lowest_error_comes_with_its_solution(errors):
    best = "abc"[errors.index(1.0)]
    result, calls = trace("abc", errors)
    assert result == (best, f"solution {best}")
    assert len(calls) == 3


def test_every_solve_starts_at_the_last_solution_also_when_that_is_not_the_best():
    _, calls = trace("abcd", [2.0, 3.0, 1.0, 4.0])
    assert calls == [("a", None), ("b", "solution a"), ("c", "solution b"), ("d", "solution c")]


@pytest.mark.parametrize(("patience", "n_solved"), [(1, 2), (2, 5), (3, 7)])
def test_the_path_ends_after_so_many_values_in_a_row_without_a_better_one(patience, n_solved):
    result, calls = trace("abcdefg", [5.0, 6.0, 4.0, 4.5, 4.5, 1.0, 2.0], patience=patience)
    assert len(calls) == n_solved
    assert result[0] == {1: "a", 2: "c", 3: "f"}[patience]


def test_patience_is_two_by_default():
    result, calls = trace("abcd", [1.0, 2.0, 2.0, 0.0])
    assert (result[0], len(calls)) == ("a", 3)


def test_an_equal_error_is_no_better():
    result, calls = trace("abcd", [1.0, 1.0, 1.0, 1.0])
    assert (result[0], len(calls)) == ("a", 3)


@pytest.mark.parametrize("no_error", [math.nan, math.inf])
def test_a_value_without_a_finite_error_is_never_chosen(no_error):
    result, _ = trace("abc", [no_error, 5.0, no_error])
    assert result == ("b", "solution b")


def test_a_path_without_any_finite_error_is_an_error():
    with pytest.raises(ArithmeticError, match="finite error"):
        trace("ab", [math.nan, math.inf])


@pytest.mark.parametrize("n_solved", [1, 2, 3, 4])
def test_on_step_sees_every_solution_and_ends_the_path_at_the_best_so_far(n_solved):
    """The solution at which it stops counts."""
    seen = []

    def on_step(solution):
        seen.append(solution)
        return len(seen) == n_solved

    result, calls = trace("abcd", [3.0, 1.0, 2.0, 0.5], on_step=on_step)
    assert seen == [f"solution {value}" for value in "abcd"[:n_solved]]
    assert len(calls) == n_solved
    assert (
        result
        == {
            1: ("a", "solution a"),
            2: ("b", "solution b"),
            3: ("b", "solution b"),
            4: ("d", "solution d"),
        }[n_solved]
    )


def test_on_step_that_never_stops_changes_nothing_and_sees_the_last_value_of_the_path_too():
    """That which patience ends as well."""
    errors, seen = [5.0, 6.0, 4.0, 4.5, 4.5, 1.0, 2.0], []
    watched, calls = trace("abcdefg", errors, on_step=seen.append)
    assert (watched, calls) == trace("abcdefg", errors)
    assert seen == [f"solution {value}" for value in "abcde"]
