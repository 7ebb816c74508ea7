"""Scout: looks at the link and the server now and then, by a session of its own beside the conversation's."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

from edgemem.runtime.errors import EdgememError, LinkError
from edgemem.split.codec import Codec
from edgemem.split.frames import SESSION_BYTES, Bye, Hello
from edgemem.split.measuring import WireTimes, measure_wire
from edgemem.split.remote_session import Dial, Wire

_DEADLINE_S = 10.0
_ASKED, _LONGEST = 3, 4  # messages of one token, and tokens of the longest: a look is to cost the server little


class Scout:
    """From `start` until it is closed."""

    def __init__(
        self, dial: Dial, hello: Hello, codec: Codec, tell: Callable[[WireTimes | None], None], *, look_s: float
    ) -> None:
        """hello: of a split from 1, whose session is replaced. tell: called from another thread, with None where the
        server does not answer. look_s: between two looks."""
        self._dial, self._hello, self._codec, self._tell, self._look_s = dial, hello, codec, tell, look_s
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._thread = threading.Thread(target=self._look_on, name="edgemem-scout", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        with self._lock:
            if self._wire is not None:
                self._wire.close()
        if self._thread.is_alive():
            self._thread.join()

    def _look_on(self) -> None:
        pause_s = 0.0
        while not self._closing.wait(pause_s):
            try:
                found = self._look()
            except EdgememError:  # the conversation goes on, and says itself what is wrong with its link
                found = None
            self._tell(found)
            pause_s = self._look_s

    def _look(self) -> WireTimes:
        with self._lock:
            if self._closing.is_set():
                raise LinkError("nobody looks any more")
            self._wire = wire = self._dial()
        with closing(wire):
            wire.greet(replace(self._hello, session=secrets.token_bytes(SESSION_BYTES)), deadline_s=_DEADLINE_S)
            found = measure_wire(wire, self._codec, asked=_ASKED, longest=_LONGEST)
            wire.call(Bye(), deadline_s=_DEADLINE_S)
        return found
