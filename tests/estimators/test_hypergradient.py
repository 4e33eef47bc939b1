"""The test of a hypergradient as a user meets it, against refits and where the truth is known."""

import pickle
from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import logsumexp
from scipy.stats import binom, norm
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skbilevel import ReweightingClassifier, ReweightingRegressor, hypergradient_test, io
from skbilevel.estimators import hypergradient
from tests.objectives.test_two_sample import SHARES, SLOPES, SPREADS, TARGET, draw
from tests.problems import central_differences

N, M = 150, 30
SOURCES = np.array(["ash", "birch", "cedar"])


@cache
def numbers(seed=0):
    """Rows of three sources, and twice as many rows of the target as a fit gets."""
    rng = np.random.default_rng(seed)
    X, source = rng.normal(size=(N + 2 * M, 2)) * [3, 0.5] + [1, -2], np.arange(N) % 3
    slopes = np.vstack(
        [np.array([[1, 4], [-1, 2], [0.5, 0]])[source], np.tile([1, 3], (2 * M, 1))]
    )
    y = 30 + 5 * (X * slopes).sum(axis=1) + 4 * rng.normal(size=N + 2 * M)
    return X, y, SOURCES[source]


@cache
def classes(seed=0):
    """The same with three classes."""
    X, y, source = numbers(seed)
    edges = np.quantile(y, [1 / 3, 2 / 3])
    return X, np.array(["low", "middle", "top"])[np.searchsorted(edges, y)], source


def regressor(weighting="uniform", refit="train", **settings):
    return ReweightingRegressor(weighting=weighting, refit=refit, random_state=0, **settings)


def classifier(weighting="uniform", refit="train", **settings):
    return ReweightingClassifier(weighting=weighting, refit=refit, random_state=0, **settings)


def fitted(model, data=numbers, sources=True, **options):
    X, y, source = data()
    told = {"source_groups": source} if sources else {}
    val = {"X_val": X[N : N + M], "y_val": y[N : N + M]}
    return model.fit(X[:N], y[:N], **val, **told, **options)


def fresh(data=numbers):
    X, y, _ = data()
    return X[N + M :], y[N + M :]


def outcome(model, data=numbers, **options):
    return hypergradient_test(model, *fresh(data), **options)


def loss(model, X, y):
    """Mean, of half the squared error or in nats."""
    if hasattr(model, "predict_proba"):
        outputs = X @ model.coef_.T + model.intercept_
        own = outputs[np.arange(len(y)), np.searchsorted(model.classes_, y)]
        return np.mean(logsumexp(outputs, axis=1) - own)
    return np.mean((model.predict(X) - y) ** 2) / 2


# What it is


@pytest.mark.parametrize(
    ("make", "data", "l2", "rtol"),
    [(regressor, numbers, 1e-9, 1e-6), (classifier, classes, 1e-7, 1e-3)],
    ids=["numbers", "classes"],
)
@pytest.mark.parametrize("refit", ["train", "all"])
def test_it_is_the_derivative_of_the_loss_of_refitted_models(make, data, l2, rtol, refit):
    """By differences of fits to all rows with other weights; the ridge is next to none, since its
    units move with the weights and are taken as they are here."""
    model = fitted(make(refit=refit, l2=l2), data)
    X, y, source = data()
    rows, labels = (X[: N + M], y[: N + M]) if refit == "all" else (X[:N], y[:N])
    groups = np.concatenate([source, np.repeat("target rows", len(rows) - N)])
    names, codes = np.unique(groups, return_inverse=True)

    def refitted(omega):
        weights = model.sample_weight_[: len(rows)] * np.exp(omega)[codes]
        return loss(clone(model.estimator_).fit(rows, labels, weights), *fresh(data))

    truth = central_differences(refitted, np.zeros(len(names)), 1e-4)
    test = outcome(model, data)
    assert test.groups_ == tuple(names)
    assert_allclose(test.coef_, truth, rtol=rtol, atol=rtol * np.abs(truth).max())
    assert np.abs(truth).min() > 1e-4
    shares = np.bincount(codes, model.sample_weight_[: len(rows)])
    assert_allclose(test.shares_, shares / shares.sum(), rtol=1e-12)


