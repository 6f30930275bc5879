"""RADD in the lm-evaluation-harness: the numbers are those of a sum by hand, and a local task runs end to end.

Where the harness is not installed all but the first are skipped; see `make lm-eval`.
"""

import importlib.util
import json
import math
import os
import subprocess
import sys

import pytest
import torch
import yaml
from transformers import AutoTokenizer

from radd_hf import RaddForMaskedLM
from radd_hf.data.documents import EOS_TOKEN, MASK_TOKEN
from radd_hf.likelihood import conditional_likelihood, estimate_likelihood
from radd_hf.randomness_radd import stream_seed
from support.launches import QUIET, command
from support.paths import GOLDEN, ROOT
from support.toys import random_model

HARNESS_IS_HERE = importlib.util.find_spec("lm_eval") is not None
if HARNESS_IS_HERE:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import CachingLM

    from radd_hf.evaluation.lm_eval import RaddLM
with_harness = pytest.mark.skipif(not HARNESS_IS_HERE, reason="see `make lm-eval`")

LENGTH = 24
CHOICES = [
    ("a single man must be in", " want"),
    ("a single man must be in", " want of a wife"),
    ("a single man ", "must be in want"),  # the space belongs to the continuation
    ("", "It is a truth"),
    ("of a wife.\n" * 12, "It is"),  # more than LENGTH tokens
]


@pytest.fixture
def model():
    return random_model(vocab_size=300, max_position_embeddings=LENGTH)


@pytest.fixture
def make_lm(model, tiny_tokenizer):
    def make(**settings):
        return RaddLM(model, tiny_tokenizer, **{"batch_size": 8} | settings)

    return make


def requests(kind: str, *arguments: tuple) -> list:
    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def loglikelihoods(lm, pairs, disable_tqdm=True):
    return lm.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=disable_tqdm)


def rolling(lm, *texts: str) -> list[float]:
    return lm.loglikelihood_rolling(requests("loglikelihood_rolling", *((text,) for text in texts)), disable_tqdm=True)


def generated(lm, *contexts: str, **gen_kwargs) -> list[str]:
    pairs = [(context, gen_kwargs) for context in contexts]
    return lm.generate_until(requests("generate_until", *pairs), disable_tqdm=True)


