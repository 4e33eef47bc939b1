"""Ridge and softmax regression on standardised rows, against scikit-learn and searches."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.linear_model import Ridge
from sklearn.utils.estimator_checks import check_estimator

from skbilevel.estimators.linear_head import RidgeHead, SoftmaxHead, Units, head_with, units_of

N, D, K = 50, 3, 3
RNG = np.random.default_rng(0)
X = RNG.normal([1.0, -20.0, 0.3], [2.0, 5.0, 0.1], size=(N, D))
y = X @ [0.5, 0.1, 3.0] + RNG.normal(size=N) + 7
LOGITS = (X - X.mean(axis=0)) / X.std(axis=0) @ RNG.normal(size=(D, K))
CODES = (LOGITS + RNG.normal(size=(N, K))).argmax(axis=1)
LABELS = np.array(["c", "a", "b"])[CODES]
COUNTS = 1.0 + np.arange(N) % 3
NEW = RNG.normal([1.0, -20.0, 0.3], [2.0, 5.0, 0.1], size=(20, D))
HEADS = [(RidgeHead, y), (SoftmaxHead, LABELS)]


def outputs(head, rows):
    """Numbers, or logits."""
    return head.predict(rows) if isinstance(head, RidgeHead) else head.decision_function(rows)


def deviation(rows, counts, center):
    return np.sqrt(counts @ (rows - center) ** 2 / counts.sum())


# Against others


@pytest.mark.parametrize("l2", [1e-4, 0.3])
@pytest.mark.parametrize("counts", [np.ones(N), COUNTS])
def test_ridge_of_standardised_columns_is_that_of_scikit_learn(l2, counts):
    """Numbers and columns have mean 0 then, so that the ridge of the constant shrinks nothing."""
    center, mean = (np.average(part, axis=0, weights=counts) for part in (X, y))
    scale, y_scale = deviation(X, counts, center), deviation(y, counts, mean)
    model = Ridge(alpha=l2).fit(
        (X - center) / scale, (y - mean) / y_scale, sample_weight=counts / counts.sum()
    )
    expected = mean + y_scale * model.predict((NEW - center) / scale)
    head = RidgeHead(l2).fit(X, y, counts)
    assert_allclose(head.predict(NEW), expected, rtol=1e-10)
    assert_allclose(NEW @ head.coef_ + head.intercept_, expected, rtol=1e-10)


@pytest.mark.parametrize("l2", [1e-4, 0.3])
def test_ridge_without_an_intercept_is_that_of_scikit_learn(l2):
    scale, y_scale = deviation(X, COUNTS, 0), deviation(y, COUNTS, 0)
    model = Ridge(alpha=l2, fit_intercept=False)
    model.fit(X / scale, y / y_scale, sample_weight=COUNTS / COUNTS.sum())
    head = RidgeHead(l2, fit_intercept=False).fit(X, y, COUNTS)
    assert_allclose(head.coef_, y_scale * model.coef_ / scale, rtol=1e-9)
    assert head.intercept_ == 0


def test_ridge_of_columns_as_they_are_has_one_scale_and_a_constant_with_a_ridge():
    l2, shares = 0.3, COUNTS / COUNTS.sum()
    scale, mean = np.sqrt(shares @ np.mean(X**2, axis=1)), shares @ y
    rows = np.column_stack([X / scale, np.ones(N)])
    y_scale = deviation(y, COUNTS, mean)
    theta = np.linalg.solve(
        (rows.T * shares) @ rows + l2 * np.eye(D + 1), (rows.T * shares) @ (y - mean) / y_scale
    )
    head = RidgeHead(l2, standardize=False).fit(X, y, COUNTS)
    assert_allclose(head.coef_, y_scale * theta[:D] / scale, rtol=1e-9)
    assert head.intercept_ == pytest.approx(mean + y_scale * theta[D], rel=1e-10)
    assert abs(theta[D]) > 0.01


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("fit_intercept", [True, False])
@pytest.mark.parametrize("l2", [1e-3, 0.3])
def test_softmax_is_the_minimum_of_the_penalised_log_loss(standardize, fit_intercept, l2):
    shares = COUNTS / COUNTS.sum()
    center = shares @ X if standardize and fit_intercept else np.zeros(D)
    scale = deviation(X, COUNTS, center)
    scale = scale if standardize else np.full(D, np.sqrt(np.mean(scale**2)))
    rows, new = ((part - center) / scale / np.sqrt(D) for part in (X, NEW))
    if fit_intercept:
        rows, new = (np.column_stack([part, np.full(len(part), 0.3)]) for part in (rows, new))
    names = np.unique(LABELS)
    Y = (LABELS[:, None] == names).astype(float)

    def objective(flat):
        theta = flat.reshape(rows.shape[1], K)
        log = log_softmax(rows @ theta, axis=1)
        value = -shares @ (Y * log).sum(axis=1) + l2 / 2 * np.sum(theta**2)
        gradient = (rows.T * shares) @ (np.exp(log) - Y) + l2 * theta
        return value, gradient.ravel()

    found = minimize(
        objective,
        np.zeros(rows.shape[1] * K),
        jac=True,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 5000},
    )
    logits = new @ found.x.reshape(-1, K)
    head = SoftmaxHead(l2, standardize=standardize, fit_intercept=fit_intercept)
    head.fit(X, LABELS, COUNTS)
    assert_array_equal(head.classes_, names)
    assert_allclose(head.decision_function(NEW), logits, atol=1e-6 * np.abs(logits).max())
    shares = np.exp(log_softmax(logits, axis=1))
    assert_allclose(head.predict_proba(NEW), shares, atol=1e-6)
    assert_array_equal(head.predict(NEW), names[logits.argmax(axis=1)])
    assert fit_intercept == bool(np.any(head.intercept_))


def test_logit_of_two_classes_is_one_number():
    head = SoftmaxHead().fit(X, CODES == 0)
    odds = head.predict_proba(NEW)
    assert_allclose(head.decision_function(NEW), np.log(odds[:, 1] / odds[:, 0]), rtol=1e-9)
    assert_array_equal(head.predict(NEW), head.decision_function(NEW) > 0)


# What changes nothing


@pytest.mark.parametrize(("Head", "target"), HEADS)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_units_of_a_column_do_not_matter_if_it_is_standardised(Head, target, fit_intercept):
    units = np.array([1e3, 1e-4, 1.0])
    here, there = (
        Head(0.1, fit_intercept=fit_intercept).fit(X * by, target, COUNTS) for by in (1.0, units)
    )
    expected = outputs(here, NEW)
    assert_allclose(outputs(there, NEW * units), expected, atol=1e-8 * np.abs(expected).max())
    plain = Head(0.1, standardize=False).fit(X * units, target, COUNTS)
    assert np.abs(outputs(plain, NEW * units) - expected).max() > 0.1


@pytest.mark.parametrize(("Head", "target"), HEADS)
def test_origin_of_a_column_does_not_matter_if_it_is_standardised(Head, target):
    shift = np.array([100.0, -30.0, 0.0])
    here, there = (Head(0.1).fit(X + by, target, COUNTS) for by in (0.0, shift))
    expected = outputs(here, NEW)
    found = outputs(there, NEW + shift)
    assert_allclose(found, expected, atol=1e-8 * np.abs(expected).max())


@pytest.mark.parametrize(("Head", "target"), HEADS)
def test_column_far_from_its_origin_is_standardised_as_well(Head, target):
    """With nine digits of the column's deviation: numbers have sixteen."""
    shift = np.array([0.0, 0.0, 1e6])
    here, there = (Head(0.1).fit(X + by, target, COUNTS) for by in (0.0, shift))
    expected = outputs(here, NEW)
    found = outputs(there, NEW + shift)
    assert_allclose(found, expected, atol=1e-6 * np.abs(expected).max())


