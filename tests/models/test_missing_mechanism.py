"""Missing models: log odds of complete rows."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skbilevel.models.missing_mechanism import SlopeAndThreshold, agnostic, nonlinear

SLOPE = torch.tensor([2.0, -0.5, 60.0], dtype=torch.float64)
THRESHOLD = torch.tensor([0.3, -1.0, 0.1], dtype=torch.float64)
ROWS = torch.as_tensor(np.random.default_rng(0).standard_normal((4, 5, 3)))


def generator():
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("model", [agnostic, nonlinear])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_models_of_all_features_start_undecided_and_can_learn(model, dtype):
    network = model(3, generator=generator(), dtype=dtype)
    odds = network(ROWS.to(dtype))
    assert odds.shape == ROWS.shape and odds.dtype == dtype
    assert not odds.any()
    odds.sum().backward()
    last = list(network.parameters())[-2]
    assert last.grad.abs().max() > 0
    with torch.no_grad():
        last.add_(torch.eye(*last.shape))
    assert not torch.allclose(network(ROWS.to(dtype))[0], network(ROWS.to(dtype))[1])


def test_known_sign_is_kept_whatever_is_learnt():
    signs = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    model = SlopeAndThreshold(-SLOPE, THRESHOLD, signs=signs)
    assert_allclose(model.slope().detach(), [2.0, -0.5, -60.0], rtol=1e-12)
    for value in (-40.0, 40.0):
        with torch.no_grad():
            model.raw_slope.fill_(value)
        assert model.slope()[0] > 0 > model.slope()[1]


def test_what_is_learnt_is_stored():
    learnt = SlopeAndThreshold(SLOPE, THRESHOLD, signs=SLOPE.sign())
    learnt.intercept().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in learnt.parameters())
    again = SlopeAndThreshold(0 * SLOPE, 0 * THRESHOLD)
    again.load_state_dict(learnt.state_dict())
    assert_allclose(again.slope().detach(), SLOPE, rtol=1e-12)
    assert_allclose(again.intercept().detach(), learnt.intercept().detach())
