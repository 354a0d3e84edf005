"""Ray, configured and loaded when it is first used: importing the engine changes nothing in a process."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

# Ray reads these when it is imported or started; what the user has set stays.
_SETTINGS = {
    # No usage report, and no bars and lines between ours. Its messages come with `engine.ray_errors`.
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DATA_LOG_LEVEL": "CRITICAL",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # A call after the end is an error; otherwise Ray would start again for it.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    # Ray ends idle processes when the stages' actors hold the node's CPUs; starting a new one for every `read_values`
    # and `pack` took a fifth of two cores, measured. Those started in advance lack the job's environment, and are never
    # used.
    "RAY_num_workers_soft_limit": "4",
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}


@cache
def load_ray() -> Any:
    """The module `ray`, imported with our settings in the environment, which the nodes that it starts inherit."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    import ray.util.scheduling_strategies

    return ray


class _Ray:
    """Stands for the module `ray`. Its attributes raise `ModuleNotFoundError` where Ray is not installed."""

    def __getattr__(self, name: str) -> Any:
        return getattr(load_ray(), name)


ray: Any = _Ray()
