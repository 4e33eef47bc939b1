"""Blocks, jobs, memory maps, batches: the same fit, however its rows come."""

import os
import subprocess
import sys
import warnings

import joblib
import numpy as np
import pytest
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal

import skbilevel.numerics.row_groups as row_groups
from skbilevel import GaussianImputer
from skbilevel.datasets import make_low_rank
from skbilevel.metrics import imputation_rmse
from tests.incomplete_data import FAMILIES, incomplete
from tests.reference.gaussian import naive_expectation
from tests.resident_memory import peaks


def test_jobs_and_blocks_do_not_change_a_bit(monkeypatch):
    _, X = incomplete(n_rows=1000)
    monkeypatch.setattr(row_groups, "BLOCK_ROWS", 150)
    fits = [GaussianImputer(n_jobs=n_jobs).fit(X) for n_jobs in (None, 1, 2)]
    assert len(row_groups.row_blocks(X)) == 7
    for other in fits[1:]:
        assert_array_equal(fits[0].covariance_, other.covariance_)
        assert fits[0].history_ == other.history_


def test_blocks_agree_with_one_block(monkeypatch):
    _, X = incomplete(n_rows=1000)
    whole = GaussianImputer().fit(X)
    monkeypatch.setattr(row_groups, "BLOCK_ROWS", 150)
    blocks = GaussianImputer().fit(X)
    assert_allclose(whole.covariance_, blocks.covariance_, rtol=1e-10)
    assert_allclose(whole.transform(X), blocks.transform(X), rtol=1e-9)


def test_memory_map_is_fitted_and_imputed_in_place(tmp_path):
    _, X = incomplete(n_rows=2000)
    np.save(tmp_path / "rows.npy", X)
    rows = np.load(tmp_path / "rows.npy", mmap_mode="r+")
    imputer = GaussianImputer().fit(rows)
    expected = GaussianImputer().fit_transform(X)
    returned = imputer.transform(rows, out=rows)
    assert returned is rows
    assert_array_equal(np.asarray(rows), expected)


def test_output_may_be_the_input_where_an_indicator_takes_the_place_of_a_dropped_column():
    _, X = incomplete(n_columns=3)
    X[:, 0] = np.nan
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dropping features")
        imputer = GaussianImputer(add_indicator=True).fit(X)
    X[:, 2] = np.nan_to_num(X[:, 2])
    imputer.indicator_.features_ = np.array([1])
    expected = imputer.transform(X)
    assert_array_equal(imputer.transform(X, out=X), expected)


@pytest.mark.parametrize("n_threads", [2])
def test_forked_worker_does_not_wait_for_threads_of_its_parent(n_threads):
    """A thread pool of torch that was started before a fork is dead in the child."""
    code = (
        f"import torch; torch.set_num_threads({n_threads})\n"
        "import multiprocessing, numpy as np\n"
        "from skbilevel import GaussianImputer\n"
        "X = np.random.default_rng(0).normal(size=(300, 60)); X[::3, 0] = np.nan\n"
        "imputer = GaussianImputer().fit(X); imputer.transform(X); imputer.sample(X)\n"
        "with multiprocessing.get_context('fork').Pool(1) as pool:\n"
        "    assert np.isfinite(pool.map(imputer.transform, [X])[0]).all()\n"
    )
    environment = {name: v for name, v in os.environ.items() if not name.endswith("_THREADS")}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


PEAK = """
import numpy as np
from skbilevel import GaussianImputer
from skbilevel.datasets import make_low_rank

data = make_low_rank(300, 20, random_state=1)
GaussianImputer().fit_transform(np.where(data.mask, data.X, np.nan))
X = np.random.default_rng(0).standard_normal((1_000_000, 20))
X[:, 1:] += X[:, :1]
for start in range(0, len(X), 50_000):
    block = X[start : start + 50_000]
    block[np.random.default_rng(start).random(block.shape) < 0.3] = np.nan
imputer = GaussianImputer(max_iter=2, tol=1e9)
steps = (lambda: imputer.fit(X), lambda: imputer.transform(X, out=X))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_million_rows_need_less_than_50_mb_beside_them():
    """Peak resident memory, which counts torch's too; the rows have 160 MB."""
    of_fit, of_transform = peaks(PEAK)
    assert 0 < of_fit < 50
    assert 0 < of_transform < 50


@pytest.mark.parametrize(
    "wrong",
    [
        np.empty((3, 6)),
        np.empty((300, 6), dtype=int),
        np.empty((300, 6), dtype=np.float32),
        np.empty((300, 6)).tolist(),
    ],
    ids=["shape", "int", "float32", "list"],
)
def test_wrong_out_is_refused(wrong):
    _, X = incomplete()
    with pytest.raises(ValueError, match="out must"):
        GaussianImputer().fit(X).transform(X, out=wrong)


@pytest.mark.parametrize("settings", FAMILIES, ids=str)
def test_partial_fit_on_a_stream_approaches_fit(settings):
    data = make_low_rank(6000, 8, random_state=0)
    X = np.where(data.mask, data.X, np.nan)
    stream = GaussianImputer(shrinkage=1e-3, **settings)
    for batch in np.array_split(X, 12):
        stream.partial_fit(batch)
    errors = [
        imputation_rmse(data.X, imputer.transform(X), data.mask)
        for imputer in (stream, GaussianImputer(**settings).fit(X))
    ]
    assert errors[0] <= 1.01 * errors[1]
    assert stream.n_samples_seen_ == 6000


