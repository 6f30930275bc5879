# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The reverse process: from a canvas with masks to text, as a plan, a draw and one loop.

    canvas    ids in which every mask token is to be filled and every other token stays
    plan      WHEN: for each masked position, the event that reveals it
    schedule  the plan turned round: for each event, the rows and positions it concerns
    draw      WHAT: a token for each position an event reveals, from the network's law given the canvas
    loop      event by event: evaluate, draw, write

In absorbing diffusion when a token is revealed depends neither on the network nor on the text, and RADD's network
does not depend on time (arXiv:2406.03736, section 3.1). So the plan can be made first, and the network evaluated only
where the plan reveals something: that is the whole of "caching" (section 3.2), and the law of the output is that of the
published samplers (algorithms 5 and 6). Equations are numbered as in version 4 of the paper.

Knowing what comes next also allows an approximation, which has to be asked for: `refresh_interval`, see `generate`.

Shapes: R rows (batch x num_return_sequences), A rows that still have events, L length, V vocabulary;
        N positions revealed in one event, at most K in any row; C positions computed anew in a row.
"""

import math
import time
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from transformers.generation import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import TextStreamer
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput, cached_file

from .noise_radd import get_noise, reveal_probabilities

GRID_METHODS = ("tweedie", "euler")
METHODS = (*GRID_METHODS, "first_hitting", "ordered")
ORDERS = ("forward", "backward", "random")

# Value of a plan at positions that are given, not generated.
GIVEN = -1
# At most this many logits (64 MB in float32) exist at once while tokens are drawn; softmax and cumulative sum need a
# few times as much.
MAX_DRAW_ELEMENTS = 2**24


# ---------------------------------------------------------------------------------------------------------
# Settings and output
# ---------------------------------------------------------------------------------------------------------


class RaddGenerationConfig(GenerationConfig):
    """What `generate` does by default; saved as generation_config.json. See [`RaddGenerationMixin.generate`].

    A field that is None is not set: the model's generation config, then [`RaddGenerationConfig.DEFAULTS`], decide.
    """

    DEFAULTS = {
        "length": None,  # the model's max_position_embeddings
        "steps": None,  # the length of the canvas; for "ordered", one token an event
        "method": "tweedie",
        "order": "forward",
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "use_cache": True,
        "refresh_interval": 1,
        "refresh_window": 4,
        "stop_on_eos": False,
        "max_time": None,  # no limit
        "num_return_sequences": 1,
        "output_history": False,
        "return_dict_in_generate": False,
    }
    length: int | None
    steps: int | None
    method: str
    order: Any
    refresh_interval: int
    refresh_window: int
    max_time: float | None
    stop_on_eos: bool
    output_history: bool
    METADATA = (
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "_commit_hash",
        "_from_model_config",
        "transformers_version",
    )

    def __init__(self, **kwargs):
        # Not super().__init__(): most of its fields speak of autoregression.
        for name in (*self.DEFAULTS, *self.METADATA):
            setattr(self, name, kwargs.pop(name, None))
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} are not settings of RADD's generate; they are {sorted(self.DEFAULTS)}.")
        self.validate()

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None):
        for name in ("length", "steps", "num_return_sequences", "refresh_interval", "refresh_window"):
            value, least = getattr(self, name), 0 if name == "refresh_window" else 1
            if value is not None and (not _is_int(value) or value < least):
                raise ValueError(f"{name}={value!r} must be an integer of at least {least}.")
        if self.method is not None and self.method not in METHODS:
            raise ValueError(f"method={self.method!r} must be one of {METHODS}.")
        if isinstance(self.order, str) and self.order not in ORDERS:
            raise ValueError(f"order={self.order!r} must be one of {ORDERS}, or a permutation of the positions.")
        if self.temperature is not None and not (
            _is_number(self.temperature) and (self.temperature == 0 or 1e-6 <= self.temperature < math.inf)
        ):
            raise ValueError(
                f"temperature={self.temperature!r} must be a number >= 1e-6, or 0 to take the likeliest token."
            )
        if self.top_k is not None and (not _is_int(self.top_k) or self.top_k < 0):
            raise ValueError(f"top_k={self.top_k!r} must be an integer >= 0 (0 keeps every token).")
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise ValueError(f"top_p={self.top_p!r} must lie in (0, 1] (1 keeps every token).")
        if self.max_time is not None and not (_is_number(self.max_time) and self.max_time > 0):
            raise ValueError(f"max_time={self.max_time!r} must be a positive number of seconds.")
        for name in ("use_cache", "stop_on_eos", "output_history", "return_dict_in_generate"):
            if not isinstance(getattr(self, name), (bool, type(None))):
                raise ValueError(f"{name}={getattr(self, name)!r} must be True or False.")

    @classmethod
    def resolve(cls, *sources: Any) -> "RaddGenerationConfig":
        """One complete configuration: each setting from the first source that has it, else the default.

        Sources are dictionaries or configurations (of any class: remote code and package hold different ones).
        """
        values = [source if isinstance(source, dict) else vars(source) for source in sources if source is not None]
        settings = {}
        for name, default in cls.DEFAULTS.items():
            given = [value[name] for value in values if value.get(name) is not None]
            settings[name] = given[0] if given else default
        return cls(**settings)

    @classmethod
    def from_model_config(cls, model_config):
        raise NotImplementedError("RaddConfig holds no generation settings.")

    def get_generation_mode(self, *args, **kwargs):
        raise NotImplementedError("RADD's generate has methods, not autoregressive generation modes.")


@dataclass
class RaddGenerateOutput(ModelOutput):
    """
    sequences: (R, L) ids, without a mask.
    num_function_evaluations: (R,) network evaluations that each row took (NFE); with `refresh_interval` m > 1 all but
        one in m of them were partial.
    reveal_step: (R, L) the step of the grid (empty ones counted), or the event of a method without a grid, that
        revealed each position; -1 at positions that were given, or padded after EOS.
    token_logprobs: (R, L) log-probability in nats of each drawn token when it was drawn, before temperature, top-k
        and top-p; 0 at positions that were given or padded. float32.
    history: the canvas (R, L) at the start and after every event, when asked for.
    """

    sequences: Tensor | None = None
    num_function_evaluations: Tensor | None = None
    reveal_step: Tensor | None = None
    token_logprobs: Tensor | None = None
    history: tuple[Tensor, ...] | None = None


# ---------------------------------------------------------------------------------------------------------
# Plan: when is each position revealed? All return (R, L) int64, GIVEN where nothing is masked.
# ---------------------------------------------------------------------------------------------------------


def plan_grid(masked: Tensor, reveal: Tensor, uniform: Tensor) -> Tensor:
    """Tweedie or Euler: the step of the grid in which each masked position is revealed.

    A position still masked is revealed in step i with probability r_i (eq. (D.14) and (D.15)), so its reveal step has
    the law q_i = r_i prod_{j<i} (1 - r_j), independently of all else. Drawn once, by inversion of the distribution
    function. A row with m masks then takes sum_i 1 - (1 - q_i)^m evaluations in expectation (eq. (D.30)), which is
    n (1 - (1 - 1/n)^m) for log-linear noise (eq. (3.4)).

    Args:
        masked: (R, L) bool. reveal: (n,) float64, r, with r_n = 1 in the last step. uniform: (R, L) float64 in [0, 1).
    """
    distribution = 1 - (1 - reveal).cumprod(dim=0)  # (n,) P(reveal step <= i); 1 at the end, since r_n = 1
    step = torch.searchsorted(distribution, uniform, right=True)  # (R, L)
    return step.masked_fill(~masked, GIVEN)


def plan_sequence(masked: Tensor, priority: Tensor, steps: int | None = None) -> Tensor:
    """One position an event, in ascending `priority` (R, L); with fewer `steps` than masks, balanced groups.

    First-hitting is this with uniform priorities: the hitting times of the continuous-time process are
    independent and of one law, so their order is a uniform permutation (arXiv:2409.02908, section 4.2).
    """
    priority = priority.double().masked_fill(~masked, torch.inf)
    rank = priority.argsort(dim=1, stable=True).argsort(dim=1)  # (R, L) 0, 1, ... over the masked positions
    if steps is not None:
        count = masked.sum(dim=1, keepdim=True)  # (R, 1)
        rank = torch.where(count > steps, rank * steps // count.clamp(min=1), rank)
    return rank.masked_fill(~masked, GIVEN)


def without_empty_steps(plan: Tensor) -> Tensor:
    """Numbers each row's events 0, 1, 2, ... in the order of the plan: (R, L) -> (R, L)."""
    step, position = plan.sort(dim=1)
    begins = step.diff(dim=1, prepend=torch.full_like(step[:, :1], GIVEN)) > 0  # a step larger than the one before
    return torch.empty_like(plan).scatter_(1, position, begins.cumsum(dim=1) - 1)  # GIVEN, where none has begun


