# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Defines the network, which gives the distribution of the clean token at every position of a canvas.

    p(x_i | visible tokens),   with no time input                      arXiv:2406.03736

    input_ids (B, L) -> embedding (B, L, D) -> layers (B, L, D) -> norm -> lm_head (B, L, V), mask column -inf

A canvas is a row of token ids, some of them masks. Many diffusion models have the time as an input of their network.
RADD's network does not need it: given the visible tokens, a masked token has the same distribution at all times
(section 3.1).

A sampler needs the distribution only where it draws a token, and a loss only where there is a label. So the head runs
only at the `output_positions`, and the last layer computes all but its keys and values only there. A tensor (B, L, V)
exists only if the logits of every position are asked for. A partial evaluation computes only some positions, in all
layers. Matrix products, attention and loss come from `kernels_radd.py`, which computes the same as torch, faster on
some CPUs and GPUs.

Shapes: B batch, L length, V vocabulary (with the mask), D hidden size, H heads, d head width,
        K output positions per row, N output positions in the whole batch, C positions of a partial evaluation.
"""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import initialization as init
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils import ModelOutput, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .canvas_radd import Positions
from .configuration_radd import AUTO_MAP, RaddConfig
from .generation_radd import RaddGenerationConfig, RaddGenerationMixin
from .inputs_radd import check_inputs, check_keywords, check_labels
from .kernels_radd import (
    Dropout,
    attention_by_products,
    call_module,
    compile_backend,
    compiled,
    feed_forward,
    has_backward_hooks,
    has_fixed_shapes,
    has_hooks_inside,
    is_faster_by_halves,
    is_faster_by_products,
    label_places,
    linear,
    masked_softmax,
    norm_linear,
    rotate_by_halves,
    token_nll,
    zero_without_keys,
)
from .settings_radd import shortened

logger = logging.get_logger(__name__)


class RaddRotaryEmbedding(nn.Module):
    """Computes cosines and sines of the rotary embedding (arXiv:2104.09864), in float32 whatever the model's dtype.

    The frequencies come from the configuration at every call. In a buffer, `.to(bfloat16)` would round them, and a
    model made on the meta device would not have them.
    """

    def __init__(self, config: RaddConfig):
        super().__init__()
        self.config = config

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Returns cosines and sines: (B or 1, L) -> (B or 1, L, d) each, on the device of the hidden states x."""
        position_ids = position_ids.to(x.device)
        frequencies, scaling = rotary_frequencies(self.config, position_ids)  # (d / 2,), or (B or 1, 1, d / 2)
        angles = position_ids[..., None].float() * frequencies  # (B or 1, L, d / 2)
        angles = torch.cat((angles, angles), dim=-1)  # (B or 1, L, d)
        return angles.cos() * scaling, angles.sin() * scaling


def rotary_frequencies(config: RaddConfig, position_ids: Tensor) -> tuple[Tensor, float]:
    """Returns each pair's angle per position, (d / 2,) or (B or 1, 1, d / 2), and a factor for cosines and sines.

    The types "dynamic" and "longrope" depend on the length of a row. Each row has its own length here, without padding.

    Args:
        position_ids: (B or 1, L).
    """
    rope, device = cast(dict, config.rope_parameters), position_ids.device
    kind = rope["rope_type"]
    if kind == "default":
        return default_frequencies(config, device), 1.0
    initialise = ROPE_INIT_FUNCTIONS[kind]
    lengths = position_ids.amax(dim=-1, keepdim=True)[..., None] + 1  # (B or 1, 1, 1)
    if kind == "longrope":
        most = rope["original_max_position_embeddings"]
        short, scaling = initialise(config, device, seq_len=most)
        long, _ = initialise(config, device, seq_len=most + 1)
        return torch.where(lengths > most, long, short), scaling
    return initialise(config, device, seq_len=cast(int, lengths))  # it takes a tensor, too


