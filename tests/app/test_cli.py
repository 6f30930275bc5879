# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The command `radd`, run as a shell would, on a tiny model: what goes where, what it means, how it ends."""

import io
import json
import math
import os
import re
import runpy
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from radd_hf import RaddForMaskedLM, RaddGenerationConfig, settings_radd
from radd_hf.app import cli, generate
from radd_hf.hub import convert
from radd_hf.hub.facts import forward_flops
from radd_hf.jobs.batches import BATCH_TOKENS, BATCH_TOKENS_ON_A_GPU
from radd_hf.text_radd import encode_blanks
from radd_hf.version import __version__
from support.commands import Terminal, run_radd, save_model
from support.hostile import FOR_CARDS, FOR_TERMINALS
from support.paths import CHECKPOINT, GOLDEN, ROOT
from support.toys import random_model

LENGTH = 16
TEXT = "It is [MASK:5] truth, in [MASK] of"
AUSTEN = str(CHECKPOINT)


@pytest.fixture(scope="module")
def network() -> RaddForMaskedLM:
    return random_model(vocab_size=300, max_position_embeddings=LENGTH)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, network, tiny_tokenizer) -> str:
    return save_model(tmp_path_factory.mktemp("model"), network, tiny_tokenizer)


@pytest.fixture
def radd(folder, capsys, monkeypatch):
    """Runs `radd COMMAND MODEL ...` with the given standard input, by default a terminal's."""

    def run(command: str, *arguments: str, stdin: str | None = None, model: str | None = None):
        return run_radd([command, model or folder, *arguments], capsys, monkeypatch, stdin)

    return run


@pytest.fixture
def samples(radd):
    """The objects that `radd generate --json` writes."""

    def run(*arguments: str, **keywords) -> list[dict]:
        result = radd("generate", *arguments, "--json", "--seed", "3", **keywords)
        assert result.code == 0, result.err
        return [json.loads(line) for line in result.out.splitlines()]

    return run


@pytest.fixture
def asked(monkeypatch):
    """The arguments of the calls of `generate`, which goes on as it does."""
    calls, generate = [], RaddForMaskedLM.generate

    def record(self, input_ids, **keywords):
        calls.append({"input_ids": input_ids} | keywords)
        return generate(self, input_ids, **keywords)

    monkeypatch.setattr(RaddForMaskedLM, "generate", record)
    return calls


# ---------------------------------------------------------------------------------------------------------
# Texts
# ---------------------------------------------------------------------------------------------------------


def test_a_text_with_blanks_is_written_with_them_filled_and_nothing_else(radd, samples):
    result = radd("generate", TEXT, "--seed", "3")
    (sample,) = samples(TEXT)
    assert result.code == 0
    assert result.out == sample["text"] + "\n"
    assert sample["text"] == "It is{} truth, in{} of".format(*sample["fills"])


def test_given_text_is_printed_as_it_was_given(radd, samples):
    (sample,) = samples("A<|endoftext|>B [MASK:2]")
    assert sample["text"] == "A<|endoftext|>B" + sample["fills"][0]
    (sample,) = samples("--prefix", "See the <|mask|> here", "--length", "40")
    assert sample["text"].startswith("See the <|mask|> here")
    (sample,) = samples(r"\[Mask of Zorro] [MASK:2]")
    assert sample["text"] == "[Mask of Zorro]" + sample["fills"][0]
    assert radd("generate", "<|endoftext|> [MASK]", "--quiet").err == ""


def test_text_that_is_not_unicode_is_refused_with_its_place(radd):
    for arguments in (["A\udcff [MASK]"], ["--prefix", "A\udcff", "--length", "9"]):
        result = radd("generate", *arguments)
        assert result.code == 2
        assert "has the lone surrogate '\\udcff' at character 1" in result.err
    assert radd("generate", stdin="A\udcff [MASK]").code == 2


