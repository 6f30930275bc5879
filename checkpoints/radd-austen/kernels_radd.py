# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Computes products, rotation, attention, dropout and loss of a network as torch does, but faster on a CPU or a GPU.

Nothing here is about RADD. The docstring of each function gives the line of plain torch that computes the same. The
network in `modeling_radd.py` calls the function in place of that line:

    linear                  nn.Linear by oneDNN, which is twice as fast as MKL on an AMD CPU
    norm_linear             norm and layer; the backward pass recomputes the norm
    feed_forward            norm, layer, activation, layer; the backward pass recomputes the cheap parts
    rotate_by_halves        the rotary embedding in 16 bits on a GPU, without gradients
    attention_by_products   attention in bfloat16 on a CPU
    masked_softmax          the weights of attention, also for queries that attend to nothing (`zero_without_keys`)
    Dropout                 dropout
    token_nll               the loss of each token, without the logits of all tokens at once
    evaluation_mode         a context for many evaluations: no dropout, and weights packed if that is faster

If a tool has changed a layer (quantised, adapted, offloaded, sharded, hooked), the layer is called as it is.
`torch.backends.mkldnn.flags(enabled=False)` turns oneDNN's layers off. Private names of torch are looked up with a
default. If one is missing, the plain line of torch runs.

Shapes: M rows of a product, N labelled positions, V vocabulary, D_in and D_out widths of a layer, B rows, H heads,
        L length, K queries, D hidden size, d head width.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, partial
from threading import Lock
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# oneDNN's product, fused with bias and activation. torch has it for its compiler. None in a build without oneDNN.
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# Packs a weight: stores it in oneDNN's own layout. Otherwise oneDNN makes this layout at every product.
ONEDNN_PACK = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
# From this many evaluations on, packing the weights saves time. Page faults of the new memory are included.
EVALUATIONS_TO_PACK = 32
# `attention_by_products` takes this many queries of a row at once: their scores stay in the CPU's cache.
QUERIES_AT_ONCE = 256
# At most this many logits (128 MB in float32) exist at once while a loss is computed, and as many gradients.
MAX_LOGITS_ELEMENTS = 2**25
# The same for a GPU (512 MB in bfloat16), where a few large chunks are faster.
MAX_LOGITS_ELEMENTS_OF_A_CARD = 2**28

# With a multiple of this many outputs in 16 bits, every row of a layer's output begins at a multiple of 16 bytes.
ALIGNED_OUTPUTS = 8

unsafe_view = getattr(torch.ops.aten, "_unsafe_view", torch.reshape)
in_function_transform = getattr(getattr(torch, "_C", None), "_are_functorch_transforms_active", lambda: True)
number_of_modes = getattr(getattr(torch, "_C", None), "_len_torch_dispatch_stack", lambda: 0)
# Attributes that hold the hooks of a module, and those of all modules.
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
LINEAR_FORWARD, MODULE_CALL = nn.Linear.forward, nn.Module.__call__  # a tool may patch the classes
GLOBAL_HOOKS = tuple(f"_global{name}" for name in HOOKS)


# ---------------------------------------------------------------------------------------------------------
# Evaluation mode
# ---------------------------------------------------------------------------------------------------------


# The number of contexts that evaluate a module now, and whether it was in training mode before the first of them.
EVALUATING: WeakKeyDictionary[Any, tuple[int, bool]] = WeakKeyDictionary()
LOCK = Lock()  # several threads may evaluate one model


@contextmanager
def evaluation_mode(model: nn.Module, evaluations: int = 1) -> Iterator[None]:
    """Puts a model in evaluation mode. Afterwards each module has its former mode again, even after an error.

    Several contexts may evaluate a module at a time, in threads or in turns, through a wrapper, the whole model or a
    part of it. The last one to end restores the mode. Meanwhile the model must not be trained, and its modes must not
    be changed.

    Args:
        evaluations: expected number of evaluations. With many, packing the weights saves time, see [`packed_weights`].
    """
    with LOCK:
        modules = [(module, *EVALUATING.get(module, (0, module.training))) for module in model.modules()]
        # All modes are read before one is changed: a wrapper may have the mode of the module that it wraps.
        for module, users, training in modules:
            EVALUATING[module] = users + 1, training
            module.training = False
    try:
        with packed_weights(evaluations):
            yield
    finally:
        with LOCK:
            for module, _, training in modules:
                users, _ = EVALUATING.pop(module)
                if users > 1:
                    EVALUATING[module] = users - 1, training
                else:
                    module.training = training


