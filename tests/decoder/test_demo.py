"""The page in a real browser: captioning, correcting and saving, searching, and errors."""

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
from tests.pictures import moon

BROWSER, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))
pytestmark = [
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs Debian's chromium and chromium-driver"
    ),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("starlette", "selenium", "axe_core_python"))),
        reason="needs starlette, selenium and axe_core_python, which the extra test installs",
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
    status, errors = end(server, signal.SIGTERM)
    assert status == 0
    # On a slow machine the training of the search says how far it is.
    assert [line for line in errors.splitlines() if not line.startswith("train the ")] == []


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
        "--window-size=1280,1200",
    ):
        options.add_argument(flag)
    folder = str(tmp_path_factory.mktemp("downloads"))
    options.add_experimental_option("prefs", {"download.default_directory": folder})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    opened.set_page_load_timeout(SECONDS)
    opened.downloads = Path(folder)
    yield opened
    opened.quit()


def wait_for(browser, selector: str):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def found(driver):
        return driver.find_elements(By.CSS_SELECTOR, selector)

    return WebDriverWait(browser, SECONDS).until(found)


def upload(browser, *pictures: Path) -> None:
    wait_for(browser, "#files")[0].send_keys("\n".join(map(str, pictures)))


def drop(browser, address: str, *pictures: Path) -> None:
    """Open the page and upload pictures."""
    browser.get(address)
    upload(browser, *pictures)


def reach_with_tab(browser, selector: str) -> list:
    """Press Tab until the focus is on an element; return what had the focus on the way."""
    from selenium.webdriver.common.keys import Keys

    reached = []
    for _ in range(30):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        reached.append(browser.switch_to.active_element)
        if browser.execute_script(
            "return arguments[0].matches(arguments[1])", reached[-1], selector
        ):
            return reached
    raise AssertionError(f"Tab does not reach {selector}")


def test_an_uploaded_picture_gets_the_caption_of_the_command_line(
    address, browser, captioner, capsys
):
    from selenium.webdriver.common.keys import Keys

    picture = min((captioner / "images").iterdir())
    run = str(captioner / "runs" / "captioner")
    assert caption.main(["--run", run, "--json", str(picture)]) == 0
    expected = json.loads(capsys.readouterr().out)["caption"]
    drop(browser, address, picture)
    words = wait_for(browser, ".caption .word")
    assert wait_for(browser, ".card .caption")[0].text == expected
    assert [word.text for word in words] == expected.split()
    assert wait_for(browser, ".card img")[0].get_attribute("alt") == expected
    # A screen reader hears it, and the place that is looked at for each word.
    assert expected in wait_for(browser, "#spoken[role=status]")[0].get_attribute("textContent")
    names = [word.get_attribute("aria-label") for word in words]
    assert [name.split(": looked at the ")[0] for name in names] == expected.split()
    # Tab reaches the first word, an arrow key the next one; both show the attention.
    reach_with_tab(browser, ".word")
    assert wait_for(browser, ".look.shaded canvas")
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    assert browser.switch_to.active_element == words[1]
    assert browser.execute_script("return document.documentElement.lang") == "en"
    assert browser.title == "Captions of pictures"


@pytest.mark.parametrize("width", [1280, 390])
def test_axe_has_no_serious_finding_in_light_or_dark(address, browser, captioner, width):
    import axe_core_python

    screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    browser.get(address)
    browser.execute_script((Path(axe_core_python.__file__).parent / "axe.min.js").read_text())
    serious = {}
    try:
        for state in ("empty", "captioned", "editing"):
            if state == "captioned":
                upload(browser, min((captioner / "images").iterdir()))
                wait_for(browser, ".word")[0].click()
            elif state == "editing":
                wait_for(browser, ".correct")[0].click()
            for theme in ("light", "dark"):
                features = [
                    {"name": "prefers-color-scheme", "value": theme},
                    {"name": "prefers-reduced-motion", "value": "reduce"},
                ]
                browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
                serious[state, theme] = browser.execute_async_script(
                    """
                    const done = arguments[arguments.length - 1];
                    axe.run(document, {resultTypes: ['violations']}).then(found => done(
                        found.violations.filter(one => one.impact !== 'minor')
                            .map(one => [one.id, one.nodes[0].html])));
                    """
                )
            sideways = "return document.documentElement.scrollWidth > window.innerWidth"
            assert not browser.execute_script(sideways), state
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert {state: found for state, found in serious.items() if found} == {}
    assert len(serious) == 6


