# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fills the masks of a canvas: the reverse process of masked diffusion.

    canvas    ids in which every mask token is to be filled and every other token stays
    event     one evaluation of the network, which reveals tokens at some positions of each row
    plan      for each masked position, the event that reveals it
    schedule  for each event, the rows and positions that it reveals
    draw      a token for each revealed position, from the network's distribution given the canvas
    loop      event by event: evaluate, draw, write

In absorbing diffusion the time at which a token is revealed depends neither on the network nor on the text, and RADD's
network does not depend on time (arXiv:2406.03736, section 3.1). So the plan can be made first, and the network is
evaluated only where the plan reveals something. This is the paper's "caching" (section 3.2), and the output has the
distribution of the published samplers (algorithms 5 and 6). Equations are numbered as in version 4 of the paper.

A plan made first also allows an approximation, which is off by default: `refresh_interval`, see `generate`.

Shapes: R rows (batch x num_return_sequences), A rows that still have events, L length, V vocabulary;
        N positions revealed in one event, at most K in any row; C positions of a partial evaluation of a row.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from transformers.generation import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import TextStreamer
from transformers.utils import GENERATION_CONFIG_NAME, ModelOutput, cached_file

from .canvas_radd import Positions, TextOrIds, as_tensor, make_canvas, widen
from .kernels_radd import evaluation_mode
from .noise_radd import get_noise, reveal_probabilities
from .randomness_radd import Uniforms, check_seed, sample_generators, text_seed
from .settings_radd import GRID_METHODS, SETTINGS, Method, Order, is_integer

# Value of a plan at positions that are given, not generated.
GIVEN = -1
# At most this many logits (64 MB in float32) exist at once while tokens are drawn; softmax and cumulative sum need a
# few times as much.
MAX_DRAW_ELEMENTS = 2**24


# ---------------------------------------------------------------------------------------------------------
# Settings and output
# ---------------------------------------------------------------------------------------------------------


class RaddGenerationConfig(GenerationConfig):
    """Holds settings of [`RaddGenerationMixin.generate`]; saved as generation_config.json.

    Its fields are the settings of `settings_radd.py`. None means not set: then the model's generation config decides,
    else [`RaddGenerationConfig.DEFAULTS`].
    """

    DEFAULTS = {name: setting.default for name, setting in SETTINGS.items()}
    METADATA = (
        "pad_token_id",
        "bos_token_id",
        "eos_token_id",
        "_commit_hash",
        "_from_model_config",
        "transformers_version",
    )
    length: int | None
    steps: int | None
    method: Method
    order: Order | Sequence[int] | Tensor
    refresh_interval: int
    refresh_window: int
    max_time: float | None
    stop_on_eos: bool
    output_history: bool

    def __init__(self, **kwargs):
        # Without super().__init__(): most of its fields are for autoregression.
        for name in (*self.DEFAULTS, *self.METADATA):
            setattr(self, name, kwargs.pop(name, None))
        if kwargs:
            raise ValueError(f"{sorted(kwargs)} are not settings of RADD's generate; they are {sorted(self.DEFAULTS)}.")
        self.validate()

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None):
        for name, setting in SETTINGS.items():
            setting.check(name, getattr(self, name))

    @classmethod
    def resolve(cls, *sources: Any) -> "RaddGenerationConfig":
        """Makes one complete configuration: each setting from the first source that has it, else the default.

        Sources are dictionaries or configurations, of any class: remote code and the package have different ones.
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
    """Holds what `generate` returns with `return_dict_in_generate`.

    sequences: (R, L) ids, without a mask.
    num_function_evaluations: (R,) network evaluations that each row took (NFE); with `refresh_interval` m > 1 all but
        one in m of them were partial.
    reveal_step: (R, L) the step of the grid (empty ones counted), or the event of a method without a grid, that
        revealed each position; -1 at positions that were given, or padded after EOS.
    token_logprobs: (R, L) natural log-probability of each token when it was drawn, before logits processors,
        temperature, top-k and top-p; 0 at positions that were given or padded. float32.
    history: the canvas (R, L) at the start and after every event, with `output_history`.
    """

    sequences: Tensor | None = None
    num_function_evaluations: Tensor | None = None
    reveal_step: Tensor | None = None
    token_logprobs: Tensor | None = None
    history: tuple[Tensor, ...] | None = None


# ---------------------------------------------------------------------------------------------------------
# Plan: when is each position revealed? Plans are (R, L) int64, GIVEN where nothing is masked.
# ---------------------------------------------------------------------------------------------------------


def plan_grid(masked: Tensor, reveal: Tensor, uniform: Tensor) -> Tensor:
    """Draws the step of the grid in which Tweedie or Euler reveals each masked position.

    A position still masked is revealed in step i with probability r_i (eq. (D.14) and (D.15)). So its reveal step is i
    with probability q_i = r_i prod_{j<i} (1 - r_j), independently of all else, and is drawn once, by inversion of the
    distribution function. A row with m masks then takes sum_i 1 - (1 - q_i)^m evaluations in expectation (eq. (D.30)),
    which is n (1 - (1 - 1/n)^m) for log-linear noise (eq. (3.4)).

    Args:
        masked: (R, L) bool. reveal: (n,) float64, r, with r_n = 1 in the last step. uniform: (R, L) float64 in [0, 1).
    """
    distribution = 1 - (1 - reveal).cumprod(dim=0)  # (n,) P(reveal step <= i); 1 at the end, since r_n = 1
    step = torch.searchsorted(distribution, uniform, right=True)  # (R, L)
    return step.masked_fill(~masked, GIVEN)


def plan_sequence(masked: Tensor, priority: Tensor, steps: int | None = None) -> Tensor:
    """Plans one position an event, in ascending `priority` (R, L); with fewer `steps` than masks, balanced groups.

    First-hitting is this with uniform priorities: the hitting times of the continuous-time process are
    independent and identically distributed, so their order is a uniform permutation (arXiv:2409.02908, section 4.2).
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
    """Describes one turn of the loop: one evaluation, and the positions that it reveals.

    rows: (A,) rows that still have events, ascending. reveals: the positions that it reveals in each of them.
    flat_index: (N,) where these are on the flattened canvas. partial: the positions of an evaluation of some, the
    revealed ones among them; None for an evaluation of all positions.
    """

    rows: Tensor
    reveals: Positions
    flat_index: Tensor
    partial: Positions | None

    def to(self, device: torch.device) -> "Event":
        partial = None if self.partial is None else self.partial.to(device)
        return Event(self.rows.to(device), self.reveals.to(device), self.flat_index.to(device), partial)


