"""What reweighting is compared with: baselines, oracles and other packages' weights."""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
from reweighting_designs import Array, Case
from scipy.special import log_softmax
from sklearn import config_context
from sklearn.linear_model import LogisticRegression

from skbilevel import ReweightingClassifier, ReweightingRegressor

FAMILIES = ("uniform", "target", "group", "loglinear", "gate", "sample")


def learner(case: Case, **parameters: Any) -> Any:
    """The estimator for the labels of a case, in the units of the designs."""
    is_class = case.y.dtype.kind in "iu"
    kind = ReweightingClassifier if is_class else ReweightingRegressor
    return kind(standardize=False, fit_intercept=case.has_constant, **parameters)


def fitted(case: Case, **parameters: Any) -> Any:
    """Fitted to training and target rows of a case."""
    model = learner(case, **parameters)
    return model.fit(case.X, case.y, X_val=case.X_target, y_val=case.y_target)


def with_weights(case: Case, weights: Array, with_target: bool, **parameters: Any) -> Any:
    """The linear model with given weights of the training rows, and with target rows beside them
    that count as a row of the effective sample size each."""
    weights = weights * weights.sum() / np.square(weights).sum()
    model = learner(case, weighting="uniform", **parameters)
    keep = weights > 1e-9 * weights.max()
    X, y, w = case.X[keep], case.y[keep], weights[keep]
    if with_target:
        X, y = np.vstack([X, case.X_target]), np.concatenate([y, case.y_target])
        w = np.concatenate([w, np.ones(len(case.y_target))])
    return model.fit(X, y, w)


def with_chosen_l2(case: Case, weights: Array) -> Any:
    """As `with_weights` with target rows, and l2 by five folds of them."""
    order = np.random.RandomState(0).permutation(len(case.y_target))

    def held_out(l2: float) -> float:
        total = 0.0
        for fold in range(5):
            out = np.isin(np.arange(len(order)), order[fold::5])
            part = case._replace(
                X_target=case.X_target[~out],
                y_target=case.y_target[~out],
                X_test=case.X_target[out],
                y_test=case.y_target[out],
            )
            total += out.sum() * loss(with_weights(part, weights, True, l2=l2), part)
        return total

    return with_weights(case, weights, True, l2=min((1e-4, 1e-2, 1e-1), key=held_out))


def loss(model: Any, case: Case) -> float:
    """Mean squared error, or share of wrong classes, of test rows."""
    told = model.predict(case.X_test)
    if case.y.dtype.kind in "iu":
        return float(np.mean(told != case.y_test))
    return float(np.mean((told - case.y_test) ** 2))


def irbl(case: Case, l2: float) -> Array:
    """p_T(y|x) / p_S(y|x) under models of the target rows and of the training rows.

    Nodet, Lemaire, Bondu, Cornuejols and Ouorou (2021), Importance reweighting for biquality
    learning, IJCNN.
    """
    classes = np.unique(np.concatenate([case.y, case.y_target]))
    codes = np.searchsorted(classes, case.y)

    def log_loss(model: Any) -> Array:
        outputs = np.full((len(case.X), len(classes)), -np.inf)
        outputs[:, np.searchsorted(classes, model.classes_)] = model.decision_function(case.X)
        return -log_softmax(outputs, axis=1)[np.arange(len(codes)), codes]

    source = with_weights(case, np.ones(len(case.y)), False, l2=l2)
    target = fitted(case, weighting="target")
    return np.exp(np.clip(log_loss(source) - log_loss(target), -20, 20))


def logistic_ratio(case: Case) -> Array:
    """Density ratio by a logistic regression of target against training rows, with squares."""
    X = np.vstack([case.X, case.X_target])
    X = np.hstack([X, X**2])
    is_target = np.repeat([0, 1], [len(case.X), len(case.X_target)])
    model = LogisticRegression(C=1.0, max_iter=2000).fit(X, is_target)
    return np.exp(model.decision_function(X[: len(case.X)]))


def _densratio(case: Case) -> Array:
    from densratio import densratio  # noqa: PLC0415

    found = densratio(case.X_target, case.X, verbose=False)
    return np.maximum(found.compute_density_ratio(case.X), 0)


def _skada(name: str, **parameters: Any) -> Callable[[Case], Array]:
    def weights(case: Case) -> Array:
        with config_context():  # importing it enables metadata routing for good
            import skada  # noqa: PLC0415

        X = np.vstack([case.X, case.X_target])
        domain = np.repeat([1, -2], [len(case.X), len(case.X_target)])
        adapter = getattr(skada, name)(**parameters)
        with config_context(enable_metadata_routing=True):
            told = adapter.fit_transform(X, sample_domain=domain)
        found = told["sample_weight"] if isinstance(told, dict) else told[1]["sample_weight"]
        return np.asarray(found)[: len(case.X)]

    return weights


PEERS: dict[str, tuple[str, Callable[[Case], Array]]] = {
    "densratio, RuLSIF": ("densratio", _densratio),
    "skada, logistic": ("skada", _skada("DensityReweightAdapter")),
    "skada, KLIEP": ("skada", _skada("KLIEPReweightAdapter", gamma=[0.01, 0.1, 1.0])),
    "skada, KMM": ("skada", _skada("KMMReweightAdapter")),
}


def peer_weights(case: Case) -> dict[str, Array]:
    """Weights by the packages that are installed."""
    return {
        name: weights(case)
        for name, (package, weights) in PEERS.items()
        if find_spec(package) is not None
    }