class PackedWeight(NamedTuple):
    """Holds a weight in oneDNN's layout, and the tensor and version that it was made from.

    It keeps the tensor. Otherwise another weight could get the same memory, and be mistaken for it.
    """

    weight: Tensor
    source: Tensor
    version: int


# The packed weights of this context, by layer; None outside `packed_weights`. Other threads do not see them.
PACKED: ContextVar[dict[nn.Linear, PackedWeight] | None] = ContextVar("PACKED", default=None)


@contextmanager
def packed_weights(evaluations: int = EVALUATIONS_TO_PACK) -> Iterator[None]:
    """Keeps a copy of weights in oneDNN's layout, from the first evaluation without gradients to the context's end.

    Otherwise oneDNN packs a weight at every product. That takes a twentieth of the time of an evaluation of 256 tokens,
    and up to a third with few tokens (`python -m benchmarks.layers`). The copy takes as much memory as the weights. If
    a weight changes meanwhile, the changed weight is used, unpacked. A change through `.data` is not noticed: then the
    old copy is used.

    Args:
        evaluations: number of evaluations to come. With fewer than `EVALUATIONS_TO_PACK` nothing is packed, since it
            would not save time.
    """
    if evaluations < EVALUATIONS_TO_PACK or ONEDNN_PACK is None or PACKED.get() is not None:
        yield
        return
    PACKED.set({})
    try:
        yield
    finally:
        PACKED.set(None)


def weight_for(layer: nn.Linear, dtype: torch.dtype) -> Tensor:
    """Returns the layer's weight for a product in `dtype`, packed within [`packed_weights`]."""
    weight, packs = layer.weight, PACKED.get()
    # A weight made in inference mode has no version, so a change of it would not be noticed.
    if packs is None or weight.is_inference() or not hasattr(weight, "_version"):
        return weight
    packed = packs.get(layer)
    if packed is None or packed.weight.dtype != dtype:
        source = weight.detach()  # shares memory and version
        packed = PackedWeight(cast(Callable, ONEDNN_PACK)(source.to(dtype)), source, weight._version)
        packs[layer] = packed
    unchanged = weight.data_ptr() == packed.source.data_ptr() and weight._version == packed.version
    return packed.weight if unchanged else weight


# ---------------------------------------------------------------------------------------------------------
# Products
# ---------------------------------------------------------------------------------------------------------


def linear(layer: nn.Module, hidden: Tensor, activation: nn.Module | None = None) -> Tensor:
    """Computes activation(layer(hidden)): (..., D_in) -> (..., D_out).

    For float32 torch uses MKL, which is made for Intel's CPUs. On AMD's CPUs oneDNN is twice as fast
    (`python -m benchmarks.layers`). Without gradients, a tanh GELU is fused with the product.
    """
    dtype = onednn_dtype(layer, hidden)
    if dtype is None:
        output = layer(hidden)
    elif torch.is_grad_enabled():
        output = differentiable_linear(hidden.to(dtype), cast(nn.Linear, layer).weight, cast(nn.Linear, layer).bias)
    else:
        plain = cast(nn.Linear, layer)
        gelu = type(activation) is nn.GELU and activation.approximate == "tanh" and not is_hooked(activation)
        output = onednn_linear(hidden.to(dtype), weight_for(plain, dtype), plain.bias, gelu)
        activation = None if gelu else activation
    return output if activation is None else activation(output)


