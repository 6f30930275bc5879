# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Watches the operations that torch runs."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Watch(TorchDispatchMode):
    """Records every operation, also of a backward pass, and the size of the largest tensor that one returned.

    Attributes:
        names: all operations.
        launches: operations that a device computes, unlike views and empty tensors.
        largest: the most elements of a returned tensor.
    """

    def __init__(self):
        super().__init__()
        self.names: list[str] = []
        self.launches: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.names.append(str(operation.overloadpacket))
        views = any(
            value.alias_info is not None and not value.alias_info.is_write for value in operation._schema.returns
        )
        if not views and not any(word in self.names[-1] for word in ("view", "empty")):
            self.launches.append(self.names[-1])
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                # An expanded view has less memory than elements, so count its memory (oneDNN does not show it).
                held = each.numel() if each.is_mkldnn else each.untyped_storage().nbytes() // each.element_size()
                self.largest = max(self.largest, held)
        return result


class Communications(TorchDispatchMode):
    """Counts the communications of processes."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.number += operation.namespace == "c10d"
        return operation(*args, **(kwargs or {}))
