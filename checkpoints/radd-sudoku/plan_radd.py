# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Plans when each position of a canvas is revealed, and what each evaluation of the network has to do.

    plan      for each masked position, the step or event that reveals it           plan_grid, plan_sequence
    schedule  for each event, its shape: rows, revealed positions, computed ones    Schedule

An event is one evaluation of the network, which reveals tokens at some positions of each row. A plan is made before the
first one, since the time at which a token is revealed depends neither on the network nor on the text
(arXiv:2406.03736, section 3.1). Equations are numbered as in version 4 of the paper.

Under an adaptive order (`policy_radd.py`) the plan only says how many positions each event reveals. The events choose
which, or also how many, and the schedule follows them.

Shapes: R rows, L length, n steps of the grid, E events to come, A rows that still have events, N positions revealed in
        one event, at most K in any row; C positions of a partial evaluation of a row; w window.
"""

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .canvas_radd import widen

# Value of a plan at positions that no event reveals. `without_empty_steps` counts up from it.
GIVEN = -1
# A shape that fewer events have is replaced by a larger one: capturing it would take longer than it saves.
FEW_EVENTS = 4


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


class Shape(NamedTuple):
    """Gives the sizes of an event.

    rows: A, rows that still have events; they are the first. per_row: K, at least the positions revealed in any row.
    total: N, at least the positions revealed in all rows. recomputed: C, at least the positions that a partial
    evaluation computes in any row; 0 for a whole evaluation. adaptive: whether a policy chooses what is revealed; then
    K and N count all positions that are still masked.
    """

    rows: int
    per_row: int
    total: int
    recomputed: int
    adaptive: bool = False

    def rounded(self, most_rows: int, length: int) -> "Shape":
        """Rounds up to powers of two, at most to the size of the batch, so that many events have one shape."""
        rows, per_row = min(_power_of_two(self.rows), most_rows), min(_power_of_two(self.per_row), length)
        recomputed = min(_power_of_two(self.recomputed), length) if self.recomputed else 0
        return Shape(rows, per_row, min(_power_of_two(self.total), rows * per_row), recomputed, self.adaptive)

    def covers(self, other: "Shape") -> bool:
        """Tells whether an event of the other shape can be run in this one."""
        same_kind = bool(self.recomputed) == bool(other.recomputed) and self.adaptive == other.adaptive
        return same_kind and all(size >= needed for size, needed in zip(self, other, strict=True))


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def merge_rare(shapes: list[Shape]) -> list[Shape]:
    """Replaces each rare shape by a frequent one that covers it, the one with fewest rows, if there is any."""
    counts = Counter(shapes)
    frequent = [shape for shape, count in counts.items() if count >= FEW_EVENTS]
    instead = {}
    for shape in counts.keys() - set(frequent):
        instead[shape] = min((other for other in frequent if other.covers(shape)), default=shape)
    return [instead.get(shape, shape) for shape in shapes]


def events_at_most(plan: Tensor, steps: Tensor | None) -> int:
    """Returns a number of events that no plan of this shape (R, L) exceeds, whatever is drawn."""
    return plan.shape[1] if steps is None else max(plan.shape[1], int(steps.max()))


def recomputed_in(event_of: Tensor, event: Tensor | int, window: int) -> Tensor:
    """Chooses what a partial event computes: what the one before wrote, its neighbours, and what is revealed now.

    The neighbours' keys and values change most.

    Args:
        event_of: (A, L) index of the event that reveals each position. event: index of this event.

    Returns:
        (A, L) bool.
    """
    return widen(event_of == event - 1, window) | (event_of == event)


def count_events(event_of: Tensor, events: int, amount: Tensor) -> Tensor:
    """Adds up amounts (R, n) by their event, 0 .. E - 1, in each row, and leaves out others: (R, n) -> (R, E)."""
    counted = (event_of >= 0) & (event_of < events)
    counts = event_of.new_zeros(len(event_of), events + 1)
    return counts.scatter_add_(1, event_of.where(counted, events), amount)[:, :events]


class Schedule:
    """Holds the shapes of the events to come; changes them when time has run out or rows have ended.

    All is known before the first evaluation, so that the loop need not wait for the device to learn what comes next.
    Rows lie in descending order of their number of evaluations. So the rows that still have events are the first.
    Everything here is on the CPU.

    shapes: of each event to come. plan, event_of: (R, L) step and index of the event that reveal each position.
    evaluations: (R,) of each row. rows: (R,) the caller's row that lies at each place. In each row, event e reveals
    `order[first[e] : first[e + 1]]`; order: (R, L), first: (R, capacity + 1).

    Args:
        plan: (R, L) the step that reveals each position, GIVEN where there is none.
        all_steps: (R,) number of steps of each row, all of which are evaluated; None: only those that reveal something.
        refresh_interval, refresh_window: see `generate`.
        captured: whether events are captured as graphs: then few shapes are better than small ones.
        adaptive: whether events choose which positions they reveal, as many as the plan says.
        open_ended: whether they also choose how many. Then only the next event is known, and `follow` must be called
            after each.
    """

    def __init__(
        self,
        plan: Tensor,
        all_steps: Tensor | None = None,
        refresh_interval: int = 1,
        refresh_window: int = 0,
        captured: bool = False,
        adaptive: bool = False,
        open_ended: bool = False,
    ):
        self.plan = plan.cpu()
        self.event_of = without_empty_steps(self.plan) if all_steps is None else self.plan  # (R, L)
        self.evaluations = self.event_of.amax(dim=1) + 1 if all_steps is None else all_steps.cpu()  # (R,)
        self.rows = torch.arange(len(plan), device="cpu")  # (R,)
        self.refresh_interval, self.refresh_window, self.captured = refresh_interval, refresh_window, captured
        self.adaptive, self.open_ended = adaptive, open_ended
        self.capacity = events_at_most(plan, all_steps)
        self.current = 0  # number of events taken
        self.arrange()

    def __len__(self) -> int:
        return len(self.shapes)

    def next(self) -> Shape:
        """Takes the next event."""
        self.current += 1
        return self.shapes.pop(0)

    def follow(self, order: Tensor, first: Tensor) -> None:
        """Takes over what adaptive events have chosen: `order` (R, L) and `first` (R, capacity + 1) of the device.

        It leaves the rows where they are. `arrange` comes next.
        """
        slot = torch.arange(order.shape[1], device="cpu").expand(order.shape).contiguous()
        event = torch.searchsorted(first.cpu(), slot, right=True) - 1  # (R, L) the event that reveals order[slot]
        self.event_of = torch.empty_like(event).scatter_(1, order.cpu(), event)  # (R, L)
        self.plan = self.event_of
        self.evaluations = self.event_of.amax(dim=1) + 1  # (R,)

    def reveal_all(self) -> Tensor:
        """Replaces all events to come by one, a whole evaluation. Returns what `arrange` does."""
        late = self.event_of >= self.current  # (R, L)
        never = torch.iinfo(self.plan.dtype).max
        soonest = self.plan.masked_fill(~late, never).amin(dim=1, keepdim=True)  # (R, 1) the step when time ran out
        self.plan = torch.where(late, soonest, self.plan)
        self.event_of = self.event_of.clamp(max=self.current)
        self.evaluations = self.evaluations.clamp(max=self.current + 1)
        self.refresh_interval, self.adaptive, self.open_ended = 1, False, False  # nothing is left to choose
        return self.arrange()

    def end_rows(self, evaluations: Tensor) -> Tensor:
        """Removes the events of each row beyond this number (R,). Returns what `arrange` does."""
        self.evaluations = torch.minimum(self.evaluations, evaluations)
        self.event_of = self.event_of.masked_fill(self.event_of >= self.evaluations[:, None], GIVEN)
        return self.arrange()

    def arrange(self) -> Tensor:
        """Orders the rows, and makes the shapes of the events to come. Returns (R,), where each row lay before."""
        before = self.evaluations.argsort(descending=True, stable=True)
        self.rows, self.evaluations = self.rows[before], self.evaluations[before]
        self.plan, self.event_of = self.plan[before], self.event_of[before]
        ascending, self.order = self.event_of.sort(dim=1, stable=True)  # (R, L) both
        every = torch.arange(self.capacity + 1, device="cpu").expand(len(before), -1).contiguous()
        self.first = torch.searchsorted(ascending, every)  # (R, capacity + 1)

        # (E,) of each event to come; none, where all rows have ended some events ago
        end = max(self.current, int(self.evaluations.max()))
        if self.open_ended:
            end = min(end, self.current + 1)
        event = torch.arange(self.current, end, device="cpu")
        in_use = self.evaluations[:, None] > event  # (R, E)
        begin, stop = self.first[:, :-1], self.first[:, 1:]  # (R, capacity) both
        if self.adaptive:
            stop = torch.full_like(begin, self.event_of.shape[1])  # all that is still masked
        evaluated = (stop - begin)[:, self.current :][:, : len(event)]  # (R, E) positions
        recomputed = torch.zeros_like(event)
        if self.refresh_interval > 1:
            partial = event % self.refresh_interval > 0
            recomputed = (self._count_recomputed(ascending, len(event)) * in_use).amax(dim=0) * partial  # (E,)
        sizes = (in_use.sum(dim=0), evaluated.amax(dim=0).clamp(min=1), evaluated.sum(dim=0), recomputed)
        columns = zip(*(size.tolist() for size in sizes), strict=True)
        self.shapes = [Shape(a, k, n, c, self.adaptive) for a, k, n, c in columns]
        if self.captured:
            self.shapes = merge_rare([shape.rounded(*self.event_of.shape) for shape in self.shapes])
        return before

    def _count_recomputed(self, ascending: Tensor, events: int) -> Tensor:
        """Counts what [`recomputed_in`] chooses for each event to come, all of them at once: (R, E).

        ascending: (R, L) the event of each position in `order`.
        """
        length, window, position = ascending.shape[1], min(self.refresh_window, ascending.shape[1]), self.order
        # What the event before wrote, and its neighbours: each token adds those that the one to its left does not.
        begin, end = (position - window).clamp(min=0), (position + window).clamp(max=length - 1)  # (R, L) both
        left = pad(end[:, :-1], (1, 0), value=-1)  # (R, L)
        left = left.where(ascending == pad(ascending[:, :-1], (1, 0), value=GIVEN - 1), -1)
        added = end - torch.maximum(begin, left + 1) + 1  # (R, L)
        # What is revealed now, unless it is such a neighbour. `place` ascends with event and position.
        place = (ascending * length + position).contiguous()  # (R, L)
        wanted = place - length  # (R, L) the same position in the event before
        after = torch.searchsorted(place, wanted)  # (R, L)
        near = torch.zeros_like(ascending, dtype=torch.bool)
        for index in (after, after - 1):
            found = place.gather(1, index.clamp(0, length - 1))  # (R, L)
            near |= (found >= 0) & (found // length == ascending - 1) & ((found - wanted).abs() <= window)
        counts = count_events(ascending + 1 - self.current, events, added.where(ascending != GIVEN, 0))
        return counts + count_events(ascending - self.current, events, (~near).long())


__all__ = [
    "GIVEN",
    "Schedule",
    "Shape",
    "events_at_most",
    "plan_grid",
    "plan_sequence",
    "recomputed_in",
    "without_empty_steps",
]