def test_an_object_tells_all_of_a_sample(samples, network, tiny_tokenizer):
    (sample,) = samples(TEXT, "--method", "ordered", "--steps", "3")
    canvas = torch.tensor(encode_blanks(TEXT, tiny_tokenizer, network.config.mask_token_id))
    ids, given = torch.tensor(sample["ids"]), canvas != network.config.mask_token_id
    assert torch.equal(ids[given], canvas[given])
    assert tiny_tokenizer.decode(sample["ids"], skip_special_tokens=True) == sample["text"]
    assert (sample["tokens"], sample["nfe"], sample["sample"], sample["seed"]) == (6, 3, 0, 3)
    assert sample["log_probability"] < 0 < sample["seconds"]


def test_the_log_probability_is_that_of_the_text_in_the_order_of_writing(samples, network, tiny_tokenizer):
    (sample,) = samples("It[MASK:2]", "--method", "ordered", "--temperature", "0.5")
    canvas, total = torch.tensor([encode_blanks("It[MASK:2]", tiny_tokenizer, network.config.mask_token_id)]), 0.0
    for position in (-2, -1):
        logits = network(canvas).logits[0, position]
        canvas[0, position] = sample["ids"][position]
        total += logits.log_softmax(-1)[sample["ids"][position]].item()
    assert sample["log_probability"] == pytest.approx(total, abs=1e-4)


def test_a_text_between_a_beginning_and_an_end_has_the_length_asked_for(samples, tiny_tokenizer):
    (sample,) = samples("--prefix", "It is", "--suffix", " truth", "--length", "14")
    assert len(sample["ids"]) == 14
    (fill,) = sample["fills"]
    assert sample["text"] == f"It is{fill} truth"


def test_without_a_text_the_whole_is_written_at_the_models_length(samples):
    (sample,) = samples()
    assert sample["tokens"] == len(sample["ids"]) == LENGTH


def test_a_sample_does_not_depend_on_how_many_are_asked_for_or_together(samples):
    three = samples(TEXT, "--number", "3")
    assert [sample["sample"] for sample in three] == [0, 1, 2]
    assert len({sample["text"] for sample in three}) == 3
    for other in (samples(TEXT, "-n", "3", "--batch-size", "2"), samples(TEXT, "-n", "2"), samples(TEXT, "--live")):
        for sample, same in zip(other, three, strict=False):
            assert sample["log_probability"] == pytest.approx(same["log_probability"], abs=1e-4)
            named = ("sample", "text", "fills", "ids", "tokens", "nfe")
            assert [sample[name] for name in named] == [same[name] for name in named]


def test_several_texts_stand_apart(radd):
    alone = [sample + "\n" for sample in radd("generate", TEXT, "-n", "2", "--seed", "3").out.split("\n\n")]
    assert len(alone) == 2


def test_without_a_seed_texts_differ_and_the_seed_used_is_named(radd):
    first, second = (radd("generate", "[MASK:12]") for _ in range(2))
    assert first.out != second.out
    seed = re.search(r"seed (\d+)", first.err)[1]
    assert radd("generate", "[MASK:12]", "--seed", seed).out == first.out


def test_every_flag_reaches_generate(radd, asked):
    flags = {
        "method": "ordered",
        "order": "backward",
        "steps": 4,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "refresh_interval": 2,
        "refresh_window": 1,
    }
    given = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    assert radd("generate", *given, TEXT, "--number", "2").code == 0  # flags and text in any order
    (call,) = asked
    assert call | flags == call
    assert call["num_return_sequences"] == 2
    assert radd("generate", TEXT).code == 0
    assert not set(flags) & set(asked[-1])  # what is not said, the model's configuration says


def test_the_model_may_choose_the_order(radd):
    result = radd("generate", TEXT, "--method", "ordered", "--order", "confidence", "--temperature", "0", "--json")
    assert result.code == 0
    fewer = radd("generate", TEXT, "--method", "ordered", "--entropy-bound", "1e6", "--temperature", "0", "--json")
    first, second = (json.loads(each.out)["nfe"] for each in (result, fewer))
    assert first > second == 1
    refused = radd("generate", TEXT, "--entropy-bound", "0.5", "--method", "tweedie")
    assert refused.code == 2
    assert "entropy_bound=0.5 is for method='ordered'" in refused.err


