# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Computes the likelihood of text: exactly in one order of its tokens, or over all orders with a standard error.

RADD's network gives p(x_i | visible tokens). By the chain rule this gives -log p(x0) of a text x0, for any order of its
tokens. The objectives of `losses.py` estimate the mean of -log p over all orders, the any-order NLL (negative
log-likelihood). It is an upper bound: -log of the mean probability is less (arXiv:2406.03736, Theorem 2). Mask a
uniform subset of k tokens, and let S be the sum of -log p of the masked tokens, each given the visible ones. Then

    any-order NLL = sum over k = 1 .. L of E[S] / k = L E[S / k]        nats per sequence, k uniform in 1 .. L

A nat is the unit of natural logarithms. A *round* is a few masks of one sequence that together give one unbiased
estimate. The rounds of a sequence are independent, so their differences give the standard error of their mean. It is
the error of drawing masks for this fixed text. How much sequences differ is another quantity, `spread`.

A canvas is a row of token ids, some of them masks. An event is one evaluation of the network and the tokens that it
reveals.

Shapes: S sequences, L length, n scored tokens of a sequence, R rows (masks) of a round, N rows of several rounds,
        B sequences side by side, V vocabulary, K orders.
"""

import math
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from .generation_radd import RaddGenerationConfig, RaddGenerationMixin, ordered_settings
from .inputs_radd import as_permutation, as_tensor, shown
from .kernels_radd import evaluation_mode, packed_weights
from .losses import LOSS_TYPES, draw_masks
from .noise_radd import Noise, get_noise
from .plan_radd import plan_sequence
from .policy_likelihood import nats_under_policy
from .policy_radd import Policy, PolicyFunction, policy_of
from .programs_radd import programs_of
from .randomness_radd import stream_seed
from .ranges import check_count
from .settings_radd import LARGEST_INTEGER, ORDERS, is_adaptive, is_integer, is_number, plain, shortened

# An order of the tokens: a name, the positions in the order, or a user's function that chooses them (`policy_radd.py`).
Order = str | Tensor | Sequence[int] | PolicyFunction

ORDER_OF = {f"ar_{order}": order for order in ORDERS}  # the estimators that are exact in one order
ESTIMATORS = ("k_stratified", *LOSS_TYPES, *ORDER_OF)

# The number of rounds for a fixed number of passes. It is the fewest that give a standard error, so each round has as
# many strata as possible.
ROUNDS = 2
# The most masks or orders of a sequence; those of a round are drawn at once.
MOST_PASSES = 2**20
# Rows of a round of k_stratified if rounds are added until the error is small enough.
ROWS_OF_AN_ADDED_ROUND = 8

# If several estimates are computed together, the rows of this many forward passes are gathered. Only the last pass may
# not be full.
FORWARDS = 16

# Constants of k_stratified. It is unbiased for any values; benchmarks/estimators.py compares some.
STRATA_EXPONENT = 1.5
CONTROL = 0.9


@dataclass(frozen=True)
class Round:
    """Holds the masks of one unbiased estimate of the nats of n tokens.

    masked: (R, n) bool, the tokens that the network does not see.
    scored: (R, n) bool, the masked tokens that count.
    weight: (R,) float64, the weight of each row.
    controlled: whether a control variate is used, see `estimate`.
    """

    masked: Tensor
    scored: Tensor
    weight: Tensor
    controlled: bool = False

    @property
    def rows(self) -> int:
        return len(self.weight)

    def estimate(self, nll: Tensor) -> float:
        """Returns the sum over rows of weight x S. nll: (R, n) float64, -log p of the scored tokens, 0 elsewhere.

        In a row with few masks, S depends much on which tokens are masked. The rows with more masks were drawn
        independently of this row, and show how hard each token is. So a controlled round subtracts a control variate
        from S: the excess over the mean that is expected for this choice of tokens. Over all choices it is zero on
        average, so the estimate stays unbiased.
        """
        total = nll.sum(dim=1)  # (R,) S
        if self.controlled:
            k = self.masked.sum(dim=1, keepdim=True)  # (R, 1) rises from row to row
            above = (nll - total[:, None] / k) * self.masked  # (R, n) nats above the row's mean
            harder = above.flip(0).cumsum(0).flip(0) - above  # (R, n) summed over the rows with more masks
            times = self.masked.long().flip(0).cumsum(0).flip(0) - self.masked.long()
            difficulty = harder / times.clamp(min=1)  # (R, n)
            expected = (difficulty * self.masked).sum(dim=1) - k[:, 0] * difficulty.mean(dim=1)  # (R,)
            total = total - CONTROL * expected
        return float(self.weight @ total)


@dataclass(frozen=True)
class AdaptiveRound:
    """Stands for the masks of one sequence in the order that a policy chooses.

    They cannot be drawn beforehand, since each depends on the evaluation before it. The round is one row of a batch,
    and is evaluated once for each event.
    """

    policy: Policy
    steps: int | None = None
    rows: int = 1


def draw_round(estimator: str, n: int, rows: int, noise: Noise, generator: torch.Generator) -> Round | AdaptiveRound:
    """Draws a round over n tokens for an estimator of [`estimate_likelihood`]: `rows` masks, or n for an order."""
    if is_adaptive(ORDER_OF.get(estimator)):
        return AdaptiveRound(Policy(ORDER_OF[estimator]))
    if estimator in ORDER_OF:
        return order_round(order_of(ORDER_OF[estimator], n, generator))
    if estimator == "k_stratified":
        return stratified_round(n, rows, generator)
    masks = draw_masks(estimator, rows, n, noise, generator)
    return Round(masks.masked, masks.masked, masks.weight.double() / rows)


def stratified_round(n: int, rows: int, generator: torch.Generator) -> Round:
    """Draws rows in which a uniform subset of k tokens is masked, where k is stratified over {1 .. n}.

    Row j has u uniform between (j / R)^1.5 and ((j + 1) / R)^1.5, and k = floor(u n) + 1. Its weight is the width of
    its stratum times n / k. The strata of small k are narrow, so small k get more rows: a mean over few masked tokens
    varies most.
    """
    edges = (torch.arange(rows + 1, dtype=torch.float64) / rows) ** STRATA_EXPONENT
    width = edges.diff()  # (R,)
    u = edges[:-1] + width * torch.rand(rows, generator=generator, dtype=torch.float64)
    k = ((u * n).floor().long() + 1).clamp(max=n)  # (R,)
    place = torch.rand(rows, n, generator=generator, dtype=torch.float64).argsort(dim=1).argsort(dim=1)
    masked = place < k[:, None]  # (R, n)
    return Round(masked, masked, width * n / k, controlled=True)


def order_of(order: Any, n: int, generator: torch.Generator | None = None) -> Tensor:
    """Returns the positions of n tokens in an order that is known beforehand, (n,)."""
    if not isinstance(order, str):
        return as_permutation("order", order, n)
    if order not in ORDERS:
        raise ValueError(f"order={shortened(order)} must be one of {ORDERS}, a permutation or a function.")
    if order == "random":
        return torch.randperm(n, generator=generator)
    return torch.arange(n) if order == "forward" else torch.arange(n).flip(0)


def order_round(order: Tensor, steps: int | None = None) -> Round:
    """Makes the round of the chain rule: row i scores token order[i], given the tokens before it in the order.

    With fewer `steps` than tokens there are `steps` balanced groups. Row i scores group i, given the groups before it.
    """
    everywhere = torch.ones(1, len(order), dtype=torch.bool)
    event = plan_sequence(everywhere, order.argsort()[None], steps)[0]  # (n,) the event that reveals each token
    events = int(event.max()) + 1
    turn = torch.arange(events)[:, None]
    return Round(event >= turn, event == turn, torch.ones(events, dtype=torch.float64))


def perplexity_of(nats_per_token: float) -> float:
    """Returns the exponential of nats per token; infinity if a float cannot hold it."""
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


@dataclass(frozen=True)
class NatsPerToken:
    """Holds a mean negative log-likelihood and its standard error, in nats per token, and gives the perplexity."""

    nats_per_token: float
    standard_error: float

    @property
    def perplexity(self) -> float:
        """Gives exp(nats per token); infinity if that is larger than any float. Files have null in its place."""
        return perplexity_of(self.nats_per_token)

    @property
    def perplexity_error(self) -> float:
        return self.perplexity * self.standard_error if self.standard_error else 0.0


@dataclass(frozen=True)
class Likelihood(NatsPerToken):
    """Holds an estimate of the any-order bound, or the exact value in one order, which has standard error 0."""

    n_tokens: int  # number of scored tokens
    n_sequences: int
    passes: int  # masks drawn for each sequence; for ar_random the number of orders; 1 for an exact value
    estimator: str = "k_stratified"
    degrees_of_freedom: float = math.inf  # of the standard error
    spread: float = math.nan  # standard deviation of nats per token between sequences
    n_bytes: int | None = None

    @property
    def half_width(self) -> float:
        """Gives half the width of `interval`. It uses Student's t, since the standard error is an estimate, too."""
        return student_quantile(self.degrees_of_freedom) * self.standard_error

    @property
    def interval(self) -> tuple[float, float]:
        """Gives the 95 % confidence interval, nats per token."""
        return self.nats_per_token - self.half_width, self.nats_per_token + self.half_width

    @property
    def perplexity_interval(self) -> tuple[float, float]:
        low, high = self.interval
        return perplexity_of(low), perplexity_of(high)

    @property
    def _bits_per_byte_of_a_nat(self) -> float:
        if self.n_bytes is None:
            raise ValueError("n_bytes is not known: pass the number of bytes of the text to estimate_likelihood.")
        return self.n_tokens / self.n_bytes / math.log(2)

    @property
    def bits_per_byte(self) -> float:
        return self.nats_per_token * self._bits_per_byte_of_a_nat

    @property
    def bits_per_byte_error(self) -> float:
        return self.standard_error * self._bits_per_byte_of_a_nat

    @property
    def bits_per_byte_interval(self) -> tuple[float, float]:
        low, high = self.interval
        return low * self._bits_per_byte_of_a_nat, high * self._bits_per_byte_of_a_nat

    def to_dict(self) -> dict:
        names = ["interval", "perplexity", "perplexity_error", "perplexity_interval"]
        if self.n_bytes is not None:
            names += ["bits_per_byte", "bits_per_byte_error", "bits_per_byte_interval"]
        figures = asdict(self) | {name: getattr(self, name) for name in names}
        # JSON has no infinity (degrees of freedom) and no NaN (spread of one sequence).
        for name in ("degrees_of_freedom", "spread"):
            figures[name] = figures[name] if math.isfinite(figures[name]) else None
        return figures


