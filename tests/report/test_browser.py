"""Report and viewer in a real browser: Debian's chromium and its driver, driven by selenium; skipped without them.

selenium and not playwright-core: browser and driver come from one Debian source package, so that they always fit, and
no node and no second browser are needed.
"""

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.report.runs import LABELS, write_run_with_everything
from trans4pass.report.page import write_report
from trans4pass.report.viewer import Map, Seen, Span, viewer_page
from trans4pass.sphere import Panorama, Pinhole, Warp, rotation

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: pip install -e '.[dev]'")
from selenium.webdriver import ActionChains, Chrome, Keys  # noqa: E402
from selenium.webdriver.chrome.service import Service  # noqa: E402
from selenium.webdriver.common.actions.wheel_input import ScrollOrigin  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER), reason="no chromium with chromedriver: apt-get install chromium chromium-driver"
)
READY = """const done = arguments[0];
Promise.all([...document.querySelectorAll(".viewer,.panels")].map((host) => host.ready ?? host.viewer.ready)).then(
  () => requestAnimationFrame(() => requestAnimationFrame(done)));"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for switch in ("--headless=new", "--no-sandbox", "--enable-unsafe-swiftshader", "--force-device-scale-factor=1"):
        options.add_argument(switch)  # as root there is no sandbox, and without a GPU WebGL is drawn by the CPU
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def show(browser: Chrome, page: Path | str, width: int = 640, height: int = 800, dark: bool = False) -> None:
    """Open a page, by its file or address, in a window of that many pixels, and wait until everything is drawn."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    for log in ("browser", "performance"):
        browser.get_log(log)  # what was before
    browser.get(page if isinstance(page, str) else page.as_uri())
    browser.execute_async_script(READY)


def viewer(browser: Chrome, script: str) -> Any:
    """What a script says about the page's first viewer, `v`."""
    return browser.execute_script(f"const v = document.querySelector('.viewer').viewer; {script}")


def drawn(browser: Chrome) -> np.ndarray:
    """What the first viewer shows, (H,W,3)."""
    canvas = "(v.isFlat ? v.plain : v.canvas)"
    uri = viewer(browser, f"v.draw(); return {canvas}.toDataURL('image/png')")
    return np.asarray(decode(uri).convert("RGB")).astype(int)


def decode(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def press(browser: Chrome, title: str) -> None:
    browser.find_element(By.XPATH, f"//*[@class='viewer']//button[normalize-space()='{title}']").click()


def complaints(browser: Chrome) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if "GPU stall" not in entry["message"]]


