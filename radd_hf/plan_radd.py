# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Plans when each position of a canvas is revealed, and what each evaluation of the network has to do.

    plan      for each masked position, the step or event that reveals it           plan_grid, plan_sequence
    schedule  for each event, its shape: rows, revealed positions, computed ones    Schedule

An event is one evaluation of the network, which reveals tokens at some positions of each row. A plan is made before the
first one, since the time at which a token is revealed depends neither on the network nor on the text
(arXiv:2406.03736, section 3.1). Equations are numbered as in version 4 of the paper.

Shapes: R rows, L length, n steps of the grid, E events to come, A rows that still have events, N positions revealed in
        one event, at most K in any row; C positions of a partial evaluation of a row; w window.
"""

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .canvas_radd import widen

# Value of a plan at positions that are given, not generated.
GIVEN = -1
# Events that share a shape, below which they take a larger one: a program of their own would take longer to record.
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

    rows: A, the first rows of the batch. most: K, the positions that it reveals in any row, or more. number: N, those
    that it reveals in all rows, or more. computed: C, the positions that it computes in any row, or more; 0: all.
    """

    rows: int
    most: int
    number: int
    computed: int

    def rounded(self, rows: int, length: int) -> "Shape":
        """Rounds up to powers of two, so that many events have one shape."""
        rows, most = min(_power_of_two(self.rows), rows), min(_power_of_two(self.most), length)
        computed = min(_power_of_two(self.computed), length) if self.computed else 0
        return Shape(rows, most, min(_power_of_two(self.number), rows * most), computed)

    def covers(self, other: "Shape") -> bool:
        """Tells whether an event of the other shape can be run in this one."""
        same_kind = bool(self.computed) == bool(other.computed)
        return same_kind and all(size >= needed for size, needed in zip(self, other, strict=True))


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def shared(shapes: list[Shape]) -> list[Shape]:
    """Gives the events of a rare shape the smallest frequent one that covers theirs, if there is one."""
    counts = Counter(shapes)
    frequent = [shape for shape, count in counts.items() if count >= FEW_EVENTS]
    instead = {}
    for shape in counts.keys() - set(frequent):
        instead[shape] = min((other for other in frequent if other.covers(shape)), default=shape)
    return [instead.get(shape, shape) for shape in shapes]


def events_at_most(plan: Tensor, steps: Tensor | None) -> int:
    """Returns a number of events that no plan of this shape (R, L) exceeds, whatever is drawn."""
    return plan.shape[1] if steps is None else max(plan.shape[1], int(steps.max()))


