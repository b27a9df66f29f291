"""The report in a real browser: nothing is loaded, nothing complains, filters filter, and it reads at 1280 and 400 px.

Screenshots of both widths and schemes are kept under $LORE_SCREENSHOTS, or in pytest's folder; the test prints where.
"""

import json
import os
from base64 import b64decode
from pathlib import Path

import pytest
from chromium_for_tests import chromium
from report_for_tests import PLANTED, TIERS, make_data, make_report

WIDTHS = (1280, 400)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = chromium(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("page")
    make_report(folder / "report.html", make_data(folder / "pairs.parquet"))
    return (folder / "report.html").as_uri()


@pytest.fixture
def opened(browser, page):
    """Opens the page, from nothing, at some state of its address."""

    def open_at(state: str = "", width: int = 1280, scheme: str = "light"):
        screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
        browser.get("about:blank")
        browser.get(page + state)
        return browser

    return open_at


def seen(browser) -> list[dict]:
    """data-* and text of the cards that are shown."""
    return browser.execute_script(
        "return [...document.querySelectorAll('.mistake')].filter(one => one.offsetParent)"
        ".map(one => ({...one.dataset, text: one.textContent.toLowerCase()}))"
    )


def set_to(browser, name: str, value: str) -> None:
    """Chooses with the keyboard's events, as a reader would."""
    browser.execute_script(
        "const control = document.querySelector(`[name=${arguments[0]}]`); control.value = arguments[1];"
        "control.dispatchEvent(new Event(control.tagName === 'SELECT' ? 'change' : 'input', {bubbles: true}))",
        name,
        value,
    )


def state_of(browser) -> str:
    return browser.execute_script("return location.hash")


def test_nothing_is_loaded_nothing_complains_and_no_planted_script_runs(opened, page):
    browser = opened()
    for log in ("browser", "performance"):
        browser.get_log(log)
    browser = opened("#judge=1")
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert {url.partition("#")[0] for url in asked if not url.startswith("data:")} <= {page, "about:blank"}
    assert page in {url.partition("#")[0] for url in asked}
    assert browser.get_log("browser") == []
    assert browser.execute_script("return window.planted") is None
    assert PLANTED[:30] in browser.execute_script("return document.querySelector('.mistake').textContent")


def test_a_script_that_is_not_the_page_s_own_is_refused(opened):
    browser = opened()
    browser.execute_script(
        "const one = document.createElement('script'); one.textContent = 'window.planted = 3'; document.body.append(one)"
    )
    assert browser.execute_script("return window.planted") is None
    assert any("Content Security Policy" in entry["message"] for entry in browser.get_log("browser"))


def test_each_filter_shows_the_cards_it_names_and_no_others(opened):
    browser = opened()
    every = seen(browser)
    counted = browser.find_element("id", "shown")
    assert counted.text == f"{len(every)} of {len(every)} shown" and len(every) == 40
    for name in ("judge", "label", "verdict", "kinds", "slices", "photo"):
        values = browser.execute_script(
            "return [...document.querySelector(`[name=${arguments[0]}]`).options].map(one => one.value)", name
        )
        narrowed = 0
        for value in values[1:4]:
            set_to(browser, name, value)
            expected = [card for card in every if value in card[name].split(" ")]
            assert seen(browser) == expected
            assert counted.text == f"{len(expected)} of {len(every)} shown"
            narrowed += len(expected) < len(every)
        assert narrowed, f"no value of {name} hides a card"
        set_to(browser, name, "")
    assert seen(browser) == every and state_of(browser) == ""


def test_filters_and_words_join_and_an_empty_choice_says_so(opened):
    browser = opened()
    every = seen(browser)
    word = next(word for word in every[-1]["text"].split() if word.startswith("title"))
    set_to(browser, "q", f"红色  {word.upper()}")
    expected = [card for card in every if word in card["text"]]
    assert seen(browser) == expected and 0 < len(expected) < len(every)
    set_to(browser, "judge", expected[0]["judge"])
    set_to(browser, "kinds", "none" if "none" not in expected[0]["kinds"] else "far")
    assert seen(browser) == [] and browser.find_element("id", "nothing").is_displayed()
    browser.find_element("id", "clear").click()
    assert seen(browser) == every and not browser.find_element("id", "nothing").is_displayed()


def test_the_address_restores_a_view_and_survives_nonsense(opened):
    browser = opened()
    set_to(browser, "judge", "1")
    set_to(browser, "photo", "yes")
    set_to(browser, "q", "红色 & title")
    set_to(browser, "view", "acc_2-prior")
    wanted, state = seen(browser), state_of(browser)
    assert wanted and "judge=1" in state
    browser = opened(state)
    assert seen(browser) == wanted and state_of(browser) == state
    assert browser.find_element("name", "view").get_attribute("value") == "acc_2-prior"
    browser = opened("#judge=99&kinds=%3Cscript%3E&view=__proto__&q=")
    assert len(seen(browser)) == 40 and browser.find_element("name", "view").get_attribute("value") == "acc_k-own"
    browser.execute_script("location.hash = '#judge=0'")
    assert {card["judge"] for card in seen(browser)} == {"0"}
    assert browser.get_log("browser") == []


def test_one_slice_view_is_shown_and_the_keyboard_reaches_everything(opened):
    from selenium.webdriver.common.keys import Keys

    browser = opened()
    shown = "return [...document.querySelectorAll('.view')].filter(one => one.offsetParent).map(one => one.dataset.view)"
    assert browser.execute_script(shown) == ["acc_k-own"]
    set_to(browser, "view", "macro_f1-own")
    assert browser.execute_script(shown) == ["macro_f1-own"]
    label = browser.find_element("name", "label")
    browser.execute_script("arguments[0].focus()", label)
    label.send_keys(Keys.ARROW_DOWN)
    assert {card["label"] for card in seen(browser)} == {"0"}
    reached = []
    for _ in range(6):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        active = browser.switch_to.active_element
        reached.append(active.get_attribute("name") or active.get_attribute("id"))
    assert reached == ["verdict", "kinds", "slices", "photo", "q", "clear"]


def test_without_scripts_everything_stands_there_and_no_dead_filter(opened):
    browser = opened()
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser = opened()
        assert not browser.find_element("id", "filters").is_displayed()
        assert not browser.find_element("id", "view-chooser").is_displayed()
        assert all(one.is_displayed() for one in browser.find_elements("css selector", ".mistake, .view"))
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", WIDTHS)
def test_it_fits_its_width_in_both_schemes(opened, width, tmp_path):
    folder = Path(os.environ.get("LORE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    papers = {}
    for scheme in ("light", "dark"):
        browser = opened(width=width, scheme=scheme)
        whole = browser.execute_script(
            "return [document.documentElement.scrollWidth, document.documentElement.scrollHeight, innerWidth]"
        )
        assert whole[0] <= width and whole[2] == width
        outside = browser.execute_script(
            "return [...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, svg, .bar')"
            " && one.getBoundingClientRect().right > innerWidth + 1).map(one => one.outerHTML.slice(0, 80))"
        )
        assert outside == []
        papers[scheme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        area = {"x": 0, "y": 0, "width": width, "height": min(whole[1], 9000), "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": area})
        path = folder / f"report-{width}-{scheme}.png"
        path.write_bytes(b64decode(shot["data"]))
        assert path.stat().st_size > 20_000
        print(f"screenshot: {path}")
    assert papers["light"] == "rgb(255, 255, 255)" and papers["dark"] != papers["light"]


def test_paper_takes_whole_tables_on_white(opened):
    browser = opened(width=740, scheme="dark")
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": dark})
    browser.execute_script("window.dispatchEvent(new Event('beforeprint'))")
    try:
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 740
        assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not browser.find_element("id", "filters").is_displayed()
        assert all(one.get_attribute("open") for one in browser.find_elements("css selector", "details"))
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_labels_are_offered_worst_first_by_name(opened):
    browser = opened()
    texts = [one.text for one in browser.find_elements("css selector", "[name=verdict] option")]
    assert [text.split()[0] for text in texts] == ["all", *TIERS, "none"]
