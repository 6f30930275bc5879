# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Lets the processes of a run exchange values on the CPU, and finds out which one is missing.

The exchanges use gloo, so they do not wait for a GPU. gloo finds its network interface by the host name; set
GLOO_SOCKET_IFNAME to choose another.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator

from ..processes import GROUP_TIMEOUT

# What gloo's errors say of a process that did not answer, or whose connection is gone.
LOST = re.compile("timed out|timeout|connection closed|connection reset|broken pipe|socket", re.IGNORECASE)
ANSWER = 3.0  # seconds within which the processes that still run report


class Peers:
    """The processes of a run. With a single process every method returns at once.

    Args:
        timeout: how long a process waits for the others once training has begun.
    """

    def __init__(self, accelerator: Accelerator, timeout: timedelta):
        self.process, self.number = accelerator.process_index, accelerator.num_processes
        self.is_first, self.is_first_here = accelerator.is_main_process, accelerator.is_local_main_process
        self.timeout = timeout
        self.quick = self.patient = None
        if self.number > 1:
            self.quick = dist.new_group(backend="gloo", timeout=timeout)
            self.patient = dist.new_group(backend="gloo", timeout=GROUP_TIMEOUT)

    def largest(self, number: int, patiently: bool = False) -> int:
        """Returns the largest of the numbers of all processes. All processes must call it."""
        if self.quick is None:
            return number
        box = torch.tensor([number])
        dist.all_reduce(box, dist.ReduceOp.MAX, group=self.patient if patiently else self.quick)
        return int(box)

    def broadcast(self, value: Any) -> Any:
        """Returns the first process's value in every process. The others wait for it, for hours if need be."""
        if self.patient is None:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self.patient, device=torch.device("cpu"))
        return box[0]

    def wait(self) -> None:
        """Waits until all processes call it, for hours if need be."""
        self.largest(0, patiently=True)

    @contextmanager
    def first_of_each_machine(self) -> Iterator[None]:
        """Lets the first process of each machine run the body before the others."""
        if not self.is_first_here:
            self.wait()
        yield
        if self.is_first_here:
            self.wait()

    @contextmanager
    def naming_the_missing(self) -> Iterator[None]:
        """Turns the error that a lost process causes in the others into a TimeoutError that names the process."""
        try:
            yield
        except (RuntimeError, OSError) as error:
            cause = error if isinstance(error, RuntimeError) else error.__cause__
            if self.quick is None or not isinstance(cause, RuntimeError) or not LOST.search(str(cause)):
                raise
            missing = self.missing()
            who = f"process {', '.join(map(str, missing))}" if missing else "another process"
            raise TimeoutError(
                f"{who} of {self.number} has ended, or did not answer within timeout="
                f"{self.timeout / timedelta(minutes=1):g} minutes; earlier checkpoints are whole."
            ) from error

    def missing(self) -> list[int]:
        """Returns the processes that do not report within a few seconds, or an empty list if that cannot be known."""
        find_store = getattr(dist.distributed_c10d, "_get_default_store", None)
        if find_store is None:
            return []
        try:
            store = dist.PrefixStore("missing", find_store())
            store.set_timeout(timedelta(seconds=ANSWER))
            store.set(str(self.process), "here")
            time.sleep(ANSWER)
            return [process for process in range(self.number) if not store.check([str(process)])]
        except RuntimeError:  # the process that kept the store is gone
            return []
