"""Fixtures of the review page: its build, a live node, a browser that stays at home."""

import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from node.store.store import Store
from tests.review_ui.rig import LOGIN, PASSWORD, Node, add_person, running_node

UI = Path(__file__).parents[2] / "review_ui"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-gpu",
    "--disable-3d-apis",
]
PAGE_MS = 60_000  # the machine may be testing something else beside it
expect.set_options(timeout=PAGE_MS)

Open = Callable[..., Awaitable[Page]]


@pytest.fixture(scope="session")
def built_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page, built from what lies in the checkout."""
    npx = shutil.which("npx")
    if npx is None or not (UI / "node_modules").is_dir():
        pytest.skip("the review page's packages are not installed: run `make setup`")
    folder = tmp_path_factory.mktemp("page")
    command = [npx, "vite", "build", "--outDir", str(folder), "--emptyOutDir"]
    done = subprocess.run(command, cwd=UI, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
async def node(store: Store, built_page: Path) -> AsyncIterator[Node]:
    async with running_node(store, built_page) as running:
        await add_person(store)
        yield running


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        await running.close()


@pytest.fixture
async def open_page(node: Node, browser: Browser) -> AsyncIterator[Open]:
    """Return a function that opens the page, signed in unless told otherwise.

    At the end of the test nothing may have been asked from anywhere but the
    node, and no script may have failed or been stopped by the policy.
    """
    faults: list[str] = []

    async def open_(login: str | None = LOGIN, *, language: str = "zh") -> Page:
        context = await browser.new_context(
            viewport={"width": 1440, "height": 900},
            locale="zh-CN" if language == "zh" else "en-GB",
        )
        page = await context.new_page()
        page.set_default_timeout(PAGE_MS)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "console",
            lambda line: (
                faults.append(line.text)
                if line.type == "error" and "Content Security Policy" in line.text
                else None
            ),
        )
        page.on(
            "request",
            lambda request: (
                None
                if request.url.startswith((node.url, "data:", "blob:"))
                else faults.append(request.url)
            ),
        )
        await page.goto(node.url)
        if login is not None:
            await page.fill("input[name=login]", login)
            await page.fill("input[name=password]", PASSWORD)
            await page.click("button.primary")
            await page.wait_for_selector(".shell main")
        return page

    yield open_
    assert faults == []
