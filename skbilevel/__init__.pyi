from skbilevel import amputation as amputation
from skbilevel import datasets as datasets
from skbilevel import io as io
from skbilevel import metrics as metrics
from skbilevel import model_selection as model_selection
from skbilevel import testing as testing
from skbilevel.estimators.bilevel import BilevelImputer as BilevelImputer
from skbilevel.estimators.bilevel_gradient import BilevelGradient as BilevelGradient
from skbilevel.estimators.bilevel_predictors import BilevelClassifier as BilevelClassifier
from skbilevel.estimators.bilevel_predictors import BilevelRegressor as BilevelRegressor
from skbilevel.estimators.conditional_moment import (
    ConditionalMomentGradient as ConditionalMomentGradient,
)
from skbilevel.estimators.gaussian import GaussianImputer as GaussianImputer
from skbilevel.estimators.hypergradient import hypergradient_test as hypergradient_test
from skbilevel.estimators.miwae import MIWAEImputer as MIWAEImputer
from skbilevel.estimators.not_miwae import NotMIWAEImputer as NotMIWAEImputer
from skbilevel.estimators.nystroem import NystroemRidge as NystroemRidge
from skbilevel.estimators.orthogonal_fqe import OrthogonalFQE as OrthogonalFQE
from skbilevel.estimators.orthogonal_iv import OrthogonalIVRegressor as OrthogonalIVRegressor
from skbilevel.estimators.reweighting import ReweightingClassifier as ReweightingClassifier
from skbilevel.estimators.reweighting import ReweightingRegressor as ReweightingRegressor

__version__: str
__all__ = [
    "BilevelClassifier",
    "BilevelGradient",
    "BilevelImputer",
    "BilevelRegressor",
    "ConditionalMomentGradient",
    "GaussianImputer",
    "MIWAEImputer",
    "NotMIWAEImputer",
    "NystroemRidge",
    "OrthogonalFQE",
    "OrthogonalIVRegressor",
    "ReweightingClassifier",
    "ReweightingRegressor",
    "__version__",
    "amputation",
    "datasets",
    "hypergradient_test",
    "io",
    "metrics",
    "model_selection",
    "testing",
]
