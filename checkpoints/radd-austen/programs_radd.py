# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Records work on a card once and replays it, so that the host need not launch every kernel again.

An evaluation of a network of 12 layers is 250 kernels. For one row a card runs them in a fifth of the time that the
host needs to launch them. CUDA can record the kernels as a graph, and start all of them by one call. A graph repeats
the same operations on the same memory. So the recorded function must read what changes from memory that stays where it
is. It must not ask for a value on the device, and its shapes must not depend on values. Such a function is a *program*
here.

    programs_of    a context that lends the programs of a model
    Programs.run   calls a function, records it, or replays it
    Memory         tensors that stay where they are

Nothing here is about RADD. `generation_radd.py` makes a program of each shape of an event.
"""

import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Lock
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .kernels_radd import is_hooked, is_transformed

# Of one model: so many memories (one for each size of batch, say), and so many recordings on each. The oldest go first.
MEMORIES_KEPT = 4
RECORDINGS_KEPT = 64
# A call prepares what kernels need (workspaces, compiled code); and most programs of a short task run only once.
CALLS_BEFORE_RECORDING = 1


# ---------------------------------------------------------------------------------------------------------
# Memory and programs
# ---------------------------------------------------------------------------------------------------------


class Memory:
    """Holds named tensors of a device, each of which stays where it was made first."""

    def __init__(self, device: torch.device):
        self.device = device
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, value: Tensor) -> Tensor:
        """Copies the value to the tensor of that name, which is made if there is none; returns this tensor.

        A value of fewer rows goes to the first ones, which are returned.
        """
        if name not in self.tensors:
            with torch.inference_mode(False):  # a tensor made in that mode could be written in it alone
                self.tensors[name] = torch.empty(value.shape, dtype=value.dtype, device=self.device)
        return self.tensors[name][: len(value)].copy_(value)


RECORDING = Lock()


class Recorder(Protocol):
    """Records a function without running it, and returns what runs it."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]: ...


class CudaGraphs:
    """Records CUDA graphs of one device. They share the memory of what they compute in between."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self.device),
            torch.cuda.stream(torch.cuda.current_stream(self.device)),  # comes back also where recording fails
            RECORDING,  # torch records one graph at a time
            torch.cuda.graph(graph, self.pool, self.stream, "thread_local"),  # other threads may use the card
        ):
            function()
        return graph.replay


# What records on a type of device. Elsewhere every program is called.
RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaGraphs}


class Programs:
    """Runs programs on one memory. Without a recorder it calls them.

    With one, a program is called the first time, recorded the second time, and replayed from then on.
    """

    def __init__(self, device: torch.device, recorder: Recorder | None = None):
        self.device, self.recorder = device, recorder
        self.memory = Memory(device)
        self.others: dict[str, Any] = {}  # what programs use besides `memory`
        self.calls: Counter[Hashable] = Counter()  # of each program, before it is recorded
        self.replays: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """Returns the object of that name, which is made at the first call."""
        if name not in self.others:
            self.others[name] = make()
        return self.others[name]

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Runs the function, or the recording of an earlier function of the same key.

        Args:
            key: everything that the function depends on, other than what is in memory.
        """
        if self.recorder is None:
            return function()
        if key not in self.replays:
            if self.calls[key] < CALLS_BEFORE_RECORDING:
                self.calls[key] += 1
                return function()
            try:
                with _casting_anew(self.device):
                    self.replays[key] = self.recorder(function)
            except RuntimeError as error:  # for example an attention of the caller's that waits for the card
                warnings.warn(f"CUDA graphs are off, since one could not be recorded: {error}", stacklevel=2)
                self.recorder = None
                return function()
            if len(self.replays) > RECORDINGS_KEPT:
                self.replays.popitem(last=False)
        self.replays.move_to_end(key)
        self.replays[key]()


@contextmanager
def _casting_anew(device: torch.device) -> Iterator[None]:
    """Makes autocast cast weights at every use. It would otherwise record casts that it frees when it ends."""
    kind = device.type
    casts = torch.is_autocast_enabled(kind)
    with torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False) if casts else nullcontext():
        yield


