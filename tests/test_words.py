"""The house's words: how docstrings begin, and words that are said in one sense only."""

import ast
import io
import re
import tokenize
from pathlib import Path

import pytest

from support.paths import ROOT

SCRIPTS = [path for path in sorted(ROOT.glob("*.py")) if not path.is_symlink()]
ROOMS = ("radd_hf", "benchmarks", "examples", "docs")
CODE = SCRIPTS + [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES += sorted(ROOT.glob("checkpoints/*/README.md"))

# A docstring says what a function does ("Returns ..."), or what a class or module is ("The ...", "A ...").
VERB = re.compile(r"[A-Z][a-z]+(-[a-z]+)?s\b")
NO_VERBS = {"As", "Bytes", "Does", "Ids", "Its", "Nats", "Pieces", "Rows", "Seconds", "This", "Thus", "Tokens", "Texts"}
NAME = re.compile(r"(The|A|An|`|[A-Z]{2,})\b|`")

# Each word with what to say instead. The expressions leave out the senses that are meant.
WORDS = {
    r"\blaws?\b": "distribution",
    r"\bnobody\b": "say who or what: 'no caller', 'no setting'",
    r"(?<!model )(?<!Model )(?<!dataset )\b[Cc]ards?\b(?!\.(py|md)|: )": "GPU",
    r"\b(?:[Aa]|another|graphics|this|one) processor\b": "CPU, or logits processor",
}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def openings(path: Path) -> list[tuple[int, str, str]]:
    """Returns the line, the kind and the first line of every docstring of a file."""
    tree, found = ast.parse(path.read_text()), []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text:
                kind = "function" if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) else "class"
                found.append((getattr(node, "lineno", 1), kind, text.split("\n")[0]))
    return found


def begins_well(kind: str, line: str) -> bool:
    verb = VERB.match(line)
    return bool((verb and verb[0] not in NO_VERBS) or (kind != "function" and NAME.match(line)))


def prose(path: Path) -> list[tuple[int, str]]:
    """Returns the sentences of a file with their lines: comments and strings of code; all but the code of a page."""
    if path.suffix == ".md":
        code = re.compile(r"```.*?```|^ {4}.*?$", flags=re.DOTALL | re.MULTILINE)
        text = code.sub(lambda block: "\n" * block[0].count("\n"), path.read_text())
        return list(enumerate(text.split("\n"), 1))
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    kinds = (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING))
    return [
        (token.start[0] + offset, line)
        for token in tokens
        if token.type in kinds and " " in token.string  # a string without a space is a name
        for offset, line in enumerate(token.string.split("\n"))
    ]


def said(line: str) -> str:
    """Returns a line without what stands in backquotes and without the addresses of links, which are names."""
    return re.sub(r"`[^`]*`|\]\([^)]*\)|\{#[^}]*\}", "", line)


@pytest.mark.parametrize("path", CODE, ids=relative)
def test_a_docstring_begins_with_a_verb_or_a_name(path):
    bad = [f"{relative(path)}:{number}: {line}" for number, kind, line in openings(path) if not begins_well(kind, line)]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("path", CODE + PAGES, ids=relative)
def test_a_word_has_one_meaning(path):
    bad = [
        f"{relative(path)}:{number}: {found[0]!r}, say {instead}: {line.strip()}"
        for number, line in prose(path)
        for expression, instead in WORDS.items()
        for found in re.finditer(expression, said(line))
    ]
    assert not bad, "\n".join(bad)


def test_the_checks_can_fail():
    assert not begins_well("function", "Of the sizes asked for.")
    assert not begins_well("function", "The sizes.")
    assert not begins_well("class", "What is compared.")
    assert begins_well("class", "The sizes.")
    assert begins_well("function", "Returns the sizes.")
    card = next(word for word in WORDS if "ards" in word)
    assert [bool(re.search(card, text)) for text in ("a card", "model card", "model_card.py")] == [True, False, False]
