"""The page in a real browser: no error, no request, filters that filter, tables that sort."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from kt_study.store import open_store
from orchestrator.results.collect import collect
from orchestrator.results.report import write_report
from tests.databases import Databases
from tests.require import require
from tests.results.synthetic import fill, make_world

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, databases: Databases) -> Path:
    folder = tmp_path_factory.mktemp("page")
    url = databases.url(folder)
    store = open_store(url, create=True)
    world = make_world(models=6, n=300, classes=12)
    fill(store, world, study="first", students=3)
    fill(store, world, study="second", objectives=("kl",), students=2)
    collect(url, folder / "results")
    return write_report(folder / "results", folder / "report")


@pytest.fixture(scope="module")
def started() -> Iterator[Chrome]:
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    require("chromium", bool(binary and driver), "needs chromium and chromium-driver: apt-get install both")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(binary)
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(str(driver)))
    yield chrome
    chrome.quit()


@pytest.fixture(params=[1280, 390])
def browser(request: pytest.FixtureRequest, started: Chrome, page: Path) -> Chrome:
    """The page, loaded anew, at a desktop's and at a phone's width."""
    size = {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": request.param < 500}
    started.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    started.get_log("performance")
    started.get_log("browser")
    started.get(page.as_uri())
    return started


def wait(browser: Chrome, script: str) -> Any:
    """The value of a script once it is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, TIMEOUT_S, 0.1).until(lambda chrome: chrome.execute_script(f"return {script}"))


def draw(browser: Chrome, chart: str) -> None:
    browser.execute_script(f"document.getElementById('{chart}').scrollIntoView()")
    wait(browser, f"'drawn' in document.getElementById('{chart}').dataset")


def marks(browser: Chrome, chart: str) -> int:
    """Points that a chart shows."""
    return int(
        browser.execute_script(f"return document.querySelectorAll('#{chart} .mark-symbol.role-mark path').length")
    )


def choose(browser: Chrome, name: str, value: str) -> None:
    browser.execute_script(
        f"const s = document.querySelector('[data-filter={name}]'); s.value = '{value}';"
        "s.dispatchEvent(new Event('change'));"
    )


def test_it_loads_without_an_error_or_a_request(browser: Chrome, page: Path) -> None:
    charts = browser.execute_script(
        "return [...document.querySelectorAll('article:not([hidden]) .chart')].map((e) => e.id)"
    )
    assert len(charts) > 10
    for chart in charts:
        draw(browser, chart)
    assert browser.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} == {page.as_uri()}


def test_nothing_is_wider_than_the_screen(browser: Chrome) -> None:
    draw(browser, "first-figure-2a-0")
    wide = browser.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0
    chart = browser.execute_script(
        "return document.querySelector('#first-figure-2a-0 svg').getBoundingClientRect().width"
    )
    place = browser.execute_script("return document.getElementById('first-figure-2a-0').getBoundingClientRect().width")
    assert 0.8 * place <= chart <= place + 1


CUT_OFF = """[...document.querySelectorAll('article:not([hidden]) .chart svg')].flatMap((svg) => {
  const room = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter((text) => {
    const box = text.getBoundingClientRect();
    return text.textContent.trim() && box.width && (box.top < room.top - 2 || box.bottom > room.bottom + 2
      || box.left < room.left - 2 || box.right > room.right + 2);
  }).map((text) => svg.closest('.chart').id + ': ' + text.textContent);
})"""
"""Texts of the charts that reach over the edge of their image by more than a rounding."""


def test_no_text_is_cut_off_also_when_the_phone_is_turned(browser: Chrome) -> None:
    charts = browser.execute_script(
        "return [...document.querySelectorAll('article:not([hidden]) .chart')].map((e) => e.id)"
    )
    for chart in charts:
        draw(browser, chart)
    assert browser.execute_script(f"return {CUT_OFF}") == []
    for width in (700, 360):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        wait(browser, "[...document.querySelectorAll('article:not([hidden]) .chart')].every((e) => "
                      "Math.abs(e.clientWidth - e.querySelector('svg').clientWidth) < 2)")  # fmt: skip
        wait(browser, f"{CUT_OFF}.length == 0")


