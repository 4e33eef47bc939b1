"""OrthogonalFQE against LSTDQ, dynamic programming and known values."""

import pickle

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import norm
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression

from skbilevel import ConditionalMomentGradient, NystroemRidge, OrthogonalFQE
from tests.benchmark_modules import benchmark_module

designs = benchmark_module("orthogonal_designs")
POLICY = [1 - designs.POLICY, designs.POLICY]


def q_features(states, actions):
    return designs.q_features(states, actions)


@pytest.fixture(scope="module")
def sample():
    return designs.DESIGNS["FQE"].draw(1000, np.random.default_rng(0))


@pytest.fixture(scope="module")
def parts(sample):
    return sample.extra["S"], sample.extra["A"], sample.y, sample.extra["S_next"]


@pytest.fixture(scope="module")
def start():
    return 0.5 * np.random.default_rng(9).normal(size=(300, 2))


@pytest.fixture(scope="module")
def fitted(parts, start):
    model = OrthogonalFQE(POLICY, 0.9, q_features, random_state=0)
    return model.fit(*parts, initial_states=start)


def lstdq(sample):
    """Instruments psi: omega is the solution of mean[psi (D'omega - R)] = 0."""
    psi = sample.extra["psi"]
    return np.linalg.solve(psi.T @ sample.D, psi.T @ sample.y)


def test_coefficients_are_near_the_truth_and_lstdq(fitted, sample):
    assert (np.abs(fitted.coef_ - designs.W_FQE) < 4 * fitted.stderr_).all()
    assert np.abs(fitted.coef_ - lstdq(sample)).max() < 2 * fitted.stderr_.max()
    assert abs(fitted.value_ - 3.02) < 4 * fitted.value_stderr_
    assert 0.05 < fitted.value_stderr_ < 1


def test_linear_nuisances_of_the_features_without_folds_are_lstdq(sample, parts, start):
    """kappa is then the projection of D on psi, whose product with r is 0 where psi's is."""

    class OnFeatures(LinearRegression):
        def fit(self, X, y):
            return super().fit(designs.q_features(X[:, :2], X[:, 2])[:, 1:], y)

        def predict(self, X):
            return super().predict(designs.q_features(X[:, :2], X[:, 2])[:, 1:])

    model = OrthogonalFQE(POLICY, 0.9, q_features, OnFeatures(), cross_fit=False).fit(
        *parts, initial_states=start
    )
    assert_allclose(model.coef_, lstdq(sample), rtol=1e-8)


def test_coefficients_are_those_of_the_moment_where_nothing_is_known(sample, parts):
    """psi(S, A) is known: with nuisances of D as a whole the estimate differs, but by little."""
    X = np.column_stack([parts[0], parts[1]])
    moment = ConditionalMomentGradient(lambda w, d: d[0] @ w - d[1], random_state=0)
    root = moment.fit(X, (sample.D, sample.y))
    found = root.solve(np.zeros(6))
    model = OrthogonalFQE(POLICY, 0.9, q_features, random_state=0).fit(*parts)
    assert (np.abs(model.coef_ - found.coef_) < 1.5 * found.stderr_).all()
    assert set(model.nuisance_scores_) == {"R", *(f"psi[{j}]" for j in (1, 2, 4, 5))}


def test_value_is_the_mean_over_initial_states_with_their_spread(fitted, start):
    at = designs.q_features(start, np.full(len(start), designs.POLICY))
    assert fitted.value_ == pytest.approx((at @ fitted.coef_).mean(), rel=1e-9)
    along = at.mean(axis=0)
    variance = along @ fitted.cov_ @ along + (at @ fitted.coef_).var(ddof=1) / len(start)
    assert fitted.value_stderr_ == pytest.approx(np.sqrt(variance), rel=1e-9)
    half = norm.ppf(0.95) * fitted.value_stderr_
    assert_allclose(fitted.value_interval(0.9), fitted.value_ + half * np.array([-1, 1]))


def test_gap_is_what_the_correction_moves_the_value_by(fitted, parts, start):
    """To first order in the correction, in standard errors."""
    first = clone(fitted).set_params(correction="none").fit(*parts, initial_states=start)
    moved = abs(first.value_ - fitted.value_) / fitted.value_stderr_
    assert fitted.correction_gap_ == pytest.approx(moved, rel=0.3)
    assert fitted.correction_gap_ > 0.01
    assert first.correction_gap_ == 0


