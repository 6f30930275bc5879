# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""`generate(..., refresh_interval=m)`: what is approximated and what is not.

Shapes: R rows, L length, V vocabulary with the mask, H heads, d head width.
"""

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import radd_hf.hub.facts  # noqa: F401, with which torch's counter knows the layers' products
from radd_hf import RaddForMaskedLM, RaddGenerationConfig
from radd_hf.canvas_radd import Positions
from radd_hf.draw_radd import draw_tokens
from radd_hf.modeling_radd import rotate, signed
from radd_hf.plan_radd import GIVEN, without_empty_steps
from support.samplers import LENGTH, MASK, METHODS, ROWS, VOCABULARY, canvas, plan_and_uniforms
from support.toys import seeded, tiny_model


@pytest.fixture(scope="module")
def network() -> RaddForMaskedLM:
    """Of laws so flat that samples differ, and of attention so sharp that old keys matter."""
    network = tiny_model(VOCABULARY, LENGTH, noise_type="geometric", seed=1, std=1.0)
    with torch.no_grad():
        for parameter in network.lm_head.parameters():
            parameter.mul_(0.3)
    return network


@pytest.fixture
def ids() -> Tensor:
    return canvas()


class OldStates:
    """The network of one row by hand: every layer's keys and values, each as old as its last computation."""

    def __init__(self, network: RaddForMaskedLM):
        self.network = network
        layers = network.config.num_hidden_layers
        self.keys: list[dict[int, Tensor]] = [{} for _ in range(layers)]  # of each position (H, d)
        self.values: list[dict[int, Tensor]] = [{} for _ in range(layers)]

    def evaluate(self, row: Tensor, positions: list[int]) -> dict[int, Tensor]:
        """Logits (V,) at `positions`, whose keys and values are computed anew, layer by layer."""
        trunk, heads = self.network.model, self.network.config.num_attention_heads
        cos, sin = trunk.rotary_emb(trunk.embed_tokens(row), torch.arange(len(row))[None])
        sin = signed(sin)
        hidden = {place: trunk.embed_tokens(row[place]) for place in positions}  # (D,)
        for layer, keys, values in zip(trunk.layers, self.keys, self.values, strict=True):
            queries = {}
            for place, state in hidden.items():
                qkv = layer.self_attn.qkv_proj(layer.input_layernorm(state)).view(3, 1, 1, heads, -1)
                here = slice(place, place + 1)
                query, key = (rotate(each, cos[:, here], sin[:, here]) for each in qkv[:2])
                queries[place], keys[place], values[place] = query[0, 0], key[0, 0], qkv[2, 0, 0]
            every_key = torch.stack([keys[place] for place in range(len(row))], dim=1)  # (H, L, d)
            every_value = torch.stack([values[place] for place in range(len(row))], dim=1)
            for place, query in queries.items():
                scores = (every_key @ query[..., None]).squeeze(-1) * layer.self_attn.scaling  # (H, L)
                attended = (scores.softmax(dim=-1)[:, None] @ every_value).flatten()
                state = hidden[place] + layer.self_attn.o_proj(attended)
                inner = layer.mlp.act_fn(layer.mlp.up_proj(layer.post_attention_layernorm(state)))
                hidden[place] = state + layer.mlp.down_proj(inner)
        return {place: self.network.compute_logits(trunk.norm(state)[None])[0] for place, state in hidden.items()}


@torch.no_grad()
def sample_by_hand(network, ids: Tensor, plan: Tensor, uniform: Tensor, interval: int, window: int):
    """Tokens and their log-probabilities, (R, L) both."""
    ids, events, logprobs = ids.clone(), without_empty_steps(plan), torch.zeros(ids.shape)
    for row, event, numbers, logprob in zip(ids, events.tolist(), uniform, logprobs, strict=True):
        states = OldStates(network)
        for current in range(max(event) + 1):
            wanted = [place for place in range(LENGTH) if event[place] == current]
            written = [place for place in range(LENGTH) if event[place] == current - 1 != GIVEN]
            near = {place + off for place in written for off in range(-window, window + 1)}
            computed = range(LENGTH) if current % interval == 0 else sorted({*wanted, *near} & {*range(LENGTH)})
            logits = states.evaluate(row, list(computed))
            for place in wanted:
                row[place] = draw_tokens(logits[place][None], numbers[place : place + 1])[0]
                logprob[place] = logits[place].log_softmax(dim=-1)[row[place]]
    return ids, logprobs


