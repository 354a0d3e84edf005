"""Captions put together from what others measured: plain sentences, true as far as they go, where no captioner runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from annotators.base import Annotation, Frames, Signal, Weight

# A person is spoken of when seen in this share of the frames; a tag when it is this likely, which most right ones are.
_SEEN, _SURE = 0.5, 0.35
# Light that is worth a word, and the spread of colours under which there are none.
_DARK, _BRIGHT, _GREY = 60.0, 190.0, 2.0
# px/frame under which nothing moves, and %/s under which a camera that zooms goes there and back.
_STILL, _ZOOMS = 0.1, 1.0
_CAMERA = {
    "pan": "The camera pans.",
    "roll": "The camera rolls.",
    "shake": "The camera shakes.",
    "still": "The camera stands still.",
}
# ImageNet's words for what people wear, what screens and prints look like, and parts of faces and rooms: a network that
# has no word for people and drawings says these instead.
_UNFIT = frozenset(
    [
        "web site",
        "comic book",
        "book jacket",
        "jigsaw puzzle",
        "menu",
        "crossword puzzle",
        "envelope",
        "packet",
        "jersey",
        "sweatshirt",
        "cardigan",
        "suit",
        "trench coat",
        "abaya",
        "miniskirt",
        "gown",
        "wig",
        "hair spray",
        "lipstick",
        "lotion",
        "sunscreen",
        "sunglass",
        "sunglasses",
        "bow tie",
        "Windsor tie",
        "bolo tie",
        "neck brace",
        "Band Aid",
        "stole",
        "poncho",
        "fur coat",
        "lab coat",
        "academic gown",
        "kimono",
        "sarong",
        "vestment",
        "jean",
        "bikini",
        "brassiere",
        "maillot",
        "swimming trunks",
        "diaper",
        "pajama",
        "mask",
        "ski mask",
        "oxygen mask",
        "shower cap",
        "bathing cap",
        "screen",
        "monitor",
        "television",
        "home theater",
        "cinema",
        "stage",
        "spotlight",
        "theater curtain",
        "window screen",
        "window shade",
        "digital clock",
        "analog clock",
        "scoreboard",
        "street sign",
        "traffic light",
        "nematode",
        "matchstick",
        "quill",
        "rule",
        "fire screen",
        "shower curtain",
        "doormat",
        "velvet",
        "wool",
        "chain mail",
        "spider web",
        "honeycomb",
    ]
)


# ImageNet's words that take no article; those that begin with the sound of "you" or "won", and with a silent h.
_PLURALS = frozenset(("parallel bars", "binoculars", "hay", "velvet", "wool", "chain mail", "corn", "ice cream"))
_CONSONANT, _SILENT = re.compile(r"(uni|eu|ufo|one|utensil|ural)", re.IGNORECASE), re.compile(r"(hour|honest|heir)")


class CaptionTemplate:
    """Says in plain sentences what tags, people, words, camera and light are; a template, and no model of language."""

    name: ClassVar[str] = "caption_template"
    version: ClassVar[str] = "2"
    tracks: ClassVar[tuple[str, ...]] = ()
    caption: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = (
        *("tags", "tag_score", "pose_people", "pose_coverage", "face_coverage", "words"),
        *("camera", "camera_zoom", "motion", "luma", "colour_spread"),
    )
    signals: ClassVar[Mapping[str, Signal]] = {
        "caption_method": Signal("", "what wrote the caption: template, or the model's name", "str")
    }
    weights: ClassVar[tuple[Weight, ...]] = ()

    def __call__(self, frames: Frames, fps: float, **needed: Any) -> Annotation:
        """Describe one clip by the signals in `needs`; the frames themselves are not looked at."""
        return Annotation(signals={"caption_method": "template"}, caption=" ".join(_sentences(**needed)))


def _sentences(
    *,
    tags: str | None,
    tag_score: float,
    pose_people: int,
    pose_coverage: float,
    face_coverage: float,
    words: str | None,
    camera: str | None,
    camera_zoom: float | None,
    motion: float,
    luma: float,
    colour_spread: float,
) -> list[str]:
    """Each argument is the signal of that name."""
    who = _people(pose_people if pose_coverage >= _SEEN else 0, face_coverage)
    tag = (tags or "").partition(", ")[0]
    what = _with_article(tag) if tag and tag not in _UNFIT and tag_score >= _SURE else ""
    light = " dark" if luma < _DARK else " bright" if luma > _BRIGHT else ""
    colour = " black-and-white" if colour_spread < _GREY else ""
    kind = _with_article(f"{light}{colour} video".strip())
    shown = " and ".join(part for part in (who, what) if part)
    found = [f"{kind[0].upper()}{kind[1:]} of {shown}." if shown else f"{kind[0].upper()}{kind[1:]}."]
    if camera == "zoom":
        way = " in" if (camera_zoom or 0) > _ZOOMS else " out" if (camera_zoom or 0) < -_ZOOMS else ""
        found.append(f"The camera zooms{way}.")
    elif camera:
        found.append(_CAMERA[camera])
    if motion < _STILL:
        found.append("Hardly anything moves.")
    if words:
        read = words.replace(" / ", " ").replace('"', "'")
        found.append(f'The words "{read}" can be read.')
    return found


def _people(people: int, face_coverage: float) -> str:
    # How many there are at once is known of the fullest frame alone, so no number is given.
    return "people" if people > 1 else "a person" if people or face_coverage >= _SEEN else ""


def _with_article(noun: str) -> str:
    """As English has it for ImageNet's words and for ours."""
    if noun in _PLURALS:
        return noun
    vowel = noun[0].lower() in "aeiou" and not _CONSONANT.match(noun)
    return f"{'an' if vowel or _SILENT.match(noun) else 'a'} {noun}"