def by_hand(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The chain rule, a token at a time."""
    canvas = torch.tensor([context + [model.config.mask_token_id] * len(continuation)])
    total, greedy = 0.0, True
    for place, token in enumerate(continuation, start=len(context)):
        with torch.no_grad():
            logprobs = model(canvas).logits[0, place].double().log_softmax(-1)
        total += logprobs[token].item()
        greedy &= int(logprobs.argmax()) == token
        canvas[0, place] = token
    return total, greedy


def greedy_ids(model, context: list[int], count: int) -> list[int]:
    ids = list(context)
    for left in range(count, 0, -1):
        canvas = torch.tensor([ids + [model.config.mask_token_id] * left])
        with torch.no_grad():
            ids.append(int(model(canvas).logits[0, len(ids)].argmax()))
    return ids[len(context) :]


def parts(tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The ids of both, as the harness has them: space between them begins the continuation, EOS is an empty context."""
    ids = tokenizer(context.rstrip())["input_ids"]
    return ids or [tokenizer.eos_token_id], tokenizer(context + continuation)["input_ids"][len(ids) :]


def test_without_the_harness_the_import_says_which_extra_has_it(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "radd_hf.evaluation.lm_eval", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'radd_hf\[lm-eval\]'"):
        importlib.import_module("radd_hf.evaluation.lm_eval")


@with_harness
def test_the_loglikelihood_is_the_chain_rule_from_left_to_right(make_lm, model, tiny_tokenizer):
    found = loglikelihoods(make_lm(), CHOICES)
    for (context, continuation), (nats, greedy) in zip(CHOICES, found, strict=True):
        before, after = parts(tiny_tokenizer, context, continuation)
        before = before[-(LENGTH - len(after)) :]
        expected, likeliest = by_hand(model, before, after)
        assert nats == pytest.approx(expected, rel=1e-5)
        assert greedy is likeliest
        conditional = conditional_likelihood(model, [torch.tensor(after)], prefixes=[torch.tensor(before)])
        assert nats == pytest.approx(-conditional.item(), rel=1e-5)


@with_harness
@pytest.mark.parametrize("likelihood", ["ar_forward", "k_stratified", "ar_confidence"])
def test_neither_the_batch_nor_the_other_requests_change_an_answer(make_lm, likelihood):
    alone = [loglikelihoods(make_lm(likelihood=likelihood, batch_size=1), [pair])[0] for pair in CHOICES]
    together = loglikelihoods(make_lm(likelihood=likelihood, batch_size=32), CHOICES[::-1])[::-1]
    assert [greedy for _, greedy in together] == [greedy for _, greedy in alone]
    assert [nats for nats, _ in together] == pytest.approx([nats for nats, _ in alone], rel=1e-5)


@with_harness
def test_estimated_loglikelihoods_are_those_of_estimate_likelihood_with_masks_of_the_request(
    make_lm, model, tiny_tokenizer
):
    context, continuation = CHOICES[1]
    before, after = parts(tiny_tokenizer, context, continuation)
    scored = torch.arange(len(before + after)) >= len(before)
    expected = estimate_likelihood(
        model,
        [torch.tensor(before + after)],
        scored=[scored],
        passes=6,
        seed=stream_seed(3, "loglikelihood", context, continuation),
    )
    lm = make_lm(likelihood="k_stratified", passes=6, seed=3)
    assert loglikelihoods(lm, [CHOICES[1]])[0][0] == pytest.approx(-expected.nats_per_token * len(after), rel=1e-5)
    assert loglikelihoods(make_lm(likelihood="k_stratified", passes=6), [CHOICES[1]]) != loglikelihoods(
        lm, [CHOICES[1]]
    )


@with_harness
@pytest.mark.parametrize("order", ["confidence", "margin", "entropy"])
def test_the_loglikelihood_may_be_exact_in_an_order_that_the_model_chooses(make_lm, model, tiny_tokenizer, order):
    found = loglikelihoods(make_lm(likelihood=f"ar_{order}"), CHOICES[:3])
    for (context, continuation), (nats, _) in zip(CHOICES, found, strict=False):
        before, after = parts(tiny_tokenizer, context, continuation)
        expected = conditional_likelihood(model, [torch.tensor(after)], prefixes=[torch.tensor(before)], order=order)
        assert nats == pytest.approx(-expected.item(), rel=1e-5)


@with_harness
@pytest.mark.parametrize("likelihood", ["ar_forward", "k_stratified"])
def test_greedy_is_what_the_likeliest_tokens_from_left_to_right_give_and_nothing_else(make_lm, model, likelihood):
    context, count = [5, 9, 17], 5
    continuation = greedy_ids(model, context, count)
    others = [
        [*continuation[:place], (continuation[place] + 1) % 299, *continuation[place + 1 :]] for place in range(count)
    ]
    asked = [(("", ""), context, ids) for ids in [continuation, *others, continuation[:1]]]
    flags = [flag for _, flag in make_lm(likelihood=likelihood)._loglikelihood_tokens(asked, disable_tqdm=True)]
    assert flags[: count + 1] == [True] + [False] * count
    assert flags[-1] is (greedy_ids(model, context, 1) == continuation[:1]), "a shorter canvas is another question"


@with_harness
@pytest.mark.parametrize("batch_size", [1, 8])
def test_a_canvas_that_several_answers_share_is_computed_once(make_lm, model, batch_size):
    rows = []
    model.register_forward_hook(lambda *arguments: rows.append(len(arguments[-1].logits)))
    asked = [(("", ""), [5, 9, 17], [token]) for token in (3, 4, 5, 6)] + [(("", ""), [5, 9], [17, 8])]
    answers = make_lm(batch_size=batch_size)._loglikelihood_tokens(asked, disable_tqdm=True)
    assert sum(rows) == 2, "5, 9, 17 and a mask for five of them, 5, 9 and two masks"
    for (_, context, continuation), answer in zip(asked, answers, strict=True):
        assert answer == pytest.approx(by_hand(model, context, continuation), rel=1e-5)


@with_harness
def test_a_long_context_loses_its_beginning_and_a_continuation_nothing(make_lm, model):
    context, continuation = list(range(1, 40)), list(range(50, 50 + LENGTH - 2))
    lm = make_lm()
    nats, _ = lm._loglikelihood_tokens([(("", ""), context, continuation)], disable_tqdm=True)[0]
    assert nats == pytest.approx(by_hand(model, context[-2:], continuation)[0], rel=1e-5)
    full = list(range(50, 50 + LENGTH))
    nats, _ = lm._loglikelihood_tokens([(("", ""), context, full)], disable_tqdm=True)[0]
    assert nats == pytest.approx(by_hand(model, [], full)[0], rel=1e-5)
    with pytest.raises(ValueError, match=f"has {LENGTH + 1} tokens, more than max_length={LENGTH}"):
        lm._loglikelihood_tokens([(("", "x"), context, [*full, 7])], disable_tqdm=True)
    assert make_lm(max_length=LENGTH + 1)._loglikelihood_tokens([(("", "x"), context, [*full, 7])], disable_tqdm=True)


@with_harness
def test_a_continuation_without_a_token_is_refused(make_lm):
    with pytest.raises(ValueError, match=r"continuation='' adds no token to its context, which ends with 'a man'"):
        loglikelihoods(make_lm(), [("a man", "")])


@with_harness
def test_what_spells_a_special_token_is_its_characters_but_for_that_of_a_chat_template(
    make_lm, tiny_tokenizer, monkeypatch
):
    lm, text = make_lm(), f"a{EOS_TOKEN}man"
    assert tiny_tokenizer.decode(lm.tok_encode(text)) == text
    assert tiny_tokenizer.eos_token_id not in lm.tok_encode(text)
    assert math.isfinite(loglikelihoods(lm, [("a man", MASK_TOKEN)])[0][0])
    assert make_lm(special_tokens_in_text=True).tok_encode(text) == tiny_tokenizer(text)["input_ids"]
    monkeypatch.setattr(tiny_tokenizer, "chat_template", "{{ messages[0]['content'] }}" + EOS_TOKEN)
    templated = lm.apply_chat_template([{"role": "user", "content": "a man"}])
    assert lm.tok_encode(templated)[-1] == tiny_tokenizer.eos_token_id
    with pytest.raises(ValueError, match=r"request='a <\|mask\|>' spells the mask"):
        lm.tok_encode(f"a {MASK_TOKEN}")


TEXTS = ["It is a truth universally acknowledged, that a single man must be in want of a wife.\n" * 4, "a wife", ""]


def windows(tokenizer, text: str) -> list[tuple[list[int], int]]:
    """Blocks of LENGTH ids and how many of their last are new: after EOS, or after the block before."""
    ids = [tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]
    ends = range(min(LENGTH, len(ids)), len(ids) + LENGTH - 1, LENGTH - 1) if len(ids) > 1 else []
    blocks, done = [], 1
    for end in ends:
        end = min(end, len(ids))
        blocks.append((ids[max(end - LENGTH, 0) : end], end - done))
        done = end
    return blocks


@with_harness
def test_the_rolling_loglikelihood_counts_every_token_once_by_estimate_likelihood(make_lm, model, tiny_tokenizer):
    lm = make_lm(passes=4, seed=5)
    found = rolling(lm, *TEXTS)
    for text, nats in zip(TEXTS, found, strict=True):
        blocks = windows(tiny_tokenizer, text)
        count = len(tiny_tokenizer(text)["input_ids"])
        assert sum(new for _, new in blocks) == count
        if not blocks:
            assert nats == 0
            continue
        expected = estimate_likelihood(
            model,
            [torch.tensor(ids) for ids, _ in blocks],
            scored=[torch.arange(len(ids)) >= len(ids) - new for ids, new in blocks],
            passes=4,
            seed=stream_seed(5, "loglikelihood_rolling", text),
        )
        assert expected.n_tokens == count
        assert nats == pytest.approx(-expected.nats_per_token * count, rel=1e-5)
    assert len(windows(tiny_tokenizer, TEXTS[0])) > 2
    assert rolling(make_lm(passes=4, seed=5, batch_size=3), *TEXTS[::-1])[::-1] == pytest.approx(found, rel=1e-5)


@with_harness
def test_the_rolling_loglikelihood_from_left_to_right_is_exact(make_lm, model, tiny_tokenizer):
    lm = make_lm(rolling="ar_forward")
    long, short, _ = rolling(lm, *TEXTS)
    blocks = windows(tiny_tokenizer, TEXTS[0])
    by_blocks = [by_hand(model, ids[: len(ids) - new], ids[len(ids) - new :])[0] for ids, new in blocks]
    assert long == pytest.approx(sum(by_blocks), rel=1e-5)
    assert short == pytest.approx(loglikelihoods(lm, [("", TEXTS[1])])[0][0], rel=1e-5)


@with_harness
def test_generated_text_stops_at_the_first_of_the_strings_and_at_eos(make_lm, tiny_tokenizer):
    lm = make_lm()
    text = generated(lm, "a single man", do_sample=True, max_gen_toks=16, until=[])[0]
    late, early = text[8:11], text[3:6]
    assert (text.find(late), text.find(early)) == (8, 3)
    stopped = generated(lm, "a single man", do_sample=True, max_gen_toks=16, until=[late, "", early])[0]
    assert stopped == text[:3]
    assert generated(lm, "a single man", do_sample=True, max_gen_toks=16, until=early)[0] == text[: text.find(early)]
    ids = tiny_tokenizer(" want of")["input_ids"]
    assert lm._text_until([*ids, tiny_tokenizer.eos_token_id, *ids], []) == " want of"
    assert lm._text_until(ids, ["of", "an"]) == " w"


@with_harness
def test_generated_text_belongs_to_the_seed_and_the_request_alone(make_lm):
    contexts = ["a single man", "want of a wife", "It is", "a single man", ""]
    settings = {"temperature": 1.0, "do_sample": True, "max_gen_toks": 8, "until": ["\n"]}
    texts = generated(make_lm(seed=1), *contexts, **settings)
    assert texts[0] != texts[3], "a request that comes twice is drawn twice"
    assert generated(make_lm(seed=1, batch_size=1), *contexts[::-1], **settings)[::-1] == [
        texts[3],
        *texts[1:3],
        texts[0],
        texts[4],
    ]
    assert generated(make_lm(seed=1), contexts[2], **settings) == [texts[2]]
    assert generated(make_lm(seed=2), *contexts, **settings) != texts
    other = {**settings, "max_gen_toks": 5, "temperature": 2.0}
    both = requests("generate_until", (contexts[2], settings), (contexts[2], other))
    assert make_lm(seed=1).generate_until(both, disable_tqdm=True) == [
        texts[2],
        *generated(make_lm(seed=1), contexts[2], **other),
    ]


@with_harness
def test_greedy_text_in_order_is_what_the_loglikelihood_calls_greedy(make_lm, model, tiny_tokenizer):
    lm = make_lm(method="ordered", max_gen_toks=6)
    context = tiny_tokenizer("a single man")["input_ids"]
    ids = greedy_ids(model, context, 6)
    assert lm._loglikelihood_tokens([(("", ""), context, ids)], disable_tqdm=True)[0][1]
    expected = lm._text_until(ids, [])
    for greedy in ({}, {"temperature": 0}, {"do_sample": False}, {"do_sample": False, "temperature": 1.0}):
        assert generated(lm, "a single man", **greedy) == [expected]
    assert generated(make_lm(), "a single man", method="ordered", max_gen_toks=6) == [expected]
    assert generated(lm, "a single man", temperature=3.0) != [expected]
    assert generated(lm, "a single man", do_sample=True) != [expected]


@with_harness
def test_a_request_for_text_gives_its_settings_to_generate_and_keeps_the_end_of_a_long_context(
    make_lm, model, tiny_tokenizer, monkeypatch
):
    calls = []
    generate = type(model).generate
    monkeypatch.setattr(
        type(model), "generate", lambda self, **settings: calls.append(settings) or generate(self, **settings)
    )
    context = CHOICES[-1][0]
    lm = make_lm(steps=5)
    generated(lm, context, max_gen_toks=7, do_sample=True, temperature=0.5, top_k=9, num_beams=1)
    generated(lm, "", max_new_tokens=3, steps=2)
    generated(lm, "")
    chosen = {"method": "ordered", "order": "entropy", "entropy_bound": 0.5}
    generated(make_lm(), context, **chosen)
    long, empty, default, adaptive = calls
    assert adaptive | chosen == adaptive
    assert long["prefix"] == [tiny_tokenizer(context)["input_ids"][-(LENGTH - 7) :]]
    assert (long["length"], long["steps"], long["temperature"], long["top_k"]) == (LENGTH, 5, 0.5, 9)
    assert long["stop_on_eos"], "what is drawn after it is of no use"
    assert empty["prefix"] == [[tiny_tokenizer.eos_token_id]]
    assert (empty["length"], empty["steps"], empty["temperature"]) == (4, 2, 0)
    assert default["length"] == 1 + LENGTH // 2


@with_harness
@pytest.mark.parametrize(
    ("gen_kwargs", "message"),
    [
        ({"max_gen_toks": LENGTH}, f"max_gen_toks={LENGTH} must be at least 1 and less than max_length={LENGTH}"),
        ({"max_gen_toks": 0}, "max_gen_toks=0"),
        ({"num_beams": 4}, "num_beams=4"),
        ({"repetition_penalty": 1.1, "length": 3}, r"\['length', 'repetition_penalty'\]"),
        ({"temperature": -1.0, "do_sample": True}, "temperature=-1.0"),
    ],
)
def test_generation_settings_that_have_no_meaning_here_are_refused(make_lm, gen_kwargs, message):
    with pytest.raises(ValueError, match=message):
        generated(make_lm(), "a man", **gen_kwargs)


@with_harness
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": "forward"}, "likelihood='forward' must be one of"),
        ({"rolling": "exact"}, "rolling='exact' must be one of"),
        ({"passes": 3}, "passes=3"),
        ({"batch_size": "auto"}, "batch_size='auto' must be a number of rows"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"dtype": "float33"}, "dtype='float33'"),
        ({"max_length": 1}, "max_length=1 must be at least 2"),
    ],
)
def test_model_arguments_that_do_not_fit_are_refused(make_lm, settings, message):
    with pytest.raises(ValueError, match=message):
        make_lm(**settings)


