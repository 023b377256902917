"""Training in several processes, one per GPU, which ``torchrun`` starts: which is which, and what they exchange.

Every process trains on its part of each batch; gradients, and the sums that the loss is made of, are those of the whole
batch. The first process alone writes. Decisions that depend on a clock or a signal are exchanged before every step, so
that no process waits for one that has left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import count as count_from
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.nn.functional import all_reduce
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from pipeline.core.errors import VolsegError

_PATIENCE = timedelta(hours=2)  # the others wait while one validates a large volume
_JOINED = count_from()  # how often this process has joined the others


@dataclass(frozen=True)
class Commands:
    """What all processes do before the next step.

    Args:
        share: Share of the training that is done, by the first process's clock.
        signal: Number of a signal that asked any of them to stop, else 0.
        save: Whether the first one writes a checkpoint.
    """

    share: float
    signal: int
    save: bool


@dataclass(frozen=True)
class Processes:
    """The processes of a training, as seen by one of them; by default it is alone.

    Args:
        rank: Its number.
        count: How many there are.
        local: Its number on this machine.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def first(self) -> bool:
        """Whether this one writes files and prints."""
        return self.rank == 0

    def wrapped(self, network: nn.Module) -> nn.Module:
        """The network to train: its gradients are averaged over the processes, its batch norms see all of them."""
        if self.count == 1:
            return network
        device = next(network.parameters()).device
        if device.type == "cpu":  # PyTorch's batch norm over processes computes on GPUs only
            return DistributedDataParallel(network)
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(network, device_ids=[device])

    def summed(self, values: Tensor) -> Tensor:
        """The sum over all processes; gradients flow back to every one."""
        if self.count == 1:
            return values
        total: Tensor = all_reduce(values)  # type: ignore[no-untyped-call]
        return total

    def agree(self, mine: Commands) -> Commands:
        """The commands that hold for all: share and saving are the first one's, a signal is anyone's."""
        if self.count == 1:
            return mine
        own = torch.tensor([mine.share if self.first else 0.0, mine.signal, mine.save and self.first]).double()
        parts = [torch.empty_like(own) for _ in range(self.count)]
        dist.all_gather(parts, own)
        return Commands(float(parts[0][0]), int(max(part[1] for part in parts)), bool(parts[0][2]))

    def gathered(self, mine: Mapping[str, Any]) -> dict[str, Any]:
        """The entries of all processes, sorted by key, the same in every one."""
        if self.count == 1:
            return dict(mine)
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, dict(mine))
        return dict(sorted(entry for part in parts for entry in part.items()))

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.count > 1:
            dist.barrier()


SINGLE = Processes()


def launched() -> int:
    """How many processes ``torchrun`` started together with this one; 1 without it.

    Batch systems set WORLD_SIZE and RANK for every job, also where one process is to train alone.
    """
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def is_first() -> bool:
    """Whether this process is the one that prints."""
    return launched() == 1 or os.environ["RANK"] == "0"


@contextmanager
def joined() -> Iterator[Processes]:
    """Join the other processes if ``torchrun`` started this one; without it the training is this one's alone.

    Raises:
        VolsegError: If there are more processes than GPUs on this machine.
    """
    count = launched()
    if count == 1:
        yield SINGLE
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if 0 < gpus <= local:
        raise VolsegError(
            f"torchrun: expected at most one process per GPU ({gpus} here), got process {local + 1}. "
            f"Start it with --nproc-per-node {gpus}."
        )
    # A program may train several times. Each time has keys of its own: with those of the time before, a process that
    # comes first would connect to where the others no longer listen.
    store, _, _ = next(rendezvous("env://", timeout=_PATIENCE))
    store = PrefixStore(f"volseg/{next(_JOINED)}", store)
    # Tensors on GPUs go by NCCL, commands and scores on the CPU by Gloo.
    backend = "cpu:gloo,cuda:nccl" if gpus else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=_PATIENCE)
    try:
        yield Processes(rank, count, local)
    finally:
        dist.destroy_process_group()