@pytest.mark.parametrize(("interval", "window"), [(1, 0), (2, 0), (3, 1), (5, 2), (12, 0), (40, 1)])
@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_the_tokens_are_those_of_an_evaluation_by_hand_with_old_keys_and_values(
    network, ids, settings, interval, window
):
    ids_by_hand, logprobs = sample_by_hand(network, ids, *plan_and_uniforms(network, ids, **settings), interval, window)
    refresh = {"refresh_interval": interval, "refresh_window": window}
    got = network.generate(ids, generator=seeded(3), return_dict_in_generate=True, **refresh, **settings)
    assert torch.equal(got.sequences, ids_by_hand)
    torch.testing.assert_close(got.token_logprobs, logprobs, atol=1e-4, rtol=1e-4)


def test_old_keys_and_values_and_the_window_do_make_a_difference(network):
    def logprobs(interval: int, window: int) -> Tensor:
        refresh = {"refresh_interval": interval, "refresh_window": window, "return_dict_in_generate": True}
        return network.generate(method="first_hitting", generator=seeded(3), **refresh).token_logprobs

    exact, old, near = logprobs(1, 0), logprobs(12, 0), logprobs(12, 1)
    assert min((old - exact).abs().max(), (near - exact).abs().max(), (near - old).abs().max()) > 0.01


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_an_interval_of_one_is_the_exact_sampler_bit_for_bit(network, ids, settings):
    def sample(**interval):
        return network.generate(ids, generator=seeded(3), return_dict_in_generate=True, **settings, **interval)

    exact, one = sample(), sample(refresh_interval=1, refresh_window=0)
    for name in ("sequences", "token_logprobs", "reveal_step", "num_function_evaluations"):
        assert torch.equal(one[name], exact[name]), name


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_a_window_over_the_whole_text_gives_the_exact_tokens(network, settings):
    """Wherever a token has just been written: everything is then computed anew."""
    exact = network.generate(num_return_sequences=4, generator=seeded(5), **settings)
    wide = network.generate(
        num_return_sequences=4, generator=seeded(5), refresh_interval=50, refresh_window=LENGTH, **settings
    )
    assert torch.equal(wide, exact)


@torch.no_grad()
def test_what_is_computed_anew_on_an_unchanged_canvas_is_what_was_there(network, ids):
    positions = torch.tensor([[2, 7, 4], [0, 1, 2], [11, 3, 5]])
    cache = network.model.make_cache()
    whole = network.model(input_ids=ids, output_positions=positions, cache=cache).last_hidden_state
    some = {"output_positions": positions[:, :2], "partial": Positions(positions)}
    again = network.model(input_ids=ids, cache=cache, **some)
    torch.testing.assert_close(again.last_hidden_state, whole[:, :2])


def test_rows_do_not_depend_on_their_batch_and_those_that_end_are_dropped(network, ids):
    settings = {"refresh_interval": 3, "refresh_window": 1, "method": "first_hitting"}
    together = network.generate(ids, generator=[seeded(row) for row in range(ROWS)], **settings)
    for row in range(ROWS):
        alone = network.generate(ids[row : row + 1], generator=seeded(row), **settings)
        assert torch.equal(together[row : row + 1], alone)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_padding_is_not_seen(network, attention):
    network.set_attn_implementation(attention)
    text = torch.tensor([[3, MASK, 5, MASK, MASK, 2]])
    padded = torch.cat([torch.full((1, 3), 7), text, torch.full((1, 3), 9)], dim=1)
    seen = torch.tensor([[0] * 3 + [1] * 6 + [0] * 3])
    # The order of the events: those of the short row, at the same places.
    order, shifted = torch.tensor([3, 1, 4, 0, 2, 5]), torch.tensor([6, 4, 7, 0, 1, 2, 3, 5, 8, 9, 10, 11])
    settings = {"method": "ordered", "refresh_interval": 5, "refresh_window": 1, "temperature": 0}
    alone = network.generate(text, order=order, **settings)
    got = network.generate(padded, attention_mask=seen, order=shifted, **settings)
    network.set_attn_implementation("sdpa")
    assert torch.equal(got[:, 3:9], alone)


@pytest.mark.parametrize("settings", METHODS, ids=str)
def test_prefix_and_suffix_stay_and_every_mask_is_filled(network, settings):
    got = network.generate(
        prefix=[[1, 2], [3]],
        suffix=[4, 5, 6],
        num_return_sequences=2,
        refresh_interval=4,
        generator=seeded(0),
        **settings,
    )
    assert (got[:2, :2] == torch.tensor([1, 2])).all()
    assert (got[2:, :1] == 3).all()
    assert (got[:, -3:] == torch.tensor([4, 5, 6])).all()
    assert not (got == MASK).any()


