"""BilevelImputer and its predictors as a user meets them."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_diabetes, load_iris
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbilevel import BilevelClassifier, BilevelImputer, BilevelRegressor, GaussianImputer
from skbilevel.amputation import ampute
from skbilevel.estimators import bilevel_fit
from skbilevel.estimators.bilevel_plan import warn_of_the_loop
from skbilevel.estimators.bilevel_state import model_of
from skbilevel.metrics import imputation_rmse
from skbilevel.numerics import row_groups

KINDS = ("students", "raw_students")
QUICK = {
    "base": "gaussian",
    "max_iter": 3,
    "pretrain_iter": 20,
    "student_iter": 100,
    "n_students": 1,
    "random_state": 0,
}
COMPLETE, Y = load_diabetes(return_X_y=True)
X, OBSERVED = ampute(COMPLETE, "mcar", missing_rate=0.2, random_state=0)
FEW = np.where(np.arange(len(Y)) % 4 == 0, Y, np.nan)


def quick(cls=BilevelImputer, **settings):
    return cls(**{**QUICK, **settings})


@pytest.fixture(scope="module")
def fitted():
    return quick().fit(X, FEW)


# What it imputes


def test_imputation_does_not_see_y_at_transform_and_keeps_observed_cells(fitted):
    imputed = fitted.transform(X)
    assert_array_equal(imputed[OBSERVED], X[OBSERVED])
    assert np.isfinite(imputed).all()
    assert imputation_rmse(COMPLETE, imputed, OBSERVED) < 0.85


def test_where_nothing_is_to_be_added_it_is_the_normal_near_the_observed_range():
    """A normal has no better imputation than its conditional mean."""
    rng = np.random.default_rng(0)
    Z = rng.multivariate_normal([0, 0, 0], np.full((3, 3), 0.6) + 0.4 * np.eye(3), 500)
    Z[rng.random(Z.shape) < 0.3] = np.nan
    imputer = quick(pretrain_iter=100).fit(Z)
    assert imputer.selected_ == "base"
    assert not imputer.tilt_accepted_
    expected = GaussianImputer(random_state=0).fit_transform(Z)
    low, high = np.nanmin(Z, axis=0), np.nanmax(Z, axis=0)
    scale = np.nanstd(Z, axis=0)
    assert_allclose(
        imputer.transform(Z), np.clip(expected, low - 3 * scale, high + 3 * scale), atol=1e-8
    )


def test_teacher_adds_a_relation_that_the_base_cannot_have():
    t = np.random.default_rng(0).uniform(-2, 2, 600)
    Z = np.column_stack([t, t**2])
    Z[::4, 1] = np.nan
    settings = {"pretrain_iter": 600, "tilt": None}
    imputer = quick(**settings).fit(Z)
    alone = quick(**{**settings, "pretrain_iter": 0}).fit(Z)
    assert (imputer.selected_, alone.selected_) == ("mae", "base")
    truth = t[::4] ** 2
    errors = [np.mean((each.transform(Z)[::4, 1] - truth) ** 2) for each in (imputer, alone)]
    assert errors[0] < 0.1 * errors[1]


@pytest.mark.parametrize("base", ["mean", "gaussian", "trees", "stack"])
def test_every_base_completes_new_rows(base):
    imputer = quick(base=base).fit(X[:300], Y[:300])
    imputed = imputer.transform(X[300:])
    assert_array_equal(imputed[OBSERVED[300:]], X[300:][OBSERVED[300:]])
    assert hasattr(imputer, "stack_weights_") == (base == "stack")


def test_base_can_be_any_imputer_which_sees_the_units_of_the_data():
    constant = SimpleImputer(strategy="constant", fill_value=0.05)
    imputer = quick(base=constant, pretrain_iter=0).fit(X)
    assert_allclose(imputer.transform(X)[~OBSERVED], 0.05, rtol=1e-12)
    neighbours = quick(base=KNNImputer(), pretrain_iter=0).fit(X)
    assert_allclose(neighbours.transform(X), KNNImputer().fit_transform(X), atol=1e-12)


# The tilt


def self_masked(sign):
    return ampute(sign * COMPLETE, "mnar_logistic", missing_rate=0.4, slope=2.0, random_state=0)


@pytest.mark.parametrize("sign", [1, -1])
def test_tilt_tells_which_values_are_missing_and_lowers_the_error(sign):
    hidden, observed = self_masked(1)
    imputer = quick(pretrain_iter=0).fit(sign * hidden)
    assert imputer.tilt_accepted_
    assert np.mean(np.sign(imputer.tilt_) == sign) >= 0.8
    assert sign * imputer.tilt_.mean() > 0.5
    plain = quick(pretrain_iter=0, tilt=None).fit(sign * hidden)
    errors = [
        imputation_rmse(sign * COMPLETE, each.transform(sign * hidden), observed)
        for each in (imputer, plain)
    ]
    assert errors[0] < 0.85 * errors[1]
    assert set(imputer.shadow_gain_) == {"target", "tilt", "indicators", "counted"}
    assert imputer.shadow_gain_["target"] == [
        f"x{j}" for j in np.argsort(-observed.mean(axis=0), kind="stable")[:8]
    ]
    assert plain.shadow_gain_ == {}


def test_missing_at_random_has_no_tilt(fitted):
    assert not fitted.tilt_accepted_
    assert not fitted.tilt_.any()


def test_y_is_a_target_of_the_tilt_if_asked_for():
    hidden, _ = self_masked(1)
    imputer = quick(tilt="both", pretrain_iter=0).fit(hidden, Y)
    assert imputer.shadow_gain_["target"][-1] == "y"
    assert quick(tilt="y", pretrain_iter=0).fit(hidden, Y).shadow_gain_["target"] == ["y"]
    assert quick(tilt="y", pretrain_iter=0).fit(hidden).shadow_gain_ == {}


# Labels


def test_without_labels_there_is_no_predictor():
    for labels in (None, np.full(len(X), np.nan)):
        imputer = quick().fit(X, labels)
        assert not hasattr(imputer, "predict")
        assert not hasattr(imputer, "target_type_")
        assert -1.5 < imputer.score(X) < 0
        with pytest.raises(AttributeError, match="impute_target needs a fit with labels"):
            imputer.impute_target(X, Y)
    assert_array_equal(imputer.transform(X), quick().fit(X).transform(X))


def test_score_without_labels_is_the_error_of_hidden_cells():
    """Of a constant imputation it is known: the deviation of the cells."""
    imputer = quick(base="mean", pretrain_iter=0, tilt=None).fit(X)
    assert imputer.score(X) == pytest.approx(-1, abs=0.1)


@pytest.mark.parametrize("cls", [BilevelRegressor, BilevelClassifier])
def test_predictor_needs_a_label(cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} requires y"):
        quick(cls).fit(X)
    with pytest.raises(ValueError, match=f"{cls.__name__} needs labels"):
        quick(cls).fit(X, np.full(len(X), np.nan))


def test_student_predicts_rows_with_missing_cells_from_few_labels(fitted):
    assert fitted.target_type_ == "continuous"
    unlabelled = np.isnan(FEW)
    residual = Y[unlabelled] - fitted.predict(X[unlabelled])
    assert 1 - np.mean(residual**2) / Y[unlabelled].var() > 0.3


def test_score_ignores_rows_without_a_label(fitted):
    labelled = ~np.isnan(FEW)
    assert fitted.score(X, FEW) == fitted.score(X[labelled], Y[labelled])
    with pytest.raises(ValueError, match="no row has one"):
        fitted.score(X, np.full(len(X), np.nan))
    with pytest.raises(ValueError, match="score needs y"):
        fitted.score(X)


def test_missing_labels_are_filled_and_others_stay(fitted):
    filled = fitted.impute_target(X, FEW)
    labelled = ~np.isnan(FEW)
    assert_array_equal(filled[labelled], FEW[labelled])
    residual = (Y - filled)[~labelled]
    assert 1 - np.mean(residual**2) / Y[~labelled].var() > 0.3


@pytest.mark.parametrize("marker", [None, np.nan, -1, "?"])
def test_missing_labels_of_classes_can_be_marked_in_several_ways(marker):
    iris, species = load_iris(return_X_y=True)
    hidden, _ = ampute(iris, "mcar", missing_rate=0.2, random_state=0)
    few = [int(c) if i % 3 == 0 else marker for i, c in enumerate(species)]
    labels = np.array(few, dtype=float if marker in (-1,) or marker != marker else object)
    known = marker if isinstance(marker, int | str) else None
    model = quick(BilevelClassifier, missing_label=known, max_iter=0).fit(hidden, labels)
    assert model.classes_.tolist() == [0, 1, 2]
    assert np.mean(model.predict(hidden) == species) > 0.8
    shares = model.predict_proba(hidden)
    assert shares.shape == (150, 3)
    assert_allclose(shares.sum(axis=1), 1, rtol=1e-12)
    assert_array_equal(model.classes_[shares.argmax(axis=1)], model.predict(hidden))


def test_wrong_labels_are_refused():
    with pytest.raises(ValueError, match="X has 442 rows and y has 3"):
        quick().fit(X, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="y contains infinity"):
        quick().fit(X, np.where(np.arange(len(Y)) == 3, np.inf, Y))
    with pytest.raises(ValueError, match="must hold numbers"):
        quick(BilevelRegressor).fit(X, ["a", "b"] * (len(Y) // 2))
    with pytest.raises(ValueError, match="has 3 classes"):
        quick(target_type="binary").fit(X, np.arange(len(Y)) % 3)
    with pytest.raises(ValueError, match="Unknown label type"):
        quick(BilevelClassifier).fit(X, Y + 0.5)


# The outer loop


def test_history_has_every_iteration(fitted):
    monitored = {
        "inner",
        "outer",
        "mae",
        "stationarity",
        "implicit_norm",
        "mae_norm",
        "cosine",
        "cg_residual",
        "negative_curvature",
    }
    assert set(fitted.history_) == {"pretraining", "held_out", *monitored}
    assert {len(fitted.history_[name]) for name in monitored} == {3}
    assert fitted.n_iter_ == 3
    assert min(fitted.history_["implicit_norm"]) > 0


def test_weight_0_and_no_iterations_leave_the_outer_loop_out():
    for settings in ({"bilevel_weight": 0}, {"max_iter": 0}):
        imputer = quick(**settings).fit(X, Y)
        assert "outer" not in imputer.history_
        assert imputer.selected_ in ("base", "mae")


def test_holdout_is_the_algorithm_without_confirmation():
    imputer = quick(outer="holdout", curvature="hessian", inner_iter=1).fit(X, Y)
    assert imputer.selected_ == "bilevel"
    assert imputer.prediction_shares_ == {"students": 1.0, "raw_students": 0.0, "label_base": 0.0}
    assert [len(imputer._model["committee"][kind]) for kind in KINDS] == [1, 0]


@pytest.mark.parametrize("outer", ["imputed", "imputed_direct"])
def test_naive_formulation_warns(outer):
    with pytest.warns(UserWarning, match="write their labels"):
        imputer = quick(outer=outer).fit(X, Y)
    assert np.isfinite(imputer.predict(X)).all()


@pytest.mark.parametrize("curvature", ["gauss_newton", "hessian", "exact"])
def test_curvatures_are_solved(curvature):
    imputer = quick(curvature=curvature, student_hidden_layer_sizes=(4,)).fit(X, Y)
    if curvature == "exact":
        assert max(imputer.history_["cg_residual"]) < 1e-8
    assert np.isfinite(imputer.history_["cosine"]).all()


def test_curvature_is_what_the_implicit_gradient_is_solved_with():
    """Enough products solve the system of a small student; the Hessian's has no minimum here."""

    def first(curvature, name):
        settings = {"cg_iter": 200, "max_iter": 1, "student_hidden_layer_sizes": (4,)}
        return quick(curvature=curvature, **settings).fit(X, Y).history_[name][0]

    exact = first("exact", "implicit_norm")
    assert first("gauss_newton", "implicit_norm") == pytest.approx(exact, rel=1e-4)
    assert first("gauss_newton", "negative_curvature") == 0
    assert first("hessian", "negative_curvature") == 1


