"""The page of `lore serve nearby` in a real browser, on a hostile town: it asks, shows map, pins and evidence, and loads nothing.

Screenshots of both widths and schemes are kept under $LORE_SCREENSHOTS, or in pytest's folder; the test prints where.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from base64 import b64decode
from pathlib import Path

import pytest
from chromium_for_tests import chromium
from nearby_town_for_tests import ORDER, PLACES, relations_file

from lore.nearby.town import write_town
from lore.places.place import Place

pytestmark = pytest.mark.slow
PLANTED = "<img src=x onerror=window.planted=1><script>window.planted=2</script>"
GRANT_PARK = [(41.8810, -87.624), (41.8810, -87.6175), (41.8675, -87.6165), (41.8675, -87.624), (41.8810, -87.624)]
LOOP = [(41.8875, -87.6365), (41.8875, -87.6245), (41.8675, -87.6245), (41.8675, -87.6345), (41.8875, -87.6365)]
HOSTILE = [
    Place(
        'h"]1',
        f"{PLANTED} Cafe",
        41.8795,
        -87.629,
        classes=["amenity=cafe"],
        tags={"website": "javascript:planted=3"},
        hours="24/7",
    ),
    Place("h2", "Caf\u202egpj.exe\u2066 Ink", 41.8788, -87.6315, classes=["amenity=cafe"], text=ORDER, hours=f"24/7 {PLANTED}"),
    Place("h3", f"{PLANTED} Park", 41.874, -87.62, kind="area", classes=["leisure=park"], outline=GRANT_PARK),
    Place("h4", "The Loop", 41.8775, -87.6305, kind="area", classes=['"><script>window.planted=4</script>'], outline=LOOP),
    Place("h5", f"javascript:planted=5 {PLANTED}", 41.8795, -87.629, kind="post", about='h"]1', text=f"coffee {ORDER} {PLANTED}"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    started = chromium(tmp_path_factory.mktemp("profile"))
    yield started
    started.quit()


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """(address, lines of the log) of a service; the log is whole once it has ended."""
    folder = tmp_path_factory.mktemp("town")
    write_town(folder / "town.db", [*PLACES, *HOSTILE], {"country": "US", "timezone": "America/Chicago"})
    command = [sys.executable, "-m", "lore", "serve", "nearby", str(folder / "town.db"), "--port", "0"]
    command += ["--relations", str(relations_file(folder))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        lines: list[str] = []
        try:
            address = process.stdout.readline().split()[2]
            until_ready(address)
            yield address, lines
        finally:
            process.send_signal(signal.SIGTERM)
            lines += process.communicate(timeout=60)[1].splitlines()
            assert process.returncode == 0
            assert all(json.loads(line)["status"] == 200 for line in lines), lines
            assert not any(word in line for line in lines for word in ("cafe1", "41.88", "coffee", "planted"))


def until_ready(address: str) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/ready", timeout=10).close()
            return
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.fixture
def opened(browser, served):
    """Opens the page at a width."""

    def open_at(width: int = 1280, scheme: str = "light"):
        screen = {"width": width, "height": 860, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
        browser.get("about:blank")
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.get(served[0])
        browser.find_element("css selector", "[data-lang=en]").click()
        return browser

    return open_at


def asked(browser, text: str, at: str = "41.88, -87.63"):
    from selenium.webdriver.support.ui import WebDriverWait

    browser.execute_script("document.querySelector('#result').replaceChildren()")
    for name, value in (("from", at), ("question", text)):
        field = browser.find_element("id", name)
        field.clear()
        field.send_keys(value)
    browser.find_element("css selector", "#ask .go").click()
    WebDriverWait(browser, 20).until(lambda one: one.find_elements("css selector", "#result .answer"))


def texts(browser, selector: str) -> list[str]:
    return browser.execute_script("return [...document.querySelectorAll(arguments[0])].map(one => one.textContent)", selector)


@pytest.mark.parametrize("width", [1280, 400])
def test_a_question_shows_answer_map_pins_and_evidence_at_both_widths(opened, served, width, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    folder = Path(os.environ.get("LORE_SCREENSHOTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    papers = {}
    for scheme in ("light", "dark"):
        browser = opened(width, scheme)
        asked(browser, "coffee, no chains")
        pins = texts(browser, "#map .pin > text:first-of-type")
        assert sorted(pins) == ["1", "2", "3", "4"] == texts(browser, ".places .card h3 .cite")
        assert texts(browser, ".answer .cite")[0] == "1" and "Blue Door" in texts(browser, ".answer")[0]
        evidence = texts(browser, ".card .evidence")[0]
        assert all(word in evidence for word in ("graph", "coffee → cafe", "map", "of 15", "rules", "within the walk"))
        WebDriverWait(browser, 20).until(lambda one: one.find_elements("css selector", "#map .outline"))
        assert texts(browser, "#map .area") == ["The Loop"] and browser.find_elements("css selector", "#map .walk, #map .you")
        assert texts(browser, "#chips li")[:2] == ["coffee×", "not chain"]
        page = browser.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth, document.documentElement.scrollHeight]"
        )
        assert page[0] <= width and page[1] == width
        outside = (
            "return [...document.querySelectorAll('main *:not(svg *)')]"
            ".filter(one => one.getBoundingClientRect().right > innerWidth + 1).length"
        )
        assert browser.execute_script(outside) == 0
        papers[scheme] = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        area = {"x": 0, "y": 0, "width": width, "height": min(page[2], 4000), "scale": 1}
        shot = browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": area})
        path = folder / f"nearby-{width}-{scheme}.png"
        path.write_bytes(b64decode(shot["data"]))
        print(f"screenshot: {path}")
        messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = {one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"}
        assert {url for url in urls if not url.startswith((f"{served[0]}/", "about:", "chrome:", "data:"))} == set()
        assert any(url.startswith(f"{served[0]}/map?bbox=") for url in urls) and f"{served[0]}/ask" in urls
        assert [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]] == []
    assert papers["light"] == "rgb(255, 255, 255)" != papers["dark"]


def test_a_hostile_town_is_shown_as_text(opened):
    browser = opened()
    asked(browser, "coffee")
    browser.find_element("css selector", "details.layers summary").click()
    assert browser.execute_script("return window.planted") is None
    assert (
        browser.execute_script(
            "return document.querySelectorAll('main img, main script, main iframe, main [href], #map script').length"
        )
        == 0
    )
    shown = " ".join(texts(browser, "main"))
    assert "<script>window.planted" in " ".join(texts(browser, ".card bdi")), "the name stands there as text"
    assert "\u202e" not in shown and "\u2066" not in shown and "\x1b" not in shown
    browser.execute_script(
        "const one = document.createElement('script'); one.textContent = 'window.planted = 9'; document.body.append(one);"
        "const image = document.createElement('img'); image.src = 'https://elsewhere.example/x.png'; document.body.append(image)"
    )
    assert browser.execute_script("return window.planted") is None
    refused = [entry["message"] for entry in browser.get_log("browser") if "Content Security Policy" in entry["message"]]
    assert len(refused) == 2


def test_citations_pins_and_cards_point_at_one_another(opened):
    browser = opened()
    asked(browser, "coffee, no chains")
    browser.find_elements("css selector", ".answer .cite")[1].click()
    chosen = "return [...document.querySelectorAll('.on')].map(one => one.dataset.id)"
    ids = browser.execute_script(chosen)
    assert len(set(ids)) == 1 and len(ids) == 4, "in the answer, on the map, the card and its number"
    pin = browser.execute_script(  # in one step: the map is drawn again when its data arrive
        "const pin = document.querySelector('#map .pin:not(.on)');"
        "pin.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true})); return pin.dataset.id"
    )
    assert set(browser.execute_script(chosen)) == {pin} != set(ids)


def test_what_was_understood_is_corrected_and_asked_again(opened):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    browser = opened()
    asked(browser, "coffee near Union Station, 5 minutes")
    assert texts(browser, "#chips li")[:2] == ["coffee×", "Around: Union Station×"]
    assert browser.find_element("id", "minutes").get_attribute("placeholder") == "5"
    wait = WebDriverWait(browser, 20)
    browser.find_elements("css selector", "#chips button")[1].click()
    wait.until(lambda one: "Around: Union Station×" not in texts(one, "#chips li"))
    browser.find_element("id", "add").send_keys("quiet to work", Keys.ENTER)
    wait.until(lambda one: texts(one, "#chips li")[:2] == ["coffee×", "quiet to work×"])
    browser.find_element("id", "minutes").send_keys("12", Keys.ENTER)
    browser.find_element("css selector", "#ask .go").click()
    wait.until(lambda one: "12 min on foot" in texts(one, "#chips li"))
    browser.find_element("id", "reset").click()
    wait.until(lambda one: "Around: Union Station×" in texts(one, "#chips li"))
    browser.find_element("css selector", "[data-lang=zh]").click()
    assert texts(browser, "#understood h2") == ["理解为"] and texts(browser, "#chips li")[0] == "咖啡×"


def test_the_map_sets_the_position_by_click_and_by_keyboard(opened):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    browser = opened()
    place = browser.find_element("id", "map")
    ActionChains(browser).move_to_element_with_offset(place, 60, 80).click().perform()
    lat, lon = map(float, browser.find_element("id", "from").get_attribute("value").split(","))
    assert 41.86 < lat < 41.92 and -87.65 < lon < -87.6
    browser.execute_script("arguments[0].focus()", place)
    ActionChains(browser).send_keys(Keys.ARROW_UP, Keys.ARROW_UP, "+", Keys.ENTER).perform()
    moved = float(browser.find_element("id", "from").get_attribute("value").split(",")[0])
    assert moved > lat


def test_visits_are_read_in_the_page_and_give_two_lists(opened, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    file = tmp_path / "visits.csv"
    file.write_text(
        'user,place_id,time,note\nann,cafe1,2026-11-20 09:00,"a, ""b"""\nann,lib,2026-11-21 10:00,x\nbob,cafe3,2026-11-21 10:00,y\n'
    )
    browser = opened(400)
    browser.find_element("id", "tab-me").click()
    browser.find_element("id", "visits").send_keys(str(file))
    wait = WebDriverWait(browser, 20)
    wait.until(lambda one: "2 visits are ready" in one.find_element("id", "read").text)
    field = browser.find_element("id", "from")
    field.clear()
    field.send_keys("41.88, -87.63")
    browser.find_element("css selector", "#me .go").click()
    wait.until(lambda one: len(one.find_elements("css selector", "#result .places")) == 2)
    yours, new = (texts(browser, f"#result .places:nth-of-type({at}) h3 bdi") for at in (1, 2))
    assert set(yours) == {"Blue Door", "Harold's Library"} and not set(yours) & set(new) and "星光咖啡" in new
    assert texts(browser, ".card .evidence dt")[:3] == ["familiar", "near", "popular"]
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 400
    browser.find_element("id", "forget").click()
    assert (
        not browser.find_elements("css selector", "#result .card")
        and not browser.find_element("css selector", "#me .go").is_enabled()
    )


def test_errors_of_the_service_are_shown(opened):
    browser = opened()
    browser.find_element("id", "when").send_keys("25:00")
    browser.find_element("id", "question").send_keys("coffee")
    browser.find_element("id", "from").clear()
    browser.find_element("css selector", "#ask .go").click()
    assert "latitude, longitude" in browser.find_element("id", "error").text
