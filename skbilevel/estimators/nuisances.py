"""Conditional means of many outputs, told of rows by models that have not seen them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, KFold, check_cv
from sklearn.utils import check_random_state

from skbilevel.estimators.nystroem import FeatureMap, NystroemRidge, feature_map, ridges_of
from skbilevel.estimators.smoother import (
    Axes,
    Echo,
    Gram,
    Products,
    Smoother,
    fitted_smoother,
    held_out_errors,
    sum_of,
    with_ridges,
)

# Rows whose features are there at once, and how many numbers of all features are kept.
_BLOCK, _KEPT = 4096, 2**23


class Split(NamedTuple):
    """Rows that a model learns from, and rows that it tells.

    Attributes
    ----------
    train, test : ndarray of int
    """

    train: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Folds:
    """One way to split the rows.

    Attributes
    ----------
    splits : sequence of Split
    side : ndarray of bool of shape (n,)
        Halves of the training rows, which share no group.
    groups : ndarray of shape (n,), int, or None
        Of rows that are not independent.
    seed : int
    """

    splits: Sequence[Split]
    side: np.ndarray
    groups: np.ndarray | None
    seed: int

    @property
    def rows(self) -> np.ndarray:
        """Rows that are told, sorted."""
        return np.sort(np.concatenate([split.test for split in self.splits]))

    @property
    def which(self) -> np.ndarray:
        """Which split tells each of these rows."""
        number = np.concatenate([np.full(len(s.test), k) for k, s in enumerate(self.splits)])
        return number[np.argsort(np.concatenate([s.test for s in self.splits]), kind="stable")]


@dataclass(frozen=True)
class Told:
    """What is told of outputs (n, k).

    Attributes
    ----------
    means : ndarray of shape (n, k)
        NaN for rows that no split tells.
    shared : ndarray of shape (1, k, k) or (n, k, k)
        What the product of two means expects too much, as both are made of the same noisy rows;
        0 where nothing is known of it.
    ridges : list of ndarray of shape (k,)
        Of each split, if a `NystroemRidge` has told; NaN of an output that does not vary.
    """

    means: np.ndarray
    shared: np.ndarray
    ridges: list[np.ndarray]

    def at(self, rows: np.ndarray) -> Told:
        """Of some of the rows."""
        shared = self.shared if len(self.shared) == 1 else self.shared[rows]
        return replace(self, means=self.means[rows], shared=shared)

    def of(self, outputs: np.ndarray) -> Told:
        """Of some of the outputs."""
        shared = self.shared[:, outputs][:, :, outputs]
        return Told(self.means[:, outputs], shared, [each[outputs] for each in self.ridges])


def varying(outputs: np.ndarray) -> np.ndarray:
    """Whether each of the outputs (n, k) varies beyond rounding."""
    rounding = len(outputs) * np.finfo(float).eps * np.abs(outputs).max(axis=0)
    return np.ptp(outputs, axis=0) > rounding


def splits_of(
    cv: Any, X: np.ndarray, groups: np.ndarray | None, seed: int, name: str = "cv"
) -> list[Split]:
    """Splits of rows X (n, d); a number of folds is of shuffled rows, or groups of rows.

    Raises
    ------
    ValueError
        If there are fewer rows, or groups, than folds, a row would be told twice, or by a model
        that has seen it.
    """
    n_units = len(X) if groups is None else len(np.unique(groups))
    if isinstance(cv, int | np.integer):
        if n_units < cv:
            what = "n_samples" if groups is None else "number of groups"
            raise ValueError(f"{name}={cv} needs as many rows or groups; {what}={n_units}.")
        kind = KFold if groups is None else GroupKFold
        cv = kind(int(cv), shuffle=True, random_state=seed)
    splits = [Split(*map(_indices, each)) for each in check_cv(cv).split(X, None, groups)]
    if max(np.bincount(np.concatenate([split.test for split in splits]))) > 1:
        raise ValueError(f"{name} tells a row twice: its test sets must not overlap.")
    if any(len(np.intersect1d(*split)) for split in splits):
        raise ValueError(
            f"{name} has rows in both the training and the test set of a split; cross_fit=False "
            "is for nuisances that have seen the rows which they tell."
        )
    return splits


def halves_of(splits: Sequence[Split], side: np.ndarray) -> tuple[list[Split], list[Split]]:
    """The same with half of the training rows each, by a side (n,) of every row."""
    halves = ([replace_train(split, side) for split in splits] for side in (side, ~side))
    first, second = halves
    return first, second


def replace_train(split: Split, kept: np.ndarray) -> Split:
    """With those training rows that are kept, a mask of all rows."""
    return Split(split.train[kept[split.train]], split.test)


@dataclass(frozen=True)
class Learner:
    """Tells outputs of rows.

    Attributes
    ----------
    nuisance : estimator
        A regressor.
    correction : {"none", "second_order", "disjoint"}
    seed : int
    """

    nuisance: Any
    correction: str
    seed: int

    @property
    def is_smoother(self) -> bool:
        """Whether its weights are known."""
        return isinstance(self.nuisance, NystroemRidge)

    def prepared(
        self, X: np.ndarray, outputs: np.ndarray, groups: np.ndarray | None = None
    ) -> FeatureMap | None:
        """Features that suit rows and outputs, for a smoother."""
        varies = varying(outputs)
        if not self.is_smoother or not varies.any():
            return None
        state = self.nuisance.random_state
        rng = check_random_state(self.seed if state is None else state)
        parts = X, outputs[:, varies], np.ones(len(X)), rng
        return feature_map(self.nuisance, *parts, groups)

    def rows(
        self, X: np.ndarray, features: FeatureMap | None, folds: Folds
    ) -> list[BlockedRows] | None:
        """What a smoother knows of rows before it knows outputs, for each set of splits."""
        if features is None:
            return None
        return [BlockedRows.of(X, features, splits, folds.groups) for splits in self._sets(folds)]

    def tell(
        self,
        X: np.ndarray,
        outputs: np.ndarray,
        folds: Folds,
        rows: list[BlockedRows] | None = None,
        ridges: Sequence[np.ndarray] | None = None,
    ) -> Told:
        """Tell outputs (n, k) of rows (n, d); those that do not vary are what they are.

        Rows and ridges that are given are not made, or chosen, anew.
        """
        varies = varying(outputs)
        sets, told = self._sets(folds), []
        if not varies.any():
            return _constants(outputs, folds.splits)
        if rows is None and self.is_smoother:
            rows = self.rows(X, self.prepared(X, outputs, folds.groups), folds)
        for number, splits in enumerate(sets):
            if rows is None:
                told.append(self._predict(X, outputs[:, varies], splits))
                continue
            known = None
            if ridges is not None:
                first = number * len(splits)
                known = [_filled(each)[varies] for each in ridges[first : first + len(splits)]]
            told.append(
                rows[number].smoothed(
                    outputs[:, varies],
                    ridges_of(self.nuisance),
                    self.nuisance.undersmooth,
                    self.correction == "second_order",
                    known,
                )
            )
        return _with_constants(_averaged(*told) if len(told) == 2 else told[0], outputs, varies)

    def _sets(self, folds: Folds) -> list[Sequence[Split]]:
        """The splits, or with half of the training rows each."""
        if self.correction != "disjoint":
            return [folds.splits]
        return list(halves_of(folds.splits, folds.side))

    def _predict(self, X: np.ndarray, outputs: np.ndarray, splits: Sequence[Split]) -> Told:
        means = np.full(outputs.shape, np.nan)
        for split in splits:
            for column, output in enumerate(outputs.T):
                model = seeded(clone(self.nuisance), self.seed)
                model.fit(X[split.train], output[split.train])
                means[split.test, column] = np.ravel(model.predict(X[split.test]))
        return Told(means, np.zeros((1, outputs.shape[1], outputs.shape[1])), [])


class Block(NamedTuple):
    """Rows that are in the same training and test sets, whose features are there at once.

    Attributes
    ----------
    cell : int
        Of these sets.
    rows : ndarray of int
        Ordered by groups.
    starts : ndarray of int or None
        Where groups begin, each of which is in one block.
    """

    cell: int
    rows: np.ndarray
    starts: np.ndarray | None


@dataclass(frozen=True)
class BlockedRows:
    """Features of rows, block by block, and the axes of each training set.

    Rows that are in the same training and test sets form a cell; what a training set needs to
    know of them are sums, which its cells add up to.

    Attributes
    ----------
    X : ndarray of shape (n, d)
    features : FeatureMap
    splits : sequence of Split
    blocks : list of Block
    learns, tells : ndarray of bool of shape (n_splits, n_cells)
        Which cells are in the training and in the test set of each split.
    grams : list of Gram
        Of each cell.
    axes : list of Axes
        Of each training set.
    has_groups : bool
        Whether rows share noise with others.
    kept : list of ndarray of shape (b, q)
        Features of the blocks, unless they are many.
    """

    X: np.ndarray
    features: FeatureMap
    splits: Sequence[Split]
    blocks: list[Block]
    learns: np.ndarray
    tells: np.ndarray
    grams: list[Gram]
    axes: list[Axes]
    has_groups: bool
    kept: list[np.ndarray]

    @classmethod
    def of(
        cls,
        X: np.ndarray,
        features: FeatureMap,
        splits: Sequence[Split],
        groups: np.ndarray | None = None,
    ) -> BlockedRows:
        """Pass over the rows once, with groups (n,) that share noise."""
        member = np.zeros((len(X), 2, len(splits)), dtype=bool)
        for number, split in enumerate(splits):
            member[split.train, 0, number] = member[split.test, 1, number] = True
        kinds, cell = np.unique(member.reshape(len(X), -1), axis=0, return_inverse=True)
        learns, tells = kinds.reshape(len(kinds), 2, -1).transpose(1, 2, 0)
        q = features.kernel.root.shape[1]
        grams, kept, blocks = [Gram(np.zeros((q + 1, q + 1)))] * len(kinds), [], []
        for number in range(len(kinds)):
            for block in _blocks(number, np.flatnonzero(cell.ravel() == number), groups):
                z = features(X[block.rows])
                grams[number] = grams[number] + Gram.of(z)
                blocks.append(block)
                if len(X) * q <= _KEPT:
                    kept.append(z)
        axes = [Axes.of(sum_of(_where(grams, of_split))) for of_split in learns]
        has_groups = groups is not None
        return cls(X, features, splits, blocks, learns, tells, grams, axes, has_groups, kept)

    def smoothed(
        self,
        outputs: np.ndarray,
        ridges: Sequence[float],
        undersmooth: float,
        echoes: bool,
        chosen: Sequence[np.ndarray] | None = None,
    ) -> Told:
        """Tell outputs (n, k), with ridges of each split (k,) if these are chosen already."""
        n_told, k = sum(len(split.test) for split in self.splits), outputs.shape[1]
        shift = outputs.mean(axis=0)
        centred = outputs - shift
        models = self._models(centred, ridges, undersmooth, chosen)
        echo = [
            Echo.of(model, sum_of(_where(self.grams, of_split))) if echoes else None
            for model, of_split in zip(models, self.tells, strict=True)
        ]
        means, shared = np.full(outputs.shape, np.nan), np.zeros((k, k))
        for (cell, rows, starts), z in self._with_features():
            for number, model in enumerate(models):
                each = echo[number] if self.learns[number, cell] else None
                if each is None and not self.tells[number, cell]:
                    continue
                told = model.predict(z)
                if self.tells[number, cell]:
                    means[rows] = told + shift
                if each is not None:
                    share = len(self.splits[number].test) / n_told
                    shared += share * each.of_rows(z, centred[rows] - told, starts)
        return Told(means, shared[np.newaxis], [model.ridges for model in models])

    def _models(
        self,
        outputs: np.ndarray,
        ridges: Sequence[float],
        undersmooth: float,
        chosen: Sequence[np.ndarray] | None,
    ) -> list[Smoother]:
        q, k = self.features.kernel.root.shape[1], outputs.shape[1]
        products = [Products(np.zeros((q + 1, k)), np.zeros(k))] * self.learns.shape[1]
        for block, z in self._with_features():
            products[block.cell] = products[block.cell] + Products.of(z, outputs[block.rows])
        models = []
        for number, (axes, of_split) in enumerate(zip(self.axes, self.learns, strict=True)):
            parts = _where(products, of_split)
            if chosen is not None:
                models.append(with_ridges(axes, sum_of(parts), chosen[number]))
            elif self.has_groups and len(parts) > 1:
                errors = held_out_errors(_where(self.grams, of_split), parts, ridges)
                best = undersmooth * np.asarray(ridges)[errors.argmin(axis=0)]
                models.append(with_ridges(axes, sum_of(parts), best))
            else:
                models.append(fitted_smoother(axes, sum_of(parts), ridges, undersmooth))
        return models

    def _with_features(self) -> Iterator[tuple[Block, np.ndarray]]:
        for number, block in enumerate(self.blocks):
            yield block, self.kept[number] if self.kept else self.features(self.X[block.rows])


def _blocks(cell: int, rows: np.ndarray, groups: np.ndarray | None) -> Iterator[Block]:
    """Some rows at a time, without cutting a group in two."""
    if groups is None:
        for start in range(0, len(rows), _BLOCK):
            yield Block(cell, rows[start : start + _BLOCK], None)
        return
    rows = rows[np.argsort(groups[rows], kind="stable")]
    begins = np.flatnonzero(np.diff(groups[rows], prepend=-1))
    cuts = np.searchsorted(begins, np.arange(_BLOCK, len(rows), _BLOCK))
    for part in np.split(begins, np.unique(cuts)):
        if len(part):
            behind = begins[begins > part[-1]]
            end = behind[0] if len(behind) else len(rows)
            yield Block(cell, rows[part[0] : end], part - part[0])


def _where(parts: Sequence[Any], chosen: np.ndarray) -> list[Any]:
    return [part for part, is_chosen in zip(parts, chosen, strict=True) if is_chosen]


def _constants(outputs: np.ndarray, splits: Sequence[Split]) -> Told:
    """Of outputs none of which varies."""
    means = np.full(outputs.shape, np.nan)
    for split in splits:
        means[split.test] = outputs.mean(axis=0)
    return Told(means, np.zeros((1, outputs.shape[1], outputs.shape[1])), [])


def _filled(ridges: np.ndarray) -> np.ndarray:
    """With the geometric mean of the others for an output that did not vary when they were
    chosen."""
    mean = np.exp(np.nanmean(np.log(ridges)))
    return np.where(np.isnan(ridges), mean, ridges)


def _averaged(first: Told, second: Told) -> Told:
    """Of two models that share no row: their product, in both orders, is that of their means less
    that of half of what they differ by."""
    half = (first.means - second.means) / 2
    shared = half[:, :, np.newaxis] * half[:, np.newaxis]
    return Told((first.means + second.means) / 2, shared, [*first.ridges, *second.ridges])


def _with_constants(told: Told, outputs: np.ndarray, varies: np.ndarray) -> Told:
    """Of all outputs, from what is told of those that vary."""
    is_told = np.isfinite(told.means).all(axis=1)
    means = np.where(is_told[:, np.newaxis], outputs.mean(axis=0), np.nan)
    means[:, varies] = told.means
    shared = np.zeros((len(told.shared), *(outputs.shape[1],) * 2))
    shared[np.ix_(np.arange(len(shared)), varies, varies)] = told.shared
    ridges = [np.full(len(varies), np.nan) for _ in told.ridges]
    for each, known in zip(ridges, told.ridges, strict=True):
        each[varies] = known
    return replace(told, means=means, shared=shared, ridges=ridges)


def seeded(model: Any, seed: int) -> Any:
    """Where a model draws from a generator that nobody has named, it is named."""
    unnamed = {
        name: seed
        for name, value in model.get_params().items()
        if value is None and name.rpartition("__")[2] == "random_state"
    }
    return model.set_params(**unnamed) if unnamed else model


def _indices(rows: Any) -> np.ndarray:
    rows = np.asarray(rows)
    return np.flatnonzero(rows) if rows.dtype == bool else rows