def test_partial_fit_is_stepwise_em():
    """Each batch's statistics are mixed into the past with the weight (1 + n / b)^-0.6."""
    _, X = incomplete(n_rows=150, n_columns=3)
    X = X[~np.isnan(X).all(axis=1)][:120]
    first, *batches = X[:60], X[60:80], X[80:120]
    imputer = GaussianImputer(shrinkage=1e-9, tol=1e-12).partial_fit(first)

    def per_row(batch):
        e_step = naive_expectation(batch, imputer.location_, imputer.covariance_)
        second = e_step.completed.T @ e_step.completed + e_step.covariances.sum(axis=0)
        return np.vstack([e_step.completed.sum(axis=0), second]) / len(batch)

    past, n_seen = per_row(first), 60
    for batch in batches:
        weight = (1 + n_seen / len(batch)) ** -0.6
        past, n_seen = (1 - weight) * past + weight * per_row(batch), n_seen + len(batch)
        imputer.partial_fit(batch)
        mean, second = past[0], past[1:]
        assert_allclose(imputer.location_, mean, rtol=1e-5)
        assert_allclose(imputer.covariance_, second - np.outer(mean, mean), rtol=1e-4)
        assert imputer.n_samples_seen_ == n_seen


def test_partial_fit_refuses_a_first_batch_with_an_empty_column():
    _, X = incomplete()
    X[:, 2] = np.nan
    imputer = GaussianImputer()
    with (
        pytest.warns(UserWarning, match="Dropping features"),
        pytest.raises(ValueError, match=r"features \['x2'\] have none"),
    ):
        imputer.partial_fit(X)
    assert not hasattr(imputer, "location_")


@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_backends_of_joblib_do_not_change_a_bit(monkeypatch, backend):
    _, X = incomplete(n_rows=400)
    monkeypatch.setattr(row_groups, "BLOCK_ROWS", 150)
    serial = GaussianImputer().fit(X)
    with parallel_config(backend=backend, n_jobs=2):
        parallel = GaussianImputer().fit(X)
    assert_array_equal(serial.covariance_, parallel.covariance_)


def test_imputer_works_from_a_read_only_memory_map(tmp_path):
    """joblib hands estimators to workers with their arrays mapped read-only."""
    _, X = incomplete()
    imputer = GaussianImputer(random_state=0).fit(X)
    joblib.dump(imputer, tmp_path / "imputer.joblib")
    mapped = joblib.load(tmp_path / "imputer.joblib", mmap_mode="r")
    assert not mapped.covariance_.flags.writeable
    assert_array_equal(mapped.transform(X), imputer.transform(X))
    assert_array_equal(mapped.sample(X), imputer.sample(X))
    assert_array_equal(mapped.partial_fit(X).location_, imputer.partial_fit(X).location_)


@pytest.mark.parametrize("settings", FAMILIES, ids=str)
def test_number_that_marks_missing_cells_means_the_same_in_every_method(settings):
    _, X = incomplete()
    batch = X[:50]
    plain = GaussianImputer(random_state=0, **settings).fit(X)
    marked = GaussianImputer(missing_values=-1.0, random_state=0, **settings).fit(
        np.nan_to_num(X, nan=-1.0)
    )
    coded = np.nan_to_num(batch, nan=-1.0)
    assert_array_equal(marked.transform(coded), plain.transform(batch))
    assert_array_equal(marked.score_samples(coded), plain.score_samples(batch))
    assert_array_equal(marked.sample(coded), plain.sample(batch))
    plain.partial_fit(batch)
    marked.partial_fit(coded)
    assert_array_equal(marked.covariance_, plain.covariance_)


@pytest.mark.parametrize("keep", [False, True])
def test_empty_feature_says_nothing_in_any_method(keep):
    _, X = incomplete()
    with_empty = np.insert(X, 2, np.nan, axis=1)
    plain = GaussianImputer(random_state=0).fit(X)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dropping features")
        imputer = GaussianImputer(random_state=0, keep_empty_features=keep).fit(with_empty)
    # At a later call the feature may have values.
    with_empty[:100, 2] = 7.0
    kept = [0, 1, 3, 4, 5, 6] if keep else slice(None)
    assert_allclose(imputer.score_samples(with_empty), plain.score_samples(X), rtol=1e-9)
    assert_allclose(imputer.transform(with_empty)[:, kept], plain.transform(X), rtol=1e-9)
    drawn = imputer.sample(with_empty)
    assert np.isfinite(drawn).all()
    if keep:
        assert_array_equal(drawn[0, :, 2], np.nan_to_num(with_empty[:, 2]))
    else:
        assert drawn.shape == (1, 300, 6)
    imputer.partial_fit(with_empty[:50])
    plain.partial_fit(X[:50])
    assert_allclose(imputer.covariance_, plain.covariance_, rtol=1e-9)


def test_draws_of_rows_with_an_empty_feature_follow_the_same_distribution():
    """The key of a row holds all its features, so that only the distribution can agree."""
    _, X = incomplete()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Dropping features")
        imputer = GaussianImputer(random_state=0).fit(np.insert(X, 0, np.nan, axis=1))
    plain = GaussianImputer(random_state=0).fit(X)
    row = X[np.flatnonzero(np.isnan(X[:, 0]))[:1]]
    ours = imputer.sample(np.insert(row, 0, np.nan, axis=1), n_draws=3000)[:, 0]
    theirs = plain.sample(row, n_draws=3000)[:, 0]
    missing = np.isnan(row[0])
    error = theirs[:, missing].std(axis=0) * np.sqrt(2 / 3000)
    difference = ours[:, missing].mean(axis=0) - theirs[:, missing].mean(axis=0)
    assert (np.abs(difference) < 4 * error).all()
