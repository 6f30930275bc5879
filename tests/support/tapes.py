# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Stands in for a CUDA graph on a CPU: records the operations of a function on their tensors, and repeats them.

Like a graph, a tape repeats the same operations on the same memory. Python does not run again, so all numbers and
shapes are those of the recording. An operation that a graph cannot hold is refused while recording.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves

# Reading a number from a device, or a shape that depends on values, makes the host wait for the device.
WAITS = {
    "aten._local_scalar_dense",
    "aten.nonzero",
    "aten.is_nonzero",
    "aten.equal",
    "aten.masked_select",
    "aten._unique2",
    "aten.unique_dim",
    "aten.unique_consecutive",
    "aten.repeat_interleave",
}


def waits(name: str, args: tuple) -> bool:
    """Tells whether an operation makes the host wait for a device. Indexing by a boolean mask does."""
    masks = name == "aten.index" and any(each is not None and each.dtype == torch.bool for each in args[1])
    return name in WAITS or masks


class Tape(TorchDispatchMode):
    """Records operations, and undoes their writes to tensors that existed before, since recording must not run them."""

    def __init__(self):
        super().__init__()
        self.operations: list[tuple] = []
        self.made: dict[int, Tensor] = {}  # memory made while recording, kept so it is not reused
        self.before: list[tuple[Tensor, Tensor]] = []
        self.literals: set[int] = set()  # memory of Python's numbers

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = str(operation.overloadpacket)
        if waits(name, args):
            raise RuntimeError(f"{name} makes the host wait")
        source = {"aten.copy_": 1, "aten.index_put_": 2}.get(name)
        if source is not None and memory_of(args[source]) in self.literals:
            raise RuntimeError(f"{name} copies a number from the host, which a graph cannot")
        for argument, value in zip(operation._schema.arguments, args, strict=False):
            written = argument.alias_info is not None and argument.alias_info.is_write
            for each in tree_leaves(value) if written else ():
                if isinstance(each, Tensor) and memory_of(each) not in self.made:
                    self.before.append((each, each.clone()))
        result = operation(*args, **kwargs)
        if name == "aten.lift_fresh":
            self.literals.add(memory_of(result))
        inputs = {memory_of(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)}
        fresh = [isinstance(each, Tensor) and memory_of(each) not in inputs for each in tree_leaves(result)]
        self.made |= {memory_of(each): each for each, new in zip(tree_leaves(result), fresh, strict=True) if new}
        self.operations.append((operation, args, kwargs, result, fresh))
        return result

    def undo(self) -> None:
        for tensor, value in reversed(self.before):
            tensor.copy_(value)
        self.before.clear()

    @torch.no_grad()
    def replay(self) -> None:
        with torch.autocast("cpu", enabled=False):  # its casts are already on the tape
            for operation, args, kwargs, result, fresh in self.operations:
                again = tree_flatten(operation(*args, **kwargs))[0]
                for there, now, new in zip(tree_leaves(result), again, fresh, strict=True):
                    if new:
                        assert there.shape == now.shape, f"{operation} has another shape"
                        there.copy_(now)


def memory_of(tensor: Tensor) -> int:
    """Returns the address of the memory that a tensor and its views share."""
    return tensor.untyped_storage().data_ptr()


def record(function: Callable[[], None]) -> Callable[[], None]:
    tape = Tape()
    try:
        with torch.inference_mode(False), torch.no_grad(), tape:  # a replay may write to tensors made here
            function()
    finally:
        tape.undo()
    return tape.replay


def capturer_of(device: torch.device) -> Callable[[Callable[[], None]], Callable[[], None]]:
    return record
