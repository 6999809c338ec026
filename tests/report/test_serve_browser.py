"""`trans4pass serve` in a real browser, as tests/report/test_browser.py drives it."""

import re
import socket
import threading
from pathlib import Path

import pytest
import uvicorn
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.report import test_browser
from tests.report.test_browser import READY, complaints, requests, show, viewer
from tests.report.test_serve import MODEL, SETTINGS, WHOLE
from trans4pass.report.web import make_app

browser = test_browser.browser  # a fixture
pytestmark = [test_browser.pytestmark, pytest.mark.slow]


@pytest.mark.parametrize("width", [1280, 390])
def test_a_picture_is_chosen_predicted_and_looked_around_in(browser: Chrome, tmp_path: Path, width: int) -> None:
    folder = tmp_path
    (folder / "mine.png").write_bytes(WHOLE)
    (folder / "none.png").write_bytes(b"no picture")
    server = uvicorn.Server(uvicorn.Config(make_app(MODEL, folder, SETTINGS, at_once=1), port=0, log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}/"
            show(browser, address, width)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            browser.find_element(By.TAG_NAME, "input").send_keys(str(folder / "none.png"))
            status = browser.find_element(By.CSS_SELECTOR, "[role=status]")
            WebDriverWait(browser, 30).until(lambda _: re.match("none.png: .*the picture", status.text))
            browser.find_element(By.TAG_NAME, "input").send_keys(str(folder / "mine.png"))
            WebDriverWait(browser, 30).until(lambda _: "view.html" in browser.current_url)
            browser.execute_async_script(READY)
            assert viewer(browser, "return v.layer") == "prediction"
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
            assert [line for line in complaints(browser) if "422" not in line] == []
            assert all(url.startswith(address) for url in requests(browser))
        finally:
            server.should_exit = True
            thread.join()
