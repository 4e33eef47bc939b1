"""What OrthogonalIVRegressor, EconML and DoubleML can do, tried by runs.

A check tells in a few words what it found, or raises where a package refuses. Where there is
nothing to call, public names are searched for words ("nothing named"), or a reason is given that
is no result of a run ("by design").
"""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from doubleml import (
    DoubleMLData,
    DoubleMLIIVM,
    DoubleMLPanelData,
    DoubleMLPLIV,
    DoubleMLPLPR,
    DoubleMLPLR,
)
from doubleml.plm.datasets import make_plpr_CP2025
from econml.dml import LinearDML
from econml.iv.dml import DMLIV, OrthoIV
from econml.panel.dml import DynamicDML
from numpy.random import default_rng
from orthogonal_designs import Array
from orthogonal_peers import drawn, ortho_iv, pliv_learnt, skbilevel, truth
from pandas import DataFrame
from sklearn import config_context
from sklearn.base import clone
from sklearn.dummy import DummyRegressor
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from skbilevel import ConditionalMomentGradient, NystroemRidge, OrthogonalIVRegressor

Check = Callable[[], str]
SAMPLE = drawn(400, 0, "linear")


def _ours(**parameters: Any) -> OrthogonalIVRegressor:
    return OrthogonalIVRegressor(random_state=0, **parameters)


def _ours_fitted(**parameters: Any) -> OrthogonalIVRegressor:
    return _ours(**parameters).fit(SAMPLE.T, SAMPLE.y, SAMPLE.Z)


def _ortho(**parameters: Any) -> OrthoIV:
    return OrthoIV(**{"projection": True, "random_state": 0, **parameters})


def _ortho_fitted(**parameters: Any) -> OrthoIV:
    return _ortho(**parameters).fit(SAMPLE.y, SAMPLE.T, Z=SAMPLE.Z)


def _data(y: Array, T: Array, Z: Array, x: Any = 1.0, **parameters: Any) -> DoubleMLData:
    columns = {f"z{j}": column for j, column in enumerate(Z.T)}
    frame = DataFrame({"y": y, "t": T[:, 0], "x": x, **columns})
    if "cluster_cols" in parameters:
        frame["group"] = parameters["cluster_cols"]
        parameters["cluster_cols"] = "group"
    return DoubleMLData(frame, "y", "t", "x", list(columns), **parameters)


def _pliv(data: DoubleMLData | None = None, learner: Any = None, **parameters: Any) -> Any:
    learners = [learner or DummyRegressor()] * 3
    data = data or _data(SAMPLE.y, SAMPLE.T, SAMPLE.Z)
    return DoubleMLPLIV(data, *learners, **parameters)


def _needs(model: Any, *names: str) -> str:
    missing = [name for name in names if not hasattr(model, name)]
    return "no: has no " + ", ".join(missing) if missing else "yes: " + ", ".join(names)


def _named(model: Any, *words: str) -> str:
    """Public names that hold one of the words, of whatever else they are made."""
    names = [name for name in dir(model) if not name.startswith("_")]
    found = [name for name in names if any(word in name for word in words)]
    return f"yes: {', '.join(found)}" if found else f"nothing named {' or '.join(words)}"


def _sized(values: Any) -> str:
    return f"yes: shape {np.shape(values)}"


# Scikit-learn


def _pipeline(model: Any, name: str, coefficient: Callable[[Any], Any], direct: float) -> str:
    """The slope by a pipeline that scales the treatment is that without, times the scale."""
    pipe = make_pipeline(StandardScaler(), model)
    with config_context(enable_metadata_routing=name == ""):
        pipe.fit(SAMPLE.T, SAMPLE.y, **{f"{name}Z": SAMPLE.Z})
    slope = float(np.ravel(coefficient(pipe[-1]))[0])
    right = np.isclose(slope, direct * SAMPLE.T.std(), rtol=0.05)
    return "yes" if right else f"no: takes X for the outcome, slope {slope:.2f}"


def _pipeline_ours() -> str:
    return _pipeline(_ours(), "", lambda model: model.coef_, _ours_fitted().coef_[0])


