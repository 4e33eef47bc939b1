import pickle
import re

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.compose import ColumnTransformer
from sklearn.decomposition import PCA
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV, KFold, cross_val_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.utils import check_random_state

from skbilevel.amputation import ampute
from skbilevel.metrics import (
    effective_sample_size,
    entropy,
    imputation_crps,
    imputation_mae,
    imputation_rmse,
    interval_coverage,
    make_masked_scorer,
    row_normalized_loss,
)

ERRORS = [row_normalized_loss, imputation_rmse, imputation_mae]
masks = hnp.arrays(bool, (6, 4)).filter(lambda mask: not mask.all())
tables = hnp.arrays(float, (6, 4), elements=st.floats(-1e3, 1e3))
weight = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))
weights_1d = hnp.arrays(float, st.integers(1, 30), elements=weight).filter(np.any)


def table(n=80, d=4, seed=0, noise=0.2):
    """Rows with one common factor, so that a neighbour tells about a missing cell."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 1)) * np.arange(1, d + 1) + noise * rng.standard_normal((n, d))


def problem(n=50, d=4, seed=0):
    X = table(n, d, seed)
    rng = np.random.default_rng(seed + 1)
    return X, X + rng.standard_normal(X.shape), rng.random(X.shape) < 0.6


# -------------------------------------------------------------------------- errors of a table


@settings(max_examples=50, deadline=None)
@given(tables, tables, hnp.arrays(bool, (6, 4)))
def test_row_normalized_loss_is_its_double_loop(X, Z, mask):
    for name, loss in {"absolute": abs, "squared": lambda e: e * e}.items():
        total = 0.0
        for i in range(len(X)):
            cells = [loss(Z[i, j] - X[i, j]) for j in range(4) if not mask[i, j]]
            total += sum(cells) / len(cells) if cells else 0.0
        assert row_normalized_loss(X, Z, mask, name) == pytest.approx(total, rel=1e-12)


def test_row_normalized_loss_of_complete_rows_is_zero():
    X, Z, _ = problem()
    assert row_normalized_loss(X, Z, np.ones(X.shape, dtype=bool)) == 0.0


def test_row_normalized_loss_counts_rows_the_same_whatever_their_missing_cells():
    X = np.zeros((2, 4))
    mask = np.array([[True, True, True, False], [False, False, False, False]])
    assert row_normalized_loss(X, X + 3.0, mask) == pytest.approx(6.0)
    assert row_normalized_loss(X, X + 3.0, mask, "squared") == pytest.approx(18.0)


def test_pooled_errors_are_their_definition():
    X, Z, mask = problem()
    error = ((Z - X) / X.std(axis=0))[~mask]
    assert imputation_rmse(X, Z, mask) == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-14)
    assert imputation_mae(X, Z, mask) == pytest.approx(np.mean(np.abs(error)), rel=1e-14)


def test_scale_is_the_unit_of_the_errors():
    X, Z, mask = problem()
    for metric in (imputation_rmse, imputation_mae):
        assert metric(X, Z, mask, scale=X.std(axis=0)) == metric(X, Z, mask)
        assert metric(X, Z, mask, scale=2.0) == pytest.approx(metric(X, Z, mask, scale=1.0) / 2)
    assert imputation_mae(X, Z, mask, scale=1.0) == pytest.approx(np.abs(Z - X)[~mask].mean())


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(float, 4, elements=st.floats(0.01, 100)), tables)
def test_pooled_errors_do_not_depend_on_the_units_of_the_columns(factor, offset):
    X, Z, mask = problem()
    for metric in (imputation_rmse, imputation_mae):
        moved = metric(X * factor + offset[0], Z * factor + offset[0], mask)
        assert moved == pytest.approx(metric(X, Z, mask), rel=1e-6)


@pytest.mark.parametrize("metric", ERRORS)
def test_observed_cells_do_not_matter(metric):
    X, Z, mask = problem()
    anything = np.where(mask, np.nan, Z)
    assert metric(X, anything, mask) == metric(X, Z, mask)


@pytest.mark.parametrize("metric", ERRORS)
def test_a_perfect_imputation_has_no_error(metric):
    X, _, mask = problem()
    assert metric(X, X, mask) == 0


def test_the_mean_of_all_cells_has_rmse_one_where_all_are_missing():
    X = table()
    Z = np.broadcast_to(X.mean(axis=0), X.shape)
    assert imputation_rmse(X, Z, np.zeros(X.shape, dtype=bool)) == pytest.approx(1.0)


@pytest.mark.parametrize("metric", ERRORS)
def test_cells_of_unknown_truth_do_not_count(metric):
    X, Z, mask = problem()
    unknown = X.copy()
    unknown[:10] = np.nan
    known = {} if metric is row_normalized_loss else {"scale": X[10:].std(axis=0)}
    assert metric(unknown, Z, mask) == pytest.approx(metric(X[10:], Z[10:], mask[10:], **known))


def test_masks_of_ampute_are_masks_of_the_metrics():
    X = table()
    X_missing, mask = ampute(X, "mcar", random_state=0)
    assert imputation_rmse(X, SimpleImputer().fit_transform(X_missing), mask) < 1.5


@pytest.mark.parametrize("value", [0.1, 1e9 / 3])
def test_a_constant_column_is_scored_in_its_own_units(value):
    X = np.full((7, 1), value)
    mask = np.zeros(X.shape, dtype=bool)
    assert imputation_mae(X, X + 2.0, mask) == pytest.approx(2.0)


@pytest.mark.parametrize("metric", ERRORS)
def test_float32_frames_and_lists_are_read_alike(metric):
    X, Z, mask = problem()
    X, Z = X.astype(np.float32), Z.astype(np.float32)
    expected = metric(X, Z, mask)
    assert metric(X.astype(float), Z.astype(float), mask) == expected
    assert metric(X.tolist(), Z.tolist(), mask.tolist()) == expected
    assert metric(pd.DataFrame(X), pd.DataFrame(Z), pd.DataFrame(mask)) == expected
    assert type(expected) is float


# -------------------------------------------------------------------------------------- CRPS


def crps_loop(truth, draws, fair):
    n = len(draws)
    pairs = sum(abs(a - b) for a in draws for b in draws)
    return np.mean(np.abs(draws - truth)) - pairs / (2 * n * (n - 1 if fair else n))


def normal_crps(z):
    return z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi)


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(float, st.tuples(st.integers(2, 9), st.just(3)), elements=st.floats(-99, 99)))
def test_crps_is_the_mean_of_its_quadratic_loop(draws):
    X = np.array([[0.5, -1.0, 2.0]])
    for fair in (True, False):
        expected = np.mean(
            [crps_loop(x, draw, fair) for x, draw in zip(X[0], draws.T, strict=True)]
        )
        got = imputation_crps(X, draws[:, None], np.zeros((1, 3), bool), scale=1.0, fair=fair)
        assert got == pytest.approx(expected, rel=1e-11, abs=1e-11)


def test_crps_pools_the_missing_cells_in_units_of_their_columns():
    X, Z, mask = problem()
    draws = Z + np.random.default_rng(5).standard_normal((7, *X.shape))
    cells = np.argwhere(~mask)
    expected = [crps_loop(X[i, j], draws[:, i, j], True) / X[:, j].std() for i, j in cells]
    assert imputation_crps(X, draws, mask) == pytest.approx(np.mean(expected), rel=1e-12)
    hidden = np.where(mask, np.nan, draws)
    assert imputation_crps(X, hidden, mask) == imputation_crps(X, draws, mask)


@pytest.mark.parametrize("z", [-1.5, 0.0, 0.7])
def test_crps_of_many_normal_draws_is_the_closed_form(z):
    draws = np.random.default_rng(0).standard_normal((200_000, 1, 1))
    got = imputation_crps([[z]], draws, [[False]], scale=1.0)
    assert got == pytest.approx(normal_crps(z), abs=4e-3)


def test_fair_crps_of_two_draws_is_unbiased_and_the_plain_one_is_not():
    n, z = 200_000, 0.7
    X, mask = np.full((n, 1), z), np.zeros((n, 1), dtype=bool)
    draws = np.random.default_rng(0).standard_normal((2, n, 1))
    fair = imputation_crps(X, draws, mask, scale=1.0)
    plain = imputation_crps(X, draws, mask, scale=1.0, fair=False)
    assert fair == pytest.approx(normal_crps(z), abs=6e-3)
    # The bias is E|x - x'| / (2 K), and E|x - x'| = 2 / sqrt(pi) for a standard normal.
    assert plain - fair == pytest.approx(1 / (2 * np.sqrt(np.pi)), abs=3e-3)


def test_crps_of_one_draw_is_the_absolute_error():
    X, Z, mask = problem()
    assert imputation_crps(X, Z[None], mask, fair=False) == imputation_mae(X, Z, mask)


def test_crps_of_equal_draws_is_the_absolute_error():
    X, Z, mask = problem()
    for fair in (True, False):
        got = imputation_crps(X, [Z, Z, Z], mask, fair=fair)
        assert got == pytest.approx(imputation_mae(X, Z, mask))


def test_crps_prefers_the_distribution_of_the_truth():
    rng = np.random.default_rng(0)
    X, draws = rng.standard_normal((2_000, 1)), rng.standard_normal((50, 2_000, 1))
    mask = np.zeros(X.shape, dtype=bool)
    scores = {spread: imputation_crps(X, spread * draws, mask) for spread in (0.3, 1.0, 3.0)}
    assert min(scores, key=scores.get) == 1.0


# ---------------------------------------------------------------------------------- coverage


def test_coverage_of_bounds_counts_the_missing_cells_inside():
    X, Z, mask = problem()
    lower, upper = Z - 1.0, Z + 0.5
    expected = np.mean(((lower <= X) & (upper >= X))[~mask])
    assert interval_coverage(X, (lower, upper), mask) == pytest.approx(expected)


def test_bounds_are_inside():
    X = np.array([[1.0, 2.0, 3.0]])
    assert interval_coverage(X, (X, X), np.zeros((1, 3), dtype=bool)) == 1.0


@pytest.mark.parametrize(("n_draws", "level"), [(19, 0.9), (9, 0.6), (99, 0.9), (3, 0.5)])
def test_exchangeable_draws_are_covered_at_the_nominal_level(n_draws, level):
    n = 40_000
    rng = np.random.default_rng(0)
    X, draws = rng.standard_normal((n, 1)), rng.standard_normal((n_draws, n, 1))
    got = interval_coverage(X, draws, np.zeros(X.shape, dtype=bool), level)
    assert abs(got - level) < 4 * np.sqrt(level * (1 - level) / n)


def test_draws_that_are_too_narrow_cover_less_and_too_wide_more():
    rng = np.random.default_rng(0)
    X, draws = rng.standard_normal((4_000, 1)), rng.standard_normal((200, 4_000, 1))
    mask = np.zeros(X.shape, dtype=bool)
    narrow, right, wide = (interval_coverage(X, s * draws, mask, 0.8) for s in (0.5, 1.0, 2.0))
    assert narrow == pytest.approx(2 * stats.norm.cdf(0.5 * 1.2816) - 1, abs=0.03)
    assert right == pytest.approx(0.8, abs=0.03)
    assert wide == pytest.approx(2 * stats.norm.cdf(2 * 1.2816) - 1, abs=0.02)


def test_default_level_is_nine_tenths():
    X, Z, mask = problem()
    draws = Z + np.random.default_rng(5).standard_normal((30, *X.shape))
    assert interval_coverage(X, draws, mask) == interval_coverage(X, draws, mask, 0.9)


# ------------------------------------------------------------------------------------ weights


@pytest.mark.parametrize("scale", [1.0, 5e-324, 1e308])
def test_equal_weights_have_size_n_and_entropy_log_n(scale):
    assert effective_sample_size(np.full(8, scale)) == pytest.approx(8)
    assert entropy(np.full(8, scale)) == pytest.approx(np.log(8))


def test_one_weight_has_size_one_and_entropy_zero():
    assert effective_sample_size([0.0, 3.0, 0.0]) == 1.0
    assert entropy([0.0, 3.0, 0.0]) == 0.0


@settings(max_examples=60, deadline=None)
@given(weights_1d)
def test_size_and_entropy_are_their_definitions(w):
    assert effective_sample_size(w) == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-9)
    p = w[w > 0] / w.sum()
    assert entropy(w) == pytest.approx(-(p * np.log(p)).sum(), rel=1e-9, abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(weights_1d)
def test_exponential_entropy_is_between_the_effective_size_and_the_support(w):
    # Renyi entropies fall with their order: log support >= Shannon >= log effective size.
    size, breadth = effective_sample_size(w), np.exp(entropy(w))
    assert 1 - 1e-9 <= size <= breadth * (1 + 1e-9)
    assert breadth <= np.count_nonzero(w) * (1 + 1e-9)


# ------------------------------------------------------------------------------ masked scorer


class Recorder(TransformerMixin, BaseEstimator):
    """Imputes 0 and keeps what it was asked to transform."""

    def __init__(self, value=0.0):
        self.value = value

    def fit(self, X, y=None):
        self.seen_ = []
        return self

    def transform(self, X):
        self.seen_.append(np.array(X, dtype=float))
        return np.where(np.isnan(self.seen_[-1]), self.value, X)


def incomplete(n=80, d=4, rate=0.2, seed=0):
    return ampute(table(n, d, seed), "mcar", missing_rate=rate, random_state=seed)[0]


def hidden_cells(X, **keywords):
    recorder = Recorder().fit(X)
    make_masked_scorer(**keywords)(recorder, X)
    return [np.isnan(seen) & ~np.isnan(X) for seen in recorder.seen_[1:]]


def test_grid_search_without_y_ranks_candidates_as_the_truth_does():
    X = table(n=300, noise=0.5)
    X_missing, mask = ampute(X, "mcar", missing_rate=0.2, random_state=0)
    grid = {"n_neighbors": [1, 10, 180]}
    scorer = make_masked_scorer(n_repeats=3, random_state=0)
    search = GridSearchCV(KNNImputer(), grid, scoring=scorer, cv=3).fit(X_missing)
    truth = [
        imputation_rmse(X, KNNImputer(n_neighbors=k).fit_transform(X_missing), mask)
        for k in grid["n_neighbors"]
    ]
    assert search.best_params_ == {"n_neighbors": 10}
    np.testing.assert_array_equal(
        np.argsort(-search.cv_results_["mean_test_score"]), np.argsort(truth)
    )


def test_cross_val_score_without_y_scores_each_fold():
    X, scorer = incomplete(), make_masked_scorer(random_state=0)
    got = cross_val_score(KNNImputer(), X, scoring=scorer, cv=KFold(4))
    expected = [scorer(KNNImputer().fit(X[a]), X[b]) for a, b in KFold(4).split(X)]
    np.testing.assert_array_equal(got, expected)


def test_score_is_minus_the_error_at_the_hidden_cells():
    X = incomplete()
    train, test = X[:50], X[50:]
    imputer = SimpleImputer().fit(train)
    for metric, error in {
        "rmse": lambda e: np.sqrt(np.mean(e**2)),
        "mae": lambda e: np.mean(np.abs(e)),
    }.items():
        scorer = make_masked_scorer(n_repeats=3, metric=metric, random_state=0)
        hidden = hidden_cells(test, n_repeats=3, random_state=0)
        residual = (np.nanmean(train, axis=0) - test) / np.nanstd(test, axis=0)
        expected = np.mean([error(residual[cells]) for cells in hidden])
        assert scorer(imputer, test) == pytest.approx(-expected, rel=1e-12)


def test_share_of_hidden_cells_is_the_fraction():
    X = incomplete()
    observed = ~np.isnan(X)
    for fraction in (0.05, 0.2, 0.5):
        (hidden,) = hidden_cells(X, fraction=fraction, random_state=0)
        assert hidden.sum() == round(fraction * observed.sum())
        assert not (hidden & ~observed).any()


def test_every_observed_cell_is_hidden_equally_often():
    X = incomplete(n=12, d=12, rate=0.1)
    hidden = hidden_cells(X, fraction=0.3, n_repeats=4_000, random_state=0)
    rate = np.mean(hidden, axis=0)[~np.isnan(X)]
    assert np.abs(rate - 0.3).max() < 5 * np.sqrt(0.21 / 4_000)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(bool, (8, 3)), st.floats(0.01, 0.99), st.integers(0, 1000))
def test_the_last_observed_cell_of_a_row_is_never_hidden(observed, fraction, seed):
    assume((observed.sum(axis=1) > 1).any())
    X = np.where(observed, table(8, 3), np.nan)
    (hidden,) = hidden_cells(X, fraction=fraction, random_state=seed)
    left = (observed & ~hidden).sum(axis=1)
    assert (left[observed.any(axis=1)] >= 1).all()
    assert hidden.any()


def test_all_candidates_see_the_same_hidden_cells():
    X = incomplete()
    scorer = make_masked_scorer(n_repeats=2, random_state=0)
    first, second = Recorder(0.0).fit(X), Recorder(9.0).fit(X)
    assert scorer(first, X) > scorer(second, X)
    np.testing.assert_array_equal(first.seen_, second.seen_)
    assert not np.array_equal(first.seen_[1], first.seen_[2], equal_nan=True)


@pytest.mark.parametrize("seed", [3, None, np.random.RandomState(3)], ids=["int", "None", "state"])
def test_a_scorer_repeats_itself(seed):
    X, scorer = incomplete(), make_masked_scorer(random_state=seed)
    imputer = KNNImputer().fit(X)
    assert scorer(imputer, X) == scorer(imputer, X)
    assert pickle.loads(pickle.dumps(scorer))(imputer, X) == scorer(imputer, X)
    assert pickle.loads(pickle.dumps(scorer)) == scorer


def test_scorers_without_a_seed_differ():
    X = incomplete()
    imputer = KNNImputer().fit(X)
    assert len({make_masked_scorer()(imputer, X) for _ in range(3)}) > 1


def test_an_integer_seed_leaves_the_global_generator_alone():
    X, state = incomplete(), check_random_state(None).get_state()[1].copy()
    make_masked_scorer(random_state=0)(KNNImputer().fit(X), X)
    np.testing.assert_array_equal(check_random_state(None).get_state()[1], state)


def test_scoring_does_not_modify_its_input():
    X = incomplete()
    before = X.copy()
    X.setflags(write=False)
    make_masked_scorer(random_state=0)(KNNImputer().fit(X), X)
    np.testing.assert_array_equal(X, before)


def test_scaling_before_the_imputer_does_not_change_the_score():
    X = incomplete()
    scorer = make_masked_scorer(random_state=0)
    alone, scaled = (
        cross_val_score(model, X, scoring=scorer)
        for model in (SimpleImputer(), make_pipeline(StandardScaler(), SimpleImputer()))
    )
    np.testing.assert_allclose(scaled, alone, rtol=1e-12)


def test_scaling_after_the_imputer_does_not_change_the_score():
    X = incomplete()
    scorer = make_masked_scorer(random_state=0)
    alone = scorer(KNNImputer().fit(X), X)
    assert scorer(make_pipeline(KNNImputer(), StandardScaler()).fit(X), X) == pytest.approx(alone)


@pytest.mark.parametrize(
    "imputer", [SimpleImputer(), KNNImputer(), IterativeImputer(max_iter=2, tol=1.0)]
)
def test_indicators_do_not_change_the_score(imputer):
    X, scorer = incomplete(), make_masked_scorer(random_state=0)
    with_indicator = clone(imputer).set_params(add_indicator=True)
    expected = scorer(clone(imputer).fit(X), X)
    assert scorer(with_indicator.fit(X), X) == expected
    piped = make_pipeline(
        clone(with_indicator), FunctionTransformer(feature_names_out="one-to-one")
    )
    assert scorer(piped.fit(X), X) == expected


@pytest.mark.filterwarnings("ignore:Skipping features without any observed values")
@pytest.mark.parametrize("imputer", [SimpleImputer(), KNNImputer()])
def test_columns_that_the_imputer_dropped_do_not_count(imputer):
    X = incomplete()
    train, test = X[:50].copy(), X[50:]
    train[:, 1] = np.nan
    (hidden,) = hidden_cells(test, random_state=0)
    assert hidden[:, 1].any()
    imputer.fit(train)
    residual = imputer.transform(np.where(hidden, np.nan, test)) - test[:, [0, 2, 3]]
    residual = (residual / np.nanstd(test[:, [0, 2, 3]], axis=0))[hidden[:, [0, 2, 3]]]
    score = make_masked_scorer(random_state=0)(imputer, test)
    assert score == pytest.approx(-np.sqrt(np.mean(residual**2)), rel=1e-12)


@pytest.mark.parametrize("output", ["default", "pandas"])
def test_frames_score_as_arrays(output):
    X, scorer = incomplete(), make_masked_scorer(random_state=0)
    frame = pd.DataFrame(X, columns=["d", "c", "b", "a"], index=np.arange(len(X))[::-1])
    model = make_pipeline(StandardScaler(), KNNImputer(add_indicator=True))
    expected = cross_val_score(model, X, scoring=scorer)
    got = cross_val_score(model.set_output(transform=output), frame, scoring=scorer)
    np.testing.assert_array_equal(got, expected)


def test_polars_frames_score_as_arrays():
    X, scorer = incomplete(), make_masked_scorer(random_state=0)
    frame = pl.DataFrame(X, schema=list("abcd"))
    assert scorer(KNNImputer().fit(frame), frame) == scorer(KNNImputer().fit(X), X)


def test_integer_frames_are_scored():
    X = pd.DataFrame(np.arange(40).reshape(10, 4), columns=list("abcd"))
    assert make_masked_scorer(random_state=0)(KNNImputer().fit(X), X) < 0


def test_reordered_columns_are_matched_by_name():
    X = pd.DataFrame(incomplete(), columns=list("abcd"))
    swapped = ColumnTransformer(
        [("one", SimpleImputer(), ["c", "a"]), ("two", SimpleImputer(), ["d", "b"])],
        verbose_feature_names_out=False,
    )
    scorer = make_masked_scorer(random_state=0)
    assert scorer(swapped.fit(X), X) == pytest.approx(scorer(SimpleImputer().fit(X), X))


def test_several_metrics_in_one_search():
    scoring = {m: make_masked_scorer(metric=m, random_state=0) for m in ("rmse", "mae")}
    search = GridSearchCV(KNNImputer(), {"n_neighbors": [2, 5]}, scoring=scoring, refit="mae")
    search.fit(incomplete())
    assert (search.cv_results_["mean_test_rmse"] < search.cv_results_["mean_test_mae"]).all()


def mixed(n=80):
    X = incomplete(n, d=3)
    text = np.array(["u", "v", "w", "x"] * (n // 4), dtype=object)
    return {"text": text, "a": X[:, 0], "b": X[:, 1], "c": X[:, 2]}


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
@pytest.mark.parametrize(
    "rest",
    ["drop", "passthrough", OneHotEncoder(sparse_output=False)],
    ids=["drop", "as is", "hot"],
)
@pytest.mark.parametrize("output", ["default", "frame"])
def test_columns_of_text_do_not_change_the_score(frame, rest, output):
    X, scorer = frame(mixed()), make_masked_scorer(n_repeats=2, random_state=0)
    numbers = X[["a", "b", "c"]]
    model = ColumnTransformer(
        [("numbers", KNNImputer(), ["b", "c", "a"]), ("text", rest, ["text"])],
        verbose_feature_names_out=False,
    )
    if output == "frame":
        model.set_output(transform="pandas" if frame is pd.DataFrame else "polars")
    expected = scorer(KNNImputer().fit(numbers), numbers)
    assert scorer(model.fit(X), X) == pytest.approx(expected, rel=1e-12)


def test_frames_without_numbers_and_arrays_of_text_cannot_be_scored():
    scorer = make_masked_scorer(random_state=0)
    model = SimpleImputer(strategy="most_frequent")
    X = pd.DataFrame({"s": ["u", "v"], "t": ["x", "y"]}, dtype=object)
    with pytest.raises(ValueError, match="X has no column of numbers"):
        scorer(model.fit(X), X)
    X = np.array([["u", 1.0], ["v", 2.0]], dtype=object)
    with pytest.raises(ValueError, match="X must be a dense table of real numbers"):
        scorer(model.fit(X), X)


@pytest.mark.parametrize(
    ("wrap", "name"),
    [
        (lambda imputer: imputer, "missing_values"),
        (
            lambda imputer: make_pipeline(StandardScaler(), imputer),
            "simpleimputer__missing_values",
        ),
        (
            lambda imputer: make_pipeline(make_union(imputer, SimpleImputer())),
            "featureunion__simpleimputer-1__missing_values",
        ),
        (
            lambda imputer: ColumnTransformer([("fill", imputer, [0, 1, 2, 3])]),
            "fill__missing_values",
        ),
    ],
    ids=["imputer", "pipeline", "union", "columns"],
)
@pytest.mark.parametrize("marker", [-999.0, 0, None, "?"])
def test_another_marker_of_missing_cells_than_nan_is_refused_by_name(wrap, name, marker):
    model, scorer = wrap(SimpleImputer(missing_values=marker)), make_masked_scorer(random_state=0)
    message = f"^{name} must be NaN for a masked scorer, got {re.escape(repr(marker))}$"
    with pytest.raises(ValueError, match=message):
        scorer(model, table())


@pytest.mark.parametrize("marker", [np.nan, float("nan"), np.float32("nan"), pd.NA])
def test_every_spelling_of_nan_marks_missing_cells(marker):
    X, scorer = incomplete(), make_masked_scorer(random_state=0)
    frame = pd.DataFrame(X, columns=list("abcd"))
    model = SimpleImputer(missing_values=marker).fit(frame)
    assert scorer(model, frame) == scorer(SimpleImputer().fit(frame), frame)


# ------------------------------------------------------------------------------ extreme values

LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("scale", [None, 1.0])
def test_float32_up_to_its_largest_value_is_scored_in_float64(scale):
    X = np.array([[LARGEST], [-LARGEST], [0.0]], dtype=np.float32)
    mask = np.zeros(X.shape, dtype=bool)
    unit = LARGEST * np.sqrt(2 / 3) if scale is None else 1.0
    residual = np.array([2, 2, 0]) * LARGEST / unit
    rmse = imputation_rmse(X, X[[1, 0, 2]], mask, scale=scale)
    assert rmse == pytest.approx(np.sqrt(np.mean(residual**2)), rel=1e-12)
    mae = imputation_mae(X, X[[1, 0, 2]], mask, scale=scale)
    assert mae == pytest.approx(residual.mean(), rel=1e-12)
    draws = np.stack([X, X[[1, 0, 2]]])
    crps = imputation_crps(X, draws, mask, scale=scale, fair=False)
    assert crps == pytest.approx(residual.mean() / 4, rel=1e-12)
    # The 0.35 quantile is 0.05 of the way from the lower draw to the upper one.
    assert interval_coverage(X, draws, mask, 0.3) == pytest.approx(1 / 3)
    squared = row_normalized_loss(X, X[[1, 0, 2]], mask, "squared")
    assert squared == pytest.approx(2 * (2 * LARGEST) ** 2, rel=1e-12)


@pytest.mark.parametrize("factor", [1e-300, 1e-170, 1e170, 1e300])
def test_default_units_neither_over_nor_underflow(factor):
    X, Z, mask = problem()
    for metric in (imputation_rmse, imputation_mae):
        assert metric(X * factor, Z * factor, mask) == pytest.approx(metric(X, Z, mask), rel=1e-12)
    draws = np.stack([Z, X + 1.0])
    expected = imputation_crps(X, draws, mask)
    assert imputation_crps(X * factor, draws * factor, mask) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("factor", [1e-300, 1e300])
def test_the_masked_score_does_not_depend_on_extreme_units(factor):
    X, scorer = incomplete(), make_masked_scorer(random_state=0)
    expected = scorer(SimpleImputer().fit(X), X)
    assert scorer(SimpleImputer().fit(X * factor), X * factor) == pytest.approx(expected)


def test_errors_beyond_float64_are_refused_by_name():
    X = np.array([[1e308, 1.0], [-1e308, 2.0]])
    mask = np.zeros(X.shape, dtype=bool)
    for metric in (imputation_rmse, imputation_mae, row_normalized_loss):
        with pytest.raises(ValueError, match=f"{metric.__name__} overflows float64"):
            metric(X, -X, mask)
    with pytest.raises(ValueError, match="row_normalized_loss overflows"):
        row_normalized_loss(X * 1e-100, -X * 1e-100, mask, "squared")
    with pytest.raises(ValueError, match="imputation_rmse overflows"):
        imputation_rmse(X * 1e-100, -X * 1e-100, mask, scale=1.0)
    with pytest.raises(ValueError, match="imputation_crps overflows"):
        imputation_crps(X, [-X, -X], mask)
    with pytest.raises(ValueError, match="interval_coverage overflows"):
        interval_coverage(X, [X, -X], mask, 0.3)


class Explodes(Recorder):
    def transform(self, X):
        return super().transform(np.asarray(X, dtype=float)) + np.isnan(X) * 1e308


def test_a_masked_score_beyond_float64_is_refused():
    X, scorer = incomplete(), make_masked_scorer(scale=[1e-3] * 4, random_state=0)
    with pytest.raises(ValueError, match="imputation_rmse overflows float64"):
        scorer(Explodes().fit(X), X)
    with pytest.raises(ValueError, match=r"the output of transform must be .* infinity"):
        scorer(Recorder(np.inf).fit(X), X)


# -------------------------------------------------------------------------------------- errors


def test_a_bad_mask_is_refused():
    X, Z, mask = problem()
    for bad in (mask.astype(int), mask[:, :2], mask.ravel(), "mask"):
        for metric in ERRORS:
            with pytest.raises(ValueError, match="mask must be boolean, True where observed"):
                metric(X, Z, bad)


def test_a_missing_cell_that_was_not_imputed_is_refused():
    X, Z, mask = problem()
    holes = np.where(mask, Z, np.nan)
    for metric in ERRORS:
        with pytest.raises(ValueError, match="X_imputed must not be NaN at missing cells"):
            metric(X, holes, mask)
    with pytest.raises(ValueError, match="draws must not be NaN"):
        imputation_crps(X, [holes, Z], mask)
    with pytest.raises(ValueError, match="bounds, must not be NaN"):
        interval_coverage(X, (Z, holes), mask)


def test_shapes_that_do_not_fit_are_refused():
    X, Z, mask = problem()
    with pytest.raises(ValueError, match=r"X_imputed must have shape \(50, 4\)"):
        imputation_rmse(X, Z[:, :3], mask)
    for draws in ([Z[:3], Z[:3]], Z, np.zeros((0, 50, 4)), 1.0):
        with pytest.raises(ValueError, match=r"draws must have shape \(n_draws, \(50, 4\)\)"):
            imputation_crps(X, draws, mask)
    with pytest.raises(ValueError, match="draws must be a dense table of real numbers"):
        imputation_crps(X, [Z, np.full_like(Z, np.inf)], mask)


def test_tables_without_a_missing_cell_cannot_be_scored():
    X, Z, mask = problem()
    complete = np.ones_like(mask)
    for call in (
        lambda: imputation_rmse(X, Z, complete),
        lambda: imputation_mae(np.full_like(X, np.nan), Z, mask),
        lambda: imputation_crps(X, [Z, Z], complete),
        lambda: interval_coverage(X, (Z, Z), complete),
        lambda: interval_coverage(X, [Z, Z], complete),
    ):
        with pytest.raises(ValueError, match="no missing cell with a known truth"):
            call()


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, [1.0, 2.0], [1.0, 1.0, 1.0, 0.0]])
def test_a_bad_scale_is_refused(scale):
    X, Z, mask = problem()
    with pytest.raises(ValueError, match="scale must be positive"):
        imputation_rmse(X, Z, mask, scale=scale)


def test_other_bad_parameters_are_refused_by_name():
    X, Z, mask = problem()
    with pytest.raises(ValueError, match="loss must be one of"):
        row_normalized_loss(X, Z, mask, "cubic")
    with pytest.raises(ValueError, match="draws must be two or more where fair=True"):
        imputation_crps(X, Z[None], mask)
    with pytest.raises(ValueError, match="level does not belong to bounds"):
        interval_coverage(X, (Z, Z), mask, 0.9)
    for level in (0, 1, 90, "high"):
        with pytest.raises(ValueError, match="level must be a number in"):
            interval_coverage(X, [Z, Z], mask, level)


@pytest.mark.parametrize(
    "weights", [[-1.0, 2.0], [0.0, 0.0], [np.nan], [np.inf], [[1.0]], [], 1.0]
)
def test_bad_weights_are_refused(weights):
    for metric in (effective_sample_size, entropy):
        with pytest.raises(ValueError, match="weights must be"):
            metric(weights)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"fraction": 0.0}, "fraction must be a number in"),
        ({"fraction": 1.0}, "fraction"),
        ({"fraction": "half"}, "fraction"),
        ({"n_repeats": 0}, "n_repeats must be an integer"),
        ({"n_repeats": 1.5}, "n_repeats"),
        ({"metric": "r2"}, "metric must be one of"),
        ({"random_state": "seed"}, "seed"),
        ({"random_state": -1}, "[Ss]eed"),
    ],
)
def test_a_bad_scorer_is_refused_when_it_is_made(keywords, message):
    with pytest.raises(ValueError, match=message):
        make_masked_scorer(**keywords)


def test_what_cannot_be_scored_is_told():
    X, scorer = incomplete(), make_masked_scorer(random_state=0)
    with pytest.raises(TypeError, match="needs transform"):
        scorer(LinearRegression(), X)
    with pytest.raises(ValueError, match=r"transform\(X\) must not be NaN at missing cells"):
        scorer(StandardScaler().fit(X), X)
    with pytest.raises(ValueError, match="get_feature_names_out"):
        scorer(FunctionTransformer(lambda X: np.nan_to_num(X)[:, :2]).fit(X), X)
    with pytest.raises(ValueError, match="no column of numbers that is named as one of X"):
        scorer(make_pipeline(SimpleImputer(), PCA()).fit(X), X)
    with pytest.raises(ValueError, match="no row with two observed cells"):
        scorer(SimpleImputer().fit(X[:, :1]), X[:, :1])


@pytest.mark.filterwarnings("ignore:Skipping features without any observed values")
def test_hidden_cells_that_were_all_dropped_cannot_be_scored():
    X = np.array([[1.0, 2.0], [3.0, np.nan], [5.0, np.nan]])
    keywords = {"fraction": 0.01}
    seed = next(s for s in range(50) if hidden_cells(X, random_state=s, **keywords)[0][0, 1])
    dropping = SimpleImputer().fit(np.where([True, False], X, np.nan))
    with pytest.raises(ValueError, match="in columns that the estimator dropped"):
        make_masked_scorer(random_state=seed, **keywords)(dropping, X)


def test_few_draws_for_a_level_are_a_warning_that_says_what_they_cover():
    rng = np.random.default_rng(0)
    truth, draws = rng.normal(size=(4000, 1)), rng.normal(size=(5, 4000, 1))
    with pytest.warns(UserWarning, match=r"5 draws are too few.*covers 0\.667"):
        coverage = interval_coverage(truth, draws, np.zeros((4000, 1), bool))
    assert coverage == pytest.approx(2 / 3, abs=0.03)


def test_scale_of_the_masked_scorer_takes_the_place_of_the_fold_s_own():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 2)) * [1.0, 1e-6]
    imputer = SimpleImputer().fit(X)
    own = make_masked_scorer(random_state=0)(imputer, X)
    given = make_masked_scorer(scale=X.std(axis=0), random_state=0)(imputer, X)
    assert given == pytest.approx(own)
    doubled = make_masked_scorer(scale=2 * X.std(axis=0), random_state=0)(imputer, X)
    assert doubled == pytest.approx(own / 2)
    with pytest.raises(ValueError, match="scale must be positive"):
        make_masked_scorer(scale=[1.0, 0.0])
    with pytest.raises(ValueError, match="one unit for each of 2 columns"):
        make_masked_scorer(scale=[1.0] * 3)(imputer, X)


def test_one_unit_stands_for_all_columns():
    X = np.random.default_rng(0).normal(size=(40, 3)) * [1.0, 10.0, 100.0]
    imputer = KNNImputer().fit(X)
    one = make_masked_scorer(scale=2.0, random_state=0)(imputer, X)
    assert one == make_masked_scorer(scale=[2.0] * 3, random_state=0)(imputer, X)
    with pytest.raises(ValueError, match="one unit for each of 3 columns"):
        make_masked_scorer(scale=[1.0, 2.0], random_state=0)(imputer, X)


def test_row_loss_of_cells_without_a_known_truth_is_refused():
    truth = [[1.0, np.nan], [2.0, 3.0]]
    assert row_normalized_loss(truth, truth, np.ones((2, 2), dtype=bool)) == 0
    with pytest.raises(ValueError, match="known truth"):
        row_normalized_loss(truth, [[1.0, 5.0], [2.0, 3.0]], [[True, False], [True, True]])