def default_frequencies(config: RaddConfig, device: torch.device | None = None) -> Tensor:
    """Returns (d / 2,) base^(-2j / d), each pair's angle per position, in float32 as in the authors' code."""
    width = config.hidden_size // config.num_attention_heads
    exponent = torch.arange(0, width, 2, dtype=torch.float32, device=device) / width
    return 1.0 / cast(dict, config.rope_parameters)["rope_theta"] ** exponent


def signed(sin: Tensor) -> Tensor:
    """Negates the first half of the sines (..., d), once for all layers. Then [`rotate`] only has to swap halves."""
    first, second = sin.chunk(2, dim=-1)
    return torch.cat((-first, second), dim=-1)


def rotate(states: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turns each pair (x_j, x_{j + d/2}) of states (B, L, H, d) by its angle. cos, signed_sin: (B or 1, L, d).

    It computes in float32. A bfloat16 cosine is off by up to 0.4 %, which matters in a long row.
    """
    if is_faster_by_halves(states):
        return rotate_by_halves(states, cos, signed_sin)
    dtype, states = states.dtype, states.float()
    first, second = states.chunk(2, dim=-1)
    swapped = torch.cat((second, first), dim=-1)
    return torch.addcmul(states * cos[:, :, None], swapped, signed_sin[:, :, None]).to(dtype)


class CanvasCache:
    """Keeps the keys and values of every layer at all positions of a canvas, as they were last computed.

    It is for approximate evaluations. After an evaluation of all positions, `RaddModel.forward(..., partial=...)`
    recomputes some of them, with the old keys and values of the others. An evaluation of fewer rows computes the first
    rows.

    Args:
        rows: the most rows of any evaluation; None: those of the first. Memory for them is made once for each layer,
            and keeps its place.
    """

    def __init__(self, rows: int | None = None):
        self.rows = rows
        self.states: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: keys and values, (rows, H, L, d) both

    def update(self, layer_idx: int, key: Tensor, value: Tensor, partial: Positions | None) -> tuple[Tensor, Tensor]:
        """Writes keys and values of all positions, or of the `partial` ones; returns those of all positions."""
        if layer_idx not in self.states:
            with torch.inference_mode(False):  # memory made in inference mode could only be written in that mode
                whole = (self.rows or len(key), *key.shape[1:])
                self.states[layer_idx] = key.new_empty(whole), value.new_empty(whole)
        stored, stored_value = (states[: len(key)] for states in self.states[layer_idx])  # (B, H, L, d) both
        for states, fresh in ((stored, key), (stored_value, value)):
            if partial is None:
                states.copy_(fresh)
            else:
                states.scatter_(2, partial.indices[:, None, :, None].expand_as(fresh), fresh)  # (B, H, C, d)
        return stored, stored_value

    def arrange_rows(self, rows: Tensor) -> None:
        """Puts the rows in another order: `rows` is a permutation of all of them."""
        for both in self.states.values():
            for states in both:
                states.copy_(states[rows.to(states.device)])


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Computes softmax(q k^T / sqrt(d)) v in plain torch. It is the reference, and also returns the weights."""
    scores = query @ key.transpose(2, 3) * scaling  # (B, H, L, L)
    weights = masked_softmax(scores, attention_mask, dtype=torch.float32).to(query.dtype)
    output = zero_without_keys(weights @ value, attention_mask)
    return output.transpose(1, 2).contiguous(), weights  # (B, L, H, d)


class RaddAttention(nn.Module):
    """Lets every token attend to all tokens on both sides, masks included."""

    def __init__(self, config: RaddConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # without this, transformers would make scaled_dot_product_attention causal
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        mark_zero_init(self.o_proj, config.zero_init_residual)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        positions: Positions | None = None,
        cache: CanvasCache | None = None,
        partial: Positions | None = None,
        *,
        norm: Callable[[Tensor], Tensor],
        **kwargs,
    ) -> tuple[Tensor, Tensor | None]:
        """Returns the attention's output, and its weights if the implementation gives them.

        Args:
            hidden_states: (B, L, D). In a `partial` evaluation (B, C, D), and `cache` has the keys and values of the
                other positions.
            positions: the positions of the queries; None: all.
            norm: applied to the hidden states first.
        """
        batch, length = hidden_states.shape[:2]
        # One product gives queries, keys and values, even if only some queries are needed. A slice of the weight would
        # save 1/12 of one layer, but bypass adapters and the hooks of offloading.
        qkv = norm_linear(norm, self.qkv_proj, hidden_states)  # (B, L, D) -> (B, L, 3 D)
        qkv = qkv.view(batch, length, 3, self.num_heads, self.head_dim)  # (B, L, 3, H, d)
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
            value = value.contiguous()  # a saved view would keep all of qkv in memory
        if cache is not None:
            key, value = cache.update(self.layer_idx, key, value, partial)
        if isinstance(attention_mask, Tensor) and attention_mask.is_floating_point():
            attention_mask = attention_mask.to(query.dtype)  # autocast may have chosen the dtype

        output, weights = self._attention_function(query)(
            self, query, key, value, attention_mask, dropout=0.0, scaling=self.scaling, **kwargs
        )  # (B, L or K, H, d)
        output = output.flatten(2)  # (B, L or K, D)
        if positions is not None:
            output = positions.flatten(output)
        return linear(self.o_proj, output), weights

    def _attention_function(self, query: Tensor) -> Callable:
        implementation = self.config._attn_implementation
        if is_faster_by_products(implementation, query):
            return attention_by_products
        return ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)