@pytest.mark.parametrize(("Head", "target"), HEADS)
def test_scale_of_all_columns_does_not_matter_as_they_are(Head, target):
    here, there = (Head(0.1, standardize=False).fit(X * by, target) for by in (1.0, 1e3))
    expected = outputs(here, NEW)
    assert_allclose(outputs(there, NEW * 1e3), expected, atol=1e-8 * np.abs(expected).max())


def test_units_of_numbers_scale_predictions_of_a_ridge_regression():
    here, there = (RidgeHead(0.1).fit(X, by * y + 5) for by in (1.0, 1e3))
    assert_allclose(there.predict(NEW) - 5, 1e3 * (here.predict(NEW) - 5), rtol=1e-9)


@pytest.mark.parametrize(("Head", "target"), HEADS)
def test_scale_of_sample_weights_says_nothing_and_none_are_ones(Head, target):
    expected = outputs(Head(0.1).fit(X, target, COUNTS), NEW)
    size = np.abs(expected).max()
    for by in (1e-6, 1e6):
        found = outputs(Head(0.1).fit(X, target, by * COUNTS), NEW)
        assert_allclose(found, expected, atol=1e-9 * size)
    plain = outputs(Head(0.1).fit(X, target), NEW)
    assert_array_equal(outputs(Head(0.1).fit(X, target, np.ones(N)), NEW), plain)
    assert np.abs(plain - expected).max() > 1e-3 * size