def test_value_over_the_logged_states_has_one_influence_for_both(parts):
    model = OrthogonalFQE(POLICY, 0.9, q_features, random_state=0).fit(*parts)
    at = designs.q_features(parts[0], np.full(1000, designs.POLICY))
    assert model.value_ == pytest.approx((at @ model.coef_).mean(), rel=1e-9)
    along = at.mean(axis=0)
    apart = along @ model.cov_ @ along + (at @ model.coef_).var(ddof=1) / 1000
    assert model.value_stderr_**2 == pytest.approx(apart, rel=0.5)
    assert model.value_stderr_**2 != pytest.approx(apart, rel=1e-3)


def test_actions_and_states_have_values(fitted, parts):
    S, A, *_ = parts
    assert_allclose(fitted.predict(S, A), designs.q_features(S, A) @ fitted.coef_)
    values = [fitted.predict(S, np.full(1000, a)) for a in (0.0, 1.0)]
    assert_allclose(fitted.predict(S), 0.3 * values[0] + 0.7 * values[1], rtol=1e-9)


def test_policy_may_depend_on_the_state(parts, start):
    def policy(states):
        share = 1 / (1 + np.exp(-states[:, 0]))
        return np.column_stack([1 - share, share])

    model = OrthogonalFQE(policy, 0.9, q_features, random_state=0).fit(*parts)
    S = start
    values = [model.predict(S, np.full(300, a)) for a in (0.0, 1.0)]
    share = policy(S)
    assert_allclose(model.predict(S), share[:, 0] * values[0] + share[:, 1] * values[1])


def test_actions_may_be_words(fitted, parts, start):
    S, A, R, S_next = parts
    words = np.where(A == 1, "go", "ask")
    model = OrthogonalFQE(
        POLICY, 0.9, lambda s, a: designs.q_features(s, (a == "go") * 1.0), random_state=0
    ).fit(S, words, R, S_next, initial_states=start)
    assert model.actions_.tolist() == ["ask", "go"]
    assert model.value_ == pytest.approx(fitted.value_, rel=1e-9)


def test_actions_that_are_numbers_may_follow_from_the_state():
    """s' = (s + a) / 2 + noise, r = s + a, a = -s / 2: Q is linear, with a closed form."""
    rng = np.random.default_rng(1)
    S, A = rng.normal(size=(3000, 1)), rng.normal(size=(3000, 1))
    R, S_next = (S + A)[:, 0], (S + A) / 2 + 0.3 * rng.normal(size=(3000, 1))
    model = OrthogonalFQE(
        lambda states: -states / 2,
        0.8,
        lambda s, a: np.column_stack([s[:, 0], a]),
        policy_kind="actions",
        random_state=0,
    ).fit(S, A, R, S_next, initial_states=np.ones((1, 1)))
    # Q = q (s + a): q (s + a) = (s + a) + .8 q (s' + a') = (s + a) (1 + .8 q / 4).
    assert_allclose(model.coef_, [1.25, 1.25], atol=0.01)
    assert model.value_ == pytest.approx(0.625, abs=0.01)
    assert model.actions_ is None


@pytest.mark.filterwarnings("ignore:The correction for", "ignore:The smallest eigenvalue")
def test_policy_may_give_one_label(parts, start):
    S, A, R, S_next = parts
    words = np.where(A == 1, "go", "ask")
    by_label = OrthogonalFQE(
        lambda s: np.where(s[:, 0] > 0, "go", "ask"), 0.9, policy_kind="actions", random_state=0
    ).fit(S, words, R, S_next, initial_states=start)
    by_share = OrthogonalFQE(
        lambda s: np.column_stack([s[:, 0] <= 0, s[:, 0] > 0]) * 1.0, 0.9, random_state=0
    ).fit(S, words, R, S_next, initial_states=start)
    assert by_label.value_ == pytest.approx(by_share.value_, rel=1e-9)


def test_actions_that_were_not_there_are_named(fitted, parts):
    with pytest.raises(ValueError, match=r"A has actions \[7.0\]; those of fit are \[0.0, 1.0\]"):
        fitted.predict(parts[0][:2], [7.0, 1.0])