def test_units_of_y_and_of_columns_are_those_of_the_model():
    X, y, source = numbers()
    model = regressor(l2=1e-9)
    told = {"source_groups": source, "X_val": X[N : N + M] * 100 - 7, "y_val": -10 * y[N : N + M]}
    other = model.fit(X[:N] * 100 - 7, -10 * y[:N], **told)
    moved = hypergradient_test(other, X[N + M :] * 100 - 7, -10 * y[N + M :])
    test = outcome(fitted(regressor(l2=1e-9)))
    assert_allclose(moved.coef_, 100 * test.coef_, rtol=1e-6)
    assert_allclose(moved.stderr_, 100 * test.stderr_, rtol=1e-6)
    assert moved.stationarity_test().pvalue == pytest.approx(test.stationarity_test().pvalue)


@pytest.mark.parametrize(("make", "data"), [(regressor, numbers), (classifier, classes)])
def test_a_factor_of_all_weights_changes_nothing(make, data):
    test = outcome(fitted(make(), data), data)
    assert_allclose(test.coef_.sum(), 0, atol=1e-10 * np.abs(test.coef_).max())
    assert_allclose(test.cov_.sum(axis=0), 0, atol=1e-10 * test.cov_.max())
    assert test.stationarity_test().df == len(test.groups_) - 1 == 2


def test_more_rows_of_either_sample_mean_smaller_errors():
    rng = np.random.default_rng(0)

    def stderr(n, m):
        X, y, k, X_val, y_val = draw(n, m, rng)
        model = regressor(l2=1e-6).fit(X, y, X_val=X_val[:20], y_val=y_val[:20], source_groups=k)
        return hypergradient_test(model, X_val, y_val).stderr_.mean()

    one = stderr(1000, 400)
    assert stderr(16000, 400) < one
    assert stderr(1000, 6400) < one
    assert stderr(16000, 6400) == pytest.approx(one / 4, rel=0.2)


def test_result_is_that_of_a_gradient():
    model = fitted(regressor())
    test = outcome(model)
    assert len(test.scores_) == M + N
    assert_allclose(test.scores_.mean(axis=0), test.coef_, rtol=1e-10)
    wald = test.coef_[:, None] + norm.ppf(0.95) * test.stderr_[:, None] * [-1, 1]
    assert_allclose(test.conf_int(0.9), wald, rtol=1e-10)
    joint = test.conf_int(joint=True, random_state=0)
    assert (np.ptp(joint, axis=1) > np.ptp(test.conf_int(), axis=1)).all()


def test_converged_is_told_at_a_level():
    test = outcome(fitted(regressor()))
    pvalue = test.stationarity_test().pvalue
    assert 1e-6 < pvalue < 0.01
    assert not test.converged_
    sure = outcome(fitted(regressor()), level=1 - pvalue / 2)
    assert sure.converged_
    assert_array_equal(sure.coef_, test.coef_)


def test_learning_the_weights_leaves_less_to_gain():
    """A summary says so; the sign of a derivative says where to."""
    before, after = (outcome(fitted(regressor(each))) for each in ("uniform", "group"))
    assert before.stationarity_test().statistic > 3 * after.stationarity_test().statistic
    assert before.coef_[0] < 0 < before.coef_[1]
    shares = dict(zip(after.groups_, after.shares_, strict=True))
    assert shares["ash"] > 0.6 > 0.1 > shares["birch"]


def test_summary_is_a_table_with_a_line_for_each_group():
    test = outcome(fitted(regressor(refit="all")), level=0.9)
    title, head, *rows, last = test.summary().splitlines()
    assert title.startswith("Derivative of the mean loss of 30 rows")
    assert head.split() == ["group", "share", "coef", "std", "err", "90", "%", "interval"]
    assert len(rows) == 4
    assert len({len(line) for line in [head, *rows]}) == 1
    for row, name, coef in zip(rows, test.groups_, test.coef_, strict=True):
        assert row.startswith(name)
        assert f"{coef:.4g}" in row
    assert last.startswith("chi2(3) = ")
    assert last.endswith("other weights lower the loss")
    assert outcome(fitted(regressor()), level=1 - 1e-9).summary().endswith("not told from 0")


# Groups


def test_groups_are_the_sources_of_the_fit_and_its_target_rows():
    assert outcome(fitted(regressor())).groups_ == tuple(SOURCES)
    assert outcome(fitted(regressor(refit="all"))).groups_ == (*SOURCES, "target rows")
    assert outcome(fitted(regressor("gate"))).groups_ == tuple(SOURCES)


