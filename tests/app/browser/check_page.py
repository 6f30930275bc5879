# Copyright 2026 The radd_hf authors. Licensed under the Apache License, Version 2.0.
"""The web page in a real browser: `make test-browser`, which installs gradio, Selenium and Debian's Chromium for it.

Named so that `make test`, where none of them is installed, passes it by. Screenshots are left in build/.
"""

import asyncio
import contextlib
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
from support.paths import CHECKPOINT, GOLDEN, ROOT

BUILD = ROOT / "build"
GROUP_TIMEOUT = 30  # seconds, for a busy machine; nothing here takes more than a few
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

# Notes every redrawing of the canvas, which is faster than a busy machine can be asked: masks, and newest tokens.
WATCH = """
window.frames_seen = [];
new MutationObserver(() => {
    const count = what => document.querySelectorAll("#canvas .radd-" + what).length;
    if (count("mask") + count("written") > 0) window.frames_seen.push([count("mask"), count("fresh")]);
}).observe(document.querySelector("#canvas"), {subtree: true, childList: true, characterData: true});
"""


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + GROUP_TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {GROUP_TIMEOUT} s"
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
            wait_until(lambda: app.poll() is not None or "Running on" in log.read_text(), "the app serves the page")
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
        wait_until(lambda: self.all("#write"), "the page is there")

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


def test_a_text_with_a_blank_fills_before_the_readers_eyes_and_its_likelihood_is_shown(page):
    page.fill("#text textarea", "It was [MASK:16] of spring")
    page.chromium.execute_script(WATCH)
    page.press("#write")
    wait_until(lambda: 0 < page.count("#canvas .radd-mask") < 16 or page.text("#heat"), "it has begun to write")
    page.chromium.save_screenshot(BUILD / "page_writing.png")
    line = page.wait_for_text("#line", "seed")
    assert re.match(r"16 of 16 tokens written · \d+ network evaluations · \d+\.\d s · \d+\.\d\d nats per token", line)
    frames = page.script("window.frames_seen")
    masks = [frame[0] for frame in frames]
    assert masks == sorted(masks, reverse=True)
    assert masks[0] == 16
    assert masks[-1] == 0
    assert len(set(masks)) > 4
    assert all(fresh > 0 for before, (now, fresh) in zip(masks, frames[1:], strict=False) if now < before)
    written = page.text("#canvas .radd-text")
    assert written.startswith("It was")
    assert written.endswith(" of spring")
    assert page.count("#canvas .radd-written") == page.count("#heat .radd-heat") == 16
    assert page.text("#heat .radd-map") == written
    page.photograph("page_written.png")


def test_the_same_seed_writes_the_same_text_from_a_beginning_and_an_end_in_any_order(page):
    page.open("How it writes")
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
        page.press("#write")
        page.wait_for_text("#line", f"seed {seed}$")
        texts.append(page.text("#canvas .radd-text"))
        assert texts[-1].startswith("My dear")
        assert texts[-1].endswith(" in the evening.")
    assert texts[0] == texts[2] != texts[1]


def test_stop_ends_a_long_run_where_it_is_and_the_next_run_works(page):
    page.open("How it writes")
    page.fill("#pause input[type=number]", "0.5")
    page.fill("#text textarea", "He said [MASK:100].")
    page.press("#write")
    page.wait_for_text("#line", "^[2-9] of 100")
    page.press("#stop-write")
    line = page.wait_for_text("#line", "Stopped")
    masks = page.count("#canvas .radd-mask")
    assert 80 < masks < 100
    assert line.startswith(f"Stopped: {100 - masks} of 100 tokens written")
    wait_until(page.one("#write").is_enabled, "one can write again")
    assert not page.one("#stop-write").is_enabled()
    time.sleep(1.5)  # three events more, if the run had gone on
    assert page.count("#canvas .radd-mask") == masks

    page.fill("#pause input[type=number]", "0")
    page.fill("#text textarea", "He said [MASK:5].")
    page.press("#write")
    page.wait_for_text("#line", "^5 of 5 .* seed")


def test_a_page_that_is_closed_stops_writing_so_that_others_get_their_turn(chromium, address, page):
    page.open("How it writes")
    page.fill("#pause input[type=number]", "1")
    page.fill("#text textarea", "[MASK:120]")
    page.press("#write")
    page.wait_for_text("#line", "^[2-9] of 120")
    other = Page(chromium, address)
    other.press("#write")
    other.wait_for_text("#line", "^12 of 12 .* seed")  # one run at a time: the other would take two minutes
    chromium.get_log("browser")  # gradio complains that the page which was closed was listening


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
    page.open("How it writes")
    page.open("Model")
    page.fill(field, value)
    page.press("#write")
    wait_until(lambda: message in page.text(".toast-wrap"), f"the page says {message!r}")
    if "0]" in value:
        page.chromium.save_screenshot(BUILD / "page_error.png")
    wait_until(page.one("#write").is_enabled, "one can write again")
    assert not page.one("#stop-write").is_enabled()


