"""A worker process that reads and decodes micro-batches for a trainer, and ends with it, however the trainer ends.

Started by `training.data.worker_pool` as `python -m training.data.worker FD PID`; needs neither torch nor the trainer's
own code.
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
from training.data.clip_loader import Clip, Settings, read_batch
from training.data.range_cache import Cache
from training.data.shard_reader import Place, Reader

# How often to check for being orphaned, in case a child of the trainer keeps the socket open.
_POLL_MS = 1000


def _serve(sock: socket.socket) -> None:
    sender = shared_memory.Sender(sock)
    settings_fields, cache_args, fsspec.config.conf = shared_memory.receive_message(sock)
    settings, reader = Settings(**settings_fields), Reader(Cache(*cache_args) if cache_args else None)
    sender.send("ready", [])
    while True:
        ticket, clips, released = shared_memory.receive_message(sock)
        sender.free(released)
        try:
            contents = read_batch([_build_clip(fields) for fields in clips], settings, reader)
        except (OSError, RunError, UsageError) as error:
            sender.send({"ticket": ticket, "error": f"a clip cannot be read: {error}"}, [])
            continue
        header = {
            "ticket": ticket,
            "damaged": contents.damaged,
            "captions": contents.captions,
            "latents_unusable_reason": contents.latents_unusable_reason,
            "arrays": [*contents.arrays],
            "items": [[*item] for item in contents.items],
        }
        sender.send(header, [*contents.arrays.values(), *(array for item in contents.items for array in item.values())])


def _build_clip(fields: list[Any]) -> Clip:
    dataset, clip_id, place_fields, task, parts, pass_index, shape, references = fields
    places = tuple(Place(*place) for place in place_fields)
    return Clip(dataset, clip_id, places, task, tuple(parts), pass_index, tuple(shape), references)


def _exit_with(parent: int, sock: socket.socket) -> None:
    """Exit as soon as the trainer hangs up or is gone, whatever this process is doing."""
    poller = select.poll()
    poller.register(sock, 0)
    while not poller.poll(_POLL_MS) and os.getppid() == parent:
        pass
    os._exit(0)


def main() -> None:
    """Serve the trainer: the arguments are the descriptor of the socket to it, and its process id."""
    sock = socket.socket(fileno=int(sys.argv[1]))
    threading.Thread(target=_exit_with, args=(int(sys.argv[2]), sock), daemon=True).start()
    try:
        _serve(sock)
    except (EOFError, ConnectionError):
        # The trainer hung up.
        return


if __name__ == "__main__":
    main()
