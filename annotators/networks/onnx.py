"""Runs ONNX networks in one thread each, because more would make their last digits depend on the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


class Network:
    """One network with one input."""

    def __init__(self, weights: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(weights), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        # U2-Net has six more outputs, from coarser levels, that are not used.
        self._output = self._session.get_outputs()[0].name

    def __call__(self, batch: Floats) -> Floats:
        """The first output for float32 [N, ...]."""
        output: Floats = self._session.run([self._output], {self._input: batch})[0]
        return output
