"""Links of what is learnt of self-masking."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy.special import expit, ndtr

from skbilevel.estimators.latent_missing import LINKS
from skbilevel.models.missing_mechanism import SlopeAndThreshold

SLOPE = torch.tensor([2.0, -0.5, 60.0], dtype=torch.float64)
THRESHOLD = torch.tensor([0.3, -1.0, 0.1], dtype=torch.float64)
ROWS = torch.as_tensor(np.random.default_rng(0).standard_normal((4, 5, 3)))


@pytest.mark.parametrize("signs", [None, [1.0, -1.0, 1.0], [0.0, -1.0, 0.0]])
@pytest.mark.parametrize("link", ["logit", "probit"])
def test_probability_is_the_link_of_slope_and_distance(signs, link):
    signs = None if signs is None else torch.tensor(signs, dtype=torch.float64)
    model = SlopeAndThreshold(SLOPE, THRESHOLD, signs=signs)
    assert_allclose(model.slope().detach(), SLOPE, rtol=1e-12)
    ratio = (SLOPE * (ROWS - THRESHOLD)).numpy()
    log_missing = LINKS[link](model, torch.ones(3)).log_missing(ROWS).detach()
    assert_allclose(log_missing.exp(), (expit if link == "logit" else ndtr)(ratio), rtol=1e-9)