# ---------------------------------------------------------------------------------------------------------
# Schedule: what does each event do?
# ---------------------------------------------------------------------------------------------------------


class Event(NamedTuple):
    """One turn of the loop.

    rows: (A,) that still have events. slot: (A, K) the positions that it reveals in each, some repeated in a row that
    reveals fewer than K. wanted: (N,) which of the A K are no repetitions, None if all of them. row, position: (N,)
    where on the canvas they are. recompute: (A, C) positions computed anew where not all are, those of `slot` among
    them; None for a whole evaluation.
    """

    rows: Tensor
    slot: Tensor
    wanted: Tensor | None
    row: Tensor
    position: Tensor
    recompute: Tensor | None

    def to(self, device: torch.device) -> "Event":
        moved = {name: field.to(device) for name, field in self._asdict().items() if field is not None}
        return self._replace(**moved)


def make_schedule(
    event: Tensor, evaluations: Tensor, first: int = 0, refresh_interval: int = 1, refresh_window: int = 0
) -> list[Event]:
    """The events from `first` on, on the device of the plan. All is known before the network is evaluated for the first
    time, so that the loop need not wait for the device to learn what comes next.

    Args:
        event: (R, L) the event of each position, GIVEN where there is none. evaluations: (R,) events of each row.
        refresh_interval, refresh_window: see `generate`.
    """
    device, event, evaluations = event.device, event.cpu(), evaluations.cpu()
    schedule = []
    for current in range(first, int(evaluations.max())):
        rows = (evaluations > current).nonzero().squeeze(1)  # (A,)
        mine = event[rows]  # (A, L)
        slot, valid = pack(mine == current)  # (A, K) both
        wanted = None if bool(valid.all()) else valid.flatten().nonzero().squeeze(1)  # (N,)
        recompute = None
        if current % refresh_interval:
            # What the event before wrote and what lies beside it, and where this one draws.
            recompute = pack(widen(mine == current - 1, refresh_window) | (mine == current))[0]  # (A, C)
        row, position = rows[:, None].expand_as(slot)[valid], slot[valid]  # (N,) both
        schedule.append(Event(rows, slot, wanted, row, position, recompute))
    return [each.to(device) for each in schedule]


