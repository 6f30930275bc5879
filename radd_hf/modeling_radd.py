# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The network: a canvas of token ids, some of them masks, to the law of the clean token at every position.

    p(x_i | visible tokens),   with no time input                      arXiv:2406.03736

Shapes: B batch, L length, V vocabulary (with the mask), D hidden size, H heads, d head width,
        K output positions per row, N output positions in the whole batch.

    input_ids (B, L) -> embedding (B, L, D) -> layers (B, L, D) -> norm -> lm_head (B, L, V), mask column -inf

A sampler needs the law only where it draws, a loss only where there is a label. So the head, and of the
last layer everything but keys and values, run on the `output_positions` alone, and a tensor of shape
(B, L, V) exists only when somebody asks for the logits of every position. What is cheap to compute again is not
kept for the backward pass.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from threading import Lock
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_radd import AUTO_MAP, RaddConfig
from .generation_radd import RaddGenerationConfig, RaddGenerationMixin, pack

# At most this many logits (128 MB in float32) exist at once while a loss is taken, and as many of their gradients.
MAX_LOGITS_ELEMENTS = 2**25
# Queries of a row at once where attention is written as products: scores that stay in a processor's cache.
QUERIES_AT_ONCE = 256
# oneDNN's product with a bias and an activation behind it, which torch has for its compiler; None in a build without.
ONEDNN_LINEAR = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
# Its own layout of a weight, which it else makes anew at every product.
ONEDNN_PACK = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
# So many evaluations pay for that layout, memory not yet touched included.
EVALUATIONS_TO_PACK = 32
PACKING = Lock()  # several threads may evaluate one model


class Positions(NamedTuple):
    """Which positions of each row are wanted, as a rectangle: slots of a row that has fewer are not `valid`.

    A tuple, so that accelerate moves it along with the other inputs of a layer that lives on another device.
    """

    slot: Tensor  # (B, K) int64
    valid: Tensor | None = None  # (B, K) bool; None: every slot is wanted

    @classmethod
    def of(cls, wanted: Tensor) -> "Positions":
        """From a boolean mask (B, L), or from indices (B, K) as they are."""
        return cls(*pack(wanted)) if wanted.dtype == torch.bool else cls(wanted)

    def select(self, hidden: Tensor) -> Tensor:
        # Not by gather, which keeps an index as large as what it returns for its backward pass, and its argument.
        row = torch.arange(len(self.slot), device=hidden.device)[:, None]
        return hidden.expand(len(self.slot), *hidden.shape[1:])[row, self.slot]  # (B or 1, L, ...) -> (B, K, ...)

    def flatten(self, hidden: Tensor) -> Tensor:
        return hidden if self.valid is None else hidden[self.valid]  # (B, K, D) -> (N, D)

    def select_queries(self, table: Tensor) -> Tensor:
        """Lines of a table that has one for each query: (B or 1, H or 1, L, n) -> (B, H or 1, K, n)."""
        return self.select(table.transpose(1, 2)).transpose(1, 2)