@with_harness
def test_a_folder_loads_and_a_tokenizer_that_is_missing_or_another_models_is_refused(
    model, tiny_tokenizer, tmp_path, monkeypatch
):
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match=r"cannot be loaded: .* Pass tokenizer="):
        RaddLM(str(tmp_path / "model"))
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    # The harness's flags have defaults of their own, the device that of a machine with CUDA.
    flags = {"batch_size": 1, "device": "cuda:0", "max_batch_size": None}
    arguments = {"pretrained": str(tmp_path / "model"), "batch_size": 4, "dtype": "bfloat16", "revision": 7}
    revisions = []
    for kind in (RaddForMaskedLM, AutoTokenizer):
        load = kind.from_pretrained
        monkeypatch.setattr(
            kind,
            "from_pretrained",
            lambda *given, load=load, **named: revisions.append(named["revision"]) or load(*given, **named),
        )
    lm = RaddLM.create_from_arg_obj(arguments, flags)
    assert revisions == ["7", "7"]
    monkeypatch.undo()
    assert (lm.batch_size, lm.max_length, lm.model.dtype) == (4, LENGTH, torch.bfloat16)
    assert lm.device.type == (torch.accelerator.current_accelerator() or torch.device("cpu")).type
    assert (lm.rank, lm.world_size) == (0, 1)
    assert not lm.model.training
    with pytest.raises(ValueError, match="has ids up to 299, and the model has 97 tokens: it belongs to another model"):
        RaddLM(str(GOLDEN / "hub"), tokenizer=str(tmp_path / "model"))


