"""The Mini Program as a package: types, templates, logic, and what WeChat will load."""

import json
import re
import subprocess
from pathlib import Path

import pytest

MINIPROGRAM = Path(__file__).parents[2] / "wechat" / "miniprogram"
SOURCE = MINIPROGRAM / "src"
PACKAGE_LIMIT = 500_000  # bytes of source that WeChat downloads to the phone

installed = pytest.mark.skipif(
    not (MINIPROGRAM / "node_modules").is_dir(),
    reason="needs npm ci in wechat/miniprogram",
)


def npm(script: str) -> str:
    done = subprocess.run(
        ["npm", "run", "--silent", script],
        cwd=MINIPROGRAM,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@installed
def test_types_are_sound() -> None:
    npm("check")


@installed
def test_the_logic_passes_its_own_tests() -> None:
    assert "# fail 0" in npm("test")


@installed
def test_the_same_source_builds_for_a_browser() -> None:
    assert "built" in npm("build:web")
    assert (MINIPROGRAM / "dist" / "index.html").is_file()


def test_every_page_of_the_app_has_its_four_files() -> None:
    app = json.loads((SOURCE / "app.json").read_text("utf-8"))
    assert app["__usePrivacyCheck__"] is True
    for page in app["pages"]:
        for suffix in ("ts", "wxml", "wxss", "json"):
            assert (SOURCE / f"{page}.{suffix}").is_file()


def test_only_the_api_room_talks_to_the_network() -> None:
    for path in SOURCE.rglob("*.ts"):
        if path.parent.name != "api":
            assert "wx.request(" not in path.read_text("utf-8"), path


def test_every_visible_word_comes_from_the_catalogue() -> None:
    for path in SOURCE.rglob("*.wxml"):
        text = re.sub(r"\{\{.*?\}\}", "", path.read_text("utf-8"))
        text = re.sub(r"<[^>]*>", "", text)
        assert text.strip() == "", path
    for path in SOURCE.rglob("*.ts"):
        if path.parent.name != "messages" and ".test." not in path.name:
            assert not re.search(r"[\u3001-\u9fff]", path.read_text("utf-8")), path


def test_the_package_is_small_and_its_lock_names_no_server() -> None:
    size = sum(path.stat().st_size for path in SOURCE.rglob("*") if path.is_file())
    assert size < PACKAGE_LIMIT
    lock = (MINIPROGRAM / "package-lock.json").read_text("utf-8")
    assert '"resolved"' not in lock
    assert '"integrity"' in lock
