# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""A model card says what the files of a model say, and no text from outside becomes its Markdown, HTML or YAML."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from transformers import AutoModel, pipeline

from radd_hf.endings import visible
from radd_hf.evaluation.perplexity import parse_arguments
from radd_hf.hub import model_card as cards
from radd_hf.hub.convert import convert, to_original
from radd_hf.hub.model_card import CARD_ROW, MARK, PROCEDURE, Origin, Results, card_of, model_card, read_results
from support.hostile import FOR_CARDS
from support.paths import CHECKPOINT, ROOT
from support.toys import random_model

SUDOKU = CHECKPOINT.parent / "radd-sudoku"
EVALUATION = json.loads((CHECKPOINT / "evaluation.json").read_text())
NAMES = ("dataset", "split", "protocol", "length", "estimator", "passes", "seed", "weights", "ids")
each_hostile = pytest.mark.parametrize("text", FOR_CARDS.values(), ids=FOR_CARDS)


@pytest.fixture(scope="module")
def model():
    return random_model(vocab_size=11, max_position_embeddings=8)


def full_card(model, text: str) -> str:
    origin = Origin(text, False, text, revision=text, weights=text)
    results = Results(dict.fromkeys(PROCEDURE, text), [{"step": text}], EVALUATION | dict.fromkeys(NAMES, text))
    return model_card(model, origin, with_tokenizer=True, license="mit", repository="me/mine", results=results)


def structure(card: str) -> list[str]:
    """The elements of the page, without text and whether a name stands as code."""
    blocks = MarkdownIt().enable(["table", "strikethrough"]).parse(card.split("\n---\n", 1)[1])
    kinds = [token.type for block in blocks for token in (block, *(block.children or []))]
    return [kind for kind in kinds if kind not in ("text", "text_special", "code_inline")]


@each_hostile
def test_a_text_changes_nothing_of_a_card_but_its_words(model, text):
    card = full_card(model, text)
    assert all(line.isprintable() for line in card.split("\n"))
    assert structure(card) == structure(full_card(model, "plain"))
    page = html.unescape(MarkdownIt().enable("table").render(card.split("\n---\n", 1)[1]))
    assert page.count(visible(text).strip()) >= 4 + len(PROCEDURE) + len(NAMES) - 1
    assert {html.unescape(row[2]) for row in CARD_ROW.finditer(card)} == {
        visible(text),
        f"{visible(text)}, {visible(text)}",
    }


@each_hostile
def test_the_metadata_of_a_card_hold_a_text_as_one_value(model, text):
    front = yaml.safe_load(full_card(model, text).split("---\n")[1])
    plain = yaml.safe_load(full_card(model, "plain").split("---\n")[1])
    assert front.keys() == plain.keys()
    dataset = front["model-index"][0]["results"][0]["dataset"]
    assert dataset == dict.fromkeys(("name", "split"), visible(text)) | {"type": "austen"}
    assert front["license"] == "mit"


@pytest.mark.parametrize("license", ["mit", "apache-2.0", "cc-by-nc-4.0", "GPL-2.0+", "llama3.1", "other"])
def test_an_identifier_of_a_license_is_named_where_the_hub_and_a_reader_look(model, license):
    card = model_card(model, Origin("mine", False, "x"), with_tokenizer=False, license=license)
    assert yaml.safe_load(card.split("---\n")[1])["license"] == license
    assert f"The weights are under {license}." in card


@pytest.mark.parametrize(
    "text", [*FOR_CARDS.values(), "mit\nfoo: bar", "mit\n", "]", "{", "", " mit", "-", "é", "m" * 99]
)
def test_what_cannot_be_a_license_or_a_repository_is_refused_before_anything_is_read(model, text, tmp_path):
    origin, target = Origin("mine", False, "x"), tmp_path / "target"
    calls = {
        "license": [
            lambda: convert("/none/here", target, license=text),
            lambda: model_card(model, origin, with_tokenizer=False, license=text),
            lambda: card_of(tmp_path / "none", license=text),
        ],
        "push_to_hub": [
            lambda: convert("/none/here", target, push_to_hub=text),
            lambda: to_original("/none/here", target, push_to_hub=text),
        ],
        "repository": [
            lambda: model_card(model, origin, with_tokenizer=False, repository=text),
            lambda: card_of(tmp_path / "none", repository=text),
        ],
        "origin.name": [lambda: model_card(model, Origin(text, True, "x"), with_tokenizer=False)],
    }
    for argument, refused in calls.items():
        for call in refused:
            with pytest.raises(ValueError, match=re.escape(f"{argument}={text!r} must be the ")):
                call()
    assert not target.exists()


def evaluated(model, **figures) -> str:
    results = Results(evaluation=EVALUATION | figures)
    return model_card(model, Origin("mine", False, "x"), with_tokenizer=False, results=results)


