"""Tests the report in a real browser: counts, videos, reasons, keyboard, contrast, and hostile texts."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_dataset import frames, identity, sample

from pipeline.curation.select import select
from pipeline.errors import ADVICE, ErrorCode, UsageError
from pipeline.reporting.clip_page import view
from pipeline.reporting.report import report
from pipeline.stages import sandboxed

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>{{ 7 * 7 }}"
# WCAG 2.2, 1.4.3: the minimum contrast of text.
CONTRAST = 4.5


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium: the system's, or Playwright's own."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with sync_api.sync_playwright() as playwright:
        try:
            # Containers have no user namespaces for its sandbox; the page is our own.
            chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        except sync_api.Error as error:
            pytest.skip(f"there is no Chromium: {str(error).splitlines()[0]}")
        yield chromium
        chromium.close()


class OpenedPage:
    """The page with its messages and requests."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}} | options)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.messages.append(message.text))
        self.page.on("pageerror", lambda error: self.messages.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.messages.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("body[data-ready]")

    def counts(self) -> dict[str, int]:
        """The page's numbers of kept, rejected and pending clips."""
        names = ("kept", "rejected", "pending")
        texts = {name: self.page.inner_text(f"#count-{name}") for name in names}
        return {name: int(text.replace(",", "")) for name, text in texts.items() if text != "0"}

    def move(self, signal: str, side: str, share: float) -> None:
        """Move a slider to a share of its range."""
        slider = self.page.locator("figure", has=self.page.locator(f"figcaption b:text-is('{signal}')"))
        slider.locator(f"input.{side}").evaluate(
            "(input, share) => { input.value = 1000 * share; input.dispatchEvent(new Event('input')); }", share
        )
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


@pytest.fixture(scope="module")
def written_report(filled_dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A dataset with clips of every verdict and hostile texts, and its report."""
    import small_dataset

    folder: Path = tmp_path_factory.mktemp("report")
    shutil.copytree(filled_dataset, folder / "out's <b>")
    dataset = small_dataset.Dataset(str(folder / "out's <b>"), folder / "scratch")
    names = [f"b{number}" for number in range(3, 9)]
    places = dataset.shard("shards", {name: sample(name) for name in names})
    dataset.commit(
        *(
            dataset.clip(name, "kept", **places[name])
            | {"luma": 22.5 + 13.1 * number, "contrast": None if number == 2 else 5.0 + number, "caption": HOSTILE}
            for number, name in enumerate(names)
        )
    )
    dataset.commit(dataset.source("x", "failed", code="NOT_VIDEO", stage="probe", detail=HOSTILE, source_uri=HOSTILE))
    report(dataset.url, folder / "report.html")
    return dataset, folder / "report.html"


@pytest.fixture
def opened(browser: Any, written_report: tuple[Any, Path]) -> Iterator[OpenedPage]:
    result = OpenedPage(browser, written_report[1])
    yield result
    assert result.messages == [], "nothing on the console, no dialog"
    assert {url.partition(":")[0] for url in result.requests} <= {"file", "data", "blob"}, "no request to any server"
    assert len([url for url in result.requests if url.startswith("file:")]) == 1
    result.page.close()


@pytest.mark.long
def test_the_counts_are_those_of_select(opened: OpenedPage, written_report: tuple[Any, Path]) -> None:
    dataset, _ = written_report

    def check_counts() -> None:
        """Run the page's command: its verdicts must be the page's."""
        words = shlex.split(opened.page.inner_text("#command"))
        assert words[:3] == ["vdot-data", "select", dataset.url]
        rules = [rule for flag, rule in zip(words[3::2], words[4::2], strict=True) if flag == "--rule"]
        verdicts = select(dataset.url, rules=rules).verdicts
        assert opened.counts() == {name: count for name, count in verdicts.items() if name != "failed"}

    check_counts()
    initial = opened.counts()
    assert initial == {"kept": 9, "rejected": 1, "pending": 1}
    states = [initial]
    for moves in (
        [("luma", "low", 0.5)],
        [("luma", "low", 0.0)],
        [("luma", "high", 0.61), ("contrast", "low", 0.04)],
        [("luma", "low", 0.33), ("motion", "low", 0.2)],
    ):
        for signal, side, share in moves:
            if signal != "motion":
                opened.move(signal, side, share)
        check_counts()
        states.append(opened.counts())
    assert len({tuple(sorted(counts.items())) for counts in states}) >= 4
    opened.page.click("#reset")
    assert opened.counts() == initial


def test_films_play_while_they_are_pointed_at(opened: OpenedPage) -> None:
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


def test_reasons_are_told_in_words(opened: OpenedPage) -> None:
    text = opened.page.inner_text("#clips")
    assert "too_dark: luma = 12.5" in text
    assert "ANNOTATOR_ERROR in the step scribble: ValueError: no" in text
    assert identity("a1")[:8] in text
    assert "text" in opened.page.inner_text("#tasks")
    assert "scribble" in opened.page.inner_text("#lineage")
    assert "CC0" in opened.page.inner_text("#lineage")
    assert "too_dark" in opened.page.inner_text("#funnel")


def test_pictures_come_first(opened: OpenedPage) -> None:
    page = opened.page
    assert page.inner_text("h1") == "out's <b> 12 clips of 5 sources", "its name, not its path"
    assert page.title() == "out's <b>: 9 kept, 1 rejected, 3 failed"
    sections = page.locator("section").evaluate_all("(sections) => sections.map((section) => section.id)")
    assert sections[:5] == ["kept", "rejected", "failed", "pending", "thresholds"]
    assert page.inner_text("#kept h2").split() == ["Kept", "9", "clips"]
    assert "All 9 are shown." in page.inner_text("#kept")
    targets = page.locator("nav a").evaluate_all("(links) => links.map((link) => link.getAttribute('href'))")
    assert all(page.locator(f"section{target}").count() == 1 for target in targets)
    failed = page.inner_text("#failed")
    assert ADVICE[ErrorCode.DECODE_ERROR] in failed
    assert "/videos/c.mp4: DECODE_ERROR in the step scan: moov atom not found" in failed
    assert page.inner_text("#rejected h3").split() == ["too_dark", "1", "clip"]
    assert "luma < 20" in page.inner_text("#rejected .note")


def test_what_is_seen_has_a_text(opened: OpenedPage) -> None:
    assert opened.page.locator("#clips img").count() >= 2
    assert (
        opened.page.locator("img:not([alt]), img[alt=''], video:not([aria-label]), .card:not([aria-label])").count()
        == 0
    )
    label = opened.page.locator("#kept video >> nth=0").get_attribute("aria-label")
    assert label == "The clip and its tracks: scribble"


def test_a_strip_shows_one_frame_at_rest_and_five_when_pointed_at(opened: OpenedPage) -> None:
    card = opened.page.locator("#rejected .card")
    strip = card.locator("img")
    box = strip.bounding_box()
    assert box["width"] / box["height"] == pytest.approx(64 / 48, rel=0.02), "the shape of one frame"
    position = "(image) => getComputedStyle(image).objectPosition"
    assert strip.evaluate(position) == "50% 50%"
    card.hover()
    opened.page.wait_for_function(
        "() => getComputedStyle(document.querySelector('#rejected img')).objectPosition[0] === '0'"
    )


def test_a_tap_plays_and_the_next_one_stops(browser: Any, written_report: tuple[Any, Path]) -> None:
    opened = OpenedPage(browser, written_report[1], has_touch=True, viewport={"width": 390, "height": 844})
    video = opened.page.locator("#kept video").first
    video.scroll_into_view_if_needed()
    video.tap()
    opened.page.wait_for_function("() => document.querySelector('#kept video').currentTime > 0.05")
    assert not video.evaluate("(video) => video.paused")
    video.tap()
    assert video.evaluate("(video) => video.paused")
    opened.page.close()


def test_less_motion_is_left_to_the_reader(browser: Any, written_report: tuple[Any, Path]) -> None:
    opened = OpenedPage(browser, written_report[1], reduced_motion="reduce")
    card = opened.page.locator("#kept .card").first
    card.hover()
    card.focus()
    video = card.locator("video")
    assert video.evaluate("(video) => video.paused")
    opened.page.keyboard.press("Enter")
    assert not video.evaluate("(video) => video.paused")
    opened.page.locator("#rejected .card").hover()
    strip = opened.page.locator("#rejected img")
    assert strip.evaluate("(image) => getComputedStyle(image).animationName") == "none"
    opened.page.close()


def test_a_large_dataset_is_a_sample(browser: Any, dataset: Any, tmp_path: Path) -> None:
    """40 sources with three kept clips each, 20 rules that reject ten each, 30 sources that fail for one reason."""
    members, strip = sample("b0"), {"jpg": sandboxed.make_strip(frames("b0"))}
    kept_places = dataset.shard("shards", {f"b{number}": members for number in range(100, 220)})
    previews = dataset.shard("previews", {f"b{number}": strip for number in range(300, 500)})
    kept = [
        dataset.clip(name, "kept", source_uri=f"/videos/s{position % 40}.mp4", **place)
        for position, (name, place) in enumerate(kept_places.items())
    ]
    rejected = [
        dataset.clip(name, "rejected", rule=f"rule{position % 20:02d}", **place)
        for position, (name, place) in enumerate(previews.items())
    ]
    fault = {"code": "NOT_VIDEO", "stage": "probe", "detail": "no stream"}
    failed = [dataset.source(f"f{n}", "failed", source_hash=None, **fault) for n in range(30)]
    dataset.commit(*kept, *rejected, *failed)
    report(dataset.url, tmp_path / "report.html")
    opened = OpenedPage(browser, tmp_path / "report.html")
    page = opened.page
    assert "12 of 123 are shown, from as many of their 42 sources as possible." in page.inner_text("#kept")
    sources = {text.split()[0] for text in page.locator("#kept .source").all_inner_texts()}
    assert len(sources) == page.locator("#kept .card").count() == 12, "each of another source"
    assert page.locator("#rejected h3").count() == 16
    assert page.locator("#rejected .card").count() == 16 * 6
    assert "the 16 most frequent reasons; the funnel lists all 21" in page.inner_text("#rejected")
    assert page.inner_text("#failed h3 >> nth=0").split() == ["NOT_VIDEO", "30", "sources"]
    assert page.locator("#failed ul >> nth=0 >> li").count() == 6
    page.set_viewport_size({"width": 390, "height": 844})
    tops = page.locator("#rejected .sheet >> nth=0 >> .card").evaluate_all(
        "(cards) => cards.map((card) => card.offsetTop)"
    )
    assert len(tops) == 6
    assert len(set(tops)) == 1, "one row, which is moved sideways"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    opened.page.close()


def test_what_is_hostile_is_only_text(opened: OpenedPage) -> None:
    assert HOSTILE in opened.page.inner_text("#clips")
    assert opened.page.locator("main img[src='x']").count() == 0
    assert opened.page.locator("script").count() == 4
    assert "49" not in opened.page.inner_text("#clips .caption >> nth=0")


def test_the_keyboard_is_enough(opened: OpenedPage) -> None:
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
def test_contrast_and_width(browser: Any, written_report: tuple[Any, Path], scheme: str, width: int) -> None:
    size = {"width": width, "height": 844}
    opened = OpenedPage(browser, written_report[1], color_scheme=scheme, viewport=size)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.evaluate(_MIN_CONTRAST) >= CONTRAST
    opened.page.close()


_MIN_CONTRAST = """() => {
  const channels = (text) => text.match(/[\\d.]+/g).map(Number);
  const luminance = ([red, green, blue]) => [red, green, blue].map((level) => level / 255)
    .map((level) => level <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4)
    .reduce((sum, level, index) => sum + level * [0.2126, 0.7152, 0.0722][index], 0);
  const background = (node) => {
    for (let element = node; element; element = element.parentElement) {
      const colour = channels(getComputedStyle(element).backgroundColor);
      if (colour.length === 3 || colour[3] > 0.5) return colour;
    }
    return [255, 255, 255];
  };
  let minimum = 21;
  for (const node of document.querySelectorAll("body *")) {
    const hasText = [...node.childNodes].some((child) => child.nodeType === 3 && child.textContent.trim());
    if (!hasText || !node.checkVisibility()) continue;
    const colours = [channels(getComputedStyle(node).color), background(node)];
    const [darker, lighter] = colours.map(luminance).sort((a, b) => a - b);
    minimum = Math.min(minimum, (lighter + 0.05) / (darker + 0.05));
  }
  return minimum;
}"""


def test_a_sample_that_cannot_be_read_leaves_a_gap(browser: Any, dataset: Any, tmp_path: Path) -> None:
    for folder in ("shards", "previews"):
        for shard in Path(dataset.url, folder).iterdir():
            shard.write_bytes(bytes(shard.stat().st_size))
    report(dataset.url, tmp_path / "report.html")
    opened = OpenedPage(browser, tmp_path / "report.html")
    assert opened.page.locator("#clips video, #clips img").count() == 0
    assert identity("a0")[:8] in opened.page.inner_text("#clips")
    opened.page.close()


def test_one_sample_is_opened(browser: Any, written_report: tuple[Any, Path], tmp_path: Path) -> None:
    dataset, _ = written_report
    assert view(dataset.url, identity("a0")[:8], tmp_path / "view.html") == identity("a0")
    page = browser.new_page()
    messages: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.goto((tmp_path / "view.html").as_uri())
    assert page.locator(".tiles li").all_inner_texts() == ["clip", "flow", "scribble"], "a layer's track too"
    page.locator(".card").hover()
    page.wait_for_function("() => document.querySelector('video').currentTime > 0.05")
    assert "Made by:" in page.inner_text("pre")
    assert messages == []
    page.close()
    with pytest.raises(UsageError, match="is a source; `view` opens one of its clips"):
        view(dataset.url, "a.mp4", tmp_path / "view.html")