def test_groups_are_clusters_without_sources():
    model = fitted(regressor("group", n_groups=3), sources=False)
    test = outcome(model)
    assert test.groups_ == ("cluster 0", "cluster 1", "cluster 2")
    same = outcome(model, groups=model.weights_[:N])
    assert sorted(test.coef_) == pytest.approx(sorted(same.coef_), rel=1e-9)


@pytest.mark.parametrize("weighting", ["gate", "sample"])
def test_groups_are_quarters_of_the_weights_without_either(weighting):
    model = fitted(regressor(weighting), sources=False)
    test = outcome(model)
    assert len(test.groups_) == 4
    weights = np.sort(model.sample_weight_[model.sample_weight_ > 0])
    sums = [part.sum() for part in np.array_split(weights, 4)]
    assert sorted(test.shares_) == pytest.approx(np.sort(sums) / weights.sum(), rel=0.2)
    least = min(test.groups_, key=lambda name: float(name.split()[1]))
    assert float(least.split()[1]) == pytest.approx(weights[0], rel=0.01)


def test_rows_of_the_same_weight_are_in_one_quarter():
    counts = np.where(np.arange(N) < 120, 1.0, 2.0)
    model = fitted(regressor(), sources=False, sample_weight=counts)
    assert outcome(model).groups_ == ("weight 1 to 1", "weight 2 to 2")


def test_groups_can_be_any_labels_of_the_rows():
    model = fitted(regressor(refit="all"))
    labels = np.arange(N + M) % 2
    beside = outcome(model, groups=labels[:N])
    assert beside.groups_ == (0, 1, "target rows")
    assert outcome(model, groups=labels).groups_ == (0, 1)
    by_source = outcome(model, groups=numbers()[2].tolist())
    assert_array_equal(by_source.coef_, outcome(model).coef_)


def test_target_rows_inside_of_x_are_a_group_of_their_own():
    X, y, source = numbers()
    order = np.random.default_rng(0).permutation(N + M)
    names = np.concatenate([source, source[:M]])
    is_target = order >= N
    model = regressor(refit="all").fit(
        X[order], y[order], is_target=is_target, source_groups=names[order]
    )
    test, expected = outcome(model), outcome(fitted(regressor(refit="all")))
    assert test.groups_ == expected.groups_
    assert_allclose(test.coef_, expected.coef_, rtol=1e-8)
    assert_allclose(test.cov_, expected.cov_, rtol=1e-8, atol=1e-12 * test.cov_.max())
    own = outcome(model, groups=names[order])
    assert own.groups_ == tuple(SOURCES)


def test_groups_without_any_weight_are_left_out():
    counts = np.where(numbers()[2] == "birch", 0.0, 1.0)
    model = fitted(regressor(), sample_weight=counts)
    test = outcome(model)
    assert test.groups_ == ("ash", "cedar")
    rows = counts > 0
    X, y, source = numbers()
    told = {"source_groups": source[:N][rows], "X_val": X[N : N + M], "y_val": y[N : N + M]}
    expected = outcome(regressor().fit(X[:N][rows], y[:N][rows], **told))
    assert_allclose(test.coef_, expected.coef_, rtol=1e-9)
    assert_allclose(test.cov_, expected.cov_, rtol=1e-9, atol=1e-14 * test.cov_.max())


def test_fit_without_a_target_can_be_tested():
    X, y, source = numbers()
    with pytest.warns(UserWarning, match="got no target rows"):
        model = regressor().fit(X[:N], y[:N], source_groups=source)
    assert_allclose(outcome(model).coef_, outcome(fitted(regressor())).coef_, rtol=1e-9)


def test_target_column_is_no_feature():
    X, y, source = numbers()
    marked = np.column_stack([X, np.arange(len(X)) >= N])
    model = regressor(target_column=2).fit(
        marked[: N + M], y[: N + M], source_groups=np.concatenate([source, source[:M]])
    )
    test = hypergradient_test(model, marked[N + M :], y[N + M :])
    assert_allclose(test.coef_, outcome(fitted(regressor())).coef_, rtol=1e-9)


# Rows of the fit


def from_pickle(model, path):
    return pickle.loads(pickle.dumps(model))


