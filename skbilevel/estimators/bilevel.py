"""Imputation that is learnt for a prediction: a teacher, a student, and what flows back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if

from skbilevel._sklearn import (
    CallbackSupportMixin,
    FitLoop,
    check_is_fitted,
    fit_method,
)
from skbilevel.estimators.bilevel_fit import BilevelFit, fit_bilevel
from skbilevel.estimators.bilevel_plan import CONSTRAINTS, settings_of, warn_of_the_loop
from skbilevel.estimators.bilevel_state import BilevelModel, fitted_attributes, model_of
from skbilevel.estimators.bilevel_target import (
    Target,
    decoded,
    encoded,
    labels_of,
    merged,
    one_column,
)
from skbilevel.estimators.feature_dropout import judging_cells
from skbilevel.estimators.imputer import Floats, Imputer, RowCompleter
from skbilevel.estimators.linear_fit import Table
from skbilevel.numerics.observed import mean_and_deviation
from skbilevel.numerics.random import draw_seed
from skbilevel.numerics.row_groups import row_blocks
from skbilevel.numerics.threads import single_thread


def _predicts(imputer: Any) -> bool:
    if imputer._needs_labels or hasattr(imputer, "target_type_"):
        return True
    raise AttributeError("predict needs a fit with labels.")


def _classifies(imputer: Any) -> bool:
    if imputer._needs_labels == "classes" or hasattr(imputer, "classes_"):
        return True
    raise AttributeError("predict_proba needs a fit with classes.")


class BilevelImputer(CallbackSupportMixin, Imputer):
    """Impute, with what a prediction of ``y`` tells of the missing values.

    Three things are fitted, each on top of the one before:

    1. A base imputation, by default a mix of a normal and of trees for every column.
    2. A tilt, the log odds per standard deviation of being missing because of the value. Columns
       predict each other, and ``y``; where imputed values have to be moved up or down for that,
       they are missing because they are high or low. It is 0 unless most targets agree, so that
       values missing at random are imputed as by the base.
    3. A teacher, a masked autoencoder that corrects the base where that lowers the error of cells
       held out, and a student that predicts ``y`` from rows *with* missing values. The student
       learns from rows that the teacher has completed, some of whose cells are dropped again; its
       loss on rows set aside flows back to the teacher by an implicit gradient, bounded by that of
       the teacher's own loss, and what comes of it is kept only if further rows confirm it.

    `transform` does not see ``y``. `predict` is a committee of students and of a simpler model on
    imputed rows. Without ``y`` there is none.

    Parameters
    ----------
    base : {"stack", "gaussian", "trees", "mean"} or imputer, default="stack"
        What is corrected: "gaussian" as by `GaussianImputer`, "trees" by extremely randomised
        trees for each column in turn, "stack" a mix of both by column, weighted on cells held out.
        An imputer of scikit-learn's kind is cloned and gets the data in their own units.
    tilt : {"shadow", "y", "both"} or None, default="shadow"
        What the tilt is learnt from: the other columns, ``y``, or both. None is no tilt.
    outer : {"crossfit", "holdout", "imputed", "imputed_direct"}, default="crossfit"
        Which rows judge a student and so the teacher. "crossfit": each of ``n_folds`` students the
        fold that it has not seen; a fifth of the labelled rows, at least eight, confirm what comes
        of it, so that with fewer than 40 labels there is no loop. "holdout": one student, three
        tenths of the labelled rows, as Algorithm 1 of the source, without a bound and without
        confirmation: ``selected_`` is then "bilevel", and that student alone predicts, unless the
        loop is off; with few labels it overfits. The other two judge rows that the teacher
        has imputed, into which it can write their labels; they exist to show that leak, and warn.
    n_folds : int, default=3
        Folds of "crossfit".
    bilevel_weight : float, default=1.0
        Most length of the implicit gradient, in those of the gradient of the reconstruction; 0
        switches it off. A factor where ``outer`` is not "crossfit".
    curvature : {"gauss_newton", "hessian", "exact"}, default="gauss_newton"
        Of the student's loss. "hessian" falls back to "gauss_newton" where it is not positive;
        "exact" solves with the Gauss-Newton matrix itself, for small students.
    cg_iter : int, default=5
        Conjugate gradient steps in each iteration.
    max_iter : int, default=40
        Iterations of teacher and students.
    inner_iter : int, default=3
        Steps of a student in each of them.
    pretrain_iter : int, default=300
        Steps of the teacher before, on its own loss; fewer once 150 of them have gained nothing.
    student_iter : "auto" or int, default="auto"
        Steps of the students that predict; "auto" is 250, or as many as show all rows 60 times,
        but at most 3000.
    n_students : int, default=4
        Number of students of either kind that predict. Those of the first kind learn from the
        teacher, those of the second from labelled rows as they are, a guard against a teacher that
        is wrong. Each does without one of four blocks of labelled rows, in turn, which tells what
        the kinds are worth beside a regression on imputed rows (``prediction_shares_``).
    hidden_layer_sizes, student_hidden_layer_sizes : int or sequence of int, \
            default=(128, 128) and (32, 32)
        Widths of the hidden layers of the teacher and of a student, which also has a linear part;
        an empty sequence is a linear student.
    mask_ratio : "mix" or float, default="mix"
        Share of the observed cells that are hidden from the teacher while it learns. "mix": every
        row its own share, or the pattern of another row. It learns from all of them where the
        base does not remember what it has seen ("gaussian", "mean"), else from a tenth of the
        cells, which are hidden from the base as well.
    feature_dropout : "empirical" or float, default="empirical"
        Share of the cells that a student does without while it learns. "empirical": the pattern
        of another row.
    pseudo_label_weight : float, default=1.0
        Weight of rows without a label, which learn the teacher's.
    l2 : float, default=3e-3
        lambda: the loss of a student has lambda/2 times its sum of squared parameters.
    learning_rate, student_learning_rate : float, default=5e-4 and 3e-3
        Of teacher and students in the iterations.
    target_type : {"auto", "continuous", "binary", "multiclass"}, default="auto"
        "auto": strings, booleans and at most 20 distinct integers with at least five rows each
        (any number of rows where a ``missing_label`` is given) are classes; anything else is a
        number.
    missing_label : int, float or str, default=None
        Marks rows of ``y`` without a label, beside NaN and None.
    cross_fit : int, default=None
        Number of folds in `fit_transform`: every row is then imputed by a model that has seen
        neither it nor its label.
    missing_values : int or float, default=numpy.nan
        The value that marks a missing cell.
    add_indicator : bool, default=False
        Append a column of 0 and 1 for every feature that had missing cells at fit. The student
        sees what is missing in any case; give indicators to a model that you put behind.
    keep_empty_features : bool, default=False
        Keep features without any observed value at fit, filled with 0, instead of dropping them.
    random_state : int, RandomState instance or None, default=None
        Draws trees, weights, folds and masks.

    Attributes
    ----------
    selected_ : {"base", "mae", "bilevel"}
        The teacher that was kept: none, one that has learnt to reconstruct, or one that has also
        learnt from its students.
    tilt_ : ndarray of shape (`n_features_in_`,)
        Log odds of being missing per standard deviation of the column: positive where high values
        are missing. 0 unless accepted, and for empty features.
    tilt_accepted_ : bool
        Whether the targets agreed on it.
    shadow_gain_ : dict
        "target": the columns (and ``y``) that served as targets; "tilt" and "indicators": how many
        nats the tilt, and free indicators of what is missing, gained on each; "counted": those
        that were not dropped because indicators explain them much better.
    stack_weights_ : ndarray of shape (n_fitted,)
        Share of the trees in each column; only with ``base="stack"``.
    history_ : dict of str to list of float
        "pretraining" and "held_out" (the error on cells and labels held out, each relative to the
        base, added) of the teacher alone. Then for every iteration: "inner", "outer" and "mae"
        losses, "stationarity" (the norm of the gradient of the inner loss), "implicit_norm",
        "mae_norm" and "cosine" of the two gradients, "cg_residual" relative to the right-hand
        side, and "negative_curvature", 1 where it was met.
    n_iter_ : int
        Number of iterations, at least 1.
    prediction_shares_ : dict of str to float
        What `predict` is made of: "students" of the teacher, "raw_students" of labelled rows as
        they are, and "label_base", a ridge or logistic regression on imputed rows, beside trees
        unless ``base`` is "gaussian" or "mean"; with fewer than ten labels their mean. All is
        "students" where ``outer`` is not "crossfit", unless the loop is off. Only with labels.
    target_type_ : str
        What ``y`` was taken for; only with labels.
    classes_ : ndarray of shape (n_classes,)
        Only with classes.
    n_observed_, empty_features_, indicator_, n_features_in_, feature_names_in_
        As for every imputer of the package.

    See Also
    --------
    BilevelRegressor, BilevelClassifier : The same as predictors.
    NotMIWAEImputer : Likelihood of a missing mechanism, for what is known of it.

    References
    ----------
    Bilevel Imputation Explained (2025), the note behind AI-PM25-Prediction-Bilevel-Imputation.
    Rajeswaran, Finn, Kakade and Levine (2019), Meta-learning with implicit gradients, NeurIPS.
    Miao, Liu, Tchetgen Tchetgen and Geng (2015), Identification and semiparametric efficiency of
    nonignorable missing data with a shadow variable, arXiv 1509.02556.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_diabetes
    >>> from skbilevel import BilevelImputer
    >>> X, y = load_diabetes(return_X_y=True)
    >>> X[::3, 2] = np.nan
    >>> imputer = BilevelImputer(base="gaussian", max_iter=5, random_state=0).fit(X, y)
    >>> imputer.transform(X).shape
    (442, 10)
    >>> imputer.tilt_accepted_
    False
    >>> bool(imputer.score(X, y) > 0.4)
    True
    """

    _parameter_constraints: dict = {**Imputer._parameter_constraints, **CONSTRAINTS}  # noqa: RUF012

    # Whether there is no fit without labels, and of which kind: "numbers" or "classes".
    _needs_labels = ""

    selected_: str
    n_iter_: int
    _model: dict[str, Any]
    _target: dict[str, float]

    def __init__(
        self,
        *,
        base: Any = "stack",
        tilt: str | None = "shadow",
        outer: str = "crossfit",
        n_folds: int = 3,
        bilevel_weight: float = 1.0,
        curvature: str = "gauss_newton",
        cg_iter: int = 5,
        max_iter: int = 40,
        inner_iter: int = 3,
        pretrain_iter: int = 300,
        student_iter: int | str = "auto",
        n_students: int = 4,
        hidden_layer_sizes: int | Sequence[int] = (128, 128),
        student_hidden_layer_sizes: int | Sequence[int] = (32, 32),
        mask_ratio: str | float = "mix",
        feature_dropout: str | float = "empirical",
        pseudo_label_weight: float = 1.0,
        l2: float = 3e-3,
        learning_rate: float = 5e-4,
        student_learning_rate: float = 3e-3,
        target_type: str = "auto",
        missing_label: float | str | None = None,
        cross_fit: int | None = None,
        missing_values: float = np.nan,
        add_indicator: bool = False,
        keep_empty_features: bool = False,
        random_state: Any = None,
    ):
        super().__init__(
            missing_values=missing_values,
            add_indicator=add_indicator,
            keep_empty_features=keep_empty_features,
        )
        self.base = base
        self.tilt = tilt
        self.outer = outer
        self.n_folds = n_folds
        self.bilevel_weight = bilevel_weight
        self.curvature = curvature
        self.cg_iter = cg_iter
        self.max_iter = max_iter
        self.inner_iter = inner_iter
        self.pretrain_iter = pretrain_iter
        self.student_iter = student_iter
        self.n_students = n_students
        self.hidden_layer_sizes = hidden_layer_sizes
        self.student_hidden_layer_sizes = student_hidden_layer_sizes
        self.mask_ratio = mask_ratio
        self.feature_dropout = feature_dropout
        self.pseudo_label_weight = pseudo_label_weight
        self.l2 = l2
        self.learning_rate = learning_rate
        self.student_learning_rate = student_learning_rate
        self.target_type = target_type
        self.missing_label = missing_label
        self.cross_fit = cross_fit
        self.random_state = random_state

    @fit_method
    @single_thread()
    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Fit base, tilt, teacher and students.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Training rows, with missing cells.
        y : array-like of shape (n_samples,), default=None
            Numbers or classes; NaN, None or ``missing_label`` where there is no label.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If ``X`` has infinite or non-numeric values or no observed cell, ``y`` another length
            or infinite values, or a parameter is out of range; the estimator is then left as it
            was.
        FloatingPointError
            If the training of a network diverges beyond what numbers can hold.

        Warns
        -----
        ConvergenceWarning
            If the loss of the students of a loop that is kept ends ten times above that of a
            constant, or most linear systems of the implicit gradient were not solved at all.
        """
        # Sums follow the order of memory, and training would enlarge their rounding.
        incomplete = np.ascontiguousarray(self._start_fit(X), dtype=np.float64)
        settings = settings_of(self, len(incomplete))
        target = self._encoded(y, len(incomplete))
        names = self._names(~self.empty_features_)
        rng = check_random_state(self.random_state)
        seed = draw_seed(rng)
        table = Table(incomplete, *mean_and_deviation(incomplete, names))
        report = FitLoop(self, X, y, self.max_iter)

        def attributes(fit: BilevelFit) -> dict[str, Any]:
            return fitted_attributes(fit, target, names, ~self.empty_features_, seed)

        fit = fit_bilevel(
            table,
            target,
            settings,
            rng,
            lambda current: report.step(lambda: attributes(current())),
        )
        warn_of_the_loop(fit.history, is_kept=fit.selected == "bilevel")
        fitted = attributes(fit)
        self.__dict__.update(fitted)
        report.end(fitted)
        return self

    def _encoded(self, y: ArrayLike | None, n_rows: int) -> Target | None:
        """The target, or None without labels."""
        if y is None:
            return None
        return encoded(y, self.target_type, self.missing_label, n_rows)

    def fit_transform(self, X: ArrayLike, y: ArrayLike | None = None) -> Any:
        """Fit, and impute the same rows.

        With ``cross_fit`` every row is imputed by a model fitted to other folds of the rows, so
        that what follows cannot learn from an imputation that has seen the row's label. A later
        `transform` imputes by the model of all rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : array-like of shape (n_samples,), default=None

        Returns
        -------
        ndarray of shape (n_samples, n_features_out)
        """
        if self.cross_fit is None:
            return super().fit_transform(X, y)
        return self.fit(X, y)._cross_fitted(X, y)

    def _cross_fitted(self, X: ArrayLike, y: ArrayLike | None) -> Floats:
        """Rows with their missing cells from models of the other folds."""
        rows, whole = self._validate_incomplete(X, reset=False), self._out_of(X)
        kept = self._kept_features()
        missing = np.isnan(self._with_nan(rows))[:, kept]
        # An imputer also of a predictor: without labels in the other folds it needs none.
        settings = clone(self).get_params(deep=False)
        folds = KFold(self.cross_fit, shuffle=True, random_state=self._seed % 2**32)
        for others, fold in folds.split(rows):
            part = BilevelImputer(**settings).set_params(**self._settings_of_a_fold())
            labels = None if y is None else one_column(y)[others]
            imputed = part.fit(rows[others], labels)._out_of(rows[fold])[:, kept]
            # What is not observed in the other folds is left to the model of all rows.
            told = missing[fold] & ~part.empty_features_[kept]
            whole[fold, : len(kept)] = np.where(told, imputed, whole[fold, : len(kept)])
        return whole

    def _settings_of_a_fold(self) -> dict[str, Any]:
        settings = {
            "add_indicator": False,
            "keep_empty_features": True,
            "random_state": self._seed % 2**32,
        }
        if hasattr(self, "target_type_"):
            settings["target_type"] = self.target_type_
        return settings

    def _out_of(self, rows: ArrayLike) -> Floats:
        """`transform` without the container of `set_output`."""
        return Imputer.transform.__wrapped__(self, rows)  # type: ignore[attr-defined]

    def _fitted_model(self) -> BilevelModel:
        return model_of(self._model)

    def _completer(self) -> RowCompleter:
        return self._fitted_model().completed

    @available_if(_predicts)
    @single_thread()
    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """Predict ``y`` from rows as they are: the mean of a committee, weighted by its shares.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with missing cells.

        Returns
        -------
        ndarray of shape (n_samples,)
            Numbers in the units of ``y``, or classes.
        """
        return self._decoded(self._outputs(X))

    def _decoded(self, outputs: NDArray[np.float64]) -> NDArray[Any]:
        """Numbers in the units of ``y``, or classes, from outputs (b, q)."""
        return decoded(outputs, **self._target, classes=getattr(self, "classes_", None))

    @available_if(_classifies)
    @single_thread()
    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of the classes, in the order of ``classes_``.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with missing cells.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
        """
        return np.exp(self._outputs(X))

    def _outputs(self, X: ArrayLike) -> NDArray[np.float64]:
        check_is_fitted(self)
        rows, model = self._incomplete(X), self._fitted_model()
        return np.concatenate([model.outputs(rows[block]) for block in row_blocks(rows)])

    @single_thread()
    def impute_target(self, X: ArrayLike, y: ArrayLike) -> NDArray[Any]:
        """Fill missing labels with those of the teacher; others stay as they are.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with missing cells.
        y : array-like of shape (n_samples,)
            Labels; NaN, None or ``missing_label`` where there is none.

        Returns
        -------
        ndarray of shape (n_samples,)
        """
        check_is_fitted(self, "target_type_", msg="impute_target needs a fit with labels.")
        rows, model = self._incomplete(X), self._fitted_model()
        labels, labelled = labels_of(y, self.missing_label, len(rows))
        if labelled.all():
            return labels.copy()
        unknown = rows[~labelled]
        told = [model.labels(unknown[block]) for block in row_blocks(unknown)]
        return merged(labels, labelled, self._decoded(np.concatenate(told)))

    @single_thread()
    def score(
        self, X: ArrayLike, y: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> float:
        """R2 or accuracy of `predict` on the labelled rows.

        Fitted without labels, minus the root mean squared error of a fifth of the observed cells,
        which are hidden at random, in standard deviations of the columns at fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Rows with missing cells.
        y : array-like of shape (n_samples,), default=None
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Of the rows, for R2 or accuracy.

        Returns
        -------
        float

        Raises
        ------
        ValueError
            If the imputer was fitted with labels, and no row has one here.
        """
        check_is_fitted(self)
        if not hasattr(self, "target_type_"):
            return -self._hidden_cell_error(self._incomplete(X))
        n_rows = len(self._incomplete(X))
        if y is None:
            raise ValueError("score needs y: the imputer was fitted with labels.")
        labels, labelled = labels_of(y, self.missing_label, n_rows)
        if not labelled.any():
            raise ValueError("score needs a label in y, and no row has one.")
        truth, predicted = labels[labelled], self.predict(X)[labelled]
        weight = None if sample_weight is None else np.asarray(sample_weight, dtype=float)
        if weight is not None:
            if weight.shape != labelled.shape:
                raise ValueError(f"X has {n_rows} rows and sample_weight has {len(weight)}.")
            weight = weight[labelled]
        if hasattr(self, "classes_"):
            # Compared as Python objects: a cast could cut a string, or a fraction, to a class.
            is_right = [a == b for a, b in zip(truth.tolist(), predicted.tolist(), strict=True)]
            return float(np.average(is_right, weights=weight))
        return float(r2_score(truth.astype(np.float64), predicted, sample_weight=weight))

    def _hidden_cell_error(self, rows: Floats) -> float:
        hidden = judging_cells(~np.isnan(rows), np.random.RandomState(self._seed % 2**32))
        if not hidden.any():
            raise ValueError("score needs a row with two observed cells.")
        model, shown = self._fitted_model(), np.where(hidden, np.nan, rows)
        completed = np.concatenate([model.completed(shown[block]) for block in row_blocks(rows)])
        return float(np.sqrt(np.mean((((completed - rows) / model.scale)[hidden]) ** 2)))