def test_intervals_of_coefficients_are_those_of_wald(fitted):
    half = norm.ppf(0.95) * fitted.stderr_
    bounds = np.column_stack([fitted.coef_ - half, fitted.coef_ + half])
    assert_allclose(fitted.conf_int(0.9), bounds)
    joint = fitted.conf_int(0.9, joint=True, random_state=0)
    assert (joint[:, 1] > bounds[:, 1]).all()


def test_value_that_cannot_be_told_is_warned_of(parts):
    """Without a discount and without ends a constant has no consequence."""
    model = OrthogonalFQE(POLICY, 1.0, q_features, random_state=0)
    with pytest.warns(UserWarning, match="cannot be told from these transitions at all"):
        model.fit(*parts)
    assert model.hessian_strength_ == 0


@pytest.mark.filterwarnings("ignore:The correction for", "ignore:The smallest eigenvalue")
def test_columns_of_states_in_another_order_are_refused(parts, start):
    S, A, R, S_next = parts
    frame, following = (pd.DataFrame(s, columns=["a", "b"]) for s in (S, S_next))
    model = OrthogonalFQE(POLICY, 0.9, random_state=0)
    with pytest.raises(ValueError, match="S_next has the columns of S in another order"):
        model.fit(frame, A, R, following[["b", "a"]])
    turned = pd.DataFrame(start, columns=["b", "a"])
    with pytest.raises(ValueError, match="initial_states has the columns of S in another"):
        model.fit(frame, A, R, following, initial_states=turned)
    renamed = following.set_axis(["next a", "next b"], axis=1)
    assert model.fit(frame, A, R, renamed).value_ == model.fit(frame, A, R, following).value_


def chain(n, rng):
    """Two states; action 1 moves to the other one, the second pays 1, and one in ten ends."""
    s, a = rng.integers(2, size=n), rng.integers(2, size=n)
    following = np.where(a == 1, 1 - s, s)
    done = rng.random(n) < 0.1
    return s[:, None].astype(float), a, (s == 1) * 1.0, following[:, None].astype(float), done


def test_ends_of_episodes_are_worth_nothing_further():
    S, A, R, S_next, done = chain(4000, np.random.default_rng(2))
    features = lambda s, a: np.eye(4)[(2 * s[:, 0] + a).astype(int)]  # noqa: E731
    model = OrthogonalFQE([0.0, 1.0], 0.9, features, random_state=0)
    start = np.array([[0.0], [1.0]])
    model.fit(S, A, R, S_next, done, initial_states=start)
    # V(0) = .81 V(1), V(1) = 1 + .81 V(0).
    second = 1 / (1 - 0.81**2)
    assert_allclose(model.predict(start), [0.81 * second, second], atol=0.1)
    endless = clone(model).fit(S, A, R, S_next, initial_states=start)
    assert endless.value_ > 1.3 * model.value_
    as_numbers = clone(model).fit(S, A, R, S_next, done.astype(int), initial_states=start)
    assert as_numbers.value_ == model.value_
    # What follows an end does not matter.
    other = clone(model).fit(
        S, A, R, np.where(done[:, None], 1 - S_next, S_next), done, initial_states=start
    )
    assert other.value_ == pytest.approx(model.value_, rel=1e-9)


def test_default_features_are_quadratic_in_the_state_for_each_action(parts):
    model = OrthogonalFQE(POLICY, 0.5, random_state=0).fit(*parts)
    assert len(model.coef_) == 2 * 6
    S, A, *_ = parts
    assert model.predict(S[:5], A[:5]).shape == (5,)
    assert len(clone(model).set_params(gamma=0.0).fit(*parts).coef_) == 12


def test_without_discounted_future_it_is_least_squares_of_rewards(parts):
    S, A, R, S_next = parts
    model = OrthogonalFQE(POLICY, 0.0, q_features, random_state=0).fit(S, A, R, S_next)
    expected = np.linalg.lstsq(designs.q_features(S, A), R, rcond=None)[0]
    assert_allclose(model.coef_, expected, rtol=1e-8)