def _pipeline_ortho() -> str:
    slope = float(np.ravel(_ortho_fitted().intercept_)[0])
    return _pipeline(_ortho(), "orthoiv__", lambda model: model.intercept_, slope)


def _pipeline_pliv() -> str:
    make_pipeline(StandardScaler(), _pliv()).fit(SAMPLE.T, SAMPLE.y)
    return "yes"


def _search(model: Any, grid: dict[str, Any]) -> str:
    with config_context(enable_metadata_routing=True):
        found = GridSearchCV(model, grid, cv=3).fit(SAMPLE.T, SAMPLE.y, Z=SAMPLE.Z)
    return f"yes: {found.best_params_}"


def _cloned(model: Any) -> str:
    return f"yes: {type(clone(model)).__name__}"


# Inference


def _not_bootstrapped() -> str:
    _ortho_fitted().intercept__interval()
    model = DMLIV(random_state=0).fit(SAMPLE.y, SAMPLE.T, Z=SAMPLE.Z, inference=None)
    try:
        model.const_marginal_effect_interval()
    except AttributeError:
        return "OrthoIV yes; DMLIV, SieveTSLS by bootstrap only"
    return "yes"


def _joint_ours() -> str:
    model = OrthogonalIVRegressor(PolynomialFeatures(2, include_bias=False), random_state=0)
    model.fit(SAMPLE.T, SAMPLE.y, SAMPLE.Z)
    wider = np.ptp(model.conf_int(joint=True, random_state=0)) / np.ptp(model.conf_int())
    return "yes" if wider > 1 else "no"


def _joint_ortho() -> str:
    _ortho_fitted().intercept__interval(joint=True)
    return "yes"


def _joint_pliv() -> str:
    model = _pliv().fit()
    return _sized(model.bootstrap().confint(joint=True))


def _repeated() -> tuple[Array, Array, Array, Array]:
    """Each row four times, and which rows are of one."""
    group = np.tile(np.arange(len(SAMPLE.y)), 4)
    return SAMPLE.y[group], SAMPLE.T[group], SAMPLE.Z[group], group


def _clustered(alone: float, repeated: float) -> str:
    """Whether a standard error does not fall where each row is there four times."""
    ratio = repeated / alone
    verdict = "yes" if 0.8 < ratio < 1.25 else "folds only" if ratio < 1 else "no"
    return f"{verdict}: standard error times {ratio:.2f}"


def _clusters_ours() -> str:
    y, T, Z, group = _repeated()
    repeated = _ours().fit(T, y, Z, groups=group).stderr_[0]
    return _clustered(_ours_fitted().stderr_[0], repeated)


def _clusters_ortho() -> str:
    y, T, Z, group = _repeated()
    repeated = _ortho().fit(y, T, Z=Z, groups=group)
    errors = [model.intercept__inference().stderr for model in (_ortho_fitted(), repeated)]
    return _clustered(*(float(np.ravel(error)[0]) for error in errors))


def _clusters_pliv() -> str:
    y, T, Z, group = _repeated()
    errors = [
        _pliv(_data(*rows, **more)).fit().se[0]
        for rows, more in (
            ((SAMPLE.y, SAMPLE.T, SAMPLE.Z), {}),
            ((y, T, Z), {"cluster_cols": group}),
        )
    ]
    return _clustered(*errors)


def _moment(residual: Any = None) -> ConditionalMomentGradient:
    data = {"t": SAMPLE.T[:, 0], "y": SAMPLE.y}

    def linear(omega: Any, data: Any) -> Any:
        return omega[0] + omega[1] * data["t"] - data["y"]

    return ConditionalMomentGradient(residual or linear, random_state=0).fit(SAMPLE.Z, data)


def _weak_ours() -> str:
    grid = np.column_stack([np.full(41, 0.5), np.linspace(0, 2, 41)])
    inside = _moment().confidence_set(grid)
    return f"by ConditionalMomentGradient: {inside.sum()} of {len(grid)} points of a grid"


# Shapes


