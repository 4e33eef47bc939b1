"""What bilevel imputation is compared with."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.ensemble import (
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.linear_model import LogisticRegression, RidgeCV
from sklearn.metrics import accuracy_score, r2_score

from skbilevel import GaussianImputer
from skbilevel.models.student import Student
from skbilevel.solvers.training import ParameterGroup, Schedule, train

Array = NDArray[Any]

_TREES = ExtraTreesRegressor(30, max_features=0.7, min_samples_leaf=2, random_state=0)
IMPUTERS = {
    "GaussianImputer": GaussianImputer(random_state=0),
    "iterative trees": IterativeImputer(_TREES, max_iter=3, random_state=0),
    "IterativeImputer": IterativeImputer(random_state=0),
    "KNNImputer": KNNImputer(),
    "mean": SimpleImputer(),
}
HEADS = {
    "continuous": lambda: RidgeCV(np.logspace(-2, 3, 12)),
    "auto": lambda: LogisticRegression(max_iter=500),
}
_N_NETWORKS, _N_STEPS, _BATCH = 4, 250, 256


_RIDGES = np.logspace(-3, 4, 15)


def ridge_head(X: Array, y: Array, rows: Array) -> Array:
    """Predictions for rows by ridge regression on X; of classes, the most of the regressed 0/1."""
    if is_number(y):
        return RidgeCV(_RIDGES).fit(X, y).predict(rows)
    classes = np.unique(y)
    shares = RidgeCV(_RIDGES).fit(X, (y[:, None] == classes).astype(float)).predict(rows)
    return classes[np.asarray(shares).reshape(len(rows), -1).argmax(axis=1)]


def is_number(y: Array) -> bool:
    """Whether a target is a number, and not a class."""
    return y.dtype.kind == "f"


def score(truth: Array, predicted: Array) -> float:
    """R2, or accuracy for classes."""
    if is_number(truth):
        return round(float(r2_score(truth, predicted)), 4)
    return round(float(accuracy_score(truth, predicted)), 4)


def constant(y: Array, n_rows: int) -> Array:
    """The mean, or the most frequent class, for so many rows."""
    if is_number(y):
        return np.full(n_rows, y.mean())
    classes, counts = np.unique(y, return_counts=True)
    return np.full(n_rows, classes[counts.argmax()])


def boosted(X: Array, y: Array, *, seed: int) -> Any:
    """Gradient boosting that splits on missing values, with leaves for few rows."""
    leaf = int(np.clip(len(y) // 10, 3, 20))
    if is_number(y):
        model = HistGradientBoostingRegressor(min_samples_leaf=leaf, random_state=seed)
    else:
        model = HistGradientBoostingClassifier(
            max_iter=60, min_samples_leaf=leaf, random_state=seed
        )
    return model.fit(X, y)


def masked_network(X: Array, y: Array, *, seed: int) -> Callable[[Array], Array]:
    """The student's network, trained on labelled rows with zeros at missing cells and the mask.

    Each row loses a share of its cells, drawn anew in every step between 0 and .4.
    """
    classes = None if is_number(y) else np.unique(y)
    labels = torch.from_numpy(
        y[:, None] if classes is None else np.eye(len(classes))[np.searchsorted(classes, y)]
    )
    values, mask = _inputs(X)
    rng = np.random.RandomState(seed)
    networks = [_trained(values, mask, labels, classes is None, rng) for _ in range(_N_NETWORKS)]

    def predict(rows: Array) -> Array:
        with torch.no_grad():
            each = torch.stack([network(*_inputs(rows)) for network in networks])
        if classes is None:
            return each.mean(0)[:, 0].numpy()
        return classes[each.softmax(2).mean(0).argmax(1).numpy()]

    return predict


def _inputs(X: Array) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.from_numpy((~np.isnan(X)).astype(float))
    return torch.nan_to_num(torch.from_numpy(X)), mask


def _trained(
    values: torch.Tensor,
    mask: torch.Tensor,
    labels: torch.Tensor,
    is_number: bool,
    rng: np.random.RandomState,
) -> Student:
    generator = torch.Generator().manual_seed(rng.randint(2**31))
    student = Student(values.shape[1], labels.shape[1], (32, 32), generator=generator)
    n_batches = -(-len(values) // _BATCH)

    def batches() -> Any:
        for batch in torch.from_numpy(rng.permutation(len(values))).split(_BATCH):
            rates = rng.uniform(0, 0.4, (len(batch), 1))
            kept = mask[batch] * torch.from_numpy(rng.random_sample(mask[batch].shape) >= rates)
            yield batch, kept

    def loss(part: Any) -> torch.Tensor:
        batch, kept = part
        outputs = student(values[batch] * kept, kept)
        if is_number:
            return (outputs - labels[batch]).square().mean()
        return torch.nn.functional.cross_entropy(outputs, labels[batch])

    schedule = Schedule(max(1, _N_STEPS // n_batches), n_batches, 5e-3)
    train(loss, batches, [ParameterGroup(list(student.parameters()), 3e-3)], schedule)
    return student
