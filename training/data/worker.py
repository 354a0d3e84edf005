"""A process that reads and decodes micro-batches for a trainer, and ends with it, however the trainer ends.

Started by `training.data.worker_pool` as `python -m training.data.worker FD`; needs neither torch nor the trainer's own
code.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import threading
from typing import Any

import fsspec.config

from pipeline.errors import RunError, UsageError
from training.data import shared_memory
from training.data.clip_loader import Clip, Settings, contents
from training.data.range_cache import Cache
from training.data.shard_reader import Place, Reader

# How often it looks whether it was orphaned, for the case that a child of the trainer's keeps the socket open.
_LOOK_MS = 1000


def _serve(sock: socket.socket) -> None:
    sender = shared_memory.Sender(sock)
    settings_told, cache_told, fsspec.config.conf = shared_memory.hear(sock)
    settings, reader = Settings(**settings_told), Reader(Cache(*cache_told) if cache_told else None)
    sender.send("ready", [])
    while True:
        ticket, told, released = shared_memory.hear(sock)
        sender.free(released)
        try:
            made = contents([_clip(one) for one in told], settings, reader)
        except (OSError, RunError, UsageError) as error:
            sender.send({"ticket": ticket, "error": f"a clip cannot be read: {error}"}, [])
            continue
        header = {
            "ticket": ticket,
            "damaged": made.damaged,
            "captions": made.captions,
            "unfit": made.unfit,
            "arrays": [*made.arrays],
            "items": [[*item] for item in made.items],
        }
        sender.send(header, [*made.arrays.values(), *(array for item in made.items for array in item.values())])


def _clip(told: list[Any]) -> Clip:
    dataset, clip_id, places, task, parts, number, shape, references = told
    where = tuple(Place(*place) for place in places)
    return Clip(dataset, clip_id, where, task, tuple(parts), number, tuple(shape), references)


def _end_with(parent: int, sock: socket.socket) -> None:
    """End this process as soon as the trainer hangs up or is gone, whatever it is doing."""
    hung_up = select.poll()
    hung_up.register(sock, 0)
    while not hung_up.poll(_LOOK_MS) and os.getppid() == parent:
        pass
    os._exit(0)


def main() -> None:
    """Serve the trainer at the other end of the socket whose number is the first argument."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_end_with, args=(int(sys.argv[2]), sock), daemon=True).start()
    try:
        _serve(sock)
    except (EOFError, ConnectionError):
        # The trainer hung up.
        return


if __name__ == "__main__":
    main()
