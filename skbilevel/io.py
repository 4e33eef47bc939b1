"""Save and load fitted estimators without pickle.

The fitted state of every estimator is NumPy arrays and plain Python, which skops stores without
running code on load. Needs the extra ``io``.
"""

from os import PathLike
from typing import Any

__all__ = ["TRUSTED_TYPES", "load", "save"]

#: The types of this package that a file may hold besides those that skops trusts by itself.
TRUSTED_TYPES = (
    "skbilevel.estimators.gaussian.GaussianImputer",
    "skbilevel.metrics.masked_scorer.MaskedScorer",
)


def save(estimator: Any, path: str | PathLike[str]) -> None:
    """Write an estimator, or a Pipeline that holds some, to a file.

    Parameters
    ----------
    estimator : estimator
        Fitted or not.
    path : path-like
        File to write.
    """
    import skops.io  # noqa: PLC0415

    skops.io.dump(estimator, path)


def load(path: str | PathLike[str], trusted: tuple[str, ...] = ()) -> Any:
    """Read what `save` wrote.

    Parameters
    ----------
    path : path-like
        File to read.
    trusted : tuple of str, default=()
        Qualified names of further types that the file may hold, for example of a user's own
        transformer in a Pipeline.

    Returns
    -------
    estimator

    Raises
    ------
    skops.io.exceptions.UntrustedTypesFoundException
        If the file holds a type that is neither of this package nor in ``trusted``.

    Examples
    --------
    >>> import tempfile, os, numpy as np
    >>> from skbilevel import GaussianImputer, io
    >>> X = np.array([[1.0, 2.0], [2.0, np.nan], [3.0, 6.5]])
    >>> imputer = GaussianImputer(random_state=0).fit(X)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "imputer.skops")
    ...     io.save(imputer, path)
    ...     loaded = io.load(path)
    >>> bool((loaded.transform(X) == imputer.transform(X)).all())
    True
    """
    import skops.io  # noqa: PLC0415

    return skops.io.load(path, trusted=[*TRUSTED_TYPES, *trusted])
