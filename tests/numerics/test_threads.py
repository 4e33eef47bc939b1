import threading

import pytest
import torch

from skbilevel.numerics.threads import single_thread


@pytest.fixture(params=[1, 2])
def n_threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_one_thread_inside_and_as_before_afterwards(n_threads):
    with single_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == n_threads


def test_threads_are_restored_after_an_exception(n_threads):
    with pytest.raises(KeyError, match="inside"), single_thread():
        raise KeyError("inside")
    assert torch.get_num_threads() == n_threads


def test_nested_guards_restore_once_at_the_outermost(n_threads):
    with single_thread():
        with single_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == n_threads


def test_guard_can_decorate_a_function(n_threads):
    assert single_thread()(torch.get_num_threads)() == 1
    assert torch.get_num_threads() == n_threads


def test_nothing_is_set_when_there_is_one_thread_already(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: pytest.fail("was set"))
    with single_thread():
        pass


def test_overlapping_guards_leave_every_thread_its_own_number():
    """A thread that meets torch first inside another's guard would otherwise keep 1 for good."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    entered, may_leave, after = threading.Event(), threading.Event(), {}

    def overlap():
        with single_thread():
            entered.set()
            may_leave.wait(10)
            with single_thread():
                after["inside"] = torch.get_num_threads()
        after["worker"] = torch.get_num_threads()

    worker = threading.Thread(target=overlap)
    try:
        with single_thread():
            worker.start()
            assert entered.wait(10)
        after["main"] = torch.get_num_threads()
        may_leave.set()
        worker.join()
        with single_thread():
            pass
        after["later"] = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert after == {"inside": 1, "worker": 3, "main": 3, "later": 3}


def test_a_number_that_a_thread_has_set_itself_is_kept():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    after = []

    def overlap():
        torch.set_num_threads(2)
        with single_thread():
            pass
        after.append(torch.get_num_threads())

    try:
        with single_thread():
            worker = threading.Thread(target=overlap)
            worker.start()
            worker.join()
    finally:
        torch.set_num_threads(before)
    assert after == [2]
