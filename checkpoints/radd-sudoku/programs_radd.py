# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Captures work on a GPU as CUDA graphs and replays it. Then the host need not launch every kernel again.

For one short row, a GPU computes an evaluation of the network in less time than the host takes to launch the kernels.
CUDA can capture the kernels as a graph, and launch all of them by one call: a replay. A graph repeats the same
operations on the same memory. So a function that is captured must keep three rules. It reads all that changes from
tensors that keep their place in memory. It does not ask for a value on the device. Its shapes do not depend on values.
Such a function is called a *program* here.

    StaticTensors  tensors that keep their place in memory
    CudaGraphs     captures a program on a CUDA GPU
    Programs       runs programs: calls, captures or replays them
    programs_of    a context that lends the programs of a model, which are kept from call to call

Nothing here is about RADD. `generation_radd.py` has a program for each shape of an event (an evaluation of the network
that reveals tokens).
"""

import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from threading import Lock, get_ident
from typing import Any
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from .kernels_radd import is_hooked, is_transformed

# A model keeps the programs of this many layouts (sizes of batch and text), and this many graphs of each layout. The
# least recently used are dropped first.
LAYOUTS_KEPT = 4
GRAPHS_KEPT = 64
# A thread calls a program this many times before it captures it. The first call makes what must not be made during a
# capture: handles of libraries, which belong to a thread, workspaces, compiled code. Besides, most programs of a short
# task run only once.
CALLS_BEFORE_CAPTURE = 1

CAPTURE_LOCK = Lock()  # torch captures one graph at a time
KEPT_LOCK = Lock()  # several threads may run one model


# ---------------------------------------------------------------------------------------------------------
# Tensors and programs
# ---------------------------------------------------------------------------------------------------------


class StaticTensors:
    """Holds named tensors on a device. Each keeps the place in memory where it was first made."""

    def __init__(self, device: torch.device):
        self.device = device
        self.tensors: dict[str, Tensor] = {}

    def put(self, name: str, value: Tensor) -> Tensor:
        """Copies the value to the tensor of that name, and returns this tensor. The first value makes it.

        A later value must have the same shape, or fewer rows. With fewer rows it goes to the first rows, which are then
        returned.
        """
        if name not in self.tensors:
            with torch.inference_mode(False):  # a tensor made in inference mode could only be written in that mode
                self.tensors[name] = torch.empty(value.shape, dtype=value.dtype, device=self.device)
        return self.tensors[name][: len(value)].copy_(value)


# A capturer captures a function without running it, and returns a function that replays it.
Capturer = Callable[[Callable[[], None]], Callable[[], None]]


class CudaGraphs:
    """Captures CUDA graphs on one device. The graphs share the memory for their intermediate results."""

    def __init__(self, device: torch.device):
        self.device = device
        self.pool = torch.cuda.graph_pool_handle()
        self.stream = torch.cuda.Stream(device)

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with (
            CAPTURE_LOCK,
            torch.cuda.device(self.device),
            torch.cuda.stream(torch.cuda.current_stream(self.device)),  # restores the current stream if capture fails
            torch.cuda.graph(graph, self.pool, self.stream, "thread_local"),  # other threads may use the GPU
        ):
            function()
        return graph.replay


# The capturer for each type of device. On other devices every program is called.
CAPTURERS: dict[str, Callable[[torch.device], Capturer]] = {"cuda": CudaGraphs}


class Programs:
    """Runs programs on one set of tensors.

    Without a capturer it calls them. With a capturer it calls a program the first time, captures and replays it the
    second time, and replays it from then on.
    """

    def __init__(self, device: torch.device, capturer: Capturer | None = None):
        self.device, self.capturer = device, capturer
        self.tensors = StaticTensors(device)
        self.objects: dict[str, Any] = {}  # what programs use besides `tensors`
        self.calls: OrderedDict[Hashable, int] = OrderedDict()  # by thread and program, before the program is captured
        self.replays: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Calls the function, or replays the capture of an earlier function of the same key.

        Args:
            key: all that the function depends on, apart from the tensors and the model.
        """
        if self.capturer is None:
            return function()
        if key not in self.replays:
            caller = get_ident(), key
            calls = self.calls.pop(caller, 0)
            if calls < CALLS_BEFORE_CAPTURE:
                self.calls[caller] = calls + 1
                if len(self.calls) > GRAPHS_KEPT:
                    self.calls.popitem(last=False)
                return function()
            try:
                with casting_anew(self.device):
                    self.replays[key] = self.capturer(function)
            except Exception as error:  # for example a module that waits for the GPU
                cause: BaseException = error  # the first error; torch raises another one when it ends the capture
                while cause.__context__ is not None:
                    cause = cause.__context__
                warnings.warn(f"CUDA graphs are off for this model, since a capture failed: {cause!r}", stacklevel=2)
                self.capturer = None
                return function()
            if len(self.replays) > GRAPHS_KEPT:
                self.replays.popitem(last=False)
        self.replays.move_to_end(key)
        self.replays[key]()


@contextmanager
def casting_anew(device: torch.device) -> Iterator[None]:
    """Makes autocast cast weights at every use.

    Otherwise a graph would read the cast weights that autocast caches, and autocast frees those when it ends.
    """
    kind = device.type
    casts = torch.is_autocast_enabled(kind)
    with torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False) if casts else nullcontext():
        yield


# ---------------------------------------------------------------------------------------------------------
# The programs of a model
# ---------------------------------------------------------------------------------------------------------