def onednn_dtype(layer: nn.Module, hidden: Tensor) -> torch.dtype | None:
    """Returns the dtype in which oneDNN multiplies, the weight's or autocast's; None if torch calls the layer."""
    if (
        torch.compiler.is_compiling()  # a compiler chooses its own products
        or type(layer) is not nn.Linear  # quantised, adapted, or sharded
        or type(layer.weight) is not nn.Parameter  # likewise
        or type(hidden) is not Tensor
        or hidden.device.type != "cpu"
        or layer.weight.device.type != "cpu"
        or hidden.numel() == 0
        or ONEDNN_LINEAR is None
        or not torch.backends.mkldnn.enabled
        or torch.backends.cpu.get_cpu_capability() != "AVX512"
        or is_hooked(layer)
        or is_transformed()
        or torch.jit.is_tracing()
    ):
        return None
    autocast = torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu") if autocast else layer.weight.dtype
    possible = dtype in (torch.float32, torch.bfloat16) and (autocast or hidden.dtype == dtype)
    return dtype if possible else None


def is_hooked(module: nn.Module) -> bool:
    """Tells whether a call of the module runs other code than its class's: hooks, or a `forward` that was replaced."""
    hooked = any(getattr(module, name, True) for name in HOOKS)
    patched = nn.Linear.forward is not LINEAR_FORWARD or nn.Module.__call__ is not MODULE_CALL
    if hooked or patched or "forward" in vars(module):
        return True
    return any(getattr(nn.modules.module, name, True) for name in GLOBAL_HOOKS)


def has_hooks_inside(module: nn.Module) -> bool:
    return any(getattr(inner, name, True) for inner in module.modules() for name in HOOKS)


def has_backward_hooks(module: nn.Module) -> bool:
    return any(getattr(module, name, True) for name in HOOKS if "backward" in name)


def is_transformed() -> bool:
    """Tells whether torch records the computation, for a function transform or for forward-mode derivatives."""
    return in_function_transform() or getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0


def is_followed() -> bool:
    """Tells whether a compiler, a tracer or a transform records the computation."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or is_transformed()


def has_values(tensor: Tensor) -> bool:
    """Tells whether the host can read the values without a wait for a GPU, and nothing records or compiles the code.

    Values are checked only if this holds.
    """
    return type(tensor) is Tensor and tensor.device.type == "cpu" and not is_followed() and number_of_modes() == 0


def onednn_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Multiplies without gradients, in the dtype of `hidden`: (..., D_in), (D_out, D_in), (D_out,) -> (..., D_out)."""
    weight, bias = weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)
    if hidden.dtype != torch.float32 and not hidden.is_contiguous() and not (gelu or weight.is_mkldnn):
        return F.linear(hidden, weight, bias)  # this is oneDNN, too, and does not copy the left factor
    activation, algorithm = ("gelu", "tanh") if gelu else ("none", "")
    return cast(Callable, ONEDNN_LINEAR)(hidden, weight, bias, activation, [], algorithm)


