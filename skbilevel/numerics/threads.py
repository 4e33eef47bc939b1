"""The guard for torch threads: the only place where their number is changed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["single_thread"]


class _Guards(threading.local):
    """Number of guards that the current thread is in."""

    depth = 0


_own = _Guards()
_lock = threading.Lock()
# Guards of all threads that are active, and the number of torch threads before the first of them.
_n_active = 0
_n_before = 1


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch's operations on one thread inside the block, and restore their number after it.

    Small batched kernels lose by many threads: idle workers spin at every barrier. Guards may be
    nested and may overlap in several threads. torch keeps a number for each thread and hands the
    current one to a thread that meets torch for the first time; so two cases are out of reach: a
    thread that does so outside of any guard while another is inside one keeps 1, and one that has
    set 1 itself and then overlaps with a guard gets the number of the other.
    """
    if _own.depth == 0:
        n_threads = _enter()
    _own.depth += 1
    try:
        yield
    finally:
        _own.depth -= 1
        if _own.depth == 0:
            _leave(n_threads)


def _enter() -> int:
    global _n_active, _n_before
    with _lock:
        n_threads = torch.get_num_threads()
        if _n_active == 0:
            _n_before = n_threads
        elif n_threads == 1:
            # torch keeps a number for each thread; one that uses it first inside the guard of
            # another thread has got the 1 of that guard.
            n_threads = _n_before
        _n_active += 1
        _set(1)
    return n_threads


def _leave(n_threads: int) -> None:
    global _n_active
    with _lock:
        _set(n_threads)
        _n_active -= 1


def _set(n_threads: int) -> None:
    # To set the number that is set already would still start a pool, which breaks a later fork.
    if torch.get_num_threads() != n_threads:
        torch.set_num_threads(n_threads)
