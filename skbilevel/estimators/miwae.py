"""Imputation by a deep latent-variable model of values missing at random: MIWAE."""

from __future__ import annotations

from skbilevel.estimators.imputer import Floats
from skbilevel.estimators.latent_imputer import LatentVariableImputer
from skbilevel.estimators.latent_plan import Plan, planned


class MIWAEImputer(LatentVariableImputer):
    """Impute values missing at random by a deep latent-variable model.

    A row x is decoded from a code z ~ N(0, I). An encoder proposes codes given the observed cells
    x_o, and both are trained by the importance-weighted bound

        log (1/K) sum_k p(x_o | z_k) p(z_k) / q(z_k | x_o),   z_k ~ q(z | x_o),

    which needs no missing cell. A cell is imputed by its mean, its median or a quantile under the
    weighted codes. Given the observed cells, being missing must not tell anything of the value;
    else see `NotMIWAEImputer`. Networks pay where the relation between columns is not linear:
    where it is, `GaussianImputer` is as good in a fraction of the time.

    Parameters
    ----------
    decoder : {"residual", "linear", "mlp", "conv"}, default="residual"
        What maps the latent code to the columns. "residual" is a line and a network on top of it
        that starts at zero; "mlp" is a network alone; "conv" one for images. "linear" with
        ``distribution="gaussian"`` and ``n_latent=None`` is the multivariate normal, as of
        `GaussianImputer`;
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
    location_ : ndarray of shape (n_fitted,)
        Means of the normal that fills the encoder's input; where all columns are continuous.
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
    NotMIWAEImputer : With a model of why cells are missing.
    GaussianImputer : The linear model.

    References
    ----------
    Mattei and Frellsen (2019), MIWAE: Deep generative modelling and imputation of incomplete data
    sets, ICML.

    Examples
    --------
    >>> import numpy as np
    >>> from skbilevel import MIWAEImputer
    >>> t = np.linspace(-2, 2, 200)
    >>> X = np.column_stack([t, t**2])
    >>> X[::7, 1] = np.nan
    >>> imputed = MIWAEImputer(random_state=0).fit_transform(X)
    >>> float(np.corrcoef(imputed[::7, 1], t[::7] ** 2)[0, 1]) > 0.9
    True
    """

    def _plan(self, X: Floats) -> Plan:
        return planned(
            self, X, self._names(~self.empty_features_), mechanism="mar", ignores_mask=True
        )
