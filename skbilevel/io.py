"""Save and load fitted estimators without pickle.

The fitted state of every estimator is NumPy arrays and plain Python, which skops stores without
running code on load. Needs the extra ``io``.
"""

import warnings
from os import PathLike
from types import ModuleType
from typing import Any
from zipfile import ZipFile

import skbilevel

__all__ = ["TRUSTED_TYPES", "load", "save"]

#: The types of this package that a file may hold besides those that skops trusts by itself.
TRUSTED_TYPES = (
    "skbilevel.estimators.bilevel.BilevelImputer",
    "skbilevel.estimators.bilevel_gradient.BilevelGradient",
    "skbilevel.estimators.bilevel_predictors.BilevelClassifier",
    "skbilevel.estimators.bilevel_predictors.BilevelRegressor",
    "skbilevel.estimators.gaussian.GaussianImputer",
    "skbilevel.estimators.miwae.MIWAEImputer",
    "skbilevel.estimators.not_miwae.NotMIWAEImputer",
    "skbilevel.estimators.conditional_moment.ConditionalMomentGradient",
    "skbilevel.estimators.linear_head.RidgeHead",
    "skbilevel.estimators.linear_head.SoftmaxHead",
    "skbilevel.estimators.nystroem.NystroemRidge",
    "skbilevel.estimators.orthogonal_fqe.OrthogonalFQE",
    "skbilevel.estimators.orthogonal_iv.OrthogonalIVRegressor",
    "skbilevel.estimators.reweighting.ReweightingClassifier",
    "skbilevel.estimators.reweighting.ReweightingRegressor",
    "skbilevel.metrics.masked_scorer.MaskedScorer",
    "skbilevel.model_selection.TargetKFold",
)
# A file of skops is a zip archive; it ignores members that it does not know.
_VERSION_MEMBER = "skbilevel_version"


def save(estimator: Any, path: str | PathLike[str]) -> None:
    """Write an estimator, or a Pipeline that holds some, to a file.

    The version of skbilevel is written beside the estimator, once for the whole file. Other
    readers of skops files ignore it.

    Parameters
    ----------
    estimator : estimator
        Fitted or not.
    path : path-like
        File to write.

    Warns
    -----
    UserWarning
        If the file holds types that `load` has to be told to trust, callbacks for example.

    Raises
    ------
    ImportError
        If skops is not installed; it comes with the extra ``io``.
    TypeError
        If a parameter is one that only pickle can store, such as a torch module or a pandas
        Series. Nothing is written.

    Examples
    --------
    >>> import tempfile, os
    >>> from skbilevel import GaussianImputer, io
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "imputer.skops")
    ...     io.save(GaussianImputer(robust=True), path)
    ...     io.load(path)
    GaussianImputer(robust=True)
    """
    skops_io = _skops_io()
    try:
        skops_io.dump(estimator, path)
    except (RuntimeError, TypeError) as error:
        raise TypeError(
            f"{type(estimator).__name__} holds an object that cannot be stored without pickle, a "
            "torch module or a pandas Series for example, as a parameter; use pickle for it."
        ) from error
    with ZipFile(path, "a") as archive:
        archive.writestr(_VERSION_MEMBER, skbilevel.__version__)
    foreign = sorted(set(skops_io.get_untrusted_types(file=path)) - set(TRUSTED_TYPES))
    if foreign:
        warnings.warn(
            f"The file holds types that load will only read with trusted={foreign}.",
            stacklevel=2,
        )


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

    Warns
    -----
    UserWarning
        If another version of skbilevel saved the file: its attributes can mean something else in
        this one, so that results can differ. A file that skops wrote without `save` bears no
        version and is read without this warning. The estimators of scikit-learn in a file bear
        their own version, and warn by themselves.

    Raises
    ------
    TypeError
        If ``trusted`` is no sequence of names.
    ImportError
        If skops is not installed; it comes with the extra ``io``.
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
    if isinstance(trusted, bool | str):
        raise TypeError(f"trusted must be a sequence of names of types, got {trusted!r}.")
    skops_io = _skops_io()
    saved_by = _saved_version(path)
    if saved_by not in (None, skbilevel.__version__):
        warnings.warn(
            f"The file was saved by skbilevel {saved_by} and is read by {skbilevel.__version__}: "
            "results can differ, or loading can fail. Fit and save again, or install that "
            "version.",
            stacklevel=2,
        )
    return skops_io.load(path, trusted=[*TRUSTED_TYPES, *trusted])


def _skops_io() -> ModuleType:
    try:
        import skops.io  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(
            'skbilevel.io needs skops, which is not installed: pip install "skbilevel[io]"'
        ) from error
    return skops.io


def _saved_version(path: str | PathLike[str]) -> str | None:
    with ZipFile(path) as archive:
        if _VERSION_MEMBER not in archive.namelist():
            return None
        return archive.read(_VERSION_MEMBER).decode()
