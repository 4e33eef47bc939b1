"""How a network is trained: what decays, what a batch is, which rows and how many steps."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

import skbilevel.estimators.latent_fit as latent_fit
import skbilevel.estimators.linear_fit as linear_fit
import skbilevel.numerics.row_groups as row_groups
from skbilevel import MIWAEImputer, NotMIWAEImputer
from skbilevel.estimators.column_units import ColumnUnits
from skbilevel.estimators.latent_build import Architecture, random_autoencoder
from skbilevel.estimators.latent_fit import parameter_groups, train_model, trained_rows
from skbilevel.estimators.latent_model import LatentModel
from skbilevel.estimators.latent_plan import (
    TrainingSettings,
    em_iterations,
    is_warm,
    latent_size,
    n_epochs,
)
from skbilevel.estimators.linear_fit import MOST_ROWS, Table, thinned
from skbilevel.estimators.mask_terms import Ignored, Sampled
from skbilevel.estimators.mechanism_em import prior_rows
from skbilevel.models.missing_mechanism import nonlinear

D = 3
SETTINGS = TrainingSettings(
    "iwae", n_importance=2, batch_size=8, n_epochs=1, learning_rate=0.01, weight_decay=0.3
)


def rows(n_rows=30, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.multivariate_normal(np.zeros(D), 0.3 * np.eye(D) + 0.7, n_rows)
    X[rng.random(X.shape) < 0.3] = np.nan
    return X[~np.isnan(X).all(axis=1)]


def model(activation="silu", fill=np.nan_to_num):
    units = ColumnUnits(
        ("gaussian",) * D,
        np.zeros(D),
        np.ones(D),
        tuple(np.zeros(0) for _ in range(D)),
        np.full(D, np.nan),
    )
    architecture = Architecture("residual", 2, (8,), activation, 0.1)
    pair = random_autoencoder(units, architecture, torch.Generator().manual_seed(0))
    return LatentModel(*pair, Ignored(), units, fill, 0, 32)


# What decays


def test_only_corrections_decay():
    """With a loss that is flat they shrink, and all else stays: a linear model is no penalty."""
    own, missing = model(), nonlinear(D, generator=torch.Generator().manual_seed(1))
    groups = parameter_groups(own, missing, 0.3)
    decay = {id(tensor): group.weight_decay for group in groups for tensor in group.tensors}
    for part in (own.encoder, own.decoder):
        for name, tensor in part.named_parameters():
            expected = 0.3 if name.split(".")[0] == "correction" else 0.0
            assert decay.pop(id(tensor)) == expected
    assert [decay.pop(id(tensor)) for tensor in missing.parameters()] == [0.0] * 4
    assert decay == {}


def test_weight_decay_of_the_settings_reaches_the_optimiser():
    after = {}
    for decay in (0.0, 50.0):
        own = model()
        with torch.no_grad():
            for tensor in own.decoder.correction.parameters():
                tensor.fill_(0.2)
            settings = TrainingSettings("iwae", 2, 8, 1, 1e-3, decay)
        train_model(own, None, rows(), settings, torch.Generator().manual_seed(0))
        after[decay] = torch.cat(
            [part.detach().flatten() for part in own.decoder.correction.parameters()]
        )
    # The rates of the steps sum to about 2e-3.
    assert 0.8 < after[50.0].mean() / after[0.0].mean() < 0.97


def test_frozen_parameters_are_not_trained():
    own = model()
    own.decoder.log_scale.requires_grad_(False)
    tensors = {id(t) for group in parameter_groups(own, None, 0.1) for t in group.tensors}
    assert id(own.decoder.log_scale) not in tensors
    assert id(own.decoder.skip.weight) in tensors


# Batches


@pytest.mark.parametrize("kept_bytes", [2**24, 0])
def test_every_row_is_seen_once_an_epoch_and_in_another_order_in_the_next(monkeypatch, kept_bytes):
    """With blocks that are kept, and prepared anew; several of them."""
    monkeypatch.setattr(row_groups, "BLOCK_ROWS", 7)
    monkeypatch.setattr(latent_fit, "_KEPT_BYTES", kept_bytes)
    X = rows()
    source = latent_fit._TrainingRows(model(), X, 4, torch.Generator().manual_seed(0))
    # Blocks of 7 rows are batches of 4 and 3.
    assert (
        source.n_batches
        == len(list(source.epoch()))
        == sum(-(-min(7, len(X) - start) // 4) for start in range(0, len(X), 7))
    )
    epochs = [torch.cat([batch.values for batch in source.epoch()]).numpy() for _ in range(2)]
    filled = np.nan_to_num(X).astype(np.float32)
    for seen in epochs:
        assert_allclose(seen[np.lexsort(seen.T)], filled[np.lexsort(filled.T)], rtol=1e-6)
    assert not np.array_equal(*epochs)
    # Neither are blocks in order, nor the rows of a block.
    first = [int(np.flatnonzero((filled == row).all(1))[0]) for row in epochs[0]]
    assert first != sorted(first)
    blocks = [position // 7 for position in first]
    assert blocks != sorted(blocks)
    assert any(np.diff(first)[np.diff(blocks) == 0] < 0)


def test_mask_of_a_batch_belongs_to_its_rows(monkeypatch):
    monkeypatch.setattr(row_groups, "BLOCK_ROWS", 7)
    X = rows()
    source = latent_fit._TrainingRows(model(), X, 4, torch.Generator().manual_seed(0))
    for batch in source.epoch():
        assert_array_equal(batch.values.numpy() == 0, ~batch.mask.numpy())


def test_far_values_are_pulled_in_where_a_model_is_trained_and_not_in_its_score():
    """Observed ones to 5 standard deviations and fillings to 8."""
    X = rows()
    X[0], X[1] = [40.0, -60.0, 1.0], [np.nan, np.nan, -1.0]
    far = model(fill=lambda rows: np.where(np.isnan(rows), -11.0, rows))
    source = latent_fit._TrainingRows(far, X, len(X), torch.Generator().manual_seed(0))
    (batch,) = source.epoch()
    observed, filled = batch.values[batch.mask], batch.values[~batch.mask]
    assert observed.max() == 5.0
    assert observed.min() == -5.0
    assert_allclose(filled, -8.0)
    pair = np.array([[40.0, -60.0, 1.0], [5.0, -5.0, 1.0]])
    score, nearer = far.log_densities(pair)
    assert score < nearer - 100
    # The encoder is told of no value farther than that either.
    means = far.proposal(far.batch(pair)).mean.detach()
    assert_allclose(means[0], means[1], rtol=1e-6)


def test_rows_without_an_observed_cell_are_trained_on_only_if_the_mask_says_something():
    X = np.vstack([rows(), np.full((2, D), np.nan)])
    assert_array_equal(trained_rows(X, Ignored()), X[:-2])
    term = Sampled(torch.zeros_like)
    assert trained_rows(X, term) is X
    assert trained_rows(X[:-2], Ignored()).base is X


# What the parameters ask for


@pytest.mark.parametrize("objective", ["iwae", "elbo"])
def test_objective_of_the_settings_is_the_one_that_is_trained(objective):
    """The mean loss of one epoch whose steps are tiny is that of the model itself."""
    X = rows(64)
    # A bent encoder, whose bound is not tight: the two differ.
    own = model()
    settings = TrainingSettings(objective, 30, 64, 1, 1e-12, 0.0)
    result = train_model(own, None, X, settings, torch.Generator().manual_seed(0))
    noise = torch.randn(2000, len(X), 2, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        expected = {
            "elbo": own.loss(own.batch(X), noise, None, "elbo").item(),
            "iwae": np.mean(
                [
                    own.loss(own.batch(X), part, None, "iwae").item()
                    for part in noise.split(30)[:60]
                ]
            ),
        }
    assert expected["elbo"] - expected["iwae"] > 0.3
    assert result.history["loss"][0] == pytest.approx(expected[objective], abs=0.15)


def test_parameters_of_the_imputer_reach_the_network():
    X = rows(60)
    base = {"max_iter": 2, "n_importance_impute": 32, "random_state": 0}
    filled = {
        name: MIWAEImputer(**base, **settings).fit_transform(X)
        for name, settings in {
            "default": {},
            "objective": {"objective": "elbo"},
            "activation": {"activation": "tanh"},
            "hidden": {"hidden_layer_sizes": (8, 8)},
            "n_importance": {"n_importance": 1},
            "batch_size": {"batch_size": 7},
            "learning_rate": {"learning_rate": 0.02},
            "weight_decay": {"weight_decay": 5.0},
            "min_scale": {"min_scale": 0.8},
            "n_latent": {"n_latent": 1},
        }.items()
    }
    for name, values in filled.items():
        assert name == "default" or np.abs(values - filled["default"]).max() > 1e-5, name


def test_activation_is_the_one_of_the_layers():
    for name, layer in (("tanh", torch.nn.Tanh), ("silu", torch.nn.SiLU)):
        own = model(activation=name)
        for part in (own.encoder.correction, own.decoder.correction):
            assert any(isinstance(module, layer) for module in part.modules())


@pytest.mark.parametrize(
    ("n_rows", "batch_size", "expected"),
    [(64, 64, 1000), (65, 64, 500), (640, 64, 100), (100_000, 64, 1), (10, 64, 1000)],
)
def test_automatic_epochs_take_about_a_thousand_steps(n_rows, batch_size, expected):
    assert n_epochs("auto", n_rows, batch_size) == expected
    assert n_epochs(7, n_rows, batch_size) == 7


def test_automatic_iterations_of_em():
    assert em_iterations("auto", True) == em_iterations("auto", False) == 80
    # Of a network max_iter is about its epochs.
    assert em_iterations(3, True) == 3
    assert em_iterations(3, False) == 80


@pytest.mark.parametrize(
    ("n_columns", "expected"),
    [(1, 1), (2, 2), (3, 2), (8, 7), (11, 10), (20, 10), (30, 15), (300, 50)],
)
def test_automatic_number_of_codes(n_columns, expected):
    assert latent_size(None, n_columns) == expected
    assert latent_size(4, n_columns) == 4


def test_wide_tables_start_without_a_normal():
    assert is_warm("residual", ["gaussian"] * 200)
    assert not is_warm("residual", ["gaussian"] * 201)
    assert not is_warm("conv", ["gaussian"] * 4)
    assert not is_warm("mlp", ["gaussian", "bernoulli"])
    assert is_warm("mlp", ["gaussian", "student_t"])


@pytest.mark.parametrize("n_columns", [20, 206])
def test_linear_decoder_takes_tables_with_as_many_columns_as_rows(n_columns):
    """Without a prior of the covariance the other columns tell all, and no cell leaves its limit:
    .90 and .84 against .68 of the reflection."""
    errors = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        X = rng.normal(size=(40, 1)) + 0.7 * rng.normal(size=(40, n_columns))
        hidden = np.r_[0.5, 0.2, np.full(n_columns - 2, np.inf)] < X
        incomplete = np.where(hidden, np.nan, X)
        imputer = NotMIWAEImputer(
            mechanism="censored", signs={"x0": 1, "x1": 1}, decoder="linear", random_state=0
        )
        reflection = 2 * np.nanmax(incomplete, axis=0) - np.nanmean(incomplete, axis=0)
        filled = imputer.fit_transform(incomplete), np.where(hidden, reflection, X)
        errors.append([np.sqrt(np.mean((values - X)[hidden] ** 2)) for values in filled])
    ours, theirs = np.mean(errors, axis=0)
    assert ours < 0.92 * theirs


def test_weight_of_the_prior_grows_with_columns_and_falls_with_cells():
    assert prior_rows(np.full(6, 30)) == pytest.approx(36 / 30)
    assert prior_rows(np.array([20, 20, 20, 30, 30, 30])) == pytest.approx(36 / 25)
    # Ten observed cells a column for each column are enough.
    assert prior_rows(np.full(6, 60)) == 0
    assert prior_rows(np.full(6, 59)) > 0


# Large tables


def test_large_table_is_thinned_to_rows_that_hold_its_ends():
    rng = np.random.default_rng(0)
    n_rows = MOST_ROWS + 5000
    X = rng.normal(size=(n_rows, 2))
    # The end of a column is what a limit is told from; drawn at random it would be lost.
    ends = [17, n_rows - 1, 9000, 4]
    X[ends, [0, 0, 1, 1]] = [5.5, -5.5, 6.5, -6.5]
    table = Table(X, np.zeros(2), np.ones(2))
    few = thinned(table, np.random.RandomState(0))
    assert MOST_ROWS <= len(few.X) <= MOST_ROWS + 4
    assert_array_equal(few.X.max(axis=0), [5.5, 6.5])
    assert_array_equal(few.X.min(axis=0), [-5.5, -6.5])
    assert thinned(Table(X[:MOST_ROWS], *table[1:]), np.random.RandomState(0)).X.base is X


def test_fit_to_a_large_table_uses_as_many_rows_as_it_keeps_sites_for(monkeypatch):
    """And imputes all of them."""
    monkeypatch.setattr(linear_fit, "MOST_ROWS", 60)
    seen = []
    fit = linear_fit.fit_self_masked

    def counting(rows, *arguments, **settings):
        seen.append(rows.shape[0])
        return fit(rows, *arguments, **settings)

    monkeypatch.setattr(linear_fit, "fit_self_masked", counting)
    rng = np.random.default_rng(1)
    X = rng.multivariate_normal(np.zeros(2), [[1, 0.8], [0.8, 1]], 300)
    X[X[:, 0] > 0.3, 0] = np.nan
    imputer = NotMIWAEImputer(
        mechanism="censored", signs=[1, 0], decoder="linear", random_state=0
    ).fit(X)
    # Ends of columns, and rows that lack one, beside those drawn.
    assert 60 <= seen[0] <= 74
    assert imputer.thresholds_[0] == pytest.approx(np.nanmax(X[:, 0]), rel=1e-12)
    assert np.isfinite(imputer.transform(X)).all()
