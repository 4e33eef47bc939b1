"""Missing models: log odds of complete rows."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import expit, ndtr

from skbilevel.models.missing_mechanism import LINKS, SelfMaskingModel, agnostic, nonlinear
from skbilevel.objectives.importance_weighted import log_mask_given_rows
from skbilevel.objectives.masking_links import LogitLink, ProbitLink

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


@pytest.mark.parametrize("signs", [None, [1.0, -1.0, 1.0], [0.0, -1.0, 0.0]])
@pytest.mark.parametrize("link", LINKS)
def test_probability_is_the_link_of_slope_and_distance(signs, link):
    signs = None if signs is None else torch.tensor(signs, dtype=torch.float64)
    model = SelfMaskingModel(SLOPE, THRESHOLD, signs=signs, link=link)
    assert_allclose(model.slope().detach(), SLOPE, rtol=1e-12)
    ratio = (SLOPE * (ROWS - THRESHOLD)).numpy()
    cdf = expit if link == "logit" else ndtr
    inside = np.abs(ratio) < 7
    assert_allclose(model(ROWS).detach().sigmoid()[inside], cdf(ratio)[inside], rtol=1e-9)
    assert model(ROWS).isfinite().all()


@pytest.mark.parametrize(("link", "kind"), [("logit", LogitLink), ("probit", ProbitLink)])
def test_model_is_the_link_of_the_collapsed_form(link, kind):
    model = SelfMaskingModel(SLOPE, THRESHOLD, link=link)
    noise = (torch.ones(3).double(),) if link == "probit" else ()
    closed = kind(model.slope(), model.intercept(), *noise)
    mask = torch.tensor([True, False, True])
    theirs = torch.where(mask, closed.log_observed(ROWS), closed.log_missing(ROWS)).sum(-1)
    ours = log_mask_given_rows(model(ROWS), mask)
    assert_allclose(ours.detach(), theirs.detach(), rtol=1e-9)


def test_known_sign_is_kept_whatever_is_learnt():
    signs = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    model = SelfMaskingModel(-SLOPE, THRESHOLD, signs=signs)
    assert_allclose(model.slope().detach(), [2.0, -0.5, -60.0], rtol=1e-12)
    for value in (-40.0, 40.0):
        with torch.no_grad():
            model.raw_slope.fill_(value)
        assert model.slope()[0] > 0 > model.slope()[1]


def test_frozen_model_has_nothing_to_learn_and_is_stored():
    frozen = SelfMaskingModel(SLOPE, THRESHOLD, learn=False)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    learnt = SelfMaskingModel(SLOPE, THRESHOLD, signs=SLOPE.sign())
    learnt(ROWS).sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in learnt.parameters())
    again = SelfMaskingModel(0 * SLOPE, 0 * THRESHOLD)
    again.load_state_dict(learnt.state_dict())
    assert_allclose(again(ROWS).detach(), learnt(ROWS).detach())
