# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Networks so small that the distribution of `generate` can be enumerated.

`TableNetwork` stands in for a network. Its logits are an arbitrary table indexed by the whole canvas. So it reveals
errors of a sampler (order, simultaneity, stale logits) that a smooth network would hide. `tiny_model` and, with any
settings, `random_model` are real networks with random parameters.

Shapes: B rows, L length, V vocabulary with the mask as its last id, N positions.
"""

from types import SimpleNamespace

import torch
from torch import Tensor

from radd_hf import RaddConfig, RaddForMaskedLM, RaddGenerationConfig
from radd_hf.canvas_radd import Positions
from radd_hf.generation_radd import RaddGenerationMixin


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class StandIn(RaddGenerationMixin):
    """The parts of a model that `generate` uses. Subclasses define `logits(canvas)`, (B, L) -> (B, L, V).

    Attributes:
        rows_evaluated: the number of rows in each evaluation so far.
    """

    generation_config_class = RaddGenerationConfig

    def __init__(self, vocab_size: int, length: int, noise_type: str = "loglinear"):
        self.config = SimpleNamespace(
            vocab_size=vocab_size,
            mask_token_id=vocab_size - 1,
            max_position_embeddings=length,
            noise_type=noise_type,
            noise_eps=1e-3,
            sigma_min=1e-4,
            sigma_max=20.0,
        )
        self.generation_config = RaddGenerationConfig()
        self.training = False
        self.model = _Trunk(self)

    @property
    def rows_evaluated(self) -> list[int]:
        return self.model.rows_evaluated

    def logits(self, canvas: Tensor) -> Tensor:
        raise NotImplementedError

    def compute_logits(self, hidden_states: Tensor) -> Tensor:
        """Rules out the mask: (N, V) -> (N, V). The states of this network are already the logits."""
        return hidden_states.index_fill(-1, torch.tensor(self.config.mask_token_id), -torch.inf)

    def modules(self):
        yield self

    def train(self, mode: bool = True):
        self.training = mode
        return self

    def eval(self):
        return self.train(False)


class _Trunk:
    device = torch.device("cpu")

    def __init__(self, owner: StandIn):
        self.owner = owner
        self.rows_evaluated: list[int] = []

    def can_prune(self) -> bool:
        return True

    def fixed_inputs(self, canvas: Tensor, attention_mask: Tensor | None) -> dict:
        return {"attention_mask": attention_mask}

    def __call__(
        self,
        *,
        input_ids: Tensor,
        output_positions: Positions,
        attention_mask: Tensor | None = None,
        cache=None,
        partial=None,
    ):
        assert cache is partial is None, "a stand-in has no keys and values to keep"
        assert not self.owner.training, "generate must evaluate without dropout"
        self.rows_evaluated.append(len(input_ids))
        logits = output_positions.select(self.owner.logits(input_ids))  # (B, K, V)
        return SimpleNamespace(last_hidden_state=output_positions.flatten(logits))  # (N, V)


class TableNetwork(StandIn):
    """A network with independent logits N(0, scale^2) for every canvas and position: table (V^L, L, V)."""

    def __init__(self, vocab_size: int = 4, length: int = 3, noise_type: str = "loglinear", scale=2.0, seed: int = 0):
        super().__init__(vocab_size, length, noise_type)
        self.table = scale * torch.randn(vocab_size**length, length, vocab_size, generator=seeded(seed))
        self.place = vocab_size ** torch.arange(length)  # (L,) the digits of a canvas as a number

    def logits(self, canvas: Tensor) -> Tensor:
        return self.table[(canvas * self.place).sum(dim=1)]  # (B, L, V)


class FlatNetwork(StandIn):
    """A network under which all tokens are equally likely, at any length."""

    def logits(self, canvas: Tensor) -> Tensor:
        return torch.zeros(*canvas.shape, self.config.vocab_size)


def tiny_model(
    vocab_size: int = 4,
    length: int = 3,
    noise_type: str = "loglinear",
    mask_token_id: int | None = None,
    std: float = 0.7,
    seed: int = 0,
) -> RaddForMaskedLM:
    """Makes a network of 2 layers of width 8 with all parameters from N(0, std^2), also norms and output layer."""
    config = RaddConfig(
        vocab_size=vocab_size,
        mask_token_id=mask_token_id,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        noise_type=noise_type,
    )
    model = RaddForMaskedLM(config)
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=std, generator=generator)
    return model.eval()


def random_model(seed: int = 0, **settings) -> RaddForMaskedLM:
    """Makes a tiny model with random parameters, also in the output layer, which would start at zero."""
    defaults = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_dropout": 0.0}
    model = RaddForMaskedLM(RaddConfig(**{**defaults, **settings})).eval()
    generator = seeded(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model
