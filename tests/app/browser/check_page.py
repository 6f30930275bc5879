# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The web page in a real browser: `make test-browser`, which installs gradio, Selenium and Debian's Chromium for it.

Named so that `make test`, where none of them is installed, passes it by. Screenshots are left in build/.
"""

import asyncio
import contextlib
import html
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from radd_hf.app.live import FORMS
from support.paths import CHECKPOINT, GOLDEN, ROOT, SUDOKU

BUILD = ROOT / "build"
GROUP_TIMEOUT = 30  # seconds, for a busy machine; nothing here takes more than a few
START_TIMEOUT = 120  # seconds, to import torch and gradio, and to make the results that the page opens with
# The app as `python app.py` runs it, but that it dies of any attempt to reach another machine.
ON_THIS_MACHINE_ALONE = """
import os, runpy, sys

def refuse(event, arguments):
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if host not in ("127.0.0.1", "localhost", None):
        print("the app reached for", host, flush=True)
        os._exit(1)

sys.addaudithook(refuse)
sys.argv = ["app.py", *sys.argv[1:]]
sys.path.insert(0, os.getcwd())
runpy.run_path("app.py", run_name="__main__")
"""

# Notes every redrawing of the texts, which is faster than a busy machine can be asked: masks, and newest tokens.
WATCH = """
window.frames_seen = [];
new MutationObserver(() => {
    const count = what => document.querySelectorAll("#canvas .radd-" + what).length;
    if (count("mask") > 0 || window.frames_seen.length > 0) window.frames_seen.push([count("mask"), count("fresh")]);
}).observe(document.querySelector("#canvas"), {subtree: true, childList: true, characterData: true});
"""


def wait_until(condition: Callable[[], object], what: str, seconds: float = GROUP_TIMEOUT) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    BUILD.mkdir(exist_ok=True)
    log = BUILD / "app.log"
    with log.open("w") as output:
        app = subprocess.Popen(
            [sys.executable, "-c", ON_THIS_MACHINE_ALONE, "--port", str(port)],
            cwd=ROOT,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )
        try:
            wait_until(
                lambda: app.poll() is not None or "Running on" in log.read_text(),
                "the app serves the page",
                START_TIMEOUT,
            )
            assert app.poll() is None, log.read_text()
            yield f"http://127.0.0.1:{port}/"
            assert app.poll() is None, log.read_text()
            assert "Traceback" not in log.read_text(), log.read_text()
        finally:
            app.terminate()
            app.wait(GROUP_TIMEOUT)


@pytest.fixture(scope="session")
def chromium() -> Iterator[webdriver.Chrome]:
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    assert all(programs.values()), f"{programs}: apt-get install chromium chromium-driver"
    options = webdriver.ChromeOptions()
    options.binary_location = programs["chromium"]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    profile = tempfile.mkdtemp()
    flags = "headless no-sandbox disable-gpu disable-quic disable-dev-shm-usage no-first-run disable-sync "
    flags += f"disable-background-networking disable-component-update window-size=1280,1000 user-data-dir={profile}"
    for flag in flags.split():
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(programs["chromedriver"]))
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


class Page:
    def __init__(self, chromium: webdriver.Chrome, address: str):
        self.chromium = chromium
        chromium.get(address)
        wait_until(lambda: self.all("#fill"), "the page is there")

    def all(self, selector: str) -> list:
        return self.chromium.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str):
        """The one element there is; what is on a closed tab comes into being when it is opened."""
        wait_until(lambda: len(self.all(selector)) == 1, f"one {selector} is there")
        return self.all(selector)[0]

    def script(self, code: str, *arguments):
        return self.chromium.execute_script(f"return {code}", *arguments)

    def count(self, selector: str) -> int:
        return self.script("document.querySelectorAll(arguments[0]).length", selector)

    def text(self, selector: str) -> str:
        """Also of what is redrawn meanwhile."""
        return self.script("(document.querySelector(arguments[0])?.textContent ?? '').trim()", selector)

    def fill(self, selector: str, value: str) -> None:
        field = self.one(selector)
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.DELETE, value, Keys.TAB)

    def press(self, selector: str) -> None:
        button = self.one(selector)
        self.chromium.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
        wait_until(button.is_enabled, f"{selector} can be pressed")
        button.click()

    def open(self, label: str) -> None:
        """A tab or an accordion, by what is written on it."""
        quoted = f"//button[normalize-space(.)='{label}' or .//span[normalize-space(.)='{label}']]"
        quoted += "[not(@tabindex='-1')]"  # by which gradio measures the tabs
        (handle,) = [each for each in self.chromium.find_elements(By.XPATH, quoted) if each.is_displayed()]
        handle.click()

    def choose(self, selector: str, option: str) -> None:
        field = self.one(f"{selector} input")
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(option, Keys.ENTER)
        wait_until(lambda: field.get_property("value") == option, f"{selector} is {option}")

    def wait_for_text(self, selector: str, pattern: str) -> str:
        wait_until(lambda: re.search(pattern, self.text(selector)), f"{selector} says {pattern!r}")
        return self.text(selector)

    def photograph(self, name: str) -> None:
        """The whole page, not only what is in view."""
        height = self.script("document.documentElement.scrollHeight")
        width = self.script("window.innerWidth")
        self.resize(width, height)
        self.chromium.save_screenshot(BUILD / name)

    def resize(self, width: int, height: int, phone: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": phone}
        self.chromium.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


@pytest.fixture
def page(chromium, address) -> Iterator[Page]:
    """A fresh page; afterwards nothing but the app was asked for anything, and no script failed."""
    chromium.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    yield Page(chromium, address)
    messages = [json.loads(entry["message"])["message"] for entry in chromium.get_log("performance")]
    urls = [each["params"]["request"]["url"] for each in messages if each["method"] == "Network.requestWillBeSent"]
    elsewhere = [url for url in urls if urlsplit(url).scheme in ("http", "https") and not url.startswith(address)]
    assert len([url for url in urls if url.startswith(address)]) > 10, "the requests were not recorded"
    assert elsewhere == []
    assert [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_the_page_opens_with_results_says_that_the_model_is_a_toy_and_links_paper_and_repository(page):
    assert page.text("#canvas .radd-text").startswith("It was")
    assert page.count("#canvas .radd-filled") == 39
    assert page.count("#canvas .radd-mask") == 0
    assert "radd-austen is a toy" in page.text("#about")
    links = page.script("[...document.querySelectorAll('#introduction a')].map(link => link.href)")
    assert links == ["https://arxiv.org/abs/2406.03736", "https://github.com/ML-GSAI/RADD"]
    button = page.one("#fill").rect
    assert button["y"] + button["height"] < 800, "a laptop shows the button without scrolling"
    page.chromium.save_screenshot(BUILD / "page_first.png")
    page.open("Settings")
    assert page.one("#temperature input[type=number]").get_property("value") == "0.6"
    assert page.one("#top-p input[type=number]").get_property("value") == "0.9"
    for tab, results in (("Sudoku", ".radd-puzzle"), ("Score a text", "#scored .radd-heat")):
        page.open(tab)
        wait_until(lambda results=results: page.count(results) > 1, f"{tab} has a result")


def test_a_blank_is_inserted_at_the_cursor_in_place_of_what_is_selected(page):
    page.fill("#text textarea", "It was a fine day.")
    page.script("document.querySelector('#text textarea').setSelectionRange(7, 13)")
    page.fill("#blank-size input", "3")
    page.press("#insert-blank")
    field = page.one("#text textarea")
    wait_until(lambda: field.get_property("value") == "It was [MASK:3] day.", "the blank is there")
    page.press("#fill")
    page.wait_for_text("#line", "^3 of 3 .* seed")
    filled = page.text("#canvas .radd-text")
    assert filled.startswith("It was")
    assert filled.endswith(" day.")


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        (10, 10, "It was [MASK:3]"),
        (4, 9, "It w[MASK:3]"),
        (7, 7, "It was [MASK:3][MASK:5]"),
        (15, 15, "It was [MASK:5][MASK:3]"),
    ],
)
def test_a_blank_that_the_cursor_stands_in_is_replaced_whole(page, start, end, text):
    page.fill("#text textarea", "It was [MASK:5]")
    page.fill("#blank-size input", "3")
    page.script("document.querySelector('#text textarea').setSelectionRange(arguments[0], arguments[1])", start, end)
    page.press("#insert-blank")
    field = page.one("#text textarea")
    wait_until(lambda: field.get_property("value") == text, "the blank is there")


def test_several_texts_are_copied_and_saved_each_as_text_and_as_a_picture_that_plays(page, tmp_path):
    folder = {"behavior": "allow", "downloadPath": str(tmp_path)}
    page.chromium.execute_cdp_cmd("Browser.setDownloadBehavior", folder)
    page.chromium.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    page.fill("#texts input[type=number]", "2")
    page.fill("#text textarea", "She said [MASK:9] <b>&amp;</b>")
    page.press("#fill")
    page.wait_for_text("#line", "^18 of 18 .* seed")
    texts = page.script("[...document.querySelectorAll('#canvas .radd-sample')].map(each => each.dataset.text)")
    assert len(set(texts)) == 2
    assert all(text.startswith("She said") and text.endswith(" <b>&amp;</b>") for text in texts)
    for kind in ("copy", "text", "picture"):
        page.press(f"#canvas .radd-sample:nth-of-type(2) [data-radd={kind}]")
    asked = "const done = arguments[0]; navigator.clipboard.readText().then(done)"
    wait_until(lambda: page.chromium.execute_async_script(asked) == texts[1], "the text is copied")
    saved = [tmp_path / f"radd.{kind}" for kind in ("txt", "html")]
    wait_until(lambda: all(file.exists() for file in saved), "both files are saved")
    assert saved[0].read_bytes().decode() == texts[1]
    picture = saved[1].read_text(encoding="utf-8")
    assert " <b>&amp;</b>" in html.unescape(re.sub(r"<[^>]+>", "", picture)), "the text is text"
    assert 'type="range"' in picture


def test_the_picture_has_a_slider_over_the_steps_and_cannot_reach_the_page(page):
    page.chromium.switch_to.frame(page.one("#canvas .radd-replay iframe"))
    slider = page.one("input[type=range]")
    assert slider.get_property("max") == "26"
    masked = "document.querySelectorAll('b.masked').length"
    for frame, masks in ((0, 39), (26, 0)):
        page.script(
            "(arguments[0].value = arguments[1], arguments[0].dispatchEvent(new Event('input', {bubbles: true})))",
            slider,
            frame,
        )
        assert page.script(masked) == masks
    assert page.script("(() => { try { return parent.document.title } catch (error) { return error.name } })()") == (
        "SecurityError"
    )
    page.chromium.switch_to.default_content()


def test_exact_sampling_is_one_click_and_hides_the_settings_that_it_sets_aside(page):
    from radd_hf.hub.loading import load

    model, tokenizer = load(str(CHECKPOINT))
    page.open("Settings")
    assert page.one("#temperature").is_displayed()
    page.one("#exact input").click()
    wait_until(lambda: page.script("!document.querySelector('#temperature')?.offsetParent"), "it is hidden")
    page.fill("#seed input", "4")
    page.fill("#pause input[type=number]", "0")
    page.one("#form label:nth-of-type(2)").click()
    page.fill("#prefix textarea", "It was a very")
    page.fill("#length input", "24")
    page.press("#fill")
    page.wait_for_text("#line", "seed 4$")
    ids = model.generate(
        prefix="It was a very", suffix=" of spring.", length=24, exact=True, seed=4, tokenizer=tokenizer
    )
    assert page.script("document.querySelector('.radd-sample').dataset.text") == tokenizer.decode(ids[0])


def test_a_puzzle_fills_in_two_orders_side_by_side_and_one_that_has_no_solution_is_refused(page):
    page.open("Sudoku")
    page.wait_for_text("#boards", "Solved")
    shown = "getComputedStyle(document.querySelectorAll('.radd-cell')[arguments[0]]).color"
    solved = "730012900508769030106045070049203000010004600000091000080907000070006004300400200"
    page.fill("#puzzle textarea", " ".join(solved[row : row + 9] for row in range(0, 81, 9)))
    page.press("#solve")
    page.wait_for_text("#boards-line", "^47 empty cells · both boards")
    events = page.script(
        "[...document.querySelectorAll('.radd-cell')].map(cell => cell.style.getPropertyValue('--event'))"
    )
    assert sorted(map(int, events)) == sorted([*range(47)] * 2)
    last = events.index("46")
    assert page.script(shown, last) == "rgba(0, 0, 0, 0)", "the last cell appears last"
    page.chromium.save_screenshot(BUILD / "page_solving.png")
    wait_until(lambda: page.script(shown, last) == "rgb(29, 31, 36)", "the boards are full")
    (left, right) = page.script("[...document.querySelectorAll('.radd-outcome')].map(each => each.textContent)")
    assert re.fullmatch(r"(Solved|\d+ of 47 cells wrong)47 network evaluations", left)
    assert right == "Solved47 network evaluations"
    page.photograph("page_sudoku.png")
    page.press("[data-radd=again]")
    wait_until(lambda: page.script(shown, last) == "rgba(0, 0, 0, 0)", "the boards play again")

    page.fill("#puzzle textarea", "11" + "0" * 79)
    page.press("#solve")
    wait_until(lambda: "has 1 twice in row 1" in page.text(".toast-wrap"), "the puzzle is refused")
    wait_until(page.one("#solve").is_enabled, "one can try another")


def test_a_text_with_a_blank_fills_before_the_readers_eyes_and_its_probability_is_shown(page):
    page.fill("#text textarea", "It was [MASK:16] of spring")
    page.chromium.execute_script(WATCH)
    page.press("#fill")
    wait_until(lambda: page.script("window.frames_seen.length") > 2, "it has begun to fill")
    page.chromium.save_screenshot(BUILD / "page_filling.png")
    page.wait_for_text("#line", r"^16 of 16 tokens filled · \d+\.\d s · seed \d+$")
    assert re.match(r"\d+ network evaluations · \d+\.\d\d nats per token", page.text("#canvas .radd-bar"))
    frames = page.script("window.frames_seen")
    masks = [frame[0] for frame in frames]
    assert masks == sorted(masks, reverse=True)
    assert masks[0] == 16
    assert masks[-1] == 0
    assert len(set(masks)) > 4
    assert all(fresh > 0 for before, (now, fresh) in zip(masks, frames[1:], strict=False) if now < before)
    filled = page.text("#canvas .radd-text")
    assert filled.startswith("It was")
    assert filled.endswith(" of spring")
    assert page.count("#canvas .radd-filled") == page.count("#canvas .radd-heat") == 16
    assert page.text("#canvas .radd-map") == filled
    page.photograph("page_filled.png")


def test_the_same_seed_generates_the_same_text_from_a_beginning_and_an_end_in_any_order(page):
    page.open("Settings")
    page.one("#form label:nth-of-type(2)").click()
    page.fill("#prefix textarea", "My dear")
    page.fill("#suffix textarea", " in the evening.")
    page.fill("#length input", "20")
    page.choose("#method", "ordered")
    page.choose("#order", "random")
    page.fill("#pause input[type=number]", "0")
    texts = []
    for seed in (7, 8, 7):
        page.fill("#seed input", str(seed))
        page.press("#fill")
        page.wait_for_text("#line", f"seed {seed}$")
        wait_until(page.one("#fill").is_enabled, "the run is over")
        texts.append(page.text("#canvas .radd-text"))
        assert texts[-1].startswith("My dear")
        assert texts[-1].endswith(" in the evening.")
    assert texts[0] == texts[2] != texts[1]


def test_stop_ends_a_long_run_where_it_is_and_the_next_run_works(page):
    page.open("Settings")
    page.fill("#pause input[type=number]", "0.5")
    page.fill("#text textarea", "He said [MASK:100].")
    page.press("#fill")
    page.wait_for_text("#line", "^[2-9] of 100")
    page.press("#stop-fill")
    line = page.wait_for_text("#line", "Stopped")
    masks = page.count("#canvas .radd-mask")
    assert 80 < masks < 100
    assert line.startswith(f"Stopped: {100 - masks} of 100 tokens filled")
    wait_until(page.one("#fill").is_enabled, "one can generate again")
    assert not page.one("#stop-fill").is_enabled()
    time.sleep(1.5)  # three events more, if the run had gone on
    assert page.count("#canvas .radd-mask") == masks

    page.fill("#pause input[type=number]", "0")
    page.fill("#text textarea", "He said [MASK:5].")
    page.press("#fill")
    page.wait_for_text("#line", "^5 of 5 .* seed")


def test_a_page_that_is_closed_stops_generating_so_that_others_get_their_turn(chromium, address, page):
    page.open("Settings")
    page.fill("#pause input[type=number]", "1")
    page.fill("#text textarea", "[MASK:120]")
    page.press("#fill")
    page.wait_for_text("#line", "^[2-9] of 120")
    other = Page(chromium, address)
    other.fill("#text textarea", "It was [MASK:12] of spring")
    other.press("#fill")
    other.wait_for_text("#line", "^12 of 12 .* seed")  # one run at a time: the other would take two minutes
    chromium.get_log("browser")  # gradio complains that the page which was closed was listening


def test_a_reader_who_goes_back_to_the_page_can_use_it(page):
    page.chromium.get("about:blank")
    page.chromium.back()
    wait_until(lambda: page.count("#fill") == 1, "the page is back")
    page.fill("#text textarea", "It was [MASK:3] of spring")
    page.press("#fill")
    page.wait_for_text("#line", "^3 of 3 .* seed")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("#text textarea", "It was [MASK:0] of spring", "a blank is written [MASK] for one token or [MASK:n]"),
        ("#text textarea", "<i>no</i> blank", "text='<i>no</i> blank' has no blank to fill"),
        ("#text textarea", "[MASK:999]", "the text with its blanks has 999 tokens; at most 128"),
        ("#steps input", "-3", "steps=-3 must be an integer of at least 1"),
        ("#tokenizer textarea", "no-such", "tokenizer='no-such' cannot be loaded"),
    ],
)
def test_bad_input_is_explained_and_the_page_stays_usable(page, field, value, message):
    page.open("Settings")
    page.open("Another model")
    page.fill(field, value)
    page.press("#fill")
    wait_until(lambda: message in page.text(".toast-wrap"), f"the page says {message!r}")
    if "0]" in value:
        page.chromium.save_screenshot(BUILD / "page_error.png")
    wait_until(page.one("#fill").is_enabled, "one can generate again")
    assert not page.one("#stop-fill").is_enabled()


def test_another_model_is_loaded_with_its_settings_and_one_that_is_none_is_refused(page):
    page.open("Settings")
    page.open("Another model")
    page.wait_for_text("#about", "5.3 million parameters")
    page.fill("#model input", "/no/such/model")
    page.press("#load")
    wait_until(lambda: "no such folder" in page.text(".toast-wrap"), "the model is refused")
    page.fill("#model input", str(GOLDEN / "hub"))
    page.fill("#tokenizer textarea", str(CHECKPOINT))
    page.press("#load")
    wait_until(
        lambda: "it belongs to another model" in page.text(".toast-wrap"), "another model's tokenizer is refused"
    )
    assert "5.3 million parameters" in page.text("#about")
    wait_until(page.one("#load").is_enabled, "one can try another")
    page.fill("#model input", str(SUDOKU))
    page.fill("#tokenizer textarea", "")
    page.press("#load")
    page.wait_for_text("#about", "radd-sudoku")
    temperature = page.one("#temperature input[type=number]")
    wait_until(lambda: temperature.get_property("value") == "0", "its own settings are filled in")


def test_the_likelihood_of_a_text_is_shown_token_by_token(page):
    page.open("Score a text")
    page.fill("#passage textarea", "It is a truth universally acknowledged, that a single zebra must be in want.")
    page.press("#score_text")
    wait_until(lambda: page.text("#scored .radd-map").startswith("It is a truth"), "the text is scored")
    line = page.wait_for_text("#scored-line", "bits per byte")
    tokens = int(re.match(r"(\d+) tokens · \d+\.\d\d nats per token · perplexity", line)[1])
    assert page.count("#scored .radd-heat") == tokens
    page.script("[...document.querySelectorAll('#scored .radd-heat')].at(-8).focus()")
    page.photograph("page_likelihood.png")


def test_the_page_fits_a_phone_and_scrolls_to_the_result(page):
    page.resize(390, 844, phone=True)
    page.fill("#text textarea", "It was [MASK:12] of spring")
    page.press("#fill")
    page.wait_for_text("#line", "^12 of 12 .* seed")
    top = "document.querySelector('#canvas').getBoundingClientRect().top"
    wait_until(lambda: -1 <= page.script(top) < 844 / 4, "the page has scrolled to the result")
    page.chromium.save_screenshot(BUILD / "page_phone.png")
    page.open("Settings")
    for tab in ("Fill a text", "Sudoku", "Score a text"):
        page.script("window.scrollTo({top: 0, behavior: 'instant'})")
        page.open(tab)
        assert page.script("document.documentElement.scrollWidth") <= 390, tab


def test_a_page_for_other_machines_offers_only_its_own_models_whatever_is_sent_to_it():
    from gradio import Dropdown, Error, Textbox

    from radd_hf.app.page import build_page

    shipped = str(CHECKPOINT)
    page = build_page([shipped], any_model=False)
    assert str(CHECKPOINT.parent) not in json.dumps(page.get_config_file(), default=str)
    blocks = {block.elem_id: block for block in page.blocks.values()}
    assert isinstance(blocks["model"], Dropdown)
    assert blocks["model"].preprocess(CHECKPOINT.name) == CHECKPOINT.name
    with pytest.raises(Error, match="not in the list of choices"):
        blocks["model"].preprocess("someone/else")
    assert not isinstance(blocks.get("tokenizer"), Textbox)


def test_without_the_checkpoint_that_solves_puzzles_there_is_no_such_tab(tmp_path):
    from radd_hf.app.page import build_page

    (tmp_path / "model").symlink_to(CHECKPOINT)
    labels = [
        [block.label for block in build_page([str(path)]).blocks.values() if block.get_block_name() == "tabitem"]
        for path in (CHECKPOINT, tmp_path / "model")
    ]
    assert labels == [["Fill a text", "Sudoku", "Score a text"], ["Fill a text", "Score a text"]]


def test_what_gradio_would_fail_at_and_log_is_told_beforehand():
    from radd_hf.app.page import build_page
    from radd_hf.app.web import checks_of

    page = build_page([str(CHECKPOINT)])
    checks = {page.fns[index].api_name: check for index, check in checks_of(page).items()}
    inputs = {function.api_name: len(function.inputs) for function in page.fns.values()}
    assert all(page.fns[index].fn is not None for index in checks_of(page)), "scripts of the browser are not called"
    assert len(checks) < len(page.fns)
    checks["begin"]([])
    checks["show_form"]([FORMS[0]])
    for name, data in (
        ("begin", [1]),
        ("show_form", []),
        ("show_form", ["no such form"]),
        ("fill", ["x"] * inputs["fill"]),
    ):
        with pytest.raises(Exception, match=r"."):
            checks[name](data)


@pytest.mark.parametrize("settings", [{"allowed_hosts": ["page.example"]}, {"host": "0.0.0.0"}], ids=str)
def test_a_page_that_others_reach_needs_trust_for_any_model(settings):
    from radd_hf.app.web import serve

    with pytest.raises(ValueError, match="--trust-visitors"):
        serve([str(CHECKPOINT)], any_model=True, **settings)


def test_sixty_runs_that_wait_leave_the_buttons_of_another_free(address):
    from benchmarks.visitors import FILL, SCORE, Page, ask

    served = Page(address.rstrip("/"))

    def client(number: int) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(local_address=f"127.0.1.{number + 1}")
        return httpx.AsyncClient(base_url=served.address, transport=transport, timeout=GROUP_TIMEOUT)

    async def run() -> tuple[str, str, int]:
        async with contextlib.AsyncExitStack() as stack:
            *clients, other = [await stack.enter_async_context(client(number)) for number in range(11)]
            runs = [
                asyncio.create_task(ask(served, clients[number % 10], FILL, f"run-{number}", text="[MASK:126]"))
                for number in range(60)
            ]
            await asyncio.sleep(1)
            begun = await ask(served, other, "begin", "other")
            told = await ask(served, other, SCORE, "other", leave=True)  # it leaves as soon as it is told anything
            waiting = sum(not run.done() for run in runs)
            for each in runs:
                each.cancel()
            await asyncio.gather(*runs, return_exceptions=True)
            return begun, told, waiting

    begun, told, waiting = asyncio.run(run())
    assert (begun, told) == ("done", "left")
    assert waiting > 40, "gradio's own number of runs"


@pytest.mark.parametrize(
    "fields",
    [
        {"text": "[MASK:65536]" * 4000},
        {"text": "[MASK:99999999999999999999]"},
        {"text": "a" * 900_000},
        {"text": 7},
        {"text": None},
        {"steps": 10**8},
        {"seed": 2**80},
        {"model": "../../etc/passwd\0"},
        {"model": "<script>alert(1)</script>"},
        {"tokenizer": 3},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_fields_that_would_fill_the_memory_or_name_no_model_are_refused_and_the_next_visitor_is_served(address, fields):
    from benchmarks.visitors import FILL, Page, ask

    def press(session: str, **values) -> str:
        async def send() -> str:
            async with httpx.AsyncClient(base_url=address, timeout=GROUP_TIMEOUT) as client:
                return await ask(served, client, FILL, session, **values)

        return asyncio.run(send())

    served = Page(address.rstrip("/"))
    assert press("bad", **fields) == "refused"
    assert press("good", pause=0) == "done"
