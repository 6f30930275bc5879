"""The README and docs/comparison.md, docs/project_layout.md: what they promise holds, what they print is printed."""

import configparser
import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import demo
from radd_hf.data.blocks import Blocks
from radd_hf.data.documents import load_documents, tokenize
from radd_hf.likelihood import estimate_likelihood
from support.commands import run_radd
from support.paths import CHECKPOINT, ROOT, SHIPPED, SUDOKU
from support.texts import README_CODE

README = (ROOT / "README.md").read_text()
COMPARISON = (ROOT / "docs" / "comparison.md").read_text()
FIGURES = ROOT / "docs" / "figures"
LONGEST = 130  # lines

# ---------------------------------------------------------------------------------------------------------
# Texts
# ---------------------------------------------------------------------------------------------------------


def test_the_readme_is_short():
    assert len(README.splitlines()) <= LONGEST


def printed_by(lines: str) -> str:
    finished = subprocess.run([sys.executable, "-c", lines], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_the_first_lines_of_the_readme_print_the_text_below_them():
    """In float32: rounding in bfloat16, which the checkpoint has, depends on the maker of the CPU."""
    (shown,) = re.findall(re.escape(README_CODE) + r"```\n\n```text\n(.*?)```", README, flags=re.DOTALL)
    precise = README_CODE.replace("trust_remote_code=True)", 'trust_remote_code=True, dtype="float32")', 1)
    assert printed_by(precise) == shown


def test_the_first_lines_of_the_readme_keep_the_given_text():
    text = printed_by(README_CODE)
    assert text.startswith("Emma was very")
    assert text.endswith(" for her father.\n")


def test_the_command_of_the_readme_prints_the_text_below_it(capsys, monkeypatch):
    ((text, seed, shown),) = re.findall(
        r'^radd generate checkpoints/radd-austen "(.+)" --seed (\d+)\n# (.+)$', README, flags=re.MULTILINE
    )
    found = run_radd(["generate", str(CHECKPOINT), text, "--seed", seed], capsys, monkeypatch)
    assert found.out == f"{shown}\n"


def test_the_readme_gives_the_settings_of_its_moving_picture():
    (command,) = re.findall(r"radd generate .*readme\.gif", (ROOT / "Makefile").read_text())
    settings = dict(re.findall(r"--(temperature|top-p|seed) (\S+)", command))
    assert "with temperature {temperature}, top-p {top-p} and seed {seed}.".format(**settings) in README
    saved = json.loads((CHECKPOINT / "generation_config.json").read_text())
    assert [str(saved[name]) for name in ("temperature", "top_p")] == [settings["temperature"], settings["top-p"]]
    assert f"saves temperature {saved['temperature']} and top-p {saved['top_p']}," in README


def test_the_demo_runs_the_folders_own_code_and_shows_every_method():
    finished = subprocess.run([sys.executable, "demo.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    printed = finished.stdout
    assert "by the code in that folder (transformers_modules)" in printed
    assert demo.OPENING[:20] in printed
    for method in demo.METHODS:
        assert re.search(rf"^{re.escape(method)} +\d+ +\d+\.\d\d   \S", printed, flags=re.MULTILINE)
    assert demo.OPENING in load_documents("austen", "validation")[0]["text"]


def test_the_shipped_checkpoint_is_small_and_complete():
    files = {path.name: path.stat().st_size for path in demo.CHECKPOINT.iterdir()}
    assert sum(files.values()) < 25 * 2**20
    assert {"config.json", "model.safetensors", "tokenizer.json", "modeling_radd.py", "README.md"} <= set(files)
    assert AutoModel.from_pretrained(demo.CHECKPOINT, trust_remote_code=True).config.vocab_size == 4096


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("folder", [CHECKPOINT, SUDOKU], ids=["austen", "sudoku"])
def test_the_shipped_checkpoints_carry_the_present_code(folder, name):
    assert (folder / name).read_text() == (ROOT / "radd_hf" / name).read_text(), "make code copies it"


# ---------------------------------------------------------------------------------------------------------
# Facts
# ---------------------------------------------------------------------------------------------------------


def test_every_file_and_heading_the_readme_links_exists():
    for path, anchor in re.findall(r"\]\((?!http)([^)#]+)#?([^)]*)\)", README):
        assert (ROOT / path).exists(), path
        assert not anchor or f"{{#{anchor}}}" in (ROOT / path).read_text(), f"{path}#{anchor}"


def test_the_badges_say_what_the_files_behind_them_say():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    oldest = setup["options"]["python_requires"].removeprefix(">=")
    said = {"python": f"Python: {oldest} or newer", "licence": f"licence: {setup['metadata']['license']}"}
    badges = re.findall(r"\[!\[([^]]+)\]\(docs/figures/badges/(\w+)\.svg\)\]", README)
    assert len(badges) == 3
    for text, name in badges:
        picture = (FIGURES / "badges" / f"{name}.svg").read_text()
        assert f'aria-label="{text}"' in picture
        assert re.findall(r"<text [^>]*>(.*)</text>", picture) == text.split(": ")
        assert said.get(name, text) == text
    assert f"You need Python {oldest} or newer" in README


def test_the_readme_gives_the_figures_of_the_shipped_evaluation():
    result = json.loads((demo.CHECKPOINT / "evaluation.json").read_text())
    value, error, tokens = (result[name] for name in ("bits_per_byte", "bits_per_byte_error", "n_tokens"))
    assert f"| {value:.3f} +- {error:.3f} |" in README
    layout = " ".join((ROOT / "docs" / "project_layout.md").read_text().split())
    assert f"{value:.3f} bits per byte with a standard error of {error:.3f}, over {tokens:,} tokens" in layout
    assert (result["dataset"], result["split"], result["length"], result["passes"]) == ("austen", "validation", 128, 16)
    weights = (demo.CHECKPOINT / "model.safetensors").stat().st_size
    assert 2 * 5_250_000 < weights < 2 * 5_350_000, "5.3 million parameters in bfloat16"


def test_the_readme_gives_the_recorded_times():
    for task, file, case, sides in (
        ("8 texts of 128 tokens", "speed", "sample, Tweedie, B=8, L=128, 1024 steps", ("baseline fp32", "ours bf16")),
        ("1 text of 1024", "sampling_h100", "sample, Tweedie, B=1, L=1024, 1024 steps", ("baseline fp16", "ours bf16")),
        ("training step", "speed_h100", "training step, lambda_DCE, B=32, L=1024", ("baseline fp16", "ours bf16")),
    ):
        cases = {each["name"]: each for each in json.loads((FIGURES / f"{file}.json").read_text())["cases"]}
        (row,) = [line for line in README.splitlines() if line.startswith(f"| {task}")]
        for side, cell in zip(sides, row.split(" | ")[1:], strict=False):
            number, _, unit = cell.partition(" s, ")
            digits = len(number.partition(".")[2])
            assert number == f"{cases[case]['sides'][side]['median']:.{digits}f}", row
            assert unit == {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}[side.split()[1]]


def test_the_readme_gives_the_recorded_puzzles():
    rows = json.loads((FIGURES / "sudoku.json").read_text())["rows"]
    solved = {name: f"{row['solved'].count('1') / len(row['solved']):.1%}" for name, row in rows.items()}
    bound = "entropy, entropy_bound 0.01"
    assert f"| {solved['random']} in random order | {solved['confidence']} |" in README
    evaluations = {name: f"{rows[name]['evaluations']:.1f} evaluations" for name in ("confidence", bound)}
    assert f"| {evaluations['confidence']} | {solved[bound]} in {evaluations[bound]} |" in README


def test_a_small_part_of_the_held_out_novel_is_scored_as_recorded():
    """The figure is of these weights: the first blocks agree with the whole within a few standard errors."""
    model = AutoModel.from_pretrained(demo.CHECKPOINT, trust_remote_code=True, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(demo.CHECKPOINT, trust_remote_code=True)
    blocks = Blocks(tokenize(load_documents("austen", "validation"), tokenizer), 128, tail=True)
    result = json.loads((demo.CHECKPOINT / "evaluation.json").read_text())
    assert blocks.fingerprint() == result["ids"]
    part = estimate_likelihood(model, blocks[100:132], passes=4)
    assert abs(part.nats_per_token - result["nats_per_token"]) < 0.35


# ---------------------------------------------------------------------------------------------------------
# The comparison, and the layout
# ---------------------------------------------------------------------------------------------------------


def rows_of(table: str) -> list[list[str]]:
    """Returns the cells of each row of a Markdown table, its head included."""
    lines = re.findall(r"^\|(.*)\|$", table, flags=re.MULTILINE)
    return [[cell.strip() for cell in line.split("|")] for line in lines if not line.startswith("---")]


def section(page: str, heading: str) -> str:
    return re.split(r"^## ", page.partition(f"\n## {heading}")[2], flags=re.MULTILINE)[0]


def test_the_table_of_the_readme_is_part_of_the_comparison():
    short, whole = (rows_of(section(*each)) for each in ((README, "Comparison"), (COMPARISON, "All answers")))
    assert len(short) > 10
    assert all(row in whole for row in short)


def test_every_answer_of_the_comparison_has_its_place_in_the_code():
    (_, *projects), *rows = rows_of(section(COMPARISON, "All answers"))
    assert len(projects) == 8
    for column, project in enumerate(projects, start=1):
        text = section(COMPARISON, f"{project} {{#")
        _, *answers = rows_of(text)
        assert [answer[:2] for answer in answers] == [[row[0], row[column]] for row in rows]
        for feature, answer, place in answers:
            assert answer in ("yes", "part", "no", "n/a")
            assert "`" in place if answer in ("yes", "part") else place, f"{project}: {feature}"
        if project != "radd_hf":
            (commit,) = re.findall(r"/tree/([0-9a-f]{40})\)", text)
            assert set(re.findall(r"/blob/(\w+)/", text)) == {commit}


def test_what_the_comparison_says_of_this_repository_exists():
    for name in re.findall(r"`([\w/]+/(?:\w+\.(?:py|yaml))?)`", section(COMPARISON, "radd_hf {#")):
        assert (ROOT / name).exists(), name


def test_the_layout_names_every_part_of_the_package():
    layout = (ROOT / "docs" / "project_layout.md").read_text()
    modules = {path.name for path in (ROOT / "radd_hf").glob("*.py")} - {"__init__.py", "__main__.py", "version.py"}
    rooms = {f"radd_hf/{path.parent.name}/" for path in (ROOT / "radd_hf").glob("*/*.py")}
    scripts = {path.name for path in ROOT.glob("*.py") if not path.is_symlink()}
    named = set(re.findall(r"`(?:radd_hf/)?(\w+\.py)`", layout)) | set(re.findall(r"`(radd_hf/\w+/)`", layout))
    assert modules | rooms | scripts == named