def pack(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """A boolean mask (A, L) as indices (A, K), at least one, K being the most of any row, and which of them are chosen.

    Rows that have fewer repeat their first, so that no row's computation depends on the others.
    """
    counts = chosen.sum(dim=1, keepdim=True)  # (A, 1)
    most = max(int(counts.max()), 1)
    slot = (~chosen).int().argsort(dim=1, stable=True)[:, :most]  # the chosen ones first, in their order
    valid = torch.arange(most, device=chosen.device) < counts
    return slot.where(valid, slot[:, :1]), valid


def widen(chosen: Tensor, window: int) -> Tensor:
    """A boolean mask (A, L) with `window` neighbours on either side of each chosen position."""
    near = nn.functional.max_pool1d(chosen[:, None].float(), 2 * window + 1, stride=1, padding=window)
    return near[:, 0] > 0


# ---------------------------------------------------------------------------------------------------------
# Draw: which token?
# ---------------------------------------------------------------------------------------------------------


def draw_tokens(scores: Tensor, uniform: Tensor) -> Tensor:
    """A token from softmax(scores) for each row, by inversion of the distribution function: (N, V), (N,) -> (N,).

    The uniforms are float64 and so is the cumulative sum: the 24-bit uniforms of a float32 Gumbel or exponential race
    never reach the tail, which acts like a lower temperature (arXiv:2409.02908, section 5). One uniform a token, so
    that the draw belongs to the position and not to the event or the batch.
    """
    distribution = scores.softmax(dim=-1, dtype=torch.float32).double().cumsum(dim=-1)  # (N, V)
    total = distribution[:, -1:]
    # Strictly below the total, whatever the rounding: a token of probability zero is never drawn.
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    token = torch.searchsorted(distribution, target, right=True).squeeze(1)
    return token.clamp(max=scores.shape[1] - 1)  # also where scores are NaN, which `generate` refuses at its end


# ---------------------------------------------------------------------------------------------------------
# Loop
# ---------------------------------------------------------------------------------------------------------


class RaddGenerationMixin:
    """Gives a model with a trunk `self.model` and a head `self.compute_logits` the method `generate`.

    `self.packed_weights(evaluations)`, a context, is where the model prepares for that many evaluations.
    """

    config: Any
    model: Any
    training: bool
    generation_config: Any
    generation_config_class: Any
    compute_logits: Any
    packed_weights: Any
    eval: Any
    train: Any

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor | None = None,
        *,
        prefix: Any = None,
        suffix: Any = None,
        length: int | None = None,
        attention_mask: Tensor | None = None,
        steps: int | None = None,
        method: str | None = None,
        order: Any = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        use_cache: bool | None = None,
        refresh_interval: int | None = None,
        refresh_window: int | None = None,
        stop_on_eos: bool | None = None,
        max_time: float | None = None,
        num_return_sequences: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        tokenizer: Any = None,
        logits_processor: LogitsProcessorList | None = None,
        streamer: Any = None,
        output_history: bool | None = None,
        return_dict_in_generate: bool | None = None,
        generation_config: RaddGenerationConfig | None = None,
    ) -> Tensor | RaddGenerateOutput:
        """Fills every mask of a canvas and leaves every other token as it is.

        Settings are taken from the keyword, else `generation_config`, else the model's generation config, else the
        default named below.

        Args:
            input_ids: (B, L) or (L,) the canvas itself, with the mask id where text is wanted.
            prefix, suffix: instead of `input_ids`, what the text begins and ends with: ids (list, (l,) or (B, l)
                tensor) or, with `tokenizer`, a text or a list of texts. The suffix ends at `length`. Without any of
                the three the whole text is generated.
            length: L, of the whole text. Default: the model's max_position_embeddings; a longer text is beyond what
                the model was trained on.
            attention_mask: (B, L) 0 at padding of `input_ids`.
            steps: of the grid for "tweedie" and "euler"; default L. For "ordered" the number of
                events, if fewer than the masks; default one token an event. "first_hitting" takes none.
            method: "tweedie" (default) or "euler", diffusion on a grid of times (`noise_radd.reveal_probabilities`);
                "first_hitting", diffusion in continuous time, one token an event; "ordered", any-order autoregression.
            order: of "ordered": "forward" (default), "backward", "random" (one permutation a row), or the positions
                in the order in which they are revealed, (L,) for all rows or (R, L).
            temperature, top_k, top_p: of the token draw, as transformers' warpers define them. Defaults 1, 0, 1 change
                nothing; temperature 0 takes the likeliest token.
            use_cache: False evaluates every row at every step of the grid, also where nothing is revealed:
                the same tokens for the same generator, for comparison. Default True.
            refresh_interval: m, an approximation where m > 1: the network is evaluated as a whole at every m-th event
                only. At the others it computes the positions revealed just before, their neighbours and those to be
                revealed now, against the keys and values that all other positions had when they were last computed.
                The law is exact at every m-th event, and nearly so between. Default 1: exact.
            refresh_window: with `refresh_interval` > 1, how many neighbours on either side of a new token are computed
                along, since their keys and values change most. Default 4.
            stop_on_eos: end a row at the first generated EOS with no mask before it: what was or would be generated
                after it becomes padding. Needs eos_token_id in the generation config or the configuration; padding is
                pad_token_id of either, else EOS. Default False.
            max_time: seconds after which all that is still masked is drawn in one last event. Default: no limit.
            num_return_sequences: R / B, samples for each canvas. Default 1.
            generator: source of randomness on any device, or one for each of the R rows. A row's random numbers then
                do not depend on the rest of the batch, nor do its tokens, as far as the network's logits do not: a
                matrix product may round differently in a batch of another shape, which changes a token only where its
                random number falls within that rounding (1e-6 of probability in float32). Default: torch's own.
            tokenizer: for a `prefix` or `suffix` given as text.
            logits_processor: called with canvases (N, L) and scores (N, V), a row for each revealed position,
                before temperature, top-k and top-p.
            streamer: transformers' TextDiffusionStreamer (one row), or any object with `put` and `end`.
            output_history, return_dict_in_generate: return a [`RaddGenerateOutput`], with history. Default False.

        Returns:
            (R, L) ids, or [`RaddGenerateOutput`].

        Raises:
            ValueError: for arguments that do not fit, before the network is evaluated.
        """
        given = {name: value for name, value in locals().items() if name in RaddGenerationConfig.DEFAULTS}
        generation_config = _check_generation_config(generation_config)
        settings = RaddGenerationConfig.resolve(given, generation_config, self.generation_config)
        _check_together(settings, given, streamer, tokenizer)
        canvas, attention_mask = self._make_canvas(
            input_ids, prefix, suffix, settings.length, attention_mask, tokenizer
        )
        if input_ids is not None and length not in (None, canvas.shape[1]):
            raise ValueError(f"length={length}, but input_ids, the whole canvas, has length {canvas.shape[1]}.")
        copies = settings.num_return_sequences
        canvas = canvas.repeat_interleave(copies, dim=0)  # (R, L)
        if attention_mask is not None:
            attention_mask = attention_mask.repeat_interleave(copies, dim=0)
        if isinstance(streamer, TextStreamer) and len(canvas) > 1:
            raise ValueError(f"streamer={type(streamer).__name__} prints one row; this batch has {len(canvas)}.")
        if settings.method in GRID_METHODS and settings.steps is None:
            settings.steps = canvas.shape[1]
        processors = _make_processors(logits_processor, settings)
        ending = self._ending(generation_config) if settings.stop_on_eos else None
        order = _check_order(settings, canvas)
        # From here on the generator advances, and nothing is refused any more.
        draw = _Uniforms(generator, canvas, attention_mask)
        plan = self._make_plan(canvas == self.config.mask_token_id, order, settings, draw)
        if settings.use_cache or settings.method not in GRID_METHODS:
            event = without_empty_steps(plan)  # (R, L)
            evaluations = event.amax(dim=1) + 1  # (R,)
        else:
            event, evaluations = plan, plan.new_full((len(plan),), cast(int, settings.steps))

        training = self.training
        self.eval()
        try:
            with self.packed_weights(int(evaluations.max())):
                output = self._reveal(
                    canvas, attention_mask, plan, event, evaluations, draw(), processors, ending, settings, streamer
                )
        finally:
            self.train(training)
        return output if settings.return_dict_in_generate else canvas  # filled in place

    def _reveal(
        self,
        canvas: Tensor,
        attention_mask: Tensor | None,
        plan: Tensor,
        event: Tensor,
        evaluations: Tensor,
        uniform: Tensor,
        processors: LogitsProcessorList,
        ending: "_Ending | None",
        settings: RaddGenerationConfig,
        streamer: Any,
    ) -> RaddGenerateOutput:
        """The loop. All rows advance together, each to its own next event.

        canvas (R, L), filled in place; plan (R, L) the step of each position, event (R, L) the number of the evaluation
        that it comes to, evaluations (R,) of each row; uniform (R, L), for the token of each position.
        """
        deadline = math.inf if settings.max_time is None else time.monotonic() + settings.max_time
        generated = plan != GIVEN  # (R, L)
        token_logprobs = torch.zeros(canvas.shape, dtype=torch.float32, device=canvas.device)
        history = [canvas.clone()] if settings.output_history else None

        refresh = settings.refresh_interval, settings.refresh_window
        cache = self.model.make_cache() if settings.refresh_interval > 1 else None
        schedule, current = make_schedule(event, evaluations, 0, *refresh), 0
        before: Tensor | None = None  # rows of the event before, whose keys and values the cache has
        scores = _Scores(canvas.device)
        while schedule:
            if time.monotonic() > deadline:
                late = event >= current  # (R, L) everything this event and the later ones would reveal, at once
                soonest = plan.masked_fill(~late, torch.iinfo(plan.dtype).max).amin(dim=1, keepdim=True)
                plan, event = torch.where(late, soonest, plan), event.clamp(max=current)
                evaluations = evaluations.clamp(max=current + 1)
                schedule = make_schedule(event, evaluations, current)  # one whole evaluation
            rows, slot, wanted, row, position, recompute = schedule.pop(0)
            if recompute is not None and before is not None and len(rows) < len(before):
                cast(Any, cache).select_rows(torch.searchsorted(before, rows))  # both in ascending order
            before = rows
            hidden = self.model(
                input_ids=canvas[rows],
                attention_mask=None if attention_mask is None else attention_mask[rows],
                output_positions=slot,
                cache=cache,
                recompute=recompute,
            ).last_hidden_state.flatten(0, 1)  # (A K, D)
            if wanted is not None:
                hidden = hidden[wanted]  # (N, D)
            tokens, logprobs = self._draw(hidden, canvas, row, uniform[row, position], processors, settings, scores)
            canvas[row, position] = tokens
            token_logprobs[row, position] = logprobs
            current += 1
            if ending is not None:
                stopped, padded = ending.find(canvas, generated, self.config.mask_token_id)
                canvas.masked_fill_(padded, ending.pad_token_id)
                token_logprobs.masked_fill_(padded, 0)
                plan = plan.masked_fill(padded, GIVEN)
                if bool((stopped & (evaluations > current)).any()):
                    evaluations = torch.where(stopped, evaluations.clamp(max=current), evaluations)
                    schedule = make_schedule(event, evaluations, current, *refresh)
            if history is not None:
                history.append(canvas.clone())
            if streamer is not None and hasattr(streamer, "put_draft"):
                streamer.put_draft(canvas.to("cpu", copy=True))

        scores.check()
        if streamer is not None:
            streamer.put(canvas.to("cpu", copy=True))
            streamer.end()
        return RaddGenerateOutput(
            sequences=canvas,
            num_function_evaluations=evaluations,
            reveal_step=plan,
            token_logprobs=token_logprobs,
            history=None if history is None else tuple(history),
        )

    def _draw(
        self,
        hidden: Tensor,
        canvas: Tensor,
        row: Tensor,
        uniform: Tensor,
        processors: LogitsProcessorList,
        settings: RaddGenerationConfig,
        checks: "_Scores",
    ) -> tuple[Tensor, Tensor]:
        """Tokens (N,) and their log-probabilities (N,) from hidden states (N, D), never more than a chunk of logits."""
        tokens, logprobs = [], []
        size = max(MAX_DRAW_ELEMENTS // self.config.vocab_size, 1)
        for h, r, u in zip(hidden.split(size), row.split(size), uniform.split(size), strict=True):
            logits = self.compute_logits(h).float()  # (n, V)
            # Processors get a copy, since they may work in place.
            scores = processors(cast(Any, canvas[r]), cast(Any, logits.clone())) if processors else logits
            checks.note(logits, scores)
            token = scores.argmax(dim=-1) if settings.temperature == 0 else draw_tokens(scores, u)  # (n,)
            tokens.append(token)
            logprobs.append(logits.gather(1, token[:, None]).squeeze(1) - logits.logsumexp(dim=-1))
        return torch.cat(tokens), torch.cat(logprobs)

    def _make_plan(
        self, masked: Tensor, order: Tensor | None, settings: RaddGenerationConfig, draw: "_Uniforms"
    ) -> Tensor:
        """(R, L) int64: the event of each masked position, by `settings.method`; order (R, L), or None for random."""
        if settings.method in GRID_METHODS:
            reveal = reveal_probabilities(get_noise(self.config), settings.method, cast(int, settings.steps))
            return plan_grid(masked, reveal.to(masked.device), draw())
        if settings.method == "first_hitting":
            return plan_sequence(masked, draw())
        priority = draw() if order is None else order.argsort(dim=1)  # (R, L) a position's place in the order
        return plan_sequence(masked, priority, settings.steps)

    def _ending(self, generation_config: Any) -> "_Ending":
        """The ids that end a row and pad it: the generation configs' or the model configuration's."""
        sources = [source for source in (generation_config, self.generation_config, self.config) if source is not None]
        eos, pad = (
            next((value for source in sources if (value := getattr(source, name, None)) is not None), None)
            for name in ("eos_token_id", "pad_token_id")
        )
        if eos is None:
            raise ValueError("stop_on_eos=True needs eos_token_id in the generation config or in the model's.")
        eos = [eos] if _is_int(eos) else list(eos)
        ending = _Ending(eos, eos[0] if pad is None else pad)
        for name, token in (*(("eos_token_id", token) for token in eos), ("pad_token_id", ending.pad_token_id)):
            if not _is_int(token) or not 0 <= token < self.config.vocab_size or token == self.config.mask_token_id:
                raise ValueError(
                    f"{name}={token!r} must be an id below {self.config.vocab_size} and not the mask's, "
                    f"{self.config.mask_token_id}."
                )
        return ending

    def _make_canvas(
        self,
        input_ids: Any,
        prefix: Any,
        suffix: Any,
        length: int | None,
        attention_mask: Tensor | None,
        tokenizer: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, L) ids on the model's device, a copy, and the attention mask (B, L) or None."""
        mask_id, vocab_size, device = self.config.mask_token_id, self.config.vocab_size, _execution_device(self.model)
        if input_ids is not None:
            if prefix is not None or suffix is not None:
                raise ValueError("input_ids is the whole canvas: pass it, or prefix and suffix, not both.")
            rows = _id_rows("input_ids", input_ids, tokenizer, vocab_size)
            lengths = sorted({len(row) for row in rows})
            if len(lengths) > 1 or lengths[0] == 0:
                raise ValueError(f"input_ids has rows of lengths {lengths}; a canvas has one length of at least 1.")
            canvas = torch.tensor(rows, device=device)  # (B, L)
        else:
            if attention_mask is not None:
                raise ValueError("attention_mask describes padding of input_ids: pass it with input_ids only.")
            length = length or self.config.max_position_embeddings
            before = [[]] if prefix is None else _id_rows("prefix", prefix, tokenizer, vocab_size)
            after = [[]] if suffix is None else _id_rows("suffix", suffix, tokenizer, vocab_size)
            if len(before) != len(after) and 1 not in (len(before), len(after)):
                raise ValueError(
                    f"prefix has {len(before)} rows and suffix {len(after)}: they must agree, or one of them be single."
                )
            batch = max(len(before), len(after))
            canvas = torch.full((batch, length), mask_id, device=device)  # (B, L)
            for row, head, tail in zip(
                canvas, before * (batch // len(before)), after * (batch // len(after)), strict=True
            ):
                if len(head) + len(tail) >= length:
                    raise ValueError(
                        f"prefix ({len(head)} tokens) + suffix ({len(tail)} tokens) leave nothing to generate in "
                        f"length={length}; pass length > {len(head) + len(tail)} or shorten them."
                    )
                row[: len(head)] = torch.tensor(head, dtype=canvas.dtype)
                row[length - len(tail) :] = torch.tensor(tail, dtype=canvas.dtype)
        if attention_mask is not None:
            attention_mask = _as_tensor("attention_mask", attention_mask, device)
            attention_mask = attention_mask[None] if attention_mask.ndim == 1 else attention_mask
            if attention_mask.shape != canvas.shape:
                raise ValueError(
                    f"attention_mask has shape {tuple(attention_mask.shape)}; input_ids has {tuple(canvas.shape)}."
                )
            if not bool(((attention_mask == 0) | (attention_mask == 1)).all()):
                raise ValueError(f"attention_mask={attention_mask.tolist()} must hold 1 at text and 0 at padding.")
            if bool(((attention_mask == 0) & (canvas == mask_id)).any()):
                raise ValueError(f"attention_mask is 0 at a mask (id {mask_id}) of input_ids: pad with another id.")
        return canvas, attention_mask

    def adjust_generation_fn(
        self, generation_config, from_auto_class, from_pipeline, pretrained_model_name_or_path, **kwargs
    ):
        """Called by `from_pretrained` to give the model its generation config: the one passed, else the folder's."""
        names = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
        hub = {name: kwargs[name] for name in names if name in kwargs}  # the rest is for the model's configuration
        if generation_config is not None:
            self.generation_config = self.generation_config_class.from_dict(generation_config.to_dict())
        elif pretrained_model_name_or_path is not None:
            found = cached_file(
                pretrained_model_name_or_path,
                GENERATION_CONFIG_NAME,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
                **hub,
            )
            if found is not None:  # the authors' repositories have none: the defaults hold
                self.generation_config = self.generation_config_class.from_pretrained(
                    pretrained_model_name_or_path, _from_auto=from_auto_class, _from_pipeline=from_pipeline, **hub
                )


@dataclass(frozen=True)
class _Ending:
    eos_token_ids: list[int]
    pad_token_id: int

    def find(self, canvas: Tensor, generated: Tensor, mask_token_id: int) -> tuple[Tensor, Tensor]:
        """Rows that have ended (R,), and their generated positions after the end (R, L).

        A row ends at its first generated EOS that has no mask before it: what lies before is final.
        """
        settled = (canvas == mask_token_id).cumsum(dim=1) == 0  # (R, L) no mask here or before
        ends = torch.isin(canvas, torch.tensor(self.eos_token_ids, device=canvas.device)) & generated & settled
        after = ends.cumsum(dim=1) - ends.long() > 0
        return ends.any(dim=1), after & generated


class _Scores:
    """Whether every position had a token with a finite score.

    Noted at every draw and asked once, at the end: the host has to wait for the device when it asks.
    """

    def __init__(self, device: torch.device):
        self.of_network = self.processed = torch.ones((), dtype=torch.bool, device=device)

    def note(self, logits: Tensor, scores: Tensor) -> None:
        finite = logits.amax(dim=-1).isfinite().all()
        self.of_network = self.of_network & finite
        self.processed = self.processed & (finite if scores is logits else scores.amax(dim=-1).isfinite().all())

    def check(self) -> None:
        if not bool(self.processed):
            culprit = "logits_processor" if bool(self.of_network) else "the network"
            raise ValueError(f"{culprit} left a position where no token has a finite score.")


class _Uniforms:
    """Uniform numbers in [0, 1) with 53 bits, (R, L) at each call, from one generator, one a row, or torch's own.

    Padding takes none, so that a row that has its own generator has the same numbers in any batch.
    """

    def __init__(
        self,
        generator: torch.Generator | list[torch.Generator] | None,
        canvas: Tensor,
        attention_mask: Tensor | None = None,
    ):
        rows = len(canvas)
        self.device = canvas.device
        self.text = torch.ones_like(canvas) if attention_mask is None else attention_mask
        self.text = self.text.bool()  # (R, L)
        self.sources: list[tuple[torch.Generator | None, int]]
        if isinstance(generator, (list, tuple)):
            if len(generator) != rows:
                raise ValueError(f"generator is a list of {len(generator)}; the batch has {rows} rows, one for each.")
            self.sources = [(source, 1) for source in generator]
        else:
            self.sources = [(generator, rows)]
        for source, _ in self.sources:
            if source is not None and not isinstance(source, torch.Generator):
                raise TypeError(f"generator={source!r} must be a torch.Generator, or a list of one for each row.")

    def __call__(self) -> Tensor:
        counts = [int(rows.sum()) for rows in self.text.split([rows for _, rows in self.sources])]
        draws = [
            torch.rand(
                count,
                generator=source,
                dtype=torch.float64,
                device=self.device if source is None else source.device,
            ).to(self.device)
            for count, (source, _) in zip(counts, self.sources, strict=True)
        ]
        uniform = torch.zeros(self.text.shape, dtype=torch.float64, device=self.device)
        return uniform.masked_scatter_(self.text, torch.cat(draws))  # (R, L)


def _check_together(settings: RaddGenerationConfig, given: dict, streamer: Any, tokenizer: Any) -> None:
    """Arguments that contradict each other. Only those given with the call: a saved config may hold more."""
    method = settings.method
    if given["order"] is not None and method != "ordered":
        raise ValueError(f"order={given['order']!r} is for method='ordered'; method={method!r} draws its own order.")
    if given["steps"] is not None and method == "first_hitting":
        raise ValueError(f"steps={given['steps']}: method='first_hitting' reveals one token an event, leave steps out.")
    if settings.use_cache is False and settings.refresh_interval > 1:
        raise ValueError(
            f"refresh_interval={settings.refresh_interval} reuses keys and values, use_cache=False evaluates all "
            "rows at all steps: pass refresh_interval=1 or use_cache=True."
        )
    if given["use_cache"] is False and method not in GRID_METHODS:
        raise ValueError(f"use_cache=False evaluates the empty steps of a grid; method={method!r} has no grid.")
    if tokenizer is not None and not callable(tokenizer):
        raise TypeError(f"tokenizer={tokenizer!r} must be a tokenizer of transformers, loaded.")
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise TypeError(f"streamer={streamer!r} must have the methods put and end.")
    if getattr(streamer, "skip_prompt", False):
        raise ValueError(
            "streamer has skip_prompt=True, which skips the first text put; here the first is the only one."
        )


def _make_processors(logits_processor: Any, settings: RaddGenerationConfig) -> LogitsProcessorList:
    """The caller's processors, then temperature, top-k and top-p in transformers' order."""
    if not isinstance(logits_processor, (list, tuple, type(None))) or not all(map(callable, logits_processor or ())):
        raise TypeError(f"logits_processor={logits_processor!r} must be a LogitsProcessorList or a list of processors.")
    processors = LogitsProcessorList(logits_processor or [])
    if settings.temperature not in (0, 1):
        processors.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k > 0:
        processors.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p < 1:
        processors.append(TopPLogitsWarper(float(settings.top_p)))
    return processors


def _check_generation_config(generation_config: Any) -> Any:
    """The `generation_config` argument, refused if it holds what RADD has no use for."""
    if generation_config is None or type(generation_config).__name__ == RaddGenerationConfig.__name__:
        return generation_config
    if isinstance(generation_config, dict):
        return RaddGenerationConfig(**generation_config)
    raise TypeError(f"generation_config={generation_config!r} must be a RaddGenerationConfig or a dictionary.")


def _check_order(settings: RaddGenerationConfig, canvas: Tensor) -> Tensor | None:
    """(R, L): the positions of each row in the order in which they are revealed; None if random, or of no use."""
    rows, length = canvas.shape
    if settings.method != "ordered" or settings.order == "random":
        return None
    position = torch.arange(length, device=canvas.device)
    if isinstance(settings.order, str):
        return (position if settings.order == "forward" else position.flip(0)).expand(rows, length)
    order = _as_tensor("order", settings.order, canvas.device)
    if order.shape not in ((length,), (rows, length)) or order.is_floating_point():
        raise ValueError(
            f"order has shape {tuple(order.shape)} and dtype {order.dtype}; it must hold positions as integers, "
            f"({length},) for all rows or ({rows}, {length})."
        )
    if not torch.equal(order.sort(dim=-1).values, position.expand(order.shape)):
        raise ValueError(f"order={order.tolist()} must name each position 0 .. {length - 1} exactly once.")
    return order.expand(rows, length)


def _as_tensor(name: str, value: Any, device: torch.device) -> Tensor:
    try:
        return torch.as_tensor(value, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}={value!r} must be a tensor, or lists of numbers of one length. {error}") from error


def _execution_device(trunk: Any) -> torch.device:
    """Where the trunk wants its ids. With offloaded weights (on the "meta" device), where accelerate runs them."""
    if trunk.device.type != "meta":
        return trunk.device
    return torch.device(trunk.get_input_embeddings()._hf_hook.execution_device)


def _id_rows(name: str, value: Any, tokenizer: Any, vocab_size: int) -> list[list[int]]:
    """Rows of token ids from ids or text in any of the forms `generate` takes, checked."""
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.dtype == torch.bool or value.ndim not in (1, 2):
            raise ValueError(
                f"{name} has shape {tuple(value.shape)} and dtype {value.dtype}; ids are integers, (L,) or (B, L)."
            )
        value = value.tolist()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, (list, tuple)):
        raise TypeError(f"{name}={value!r} must be ids (list or tensor) or text (with tokenizer=).")
    if texts and all(isinstance(text, str) for text in texts):
        if tokenizer is None:
            raise ValueError(f"{name}={value!r} is text: pass tokenizer= with it, or token ids.")
        rows = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    elif not texts or _is_int(texts[0]):
        rows = [list(texts)]
    else:
        rows = [list(row) if isinstance(row, (list, tuple)) else [row] for row in texts]
    for row in rows:
        for token in row:
            if not _is_int(token):
                raise TypeError(f"{name} holds {token!r}; it must be token ids, all text, or all rows of ids.")
            if not 0 <= token < vocab_size:
                raise ValueError(f"{name} holds the id {token}; the vocabulary has ids 0 .. {vocab_size - 1}.")
    return rows


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


__all__ = ["RaddGenerateOutput", "RaddGenerationConfig", "RaddGenerationMixin"]