def test_a_correction_is_saved_in_a_table_that_the_command_line_keeps(
    address, browser, captioner, tmp_path, capsys
):
    from selenium.webdriver.support.ui import WebDriverWait

    pictures = [
        shutil.copy2(path, tmp_path) for path in sorted((captioner / "images").iterdir())[:2]
    ]
    drop(browser, address, *pictures)
    WebDriverWait(browser, SECONDS).until(
        lambda _: len(wait_for(browser, ".word[tabindex='0']")) == 2
    )
    wait_for(browser, ".correct")[0].click()
    (text, *_) = wait_for(browser, ".edit:not([hidden]) textarea")
    text.clear()
    text.send_keys("A text of mine, with a comma.\n")
    assert wait_for(browser, "#count")[0].text == "2 captions, 1 edited"
    wait_for(browser, "#download")[0].click()
    table = browser.downloads / "captions.csv"
    WebDriverWait(browser, SECONDS).until(lambda _: table.exists())
    shutil.move(table, tmp_path)
    run = str(captioner / "runs" / "captioner")
    listing = ["--out", str(tmp_path / "captions.csv"), str(tmp_path)]
    assert caption.main(["--run", run, *listing]) == 0
    assert "0 captions added" in capsys.readouterr().out
    first = (tmp_path / "captions.csv").read_text().splitlines()[1]
    assert first.startswith(f'{Path(pictures[0]).name},"A text of mine, with a comma.",false,,')


PAGE = """
    const at = (id) => document.getElementById(id);
    const part = (card, name) => document.querySelectorAll(".card")[card].querySelector(name);
    window.edit = (card, text, keep = true) => {
        part(card, ".correct").click();
        part(card, "textarea").value = text;
        if (keep) part(card, "form").requestSubmit();
    };
    // Whether the browser warns before the page is left.
    window.warns = () => !window.dispatchEvent(new Event("beforeunload", {cancelable: true}));
    window.answer = null;
    window.fetch = (path, options) => answer(JSON.parse(options.body).captions);
    window.press = async (id, answer) => {
        window.answer = answer;
        at("saved").textContent = "";
        at(id).click();
        while (!at("saved").textContent) await new Promise((done) => setTimeout(done, 5));
        return warns();
    };
    window.drag = (element, kind) => {
        const dataTransfer = new DataTransfer();
        if (kind === "Files") dataTransfer.items.add(new File([], "a.txt"));
        else dataTransfer.setData("text/plain", "words");
        const options = {dataTransfer, bubbles: true, cancelable: true};
        return element.dispatchEvent(new DragEvent("dragover", options));
    };
    window.part = part;
"""


def test_the_page_warns_until_every_edit_is_saved_as_it_is(address, browser, captioner):
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    table = json.loads((captioner / "captions.json").read_text())
    browser.get(address)
    wait_for(browser, "#tab-search")[0].click()
    wait_for(browser, "#query")[0].send_keys(table["annotations"][0]["caption"] + Keys.ENTER)
    wait_for(browser, "#found button")[0].click()
    upload(browser, min((captioner / "images").iterdir()))  # the first card; the second is found
    WebDriverWait(browser, SECONDS).until(
        lambda _: len(wait_for(browser, ".word[tabindex='0']")) == 2
    )
    browser.execute_script(PAGE)

    def press(button: str, answer: str) -> bool:
        code = f"press({button!r}, async (sent) => {{ {answer} }}).then(arguments[0])"
        return browser.execute_async_script(code)

    def save(*written: int) -> bool:
        said = json.dumps({"said": "Saved.", "written": written})
        return press("save", f"return new Response(JSON.stringify({said}))")

    file = "return new Response('', {headers: {'content-disposition': 'x=\"a.csv\"'}})"
    browser.execute_script("edit(1, 'Mine.')")
    assert save() is True, "its text was left as it was there"
    assert save(0) is False
    browser.execute_script("edit(0, 'Mine too.')")
    assert save(0) is True, "an upload is in no album"
    assert press("download", f"edit(0, 'Typed meanwhile.'); {file}") is True
    assert press("download", f"edit(0, 'Not kept yet.', false); {file}") is True
    browser.execute_script("part(0, '.cancel').click()")
    assert browser.execute_script("return warns()") is False
    press("save", "throw new Error()")
    browser.execute_script("part(1, '.undo').click()")
    assert "does not answer" in wait_for(browser, "#saved.problem")[0].text