def differentiable_linear(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiplies with gradients. It saves the weight itself; autocast would save a rounded copy."""
    rows = hidden.reshape(-1, hidden.shape[-1])  # (..., D_in) -> (M, D_in)
    gradients = LinearGradients.apply(rows, weight, bias)  # (M, D_out)
    detached = (each if each is None else each.detach() for each in (rows, weight, bias))
    output = LinearValue.apply(gradients, *detached)  # (M, D_out)
    # For autograd it is not a view, as torch's own product: `compute_logits` writes to it, and a view would lose its
    # hooks.
    return unsafe_view(output, (*hidden.shape[:-1], len(weight)))


class LinearGradients(torch.autograd.Function):
    """Gives the gradients of a product, and a placeholder without memory for its value: (M, D_in) -> (M, D_out).

    [`LinearValue`] computes the value. Since the two are separate, `recomputed` can stop here, where the arguments are
    saved, and need not recompute the product.
    """

    OUTPUTS = 1024  # rows of the weight's gradient at once: oneDNN copies the transposed left factor of a product

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        needs_hidden, needs_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(hidden if needs_weight else None, weight if needs_hidden else None)
        ctx.weight_dtype = weight.dtype
        return hidden.new_empty(()).expand(len(hidden), len(weight))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        hidden, weight = ctx.saved_tensors
        grad_hidden = grad_weight = grad_bias = None
        if weight is not None:
            grad_hidden = product(grad, weight.t())  # (M, D_in)
        if hidden is not None:
            hidden = hidden.contiguous()
            grad_weight = hidden.new_empty(grad.shape[1], hidden.shape[1], dtype=ctx.weight_dtype)
            for start in range(0, len(grad_weight), LinearGradients.OUTPUTS):
                outputs = slice(start, start + LinearGradients.OUTPUTS)
                grad_weight[outputs] = product(grad[:, outputs].t(), hidden.t())
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum(dim=0)
        return grad_hidden, grad_weight, grad_bias


class LinearValue(torch.autograd.Function):
    """Computes the value of a product whose gradients come from [`LinearGradients`]: (M, D_in) -> (M, D_out)."""

    @staticmethod
    def forward(ctx: Any, gradients: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return onednn_linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad, None, None, None


def product(hidden: Tensor, weight: Tensor) -> Tensor:
    """Computes hidden weight^T. The result is differentiable if gradients of gradients are asked for."""
    return differentiable_linear(hidden, weight) if torch.is_grad_enabled() else onednn_linear(hidden, weight)


# ---------------------------------------------------------------------------------------------------------
# Recomputation in the backward pass
# ---------------------------------------------------------------------------------------------------------


def recomputed(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """Computes function(*arguments), which ends in a product, and keeps only the arguments for the backward pass.

    The backward pass recomputes what comes before the product (a norm, an activation, a softmax). It does not recompute
    the product: the gradient needs its factors, and not its value. On a GPU and under a compiler this is a plain call;
    see [`product_after`] for the latter.
    """
    on_gpu = arguments[0].device.type != "cpu"  # there, recomputing costs the host more time than it saves
    if on_gpu or not torch.is_grad_enabled() or torch.compiler.is_compiling() or in_function_transform():
        return function(*arguments)
    return cast(Tensor, checkpoint(function, *arguments, use_reentrant=False))


def product_after(step: Callable[[Tensor], Tensor], layer: nn.Module, hidden: Tensor) -> Tensor:
    """Computes layer(step(hidden)). The backward pass recomputes the step, a norm or an activation, if that pays off.

    Under a compiler it always does: the kernels that recompute read the same input anyway. The paper's small model then
    takes a fifth less memory.
    """
    if torch.compiler.is_compiling() and torch.is_grad_enabled() and not in_function_transform():
        dtype = autocast_dtype(hidden)  # rounding is part of the step; otherwise its rounded value would be kept

        def rounded(hidden: Tensor) -> Tensor:
            return step(hidden) if dtype is None else step(hidden).to(dtype)

        return linear(layer, cast(Tensor, checkpoint(rounded, hidden, use_reentrant=False)))
    if keeps_steps(hidden):
        return linear(layer, step(hidden))
    return recomputed(lambda hidden: linear(layer, step(hidden)), hidden)


def autocast_dtype(hidden: Tensor) -> torch.dtype | None:
    """Returns the dtype in which autocast multiplies on the device of the tensor; None without autocast."""
    device = hidden.device.type  # autocast does not know the device "meta", and raises an error if asked
    return torch.get_autocast_dtype(device) if device != "meta" and torch.is_autocast_enabled(device) else None


def keeps_steps(hidden: Tensor) -> bool:
    """Tells whether to keep the results of norms and activations: on a CPU in bfloat16, recomputing them is slow."""
    return hidden.device.type == "cpu" and (torch.is_autocast_enabled("cpu") or hidden.dtype == torch.bfloat16)


def norm_linear(norm: Callable[[Tensor], Tensor], layer: nn.Module, hidden: Tensor) -> Tensor:
    """Computes layer(norm(hidden)): (..., D_in) -> (..., D_out)."""
    return product_after(norm, layer, hidden)


def feed_forward(
    norm: Callable[[Tensor], Tensor], up: nn.Module, activation: nn.Module, down: nn.Module, hidden: Tensor
) -> Tensor:
    """Computes down(activation(up(norm(hidden)))): (..., D) -> (..., D)."""
    if not torch.is_grad_enabled():
        return linear(down, linear(up, norm(hidden), activation))
    return product_after(activation, down, norm_linear(norm, up, hidden))  # (..., D) -> (..., 4 D) -> (..., D)


# ---------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------


def is_faster_by_halves(states: Tensor) -> bool:
    """Tells whether [`rotate_by_halves`] is faster here than the plain line, and no gradient is wanted."""
    on_gpu = states.device.type == "cuda" and states.dtype in (torch.bfloat16, torch.float16)
    return on_gpu and type(states) is Tensor and not torch.is_grad_enabled() and not is_followed()


def rotate_by_halves(states: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Computes (x * cos + swapped * signed_sin).to(states.dtype) for x = states.float().

    Here `swapped` is x with its two halves swapped. The bits are the same as in plain torch, but neither x nor
    `swapped` takes memory. A CPU would take longer: there torch casts before it multiplies. It is for states without
    gradients, since torch does not write results with gradients to given memory.

    Args:
        states: (B, L, H, d). cos, signed_sin: (B or 1, L, d) float32.
    """
    first, second = states.chunk(2, dim=-1)  # (B, L, H, d / 2) both
    (cos, other_cos), (sin, other_sin) = (table[:, :, None].chunk(2, dim=-1) for table in (cos, signed_sin))
    output = states.new_empty(states.shape)
    one, other = output.chunk(2, dim=-1)
    torch.addcmul(first * cos, second, sin, out=one)  # in float32, then rounded to the dtype of `one`
    torch.addcmul(second * other_cos, first, other_sin, out=other)
    return output


def is_faster_by_products(implementation: str | None, query: Tensor) -> bool:
    """Tells whether `attention_by_products` is faster here than scaled_dot_product_attention."""
    return implementation == "sdpa" and query.device.type == "cpu" and query.dtype == torch.bfloat16


def masked_softmax(scores: Tensor, mask: Tensor | None, dtype: torch.dtype | None = None) -> Tensor:
    """Computes softmax(scores + mask) over keys: (B, H, K, L) -> (B, H, K, L), in `dtype` if one is given.

    It is also finite if a query attends to nothing; see [`zero_without_keys`].

    Args:
        mask: (B or 1, H or 1, K or 1, L), True where a query attends. Or, in a floating-point dtype, numbers to add,
            with -inf where a query does not attend.
    """
    if mask is None:
        return scores.softmax(dim=-1, dtype=dtype)
    if mask.dtype == torch.bool:  # adding takes a fraction of the time that masked_fill on all heads takes
        mask = scores.new_zeros(mask.shape).masked_fill(~mask, -torch.inf)
    lowest = torch.finfo(scores.dtype).min / 2  # half of the lowest number, since a score is added
    return (scores + mask.clamp(min=lowest)).softmax(dim=-1, dtype=dtype)


def zero_without_keys(output: Tensor, mask: Tensor | None) -> Tensor:
    """Sets the output of queries that attend to nothing to zero, like scaled_dot_product_attention: (B, H, K, d)."""
    if mask is None:
        return output
    excluded = ~mask if mask.dtype == torch.bool else mask.isneginf()
    return output.masked_fill(excluded.all(dim=-1, keepdim=True), 0.0)


def attention_by_products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[Tensor, None]:
    """Computes softmax(q k^T / sqrt(d)) v for some queries at a time: (B, H, L, d) each -> (B, L, H, d).

    It is for bfloat16 on a CPU. There torch's kernel does not use the CPU's bfloat16 products, and takes more than
    twice as long (`python -m benchmarks.attention`).
    """

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        scores = (query * scaling) @ key.transpose(2, 3)  # (B, H, 256, L)
        return masked_softmax(scores, mask) @ value  # softmax computes in float32 and rounds once

    key, value = key.contiguous(), value.contiguous()  # otherwise every product would copy them
    queries = query.split(QUERIES_AT_ONCE, dim=2)
    masks: Any = [None] * len(queries)
    if attention_mask is not None:  # (B, 1, L or 1, L)
        masks = attention_mask.expand(-1, -1, query.shape[2], -1).split(QUERIES_AT_ONCE, dim=2)
    # The scores of a row of up to 256 tokens take no more memory than its MLP keeps. Those of a longer row grow with
    # L^2.
    keep = len(queries) == 1 and keeps_steps(query)
    run = attend if keep else partial(recomputed, attend)
    parts = [run(part, key, value, mask) for part, mask in zip(queries, masks, strict=True)]
    output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)  # (B, H, L, d)
    return zero_without_keys(output, attention_mask).transpose(1, 2), None  # (B, L, H, d)