class CanvasCache:
    """Keys and values of every layer at all positions of a canvas, each as old as its last computation.

    What makes an approximate evaluation cheap: after a whole one, `RaddModel.forward(..., recompute=...)` computes
    some positions anew, against the keys and values that the others had.
    """

    def __init__(self):
        self.states: dict[int, tuple[Tensor, Tensor]] = {}  # of each layer, (B, H, L, d) both

    def update(self, layer_idx: int, key: Tensor, value: Tensor, recomputed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Writes keys and values, of all positions or of those `recomputed` (B, C); returns those of all."""
        if recomputed is None:
            # Not views that keep the queries' memory alive, and laid out once for all events.
            self.states[layer_idx] = key.contiguous(), value.contiguous()
        else:
            slot = recomputed[:, None, :, None].expand_as(key)  # (B, H, C, d)
            for states, fresh in zip(self.states[layer_idx], (key, value), strict=True):
                states.scatter_(2, slot, fresh)
        return self.states[layer_idx]

    def select_rows(self, rows: Tensor) -> None:
        """Keeps the rows (A,) of the batch, in that order."""
        for layer_idx, states in self.states.items():
            key, value = (each.index_select(0, rows.to(each.device)) for each in states)
            self.states[layer_idx] = key, value


def rematerialise(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """function(*arguments), of which the backward pass keeps the arguments alone, for functions that end in a product.

    What comes before the product (a norm, an activation, a softmax) is computed again, the product is not: its gradient
    needs what goes into it and not what comes out. Compilers decide this for themselves.
    """
    if not torch.is_grad_enabled() or torch.compiler.is_compiling():
        return function(*arguments)
    return cast(Tensor, checkpoint(function, *arguments, use_reentrant=False))


def rematerialise_pass(function: Callable[..., Tensor], *arguments: Tensor) -> Tensor:
    """The same where what comes first is cheap and small: a norm, an activation, the softmax of a short row.

    Except in bfloat16 on a CPU: there a pass over memory weighs much beside the products, and memory is not scarce.
    """
    hidden = arguments[0]
    if hidden.device.type == "cpu" and (torch.is_autocast_enabled("cpu") or hidden.dtype == torch.bfloat16):
        return function(*arguments)
    return rematerialise(function, *arguments)


class PackedWeight(NamedTuple):
    """A weight in oneDNN's own layout, and the parameter's tensor and version that it was made of.

    The tensor is kept, or its memory could become that of another weight.
    """

    weight: Tensor
    source: Tensor
    version: int

    def is_of(self, parameter: Tensor) -> bool:
        return parameter.data_ptr() == self.source.data_ptr() and parameter._version == self.version


class RaddLinear(nn.Linear):
    """As torch's, by oneDNN on a processor with AVX-512; with the tanh GELU behind it in the same pass, if asked for.

    For float32 torch takes MKL, which is made for Intel's processors: on one of AMD oneDNN is twice as fast
    (`python -m benchmarks.layers`). `torch.backends.mkldnn.flags(enabled=False)` leaves all to torch.
    """

    packing = 0  # contexts of `packed_weights` that are open
    packed: PackedWeight | None = None  # made at the first product in one of them

    def forward(self, hidden_states: Tensor, gelu: bool = False) -> Tensor:
        """(..., D_in) -> (..., D_out)"""
        dtype = self._onednn_dtype(hidden_states)
        if dtype is None:
            output = F.linear(hidden_states, self.weight, self.bias)
        elif torch.is_grad_enabled():
            output = differentiable_linear(hidden_states.to(dtype), self.weight, self.bias)
        else:
            return onednn_linear(hidden_states.to(dtype), self._weight(dtype), self.bias, gelu)
        return F.gelu(output, approximate="tanh") if gelu else output

    def _weight(self, dtype: torch.dtype) -> Tensor:
        """For a product in `dtype`: the parameter, or while weights are to be packed and it has not changed, packed."""
        weight = self.weight
        if not self.packing or not self.can_be_packed():
            return weight
        packed = self.packed
        if packed is None or packed.weight.dtype != dtype:
            source = weight.detach()  # shares memory and version
            packed = PackedWeight(cast(Callable, ONEDNN_PACK)(source.to(dtype)), source, weight._version)
            self.packed = packed
        return packed.weight if packed.is_of(weight) else weight

    def can_be_packed(self) -> bool:
        """Whether the weight is here as a whole: not of another process, or offloaded; and tells when it changes, which
        one made in inference mode does not."""
        weight = self.weight
        here = weight.device.type == "cpu" and weight.shape == (self.out_features, self.in_features)
        return here and not weight.is_inference()

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy, which packs its own: a packed weight can be neither copied nor written to a file."""
        return {name: value for name, value in vars(self).items() if name not in ("packing", "packed")}

    def _onednn_dtype(self, hidden_states: Tensor) -> torch.dtype | None:
        """In which oneDNN is to multiply: that of the weight, or autocast's; None where torch is to do it its way."""
        if (
            torch.compiler.is_compiling()  # a compiler has its own
            or hidden_states.device.type != "cpu"
            or hidden_states.numel() == 0
            or type(hidden_states) is not Tensor
            or type(self.weight) is not nn.Parameter  # sharded, or quantised
            or ONEDNN_LINEAR is None
            or not torch.backends.mkldnn.enabled
            or torch.backends.cpu.get_cpu_capability() != "AVX512"
            or torch._C._are_functorch_transforms_active()
        ):
            return None
        autocast = torch.is_autocast_enabled("cpu")
        dtype = torch.get_autocast_dtype("cpu") if autocast else self.weight.dtype
        possible = dtype in (torch.float32, torch.bfloat16) and (autocast or hidden_states.dtype == dtype)
        return dtype if possible else None


def onednn_linear(hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """(..., D_in), (D_out, D_in), (D_out,) -> (..., D_out) in the dtype of the first; without gradients."""
    weight, bias = weight.to(hidden_states.dtype), None if bias is None else bias.to(hidden_states.dtype)
    if hidden_states.dtype != torch.float32 and not hidden_states.is_contiguous() and not (gelu or weight.is_mkldnn):
        return F.linear(hidden_states, weight, bias)  # oneDNN's, too, and without a copy of the left factor
    activation, algorithm = ("gelu", "tanh") if gelu else ("none", "")
    return cast(Callable, ONEDNN_LINEAR)(hidden_states, weight, bias, activation, [], algorithm)


def differentiable_linear(hidden_states: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`onednn_linear` with gradients. What it keeps is the weight itself, where autocast would keep a rounded copy."""
    hidden = hidden_states.reshape(-1, hidden_states.shape[-1])  # (..., D_in) -> (M, D_in)
    gradients = LinearGradients.apply(hidden, weight, bias)  # (M, D_out)
    detached = (each if each is None else each.detach() for each in (hidden, weight, bias))
    output = LinearValue.apply(gradients, *detached)
    # As torch's own, no view to autograd: hooks on a view are lost when it is written to, as `compute_logits` does.
    return torch.ops.aten._unsafe_view(output, (*hidden_states.shape[:-1], len(weight)))


class LinearGradients(torch.autograd.Function):
    """The gradients of a product whose value is made elsewhere: (M, D_in) -> (M, D_out), which takes no memory.

    A step of its own, so that it has kept its arguments before there is a product: where they are computed again
    (`rematerialise`), that ends here.
    """

    OUTPUTS = 1024  # of the weight's gradient at once: oneDNN copies the left factor if it is transposed

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
    """The product to which `LinearGradients` has the gradients."""

    @staticmethod
    def forward(ctx: Any, gradients: Tensor, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return onednn_linear(hidden, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad, None, None, None


def product(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden weight^T; differentiable again where gradients of gradients are asked for."""
    return differentiable_linear(hidden, weight) if torch.is_grad_enabled() else onednn_linear(hidden, weight)


class RaddRotaryEmbedding(nn.Module):
    """Cosines and sines of the rotary embedding (arXiv:2104.09864), in float32.

    The frequencies are a handful of numbers and are computed anew, not buffered: a buffer would be rounded
    by `.to(torch.bfloat16)` and would have to be filled by hand after construction on the meta device.
    """

    def __init__(self, config: RaddConfig):
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        rope, device = cast(dict, self.config.rope_parameters), position_ids.device
        if rope["rope_type"] == "default":
            frequencies, scaling = default_frequencies(self.config, device), 1.0  # (d / 2,)
        else:
            initialise = ROPE_INIT_FUNCTIONS[rope["rope_type"]]
            frequencies, scaling = initialise(self.config, device, seq_len=position_ids.shape[-1])
        angles = position_ids[..., None].float() * frequencies  # (B or 1, L, d / 2)
        angles = torch.cat((angles, angles), dim=-1)  # (B or 1, L, d)
        return angles.cos() * scaling, angles.sin() * scaling


def default_frequencies(config: RaddConfig, device: torch.device | None = None) -> Tensor:
    """(d / 2,) base^(-2j / d), the angle each pair turns by a position; in float32, as the authors' code stores it."""
    width = config.hidden_size // config.num_attention_heads
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    return 1.0 / cast(dict, config.rope_parameters)["rope_theta"] ** exponent


def rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (x_j, x_{j + d/2}) of states (B, L, H, d) by its angle, (B or 1, L, d), in float32: a bfloat16
    cosine is off by up to 0.4 %, which a long row would feel."""
    dtype, states = states.dtype, states.float()
    first, second = states.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    first, second = sin.chunk(2, dim=-1)
    sin = torch.cat((-first, second), dim=-1)  # the sign is given to the table, which is the smaller
    return torch.addcmul(states * cos[:, :, None], swapped, sin[:, :, None]).to(dtype)


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T / sqrt(d)) v written out: the reference, and the implementation that can return its weights."""
    weights = query @ key.transpose(2, 3) * scaling  # (B, H, L, L)
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    return (weights @ value).transpose(1, 2).contiguous(), weights  # (B, L, H, d)


def attention_by_products(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[Tensor, None]:
    """The same for some queries at a time, for bfloat16 on a CPU: torch's kernel there does not use the processor's
    bfloat16 products and takes more than twice as long (`python -m benchmarks.attention`)."""

    def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        weights = (query * scaling) @ key.transpose(2, 3)  # (B, H, 256, L)
        if mask is not None and mask.dtype == torch.bool:
            weights = weights.masked_fill(~mask, torch.finfo(weights.dtype).min)
        elif mask is not None:
            weights = weights + mask
        return weights.softmax(dim=-1) @ value  # softmax in float32 within, and rounded once

    key, value = key.contiguous(), value.contiguous()  # once, and not in every product
    queries = query.split(QUERIES_AT_ONCE, dim=2)
    masks = [None] * len(queries) if attention_mask is None else attention_mask.split(QUERIES_AT_ONCE, dim=2)
    # The weights of a row that short are no larger than what its MLP keeps; those of longer ones grow with L^2.
    run = rematerialise_pass if len(queries) == 1 else rematerialise
    parts = [run(attend, part, key, value, mask) for part, mask in zip(queries, masks, strict=True)]
    output = parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)  # (B, H, L, d)
    return output.transpose(1, 2), None  # (B, L, H, d)


class RaddAttention(nn.Module):
    """Every token attends to every token: text to the left and to the right, and the masks between."""

    def __init__(self, config: RaddConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # scaled_dot_product_attention is causal where a module does not say so
        self.qkv_proj = RaddLinear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = RaddLinear(config.hidden_size, config.hidden_size, bias=False)
        mark_zero_init(self.o_proj, config.zero_init_residual)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        positions: Positions | None = None,
        cache: CanvasCache | None = None,
        recomputed: Tensor | None = None,
        *,
        norm: Callable[[Tensor], Tensor],
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """
        Args:
            hidden_states: (B, L, D), or (B, C, D) at the positions `recomputed` (B, C), of a canvas that `cache` knows.
            positions: where queries are wanted; everywhere when None.
            norm: applied to the hidden states first.
        """
        batch, length = hidden_states.shape[:2]
        # One product for all three, also where queries are pruned: slicing the weight would bypass adapters and
        # offload hooks, for a saving of 1/12 of one layer.
        qkv = rematerialise_pass(lambda hidden: self.qkv_proj(norm(hidden)), hidden_states)  # (B, L, D) -> (B, L, 3 D)
        qkv = qkv.view(batch, length, 3, -1, self.head_dim)  # (B, L, 3, H, d)
        cos, sin = position_embeddings
        if positions is None:
            both, value = qkv.split((2, 1), dim=2)
            query, key = rotate(both.flatten(2, 3), cos, sin).chunk(2, dim=2)  # each (B, L, H, d)
            value = value.squeeze(2)  # (B, L, H, d)
        else:
            query, key, value = qkv.unbind(dim=2)  # each (B, L, H, d)
            key = rotate(key, cos, sin)
            query = rotate(positions.select(query), positions.select(cos), positions.select(sin))  # (B, K, H, d)
            if attention_mask is not None:  # (B, 1, L, L) -> (B, 1, K, L)
                attention_mask = positions.select_queries(attention_mask.expand(-1, -1, length, -1))
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # each (B, H, L or K, d)
        if value.requires_grad:
            value = value.contiguous()  # what is kept of a view is all of qkv
        if cache is not None:
            key, value = cache.update(self.layer_idx, key, value, recomputed)

        output, weights = self._attention_function(query)(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )  # (B, L or K, H, d)
        output = output.reshape(batch, output.shape[1], -1)  # (B, L or K, D)
        if positions is not None:
            output = positions.flatten(output)
        return self.o_proj(output), weights

    def _attention_function(self, query: Tensor) -> Callable:
        implementation = self.config._attn_implementation
        if implementation == "sdpa" and query.device.type == "cpu" and query.dtype == torch.bfloat16:
            return attention_by_products
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)


def mark_zero_init(linear: nn.Linear, zero: bool = True) -> None:
    """For `_init_weights`, which meets each layer without knowing what it is for."""
    setattr(linear, "zero_init", zero)  # noqa: B010, a plain assignment is an error to the type checker


class RaddMLP(nn.Module):
    def __init__(self, config: RaddConfig):
        super().__init__()
        width = cast(int, config.intermediate_size)  # never None once the configuration is made
        self.up_proj = RaddLinear(config.hidden_size, width)
        self.act_fn = nn.GELU(approximate="tanh")
        self.down_proj = RaddLinear(width, config.hidden_size)
        mark_zero_init(self.down_proj, config.zero_init_residual)

    def forward(self, hidden_states: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        if not torch.is_grad_enabled() and self._is_untouched():
            return self.down_proj(self.up_proj(norm(hidden_states), gelu=True))
        inner = rematerialise_pass(lambda hidden: self.up_proj(norm(hidden)), hidden_states)  # (..., D) -> (..., 4 D)
        return rematerialise_pass(lambda inner: self.down_proj(self.act_fn(inner)), inner)

    def _is_untouched(self) -> bool:
        """No adapter on `up_proj`, another activation, or a hook: nothing that could want what lies between the two."""
        up_proj, act_fn = self.up_proj, self.act_fn
        hooks = [each for module in (up_proj, act_fn) for each in (module._forward_hooks, module._forward_pre_hooks)]
        as_made = type(up_proj) is RaddLinear and type(act_fn) is nn.GELU and act_fn.approximate == "tanh"
        return as_made and not any(hooks)


class RaddDropout(nn.Dropout):
    """As torch's, which on a CPU takes three times as long (`python -m benchmarks.layers`). There p has 16 bits."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return hidden_states
        if hidden_states.device.type != "cpu":
            return torch.native_dropout(hidden_states, self.p, True)[0]
        dropped = round(self.p * 2**16)  # of as many values of 16 bits, four of which are drawn at a time
        bits = torch.empty(-(-hidden_states.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
        value = bits.view(torch.int16)[: hidden_states.numel()].view(hidden_states.shape)  # -2^15 .. 2^15 - 1
        keep = value.int() >= dropped - 2**15
        return hidden_states * keep * (2**16 / max(2**16 - dropped, 1))


class RaddLayer(GradientCheckpointingLayer):
    """Pre-norm transformer block. With `positions`, only they leave it: (B, L, D) -> (B, K, D) or (N, D)."""

    def __init__(self, config: RaddConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = RaddAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = RaddMLP(config)
        self.dropout = RaddDropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        positions: Positions | None = None,
        **kwargs,
    ) -> Tensor:
        # Norms go along as functions, not as modules, which accelerate would move to another device as it does tensors.
        norm = self.input_layernorm.__call__
        attention, _ = self.self_attn(
            hidden_states, position_embeddings, attention_mask, positions, norm=norm, **kwargs
        )
        if positions is not None:
            hidden_states = positions.flatten(positions.select(hidden_states))
        hidden_states = hidden_states + self.dropout(attention)
        return hidden_states + self.dropout(self.mlp(hidden_states, norm=self.post_attention_layernorm.__call__))


class RaddPreTrainedModel(PreTrainedModel):
    config_class = RaddConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["RaddLayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": RaddLayer, "attentions": RaddAttention}
    # The authors' checkpoints store the rotary frequencies, which are constants.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]

    def _init_weights(self, module: nn.Module) -> None:
        """The paper's initialisation, oddities included; transformers' habit would be N(0, 0.02)."""
        if isinstance(module, nn.Embedding):
            if self.config.embedding_std is None:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            else:
                init.normal_(module.weight, std=self.config.embedding_std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.ones_(module.bias)  # ones, not zeros: so in the authors' code
        elif isinstance(module, nn.Linear):
            # Either zeros (a mark set where the layer is made) or torch's own default.
            bound = 0.0 if getattr(module, "zero_init", False) else 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)

    @contextmanager
    def packed_weights(self, evaluations: int = EVALUATIONS_TO_PACK) -> Iterator[None]:
        """`with model.packed_weights():` evaluations without gradients on a CPU that has oneDNN and AVX-512 are faster.

        oneDNN multiplies weights in a layout of its own, which it else makes anew at every product: a twentieth of the
        time of 256 tokens, up to a third of that of a few (`python -m benchmarks.layers`). While this lasts, they
        are kept in that layout, too, which takes the memory of the weights once more. Results are the same to the bit
        (of a single row in float32: but for rounding). `generate` and the functions of `likelihood.py` do this
        themselves where they have many evaluations to make; around calls of few it does the same for them.

        A weight that changes meanwhile is used as it is then, unless it is written to through `.data`, which nobody
        notices. So adapters write, which is why the layers below them are left as they are; as are all of a model that
        accelerate has spread over several places, whose memory somebody has planned.

        Args:
            evaluations: that are to come; nothing is done for fewer than pay for it.
        """
        spread = len(set(getattr(self, "hf_device_map", {}).values())) > 1
        pays = evaluations >= EVALUATIONS_TO_PACK and ONEDNN_PACK is not None and not spread
        layers = [
            each
            for name, each in (self.named_modules() if pays else ())
            if isinstance(each, RaddLinear) and each.can_be_packed() and not name.endswith("base_layer")
        ]
        with PACKING:
            for layer in layers:
                layer.packing += 1
        try:
            yield
        finally:
            with PACKING:
                for layer in layers:
                    layer.packing -= 1
                    if not layer.packing:
                        layer.packed = None

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, *args, **kwargs):
        """As transformers', and the folder is complete: our parameter names, all code files, the auto classes.

        transformers would write a model loaded from the authors' weights under their names again
        (`save_original_format`), would register only the auto class of the class being saved, and would empty the
        caller's `state_dict`. After `fully_shard`, when a gathered one must be given, that class is made by torch,
        whose files would be shipped as the code: the model is saved under the class that it had before.
        """
        kwargs.setdefault("save_original_format", False)
        # Here: it ships the file, as every relative import does, and leaves transformers' pipelines alone until then.
        from .pipeline_radd import CUSTOM_PIPELINES

        self.config.auto_map = dict(AUTO_MAP)
        self.config.custom_pipelines = deepcopy(CUSTOM_PIPELINES)
        weights = None if state_dict is None else dict(state_dict)
        sharded = type(self)
        whole = next(cls for cls in sharded.__mro__ if not issubclass(cls, FSDPModule))
        self.__class__ = cast(type[RaddPreTrainedModel], whole)
        try:
            return super().save_pretrained(save_directory, is_main_process, weights, *args, **kwargs)
        finally:
            self.__class__ = sharded


class RaddModel(RaddPreTrainedModel):
    """The trunk: ids (B, L) to hidden states (B, L, D) after the final norm."""

    def __init__(self, config: RaddConfig):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RaddRotaryEmbedding(config)
        self.layers = nn.ModuleList([RaddLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_positions: Tensor | None = None,
        cache: CanvasCache | None = None,
        recompute: Tensor | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """
        Args:
            input_ids: (B, L) token ids, masks among them; or `inputs_embeds` (B, L, D) in their place.
            attention_mask: (B, L), 0 at padding, on either side; or (B, 1, L, L) as transformers prepares it.
            position_ids: (B or 1, L); by default each row counts from its first token that is not padding.
            output_positions: the positions to return, as a boolean mask (B, L) or as indices (B, K); all when None.
            cache: where keys and values are kept; filled by an evaluation without `recompute`.
            recompute: (B, C) indices, the `output_positions` (B, K) among them: only these are computed, from the
                keys and values that the `cache` has of all others. An approximation, where others have changed.

        Returns:
            `last_hidden_state` (B, L, D), or (N, D) for a mask (rows in order), or (B, K, D) for indices. Recorded
            `hidden_states` and `attentions` are those of every position in any case.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds.")
        if recompute is not None:
            if cache is None or output_positions is None or output_positions.dtype == torch.bool:
                raise ValueError("recompute needs a cache and output_positions as indices.")
            found = recompute[:, None, :] == output_positions[:, :, None]  # (B, K, C)
            output_positions = found.int().argmax(dim=-1)  # (B, K) where among the C
        positions = None if output_positions is None else Positions.of(output_positions)
        prune = positions is not None and self._can_prune(kwargs)
        outputs = self._run_layers(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            positions if prune else None,
            cache,
            recompute,
            return_dict=True,
            **kwargs,
        )
        if positions is not None and not prune:
            outputs.last_hidden_state = positions.flatten(positions.select(outputs.last_hidden_state))
        return outputs

    @merge_with_config_defaults
    @capture_outputs
    def _run_layers(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        positions: Positions | None,
        cache: CanvasCache | None,
        recompute: Tensor | None,
        **kwargs,
    ) -> BaseModelOutput:
        """Embedding, layers and norm; with `positions` the last layer returns only them."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (B, L) -> (B, L, D)
        if position_ids is None:
            position_ids = default_position_ids(inputs_embeds, attention_mask)
        position_embeddings = self.rotary_emb(position_ids)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        hidden_states = inputs_embeds
        if recompute is not None:
            chosen, (cos, sin) = Positions(recompute), position_embeddings
            hidden_states = chosen.select(inputs_embeds)  # (B, L, D) -> (B, C, D)
            position_embeddings = chosen.select(cos), chosen.select(sin)
            if mask is not None:  # (B, 1, L, L) -> (B, 1, C, L)
                mask = chosen.select_queries(cast(Tensor, mask).expand(-1, -1, inputs_embeds.shape[1], -1))
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1
            hidden_states = layer(
                hidden_states,
                position_embeddings,
                mask,
                positions if last else None,
                cache=cache,
                recomputed=recompute,
                **kwargs,
            )
        # Layers may live on several devices; the caller's positions and labels are where the embedding is.
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states).to(inputs_embeds.device))

    def make_cache(self) -> CanvasCache:
        """For `generate`'s `refresh_interval`.

        Raises:
            ValueError: for an attention that cannot take fewer queries than keys.
        """
        if not self._can_prune({}):
            raise ValueError(
                f"refresh_interval needs attn_implementation 'sdpa' or 'eager'; it is "
                f"{self.config._attn_implementation!r}, or hidden states or attentions are recorded."
            )
        return CanvasCache()

    def _can_prune(self, kwargs: dict) -> bool:
        """Whether the last layer may take queries for the output positions only.

        Flash attention places fewer queries than keys at the end of a row and flex attention has its mask built for
        L queries; and recorded hidden states and attentions are those of every position.
        """
        recorded = kwargs.get("output_hidden_states") or kwargs.get("output_attentions")
        recorded = recorded or self.config.output_hidden_states or self.config.output_attentions
        return self.config._attn_implementation in ("eager", "sdpa") and not recorded


def default_position_ids(inputs_embeds: Tensor, attention_mask: Tensor | None) -> Tensor:
    """(B or 1, L): a left-padded row is turned by the same angles as the same row alone."""
    if attention_mask is not None and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]


@dataclass
class RaddMaskedLMOutput(ModelOutput):
    """
    loss: () what to minimise, when `labels` are given.
    logits: (B, L, V), or (N, V) / (B, K, V) at the `output_positions`, mask column -inf; None with `labels`.
    sequence_nll: (B,) S, the sum of -log c over the labelled positions of each row, nats per sequence, float32.
    token_nll: (B, L) -log c at each labelled position, nats, 0 elsewhere, float32.
    hidden_states, attentions: one entry a layer, on request.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    sequence_nll: Tensor | None = None
    token_nll: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class RaddForMaskedLM(RaddPreTrainedModel, RaddGenerationMixin):
    """RADD: p(x_i | visible tokens) at every position, and the reverse process that writes text with it."""

    generation_config_class = RaddGenerationConfig
    output_modalities = ("text",)  # asked for by pipelines
    # Both losses below are means over sequences or tokens of this call; transformers' Trainer then divides
    # by the number of accumulation steps, which is right for the diffusion objectives.
    accepts_loss_kwargs = False

    def __init__(self, config: RaddConfig):
        super().__init__(config)
        self.model = RaddModel(config)
        self.lm_head = RaddLinear(config.hidden_size, config.vocab_size)
        mark_zero_init(self.lm_head)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """As transformers'; the mask keeps its id, which therefore must stay in the vocabulary."""
        if new_num_tokens is not None and new_num_tokens <= self.config.mask_token_id:
            raise ValueError(
                f"new_num_tokens={new_num_tokens} would cut off the mask, id {self.config.mask_token_id}; "
                f"it must be at least {self.config.mask_token_id + 1}."
            )
        return super().resize_token_embeddings(new_num_tokens, *args, **kwargs)

    def compute_logits(self, hidden_states: Tensor, head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """(..., D) -> (..., V). The one place where the mask is ruled out: whatever follows is a law over real tokens.

        On the head's own output, since slicing its weight would break resizing, offloading and adapters.
        """
        logits = (head or self.lm_head)(hidden_states).to(hidden_states.device)
        # Detached, or the backward pass would copy a gradient of this size, to no effect: at -inf it is zero.
        logits.detach().select(-1, self.config.mask_token_id).fill_(-torch.inf)
        return logits

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        loss_weights: Tensor | None = None,
        output_positions: Tensor | None = None,
        **kwargs,
    ) -> RaddMaskedLMOutput:
        """
        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: see [`RaddModel`].
            labels: (B, L) clean ids where a loss is wanted, -100 elsewhere; never the mask, which has probability 0 and
                would give an infinite loss. The head then runs at those positions
                only, in chunks, with the softmax in float32, and `logits` is None.
            loss_weights: (B,) w of the diffusion objectives, which are all mean(w S); see `losses.py`.
            output_positions: where logits are wanted, boolean (B, L) or indices (B, K); everywhere when None.

        Returns:
            [`RaddMaskedLMOutput`]. `loss` is `mean(loss_weights * S)` in nats per sequence with `loss_weights`,
            else the mean over the labelled tokens in nats per token, the ordinary masked-LM loss.

        Raises:
            ValueError: for `loss_weights` without `labels` or of another shape than (B,), and for `labels` with
                `output_positions`.
        """
        if labels is None and loss_weights is not None:
            raise ValueError("loss_weights are weights of a loss: pass labels with them.")
        if labels is not None and output_positions is not None:
            raise ValueError(
                "labels already say which positions are computed: pass labels or output_positions, not both."
            )
        if labels is not None:
            output_positions = labels != -100  # (B, L)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_positions=output_positions,
            **kwargs,
        )
        recorded = {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}
        if labels is None or output_positions is None:
            return RaddMaskedLMOutput(logits=self.compute_logits(outputs.last_hidden_state), **recorded)

        nll = self._nll(outputs.last_hidden_state, labels[output_positions])  # (N,)
        token_nll = nll.new_zeros(labels.shape).masked_scatter(output_positions, nll)  # (B, L)
        sequence_nll = token_nll.sum(dim=1)  # (B,)
        if loss_weights is not None:
            if loss_weights.shape != sequence_nll.shape:
                raise ValueError(
                    f"loss_weights has shape {tuple(loss_weights.shape)}; it must hold one weight a row, "
                    f"{tuple(sequence_nll.shape)}."
                )
            loss = (loss_weights * sequence_nll).mean()
        else:
            loss = sequence_nll.sum() / output_positions.sum().clamp(min=1)
        return RaddMaskedLMOutput(loss=loss, sequence_nll=sequence_nll, token_nll=token_nll, **recorded)

    def _nll(self, hidden_states: Tensor, targets: Tensor) -> Tensor:
        """-log c in float32: hidden states (N, D), ids (N,) -> (N,). The logits of one chunk exist at a time.

        Those of more than one chunk are computed again in the backward pass rather than kept. At least one chunk is
        run, so that a batch without labels still has a gradient (zero).
        """
        size = max(MAX_LOGITS_ELEMENTS // self.config.vocab_size, 1)

        def chunk_nll(hidden: Tensor, target: Tensor, *head: Callable) -> Tensor:
            return cast(Tensor, TokenNLL.apply(self.compute_logits(hidden, *head), target))

        def nll(hidden: Tensor, *head: Callable) -> Tensor:
            chunks = list(zip(hidden.split(size), targets.split(size), strict=True))
            if len(chunks) == 1 or not torch.is_grad_enabled():
                return torch.cat([chunk_nll(*chunk, *head) for chunk in chunks])
            return torch.cat([checkpoint(chunk_nll, *chunk, *head, use_reentrant=False) for chunk in chunks])

        head: nn.Module = self.lm_head
        if isinstance(head, FSDPModule) and len(hidden_states) > size:
            # A unit of `fully_shard` communicates at every call, and processes differ in chunks: one call for all.
            return call_around(head, nll, hidden_states)
        return nll(hidden_states)


class TokenNLL(torch.autograd.Function):
    """-log softmax(logits)[target] in float32: (N, V), (N,) -> (N,).

    As torch's cross-entropy, which keeps a softmax beside the logits, in float32 whatever their dtype, and fills two
    more such tensors in the backward pass. Here there are the logits, as they are, and their gradient.
    """

    ROWS = 32  # whose softmax is in a processor's cache at a time

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor) -> Tensor:
        total = torch.cat([rows.float().logsumexp(dim=-1) for rows in logits.split(TokenNLL.ROWS)])  # (N,)
        ctx.save_for_backward(logits, target, total)
        return total - logits.gather(1, target[:, None]).squeeze(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_nll: Tensor) -> tuple[Tensor, None]:
        logits, target, total = ctx.saved_tensors
        gradient = torch.empty_like(logits)  # (softmax - one at the target) * grad_nll
        rows = (each.split(TokenNLL.ROWS) for each in (gradient, logits, total, grad_nll))
        for part, logit, log_sum, scale in zip(*rows, strict=True):
            part.copy_((logit.float() - log_sum[:, None]).exp_().mul_(scale[:, None]))
        at_target = (logits.gather(1, target[:, None]).squeeze(1) - total).expm1() * grad_nll  # (N,)
        gradient.scatter_(1, target[:, None], at_target[:, None].to(gradient.dtype))
        return gradient, None


def call_around(module: nn.Module, function: Callable[[Tensor, Callable], Tensor], argument: Tensor) -> Tensor:
    """`module(argument)`, where its hooks run once, around `function(argument, forward)` instead of its `forward`."""
    forward, own = module.forward, vars(module).pop("forward", None)
    vars(module)["forward"] = lambda argument: function(argument, forward)
    try:
        return module(argument)
    finally:
        del vars(module)["forward"]
        if own is not None:
            vars(module)["forward"] = own


# The authors' parameter names, so that `from_pretrained` reads their repositories as they are. Anchored: none of
# these can match a name of ours.
register_checkpoint_conversion_mapping(
    "radd",
    [
        WeightRenaming(r"^vocab_embed\.embedding", "model.embed_tokens.weight"),
        WeightRenaming(r"^blocks\.(\d+)\.norm1\.", r"model.layers.\1.input_layernorm."),
        WeightRenaming(r"^blocks\.(\d+)\.attn_qkv\.", r"model.layers.\1.self_attn.qkv_proj."),
        WeightRenaming(r"^blocks\.(\d+)\.attn_out\.", r"model.layers.\1.self_attn.o_proj."),
        WeightRenaming(r"^blocks\.(\d+)\.norm2\.", r"model.layers.\1.post_attention_layernorm."),
        WeightRenaming(r"^blocks\.(\d+)\.mlp\.0\.", r"model.layers.\1.mlp.up_proj."),
        WeightRenaming(r"^blocks\.(\d+)\.mlp\.2\.", r"model.layers.\1.mlp.down_proj."),
        WeightRenaming(r"^output_layer\.norm_final\.", "model.norm."),
        WeightRenaming(r"^output_layer\.linear\.", "lm_head."),
    ],
    overwrite=True,
)

RaddModel.register_for_auto_class("AutoModel")
RaddForMaskedLM.register_for_auto_class("AutoModelForMaskedLM")

__all__ = ["RaddForMaskedLM", "RaddMaskedLMOutput", "RaddModel", "RaddPreTrainedModel"]
