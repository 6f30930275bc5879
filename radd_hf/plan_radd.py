# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""Plans when each position of a canvas is revealed, and what each evaluation of the network has to do.

    canvas    a row of token ids, some of them masks
    event     one evaluation of the network, and the tokens that it reveals at some positions of each row
    plan      for each masked position, the step or event that reveals it                  plan_grid, plan_sequence
    group     the positions that one event reveals: how many, and what error that brings   group_sizes, expected_kl
    schedule  for each event, its shape: rows, revealed positions, computed positions      Schedule

The time at which a token is revealed depends neither on the network nor on the text (arXiv:2406.03736, section 3.1). So
a plan is made before the first event. Equations are numbered as in version 4 of the paper.

Two ways to generate change the plan on the way. Under an adaptive order (`policy_radd.py`) the plan only says how many
positions each event reveals. The events choose which ones, or also how many, and the schedule follows them. With
speculation (`speculation_radd.py`) the plan is the order of the positions, and the events find how many they reveal.

Shapes: R rows, L length, m masks of a row, n steps, E events to come, A rows that still have events, N positions
        revealed in one event, at most K of them in a row, C positions that a partial evaluation computes in a row.
"""

import math
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from .canvas_radd import widen
from .settings_radd import is_number, shortened

# The value of a plan at positions that no event reveals. `without_empty_steps` counts up from it.
GIVEN = -1
# The search for the best sizes of groups may take this many operations, about ten seconds.
MOST_WORK = 2**33
# A shape of fewer events than this is replaced by a larger shape: capturing it would take longer than it saves.
FEW_EVENTS = 4


# ---------------------------------------------------------------------------------------------------------
# Plan: when is each position revealed? Plans are (R, L) int64, GIVEN where nothing is masked.
# ---------------------------------------------------------------------------------------------------------


def plan_grid(masked: Tensor, reveal: Tensor, uniform: Tensor) -> Tensor:
    """Draws the step of the grid in which Tweedie or Euler reveals each masked position.

    Step i reveals a position that is still masked with probability r_i (eq. (D.14) and (D.15)). So a position is
    revealed in step i with probability q_i = r_i prod_{j<i} (1 - r_j), independently of all other positions. The step
    is drawn directly, by inversion of the distribution function. A row with m masks then takes sum_i 1 - (1 - q_i)^m
    evaluations in expectation (eq. (D.30)). For log-linear noise that is n (1 - (1 - 1/n)^m) (eq. (3.4)).

    Args:
        masked: (R, L) bool. uniform: (R, L) float64 in [0, 1).
        reveal: (n,) float64, r of each step, with r_n = 1 in the last one.
    """
    distribution = 1 - (1 - reveal).cumprod(dim=0)  # (n,) P(reveal step <= i); 1 at the end, since r_n = 1
    step = torch.searchsorted(distribution, uniform, right=True)  # (R, L)
    return step.masked_fill(~masked, GIVEN)


def plan_sequence(
    masked: Tensor, priority: Tensor, steps: int | None = None, sizes: Sequence[Sequence[int]] | None = None
) -> Tensor:
    """Plans one position an event, in ascending `priority` (R, L); with fewer `steps` than masks, balanced groups.

    First-hitting sampling is this plan with uniform priorities. The times at which the continuous-time process reveals
    the positions are independent and identically distributed, so their order is a uniform permutation
    (arXiv:2409.02908, section 4.2).

    Args:
        sizes: instead of `steps`. For each row the numbers of positions that its events reveal; they add up to m.
    """
    priority = priority.double().masked_fill(~masked, torch.inf)
    rank = priority.argsort(dim=1, stable=True).argsort(dim=1)  # (R, L) 0, 1, ... over the masked positions
    if sizes is not None:
        events = [torch.arange(len(row), device="cpu").repeat_interleave(torch.tensor(row).long()) for row in sizes]
        event_of_rank = pad_sequence(events, batch_first=True).to(rank.device)  # (R, largest m)
        rank = event_of_rank.gather(1, rank.clamp(max=event_of_rank.shape[1] - 1))
    elif steps is not None:
        count = masked.sum(dim=1, keepdim=True)  # (R, 1)
        rank = torch.where(count > steps, rank * steps // count.clamp(min=1), rank)
    return rank.masked_fill(~masked, GIVEN)


def without_empty_steps(plan: Tensor) -> Tensor:
    """Numbers each row's events 0, 1, 2, ... in the order of the plan: (R, L) -> (R, L)."""
    step, position = plan.sort(dim=1)
    begins = step.diff(dim=1, prepend=torch.full_like(step[:, :1], GIVEN)) > 0  # a step larger than the one before it
    return torch.empty_like(plan).scatter_(1, position, begins.cumsum(dim=1) - 1)  # GIVEN before the first step


