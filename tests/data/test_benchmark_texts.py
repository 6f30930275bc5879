"""Texts of zero-shot perplexity: every source in its layout, every rule on an example, both protocols to the block."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset

from radd_hf.data import benchmark_texts, detokenizers
from radd_hf.data.benchmark_texts import EVALUATION_SETS, articles, load_evaluation_text
from radd_hf.data.blocks import Blocks
from radd_hf.data.detokenizers import detokenize_lambada, detokenize_lm1b, detokenize_ptb, detokenize_wikitext
from radd_hf.data.documents import load_documents, tokenize
from support.tokenizer_kinds import KINDS

# As the lines of WikiText are: empty ones around headings, the others paragraphs; a formula that looks like a title.
WIKITEXT = [
    "",
    " = Kettle = \n",
    "",
    " A kettle boils 1 @,@ 000 cups . \n",
    " = 1 / s and a nominal k = \n",
    " It is round ( mostly ) . \n",
    "",
    " = = Use = = \n",
    "",
    " Tea 's made with it . \n",
    "",
    " = Pot = \n",
    "",
    " A pot is a well @-@ known thing . \n",
]
ARTICLES = [
    "= Kettle =\n\nA kettle boils 1,000 cups.\n= 1 / s and a nominal k =\nIt is round (mostly).\n\n== Use ==\n\n"
    "Tea's made with it.",
    "= Pot =\n\nA pot is a well-known thing.",
]


def parquet(path: Path, texts: list, column: str = "text") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_dict({column: texts}).to_parquet(path)


def card(folder: Path, configs: dict[str, dict[str, str]]) -> None:
    """The head of a README that tells `load_dataset` which files are which split."""
    entries = [
        {"config_name": name, "data_files": [{"split": split, "path": path} for split, path in files.items()]}
        for name, files in configs.items()
    ]
    (folder / "README.md").write_text("---\n" + yaml.safe_dump({"configs": entries}) + "---\n")


@pytest.fixture
def local(tmp_path, monkeypatch):
    """Lays texts out as the source of a data set does, and has it read from there; split to texts."""

    def lay_out(name: str, texts: dict[str, list]) -> Path:
        known = EVALUATION_SETS[name]
        if known.files is not None:
            for split, rows in texts.items():
                parquet(tmp_path / known.files.format(split=split).replace("*", "0000"), rows, known.column)
        elif known.source == "Skylion007/openwebtext":
            half = len(texts["train"]) // 2
            parquet(tmp_path / "plain_text/train-00000-of-00002.parquet", texts["train"][:half])
            parquet(tmp_path / "plain_text/train-00001-of-00002.parquet", texts["train"][half:])
            card(tmp_path, {"plain_text": {"train": "plain_text/train-*"}})
            known = replace(known, splits={"train": "train[:-3]", "validation": "train[-3:]"})
        else:  # the repository's other configurations hold something else
            configs = dict.fromkeys(["wikitext-103-raw-v1", "wikitext-2-raw-v1", "en", "default", known.config])
            for config in configs:
                for split, rows in texts.items():
                    rows = rows if config == known.config else [f"other than {name}"]
                    parquet(tmp_path / f"{config}/{split}-00000-of-00001.parquet", rows)
            card(tmp_path, {config: {split: f"{config}/{split}-*" for split in texts} for config in configs})
        monkeypatch.setitem(EVALUATION_SETS, name, replace(known, source=str(tmp_path)))
        return tmp_path

    return lay_out


@pytest.fixture
def load(tiny_tokenizer):
    """`load_evaluation_text` with the tiny tokenizer and short blocks."""
    return lambda dataset, **settings: load_evaluation_text(dataset, tiny_tokenizer, **({"length": 16} | settings))


def ids_of(texts: list[str], tokenizer) -> list[int]:
    return [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]


def short_rows(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return [
        " ".join(draw.choices(["a", "wife", "must", "want", "of", "truth"], k=draw.randrange(6))) for _ in range(count)
    ]


@pytest.mark.parametrize(
    ("spaced", "text"),
    [
        ("the cats ' tails", "the cats' tails"),
        ("a well @-@ known 1 @,@ 000 @.@ 5", "a well-known 1,000.5"),
        ("first : a ; b . c ! d ? e , f", "first: a; b. c! d? e, f"),
        ("( here ) [ there ] { both }", "(here) [there] {both}"),
        ("he said \" yes \" and ' no '", "he said \"yes\" and 'no'"),
        (" = Title = \n", " = Title =\n"),
        (" = = Part = = \n", " == Part ==\n"),
        (" = = = Part = = = \n", " === Part ===\n"),
        (" = = = = Part = = = = \n", " ==== Part ====\n"),
        ("20 ° C", "20°C"),
        ("one \n two", "one\ntwo"),
        ("the N th", "the 1 th"),
        ("it 's", "it's"),
        ("", ""),
    ],
)
def test_the_words_of_wikitext_become_text(spaced, text):
    assert detokenize_wikitext(spaced) == text


@pytest.mark.parametrize(
    ("spaced", "text"),
    [
        ("mr. vinken 's", "mr. vinken's"),
        ("the years ' end", "the years' end"),
        ("does n't", "doesn't"),
        ("one \n two", "one\ntwo"),
        ("and\\/or", "and/or"),
        ("from N N N to N", "from 1 1 1 to N"),
        ("$ N million", "$1 million"),
        ("# N a", "#1 a"),
        ("the <unk> of", "the ? of"),
    ],
)
def test_the_words_of_the_penn_treebank_become_text(spaced, text):
    assert detokenize_ptb(spaced) == text


@pytest.mark.parametrize(
    ("spaced", "text"),
    [
        ("see http : / / a", "see http://a"),
        ("see https : / / a", "see https://a"),
        ("he 's", "he's"),
        ("in May . He left .", "in May. He left."),
        ("why ? so ?", "why? so?"),
        ("oh ! no !", "oh! no!"),
        ("a , b : c ; d", "a, b: c; d"),
        ("and / or", "and/or"),
        ('a " quoted word " here', 'a "quoted word" here'),
        ("( so ) [ it ]", "(so) [it]"),
        ("$ 5 or £ 6", "$5 or £6"),
    ],
)
def test_the_words_of_one_billion_become_text(spaced, text):
    assert detokenize_lm1b(spaced) == text


def test_a_passage_of_lambada_has_straight_quotes_and_a_line_of_its_own():
    assert detokenize_lambada(" “ Yes , ” he said \n") == '\n" Yes , " he said'


def test_articles_begin_at_titles_and_nothing_else():
    rows = [detokenize_wikitext(row) for row in WIKITEXT]
    assert articles(rows) == ARTICLES
    assert articles(["a line before", "", *rows]) == ["a line before", *ARTICLES]
    assert articles(["no title", "", "at all"]) == ["no title\n\nat all"]
    for neither in (["text", "= x =", "", "text"], ["text", "", "= x =", "text"]):
        assert articles(neither) == ["\n".join(neither)], "a title stands alone"
    assert articles(["", ""]) == []


@pytest.mark.parametrize(
    ("name", "rows", "documents", "unit"),
    [
        ("wikitext2", WIKITEXT, ARTICLES, "article"),
        ("wikitext103", WIKITEXT, ARTICLES, "article"),
        ("ptb", ["he <unk> n't", "$ N million"], ["he ?n't\n$1 million"], "split"),
        ("lambada", ["“ No ” ", "a truth"], ['\n" No "', "\na truth"], "row"),
        ("lm1b", ["a man , a wife .", "why ?"], ["a man, a wife.", "why?"], "row"),
        ("text8", ["it is a truth universally acknowledged"], ["it is a truth universally acknowledged"], "row"),
    ],
)
def test_the_clean_protocol_scores_every_token_of_the_documents_once(
    local, load, tiny_tokenizer, name, rows, documents, unit
):
    local(name, {split: rows if split == "test" else ["another split"] for split in EVALUATION_SETS[name].splits})
    text = load(name)
    assert torch.cat(list(text.blocks)).tolist() == ids_of(documents, tiny_tokenizer)
    assert all(len(block) == 16 for block in text.blocks[:-1])
    assert text.weights is None
    assert text.n_bytes == sum(len(document.encode()) for document in documents)
    assert text.description["end_of_text"] == f"after each {unit}"
    assert text.description["documents"] == len(documents)


def test_of_openwebtext_the_last_documents_are_scored(local, load, tiny_tokenizer):
    rows = [f"document {number}" for number in range(8)]
    local("openwebtext", {"train": rows})
    for split, expected in ((None, rows[-3:]), ("train", rows[:-3])):
        assert torch.cat(list(load("openwebtext", split=split).blocks)).tolist() == ids_of(expected, tiny_tokenizer)
    assert EVALUATION_SETS["openwebtext"].split == "validation"


def test_the_novel_is_the_one_that_no_model_was_trained_on(load, tiny_tokenizer):
    text = load("austen", length=128)
    assert text.n_bytes == 466_771
    blocks = Blocks(tokenize(load_documents("austen", "validation"), tiny_tokenizer), 128, tail=True)
    assert text.description["ids"] == blocks.fingerprint()
    assert text.description["end_of_text"] == "after each novel"


def test_another_data_set_is_taken_as_it_stands(tmp_path, load, tiny_tokenizer):
    for split in ("train", "validation", "test"):
        parquet(tmp_path / f"{split}.parquet", [f"of {split} , as it stands"] * 40, "body")
    text = load(str(tmp_path), text_column="body")
    expected = [f"of {split} , as it stands" for split in ("train", "validation", "test") for _ in range(40)]
    assert torch.cat(list(text.blocks)).tolist() == ids_of(expected, tiny_tokenizer)
    assert (text.description["split"], text.description["end_of_text"]) == ("all", "after each document")
    radd = load(str(tmp_path), text_column="body", protocol="radd")
    assert [block.tolist() for block in radd.blocks] == blocks_of_the_authors(
        ["of test , as it stands"] * 40, tiny_tokenizer, 16
    )
    assert (radd.description["split"], radd.description["detokenizer"]) == ("test", None)


def blocks_of_the_authors(rows: list[str], tokenizer, length: int) -> list[list[int]]:
    """Their `get_dataset` (data.py 119-199) in plain words: 8 shares of rows, by thousands, the rest dropped."""
    ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(rows)["input_ids"]]
    share, larger = divmod(len(ids), 8)
    blocks, start = [], 0
    for worker in range(8):
        stop = start + share + (1 if worker < larger else 0)
        for first in range(start, stop, 1000):
            joined = [token for row in ids[first : min(first + 1000, stop)] for token in row]
            while len(joined) >= length:
                blocks.append(joined[:length])
                joined = joined[length:]
        start = stop
    return blocks


def mean_of_the_authors(scores: list[float]) -> float:
    """Their evaluation (data.py 239-262, evaluation_modeling.py 71-96) of a model with these losses for the blocks."""
    order = torch.randperm(len(scores), generator=torch.Generator().manual_seed(0)).tolist()
    order += (order * 3)[: -len(order) % 4]
    total = 0.0
    for rank in range(4):
        mine, loss, batches = order[rank::4], 0.0, 0
        while mine:
            batch, mine = mine[:4], mine[4:]
            loss += sum(scores[index] for index in batch) / len(batch)
            batches += 1
        total += loss / batches
    return total / 4


@pytest.mark.parametrize("length", [32, 37, 40, 41])
def test_the_authors_protocol_is_reproduced_to_the_block_and_its_weight(local, load, tiny_tokenizer, length):
    rows = short_rows(9_500)  # 1188 or 1187 for each worker: a batch of 1000, and a smaller one
    local("wikitext2", {"train": rows, "validation": ["another"], "test": ["another"]})
    text = load("wikitext2", protocol="radd", length=length)
    expected = blocks_of_the_authors([detokenize_wikitext(row) for row in rows], tiny_tokenizer, length)
    assert [block.tolist() for block in text.blocks] == expected
    assert sum(map(len, text.blocks)) < len(ids_of(rows, tiny_tokenizer)) - 8 * 2, "remainders are dropped"

    scores = torch.rand(len(expected), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert float(text.weights @ scores) == pytest.approx(mean_of_the_authors(scores.tolist()), rel=1e-12)
    assert float(text.weights.sum()) == pytest.approx(1)
    dealt = [index for batch in text.batches for index in batch]
    assert sorted(set(dealt)) == list(range(len(expected)))
    assert len(dealt) == len(expected) + -len(expected) % 4, "the first ones twice where they do not divide"
    assert all(len(batch) == 4 for batch in text.batches[: len(text.batches) // 4 - 1])
    assert text.n_bytes is None


@pytest.mark.parametrize("n_blocks", [1, 2, 3, 4, 5, 16, 17, 18, 30, 101])
def test_however_many_blocks_there_are_their_weights_are_those_of_the_mean_of_batch_means(n_blocks):
    text = benchmark_texts.EvaluationText([torch.zeros(2)] * n_blocks, benchmark_texts._deal(n_blocks), None, {})
    scores = torch.rand(n_blocks, generator=torch.Generator().manual_seed(n_blocks), dtype=torch.float64)
    assert float(text.weights @ scores) == pytest.approx(mean_of_the_authors(scores.tolist()), rel=1e-12)
    assert float(text.weights.sum()) == pytest.approx(1)
    assert len(text.batches) % 4 == 0


def test_rows_are_cut_as_the_workers_of_datasets_would_cut_them(local, load, tiny_tokenizer):
    """The same rule given to `map` with eight processes, as the authors do."""
    rows = short_rows(9_500, seed=2)
    local("lm1b", {"train": ["another"], "test": rows})
    text = load("lm1b", protocol="radd", length=48)

    def group(batch: dict) -> dict:
        joined = [token for row in batch["input_ids"] for token in row]
        whole = len(joined) // 48 * 48
        return {"input_ids": [joined[at : at + 48] for at in range(0, whole, 48)]}

    ids = [[*row, tiny_tokenizer.eos_token_id] for row in tiny_tokenizer(rows)["input_ids"]]
    theirs = Dataset.from_dict({"input_ids": ids}).map(group, batched=True, num_proc=8)
    assert [block.tolist() for block in text.blocks] == theirs["input_ids"][:]


def test_workers_whose_rows_fill_no_block_give_none(local, load, tiny_tokenizer):
    rows = [*["a truth"] * 30, *["must be in want of a wife " * 9] * 8, ""]
    local("text8", dict.fromkeys(("train", "validation", "test"), rows))
    text = load("text8", protocol="radd", length=100)
    expected = blocks_of_the_authors(rows, tiny_tokenizer, 100)
    assert [block.tolist() for block in text.blocks] == expected
    assert 0 < len(expected) < 8


def test_protocols_differ_where_they_say_they_do(local, load, tiny_tokenizer):
    rows = WIKITEXT * 20
    local("wikitext2", {"train": rows, "validation": ["another"], "test": WIKITEXT})
    radd, clean = load("wikitext2", protocol="radd"), load("wikitext2")
    assert (radd.description["split"], clean.description["split"]) == ("train", "test")
    assert (radd.description["end_of_text"], clean.description["end_of_text"]) == (
        "after each row",
        "after each article",
    )
    assert radd.description["documents"] == len(rows)
    assert load("wikitext2", protocol="radd", split="test").description["split"] == "test"
    assert radd.description["ids"] != load("wikitext2", split="train").description["ids"]
    eos = tiny_tokenizer.eos_token_id
    first = radd.blocks[0].tolist()
    assert first[0] == eos, "an empty line is a row, too"
    assert clean.blocks[0][0] != eos


def test_what_was_prepared_is_not_prepared_again_unless_the_rules_changed(local, load, monkeypatch):
    local("lm1b", {"train": ["another"], "test": short_rows(300)})
    first = load("lm1b").description["ids"]
    with monkeypatch.context() as patch:
        patch.setattr("radd_hf.data.documents.encode", lambda *_: pytest.fail("tokenised again"))
        patch.setattr(detokenizers, "_apply", lambda *_: pytest.fail("detokenised again"))
        assert load("lm1b").description["ids"] == first
        patch.setattr(benchmark_texts.inspect, "getsource", lambda module: f"other rules in {module}")
        with pytest.raises(pytest.fail.Exception, match="detokenised again"):
            load("lm1b")


@pytest.mark.parametrize(
    ("dataset", "settings", "message"),
    [
        ("lm1b", {"protocol": "sedd"}, r"protocol='sedd' must be one of \('clean', 'radd'\)"),
        ("lm1b", {"length": 0}, "length=0 must be at least 1"),
        ("lm1b", {"split": "validation"}, r"split='validation' must be one of \['test', 'train'\] for dataset='lm1b'"),
        ("austen", {"split": "test"}, r"dataset='austen' has no split 'test'; it has \['all', 'train', 'validation'\]"),
        ("lm1b", {"config": "plain"}, "dataset='lm1b' has its own configuration and column: leave out 'plain'"),
        (
            "lm1b",
            {"text_column": "body"},
            "has its own configuration and column: leave out 'body'",
        ),
        ("no-such/name", {}, "dataset='no-such/name' could not be read"),
        ("lm1b", {"protocol": "radd", "length": 10_000}, "length=10000 leaves no block of dataset='lm1b'"),
    ],
)
def test_what_cannot_be_is_refused_by_name(local, load, dataset, settings, message):
    local("lm1b", {"train": ["another"], "test": short_rows(50)})
    with pytest.raises(ValueError, match=message) as error:
        load(dataset, **settings)
    if dataset == "no-such/name":
        assert "wikitext2" in error.value.__notes__[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["", "  \n"], "split='test' of dataset='lm1b' has no text: 2 rows, all empty"),
        (["a text", None], "a document is null"),
    ],
)
@pytest.mark.parametrize("protocol", ["clean", "radd"])
def test_a_text_that_is_none_is_refused(local, load, protocol, rows, message):
    local("lm1b", {"train": ["another"], "test": rows})
    with pytest.raises(ValueError, match=message):
        load("lm1b", protocol=protocol)


def test_a_source_that_cannot_be_reached_is_named(load):
    with pytest.raises(ValueError, match="dataset='Salesforce/wikitext' could not be read"):
        load("wikitext2")
    with pytest.raises(
        ValueError, match=r"dataset='hf://datasets/ptb-text-only/ptb_text_only@refs.*' could not be read"
    ):
        load("ptb")


def test_a_text_that_the_tokenizer_does_not_know_whole_has_no_figure_per_byte(tmp_path):
    tokenizer = KINDS["WordPiece"]()
    for text, has_bytes in (("Emma was fine", True), ("Emma was \u0436", False)):
        (tmp_path / "text.txt").write_text(text, encoding="utf-8")
        loaded = load_evaluation_text(str(tmp_path / "text.txt"), tokenizer, length=8)
        assert (loaded.n_bytes is not None) == has_bytes