class Recorder:
    """Keeps a fitted estimator of every iteration, and stops after some."""

    def __init__(self, n_tasks):
        self.n_tasks, self.seen = n_tasks, []

    def setup(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context): ...
    def teardown(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        if context.task_name == "iteration":
            self.seen.append(fitted_estimator)
        return len(self.seen) == self.n_tasks


def test_callback_sees_every_iteration_as_a_fitted_imputer_and_stops():
    recorder = Recorder(2)
    quick(outer="holdout").set_callbacks(recorder).fit(X, Y)
    assert [seen.n_iter_ for seen in recorder.seen] == [1, 2]
    first, second = (seen.predict(X) for seen in recorder.seen)
    assert not np.array_equal(first, second)
    # What a callback sees is what a fit of as many iterations gives.
    assert_array_equal(quick(outer="holdout", max_iter=2).fit(X, Y).predict(X), second)


# With scikit-learn


def test_it_drops_into_a_pipeline_a_search_and_cross_validation():
    model = make_pipeline(quick(), StandardScaler(), Ridge())
    assert cross_val_score(model, X, Y, cv=3).mean() > 0.35
    grid = {"base": ["mean", "gaussian"]}
    search = GridSearchCV(quick(max_iter=0), grid, cv=KFold(2)).fit(X, FEW)
    first = np.arange(len(X)) < len(X) // 2
    best = quick(max_iter=0, **search.best_params_)
    halves = [best.fit(X[one], FEW[one]).score(X[~one], FEW[~one]) for one in (~first, first)]
    assert search.best_score_ == pytest.approx(np.mean(halves), rel=1e-12)
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])
    assert cross_val_score(quick(BilevelRegressor), X, Y, cv=3).mean() > 0.3