def requests(browser: Chrome) -> list[str]:
    events = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    urls = (e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent")
    return [url for url in urls if not url.startswith("data:")]


# ---- a viewer of one panorama ----

HEIGHT, WIDTH = 128, 512
CLASSES = len(LABELS.classes)


def smooth_panorama() -> np.ndarray:
    """Waves that go on over the seam, uint8 (H,W,3): bilinear sampling and JPEG both keep them."""
    yaw, row = np.linspace(0, 2 * np.pi, WIDTH, endpoint=False), np.linspace(0, 3, HEIGHT)[:, None]
    waves = [np.sin(3 * yaw + row), np.cos(2 * yaw - row), np.sin(yaw + 2 * row)]
    return (127 + 100 * np.stack(waves, -1)).round().astype(np.uint8)


def blocks(size: int) -> np.ndarray:
    rows, columns = np.arange(HEIGHT)[:, None] // size, np.arange(WIDTH) // size
    return ((rows + columns) % CLASSES).astype(np.uint8)


TRUTH, PREDICTION = blocks(32), blocks(16)


FULL, PARTIAL = Panorama(HEIGHT, WIDTH), Panorama.of(HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full panorama, one of 90 degrees in height, and a picture that is no panorama."""
    photo = Image.fromarray(smooth_panorama())
    maps = [Map("adapted", PREDICTION), Map("truth", TRUTH, truth=True)]
    spans = {"full </script>": Span(90, -90), "partial": Span(PARTIAL.top, PARTIAL.bottom), "narrow": None}
    path = tmp_path_factory.mktemp("viewer") / "viewer.html"
    path.write_text(viewer_page([Seen(name, photo, maps, spans[name]) for name in spans], LABELS, "A <b>title</b>"))
    return path


def choose(browser: Chrome, index: int) -> None:
    browser.execute_async_script(
        "document.querySelector('.viewer').viewer.show(arguments[0]).then(arguments[1])", index
    )


def perspective(browser: Chrome, panorama: Panorama, yaw: float, pitch: float, fov: float) -> Warp:
    """trans4pass.sphere's own view, and the viewer told to look the same way."""
    width, height = viewer(
        browser, f"v.look({yaw}, {pitch}, {fov}); v.draw(); return [v.canvas.width, v.canvas.height]"
    )
    return Warp(panorama, Pinhole(height, width, fov), rotation(yaw, pitch))


VIEWS = [(0, 0, 60), (179, -20, 90), (-120, 40, 75)]  # yaw, pitch, width


@pytest.mark.parametrize("panorama", [FULL, PARTIAL], ids=["full", "partial"])
def test_it_shows_what_a_perspective_camera_sees(browser: Chrome, page: Path, panorama: Panorama) -> None:
    """The photo within JPEG's error, the labels but for a few pixels at borders; nothing beyond a partial panorama."""
    show(browser, page)
    choose(browser, 0 if panorama is FULL else 1)
    data = json.loads(browser.execute_script("return document.getElementById('panoramas').textContent"))
    photo = torch.from_numpy(np.array(decode(data[0]["panoramas"][0]["photo"]))).permute(2, 0, 1)[None]
    for view in VIEWS:
        press(browser, "photo")
        warp = perspective(browser, panorama, *view)
        seen = warp.seen.numpy()
        expected = warp(photo)[0].permute(1, 2, 0).numpy().astype(int)
        assert np.percentile(np.abs(drawn(browser) - expected)[seen], 99) <= 2, view
        press(browser, "adapted")
        viewer(browser, "v.opacity = 1")
        colours = LABELS.colorize(warp.nearest(torch.from_numpy(PREDICTION)).numpy()).astype(int)
        picture = drawn(browser)
        assert (np.abs(picture - colours).max(-1) > 1)[seen].mean() < 0.01, view
        assert (picture[~seen] == picture[~seen][:1]).all()  # nothing beyond the picture
    assert not complaints(browser)


def test_errors_are_red_where_the_truth_is_another_and_dim_elsewhere(browser: Chrome, page: Path) -> None:
    show(browser, page)
    choose(browser, 1)
    press(browser, "errors")
    viewer(browser, "v.opacity = 1")
    warp = perspective(browser, PARTIAL, 20, 0, 60)
    missed = warp.nearest(torch.from_numpy((TRUTH != PREDICTION).astype(np.uint8))).numpy()
    picture = drawn(browser)
    red = np.abs(picture - (230, 40, 50)).max(-1) <= 1
    inside = missed != 255
    assert (red == (missed == 1))[inside].mean() > 0.99
    assert picture[inside & ~red].max() < 0.36 * 255
    press(browser, "flat")
    flat = drawn(browser)
    assert (np.abs(flat - (230, 40, 50)).max(-1) <= 1).mean() == pytest.approx((TRUTH != PREDICTION).mean(), abs=0.01)


def test_a_class_can_be_taken_away_and_brought_back(browser: Chrome, page: Path) -> None:
    show(browser, page)
    viewer(browser, "v.opacity = 1; v.look(0, 0, 60)")
    before, road = drawn(browser), LABELS.palette[0].astype(int)
    assert (np.abs(before - road).max(-1) <= 1).mean() > 0.05
    press(browser, LABELS.classes[0])
    without = drawn(browser)
    assert (np.abs(without - road).max(-1) <= 1).mean() < 0.01
    press(browser, "photo")
    photo = drawn(browser)
    hidden = np.abs(before - road).max(-1) <= 1
    assert (without[hidden] == photo[hidden]).all()
    press(browser, "adapted")
    press(browser, LABELS.classes[0])
    assert (drawn(browser) == before).all()
    press(browser, "none")
    assert (drawn(browser) == photo).all()


def test_mouse_keys_wheel_and_fingers_look_around(browser: Chrome, page: Path) -> None:
    show(browser, page)
    stage = browser.find_element(By.CLASS_NAME, "stage")

    def state() -> list[float]:
        return viewer(browser, "return [v.yaw, v.pitch, v.fov]")

    viewer(browser, "v.look(170, 0, 80)")
    width = stage.size["width"] - 2
    ActionChains(browser).move_to_element(stage).click_and_hold().move_by_offset(-200, 50).release().perform()
    yaw, pitch, _ = state()
    assert yaw == pytest.approx(170 + 200 * 80 / width - 360, abs=0.5), "to the left, over the seam"
    assert pitch == pytest.approx(50 * 80 / width, abs=0.5)
    ActionChains(browser).scroll_from_origin(ScrollOrigin.from_element(stage), 0, -100).perform()
    assert state()[2] < 80
    ActionChains(browser).send_keys("0", Keys.ARROW_RIGHT, Keys.ARROW_UP, "-").perform()
    assert state() == pytest.approx([80 / 12, 80 / 12, 80 / 0.9])
    ActionChains(browser).send_keys("3").perform()
    assert viewer(browser, "return v.layer") == "truth"
    ActionChains(browser).send_keys("f").perform()
    assert viewer(browser, "v.draw(); return v.isFlat && !v.plain.hidden && v.canvas.hidden")
    ActionChains(browser).send_keys("f0").perform()
    y = stage.location["y"] + 100
    fingers = [[{"x": 250, "y": y}, {"x": 350, "y": y}], [{"x": 200, "y": y}, {"x": 400, "y": y}]]
    for kind, points in (("touchStart", fingers[0]), ("touchMove", fingers[1]), ("touchEnd", [])):
        browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert state()[2] == pytest.approx(40, rel=0.1), "twice as far apart is half as wide"


def test_the_class_under_the_pointer_is_said(browser: Chrome, page: Path) -> None:
    show(browser, page)
    stage = browser.find_element(By.CLASS_NAME, "stage")
    viewer(browser, "v.look(60, 5, 80)")
    x, y = 90, -40
    ActionChains(browser).move_to_element_with_offset(stage, x, y).perform()
    width = stage.size["width"] - 2
    focal = width / 2 / np.tan(np.radians(40))
    ray = torch.tensor([x / focal, 1.0, -y / focal], dtype=torch.float64) @ rotation(60, 5).T
    column, row = FULL.locate(ray).int().tolist()
    said = browser.find_element(By.CLASS_NAME, "under").text
    assert f"adapted: {LABELS.classes[PREDICTION[row, column]]}" in said
    assert f"truth: {LABELS.classes[TRUTH[row, column]]}" in said


def test_a_picture_that_is_no_panorama_is_flat(browser: Chrome, page: Path) -> None:
    show(browser, page)
    assert browser.find_element(By.TAG_NAME, "h1").text == "A <b>title</b>"
    choose(browser, 2)
    press(browser, "photo")
    assert drawn(browser).shape == (HEIGHT, WIDTH, 3)
    assert viewer(browser, "return v.isFlat && v.flatButton.hidden")
    assert not complaints(browser)


def test_without_webgl_it_is_flat_and_says_so(browser: Chrome, page: Path) -> None:
    refuse = """{ const real = HTMLCanvasElement.prototype.getContext;
      HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
        return kind === "webgl2" ? null : real.call(this, kind, ...rest);
      }; }"""
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": refuse})
    try:
        show(browser, page)
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    assert "no WebGL" in browser.find_element(By.CLASS_NAME, "hint").text
    viewer(browser, "v.opacity = 1; v.look(45, 0)")
    expected = LABELS.colorize(np.roll(PREDICTION, -WIDTH // 8, 1)).astype(int)
    assert np.abs(drawn(browser) - expected).max() <= 1
    assert not complaints(browser)


# ---- the report ----


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "run"
    write_run_with_everything(folder, {"photo": smooth_panorama(), "adapted": PREDICTION, "truth": TRUTH})
    return write_report([folder], folder / "report.html")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_the_report_is_legible_at_every_width_and_needs_no_network(
    browser: Chrome, report: Path, width: int, dark: bool
) -> None:
    show(browser, report, width, dark=dark)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    assert not complaints(browser)
    assert requests(browser) == [report.as_uri()]
    ink, ground = browser.execute_script(
        "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor].map((c) => c.match(/\\d+/g))"
    )
    assert contrast([int(x) for x in ink], [int(x) for x in ground]) > 7
    small = browser.execute_script(
        "const scale = (drawing) => drawing.getBoundingClientRect().width / drawing.viewBox.baseVal.width;"
        "return [...document.querySelectorAll('svg')].map(scale)"
    )
    assert min(small) * 11 > 8, "letters of charts, in pixels"


def test_a_click_on_a_panel_opens_it(browser: Chrome, report: Path) -> None:
    show(browser, report)
    panels = browser.find_elements(By.CSS_SELECTOR, ".panels figure")
    assert [panel.text for panel in panels[:4]] == ["photo", "adapted", "truth", "errors"]
    browser.execute_script("arguments[0].click()", panels[6].find_element(By.TAG_NAME, "button"))
    browser.execute_async_script(READY)
    assert viewer(browser, "return [v.choice.selectedIndex, v.layer]") == [1, "truth"]


def contrast(one: list[int], other: list[int]) -> float:
    """Of two colours, as WCAG defines it."""

    def luminance(colour: list[int]) -> float:
        parts = [c / 255 for c in colour[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)