@pytest.mark.filterwarnings("ignore:The correction for", "ignore:The smallest eigenvalue")
def test_episodes_count_together(parts, start):
    four = np.repeat(np.arange(250), 4)
    repeated = [part[four] for part in parts]
    model = OrthogonalFQE(POLICY, 0.9, q_features, NystroemRidge(n_centers=50), random_state=0)
    naive = model.fit(*repeated, initial_states=start).stderr_
    honest = clone(model).fit(*repeated, initial_states=start, groups=four).stderr_
    assert (honest > 1.5 * naive).all()


def test_repetitions_have_the_median(parts, start):
    model = OrthogonalFQE(POLICY, 0.9, q_features, n_rep=3, random_state=0)
    model.fit(*parts, initial_states=start)
    again = clone(model).fit(*parts, initial_states=start)
    assert again.value_ == model.value_
    assert abs(model.value_ - 3.02) < 4 * model.value_stderr_


def test_summary_tells_value_and_coefficients(fitted):
    text = fitted.summary()
    for part in ("value", "psi[5]", "R2 of what state and action tell: R", "Hessian"):
        assert part in text
    assert f"{fitted.value_:.4g}" in text


def test_contract(fitted, parts):
    assert clone(fitted).get_params()["gamma"] == 0.9
    with pytest.raises(NotFittedError):
        clone(fitted).value_interval()
    with pytest.raises(NotFittedError):
        clone(fitted).predict(parts[0])
    other = pickle.loads(pickle.dumps(fitted))
    assert_array_equal(other.value_interval(), fitted.value_interval())
    frame = pd.DataFrame(parts[0], columns=["a", "b"])
    named = clone(fitted).fit(frame, parts[1], parts[2], pd.DataFrame(parts[3]))
    assert named.feature_names_in_.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({}, {"A": np.zeros(5)}, "A has 5 rows and S has 1000"),
        ({}, {"R": np.zeros(5)}, "R has 5 rows and S has 1000"),
        ({}, {"S_next": np.zeros((5, 2))}, "S_next has 5 rows and S has 1000"),
        ({}, {"S_next": np.zeros((1000, 3))}, "S_next has 3 columns and S has 2"),
        ({}, {"S_next": np.full((1000, 2), np.nan)}, "Input S_next contains NaN"),
        ({}, {"R": np.full(1000, np.nan)}, "Input R contains NaN"),
        ({}, {"done": np.zeros(5)}, "done has 5 rows and S has 1000"),
        ({}, {"done": np.full(1000, 2)}, "done must hold booleans"),
        ({}, {"initial_states": np.zeros((4, 3))}, "initial_states has 3 columns and S has 2"),
        ({}, {"groups": np.zeros(5)}, "groups has 5 rows"),
        ({"policy": [1.0]}, {}, r"policy gave probabilities of shape \(1000, 1\)"),
        ({"policy": [0.5, 0.6]}, {}, "policy must give probabilities"),
        ({"policy": [-0.5, 1.5]}, {}, "policy must give probabilities"),
        ({"policy": lambda s: np.ones(len(s))}, {}, "policy gave probabilities of shape"),
        ({"policy_kind": "actions"}, {}, "policy_kind='actions' needs policy to be a function"),
        ({"features": lambda s, a: np.ones((3, 2))}, {}, "features gave 3 rows for 1000 states"),
        ({"gamma": 1.5}, {}, "gamma"),
        ({"cv": 2000}, {}, "cv=2000 needs as many rows"),
        ({}, {"A": np.full(1000, np.nan)}, "A contains NaN"),
        ({}, {"A": np.arange(1000.0)}, r"9.0, ...\] that occur in A. If actions are numbers"),
        (
            {"policy": lambda s: s[:, 0], "policy_kind": "actions", "features": None},
            {"A": np.zeros((1000, 2))},
            r"policy gave actions of shape \(1000, 1\), and \(1000, 2\) is needed",
        ),
    ],
)
def test_input_that_does_not_fit_is_named(parts, settings, change, message):
    given = dict(zip(("S", "A", "R", "S_next"), parts, strict=True)) | change
    model = OrthogonalFQE(**{"policy": POLICY, "gamma": 0.9, "features": q_features, **settings})
    with pytest.raises(ValueError, match=message):
        model.fit(**given)
    assert not hasattr(model, "coef_")
