"""A SplitEngine from its parts: a package here, a server that was paired, and the settings of both."""

from __future__ import annotations

from contextlib import ExitStack

from edgemem.runtime.engine_inputs import context_slots
from edgemem.runtime.errors import SettingsError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.split.back import Back
from edgemem.split.codec import CodecSettings
from edgemem.split.coder import coder_of
from edgemem.split.engine import SplitEngine
from edgemem.split.fallback_back import FallbackBack
from edgemem.split.frames import PROTOCOL, SESSION_BYTES, Hello
from edgemem.split.history import History
from edgemem.split.identity import Identity
from edgemem.split.link import Link
from edgemem.split.local_back import LocalBack
from edgemem.split.peers import Server
from edgemem.split.remote_back import RemoteBack
from edgemem.split.remote_session import Dial, RemoteSession
from edgemem.split.switching import SwitchSettings


def dial_to(server: Server, identity: Identity | None) -> Dial:
    """How a session reaches this server. identity: this device's; None for a server without a certificate."""
    return lambda: Link(server, identity)


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
    fallback: Package | None = None,
    settings: SwitchSettings | None = None,
) -> tuple[SplitEngine, RemoteBack]:
    """An engine whose layers [split, L) are on a server, for any split below L; and its back stage, to look at.

    version: of edgemem. local: hold these layers here too, to go on without the server; it is looked for meanwhile.
    fallback: a smaller model for the same, in place of `local`; of the same tokens, as check_same_tokens has it. The
    server is not asked yet: RemoteBack.sync does that. Raises SettingsError for a split that is none, or a fallback of
    a smaller context, and what NativeEngine raises.
    """
    model = package.model
    check_split(split, model.layers)
    slots, codec = context_slots(capacity, package), codec or CodecSettings()
    coder = coder_of(model, split, codec)

    def stage(first: int, last: int) -> NativeEngine:
        engine = NativeEngine(package, layers=(first, last), capacity=slots, threads=threads, kv=kv)
        opened.callback(engine.close)
        return engine

    with ExitStack() as opened:
        front = stage(0, split) if split else None
        here: Back | None = LocalBack(stage(split, model.layers), coder) if local else None
        if here is None and fallback is not None:
            slots = context_slots(slots, fallback)
            here = FallbackBack(NativeEngine(fallback, capacity=slots, threads=threads, kv=kv), model.vocabulary)
            opened.callback(here.close)
        hello = hello_for(package, split, version=version, codec=codec, capacity=slots)
        session = RemoteSession(dial, hello, model.vocabulary)
        back = RemoteBack(session, History(coder), capacity=slots, local=here, settings=settings)
        engine = SplitEngine(model, front, back, coder)
        opened.pop_all()
    if here is not None:
        back.start_probing()
    return engine, back


def hello_for(package: Package, split: int, *, version: str, codec: CodecSettings, capacity: int) -> Hello:
    """Of a session whose number is still to be given."""
    weights, layers = package.manifest.model_hash, package.model.layers
    return Hello(PROTOCOL, version, bytes(SESSION_BYTES), weights, split, layers, capacity, codec.to_dict())


def check_split(split: int, layers: int) -> None:
    """Raises SettingsError for one that leaves a server nothing to do, or is none."""
    if type(split) is not int or not 0 <= split < layers:
        raise SettingsError("there is no such split", got=split, wanted=f"0 to {layers - 1}, for a server")
