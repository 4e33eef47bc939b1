"""What every fit of the package does at its edges: errors, warnings, callbacks, names."""

import sys
import warnings
from numbers import Integral
from typing import ClassVar

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.pipeline import make_pipeline

from skbilevel._sklearn import (
    CallbackSupportMixin,
    FitLoop,
    Interval,
    fit_method,
    input_feature_names,
    warn_user,
)

X = np.zeros((2, 1))


class Identity(CallbackSupportMixin, TransformerMixin, BaseEstimator):
    _parameter_constraints: ClassVar[dict] = {}

    @fit_method
    def fit(self, X, y=None):
        return self

    def transform(self, X):
        return X


class Halving(Identity):
    """Halves 1.0 until max_iter or a callback ends it."""

    def __init__(self, max_iter=4):
        self.max_iter = max_iter

    @fit_method
    def fit(self, X, y=None):
        loop = FitLoop(self, X, y, self.max_iter)
        for k in range(1, self.max_iter + 1):
            if loop.step(lambda k=k: {"value_": 0.5**k}):
                break
        loop.end({"value_": 0.5**k})
        self.value_, self.n_iter_, self.stopped_ = 0.5**k, k, loop.stopped
        return self


class Breaking(Identity):
    """Deletes, replaces and adds attributes, and then raises ``error``, if there is one."""

    _parameter_constraints: ClassVar[dict] = {"n": [Interval(Integral, 1, None, closed="left")]}

    def __init__(self, n=1, error=None):
        self.n, self.error = n, error

    @fit_method
    def fit(self, X, y=None):
        """Break."""
        self.__dict__.pop("n_features_in_", None)
        self.replaced_, self.added_ = np.ones(3), 1
        self.n = 5
        if self.error is not None:
            raise self.error
        return self


class Silent:
    """A callback that wants nothing."""

    def setup(self, estimator, context): ...
    def teardown(self, estimator, context): ...
    def on_fit_task_begin(self, estimator, context): ...
    def on_fit_task_end(self, estimator, context): ...


class Recorder(Silent):
    """Keeps what it is told; returns ``answer(task name, task number)`` at the end of a task."""

    def __init__(self, answer=lambda name, number: None):
        self.answer, self.events, self.tables, self.fitted = answer, [], [], []

    def setup(self, estimator, context):
        self.events.append(("setup", context.task_name, context.max_subtasks))

    def teardown(self, estimator, context):
        self.events.append(("teardown", context.task_name, context.max_subtasks))

    def on_fit_task_begin(self, estimator, context, *, X):
        self.events.append(("begin", context.task_name, context.task_id))
        self.tables.append(X)

    def on_fit_task_end(self, estimator, context, *, X, fitted_estimator):
        self.events.append(("end", context.task_name, context.task_id))
        self.tables.append(X)
        self.fitted.append(fitted_estimator)
        return self.answer(context.task_name, context.task_id)


# fit_method


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_failed_fit_leaves_every_attribute_as_it_was(error):
    estimator = Breaking(n=2, error=error)
    estimator.n_features_in_, estimator.replaced_ = 1, np.zeros(3)
    before = dict(vars(estimator))
    with pytest.raises(type(error)) as caught:
        estimator.fit(X)
    assert caught.value is error
    assert list(vars(estimator)) == list(before)
    assert all(vars(estimator)[name] is value for name, value in before.items())


@pytest.mark.parametrize("hook", ["on_fit_task_begin", "on_fit_task_end"])
def test_failed_callback_leaves_the_estimator_as_it_was(hook, monkeypatch):
    def interrupt(estimator, context):
        raise KeyboardInterrupt

    recorder, callback = Recorder(), Silent()
    monkeypatch.setattr(callback, hook, interrupt)
    estimator = Halving().set_callbacks(recorder, callback)
    before = dict(vars(estimator))
    with pytest.raises(KeyboardInterrupt):
        estimator.fit(X)
    assert vars(estimator) == before
    assert recorder.events[-1][0] == "teardown"


def test_fit_that_ends_well_keeps_its_attributes():
    estimator = Breaking()
    assert estimator.fit(X) is estimator
    assert (estimator.n, estimator.added_) == (5, 1)


def test_parameters_are_checked_before_fit_starts():
    estimator = Breaking(n=0)
    with pytest.raises(ValueError, match=r"The 'n' parameter of Breaking must be an int"):
        estimator.fit(X)
    assert vars(estimator) == {"n": 0, "error": None}


def test_decorated_method_keeps_its_name_and_docstring():
    assert (Breaking.fit.__name__, Breaking.fit.__doc__) == ("fit", "Break.")


# warn_user


def warning_estimator(module):
    """An estimator that warns in fit, as if its class were written in that module."""
    source = (
        "class Warns(Identity):\n"
        "    def fit(self, X, y=None):\n"
        "        self.warn()\n"
        "        return self\n"
        "    def warn(self):\n"
        "        warn_user('look here', FutureWarning)\n"
    )
    space = {"__name__": module, "Identity": Identity, "warn_user": warn_user}
    exec(compile(source, f"{module}.py", "exec"), space)
    return space["Warns"]()


def this_line():
    return sys._getframe(1).f_lineno