@with_harness
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("loglikelihood", CHOICES[:3]),
        ("loglikelihood_rolling", [(text,) for text in TEXTS[:2]]),
        ("generate_until", [(context, {"max_gen_toks": 4}) for context in ("It is", "a man", "must be in")]),
    ],
)
def test_an_evaluation_that_broke_off_finds_its_answers_in_the_harness_cache(make_lm, model, tmp_path, kind, arguments):
    lm, forward, calls = make_lm(batch_size=1), model.model.forward, []
    expected = getattr(lm, kind)(requests(kind, *arguments))

    def counted(*positional, **keywords):
        calls.append(keywords)
        if len(calls) == breaking:
            raise KeyboardInterrupt
        return forward(*positional, **keywords)

    model.model.forward, breaking = counted, 0
    getattr(lm, kind)(requests(kind, *arguments))
    breaking = in_all = len(calls)  # in the last forward
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        getattr(CachingLM(lm, str(tmp_path / "cache.db")), kind)(requests(kind, *arguments))
    calls.clear()
    assert getattr(CachingLM(lm, str(tmp_path / "cache.db")), kind)(requests(kind, *arguments)) == expected
    assert 0 < len(calls) < in_all


@with_harness
def test_a_chat_is_written_by_the_tokenizers_template_if_it_has_one(make_lm, tiny_tokenizer, monkeypatch):
    chat = [{"role": "user", "content": "Is it a truth?"}]
    lm = make_lm()
    with pytest.raises(ValueError, match="has no chat template"):
        lm.apply_chat_template(chat)
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    template += "{% if add_generation_prompt %}<a>{% endif %}"
    monkeypatch.setattr(tiny_tokenizer, "chat_template", template)
    assert lm.apply_chat_template(chat) == "<user>Is it a truth?<a>"
    assert lm.apply_chat_template(chat, add_generation_prompt=False) == "<user>Is it a truth?"


