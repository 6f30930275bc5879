# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `radd profile`: what it prints and saves, and that nothing is half saved or late refused."""

import json
from pathlib import Path

import pytest

from radd_hf import RaddForMaskedLM, RaddGenerationConfig
from radd_hf.app import cli
from radd_hf.evaluation import profile
from radd_hf.information import information_profile
from radd_hf.noise_radd import GeometricNoise, LogLinearNoise, expected_evaluations
from support.runs import make_run
from support.texts import SENTENCES
from support.toys import random_model

LENGTH = 16
pytestmark = pytest.mark.filterwarnings("ignore:Unable to enable fault handler")  # pytest's stderr is no file


@pytest.fixture
def checkpoint(tmp_path, tiny_tokenizer) -> Path:
    """A tiny model with a setting of its own."""
    model = random_model(vocab_size=300, max_position_embeddings=LENGTH)
    model.generation_config = RaddGenerationConfig(temperature=0.5)
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def text(tmp_path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"{number}. {SENTENCES}" for number in range(12)))
    return path


def run(model, text, *flags, status: int = 0) -> None:
    assert cli.main(["profile", str(model), "--dataset", str(text), *map(str, flags)]) == status


def saved_in(folder: Path) -> dict:
    return json.loads((folder / "generation_config.json").read_text())


def test_the_profile_is_saved_beside_the_model_whose_other_settings_stay(checkpoint, text, capsys):
    before = saved_in(checkpoint)
    run(checkpoint, text, "--blocks", 12, "--passes", 8)
    after = saved_in(checkpoint)
    values = after.pop("information_profile")
    assert after == {name: value for name, value in before.items() if name != "information_profile"}
    assert len(values) == LENGTH
    assert values == sorted(values, reverse=True)
    printed = capsys.readouterr().out
    assert "12 blocks of 16 tokens, 8 masks each" in printed
    assert f"\n0{values[0]:>33.3f}  " in printed
    assert str(checkpoint / "generation_config.json") in printed
    model = RaddForMaskedLM.from_pretrained(checkpoint)
    output = model.generate(schedule="profile", steps=4, return_dict_in_generate=True)
    assert output.num_function_evaluations.tolist() == [4]


def test_the_profile_is_that_of_blocks_spread_over_the_text(checkpoint, text, tiny_tokenizer):
    run(checkpoint, text, "--blocks", 10, "--passes", 4, "--seed", 3)
    args = profile.parse_arguments(["--model", str(checkpoint), "--dataset", str(text), "--blocks", "10"])
    model = RaddForMaskedLM.from_pretrained(checkpoint)
    loaded = profile.load_text(args, model, tiny_tokenizer)
    whole = [block for block in loaded.blocks if len(block) == LENGTH]
    assert len(whole) == len(loaded.blocks) - 1 > 20
    chosen = [whole[index * len(whole) // 10] for index in range(10)]
    expected = information_profile(model, chosen, passes=4, seed=3).nats
    assert saved_in(checkpoint)["information_profile"] == pytest.approx(expected, abs=6e-5)


def test_another_folder_may_get_the_profile(checkpoint, text, tmp_path):
    before, other = saved_in(checkpoint), tmp_path / "other"
    other.mkdir()
    run(checkpoint, text, "--blocks", 12, "--passes", 4, "--output", other)
    assert saved_in(checkpoint) == before
    assert len(saved_in(other)["information_profile"]) == LENGTH
    assert saved_in(other)["temperature"] == 0.5  # those of the model, where the folder has none


def test_whoever_is_killed_leaves_the_old_settings_whole(checkpoint, text, monkeypatch):
    before = (checkpoint / "generation_config.json").read_bytes()

    def die(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    run(checkpoint, text, "--blocks", 12, "--passes", 4, status=130)
    assert (checkpoint / "generation_config.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--passes", "0"], "passes=0 must be at least 1"),
        (["--blocks", "1"], "blocks=1 must be at least 2"),
        (["--blocks", "2", "--passes", "3"], "passes=3 of 2 blocks are too few for 16 tokens: pass passes=16 or more"),
        (["--length", "100000"], "has 0 blocks of that length, but 2 are needed"),
        (["--output", "nowhere"], "output='nowhere' must be an existing folder"),
        (["--mixed_precision", "fp8"], "mixed_precision='fp8' must be one of"),
        (["--protocol", "other"], "protocol='other' must be one of"),
    ],
)
def test_what_cannot_be_estimated_is_refused_in_a_line_before_the_network_is_asked(
    checkpoint, text, flags, message, capsys, monkeypatch
):
    monkeypatch.setattr(RaddForMaskedLM, "forward", lambda *given, **named: pytest.fail("the network was evaluated"))
    before = saved_in(checkpoint)
    run(checkpoint, text, *flags, status=1)
    reason = capsys.readouterr().err
    assert message in reason
    assert reason.startswith("radd profile: error: ")
    assert saved_in(checkpoint) == before


def test_a_repository_needs_a_folder_for_its_profile(text, capsys):
    run("someone/model", text, status=1)
    assert "model='someone/model' is not a folder, so the profile cannot be saved there: pass output=FOLDER." in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("noise", [LogLinearNoise(), GeometricNoise()], ids=["loglinear", "geometric"])
@pytest.mark.parametrize("events", [1, 8, 32, 100])
def test_grids_are_compared_at_the_nearest_number_of_evaluations(noise, events):
    steps = profile.steps_for(noise, events, 128)
    off = {other: abs(expected_evaluations(noise, "tweedie", other, 128) - events) for other in range(1, 3 * steps)}
    assert off[steps] == min(off.values())


def test_groups_by_the_profile_lose_least_in_the_table():
    curve = [6.0 / (1 + visible / 20) for visible in range(128)]
    for events in (8, 32):
        nats = profile.divergences(curve, curve, events, LogLinearNoise())
        assert 0 < nats["profile"] < nats["balanced"] < nats["tweedie"]


def test_a_checkpoint_of_a_run_is_not_written_to(tmp_path, tiny_tokenizer):
    run = make_run(tmp_path / "run", {5: random_model(vocab_size=300, max_position_embeddings=16)}, tiny_tokenizer)
    with pytest.raises(ValueError, match=r"model='.*step_5' is a checkpoint of a training run, .*: pass output="):
        profile.main(["--model", str(run)])
    with pytest.raises(ValueError, match=r"output='.*step_5' is a checkpoint of a training run"):
        profile.main(["--model", str(run), "--output", str(run / "checkpoints" / "step_5")])