# ---------------------------------------------------------------------------------------------------------
# Groups: how many positions does each event reveal?
#
# Let h(v) be the mean of -log p, in nats, of the next token in a uniformly random order when v tokens are visible. This
# function is the information profile. A nat is the unit of natural logarithms.
#
# Tokens that are drawn together do not see one another. Number i of a group (from 0) costs h(v) nats, where v tokens
# are visible before the group. Drawn one by one, it would cost h(v + i). The expected Kullback-Leibler divergence of a
# text grows by the difference. The sum over all groups is the area between the profile and a staircase that has a step
# at each event (arXiv:2510.25544).
#
# The sum has an exact meaning for any network. It is the divergence of drawing in groups minus that of drawing one by
# one, both from the distribution of the texts that gave the profile. If all conditionals of the network belong to that
# distribution, the latter is zero, and the sum is the whole divergence.
# ---------------------------------------------------------------------------------------------------------


def check_profile(profile: Sequence[float]) -> None:
    """Raises a ValueError that names the first value of an information profile that cannot be one."""
    for visible, nats in enumerate(profile):
        place = f"information_profile[{visible}]={shortened(nats)}"
        if not is_number(nats) or nats < 0:
            raise ValueError(f"{place} must be a finite number of nats, at least 0.")
        if visible and nats > profile[visible - 1]:
            raise ValueError(
                f"{place} must be at most the {profile[visible - 1]} before it: the more tokens are visible, the less "
                "uncertain is the next one."
            )


def profile_of_length(profile: Sequence[float], length: int) -> list[float]:
    """Returns the profile for a text of another length, read at the same fractions of visible tokens.

    It is linear between its points, and constant after the last one.
    """
    if len(profile) == length:
        return list(profile)
    given = torch.tensor(profile, dtype=torch.float64)
    place = torch.arange(length, dtype=torch.float64) * len(profile) / max(length, 1)  # (L,) index into the profile
    before = place.long()
    after = (before + 1).clamp(max=len(profile) - 1)
    return torch.lerp(given[before], given[after], place - before).tolist()