def test_cross_fitted_rows_are_imputed_by_models_of_other_folds():
    imputer = quick(cross_fit=3, add_indicator=True, max_iter=0, tilt=None)
    crossed = imputer.fit_transform(X, Y)
    whole = imputer.transform(X)
    assert crossed.shape == whole.shape
    assert_array_equal(crossed[:, :10][OBSERVED], X[OBSERVED])
    assert_array_equal(crossed[:, 10:], whole[:, 10:])
    differs = crossed[:, :10] != whole[:, :10]
    assert differs[~OBSERVED].mean() > 0.9
    # A row has no part in its own imputation.
    moved = X.copy()
    moved[0, OBSERVED[0]] = 0.01
    again = clone(imputer).fit_transform(moved, Y)
    same = (again[:, :10] == crossed[:, :10]).all(axis=1)
    folds = np.flatnonzero(~same)
    assert len(folds) < 0.75 * len(X)


def test_failed_fit_leaves_the_imputer_as_it_was(fitted):
    before = fitted.transform(X)
    with pytest.raises(ValueError, match="y has"):
        fitted.fit(X, Y[:3])
    assert_array_equal(fitted.transform(X), before)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("base", "median"),
        ("tilt", "z"),
        ("outer", "train"),
        ("n_folds", 1),
        ("curvature", "identity"),
        ("mask_ratio", 1.0),
        ("feature_dropout", -0.1),
        ("cross_fit", 1),
        ("student_iter", 0),
    ],
)
def test_parameters_out_of_range_are_named(parameter, value):
    with pytest.raises(ValueError, match=f"'{parameter}' parameter"):
        quick(**{parameter: value}).fit(X, Y)