def test_another_model_can_be_chosen_and_one_that_is_none_is_refused(page):
    page.open("Model")
    page.wait_for_text("#about", "5.3 million parameters")
    page.fill("#model input", "/no/such/model")
    page.press("#load")
    wait_until(lambda: "is no folder here" in page.text(".toast-wrap"), "the model is refused")
    page.fill("#model input", str(GOLDEN / "hub"))
    page.fill("#tokenizer textarea", str(CHECKPOINT))
    page.press("#load")
    wait_until(lambda: "more than the model's 97" in page.text(".toast-wrap"), "another model's tokenizer is refused")
    assert "5.3 million parameters" in page.text("#about")


def test_the_likelihood_of_a_text_is_shown_token_by_token(page):
    page.open("Likelihood of a text")
    page.fill("#passage textarea", "It is a truth universally acknowledged, that a single zebra must be in want.")
    page.press("#judge")
    line = page.wait_for_text("#judged-line", "bits per byte")
    tokens = int(re.match(r"(\d+) tokens · \d+\.\d\d nats per token · perplexity", line)[1])
    assert page.count("#judged .radd-heat") == tokens
    assert page.text("#judged .radd-map").startswith("It is a truth")
    page.script("[...document.querySelectorAll('#judged .radd-heat')].at(-8).focus()")
    page.photograph("page_likelihood.png")


def test_the_page_fits_a_phone(page):
    page.resize(390, 844, phone=True)
    page.open("How it writes")
    page.press("#write")
    page.wait_for_text("#line", "seed")
    assert page.script("document.documentElement.scrollWidth") <= 390
    page.photograph("page_phone.png")


def test_a_page_for_other_machines_offers_only_its_own_models_whatever_is_sent_to_it():
    from gradio import Dropdown, Error, Textbox

    from radd_hf.app.web import build_page

    shipped = str(CHECKPOINT)
    page = build_page([shipped], any_model=False)
    assert str(CHECKPOINT.parent) not in json.dumps(page.get_config_file(), default=str)
    blocks = {block.elem_id: block for block in page.blocks.values()}
    assert isinstance(blocks["model"], Dropdown)
    assert blocks["model"].preprocess(CHECKPOINT.name) == CHECKPOINT.name
    with pytest.raises(Error, match="not in the list of choices"):
        blocks["model"].preprocess("someone/else")
    assert not isinstance(blocks.get("tokenizer"), Textbox)


def test_what_gradio_would_fail_at_and_log_is_told_beforehand():
    from radd_hf.app.web import build_page, checks_of

    page = build_page([str(CHECKPOINT)])
    checks = {page.fns[index].api_name: check for index, check in checks_of(page).items()}
    checks["begin"]([])
    checks["show_form"]([FORMS[0]])
    for name, data in (("begin", [1]), ("show_form", []), ("show_form", ["no such form"]), ("go", ["x"] * 17)):
        with pytest.raises(Exception, match=r"."):
            checks[name](data)


@pytest.mark.parametrize("settings", [{"allowed_hosts": ["page.example"]}, {"host": "0.0.0.0"}], ids=str)
def test_a_page_that_others_reach_needs_trust_for_any_model(settings):
    from radd_hf.app.web import serve

    with pytest.raises(ValueError, match="--trust-visitors"):
        serve([str(CHECKPOINT)], any_model=True, **settings)


def test_sixty_runs_that_wait_leave_the_buttons_of_another_free(address):
    from benchmarks.visitors import SCORE, WRITE, Page, ask

    served = Page(address.rstrip("/"))

    def client(number: int) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(local_address=f"127.0.1.{number + 1}")
        return httpx.AsyncClient(base_url=served.address, transport=transport, timeout=GROUP_TIMEOUT)

    async def run() -> tuple[str, str, int]:
        async with contextlib.AsyncExitStack() as stack:
            *clients, other = [await stack.enter_async_context(client(number)) for number in range(11)]
            runs = [
                asyncio.create_task(ask(served, clients[number % 10], WRITE, f"run-{number}", text="[MASK:126]"))
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
    ids=str,
)
def test_fields_that_would_fill_the_memory_or_name_no_model_are_refused_and_the_next_visitor_is_served(address, fields):
    from benchmarks.visitors import WRITE, Page, ask

    def press(session: str, **values) -> str:
        async def send() -> str:
            async with httpx.AsyncClient(base_url=address, timeout=GROUP_TIMEOUT) as client:
                return await ask(served, client, WRITE, session, **values)

        return asyncio.run(send())

    served = Page(address.rstrip("/"))
    assert press("bad", **fields) == "refused"
    assert press("good", pause=0) == "done"
