"""Tests the quality filters on synthetic pictures with known values."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
import real_clips

from filters.black import Black
from filters.blockiness import Blockiness
from filters.borders import Borders
from filters.brisque import Brisque
from filters.camera import Camera
from filters.colour import Colour
from filters.exposure import Luma
from filters.flicker import Flicker
from filters.noise import Noise
from filters.sharpness import Sharpness
from filters.stillness import Stillness
from pipeline.formats.clip_decode import decode_clip
from pipeline.formats.clip_encode import encode_clip
from pipeline.recipe.recipe import default_text, parse
from pipeline.recipe.rules import Rules

FPS = 16.0
RNG = np.random.default_rng(5)


def make_scene(height: int = 480, width: int = 640, seed: int = 1) -> Any:
    """A picture with detail at all sizes, uint8 [H, W, 3]."""
    rng = np.random.default_rng(seed)
    picture = np.zeros((height, width, 3), np.float32)
    for side in (6, 24, 96):
        noise = rng.normal(size=(height // side + 2, width // side + 2, 3)).astype(np.float32)
        picture += cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC) * side**0.5
    picture = (picture - picture.min()) / (picture.max() - picture.min())
    return (40 + 180 * picture).astype(np.uint8)


def film(course: list[tuple[float, ...]], seed: int = 1) -> Any:
    """Frames of a scene that in each step moves by (x, y) pixels, grows by a factor and turns clockwise by degrees (by
    none if omitted)."""
    large = make_scene(960, 1280, seed)
    frames, x, y, scale, angle = [], 0.0, 0.0, 1.0, 0.0
    for dx, dy, growth, *turn in [(0.0, 0.0, 1.0), *course]:
        x, y, scale, angle = x + dx, y + dy, scale * growth, angle + sum(turn)
        matrix = cv2.getRotationMatrix2D((640, 480), -angle, scale)
        matrix[:, 2] += (160 - 640 + x, 120 - 480 + y)
        frames.append(cv2.warpAffine(large, matrix, (320, 240), flags=cv2.INTER_LINEAR))
    return np.stack(frames)


def repeat_frames(rate: float, frames: Any, fps: float = FPS) -> Any:
    """A clip on the grid, from a source with fewer frames per second: some frames are repeated."""
    seconds = (np.arange(len(frames)) / fps * rate).round() / rate
    return frames[(seconds * fps).round().astype(int).clip(max=len(frames) - 1)]


def measure(filter_: Any, frames: Any) -> dict[str, Any]:
    values: dict[str, Any] = filter_(frames, FPS)
    assert values.keys() == filter_.signals.keys()
    return values


@pytest.mark.parametrize("shift", [(4.0, 0.0), (-2.5, 1.5), (0.0, -3.0)])
def test_a_pan_is_called_so_and_measured(shift: tuple[float, float]) -> None:
    values = measure(Camera(), film([(*shift, 1.0)] * 40))
    assert values["camera"] == "pan"
    assert values["camera_pan"] == pytest.approx(np.hypot(*shift), abs=0.1)
    assert values["camera_shake"] < 0.2
    assert abs(values["camera_zoom"]) < 0.5


def test_a_slow_zoom_beside_a_faster_pan_is_a_pan() -> None:
    # Two pixels per frame are 8 % of the diagonal per second; 4 % of growth move the picture by 1 % of it.
    assert measure(Camera(), film([(2.0, 0.0, 1.04 ** (1 / FPS))] * 40))["camera"] == "pan"
    assert measure(Camera(), film([(0.5, 0.0, 1.25 ** (1 / FPS))] * 32))["camera"] == "zoom"


@pytest.mark.parametrize("percent", [8.0, -6.0, 25.0])
def test_a_zoom_is_called_so_and_measured(percent: float) -> None:
    growth = (1 + percent / 100) ** (1 / FPS)
    values = measure(Camera(), film([(0.0, 0.0, growth)] * 40))
    assert values["camera"] == "zoom"
    assert values["camera_zoom"] == pytest.approx(percent, abs=1.0)


def test_shake_is_called_so_even_while_panning() -> None:
    course = [(2.0 + float(x), float(y), 1.0) for x, y in RNG.normal(0, 3, (40, 2))]
    values = measure(Camera(), film(course))
    assert values["camera"] == "shake"
    assert values["camera_shake"] == pytest.approx(3 * 2**0.5, rel=0.35)


@pytest.mark.parametrize("rate", [8.0, 10.0, 12.0, 12.5, 15.0])
def test_a_pan_of_a_source_with_few_frames_is_no_shake(rate: float) -> None:
    values = measure(Camera(), repeat_frames(rate, film([(5.0, 0.0, 1.0)] * 48)))
    assert values["camera"] == "pan"


@pytest.mark.parametrize(
    ("kind", "step"), [("pan", (5.0, 0.0, 1.0)), ("zoom", (0.0, 0.0, 1.008)), ("roll", (0.0, 0.0, 1.0, 0.6))]
)
def test_there_and_back_is_no_standstill(kind: str, step: tuple[float, ...]) -> None:
    x, y, growth, *turn = step
    back = (-x, -y, 1 / growth, *(-angle for angle in turn))
    values = measure(Camera(), film([step] * 30 + [back] * 30))
    assert values["camera"] == kind
    assert abs(values["camera_pan"]) < 0.3
    assert abs(values["camera_zoom"]) < 0.5
    assert abs(values["camera_roll"]) < 0.5


def test_a_roll_is_called_so_and_measured() -> None:
    values = measure(Camera(), film([(0.0, 0.0, 1.0, 0.5)] * 40))
    assert values["camera"] == "roll"
    assert values["camera_roll"] == pytest.approx(0.5 * FPS, abs=0.4)


def test_a_camera_that_rocks_shakes() -> None:
    course = [(0.0, 0.0, 1.0, float(turn)) for turn in RNG.normal(0, 1.5, 40)]
    assert measure(Camera(), film(course))["camera"] == "shake"


def test_what_moves_before_a_camera_that_stands_is_no_camera_motion() -> None:
    frames = film([(0.0, 0.0, 1.0)] * 40)
    ball = make_scene(80, 80, seed=9)
    for index, frame in enumerate(frames):
        frame[80:160, 10 + 5 * index : 90 + 5 * index] = ball
    assert measure(Camera(), frames)["camera"] == "still"


@pytest.mark.parametrize(
    "frames", [np.full((20, 64, 64, 3), 90, np.uint8), RNG.integers(0, 255, (20, 240, 320, 3), np.uint8)]
)
def test_where_nothing_can_be_tracked_there_is_no_camera(frames: Any) -> None:
    assert set(measure(Camera(), frames).values()) == {None}


def test_a_held_picture_and_a_slideshow_after_a_codec() -> None:
    held = decode_clip(encode_clip(np.stack([make_scene()] * 40), FPS))
    values = measure(Stillness(), held)
    assert values["frozen"] > 0.95
    assert values["slides"] == 1
    slides = np.concatenate([np.stack([make_scene(seed=seed)] * 16) for seed in (1, 2, 3)])
    values = measure(Stillness(), decode_clip(encode_clip(slides, FPS)))
    assert values["frozen"] > 0.9
    assert values["slides"] == 3
    assert measure(Stillness(), film([(0.5, 0.0, 1.0)] * 30)) == {"frozen": 0.0, "slides": 0}


def test_flashes_are_counted_and_a_cut_is_none() -> None:
    dim, bright = np.full((48, 64, 3), 80, np.uint8), np.full((48, 64, 3), 230, np.uint8)

    def flashes(lights: str) -> int:
        return int(measure(Flicker(), np.stack([bright if light == "#" else dim for light in lights]))["flashes"])

    assert flashes("......#.......##......") == 2
    assert flashes("##########.##########") == 1, "a moment of dark is one too"
    assert flashes("...........##########") == 0, "a cut"
    assert flashes("......##########......") == 0, "light that stays for more than a quarter of a second"
    ramp = np.stack([np.full((48, 64, 3), 40 + 5 * index, np.uint8) for index in range(40)])
    assert measure(Flicker(), ramp)["flashes"] == 0


def test_black_frames_and_fades() -> None:
    picture = make_scene().astype(np.float32)
    light = np.concatenate([np.zeros(4), np.linspace(0, 1, 16), np.ones(30), np.linspace(1, 0, 12), np.zeros(3)])
    frames = np.stack([(picture * share).astype(np.uint8) for share in light])
    values = measure(Black(), frames)
    assert values["black"] == pytest.approx(9 / len(light), abs=0.06)
    assert values["fade"] == pytest.approx(35 / FPS, abs=0.3)
    assert measure(Black(), frames[20:50]) == {"black": 0.0, "fade": 0.0}
    night = np.stack([(picture * 0.2).astype(np.uint8)] * 20)
    assert measure(Black(), night) == {"black": 0.0, "fade": 0.0}, "a dark scene is not black"
    cut = np.concatenate([np.zeros_like(frames[:5]), frames[25:45]])
    assert measure(Black(), cut)["fade"] == 0.0, "a cut from black is no fade"


@pytest.mark.parametrize("rate", [8.0, 10.0, 12.0, 12.5, 15.0, 16.0])
def test_a_fade_of_a_source_with_few_frames(rate: float) -> None:
    light = np.concatenate([np.linspace(0, 1, 32), np.ones(32)])
    frames = np.stack([(make_scene(120, 160).astype(np.float32) * share).astype(np.uint8) for share in light])
    # The following frames get no brighter; a picture held until the end of the clip would be part of the fade.
    frames[32:, 0, 0] = np.arange(32, 0, -1)[:, None] * 7
    assert measure(Black(), repeat_frames(rate, frames))["fade"] == pytest.approx(2.0, abs=0.3)


@pytest.mark.parametrize("sigma", [0.0, 2.0, 6.0, 15.0])
def test_noise_is_measured_and_texture_is_none(sigma: float) -> None:
    # A third of the picture is calm, as a sky is.
    clean = make_scene().astype(np.float32)
    clean[:160] = np.linspace(90, 130, 640)[None, :, None]
    noise = np.random.default_rng(3).normal(0, sigma, (8, 480, 640, 1)) if sigma else np.zeros((8, 1, 1, 1))
    frames = np.clip(clean + noise, 0, 255).round().astype(np.uint8)
    assert measure(Noise(), frames)["noise"] == pytest.approx(sigma, rel=0.15, abs=0.6)


def test_a_tint_is_no_colour() -> None:
    grey = cv2.cvtColor(make_scene(), cv2.COLOR_RGB2GRAY)
    sepia = np.stack([grey * 1.0, grey * 0.9 + 5, grey * 0.8 + 5], axis=-1).astype(np.uint8)
    plain = np.stack([np.stack([grey] * 3, axis=-1)] * 4)
    assert measure(Colour(), plain)["colour_spread"] < 0.5
    assert measure(Colour(), np.stack([sepia] * 4))["colour_spread"] < 8
    assert measure(Colour(), np.stack([make_scene()] * 4))["colour_spread"] > 15


def test_bars_and_blurred_sides_are_measured_and_told_apart() -> None:
    grain = cv2.GaussianBlur(np.random.default_rng(2).normal(0, 40, (240, 320, 3)), (0, 0), 1.0)
    picture = np.clip(make_scene(240, 320) + grain, 0, 255).astype(np.uint8)
    video = np.stack([np.roll(picture, 3 * k, axis=1) for k in range(17)])
    clean_values = measure(Borders(), video)
    assert clean_values == {"bars": 0.0, "blurred_sides": 0.0}
    letterbox = video.copy()
    letterbox[:, :40] = letterbox[:, -40:] = 0
    values = measure(Borders(), letterbox)
    assert values["bars"] == pytest.approx(80 / 240, abs=0.03)
    assert values["blurred_sides"] == 0.0
    # As for videos of phones: the picture in the middle, and an enlarged, blurred copy at its sides.
    inner = video[:, :, 40:280]
    wide = np.stack([cv2.GaussianBlur(cv2.resize(frame, (640, 640)), (0, 0), 15)[200:440] for frame in inner])
    wide[:, :, 200:440] = inner
    for sides in (wide, wide.swapaxes(1, 2)):
        values = measure(Borders(), sides)
        assert values["blurred_sides"] == pytest.approx(400 / 640, abs=0.05)
        assert values["bars"] == 0.0
    # A wall between two smooth areas of sky has straight edges as well.
    sky = np.tile(np.linspace(200, 120, 240)[:, None, None], (1, 640, 3)) + np.random.default_rng(1).normal(
        0, 1, (240, 640, 3)
    )
    tower = np.stack([np.clip(sky, 0, 255).astype(np.uint8)] * 17)
    tower[:, :, 200:440] = video[:, :, 40:280]
    assert measure(Borders(), tower)["blurred_sides"] == 0.0


@pytest.fixture(scope="module")
def brisque() -> Brisque:
    return real_clips.load(Brisque)


def read_frames(name: str) -> Any:
    """Every 20th of the first 100 frames of a real clip, uint8 [5, H, W, 3], with even sides."""
    frames = real_clips.frames(name, 5, every=20)
    return frames[:, : frames.shape[1] // 2 * 2, : frames.shape[2] // 2 * 2]


def test_damage_grows_with_what_a_codec_a_lens_and_a_sensor_do(brisque: Brisque) -> None:
    clean = read_frames("d_dup_mirror.mp4")

    def score(frames: Any) -> float:
        return float(measure(brisque, frames)["brisque"])

    coded = [score(decode_clip(encode_clip(clean, FPS, crf))) for crf in (20, 34, 46)]
    assert coded == sorted(coded)
    assert coded[2] > coded[0] + 15
    noisy = np.clip(clean + np.random.default_rng(0).normal(0, 25, clean.shape), 0, 255).astype(np.uint8)
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 6) for frame in clean])
    assert min(score(noisy), score(blurred)) > score(clean) + 15


def test_blocks_show_where_bits_were_saved_and_a_fence_is_none() -> None:
    clean = read_frames("psychopy__intro.mp4")
    coded = [measure(Blockiness(), decode_clip(encode_clip(clean, FPS, crf)))["blockiness"] for crf in (20, 48)]
    assert coded[0] < 0.6
    assert coded[1] > 1.0
    fence = clean.copy()
    fence[:, :, ::8] = 20
    assert measure(Blockiness(), fence)["blockiness"] < 0.6


@pytest.mark.parametrize("size", [(832, 464), (640, 352), (576, 320)])
def test_blocks_show_in_a_clip_that_is_smaller_than_its_source(size: tuple[int, int]) -> None:
    width, height = size
    large = np.stack([make_scene(720, 1280, seed) for seed in (1, 2, 3)]).astype(np.float32)
    blocks = np.random.default_rng(4).normal(0, 4, (3, 90, 160, 3)).repeat(8, axis=1).repeat(8, axis=2)

    def score(source: Any) -> float:
        source = np.clip(source, 0, 255).astype(np.uint8)
        # Scaled to cover the size and cropped at the centre, as for the grid.
        scale = max(width / 1280, height / 720)
        small = [
            cv2.resize(frame, (round(1280 * scale), round(720 * scale)), interpolation=cv2.INTER_AREA)
            for frame in source
        ]
        top, left = (small[0].shape[0] - height) // 2, (small[0].shape[1] - width) // 2
        return float(measure(Blockiness(), np.stack(small)[:, top : top + height, left : left + width])["blockiness"])

    assert score(large) < 0.3
    assert score(large + blocks) > 1.0
    # A fence has posts but no rails.
    fence = large.copy()
    fence[:, :, ::16] -= 40
    assert score(fence) < 0.3


def test_highlights_tell_a_lamp_at_night_from_a_dark_picture() -> None:
    night = np.full((8, 96, 128, 3), 20, np.uint8)
    assert measure(Luma(), night) == {"luma": pytest.approx(20, abs=0.5), "highlights": pytest.approx(20, abs=0.5)}
    night[:, 20:60, 20:60] = 230
    assert measure(Luma(), night)["highlights"] == pytest.approx(230, abs=0.5)


@pytest.mark.parametrize(
    ("light", "rejected"),
    [({"luma": 30.0, "highlights": 200.0}, True), ({"luma": 45.0, "highlights": 70.0}, True),
     ({"luma": 45.0, "highlights": 120.0}, False), ({"luma": 45.0}, False)],
)  # fmt: skip
def test_dark_is_low_light_or_no_highlight(light: dict[str, float], rejected: bool) -> None:
    # The last case is a dataset that is older than the signal.
    text = parse(default_text(), "default.yaml").rules["too_dark"]
    rules = Rules({"too_dark": text}, {}, {"luma": "float", "highlights": "float"}, [{"luma", "highlights"}])
    assert rules.judge(light).status == ("rejected" if rejected else "kept")


@pytest.mark.parametrize(
    ("damage", "rejected"),
    [((0.2, 0.4), False), ((0.9, 1.3), False), ((0.6, 0.45), True), ((1.2, 1.0), True), ((0.5, None), False)],
)
def test_damage_is_edges_of_blocks_beside_lost_detail(damage: tuple[float, float | None], rejected: bool) -> None:
    text = parse(default_text(), "default.yaml").rules["blocky"]
    names = ("blockiness", "sharpness")
    rules = Rules({"blocky": text}, {}, dict.fromkeys(names, "float"), [set(names)])
    verdict = rules.judge(dict(zip(names, damage, strict=True)))
    assert verdict.status == ("rejected" if rejected else "kept")


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    clean = read_frames("psychopy__intro.mp4")

    def score(frames: Any) -> float:
        return float(measure(Sharpness(), frames)["sharpness"])

    hazy = (clean * 0.3 + 120).astype(np.uint8)
    assert score(hazy) == pytest.approx(score(clean), rel=0.1)
    scores = [score(np.stack([cv2.GaussianBlur(frame, (0, 0), sigma) for frame in clean])) for sigma in (1, 2, 6)]
    assert [score(clean), *scores] == sorted([score(clean), *scores], reverse=True)
    assert scores[-1] < 0.27
    assert measure(Sharpness(), np.full((5, 64, 64, 3), 90, np.uint8)) == {"sharpness": None}


def test_a_picture_of_one_colour_has_no_damage_to_measure(brisque: Brisque) -> None:
    assert measure(brisque, np.full((5, 64, 64, 3), 90, np.uint8)) == {"brisque": None}