def _curved(fit: Callable[[Array, Array, Array], tuple[float, float]]) -> str:
    """T = 3 z^2 and noise, of which nothing is seen by a line in z."""
    r = default_rng(0)
    Z, (U, e) = r.uniform(-1, 1, (800, 1)), r.standard_normal((2, 800))
    T = 3 * Z**2 + 0.5 * U[:, None]
    low, high = fit(T[:, 0] + U + e, T, Z)
    return f"{'yes' if high - low < 0.5 else 'no'}: width {high - low:.2f}"


def _curved_pliv(y: Array, T: Array, Z: Array) -> Any:
    return _pliv(_data(y, T, Z)).fit().confint().to_numpy()[0]


def _curved_private(y: Array, T: Array, Z: Array) -> Any:
    mean = DummyRegressor()
    model = DoubleMLPLIV._partialXZ(_data(y, T, Z), mean, NystroemRidge(), mean)
    return model.fit().confint().to_numpy()[0]


def _curved_ortho(y: Array, T: Array, Z: Array) -> Any:
    return np.ravel(_ortho().fit(y, T, Z=Z).intercept__interval(alpha=0.05))


def _powers(method: Callable[..., Any], **parameters: Any) -> str:
    """Both coefficients where T + 1 is recorded for T."""
    coef = method(drawn(1000, 0, "shift"), **parameters).coef
    right = np.abs(coef - truth("shift")).max() < 0.5
    told = ", ".join(f"{value:.2f}" for value in coef)
    return f"{'yes' if right else 'no'}: {told} for 4, -1.5"


def _exponential() -> str:
    """y = exp(omega t) has no linear form."""
    t = SAMPLE.T[:, 0]
    error = SAMPLE.y - 0.5 - t
    data = {"t": t, "y": np.exp(0.5 * t) + error}
    model = ConditionalMomentGradient(
        lambda omega, data: torch.exp(omega[0] * data["t"]) - data["y"], random_state=0
    )
    found = model.fit(SAMPLE.Z, data).solve([0.2])
    return f"by ConditionalMomentGradient: {found.coef_[0]:.2f} for 0.5"


def _controlled(fit: Callable[[Array, Array, Array, Array], tuple[float, float]]) -> str:
    """The control acts along a curve on T and y; the effect is 1."""
    r = default_rng(0)
    w, z = r.uniform(-1, 1, (2, 1000, 1))
    U, e = r.standard_normal((2, 1000))
    curve = np.sin(3 * w[:, 0]) + 2 * w[:, 0] ** 2
    T = (z[:, 0] + curve + 0.5 * U)[:, None]
    coef, stderr = fit(T[:, 0] + 2 * curve + U + 0.5 * e, T, z, w)
    right = abs(coef - 1) < 3 * stderr
    return f"{'yes' if right else 'as linear features only'}: {coef:.2f} ± {stderr:.2f} for 1"


def _controlled_ours(y: Array, T: Array, z: Array, w: Array) -> tuple[float, float]:
    model = _ours().fit(np.hstack([T, w]), y, np.hstack([z, w]))
    return model.coef_[0], model.stderr_[0]


def _controlled_ortho(y: Array, T: Array, z: Array, w: Array) -> tuple[float, float]:
    found = _ortho(projection=False).fit(y, T, Z=z, W=w).intercept__inference()
    return float(np.ravel(found.point_estimate)[0]), float(np.ravel(found.stderr)[0])


def _controlled_pliv(y: Array, T: Array, z: Array, w: Array) -> tuple[float, float]:
    model = _pliv(_data(y, T, z, w[:, 0]), NystroemRidge()).fit()
    return model.coef[0], model.se[0]


def _varying_ours() -> str:
    """An interaction of T with a covariate as a feature."""
    X = np.hstack([SAMPLE.T, SAMPLE.Z[:, 1:]])
    features = PolynomialFeatures(2, interaction_only=True, include_bias=False)
    model = _ours(features=features).fit(X, SAMPLE.y, SAMPLE.Z)
    return "as features: " + ", ".join(model.coefficient_names_)


