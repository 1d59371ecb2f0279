"""A headless Chromium, for tests of pages."""

import contextlib
import shutil

import pytest

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
# As root it needs --no-sandbox. The others keep it from asking its maker's machines.
OPTIONS = (
    '--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking '
    '--disable-component-update --disable-sync'
).split()


@contextlib.contextmanager
def open_browser():
    """Yield playwright's Chromium; skip the test where there is none."""
    sync_api = pytest.importorskip('playwright.sync_api', reason='playwright drives the browser')
    if CHROMIUM is None:
        pytest.skip('there is no Chromium on PATH')
    with sync_api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()
