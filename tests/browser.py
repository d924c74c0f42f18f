"""A page in the system's headless Chromium: what it logs, what it loads, how it fits.

    with browser.opened(path, width=390) as page:
        assert page.errors == [] and page.requests == [] and page.overflow() == 0
        page.click("th:nth-child(2)")
        assert page.column(2) == ["0.8", "0.9"]

Tests that use it are skipped, with the reason, where there is no browser or no playwright.
"""

import contextlib
import pathlib
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SWITCHES = ("--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")


class Page:
    """An open page. `errors`: console errors and warnings; `requests`: whatever it loads."""

    def __init__(self, page, address):
        self.page, self.errors, self.requests = page, [], []
        page.on("console", lambda m: self.errors.append(m.text)
                if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda r: self.requests.append(r.url)
                if not r.url.startswith((address, "data:")) else None)
        page.goto(address)

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        return self.page.evaluate(
            "document.documentElement.scrollWidth - document.documentElement.clientWidth")

    def click(self, selector: str) -> None:
        self.page.locator(selector).first.click()

    def press(self, selector: str, key: str = "Enter") -> None:
        """Focus an element and press a key on it, as one without a mouse does."""
        self.page.locator(selector).first.focus()
        self.page.keyboard.press(key)

    def column(self, n: int, table: str = "table") -> list[str]:
        """The texts of column n (from 1) of the first such table, as they stand now."""
        return self.page.locator(table).first.locator(
            f"tbody td:nth-child({n})").all_inner_texts()

    def broken_pictures(self) -> list[str]:
        """Alt texts of pictures that did not load."""
        return self.page.evaluate(
            "Promise.all([...document.images].map(image => image.decode().then("
            "() => null, () => image.alt || 'no alt'))).then(all => all.filter(text => text))")

    def screenshot(self, path) -> None:
        """The whole page as a PNG."""
        self.page.screenshot(path=str(path), full_page=True)


@contextlib.contextmanager
def opened(path, *, width: int = 1280, dark: bool = False):
    """A Page of a local file, offline, in a window `width` pixels wide."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: no page is opened")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip(f"no browser here (looked for {', '.join(NAMES)}): no page is opened")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=program, args=list(SWITCHES))
        context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True,
                                       color_scheme="dark" if dark else "light")
        yield Page(context.new_page(), pathlib.Path(path).resolve().as_uri())
        chromium.close()