def test_the_model_computes_in_the_type_asked_for(radd, monkeypatch):
    seen, load = [], generate.load_model

    def note(args):
        model, tokenizer = load(args)
        seen.append((model.dtype, model.training))
        return model, tokenizer

    monkeypatch.setattr(generate, "load_model", note)
    assert radd("generate", TEXT, "--dtype", "bfloat16").code == radd("generate", TEXT).code == 0
    assert seen == [(torch.bfloat16, False), (torch.float32, False)]


def test_a_text_longer_than_the_model_knows_is_written_with_a_remark(radd):
    result = radd("generate", "[MASK:20]")
    assert result.code == 0
    assert "20 tokens are more than the 16 that the model was trained on." in result.err


def test_the_length_that_a_model_was_saved_with_holds_until_another_is_given(radd, network, tiny_tokenizer, tmp_path):
    network.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    RaddGenerationConfig(max_new_tokens=5).save_pretrained(tmp_path)
    given = len(tiny_tokenizer("It is")["input_ids"])
    for arguments, length in ([], given + 5), (["--length", "9"], 9):
        result = radd("generate", "--prefix", "It is", "--json", *arguments, model=str(tmp_path))
        assert len(json.loads(result.out)["ids"]) == length


# ---------------------------------------------------------------------------------------------------------
# Pipes
# ---------------------------------------------------------------------------------------------------------


def test_standard_input_is_the_text_or_the_part_that_a_dash_stands_for(samples):
    (argument,) = samples(TEXT)
    for arguments in ([], ["-"]):
        (piped,) = samples(*arguments, stdin=TEXT + "\n")
        assert piped["text"] == argument["text"]
    (piped,) = samples("--prefix", "-", "--suffix", " truth", stdin="It is\n")
    assert piped["text"] == samples("--prefix", "It is", "--suffix", " truth")[0]["text"]


def test_standard_input_is_left_alone_where_nothing_is_to_be_read(samples):
    assert len(samples("--length", "9", stdin=TEXT)[0]["ids"]) == 9
    assert samples("--prefix", "It", stdin=TEXT)[0]["text"].startswith("It")


def test_only_what_was_asked_for_goes_to_standard_output(radd, tmp_path):
    result = radd("generate", TEXT, "--seed", "3", "--live", "--picture", str(tmp_path / "text.html"))
    assert result.out.count("\n") == result.out.count("truth, in") == 1
    assert "NFE" in result.err
    assert "network evaluations, log-probability" in result.err
    quiet = radd("generate", TEXT, "--seed", "3", "--quiet")
    assert (quiet.out, quiet.err) == (result.out, "")


def test_a_reader_that_goes_away_ends_the_command_quietly():
    """The output is buffered, as it is in a pipe, so that the interpreter would try to write it again at its end."""
    write = "def write():\n    sys.stdin.read()\n    print('text')\n"
    code = f"import runpy, sys\n{write}sys.exit(runpy.run_path({cli.__file__!r})['_status_of'](write, debug=False))"
    pipe = subprocess.PIPE
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, env=buffered) as process:
        process.stdout.close()
        process.stdin.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


# ---------------------------------------------------------------------------------------------------------
# How it ends
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["no blank"], "TEXT='no blank' has no blank: write [MASK:12]"),
        (["[MASK:0]"], "a blank is written [MASK] for one token"),
        ([TEXT, "--length", "9"], "leave out --length"),
        ([TEXT, "--suffix", "x"], "leave out --suffix"),
        (["--prefix", "-", "--suffix", "-"], "cannot both be read from standard input"),
        (["--prefix", "It is", "--length", "1"], "leave nothing to generate in length=1"),
        ([TEXT, "--temperature", "-1"], "temperature=-1.0 must be a number"),
        ([TEXT, "--steps", "0"], "steps=0 must be an integer of at least 1"),
        ([TEXT, "--order", "random", "--method", "tweedie"], "order='random' is for method='ordered'"),
        ([TEXT, "--method", "first_hitting", "--steps", "3"], "leave steps out"),
        ([TEXT, "--number", "0"], "--number 0 must be at least 1"),
        ([TEXT, "--batch-size", "0"], "--batch-size 0 must be at least 1"),
        ([TEXT, "--batch-size", "999999999"], "--batch-size 999999999 must be a number, and at most 4096"),
        ([TEXT, "--live", "--pause", "nan"], "--pause nan must be a number"),
        (["[MASK:65536]" * 9], "has blanks of 131072 tokens"),
        ([TEXT, "--pause", "1"], "pass --live, too"),
        ([TEXT, "--picture", "x.bmp"], "must end in .html or .gif or .png"),
        ([TEXT, "--order-map", "x.gif"], "must end in .png"),
        ([TEXT, "--device", "nowhere"], "device='nowhere' cannot be used"),
        ([TEXT, "--method", "magic"], "invalid choice: 'magic'"),
        ([TEXT, "more"], "unrecognized arguments: more"),
    ],
)
def test_a_command_line_at_fault_ends_with_status_2_and_says_why(radd, arguments, reason):
    result = radd("generate", *arguments)
    assert (result.code, result.out) == (2, "")
    assert reason in result.err.splitlines()[-1]