def test_a_figure_beyond_the_largest_number_has_no_row(model):
    null = {"perplexity": None, "perplexity_error": None, "perplexity_interval": [None, None]}
    for figures in (null, {"perplexity_error": None}, {"perplexity_interval": [3.0, None]}):
        shown = evaluated(model, **figures)
        assert "| perplexity |" not in shown
        assert "| bits per byte | 1.7708 |" in shown
        results = yaml.safe_load(shown.split("---\n")[1])["model-index"][0]["results"]
        metrics = [metric["type"] for result in results for metric in result["metrics"]]
        assert metrics == (["bits_per_byte"] if figures is null else ["bits_per_byte", "perplexity"])


@pytest.mark.parametrize(
    "figures", [{"perplexity": "1 | 2"}, {"n_tokens": "<b>"}, {"interval": 3}, {"interval": [1.0]}]
)
def test_figures_that_are_no_numbers_are_refused(model, figures):
    with pytest.raises(ValueError, match=r"evaluation must be what eval_ppl\.py writes with --output: "):
        evaluated(model, **figures)


def test_an_evaluation_without_its_text_is_refused(model):
    results = Results(evaluation={"perplexity": 3.0, "perplexity_error": 0.1, "perplexity_interval": [2, 4]})
    with pytest.raises(ValueError, match=r"evaluation lacks 'dataset'; it must be what eval_ppl\.py writes"):
        model_card(model, None, with_tokenizer=False, results=results)


def test_the_command_on_a_card_asks_for_the_evaluation_that_it_shows(model):
    command = re.search(r"```bash\nradd eval (.*)\n```", evaluated(model, length=64, seed=3))[1]
    asked = parse_arguments(command.split())
    for name in ("dataset", "split", "protocol", "estimator", "passes"):
        assert getattr(asked, name) == EVALUATION[name]
    assert (asked.length, asked.seed) == (64, 3)


# ---------------------------------------------------------------------------------------------------------
# What is known of a run
# ---------------------------------------------------------------------------------------------------------

RUN = {"loss_type": "t_DCE", "max_steps": 20, "batch_size": 4, "length": 8}


def trained(model, recipe: dict, *metrics: dict, step: int | None = None) -> str:
    origin = Origin("mine", False, "x", step=step)
    return model_card(model, origin, with_tokenizer=False, results=Results(RUN | recipe, metrics))


def front(card: str) -> dict:
    return yaml.safe_load(card.split("---\n")[1])


def test_what_is_not_known_has_no_section_and_no_metadata(model):
    card = model_card(model, None, with_tokenizer=False)
    assert re.findall(r"^## (.*)", card, re.MULTILINE) == ["Model", "Usage", "Citation", "License"]
    assert front(card).keys() == {"library_name", "pipeline_tag", "tags"}


def test_a_card_counts_the_tokens_until_its_step_and_the_time_by_the_log(model):
    log = [{"step": step, "tokens_per_second": speed} for step, speed in ((5, 2.0), (10, 4.0), (15, 900.0))]
    assert "20 steps of 4 rows of 8 tokens are 640 tokens." in trained(model, {})
    card = trained(model, {}, *log, step=10)
    assert "10 steps of 4 rows of 8 tokens are 320 tokens." in card
    assert "median of 3 tokens a second, they take 107 seconds." in card


def test_the_figure_at_the_end_of_a_run_stands_on_the_card_of_its_last_step_alone(model):
    final = {"step": 20, "final_bits_per_byte": 1.5, "final_bits_per_byte_error": 0.25}
    assert "1.5000 bits per byte of its held-out text (standard error 0.2500)" in trained(model, {}, final)
    assert "held-out text" not in trained(model, {}, final, step=10)


@pytest.mark.parametrize(
    ("dataset", "listed"),
    [
        ("austen", {"datasets": ["austen"], "language": "en"}),
        ("someone/texts", {"datasets": ["someone/texts"]}),
        ("data/texts.jsonl", {}),
        ("./data/texts", {}),
        ("/home/me/texts", {}),
        ("symmetries of random grids", {}),
    ],
)
def test_a_data_set_of_the_hub_is_metadata_and_a_local_one_goes_by_its_last_name(model, dataset, listed):
    card = trained(model, {"dataset": dataset})
    assert {name: value for name, value in front(card).items() if name in ("datasets", "language")} == listed
    assert ("Jane Austen" in card) == (dataset == "austen")
    assert "/home/me" not in card


def test_a_fine_tuned_model_names_its_base(model, tmp_path):
    assert front(trained(model, {"init_from": "someone/radd"}))["base_model"] == "someone/radd"
    local = trained(model, {"init_from": str(tmp_path)})
    assert "base_model" not in front(local)
    assert f"| `init_from` | {tmp_path.name} |" in local