# ---------------------------------------------------------------------------------------------------------
# The programs of a model
# ---------------------------------------------------------------------------------------------------------


@dataclass
class KeptPrograms:
    """Holds a model's programs by memory layout, and the mark of the model that they were recorded of."""

    mark: Hashable
    layouts: OrderedDict[Hashable, Programs] = field(default_factory=OrderedDict)


# What every module has, empty where `is_recordable`.
HOOKS_OF_A_MODULE = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules", "training"}

# They are kept beside the model, so that a copy of the model has none.
KEPT: WeakKeyDictionary[Any, KeptPrograms] = WeakKeyDictionary()
LOCK = Lock()


@contextmanager
def programs_of(model: Any, layout: Hashable, device: torch.device, wanted: bool = True) -> Iterator[Programs]:
    """Lends the model's programs for a layout of memory, to one borrower at a time; another gets new ones.

    Programs are kept from call to call while the model stays as it is: its tensors at their places, and its modules'
    settings. Changing weights in place is no change, since a replay reads them. Where nothing is recorded, nothing is
    kept.

    Args:
        layout: shapes and dtypes of all that goes to memory. wanted: whether to record at all.
    """
    make = RECORDERS.get(device.type)
    if not wanted or make is None or not is_recordable(model):
        yield Programs(device)
        return
    mark, layout = mark_of(model), (layout, device, modes_of_torch(device.type))
    with LOCK:
        kept = KEPT.get(model)
        if kept is None or kept.mark != mark:
            kept = KEPT[model] = KeptPrograms(mark)
        programs = kept.layouts.pop(layout, None)
    programs = programs or Programs(device, make(device))
    yield programs
    # Not after an error, which may have come in the middle of a program.
    with LOCK:
        if KEPT.get(model) is kept:
            kept.layouts[layout] = programs
            while len(kept.layouts) > MEMORIES_KEPT:
                kept.layouts.popitem(last=False)


def free_programs(model: Any) -> None:
    """Frees the recordings of a model and their memory."""
    with LOCK:
        KEPT.pop(model, None)


def is_recordable(model: Any) -> bool:
    """Tells whether calling the model runs plain kernels alone: no hooks (of offloading, say), no special tensors."""
    if torch.compiler.is_compiling() or is_transformed():
        return False
    for module in model.modules():
        if not isinstance(module, nn.Module):
            continue
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        if is_hooked(module) or any(type(each) not in (nn.Parameter, Tensor) for each in tensors):
            return False
    return True


def mark_of(model: Any) -> Hashable:
    """Returns a value that changes when a module is replaced, changed in a setting, or has a tensor moved or cast.

    It covers whatever a recording cannot see: the addresses of tensors, and Python values such as the scale of an
    adapter or whether it is on.
    """
    settings = (
        {name: value for name, value in vars(module).items() if name not in HOOKS_OF_A_MODULE}
        for module in (*model.modules(), model.config)
    )
    return tuple(_plain(each) for each in settings)


def _plain(value: Any) -> Hashable:
    """Returns a value to compare by: numbers and words as they are, tensors by address, all else by identity."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    if isinstance(value, Tensor):
        return value.data_ptr(), value.dtype, value.device, value.shape
    if isinstance(value, dict):
        return tuple((name, _plain(each)) for name, each in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_plain(each) for each in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_plain(each) for each in value)
    return id(value)


def modes_of_torch(kind: str) -> Hashable:
    """Returns what chooses the kernels on a type of device: autocast, precision, determinism, kinds of attention."""
    attention = torch.backends.cuda
    return (
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        attention.flash_sdp_enabled(),
        attention.mem_efficient_sdp_enabled(),
        attention.math_sdp_enabled(),
        attention.cudnn_sdp_enabled(),
    )


__all__ = ["RECORDERS", "CudaGraphs", "Memory", "Programs", "free_programs", "programs_of"]