def student_quantile(degrees_of_freedom: float) -> float:
    """Returns the 97.5 % quantile of Student's t, expanded around the normal one (Abramowitz and Stegun, 26.7.5)."""
    z, nu = 1.959963984540054, max(degrees_of_freedom, 1.0)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / nu ** (power + 1) for power, term in enumerate(terms))


# ---------------------------------------------------------------------------------------------------------
# From masked sequences to nats
# ---------------------------------------------------------------------------------------------------------


def nats_of_tokens(model: Any, x0: Tensor, masked: Tensor, scored: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yields -log p of the scored tokens given the visible ones, batch by batch: (rows, L) float64 on the CPU.

    It is 0 at all other tokens.

    Args:
        x0: (N, L) clean ids.
        masked: (N, L) bool, the tokens that the network does not see.
        scored: (N, L) bool, the masked tokens to score.
        batch_size: rows of a forward pass.

    Raises:
        ValueError: for clean ids that contain the mask.
    """
    mask_id = model.config.mask_token_id
    if (x0 == mask_id).any():
        raise ValueError(f"sequences hold the mask, id {mask_id}, which is not a token of a text.")
    if bool((scored.sum(dim=1) == 1).all()):  # one token a row, as in an order that is known beforehand
        position = scored.int().argmax(dim=1, keepdim=True)  # (N, 1)
        canvas, token = x0.masked_fill(masked, mask_id), x0.gather(1, position)
        batches = nats_of_one_token(model, canvas, position, token, batch_size)
        for where, nll in zip(position.split(batch_size), batches, strict=True):  # (rows, 1) both; both run to the end
            nats = torch.zeros(len(where), x0.shape[1], dtype=torch.float64, device="cpu")
            yield nats.scatter_(1, where, nll.double().cpu())
        return
    for rows in torch.arange(len(x0)).split(batch_size):
        input_ids = x0[rows].masked_fill(masked[rows], mask_id).to(model.device)
        labels = x0[rows].masked_fill(~scored[rows], -100).to(model.device)
        with torch.no_grad():
            nll = model(input_ids=input_ids, labels=labels).token_nll
        yield nll.double().cpu()


def nats_of_one_token(model: Any, canvas: Tensor, position: Tensor, token: Tensor, batch_size: int) -> Iterator[Tensor]:
    """Yields -log p of one token a row, batch by batch: (rows, 1) float32 on the model's device.

    On a GPU the evaluation of a batch is captured once and replayed (`programs_radd.py`), unless the model's generation
    config has `cuda_graphs=False`. The captured graph is kept if the caller reads all batches.

    Args:
        canvas: (N, L) ids.
        position: (N, 1) the position of the token.
        token: (N, 1) its id.
        batch_size: rows of a batch.
    """
    capturing = isinstance(model, RaddGenerationMixin)  # a wrapper might do more than call the network
    capturing = (
        capturing and model.model.can_prune() and getattr(model.generation_config, "cuda_graphs", None) is not False
    )
    layout = "one token", min(batch_size, len(canvas)), canvas.shape[1]
    with programs_of(model, layout, torch.device(model.device), capturing) as programs:
        put = programs.tensors.put
        for ids, where, true in zip(*(each.split(batch_size) for each in (canvas, position, token)), strict=True):
            nll = put("nll", ids.new_zeros(len(ids), 1, dtype=torch.float32))
            inputs = put("ids", ids.long()), put("position", where), put("token", true.long())
            programs.run(len(ids), partial(_evaluate_one_token, model, *inputs, nll))
            yield nll.clone()


@torch.no_grad()
def _evaluate_one_token(model: Any, canvas: Tensor, position: Tensor, token: Tensor, nll: Tensor) -> None:
    """Writes -log p of each row's token to `nll`. canvas: (rows, L); all others: (rows, 1)."""
    logits = model(input_ids=canvas, output_positions=position).logits.squeeze(1).float()  # (rows, V)
    nll.copy_(logits.logsumexp(dim=-1, keepdim=True) - logits.gather(1, token))


class RoundNats(NamedTuple):
    """Holds the estimate of one round: the negative log-likelihood of a sequence's scored tokens, in nats."""

    sequence: int
    number: int
    nats: float


def compute_rounds(
    model: Any,
    sequences: Sequence[Tensor],
    scored: Sequence[Tensor],
    draw: Callable[[int, int], Round | AdaptiveRound],
    todo: Iterable[tuple[int, int]],
    batch_size: int,
    gathered: int | None = None,
) -> Iterator[RoundNats]:
    """Yields rounds as they are computed, several in one batch. Between two rounds the model has its former mode.

    Args:
        scored: for each sequence, (L,) bool.
        draw: returns the round of (sequence, number).
        todo: (sequence, number) of the rounds to compute.
        gathered: the number of rows that are computed before their rounds are yielded; default: batch_size. With more
            rows, fewer forward passes are not full. It is not used if a policy chooses the order.
    """
    ordered = sorted(todo, key=lambda each: len(scored[each[0]]))  # rows of equal length can share a batch
    waiting: list[tuple[int, int, Any]] = []  # sequence, number, round; all rounds are of one kind

    def compute() -> list[RoundNats]:
        with evaluation_mode(model):  # it ends before the caller gets a round
            if isinstance(waiting[0][2], AdaptiveRound):
                return list(_compute_adaptive(model, sequences, scored, waiting))
            return list(_compute(model, sequences, scored, waiting, batch_size))

    for index, number in ordered:
        drawn = draw(index, number)
        most = batch_size if gathered is None or isinstance(drawn, AdaptiveRound) else gathered
        if waiting and (
            len(scored[waiting[0][0]]) != len(scored[index]) or sum(each.rows for _, _, each in waiting) >= most
        ):
            yield from compute()
            waiting = []
        waiting.append((index, number, drawn))
    if waiting:
        yield from compute()


def count_evaluations(
    scored: Sequence[Tensor], rounds: int, rows: int | None, batch_size: int, adaptive: bool = False
) -> int:
    """Counts the forward passes that this number of rounds of every sequence takes at most.

    Only rows of equal length share a pass.

    Args:
        rows: rows of a round; None for an order, whose rounds have a row for each scored token.
        adaptive: whether a policy chooses the order. Then a round has one row, evaluated once for each scored token.
    """
    rows_of_length, evaluations_of_a_row = Counter[int](), Counter[int]()
    for where in scored:
        n = int(where.sum())
        rows_of_length[len(where)] += rounds * (1 if adaptive else rows or n)
        evaluations_of_a_row[len(where)] = max(evaluations_of_a_row[len(where)], n if adaptive else 1)
    return sum(math.ceil(count / batch_size) * evaluations_of_a_row[each] for each, count in rows_of_length.items())


def _compute(
    model: Any,
    sequences: Sequence[Tensor],
    scored: Sequence[Tensor],
    rounds: list[tuple[int, int, Round]],
    batch_size: int,
) -> Iterator[RoundNats]:
    """Yields rounds of sequences of one length, computed in batches of rows."""

    def spread(index: int, chosen: Tensor) -> Tensor:
        """Turns a mask (R, n) over the scored tokens into a mask (R, L) over all tokens."""
        where = scored[index].expand(len(chosen), -1)
        return torch.zeros(where.shape, dtype=torch.bool).masked_scatter(where, chosen)

    x0 = torch.cat([sequences[index].expand(drawn.rows, -1) for index, _, drawn in rounds])  # (N, L)
    masked = torch.cat([spread(index, drawn.masked) for index, _, drawn in rounds])  # (N, L)
    of_these = torch.cat([spread(index, drawn.scored) for index, _, drawn in rounds])  # (N, L)
    nll = torch.cat(list(nats_of_tokens(model, x0, masked, of_these, batch_size)))  # (N, L)
    rows = nll.split([drawn.rows for _, _, drawn in rounds])  # (R, L) each
    for (index, number, drawn), values in zip(rounds, rows, strict=True):
        yield RoundNats(index, number, drawn.estimate(values[:, scored[index]]))


def _compute_adaptive(
    model: Any, sequences: Sequence[Tensor], scored: Sequence[Tensor], rounds: list[tuple[int, int, AdaptiveRound]]
) -> Iterator[RoundNats]:
    """Yields rounds of sequences of one length under one policy, computed side by side."""
    x0 = torch.stack([sequences[index] for index, _, _ in rounds])  # (B, L)
    masked = torch.stack([scored[index] for index, _, _ in rounds])  # (B, L)
    *_, nats = nats_under_policy(model, x0, masked, rounds[0][2].policy, rounds[0][2].steps)  # (B, L)
    for (index, number, _), total in zip(rounds, nats.sum(dim=1).tolist(), strict=True):
        yield RoundNats(index, number, total)


class Texts(NamedTuple):
    """Holds checked sequences, on the CPU."""

    sequences: list[Tensor]  # (L,) int64 each
    scored: list[Tensor]  # (L,) bool each
    n_scored: Tensor  # (S,) float64


def check_texts(config: Any, sequences: Sequence[Tensor], scored: Sequence[Tensor] | None = None) -> Texts:
    """Checks sequences and their scored tokens; raises a ValueError if there are none, or one is not a text."""
    check_list("sequences", sequences)
    if len(sequences) == 0:
        raise ValueError("sequences must hold at least one sequence; got none.")
    sequences = [check_ids(config, f"sequences[{index}]", sequence) for index, sequence in enumerate(sequences)]
    if scored is None:
        scored = [torch.ones_like(sequence, dtype=torch.bool) for sequence in sequences]
    check_list("scored", scored)
    if len(scored) != len(sequences):
        raise ValueError(f"scored must hold one mask for each of the {len(sequences)} sequences; it has {len(scored)}.")
    scored = [as_tensor(f"scored[{index}]", where).cpu() for index, where in enumerate(scored)]
    for index, (sequence, where) in enumerate(zip(sequences, scored, strict=True)):
        if where.dtype != torch.bool or where.shape != sequence.shape:
            raise ValueError(f"scored[{index}]{shown(where)}; it must be boolean, {tuple(sequence.shape)}.")
        if not where.any():
            raise ValueError(f"sequences[{index}], of {len(where)} tokens, must have at least one token to score.")
    return Texts(sequences, scored, torch.tensor([int(where.sum()) for where in scored], dtype=torch.float64))


def check_list(name: str, value: Any) -> None:
    """Raises a ValueError unless the value is a list, tuple, tensor or the like."""
    listed = len(value.shape) > 0 if hasattr(value, "shape") else hasattr(value, "__len__")
    if not listed or isinstance(value, (str, bytes, Mapping, Set)):
        raise ValueError(f"{name}={shortened(value)} must be a list.")


def check_ids(config: Any, name: str, value: Any) -> Tensor:
    """Returns the ids of a text, (L,) int64 on the CPU; raises a ValueError if they are not ids of a text."""
    ids = as_tensor(name, value)
    integers = not (ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool)
    if ids.ndim != 1 or not (integers or ids.numel() == 0):  # an empty list makes floats
        raise ValueError(f"{name}{shown(ids)}; it must hold the ids of a text, (L,) integers.")
    ids = ids.cpu().long()
    wrong = (ids < 0) | (ids >= config.vocab_size) | (ids == config.mask_token_id)
    if wrong.any():
        place = int(wrong.int().argmax())
        raise ValueError(
            f"{name} holds {int(ids[place])} at position {place}; the ids of a text lie in "
            f"0 .. {config.vocab_size - 1} and are not the mask, {config.mask_token_id}."
        )
    return ids


def check_integer_seed(seed: Any) -> int:
    """Returns a seed as an integer. It may be negative, unlike a seed of `generate`."""
    seed = plain(seed)
    if not is_integer(seed):
        raise ValueError(f"seed={shortened(seed)} must be an integer.")
    return int(seed)


def check_batch_size(batch_size: int) -> None:
    check_count("batch_size", batch_size)


def _check_weights(weights: Tensor, sequences: Sequence[Tensor]) -> Tensor:
    """Returns the weights (S,) in float64; raises a ValueError unless each sequence has one and they add up to 1."""
    weights = as_tensor("weights", weights).cpu().double()
    least, total = float(weights.min()) if weights.numel() else 0.0, float(weights.sum())
    if weights.shape != (len(sequences),) or least < 0 or not abs(total - 1) < 1e-6:
        raise ValueError(
            f"weights of shape {tuple(weights.shape)}, the least {least:.6g}, add up to {total:.6g}; they must be one "
            f"for each of the {len(sequences)} sequences, none negative, and add up to 1."
        )
    return weights


def _generator(seed: int, index: int, number: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(seed, "likelihood", index, number))


# ---------------------------------------------------------------------------------------------------------
# The estimate over all orders
# ---------------------------------------------------------------------------------------------------------


class LikelihoodRounds:
    """Computes the rounds of an estimate, one in each turn of a loop, and summarises them.

        rounds = LikelihoodRounds(model, sequences, passes=16)
        for found in rounds:                  # save it in a file, move a progress bar
            ...
        likelihood = rounds.summary()

    The arguments are those of [`estimate_likelihood`], and:
        known: nats by (sequence, round), for rounds that need not be computed again.

    With several processes, each iterates over its own share, and all must finish.
    """

    def __init__(
        self,
        model: Any,
        sequences: Sequence[Tensor],
        *,
        estimator: str = "k_stratified",
        passes: int = 16,
        target_se: float | None = None,
        batch_size: int = 32,
        seed: int = 0,
        scored: Sequence[Tensor] | None = None,
        weights: Tensor | None = None,
        accelerator: Accelerator | None = None,
        known: Mapping[tuple[int, int], float] | None = None,
        before_gathering: Callable[[], None] | None = None,
    ):
        passes, batch_size, target_se = plain(passes), plain(batch_size), plain(target_se)
        check_estimate(estimator, passes, target_se)
        check_batch_size(batch_size)
        self.model, self.estimator, self.passes = model, estimator, passes
        self.target_se, self.batch_size, self.seed = target_se, batch_size, check_integer_seed(seed)
        self.accelerator, self.known, self.before_gathering = accelerator, known or {}, before_gathering
        self.sequences, self.scored, self.n_scored = check_texts(config_of(model), sequences, scored)
        # (S,) the weight of each sequence's nats per token in the mean
        self.share = self.n_scored / self.n_scored.sum() if weights is None else _check_weights(weights, sequences)
        self.rows, self.first_rounds, self.most_rounds = plan_rounds(estimator, passes, target_se)
        self.noise = get_noise(model.config)
        self.nats_per_token: Tensor | None = None  # (S, rounds), of all processes

    def __iter__(self) -> Iterator[RoundNats]:
        """Yields the rounds; raises a ValueError for a `target_se` that `passes` cannot reach."""
        nats = torch.zeros(len(self.sequences), 0, dtype=torch.float64)
        while (wanted := self.rounds_wanted(nats)) > nats.shape[1]:
            more = yield from self._stage(range(nats.shape[1], wanted))
            nats = torch.cat([nats, more], dim=1)
        self.nats_per_token = nats

    def rounds_wanted(self, nats: Tensor) -> int:
        """Returns how many rounds there must be, given the rounds so far: (S, rounds) nats per token.

        Raises:
            ValueError: for a `target_se` that `passes` cannot reach.
        """
        rounds = nats.shape[1]
        if rounds == 0:
            return self.first_rounds
        error = _error(nats, self.share)[0]
        if self.target_se is None or not error > self.target_se:
            return rounds
        ratio = error / self.target_se
        needed = math.ceil(min(rounds * ratio * ratio, LARGEST_INTEGER))
        if needed > self.most_rounds:
            raise ValueError(
                f"target_se={self.target_se} would take about {needed * self.rows} passes, since the error is "
                f"{error:.2g} after {rounds * self.rows}; passes={self.passes} are allowed."
            )
        return needed

    def _stage(self, rounds: range) -> Generator[RoundNats, None, Tensor]:
        """Computes these rounds of this process's sequences. Returns (S, rounds) nats per token, of all processes."""
        first, stride = 0, 1
        if self.accelerator is not None:
            first, stride = self.accelerator.process_index, self.accelerator.num_processes
        nats = torch.zeros(len(self.sequences), len(rounds), dtype=torch.float64)
        mine = [(index, number) for index in range(first, len(self.sequences), stride) for number in rounds]
        for index, number in mine:
            nats[index, number - rounds.start] = self.known.get((index, number), 0.0)
        todo = [each for each in mine if each not in self.known]
        for found in compute_rounds(self.model, self.sequences, self.scored, self.draw, todo, self.batch_size):
            nats[found.sequence, found.number - rounds.start] = found.nats
            yield found
        if self.before_gathering is not None:
            self.before_gathering()
        if self.accelerator is not None and stride > 1:
            # Each value is zero in all processes but one, so the sum only collects them. float32 rounds the values no
            # more than the network does.
            nats = self.accelerator.reduce(nats.float().to(self.accelerator.device), "sum").double().cpu()
        return nats / self.n_scored[:, None]

    def draw(self, index: int, number: int) -> Round | AdaptiveRound:
        """Draws a round of a sequence."""
        generator = _generator(self.seed, index, number)
        return draw_round(self.estimator, int(self.n_scored[index]), self.rows, self.noise, generator)

    def summary(self, n_bytes: int | None = None) -> "Likelihood":
        """Returns the likelihood; raises a RuntimeError if not all rounds have been computed yet."""
        if self.nats_per_token is None:
            raise RuntimeError("Not all rounds have been computed: iterate over them first.")
        error, degrees_of_freedom = _error(self.nats_per_token, self.share)
        means = self.nats_per_token.mean(dim=1)  # (S,)
        return Likelihood(
            nats_per_token=float(self.share @ means),
            standard_error=error,
            n_tokens=int(self.n_scored.sum()),
            n_sequences=len(self.sequences),
            passes=self.nats_per_token.shape[1] * self.rows,
            estimator=self.estimator,
            degrees_of_freedom=degrees_of_freedom,
            spread=float(means.std()) if len(means) > 1 else math.nan,
            n_bytes=n_bytes,
        )


def plan_rounds(estimator: str, passes: int, target_se: float | None) -> tuple[int, int, int]:
    """Returns the number of passes of a round, of first rounds, and of rounds at most."""
    if estimator in ORDER_OF and estimator != "ar_random":
        return 1, 1, 1
    if estimator != "k_stratified":
        return 1, (passes if target_se is None else min(passes, ROWS_OF_AN_ADDED_ROUND)), passes
    if target_se is None or passes < ROUNDS * ROWS_OF_AN_ADDED_ROUND:
        return passes // ROUNDS, ROUNDS, ROUNDS
    return ROWS_OF_AN_ADDED_ROUND, ROUNDS, passes // ROWS_OF_AN_ADDED_ROUND


def _error(nats: Tensor, share: Tensor) -> tuple[float, float]:
    """Returns the standard error of sum(share x mean over rounds) of nats (S, rounds), and its degrees of freedom.

    The degrees of freedom are Welch's, since the rounds of sequences have different variances.
    """
    if nats.shape[1] == 1:
        return 0.0, math.inf
    variance = share**2 * nats.var(dim=1) / nats.shape[1]  # (S,)
    if variance.sum() == 0:
        return 0.0, math.inf
    degrees = variance.sum() ** 2 / (variance**2 / (nats.shape[1] - 1)).sum()
    return float(variance.sum().sqrt()), float(degrees)


def estimate_likelihood(
    model: Any,
    sequences: Sequence[Tensor],
    *,
    estimator: str = "k_stratified",
    passes: int = 16,
    target_se: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
    n_bytes: int | None = None,
    scored: Sequence[Tensor] | None = None,
    weights: Tensor | None = None,
    accelerator: Accelerator | None = None,
    before_gathering: Callable[[], None] | None = None,
    report: Callable[[int, float], object] | None = None,
) -> Likelihood:
    """Estimates the negative log-likelihood of sequences.

    A round draws from its own generator, seeded by (seed, sequence, round). So batches and processes do not change its
    masks. They change the result only by rounding (some 1e-6 of it in float32).

    Args:
        sequences: for each sequence, (L,) ids in a tensor, array or list. Lengths may differ.
        estimator: one of these.
            "k_stratified": the estimator with the smallest error for its passes, see [`stratified_round`] and
            [`Round.estimate`].
            "t_DSE", "t_DCE", "lambda_DCE", "k_DCE": the objectives, with independent draws. The offset of t_DCE is left
            out: its mean is zero, and it does not depend on the text.
            "ar_forward", "ar_backward": exact in that order, with one row for each scored token.
            "ar_random": the same in `passes` random orders.
            "ar_confidence", "ar_margin", "ar_entropy": exact in the order that the model chooses, with one evaluation
            after the other for each scored token, see [`exact_likelihood`].
        passes: masks (for "ar_random", orders) drawn for each sequence, an even number. With `target_se` it is the
            largest number.
        target_se: if given, rounds are added until the standard error, in nats per token, is at most this.
        batch_size: rows of a forward pass.
        seed: the seed of all draws.
        n_bytes: number of bytes of the text, for bits per byte.
        scored: for each sequence, (L,) bool: the tokens whose likelihood is computed, given all others. Default: all.
        weights: (S,) the weight of each sequence's nats per token in the mean; they add up to 1. Default: every token
            has the same weight.
        accelerator: its processes share the sequences. All of them must call this, and each gets the same result.
        before_gathering: called in every process after its share, before the results are put together. It may raise an
            error to prevent that; then it must raise in all processes.
        report: called after each round of this process with the number of the sequence and its nats, such as for a
            progress bar.

    Raises:
        ValueError: if there are no sequences, if one holds anything but ids of tokens or has no scored token, for odd
            `passes`, for an unknown estimator, and for a `target_se` that `passes` cannot reach.
    """
    if n_bytes is not None:
        check_count("n_bytes", n_bytes, most=2**63 - 1)
    rounds = LikelihoodRounds(
        model,
        sequences,
        estimator=estimator,
        passes=passes,
        target_se=target_se,
        batch_size=batch_size,
        seed=seed,
        scored=scored,
        weights=weights,
        accelerator=accelerator,
        before_gathering=before_gathering,
    )
    rows = None if estimator in ORDER_OF else rounds.rows
    adaptive = is_adaptive(ORDER_OF.get(estimator))
    # The weights stay packed from the first round to the last: between two rounds no code runs that could change them.
    with packed_weights(count_evaluations(rounds.scored, rounds.first_rounds, rows, batch_size, adaptive)):
        for found in rounds:
            if report is not None:
                report(found.sequence, found.nats)
    return rounds.summary(n_bytes)


def compute_together(estimates: Sequence[LikelihoodRounds], batch_tokens: int) -> list[ValueError | None]:
    """Computes several estimates of one model in shared batches. Each has the same rounds as alone.

    Single texts do not fill a batch. Several texts of equal length do. Each estimate has its own seed, so the others
    change its result only by rounding.

    Args:
        estimates: estimates of one model, in one process.
        batch_tokens: tokens of a forward pass, which then has batch_tokens // L rows.

    Returns:
        For each estimate None, or the error of a `target_se` that it cannot reach. After an error, `summary` is of the
        rounds computed so far.
    """
    places = [(which, index) for which, estimate in enumerate(estimates) for index in range(len(estimate.sequences))]
    sequences = [estimates[which].sequences[index] for which, index in places]
    scored = [estimates[which].scored[index] for which, index in places]
    nats = [torch.zeros(len(estimate.sequences), 0, dtype=torch.float64) for estimate in estimates]  # (S, rounds) each
    errors: list[ValueError | None] = [None] * len(estimates)

    def draw(place: int, number: int) -> Round | AdaptiveRound:
        which, index = places[place]
        return estimates[which].draw(index, number)

    def rounds_to_come(which: int) -> range:
        done = nats[which].shape[1]
        try:
            return range(done, estimates[which].rounds_wanted(nats[which]))
        except ValueError as error:
            errors[which] = error
            return range(done, done)

    while any(rounds := [rounds_to_come(which) for which in range(len(estimates))]):
        todo = [(place, number) for place, (which, _) in enumerate(places) for number in rounds[which]]
        todo.sort(key=lambda each: len(sequences[each[0]]))
        more = [torch.zeros(len(have), len(come)).double() for have, come in zip(nats, rounds, strict=True)]
        for length, same in groupby(todo, key=lambda each: len(sequences[each[0]])):
            rows = max(batch_tokens // length, 1)
            for found in compute_rounds(estimates[0].model, sequences, scored, draw, same, rows, FORWARDS * rows):
                which, index = places[found.sequence]
                more[which][index, found.number - rounds[which].start] = found.nats / estimates[which].n_scored[index]
        nats = [torch.cat(both, dim=1) for both in zip(nats, more, strict=True)]
    for estimate, computed in zip(estimates, nats, strict=True):
        estimate.nats_per_token = computed
    return errors


# ---------------------------------------------------------------------------------------------------------
# Exact, in one order
# ---------------------------------------------------------------------------------------------------------


def exact_likelihood(
    model,
    sequences: Sequence[Tensor],
    order: Order | None = None,
    *,
    steps: int | None = None,
    entropy_bound: float | None = None,
    confidence_threshold: float | None = None,
    scored: Sequence[Tensor] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Computes -log p of each sequence (L,) when its tokens are filled in one order: (S,) float64, nats per sequence.

    Here p is the distribution that `generate(method="ordered")` samples with the same order, `steps` and bounds, at
    temperature 1, top_k 0 and top_p 1. For "random" it is the distribution given the order that was drawn. Tokens of
    one event are drawn independently, given the tokens before the event. So their nats add up.

    An order that is known beforehand takes n independent rows for each sequence, with the head at one position of each.
    A policy takes one row for each sequence and n evaluations one after the other, fewer with `steps` or a bound, with
    the head at all masked positions (arXiv:2603.01367). If two positions are almost a tie (`policy_radd.TIE`), a batch
    of another shape may rank them differently, since the network rounds differently.

    Args:
        order: "forward" (default), "backward" or "random" (another order for each sequence, from `seed`). Or (n,) the
            scored tokens in the order in which they are filled, by their index among the scored tokens. Or an order
            that a policy chooses from the masked sequence: "confidence", "margin", "entropy" or a function, see
            `policy_radd.Policy`.
        steps: the number of events, if less than the number of scored tokens. The groups are balanced, as in
            `generate`.
        entropy_bound, confidence_threshold: one of them may say how many tokens an event of a policy reveals, see
            `policy_radd.Policy`. The order is then "entropy" or "confidence" by default.
        scored: for each sequence, (L,) bool: the tokens whose likelihood is computed, given all others. Default: all.

    Raises:
        ValueError: if there are no sequences, if one holds anything but ids of tokens or has no scored token, for an
            unknown order or one that is not a permutation, and for `steps` or a bound that does not fit the order.
    """
    settings = ordered_settings(
        order=order, steps=steps, entropy_bound=entropy_bound, confidence_threshold=confidence_threshold
    )
    return _in_orders(model, sequences, settings, 1, scored, batch_size, seed)[:, 0]


def mixture_likelihood(
    model,
    sequences: Sequence[Tensor],
    orders: int,
    *,
    scored: Sequence[Tensor] | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Computes -log of the mean probability over K random orders: (S,) float64, nats per sequence.

    It is at most the mean of -log p over the same orders (Jensen's inequality). Its expectation is at least -log E[p],
    where E is the mean over all orders, and falls as K grows. With one order it is [`exact_likelihood`].
    """
    check_count("orders", orders, most=MOST_PASSES)
    settings = ordered_settings(order="random")
    return mixture(_in_orders(model, sequences, settings, orders, scored, batch_size, seed))


def mixture(nats: Tensor) -> Tensor:
    """Turns the nats of sequences in K orders, (S, K), into the nats of the mean probability, (S,)."""
    return math.log(nats.shape[1]) - torch.logsumexp(-nats, dim=1)


def _in_orders(
    model: Any,
    sequences: Sequence[Tensor],
    settings: RaddGenerationConfig,
    orders: int,
    scored: Sequence[Tensor] | None,
    batch_size: int,
    seed: int,
) -> Tensor:
    """Computes the nats of each sequence in each of K orders, (S, K) float64. settings: the settings of `generate`."""
    orders, batch_size, seed = plain(orders), plain(batch_size), check_integer_seed(seed)
    check_batch_size(batch_size)
    sequences, scored, n_scored = check_texts(config_of(model), sequences, scored)
    policy = policy_of(settings)
    if policy is None:
        for n in set(n_scored.tolist()):
            order_of(settings.order, int(n), torch.Generator())  # raises a ValueError before any work if it is wrong

    def draw(index: int, number: int) -> Round | AdaptiveRound:
        if policy is not None:
            return AdaptiveRound(policy, settings.steps)
        order = order_of(settings.order, int(n_scored[index]), _generator(seed, index, number))
        return order_round(order, settings.steps)

    todo = [(index, number) for index in range(len(sequences)) for number in range(orders)]
    nats = torch.zeros(len(sequences), orders, dtype=torch.float64)
    with packed_weights(count_evaluations(scored, orders, None, batch_size, policy is not None)):
        for found in compute_rounds(model, sequences, scored, draw, todo, batch_size):
            nats[found.sequence, found.number] = found.nats
    return nats


def conditional_likelihood(
    model,
    targets: Sequence[Tensor],
    *,
    prefixes: Sequence[Tensor] | None = None,
    suffixes: Sequence[Tensor] | None = None,
    order: Order | None = None,
    steps: int | None = None,
    entropy_bound: float | None = None,
    confidence_threshold: float | None = None,
    batch_size: int = 32,
    seed: int = 0,
) -> Tensor:
    """Computes -log p(target | prefix, suffix) in one order of the target's tokens: (S,) float64, nats per target.

    A target with only a prefix is a continuation; with both it is an infill. Prefixes and suffixes may be empty,
    targets must not. The other arguments are those of [`exact_likelihood`].
    """
    check_list("targets", targets)
    nothing = [torch.empty(0, dtype=torch.int64)] * len(targets)
    columns = []  # prefixes, targets and suffixes
    for name, given in (("prefixes", prefixes), ("targets", targets), ("suffixes", suffixes)):
        texts = nothing if given is None else given
        check_list(name, texts)
        if len(texts) != len(targets):
            raise ValueError(f"{name} must hold one for each of the {len(targets)} targets; it has {len(texts)}.")
        columns.append([check_ids(config_of(model), f"{name}[{index}]", text) for index, text in enumerate(texts)])
    for index, target in enumerate(columns[1]):
        if not len(target):
            raise ValueError(f"targets[{index}] is empty; it must have at least one token.")
    parts = list(zip(*columns, strict=True))
    sequences = [torch.cat(three) for three in parts]
    scored = [torch.cat([torch.full(each.shape, place == 1) for place, each in enumerate(three)]) for three in parts]
    return exact_likelihood(
        model,
        sequences,
        order,
        steps=steps,
        entropy_bound=entropy_bound,
        confidence_threshold=confidence_threshold,
        scored=scored,
        batch_size=batch_size,
        seed=seed,
    )


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Returns the mean of independent values (n,), and its standard error."""
    return float(values.mean()), float(values.std() / math.sqrt(len(values)))


def config_of(model: Any) -> Any:
    """Returns the configuration of a model; raises a TypeError if it is not a model but, say, the name of one."""
    if not hasattr(model, "config"):
        raise TypeError(f"model={shortened(model)} must be a model, loaded by RaddForMaskedLM.from_pretrained.")
    return model.config


def check_estimator(estimator: str) -> None:
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator={shortened(estimator)} must be one of {ESTIMATORS}.")


def check_estimate(estimator: str, passes: int, target_se: float | None) -> None:
    """Raises a ValueError for settings of an estimate that are unknown or out of range."""
    check_estimator(estimator)
    check_passes(passes)
    if target_se is not None and not (is_number(target_se) and 0 < target_se < math.inf):
        raise ValueError(f"target_se={shortened(target_se)} must be a positive number of nats per token.")


def check_passes(passes: int) -> None:
    if not is_integer(passes, ROUNDS, MOST_PASSES) or passes % ROUNDS:
        raise ValueError(
            f"passes={shortened(passes)} must be a positive multiple of {ROUNDS}, since the error comes from a "
            f"comparison of {ROUNDS} rounds. It must be at most {MOST_PASSES}."
        )
