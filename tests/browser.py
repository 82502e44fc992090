"""A page of this project in headless Chromium, as whoever opens it sees it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Page

FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
OUTSIDE = """() => [...document.querySelectorAll('div[role=img] svg')].flatMap(svg => {
  const whole = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < whole.left - 2 || box.right > whole.right + 2;
  }).map(text => text.textContent);
})"""


def views(path: Path) -> Iterator[Page]:
    """The page on a wide screen in light and on a narrow one in dark, all its details open.

    Each time nothing of it lies outside of the window or of its picture, and axe finds nothing to object to;
    in all it asks the network for nothing and reports no error.
    """
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if not browser:
        pytest.skip("there is no Chromium")
    sync_api = pytest.importorskip("playwright.sync_api")
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    with sync_api.sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=browser, args=FLAGS.split())
        shown, said = chromium.new_page(), []
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("request", lambda request: said.append(request.url) if request.url[:4] == "http" else None)
        for width, scheme in ((1280, "light"), (390, "dark")):
            shown.set_viewport_size({"width": width, "height": 844})
            shown.emulate_media(color_scheme=scheme)
            shown.goto(path.as_uri())
            shown.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            assert shown.evaluate(OUTSIDE) == []
            ground = shown.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
            found = axe.run(shown, options={"resultTypes": ["violations"]}).response["violations"]
            assert [(one["id"], one["nodes"][0]["html"]) for one in found] == []
            yield shown
        chromium.close()
    assert said == []


def picture_boxes(shown: Page) -> list[dict[str, float]]:
    """Where its pictures lie, in pixels."""
    return [svg.bounding_box() for svg in shown.locator("div[role=img] svg").all()]
