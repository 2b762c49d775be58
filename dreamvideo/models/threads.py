"""How many threads of a CPU a network computes with: many wait for one another where its operations are tiny.

PyTorch opens and closes a team of threads in every operation. Beside one busy process a team waits for whichever of
its threads the system has put aside, and where an operation takes less than that wait the network crawls.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import torch
from torch import nn

# Parameters of a network from which on it computes with all threads; those of the embedded base have fewer, those of
# the full-size one more (autoencoder 84, CLIP 986, UNet 1,411 millions). On two cores, almost free, a UNet's forward
# over 8 frames of 8 x 8 cells is 1.3 times as fast with two threads at 2 millions (1 G multiply-adds), 1.5 times at 7
# (3 G), 1.7 times at 28 (11 G); beside one busy process two threads cost a small network more than that, and small ones
# train for minutes, beside whatever else the user does. `python -m benchmarks --figures 9` measures it.
SMALL = 20_000_000
OWN_CHOICE = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")  # environment variables in which a user has said how many


def threads_for(network: nn.Module, device: torch.device) -> AbstractContextManager[None]:
    """Within it, the calling thread computes with one thread where a small network computes on a CPU; then as before.

    Other threads, and threads that start meanwhile, keep what they have. Nothing changes on another device, in a graph
    that is being compiled, where the user has chosen, and where PyTorch's threads are not OpenMP's, whose number cannot
    be changed once they have worked.
    """
    if device.type != "cpu" or torch.compiler.is_compiling() or any(map(os.getenv, OWN_CHOICE)):
        return nullcontext()
    if torch.get_num_threads() == 1 or not _openmp() or parameters_of(network) >= SMALL:
        return nullcontext()
    return _one_thread()


def parameters_of(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        _set_here(1)
        yield
    finally:
        _set_here(before)


def _set_here(count: int) -> None:
    """Set the number of threads for what the calling thread computes.

    OpenMP keeps the number for each calling thread. PyTorch's setter also stores it for threads that have computed
    nothing yet: a fresh one tells what is stored, and stores it again.
    """
    with ThreadPoolExecutor(1) as fresh:
        others = fresh.submit(torch.get_num_threads).result()
        try:
            torch.set_num_threads(count)
        finally:
            fresh.submit(torch.set_num_threads, others).result()


@cache
def _openmp() -> bool:
    return "backend: OpenMP" in torch.__config__.parallel_info()
