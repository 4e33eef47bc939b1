"""
What is another policy worth?
=============================

A log of states, actions, rewards and next states was made by one policy. What would another one
have earned? `OrthogonalFQE` fits action values that are linear in features of state and action,
and gives the value of the other policy with an interval. It is compared with least-squares
temporal differences (LSTDQ), with the least squared Bellman residual, whose square counts the
noise of the next state (double sampling), and with a plug-in score.

What not to expect: a gain over LSTDQ. Where action values are linear in the features it is a
strong peer of a few lines, with a standard error as simple, and does as well or a little better.
Without the right features both tend to numbers which are not the value, each to one of its own,
and intervals tell how far that number may be and not the value; which of them is the nearer is
luck. The design is our own, with two actions and two numbers for the state.
"""

import os
import warnings

import matplotlib.pyplot as plt
import numpy as np
from scipy.special import expit

from skbilevel import NystroemRidge, OrthogonalFQE

# Estimators warn where the correction for shared noise is large: with few rows it often is.
warnings.filterwarnings("ignore", message="The correction for what nuisances share")

# %%
# The log was made by a policy that takes the second action with a probability that depends on the
# state; that of the other policy is .7. Rewards are such that its action values are linear in six
# features, the last of which is a bump around 0.

GAMMA, SHARE = 0.9, 0.7
OMEGA = np.array([1.0, 0.8, -0.5, 0.6, -0.7, 2.0])
TRUTH = 3.02


def features(s, a, squared=None):
    squared = np.square(s).sum(axis=1) if squared is None else squared
    return np.column_stack([np.ones(len(s)), s, a, a * s[:, 0], np.exp(-squared / 2)])


def under_policy(s, squared=None):
    return features(s, np.full(len(s), SHARE), squared)


def draw(n, rng):
    s = rng.standard_normal((n, 2))
    a = (rng.random(n) < expit(s[:, 0])).astype(float)
    turn = 0.5 * (2 * a - 1)
    first = 0.7 * s[:, 0] + turn * np.sin(2 * s[:, 1])
    mean = np.column_stack([first, 0.6 * s[:, 1] + turn * np.cos(2 * s[:, 0])])
    following = mean + 0.5 * rng.standard_normal((n, 2))
    told = under_policy(mean)
    told[:, -1] = np.exp(-np.square(mean).sum(axis=1) / 2.5) / 1.25
    kappa = features(s, a) - GAMMA * told  # E[D | state, action]
    rewards = kappa @ OMEGA + 0.5 * rng.standard_normal(n)
    return (s, a, rewards, following), kappa


# %%
# The peers solve ``mean[instrument (D'omega - R)] = 0`` with features as instruments (LSTDQ) or
# the slopes D of the Bellman residual themselves, which is the least squared residual. The
# variance of a value is that of omega, and that of the sample of first states.


def by_instruments(instruments, D, R, start):
    coef = np.linalg.solve(instruments.T @ D, instruments.T @ R)
    scores = instruments * (R - D @ coef)[:, None]
    along = start.mean(axis=0) @ np.linalg.inv(instruments.T @ D)
    variance = np.square(scores @ along).sum() + (start @ coef).var(ddof=1) / len(start)
    return start.mean(axis=0) @ coef, np.sqrt(variance)


def orthogonal(log, first_states, used, score="orthogonal"):
    model = OrthogonalFQE(
        [1 - SHARE, SHARE],
        GAMMA,
        lambda s, a: features(s, a)[:, used],
        NystroemRidge(n_centers=100, bandwidth=1.0),
        score=score,
        random_state=0,
    )
    return model.fit(*log, initial_states=first_states)


def values(log, first_states, used):
    s, a, R, following = log
    psi, start = features(s, a)[:, used], under_policy(first_states)[:, used]
    D = psi - GAMMA * under_policy(following)[:, used]
    models = [orthogonal(log, first_states, used, each) for each in ("orthogonal", "plug_in")]
    found = [(model.value_, model.value_stderr_) for model in models]
    found += [by_instruments(psi, D, R, start), by_instruments(D, D, R, start)]
    return dict(zip(NAMES, found, strict=True))


NAMES = ("OrthogonalFQE", "plug-in score", "LSTDQ", "squared Bellman residual")

# %%
# What each way tends to. With all the features only the squared residual is off.

quick = bool(os.environ.get("SKBILEVEL_QUICK"))
FEATURES = {"all features": np.arange(6), "without the bump": np.arange(5)}


def limits(used, n=100_000 if quick else 400_000):
    rng = np.random.default_rng(0)
    (s, a, R, following), kappa = draw(n, rng)
    start = under_policy(0.5 * rng.standard_normal((n, 2)))[:, used]
    psi, mu = features(s, a)[:, used], kappa @ OMEGA
    D = psi - GAMMA * under_policy(following)[:, used]
    # D is linear in psi_pi of the next state, whose mean is known, feature by feature.
    kappa = kappa[:, used]
    found = [by_instruments(kappa, kappa, mu, start)[0]] * 2
    found += [by_instruments(psi, kappa, mu, start)[0], by_instruments(D, D, R, start)[0]]
    return dict(zip(NAMES, found, strict=True))


# %%
# Repeated draws: mean and error of the value, and the shares of intervals that hold it, and that
# hold the limit. With all features the plug-in score errs as little as the orthogonal one, and its
# standard error is several times too small. Without the bump nothing comes near the value, and no
# table of coefficients would show it.

n_draws, SIZES = (12, (500,)) if quick else (60, (500, 2000))
found = {}
for kind, used in FEATURES.items():
    limit = limits(used)
    for n in SIZES:
        draws = {name: [] for name in NAMES}
        for seed in range(n_draws):
            rng = np.random.default_rng(1000 * n + seed)
            log, _ = draw(n, rng)
            each = values(log, 0.5 * rng.standard_normal((1000, 2)), used)
            for name in NAMES:
                draws[name].append(each[name])
        print(f"{kind + f', n = {n}':28s} limit    mean    RMSE  mean stderr  covers  its limit")
        for name in NAMES:
            estimate, stderr = np.array(draws[name]).T
            found[kind, n, name] = estimate
            rmse = np.sqrt(np.square(estimate - TRUTH).mean())
            shares = [
                (np.abs(estimate - at) <= 1.96 * stderr).mean() for at in (TRUTH, limit[name])
            ]
            print(f"{name:26s}{limit[name]:8.2f}{estimate.mean():8.2f}{rmse:8.3f}", end="")
            print(f"{stderr.mean():13.3f}{shares[0]:8.2f}{shares[1]:11.2f}")

# %%
# One fit. Two features are not among those that had to be learnt: the constant, and the share of
# the second action, which is .7 in whatever state comes next.

log, _ = draw(SIZES[-1], np.random.default_rng(0))
first_states = 0.5 * np.random.default_rng(1).standard_normal((1000, 2))
print(orthogonal(log, first_states, FEATURES["all features"]).summary())

# %%
# Estimates by draw; the line is the value.

figure, axes = plt.subplots(1, 2, figsize=(11, 4), sharey=True)
for axis, kind in zip(axes, FEATURES, strict=True):
    boxes = [found[kind, n, name] for name in NAMES for n in SIZES]
    labels = [f"{name}\nn = {n}" for name in NAMES for n in SIZES]
    axis.boxplot(boxes, orientation="vertical")
    axis.set_xticklabels(labels, rotation=60, ha="right", fontsize="x-small")
    axis.axhline(TRUTH, color="0.5", linewidth=1)
    axis.set(title=kind)
axes[0].set(ylabel="value of the policy")
figure.tight_layout()
