"""Cross-validation that scores on the rows of the distribution that matters only."""

from collections.abc import Iterator
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import BaseCrossValidator, KFold
from sklearn.utils import check_consistent_length

__all__ = ["TargetKFold"]

Indices = NDArray[np.intp]
Mask = NDArray[np.bool_]


class TargetKFold(BaseCrossValidator):
    """K folds of the target rows; the source rows are in every training set.

    A target row is of the distribution that matters (its label is clean, or it is of the target
    domain); all others are source rows. Only target rows are tested on: a score on source rows
    would reward a model for the errors and the shift that are in them.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2 and at most the number of target rows.
    is_target : array-like of shape (n_samples,), optional
        True (or 1) for a target row, False (or 0) for a source row. By default the `groups` of
        :meth:`split`. Nested cross-validation needs those: scikit-learn takes the rows of a
        training set from `groups`, and cannot do so from a parameter of the splitter.
    shuffle : bool, default=False
        Whether to shuffle the target rows before they are split into folds.
    random_state : int, RandomState instance or None, default=None
        Orders the target rows if `shuffle` is True; must be None otherwise.

    See Also
    --------
    sklearn.model_selection.KFold : Makes the folds of the target rows, and those of all rows.
    sklearn.model_selection.PredefinedSplit : Folds named row by row; can keep rows in training.

    Notes
    -----
    If metadata routing is enabled, `groups` is requested by default, and goes into ``params`` of
    ``cross_validate``. After ``set_split_request(groups="is_target")`` it is passed under that
    name, which an estimator can request for its ``fit`` too.

    If it is not enabled, a mask is passed as ``groups`` to ``cross_validate`` and to ``fit`` of
    ``GridSearchCV``; for a search inside of ``cross_validate`` it is passed twice, as in the
    example.

    ``cross_val_predict`` needs test sets that hold every row, and refuses this splitter unless
    all rows are target rows.

    Examples
    --------
    >>> import numpy as np
    >>> from skbilevel.model_selection import TargetKFold
    >>> X = np.arange(6.0).reshape(6, 1)
    >>> cv = TargetKFold(2, is_target=[False, True, True, False, True, True])
    >>> for train, test in cv.split(X):
    ...     print(train, test)
    [0 3 4 5] [1 2]
    [0 1 2 3] [4 5]

    Nested cross-validation, where the mask is passed as `groups` to both loops:

    >>> from sklearn.linear_model import Ridge
    >>> from sklearn.model_selection import GridSearchCV, cross_validate
    >>> X = np.tile(np.linspace(-1, 1, 12), 2).reshape(24, 1)
    >>> is_target = np.arange(24) < 12
    >>> y = np.where(is_target, 1, 5) * X[:, 0]  # the slope of source rows is wrong
    >>> search = GridSearchCV(Ridge(), {"alpha": [0.01, 20.0]}, cv=TargetKFold(2))
    >>> results = cross_validate(
    ...     search, X, y, cv=TargetKFold(3), groups=is_target, params={"groups": is_target},
    ...     return_estimator=True,
    ... )
    >>> [best.best_params_["alpha"] for best in results["estimator"]]
    [20.0, 20.0, 20.0]
    """

    __metadata_request__split: ClassVar[dict[str, bool]] = {"groups": True}

    def __init__(
        self,
        n_splits: int = 5,
        *,
        is_target: ArrayLike | None = None,
        shuffle: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_splits = n_splits
        self.is_target = is_target
        self.shuffle = shuffle
        self.random_state = random_state
        self._folds()

    def split(
        self, X: Any, y: Any = None, groups: ArrayLike | None = None
    ) -> Iterator[tuple[Indices, Indices]]:
        """Generate the indices of each training set and of its test set.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Only its number of rows is used.
        y : array-like of shape (n_samples,), optional
            Not used.
        groups : array-like of shape (n_samples,), optional
            True (or 1) for a target row, False (or 0) for a source row. May be left out if
            `is_target` is given, and must be equal to it otherwise.

        Yields
        ------
        train : ndarray of int
            All source rows and the target rows of the other folds, in increasing order.
        test : ndarray of int
            The target rows of the fold, in increasing order.

        Raises
        ------
        ValueError
            If the mask is not given, is not of one boolean for each row of X, is given twice and
            differs, or has fewer target rows than folds.
        """
        check_consistent_length(X, y)
        n_rows = X.shape[0] if hasattr(X, "shape") else len(X)
        target = np.flatnonzero(self._mask(n_rows, groups))
        if len(target) < self.n_splits:
            raise ValueError(
                f"n_splits={self.n_splits} is more than the number of target rows, {len(target)}"
            )
        for _, fold in self._folds().split(target):
            test = target[fold]
            yield np.delete(np.arange(n_rows), test), test

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Number of folds.

        Parameters
        ----------
        X, y, groups : object
            Not used.

        Returns
        -------
        n_splits : int
            The parameter of that name.
        """
        return self.n_splits

    def _folds(self) -> KFold:
        """The folds of the target rows; raises what is wrong with their parameters."""
        return KFold(self.n_splits, shuffle=self.shuffle, random_state=self.random_state)

    def _mask(self, n_rows: int, groups: ArrayLike | None) -> Mask:
        """The one mask that is given, or both if they are equal."""
        given = {"is_target": self.is_target, "groups": groups}
        masks = {name: _boolean(name, mask) for name, mask in given.items() if mask is not None}
        if not masks:
            raise ValueError(
                "TargetKFold needs to know the target rows: give is_target to its constructor, or"
                " pass the mask as groups"
            )
        if len(masks) == 2 and not np.array_equal(masks["is_target"], masks["groups"]):
            raise ValueError(
                "is_target and groups differ: give one of them, which has to be groups in nested"
                " cross-validation"
            )
        name, mask = masks.popitem()
        if len(mask) != n_rows:
            raise ValueError(
                f"{name} has {len(mask)} values for {n_rows} rows of X; with nested"
                " cross-validation the mask must be passed as groups"
            )
        return mask


def _boolean(name: str, mask: ArrayLike) -> Mask:
    """The mask as an array of bool; what is neither a boolean nor 0 nor 1 is an error."""
    # As objects, because numpy makes strings of a list in which one value is a string.
    values = np.asarray(mask, dtype=object)
    if values.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, got an array of shape {values.shape}")
    for value in values:
        if not (isinstance(value, (Real, np.bool_)) and value in (0, 1)):
            raise ValueError(f"{name} must hold booleans, or 0 and 1, only, got {value!r}")
    return values.astype(bool)