def test_fields_keep_the_keys_of_input_methods_and_take_text_that_is_dropped(
    address, browser, captioner
):
    drop(browser, address, min((captioner / "images").iterdir()))
    wait_for(browser, ".word")
    browser.execute_script(PAGE)
    for composing, ended in ((True, False), (False, True)):
        code = """
            edit(0, "typed", false);
            const options = {key: "Enter", isComposing: arguments[0]};
            part(0, "textarea").dispatchEvent(new KeyboardEvent("keydown", options));
            return part(0, ".edit").hidden;
        """
        assert browser.execute_script(code, composing) is ended
    dragged = (
        "drag(part(0, 'textarea'), {0!r}), drag(at('query'), {0!r}), drag(document.body, {0!r})"
    )
    for kind, left_to_the_browser in (
        ("text", [True, True, False]),
        ("Files", [False, False, False]),
    ):
        code = f"const at = (id) => document.getElementById(id); return [{dragged.format(kind)}]"
        assert browser.execute_script(code) == left_to_the_browser


def test_a_drawing_is_captioned(address, browser):
    browser.get(address)
    wait_for(browser, "#samples button")[0].click()
    assert wait_for(browser, ".card .word")
    assert wait_for(browser, ".card .name")[0].text == "skier.jpg"


def test_the_keyboard_reaches_the_pictures_and_the_tabs(address, browser):
    browser.get(address)
    reached = reach_with_tab(browser, "#choose")
    assert "tab" in [element.get_attribute("role") for element in reached]


def test_a_search_shows_the_pictures_that_the_command_line_finds(address, browser, captioner):
    from selenium.webdriver.common.keys import Keys

    table = json.loads((captioner / "captions.json").read_text())
    browser.get(address)
    wait_for(browser, "#tab-search")[0].click()
    (query,) = wait_for(browser, "#query")
    query.send_keys(table["annotations"][0]["caption"] + Keys.ENTER)
    names = [Path(name.text).name for name in wait_for(browser, "#found .name")]
    assert len(names) == 12
    assert set(names) <= {image["file_name"] for image in table["images"]}
    query.clear()
    query.send_keys("xylophone" + Keys.ENTER)
    assert "xylophone" in wait_for(browser, "#found-note.problem[role=status]")[0].text
    query.clear()
    query.send_keys(table["annotations"][0]["caption"] + Keys.ENTER)
    wait_for(browser, "#found button")[0].click()  # captions what was found
    assert wait_for(browser, ".card .word")[0].is_displayed()


def test_a_broken_picture_is_reported_and_the_next_one_captioned(
    address, browser, captioner, tmp_path
):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff<b>")
    drop(browser, address, broken)
    assert "cannot be read" in wait_for(browser, ".card .problem")[0].text
    # On the same page, which has room for the next picture at once.
    upload(browser, min((captioner / "images").iterdir()))
    assert wait_for(browser, ".card .word")[0].text


def test_an_upload_that_is_too_large_is_refused(address, browser, tmp_path):
    large = tmp_path / "large.bmp"
    Image.new("RGB", (800, 800)).save(large)
    assert large.stat().st_size > 2**20
    drop(browser, address, large)
    assert "exceeds the maximum of 1 MB" in wait_for(browser, ".card .problem")[0].text


def test_a_picture_that_the_browser_cannot_show_is_shown_by_the_server(address, browser, tmp_path):
    drawn = tmp_path / "drawn.tif"
    moon((320, 200)).save(drawn, compression="tiff_lzw")
    drop(browser, address, drawn)
    wait_for(browser, ".card .word")
    assert wait_for(browser, ".card img")[0].get_property("naturalWidth") == 320


def test_the_page_loads_nothing_from_the_web(address, browser, captioner):
    browser.get_log("performance")
    drop(browser, address, min((captioner / "images").iterdir()))
    wait_for(browser, ".card .word")
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    requested = {
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert any(url.startswith(address) for url in requested)
    ours = (address, f"blob:{address}", "data:", "chrome:")
    assert [url for url in requested if not url.startswith(ours)] == []


def test_only_this_machine_can_reach_it_and_it_leaves_no_file(captioner, tmp_path):
    run = str(captioner / "runs" / "captioner")
    os.environ["TMPDIR"] = str(tmp_path)
    try:
        server, address = serve("--run", run)
    finally:
        del os.environ["TMPDIR"]
    port = int(address.rstrip("/").rsplit(":")[-1])
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
