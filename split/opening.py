"""A SplitEngine from its parts: a package here, a server that was paired, and the settings of both."""

from __future__ import annotations

from contextlib import ExitStack

from edgemem.runtime.engine_inputs import context_slots
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.split.codec import CodecSettings
from edgemem.split.coder import coder_of
from edgemem.split.engine import SplitEngine
from edgemem.split.frames import PROTOCOL, SESSION_BYTES, Hello
from edgemem.split.history import History
from edgemem.split.identity import Identity
from edgemem.split.link import Link
from edgemem.split.local_back import LocalBack
from edgemem.split.peers import Server
from edgemem.split.remote_back import RemoteBack
from edgemem.split.remote_session import Dial, RemoteSession
from edgemem.split.switching import SwitchSettings

_CONNECT_S = 10.0


def dial_to(server: Server, identity: Identity | None, *, timeout_s: float = _CONNECT_S) -> Dial:
    """How a session reaches this server. identity: this device's; None for a server without a certificate."""
    return lambda hello: Link.open(server, hello, identity=identity, timeout_s=timeout_s)


def open_split_engine(
    package: Package,
    split: int,
    dial: Dial,
    *,
    version: str,
    codec: CodecSettings | None = None,
    capacity: int | None = None,
    threads: int | None = None,
    kv: str = "fp16",
    local: bool = False,
    settings: SwitchSettings | None = None,
) -> tuple[SplitEngine, RemoteBack]:
    """An engine whose layers [split, L) are on a server, for any split below L; and its back stage, to look at.

    version: of edgemem. local: hold these layers here too, to go on without the server; it is looked for meanwhile.
    The server is not asked yet: RemoteBack.sync does that. Raises SettingsError for a split that is none, and what
    NativeEngine raises.
    """
    model = package.model
    _check_split(split, model.layers)
    slots, codec = context_slots(capacity, package), codec or CodecSettings()
    coder = coder_of(model, split, codec)

    def stage(first: int, last: int) -> NativeEngine:
        engine = NativeEngine(package, layers=(first, last), capacity=slots, threads=threads, kv=kv)
        opened.callback(engine.close)
        return engine

    with ExitStack() as opened:
        front = stage(0, split) if split else None
        here = LocalBack(stage(split, model.layers), coder) if local else None
        weights = package.manifest.model_hash
        hello = Hello(PROTOCOL, version, bytes(SESSION_BYTES), weights, split, model.layers, slots, codec.to_dict())
        session = RemoteSession(dial, hello, model.vocabulary)
        back = RemoteBack(session, History(coder), capacity=slots, local=here, settings=settings)
        engine = SplitEngine(model, front, back, coder)
        opened.pop_all()
    if local:
        back.start_probing()
    return engine, back


def _check_split(split: int, layers: int) -> None:
    if type(split) is not int or not 0 <= split < layers:
        raise SettingsError("there is no such split", got=split, wanted=f"0 to {layers - 1}, for a server")
