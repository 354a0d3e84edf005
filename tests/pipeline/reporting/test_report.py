"""The report as people meet it, in a real browser: counts, films, reasons, keyboard, contrast, and nothing hostile."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_dataset import identity, sample

from pipeline.curation.select import select
from pipeline.errors import UsageError
from pipeline.reporting.clip_page import view
from pipeline.reporting.report import report

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>{{ 7 * 7 }}"
# WCAG 2.2, 1.4.3: the least contrast of text.
CONTRAST = 4.5


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium: the system's, or the one that Playwright brought."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            # Containers have no user namespaces for its sandbox; the page is our own.
            started = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield started
        started.close()


class Opened:
    """The page, and everything it complained of or asked for."""

    def __init__(self, browser: Any, file: Path, **how: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | how)
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def counts(self) -> dict[str, int]:
        """What the page says would be kept, rejected and pending."""
        names = ("kept", "rejected", "pending")
        texts = {name: self.page.inner_text(f"#count-{name}") for name in names}
        return {name: int(text.replace(",", "")) for name, text in texts.items() if text != "0"}

    def move(self, signal: str, side: str, share: float) -> None:
        """Put a slider at a share of its way."""
        slider = self.page.locator("figure", has=self.page.locator(f"figcaption b:text-is('{signal}')"))
        slider.locator(f"input.{side}").evaluate(
            "(input, share) => { input.value = 1000 * share; input.dispatchEvent(new Event('input')); }", share
        )
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture(scope="module")
def written(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A dataset with clips of every verdict and hostile texts, and its report."""
    import small_dataset

    folder: Path = tmp_path_factory.mktemp("report")
    shutil.copytree(filled, folder / "out's <b>")
    dataset = small_dataset.Dataset(str(folder / "out's <b>"), folder / "scratch")
    names = [f"b{n}" for n in range(3, 9)]
    places = dataset.shard("shards", {name: sample(name) for name in names})
    dataset.commit(
        *(
            dataset.clip(name, "kept", **places[name])
            | {"luma": 22.5 + 13.1 * n, "contrast": None if n == 2 else 5.0 + n, "caption": HOSTILE}
            for n, name in enumerate(names)
        )
    )
    dataset.commit(dataset.source("x", "failed", code="NOT_VIDEO", stage="probe", detail=HOSTILE, source_uri=HOSTILE))
    report(dataset.url, folder / "report.html")
    return dataset, folder / "report.html"


@pytest.fixture
def opened(browser: Any, written: tuple[Any, Path]) -> Iterator[Opened]:
    found = Opened(browser, written[1])
    yield found
    assert found.said == [], "nothing on the console, no dialog"
    assert {url.partition(":")[0] for url in found.asked} <= {"file", "data", "blob"}, "nobody was asked for anything"
    assert len([url for url in found.asked if url.startswith("file:")]) == 1
    found.page.close()


def test_the_counts_are_those_of_select(opened: Opened, written: tuple[Any, Path]) -> None:
    dataset, _ = written

    def held() -> None:
        """The command that the page gives, run: its verdicts are the page's."""
        words = shlex.split(opened.page.inner_text("#command"))
        assert words[:3] == ["vdot-data", "select", dataset.url]
        rules = [rule for flag, rule in zip(words[3::2], words[4::2], strict=True) if flag == "--rule"]
        found = select(dataset.url, rules=rules).verdicts
        assert opened.counts() == {name: count for name, count in found.items() if name != "failed"}

    held()
    start = opened.counts()
    assert start == {"kept": 9, "rejected": 1, "pending": 1}
    seen = [start]
    for moves in (
        [("luma", "low", 0.5)],
        [("luma", "low", 0.0)],
        [("luma", "high", 0.61), ("contrast", "low", 0.04)],
        [("luma", "low", 0.33), ("motion", "low", 0.2)],
    ):
        for signal, side, share in moves:
            if signal != "motion":
                opened.move(signal, side, share)
        held()
        seen.append(opened.counts())
    assert len({tuple(sorted(counts.items())) for counts in seen}) >= 4
    opened.page.click("#reset")
    assert opened.counts() == start