@dataclass
class KeptPrograms:
    """Holds a model's programs by layout, and the fingerprint that the model had when they were captured.

    failed: whether a capture failed. Another one would fail, too, and might damage torch's records of its memory.
    """

    fingerprint: list
    failed: bool = False
    layouts: OrderedDict[Hashable, Programs] = field(default_factory=OrderedDict)


# They are kept beside the model: a copy of the model has none.
KEPT: WeakKeyDictionary[Any, KeptPrograms] = WeakKeyDictionary()


@contextmanager
def programs_of(model: Any, layout: Hashable, device: torch.device, wanted: bool = True) -> Iterator[Programs]:
    """Lends the model's programs for a layout to one caller at a time. Meanwhile another caller gets new programs.

    Programs are kept from call to call as long as the [`fingerprint`] of the model stays the same. A change of weights
    in place does not change it, since a replay reads the new weights. Nothing is kept if nothing is captured. After an
    error nothing is kept either, nor if a Python generator that runs programs was left early: a program may have
    stopped in the middle.

    Args:
        layout: shapes and dtypes of all tensors of the programs.
        wanted: whether to capture at all.
    """
    make = CAPTURERS.get(device.type)
    if not wanted or make is None or not is_capturable(model):
        yield Programs(device)
        return
    now, layout = fingerprint(model), (layout, device, modes_of_torch(device.type))
    with KEPT_LOCK:
        kept = KEPT.get(model)
        if kept is None or kept.fingerprint != now:
            kept = KEPT[model] = KeptPrograms(now)
        programs = kept.layouts.pop(layout, None)
    if programs is None:
        programs = Programs(device, None if kept.failed else make(device))
    yield programs
    with KEPT_LOCK:
        kept.failed = kept.failed or programs.capturer is None
        if KEPT.get(model) is kept and not kept.failed:
            kept.layouts[layout] = programs
            while len(kept.layouts) > LAYOUTS_KEPT:
                kept.layouts.popitem(last=False)


def free_programs(model: Any) -> None:
    """Frees the graphs of a model and their tensors."""
    with KEPT_LOCK:
        KEPT.pop(model, None)


def is_capturable(model: Any) -> bool:
    """Tells whether a call of the model only runs plain kernels: no hooks (for offloading, say), no special tensors."""
    if torch.compiler.is_compiling() or is_transformed():
        return False
    for module in model.modules():
        if not isinstance(module, nn.Module):
            continue
        tensors = (*module.parameters(recurse=False), *module.buffers(recurse=False))
        # A parametrized module is special, too: it may keep what it computed.
        plain = all(type(each) in (nn.Parameter, Tensor) and each.layout == torch.strided for each in tensors)
        special = not plain or is_parametrized(module)
        if special or is_hooked(module):
            return False
    return True


# Attributes of every module that do not decide what it computes: tables of hooks, which are empty if `is_capturable`.
BOOKKEEPING = frozenset(vars(nn.Module())) - {"_parameters", "_buffers", "_modules", "training"}


def fingerprint(model: Any) -> list:
    """Returns a list that differs once a module is replaced or its settings change, or a tensor is moved or cast.

    It covers what a capture fixes: addresses of tensors, and Python values, such as the scale of an adapter or whether
    the adapter is on. It looks into lists, tuples, sets and dictionaries, and not into other objects.
    """
    found: list = []
    for module in (*model.modules(), model.config):
        found += [type(module), _comparable(getattr(type(module), "forward", None))]
        found += [(name, _comparable(value)) for name, value in vars(module).items() if name not in BOOKKEEPING]
    return found


def _comparable(value: Any, depth: int = 8) -> Any:
    """Returns a value to compare: numbers and words as they are, tensors by address, other objects by identity."""
    if value is None or isinstance(value, (bool, int, float, str, torch.dtype, torch.device)):
        return value
    if isinstance(value, Tensor) and value.layout == torch.strided and not value.is_nested:
        return value.data_ptr(), value.dtype, value.device, value.shape, value.stride()
    if isinstance(value, dict) and depth:
        return [(name, _comparable(each, depth - 1)) for name, each in value.items()]
    if isinstance(value, (list, tuple, set, frozenset)) and depth:
        return [_comparable(each, depth - 1) for each in value]
    return Same(value)


class Same:
    """Compares objects by identity, without keeping them. An address would not do: a later object could get it."""

    def __init__(self, value: Any):
        try:
            self.get: Callable[[], Any] = ref(value)
        except TypeError:  # the value has no weak references
            self.get = lambda: value

    def __eq__(self, other: object) -> bool:
        value = self.get()
        return isinstance(other, Same) and value is not None and value is other.get()

    __hash__ = None  # type: ignore[assignment]


def modes_of_torch(kind: str) -> Hashable:
    """Returns the settings that choose kernels on a type of device: autocast, precision, determinism, attention."""
    attention, products = torch.backends.cuda, torch.backends.cuda.matmul
    # torch refuses to read its older setting of the precision once the newer one has been used.
    precision = getattr(products, "fp32_precision", None) or torch.get_float32_matmul_precision()
    return (
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        precision,
        products.allow_fp16_reduced_precision_reduction,
        products.allow_bf16_reduced_precision_reduction,
        torch.are_deterministic_algorithms_enabled(),
        attention.flash_sdp_enabled(),
        attention.mem_efficient_sdp_enabled(),
        attention.math_sdp_enabled(),
        attention.cudnn_sdp_enabled(),
    )


__all__ = ["CAPTURERS", "CudaGraphs", "Programs", "StaticTensors", "free_programs", "programs_of"]
