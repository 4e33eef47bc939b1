"""Imputation by a deep latent-variable model with one of the mask: not-MIWAE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skbilevel._sklearn import StrOptions, check_is_fitted
from skbilevel.estimators.column_knowledge import by_name
from skbilevel.estimators.imputer import Floats
from skbilevel.estimators.latent_imputer import LatentVariableImputer
from skbilevel.estimators.latent_missing import LINKS
from skbilevel.estimators.latent_plan import MECHANISMS, Plan, planned
from skbilevel.numerics.row_groups import row_blocks
from skbilevel.numerics.threads import single_thread


class NotMIWAEImputer(LatentVariableImputer):
    """Impute values that are missing because of their value, by a deep latent-variable model.

    The model of `MIWAEImputer` with one of the mask beside it: s_j = 0 where x_j is missing. Both
    are fitted to what is seen, x_o and s, by the bound

        log (1/K) sum_k p(s | x_o, z_k) p(x_o | z_k) p(z_k) / q(z_k | x_o).

    A self-masking mechanism, ``p(s_j = 0 | x_j) = Phi(a_j (x_j - b_j))`` or a limit beyond which
    all values are missing, is integrated over the missing cells exactly; any other is sampled.
    What the mechanism is cannot be learnt from the data alone: say what you know of it. A wrong
    one does more harm than none.

    Parameters
    ----------
    mechanism : str, torch.nn.Module or callable, default="auto"
        What is known of why cells are missing:

        - "mar": at random, nothing else is modelled.
        - "censored": beyond a limit of each column, above it for sign 1, below it for -1.
          Limits that are not in ``limits`` are the largest, or smallest, observed values; signs
          that are not in ``signs`` are chosen by evidence.
        - "self_masking_known": a probit of the value, with ``signs`` given.
        - "self_masking": the same with signs chosen by evidence, or learnt with the network
          where no linear model is fitted.
        - "auto": one of the above, or a mixture by column, where the evidence is clear, else
          "mar". It compares linear models, for continuous columns, up to 200 with a network.
          Where a tilt learnt from shadow targets is clear, it gives the signs beside the
          evidence.
        - "agnostic", "nonlinear": logistic in all values of the row, directly or through a
          hidden layer.
        - a module or function from rows, a float32 tensor of shape (..., n_fitted) in the units
          of the data, to log odds of being missing of the same shape. While training, discrete
          columns hold values between their own, so that there is a gradient. A module is copied,
          put into evaluation mode and trained with the rest.
    signs : int, array-like of shape (n_features,) or dict, default=None
        1 where high values are missing, -1 where low ones are, 0 where the value does not
        matter. A dict, or a pandas Series, has names of features as keys; the others have the
        side of their limit, if that is known, or else 0.
    limits : float, array-like of shape (n_features,) or dict, default=None
        Known limits for "censored", in the units of the data; NaN where a limit is not known,
        or no key of a dict or Series. Signs follow from them where all observed values are on
        one side.
    link : {"probit", "logit"}, default="probit"
        Of self-masking. A slope found by EM stays as it is with "probit" and starts the training
        of the logistic function with "logit".
    tail_prior : "reflection" or None, default="reflection"
        Beyond an estimated or known limit nothing is observed, and how far the values reach is
        extrapolated. "reflection" draws what is imputed towards the trivial guess, as far
        beyond the limit as the observed values lie within it on average, by how little the other
        columns predict the column; and takes from a network as much as the normal has the wrong
        shape up to the limit. It holds for mean and median, not for quantiles and draws, and
        needs that normal: columns that are all continuous, at most 200 with a network on top.
    decoder : {"residual", "linear", "mlp", "conv"}, default="residual"
        What maps the latent code to the columns. "residual" is a line and a network on top of it
        that starts at zero; "mlp" is a network alone; "conv" one for images. "linear" with
        ``distribution="gaussian"`` and ``n_latent=None`` is the multivariate normal, with
        the mechanism, fitted by expectation propagation in seconds;
        otherwise it is a factor analysis, trained like the others.
    distribution : {"gaussian", "student_t", "bernoulli", "categorical"}, list or dict of them, \
            default="gaussian"
        Of every column given the code. Columns of the last two have few values, which need not
        be 0 and 1. A dict, or a pandas Series, has names of features as keys; the others are
        gaussian.
    n_latent : int, default=None
        Length of the code; None is one less than the columns (of two columns: two), but at
        most 10 or half of the columns, and 50.
    hidden_layer_sizes : int or sequence of int, default=(64,)
        Widths of the hidden layers of encoder and decoder.
    activation : {"silu", "tanh", "relu"}, default="silu"
        Between the layers.
    image_shape : tuple of int, default=None
        (channels, height, width) for ``decoder="conv"``, whose rows are flattened images.
    objective : {"iwae", "elbo"}, default="iwae"
        The importance-weighted bound, or the mean over draws with the divergence of the encoder
        in closed form; with ``n_importance=1`` the latter is the plain variational autoencoder.
    n_importance : int, default=5
        Codes a row in a training step.
    n_importance_impute : int, default=128
        Codes a row when rows are imputed, drawn or scored.
    loss : {"squared_error", "absolute_error", "quantile"}, default="squared_error"
        What an imputed value minimises in expectation: it is the mean, the median, or the
        ``quantile``. Of a categorical column the mean is replaced by the most probable value.
    quantile : float, default=None
        Between 0 and 1, for ``loss="quantile"``.
    min_scale : float, default=0.1
        Least standard deviation of a column given the code, in those of the column.
    batch_size : int, default=64
        Rows in a training step.
    max_iter : "auto" or int, default="auto"
        Epochs of a network, or iterations of EM where the normal is all; "auto" is as many
        epochs as make 1000 steps, at least one, or 80 iterations.
    tol : float, default=1e-3
        EM stops when no imputed cell moves by more than this many standard deviations,
        or, without a mechanism, as `GaussianImputer` does.
    learning_rate : float, default=3e-3
        Largest one of AdamW; it rises over 50 steps and falls to zero along a cosine.
    weight_decay : float, default=0.05
        Of the networks on top of the linear parts, which it draws towards these.
    missing_values : int or float, default=numpy.nan
        The value that marks a missing cell.
    add_indicator : bool, default=False
        Append a column of 0 and 1 for every feature that had missing cells at fit.
    keep_empty_features : bool, default=False
        Keep features without any observed value at fit, filled with 0, instead of dropping them.
    random_state : int, RandomState instance or None, default=None
        Draws the starting weights, batches and noise of the training, and the seed of `sample`.
        Given it, rows are imputed alike in any batch.

    Attributes
    ----------
    mechanism_ : str
        "mar", "censored", "self_masking" or, where the mechanism is of the whole row, its name;
        "own" for a module or function.
    signs_ : ndarray of shape (n_fitted,), int
        Sign of the mechanism of each column, 0 for none; where the mechanism is self-masking.
    thresholds_ : ndarray of shape (n_fitted,)
        Limit, or value of which half are missing, in the units of the data; NaN for none, and
        between two values for a discrete column.
    slopes_ : ndarray of shape (n_fitted,)
        Slope a_j of the probit (or of the log odds), per unit of the column; NaN for none and
        for discrete columns. A limit is infinitely steep, one that is estimated nearly so.
    evidence_ : dict of str to float
        Gain of each candidate over missing at random at constant rates, in nats per missing
        cell: of a limit or a probit "above" or "below" for all columns, of one for each column
        ("own"), or of the signs of a tilt ("shadow targets"), and of missing at random with a
        model of the mask. Empty where nothing was compared.
    reliability_ : ndarray of shape (n_fitted,)
        How well the others predict each column on its observed cells, as the tail prior goes by
        it; 1 leaves a column alone.
    trust_ : ndarray of shape (n_fitted,)
        How well the normal has the shape of each column up to its limit: the share of the normal
        that the tail prior leaves alone.
    location_ : ndarray of shape (n_fitted,)
        Means of the normal that fills the encoder's input, where there is one: columns are all
        continuous, and with a network at most 200 and no image.
    covariance_ : ndarray of shape (n_fitted, n_fitted)
        Its covariance.
    noise_scale_ : ndarray of shape (n_fitted,)
        Scale of the columns given the code; only with a network.
    n_latent_ : int
        Length of the code; only with a network.
    history_ : dict of str to list of float
        "bound", the mean bound of each epoch per row in nats, in the units of the data; empty
        where the normal is all.
    n_iter_ : int
        Epochs, or iterations of EM.
    converged_ : bool
        Whether EM met ``tol``; True for networks, whose learning rate ends at zero.
    n_observed_, empty_features_, indicator_, n_features_in_, feature_names_in_
        As for every imputer of the package.

    See Also
    --------
    MIWAEImputer : Without a model of the mask.
    skbilevel.amputation.ampute : Hides cells by such mechanisms.

    Notes
    -----
    `score` is of the mask too, and scores of different mechanisms do not compare: one that
    models the mask pays for it. Choose the mechanism by what you know, by "auto", or by the error
    on cells that are hidden again, but not by `score` in a grid.

    References
    ----------
    Ipsen, Mattei and Frellsen (2021), not-MIWAE: Deep generative modelling with missing not at
    random data, ICLR. Minka (2001), Expectation propagation for approximate Bayesian inference,
    UAI.

    Examples
    --------
    Values above 1 are missing in the first column:

    >>> import numpy as np
    >>> from skbilevel import NotMIWAEImputer
    >>> from skbilevel.datasets import make_correlated_gaussian
    >>> X = make_correlated_gaussian(500, random_state=0)
    >>> X_missing = np.where([True, False] & (X > 1), np.nan, X)
    >>> imputer = NotMIWAEImputer(mechanism="censored", limits=[1, np.nan], decoder="linear")
    >>> imputed = imputer.fit_transform(X_missing)
    >>> bool(imputed[np.isnan(X_missing)].min() > 1)
    True
    """

    _parameter_constraints: dict = {  # noqa: RUF012
        **LatentVariableImputer._parameter_constraints,
        "mechanism": [StrOptions(set(MECHANISMS)), callable],
        "signs": [None, "array-like", Real, dict],
        "limits": [None, "array-like", Real, dict],
        "link": [StrOptions(set(LINKS))],
        "tail_prior": [None, StrOptions({"reflection"})],
    }

    def __init__(
        self,
        *,
        mechanism: Any = "auto",
        signs: ArrayLike | Mapping[str, float] | None = None,
        limits: ArrayLike | Mapping[str, float] | None = None,
        link: str = "probit",
        tail_prior: str | None = "reflection",
        decoder: str = "residual",
        distribution: str | Sequence[str] | Mapping[str, str] = "gaussian",
        n_latent: int | None = None,
        hidden_layer_sizes: int | Sequence[int] = (64,),
        activation: str = "silu",
        image_shape: tuple[int, int, int] | None = None,
        objective: str = "iwae",
        n_importance: int = 5,
        n_importance_impute: int = 128,
        loss: str = "squared_error",
        quantile: float | None = None,
        min_scale: float = 0.1,
        batch_size: int = 64,
        max_iter: int | str = "auto",
        tol: float = 1e-3,
        learning_rate: float = 3e-3,
        weight_decay: float = 0.05,
        missing_values: float = np.nan,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        random_state: Any = None,
    ):
        super().__init__(
            decoder=decoder,
            distribution=distribution,
            n_latent=n_latent,
            hidden_layer_sizes=hidden_layer_sizes,
            activation=activation,
            image_shape=image_shape,
            objective=objective,
            n_importance=n_importance,
            n_importance_impute=n_importance_impute,
            loss=loss,
            quantile=quantile,
            min_scale=min_scale,
            batch_size=batch_size,
            max_iter=max_iter,
            tol=tol,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            missing_values=missing_values,
            add_indicator=add_indicator,
            keep_empty_features=keep_empty_features,
            random_state=random_state,
        )
        self.mechanism = mechanism
        self.signs = signs
        self.limits = limits
        self.link = link
        self.tail_prior = tail_prior

    def _plan(self, X: Floats) -> Plan:
        named = isinstance(self.mechanism, str)
        features = self._names(np.ones_like(self.empty_features_))
        return planned(
            self,
            X,
            self._names(~self.empty_features_),
            mechanism=self.mechanism if named else "own",
            own=None if named else self.mechanism,
            signs=by_name("signs", self.signs, features, np.nan),
            limits=by_name("limits", self.limits, features, np.nan),
            link=self.link,
            tail_prior=self.tail_prior,
        )

    def _own_missing_model(self) -> Any:
        return None if isinstance(self.mechanism, str) else self.mechanism

    @single_thread()
    def missing_probability(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probability that each cell is missing given its row, p(s = 0 | x).

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows; missing cells are imputed first.

        Returns
        -------
        ndarray of shape (n_samples, n_features_fitted), float64
            For the features that are not empty; NaN for those whose missingness the mechanism
            leaves open, all of them under missing at random.
        """
        check_is_fitted(self)
        X = self._incomplete(X)
        model, complete = self._fitted_model(), self._completer()
        parts = []
        for block in row_blocks(X):
            rows = np.asarray(X[block], dtype=np.float64)
            imputed = self._finite(complete(rows), np.float64)
            full = np.where(np.isnan(rows), imputed, rows)
            parts.append(model.missing_probability(full))
        return np.concatenate(parts)