def test_no_more_is_read_of_an_endless_input_than_a_text_may_have(radd):
    result = radd("generate", stdin="a" * 2**22)
    assert result.code == 2
    assert "has 2097152 characters; it must have at most 1048576" in result.err


def test_an_empty_standard_input_is_a_fault(radd):
    result = radd("generate", stdin="")
    assert result.code == 2
    assert "standard input is empty: pass" in result.err


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("no-such-model", "Cannot find model='no-such-model': no such folder"),
        (str(ROOT / "tests"), "is a folder without a config.json"),
        (str(GOLDEN / "hub"), "cannot be loaded: the folder has no tokenizer. Pass --tokenizer.\n"),
    ],
)
def test_what_cannot_be_done_ends_with_status_1_and_one_line(radd, model, reason):
    result = radd("generate", TEXT, model=model)
    assert (result.code, result.out) == (1, "")
    assert result.err.count("\n") == 1
    assert result.err.startswith("radd: error: ")
    assert reason in result.err


def test_a_model_of_another_kind_is_named(radd, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    for command in (["generate", TEXT], ["info"]):
        result = radd(*command, model=str(tmp_path))
        assert result.code == 1
        assert "is a model of type 'gpt2', not 'radd'" in result.err


def test_a_failure_that_nobody_foresaw_shows_its_traceback_only_with_debug(radd, monkeypatch):
    def fail(*arguments, **keywords):
        raise RuntimeError("out of\nmemory")

    monkeypatch.setattr(RaddForMaskedLM, "generate", fail)
    result = radd("generate", TEXT)
    assert result.code == 1
    assert result.err == "radd: error: RuntimeError: out of memory (--debug shows where)\n"
    with pytest.raises(RuntimeError, match="out of\nmemory"):
        radd("generate", TEXT, "--debug")


def test_a_network_without_finite_scores_is_a_failure_not_a_fault(radd, monkeypatch):
    monkeypatch.setattr(
        RaddForMaskedLM, "compute_logits", lambda self, hidden: torch.full((len(hidden), 300), torch.nan)
    )
    result = radd("generate", TEXT)
    assert result.code == 1
    assert "the network left a position without a finite score" in result.err


def test_an_interrupt_while_modules_are_loaded_ends_with_status_130_and_one_line(capsys, monkeypatch):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "train", interrupted)
    monkeypatch.setattr(sys, "argv", ["radd", "train"])
    with pytest.raises(SystemExit, match="130"):
        cli.program()
    assert capsys.readouterr().err == "radd: interrupted\n"


def test_an_interrupt_ends_with_status_130(radd, monkeypatch):
    def interrupt(*arguments, **keywords):
        raise KeyboardInterrupt

    monkeypatch.setattr(RaddForMaskedLM, "generate", interrupt)
    result = radd("generate", TEXT)
    assert (result.code, result.err) == (130, "radd: interrupted\n")


# ---------------------------------------------------------------------------------------------------------
# Live
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch):
    """Standard error then counts as one, of 40 columns and 8 lines."""
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm-256color", "COLUMNS": "40", "LINES": "8"}.items():
        monkeypatch.setenv(name, value)
    # `datasets` leaves another dictionary as os.environ behind where it has started processes.
    monkeypatch.setattr("rich.console.Console._environ", os.environ)