def test_films_play_while_they_are_pointed_at(opened: Opened) -> None:
    cards = opened.page.locator(".card:has(video)")
    assert cards.count() >= 3
    card = cards.first
    video = card.locator("video")
    card.scroll_into_view_if_needed()
    assert video.evaluate("(video) => video.paused")
    card.hover()
    opened.page.wait_for_function("() => !document.querySelector('.card video').paused")
    opened.page.wait_for_function("() => document.querySelector('.card video').currentTime > 0.05")
    assert card.locator(".tiles li").all_inner_texts()[:2] == ["clip", "scribble"]
    width, height = video.evaluate("(video) => [video.videoWidth, video.videoHeight]")
    assert (width, height) == (2 * 64, 48), "the clip and its track side by side"
    opened.page.mouse.move(0, 0)
    assert video.evaluate("(video) => video.paused")
    card.focus()
    opened.page.wait_for_function("() => !document.querySelector('.card video').paused")


def test_reasons_are_told_in_words(opened: Opened) -> None:
    text = opened.page.inner_text("#clips")
    assert "too_dark: luma < 20 (luma = 12.5)" in text
    assert "ANNOTATOR_ERROR in the step scribble: ValueError: no" in text
    assert identity("a1") in text
    assert "text" in opened.page.inner_text("#tasks")
    assert "scribble" in opened.page.inner_text("#lineage")
    assert "CC0" in opened.page.inner_text("#lineage")
    assert "too_dark" in opened.page.inner_text("#funnel")


def test_what_is_hostile_is_only_text(opened: Opened) -> None:
    assert HOSTILE in opened.page.inner_text("#clips")
    assert opened.page.locator("main img[src='x']").count() == 0
    assert opened.page.locator("script").count() == 4
    assert "49" not in opened.page.inner_text("#clips .caption >> nth=0")


def test_the_keyboard_is_enough(opened: Opened) -> None:
    opened.page.locator("input.low").first.focus()
    before = opened.page.inner_text("#command")
    for _ in range(3):
        opened.page.keyboard.press("PageUp")
    opened.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert opened.page.inner_text("#command") != before
    opened.page.keyboard.press("Tab")
    assert opened.page.evaluate("() => document.activeElement.matches('input.high')")
    assert opened.page.locator("input[type=range]:not([aria-label])").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_contrast_and_width(browser: Any, written: tuple[Any, Path], scheme: str, width: int) -> None:
    size = {"width": width, "height": 844}
    opened = Opened(browser, written[1], color_scheme=scheme, viewport=size)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.evaluate(_LEAST_CONTRAST) >= CONTRAST
    opened.page.close()


_LEAST_CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((one) => one / 255)
    .map((one) => one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4)
    .reduce((sum, one, at) => sum + one * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found.length === 3 || found[3] > 0.5) return found;
    }
    return [255, 255, 255];
  };
  let least = 21;
  for (const node of document.querySelectorAll("body *")) {
    const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.textContent.trim());
    if (!own || !node.checkVisibility()) continue;
    const [one, other] = [light(channels(getComputedStyle(node).color)), light(behind(node))].sort((a, b) => a - b);
    least = Math.min(least, (other + 0.05) / (one + 0.05));
  }
  return least;
}"""


def test_a_sample_that_cannot_be_read_leaves_a_gap(browser: Any, dataset: Any, tmp_path: Path) -> None:
    for folder in ("shards", "previews"):
        for shard in Path(dataset.url, folder).iterdir():
            shard.write_bytes(bytes(shard.stat().st_size))
    report(dataset.url, tmp_path / "report.html")
    opened = Opened(browser, tmp_path / "report.html")
    assert opened.page.locator("#clips video, #clips img").count() == 0
    assert identity("a0") in opened.page.inner_text("#clips")
    opened.page.close()


def test_one_sample_is_opened(browser: Any, written: tuple[Any, Path], tmp_path: Path) -> None:
    dataset, _ = written
    assert view(dataset.url, identity("a0")[:8], tmp_path / "view.html") == identity("a0")
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto((tmp_path / "view.html").as_uri())
    assert page.locator(".tiles li").all_inner_texts() == ["clip", "flow", "scribble"], "a layer's track too"
    page.locator(".card").hover()
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.05")
    assert "Made by:" in page.inner_text("pre")
    assert said == []
    page.close()
    with pytest.raises(UsageError, match="is a source; `view` opens one of its clips"):
        view(dataset.url, "a.mp4", tmp_path / "view.html")
