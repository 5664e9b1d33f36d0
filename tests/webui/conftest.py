"""A page that draws with the bundled model, in a process of its own, and a browser to look at it with."""

import os
import pathlib
import shutil
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PATIENCE = 60_000  # milliseconds; what has to be quick is measured
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 375, "height": 800}


class Served:
    """The page's process: ``address``, and the directory ``output`` where its pictures go."""

    def __init__(self, directory):
        self.output, opened = directory / "pictures", directory / "opened"
        directory.joinpath("secret.png").write_bytes(b"not for the page")
        # `--open` calls the browser that the environment names
        browser = directory / "browser"
        browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {opened}.new && mv {opened}.new {opened}\n')
        browser.chmod(0o755)
        self.log = directory / "log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ppsd3", "webui", "--open", "--port", "0", "--output", str(self.output)],
                cwd=directory,
                env={**os.environ, "PYTHONPATH": str(ROOT), "BROWSER": f"{browser} %s"},
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + 120
        while not opened.exists():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.1)
        self.address = opened.read_text()

    def close(self):
        self.process.terminate()
        self.process.wait(30)


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    page = Served(tmp_path_factory.mktemp("webui"))
    yield page
    page.close()


@pytest.fixture(scope="session")
def chromium():
    from playwright.sync_api import Error, sync_playwright

    with sync_playwright() as playwright:
        # the system's browser where there is one, else Playwright's own
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        try:
            browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            pytest.fail(
                "There is no Chromium that starts. Install Debian's packages chromium and fonts-noto-cjk, or run "
                f"`playwright install chromium`. ({error})"
            )
        yield browser
        browser.close()


@pytest.fixture
def new_tab(chromium, served):
    """(language, viewport, ...) -> a tab of a browser that knows nothing of the page yet. What it asks for comes from
    the page's own address, and no script fails."""
    contexts, strange, failed = [], [], []

    def open_tab(language="en", viewport=WIDE, **options):
        contexts.append(chromium.new_context(viewport=viewport, accept_downloads=True, **options))
        tab = contexts[-1].new_page()
        tab.set_default_timeout(PATIENCE)
        own = (served.address, "data:", "blob:" + served.address)
        tab.on("request", lambda request: None if request.url.startswith(own) else strange.append(request.url))
        tab.on("pageerror", lambda error: failed.append(str(error)))
        tab.goto(f"{served.address}{language}/")
        tab.wait_for_selector("#generate-draw")
        return tab

    yield open_tab
    for context in contexts:
        context.close()
    assert not strange
    assert not failed
