"""The guard for torch threads: the only place where their number is changed."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["single_thread"]


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch's operations on one thread inside the block, and restore their number after it.

    Small batched kernels lose by many threads: idle workers spin at every barrier.
    """
    n_threads = torch.get_num_threads()
    if n_threads == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
