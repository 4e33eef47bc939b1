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
