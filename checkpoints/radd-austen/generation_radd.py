# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Fills the masks of a canvas: the reverse process of masked diffusion.

    canvas    a row of token ids, some of them masks; each mask is to be filled, and every other token stays
    event     one evaluation of the network, and the tokens that it reveals at some positions of each row
    plan      for each masked position, the step of the grid or the event that reveals it      plan_radd.py
    schedule  for each event, its shape: how many rows it has, how many positions it reveals   plan_radd.py
    draw      a token for each revealed position, from the network's distribution there        draw_radd.py
    loop      event by event: evaluate the network, draw tokens, write them to the canvas

The reverse process of the paper takes many small steps of time, and many of them reveal nothing. In absorbing diffusion
the time at which a token is revealed depends neither on the network nor on the text, and RADD's network does not depend
on time (arXiv:2406.03736, section 3.1). So the plan can be made first, and the network is evaluated only for steps that
reveal something. This is the paper's "caching" (section 3.2). The output has the distribution of the published samplers
(algorithms 5 and 6). Equations are numbered as in version 4 of the paper.

With an adaptive order (`policy_radd.py`) the event chooses which masked positions it reveals, or also how many. It
looks at the network's distributions at all masked positions. The plan then only says how many positions each event
reveals.

Except for the logits, all that an event needs is known before the first one. So an event is a function of tensors that
keep their place in memory: canvas, plan, random numbers, and the index of the event. On a GPU this function is captured
once for each shape, and then replayed (`programs_radd.py`). On a CPU it is called.

Since the plan is made first, there can also be an approximation, which is off by default: `refresh_interval`, see
`generate`.

Shapes: R rows (batch x num_return_sequences), A rows that still have events, L length, V vocabulary, D features;
        N positions revealed in one event, at most K of them in a row; C positions that a partial evaluation computes in
        a row; c sequences and k of speculation (`speculation_radd.py`).
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import repeat
from typing import Any, cast