def _varying_ortho() -> str:
    z, x = SAMPLE.Z[:, :1], SAMPLE.Z[:, 1:]
    model = _ortho().fit(SAMPLE.y, SAMPLE.T, Z=z, X=x)
    return f"yes: effects from {model.effect(x).min():.2f} to {model.effect(x).max():.2f}"


# Splits, diagnostics, and more


def _sensitivity_pliv() -> str:
    try:
        _pliv().fit().sensitivity_analysis()
    except NotImplementedError:
        data = _data(SAMPLE.y, SAMPLE.T, SAMPLE.Z)
        data.z_cols = None
        DoubleMLPLR(data, DummyRegressor(), DummyRegressor()).fit().sensitivity_analysis()
        return "no for PLIV, yes for PLR"
    return "yes"


def _sensitivity_econml() -> str:
    told = _named(_ortho_fitted(), "sensitivity")
    return f"{told}; LinearDML {_needs(LinearDML(), 'sensitivity_interval')}"


def _panel_econml() -> str:
    r, person = default_rng(0), np.repeat(np.arange(100), 3)
    W, T = r.standard_normal((2, 300, 1))
    means = {"model_y": LinearRegression(), "model_t": LinearRegression()}
    model = DynamicDML(**means, random_state=0)
    model.fit(T[:, 0] + r.standard_normal(300), T, W=W, groups=person)
    return f"yes, without instruments: DynamicDML, {model.intercept_.size} periods"


def _panel_doubleml() -> str:
    frame = make_plpr_CP2025(num_id=50)
    columns = {"y_col": "y", "d_cols": "d", "t_col": "time", "id_col": "id"}
    data = DoubleMLPanelData(frame, **columns, static_panel=True)
    model = DoubleMLPLPR(data, LinearRegression(), LinearRegression()).fit()
    return f"yes, without instruments: DoubleMLPLPR, {model.coef.size} effect"


def _weights_ours() -> str:
    _ours().fit(SAMPLE.T, SAMPLE.y, SAMPLE.Z, sample_weight=np.ones(len(SAMPLE.y)))
    return "yes"


def _weights_ortho() -> str:
    weight = np.ones(len(SAMPLE.y))
    means = {"model_y_xw": DummyRegressor(), "model_t_xw": DummyRegressor()}
    model = _ortho(model_t_xwz=KNeighborsRegressor(), **means)
    try:
        model.fit(SAMPLE.y, SAMPLE.T, Z=SAMPLE.Z, sample_weight=weight)
    except TypeError:
        _ortho().fit(SAMPLE.y, SAMPLE.T, Z=SAMPLE.Z, sample_weight=weight)
        return "yes, if learners take them"
    return "yes"


def _external_pliv() -> str:
    one = {"t": {name: np.zeros((len(SAMPLE.y), 1)) for name in ("ml_l", "ml_r")}}
    _pliv().fit(external_predictions=one)
    return "yes: external_predictions"


def _no(reason: str) -> Check:
    return lambda: f"no, by design: {reason}"