def from_file(model, path):
    io.save(model, path / "model.skops")
    return io.load(path / "model.skops")


@pytest.mark.parametrize("loaded", [from_pickle, from_file])
@pytest.mark.parametrize("refit", ["train", "all"])
def test_model_that_comes_back_needs_its_rows(loaded, refit, tmp_path):
    X, y, source = numbers()
    model = fitted(regressor("group", refit))
    again = loaded(model, tmp_path)
    with pytest.raises(ValueError, match="X and y are needed, the rows of the fit"):
        outcome(again)
    n_rows = N + M if refit == "all" else N
    rows = {"X": X[:n_rows], "y": y[:n_rows]}
    with pytest.raises(ValueError, match="groups is needed, the source_groups"):
        outcome(again, **rows)
    found, expected = outcome(again, **rows, groups=source), outcome(model)
    assert found.groups_ == expected.groups_
    assert_allclose(found.coef_, expected.coef_, rtol=1e-9)
    assert_allclose(found.cov_, expected.cov_, rtol=1e-9, atol=1e-14 * found.cov_.max())


def test_model_with_clusters_that_comes_back_finds_them_again():
    X, y, _ = numbers()
    model = fitted(regressor("group"), sources=False)
    found = outcome(from_pickle(model, None), X=X[:N], y=y[:N])
    assert_array_equal(found.coef_, outcome(model).coef_)


def test_rows_stay_out_of_a_pickle_and_in_the_model():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(2000, 30)), rng.normal(size=2000)
    model = regressor().fit(X, y, X_val=X[:50], y_val=y[:50])
    assert len(pickle.dumps(model)) < X.nbytes / 5
    assert hypergradient_test(model, X, y, groups=np.arange(2000) % 2).groups_ == (0, 1)
    assert not hasattr(clone(model), "_training")


def test_rows_of_other_final_estimators_are_not_kept():
    model = fitted(regressor(estimator=LinearRegression()))
    assert model._training is None


def test_test_leaves_the_model_as_it_was():
    model = fitted(regressor())
    before, state = dict(vars(model)), pickle.dumps(model)
    outcome(model)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before)
    assert pickle.dumps(model) == state


# Errors


def test_unfitted_model_says_so():
    with pytest.raises(NotFittedError):
        outcome(regressor())


@pytest.mark.parametrize(
    "make",
    [
        lambda: fitted(regressor(estimator=LinearRegression())),
        lambda: fitted(classifier(estimator=LogisticRegression()), classes),
    ],
)
def test_other_final_estimators_are_named(make):
    with pytest.raises(TypeError, match=r"linear default, estimator=None.*L\w+Regression\(\)"):
        outcome(make())


def test_what_is_no_reweighting_estimator_is_named():
    with pytest.raises(TypeError, match="got Pipeline; of a Pipeline, pass its last step"):
        outcome(make_pipeline(StandardScaler(), fitted(regressor())))


def test_parameters_that_are_no_minimum_have_no_test():
    settings = {"solver": "soba", "refit": None, "max_iter": 3}
    model = fitted(ReweightingRegressor(weighting="sample", **settings))
    with pytest.raises(ValueError, match="refit=None keeps parameters"):
        outcome(model)
    model = fitted(classifier("gate", relabel=True), classes)
    with pytest.raises(ValueError, match="relabel=True fits rows"):
        outcome(model, classes)


@pytest.mark.parametrize("groups", [np.zeros(N - 1), np.zeros((N, 2)), 3])
def test_groups_have_one_label_for_each_row(groups):
    model = fitted(regressor(refit="all"))
    with pytest.raises(ValueError, match="groups must have one label for each of the 150 or 180"):
        outcome(model, groups=groups)


