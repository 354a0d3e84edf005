"""Tags what a clip shows with ImageNet's thousand words, for captions and for search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from annotators import weights
from annotators.base import Annotation, Annotator, Frames, Signal, Weight, spread
from annotators.networks.efficientnet import WEIGHT, EfficientNet

# Frames of a clip that the network sees.
_FRAMES = 8
# A word is a tag when it is this likely on average over the frames, and among this many of the likeliest.
_LIKELY, _MAX_TAGS = 0.1, 5
_TIMM = "pypi:timm==1.0.31!timm/data/_info"


class Tags(Annotator):
    """Names what eight frames show, by EfficientNet-Lite0.

    data["tags"]: [word, probability] for each tag, likeliest first. ImageNet has no word for a person, and few for
    places; the probability is the mean over the frames.
    """

    name: ClassVar[str] = "tags"
    version: ClassVar[str] = "efficientnet-lite0-1"
    signals: ClassVar[Mapping[str, Signal]] = {
        "tags": Signal(
            "", "what the clip shows, in ImageNet's words, likeliest first; null where none is likely", "str"
        ),
        "tag_score": Signal("0..1", "probability of the first tag, or of the likeliest word where none is a tag"),
    }
    weights: ClassVar[tuple[Weight, ...]] = (
        WEIGHT,
        Weight(
            id="imagenet-synsets",
            source=f"{_TIMM}/imagenet_synsets.txt",
            sha256="70002b0ff5de60a3a17a82dbfcff291931f96225ddf941ad2e182fc39e183d15",
            licence="Apache-2.0",
        ),
        Weight(
            id="imagenet-lemmas",
            source=f"{_TIMM}/imagenet_synset_to_lemma.txt",
            sha256="1b8babda187421a4bde0c9c5a197c36f6bdda962f7ca11ffb2813806cbb2178f",
            licence="Apache-2.0",
        ),
    )

    def __init__(self) -> None:
        """Load network and words; raises `weights.MissingWeights` if one is absent or damaged."""
        network, synsets, lemmas = (weights.path(weight) for weight in self.weights)
        self._network = EfficientNet(network)
        words = dict(line.split("\t", 1) for line in lemmas.read_text().splitlines())
        # Of several words for one thing, the first is the most common.
        self._words = [words[synset].partition(",")[0] for synset in synsets.read_text().split()]

    def __call__(self, frames: Frames, fps: float) -> Annotation:
        """Name what one clip shows: `frames` uint8 [T, H, W, 3] RGB; `fps` is not used."""
        likely = self._network.probabilities(frames[spread(len(frames), _FRAMES)]).mean(axis=0)
        best = np.argsort(-likely, kind="stable")[:_MAX_TAGS]
        tags = [(self._words[index], float(likely[index])) for index in best if likely[index] >= _LIKELY]
        return Annotation(
            signals={"tags": ", ".join(word for word, _ in tags) or None, "tag_score": float(likely[best[0]])},
            data={"tags": [[word, round(score, 3)] for word, score in tags]},
        )
