"""The reweighting estimators as a user meets them: what they learn, and what they work with."""

import pickle
import warnings
from functools import cache

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.datasets import load_digits, make_blobs
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV, cross_validate
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from skbilevel import ReweightingClassifier, ReweightingRegressor, hypergradient_test, io
from skbilevel.estimators import weight_choice
from skbilevel.estimators.linear_head import RidgeHead
from skbilevel.model_selection import TargetKFold

FAMILIES = ["uniform", "target", "group", "loglinear", "gate", "sample"]
SLOPES = np.array([1.0, 2.0, 3.0])
WITH_ROUTING = {"enable_metadata_routing": True}


def mixture(n_train=120, n_target=20, noise=0.3, seed=0):
    """Target rows, in random places, and half of the others follow SLOPES."""
    rng = np.random.default_rng(seed)
    n_rows = n_train + n_target
    X = rng.normal(size=(n_rows, 3))
    is_target = rng.permutation(n_rows) < n_target
    follows = is_target | (rng.random(n_rows) < 0.5)
    y = np.where(follows, X @ SLOPES, X @ [-3, 0, 1]) + noise * rng.normal(size=n_rows)
    return X, y, is_target, follows


def noisy_labels(n_train=140, n_target=24, seed=0):
    """Overlapping classes; of the training rows, three in five have a wrong label."""
    n_rows = n_train + n_target
    X, y = make_blobs(n_rows, n_features=5, centers=4, cluster_std=3, random_state=seed)
    rng = np.random.default_rng(seed)
    is_clean = rng.permutation(n_rows) < n_target
    is_wrong = ~is_clean & (rng.random(n_rows) < 0.6)
    labels = np.where(is_wrong, (y + rng.integers(1, 4, n_rows)) % 4, y)
    return X, labels, is_clean, y


X, Y, IS_TARGET, FOLLOWS = mixture()
SOURCE = ~IS_TARGET
POINTS, LABELS, IS_CLEAN, TRUTH = noisy_labels()


# Fewer fits: a strength that is not chosen, and folds of the target for each family.
FAST = {"loglinear": {"kl": 0.5}, "auto": {"n_folds": 2}}


def regressor(estimator=None, weighting="gate", **settings):
    settings = {**FAST.get(weighting, {}), "random_state": 0, **settings}
    return ReweightingRegressor(estimator, weighting=weighting, **settings)


def classifier(estimator=None, weighting="gate", **settings):
    settings = {**FAST.get(weighting, {}), "random_state": 0, **settings}
    return ReweightingClassifier(estimator, weighting=weighting, **settings)


@cache
def fitted(weighting="gate"):
    """To be looked at only."""
    return regressor(weighting=weighting).fit(X, Y, is_target=IS_TARGET)


@cache
def fitted_classifier(weighting="gate"):
    """To be looked at only."""
    return classifier(weighting=weighting).fit(POINTS, LABELS, is_target=IS_CLEAN)


# What is learnt


def error(model):
    return float(np.abs(model.coef_ - SLOPES).max())


def test_gate_finds_the_rows_that_follow_the_target_and_beats_both_extremes():
    errors = {"gate": [], "uniform": [], "target": []}
    for seed in range(4):
        rows, y, is_target, follows = mixture(seed=seed)
        for weighting, found in errors.items():
            model = regressor(weighting=weighting).fit(rows, y, is_target=is_target)
            found.append(error(model))
            if weighting == "gate":
                assert model.weights_[follows].sum() > 0.9
                assert model.effective_sample_size_ > 0.7 * follows[~is_target].sum()
    assert np.mean(errors["gate"]) < 0.7 * np.mean(errors["target"])
    assert np.mean(errors["gate"]) < 0.1 * np.mean(errors["uniform"])


def test_auto_does_so_without_being_told_the_family():
    model = fitted("auto")
    assert model.shift_detected_
    assert model.selected_ == "gate"
    assert model.weights_[FOLLOWS].sum() > 0.9
    assert error(model) < min(error(fitted("target")), error(fitted("uniform")))


def test_auto_without_a_shift_is_uniform():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(100, 3))
    y, is_target = rows @ SLOPES + rng.normal(size=100), rng.permutation(100) < 20
    auto, uniform = (
        regressor(weighting=weighting).fit(rows, y, is_target=is_target)
        for weighting in ("auto", "uniform")
    )
    assert auto.shift_detected_ is False
    assert auto.selected_ == "uniform"
    assert auto.mixture_ == {name: float(name == "uniform") for name in FAMILIES}
    assert auto.l2_ == uniform.l2_
    assert_array_equal(auto.weights_, uniform.weights_)
    assert_array_equal(auto.coef_, uniform.coef_)
    assert auto.effective_sample_size_ == pytest.approx(80, rel=1e-12)


def test_gate_finds_wrong_labels_of_digits():
    pixels, digits = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(digits))
    train, test = order[:400], order[400:]
    is_clean = np.arange(400) < 80
    is_wrong = ~is_clean & (rng.random(400) < 0.6)
    labels = np.where(is_wrong, (digits[train] + rng.integers(1, 10, 400)) % 10, digits[train])
    scores = {}
    for weighting in ("gate", "auto", "uniform", "target"):
        model = classifier(weighting=weighting, standardize=False)
        model.fit(pixels[train], labels, is_target=is_clean)
        scores[weighting] = model.score(pixels[test], digits[test])
        if weighting == "gate":
            assert model.weights_[~is_wrong].sum() > 0.9
    for weighting in ("gate", "auto"):
        assert scores[weighting] > scores["target"] + 0.02
        assert scores[weighting] > scores["uniform"] + 0.1


def test_auto_finds_wrong_labels():
    auto = fitted_classifier("auto")
    assert auto.shift_detected_
    assert auto.weights_[LABELS == TRUTH].sum() > 0.8
    new, truth = make_blobs(1000, n_features=5, centers=4, cluster_std=3, random_state=0)
    assert auto.score(new, truth) > fitted_classifier("uniform").score(new, truth) + 0.1


# Sources


