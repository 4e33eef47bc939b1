"""Expectation propagation: factors of one variable each, approximated by normal sites.

The target is a normal distribution times factors f_j(x_j). Each factor is stood for by a site
exp(-tau_j x_j^2 / 2 + nu_j x_j). A sweep takes every site out of the normal marginal of its
variable (the cavity), multiplies by the true factor, and chooses the site that gives the product
its mean and variance. All sites are updated together and damped.

Reference: Minka (2001), Expectation propagation for approximate Bayesian inference, UAI.
"""

from collections.abc import Callable
from typing import Protocol

from torch import Tensor

from skbilevel.numerics.sites import Normal, Sites

# A cavity may lose no more than this share of the marginal precision to its site.
_LEAST_SHARE = 1e-6


class Moments(Protocol):
    """A normal variable times its factor: log of the integral, mean and variance."""

    @property
    def log_probability(self) -> Tensor:
        """log of the integral."""

    @property
    def mean(self) -> Tensor:
        """Mean."""

    @property
    def variance(self) -> Tensor:
        """Variance."""


Tilt = Callable[[Tensor, Tensor], Moments]


def cavity(marginal: Normal, sites: Sites) -> Normal:
    """The marginals without their sites."""
    precision = 1 / marginal.variance
    rest = (precision - sites.precision).clamp(min=_LEAST_SHARE * precision)
    return Normal((marginal.mean * precision - sites.shift) / rest, 1 / rest)


def sweep(marginal: Normal, sites: Sites, tilt: Tilt, damping: float = 0.8) -> Sites:
    """Sites after one parallel update.

    Parameters
    ----------
    marginal : Normal
        Marginals of the approximation.
    sites : Sites
        Its sites.
    tilt : callable
        ``tilt(mean, variance)`` gives the moments of a normal variable times its factor.
    damping : float, default=0.8
        Weight of the new sites against the old ones; 1 is undamped.
    """
    without = cavity(marginal, sites)
    moments = tilt(*without)
    # Log-concave factors narrow: a negative precision would be rounding.
    precision = (1 / moments.variance - 1 / without.variance).clamp(min=0.0)
    shift = moments.mean / moments.variance - without.mean / without.variance
    return Sites(
        damping * precision + (1 - damping) * sites.precision,
        damping * shift + (1 - damping) * sites.shift,
    )


def log_scales(marginal: Normal, sites: Sites, tilt: Tilt) -> Tensor:
    """log of what each site has to be multiplied by to integrate like its factor.

    With the cavity N(m, v) it is log of the integral of N(m, v) f less that of N(m, v) times
    exp(-tau x^2 / 2 + nu x), which is::

        -1/2 log(1 + tau v) + (nu m + nu^2 v / 2 - tau m^2 / 2) / (1 + tau v)
    """
    mean, variance = without = cavity(marginal, sites)
    spread = 1 + sites.precision * variance
    exponent = sites.shift * mean + 0.5 * sites.shift.square() * variance
    exponent = (exponent - 0.5 * sites.precision * mean.square()) / spread
    return tilt(*without).log_probability - (exponent - 0.5 * spread.log())