@pytest.mark.parametrize(("Head", "target"), HEADS)
@pytest.mark.parametrize("standardize", [True, False])
def test_weight_two_is_a_repeated_row_and_weight_zero_is_none(Head, target, standardize):
    counts = np.arange(N) % 3
    rows = np.repeat(np.arange(N), counts)
    weighted, repeated = (
        Head(0.1, standardize=standardize).fit(*arguments)
        for arguments in ((X, target, counts), (X[rows], target[rows]))
    )
    expected = outputs(repeated, NEW)
    assert_allclose(outputs(weighted, NEW), expected, atol=1e-8 * np.abs(expected).max())


# Units


def test_constant_column_gets_the_scale_one():
    rows = np.column_stack([X[:, 0], np.full(N, 2.0), np.zeros(N)])
    units = units_of(rows, y, np.full(N, 1 / N), standardize=True, fit_intercept=True)
    assert_allclose(units.center[1:], [2.0, 0.0], rtol=1e-14)
    assert_array_equal(units.scale[2], 1.0)
    head = RidgeHead().fit(rows[:, [0, 2]], y)
    assert_allclose(head.predict(rows[:, [0, 2]]), RidgeHead().fit(X[:, :1], y).predict(X[:, :1]))
    assert head.coef_[1] == 0


@pytest.mark.parametrize(("Head", "target"), HEADS)
def test_constant_column_that_is_no_binary_fraction_gets_no_coefficient(Head, target):
    """The mean of 0.1 so many times need not be 0.1."""
    for value in np.arange(1, 20) / 10:
        rows = np.column_stack([X, np.full(N, value)])
        coef = np.atleast_2d(Head(0.1).fit(rows, target, COUNTS).coef_)
        assert_allclose(coef[:, D], 0, atol=1e-10)


def test_columns_of_zeros_alone_are_a_model_of_the_mean():
    head = RidgeHead(standardize=False).fit(np.zeros((N, 2)), y, COUNTS)
    assert_allclose(head.predict(np.ones((1, 2))), COUNTS @ y / COUNTS.sum(), rtol=1e-12)


@pytest.mark.parametrize("value", [0.0, 2.0, 0.1])
def test_constant_numbers_are_predicted_as_they_are(value):
    head = RidgeHead().fit(X, np.full(N, value), COUNTS)
    assert_allclose(head.predict(NEW), value, rtol=1e-12)
    assert_allclose(head.coef_, 0, atol=1e-14)


def test_units_are_mean_and_deviation_of_rows_as_they_weigh():
    shares = COUNTS / COUNTS.sum()
    units = units_of(X, y, shares, standardize=True, fit_intercept=True)
    rows, numbers = units.rows(X), units.numbers(y)
    assert_array_equal(rows[:, -1], 1)
    assert_allclose(shares @ rows[:, :-1], 0, atol=1e-13)
    assert_allclose(shares @ rows[:, :-1] ** 2, 1, rtol=1e-13)
    assert_allclose([shares @ numbers[:, 0], shares @ numbers[:, 0] ** 2], [0, 1], atol=1e-13)


def test_rows_of_classes_have_mean_squared_length_one_beside_the_constant():
    shares = COUNTS / COUNTS.sum()
    for standardize in (True, False):
        units = units_of(X, None, shares, standardize, fit_intercept=True)
        rows = units.rows(X)
        assert_array_equal(rows[:, -1], 0.3)
        assert shares @ (rows[:, :-1] ** 2).sum(axis=1) == pytest.approx(1, rel=1e-12)


def test_head_of_a_model_fitted_elsewhere_undoes_its_units():
    units = Units(np.array([1.0, -20.0, 0.0]), np.array([2.0, 5.0, 0.1]), 0.3, 7.0, 4.0)
    theta = RNG.normal(size=(D + 1, 1))
    head = head_with(RidgeHead(), units, theta, X, None)
    rows = np.column_stack([(NEW - [1.0, -20.0, 0.0]) / [2.0, 5.0, 0.1], np.full(20, 0.3)])
    assert_allclose(head.predict(NEW), 7 + 4 * (rows @ theta)[:, 0], rtol=1e-12)
    plain = Units(units.center, units.scale, 0.0, 0.0, 1.0)
    theta, names = RNG.normal(size=(D, K)), np.array(["a", "b", "c"])
    head = head_with(SoftmaxHead(), plain, theta, X, names)
    assert_allclose(head.decision_function(NEW), rows[:, :-1] @ theta, rtol=1e-11)
    assert_array_equal(head.predict(NEW), names[(rows[:, :-1] @ theta).argmax(axis=1)])


# As estimators


def test_ridge_head_is_an_estimator():
    check_estimator(RidgeHead(), on_skip=None)


def test_softmax_head_is_an_estimator():
    check_estimator(SoftmaxHead(), on_skip=None)
