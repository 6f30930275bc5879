"""The documentation site: its pages, where answers stand, what the search finds, and what quotes the library.

`make docs` builds the site and runs this file; without the site the tests of the search are skipped.
"""

import ast
import html
import json
import re
from functools import cache

import pytest
import yaml
from transformers import AutoModel, AutoTokenizer

from radd_hf.settings_radd import FOREIGN, SYNONYMS
from support.paths import ROOT

DOCS = ROOT / "docs"
SITE = ROOT / "build/docs"
INDEX = SITE / "search/search_index.json"
PAGES = {str(path.relative_to(DOCS)): path.read_text(encoding="utf-8") for path in DOCS.glob("**/*.md")}
FENCED = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ +(.+?)(?: *\{#([\w-]+)\})?$", flags=re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:)([\w./-]+\.md)?(?:#([\w-]+))?\)")


def headings(page: str) -> list[tuple[str, str]]:
    """Returns the words and the anchor of each heading of a page."""
    found = HEADING.findall(FENCED.sub("", PAGES[page]))
    return [(words, anchor or re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", words).lower())) for words, anchor in found]


def linked(page: str) -> set[str]:
    """Returns the pages that a page links to."""
    folder = (DOCS / page).parent
    targets = {folder.joinpath(path).resolve() for path, _ in LINK.findall(FENCED.sub("", PAGES[page])) if path}
    return {str(path.relative_to(DOCS)) for path in targets if path.is_relative_to(DOCS)}


# ---------------------------------------------------------------------------------------------------------
# Pages
# ---------------------------------------------------------------------------------------------------------


def paths_in(navigation) -> list[str]:
    if isinstance(navigation, str):
        return [navigation]
    parts = navigation.values() if isinstance(navigation, dict) else navigation
    return [path for part in parts for path in paths_in(part)]


def test_every_page_is_in_the_navigation_once():
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    shown = paths_in(yaml.safe_load(text[text.index("\nnav:") :])["nav"])
    assert len(shown) == len(set(shown))
    assert set(PAGES) <= set(shown)


@pytest.mark.parametrize("page", PAGES)
def test_no_page_hides_the_navigation(page):
    assert not re.match(r"---\n(?:.*\n)*?hide:.*navigation", PAGES[page])


@pytest.mark.parametrize("page", PAGES)
def test_the_headings_of_a_page_differ(page):
    for names in zip(*headings(page), strict=True):
        assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


# ---------------------------------------------------------------------------------------------------------
# Answers
# ---------------------------------------------------------------------------------------------------------

ANSWERS = {
    "fill three blanks in my sentence": "quickstart.md#fill-blanks",
    "fine-tune on my text": "training.md#fine-tune",
    "score a text": "evaluation.md#score-a-text",
    "use my GPU": "gpu.md#use-your-gpu",
    "make it faster": "performance.md#faster",
    "solve a Sudoku": "sudoku.md#solve-a-sudoku",
    "publish my model": "integrations.md#publish",
    "resume": "training.md#resume",
    "what is NFE": "glossary.md#nfe",
    "why is my text bad": "faq.md#why-is-my-text-bad",
}


@pytest.mark.parametrize("question", ANSWERS)
def test_a_question_is_answered_within_two_clicks(question):
    page, _, anchor = ANSWERS[question].partition("#")
    assert anchor in [name for _, name in headings(page)]
    one_click = linked("index.md")
    assert page in one_click.union(*map(linked, one_click))


def test_the_answer_on_the_landing_page_is_what_its_python_prints(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    code, printed = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", PAGES["index.md"], re.DOTALL).groups()
    exec(code, {"AutoModel": AutoModel, "AutoTokenizer": AutoTokenizer})
    assert capsys.readouterr().out == printed


def test_the_faq_cites_the_paper_as_the_readme_does():
    (entry,) = re.findall(r"```bibtex\n.*?```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert entry in PAGES["faq.md"]


# ---------------------------------------------------------------------------------------------------------
# What pages quote
# ---------------------------------------------------------------------------------------------------------


@cache
def messages_of_the_library() -> str:
    """Returns every string of the package, a line each, with `...` where a value stands."""
    found = []
    for path in (ROOT / "radd_hf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "..." for part in node.values]
                found.append("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return "\n".join(found)


FROM_ELSEWHERE = (
    r"^torch\.|Unrecognized|custom code|couldn't connect|CUDA|no kernel|command not found|No module|already in use"
)


def quoted_messages() -> list[str]:
    rows = re.findall(r"^\| (`.+?) \| ", PAGES["troubleshooting.md"], flags=re.MULTILINE)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("message", [text for text in quoted_messages() if not re.search(FROM_ELSEWHERE, text)])
def test_a_message_that_is_explained_is_one_of_the_library(message):
    said = messages_of_the_library()
    for part in filter(None, (part.strip(" ;:,") for part in message.split("..."))):
        assert part in said


def test_arguments_of_transformers_that_are_refused_are_on_the_page_for_who_comes_from_there():
    missing = [name for name in (*FOREIGN, *SYNONYMS) if f"`{name}`" not in PAGES["coming_from.md"]]
    assert not missing


# ---------------------------------------------------------------------------------------------------------
# Search
# ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def search():
    """Returns a function from a query to the pages that the site's search shows, first the best.

    It ranks as the theme's script does: lunr's score of each section, times 1 + (1 for the beginning of a page, plus
    the fraction of the words that were found) squared; the best section of a page places the page.
    """
    if not INDEX.is_file():
        pytest.skip("the site is not built: run make docs")
    pytest.importorskip("lunr", reason="lunr is not installed: run make docs")
    from lunr.builder import Builder
    from lunr.pipeline import Pipeline
    from lunr.stop_word_filter import stop_word_filter

    index = json.loads(INDEX.read_text(encoding="utf-8"))
    separator = re.compile(index["config"]["separator"].replace("&[lg]t;", "[<>]"))

    def words(field):
        def extract(section):
            text = html.unescape(re.sub(r"<[^>]+>", " ", str(section.get(field) or "")))
            return list(filter(None, separator.split(text)))

        return extract

    builder = Builder()
    builder.b(0)
    builder.ref("location")
    builder.pipeline = Pipeline()
    builder.pipeline.add(stop_word_filter)
    builder.search_pipeline = Pipeline()
    for field, settings in index["config"]["fields"].items():
        builder.field(field, boost=settings["boost"], extractor=words(field))
    for section in index["docs"]:
        builder.add(section, {"boost": section.get("boost") or 1})
    built = builder.build()

    def pages(query: str) -> list[str]:
        asked = query.lower().replace("-", " ").split()  # lunr parts a query at hyphens, whatever the separator
        scores = []
        for match in built.search(" ".join(f"{word}*" for word in asked)):
            found = [any(term.startswith(word) for term in match["match_data"].metadata) for word in asked]
            boost = ("#" not in match["ref"]) + sum(found) / len(found)
            scores.append((match["score"] * (1 + boost**2), match["ref"].partition("#")[0]))
        return list(dict.fromkeys(page for _, page in sorted(scores, reverse=True)))

    return pages


@pytest.mark.parametrize(
    ("query", "right"),
    [
        ("install", {"installation.html"}),
        ("offline", {"installation.html"}),
        ("GPU", {"gpu.html"}),
        ("out of memory", {"gpu.html", "troubleshooting.html"}),
        ("max_new_tokens", {"coming_from.html"}),
        ("num_inference_steps", {"coming_from.html"}),
        ("confidence", {"generation.html", "glossary.html"}),
        ("sudoku", {"sudoku.html"}),
        ("resume", {"training.html"}),
        ("fine-tune", {"training.html"}),
        ("finetune", {"glossary.html"}),
        ("top-p", {"generation.html", "glossary.html"}),
        ("fill-mask", {"coming_from.html", "integrations.html"}),
        ("first-hitting", {"generation.html", "glossary.html"}),
        ("cite", {"faq.html"}),
        ("BibTeX", {"faq.html"}),
        ("NFE", {"glossary.html"}),
    ],
)
def test_the_search_finds_the_right_page_first(query, right, search):
    assert search(query)[0] in right, search(query)[:4]


def test_a_page_that_is_opened_as_a_file_has_what_its_search_needs(search):
    """Browsers neither fetch JSON nor start a worker for files: a script holds the index, another stands in."""
    assert INDEX.with_suffix(".js").read_text(encoding="utf-8").startswith("var __index = ")
    for page in ("index.html", "api/model.html"):
        script = re.search(r'<script src="([^"]*iframe-worker\.js)"', (SITE / page).read_text(encoding="utf-8"))[1]
        assert (SITE / page).parent.joinpath(script).is_file()


@pytest.mark.skipif(not INDEX.is_file(), reason="the site is built by `make docs`")
def test_the_reference_shows_several_names_of_one_entry_with_their_type():
    page = re.sub(r"<[^>]+>|\s", "", (SITE / "api/model.html").read_text(encoding="utf-8"))
    assert "sigma_min,sigma_max(float)" in page