def test_a_terminal_shows_each_event_with_the_newest_tokens_marked(radd, terminal):
    result = radd("generate", TEXT, "--seed", "3", "--live", "--pause", "0.001", "--method", "ordered")
    assert result.code == 0
    frames = result.err.split("NFE ")
    # The last one once more, where rich ends.
    assert [frame.split(" \u00b7 ")[0] for frame in frames[1:]] == ["0", "1", "2", "3", "4", "5", "6", "6"]
    assert frames[0].count(generate.LiveCanvas.MASK.strip()) == 6
    assert "1;30;103m" not in frames[0]  # nothing is new before the first event
    assert all("1;30;103m" in frame for frame in frames[1:-1])
    assert "6 of 6 tokens" in frames[-1]


def test_elsewhere_a_line_for_each_tenth_says_how_far_it_is(radd):
    result = radd("generate", "[MASK:40]", "--live", "--quiet", "--method", "ordered")
    lines = result.err.splitlines()
    assert [line.split(" \u00b7 ")[1] for line in lines] == [f"{count} of 40 tokens" for count in range(4, 41, 4)]
    assert all(re.fullmatch(r"NFE \d+ \u00b7 \d+ of 40 tokens \u00b7 [\d,]+ tokens/s", line) for line in lines)


class StandIn:
    """A tokenizer that decodes by a function of its own."""

    all_special_ids = ()

    def __init__(self, decode):
        self.text_of = decode

    def __call__(self, texts, **settings):
        return {"input_ids": [[1]] * len(texts)}

    def decode(self, ids, **settings):
        return "".join(map(self.text_of, ids))


def test_a_canvas_taller_than_the_terminal_shows_where_it_is_written(terminal, capsys):
    tokenizer = StandIn(lambda token: " token")
    canvas = [9] * 90
    with generate.LiveCanvas(canvas, tokenizer, mask_token_id=9, pause=0.001, shown=True) as live:
        for position in (0, 60, 89, 30, 1):
            canvas = [1 if index == position else token for index, token in enumerate(canvas)]
            capsys.readouterr()
            live.put_draft(torch.tensor([canvas]))
            frame = capsys.readouterr().err
            assert frame.count("1;30;103m token") == 1
            assert frame.count("\n") <= 8 - 1


def test_what_the_model_writes_cannot_command_the_terminal(terminal, capsys):
    tokenizer = StandIn(lambda token: "a" if token else "\x1b[2J\x07\x9b")
    with generate.LiveCanvas([9, 9], tokenizer, mask_token_id=9, pause=0.0, shown=True) as live:
        live.put_draft(torch.tensor([[0, 1]]))
    written = capsys.readouterr().err
    assert r"\u001b[2J\u0007\u009b" in written
    assert "\x1b[2J" not in written
    assert "\x07" not in written


@pytest.mark.parametrize("text", FOR_TERMINALS.values(), ids=FOR_TERMINALS)
def test_a_text_commands_no_terminal_and_is_as_it_was_written_elsewhere(text, monkeypatch, capsys):
    text = f"one\n\ttwo {text}"
    given = SimpleNamespace(fills=lambda *args, **settings: [text], filled=lambda fills: fills[0])
    one = torch.ones(1, 1)
    output = SimpleNamespace(sequences=one, reveal_step=one, num_function_evaluations=one[0], token_logprobs=one)

    def report(json: bool, stream: io.StringIO) -> str:
        monkeypatch.setattr(sys, "stdout", stream)
        args = SimpleNamespace(json=json, quiet=True, number=1, seed=0)
        generate._report(args, output, 0, 0, given, None, 0.0)
        return stream.getvalue()

    assert report(False, io.StringIO()) == text + "\n"
    assert all(line.isprintable() for line in report(False, Terminal()).replace("\t", "").split("\n"))
    line = report(True, Terminal())
    assert line.removesuffix("\n").isprintable()
    assert json.loads(line)["text"] == text


# ---------------------------------------------------------------------------------------------------------
# Pictures
# ---------------------------------------------------------------------------------------------------------