def mark_zero_init(linear: nn.Linear, zero: bool = True) -> None:
    """Marks a layer that starts at zero, for `_init_weights`, which does not know what a layer is for."""
    setattr(linear, "zero_init", zero)  # noqa: B010, the type checker takes a plain assignment for an error


class RaddMLP(nn.Module):
    """Transforms each position by itself: a wide layer, GELU and a layer back."""

    def __init__(self, config: RaddConfig):
        super().__init__()
        width = cast(int, config.intermediate_size)  # never None once the configuration is made
        self.up_proj = nn.Linear(config.hidden_size, width)
        self.act_fn = nn.GELU(approximate="tanh")
        self.down_proj = nn.Linear(width, config.hidden_size)
        mark_zero_init(self.down_proj, config.zero_init_residual)

    def forward(self, hidden_states: Tensor, norm: Callable[[Tensor], Tensor]) -> Tensor:
        """Applies `norm`, then the MLP: (..., D) -> (..., D)."""
        return feed_forward(norm, self.up_proj, self.act_fn, self.down_proj, hidden_states)


class RaddLayer(GradientCheckpointingLayer):
    """Runs a pre-norm transformer block: (B, L, D) -> (B, L, D). With `positions` it returns (B, K, D) or (N, D)."""

    def __init__(self, config: RaddConfig, layer_idx: int):
        super().__init__()
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = RaddAttention(config, layer_idx)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = RaddMLP(config)
        self.dropout = Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Tensor | None = None,
        positions: Positions | None = None,
        **kwargs,
    ) -> Tensor:
        # Norms are passed as functions: accelerate would move a module among the arguments to another device.
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
    # The authors' checkpoints store the rotary frequencies. They are constants, so they are not loaded.
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]

    def _init_weights(self, module: nn.Module) -> None:
        """Initialises as the authors' code does, oddities included. transformers would draw from N(0, 0.02)."""
        if isinstance(module, nn.Embedding):
            if self.config.embedding_std is None:
                init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            else:
                init.normal_(module.weight, std=self.config.embedding_std)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.ones_(module.bias)  # ones, not zeros, as in the authors' code
        elif isinstance(module, nn.Linear):
            # Zeros in layers that `mark_zero_init` marked, else torch's own default.
            bound = 0.0 if getattr(module, "zero_init", False) else 1 / math.sqrt(module.in_features)
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)

    def save_pretrained(self, save_directory, is_main_process=True, state_dict=None, *args, **kwargs):
        """Saves as transformers does, and completes the folder: our parameter names, all code files, the auto classes.

        transformers alone would do three things otherwise. It would write a model that was loaded from the authors'
        weights under their names again (`save_original_format`). It would register only the auto class of the class
        that is saved. And it would empty the caller's `state_dict`.

        After `fully_shard`, which needs a gathered `state_dict`, the model has a class made by torch, and transformers
        would ship torch's files as the model's code. So the model is saved under the class that it had before.
        """
        kwargs.setdefault("save_original_format", False)
        # A relative import makes transformers ship the file. It stands here, since only saving needs the pipelines of
        # transformers.
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
    """Computes the trunk: ids (B, L) to hidden states (B, L, D) after the final norm."""

    def __init__(self, config: RaddConfig):
        super().__init__(config)
        config.check()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.rotary_emb = RaddRotaryEmbedding(config)
        self.layers = nn.ModuleList([RaddLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False
        self.post_init()

    def __call__(self, *args, **kwargs):
        """Runs the compiled trunk in training steps only. Calls that record, select or evaluate run uncompiled."""
        backend = compile_backend(self)
        if backend is None:
            return super().__call__(*args, **kwargs)
        others = ("output_positions", "cache", "partial", "output_hidden_states", "output_attentions")
        recording = self.config.output_hidden_states or self.config.output_attentions
        other_shapes = recording or any(kwargs.get(name) is not None for name in others)
        # torch does not see hooks that are added after compilation. The embedding is not compiled, so its hooks run.
        if other_shapes or has_hooks_inside(self.layers) or has_hooks_inside(self.norm):
            return super().__call__(*args, **kwargs)
        if not args:
            check_inputs(self.config, **kwargs)  # here, since compiled code cannot check values
            # Compiled code would compute the tables again in every kernel that reads them, and add up the gradient of
            # the embedding in an order that changes from run to run. So both are computed here.
            ids, embedded = kwargs.get("input_ids"), kwargs.get("inputs_embeds")
            embedded = self.embed_tokens(ids) if embedded is None else embedded  # (B, L, D)
            mask, position_ids = kwargs.get("attention_mask"), kwargs.get("position_ids")
            tables = self.position_embeddings(embedded, mask, position_ids)
            kwargs |= {"input_ids": None, "inputs_embeds": embedded, "position_embeddings": tables}
        return compiled(call_module, backend)(self, *args, **kwargs)

    def position_embeddings(
        self, inputs_embeds: Tensor, attention_mask: Tensor | None, position_ids: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Returns cosines and `signed` sines, (B or 1, L, d) each, for embeddings (B, L, D)."""
        if position_ids is None:
            position_ids = default_position_ids(inputs_embeds, attention_mask)
        cos, sin = self.rotary_emb(inputs_embeds, position_ids)
        return cos, signed(sin)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_positions: Tensor | Positions | None = None,
        cache: CanvasCache | None = None,
        partial: Positions | None = None,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **kwargs,
    ) -> BaseModelOutput:
        """Returns the hidden states, at all positions or at some.

        Args:
            input_ids: (B, L) token ids, some of them masks. Or pass `inputs_embeds` (B, L, D) in their place.
            attention_mask: (B, L), 1 at text and 0 at padding, on either side, in any dtype. Eager and sdpa attention
                also take (B, 1, L, L): as booleans or the integers 1 and 0, the keys that each query attends to; in a
                floating-point dtype, numbers to add to the scores, where -inf and the dtype's lowest number exclude a
                key. In its place there may be 1 row, H heads or 1 query. A query that attends to nothing gets zeros.
                Flex attention takes its own BlockMask in place of (B, 1, L, L).
            position_ids: (B or 1, L); by default each row counts from its first token that is not padding.
            output_positions: the positions to return, as a boolean mask (B, L), as indices (B, K) or as [`Positions`];
                None: all.
            cache: keeps keys and values. An evaluation that is not `partial` fills it.
            partial: C positions of each row, the `output_positions` among them. Only these are computed, with the keys
                and values of all others in `cache`. It is approximate if the others have changed.
            position_embeddings: what the method of this name returns; computed if not given.
            kwargs: `output_hidden_states`, `output_attentions` and `return_dict`, as in transformers; with flash
                attention also those of packed rows (`cu_seq_lens_q` and so on). `use_cache`, `past_key_values`,
                `cache_position` and `is_causal` may be None or False, and `token_type_ids` may be zero.

        Returns:
            `last_hidden_state` (B, L, D). With `output_positions` it is (N, D), row after row, for a mask or the
            [`Positions`] of a mask, and (B, K, D) for indices. Recorded `hidden_states` and `attentions` always have
            every position.

        Raises:
            ValueError: for both or neither of `input_ids` and `inputs_embeds`, for an argument of a wrong shape or
                dtype, and for a `partial` evaluation without `cache` or `output_positions`. Values are checked on a CPU
                only.
            TypeError: for an unknown keyword.
        """
        kwargs = check_keywords(self.config, RaddModel.forward, kwargs)
        check_inputs(self.config, input_ids, attention_mask, position_ids, inputs_embeds, output_positions)
        if not torch.compiler.is_compiling():  # a compiler would make a graph for each side of the condition
            length = cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds).shape[1]
            if length > self.config.max_position_embeddings:
                logger.warning_once(
                    f"Some rows have more than max_position_embeddings={self.config.max_position_embeddings} tokens, "
                    "the length that the model was trained at: expect worse predictions. This warning comes once."
                )
        positions = output_positions
        if isinstance(positions, Tensor):
            positions = Positions.of(positions)
        if partial is not None:
            if cache is None or positions is None:
                raise ValueError("a partial evaluation needs a cache and output_positions.")
            positions = positions.within(partial)
        prune = positions is not None and self.can_prune(**kwargs)
        outputs = self._run_layers(
            input_ids,
            attention_mask,
            position_ids,
            inputs_embeds,
            positions if prune else None,
            cache,
            partial,
            position_embeddings,
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
        partial: Positions | None,
        position_embeddings: tuple[Tensor, Tensor] | None,
        **kwargs,
    ) -> BaseModelOutput:
        """Runs embedding, layers and norm. With `positions` the last layer returns only these."""
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)  # (B, L) -> (B, L, D)
        if position_embeddings is None:
            position_embeddings = self.position_embeddings(inputs_embeds, attention_mask, position_ids)
        mask = None
        # torch's fastest attention takes no mask. Under a compiler, or during a capture, transformers would make a mask
        # even from None.
        if attention_mask is not None:
            mask = self.prepare_mask(attention_mask, inputs_embeds)
        hidden_states = inputs_embeds
        if partial is not None:
            hidden_states = partial.select(inputs_embeds)  # (B, L, D) -> (B, C, D)
            cos, sin = position_embeddings  # (B or 1, L, d) each
            position_embeddings = partial.select(cos), partial.select(sin)
            if mask is not None:  # (B, 1, L, L) -> (B, 1, C, L)
                mask = partial.select_queries(cast(Tensor, mask).expand(-1, -1, inputs_embeds.shape[1], -1))
        for index, layer in enumerate(self.layers):
            last = index == len(self.layers) - 1
            hidden_states = layer(
                hidden_states,
                position_embeddings,
                mask,
                positions if last else None,
                cache=cache,
                partial=partial,
                **kwargs,
            )
        # Layers may live on several devices; the caller's positions and labels are where the embedding is.
        return BaseModelOutput(last_hidden_state=self.norm(hidden_states).to(inputs_embeds.device))

    def prepare_mask(self, attention_mask: Any, inputs_embeds: Tensor) -> Any:
        """Returns the mask of `forward` in the form that attention takes, for embeddings (B, L, D).

        For eager and sdpa attention the form is (B or 1, 1 or H, L or 1, L). It is True where a query attends. In a
        floating-point dtype it holds numbers to add to the scores, with -inf where a query does not attend. It is None
        if nothing is excluded.
        """
        if getattr(attention_mask, "ndim", None) == 4:
            mask = attention_mask.to(inputs_embeds.device)
            if not mask.is_floating_point():
                return mask.bool()
            # transformers writes the lowest number in place of -inf. In a row of nothing but that number, softmax would
            # exclude nothing.
            return mask.masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)
        mask = create_bidirectional_mask(config=self.config, inputs_embeds=inputs_embeds, attention_mask=attention_mask)
        if mask is None or self.config._attn_implementation != "eager":
            return mask
        return mask == 0  # for eager attention, too, transformers writes the lowest number

    def fixed_inputs(self, canvas: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
        """Returns the arguments of `forward` that stay the same while a canvas is filled.

        So rotary tables and the attention mask are made once, not at every evaluation. If nothing is padded there is no
        mask: torch's fastest attention takes none.

        Args:
            canvas: (B, L) ids. attention_mask: (B, L), 0 at padding; or None.
        """
        tables = self.position_embeddings(canvas, attention_mask, None)
        mask = attention_mask
        if mask is not None and self.config._attn_implementation in ("eager", "sdpa"):
            of_this_shape = canvas.new_empty(*canvas.shape, 1, dtype=self.dtype)
            mask = self.prepare_mask(mask, of_this_shape)  # (B, 1, L, L), or None
        return {"attention_mask": mask, "position_embeddings": tables}

    def make_cache(self, rows: int | None = None) -> CanvasCache:
        """Makes an empty cache for this number of rows, for the setting `refresh_interval` of `generate`.

        Raises:
            ValueError: if the attention cannot take fewer queries than keys, or if hidden states or attentions are
                recorded.
        """
        if not self.can_prune():
            raise ValueError(
                f"refresh_interval needs attn_implementation='sdpa' or 'eager', and no recorded hidden states or "
                f"attentions; here attn_implementation={self.config._attn_implementation!r}."
            )
        return CanvasCache(rows)

    def can_prune(self, output_hidden_states: bool | None = None, output_attentions: bool | None = None, **_) -> bool:
        """Tells whether the last layer may take queries for the output positions only.

        Flash attention takes fewer queries than keys to be the last queries of a row. The mask of flex attention is
        built for L queries. Recorded hidden states and attentions need every position.
        """
        recorded = output_hidden_states or output_attentions
        recorded = recorded or self.config.output_hidden_states or self.config.output_attentions
        return self.config._attn_implementation in ("eager", "sdpa") and not recorded


def default_position_ids(inputs_embeds: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Counts positions from each row's first token, (B or 1, L). So padding on the left does not change the angles."""
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)
    return torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device)[None]


@dataclass
class RaddMaskedLMOutput(ModelOutput):
    """Holds what the network returns. A nat is the unit of natural logarithms.

    loss: () the mean to minimise, if `labels` are given.
    logits: (B, L, V), or (N, V) / (B, K, V) at the `output_positions`, mask column -inf; None with `labels`, unless
        `output_logits=True` asks for them.
    sequence_nll: (B,) float32, S: the sum of -log p of the labels of each row, nats per sequence.
    token_nll: (B, L) float32, -log p of each label in nats, 0 where there is no label.
    hidden_states, attentions: one entry for each layer, on request.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    sequence_nll: Tensor | None = None
    token_nll: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


class RaddForMaskedLM(RaddPreTrainedModel, RaddGenerationMixin):
    """Gives p(x_i | visible tokens) at every position, and generates text by the reverse process."""

    generation_config_class = RaddGenerationConfig
    output_modalities = ("text",)  # pipelines read it
    # False makes transformers' Trainer divide the loss by the number of accumulation steps. That is right for the
    # diffusion objectives, since each loss is a mean over one call.
    accepts_loss_kwargs = False

    def __init__(self, config: RaddConfig):
        super().__init__(config)
        self.model = RaddModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        mark_zero_init(self.lm_head)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Module) -> None:
        self.lm_head = new_embeddings

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args, **kwargs) -> nn.Embedding:
        """Resizes as transformers does. The mask keeps its id, which must stay in the vocabulary.

        Rows that `pad_to_multiple_of` adds do not stand for tokens. `config.num_tokens` is set to the first of them.
        """
        if new_num_tokens is not None and new_num_tokens <= self.config.mask_token_id:
            raise ValueError(
                f"new_num_tokens={new_num_tokens} would cut off the mask, id {self.config.mask_token_id}; "
                f"it must be at least {self.config.mask_token_id + 1}."
            )
        tokens = new_num_tokens or self.config.num_tokens or self.config.vocab_size
        embeddings = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        self.config.num_tokens = tokens if tokens < self.config.vocab_size else None
        return embeddings

    def _apply(self, *args, **kwargs):
        """Moves or casts as torch does, and frees captured CUDA graphs, which use the weights at their old place."""
        self.free_cuda_graphs()
        return super()._apply(*args, **kwargs)

    def compute_logits(self, hidden_states: Tensor, head: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Computes logits, with -inf for the mask and for ids that are not tokens: (..., D) -> (..., V).

        This is the only place that rules them out. It changes the output of the head: a slice of the head's weight
        would break resizing, offloading and adapters.
        """
        logits = linear(self.lm_head, hidden_states) if head is None else head(hidden_states)
        logits = logits.to(hidden_states.device)
        mask, tokens = cast(int, self.config.mask_token_id), self.config.num_tokens
        if has_backward_hooks(self.lm_head):  # such hooks make the logits a view, which must not be written to
            ids = torch.arange(logits.shape[-1], device=logits.device)  # (V,)
            ruled_out = ids == mask if tokens is None else (ids == mask) | (ids >= tokens)
            return logits.masked_fill(ruled_out, -torch.inf)
        # Detached: otherwise the backward pass would copy a gradient of this size for nothing, since it is zero at
        # -inf.
        logits.detach().select(-1, mask).fill_(-torch.inf)
        if tokens is not None:
            logits.detach()[..., tokens:].fill_(-torch.inf)
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
        output_positions: Tensor | Positions | None = None,
        max_targets: int | None = None,
        output_logits: bool = False,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs,
    ) -> RaddMaskedLMOutput:
        """Returns the logits, or the loss at the labels.

        Args:
            input_ids, attention_mask, position_ids, inputs_embeds: see [`RaddModel`].
            labels: (B, L) clean ids at the positions of the loss, -100 elsewhere. A label must not be the mask, which
                has probability 0. With labels, the head runs at the labelled positions only, in chunks, with the
                softmax in float32, and `logits` is None.
            loss_weights: (B,) w of the diffusion objectives, which are all mean(w S); see `losses.py`.
            output_positions: the positions of the logits, boolean (B, L), indices (B, K) or [`Positions`]; None: all.
            max_targets: a number that is at least the number of labels in the batch. With it the host need not wait for
                a GPU to count the labels. If it is too small, the loss is nan on a GPU. A compiler ignores it.
            output_logits: with labels, whether to return the logits of every position, too. They take B L V numbers of
                memory, and the head runs once more.
            num_items_in_batch: the divisor of the sum over labelled tokens, as in transformers; None: the number of
                labelled tokens.
            kwargs: those of [`RaddModel`].

        Returns:
            [`RaddMaskedLMOutput`]. With `loss_weights`, `loss` is `mean(loss_weights * S)` in nats per sequence.
            Without them it is the mean over the labelled tokens in nats per token, the ordinary masked-LM loss.

        Raises:
            ValueError: for `loss_weights` without `labels`, for `labels` with `output_positions`, and for an argument
                of a wrong shape, dtype or device. On a CPU also for labels that are the mask or not ids, and for a
                `max_targets` that is too small. On a GPU the host would have to wait for these values.
            TypeError: for an unknown keyword.
        """
        kwargs = check_keywords(self.config, RaddForMaskedLM.forward, kwargs)
        if not isinstance(output_logits, bool):
            raise ValueError(f"output_logits={shortened(output_logits)} must be True or False.")
        if labels is None and loss_weights is not None:
            raise ValueError("loss_weights are weights of a loss: pass labels with them.")
        if labels is not None and output_positions is not None:
            raise ValueError(
                "labels already say which positions are computed: pass labels or output_positions, not both."
            )
        if loss_weights is not None and num_items_in_batch is not None:
            raise ValueError(
                "num_items_in_batch divides a sum over tokens, and loss_weights are for a mean over rows: pass one."
            )
        check_inputs(self.config, input_ids, attention_mask, position_ids, inputs_embeds, output_positions)
        if labels is not None:
            given = cast(Tensor, input_ids if inputs_embeds is None else inputs_embeds)
            check_labels(self.config, given, labels, loss_weights, max_targets, num_items_in_batch)
            labels = labels.long()
        fixed = labels is not None and has_fixed_shapes(self.model, labels.device)
        everywhere = fixed or output_logits
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            output_positions=output_positions if labels is None or everywhere else labels != -100,
            **kwargs,
        )
        recorded = {"hidden_states": outputs.hidden_states, "attentions": outputs.attentions}
        if labels is None:
            return RaddMaskedLMOutput(logits=self.compute_logits(outputs.last_hidden_state), **recorded)

        labelled, vocab_size = labels != -100, self.config.vocab_size  # (B, L)
        hidden = outputs.last_hidden_state
        logits = self.compute_logits(hidden) if output_logits else None  # (B, L, V)
        # (N,); in a fixed shape, unlabelled places follow the labelled ones
        places = label_places(labels, max_targets, vocab_size) if fixed else labelled.flatten().nonzero().squeeze(1)
        if everywhere:
            hidden = hidden.flatten(0, 1).index_select(0, places)  # (B, L, D) -> (N, D)
        targets, backend = labels.flatten().index_select(0, places), compile_backend(self.model)
        nll = token_nll(self.compute_logits, self.lm_head, hidden, targets, vocab_size, backend)  # (N,)
        of_each_token = nll.new_zeros(labels.numel()).scatter(0, places, nll).view(labels.shape)  # (B, L)
        # Compiled code uses all positions. It must not look at max_targets, which differs from batch to batch.
        if not torch.compiler.is_compiling() and max_targets is not None:
            of_each_token = of_each_token + torch.where(labelled.sum() > max_targets, torch.nan, 0.0)
        sequence_nll = of_each_token.sum(dim=1)  # (B,)
        if loss_weights is not None:
            loss = (loss_weights * sequence_nll).mean()
        else:
            number = labelled.sum().clamp(min=1) if num_items_in_batch is None else num_items_in_batch
            loss = (sequence_nll.sum() / number).reshape(())  # the number may be a tensor of one element
        return RaddMaskedLMOutput(
            loss=loss, logits=logits, sequence_nll=sequence_nll, token_nll=of_each_token, **recorded
        )


class RaddForCausalLM(RaddPreTrainedModel):
    """Says what to load instead of a causal language model, which predicts a token from those before it."""

    INSTEAD = (
        "RADD fills masks and is not a causal language model; load AutoModelForMaskedLM, and continue a text with "
        "model.generate(prefix=..., max_new_tokens=..., tokenizer=...), or fill blanks with pipeline('radd-infilling')."
    )

    def __init__(self, config: RaddConfig, *args, **kwargs):
        raise LookupError(self.INSTEAD)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Raises a LookupError before any weight is read.

        transformers' pipeline also raises a LookupError for a task that it does not know. It would catch a ValueError,
        and show it below two tracebacks.
        """
        raise LookupError(f"{pretrained_model_name_or_path}: {cls.INSTEAD}")


# The authors' parameter names: with them `from_pretrained` reads the authors' repositories as they are. The anchor ^
# keeps the patterns from matching our names.
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