def test_what_time_cuts_off_is_drawn_by_a_whole_evaluation(network, monkeypatch):
    whole = []
    forward = network.model.forward
    monkeypatch.setattr(
        network.model, "forward", lambda **inputs: whole.append(inputs["partial"] is None) or forward(**inputs)
    )
    clock = iter([0.0, 0.0, 0.0, 0.0, 10.0])
    monkeypatch.setattr("radd_hf.generation_radd.time.monotonic", lambda: next(clock))
    got = network.generate(method="first_hitting", max_time=5.0, refresh_interval=8, generator=seeded(0))
    assert whole == [True, False, False, True]
    assert not (got == MASK).any()


def test_a_row_that_ends_early_leaves_the_others_as_they_were(network):
    settings = {"method": "ordered", "refresh_interval": 4, "refresh_window": 1}

    def sample(rows: list[int], **stop) -> Tensor:
        return network.generate(
            num_return_sequences=len(rows), generator=[seeded(row) for row in rows], **settings, **stop
        )

    free = sample([0, 1, 2, 3, 4, 5])
    eos = int(free.flatten().bincount().argsort()[-2])  # a frequent token, that not every row has early
    network.config.eos_token_id = eos
    stopped = sample([0, 1, 2, 3, 4, 5], stop_on_eos=True)
    network.config.eos_token_id = None
    ends = (free == eos).int().argmax(dim=1).where((free == eos).any(dim=1), LENGTH)
    assert len(set(ends.tolist())) > 1, "at different events"
    assert ends.min() < LENGTH - 1, "early"
    for row, end in enumerate(ends.tolist()):
        assert torch.equal(stopped[row, : end + 1], free[row, : end + 1])


def test_an_event_between_refreshes_costs_the_positions_it_computes():
    network = tiny_model(VOCABULARY, 64)

    def flops(**settings) -> int:
        with FlopCounterMode(display=False) as counter:
            network.generate(length=64, method="ordered", **settings)
        return counter.get_total_flops()

    exact = flops()
    assert flops(refresh_interval=64, refresh_window=0) < exact / 12
    assert flops(refresh_interval=8, refresh_window=0) < exact / 5


def test_logits_processors_and_sampling_settings_work_along(network):
    got = network.generate(refresh_interval=4, top_k=1, temperature=0.5, num_return_sequences=2, method="ordered")
    assert torch.equal(got[0], got[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"refresh_interval": 0}, r"refresh_interval=0 must be an integer of at least 1"),
        ({"refresh_interval": 2.0}, r"refresh_interval=2\.0 must be an integer"),
        ({"refresh_interval": 2, "refresh_window": -1}, r"refresh_window=-1 must be an integer of at least 0"),
        ({"refresh_interval": 2, "use_cache": False}, r"refresh_interval=2 reuses .* use_cache=False"),
    ],
)
def test_settings_that_make_no_sense_are_refused(network, settings, message):
    with pytest.raises(ValueError, match=message):
        network.generate(**settings)


def test_an_attention_that_cannot_take_fewer_queries_than_keys_is_refused(network, monkeypatch):
    monkeypatch.setattr(network.config, "_attn_implementation_internal", "flex_attention")
    generator = seeded(0)
    with pytest.raises(ValueError, match="refresh_interval needs attn_implementation='sdpa' or 'eager'"):
        network.generate(refresh_interval=2, generator=generator)
    assert torch.equal(generator.get_state(), seeded(0).get_state()), "refused before anything is drawn"


def test_the_model_refuses_to_compute_positions_anew_without_a_cache(network, ids):
    positions = Positions(torch.zeros(3, 1).long())
    with pytest.raises(ValueError, match="a partial evaluation needs a cache"):
        network.model(input_ids=ids, output_positions=positions, partial=positions)


def test_a_saved_setting_is_used(network, tmp_path):
    RaddGenerationConfig(refresh_interval=3, refresh_window=1).save_pretrained(tmp_path)
    saved = RaddGenerationConfig.from_pretrained(tmp_path)
    by_config = network.generate(generation_config=saved, method="first_hitting", generator=seeded(0))
    by_keyword = network.generate(refresh_interval=3, refresh_window=1, method="first_hitting", generator=seeded(0))
    assert torch.equal(by_config, by_keyword)