class Schedule:
    """Holds the events to come; changes them when time has run out or rows have ended.

    All events are made before the first evaluation, so that the loop need not wait for the device to learn what comes
    next. Only `stop_on_eos` waits.

    Args:
        plan: (R, L) the step that reveals each position, GIVEN where there is none.
        steps: (R,) number of steps of each row, all of which are evaluated; None: only those that reveal something.
        refresh_interval, refresh_window: see `generate`.
    """

    def __init__(self, plan: Tensor, steps: Tensor | None = None, refresh_interval: int = 1, refresh_window: int = 0):
        self.plan = plan
        self.device = plan.device
        self.event = (without_empty_steps(plan) if steps is None else plan).cpu()  # (R, L) number of the evaluation
        self.evaluations = self.event.amax(dim=1) + 1 if steps is None else steps.cpu()  # (R,) of each row
        self.refresh_interval, self.refresh_window = refresh_interval, refresh_window
        self.current = 0  # number of events taken
        self.events = self._make_events()

    def __len__(self) -> int:
        return len(self.events)

    def next(self) -> Event:
        self.current += 1
        return self.events.pop(0)

    def reveal_all(self) -> None:
        """Replaces all events to come by one, a whole evaluation."""
        late = self.event >= self.current  # (R, L)
        soonest = self.plan.masked_fill(~late.to(self.device), torch.iinfo(self.plan.dtype).max)
        self.plan = torch.where(late.to(self.device), soonest.amin(dim=1, keepdim=True), self.plan)
        self.event = self.event.clamp(max=self.current)
        self.evaluations = self.evaluations.clamp(max=self.current + 1)
        self.refresh_interval = 1
        self.events = self._make_events()

    def end_rows(self, ended: Tensor, padded: Tensor) -> None:
        """Removes the events of rows that have `ended` (R,); positions `padded` (R, L) then count as given."""
        self.plan = self.plan.masked_fill(padded, GIVEN)
        evaluations = torch.where(ended.cpu(), self.evaluations.clamp(max=self.current), self.evaluations)
        if not torch.equal(evaluations, self.evaluations):
            self.evaluations = evaluations
            self.events = self._make_events()

    def _make_events(self) -> list[Event]:
        """Returns the events from the current one on, on the device of the plan."""
        events = []
        for current in range(self.current, int(self.evaluations.max())):
            rows = (self.evaluations > current).nonzero().squeeze(1)  # (A,)
            event = self.event[rows]  # (A, L)
            reveals = Positions.of(event == current)
            partial = None
            if current % self.refresh_interval:
                # Compute what the event before wrote and its neighbours, whose keys change most, and what is drawn now.
                partial = Positions.of(widen(event == current - 1, self.refresh_window) | (event == current))
            flat_index = (rows[:, None] * event.shape[1] + reveals.indices).flatten()[reveals.distinct]  # (N,)
            events.append(Event(rows, reveals, flat_index, partial))
        return [each.to(self.device) for each in events]


