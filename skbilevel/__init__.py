"""Scikit-learn compatible estimators for imperfect data, built on bilevel learning.

The public names are loaded on first use, so that ``import skbilevel`` imports neither torch nor
matplotlib.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# Where each public name lives; __init__.pyi repeats the names for type checkers.
_ESTIMATORS = {
    "BilevelClassifier": "skbilevel.estimators.bilevel_predictors",
    "BilevelGradient": "skbilevel.estimators.bilevel_gradient",
    "BilevelImputer": "skbilevel.estimators.bilevel",
    "BilevelRegressor": "skbilevel.estimators.bilevel_predictors",
    "ConditionalMomentGradient": "skbilevel.estimators.conditional_moment",
    "GaussianImputer": "skbilevel.estimators.gaussian",
    "MIWAEImputer": "skbilevel.estimators.miwae",
    "NotMIWAEImputer": "skbilevel.estimators.not_miwae",
    "NystroemRidge": "skbilevel.estimators.nystroem",
    "OrthogonalFQE": "skbilevel.estimators.orthogonal_fqe",
    "OrthogonalIVRegressor": "skbilevel.estimators.orthogonal_iv",
    "ReweightingClassifier": "skbilevel.estimators.reweighting",
    "ReweightingRegressor": "skbilevel.estimators.reweighting",
    "hypergradient_test": "skbilevel.estimators.hypergradient",
}
_MODULES = ("amputation", "datasets", "io", "metrics", "model_selection", "testing")

__all__ = ["__version__", *_ESTIMATORS, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _ESTIMATORS:
        return getattr(import_module(_ESTIMATORS[name]), name)
    if name in _MODULES:
        return import_module(f"skbilevel.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
