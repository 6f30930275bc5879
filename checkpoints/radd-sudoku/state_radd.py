# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Holds the tensors that the events of a generation read and write, and what `generate` returns.

An event is one evaluation of the network and the tokens that it reveals. A canvas is a row of token ids, some of them
masks. The schedule says which positions each event reveals (`plan_radd.py`).

Shapes: R rows (batch x num_return_sequences), A rows that still have events, L length, V vocabulary, E events;
        N positions revealed in one event, at most K of them in a row; C positions that a partial evaluation computes in
        a row; n positions of any rows.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.utils import ModelOutput

from .canvas_radd import Positions, padded_nonzero
from .display_radd import MOST_TEXTS, MOST_TOKENS, Denoising, to_fragment
from .draw_radd import Ending
from .plan_radd import GIVEN, Schedule, Shape, recomputed_in
from .policy_radd import Beliefs, Policy
from .programs_radd import StaticTensors
from .settings_radd import shortened
from .speculation_radd import Drafts


@dataclass
class RaddGenerateOutput(ModelOutput):
    """Holds what `generate` returns with `return_dict_in_generate`. A notebook shows it with a slider over the steps.

    sequences: (R, L) ids, without a mask.
    num_function_evaluations: (R,) network evaluations (NFE) that each row took, one after the other. With
        `refresh_interval` m > 1 all but one in m of them were partial. With `speculate` k > 1 each was a round.
    num_sequences_evaluated: (R,) sequences computed for each row in these evaluations: one in each, with `speculate`
        k > 1 up to k in each.
    reveal_step: (R, L) when each position was revealed: the step of the grid, counted with the steps that reveal
        nothing, or in a method without a grid the event. With `speculate` k > 1, as with k = 1, it is the place of the
        position in the order of its row. -1 at positions that were given, or padded after EOS.
    token_logprobs: (R, L) float32, the natural log-probability of each token when it was drawn, before logits
        processors, temperature, top-k and top-p; 0 at positions that were given or padded.
    history: the canvas (R, L) at the start and after every event, with `output_history`.
    tokenizer: the tokenizer that `generate` got. It decodes the texts that a notebook shows. It is not a field: copies
        and files of the output leave it out.
    """

    sequences: Tensor | None = None
    num_function_evaluations: Tensor | None = None
    num_sequences_evaluated: Tensor | None = None
    reveal_step: Tensor | None = None
    token_logprobs: Tensor | None = None
    history: tuple[Tensor, ...] | None = None
    tokenizer = cast(Any, None)  # without an annotation it is not a field

    def __repr__(self) -> str:
        """Shows the shapes of the tensors, and the values of short ones, such as the numbers of evaluations."""
        return f"{type(self).__name__}({', '.join(f'{name}={_summary(value)}' for name, value in self.items())})"

    def _repr_html_(self) -> str | None:
        shape = () if self.sequences is None else tuple(self.sequences.shape)
        evaluations = self.num_function_evaluations
        beside = [None if each is None else tuple(each.shape) for each in (self.reveal_step, self.token_logprobs)]
        # A notebook shows the repr of an output that has lost parts, or whose rows somebody has cut or joined.
        if beside != [shape, shape] or 0 in shape or evaluations is None or len(evaluations) != shape[0]:
            return None
        rows, length = shape
        shown = max(min(rows, MOST_TEXTS, MOST_TOKENS // max(length, 1)), 1)
        notes = [f"{shown} of {rows} texts are shown."] * (shown < rows)
        if self.tokenizer is None:
            notes.append("These are the ids of the tokens. Pass tokenizer=tokenizer to generate to see the text.")
        return to_fragment([Denoising.of(self, row=row) for row in range(shown)], " ".join(notes))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "tokenizer"}


def _summary(value: Any) -> str:
    """Describes a value: a tensor by its shape or its few numbers, a tuple by its length and its first element."""
    if isinstance(value, tuple):
        return f"{len(value)} x {_summary(value[0])}" if value else "()"
    if not isinstance(value, Tensor):
        return shortened(value)
    return str(value.tolist()) if value.ndim < 2 and value.numel() <= MOST_TEXTS else str(tuple(value.shape))


class SamplerState:
    """Holds what events read and write, in tensors that keep their place in memory (`programs_radd.py`).

    The rows are in the order of the schedule. Tensors over the flattened canvas have one spare element at the end. An
    event of a rounded shape has more places than tokens; what is left over is written there, and never read.

    Args:
        tensors: keeps the tensors from call to call.
        schedule: says what each event reveals.
        canvas: (R, L) ids.
        places: (R, L) positions, counted without padding.
        uniform: (R, L) float64 uniform numbers, one to draw each token.
        inputs: the inputs that stay the same at every evaluation, see `RaddModel.fixed_inputs`.
        cache: keys and values of earlier evaluations, or None.
        drafts: the drafts of speculation, with rows in the order of the schedule, or None.
    """

    NEVER = torch.iinfo(torch.int64).max

    def __init__(
        self,
        tensors: StaticTensors,
        schedule: Schedule,
        canvas: Tensor,
        places: Tensor,
        uniform: Tensor,
        inputs: dict[str, Any],
        cache: Any,
        drafts: Drafts | None = None,
    ):
        put, rows, length = tensors.put, schedule.rows, canvas.shape[1]
        self.cache, self.drafts, self.device, self.length = cache, drafts, tensors.device, length
        self.spare = canvas.numel()  # index of the last element
        self.ids = put("ids", pad(canvas[rows].flatten(), (0, 1)))  # (R L + 1,)
        self.canvas = self.ids[:-1].view(canvas.shape)
        self.places = put("places", places[rows])  # (R, L)
        self.uniform = put("uniform", pad(uniform[rows].flatten(), (0, 1)))  # (R L + 1,)
        no_draws = canvas.new_zeros(self.spare + 1, 3, dtype=torch.float32)
        self.draws = put("draws", no_draws)  # (R L + 1, 3) see `RaddGenerationMixin._draw`
        self.now = put("now", rows.new_tensor([0, 1]))  # indices of this event and of the next
        self.order = put("order", pad(schedule.order, (0, length)))  # (R, 2 L), the first L are in use
        self.first = put("first", schedule.first)  # (R, E + 1)
        self.event_of = put("event_of", schedule.event_of)  # (R, L)
        self.generated = put("generated", schedule.event_of != GIVEN)  # (R, L)
        self.ended_after = put("ended_after", torch.full_like(rows, self.NEVER))  # (R,) events until the row ended
        self.slots = put("slots", torch.arange(length, device=self.device))  # (L,)
        self.events = put("events", torch.arange(self.first.shape[1], device=self.device))  # (E + 1,)
        self.row_begins = put("row_begins", torch.arange(len(rows), device=self.device)[:, None] * length)  # (R, 1)

        def put_input(name: str) -> Callable[[Tensor, int], Tensor]:
            return lambda part, index: put(f"{name} {index}", _of_rows(part, rows.to(part.device)))

        self.inputs = {name: _each(value, put_input(name)) for name, value in inputs.items()}
        self.place_of_row = rows.argsort().to(self.device)  # (R,) where each row of the caller lies

    @staticmethod
    def layout(canvas: Tensor, inputs: dict[str, Any], events: int, speculate: int) -> Hashable:
        """Returns a key. Two calls of `generate` can use the same tensors if their keys are equal."""
        forms = {name: _each(value, lambda part, _: (part.shape, part.dtype)) for name, value in inputs.items()}
        return canvas.shape, tuple(forms.items()), events, speculate

    # What an event does.

    def evaluated(self, shape: Shape) -> tuple[Positions, Tensor]:
        """Returns the positions that this event draws at, and the same on the flattened canvas (N,), row after row.

        It draws at the positions that it reveals, or under an adaptive order at all positions that are still masked.
        """
        _, real, indices, flat_index = self._slots(shape)  # (A, K) each
        indices, flat_index = indices.where(real, indices[:, :1]), flat_index.flatten()  # repeats a row's first
        if shape.total == len(flat_index):
            return Positions(indices), flat_index
        kept, real = (each.squeeze(0) for each in padded_nonzero(real.view(1, -1), shape.total))  # (N,) both
        return Positions(indices, kept), torch.where(real, flat_index[kept], self.spare)

    def _slots(self, shape: Shape) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Finds the places in `order` that this event draws at. A row with fewer than K has some that are not real.

        Returns:
            (A, K) each: the place in `order`; whether it is real; its position; its position on the flattened canvas.
        """
        begin, end = self.first[: shape.rows].index_select(1, self.now).split(1, dim=1)  # (A, 1) both
        slot = begin + self.slots[: shape.per_row]  # (A, K)
        real = slot < (self.length if shape.adaptive else end)  # (A, K)
        real = real & (self.ended_after[: shape.rows, None] > self.now[0])
        indices = self.order[: shape.rows].gather(1, slot)  # (A, K)
        return slot, real, indices, torch.where(real, indices + self.row_begins[: shape.rows], self.spare)

    def choose(self, shape: Shape, policy: Policy, flat_index: Tensor, beliefs: Beliefs) -> Tensor:
        """Lets the policy choose the positions that this event reveals, and moves them before the others in `order`.

        Args:
            flat_index: (N,) the masked positions on the flattened canvas.
            beliefs: (N,) each, the beliefs about these positions.

        Returns:
            (N,) the index of each chosen position, and the index of the spare element in place of the others.
        """
        slot, real, indices, rectangle = self._slots(shape)  # (A, K) each
        believed = torch.stack(beliefs, dim=1)  # (N, 3)
        board = believed.new_zeros(self.spare + 1, len(beliefs)).index_copy_(0, flat_index, believed)  # (R L + 1, 3)
        begin, end = self.first[: shape.rows].index_select(1, self.now).split(1, dim=1)  # (A, 1) both
        chosen = policy.choose(Beliefs(*board[rectangle].unbind(dim=2)), real, end - begin)  # (A, K)

        # Chosen positions come first, then the others, both from left to right. So the left one of tied positions wins.
        key = indices + self.length * ~chosen
        key = key.where(slot < self.length, 2 * self.length)  # places beyond the row come last
        self.order[: shape.rows].scatter_(1, slot, indices.gather(1, key.argsort(dim=1, stable=True)))
        if policy.decides_how_many:
            self.plan_from(begin + chosen.sum(dim=1, keepdim=True))
        is_chosen = torch.zeros_like(self.ids, dtype=torch.bool)  # (R L + 1,)
        is_chosen.index_copy_(0, rectangle.flatten(), chosen.flatten())  # never the spare element
        return torch.where(is_chosen[flat_index], flat_index, self.spare)

    def plan_from(self, slot: Tensor) -> None:
        """Lets the next event of the first rows begin at this place (A, 1) of `order`; later events reveal one each."""
        first = self.first[: len(slot)]  # (A, E + 1)
        later = self.events - self.now[1]  # (E + 1,) 0 for the next event
        first.copy_(torch.where(later < 0, first, (slot + later).clamp(max=self.length)))

    def upcoming(self, rows: int, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Finds the places in `order` that come next, for the first `rows` rows.

        Returns:
            (A, number) each: the place in `order`; its position; its position on the flattened canvas. The latter is
            the spare element past the end of a row, or if the row has ended.
        """
        begin = self.first[:rows].index_select(1, self.now[:1])  # (A, 1)
        slot = begin + torch.arange(number, device=self.device)  # (A, number)
        real = (slot < self.length) & (self.ended_after[:rows, None] > self.now[0])
        indices = self.order[:rows].gather(1, slot.clamp(max=2 * self.length - 1))
        return slot, indices, torch.where(real, indices + self.row_begins[:rows], self.spare)

    def recomputed(self, shape: Shape, window: int) -> Positions | None:
        """Returns the positions that this event computes; None: all."""
        if not shape.recomputed:
            return None
        chosen = recomputed_in(self.event_of[: shape.rows], self.now[0], window)  # (A, L)
        return Positions(padded_nonzero(chosen, shape.recomputed)[0])

    def inputs_of(self, rows: int, sequences: int = 1) -> dict[str, Any]:
        """Returns the fixed inputs of the first rows, each row repeated for its number of sequences."""

        def of_sequences(part: Tensor, index: int) -> Tensor:
            part = part[:rows]
            return part if len(part) == 1 else part[:, None].expand(-1, sequences, *part.shape[1:]).flatten(0, 1)

        return {name: _each(value, of_sequences) for name, value in self.inputs.items()}

    def canvases(self, flat_index: Tensor) -> Tensor:
        """Returns the canvas in which each position lies: (n,) -> (n, L)."""
        return self.canvas[flat_index // self.length]

    def write(self, flat_index: Tensor, tokens: Tensor, draws: Tensor) -> None:
        """Writes tokens (N,), and the three numbers of each draw (N, 3), to positions of the flattened canvas."""
        self.ids.index_copy_(0, flat_index, tokens)
        self.draws.index_copy_(0, flat_index, draws)

    def end_rows(self, rows: int, ending: Ending) -> None:
        """Notes which of the first rows have ended, and pads them."""
        canvas, ended_after = self.canvas[:rows], self.ended_after[:rows]
        ended, padded = ending.find(canvas, self.generated[:rows])
        canvas.masked_fill_(padded, ending.pad_token_id)
        ended_after.copy_(torch.minimum(ended_after, torch.where(ended, self.now[1], self.NEVER)))  # (A,)

    # What the loop does between events.

    def wait(self) -> None:
        """Lets the host wait until the device has done all events."""
        self.now[0].item()

    def arrange(self, before: Tensor, schedule: Schedule) -> None:
        """Puts the rows in the new order of the schedule: `before` (R,) says where each of them lay."""
        before = before.to(self.device)
        flat = (each[:-1].unflatten(0, (-1, self.length)) for each in (self.ids, self.uniform, self.draws))
        for states in (*flat, self.generated, self.places, self.ended_after):
            states.copy_(states[before])
        for value in self.inputs.values():
            _each(value, lambda part, _: part.copy_(_of_rows(part, before)))
        if self.cache is not None:
            self.cache.arrange_rows(before)
        self.order[:, : self.length].copy_(schedule.order)
        self.first.copy_(schedule.first)
        self.event_of.copy_(schedule.event_of)
        if self.drafts is not None:
            self.drafts.arrange(before)
        self.place_of_row = schedule.rows.argsort().to(self.device)

    def progress(self) -> tuple[Tensor, Tensor]:
        """Returns `order` (R, L) and `first` (R, E + 1), which some events change; see `Schedule.follow`."""
        return self.order[:, : self.length], self.first

    def sequences(self) -> Tensor:
        """Returns a copy of the ids (R, L), with rows in the caller's order."""
        return self.canvas[self.place_of_row]

    def output(self, schedule: Schedule, ending: Ending | None) -> RaddGenerateOutput:
        """Returns the result; raises a ValueError if some position had no token with a finite score."""
        logprobs, of_network, processed = self.draws[:-1].unbind(dim=1)  # (R L,) each
        reveal_step, logprobs = schedule.plan.to(self.device), logprobs.view_as(self.canvas)  # (R, L) both
        evaluations = torch.minimum(schedule.evaluations.to(self.device), self.ended_after)  # (R,)
        sequences = evaluations if self.drafts is None else schedule.sequences.to(self.device)  # (R,)
        if ending is not None:
            _, padded = ending.find(self.canvas, self.generated)
            reveal_step, logprobs = reveal_step.masked_fill(padded, GIVEN), logprobs.masked_fill(padded, 0)
        output = RaddGenerateOutput(
            sequences=self.sequences(),
            num_function_evaluations=evaluations[self.place_of_row],
            num_sequences_evaluated=sequences[self.place_of_row],
            reveal_step=reveal_step[self.place_of_row],
            token_logprobs=logprobs[self.place_of_row],
        )
        # The host waits for the device here. Nothing reads the state afterwards, so another call may write to it.
        if not bool(processed.isfinite().all()):
            culprit = "logits_processor" if bool(of_network.isfinite().all()) else "the network"
            raise ValueError(f"{culprit} left a position without a finite score, or with one that is nan or +inf.")
        return output


def _each(value: Any, function: Callable[[Tensor, int], Any]) -> Any:
    """Applies the function to a tensor, or to each tensor of a tuple, with its index; None stays None."""
    if isinstance(value, tuple):
        return tuple(function(part, index) for index, part in enumerate(value))
    return None if value is None else function(value, 0)


def _of_rows(value: Tensor, rows: Tensor) -> Tensor:
    """Returns the rows (R,) of a tensor (R, ...); a tensor (1, ...) serves all rows and stays as it is."""
    return value[rows] if len(value) > 1 else value


__all__ = ["RaddGenerateOutput", "SamplerState"]
