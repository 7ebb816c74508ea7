"""Cuts the link of a talking device at one byte after another: it says what it would have said.

    python tests/fault/cut_split.py --all

Every message is cut at its first byte, then, sent again over a new link, at its second, and so on through its reply.
At some messages the greeting of the new link is cut at every byte as well. --local lets the device go on alone: there
each link is cut a byte later than the one before. --tls does all this to a paired device.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from runnable_packages import plain_model, runnable_package, same_precision
from split_conversation import EXACT, local_back, split_engine
from split_servers import Running, hello, serving

from edgemem.runtime.engine import Engine
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.split.coder import coder_of
from edgemem.split.frames import Hello, Message, Welcome
from edgemem.split.history import History
from edgemem.split.identity import Identity, own_identity
from edgemem.split.link import Link
from edgemem.split.peers import Device, PeerFile, Server
from edgemem.split.remote_back import RemoteBack
from edgemem.split.remote_session import Dial, RemoteSession
from edgemem.split.roll import Roll
from edgemem.split.shaping import Faults, ShapingProxy, shaped
from edgemem.split.switching import SwitchSettings

SPLIT, CAPACITY = 1, 64
SOON = SwitchSettings(deadline_s=10.0, patience_s=600.0, first_retry_s=1e-4, last_retry_s=1e-4)
_AROUND = 48  # bytes at the end of a greeting that are cut again: what is sent unasked may come before or after them
_GREETINGS = (0, 1, 7)  # messages before which the greeting is cut as well


@dataclass
class Count:
    """What was cut."""

    links: int = 0
    messages: int = 0
    bytes: int = 0  # of the messages and their replies, each cut once


class _CutLink:
    """A Wire that is over once a message has come through: the next is to be cut from its first byte on."""

    def __init__(self, link: Link, cuts: MessageCuts) -> None:
        self._link, self._cuts, self.welcome = link, cuts, link.welcome

    def call(self, message: Message, *, deadline_s: float) -> Message:
        reply = self._link.call(message, deadline_s=deadline_s)
        self._cuts.came_through()
        self._link.close()
        return reply

    def ping(self, *, deadline_s: float) -> float:
        return self._link.ping(deadline_s=deadline_s)

    def close(self) -> None:
        self._link.close()


class MessageCuts:
    """How to reach the server: each link is cut `stride` bytes later than the one before, until a message is through."""

    def __init__(self, proxy: ShapingProxy, server: Server, identity: Identity | None, stride: int) -> None:
        self.count, self._proxy, self._stride = Count(), proxy, stride
        self._server, self._identity = server, identity
        self._greeting = 0  # its bytes
        self._next = 0

    def dial(self, asked: Hello) -> _CutLink:
        if not self._greeting:
            self._greeting = self._measured(asked)
        self._proxy.faults = Faults(cut_after=self._next)
        self._next += self._stride
        self.count.links += 1
        return _CutLink(self._open(asked), self)

    def came_through(self) -> None:
        self.count.messages += 1
        self.count.bytes += max(0, self._next - self._stride - self._greeting)
        begin = 0 if self.count.messages in _GREETINGS else max(0, self._greeting - _AROUND)
        self._next = begin + self.count.messages % self._stride

    def _measured(self, asked: Hello) -> int:
        """Bytes of a greeting, with those of the hanging up."""
        self._open(asked).close()
        return self._proxy.up_bytes + self._proxy.down_bytes

    def _open(self, asked: Hello) -> Link:
        return Link.open(self._server, asked, identity=self._identity, timeout_s=10.0)


class LinkCuts:
    """How to reach the server: each link is cut `stride` bytes later than the one before, and lasts until then."""

    def __init__(self, proxy: ShapingProxy, server: Server, identity: Identity | None, stride: int) -> None:
        self.count, self._proxy, self._stride = Count(), proxy, stride
        self._server, self._identity = server, identity

    def dial(self, asked: Hello) -> Link:
        self._proxy.faults = Faults(cut_after=self.count.links * self._stride)
        self.count.links += 1
        return Link.open(self._server, asked, identity=self._identity, timeout_s=10.0)