def test_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick().fit(X, Y).transform(X)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": KNNImputer}, "base must be an imputer, not a class"),
        ({"base": StandardScaler()}, "base=StandardScaler.*left missing cells"),
        ({"cross_fit": 500}, "cross_fit=500 is more than the 442 rows"),
        ({"hidden_layer_sizes": (8, 0)}, "hidden_layer_sizes must be positive"),
        ({"student_hidden_layer_sizes": (-1,)}, "student_hidden_layer_sizes must be positive"),
        ({"curvature": "exact", "l2": 0}, "curvature='exact' needs l2 > 0"),
    ],
    ids=str,
)
def test_parameters_that_do_not_fit_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        quick(**settings).fit(X, Y)


def test_predictors_say_that_they_predict_before_they_are_fitted():
    """Meta-estimators look for the methods first."""
    assert hasattr(BilevelRegressor(), "predict")
    assert not hasattr(BilevelRegressor(), "predict_proba")
    assert hasattr(BilevelClassifier(), "predict_proba")
    with pytest.raises(NotFittedError):
        BilevelRegressor().predict(X)
    with pytest.raises(AttributeError) as error:
        BilevelImputer().predict(X)
    assert "needs a fit with labels" in str(error.value.__cause__)
    assert cross_val_predict(quick(BilevelRegressor, max_iter=0), X, Y, cv=2).shape == Y.shape


