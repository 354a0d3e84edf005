"""Writes plain captions from the signals of other annotators, where no captioning model runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from annotators.base import Annotation, Annotator, Frames, Signal

# A person is mentioned when seen in this share of the frames; a tag when it is this likely, as most correct ones are.
_SEEN, _SURE = 0.5, 0.35
# Light that is worth a word, and the spread of colours below which a clip is black and white.
_DARK, _BRIGHT, _GREY = 60.0, 190.0, 2.0
# px/frame below which nothing moves, and %/s below which a camera that zooms zooms both in and out.
_STILL, _ZOOMS = 0.1, 1.0
_CAMERA = {
    "pan": "The camera pans.",
    "roll": "The camera rolls.",
    "shake": "The camera shakes.",
    "still": "The camera stands still.",
}
# ImageNet's words for what people wear, what screens and prints look like, and parts of faces and rooms: a network that
# has no word for people and drawings gives these instead.
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


# ImageNet's words that take no article; those that begin with the sound of "you" or "won"; those with a silent h.
_PLURALS = frozenset(("parallel bars", "binoculars", "hay", "velvet", "wool", "chain mail", "corn", "ice cream"))
_CONSONANT, _SILENT = re.compile(r"(uni|eu|ufo|one|utensil|ural)", re.IGNORECASE), re.compile(r"(hour|honest|heir)")


class CaptionTemplate(Annotator):
    """Describes tags, people, words, camera and light in plain sentences, by a template instead of a language model."""

    name: ClassVar[str] = "caption_template"
    version: ClassVar[str] = "2"
    caption: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = (
        *("tags", "tag_score", "pose_people", "pose_coverage", "face_coverage", "words"),
        *("camera", "camera_zoom", "motion", "luma", "colour_spread"),
    )
    signals: ClassVar[Mapping[str, Signal]] = {
        "caption_method": Signal("", "what wrote the caption: template, or the model's name", "str")
    }

    def __call__(self, frames: Frames, fps: float, **needed: Any) -> Annotation:
        """Describe one clip by the signals in `needs`; the frames are not used."""
        return Annotation(signals={"caption_method": "template"}, caption=" ".join(_write_sentences(**needed)))


def _write_sentences(
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
    person_phrase = _describe_people(pose_people if pose_coverage >= _SEEN else 0, face_coverage)
    tag = (tags or "").partition(", ")[0]
    tag_phrase = _add_article(tag) if tag and tag not in _UNFIT and tag_score >= _SURE else ""
    light = " dark" if luma < _DARK else " bright" if luma > _BRIGHT else ""
    colour = " black-and-white" if colour_spread < _GREY else ""
    kind = _add_article(f"{light}{colour} video".strip())
    subjects = " and ".join(part for part in (person_phrase, tag_phrase) if part)
    sentences = [f"{kind[0].upper()}{kind[1:]} of {subjects}." if subjects else f"{kind[0].upper()}{kind[1:]}."]
    if camera == "zoom":
        direction = " in" if (camera_zoom or 0) > _ZOOMS else " out" if (camera_zoom or 0) < -_ZOOMS else ""
        sentences.append(f"The camera zooms{direction}.")
    elif camera:
        sentences.append(_CAMERA[camera])
    if motion < _STILL:
        sentences.append("Hardly anything moves.")
    if words:
        text = words.replace(" / ", " ").replace('"', "'")
        sentences.append(f'The words "{text}" can be read.')
    return sentences


def _describe_people(people: int, face_coverage: float) -> str:
    # The count is that of the fullest frame alone, so no number is given.
    return "people" if people > 1 else "a person" if people or face_coverage >= _SEEN else ""


def _add_article(noun: str) -> str:
    """Add the English article to one of ImageNet's words or ours."""
    if noun in _PLURALS:
        return noun
    vowel = noun[0].lower() in "aeiou" and not _CONSONANT.match(noun)
    return f"{'an' if vowel or _SILENT.match(noun) else 'a'} {noun}"
