from skbilevel import amputation as amputation
from skbilevel import datasets as datasets
from skbilevel import io as io
from skbilevel import metrics as metrics
from skbilevel import testing as testing
from skbilevel.estimators.bilevel import BilevelImputer as BilevelImputer
from skbilevel.estimators.bilevel_predictors import BilevelClassifier as BilevelClassifier
from skbilevel.estimators.bilevel_predictors import BilevelRegressor as BilevelRegressor
from skbilevel.estimators.gaussian import GaussianImputer as GaussianImputer
from skbilevel.estimators.miwae import MIWAEImputer as MIWAEImputer
from skbilevel.estimators.not_miwae import NotMIWAEImputer as NotMIWAEImputer

__version__: str
__all__ = [
    "BilevelClassifier",
    "BilevelImputer",
    "BilevelRegressor",
    "GaussianImputer",
    "MIWAEImputer",
    "NotMIWAEImputer",
    "__version__",
    "amputation",
    "datasets",
    "io",
    "metrics",
    "testing",
]