_KNN = KNeighborsRegressor(20)
FEATURES: dict[str, tuple[Check, Check, Check]] = {
    "fit on arrays, and predict": (
        lambda: _sized(_ours_fitted().predict(SAMPLE.T)),
        lambda: _needs(_ortho_fitted(), "predict") + "; effect(T0, T1)",
        lambda: _needs(_pliv(), "predict"),
    ),
    "sklearn.base.clone": (
        lambda: _cloned(_ours()),
        lambda: _cloned(_ortho()),
        lambda: _cloned(_pliv()),
    ),
    "Pipeline": (_pipeline_ours, _pipeline_ortho, _pipeline_pliv),
    "GridSearchCV": (
        lambda: _search(_ours(nuisance=NystroemRidge()), {"nuisance__n_centers": [20, 50]}),
        lambda: _search(_ortho(), {"cv": [2, 3]}),
        lambda: _search(_pliv(), {"n_folds": [2, 3]}),
    ),
    "any regressor": (
        lambda: f"yes: {_ours_fitted(nuisance=_KNN).coef_[0]:.2f}",
        lambda: f"yes: {float(np.ravel(_ortho_fitted(model_t_xwz=_KNN).intercept_)[0]):.2f}",
        lambda: f"yes: {_pliv(learner=_KNN).fit().coef[0]:.2f}",
    ),
    "intervals without a bootstrap": (
        lambda: _sized(_ours_fitted().conf_int()),
        _not_bootstrapped,
        lambda: _sized(_pliv().fit().confint()),
    ),
    "joint intervals": (_joint_ours, _joint_ortho, _joint_pliv),
    "clusters": (_clusters_ours, _clusters_ortho, _clusters_pliv),
    "sets for weak instruments": (
        _weak_ours,
        lambda: _named(_ortho_fitted(), "confset", "confidence_set", "weak", "robust"),
        lambda: (
            _needs(_pliv(), "robust_confset") + f"; IIVM {_needs(DoubleMLIIVM, 'robust_confset')}"
        ),
    ),
    "instruments that act along a curve": (
        lambda: _curved(lambda y, T, Z: _ours().fit(T, y, Z).conf_int()[0]),
        lambda: _curved(_curved_ortho) + ", projection=True",
        lambda: f"{_curved(_curved_pliv)}; private {_curved(_curved_private)}",
    ),
    "T and T^2 at once": (
        lambda: _powers(skbilevel),
        lambda: _powers(ortho_iv, projection=True),
        lambda: _powers(pliv_learnt),
    ),
    "not linear in parameters": (
        _exponential,
        _no("linear in the featurized treatment"),
        _no("linear in the treatment"),
    ),
    "repeated splits": (
        lambda: f"yes: n_rep, {_ours_fitted(n_rep=3).coef_[0]:.2f}",
        lambda: f"mc_iters averages nuisances: {_ortho_fitted(mc_iters=3).intercept_.item():.2f}",
        lambda: f"yes: n_rep, {_pliv(n_rep=3).fit().all_coef.shape[1]} estimates",
    ),
    "scores of nuisances": (
        lambda: _needs(_ours_fitted(), "nuisance_scores_"),
        lambda: _needs(_ortho_fitted(), "nuisance_scores_t_xwz"),
        lambda: _needs(_pliv().fit(), "nuisance_loss", "evaluate_learners"),
    ),
    "first stage, error left by nuisances": (
        lambda: _needs(_ours_fitted(), "instrument_scores_", "correction_gap_"),
        lambda: _named(_ortho_fitted(), "strength", "weak", "f_stat", "gap"),
        lambda: _named(_pliv().fit(), "strength", "weak", "f_stat", "gap"),
    ),
    "controls by a learner": (
        lambda: _controlled(_controlled_ours),
        lambda: _controlled(_controlled_ortho),
        lambda: _controlled(_controlled_pliv),
    ),
    "effects that vary with covariates": (
        _varying_ours,
        _varying_ortho,
        lambda: _needs(_pliv(), "gate") + f"; PLR {_needs(DoubleMLPLR, 'gate')}",
    ),
    "panels": (_no("clusters only"), _panel_econml, _panel_doubleml),
    "sensitivity to hidden causes": (
        lambda: _named(_ours_fitted(), "sensitivity"),
        _sensitivity_econml,
        _sensitivity_pliv,
    ),
    "weights of rows": (
        _weights_ours,
        _weights_ortho,
        lambda: _pliv().fit(sample_weight=np.ones(400)) and "yes",
    ),
    "nuisances from elsewhere": (
        lambda: _named(_ours_fitted(), "external", "nuisance_predictions"),
        lambda: _named(_ortho_fitted(), "external", "nuisance_predictions"),
        _external_pliv,
    ),
}


def tried(check: Check) -> str:
    """What a check tells, or by what it is refused."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return check()
        except (TypeError, ValueError, AttributeError, NotImplementedError, NotFittedError) as no:
            return f"no: {type(no).__name__}"


def features_table() -> str:
    """Markdown, with what each run has told."""
    lines = ["| | skbilevel | EconML, OrthoIV | DoubleML, PLIV |", "|---|---|---|---|"]
    for name, checks in FEATURES.items():
        lines.append(f"| {name} | {' | '.join(tried(check) for check in checks)} |")
    return "\n".join(lines)