def sources():
    """Two sources follow SLOPES, two do not."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(230, 3))
    is_target = rng.permutation(230) < 30
    names = np.array(["bad", "fair", "good", "worse"])[rng.integers(0, 4, 230)]
    follows = is_target | np.isin(names, ["fair", "good"])
    y = np.where(follows, rows @ SLOPES, rows @ [-1, 0, 2]) + 0.3 * rng.normal(size=230)
    return rows, y, is_target, names


def test_bad_sources_get_next_to_no_weight():
    rows, y, is_target, names = sources()
    model = regressor(weighting="group").fit(rows, y, is_target=is_target, source_groups=names)
    share = {name: model.weights_[names == name].sum() for name in np.unique(names)}
    assert max(share["bad"], share["worse"]) < 0.03
    of_size = np.mean(names[~is_target & np.isin(names, ["fair", "good"])] == "good")
    assert share["good"] / (share["good"] + share["fair"]) == pytest.approx(of_size, abs=0.1)
    assert model.weight_params_["group"].shape == (4,)
    for name in np.unique(names):
        assert np.ptp(model.weights_[~is_target & (names == name)]) < 1e-12
    assert error(model) < 0.1


@pytest.mark.parametrize("as_given", [list, lambda names: names.astype(object), np.asarray])
def test_names_of_sources_and_of_target_rows_do_not_matter(as_given):
    rows, y, is_target, names = sources()
    expected = regressor(weighting="group").fit(rows, y, is_target=is_target, source_groups=names)
    told = as_given(np.where(is_target, "of no matter", names))
    renamed = regressor(weighting="group").fit(rows, y, is_target=is_target, source_groups=told)
    assert_array_equal(renamed.weights_, expected.weights_)


def test_groups_are_clusters_where_no_source_is_given():
    rng = np.random.default_rng(0)
    centers = np.repeat([[-9.0, 0.0], [0.0, 9.0], [9.0, 0.0]], 50, axis=0)
    rows = centers + rng.normal(size=(150, 2))
    is_target = np.arange(150) % 50 < 10
    slopes = np.where((np.arange(150) < 50) & ~is_target, -1.0, 1.0)
    model = regressor(weighting="group", n_groups=3)
    model.fit(rows, slopes * rows.sum(axis=1) + rng.normal(size=150), is_target=is_target)
    values = [
        np.unique(model.weights_[first : first + 50][~is_target[:50]]) for first in (0, 50, 100)
    ]
    assert [len(each) for each in values] == [1, 1, 1]
    assert values[0][0] < 0.1 * min(values[1][0], values[2][0])


# Where the descent of groups stops


def grouped(tol, make, weighting="group", **settings):
    """A model and its target rows; one of four sources is good."""
    rng = np.random.default_rng(0)
    rows, names, is_target = rng.normal(size=(600, 3)), np.arange(600) % 4, np.arange(600) >= 480
    follows = is_target | (names == 0)
    y = np.where(follows, rows @ SLOPES, rows @ [-3, 0, 1]) + rng.normal(size=600)
    if make is classifier:
        y = np.digitize(y, [-1, 1])
    model = make(weighting=weighting, tol=tol, **settings)
    model.fit(rows, y, is_target=is_target, source_groups=names)
    return model, rows[is_target], y[is_target]


@pytest.mark.parametrize("make", [regressor, classifier])
def test_descent_of_groups_stops_where_the_gradient_cannot_be_told_from_zero(make):
    model, full = grouped("significance", make)[0], grouped(None, make)[0]
    pvalues, objective = model.history_["pvalue"], model.history_["objective"]
    assert max(pvalues[:-1]) < 0.05 <= pvalues[-1]
    assert len(pvalues) == len(model.history_["statistic"]) > 1
    assert model.n_iter_ == len(objective) < full.n_iter_
    assert_array_equal(objective, full.history_["objective"][: len(objective)])
    phi, end = model.weight_params_["group"], full.weight_params_["group"]
    assert 0 < np.ptp(phi) < np.ptp(end)
    assert set(full.history_) == {"objective"}


@pytest.mark.parametrize("make", [regressor, classifier])
def test_first_p_value_is_that_of_equal_weights(make):
    """As the public test tells it of the same target rows, in a fit of training rows alone; its
    columns have other units, which only a ridge sees."""
    settings = {"l2": 1e-8, "refit": "train"}
    model, *_ = grouped("significance", make, **settings)
    equal, rows, y = grouped(None, make, "uniform", **settings)
    test = hypergradient_test(equal, rows, y).stationarity_test()
    assert model.history_["statistic"][0] == pytest.approx(test.statistic, rel=1e-3)
    assert model.history_["pvalue"][0] == pytest.approx(test.pvalue, rel=1e-2)
    assert test.df == 3


def test_descent_of_groups_does_not_start_where_nothing_is_to_gain():
    rng = np.random.default_rng(0)
    rows, names = rng.normal(size=(200, 3)), np.arange(200) % 4
    y, is_target = rows @ SLOPES + rng.normal(size=200), rng.permutation(200) < 40
    model = regressor(weighting="group", tol="significance")
    model.fit(rows, y, is_target=is_target, source_groups=names)
    assert_array_equal(model.weight_params_["group"], 0)
    assert np.ptp(model.weights_[~is_target]) < 1e-15
    assert len(model.history_["pvalue"]) == len(model.history_["objective"]) == model.n_iter_ == 1


def test_one_group_has_nothing_to_gain():
    model = regressor(weighting="group", n_groups=1, tol="significance")
    model.fit(X, Y, is_target=IS_TARGET)
    assert model.history_["pvalue"] == [1.0]


@pytest.mark.parametrize("weighting", ["auto", "gate", "loglinear", "sample", "target", "uniform"])
def test_significance_is_for_few_parameters(weighting):
    with pytest.raises(ValueError, match=rf"tol='significance' needs .*weighting='{weighting}'"):
        regressor(weighting=weighting, tol="significance").fit(X, Y, is_target=IS_TARGET)


# Covariate shift


def test_log_linear_weights_move_a_wrong_model_to_where_the_target_is():
    def truth(x):
        return x**3 - x

    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(1, 0.5, 150), rng.normal(2, 0.3, 15)])
    is_target, new = np.arange(165) >= 150, rng.normal(2, 0.3, 1000)
    y, errors = truth(x) + 0.3 * rng.normal(size=165), {}
    for weighting in ("uniform", "loglinear"):
        model = regressor(weighting=weighting, kl=0.1)
        model.fit(x[:, np.newaxis], y, is_target=is_target)
        errors[weighting] = np.mean((model.predict(new[:, np.newaxis]) - truth(new)) ** 2)
    assert errors["loglinear"] < 0.2 * errors["uniform"]
    assert abs(model.weights_ @ x - 2) < 0.3
    assert model.weight_params_["loglinear"].shape == (2,)


# What is told of the choice


def test_mixture_is_told_family_by_family():
    model = fitted("auto")
    assert list(model.mixture_) == model.cv_results_["family"] == FAMILIES
    assert sum(model.mixture_.values()) == pytest.approx(1, abs=1e-12)
    assert_array_equal(model.cv_results_["share"], list(model.mixture_.values()))
    assert model.selected_ == max(model.mixture_, key=model.mixture_.get)
    assert set(model.weight_params_) == set(model.history_) == set(FAMILIES)
    shares, ridges = model.cv_results_["share"], model.cv_results_["l2"]
    assert model.l2_ == pytest.approx(np.exp(shares @ np.log(ridges)), rel=1e-9)


def test_losses_out_of_fold_are_told_beside_those_of_the_extremes():
    results = fitted("auto").cv_results_
    losses = results["mean_target_loss"]
    assert losses.shape == results["l2"].shape == (6,)
    assert losses.min() > 0
    for number, name in enumerate(["uniform", "target"]):
        gaps, errors = results[f"difference_to_{name}"], results[f"stderr_to_{name}"]
        assert_allclose(gaps, losses - losses[number], rtol=0, atol=1e-12)
        assert errors[number] == 0
        assert (np.delete(errors, number) > 0).all()
    assert set(results) == {
        "family",
        "l2",
        "share",
        "mean_target_loss",
        *(f"{of}_to_{name}" for of in ("difference", "stderr") for name in ("uniform", "target")),
    }
    assert FAMILIES[np.argmin(losses)] in ("gate", "sample")


@pytest.mark.parametrize("weighting", FAMILIES)
def test_one_family_tells_of_itself_only(weighting):
    model = fitted(weighting)
    assert model.mixture_ == {weighting: 1.0}
    assert model.selected_ == weighting
    assert model.shift_detected_ is None
    assert set(model.cv_results_) == {"family", "l2", "share", "mean_target_loss"}
    assert model.cv_results_["family"] == [weighting]
    assert list(model.weight_params_) == [weighting]
    assert model.l2_ == model.cv_results_["l2"][0]


def test_ridge_is_chosen_or_the_one_that_is_given():
    assert fitted("gate").l2_ in (1e-4, 1e-2, 1e-1)
    given = regressor(l2=0.3).fit(X, Y, is_target=IS_TARGET)
    assert given.l2_ == 0.3
    assert np.isnan(given.cv_results_["mean_target_loss"]).all()
    assert_allclose(
        given.coef_, RidgeHead(0.3).fit(X, Y, given.sample_weight_).coef_, rtol=0, atol=1e-9
    )


def test_ridge_is_raised_where_it_helps():
    """No column matters here: the most ridge is best."""
    rng = np.random.default_rng(0)
    rows, y = rng.normal(size=(60, 20)), rng.normal(size=60)
    model = regressor(weighting="uniform").fit(rows, y, is_target=np.arange(60) < 25)
    assert model.l2_ == 0.1


# Labels that are suggested


def test_suggested_labels_are_right_more_often_than_those_that_were_given():
    model = classifier(relabel=True).fit(POINTS, LABELS, is_target=IS_CLEAN)
    suggested = model.suggested_labels_
    assert np.mean(suggested == TRUTH) > np.mean(LABELS == TRUTH) + 0.3
    assert_array_equal(suggested[IS_CLEAN], LABELS[IS_CLEAN])
    changed = suggested != LABELS
    assert np.mean(suggested[changed] == TRUTH[changed]) > 0.75
    assert np.mean(LABELS[changed] == TRUTH[changed]) < 0.15
    # Rows that come back make another model; their weights are those without them.
    assert_array_equal(model.weights_, fitted_classifier().weights_)
    assert np.abs(model.coef_ - fitted_classifier().coef_).max() > 0.01


def test_suggested_labels_are_those_of_the_rows_of_x():
    words = np.array(["ash", "birch", "cedar", "douglas fir"])
    noisy = ~IS_CLEAN
    model = classifier(relabel=True).fit(
        POINTS[noisy], words[LABELS[noisy]], X_val=POINTS[IS_CLEAN], y_val=words[LABELS[IS_CLEAN]]
    )
    expected = classifier(relabel=True).fit(POINTS, LABELS, is_target=IS_CLEAN)
    assert_array_equal(model.suggested_labels_, words[expected.suggested_labels_[noisy]])


@pytest.mark.parametrize(
    "weighting", ["auto", "uniform", "target", "group", "loglinear", "sample"]
)
def test_relabelling_needs_a_gate(weighting):
    model = classifier(weighting=weighting, relabel=True)
    with pytest.raises(ValueError, match=f"relabel=True needs .* not '{weighting}'"):
        model.fit(POINTS, LABELS, is_target=IS_CLEAN)
    assert not hasattr(model, "weights_")


def test_labels_are_suggested_on_request_only():
    assert not hasattr(fitted_classifier(), "suggested_labels_")


# Weights of other rows


@pytest.mark.parametrize("weighting", ["uniform", "group", "loglinear"])
def test_training_rows_have_their_weights_in_units_of_the_average(weighting):
    model = fitted(weighting)
    found = model.weights_for(X[SOURCE], Y[SOURCE])
    assert_allclose(found, model.weights_[SOURCE] * SOURCE.sum(), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighting", ["gate", "auto"])
def test_new_rows_that_follow_the_target_weigh_more(weighting):
    rows, y, _, follows = mixture(seed=9)
    far = np.abs(rows @ (SLOPES - [-3, 0, 1])) > 1.5
    weights = fitted(weighting).weights_for(rows, y)
    assert np.median(weights[follows]) > 1.5
    assert np.median(weights[~follows & far]) < 0.1


def test_rows_of_a_mixture_have_about_their_weights():
    model = fitted("auto")
    found = model.weights_for(X[SOURCE], Y[SOURCE])
    # A gate held rows out in the fit, and free weights of the mixture do not carry over.
    assert np.corrcoef(found, model.weights_[SOURCE])[0, 1] > 0.8
    assert found.mean() == pytest.approx(1, abs=0.15)


def test_rows_of_a_mixture_with_target_rows_alone_have_their_weights(monkeypatch):
    """Of families that carry over to the digit: shares are given, as data rarely give them."""
    shares = np.zeros(len(FAMILIES))
    for name, share in (("target", 0.3), ("group", 0.5), ("loglinear", 0.2)):
        shares[list(FAMILIES).index(name)] = share
    monkeypatch.setattr(weight_choice, "_is_shifted", lambda *args: True)
    monkeypatch.setattr(weight_choice, "_shares", lambda *args: shares)
    with pytest.warns(UserWarning, match="fewer than the 20 target rows"):
        model = regressor(weighting="auto").fit(X, Y, is_target=IS_TARGET)
    assert model.mixture_["target"] == 0.3
    assert model.sample_weight_[SOURCE].sum() < 0.8 * model.effective_sample_size_
    found = model.weights_for(X[SOURCE], Y[SOURCE])
    assert_allclose(found, model.weights_[SOURCE] * SOURCE.sum(), rtol=1e-9)
    assert np.ptp(np.log(found)) > 0.5


@pytest.mark.parametrize("final", [None, LogisticRegression()])
def test_gate_of_classes_on_training_rows_alone_beats_equal_weights(final):
    scores = {}
    new, truth = make_blobs(1000, n_features=5, centers=4, cluster_std=3, random_state=0)
    for weighting in ("gate", "uniform"):
        model = classifier(final, weighting=weighting, refit="train")
        model.fit(POINTS, LABELS, is_target=IS_CLEAN)
        scores[weighting] = model.score(new, truth)
        weights = model.sample_weight_
        assert_array_equal(weights[IS_CLEAN], 0)
        assert weights.sum() == pytest.approx(model.effective_sample_size_, rel=1e-9)
    assert scores["gate"] > scores["uniform"] + 0.05


def test_new_labels_that_are_right_weigh_more():
    rows, labels, _, truth = noisy_labels(seed=0)
    rng = np.random.default_rng(9)
    new = rows + 0.1 * rng.normal(size=rows.shape)
    weights = fitted_classifier().weights_for(new, labels)
    assert weights[labels == truth].mean() > 5 * weights[labels != truth].mean()


@pytest.mark.parametrize("labels", [[0, 7, 1], ["0", "1", "1"], [0.0, 1.0, 0.5]])
def test_labels_that_were_not_there_have_no_weight(labels):
    with pytest.raises(ValueError, match="y has classes that were not there in fit"):
        fitted_classifier().weights_for(POINTS[:3], labels)


def test_unknown_source_counts_as_the_average():
    rows, y, is_target, names = sources()
    model = regressor(weighting="group").fit(rows, y, is_target=is_target, source_groups=names)
    found = model.weights_for(rows[:4], y[:4], ["good", "worse", "new", "a"])
    shares = {name: model.weights_[~is_target & (names == name)][0] for name in ("good", "worse")}
    expected = [shares["good"] * 200, shares["worse"] * 200, 1, 1]
    assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="source_groups is needed"):
        model.weights_for(rows[:4], y[:4])


def test_target_family_gives_training_rows_no_weight():
    assert_array_equal(fitted("target").weights_for(X, Y), 0)


def test_without_a_target_every_row_is_average():
    with pytest.warns(UserWarning, match="got no target rows"):
        model = regressor().fit(X, Y)
    assert_array_equal(model.weights_for(X[:5], Y[:5]), 1)


def test_free_weights_say_nothing_of_other_rows():
    with pytest.raises(ValueError, match="weighting='sample' has no weights"):
        fitted("sample").weights_for(X, Y)


def test_methods_need_a_fit():
    for act in (regressor().predict, classifier().predict_proba, classifier().decision_function):
        with pytest.raises(NotFittedError):
            act(X)
    with pytest.raises(NotFittedError):
        regressor().weights_for(X, Y)


# The algorithms of the paper


def of_paper(solver="exact", **settings):
    settings = {"early_stopping": False, "max_iter": 12, **settings}
    model = regressor(weighting="sample", solver=solver, **settings)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The weights count as")
        return model.fit(X, Y, is_target=IS_TARGET)


@pytest.mark.parametrize("parametrization", ["mirror", "softmax", "sigmoid"])
@pytest.mark.parametrize("solver", ["exact", "warm_started", "soba"])
def test_history_has_every_iterate(solver, parametrization):
    model = of_paper(solver, parametrization=parametrization)
    assert list(model.history_) == ["target_loss", "entropy", "effective_sample_size"]
    n_told = model.n_iter_ + (solver == "exact")  # which starts with equal weights
    assert {len(values) for values in model.history_.values()} == {n_told}
    assert max(model.history_["entropy"]) <= np.log(SOURCE.sum()) + 1e-9
    assert max(model.history_["effective_sample_size"]) <= SOURCE.sum() + 1e-9
    assert model.history_["target_loss"][-1] < model.history_["target_loss"][0]


@pytest.mark.parametrize("parametrization", ["mirror", "softmax", "sigmoid"])
def test_exact_descent_starts_at_equal_weights_and_never_raises_the_loss(parametrization):
    model = of_paper(parametrization=parametrization)
    losses = np.array(model.history_["target_loss"])
    assert model.history_["entropy"][0] == pytest.approx(np.log(SOURCE.sum()), rel=1e-12)
    assert (np.diff(losses) <= 0).all()
    assert losses[-1] < 0.95 * losses[0]


def test_loss_of_the_history_is_that_of_the_parameters_on_target_rows():
    model = of_paper("warm_started", refit=None)
    residual = (model.predict(X) - Y)[IS_TARGET]
    expected = np.mean(residual**2) / 2 / np.var(Y)
    assert model.history_["target_loss"][-1] == pytest.approx(expected, rel=1e-9)


def test_parameters_of_the_exact_solver_are_those_of_its_weights():
    kept, again = (of_paper(refit=refit, l2=1e-9) for refit in (None, "train"))
    assert_array_equal(kept.weights_, again.weights_)
    assert_allclose(kept.coef_, again.coef_, rtol=1e-6)
    assert kept.intercept_ == pytest.approx(again.intercept_, abs=1e-6)


def test_parameters_that_are_frozen_stay_where_they_are():
    """At 0, where the mean of y is predicted."""
    model = of_paper("warm_started", inner_rate=0, outer_rate=0.1, refit=None)
    assert_array_equal(model.coef_, 0)
    assert model.intercept_ == pytest.approx(Y.mean(), rel=1e-12)
    assert model.effective_sample_size_ < SOURCE.sum() - 1


@pytest.mark.parametrize(
    "settings",
    [{"weighting": "gate"}, {"weighting": "auto"}, {"weighting": "sample", "estimator": Ridge()}],
)
def test_parameters_can_be_kept_of_a_solver_only(settings):
    model = regressor(refit=None, **settings)
    with pytest.raises(ValueError, match="refit=None keeps the parameters of the solver"):
        model.fit(X, Y, is_target=IS_TARGET)


@pytest.mark.filterwarnings("ignore:The weights count as")
def test_solver_that_runs_away_says_so():
    settings = {"weighting": "sample", "solver": "soba", "inner_rate": 20.0}
    model = regressor(max_iter=5, **settings)
    with pytest.warns(ConvergenceWarning, match="'soba' has not converged.* Lower inner_rate"):
        model.fit(X, Y, is_target=IS_TARGET)
    longer = regressor(max_iter=200, **settings)
    with pytest.raises(FloatingPointError, match=r"'soba' has left the range .* inner_rate"):
        longer.fit(X, Y, is_target=IS_TARGET)
    assert not hasattr(longer, "weights_")


def test_large_rate_of_the_weights_collapses_them():
    sizes = [
        of_paper("warm_started", outer_rate=rate, max_iter=100).effective_sample_size_
        for rate in (0.01, 1.0, 30.0)
    ]
    assert sizes[0] > 80
    assert sizes[0] > sizes[1] > sizes[2]
    assert sizes[2] < 5


def test_early_stopping_stops_before_the_weights_are_those_of_the_target_alone():
    stopped, whole = (of_paper(early_stopping=stop, max_iter=60) for stop in (True, False))
    assert stopped.n_iter_ < whole.n_iter_ == 60
    assert stopped.effective_sample_size_ > whole.effective_sample_size_


# The final estimator


class _Spy(BaseEstimator):
    """Keeps what it is fitted to."""

    def fit(self, X, y, sample_weight=None):
        self.X_, self.y_, self.weights_ = X, y, sample_weight
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.y_[0])


class NumberSpy(RegressorMixin, _Spy):
    pass


class ClassSpy(ClassifierMixin, _Spy):
    pass


def assert_saw(spy, model, rows, labels):
    """Exactly the final weights, in the order of the rows, and no row of weight 0."""
    counts = model.sample_weight_ > 0
    assert_array_equal(spy.X_, rows[counts])
    assert_array_equal(spy.y_, labels[counts])
    assert_array_equal(spy.weights_, model.sample_weight_[counts])
    assert spy.weights_.min() > 0


@pytest.mark.parametrize("refit", ["all", "train"])
@pytest.mark.parametrize("weighting", ["gate", "group", "sample"])
def test_final_estimator_gets_the_final_weights(weighting, refit):
    given = 1.0 * (np.arange(len(X)) % 5 > 0)
    model = regressor(NumberSpy(), weighting, refit=refit)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The weights count as")
        model.fit(X, Y, given, is_target=IS_TARGET)
    assert_saw(model.estimator_, model, X, Y)
    assert_array_equal(model.sample_weight_ == 0, (given == 0) | (IS_TARGET & (refit == "train")))
    assert not hasattr(model, "coef_")
    assert not hasattr(model.estimator, "X_")


def test_final_estimator_of_target_rows_alone_sees_no_other():
    model = regressor(NumberSpy(), "target").fit(X, Y, is_target=IS_TARGET)
    assert_array_equal(model.estimator_.X_, X[IS_TARGET])
    assert_array_equal(model.estimator_.weights_, 1)


def test_final_estimator_sees_x_val_below_x_and_no_target_column():
    told = regressor(NumberSpy()).fit(X[SOURCE], Y[SOURCE], X_val=X[IS_TARGET], y_val=Y[IS_TARGET])
    rows = np.concatenate([X[SOURCE], X[IS_TARGET]])
    assert_saw(told.estimator_, told, rows, np.concatenate([Y[SOURCE], Y[IS_TARGET]]))
    by_column = regressor(NumberSpy(), target_column=1)
    by_column.fit(np.insert(X, 1, IS_TARGET, axis=1), Y)
    assert_saw(by_column.estimator_, by_column, X, Y)


def test_final_classifier_gets_the_labels_as_they_are():
    words = np.array(["ash", "birch", "cedar", "douglas fir"])[LABELS]
    model = classifier(ClassSpy()).fit(POINTS, words, is_target=IS_CLEAN)
    assert_saw(model.estimator_, model, POINTS, words)
    assert model.predict(POINTS[:1]).tolist() == [words[0]]


def test_without_a_target_the_final_estimator_gets_the_weights_that_are_given():
    given = np.random.default_rng(0).uniform(0, 2, len(X))
    with pytest.warns(UserWarning, match="got no target rows"):
        model = regressor(NumberSpy()).fit(X, Y, given)
    assert_saw(model.estimator_, model, X, Y)
    assert_array_equal(model.sample_weight_, given)


def test_weights_do_not_depend_on_the_final_estimator():
    model = regressor(NumberSpy()).fit(X, Y, is_target=IS_TARGET)
    assert_array_equal(model.weights_, fitted().weights_)


def test_pipeline_as_the_final_estimator_hands_weights_to_its_last_step():
    model = regressor(make_pipeline(StandardScaler(), Ridge())).fit(X, Y, is_target=IS_TARGET)
    expected = make_pipeline(StandardScaler(), Ridge())
    expected.fit(X, Y, ridge__sample_weight=fitted().sample_weight_)
    assert_allclose(model.predict(X), expected.predict(X), rtol=1e-9)


def test_pipeline_as_the_final_estimator_routes_weights_as_it_is_told():
    with config_context(**WITH_ROUTING):
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        final = make_pipeline(scaler, Ridge().set_fit_request(sample_weight=True))
        model = regressor(final).fit(X, Y, is_target=IS_TARGET)
    expected = make_pipeline(StandardScaler(), Ridge())
    expected.fit(X, Y, ridge__sample_weight=fitted().sample_weight_)
    assert_allclose(model.predict(X), expected.predict(X), rtol=1e-9)


@pytest.mark.parametrize(
    "final", [KNeighborsRegressor(), make_pipeline(StandardScaler(), KNeighborsRegressor())]
)
def test_final_estimator_that_takes_no_weights_is_named_and_nothing_is_fitted(final):
    model = regressor(final)
    with pytest.raises(TypeError, match=r"KNeighborsRegressor.*takes no sample_weight"):
        model.fit(X, Y, is_target=IS_TARGET)
    assert vars(model) == vars(regressor(final))


def test_boosted_trees_learn_from_the_rows_that_matter():
    rows, y, _, _ = mixture(n_train=0, n_target=500, seed=7)
    trees = HistGradientBoostingRegressor(max_iter=30, min_samples_leaf=5)
    scores = {
        weighting: regressor(trees, weighting).fit(X, Y, is_target=IS_TARGET).score(rows, y)
        for weighting in ("gate", "uniform", "target")
    }
    assert scores["gate"] > max(scores["uniform"], scores["target"]) + 0.1


def test_boosted_trees_learn_from_the_labels_that_are_right():
    new, truth = make_blobs(1000, n_features=5, centers=4, cluster_std=3, random_state=0)
    trees = HistGradientBoostingClassifier(max_iter=10, min_samples_leaf=5)
    scores = {
        weighting: classifier(trees, weighting)
        .fit(POINTS, LABELS, is_target=IS_CLEAN)
        .score(new, truth)
        for weighting in ("gate", "uniform")
    }
    assert scores["gate"] > scores["uniform"] + 0.1


@pytest.mark.parametrize(
    ("final", "methods"),
    [
        (None, {"predict_proba", "decision_function"}),
        (LogisticRegression(), {"predict_proba", "decision_function"}),
        (RidgeClassifier(), {"decision_function"}),
        (GaussianNB(), {"predict_proba"}),
        (make_pipeline(StandardScaler(), GaussianNB()), {"predict_proba"}),
        (ClassSpy(), set()),
    ],
)
def test_methods_of_a_classifier_are_those_of_its_final_estimator(final, methods):
    model = classifier(final)
    for state in (model, model.fit(POINTS, LABELS, is_target=IS_CLEAN)):
        names = {name for name in ("predict_proba", "decision_function") if hasattr(state, name)}
        assert names == methods
    for name in methods:
        found = getattr(model, name)(POINTS)
        assert_array_equal(found, getattr(model.estimator_, name)(POINTS))
        assert found.shape == (len(POINTS), 4)
        assert_array_equal(model.classes_[found.argmax(axis=1)], model.predict(POINTS))


def test_regressor_has_no_method_of_classifiers():
    assert not hasattr(regressor(), "predict_proba")
    assert not hasattr(regressor(), "decision_function")


# With scikit-learn


def incomplete():
    """Columns that tell of one another, and a tenth of the cells missing."""
    rng = np.random.default_rng(0)
    rows = X + 2 * rng.normal(size=(len(X), 1))
    y = np.where(FOLLOWS, rows @ SLOPES, rows @ [-3, 0, 1]) + 0.3 * rng.normal(size=len(X))
    return np.where(rng.random(X.shape) < 0.1, np.nan, rows), y


HOLES, Y_OF_HOLES = incomplete()


def pipeline(estimator=None, **settings):
    imputer = IterativeImputer(max_iter=1, tol=1e9, random_state=0)
    model = regressor(estimator, **settings)
    return Pipeline([("scaler", StandardScaler()), ("imputer", imputer), ("model", model)])


def test_pipeline_hands_the_mask_on():
    whole = pipeline().fit(HOLES, Y_OF_HOLES, model__is_target=IS_TARGET)
    rows = whole[:-1].transform(HOLES)
    by_hand = regressor().fit(rows, Y_OF_HOLES, is_target=IS_TARGET)
    assert_array_equal(whole[-1].weights_, by_hand.weights_)
    assert_array_equal(whole.predict(HOLES), by_hand.predict(rows))
    with config_context(**WITH_ROUTING):
        routed = pipeline().fit(HOLES, Y_OF_HOLES, is_target=IS_TARGET)
    assert_array_equal(routed[-1].weights_, by_hand.weights_)
    assert whole[-1].weights_[FOLLOWS].sum() > 0.8


GRID = {"model__l2": [1e-4, 1e-2], "model__estimator__alpha": [0.1, 1e4]}


def by_hand(folds, **settings):
    """Mean score on target rows."""
    scores = [
        pipeline(Ridge())
        .set_params(**settings)
        .fit(HOLES[train], Y_OF_HOLES[train], model__is_target=IS_TARGET[train])
        .score(HOLES[test], Y_OF_HOLES[test])
        for train, test in folds
    ]
    return np.mean(scores)


@cache
def searched():
    """Without routing."""
    search = GridSearchCV(pipeline(Ridge()), GRID, cv=TargetKFold(2, is_target=IS_TARGET))
    return search.fit(HOLES, Y_OF_HOLES, model__is_target=IS_TARGET)


def test_search_takes_the_mask_by_the_name_of_the_step_and_scores_target_rows():
    folds = list(TargetKFold(2, is_target=IS_TARGET).split(HOLES))
    results = searched().cv_results_
    expected = [by_hand(folds, **settings) for settings in results["params"]]
    assert_allclose(results["mean_test_score"], expected, rtol=1e-9)
    assert searched().best_params_["model__estimator__alpha"] == 0.1
    assert searched().best_estimator_[-1].weights_[FOLLOWS].sum() > 0.8
    assert searched().best_score_ > 0.5


def test_search_with_routing_takes_the_mask_once_for_folds_and_fits():
    with config_context(**WITH_ROUTING):
        folds = TargetKFold(2).set_split_request(groups="is_target")
        search = GridSearchCV(pipeline(Ridge()), GRID, cv=folds)
        search.fit(HOLES, Y_OF_HOLES, is_target=IS_TARGET)
    expected = searched().cv_results_["mean_test_score"]
    assert_array_equal(search.cv_results_["mean_test_score"], expected)
    assert_array_equal(search.predict(HOLES), searched().predict(HOLES))


def validated(model, rows, labels, **settings):
    folds = TargetKFold(3, is_target=IS_TARGET)
    return cross_validate(
        model, rows, labels, cv=folds, return_estimator=True, error_score="raise", **settings
    )


def test_cross_validation_cuts_the_mask_with_the_rows():
    by_name = validated(pipeline(), HOLES, Y_OF_HOLES, params={"model__is_target": IS_TARGET})
    with config_context(**WITH_ROUTING):
        folds = TargetKFold(3).set_split_request(groups="is_target")
        routed = cross_validate(
            pipeline(), HOLES, Y_OF_HOLES, cv=folds, params={"is_target": IS_TARGET}
        )
    assert_array_equal(routed["test_score"], by_name["test_score"])
    folds = TargetKFold(3, is_target=IS_TARGET).split(HOLES)
    for (train, _), model in zip(folds, by_name["estimator"], strict=True):
        assert_array_equal(model[-1].weights_ == 0, IS_TARGET[train])


def test_cross_validation_of_a_target_column_needs_no_routing():
    marked = np.column_stack([X, IS_TARGET])
    by_column = validated(regressor(target_column=3), marked, Y)
    by_mask = validated(regressor(), X, Y, params={"is_target": IS_TARGET})
    assert_allclose(by_column["test_score"], by_mask["test_score"], rtol=1e-9)


def test_cross_validation_hands_a_short_x_val_to_every_fit_as_it_is():
    told = validated(
        regressor(), X, Y, params={"X_val": X[IS_TARGET][:15], "y_val": Y[IS_TARGET][:15]}
    )
    assert [len(each.sample_weight_) - len(each.weights_) for each in told["estimator"]] == [
        15
    ] * 3


def test_nested_cross_validation_passes_the_mask_through_both_loops():
    with config_context(**WITH_ROUTING):
        inner, outer = (TargetKFold(2).set_split_request(groups="is_target") for _ in range(2))
        search = GridSearchCV(regressor(weighting="target"), {"l2": [1e-4, 10.0]}, cv=inner)
        results = cross_validate(
            search, X, Y, cv=outer, params={"is_target": IS_TARGET}, return_estimator=True
        )
    assert [each.best_params_["l2"] for each in results["estimator"]] == [1e-4, 1e-4]
    assert min(results["test_score"]) > 0.9


def test_sources_are_routed_as_the_mask_is():
    rows, y, is_target, names = sources()
    with config_context(**WITH_ROUTING):
        model = make_pipeline(StandardScaler(), regressor(weighting="group"))
        model.fit(rows, y, is_target=is_target, source_groups=names)
    assert model[-1].weights_[np.isin(names, ["bad", "worse"])].sum() < 0.06


FAR = 50 + 10 * X


def steps(**settings):
    return Pipeline([("scaler", StandardScaler()), ("model", regressor())], **settings)


def test_pipeline_that_is_told_to_scales_x_val():
    told = {"X_val": FAR[IS_TARGET], "y_val": Y[IS_TARGET]}
    with config_context(**WITH_ROUTING), warnings.catch_warnings():
        warnings.simplefilter("error")
        whole = steps(transform_input=["X_val"]).fit(FAR[SOURCE], Y[SOURCE], **told)
    scaler = StandardScaler().fit(FAR[SOURCE])
    told["X_val"] = scaler.transform(FAR[IS_TARGET])
    by_hand = regressor().fit(scaler.transform(FAR[SOURCE]), Y[SOURCE], **told)
    assert_array_equal(whole[-1].coef_, by_hand.coef_)
    assert_array_equal(whole[-1].weights_, by_hand.weights_)


def test_pipeline_that_is_not_told_to_leaves_x_val_and_a_warning_says_so():
    with pytest.warns(UserWarning, match="X_val looks.*transform_input=") as caught:
        steps().fit(FAR[SOURCE], Y[SOURCE], model__X_val=FAR[IS_TARGET], model__y_val=Y[IS_TARGET])
    with (
        config_context(**WITH_ROUTING),
        pytest.warns(UserWarning, match="X_val looks.*transform_input=") as with_routing,
    ):
        steps().fit(FAR[SOURCE], Y[SOURCE], X_val=FAR[IS_TARGET], y_val=Y[IS_TARGET])
    assert caught[0].filename == with_routing[0].filename == __file__


def test_parameters_are_those_of_the_constructor_and_of_the_final_estimator():
    model = classifier(make_pipeline(StandardScaler(), LogisticRegression(C=3)), l2=0.1)
    parameters = model.get_params()
    assert parameters["l2"] == 0.1
    assert parameters["estimator__logisticregression__C"] == 3
    copy = clone(model.set_params(estimator__logisticregression__C=5, kl=0.2))
    assert copy.get_params()["estimator__logisticregression__C"] == 5
    assert copy.kl == 0.2
    assert copy.estimator is not model.estimator
    assert (
        clone(regressor().fit(X, Y, is_target=IS_TARGET)).get_params() == regressor().get_params()
    )
    with pytest.raises(ValueError, match="Invalid parameter 'cv'"):
        regressor().set_params(cv=3)


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("estimator", StandardScaler()),
        ("weighting", "gates"),
        ("solver", "newton"),
        ("parametrization", "simplex"),
        ("max_iter", 0),
        ("tol", 1e-3),
        ("outer_rate", 0.0),
        ("inner_rate", -0.1),
        ("early_stopping", "no"),
        ("l2", 0),
        ("l2", "cv"),
        ("kl", -1),
        ("n_folds", 1),
        ("n_groups", 0),
        ("refit", "target"),
        ("relabel", "yes"),
        ("standardize", 2),
        ("target_column", 1.5),
        ("validation_fraction", 1.0),
        ("random_state", "seed"),
    ],
)
def test_parameters_out_of_range_are_named(parameter, value):
    model = classifier().set_params(**{parameter: value})
    with pytest.raises(ValueError, match=f"'{parameter}' parameter"):
        model.fit(POINTS, LABELS, is_target=IS_CLEAN)


@pytest.mark.parametrize("labels", [np.full(len(X), "ash"), np.where(IS_TARGET, 0, LABELS[0])])
def test_classes_must_be_two_or_more(labels):
    with pytest.raises(ValueError, match=r"at least 2 classes.*one class"):
        classifier().fit(X, labels, 1.0 * (labels == labels[0]), is_target=IS_TARGET)


def test_numbers_are_no_classes():
    with pytest.raises(ValueError, match="Unknown label type"):
        classifier().fit(X, Y, is_target=IS_TARGET)


@pytest.mark.parametrize("weighting", ["gate", "auto"])
def test_two_target_rows_are_enough(weighting):
    is_target = np.isin(np.arange(len(X)), np.flatnonzero(IS_TARGET)[:2])
    model = regressor(weighting=weighting).fit(X, Y, is_target=is_target)
    assert np.isfinite(model.predict(X)).all()
    assert model.weights_.sum() == pytest.approx(1)


# Callbacks


class Recorder:
    """Keeps a fitted estimator of every step, and stops after some."""

    def __init__(self, n_steps):
        self.n_steps, self.seen = n_steps, []

    def setup(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context): ...
    def teardown(self, estimator, context): ...

    def on_fit_task_end(self, estimator, context, *, fitted_estimator):
        if context.task_name == "iteration":
            self.seen.append(fitted_estimator)
        return len(self.seen) == self.n_steps


@pytest.mark.parametrize(("solver", "n_iter"), [("exact", 2), ("warm_started", 3), ("soba", 3)])
def test_callback_sees_every_iterate_as_a_fitted_model_and_stops(solver, n_iter):
    """The exact solver shows where it starts as well."""
    recorder, settings = Recorder(3), {"solver": solver, "early_stopping": False}
    model = regressor(weighting="sample", **settings).set_callbacks(recorder)
    model.fit(X, Y, is_target=IS_TARGET)
    steps = [1, 1, 2] if solver == "exact" else [1, 2, 3]
    assert [seen.n_iter_ for seen in recorder.seen] == steps
    assert model.n_iter_ == steps[-1]
    assert len(model.history_["entropy"]) == 3
    assert np.unique([seen.entropy_ for seen in recorder.seen]).size == 3
    shorter = regressor(weighting="sample", max_iter=n_iter, **settings)
    shorter.fit(X, Y, is_target=IS_TARGET)
    for stopped in (model, recorder.seen[-1]):
        assert_array_equal(stopped.weights_, shorter.weights_)
        assert_array_equal(stopped.predict(X), shorter.predict(X))


def test_callback_sees_every_family_and_stops():
    recorder = Recorder(2)
    model = regressor(weighting="auto").set_callbacks(recorder).fit(X, Y, is_target=IS_TARGET)
    assert [list(seen.mixture_) for seen in recorder.seen] == [FAMILIES[:1], FAMILIES[:2]]
    assert_array_equal(recorder.seen[0].weights_, fitted("uniform").weights_)
    assert list(model.mixture_) == model.cv_results_["family"] == FAMILIES[:2]
    assert sum(model.mixture_.values()) == pytest.approx(1, abs=1e-12)
    assert model.selected_ == "target"
    assert_array_equal(recorder.seen[1].predict(X), model.predict(X))
    losses = fitted("auto").cv_results_["mean_target_loss"][:2]
    assert_array_equal(model.cv_results_["mean_target_loss"], losses)


def test_callback_that_does_not_stop_changes_nothing():
    recorder = Recorder(99)
    model = regressor(weighting="auto").set_callbacks(recorder).fit(X, Y, is_target=IS_TARGET)
    assert len(recorder.seen) == 6
    assert_array_equal(model.coef_, fitted("auto").coef_)
    assert_array_equal(recorder.seen[-1].coef_, fitted("auto").coef_)


# What is left of a fit


def tell(model, rows, labels):
    """What a fitted model says."""
    names = ("predict", "predict_proba", "decision_function")
    told = {name: getattr(model, name)(rows) for name in names if hasattr(model, name)}
    if model.weighting not in ("sample", "group"):
        told["weights_for"] = model.weights_for(rows, labels)
    return told


def loaded_from_pickle(model, path):
    return pickle.loads(pickle.dumps(model))


def loaded_from_file(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of types that are not trusted
        io.save(model, path / "model.skops")
        return io.load(path / "model.skops")


LOADED = pytest.mark.parametrize("loaded", [loaded_from_pickle, loaded_from_file])


@LOADED
@pytest.mark.parametrize("weighting", ["auto", *FAMILIES])
def test_fitted_regressor_comes_back(weighting, loaded, tmp_path):
    model, again = fitted(weighting), loaded(fitted(weighting), tmp_path)
    assert vars(again).keys() == vars(model).keys()
    assert_array_equal(again.weights_, model.weights_)
    assert again.mixture_ == model.mixture_
    expected = tell(model, X, Y)
    for name, values in tell(again, X, Y).items():
        assert_array_equal(values, expected[name])


@LOADED
@pytest.mark.parametrize("weighting", ["gate", "group"])
def test_fitted_classifier_comes_back(weighting, loaded, tmp_path):
    words = np.array(["ash", "birch", "cedar", "douglas fir"])[LABELS]
    model = classifier(weighting=weighting, relabel=weighting == "gate")
    groups = np.array(["first", "second"], dtype=object)[np.arange(len(words)) % 2]
    model.fit(POINTS, words, is_target=IS_CLEAN, source_groups=groups)
    again, expected = loaded(model, tmp_path), tell(model, POINTS, words)
    for name, values in tell(again, POINTS, words).items():
        assert_array_equal(values, expected[name])
    assert_array_equal(
        again.weights_for(POINTS, words, groups), model.weights_for(POINTS, words, groups)
    )


@LOADED
@pytest.mark.parametrize(
    "final", [Ridge(), make_pipeline(StandardScaler(), Ridge())], ids=["estimator", "pipeline"]
)
def test_final_estimator_comes_back(final, loaded, tmp_path):
    model = regressor(final).fit(X, Y, is_target=IS_TARGET)
    assert_array_equal(loaded(model, tmp_path).predict(X), model.predict(X))


@LOADED
def test_fit_without_a_target_comes_back(loaded, tmp_path):
    with pytest.warns(UserWarning, match="got no target rows"):
        model = regressor().fit(X, Y)
    assert_array_equal(loaded(model, tmp_path).predict(X), model.predict(X))


def parts(value):
    """All that a nested attribute is made of."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        return [part for each in value for part in parts(each)]
    return [value]