def test_columns_that_tell_nothing_do_not_hide_the_tilt():
    hidden, _ = self_masked(1)
    rng = np.random.default_rng(0)
    nothing = np.column_stack([np.ones((len(X), 3)), rng.normal(size=(len(X), 5))])
    imputer = quick(pretrain_iter=0).fit(np.hstack([nothing, hidden]))
    assert imputer.tilt_accepted_
    assert not imputer.tilt_[:8].any()
    assert {f"x{j}" for j in range(8)}.isdisjoint(imputer.shadow_gain_["target"])


def test_tilt_has_one_number_for_every_feature_seen():
    hidden, _ = self_masked(1)
    with_empty = np.insert(hidden, 2, np.nan, axis=1)
    with pytest.warns(UserWarning, match="Dropping features"):
        imputer = quick(pretrain_iter=0).fit(with_empty)
    expected = quick(pretrain_iter=0).fit(hidden).tilt_
    assert_array_equal(imputer.tilt_, np.insert(expected, 2, 0.0))


def test_accuracy_counts_what_is_equal_and_weighs_rows():
    iris, species = load_iris(return_X_y=True)
    names = np.array(["no", "yes", "no"], dtype=object)[species]
    model = quick(BilevelClassifier, max_iter=0).fit(iris, names)
    predicted = model.predict(iris)
    longer = np.where(predicted == "yes", "yes_but_other", predicted).astype(object)
    assert model.score(iris, longer) == pytest.approx(np.mean(predicted == "no"))
    weights = (predicted == names).astype(float)
    assert model.score(iris, names, sample_weight=weights) == 1


def test_settings_changed_after_the_fit_do_not_change_the_networks(fitted):
    before = fitted.predict(X)
    changed = clone(fitted).fit(X, FEW).set_params(student_hidden_layer_sizes=(3,))
    assert_array_equal(changed.predict(X), before)


def test_labels_of_the_teacher_stay_finite_for_rows_far_out(fitted):
    far = X[:1].copy()
    far[0, np.flatnonzero(OBSERVED[0])[0]] = 1e300
    assert abs(fitted.impute_target(far, [np.nan])[0]) < 1e6


def test_diverging_loop_is_an_error():
    with pytest.raises(FloatingPointError, match="learning rates"):
        quick(outer="holdout", student_learning_rate=1e200).fit(X, Y)


def test_loop_that_is_switched_off_selects_nothing_of_it():
    imputer = quick(outer="holdout", max_iter=0).fit(X, Y)
    assert imputer.selected_ in ("base", "mae")
    assert min(imputer.prediction_shares_.values()) > 0
    assert [len(imputer._model["committee"][kind]) for kind in KINDS] == [1, 1]


@pytest.mark.parametrize("outer", ["imputed", "imputed_direct"])
@pytest.mark.filterwarnings("ignore:outer=")
def test_only_students_of_the_naive_loop_are_shown_imputed_rows(outer):
    shown = [quick(outer=outer, max_iter=n).fit(X, Y)._model["predicts_imputed"] for n in (0, 2)]
    assert shown == [False, True]


@pytest.mark.parametrize("outer", ["crossfit", "holdout"])
def test_single_label_is_enough(outer):
    y = np.where(np.arange(len(X)) == 5, Y, np.nan)
    imputer = quick(outer=outer).fit(X, y)
    assert_allclose(imputer.predict(X), Y[5], rtol=1e-6)


def test_base_of_labels_says_the_same_at_fit_and_of_the_same_rows_later(monkeypatch):
    """Also of rows far out, which networks see cut."""
    kept = []
    real = bilevel_fit.fit_label_base
    monkeypatch.setattr(
        bilevel_fit, "fit_label_base", lambda *given: kept.append(real(*given)) or kept[0]
    )
    wild = np.where((np.arange(len(X)) == 3)[:, None] & OBSERVED, 40.0, X)
    imputer = quick().fit(wild, FEW)
    model = model_of(imputer._model)
    Z = model.standardized(wild)
    told = model._base_outputs(Z, model._tilted(Z, model.base.completed(Z)))
    others = np.isnan(FEW)
    assert_allclose(told[others], kept[0].outputs[others], rtol=1e-9)
    assert np.abs(Z[3][OBSERVED[3]]).min() > 8