# ---------------------------------------------------------------------------------------------------------
# Draw: which token?
# ---------------------------------------------------------------------------------------------------------


def draw_tokens(scores: Tensor, uniform: Tensor) -> Tensor:
    """Draws a token from softmax(scores) for each row, by inversion of the distribution function: (N, V), (N,) -> (N,).

    Uniforms and cumulative sum are float64: the 24-bit uniforms of a float32 Gumbel or exponential race never reach the
    tail, which acts like a lower temperature (arXiv:2409.02908, section 5). Each token takes one uniform, so that the
    draw depends on the position and not on the event or the batch.
    """
    distribution = scores.softmax(dim=-1, dtype=torch.float32).double().cumsum(dim=-1)  # (N, V)
    total = distribution[:, -1:]
    # Strictly below the total, whatever the rounding, so that a token of probability zero is never drawn.
    target = torch.minimum(uniform[:, None] * total, total.nextafter(torch.zeros_like(total)))
    token = torch.searchsorted(distribution, target, right=True).squeeze(1)
    return token.clamp(max=scores.shape[1] - 1)  # also where scores are NaN, which `generate` refuses at its end


# ---------------------------------------------------------------------------------------------------------
# Loop
# ---------------------------------------------------------------------------------------------------------


class RaddGenerationMixin:
    """Gives the method `generate` to a model with a trunk `self.model` and a head `self.compute_logits`."""

    config: Any
    model: Any
    generation_config: Any
    generation_config_class: Any
    compute_logits: Any

    @torch.no_grad()
    def generate(
        self,
        input_ids: TextOrIds | None = None,
        *,
        prefix: TextOrIds | None = None,
        suffix: TextOrIds | None = None,
        length: int | None = None,
        attention_mask: Tensor | None = None,
        steps: int | None = None,
        method: Method | None = None,
        order: Order | Sequence[int] | Tensor | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        use_cache: bool | None = None,
        refresh_interval: int | None = None,
        refresh_window: int | None = None,
        stop_on_eos: bool | None = None,
        max_time: float | None = None,
        num_return_sequences: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
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
            length: L, tokens of the whole text. Default: the model's max_position_embeddings; the model was not
                trained on longer texts.
            attention_mask: (B, L) 0 at padding of `input_ids`.
            steps: for "tweedie" and "euler" the number of time intervals; by default as many as the row has tokens,
                padding left out. For "ordered" the number of events, if fewer than the masks; by default one token an
                event. "first_hitting" takes none.
            method: "tweedie" (default) or "euler", diffusion on a grid of times (`noise_radd.reveal_probabilities`);
                "first_hitting", diffusion in continuous time, one token an event; "ordered", any-order autoregression.
            order: of "ordered": "forward" (default), "backward", "random" (one permutation a row), or the positions
                in the order in which they are revealed, (L,) for all rows or (R, L).
            temperature, top_k, top_p: of the token draw, as transformers' warpers define them. Defaults 1, 0, 1 change
                nothing; temperature 0 takes the likeliest token.
            use_cache: False evaluates every row at every step of the grid, also where nothing is revealed. The tokens
                are the same for the same generator; it is for comparisons of speed. Default True.
            refresh_interval: m, an approximation where m > 1: only every m-th event evaluates the network at all
                positions. The others compute the positions revealed just before, their neighbours and those to be
                revealed now, with the keys and values that all other positions had when they were last computed.
                Tokens are drawn from the exact distribution at every m-th event, nearly so between. Default 1: exact.
            refresh_window: with `refresh_interval` > 1, neighbours recomputed on each side of a new token, since their
                keys and values change most. Default 4.
            stop_on_eos: end a row at the first generated EOS with no mask before it: generated positions after it
                become padding. Needs eos_token_id in the generation config or the configuration; padding is
                pad_token_id of either, else EOS. Default False.
            max_time: seconds after which all that is still masked is drawn in one last event. Default: no limit.
            num_return_sequences: R / B, samples for each canvas. Default 1.
            seed: the same seed and settings write the same texts: sample i of canvas b has a generator of its own,
                made of (seed, b, i) by `randomness_radd.sample_generators`. The pipeline, the command line and the web
                page do the same.
            generator: instead of `seed`, a source of randomness on any device, or one for each of the R rows. A row's
                random numbers then do not depend on the rest of the batch. Its tokens may, but hardly: a matrix
                product may round differently in a batch of another shape, which changes a token only where its random
                number falls within that rounding (1e-6 of probability in float32). Default: torch's own.
            tokenizer: for a `prefix` or `suffix` given as text.
            logits_processor: called with canvases (N, L) and scores (N, V), a row for each revealed position,
                before temperature, top-k and top-p.
            streamer: transformers' TextDiffusionStreamer (one row), or any object with `put` and `end`.
            output_history, return_dict_in_generate: return a [`RaddGenerateOutput`], with history. Default False.

        Returns:
            (R, L) ids, or [`RaddGenerateOutput`].

        Raises:
            ValueError, TypeError: for arguments that do not fit, before the network is evaluated.
            ValueError: after the last evaluation, if no token had a finite score at some position.
        """
        # 1. Settings: the keyword, else the generation configs, else the default.
        given = {name: value for name, value in locals().items() if name in SETTINGS}
        generation_config = _check_generation_config(generation_config)
        settings = RaddGenerationConfig.resolve(given, generation_config, self.generation_config)
        _check_together(settings, given, streamer, tokenizer)
        processors = _make_processors(logits_processor, settings)
        ending = self._ending(generation_config) if settings.stop_on_eos else None

        # 2. Canvas: what is given, and masks; each canvas `num_return_sequences` times.
        length = given["length"] if input_ids is not None else settings.length
        canvas, attention_mask = make_canvas(
            self.config,
            input_ids,
            prefix=prefix,
            suffix=suffix,
            length=length,
            attention_mask=attention_mask,
            tokenizer=tokenizer,
            device=_execution_device(self.model),
        )
        batch, copies = len(canvas), settings.num_return_sequences
        canvas = canvas.repeat_interleave(copies, dim=0)  # (B, L) -> (R, L)
        if attention_mask is not None:
            attention_mask = attention_mask.repeat_interleave(copies, dim=0)
        if isinstance(streamer, TextStreamer) and len(canvas) > 1:
            raise ValueError(f"streamer={type(streamer).__name__} prints one row; this batch has {len(canvas)}.")
        order_of_positions = _check_order(settings, canvas)
        if seed is not None:
            generator = _seeded(seed, generator, batch, copies)
        text = torch.ones_like(canvas, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        draw = Uniforms(generator, text)

        cache = _RowsCache(self.model.make_cache()) if settings.refresh_interval > 1 else None

        # 3. Plan and schedule. From here on the generator advances, and no argument is refused any more.
        steps_of_rows = text.sum(dim=1).clamp(min=1)  # (R,)
        if settings.steps is not None:
            steps_of_rows = torch.full_like(steps_of_rows, settings.steps)
        plan = self._make_plan(canvas == self.config.mask_token_id, order_of_positions, settings, steps_of_rows, draw)
        uniform = draw()  # (R, L) for the tokens
        every_step = settings.method in GRID_METHODS and not settings.use_cache
        refresh = settings.refresh_interval, settings.refresh_window
        schedule = Schedule(plan, steps_of_rows if every_step else None, *refresh)

        # 4. Loop: fills the canvas in place.
        with evaluation_mode(cast(Any, self), len(schedule)):
            output = self._reveal(
                canvas, attention_mask, schedule, uniform, cache, processors, ending, settings, streamer
            )
        return output if settings.return_dict_in_generate else canvas

    def _reveal(
        self,
        canvas: Tensor,
        attention_mask: Tensor | None,
        schedule: Schedule,
        uniform: Tensor,
        cache: "_RowsCache | None",
        processors: LogitsProcessorList,
        ending: "_Ending | None",
        settings: RaddGenerationConfig,
        streamer: Any,
    ) -> RaddGenerateOutput:
        """Runs the loop. All rows advance together, each to its own next event.

        It fills canvas (R, L) in place; uniform (R, L) draws the token of each position.
        """
        deadline = math.inf if settings.max_time is None else time.monotonic() + settings.max_time
        generated = schedule.plan != GIVEN  # (R, L)
        token_logprobs = torch.zeros(canvas.shape, dtype=torch.float32, device=canvas.device)
        history = [canvas.clone()] if settings.output_history else None
        scores = _FiniteCheck(canvas.device)
        while schedule:
            if time.monotonic() > deadline:
                schedule.reveal_all()
            event = schedule.next()
            hidden = self.model(
                input_ids=canvas[event.rows],
                attention_mask=None if attention_mask is None else attention_mask[event.rows],
                output_positions=event.reveals,
                cache=None if cache is None else cache.of(event),
                partial=event.partial,
            ).last_hidden_state  # (N, D)
            row, u = event.flat_index // canvas.shape[1], uniform.flatten()[event.flat_index]  # (N,) both
            tokens, logprobs = self._draw(hidden, canvas, row, u, processors, settings, scores)
            canvas.view(-1)[event.flat_index] = tokens
            token_logprobs.view(-1)[event.flat_index] = logprobs
            if ending is not None:
                ended, padded = ending.find(canvas, generated, self.config.mask_token_id)
                canvas.masked_fill_(padded, ending.pad_token_id)
                token_logprobs.masked_fill_(padded, 0)
                schedule.end_rows(ended, padded)
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
            num_function_evaluations=schedule.evaluations.to(canvas.device),
            reveal_step=schedule.plan,
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
        checks: "_FiniteCheck",
    ) -> tuple[Tensor, Tensor]:
        """Draws tokens (N,), and returns their log-probabilities (N,), too, from hidden states (N, D) in chunks."""
        tokens, logprobs = [], []
        size = max(MAX_DRAW_ELEMENTS // self.config.vocab_size, 1)
        for h, r, u in zip(hidden.split(size), row.split(size), uniform.split(size), strict=True):
            logits = self.compute_logits(h).float()  # (n, V)
            # Processors get a copy, since they may work in place.
            scores = processors(cast(Any, canvas[r]), cast(Any, logits.clone())) if processors else logits
            if not isinstance(scores, Tensor) or scores.shape != logits.shape:
                shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise ValueError(f"logits_processor returned {shape}; it must return scores {tuple(logits.shape)}.")
            checks.note(logits, scores)
            token = scores.argmax(dim=-1) if settings.temperature == 0 else draw_tokens(scores, u)  # (n,)
            tokens.append(token)
            logprobs.append(logits.gather(1, token[:, None]).squeeze(1) - logits.logsumexp(dim=-1))
        return torch.cat(tokens), torch.cat(logprobs)

    def _make_plan(
        self, masked: Tensor, order: Tensor | None, settings: RaddGenerationConfig, steps: Tensor, draw: Uniforms
    ) -> Tensor:
        """Returns (R, L) int64: the event that reveals each masked position, by `settings.method`.

        order: (R, L), None for a random one. steps: (R,) of each row's grid. draw: gives uniforms (R, L).
        """
        if settings.method in GRID_METHODS:
            uniform, plan = draw(), masked.long()
            for count in steps.unique().tolist():
                rows = steps == count
                reveal = reveal_probabilities(get_noise(self.config), settings.method, count).to(masked.device)
                plan[rows] = plan_grid(masked[rows], reveal, uniform[rows])
            return plan
        if settings.method == "first_hitting":
            return plan_sequence(masked, draw())
        priority = draw() if order is None else order.argsort(dim=1)  # (R, L) a position's place in the order
        return plan_sequence(masked, priority, settings.steps)

    def _ending(self, generation_config: Any) -> "_Ending":
        """Returns the ids that end a row and pad it, from the generation configs, else the model's configuration."""
        sources = [source for source in (generation_config, self.generation_config, self.config) if source is not None]
        eos, pad = (
            next((value for source in sources if (value := getattr(source, name, None)) is not None), None)
            for name in ("eos_token_id", "pad_token_id")
        )
        if eos is None:
            raise ValueError("stop_on_eos=True needs eos_token_id in the generation config or in the model's.")
        eos = [eos] if is_integer(eos) else list(eos)
        ending = _Ending(eos, eos[0] if pad is None else pad)
        for name, token in (*(("eos_token_id", token) for token in eos), ("pad_token_id", ending.pad_token_id)):
            if not is_integer(token) or not 0 <= token < self.config.vocab_size or token == self.config.mask_token_id:
                raise ValueError(
                    f"{name}={token!r} must be an id below {self.config.vocab_size} and not the mask's, "
                    f"{self.config.mask_token_id}."
                )
        return ending

    def adjust_generation_fn(
        self, generation_config, from_auto_class, from_pipeline, pretrained_model_name_or_path, **kwargs
    ):
        """Gives the model its generation config, the one passed, else the folder's; `from_pretrained` calls this."""
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
    """Finds the rows that have ended, for `stop_on_eos`."""

    eos_token_ids: list[int]
    pad_token_id: int

    def find(self, canvas: Tensor, generated: Tensor, mask_token_id: int) -> tuple[Tensor, Tensor]:
        """Returns which rows have ended (R,), and their generated positions after the end (R, L).

        A row ends at its first generated EOS that has no mask before it, since all before it is then final.
        """
        settled = (canvas == mask_token_id).cumsum(dim=1) == 0  # (R, L) no mask here or before
        ends = torch.isin(canvas, torch.tensor(self.eos_token_ids, device=canvas.device)) & generated & settled
        after = ends.cumsum(dim=1) - ends.long() > 0
        return ends.any(dim=1), after & generated


class _FiniteCheck:
    """Checks that every position had a token with a finite score.

    It notes this on the device at every draw and checks once, at the end, since the check makes the host wait.
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


class _RowsCache:
    """Keeps the keys and values of those rows alone that still have events."""

    def __init__(self, cache: Any):
        self.cache = cache
        self.rows: Tensor | None = None  # (A,) the rows whose keys and values the cache has

    def of(self, event: Event) -> Any:
        if event.partial is not None and self.rows is not None and len(event.rows) < len(self.rows):
            self.cache.select_rows(torch.searchsorted(self.rows, event.rows))  # both in ascending order
        self.rows = event.rows
        return self.cache


def _seeded(seed: int, generator: Any, batch: int, copies: int) -> list[torch.Generator]:
    """Makes a generator for each of the R rows from a seed."""
    if generator is not None:
        raise ValueError(f"seed={seed} and generator both say where randomness comes from; pass one of them.")
    seed = check_seed(seed)
    return [own for text in range(batch) for own in sample_generators(text_seed(seed, text), range(copies))]


def _check_together(settings: RaddGenerationConfig, given: dict, streamer: Any, tokenizer: Any) -> None:
    """Raises an error for arguments that contradict each other; a saved `steps` or `order` need not fit the method."""
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
    """Lists the caller's processors, then temperature, top-k and top-p in transformers' order."""
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
    """Returns the argument `generation_config`, as a RaddGenerationConfig if it is a dictionary."""
    if generation_config is None or type(generation_config).__name__ == RaddGenerationConfig.__name__:
        return generation_config
    if isinstance(generation_config, dict):
        return RaddGenerationConfig(**generation_config)
    raise TypeError(f"generation_config={generation_config!r} must be a RaddGenerationConfig or a dictionary.")


def _check_order(settings: RaddGenerationConfig, canvas: Tensor) -> Tensor | None:
    """Returns (R, L), the positions of each row in the order of revealing; None if it is random or unused."""
    rows, length = canvas.shape
    if settings.method != "ordered" or settings.order == "random":
        return None
    position = torch.arange(length, device=canvas.device)
    if isinstance(settings.order, str):
        return (position if settings.order == "forward" else position.flip(0)).expand(rows, length)
    order = as_tensor("order", settings.order, canvas.device)
    if order.shape not in ((length,), (rows, length)) or order.is_floating_point():
        raise ValueError(
            f"order has shape {tuple(order.shape)} and dtype {order.dtype}; it must hold positions as integers, "
            f"({length},) for all rows or ({rows}, {length})."
        )
    if not torch.equal(order.sort(dim=-1).values, position.expand(order.shape)):
        raise ValueError(f"order={order.tolist()} must name each position 0 .. {length - 1} exactly once.")
    return order.expand(rows, length)


def _execution_device(trunk: Any) -> torch.device:
    """Returns the device of the trunk's ids; for offloaded weights (on "meta") where accelerate runs them."""
    if trunk.device.type != "meta":
        return trunk.device
    hook = getattr(trunk.get_input_embeddings(), "_hf_hook", None)
    if hook is None:
        raise ValueError("the model is on the device 'meta', where it has no weights: load it with from_pretrained.")
    return torch.device(hook.execution_device)


__all__ = ["RaddGenerateOutput", "RaddGenerationConfig", "RaddGenerationMixin"]