PLAIN = (np.ndarray, np.floating, np.integer, np.bool_, bool, int, float, str, type(None))


@pytest.mark.parametrize("weighting", ["auto", *FAMILIES])
def test_what_is_fitted_is_arrays_and_plain_python(weighting):
    models = [fitted(weighting)]
    if weighting != "auto":
        models.append(fitted_classifier(weighting))
    for model in models:
        attributes = {**vars(model), **vars(model.estimator_)}
        attributes.pop("estimator_")
        found = [part for part in parts(attributes) if not isinstance(part, PLAIN)]
        assert found == []


@pytest.mark.parametrize("model", [fitted, fitted_classifier])
def test_prediction_leaves_the_model_as_it_was(model):
    rows, labels = (X, Y) if model is fitted else (POINTS, LABELS)
    model = pickle.loads(pickle.dumps(model()))
    before, state = dict(vars(model)), pickle.dumps(model)
    tell(model, rows, labels)
    model.score(rows, labels)
    assert vars(model).keys() == before.keys()
    assert all(vars(model)[name] is before[name] for name in before)
    assert pickle.dumps(model) == state


def test_fit_returns_itself_and_can_be_repeated():
    model = regressor()
    assert model.fit(X, Y, is_target=IS_TARGET) is model
    other = np.roll(IS_TARGET, 1)
    model.fit(X, Y, is_target=other).fit(X, Y, is_target=IS_TARGET)
    assert_array_equal(model.coef_, fitted().coef_)
    assert_array_equal(model.weights_, fitted().weights_)


def test_data_are_left_as_they_were():
    rows, y, mask, counts = X.copy(), Y.copy(), IS_TARGET.copy(), np.ones(len(X))
    regressor(LinearRegression()).fit(rows, y, counts, is_target=mask)
    for array, before in ((rows, X), (y, Y), (mask, IS_TARGET), (counts, 1)):
        assert_array_equal(array, before)
