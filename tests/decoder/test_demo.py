"""The page in a real browser: captioning a dropped picture, searching, and errors."""

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from decoder import caption, demo

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver"
    ),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("gradio", "selenium"))),
        reason="needs gradio and selenium, which the extra test installs",
    ),
]
SECONDS = 60


def serve(*arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
    """Start the server on a free port; return the process and the address that it prints."""
    command = [sys.executable, "-m", "decoder.demo", "--port", "0", *arguments]
    server = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environment},
        # Where tests run in the background, Ctrl-C would be ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert server.stdout is not None
    line = server.stdout.readline()
    assert line.startswith("demo: http://127.0.0.1:"), (line, server.communicate(timeout=SECONDS))
    return server, line.split()[1]


def end(server: subprocess.Popen[str], with_signal: signal.Signals) -> tuple[int, str]:
    server.send_signal(with_signal)
    _, errors = server.communicate(timeout=SECONDS)
    return server.returncode, errors


@pytest.fixture(scope="module")
def address(captioner: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page with a captioner of drawn scenes, and a tab that searches them."""
    work = Path(shutil.copytree(captioner, tmp_path_factory.mktemp("demo") / "work"))
    run = work / "runs" / "captioner"
    # A library may print messages when first imported; the page's user must not see them.
    fonts = str(tmp_path_factory.mktemp("fonts"))
    arguments = ("--run", str(run), "--work", str(work), "--max-upload", "1")
    server, address = serve(*arguments, MPLCONFIGDIR=fonts)
    yield address
    assert end(server, signal.SIGTERM) == (0, "")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    profile = tmp_path_factory.mktemp("profile")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        "--window-size=1000,1200",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    opened.set_page_load_timeout(SECONDS)
    yield opened
    opened.quit()


def wait_for(browser, selector: str):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def found(driver):
        return driver.find_elements(By.CSS_SELECTOR, selector)

    return WebDriverWait(browser, SECONDS).until(found)


def wait_for_text(browser, selector: str) -> str:
    from selenium.webdriver.support.ui import WebDriverWait

    def text(_) -> str:
        return " ".join(element.text for element in wait_for(browser, selector))

    return WebDriverWait(browser, SECONDS).until(text)


def drop(browser, address: str, picture: Path) -> None:
    """Open the page and upload a picture."""
    browser.get(address)
    wait_for(browser, "#picture input[type=file]")[0].send_keys(str(picture))


def test_a_dropped_picture_gets_the_caption_of_the_command_line(
    address, browser, captioner, capsys
):
    picture = next((captioner / "images").iterdir())
    run = str(captioner / "runs" / "captioner")
    assert caption.main(["--run", run, "--json", str(picture)]) == 0
    expected = json.loads(capsys.readouterr().out)["caption"]
    drop(browser, address, picture)
    (sentence,) = wait_for(browser, "#caption .caption")
    assert sentence.text == expected
    # One picture for each word, and its alternative text names the word.
    words = [span.text for span in wait_for(browser, "#caption .words span")]
    assert words == expected.lower().rstrip(".").split()
    alternatives = [image.get_attribute("alt") for image in wait_for(browser, "#caption .shade")]
    assert [text.split("“")[1].rstrip("”") for text in alternatives] == words
    assert browser.execute_script("return document.documentElement.lang") == "en"
    assert browser.title == "Captions of pictures"


def test_results_are_a_live_region_and_every_control_has_a_name(address, browser, captioner):
    drop(browser, address, next((captioner / "images").iterdir()))
    wait_for(browser, "#caption [role=status][aria-live=polite] .caption")
    nameless = browser.execute_script(
        """
        const seen = e => e.offsetParent !== null;
        const name = e => (e.ariaLabel || e.textContent || e.alt || e.title || e.placeholder
            || [...(e.labels || [])].map(l => l.textContent).join('')).trim();
        return [...document.querySelectorAll('button, a, input, textarea, [role=tab]')]
            .filter(e => seen(e) && !name(e)).map(e => e.outerHTML)
            .concat([...document.querySelectorAll('img:not([alt])')].map(e => e.outerHTML));
        """
    )
    assert nameless == []


def test_the_keyboard_reaches_the_picture_and_the_tabs(address, browser):
    from selenium.webdriver.common.keys import Keys

    browser.get(address)
    wait_for(browser, "#picture input[type=file]")
    reached = []
    for _ in range(8):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        element = browser.switch_to.active_element
        inside = browser.execute_script("return arguments[0].closest('#picture') !== null", element)
        reached.append("picture" if inside else element.get_attribute("role"))
    assert "tab" in reached
    assert "picture" in reached


def test_a_search_shows_the_pictures_that_the_command_line_finds(address, browser, captioner):
    from selenium.webdriver.common.keys import Keys

    table = json.loads((captioner / "captions.json").read_text())
    browser.get(address)
    [tab.click() for tab in wait_for(browser, "[role=tab]") if tab.text == "Search"]
    (query,) = wait_for(browser, "#query input, #query textarea")
    query.send_keys(table["annotations"][0]["caption"] + Keys.ENTER)
    wait_for(browser, "#found li")
    images = wait_for(browser, "#found img")
    assert len(images) == 10
    names = {image["file_name"] for image in table["images"]}
    assert {image.get_attribute("alt").split(": ")[1] for image in images} <= names
    query.clear()
    query.send_keys("xylophone" + Keys.ENTER)
    assert "xylophone" in wait_for(browser, "#found .problem[role=alert]")[0].text


def test_a_broken_picture_is_reported_and_the_next_one_captioned(
    address, browser, captioner, tmp_path
):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff<b>")
    drop(browser, address, broken)
    assert "cannot be read" in wait_for(browser, "#caption .problem")[0].text
    # On the same page, which has room for the next picture at once.
    picture = str(next((captioner / "images").iterdir()))
    wait_for(browser, "#picture input[type=file]")[0].send_keys(picture)
    assert wait_for(browser, "#caption .caption")[0].text


def test_an_upload_that_is_too_large_is_refused(address, browser, tmp_path):
    large = tmp_path / "large.bmp"
    Image.new("RGB", (800, 800)).save(large)
    assert large.stat().st_size > 2**20
    drop(browser, address, large)
    assert (
        "exceed the maximum"
        in wait_for_text(browser, "[data-testid=toast-body], .toast-body").lower()
    )


def test_the_page_loads_nothing_from_the_web(address, browser, captioner):
    browser.get_log("performance")
    drop(browser, address, next((captioner / "images").iterdir()))
    wait_for(browser, "#caption .caption")
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    requested = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert any(url.startswith(address) for url in requested)
    ours = (address, "data:", "blob:", "chrome:")
    assert [url for url in requested if not url.startswith(ours)] == []


def test_only_this_machine_can_reach_it_and_uploads_are_deleted_at_the_end(captioner, tmp_path):
    run = str(captioner / "runs" / "captioner")
    os.environ["TMPDIR"] = str(tmp_path)
    try:
        server, address = serve("--run", run)
    finally:
        del os.environ["TMPDIR"]
    port = int(address.rstrip("/").rsplit(":")[-1])
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("captions-")]
    # The same port is still free on another address of this machine.
    with socket.socket() as other:
        other.bind(("127.0.0.2", port))
    assert end(server, signal.SIGINT) == (130, "interrupted; what was finished is kept\n")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("captions-")]


def test_a_port_that_is_taken_is_named(captioner, capsys):
    run = str(captioner / "runs" / "captioner")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "decoder.demo", "--run", run, "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )
    assert done.returncode == 2
    assert f"port {port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert demo.main(["--port", "70000"]) == 2
    assert "--port must be from 0 to 65535" in capsys.readouterr().err
