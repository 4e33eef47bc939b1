"""Checks for imputers on data with missing cells.

``sklearn.utils.estimator_checks.check_estimator`` gives imputers complete data in almost all of
its checks, where ``transform`` is the identity. The checks here run the same kind of invariances
on incomplete data. They need nothing of this package, so that any imputer can be put to them.
"""

import warnings
from inspect import Parameter, signature
from typing import Any
from unittest import SkipTest

from sklearn.base import BaseEstimator

import skbilevel
from skbilevel.imputer_checks import IMPUTER_CHECKS, Check, fresh

__all__ = ["IMPUTER_CHECKS", "all_estimators", "check_imputer"]


def all_estimators() -> list[tuple[str, type[BaseEstimator]]]:
    """All public estimators of skbilevel that can be constructed without arguments.

    Those that need a residual, losses or a policy are not among them.

    Returns
    -------
    list of (str, type)
        Names and classes in alphabetical order.

    Examples
    --------
    >>> from skbilevel.testing import all_estimators
    >>> dict(all_estimators())["GaussianImputer"]()
    GaussianImputer()
    """
    public = ((name, getattr(skbilevel, name)) for name in skbilevel.__all__)
    return sorted(
        (name, item)
        for name, item in public
        if isinstance(item, type) and issubclass(item, BaseEstimator) and _needs_nothing(item)
    )


def check_imputer(imputer: Any, on_fail: str | None = "raise") -> list[dict[str, Any]]:
    """Run all checks of `IMPUTER_CHECKS` on an imputer of numeric features.

    Parameters
    ----------
    imputer : estimator
        An unfitted imputer; it is cloned for each check, with ``missing_values=nan`` and neither
        indicator nor empty features unless a check is about them.
    on_fail : {"raise", "warn"} or None, default="raise"
        What to do with a failed check: raise its error, warn, or only report it.

    Returns
    -------
    list of dict
        "check_name", "status" ("passed", "failed" or "skipped") and "exception" (None if passed)
        of each check. A check is skipped, and the exception says why, if it is about a feature
        that the imputer does not have: a parameter ``missing_values``, ``add_indicator`` or
        ``keep_empty_features``, or ``set_output``. So are those of pandas and of polars where
        the package is not installed.

    Raises
    ------
    Exception
        The error of the first failed check with ``on_fail="raise"``, with a note that names it.

    Examples
    --------
    >>> from sklearn.impute import SimpleImputer
    >>> from skbilevel.testing import check_imputer
    >>> results = check_imputer(SimpleImputer(), on_fail=None)
    >>> [result["check_name"] for result in results if result["status"] == "failed"]
    []
    """
    if on_fail not in ("raise", "warn", None):
        raise ValueError(f"on_fail must be 'raise', 'warn' or None, got {on_fail!r}.")
    results = []
    for name, check in IMPUTER_CHECKS.items():
        status, exception = _outcome(check, imputer)
        results.append({"check_name": name, "status": status, "exception": exception})
        if status == "failed" and exception is not None:
            if on_fail == "raise":
                exception.add_note(f"check_imputer: {name} failed")
                raise exception
            if on_fail == "warn":
                warnings.warn(f"{name} failed: {exception!r}", UserWarning, stacklevel=2)
    return results


def _needs_nothing(kind: type[BaseEstimator]) -> bool:
    parameters = list(signature(kind).parameters.values())
    return all(parameter.default is not Parameter.empty for parameter in parameters)


def _outcome(check: Check, imputer: Any) -> tuple[str, Exception | None]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(fresh(imputer))
    except SkipTest as error:
        return "skipped", error
    except Exception as error:
        return "failed", error
    return "passed", None