import torch
from huggingface_hub.utils import tqdm
from torch import Tensor
from torch.nn.functional import pad
from transformers.generation import (
    GenerationConfig,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import TextStreamer
from transformers.utils import GENERATION_CONFIG_NAME, cached_file

from .canvas_radd import Positions, TextOrIds, make_canvas
from .display_radd import in_place
from .draw_radd import Ending, Sampling, draw_tokens
from .inputs_radd import as_permutation
from .kernels_radd import evaluation_mode, packed_weights
from .noise_radd import get_noise, reveal_probabilities
from .plan_radd import (
    Schedule,
    Shape,
    check_profile,
    check_work,
    events_at_most,
    group_sizes,
    plan_grid,
    plan_sequence,
    profile_of_length,
)
from .policy_radd import Beliefs, Policy, PolicyFunction, policy_of
from .programs_radd import Programs, free_programs, programs_of
from .randomness_radd import Uniforms, check_seed, sample_generators, text_seed
from .settings_radd import (
    BOUNDS,
    GRID_METHODS,
    INEXACT,
    LENGTHS,
    MOST_TOKENS,
    SET_ASIDE,
    SETTINGS,
    GroupSchedule,
    Method,
    Order,
    is_adaptive,
    is_integer,
    own_arguments,
    plain,
    shortened,
)
from .speculation_radd import Drafts, count_leading, is_accepted, residual, speculation_of, with_drafts
from .state_radd import RaddGenerateOutput, SamplerState
from .text_radd import check_tokenizer

# At most this many logits (64 MB in float32) exist at once while tokens are drawn. Softmax and cumulative sum take a
# few times as much memory.
MAX_DRAW_ELEMENTS = 2**24
# The host runs ahead of a GPU that replays captured events. After this many events it asks the GPU which rows have
# ended (`stop_on_eos`), or waits for the GPU to show its `progress`.
EVENTS_BETWEEN_QUESTIONS = 16
# `progress` shows its bar after this many seconds. A call that ends before shows none.
BAR_DELAY = 1.0


# ---------------------------------------------------------------------------------------------------------
# Settings
# ---------------------------------------------------------------------------------------------------------


class RaddGenerationConfig(GenerationConfig):
    """Holds settings of [`RaddGenerationMixin.generate`]; saved as generation_config.json.

    Its fields are the settings of `settings_radd.py`. None means not set: then the model's generation config decides,
    else [`RaddGenerationConfig.DEFAULTS`]. Names of transformers that mean the same are taken, too (`max_length`). A
    setting of transformers that RADD does not have raises a ValueError, which says what to use instead.
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
    max_new_tokens: int | None
    steps: int | None
    method: Method
    order: Order | Sequence[int] | Tensor | PolicyFunction
    entropy_bound: float | None
    confidence_threshold: float | None
    schedule: GroupSchedule | None
    information_profile: Sequence[float] | None
    speculate: int
    exact: bool
    cuda_graphs: bool
    refresh_interval: int
    refresh_window: int
    max_time: float | None
    stop_on_eos: bool
    output_history: bool

    def __init__(self, **kwargs):
        # super().__init__() is not called: most of its fields are for generation from left to right.
        for name in self.METADATA:
            setattr(self, name, plain(kwargs.pop(name, None)))
        settings = own_settings(kwargs)
        for name in self.DEFAULTS:
            setattr(self, name, plain(settings.get(name)))
        self.validate()

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None):
        for name, setting in SETTINGS.items():
            setting.check(name, getattr(self, name))
        if self.information_profile is not None:
            check_profile(self.information_profile)
        for name in INEXACT if self.exact else ():
            if (value := getattr(self, name)) not in (None, self.DEFAULTS[name]):
                raise ValueError(
                    f"exact=True and {name}={shortened(value)} contradict each other: {name} changes the distribution "
                    "that tokens are drawn from. Leave out one of them."
                )
        fitting = {"method": "ordered"} | dict.fromkeys(BOUNDS) | {"order": "random"}
        for name, fits in fitting.items() if self.schedule is not None else ():
            if (value := getattr(self, name)) not in (None, fits):
                raise ValueError(
                    f"{name}={shortened(value)} and schedule={self.schedule!r} both say which positions are revealed "
                    "when: leave out one of them. The schedule has a method and an order of its own: 'ordered' and "
                    "'random'."
                )
        if self.length is not None and self.max_new_tokens is not None:
            raise ValueError(
                f"length={self.length} and max_new_tokens={self.max_new_tokens} both say how long a text is; pass one "
                "of them."
            )
        if self.entropy_bound is not None and self.confidence_threshold is not None:
            raise ValueError(
                f"entropy_bound={self.entropy_bound} and confidence_threshold={self.confidence_threshold} both say how "
                "many positions a network evaluation reveals; pass one of them."
            )

    @classmethod
    def resolve(cls, *sources: Any) -> "RaddGenerationConfig":
        """Makes one complete configuration: each setting from the first source that has it, else the default.

        Sources are dictionaries or configurations of any class: the package, code from a checkpoint and transformers
        have a class each. `length` and `max_new_tokens` count as one setting. `exact` sets aside the settings of later
        sources. An earlier source may change the distribution again.
        """
        settings, named = dict(cls.DEFAULTS), False  # named: whether a source says how positions are chosen
        for chosen in map(own_settings, reversed([source for source in sources if source is not None])):
            if not chosen.keys().isdisjoint(LENGTHS):
                settings |= dict.fromkeys(LENGTHS)
            if chosen.get("exact"):
                settings, named = settings | {name: cls.DEFAULTS[name] for name in SET_ASIDE}, False
            elif any(chosen.get(name, cls.DEFAULTS[name]) != cls.DEFAULTS[name] for name in INEXACT):
                settings["exact"] = False
            named |= not chosen.keys().isdisjoint((*PLANS, "schedule", "steps"))
            if "method" not in chosen and not chosen.keys().isdisjoint(("order", *BOUNDS)):
                chosen = chosen | {"method": "ordered"}
            if "schedule" in chosen:  # it replaces the method and order of a later source
                settings |= dict.fromkeys(PLANS) | {"method": "ordered", "order": "random"}
            elif settings["schedule"] is not None and not chosen.keys().isdisjoint(PLANS):
                settings |= {name: cls.DEFAULTS[name] for name in (*PLANS, "schedule")}
            if not chosen.keys().isdisjoint(("order", "steps", *BOUNDS)):  # bounds of a later source no longer fit
                settings |= dict.fromkeys(BOUNDS)
            for bound, order in BOUNDS.items():
                if bound in chosen:
                    settings["steps"] = None
                    settings["order"] = settings["order"] if is_adaptive(settings["order"]) else order
            if is_integer(chosen.get("speculate"), 2):
                settings["steps"] = None
            settings |= chosen
        if settings["exact"] and not named:
            settings["method"] = "first_hitting"
        return cls(**settings)

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | ({"order": shortened(self.order)} if callable(self.order) else {})

    def save_pretrained(self, *args, **kwargs):
        if callable(self.order):
            raise ValueError(
                f"order={shortened(self.order)} is a function, which cannot be saved in a file: pass it to generate."
            )
        super().save_pretrained(*args, **kwargs)

    @classmethod
    def from_model_config(cls, model_config):
        raise NotImplementedError("RaddConfig holds no generation settings.")

    def get_generation_mode(self, *args, **kwargs):
        raise NotImplementedError("RADD's generate has methods, not autoregressive generation modes.")


# The settings that say which positions are revealed when. `schedule` says it in their place.
PLANS = "method", "order", *BOUNDS


def own_settings(source: Any) -> dict[str, Any]:
    """Returns the settings of `generate` that a source has, and its ids of EOS and padding; None is left out.

    Raises:
        ValueError: for a setting that RADD does not have, see [`own_arguments`].
        TypeError: unless the source is a dictionary or a GenerationConfig.
    """
    if not isinstance(source, (dict, GenerationConfig)):
        raise TypeError(f"generation_config={shortened(source)} must be a RaddGenerationConfig or a dictionary.")
    known = (*SETTINGS, "eos_token_id", "pad_token_id")
    notes = {*RaddGenerationConfig.METADATA}.difference(known)
    given = source if isinstance(source, dict) else vars(source)
    given = {name: value for name, value in given.items() if name not in notes and not name.startswith("_")}
    return own_arguments(given, known, "a setting of RADD's generate")


# ---------------------------------------------------------------------------------------------------------
# Loop
# ---------------------------------------------------------------------------------------------------------


class EventBar:
    """Shows on standard error how many events and tokens of a call are done, for `progress`.

    All that it shows is known on the CPU. The total is the most events that there can be, until their number is known.
    The bar disappears when the call ends.
    """

    def __init__(self, schedule: Schedule, shown: bool):
        self.schedule, self.bar = schedule, None
        if shown:
            self.tokens = self._tokens_left()
            self.bar = tqdm(
                total=int(schedule.evaluations.max()), unit="event", delay=BAR_DELAY, leave=False, dynamic_ncols=True
            )

    def __enter__(self) -> "EventBar":
        return self

    def __exit__(self, *failure: object) -> None:
        if self.bar is not None:
            self.bar.close()

    def show(self, wait: Callable[[], None]) -> None:
        """Moves the bar to the events done; if they are captured, every 16 events, after a wait for the GPU."""
        schedule = self.schedule
        if self.bar is None or (schedule.captured and schedule.current % EVENTS_BETWEEN_QUESTIONS and len(schedule)):
            return
        if schedule.captured:
            wait()
        self.bar.total = max(int(schedule.evaluations.max()), schedule.current)
        self.bar.set_postfix_str(f"{self.tokens - self._tokens_left():,} of {self.tokens:,} tokens", refresh=False)
        self.bar.update(schedule.current - self.bar.n)

    def _tokens_left(self) -> int:
        """Counts the positions that the events to come reveal in all rows."""
        begin = self.schedule.first[:, min(self.schedule.current, self.schedule.capacity)]  # (R,)
        return self.schedule.order.numel() - int(begin.sum())


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
        max_new_tokens: int | None = None,
        attention_mask: Tensor | None = None,
        steps: int | None = None,
        method: Method | None = None,
        order: Order | Sequence[int] | Tensor | PolicyFunction | None = None,
        entropy_bound: float | None = None,
        confidence_threshold: float | None = None,
        schedule: GroupSchedule | None = None,
        information_profile: Sequence[float] | Tensor | None = None,
        speculate: int | None = None,
        exact: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        use_cache: bool | None = None,
        cuda_graphs: bool | None = None,
        refresh_interval: int | None = None,
        refresh_window: int | None = None,
        stop_on_eos: bool | None = None,
        eos_token_id: int | Sequence[int] | None = None,
        pad_token_id: int | None = None,
        max_time: float | None = None,
        num_return_sequences: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        tokenizer: Any = None,
        logits_processor: LogitsProcessorList | None = None,
        streamer: Any = None,
        progress: bool | None = None,
        output_history: bool | None = None,
        return_dict_in_generate: bool | None = None,
        generation_config: GenerationConfig | dict[str, Any] | None = None,
        **others: Any,
    ) -> Tensor | RaddGenerateOutput:
        """Fills every mask of a canvas and leaves every other token as it is.

        A canvas is a row of token ids, some of them masks. An event is one evaluation of the network and the tokens
        that it reveals. A nat is the unit of natural logarithms. There are B canvases and R samples of them, each of L
        tokens from a vocabulary of V.

        The value of a setting is the keyword's, else that of `generation_config`, else that of the model's generation
        config, else the default named below.

        Args:
            input_ids: (B, L) or (L,) the canvas itself, with the mask id at each position to fill. Or, with
                `tokenizer`, texts with blanks as in [`encode_blanks`]. At least one row must have a mask.
            prefix, suffix: instead of `input_ids`, what the text begins and ends with: ids (a list, or a tensor (l,) or
                (B, l)) or, with `tokenizer`, a text or a list of texts; `[MASK:n]` in them is no blank. The suffix ends
                at `length`. Without input_ids, prefix and suffix the whole text is generated.
            length: L, the number of tokens of the whole text. Default: the model's max_position_embeddings; the model
                was not trained on longer texts.
            max_new_tokens: instead of `length`, the number of masks that follow each prefix, or are appended to
                `input_ids`. Texts of several lengths are padded on the left with pad_token_id.
            attention_mask: (B, L), 1 at text and 0 at padding of `input_ids`.
            steps: for "tweedie" and "euler", the number of time intervals; default: the number of tokens of the row,
                without padding. For "ordered", the number of events, if that is less than the number of masks; default:
                one token an event. "first_hitting" takes no steps.
            method: how positions are chosen. "tweedie" (default) or "euler": diffusion on a grid of times
                (`noise_radd.reveal_probabilities`). "first_hitting": diffusion in continuous time, one token an event.
                "ordered": any-order autoregression.
            order: the order of "ordered". One that is known beforehand: "forward" (default), "backward", "random" (one
                permutation a row), or the positions in the order in which they are revealed, (L,) for all rows or
                (R, L). Or an adaptive order, which evaluates all masked positions: "confidence" reveals first where the
                likeliest token has the largest probability, "margin" where the gap between the two likeliest tokens is
                largest, "entropy" where the entropy is least. It looks at the distribution after `logits_processor` and
                before temperature, top-k and top-p. Of tied positions, the left one is first. Or a function, called for
                each row with the scores (m, V) and positions (m,) of its masks. It returns the indices of those to
                reveal now, or a boolean mask (m,). Positions are counted without padding. Scores are float32; a token
                that is ruled out, such as the mask, has the most negative float32 number. An order or a bound without a
                method means "ordered".
            entropy_bound: gamma, for an adaptive order ("entropy" by default). An event reveals positions as long as
                the sum of their entropies, without the largest, is at most gamma nats (arXiv:2505.24857).
            confidence_threshold: p, for an adaptive order ("confidence" by default). An event reveals all positions
                whose likeliest token has at least this probability, and at least one position.
            schedule: "profile", instead of a method and an order. It reveals positions in uniformly random order in
                `steps` events: few at first, more later. The sizes are those that lose least by drawing tokens together
                (`plan_radd.group_sizes`). A call that names a method or an order ignores a saved schedule.
            information_profile: (L,) for `schedule`: mean nats of the next token in random order when 0, 1, 2, ... of L
                tokens are visible. `radd profile` saves it with the model. For a text of another length it is read at
                the same fraction of visible tokens.
            speculate: k, for "first_hitting" and the orders known beforehand, without `steps`. An evaluation computes
                up to k sequences for each row, with drafts of the next tokens, and reveals 1 to k tokens
                (`speculation_radd.py`). The distribution is exactly that of k = 1; the tokens of a seed differ, since
                other random numbers draw them. It saves time where k sequences take little longer than one. At most
                64. A value saved with the model is ignored where it does not fit. Default 1: off.
            exact: True sets the model's saved settings aside, such as a temperature in generation_config.json. Every
                token is then drawn from the network's whole distribution. Without a method, "first_hitting" chooses
                the positions, one an event: that samples the model's distribution exactly. Lengths, the ids of EOS and
                padding, and the information profile stay. Settings that change the distribution (temperature, top_k,
                top_p, refresh_interval, max_time, logits_processor) cannot be passed with it. Default False.
            temperature, top_k, top_p: change the distribution that tokens are drawn from, as transformers' warpers
                define it. The defaults 1, 0, 1 change nothing. Temperature 0 takes the likeliest token.
            use_cache: False evaluates every row at every step of the grid, even if the step reveals nothing. The tokens
                are the same for the same generator. It is for comparisons of speed. Default True.
            cuda_graphs: on a CUDA GPU, capture each shape of event as a CUDA graph and replay it. The host then need
                not launch every kernel. The tokens are the same up to rounding. `docs/generation.md` says what runs
                uncaptured. Graphs are kept for later calls, until the model changes or `free_cuda_graphs` is called.
                Default True.
            refresh_interval: m. If m > 1, only every m-th event evaluates the network at all positions. The other
                events compute the positions revealed just before, their neighbours, and the positions to reveal now.
                All other positions keep the keys and values that they had when they were last computed. At every m-th
                event tokens are drawn from the exact distribution, between them from an approximation. Default 1:
                always exact.
            refresh_window: with `refresh_interval` > 1, the number of neighbours recomputed on each side of a new
                token. Their keys and values change most. Default 4.
            stop_on_eos: end a row at the first generated EOS (end-of-text token) that has no mask before it. Generated
                positions after it become padding. Needs eos_token_id. Default False.
            eos_token_id, pad_token_id: the ids that end a row (one or several) and pad it. Default: those of the
                generation config, else those of the model's configuration. Without a pad_token_id, EOS pads.
            max_time: seconds after which one last event draws all that is still masked. Default: no limit.
            num_return_sequences: R / B, the number of samples for each canvas. Default 1.
            seed: the same seed and settings give the same texts. Sample i of canvas b has a generator of its own, made
                from (seed, b, i) by `randomness_radd.sample_generators`. The pipeline, the command line and the web
                page do the same. They give the same texts if they compute in the same dtype; the command line computes
                in float32.
            generator: instead of `seed`, a source of randomness on any device, or one for each of the R rows. With one
                for each row, a row's random numbers do not depend on the rest of the batch. Its tokens may, but hardly:
                in a batch of another shape a matrix product may round differently. That changes a token only if its
                random number falls within the rounding (1e-6 of probability in float32). Default: torch's own.
            tokenizer: encodes `prefix`, `suffix` or `input_ids` given as text. A notebook decodes the output by it.
            logits_processor: called with canvases (n, L) and scores (n, V), a row for each revealed position, before
                temperature, top-k and top-p. An event may call it several times, or with no row if it reveals nothing.
            streamer: transformers' TextDiffusionStreamer (for one row), or any object with the methods `put`, which
                gets the final ids, and `end`. If it has `put_draft`, that gets the ids after every event. In a notebook
                TextDiffusionStreamer shows the text in place, as HTML.
            progress: show a bar of events and tokens on standard error, once the call has taken a second. Nothing else
                changes. On a GPU with captured events the bar moves every 16 events. Default False.
            return_dict_in_generate: return a [`RaddGenerateOutput`]. Default False.
            output_history: put the canvas after every event into this output. Default False.
            generation_config: settings for this call. A GenerationConfig of transformers is read like keywords.
            others: arguments of other libraries (`settings_radd.own_arguments`). Other names are taken (`inputs`,
                `max_length`, `num_inference_steps`). Values that ask for nothing are ignored (`num_beams=1`). All other
                arguments raise a ValueError, which says what to use instead.

        Returns:
            (R, L) ids, or [`RaddGenerateOutput`].

        Raises:
            ValueError, TypeError: for arguments that do not fit together, before the network is evaluated.
            ValueError: after the last evaluation, if no token of some position had a finite score.
        """
        # 1. Settings: the keyword, else the generation configs, else the default.
        named = {name: value for name, value in locals().items() if name not in ("self", "others")}
        arguments = own_arguments(named | others, named, "an argument of RADD's generate")
        input_ids = arguments.get("input_ids")
        given = {name: arguments.get(name) for name in (*SETTINGS, "eos_token_id", "pad_token_id")}
        if generation_config is not None:  # its values are given by this call, too, and must fit
            of_call = own_settings(generation_config)
            given["speculate"] = of_call.get("speculate") if given["speculate"] is None else given["speculate"]
            if given["exact"]:
                RaddGenerationConfig(exact=True, **{name: of_call.get(name) for name in INEXACT})
        # The lengths in the model's own config are for texts that do not have a length of their own.
        sources = given, generation_config, self.generation_config
        settings = RaddGenerationConfig.resolve(*sources)
        sized = settings if input_ids is None else RaddGenerationConfig.resolve(*sources[:2])
        sampling = self._settle(settings, given, streamer, tokenizer, logits_processor)
        policy = sampling.policy
        shown = arguments.get("progress", False)
        if not isinstance(shown, bool):
            raise ValueError(f"progress={shortened(progress)} must be True or False.")

        # 2. Canvas: the given tokens, and masks. Each canvas comes `num_return_sequences` times. It is made on the CPU.
        canvas, attention_mask = make_canvas(
            self.config,
            input_ids,
            prefix=prefix,
            suffix=suffix,
            length=sized.length,
            max_new_tokens=sized.max_new_tokens,
            attention_mask=attention_mask,
            tokenizer=tokenizer,
            pad_token_id=self._end_and_padding(settings)[1],
        )
        if not bool((canvas == self.config.mask_token_id).any()):
            raise ValueError(
                f"input_ids has no mask (id {self.config.mask_token_id}), so there is nothing to generate. To continue "
                "a text, pass it as prefix, with length or max_new_tokens: generate(prefix=..., max_new_tokens=20)."
            )
        device = _execution_device(self.model)
        batch, copies = len(canvas), settings.num_return_sequences
        if copies * canvas.numel() > MOST_TOKENS:
            raise ValueError(
                f"num_return_sequences={copies} of {batch} rows of {canvas.shape[1]} tokens must have at most "
                f"{MOST_TOKENS} tokens together: make several calls."
            )
        canvas = canvas.repeat_interleave(copies, dim=0)  # (B, L) -> (R, L)
        if attention_mask is not None:
            attention_mask = attention_mask.repeat_interleave(copies, dim=0)
        if isinstance(streamer, TextStreamer) and len(canvas) > 1:
            raise ValueError(f"streamer={type(streamer).__name__} prints one row; this batch has {len(canvas)}.")
        masked = canvas == self.config.mask_token_id  # (R, L)
        order_of_positions = _check_order(settings, canvas)
        if seed is not None:
            generator = _seeded(seed, generator, batch, copies)
        not_padding = torch.ones_like(canvas, dtype=torch.bool) if attention_mask is None else attention_mask.bool()
        sizes = _sizes_of_groups(settings, masked, not_padding)
        uniforms = Uniforms(generator, not_padding, device)
        # Raises a ValueError if the attention cannot take fewer queries than keys.
        cache = self.model.make_cache(len(canvas)) if settings.refresh_interval > 1 else None

        # 3. Plan. From here on the generator advances, and all arguments have been accepted.
        steps_of_rows = not_padding.sum(dim=1).clamp(min=1)  # (R,)
        if settings.steps is not None:
            steps_of_rows = torch.full_like(steps_of_rows, settings.steps)
        plan = self._make_plan(masked, order_of_positions, settings, steps_of_rows, sizes, uniforms)
        uniform = uniforms()  # (R, L) for the tokens
        speculate = min(speculation_of(settings), int(masked.sum(dim=1).max()))  # k
        for_drafts = (uniforms(), uniforms()) if speculate > 1 else None  # (R, L) both
        all_steps = steps_of_rows if settings.method in GRID_METHODS and not settings.use_cache else None

        # 4. Schedule and loop.
        mask_on_device = None if attention_mask is None else attention_mask.to(device)
        inputs = self.model.fixed_inputs(canvas.to(device), mask_on_device)
        layout = SamplerState.layout(canvas, inputs, events_at_most(plan, all_steps), speculate)
        python = bool(logits_processor) or callable(settings.order)
        capturing = settings.cuda_graphs and not python and self.model.can_prune()
        with evaluation_mode(cast(Any, self)), programs_of(self, layout, device, capturing) as programs:
            captured = programs.capturer is not None
            events = Schedule(
                plan,
                all_steps,
                settings.refresh_interval,
                settings.refresh_window,
                captured,
                adaptive=policy is not None,
                open_ended=speculate > 1 or (policy is not None and policy.decides_how_many),
                speculate=speculate,
            )
            drafts = None
            if for_drafts is not None:
                drafts = Drafts(programs.tensors, speculate - 1, *(each[events.rows] for each in for_drafts))
            if cache is not None:
                cache = programs.objects.setdefault("cache", cache)  # graphs write to the cache of the first call
            places = (not_padding.cumsum(dim=1) - 1).clamp(min=0)  # (R, L) each position, counted without padding
            state = SamplerState(programs.tensors, events, canvas, places, uniform, inputs, cache, drafts)
            most = int(events.evaluations.max())
            # Captured events get no packed weights: a later replay would read those of this call.
            with packed_weights(0 if captured else most), EventBar(events, shown) as bar:
                streamer = in_place(streamer, canvas, self.config.mask_token_id)
                output = self._reveal(programs, state, events, sampling, settings, streamer, bar)
        output.tokenizer = tokenizer
        return output if settings.return_dict_in_generate else cast(Tensor, output.sequences)

    def check_settings(self, **settings: Any) -> RaddGenerationConfig:
        """Returns settings of `generate`, completed by the model's own and the defaults. It computes nothing.

        Raises:
            ValueError, TypeError: for settings that are unknown, out of range, or do not fit together.
        """
        given = own_settings(settings)
        resolved = RaddGenerationConfig.resolve(given, self.generation_config)
        self._settle(resolved, dict.fromkeys((*SETTINGS, "use_cache", "eos_token_id", "pad_token_id")) | given)
        return resolved

    def _settle(
        self,
        settings: RaddGenerationConfig,
        given: dict[str, Any],
        streamer: Any = None,
        tokenizer: Any = None,
        logits_processor: Any = None,
    ) -> Sampling:
        """Returns the settings by which tokens are drawn; raises a ValueError for settings that do not fit together."""
        _check_together(settings, given, streamer, tokenizer)
        if settings.exact and logits_processor:
            raise ValueError(
                f"exact=True and logits_processor={shortened(logits_processor)} contradict each other: processors "
                "change the distribution that tokens are drawn from. Leave out one of them."
            )
        ending = self._ending(settings) if settings.stop_on_eos else None
        return _make_sampling(logits_processor, settings, ending, policy_of(settings))

    def free_cuda_graphs(self) -> None:
        """Frees the captured events and their memory on the GPU. Later calls of `generate` capture them again."""
        free_programs(self)

    def _reveal(
        self,
        programs: Programs,
        state: SamplerState,
        schedule: Schedule,
        sampling: Sampling,
        settings: RaddGenerationConfig,
        streamer: Any,
        bar: EventBar,
    ) -> RaddGenerateOutput:
        """Runs the loop. All rows advance together, each to its own next event."""
        deadline = math.inf if settings.max_time is None else time.monotonic() + settings.max_time
        history = [state.sequences()] if settings.output_history else None
        watched = history is not None or streamer is not None
        asked = watched or schedule.open_ended  # the host asks the device after every event
        events_between_questions = EVENTS_BETWEEN_QUESTIONS if schedule.captured and not asked else 1
        while len(schedule):
            if settings.max_time is not None:
                state.wait()  # otherwise the host would be ahead of a GPU, and its clock would be early
                if time.monotonic() > deadline:
                    if schedule.adaptive or schedule.open_ended:
                        schedule.follow(*state.progress())
                    state.arrange(schedule.reveal_all(), schedule)
            shape = schedule.next()
            window = min(settings.refresh_window, state.length) if shape.recomputed else 0
            key = shape, window, state.cache is not None, sampling.key
            if shape.sequences:
                programs.run(key, partial(self._run_round, state, shape, sampling))
            else:
                programs.run(key, partial(self._run_event, state, shape, window, sampling))
            if schedule.open_ended and not len(schedule):
                schedule.follow(*state.progress())
                before = schedule.arrange()
                if not torch.equal(before, before.sort().values):
                    state.arrange(before, schedule)
            if sampling.ending is not None and schedule.current % events_between_questions == 0:
                ended_after = state.ended_after.cpu()
                if bool((ended_after < schedule.evaluations).any()):
                    if schedule.adaptive or schedule.open_ended:
                        schedule.follow(*state.progress())
                    state.arrange(schedule.end_rows(ended_after), schedule)
            if history is not None:
                history.append(state.sequences())
            if streamer is not None and hasattr(streamer, "put_draft"):
                streamer.put_draft(state.sequences().to("cpu", copy=True))
            bar.show(state.wait)

        if schedule.adaptive:
            schedule.follow(*state.progress())
        output = state.output(schedule, sampling.ending)
        output.history = None if history is None else tuple(history)
        if streamer is not None:
            streamer.put(cast(Tensor, output.sequences).to("cpu", copy=True))
            streamer.end()
        return output

    def _run_event(self, state: SamplerState, shape: Shape, window: int, sampling: Sampling) -> None:
        """Runs one event: evaluates the network, draws tokens, writes them, and adds one to the index of the event.

        It is a program (`programs_radd.py`): all that differs between two events of one shape is in `state`.
        """
        positions, flat_index = state.evaluated(shape)
        hidden = self.model(
            input_ids=state.canvas[: shape.rows],
            output_positions=positions,
            cache=state.cache,
            partial=state.recomputed(shape, window),
            **state.inputs_of(shape.rows),
        ).last_hidden_state  # (N, D), or (A, K, D)
        hidden = hidden.view(len(flat_index), hidden.shape[-1])  # (N, D), in the order of flat_index
        tokens, draws, beliefs = self._draw(hidden, state, flat_index, sampling)
        if shape.adaptive:
            flat_index = state.choose(shape, cast(Policy, sampling.policy), flat_index, cast(Beliefs, beliefs))
        state.write(flat_index, tokens, draws)
        if sampling.ending is not None:
            state.end_rows(shape.rows, sampling.ending)
        state.now.add_(1)

    def _draw(
        self, hidden: Tensor, state: SamplerState, flat_index: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Tensor, Beliefs | None]:
        """Draws a token from each hidden state (N, D), in chunks.

        A position that a policy does not choose is drawn again in a later event, with the same uniform number. The
        choice does not look at the draw, so the number is still uniform then.

        Returns:
            Tokens (N,). Then three numbers for each draw, (N, 3) float32: the log-probability of the token before
            logits processors and warpers; logsumexp of the logits; logsumexp of the processed scores, or at temperature
            0 their maximum. Each of the last two is finite if some token is possible. Then the beliefs of the policy;
            None without one.
        """
        tokens, draws, beliefs = [], [], []
        policy = sampling.policy
        sizes: Any = max(MAX_DRAW_ELEMENTS // self.config.vocab_size, 1)
        if policy is not None and callable(policy.order):  # the function sees all masks of a row at once
            sizes = (flat_index // state.length).unique_consecutive(return_counts=True)[1].tolist()
        for h, where in zip(hidden.split(sizes), flat_index.split(sizes), strict=True):
            logits = self.compute_logits(h)  # (n, V)
            processed = sampling.process(logits, partial(state.canvases, where))
            scores = sampling.warp(processed)
            if sampling.temperature == 0:
                normaliser, token = scores.max(dim=-1)  # (n,) both
            else:
                token, normaliser = draw_tokens(scores, state.uniform[where])
            known = scores is logits and sampling.temperature != 0
            log_sum = normaliser if known else logits.float().logsumexp(dim=-1)
            tokens.append(token)
            draws.append(_describe(logits, token, log_sum, normaliser))
            if policy is not None and callable(policy.order):
                beliefs.append(policy.ask(processed, state.places.flatten()[where]))
            elif policy is not None:
                beliefs.append(policy.beliefs(processed))
        believed = Beliefs(*map(torch.cat, zip(*beliefs, strict=True))) if beliefs else None
        return torch.cat(tokens), torch.cat(draws), believed

    def _run_round(self, state: SamplerState, shape: Shape, sampling: Sampling) -> None:
        """Runs a round of speculation (`speculation_radd.py`), and adds one to the index of the event.

        The first round has no drafts to check. A round is a program, like an event.
        """
        drafts, rows, c = cast(Drafts, state.drafts), shape.rows, shape.sequences
        row, index = (torch.arange(size, device=state.device) for size in (rows, c))  # (A,) and (c,)
        slot, positions, flat_index = state.upcoming(rows, c + drafts.number)  # (A, c + k - 1) each
        real = flat_index < state.spare
        tokens = drafts.tokens[:rows, : c - 1]  # (A, c - 1)
        sequences = with_drafts(state.canvas[:rows], positions.where(real, state.length)[:, : c - 1], tokens)
        hidden = self.model(
            input_ids=sequences.flatten(0, 1),  # (A, c, L) -> (A c, L)
            output_positions=Positions(positions.unfold(1, drafts.number + 1, 1).flatten(0, 1)),
            cache=None,
            partial=None,
            **state.inputs_of(rows, c),
        ).last_hidden_state.unflatten(0, (rows, c))  # (A, c, k, D): for each sequence, the k positions after its drafts

        target, draws = self._check_drafts(hidden[:, :-1, 0], sequences[:, :-1], tokens, sampling)
        uniform = drafts.accept[flat_index[:, : c - 1]]  # (A, c - 1)
        # A draft of the last token of a row is not used: the evaluation gives that token itself.
        usable = real[:, 1:c]  # (A, c - 1)
        count = count_leading(is_accepted(target, drafts.logprobs[:rows, : c - 1], uniform) & usable)  # (A,)
        here = count[:, None]  # (A, 1) where the accepted drafts end

        # The sequence with exactly the accepted drafts gives the next token, and the next drafts.
        hidden, sequences, origin = hidden[row, count], sequences[row, count], None  # (A, k, D) and (A, L)
        rejected = pad(usable, (0, 1)).gather(1, here).squeeze(1)  # (A,)
        if c > 1:
            # The distribution that the rejected draft was drawn from is computed again, from the states kept. The
            # token revealed last was still masked in its sequence.
            states = cast(Tensor, drafts.states)[row, count.clamp(max=c - 2)]  # (A, D)
            origin = states, state.canvas[:rows].scatter(1, drafts.missing[:rows], self.config.mask_token_id)
        uniform = state.uniform[flat_index.gather(1, here).squeeze(1)]  # (A,)
        token, draw = self._draw_after_drafts(hidden[:, 0], sequences, uniform, sampling, origin, rejected)

        tokens = torch.where(index < here, pad(tokens, (0, 1)), token[:, None])  # (A, c)
        draws = torch.where((index < here)[..., None], pad(draws, (0, 0, 0, 1)), draw[:, None])  # (A, c, 3)
        written = flat_index[:, :c].where(index <= here, state.spare)  # (A, c)
        state.write(written.flatten(), tokens.flatten(), draws.flatten(0, 1))
        state.plan_from(slot[:, :1] + here + 1)
        after = flat_index.gather(1, here + 1 + torch.arange(drafts.number, device=state.device))  # (A, k - 1)
        drawn = self._draw_drafts(hidden[:, 1:], sequences, drafts.draw[after], sampling)
        drafts.keep(*drawn, hidden[:, 1:], positions.gather(1, here))
        if sampling.ending is not None:
            state.end_rows(rows, sampling.ending)
        state.now.add_(1)

    def _laws(
        self, hidden: Tensor, sequences: Tensor, sampling: Sampling
    ) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Computes the distributions that tokens are drawn from, in chunks of n.

        Args:
            hidden: (N, D) hidden states. sequences: (N, L) the sequence of each.

        Yields:
            The slice of the chunk; the logits (n, V); the log-probabilities (n, V) after logits processors and warpers;
            and the largest score (n,), which is finite if some token is possible.
        """
        size = max(MAX_DRAW_ELEMENTS // self.config.vocab_size, 1)
        for begin in range(0, len(hidden), size):
            part = slice(begin, begin + size)
            logits = self.compute_logits(hidden[part])
            scores = sampling.warp(sampling.process(logits, partial(sequences.__getitem__, part)))
            yield part, logits, sampling.log_law(scores), scores.amax(dim=-1)

    def _check_drafts(
        self, hidden: Tensor, sequences: Tensor, tokens: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Tensor]:
        """Returns log p(x) of each draft x, (A, c - 1), and its three numbers as in `_draw`, (A, c - 1, 3)."""
        drafts = tokens.flatten()  # (N,)
        target, draws = hidden.new_zeros(len(drafts)).float(), hidden.new_zeros(len(drafts), 3).float()
        for part, logits, log_p, largest in self._laws(hidden.flatten(0, 1), sequences.flatten(0, 1), sampling):
            target[part] = log_p.gather(1, drafts[part, None]).squeeze(1)
            draws[part] = _describe(logits, drafts[part], logits.float().logsumexp(dim=-1), largest)
        return target.view_as(tokens), draws.view(*tokens.shape, 3)

    def _draw_after_drafts(
        self,
        hidden: Tensor,
        sequences: Tensor,
        uniform: Tensor,
        sampling: Sampling,
        origin: tuple[Tensor, Tensor] | None,
        rejected: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Draws the token after the accepted drafts, in place of the rejected draft if there is one.

        Args:
            hidden: (A, D) hidden states. sequences: (A, L) the sequence of each. uniform: (A,) uniform numbers.
            origin: states and sequences that the rejected draft was drawn from, (A, D) and (A, L); None without drafts.
            rejected: (A,) bool, whether a draft was rejected.

        Returns:
            Tokens (A,), and the three numbers of each draw as in `_draw`, (A, 3).
        """
        tokens, draws = torch.zeros_like(rejected, dtype=torch.int64), hidden.new_zeros(len(hidden), 3).float()
        origins = repeat(None) if origin is None else self._laws(*origin, sampling)
        targets = self._laws(hidden, sequences, sampling)
        for (part, logits, log_p, largest), of_draft in zip(targets, origins, strict=False):
            if of_draft is not None:
                log_p = torch.where(rejected[part, None], residual(log_p, of_draft[2]), log_p)
            tokens[part] = draw_tokens(log_p, uniform[part])[0]
            draws[part] = _describe(logits, tokens[part], logits.float().logsumexp(dim=-1), largest)
        return tokens, draws

    def _draw_drafts(
        self, hidden: Tensor, sequences: Tensor, uniform: Tensor, sampling: Sampling
    ) -> tuple[Tensor, Tensor]:
        """Draws a draft x for each hidden state (A, k - 1, D) of sequences (A, L).

        Returns:
            The drafts x and their log q(x), (A, k - 1) both.
        """
        tokens = torch.zeros_like(uniform, dtype=torch.int64).flatten()  # (N,)
        logprobs = torch.zeros_like(uniform, dtype=torch.float32).flatten()  # (N,)
        uniforms, sequences = uniform.flatten(), sequences[:, None].expand(-1, uniform.shape[1], -1).flatten(0, 1)
        for part, _, log_q, _ in self._laws(hidden.flatten(0, 1), sequences, sampling):
            tokens[part] = draw_tokens(log_q, uniforms[part])[0]
            logprobs[part] = log_q.gather(1, tokens[part, None]).squeeze(1)
        return tokens.view_as(uniform), logprobs.view_as(uniform)

    def _make_plan(
        self,
        masked: Tensor,
        order: Tensor | None,
        settings: RaddGenerationConfig,
        steps: Tensor,
        sizes: list[list[int]] | None,
        uniforms: Uniforms,
    ) -> Tensor:
        """Returns the plan (R, L) int64: for each mask the step of the grid or, in a method without a grid, the event.

        order: (R, L) the positions in the order of revealing; None: random.
        steps: (R,) the number of steps of each row's grid.
        sizes: the sizes of each row's groups; None: balanced groups.
        uniforms: gives (R, L) uniform numbers at each call.
        """
        if settings.method in GRID_METHODS:
            uniform, plan = uniforms(), masked.long()
            for count in steps.unique().tolist():
                rows = steps == count
                reveal = reveal_probabilities(get_noise(self.config), settings.method, count)
                plan[rows] = plan_grid(masked[rows], reveal, uniform[rows])
            return plan
        if settings.method == "first_hitting":
            return plan_sequence(masked, uniforms())
        priority = uniforms() if order is None else order.argsort(dim=1)  # (R, L) place of each position in the order
        # An adaptive order takes from this plan only how many positions each event reveals.
        return plan_sequence(masked, priority, settings.steps, sizes)

    def _end_and_padding(self, settings: RaddGenerationConfig) -> tuple[list[int], int | None]:
        """Returns the ids that end a row, and the id that pads it, from the settings, else from the configuration."""
        eos, padding = (
            getattr(self.config, name, None) if getattr(settings, name) is None else getattr(settings, name)
            for name in ("eos_token_id", "pad_token_id")
        )
        eos = [] if eos is None else list(eos) if isinstance(eos, (list, tuple)) else [eos]
        return eos, eos[0] if eos and padding is None else padding

    def _ending(self, settings: RaddGenerationConfig) -> Ending:
        """Returns the rule that ends a row; raises a ValueError for ids that cannot end or pad one."""
        eos, padding = self._end_and_padding(settings)
        if not eos or padding is None:
            raise ValueError("stop_on_eos=True needs eos_token_id, here, in the generation config or in the model's.")
        ending = Ending(tuple(eos), padding, self.config.mask_token_id)
        for name, token in (*(("eos_token_id", token) for token in eos), ("pad_token_id", ending.pad_token_id)):
            if not is_integer(token, 0, self.config.vocab_size - 1) or token == self.config.mask_token_id:
                raise ValueError(
                    f"{name}={shortened(token)} must be an id below {self.config.vocab_size} and not the mask's, "
                    f"{self.config.mask_token_id}."
                )
        return ending

    def adjust_generation_fn(
        self, generation_config, from_auto_class, from_pipeline, pretrained_model_name_or_path, **kwargs
    ):
        """Sets the model's generation config: the one passed, else the folder's. `from_pretrained` calls this."""
        names = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
        hub = {name: kwargs[name] for name in names if name in kwargs}  # the others are for the model's configuration
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
            if found is not None:  # the authors' repositories have no such file: the defaults hold
                try:
                    self.generation_config = self.generation_config_class.from_pretrained(
                        pretrained_model_name_or_path, _from_auto=from_auto_class, _from_pipeline=from_pipeline, **hub
                    )
                except ValueError as error:  # the error names a setting, but not the file
                    raise ValueError(f"{found}: {error}") from error


def _describe(logits: Tensor, token: Tensor, log_sum: Tensor, normaliser: Tensor) -> Tensor:
    """Returns the three numbers of each draw, (n, 3), see `_draw`: logits (n, V), all others (n,)."""
    logprob = logits.gather(1, token[:, None]).squeeze(1) - log_sum
    return torch.stack((logprob.float(), log_sum.float(), normaliser.float()), dim=1)


def _seeded(seed: int, generator: Any, batch: int, copies: int) -> list[torch.Generator]:
    """Makes a generator for each of the R rows from a seed."""
    if generator is not None:
        raise ValueError(f"seed={shortened(seed)} and generator both say where randomness comes from; pass one.")
    seed = check_seed(seed)
    return [own for text in range(batch) for own in sample_generators(text_seed(seed, text), range(copies))]


def _check_together(settings: RaddGenerationConfig, given: dict, streamer: Any, tokenizer: Any) -> None:
    """Raises a ValueError or TypeError for arguments that contradict each other.

    Saved `steps` and a saved `order` need not fit the method.
    """
    method = settings.method
    if given["order"] is not None and method != "ordered":
        raise ValueError(
            f"order={shortened(given['order'])} is for method='ordered'; method={method!r} draws its own order."
        )
    if settings.schedule is not None and settings.information_profile is None:
        raise ValueError(
            f"schedule={settings.schedule!r} needs an information_profile, and the model's generation config has none "
            "(a config that you assign to the model replaces the saved one). To estimate and save a profile, run "
            "`radd profile MODEL --dataset TEXT`."
        )
    if given["steps"] is not None and method == "first_hitting":
        raise ValueError(
            f"steps={given['steps']} does not fit method='first_hitting', which reveals one token per network "
            "evaluation: leave steps out."
        )
    for bound in BOUNDS:
        if given[bound] is None:
            continue
        if method != "ordered":
            raise ValueError(f"{bound}={given[bound]} is for method='ordered'; method={method!r} draws its own order.")
        if not is_adaptive(settings.order) or callable(settings.order):
            raise ValueError(
                f"{bound}={given[bound]} is for order='confidence', 'margin' or 'entropy', not for "
                f"order={shortened(settings.order)}."
            )
        others = [name for name in ("steps", *BOUNDS) if name != bound and given[name] is not None]
        if others:
            raise ValueError(
                f"{bound}={given[bound]} and {others[0]}={given[others[0]]} both say how many positions a network "
                "evaluation reveals: pass one of them."
            )
    if callable(settings.order) and given["steps"] is not None and method == "ordered":
        raise ValueError(
            f"steps={given['steps']} does not fit a function as order, which says itself how many positions are "
            "revealed: leave steps out."
        )
    if method == "ordered" and is_adaptive(settings.order) and settings.refresh_interval > 1:
        raise ValueError(
            f"refresh_interval={settings.refresh_interval} evaluates few positions, and "
            f"order={shortened(settings.order)} needs all masked ones: pass refresh_interval=1."
        )
    if (given["speculate"] or 1) > 1 and speculation_of(settings) == 1:
        raise ValueError(
            f"speculate={given['speculate']} does not fit {_what_forbids_speculation(settings)}. It drafts the tokens "
            "of a method that reveals one at a time: pass method='first_hitting', or method='ordered' with a fixed "
            "order and without steps, and refresh_interval=1."
        )
    if settings.use_cache is False and settings.refresh_interval > 1:
        raise ValueError(
            f"refresh_interval={settings.refresh_interval} reuses keys and values, and use_cache=False evaluates all "
            "rows at all steps: pass refresh_interval=1 or use_cache=True."
        )
    if given["use_cache"] is False and method not in GRID_METHODS:
        raise ValueError(
            f"use_cache=False evaluates the empty steps of a grid, and method={method!r} has no grid: leave use_cache "
            "out."
        )
    if given["eos_token_id"] is not None and not settings.stop_on_eos:
        raise ValueError(
            f"eos_token_id={shortened(given['eos_token_id'])} ends a text only with stop_on_eos=True: pass both."
        )
    if tokenizer is not None:
        check_tokenizer(tokenizer)
    if streamer is not None and not (hasattr(streamer, "put") and hasattr(streamer, "end")):
        raise TypeError(f"streamer={shortened(streamer)} must have the methods put and end.")
    if getattr(streamer, "skip_prompt", False):
        raise ValueError(
            "streamer has skip_prompt=True and would skip the only text that it gets: pass skip_prompt=False."
        )


def ordered_settings(**given: Any) -> RaddGenerationConfig:
    """Returns complete and checked settings of `generate(method="ordered")`. A setting that is None is not given."""
    settings = RaddGenerationConfig.resolve({"method": "ordered"} | given)
    _check_together(settings, dict.fromkeys((*SETTINGS, "eos_token_id")) | given, None, None)
    return settings


def _what_forbids_speculation(settings: RaddGenerationConfig) -> str:
    """Names the setting that `speculate` does not fit."""
    if settings.method in GRID_METHODS:
        return f"method={settings.method!r}"
    if settings.refresh_interval > 1:
        return f"refresh_interval={settings.refresh_interval}"
    if settings.schedule is not None:
        return f"schedule={settings.schedule!r}"
    return f"steps={settings.steps}" if settings.steps is not None else f"order={shortened(settings.order)}"


def _make_sampling(
    logits_processor: Any, settings: RaddGenerationConfig, ending: Ending | None, policy: Policy | None
) -> Sampling:
    """Lists the caller's logits processors, and temperature, top-k and top-p in transformers' order."""
    if not isinstance(logits_processor, (list, tuple, type(None))) or not all(map(callable, logits_processor or ())):
        raise TypeError(
            f"logits_processor={shortened(logits_processor)} must be a LogitsProcessorList or a list of processors."
        )
    temperature, top_k, top_p = settings.temperature, settings.top_k, settings.top_p
    warpers = LogitsProcessorList()
    if temperature not in (0, 1):
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k > 0:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    return Sampling(temperature, top_k, top_p, LogitsProcessorList(logits_processor or []), warpers, ending, policy)


def _check_order(settings: RaddGenerationConfig, canvas: Tensor) -> Tensor | None:
    """Returns the positions of each row in the order of revealing, (R, L); None if the order is random or unused.

    For an adaptive order they stand from left to right, until events choose another order.
    """
    rows, length = canvas.shape
    if settings.method != "ordered" or settings.order == "random":
        return None
    position = torch.arange(length, device=canvas.device)
    if isinstance(settings.order, str) or callable(settings.order):
        return (position.flip(0) if settings.order == "backward" else position).expand(rows, length)
    return as_permutation("order", settings.order, length, rows).to(canvas.device).expand(rows, length)


def _sizes_of_groups(settings: RaddGenerationConfig, masked: Tensor, not_padding: Tensor) -> list[list[int]] | None:
    """Returns for each row how many positions each of its events reveals; None without a schedule or steps.

    masked, not_padding: (R, L) bool.

    Raises:
        ValueError: if the search for the sizes would take minutes.
    """
    if settings.schedule is None or settings.steps is None:
        return None
    rows = list(zip(masked.sum(dim=1).tolist(), not_padding.sum(dim=1).tolist(), strict=True))  # masks, length
    for masks, _ in rows:
        check_work(masks, settings.steps)
    profile = cast(Sequence[float], settings.information_profile)
    return [group_sizes(profile_of_length(profile, length), masks, settings.steps) for masks, length in rows]


def _execution_device(trunk: Any) -> torch.device:
    """Returns the device of the trunk's ids; for offloaded weights (on "meta"), the one where accelerate runs them."""
    if trunk.device.type != "meta":
        return trunk.device
    hook = getattr(trunk.get_input_embeddings(), "_hf_hook", None)
    if hook is None:
        raise ValueError("The model is on the device 'meta', where it has no weights: load it with from_pretrained.")
    return torch.device(hook.execution_device)


__all__ = ["RaddGenerateOutput", "RaddGenerationConfig", "RaddGenerationMixin", "ordered_settings"]