def test_labels_of_one_kind_are_needed():
    mixed = np.array(["a", 1] * (N // 2), dtype=object)
    with pytest.raises(ValueError, match="groups must be all strings or all numbers"):
        outcome(fitted(regressor()), groups=mixed)


def test_one_group_is_too_few():
    with pytest.raises(ValueError, match="one group of rows that count, 'weight 1 to 1'"):
        outcome(fitted(regressor(), sources=False))
    with pytest.raises(ValueError, match="one group of rows that count, 7"):
        outcome(fitted(regressor()), groups=np.full(N, 7))
    with pytest.raises(ValueError, match="one group of rows that count, 'target rows'"):
        outcome(fitted(regressor("target", "all")))


def test_fresh_rows_have_the_columns_of_the_fit():
    X, y = fresh()
    with pytest.raises(ValueError, match=r"X_val, y_val: X has 1 features, but .* 2 features"):
        hypergradient_test(fitted(regressor()), X[:, :1], y)
    with pytest.raises(ValueError, match=r"X_val, y_val: .*inconsistent numbers"):
        hypergradient_test(fitted(regressor()), X, y[1:])
    with pytest.raises(ValueError, match="X_val has 1 row: two are the least"):
        hypergradient_test(fitted(regressor()), X[:1], y[:1])


def test_fresh_rows_have_the_classes_of_the_fit():
    X, y = fresh(classes)
    unknown = np.where(np.arange(M) == 3, "new", y)
    with pytest.raises(ValueError, match=r"classes that were not there in fit, \['new'\]"):
        hypergradient_test(fitted(classifier(), classes), X, unknown)


def test_rows_of_the_fit_are_those_of_the_fit():
    X, y, _ = numbers()
    model = fitted(regressor(refit="all"))
    with pytest.raises(ValueError, match="X and y must be passed together"):
        outcome(model, X=X)
    with pytest.raises(ValueError, match=r"X has 150 rows, .* 180, those of X and below them"):
        outcome(model, X=X[:N], y=y[:N])
    with pytest.raises(ValueError, match="X and y are not the rows that the estimator was fitted"):
        outcome(model, X=X[: N + M], y=np.roll(y[: N + M], 1))


@pytest.mark.parametrize("level", [0, 1, 95])
def test_level_is_a_probability(level):
    with pytest.raises(ValueError, match=f"level={level} must be between 0 and 1"):
        outcome(fitted(regressor()), level=level)


def test_systems_that_are_not_solved_are_told(monkeypatch):
    real = hypergradient.group_gradient
    monkeypatch.setattr(
        hypergradient, "group_gradient", lambda *args: real(*args)._replace(converged=False)
    )
    with pytest.warns(ConvergenceWarning, match="raise l2"):
        outcome(fitted(regressor()))


# Coverage


def population_gradient(log_weights):
    """Of the loss of the target in the log weights of the domains of the design."""

    def objective(omega):
        each = np.exp(omega)[:, None] * SHARES[:, None] * SPREADS
        theta = (each * SLOPES).sum(axis=0) / each.sum(axis=0)
        return 0.5 * np.sum((theta - TARGET) ** 2)

    return central_differences(objective, log_weights)


def coverage(n, m, n_draws, tol):
    """Of intervals at weights that were learnt for 100 other rows of the target, and how large
    the gradient is there."""
    hits, sizes = np.zeros((n_draws, 3)), np.zeros((n_draws, 3))
    model = regressor("group", l2=1e-8, kl=0.05, tol=tol)
    for number in range(n_draws):
        X, y, k, X_val, y_val = draw(n, m + 100, np.random.default_rng(number))
        model.fit(X, y, X_val=X_val[m:], y_val=y_val[m:], source_groups=k)
        low, high = hypergradient_test(model, X_val[:m], y_val[:m]).conf_int().T
        truth = population_gradient(model.weight_params_["group"])
        hits[number], sizes[number] = (low <= truth) & (truth <= high), np.abs(truth)
    return hits.mean(axis=0), sizes.mean(axis=0)


@pytest.mark.parametrize("tol", [None, "significance"])
def test_intervals_at_learnt_weights_cover_the_gradient_of_the_population(tol):
    """Weights are shares in the model, and in the population a factor of all changes nothing."""
    n_draws = 150
    covered, sizes = coverage(500, 200, n_draws, tol)
    low, high = binom.interval(0.999, n_draws, 0.95) / np.array(n_draws)
    assert (covered >= low - 0.01).all()
    assert (covered <= high).all()
    assert (sizes > 0.01).all()


@pytest.mark.slow
@pytest.mark.parametrize(("n", "m"), [(500, 200), (2000, 500)])
def test_intervals_at_learnt_weights_cover_at_their_level(n, m):
    covered, _ = coverage(n, m, 1000, None)
    assert (covered >= 0.93).all()
    assert (covered <= 0.97).all()