# ---------------------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------------------


class Dropout(nn.Dropout):
    """Drops out as torch does, with p rounded to 16 bits. On a CPU it takes a third of the time.

    `python -m benchmarks.layers` measures it.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return hidden
        if hidden.device.type != "cpu" or torch.compiler.is_compiling():
            return F.dropout(hidden, self.p)
        dropped = round(self.p * 2**16)  # of the 2^16 values of a 16-bit number; one draw of 64 bits gives four numbers
        bits = torch.empty(-(-hidden.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        value = bits.view(torch.int16)[: hidden.numel()].view(hidden.shape)  # -2^15 .. 2^15 - 1
        keep = value.int() >= dropped - 2**15
        return hidden * keep * (2**16 / max(2**16 - dropped, 1))


# ---------------------------------------------------------------------------------------------------------
# Compilation
# ---------------------------------------------------------------------------------------------------------


# The backend that compiles a trunk. It is kept beside the trunk: a copy of the trunk is not compiled.
BACKENDS: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()


def compile_trunk(trunk: nn.Module, backend: str = "inductor") -> None:
    """Compiles the trunk and the loss in fixed shapes, for training steps. A copy of the model is not compiled.

    The compiled trunk computes all positions, also in its last layer. So one compilation serves every mask. Another one
    is made only for another shape of the batch, or for a batch with padding. After eight shapes (torch's limit) other
    shapes run uncompiled. Evaluations always run uncompiled, and so does a trunk with hooks inside; see
    `RaddModel.__call__`.
    """
    BACKENDS[trunk] = backend


def compile_backend(trunk: nn.Module) -> Any | None:
    """Returns the backend that compiles the trunk in training; None without one, or under another compiler."""
    if torch.compiler.is_compiling() or not trunk.training or not torch.is_grad_enabled():
        return None
    return BACKENDS.get(trunk)


def call_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """Calls the module with its hooks. This is the function that is compiled, once for all trunks."""
    return nn.Module.__call__(module, *args, **kwargs)


def compiled(function: Callable, backend: Any | None) -> Callable:
    """Returns the function compiled by the backend; without a backend, the function itself.

    So the caller chooses. torch's own switch, `torch.compiler.set_stance`, would act on all threads.
    """
    return function if backend is None else compiled_once(function, backend)


@cache
def compiled_once(function: Callable, backend: Any) -> Callable:
    return torch.compile(function, dynamic=False, backend=backend)


# ---------------------------------------------------------------------------------------------------------
# Loss
# ---------------------------------------------------------------------------------------------------------


def has_fixed_shapes(trunk: nn.Module, device: torch.device) -> bool:
    """Tells whether a loss is computed in shapes that do not depend on the labels.

    On a GPU the host would otherwise have to wait for the number of labels, and a compiler would compile again for
    every number. On a CPU there is no wait, and shapes that depend on the labels save work at positions without one.
    """
    return device.type != "cpu" or torch.compiler.is_compiling() or compile_backend(trunk) is not None


def label_places(labels: Tensor, max_targets: int | None, vocab_size: int) -> Tensor:
    """Returns indices (N,) into the flattened batch (B L,): labelled positions first, then others, as padding.

    Args:
        max_targets: at least the number of labels. N is this number rounded up to whole chunks, and at most B L. None:
            the host waits for the device and counts the labels. Under a compiler N is always B L.
    """
    labelled = (labels != -100).flatten()
    if torch.compiler.is_compiling():
        return torch.arange(labels.numel(), device=labels.device)
    if max_targets is None:
        max_targets = int(labelled.sum())
    size = chunk_size(vocab_size, labels.device)
    number = min(-(-max(max_targets, 1) // size) * size, labels.numel())
    return (~labelled).int().argsort(stable=True)[:number]


def chunk_size(vocab_size: int, device: torch.device) -> int:
    """Returns how many positions one call of the head takes; on a GPU a power of two, which divides most batches."""
    if device.type == "cpu":
        return max(MAX_LOGITS_ELEMENTS // vocab_size, 1)
    return 1 << max((MAX_LOGITS_ELEMENTS_OF_A_CARD // vocab_size).bit_length() - 1, 0)


def token_nll(
    compute_logits: Callable[..., Tensor],
    layer: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    vocab_size: int,
    backend: str | None = None,
) -> Tensor:
    """Computes -log softmax(compute_logits(hidden))[targets] in float32, chunk by chunk: (N, D), (N,) -> (N,).

    It is 0 where the target is -100. If there are several chunks on a CPU, the backward pass recomputes their logits.
    On a GPU the logits are kept, in their own dtype, and the head runs once. At least one chunk runs: a batch without
    labels then still has a gradient (zero).

    Args:
        compute_logits: (M, D) -> (M, V). If it gets a second argument, it calls that in place of its head.
        layer: the head of `compute_logits`.
        backend: compiles the loss of a chunk; None: the loss is not compiled.
    """
    size = chunk_size(vocab_size, hidden.device)
    keep = hidden.device.type != "cpu" or torch.compiler.is_compiling()

    def chunk_nll(hidden: Tensor, target: Tensor, *head: Callable) -> Tensor:
        logits = compute_logits(hidden, *head)
        if in_function_transform():  # a transform needs plain operations
            return F.cross_entropy(logits.float(), target, reduction="none")
        return cast(Tensor, TokenNLL.apply(logits, target, backend))

    def nll(hidden: Tensor, *head: Callable) -> Tensor:
        head = head or aligned(layer, hidden)
        chunks = list(zip(hidden.split(size), targets.split(size), strict=True))
        if len(chunks) == 1 or keep or not torch.is_grad_enabled():
            return torch.cat([chunk_nll(*chunk, *head) for chunk in chunks])
        return torch.cat([checkpoint(chunk_nll, *chunk, *head, use_reentrant=False) for chunk in chunks])

    if isinstance(layer, FSDPModule) and len(hidden) > size:
        # `fully_shard` communicates at every call of a unit. Processes may have different numbers of chunks, so all
        # chunks are computed within one call.
        return call_around(layer, nll, hidden)
    return nll(hidden)


def aligned(layer: nn.Module, hidden: Tensor) -> tuple[Callable[[Tensor], Tensor], ...]:
    """Returns the layer [`padded`] to a multiple of 8 outputs if that is faster, else an empty tuple.

    GPT-2's vocabulary with a mask has 50258 tokens. Then not every row of logits begins at a multiple of 16 bytes, and
    a GPU uses slower kernels. On an H100 the head and its loss took twice as long.
    """
    if hidden.device.type == "cpu" or torch.compiler.is_compiling() or is_transformed():
        return ()
    if type(layer) is not nn.Linear or type(layer.weight) is not nn.Parameter or is_hooked(layer):
        return ()
    extra = -layer.out_features % ALIGNED_OUTPUTS
    return (padded(layer, extra, autocast_dtype(hidden) or layer.weight.dtype),) if extra else ()


def padded(layer: nn.Linear, extra: int, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Gives the layer `extra` more outputs, -inf with gradients of zero: (..., D_in) -> (..., D_out + extra)."""
    weight = F.pad(layer.weight.to(dtype), (0, 0, 0, extra))  # (D_out + extra, D_in)
    bias: Tensor | None = layer.bias
    bias = layer.weight.new_zeros(layer.out_features) if bias is None else bias
    bias = F.pad(bias.to(dtype), (0, extra), value=-torch.inf)  # (D_out + extra,)
    return lambda hidden: F.linear(hidden.to(dtype), weight, bias)


class TokenNLL(torch.autograd.Function):
    """Computes -log softmax(logits)[target] in float32, 0 where the target is -100: (N, V), (N,) -> (N,).

    It keeps the logits, and its backward pass makes their gradient, both in the dtype of the logits. torch's
    cross-entropy also keeps a log-softmax in float32, and its backward pass makes two more tensors of that size.
    """

    ROWS = 32  # at a time: their softmax fits the CPU's cache

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, backend: str | None = None) -> Tensor:
        rows, log_sum = rows_at_once(logits), compiled(log_sum_exp, backend)
        total = torch.cat([log_sum(part) for part in logits.split(rows)])  # (N,)
        ctx.save_for_backward(logits, target, total)
        ctx.backend = backend
        at_target = logits.gather(1, target.masked_fill(target == -100, 0)[:, None]).squeeze(1)
        return (total - at_target).masked_fill(target == -100, 0.0)

    @staticmethod
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor, None, None]:
        logits, target, total = ctx.saved_tensors
        ignored = target == -100  # (N,)
        scale, place = grad_nll.masked_fill(ignored, 0.0), target.masked_fill(ignored, 0)  # (N,) both
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            # Gradients of gradients are asked for: these operations have them.
            one_hot = F.one_hot(place, logits.shape[-1])
            return ((logits.float().softmax(dim=-1) - one_hot) * scale[:, None]).to(logits.dtype), None, None
        fill = compiled(fill_scaled_softmax, ctx.backend)
        gradient = torch.empty_like(logits)  # (softmax - one at the target) * scale
        for part in zip(*(each.split(rows_at_once(logits)) for each in (gradient, logits, total, scale)), strict=True):
            fill(*part)
        at_target = (logits.gather(1, place[:, None]).squeeze(1) - total).expm1() * scale  # (N,)
        gradient.scatter_(1, place[:, None], at_target[:, None].to(gradient.dtype))
        return gradient, None, None


