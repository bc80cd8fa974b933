"""Chromium without a window, driven by selenium, and a static server for it on loopback."""

import contextlib
import functools
import http.server
import shutil
import threading

import pytest


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder, whatever this machine's table of types says; names are noted."""

    extensions_map = http.server.SimpleHTTPRequestHandler.extensions_map | {
        ".js": "text/javascript",
        ".mjs": "text/javascript",
        ".wasm": "application/wasm",
    }

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """The address of a folder."""
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def find(*names):
    """The path of the first of some programs that is there."""
    paths = [path for path in map(shutil.which, names) if path]
    if not paths:
        pytest.skip(f"{names[0]} is missing: apt-get install chromium chromium-driver")
    return paths[0]


@contextlib.contextmanager
def browser(*arguments):
    """Chromium that finds no host but this one; `get_log("browser")` has the console."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="make test-page installs it")
    options = webdriver.ChromeOptions()
    options.binary_location = find("chromium", "google-chrome")
    alone = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"  # workers too
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-dev-shm-usage",
        alone,
        *arguments,
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(find("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(120)
    try:
        yield driver
    finally:
        driver.quit()
