"""Arrays between processes: they arrive unchanged, and memory is reused only when it is no longer held."""

from __future__ import annotations

import gc
import socket
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays_of

from training.data.shared_memory import Receiver, Sender, receive_message, send_message

KINDS = st.sampled_from(["u1", "?", "<f4", "<i8", "<u2"])
ARRAYS = KINDS.flatmap(lambda kind: arrays_of.arrays(np.dtype(kind), arrays_of.array_shapes(min_dims=0, min_side=0)))


class Pair:
    """A sender and a receiver at the two ends of a socket."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        self.sender, self.receiver, self.sockets = Sender(ours), Receiver(theirs), (ours, theirs)

    def pass_on(self, header: Any, arrays: list[Any]) -> Any:
        self.sender.free(self.receiver.take_released())
        self.sender.send(header, arrays)
        return self.receiver.receive()


def memory_files() -> int:
    """The number of memory files this process has mapped, at one or both ends."""
    with Path("/proc/self/maps").open() as maps:
        return len({line.split()[4] for line in maps if "memfd:vdot" in line})


@given(st.lists(st.lists(ARRAYS, max_size=4), max_size=6))
@settings(max_examples=40, deadline=None)
def test_what_is_sent_arrives_and_stays_as_it_was_while_it_is_held(parcels: list[list[Any]]) -> None:
    pair, held = Pair(), []
    for number, parcel in enumerate(parcels):
        header, arrays = pair.pass_on({"number": number, "said": "ü\n"}, parcel)
        assert header == {"number": number, "said": "ü\n"}
        held.append(arrays)
        if number % 2:
            held[number // 2] = []
    for parcel, arrays in zip(parcels, held, strict=True):
        for sent, received in zip(parcel, arrays, strict=False):
            assert (sent.dtype, sent.shape) == (received.dtype, received.shape)
            np.testing.assert_array_equal(sent, received)


def test_transposed_and_repeated_arrays_arrive_too() -> None:
    clip = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    sent = [np.moveaxis(clip, 0, -1), np.broadcast_to(clip[0], (5, 3, 4)), clip[::-1, ::2]]
    _, arrays = Pair().pass_on(None, sent)
    for source, received in zip(sent, arrays, strict=True):
        np.testing.assert_array_equal(source, received)


def test_memory_is_used_again_and_given_back() -> None:
    gc.collect()
    before, pair = memory_files(), Pair()
    view = None
    for number in range(200):
        size = 100_000 + 1000 * (number % 7)
        _, (array,) = pair.pass_on(None, [np.full(size, number, np.uint8)])
        if number == 50:
            view = array[10:20]
    assert memory_files() - before <= 20
    assert view is not None
    assert set(view.tolist()) == {50}
    # Larger parcels than before replace smaller ones.
    for number in range(20):
        _, (array,) = pair.pass_on(None, [np.full(40 * 10**6 + 10**6 * number, number, np.uint8)])
    assert memory_files() - before <= 8
    del pair, array, view
    gc.collect()
    assert memory_files() == before


def test_a_sender_that_is_gone_is_noticed() -> None:
    pair = Pair()
    pair.sockets[0].close()
    with pytest.raises(EOFError):
        pair.receiver.receive()
    with pytest.raises(EOFError):
        receive_message(pair.sockets[1])


def test_long_messages_go_through() -> None:
    ours, theirs = socket.socketpair()
    message = ["x" * 1000] * 2000
    thread = threading.Thread(target=send_message, args=(ours, message))
    thread.start()
    assert receive_message(theirs) == message
    thread.join()


def test_descriptors_do_not_pile_up() -> None:
    pair = Pair()
    pair.pass_on(None, [np.zeros(10)])
    before = len([*Path("/proc/self/fd").iterdir()])
    for number in range(100):
        pair.pass_on(None, [np.zeros(1000 * number)])
    assert len([*Path("/proc/self/fd").iterdir()]) <= before + 40
