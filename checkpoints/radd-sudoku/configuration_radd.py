# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The configuration of a RADD checkpoint: sizes, token ids and noise schedule, checked.

RADD is the masked-diffusion language model of Ou et al., "Your Absorbing Discrete Diffusion Secretly
Models the Conditional Distributions of Clean Data" (arXiv:2406.03736).
"""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from .settings_radd import is_number

# The class that each auto class of transformers gives. AutoModel also gives the model with a head, since a diffusion
# model is used by `.generate`. RaddForCausalLM is no model: it raises an error that says what to load instead, and
# `pipeline("text-generation")` shows it.
AUTO_MAP = {
    "AutoConfig": "configuration_radd.RaddConfig",
    "AutoModel": "modeling_radd.RaddForMaskedLM",
    "AutoModelForCausalLM": "modeling_radd.RaddForCausalLM",
    "AutoModelForMaskedLM": "modeling_radd.RaddForMaskedLM",
}

NOISE_TYPES = ("loglinear", "geometric")

# Other diffusion language models that could be taken for RADD, by their `model_type`.
OTHER_DIFFUSION = {
    "mdlm": "MDLM, whose layers have time as an input",
    "bd3lm": "BD3-LM, block diffusion with time as an input",
    "llada": "LLaDA, a Llama with attention to both sides",
    "Dream": "Dream, a Qwen2 with attention to both sides",
}

# The fields that each type of `rope_parameters` needs besides "rope_theta".
ROPE_NEEDS: dict[str, tuple[str, ...]] = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
ROPE_LISTS = ("short_factor", "long_factor")
# Fields that may be None: transformers has a default for them.
ROPE_OPTIONAL = (
    "factor",
    "partial_rotary_factor",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
)


@strict
class RaddConfig(PreTrainedConfig):
    r"""Holds the configuration of [`RaddModel`] and [`RaddForMaskedLM`]. The defaults are the paper's small model.

    Args:
        vocab_size: V, the number of tokens *including* the mask token (GPT-2's 50257 and the mask).
        mask_token_id: the id of the mask, the absorbing token; `vocab_size - 1` when None, as in the authors' code.
        num_tokens: the number of ids that stand for tokens. Ids from here on pad the vocabulary and have no
            probability. None: all ids stand for tokens. `resize_token_embeddings(pad_to_multiple_of=64)` sets it.
        hidden_size, num_hidden_layers, num_attention_heads: width, depth and heads of the transformer.
        intermediate_size: width inside the MLP; `4 * hidden_size` when None.
        max_position_embeddings: L, the length that the model was trained at, and the default length of `generate`.
        hidden_dropout: dropout on both residual branches in training.
        layer_norm_eps: epsilon of every LayerNorm.
        rope_parameters: settings of the rotary embedding in transformers' form, such as
            `{"rope_type": "default", "rope_theta": 10000.0}`. All types of transformers are taken. Only the type
            "proportional" takes a `partial_rotary_factor`; the others turn whole heads.
        noise_type: "loglinear" or "geometric", the schedule of `noise_radd.py`.
        noise_eps: eps of the log-linear schedule; the mask probability at t = 1 is `1 - noise_eps`.
        sigma_min, sigma_max: total noise of the geometric schedule at t = 0 and t = 1.
        embedding_std: standard deviation of a normal initialisation of the token embedding; None: the
            paper's `kaiming_uniform(a=sqrt(5))`.
        zero_init_residual: whether both residual branches of every layer start at zero; in the paper they do not.

    Raises:
        ValueError: for values that do not fit together. The message names the argument.
    """

    model_type = "radd"

    vocab_size: int = 50258
    mask_token_id: int | None = None
    num_tokens: int | None = None
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int | None = None
    max_position_embeddings: int = 1024
    hidden_dropout: float | int = 0.02
    layer_norm_eps: float = 1e-5
    rope_parameters: dict | None = None

    noise_type: str = "loglinear"
    noise_eps: float = 1e-3
    sigma_min: float = 1e-4
    sigma_max: float | int = 20.0

    embedding_std: float | int | None = None
    zero_init_residual: bool = False

    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs):
        if self.mask_token_id is None:
            self.mask_token_id = self.vocab_size - 1
        if self.intermediate_size is None:
            self.intermediate_size = 4 * self.hidden_size
        super().__post_init__(**kwargs)
        self.check()

    def check(self) -> None:
        """Raises a ValueError for values that do not fit. The model calls it again, since fields may have been set."""
        # It is not one of `@strict`'s `validate_*` methods: those turn a ValueError into an error of another class.
        for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.max_position_embeddings < 1:
            raise ValueError(f"max_position_embeddings={self.max_position_embeddings} must be at least 1.")
        if self.hidden_size % self.num_attention_heads or (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} over num_attention_heads={self.num_attention_heads} must give heads "
                "of an even whole width, since rotary embeddings turn pairs of features."
            )
        if self.mask_token_id is None or not 0 <= self.mask_token_id < self.vocab_size:
            raise ValueError(f"mask_token_id={self.mask_token_id} must lie in [0, vocab_size={self.vocab_size}).")
        if self.num_tokens is not None and not 0 < self.num_tokens <= self.vocab_size:
            raise ValueError(f"num_tokens={self.num_tokens} must lie in 1 .. vocab_size={self.vocab_size}, or be None.")
        if not 0 <= self.hidden_dropout < 1:
            raise ValueError(f"hidden_dropout={self.hidden_dropout} must lie in [0, 1).")
        if self.noise_type not in NOISE_TYPES:
            raise ValueError(f"noise_type={self.noise_type!r} must be one of {NOISE_TYPES}.")
        if not 0 < self.noise_eps < 1:
            raise ValueError(f"noise_eps={self.noise_eps} must lie in (0, 1).")
        if not 0 < self.sigma_min < self.sigma_max:
            raise ValueError(f"sigma_min={self.sigma_min} and sigma_max={self.sigma_max} must satisfy 0 < min < max.")
        if self.embedding_std is not None and self.embedding_std <= 0:
            raise ValueError(f"embedding_std={self.embedding_std} must be positive, or None for the paper's choice.")
        if self.tie_word_embeddings:
            raise ValueError("tie_word_embeddings=True is not RADD: its output layer has its own weight and a bias.")

        self._check_rope()

    def _check_rope(self) -> None:
        self.convert_rope_params_to_dict()  # completes rope_parameters that were set after the configuration was made
        rope: dict[str, Any] = self.rope_parameters or {}
        kind, types = rope["rope_type"], ("default", *ROPE_INIT_FUNCTIONS)
        if kind not in types:
            raise ValueError(f"rope_type={kind!r} of rope_parameters must be one of {types}.")
        pairs: int = self.hidden_size // self.num_attention_heads // 2
        needed = ("rope_theta", *ROPE_NEEDS.get(kind, ()))
        for name in (*needed, *(name for name in ROPE_OPTIONAL if rope.get(name) is not None)):
            value: Any = rope.get(name)
            listed = name in ROPE_LISTS
            numbers = value if listed and isinstance(value, (list, tuple)) else [value]
            right = all(is_number(each) and each > 0 for each in numbers) and len(numbers) == (pairs if listed else 1)
            if not right:
                wanted = f"a list of {pairs} positive numbers, one for each pair" if listed else "a positive number"
                raise ValueError(f"{name}={value!r} of rope_parameters must be {wanted} for rope_type={kind!r}.")
        part = rope.get("partial_rotary_factor") or 1
        if part > 1 or (part < 1 and kind != "proportional"):
            raise ValueError(
                f"partial_rotary_factor={part} of rope_parameters must be 1 for rope_type={kind!r}: only "
                "'proportional' turns a part of each head, in (0, 1]."
            )
        if kind == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
            raise ValueError(
                f"low_freq_factor={rope['low_freq_factor']} of rope_parameters must be less than "
                f"high_freq_factor={rope['high_freq_factor']}."
            )
        if kind == "dynamic" and pairs == 1:
            raise ValueError("rope_type='dynamic' of rope_parameters needs heads of width 4 or more; they have 2.")

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs):
        """Makes a configuration from a dictionary. The nested config.json of the authors' repositories is read, too.

        Raises:
            ValueError: for the configuration of another model. transformers would only warn.
        """
        kind = config_dict.get("model_type", cls.model_type)
        if kind != cls.model_type:
            known = f" ({OTHER_DIFFUSION[kind]})" if kind in OTHER_DIFFUSION else ""
            raise ValueError(
                f"it is a model of type {kind!r}{known}, not {cls.model_type!r}: radd_hf does not have its network. "
                "Load it with its own code, or name a RADD model."
            )
        if isinstance(config_dict.get("model"), dict) and "tokens" in config_dict:
            config_dict = _from_authors(config_dict)
        return super().from_dict(config_dict, **kwargs)


def _from_authors(nested: dict[str, Any]) -> dict[str, Any]:
    """Translates the authors' `{"model": {...}, "tokens": V - 1, "noise": {...}}` to the fields of [`RaddConfig`].

    The MLP ratio (4), rotary base and LayerNorm epsilon are constants in their code, and the defaults here.
    """
    model, noise = nested["model"], nested.get("noise", {})
    if model.get("type", "ddit_wot") != "ddit_wot":
        known = "; 'ddit' is SEDD's, which has time as an input" if model["type"] == "ddit" else ""
        raise ValueError(
            f"model.type={model['type']!r} in the configuration must be 'ddit_wot', the network of RADD{known}."
        )
    flat = {
        "vocab_size": nested["tokens"] + 1,
        "hidden_size": model["hidden_size"],
        "num_hidden_layers": model["n_blocks"],
        "num_attention_heads": model["n_heads"],
        "max_position_embeddings": model["length"],
        "hidden_dropout": model["dropout"],
    }
    names = {"type": "noise_type", "sigma_min": "sigma_min", "sigma_max": "sigma_max"}
    flat |= {ours: noise[theirs] for theirs, ours in names.items() if theirs in noise}
    # The entries that `from_pretrained` adds to the dictionary (commit hash, attention implementation) stay.
    return flat | {
        key: value for key, value in nested.items() if key in ("_commit_hash", "attn_implementation", "dtype")
    }


RaddConfig.register_for_auto_class("AutoConfig")

__all__ = ["RaddConfig"]
