"""Conditional means of many outputs, told of rows by models that have not seen them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, KFold, check_cv
from sklearn.utils import check_random_state

from skbilevel.estimators.nystroem import FeatureMap, NystroemRidge
from skbilevel.estimators.smoother import (
    Axes,
    Echo,
    Gram,
    Products,
    Smoother,
    fitted_smoother,
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
        Of each split, if a `NystroemRidge` has told.
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
        If there are fewer rows, or groups, than folds, or a row would be told twice.
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

    def prepared(self, X: np.ndarray, outputs: np.ndarray) -> FeatureMap | None:
        """Features that suit rows and outputs, for a smoother."""
        if not self.is_smoother:
            return None
        state = self.nuisance.random_state
        rng = check_random_state(self.seed if state is None else state)
        return self.nuisance.feature_map(X, outputs[:, varying(outputs)], np.ones(len(X)), rng)

    def tell(
        self,
        X: np.ndarray,
        outputs: np.ndarray,
        splits: Sequence[Split],
        side: np.ndarray,
        features: FeatureMap | None = None,
        ridges: Sequence[np.ndarray] | None = None,
    ) -> Told:
        """Tell outputs (n, k) of rows (n, d); those that do not vary are what they are.

        ``side`` (n,) are the halves of "disjoint". Features and ridges that are given are not
        chosen anew.
        """
        varies = varying(outputs)
        if features is None:
            features = self.prepared(X, outputs)
        chosen = None if ridges is None else [each[varies] for each in ridges]
        tell = self._smooth if self.is_smoother else self._predict
        if self.correction == "disjoint":
            half = None if chosen is None else len(chosen) // 2
            parts = halves_of(splits, side)
            known = (None, None) if chosen is None else (chosen[:half], chosen[half:])
            first, second = (
                tell(X, outputs[:, varies], part, features, each)
                for part, each in zip(parts, known, strict=True)
            )
            told = _averaged(first, second)
        else:
            told = tell(X, outputs[:, varies], splits, features, chosen)
        return _with_constants(told, outputs, varies)

    def _smooth(
        self,
        X: np.ndarray,
        outputs: np.ndarray,
        splits: Sequence[Split],
        features: FeatureMap | None,
        ridges: Sequence[np.ndarray] | None,
    ) -> Told:
        assert features is not None
        rows = BlockedRows.of(X, features, splits)
        echoes = self.correction == "second_order"
        return rows.smoothed(
            outputs, self.nuisance.ridges, self.nuisance.undersmooth, echoes, ridges
        )

    def _predict(
        self,
        X: np.ndarray,
        outputs: np.ndarray,
        splits: Sequence[Split],
        *_: Any,
    ) -> Told:
        means = np.full(outputs.shape, np.nan)
        for split in splits:
            for column, output in enumerate(outputs.T):
                model = _seeded(clone(self.nuisance), self.seed)
                model.fit(X[split.train], output[split.train])
                means[split.test, column] = np.ravel(model.predict(X[split.test]))
        return Told(means, np.zeros((1, outputs.shape[1], outputs.shape[1])), [])


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
    blocks : list of (int, ndarray of int)
        A cell, and some of its rows.
    learns, tells : ndarray of bool of shape (n_splits, n_cells)
        Which cells are in the training and in the test set of each split.
    grams : list of Gram
        Of each cell.
    kept : list of ndarray of shape (b, q)
        Features of the blocks, unless they are many.
    """

    X: np.ndarray
    features: FeatureMap
    splits: Sequence[Split]
    blocks: list[tuple[int, np.ndarray]]
    learns: np.ndarray
    tells: np.ndarray
    grams: list[Gram]
    kept: list[np.ndarray]

    @classmethod
    def of(cls, X: np.ndarray, features: FeatureMap, splits: Sequence[Split]) -> BlockedRows:
        """Pass over the rows once."""
        member = np.zeros((len(X), 2, len(splits)), dtype=bool)
        for number, split in enumerate(splits):
            member[split.train, 0, number] = member[split.test, 1, number] = True
        kinds, cell = np.unique(member.reshape(len(X), -1), axis=0, return_inverse=True)
        learns, tells = kinds.reshape(len(kinds), 2, -1).transpose(1, 2, 0)
        q = features.kernel.root.shape[1]
        blocks, grams, kept = [], [Gram(np.zeros((q + 1, q + 1)))] * len(kinds), []
        for number in range(len(kinds)):
            rows = np.flatnonzero(cell.ravel() == number)
            for start in range(0, len(rows), _BLOCK):
                block = rows[start : start + _BLOCK]
                z = features(X[block])
                grams[number] = grams[number] + Gram.of(z)
                blocks.append((number, block))
                if len(X) * q <= _KEPT:
                    kept.append(z)
        return cls(X, features, splits, blocks, learns, tells, grams, kept)

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
            Echo.of(model, _sum([self.grams[cell] for cell in np.flatnonzero(tells)]))
            if echoes
            else None
            for model, tells in zip(models, self.tells, strict=True)
        ]
        means, shared = np.full(outputs.shape, np.nan), np.zeros((k, k))
        for cell, block, z in self._with_features():
            for number, model in enumerate(models):
                each = echo[number]
                if not self.tells[number, cell] and (
                    not self.learns[number, cell] or each is None
                ):
                    continue
                told = model.predict(z)
                if self.tells[number, cell]:
                    means[block] = told + shift
                if each is not None and self.learns[number, cell]:
                    share = len(self.splits[number].test) / n_told
                    shared += share * each.of_rows(z, centred[block] - told)
        return Told(means, shared[np.newaxis], [model.ridges for model in models])

    def _models(
        self,
        outputs: np.ndarray,
        ridges: Sequence[float],
        undersmooth: float,
        chosen: Sequence[np.ndarray] | None,
    ) -> list[Smoother]:
        parts: list[list[Products]] = [[] for _ in self.grams]
        for cell, block, z in self._with_features():
            parts[cell].append(Products.of(z, outputs[block]))
        products, models = [_sum(each) for each in parts], []
        for number, learns in enumerate(self.learns):
            cells = np.flatnonzero(learns)
            axes = Axes.of(_sum([self.grams[cell] for cell in cells]))
            of_train = _sum([products[cell] for cell in cells])
            if chosen is None:
                models.append(fitted_smoother(axes, of_train, ridges, undersmooth))
            else:
                models.append(with_ridges(axes, of_train, chosen[number]))
        return models

    def _with_features(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        for number, (cell, block) in enumerate(self.blocks):
            z = self.kept[number] if self.kept else self.features(self.X[block])
            yield cell, block, z


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
    ridges = [np.ones(len(varies)) for _ in told.ridges]
    for each, known in zip(ridges, told.ridges, strict=True):
        each[varies] = known
    return replace(told, means=means, shared=shared, ridges=ridges)


def _sum(parts: Sequence[Any]) -> Any:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _seeded(model: Any, seed: int) -> Any:
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