def test_pictures_are_of_the_first_text_and_the_map_of_all(radd, tmp_path, monkeypatch):
    drawn, plot = [], generate.plot_reveal_order
    monkeypatch.setattr(generate, "plot_reveal_order", lambda revealed: drawn.append(revealed) or plot(revealed))
    page, image, plan = (str(tmp_path / name) for name in ("text.html", "text.png", "plan.png"))
    flags = ["--picture", page, "--picture", image, "--order-map", plan]
    result = radd("generate", TEXT, "--seed", "3", "-n", "3", "--batch-size", "2", "--steps", "7", *flags)
    assert result.code == 0, result.err
    shown = re.search(r'<div class="radd-text">(.*?)</div>', (tmp_path / "text.html").read_text(), re.DOTALL)[1]
    first = result.out.split("\n\n")[0]
    assert re.sub(r"<i>.</i>|<[^>]+>", "", shown).split() == [*first.split()]
    assert "step 0 of 7" in (tmp_path / "text.html").read_text()
    assert drawn[0].shape[0] == 3
    assert (tmp_path / "text.png").stat().st_size > 1000 < (tmp_path / "plan.png").stat().st_size


# ---------------------------------------------------------------------------------------------------------
# radd info
# ---------------------------------------------------------------------------------------------------------


def test_info_tells_what_the_shipped_checkpoint_is(radd):
    facts = json.loads(radd("info", "--json", model=AUSTEN).out)
    evaluation = json.loads((CHECKPOINT / "evaluation.json").read_text())
    assert facts["parameters"] == 5_256_704
    assert (facts["layers"], facts["width"], facts["heads"], facts["length"]) == (4, 256, 4, 128)
    assert facts["noise"] == {"type": "loglinear", "eps": 0.001}
    assert facts["tokenizer"] == {"tokens": 4096, "mask": "<|mask|>", "end": "<|endoftext|>"}
    assert facts["training"]["loss_type"] == "k_DCE"
    assert facts["evaluation"]["bits_per_byte"] == evaluation["bits_per_byte"]
    assert (facts["source"], facts["training_step"]) == ("austen, a radd_hf training run", "6400")
    printed = radd("info", model=AUSTEN).out
    assert re.search(r"^parameters +5,256,704$", printed, re.MULTILINE)
    assert len(printed.splitlines()) == len(facts)


def test_info_counts_the_operations_of_an_evaluation(radd, network):
    facts = json.loads(radd("info", "--json").out)
    whole, one = (forward_flops(network.config, count, queries=count) for count in (LENGTH, 1))
    assert facts["gflops_per_evaluation"]["all_masked"] == pytest.approx((whole.layers + whole.head) / 1e9)
    assert facts["gflops_per_evaluation"]["one_masked"] == pytest.approx((one.layers + one.head) / 1e9)
    assert facts["parameters"] == network.num_parameters()
    assert facts["generation"] == "defaults"


def test_info_reads_the_authors_layout_too(radd, golden_model):
    facts = json.loads(radd("info", "--json", model=str(GOLDEN / "hub")).out)
    assert facts["layout"] == "the authors'"
    assert facts["parameters"] == golden_model.num_parameters()
    assert facts["tokenizer"].startswith("none beside the model")


def test_info_does_not_read_the_weights(radd, tmp_path, folder):
    (tmp_path / "config.json").write_text((CHECKPOINT / "config.json").read_text())
    assert radd("info", model=str(tmp_path)).code == 0


def test_info_says_which_file_is_damaged(radd, tmp_path):
    for content, reason in (("{", "config.json cannot be read"), ("[]", "config.json must hold an object")):
        (tmp_path / "config.json").write_text(content)
        result = radd("info", model=str(tmp_path))
        assert result.code == 1
        assert reason in result.err


@pytest.mark.parametrize("text", FOR_CARDS.values(), ids=FOR_CARDS)
def test_info_shows_what_files_say_in_its_own_rows_and_as_json(radd, tmp_path, text):
    (tmp_path / "training").mkdir()
    (tmp_path / "config.json").write_text((CHECKPOINT / "config.json").read_text())
    written = text.encode(errors="replace").decode()  # a README has no surrogates
    (tmp_path / "README.md").write_text(f"| Source | {written} |\n| Revision | 1{written} |\n", newline="")
    (tmp_path / "training/config.yaml").write_text(json.dumps({"dataset": text, "seed": [text]}))
    (tmp_path / "generation_config.json").write_text(json.dumps({"order": text}))
    (tmp_path / "evaluation.json").write_text(json.dumps({"dataset": text, "split": {text: 1}, "perplexity": math.inf}))
    facts = json.loads(radd("info", "--json", model=str(tmp_path)).out, parse_constant=pytest.fail)
    assert facts["training"] == {"dataset": text, "seed": [text]}
    assert facts["generation"] == {"order": text}
    assert facts["evaluation"] == {"dataset": text, "split": {text: 1}, "perplexity": None}
    lines = radd("info", model=str(tmp_path)).out.removesuffix("\n").split("\n")
    assert len(lines) == len(facts)
    assert all(line.isprintable() for line in lines)