def checkpoint_of_a_run(tmp_path):
    """A folder of a run, with the shipped checkpoint as its step 6400."""
    checkpoint = tmp_path / "runs" / "novels" / "checkpoints" / "step_6400"
    shutil.copytree(CHECKPOINT, checkpoint, ignore=shutil.ignore_patterns("README.md", "training", "evaluation.json"))
    for file in (CHECKPOINT / "training").iterdir():
        shutil.copy(file, checkpoint.parents[1])
    return checkpoint


def test_converting_a_checkpoint_writes_what_its_run_says(tmp_path):
    checkpoint = checkpoint_of_a_run(tmp_path)
    card = (convert(checkpoint, tmp_path / "converted", license="mit") / "README.md").read_text()
    for said in (
        "| Source | `novels`, a radd_hf training run |",
        "| Weights | exponential moving average |",
        "| Training step | 6400 |",
        "| `loss_type` | k_DCE |",
        "Persuasion is held out",
        "The run ended at 1.7674 bits per byte of its held-out text (standard error 0.0025).",
        "`temperature=0.6`, `top_p=0.9`",
    ):
        assert said in card
    assert str(tmp_path) not in card
    shipped = (CHECKPOINT / "README.md").read_text()
    (tmp_path / "card.md").write_text(shipped)
    again = convert(checkpoint, tmp_path / "again", card=tmp_path / "card.md") / "README.md"
    for heading in ("Samples", "Intended use and limits"):
        assert section(again.read_text(), heading) == section(shipped, heading)
    assert "| Source | `novels`, a radd_hf training run |" in again.read_text()


def test_an_evaluation_is_not_passed_on_to_weights_of_another_type(tmp_path):
    shutil.copytree(CHECKPOINT, tmp_path / "model")
    for dtype in (None, "float16"):
        card = (convert(tmp_path / "model", tmp_path / str(dtype), dtype=dtype) / "README.md").read_text()
        assert ("1.7708" in card) == (dtype is None)