def balanced_sizes(masked: int, steps: int) -> list[int]:
    """Returns how many positions each event of [`plan_sequence`] reveals with this number of `steps`."""
    steps = min(steps, masked)
    return [-(-(step + 1) * masked // steps) + -step * masked // steps for step in range(steps)]


def group_sizes(profile: Sequence[float], masked: int, steps: int) -> list[int]:
    """Returns how many positions each of n events reveals: the sizes with the least expected divergence.

    It is a dynamic programme over the numbers of events and of revealed positions, with n m^2 / 2 operations.

    Args:
        profile: (L,) the information profile at the length of the row.
        masked: m <= L, the masks of the row; the other tokens are visible from the start.
        steps: n, the number of events; with n >= m each event reveals one position.

    Raises:
        ValueError: if there are so many masks and steps that the search would take minutes.
    """
    if steps >= masked:
        return [1] * masked
    check_work(masked, steps)
    return list(_group_sizes(tuple(profile[len(profile) - masked :]), steps))


def check_work(masked: int, steps: int) -> None:
    """Raises a ValueError if the search for the best sizes of groups would take minutes."""
    if steps < masked and steps * masked**2 > MOST_WORK:
        most = max(int(MOST_WORK / masked**2), 1)
        enough = f"steps <= {most}" if most * masked**2 <= MOST_WORK else f"at most {int(MOST_WORK**0.5)} masks"
        raise ValueError(
            f"steps={steps} for {masked} masks: schedule='profile' would search minutes for the sizes of groups; "
            f"pass {enough}, or leave schedule out."
        )


@lru_cache(maxsize=256)
def _group_sizes(nats: tuple[float, ...], steps: int) -> tuple[int, ...]:
    """Returns the sizes. nats: (m,) the profile where no mask of the row is revealed, one is, and so on."""
    h = torch.tensor(nats, dtype=torch.float64, device="cpu")
    revealed = torch.arange(len(nats), device="cpu")
    # Row: number of events. Column: number of revealed positions. `least` holds the least nats, and `begins` where the
    # last group begins.
    least = torch.full((steps + 1, len(nats) + 1), torch.inf, dtype=torch.float64, device="cpu")
    begins = torch.zeros(steps + 1, len(nats) + 1, dtype=torch.long, device="cpu")
    least[0, 0] = 0
    for end in range(1, len(nats) + 1):
        last_group = (end - revealed[:end]) * h[:end]  # (end,) nats of the last group, by where it begins
        least[1:, end], begins[1:, end] = (least[:-1, :end] + last_group).min(dim=1)
    sizes, end = [], len(nats)
    for event in range(steps, 0, -1):
        begin = int(begins[event, end])
        sizes.append(end - begin)
        end = begin
    return tuple(reversed(sizes))


def expected_kl(profile: Sequence[float], sizes: Sequence[int]) -> float:
    """Returns the expected divergence, in nats a row, of events that reveal groups of these sizes in random order.

    Args:
        profile: (L,) the information profile at the length of the row.
        sizes: the number of positions that each event reveals, m <= L together.
    """
    left, together = sum(sizes), 0.0  # masks; nats
    for size in sizes:
        together += size * profile[len(profile) - left]
        left -= size
    return together - sum(profile[len(profile) - sum(sizes) :])


def expected_kl_of_grid(profile: Sequence[float], masked: int, reveal: Tensor) -> float:
    """Returns the expected divergence of a grid of times, whose groups have random sizes (see [`plan_grid`]).

    The number of positions revealed before a step has a binomial distribution. The step reveals each other position
    with probability r.

    Args:
        masked: m <= L, the masks of the row.
        reveal: (n,) float64, r of each step, as `noise_radd.reveal_probabilities` returns it.
    """
    h = torch.tensor(profile[len(profile) - masked :], dtype=torch.float64)  # (m,)
    hidden = pad((1 - reveal).cumprod(dim=0)[:-1], (1, 0), value=1.0)[:, None]  # (n, 1) P(masked) before each step
    revealed = torch.arange(masked, dtype=torch.float64)  # (m,) 0 .. m - 1; at m nothing is left to reveal
    left = masked - revealed  # (m,)
    log_choices = math.lgamma(masked + 1) - torch.lgamma(revealed + 1) - torch.lgamma(left + 1)  # (m,)
    log_probability = log_choices + torch.xlogy(revealed, 1 - hidden) + torch.xlogy(left, hidden)  # (n, m)
    together = log_probability.exp() * left * reveal[:, None] * h  # (n, m) nats of the tokens that a step reveals
    return float(together.sum() - h.sum())


# ---------------------------------------------------------------------------------------------------------
# Schedule: what does each event do?
# ---------------------------------------------------------------------------------------------------------


class Shape(NamedTuple):
    """Gives the sizes of an event, as upper bounds: an event that needs less can run in the same shape.

    rows: A, the rows that still have events; they are the first rows.
    per_row: K, the positions revealed in a row.
    total: N, the positions revealed in all rows together.
    recomputed: C, the positions that a partial evaluation computes in a row; 0 for an evaluation of all positions.
    adaptive: whether a policy chooses the positions. Then K and N count all positions that are still masked.
    sequences: c, the sequences that a round of speculation evaluates for each row. The round reveals 1 to c positions,
        whatever K and N are. 0 for an event without speculation.
    """

    rows: int
    per_row: int
    total: int
    recomputed: int
    adaptive: bool = False
    sequences: int = 0

    def rounded(self, most_rows: int, length: int) -> "Shape":
        """Rounds up to powers of two, but not beyond the size of the batch. Then many events have the same shape."""
        rows, per_row = min(_power_of_two(self.rows), most_rows), min(_power_of_two(self.per_row), length)
        recomputed = min(_power_of_two(self.recomputed), length) if self.recomputed else 0
        total = min(_power_of_two(self.total), rows * per_row)
        return Shape(rows, per_row, total, recomputed, self.adaptive, self.sequences)

    def covers(self, other: "Shape") -> bool:
        """Tells whether an event of the other shape can run in this one."""
        same_kind = bool(self.recomputed) == bool(other.recomputed) and self[4:] == other[4:]
        return same_kind and all(size >= needed for size, needed in zip(self, other, strict=True))


def _power_of_two(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


def merge_rare(shapes: list[Shape]) -> list[Shape]:
    """Replaces each rare shape by a frequent shape that covers it, the one with the fewest rows, if there is one."""
    counts = Counter(shapes)
    frequent = [shape for shape, count in counts.items() if count >= FEW_EVENTS]
    instead = {}
    for shape in counts.keys() - set(frequent):
        instead[shape] = min((other for other in frequent if other.covers(shape)), default=shape)
    return [instead.get(shape, shape) for shape in shapes]


def events_at_most(plan: Tensor, steps: Tensor | None) -> int:
    """Returns the most events that any plan of this shape (R, L) can have, whatever is drawn."""
    return plan.shape[1] if steps is None else max(plan.shape[1], int(steps.max()))


def recomputed_in(event_of: Tensor, event: Tensor | int, window: int) -> Tensor:
    """Chooses the positions that a partial evaluation computes.

    They are those that the event before revealed, their neighbours within `window`, and those that this event reveals.
    The keys and values of the neighbours change most.

    Args:
        event_of: (A, L) index of the event that reveals each position. event: index of this event.

    Returns:
        (A, L) bool.
    """
    return widen(event_of == event - 1, window) | (event_of == event)


def count_events(event_of: Tensor, events: int, amount: Tensor) -> Tensor:
    """Adds up amounts (R, L) by event, 0 .. E - 1, in each row, and leaves out other events: (R, L) -> (R, E)."""
    counted = (event_of >= 0) & (event_of < events)
    counts = event_of.new_zeros(len(event_of), events + 1)
    return counts.scatter_add_(1, event_of.where(counted, events), amount)[:, :events]


class Schedule:
    """Holds the shapes of the events to come, and changes them when time has run out or rows have ended.

    All is known before the first evaluation, so the loop need not wait for the device to learn what comes next.
    Everything here is on the CPU. Rows lie in descending order of their number of evaluations. So the rows that still
    have events are the first ones.

    shapes: the shape of each event to come.
    plan, event_of: (R, L) the step, and the index of the event, that reveals each position.
    evaluations: (R,) how many evaluations each row takes.
    sequences: (R,) how many sequences were evaluated for each row so far; with speculation, several an evaluation.
    rows: (R,) the index that each row has for the caller.
    order, first: (R, L) and (R, capacity + 1). In each row, event e reveals `order[first[e] : first[e + 1]]`.

    Args:
        plan: (R, L) the step that reveals each position, GIVEN where there is none.
        all_steps: (R,) number of steps of each row, if all are evaluated. None: only steps that reveal tokens are.
        refresh_interval, refresh_window: see `generate`.
        captured: whether events are captured as CUDA graphs. Then few shapes are better than small ones.
        adaptive: whether events choose which positions they reveal, as many as the plan says.
        open_ended: whether events find how many positions they reveal. Then only the next event is known, or the events
            that will come in any case, and `follow` must be called after them.
        speculate: the most sequences that an event evaluates for each row, see `speculation_radd.py`.
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
        speculate: int = 1,
    ):
        self.plan = plan.cpu()
        self.event_of = without_empty_steps(self.plan) if all_steps is None else self.plan  # (R, L)
        self.evaluations = self.event_of.amax(dim=1) + 1 if all_steps is None else all_steps.cpu()  # (R,)
        self.rows = torch.arange(len(plan), device="cpu")  # (R,)
        self.refresh_interval, self.refresh_window, self.captured = refresh_interval, refresh_window, captured
        self.adaptive, self.open_ended, self.speculate = adaptive, open_ended, speculate
        self.sequences = torch.zeros_like(self.rows)  # (R,)
        self.capacity = events_at_most(plan, all_steps)
        self.current = 0  # number of events taken
        self.arrange()

    def __len__(self) -> int:
        return len(self.shapes)

    def next(self) -> Shape:
        """Takes the next event."""
        shape = self.shapes.pop(0)
        self.sequences += (self.evaluations > self.current) * max(shape.sequences, 1)
        self.current += 1
        return shape

    def follow(self, order: Tensor, first: Tensor) -> None:
        """Takes over what events have chosen: `order` (R, L) and `first` (R, capacity + 1) from the device.

        The rows stay where they are, so call `arrange` next. Speculation does not change the plan.
        """
        slot = torch.arange(order.shape[1], device="cpu").expand(order.shape).contiguous()
        event = torch.searchsorted(first.cpu(), slot, right=True) - 1  # (R, L) the event that reveals order[slot]
        self.event_of = torch.empty_like(event).scatter_(1, order.cpu(), event)  # (R, L)
        if self.adaptive:
            self.plan = self.event_of
        self.evaluations = self.event_of.amax(dim=1) + 1  # (R,)

    def reveal_all(self) -> Tensor:
        """Replaces all events to come by one evaluation of all positions. Returns what `arrange` does."""
        late = self.event_of >= self.current  # (R, L)
        never = torch.iinfo(self.plan.dtype).max
        soonest = self.plan.masked_fill(~late, never).amin(dim=1, keepdim=True)  # (R, 1) the step when time ran out
        self.plan = torch.where(late, soonest, self.plan)
        self.event_of = self.event_of.clamp(max=self.current)
        self.evaluations = self.evaluations.clamp(max=self.current + 1)
        self.refresh_interval, self.speculate = 1, 1
        self.adaptive = self.open_ended = False  # nothing is left to choose
        return self.arrange()

    def end_rows(self, evaluations: Tensor) -> Tensor:
        """Removes each row's events after the first `evaluations` (R,) ones. Returns what `arrange` does."""
        self.evaluations = torch.minimum(self.evaluations, evaluations)
        self.event_of = self.event_of.masked_fill(self.event_of >= self.evaluations[:, None], GIVEN)
        return self.arrange()

    def arrange(self) -> Tensor:
        """Sorts the rows, and makes the shapes of the events to come. Returns (R,), where each row lay before."""
        before = self.evaluations.argsort(descending=True, stable=True)
        self.rows, self.evaluations, self.sequences = (
            each[before] for each in (self.rows, self.evaluations, self.sequences)
        )
        self.plan, self.event_of = self.plan[before], self.event_of[before]
        ascending, self.order = self.event_of.sort(dim=1, stable=True)  # (R, L) both
        every = torch.arange(self.capacity + 1, device="cpu").expand(len(before), -1).contiguous()
        self.first = torch.searchsorted(ascending, every)  # (R, capacity + 1)

        # The events to come, (E,). There is none if all rows ended some events ago.
        end = max(self.current, int(self.evaluations.max()))
        if self.open_ended:
            end = min(end, self.current + self._sure_events())
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
        if self.speculate > 1:
            self.shapes = [
                Shape(each.rows, each.per_row, each.total, each.recomputed, each.adaptive, self._sequences_of(event))
                for event, each in enumerate(self.shapes, start=self.current)
            ]
        if self.captured:
            self.shapes = merge_rare([shape.rounded(*self.event_of.shape) for shape in self.shapes])
        return before

    def _most_masks(self) -> int:
        """Returns the most masks that a row has now."""
        return self.order.shape[1] - int(self.first[:, min(self.current, self.capacity)].min())

    def _sure_events(self) -> int:
        """Returns how many events will come in any case: 1, or more for speculation whose events are captured."""
        if self.speculate == 1 or not self.captured:
            return 1
        without_drafts = int(self.current == 0)
        return without_drafts + math.ceil((self._most_masks() - without_drafts) / self.speculate)

    def _sequences_of(self, event: int) -> int:
        """Returns how many sequences a round evaluates for each row; if shapes may be many, only those it needs."""
        if event == 0:  # there are no drafts yet
            return 1
        return self.speculate if self.captured else min(self.speculate, max(self._most_masks(), 1))

    def _count_recomputed(self, ascending: Tensor, events: int) -> Tensor:
        """Counts the positions that [`recomputed_in`] chooses, for all events to come at once: (R, E).

        ascending: (R, L) the event of each position in `order`.
        """
        length, window, position = ascending.shape[1], min(self.refresh_window, ascending.shape[1]), self.order
        # Positions that the event before revealed, and their neighbours. Each position adds itself and those of its
        # neighbours that the position to its left has not added.
        begin, end = (position - window).clamp(min=0), (position + window).clamp(max=length - 1)  # (R, L) both
        left = pad(end[:, :-1], (1, 0), value=-1)  # (R, L)
        left = left.where(ascending == pad(ascending[:, :-1], (1, 0), value=GIVEN - 1), -1)
        added = end - torch.maximum(begin, left + 1) + 1  # (R, L)
        # Positions that the event itself reveals, without those counted above. `place` ascends with event and position.
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
    "balanced_sizes",
    "check_profile",
    "check_work",
    "events_at_most",
    "expected_kl",
    "expected_kl_of_grid",
    "group_sizes",
    "plan_grid",
    "plan_sequence",
    "profile_of_length",
    "recomputed_in",
    "without_empty_steps",
]