def rows_at_once(logits: Tensor) -> int:
    """Returns how many rows to compute at once: on a CPU few, which fit its cache; else all."""
    small = logits.device.type == "cpu" and not torch.compiler.is_compiling()
    return TokenNLL.ROWS if small else max(len(logits), 1)


def log_sum_exp(logits: Tensor) -> Tensor:
    return logits.float().logsumexp(dim=-1)  # (N, V) -> (N,)


def fill_scaled_softmax(gradient: Tensor, logits: Tensor, log_sum: Tensor, scale: Tensor) -> None:
    """Writes softmax(logits) * scale to `gradient`, (N, V) both. A compiler rounds to its dtype on the way."""
    gradient.copy_((logits.float() - log_sum[:, None]).exp_().mul_(scale[:, None]))


def call_around(module: nn.Module, function: Callable[[Tensor, Callable], Tensor], argument: Tensor) -> Tensor:
    """Calls the module with its hooks, but runs `function(argument, forward)` in place of its `forward`."""
    forward, own = module.forward, vars(module).pop("forward", None)
    vars(module)["forward"] = lambda argument: function(argument, forward)
    try:
        return module(argument)
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


__all__ = [
    "Dropout",
    "attention_by_products",
    "call_module",
    "compile_backend",
    "compile_trunk",
    "compiled",
    "evaluation_mode",
    "feed_forward",
    "has_backward_hooks",
    "has_fixed_shapes",
    "has_hooks_inside",
    "has_values",
    "is_faster_by_halves",
    "is_faster_by_products",
    "label_places",
    "linear",
    "masked_softmax",
    "norm_linear",
    "packed_weights",
    "rotate_by_halves",
    "token_nll",
    "zero_without_keys",
]