TASKS = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    },
    "last_word": {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    },
    "writing": {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    },
}
DOCUMENTS = [
    {"question": "a single man must be", "choices": [" in want", " a wife", " it"], "answer": 1, "text": TEXTS[0]},
    {"question": "It is a truth", "choices": [" universally", " a man"], "answer": 0, "text": "of a wife.\n"},
    {"question": "a man", "choices": [" must be", " is a wife"], "answer": 0, "text": "It is"},
]


@pytest.fixture
def local_tasks(tmp_path):
    """Writes the tasks and their documents to a folder."""
    (tmp_path / "tasks").mkdir()
    documents = tmp_path / "documents.jsonl"
    documents.write_text("".join(json.dumps(document) + "\n" for document in DOCUMENTS))
    for name, task in TASKS.items():
        source = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(documents)}}}
        whole = {"task": name, "test_split": "test", "metadata": {"version": 1.0}} | source | task
        (tmp_path / "tasks" / f"{name}.yaml").write_text(yaml.safe_dump(whole))
    return tmp_path / "tasks"


@with_harness
def test_local_tasks_run_end_to_end_and_two_processes_find_what_one_does(
    model, tiny_tokenizer, make_lm, local_tasks, tmp_path
):
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    results, samples = {}, {}
    for processes in (1, 2):
        output = tmp_path / f"by_{processes}"
        run = ["--model", "radd", "--model_args", f"pretrained={tmp_path / 'model'},passes=4,seed=7,batch_size=8"]
        run += ["--include_path", str(local_tasks), "--tasks", ",".join(TASKS), "--device", "cpu"]
        run += ["--output_path", str(output), "--log_samples"]
        done = subprocess.run(
            command(processes, "-m", "radd_hf.evaluation.lm_eval", *run),
            cwd=tmp_path,
            env=QUIET | {"PYTHONPATH": paths},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert "bits_per_byte" in done.stdout
        (found,) = output.rglob("results_*.json")
        results[processes] = json.loads(found.read_text())
        for task in TASKS:
            (found,) = output.rglob(f"samples_{task}_*.jsonl")
            rows = sorted(map(json.loads, found.read_text().splitlines()), key=lambda row: row["doc_id"])
            samples[processes, task] = [row["resps"] for row in rows]

    lm = make_lm(passes=4, seed=7)
    pairs = [(document["question"], choice) for document in DOCUMENTS for choice in document["choices"]]
    nats = dict(zip(pairs, loglikelihoods(lm, pairs), strict=True))
    right = [
        max(document["choices"], key=lambda choice, question=document["question"]: nats[question, choice][0])
        == document["choices"][document["answer"]]
        for document in DOCUMENTS
    ]
    firsts = [nats[document["question"], document["choices"][0]][0] for document in DOCUMENTS]
    texts = [document["text"] for document in DOCUMENTS]
    bits = -sum(rolling(lm, *texts)) / sum(len(text.encode()) for text in texts) / math.log(2)
    for processes in (1, 2):
        found = results[processes]["results"]
        assert found["choice"]["acc,none"] == pytest.approx(sum(right) / len(right))
        assert found["last_word"]["perplexity,none"] == pytest.approx(math.exp(-sum(firsts) / len(firsts)), rel=1e-4)
        assert found["text"]["bits_per_byte,none"] == pytest.approx(bits, rel=1e-5)
        assert results[processes]["config"]["likelihood"] == "ar_forward"
    questions = [document["question"] for document in DOCUMENTS]
    settings = TASKS["writing"]["generation_kwargs"]
    expected = generated(lm, *questions, **settings)
    for processes in (1, 2):
        assert [responses[0][0] for responses in samples[processes, "writing"]] == expected
    assert EOS_TOKEN not in "".join(expected)