def test_cross_fitting_warns_of_nothing_and_keeps_empty_folds_near_the_data():
    frame = load_diabetes(as_frame=True).data.where(OBSERVED)
    frame["rare"] = np.where(np.arange(len(frame)) == 7, 100.0, np.nan)
    imputer = quick(cross_fit=2, max_iter=0, tilt=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        crossed = imputer.fit_transform(frame, Y)
    assert_array_equal(np.asarray(crossed)[:, -1], 100.0)


@pytest.mark.parametrize("cls", [BilevelRegressor, BilevelClassifier])
def test_cross_fitting_a_predictor_needs_no_label_in_every_fold(cls):
    """What has no label is imputed as without y."""
    labels = [Y[0] > 100 if cls is BilevelClassifier else Y[0], *[None] * (len(Y) - 1)]
    crossed = quick(cls, cross_fit=3).fit_transform(X, labels)
    assert_array_equal(crossed[OBSERVED], X[OBSERVED])
    assert np.isfinite(crossed).all()


def test_words_in_a_list_beside_nan_are_no_class():
    X, y = load_iris(return_X_y=True)
    words = [("a", "b", "c")[label] if i % 3 else np.nan for i, label in enumerate(y)]
    model = quick(BilevelClassifier).fit(X, words)
    assert model.classes_.tolist() == ["a", "b", "c"]
    assert model.score(X, words) > 0.9
    assert "nan" not in model.impute_target(X, words).tolist()


def test_own_base_without_a_seed_draws_from_that_of_the_imputer():
    def imputed(seed):
        base = make_pipeline(IterativeImputer(sample_posterior=True, max_iter=2))
        return quick(base=base, random_state=seed, max_iter=0).fit(X).transform(X)

    assert_array_equal(imputed(0), imputed(0))
    assert not np.array_equal(imputed(0), imputed(1))


def test_tilt_of_other_columns_does_not_depend_on_which_rows_have_labels(monkeypatch):
    seen, real = [], bilevel_fit.fit_tilt

    def spy(*arguments, y, targets):
        seen.append(y)
        return real(*arguments, y=y, targets=targets)

    monkeypatch.setattr(bilevel_fit, "fit_tilt", spy)
    quick(max_iter=0).fit(X, FEW)
    quick(max_iter=0, tilt="both").fit(X, FEW)
    assert seen[0] is None
    assert_array_equal(np.isnan(seen[1][:, 0]), np.isnan(FEW))


def test_table_that_is_too_wide_for_a_tilt_says_so(monkeypatch):
    monkeypatch.setattr(bilevel_fit, "is_too_wide", lambda n_rows, n_columns: n_columns == 10)
    with pytest.warns(UserWarning, match="10 columns are too many .* tilt=None"):
        quick(max_iter=0).fit(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        quick(max_iter=0, tilt=None).fit(X)


def test_students_that_diverge_are_reported():
    with pytest.warns(ConvergenceWarning, match="lower student_learning_rate"):
        quick(outer="holdout", student_learning_rate=30.0).fit(X, Y)


def test_systems_that_are_not_solved_are_reported():
    history = {"inner": [0.5, 0.4, 0.3], "cg_residual": [0.9, 1.1, 30.0]}
    with pytest.warns(ConvergenceWarning, match="residual of 1.1 .* raise cg_iter or l2"):
        warn_of_the_loop(history, is_kept=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solved = {**history, "cg_residual": [0.9, 0.9, 30.0]}
        warn_of_the_loop(solved, is_kept=True)
        # Of rows far out, say: the teacher is then as it was before.
        warn_of_the_loop({**solved, "inner": [0.5, 90.0]}, is_kept=False)


def test_weights_of_another_length_are_named(fitted):
    with pytest.raises(ValueError, match="X has 442 rows and sample_weight has 10"):
        fitted.score(X, FEW, sample_weight=np.ones(10))


def test_labels_are_imputed_block_by_block(fitted, monkeypatch):
    whole = fitted.impute_target(X, FEW)
    monkeypatch.setattr(row_groups, "BLOCK_ROWS", 50)
    assert_allclose(fitted.impute_target(X, FEW), whole, rtol=1e-12)
    assert np.isnan(FEW).sum() > 300