def test_a_folder_that_is_not_there_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    from radd_hf.hub import sources

    monkeypatch.setattr(sources, "cached_file", lambda *asked, **settings: pytest.fail(f"the Hub was asked: {asked}"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(CHECKPOINT, "mine", ignore=shutil.ignore_patterns("README.md", "training", "evaluation.json"))
    assert read_results(Path("mine")) == Results(metrics=[])


def test_the_suffix_in_the_code_of_a_card_begins_a_word(model):
    """A suffix without a space at its beginning would be the end of the last word that is generated."""
    code = section(model_card(model, None, with_tokenizer=True), "Usage")
    assert 'suffix=" ' in code


def test_a_log_that_was_cut_short_is_read_up_to_there(tmp_path):
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [line["step"] for line in read_results(tmp_path).metrics] == [1, 2]


def test_a_file_that_is_named_and_missing_is_refused(tmp_path):
    for argument in ("recipe", "evaluation"):
        with pytest.raises(ValueError, match=f"{argument}=.*nowhere.* must be a file"):
            card_of(CHECKPOINT, **{argument: tmp_path / "nowhere"})
    with pytest.raises(ValueError, match=r"card=.*nowhere.* must be a model card"):
        convert(CHECKPOINT, tmp_path / "target", card=tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------------
# What people wrote
# ---------------------------------------------------------------------------------------------------------


def section(card: str, heading: str) -> str:
    return re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", card, re.MULTILINE | re.DOTALL)[1].strip()


def test_a_card_made_anew_keeps_what_people_wrote(model):
    first = evaluated(model)
    assert model_card(model, None, with_tokenizer=False, old=first) == first, "nothing new is known"
    usage = section(first, "Usage")
    own = first.replace("# RADD\n", "# My model\n\nMy words.\n").replace(usage, "Mine.\n\n```\n## no heading\n```")
    own = own.replace("## Citation", "## Limits\n\nMany.\n\n## Citation").replace("---\n", "---\nlanguage: de\n", 1)
    new = model_card(model, None, with_tokenizer=False, license="mit", results=Results(RUN), old=own)
    assert front(new)["language"] == "de"
    assert front(new)["license"] == "mit"
    assert "# My model\n\nMy words." in new
    assert section(new, "Usage").startswith("Mine.")
    assert "## no heading\n```" in new
    assert section(new, "Limits") == "Many."
    assert "are under mit" in section(new, "License")
    assert section(new, "Source") == section(first, "Source")
    assert section(new, "Evaluation") == section(first, "Evaluation")
    headings = re.findall(r"^## ([A-Z].*)", new, re.MULTILINE)
    assert headings == ["Model", "Source", "Usage", "Training", "Evaluation", "Limits", "Citation", "License"]


def test_settings_that_are_no_longer_saved_leave_the_card(model):
    old = (CHECKPOINT / "README.md").read_text()
    assert "`temperature=0.6`" in old
    new = model_card(model, None, with_tokenizer=True, old=old)
    assert "## Generation settings" not in new
    assert section(new, "Training") == section(old, "Training"), "what is not known stays"
    own = old.replace(f"{MARK}\n\n`generate` and", "Mine. `generate` and")
    assert "Mine." in section(model_card(model, None, with_tokenizer=True, old=own), "Generation settings")


def test_a_card_of_another_kind_keeps_its_text_and_gets_the_sections_of_ours(model):
    new = model_card(
        model, Origin("mine", False, "x"), with_tokenizer=True, old="# Mine\n\nWords.\n\n## More\n\nMany.\n"
    )
    assert re.findall(r"^##? (.*)", new.split("---\n", 2)[2], re.MULTILINE)[:4] == ["Mine", "More", "Model", "Source"]
    per_byte = {name: None for name in EVALUATION if name.startswith("bits_per_byte")}
    assert "| bits per byte |" not in evaluated(model, **per_byte), "a protocol that drops text has none"


def test_the_name_of_a_repository_stands_in_the_code_that_people_wrote():
    card = card_of(SUDOKU, repository="me/mine")
    assert card.count('\nname = "me/mine"\n') == 1
    assert '"..."' not in card


# ---------------------------------------------------------------------------------------------------------
# The cards of the shipped checkpoints
# ---------------------------------------------------------------------------------------------------------

shipped = pytest.mark.parametrize("folder", [CHECKPOINT, SUDOKU], ids=lambda folder: folder.name)


@shipped
def test_a_shipped_card_is_what_its_files_say(folder, capsys, tmp_path):
    """`python -m radd_hf.hub.model_card checkpoints/radd-austen` makes it, as `make checkpoint` does."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    cards.main([str(copy)])
    assert "README.md is written." in capsys.readouterr().out
    assert (copy / "README.md").read_text() == (folder / "README.md").read_text()


@shipped
def test_the_metadata_of_a_shipped_card_are_the_hubs(folder):
    card = ModelCard.load(folder / "README.md", ignore_metadata_errors=False)
    assert card.data.license == "apache-2.0"
    assert card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "fill-mask"
    assert card.data.model_name == folder.name


def test_the_shipped_cards_have_the_recorded_figures():
    austen, sudoku = (ModelCard.load(folder / "README.md").data for folder in (CHECKPOINT, SUDOKU))
    assert austen.language == "en"
    assert {result.metric_type: result.metric_value for result in austen.eval_results} == {
        name: EVALUATION[name] for name in ("bits_per_byte", "perplexity")
    }
    rows = json.loads((ROOT / "docs" / "figures" / "sudoku.json").read_text())["rows"]
    assert {result.metric_name: result.metric_value for result in sudoku.eval_results} == {
        f"puzzles solved, order={order}": rows[order]["solved"].count("1") / 300 for order in ("confidence", "random")
    }


@shipped
def test_a_shipped_card_says_what_a_reader_asks(folder):
    card = (folder / "README.md").read_text()
    for heading in ("Usage", "Generation settings", "Intended use and limits", "Training", "Citation", "License"):
        assert section(card, heading)
    assert "`exact=True` sets them aside" in section(card, "Generation settings")


def test_the_samples_on_the_card_are_those_that_its_code_prints(capsys):
    card = (CHECKPOINT / "README.md").read_text()
    exec("".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL)).replace('"..."', repr(str(CHECKPOINT))), {})
    printed = capsys.readouterr().out
    (samples,) = re.findall(r"```text\n(.*?)```", card, re.DOTALL)
    assert printed.endswith(samples)


def test_the_exact_sampler_that_a_card_names_is_there():
    model = AutoModel.from_pretrained(CHECKPOINT, trust_remote_code=True)
    fill = pipeline("radd-infilling", model=str(CHECKPOINT), trust_remote_code=True, device="cpu")
    assert "[MASK" not in fill("It was [MASK:3] of spring.", seed=0, exact=True)[0]["text"]
    assert model.generate(length=4, seed=0, exact=True).shape == (1, 4)


def test_the_citation_on_a_card_is_that_of_the_repository():
    paper = yaml.safe_load((ROOT / "CITATION.cff").read_text())["preferred-citation"]
    assert paper["title"] in cards.CITATION
    authors = " and ".join(f"{author['given-names']} {author['family-names']}" for author in paper["authors"])
    assert f"{{{authors}}}" in cards.CITATION
    assert MARK in (CHECKPOINT / "README.md").read_text()