@pytest.mark.parametrize("wrap", [lambda model: model, make_pipeline], ids=["alone", "pipeline"])
def test_warning_points_at_the_line_of_the_user(wrap):
    model = wrap(warning_estimator("skbilevel.estimators.planted"))
    with pytest.warns(FutureWarning, match="^look here$") as caught:
        line, _ = this_line(), model.fit(X)
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, line)]


def test_warning_of_a_nested_pipeline_points_at_the_line_of_the_user():
    model = make_pipeline(make_pipeline(warning_estimator("skbilevel.planted")), Identity())
    with pytest.warns(FutureWarning) as caught:
        line, _ = this_line(), model.fit_transform(X)
    assert [(each.filename, each.lineno) for each in caught] == [(__file__, line)]


@pytest.mark.parametrize("module", ["skbilevel_tools", "sklearn_tools.planted", "joblibs"])
def test_package_of_the_user_with_a_similar_name_is_the_user(module):
    with pytest.warns(FutureWarning) as caught:
        warning_estimator(module).fit(X)
    assert caught[0].filename == f"{module}.py"


def test_warning_is_a_user_warning_unless_said_otherwise():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warn_user("text")
    assert [each.category for each in caught] == [UserWarning]


# FitLoop


def test_each_iteration_begins_and_ends_once_inside_of_one_fit():
    recorder = Recorder()
    Halving(max_iter=3).set_callbacks(recorder).fit(X)
    iterations = [(hook, "iteration", k) for k in range(3) for hook in ("begin", "end")]
    assert recorder.events == [
        ("setup", "fit", 3),
        ("begin", "fit", 0),
        *iterations,
        ("end", "fit", 0),
        ("teardown", "fit", 3),
    ]


def test_every_hook_sees_the_table_that_is_fitted():
    recorder = Recorder()
    Halving(max_iter=3).set_callbacks(recorder).fit(X)
    assert len(recorder.tables) == 8
    assert all(table is X for table in recorder.tables)


def test_fitted_estimator_of_an_iteration_is_a_copy_as_if_fit_had_ended_there():
    recorder = Recorder()
    estimator = Halving(max_iter=3).set_callbacks(recorder).fit(X)
    assert [fitted.value_ for fitted in recorder.fitted] == [0.5, 0.25, 0.125, 0.125]
    assert all(fitted is not estimator for fitted in recorder.fitted)
    assert {type(fitted) for fitted in recorder.fitted} == {Halving}


def test_fitted_attributes_are_made_only_for_a_callback_that_asks():
    class NeverAsked(Identity):
        @fit_method
        def fit(self, X, y=None):
            FitLoop(self, X, y, 1).step(lambda: pytest.fail("nobody asked"))
            return self

    NeverAsked().set_callbacks(Silent()).fit(X)
    with pytest.raises(pytest.fail.Exception, match="nobody asked"):
        NeverAsked().set_callbacks(Recorder()).fit(X)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_true_at_iteration_k_stops_the_loop_after_k_iterations(k):
    recorder = Recorder(lambda name, number: name == "iteration" and number + 1 == k)
    estimator = Halving(max_iter=4).set_callbacks(recorder).fit(X)
    assert (estimator.n_iter_, estimator.value_) == (k, 0.5**k)
    assert estimator.stopped_
    assert recorder.events[-2] == ("end", "fit", 0)


def test_one_callback_of_several_is_enough_to_stop():
    stop = Recorder(lambda name, number: True)
    estimator = Halving().set_callbacks(Recorder(), stop, Silent()).fit(X)
    assert estimator.n_iter_ == 1


@pytest.mark.parametrize("answer", [None, False])
def test_any_other_answer_goes_on(answer):
    estimator = Halving().set_callbacks(Recorder(lambda name, number: answer)).fit(X)
    assert estimator.n_iter_ == 4
    assert not estimator.stopped_


def test_answer_at_the_end_of_fit_stops_nothing():
    estimator = Halving().set_callbacks(Recorder(lambda name, number: name == "fit")).fit(X)
    assert estimator.n_iter_ == 4
    assert not estimator.stopped_


def test_loop_without_callbacks_runs_to_its_end():
    estimator = Halving().fit(X)
    assert (estimator.n_iter_, estimator.value_, estimator.stopped_) == (4, 0.0625, False)


def test_callback_of_a_pipeline_sees_the_iterations():
    class Propagated(Recorder):
        max_propagation_depth = None

    recorder = Propagated()
    make_pipeline(Halving(max_iter=2), Identity()).set_callbacks(recorder).fit(X)
    seen = [event for event in recorder.events if event[1] == "iteration"]
    assert seen == [(hook, "iteration", k) for k in range(2) for hook in ("begin", "end")]


# Names of features


def test_features_are_named_as_given_then_as_at_fit_then_by_number():
    estimator = Identity()
    estimator.n_features_in_ = 2
    assert_array_equal(input_feature_names(estimator, None), ["x0", "x1"])
    assert_array_equal(input_feature_names(estimator, ["a", "b"]), ["a", "b"])
    estimator.feature_names_in_ = np.array(["u", "v"], dtype=object)
    assert_array_equal(input_feature_names(estimator, None), ["u", "v"])
    with pytest.raises(ValueError, match="not equal to feature_names_in_"):
        input_feature_names(estimator, ["v", "u"])