# ---------------------------------------------------------------------------------------------------------
# The other commands, and the program itself
# ---------------------------------------------------------------------------------------------------------


def test_convert_is_the_module_of_that_name(radd, tmp_path):
    result = radd("convert", str(tmp_path / "mine"), model=str(GOLDEN / "hub"))
    assert result.code == 0
    assert (tmp_path / "mine" / "model.safetensors").is_file()
    assert radd("convert", str(tmp_path / "mine"), model=str(GOLDEN / "hub")).code == 1


def test_the_demo_runs_the_page_and_names_what_it_needs(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "radd_hf.app.web", raising=False)
    assert cli.main(["demo"]) == 1
    assert "the page needs gradio: pip install 'radd_hf[demo]'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", "--help"])
    assert ended.value.code == 0, "help needs no gradio"
    assert "--allowed-host" in capsys.readouterr().out
    page = SimpleNamespace(main=lambda arguments, model: print(arguments, model))
    monkeypatch.setitem(sys.modules, "radd_hf.app.web", page)
    assert cli.main(["demo", "--port", "7"]) == 0
    assert capsys.readouterr().out == f"['--port', '7'] {AUSTEN}\n"


def test_outside_a_checkout_the_demo_asks_for_a_model(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "radd_hf.app.web", SimpleNamespace(main=lambda arguments, model: None))
    monkeypatch.setattr(cli, "PACKAGE", tmp_path / "radd_hf")
    assert cli.main(["demo"]) == 2
    assert "radd demo --model NAME" in capsys.readouterr().err
    assert cli.main(["demo", "--model", "mine"]) == 0


def test_help_and_version_need_neither_torch_nor_transformers():
    """Through the console script, which so answers at once."""
    run = "import sys, radd_command\ntry: radd_command.main()\nexcept SystemExit as ended: code = ended.code\n"
    check = "heavy = {'torch', 'transformers', 'radd_hf'} & set(sys.modules)\nsys.exit(code or bool(heavy))"
    for arguments, expected in ((["generate", "--help"], "examples:"), (["--version"], __version__)):
        finished = subprocess.run(
            [sys.executable, "-c", run + check, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert finished.returncode == 0, finished.stderr
        assert expected in finished.stdout


def test_the_package_run_as_a_module_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["radd_hf", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("radd_hf", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"radd_hf {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["bogus"], ["generate"]])
def test_a_command_line_that_names_nothing_to_do_is_a_fault(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2


def test_the_settings_and_choices_are_those_of_the_library():
    assert cli.DTYPES == convert.DTYPES
    tokens = f"default {BATCH_TOKENS} on a CPU, {BATCH_TOKENS_ON_A_GPU} on a GPU"
    assert tokens in " ".join(cli._generate_parser().format_help().split())
    flags = vars(cli._generate_parser().parse_args(["m"]))
    assert flags.keys() >= settings_radd.TEXT_SETTINGS.keys()
    assert all(flags[name] is None for name in settings_radd.TEXT_SETTINGS), (
        "what is not given is the model's to decide"
    )
    for name, setting in settings_radd.TEXT_SETTINGS.items():
        assert cli.SETTINGS[name].choices == setting.choices


def test_the_examples_of_the_help_are_command_lines_that_are_understood():
    lines = re.findall(r"radd generate \S+ (.*)", cli.GENERATE_EXAMPLES)
    assert len(lines) == 7
    for line in lines:
        arguments = shlex.split(line.split(" > ")[0])
        cli._generate_parser().parse_intermixed_args([AUSTEN, *arguments])
