"""Estimators that learn how much each training row counts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets

from skbilevel.estimators.label_suggestion import suggested
from skbilevel.estimators.linear_head import RidgeHead, SoftmaxHead
from skbilevel.estimators.reweighting_base import Again, Reweighting, final_has
from skbilevel.estimators.reweighting_fit import Problem
from skbilevel.estimators.reweighting_rows import Rows
from skbilevel.estimators.weight_learning import Learnt


class ReweightingRegressor(RegressorMixin, Reweighting):
    """Regression on training rows that are weighted for the sake of a target sample.

    The target is a small sample of the distribution that matters: of the domain where the model
    will be used, or of rows whose labels have been checked.

    Parameters
    ----------
    estimator : estimator, default=None
        What is fitted with the weights in the end: any regressor of scikit-learn whose ``fit``
        takes ``sample_weight``, or a Pipeline that ends in one. It gets plain arrays. None: ridge
        regression, the model that weights are learnt for in any case.
    weighting : {"auto", "gate", "loglinear", "group", "sample", "target", "uniform"}, \
            default="auto"
        Family of the weights. "gate": the probability that a row follows the relation of the
        target, from its losses under two models, for a mixture of relations. "loglinear": the
        exponential of a linear function of the features and their squares, or of the first four
        principal components of more than twelve features, for training rows drawn from elsewhere.
        "group": one weight for each of ``source_groups``, or of ``n_groups`` clusters. "sample":
        one free weight for each row, the problem of the paper. "target": training rows do not
        count. "uniform": all rows count alike. "auto" judges all of them on target rows that they
        have not seen, stays with "uniform" unless that is clearly worse, and else mixes them.
    solver : {"exact", "warm_started", "soba"}, default="exact"
        Of "sample": the inner problem is solved at every step (algorithm 1), or parameters and
        weights take a step each (algorithm 2), or parameters, adjoint and weights do (SOBA). The
        latter two are there to reproduce the paper: their weights collapse on few rows unless
        ``outer_rate`` is small beside ``inner_rate``.
    parametrization : {"mirror", "softmax", "sigmoid"}, default="mirror"
        Of the weights of "sample": mirror descent on the simplex, or gradient descent on a with
        w = softmax(a), or w = sigmoid(a) / n.
    max_iter : int, default=30
        Most steps of "sample".
    tol : "significance" or None, default=None
        When the descent of "group" stops before its minimum: at the first iterate, the start
        included, where the gradient of the loss of the target rows in the log weights cannot be
        told from 0 at 5 %, with the noise of target and training rows (`hypergradient_test`).
        It stops a descent and proves nothing: these rows steer the weights, and its p-values are
        no longer those of a test. It saves evaluations, and keeps weights equal where sources do
        not differ; elsewhere it mostly stops too early, with few target rows above all. ``kl``
        counts in the descent and not in this. None: at the minimum.
    outer_rate : "auto" or float, default="auto"
        Rate of the weights of "sample". "auto": the exact solver moves log weights by a standard
        deviation of up to 1.5 and never raises the target's loss; others use ``inner_rate``.
    inner_rate : "auto" or float, default="auto"
        Rate of the parameters of "sample", where they are not solved for; 0 freezes them. "auto"
        is .5 over the largest squared norm of a row.
    early_stopping : bool, default=True
        Stop the exact solver of "sample" where target rows that are held out have the least loss;
        False: after ``max_iter`` steps.
    l2 : "auto" or float, default="auto"
        lambda: the linear model has lambda/2 times its sum of squared coefficients, beside losses
        whose weights sum to 1. "auto" is chosen by target rows that are left out of the fit: the
        least of 1e-4, .01 and .1 that is within a standard error of the best, and for "target" the
        best from 1e-4 to 1; 1e-4 without target rows.
    kl : "auto" or float, default="auto"
        Strength of the divergence of the weights from equal ones, of all rows that are fitted, in
        losses of target rows under a model of all training rows, for "gate", "loglinear" and
        "group". "auto": .003 for a gate, .01 for groups, and for "loglinear" chosen from .1, .01
        and .001 by target rows out of fold.
    n_folds : "auto" or int, default="auto"
        Folds of the target rows by which families and ``l2`` are judged; "auto" is 5.
    n_groups : int, default=4
        Clusters by k-means that "group" weighs where no ``source_groups`` are given.
    refit : {"all", "train"} or None, default="all"
        Fit the final estimator to training and target rows, or to training rows only; a target row
        counts as often as it is there, and training rows together as their effective sample size,
        or with a gate for classes each by the gate itself; where "auto" mixes families, both may
        count less (``sample_weight_`` tells). None: keep the parameters at which the solver of
        "sample" has ended, for the linear default.
    standardize : bool, default=True
        Bring every column to mean 0 and variance 1 for the linear model. False: divide all by
        one number, for columns that share a unit, such as pixels.
    fit_intercept : bool, default=True
        Of the linear model.
    target_column : str or int, default=None
        Column of ``X`` that tells target rows by the larger of its two values; no model sees it.
    validation_fraction : float, default=None
        Share of the rows that is drawn to be the target, where most rows are trusted.
    random_state : int, RandomState instance or None, default=None
        Draws folds and clusters, keyed by the values of the rows: in another order they get the
        same weights.

    Attributes
    ----------
    weights_ : ndarray of shape (n_samples,)
        Of the rows of ``X`` as training rows, with sum 1; 0 for target rows. All are 0 if only
        target rows count.
    sample_weight_ : ndarray of shape (n_samples,) or (n_samples + n_val,)
        What the final estimator was given, for the rows of ``X`` and of ``X_val``.
    entropy_ : float
        Of ``weights_``, in nats.
    effective_sample_size_ : float
        1 over the sum of squares of ``weights_``. Here and in the entropy a row with a
        ``sample_weight`` of 2 counts as two rows. Beside target rows training rows may count as
        fewer: the sum of ``sample_weight_``.
    selected_ : str
        Family of the largest share.
    mixture_ : dict of str to float
        Shares of the families.
    shift_detected_ : bool or None
        Whether equal weights are clearly worse; only with "auto".
    cv_results_ : dict
        "family", "l2", "share", and "mean_target_loss" out of fold (half the squared error in
        standardised units, or the log-loss; NaN where there was no choice), and with "auto"
        "difference_to_uniform", "stderr_to_uniform", "difference_to_target", "stderr_to_target".
    weight_params_ : dict of str to ndarray
        Parameters of each family.
    history_ : dict
        Of "sample": "target_loss", "entropy" and "effective_sample_size" of every iterate; of
        others the "objective" at each evaluation, and with ``tol`` "statistic" and "pvalue" of
        every iterate from the start to the last; of "auto" one such dict for each family.
    estimator_ : estimator
        The final estimator.
    l2_ : float
    coef_, intercept_
        Of the linear default.
    n_iter_ : int
    n_features_in_, feature_names_in_
        As everywhere in scikit-learn.

    See Also
    --------
    ReweightingClassifier : The same for classes.
    hypergradient_test : Whether rows that the fit has not seen ask for other weights.
    skbilevel.model_selection.TargetKFold : Folds over target rows, with all training rows in each
        fit.

    Notes
    -----
    With theta*(w) the minimum of ``sum_i w_i l_i + lambda/2 |theta|^2``, weights are to make the
    mean loss F of target rows small at theta*(w). The derivative is ``-<grad l_i, v>`` with
    ``H v = grad F`` (eqs 5 and 6 of the paper). Where weights are free and rows outnumber
    parameters, the best of them make the model that of the target rows alone, however they are
    found; families of few parameters, target rows that a weight has not seen, and the choice among
    families are what gains over that.

    There are four ways to tell target rows. ``is_target`` is one boolean per row and survives
    Pipelines, searches and cross-validation, with `TargetKFold`. ``X_val`` is simple for a single
    fit; a Pipeline transforms it only with ``transform_input=["X_val"]``, and `cross_validate`
    takes an array that is as long as ``X`` for one value per row and cuts it up.
    ``target_column`` needs no routing, but has to survive the steps before.

    References
    ----------
    Ivanova and Ablin (2023), A challenge in reweighting data with bilevel optimization,
    arXiv 2310.17386.

    Examples
    --------
    >>> import numpy as np
    >>> from skbilevel import ReweightingRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(540, 3))
    >>> is_target = np.arange(540) >= 500  # the last 40 rows are of the kind that matters
    >>> follows = is_target | (rng.random(540) < 0.5)  # as are half of the others
    >>> y = np.where(follows, X @ [1, 2, 3], X @ [-3, 0, 1]) + 0.1 * rng.normal(size=540)
    >>> model = ReweightingRegressor(random_state=0).fit(X, y, is_target=is_target)
    >>> model.coef_.round(1)
    array([1., 2., 3.])
    >>> bool(model.weights_[follows].sum() > 0.9)
    True
    """

    _has_numbers, _n_folds, _head = True, 5, RidgeHead


class ReweightingClassifier(ClassifierMixin, Reweighting):
    """Classification on training rows that are weighted for the sake of a target sample.

    The target is a small sample of the distribution that matters: rows whose labels have been
    checked, or rows of the domain where the model will be used.

    Parameters and attributes are those of `ReweightingRegressor`, with these differences.

    Parameters
    ----------
    estimator : estimator, default=None
        Any classifier whose ``fit`` takes ``sample_weight``, or a Pipeline that ends in one. None:
        softmax regression, the model that weights are learnt for in any case.
    weighting : str, default="auto"
        "gate" is the probability that a label is right, from its margin under a model of the
        target rows alone and from what neighbours say of it: for wrong labels. It is learnt for
        the model of training rows, by that probability, and target rows together: where margins
        tell little, training rows count little. Other families are the same.
    l2 : "auto" or float, default="auto"
        "auto" is 1e-4, and for "target" chosen from 1e-5, 1e-4 and 1e-3. Rows are scaled to a mean
        squared length of 1 before.
    kl : "auto" or float, default="auto"
        In units of the loss of equal shares, log n_classes; "auto" is .01 for "loglinear".
    n_folds : "auto" or int, default="auto"
        "auto" is 3.
    relabel : bool, default=False
        With "gate": rows whose label looks wrong come back with the label that neighbours and the
        model suggest, by how sure these are. ``sample_weight_`` tells of the rows as they were.
        It does nothing without target rows.
    standardize : bool, default=True
        It matters for the distances of neighbours as well.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
    suggested_labels_ : ndarray of shape (n_samples,)
        With ``relabel``: the labels of the rows of ``X``, but for those that are more likely wrong
        than right.

    See Also
    --------
    ReweightingRegressor : The same for numbers.
    hypergradient_test : Whether rows that the fit has not seen ask for other weights.
    skbilevel.model_selection.TargetKFold : Folds over target rows, with all training rows in each
        fit.

    References
    ----------
    Ivanova and Ablin (2023), A challenge in reweighting data with bilevel optimization,
    arXiv 2310.17386.
    Zhou, Bousquet, Lal, Weston and Schölkopf (2004), Learning with local and global consistency,
    NeurIPS 16.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from skbilevel import ReweightingClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> rng = np.random.default_rng(0)
    >>> is_clean = rng.random(150) < 0.2  # a fifth of the labels have been checked
    >>> is_wrong = ~is_clean & (rng.random(150) < 0.6)
    >>> labels = np.where(is_wrong, (y + rng.integers(1, 3, 150)) % 3, y)
    >>> model = ReweightingClassifier(weighting="gate", random_state=0)
    >>> bool(model.fit(X, labels, is_target=is_clean).score(X, y) > 0.9)
    True
    """

    _has_numbers, _n_folds, _head = False, 3, SoftmaxHead
    _parameter_constraints: dict = {  # noqa: RUF012
        **Reweighting._parameter_constraints,
        "relabel": ["boolean"],
    }

    def __init__(
        self,
        estimator: Any = None,
        *,
        weighting: str = "auto",
        solver: str = "exact",
        parametrization: str = "mirror",
        max_iter: int = 30,
        tol: str | None = None,
        outer_rate: str | float = "auto",
        inner_rate: str | float = "auto",
        early_stopping: bool = True,
        l2: str | float = "auto",
        kl: str | float = "auto",
        n_folds: str | int = "auto",
        n_groups: int = 4,
        refit: str | None = "all",
        relabel: bool = False,
        standardize: bool = True,
        fit_intercept: bool = True,
        target_column: str | int | None = None,
        validation_fraction: float | None = None,
        random_state: Any = None,
    ) -> None:
        super().__init__(
            estimator,
            weighting=weighting,
            solver=solver,
            parametrization=parametrization,
            max_iter=max_iter,
            tol=tol,
            outer_rate=outer_rate,
            inner_rate=inner_rate,
            early_stopping=early_stopping,
            l2=l2,
            kl=kl,
            n_folds=n_folds,
            n_groups=n_groups,
            refit=refit,
            standardize=standardize,
            fit_intercept=fit_intercept,
            target_column=target_column,
            validation_fraction=validation_fraction,
            random_state=random_state,
        )
        self.relabel = relabel

    def _classes_of(self, rows: Rows) -> np.ndarray:
        if self.relabel and self.weighting != "gate":
            raise ValueError(f"relabel=True needs weighting='gate', not {self.weighting!r}.")
        check_classification_targets(rows.y)
        classes = np.unique(rows.y[rows.counts > 0])
        if len(classes) < 2:
            raise ValueError(
                f"{type(self).__name__} needs at least 2 classes, and the rows with a positive "
                f"weight have one class, {classes[0]!r}."
            )
        self.classes_ = classes
        return classes

    def _again(self, problem: Problem, learnt: Learnt) -> Again:
        """Rows whose label looks wrong, with the one that is suggested."""
        if not self.relabel:
            return super()._again(problem, learnt)
        mixture, rows, fit = learnt.mixture, problem.rows, learnt.selected.fit
        right = fit.weights / problem.task.train.shares * np.exp(fit.rule["log_level"])
        found = suggested(problem.task, mixture.weights, right, mixture.ridge)
        labels, told = self.classes_[found.codes], rows.y.copy()
        told[problem.train[found.is_wrong]] = labels[found.is_wrong]
        return Again(
            rows.X[problem.train],
            labels,
            found.weights,
            {"suggested_labels_": told[: rows.n_given]},
        )

    @available_if(final_has("predict_proba"))
    def predict_proba(self, X: ArrayLike) -> np.ndarray:
        """Shares of the classes by the final estimator.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        rows = self._features(X)
        shares = self.estimator_.predict_proba(rows)
        if shares.shape[1] == len(self.classes_):
            return shares
        # A class without any row that counts.
        every = np.zeros((len(shares), len(self.classes_)))
        every[:, np.searchsorted(self.classes_, self.estimator_.classes_)] = shares
        return every

    @available_if(final_has("decision_function"))
    def decision_function(self, X: ArrayLike) -> np.ndarray:
        """Decision function of the final estimator.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
        """
        rows = self._features(X)
        return self.estimator_.decision_function(rows)
