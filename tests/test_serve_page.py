"""The page of `spt-jax serve` in a real browser: Chromium without a window."""

import json
import os
import shutil

import pytest
from support import serving, tiny

webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
pytest.importorskip("uvicorn", reason="needs the extra `serve`")
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver"),
]

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402
from support.server import Running  # noqa: E402

from spt_jax.config.devices import MeshConfig  # noqa: E402
from spt_jax.models.backbone import load_backbone  # noqa: E402
from spt_jax.serving.engine import Engine  # noqa: E402


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    paths = serving.write_prompts(folder)
    backbone = load_backbone(str(folder / "tiny"), mesh=MeshConfig(data=1))
    with Engine(backbone, paths, serving.CONFIG) as engine:
        engine.wait_until_ready(300)
        with Running(engine) as running:
            yield running.url


@pytest.fixture
def browser(address, monkeypatch):
    monkeypatch.setenv("SE_OFFLINE", "true")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=900,1100"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(DRIVER, env={**os.environ, "NO_PROXY": "127.0.0.1"})
    browser = webdriver.Chrome(options=options, service=service)
    browser.get(address + "/")
    yield browser
    browser.quit()


def wait(browser, holds):
    return WebDriverWait(browser, 30).until(lambda _: holds())


def press(browser, *keys):
    """Press keys where the focus is."""
    for key in keys:
        browser.switch_to.active_element.send_keys(key)


def answered(browser):
    wait(browser, lambda: "answered in" in browser.find_element(By.ID, "status").text)
    return browser.find_elements(By.CSS_SELECTOR, "#answers article")


def test_the_keyboard_alone_asks_and_the_bars_sum_to_one(browser):
    wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "#models input")) == 4)
    wait(browser, lambda: browser.switch_to.active_element.get_attribute("id") == "text")
    press(browser, tiny.sentences()[0][0], Keys.TAB, Keys.ENTER)
    cards = answered(browser)
    assert [card.find_element(By.TAG_NAME, "h2").text for card in cards] == ["animals", "plants"]
    for card in cards:
        assert card.find_element(By.CLASS_NAME, "answer").text
        assert card.find_elements(By.CSS_SELECTOR, ".tokens span")
        bars = card.find_elements(By.CLASS_NAME, "bar")
        assert {bar.text.split("\n")[0] for bar in bars} == {"animal", "plant"}
        shares = [float(bar.get_attribute("data-probability")) for bar in bars]
        assert sum(shares) == pytest.approx(1)
        assert "in a batch of" in card.find_element(By.TAG_NAME, "small").text
    card = cards[0]
    card.find_element(By.TAG_NAME, "summary").send_keys(Keys.ENTER)
    wait(browser, lambda: len(card.find_elements(By.CSS_SELECTOR, "table tr")) == 3)


def test_what_is_typed_stays_text_and_no_request_leaves_the_host(browser, address):
    wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "#models input")) == 4)
    for box in browser.find_elements(By.CSS_SELECTOR, "#models input"):
        if box.get_attribute("value") in ("tiny-0", "pairs"):
            box.click()
    browser.find_element(By.ID, "text").send_keys("<img src=x onerror=alert(1)>")
    for field in ("first", "second"):
        browser.find_element(By.ID, f"field-{field}").send_keys("<b>a")
    browser.find_element(By.ID, "ask").click()
    assert len(answered(browser)) == 4
    assert not browser.find_elements(By.CSS_SELECTOR, "#answers img, #answers b")
    errors = browser.find_elements(By.CLASS_NAME, "error")
    assert errors and all("tokens" in error.text for error in errors)  # too long: told as text
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    assert f"{address}/v1/classify" in urls
    assert all(url.startswith((f"{address}/", "data:")) for url in urls), urls
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert not [message for message in refused if "Content Security Policy" in message], refused


def test_a_phone_sees_all_without_scrolling_sideways(browser):
    browser.set_window_size(360, 740)
    wait(browser, lambda: len(browser.find_elements(By.CSS_SELECTOR, "#models input")) == 4)
    browser.find_element(By.ID, "text").send_keys("the cat", Keys.CONTROL, Keys.ENTER)
    answered(browser)
    widths = "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scrolled, visible = browser.execute_script(widths)
    assert scrolled <= visible