class Schedule:
    """Holds the shapes of the events to come; changes them when time has run out or rows have ended.

    All is known before the first evaluation, so that the loop need not wait for the device to learn what comes next.
    Rows lie in the order of their number of evaluations, most first. So the rows that still have events are the first.
    Everything here is on the CPU. Event e reveals `order[row, first[row, e] : first[row, e + 1]]` in each row.

    Args:
        plan: (R, L) the step that reveals each position, GIVEN where there is none.
        steps: (R,) number of steps of each row, all of which are evaluated; None: only those that reveal something.
        refresh_interval, refresh_window: see `generate`.
        recorded: whether events are recorded: then few shapes are better than small ones.
    """

    def __init__(
        self,
        plan: Tensor,
        steps: Tensor | None = None,
        refresh_interval: int = 1,
        refresh_window: int = 0,
        recorded: bool = False,
    ):
        self.plan = plan.cpu()
        self.event = without_empty_steps(self.plan) if steps is None else self.plan  # (R, L) number of the evaluation
        self.evaluations = self.event.amax(dim=1) + 1 if steps is None else steps.cpu()  # (R,) of each row
        self.rows = torch.arange(len(plan))  # (R,) the caller's row that lies at each place
        self.refresh_interval, self.refresh_window, self.recorded = refresh_interval, refresh_window, recorded
        self.capacity = events_at_most(plan, steps)
        self.current = 0  # number of events taken
        self.arrange()

    def __len__(self) -> int:
        return len(self.shapes)

    def next(self) -> Shape:
        self.current += 1
        return self.shapes.pop(0)

    def reveal_all(self) -> Tensor:
        """Replaces all events to come by one, a whole evaluation. Returns what `arrange` does."""
        late = self.event >= self.current  # (R, L)
        soonest = self.plan.masked_fill(~late, torch.iinfo(self.plan.dtype).max).amin(dim=1, keepdim=True)
        self.plan = torch.where(late, soonest, self.plan)
        self.event = self.event.clamp(max=self.current)
        self.evaluations = self.evaluations.clamp(max=self.current + 1)
        self.refresh_interval = 1
        return self.arrange()

    def end_rows(self, evaluations: Tensor) -> Tensor:
        """Removes the events of each row beyond this number (R,). Returns what `arrange` does."""
        self.evaluations = torch.minimum(self.evaluations, evaluations)
        self.event = self.event.masked_fill(self.event >= self.evaluations[:, None], GIVEN)
        return self.arrange()

    def arrange(self) -> Tensor:
        """Orders the rows, and makes the shapes of the events to come. Returns (R,), where each row lay before."""
        order = self.evaluations.argsort(descending=True, stable=True)
        self.rows, self.evaluations = self.rows[order], self.evaluations[order]
        self.plan, self.event = self.plan[order], self.event[order]

        sorted_event, self.order = self.event.sort(dim=1, stable=True)  # (R, L) both
        every = torch.arange(self.capacity + 1).expand(len(order), -1).contiguous()
        self.first = torch.searchsorted(sorted_event, every)  # (R, capacity + 1)

        number = torch.arange(self.current, int(self.evaluations.max()))  # (E,) of each event to come
        in_use = self.evaluations[:, None] > number  # (R, E)
        revealed = self.first.diff(dim=1)[:, self.current :][:, : len(number)]  # (R, E) positions of each row
        computed = torch.zeros_like(number)
        if self.refresh_interval > 1:
            partial = number % self.refresh_interval > 0
            computed = (self._count_computed(len(number)) * in_use).amax(dim=0) * partial  # (E,)
        sizes = (in_use.sum(dim=0), revealed.amax(dim=0).clamp(min=1), revealed.sum(dim=0), computed)
        self.shapes = [Shape(*each) for each in zip(*(size.tolist() for size in sizes), strict=True)]
        if self.recorded:
            self.shapes = shared([shape.rounded(*self.event.shape) for shape in self.shapes])
        return order

    def _count_computed(self, events: int) -> Tensor:
        """Counts the positions that each event computes if it is partial, as [`computed_in`] chooses them: (R, E)."""
        length, window = self.event.shape[1], min(self.refresh_window, self.event.shape[1])
        after = torch.where(self.event == GIVEN, GIVEN, self.event + 1)  # the event after the one that writes
        near = pad(after, (window, window), value=GIVEN).unfold(1, length, 1)  # (R, 2w + 1, L)
        which = torch.cat([self.event[:, None], near], dim=1).sort(dim=1).values  # (R, 2w + 2, L) that compute it
        repeated = which.diff(dim=1, prepend=torch.full_like(which[:, :1], GIVEN)) == 0
        return count_events(which.masked_fill(repeated, GIVEN).flatten(1) - self.current, events)


def count_events(event: Tensor, events: int) -> Tensor:
    """Counts each number in 0 .. E - 1 in each row, and leaves out others: (R, n) -> (R, E)."""
    counted = (event >= 0) & (event < events)
    counts = torch.zeros(len(event), events + 1, dtype=torch.int64)
    return counts.scatter_add_(1, event.where(counted, events), counted.long())[:, :events]


def computed_in(event: Tensor, current: Tensor, window: int) -> Tensor:
    """Chooses what a partial event computes: what the one before wrote, its neighbours, and what is drawn now.

    The neighbours' keys and values change most. event: (A, L) number of the event of each position. -> (A, L) bool.
    """
    return widen(event == current - 1, window) | (event == current)


__all__ = [
    "GIVEN",
    "Schedule",
    "Shape",
    "computed_in",
    "events_at_most",
    "plan_grid",
    "plan_sequence",
    "without_empty_steps",
]