def test_a_choice_without_rows_shows_no_axes_and_no_warning(browser: Chrome) -> None:
    for chart in ("first-figure-7-0", "first-figure-7-1", "first-figure-4a-0"):
        draw(browser, chart)
    note = "document.getElementById('first-figure-7-1').nextElementSibling"
    assert browser.execute_script(f"return {note}.hidden")
    choose(browser, "objective", "KL")
    wait(browser, f"!{note}.hidden")
    assert browser.execute_script(f"return {note}.textContent") == "No rows for this choice."
    visible = "getComputedStyle(document.getElementById('first-figure-7-{}')).visibility"
    assert browser.execute_script(f"return [{visible.format(0)}, {visible.format(1)}]") == ["visible", "hidden"]
    assert browser.execute_script("return [...document.querySelectorAll('.whole')].every((e) => !e.hidden)")
    choose(browser, "family", "hybrid")
    choose(browser, "objective", "XE-KL")
    wait(browser, "!document.getElementById('first-figure-7-0').nextElementSibling.hidden")
    choose(browser, "family", "")
    choose(browser, "objective", "")
    wait(browser, f"{note}.hidden")
    assert browser.execute_script("return [...document.querySelectorAll('.whole')].every((e) => e.hidden)")
    assert browser.get_log("browser") == []


def test_a_filter_changes_a_figure_and_a_table(browser: Chrome) -> None:
    chart = "first-figure-4a-0"
    draw(browser, chart)
    students, objectives = 3, 3
    assert marks(browser, chart) == students * objectives + objectives  # a student each, and the paper's diamonds
    choose(browser, "family", "MLP")
    wait(browser, f"document.querySelectorAll('#{chart} .mark-symbol.role-mark path').length == {2 * objectives}")
    for objective in ("XE-KL", "KL+DP"):
        choose(browser, "objective", objective)
        wait(browser, f"document.querySelectorAll('#{chart} .mark-symbol.role-mark path').length == 2")
    rows = "[...document.querySelectorAll('#first-table-students tbody tr')].filter((row) => !row.hidden)"
    assert browser.execute_script(
        f"return {rows}.map((row) => row.cells[0].textContent + row.cells[2].textContent)"
    ) == ["KL+DPMLP"]
    choose(browser, "family", "")
    choose(browser, "objective", "")
    wait(browser, f"document.querySelectorAll('#{chart} .mark-symbol.role-mark path').length == 12")


def test_a_table_sorts_by_number_and_by_name(browser: Chrome) -> None:
    def column(at: int) -> list[str]:
        script = f"[...document.querySelectorAll('#first-table-7 tbody tr')].map((row) => row.cells[{at}].textContent)"
        return list(browser.execute_script(f"return {script}"))

    heads = browser.execute_script(
        "return [...document.querySelectorAll('#first-table-7 th')].map((e) => e.textContent)"
    )
    at = heads.index("KL+DP")
    click = f"document.querySelectorAll('#first-table-7 th button')[{at}].click()"
    before = column(at)
    browser.execute_script(click)
    assert column(at) == sorted(before, key=float, reverse=True) != before
    browser.execute_script(click)
    assert column(at) == sorted(before, key=float)
    browser.execute_script("document.querySelectorAll('#first-table-7 th button')[0].click()")
    assert column(0) == sorted(column(0), reverse=True)
    sorted_by = browser.execute_script("return document.querySelector('#first-table-7 [aria-sort]').textContent")
    assert sorted_by == "student"


def test_studies_take_turns(browser: Chrome) -> None:
    shown = "[...document.querySelectorAll('article')].filter((a) => !a.hidden).map((a) => a.dataset.study)"
    assert browser.execute_script(f"return {shown}") == ["first"]
    choose(browser, "study", "second")
    assert browser.execute_script(f"return {shown}") == ["second"]
    draw(browser, "second-figure-4a-0")
    assert marks(browser, "second-figure-4a-0") == 2 + 1


def test_light_and_dark(browser: Chrome) -> None:
    def ground() -> str:
        return str(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))

    def with_scheme(scheme: str) -> str:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        return ground()

    light, dark = with_scheme("light"), with_scheme("dark")
    assert light == "rgb(255, 255, 255)" != dark
    draw(browser, "first-figure-1a-0")
    axis = browser.execute_script(
        "return getComputedStyle(document.querySelector('#first-figure-1a-0 .role-axis-label text')).fill"
    )
    assert axis == "rgb(165, 175, 184)"
    browser.execute_script("document.getElementById('theme').click()")
    assert ground() == light
    with_scheme("light")
    browser.execute_script("document.getElementById('theme').click()")
    assert ground() == dark
