"""A fleet of servers on Ray Serve; the one file that knows ray.

Each replica is a BackServer. A session's number says which one it is on, by consistent hashing, and how many sessions
there are says how many replicas. A session whose replica is gone begins anew on another, from its device's history.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgemem.runtime.errors import EdgememError, ProtocolError, SettingsError
from edgemem.runtime.package import Package
from edgemem.split.frames import Hello, Message, Refused, Welcome, decode, encode
from edgemem.split.listener import Caller, failed_reply
from edgemem.split.peers import Device
from edgemem.split.server import BackServer, ServerSettings
from edgemem.split.stage_pool import open_pools

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_POLICY = "edgemem.split.ray_app:SessionPolicy"
_NAME = "edgemem-split"
_STATS_S = 2.0
_SESSIONS = "sessions"


@dataclass(frozen=True)
class FleetSettings:
    """replicas: fewest and most. sessions_each: that one more replica is started for; below the sessions that a server
    takes, as starting takes a while. threads: of a replica. cores: that Ray sets aside for one.

    Raises SettingsError for a value out of range.
    """

    replicas: tuple[int, int] = (1, 4)
    sessions_each: int = 32
    threads: int | None = None
    cores: float = 1.0

    def __post_init__(self) -> None:
        low, high = self.replicas
        if not 1 <= low <= high:
            raise SettingsError("the fleet's replicas are out of range", got=self.replicas, wanted="at least 1, rising")
        if self.sessions_each < 1:
            raise SettingsError("sessions_each is out of range", got=self.sessions_each, wanted="at least 1")


class BackReplica:
    """A BackServer that is spoken to in frames. Errors come back as Failed: they cross processes."""

    def __init__(
        self, path: str, splits: Sequence[int], terms: tuple[str, str], server: ServerSettings, threads: int | None
    ) -> None:
        """terms: the model's hash and edgemem's version."""
        self._package = Package.open(path)
        pools = open_pools(self._package, splits, capacity=server.slots, threads=threads)
        self._server = BackServer(pools, model_hash=terms[0], version=terms[1], settings=server)

    async def open_session(self, frame: bytes, device: Device) -> bytes:
        hello = decode(frame)
        if not isinstance(hello, Hello):
            raise ProtocolError("a session begins with Hello", got=type(hello).__name__)
        return encode(await self._server.open_session(hello, device))

    async def handle(self, caller: Caller, frame: bytes) -> bytes:
        message = decode(frame)
        try:
            return encode(await self._server.handle(caller, message))
        except EdgememError as problem:
            return encode(failed_reply(getattr(message, "op", 0), problem))

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For Ray Serve, which asks now and then."""
        self._server.sweep()
        return {_SESSIONS: float(self._server.sessions)}


class Fleet:
    """For Listener: what BackServer is on one machine. Ray is to be running, or is started here."""

    def __init__(
        self,
        path: Path,
        splits: Sequence[int],
        *,
        model_hash: str,
        version: str,
        server: ServerSettings | None = None,
        settings: FleetSettings | None = None,
    ) -> None:
        """Raises SettingsError where Ray is not installed."""
        serve, config = _ray_serve()
        server, settings = server or ServerSettings(), settings or FleetSettings()
        low, high = settings.replicas
        deployment = serve.deployment(
            BackReplica,
            name=_NAME,
            ray_actor_options={"num_cpus": settings.cores},
            logging_config={"log_level": "WARNING", "enable_access_log": False},
            max_ongoing_requests=4 * server.sessions,
            request_router_config=config.RequestRouterConfig(
                request_router_class=_ROUTER, request_router_kwargs={"num_fallback_replicas": 0}
            ),
            autoscaling_config=config.AutoscalingConfig(
                min_replicas=low,
                max_replicas=high,
                metrics_interval_s=_STATS_S,
                policy=config.AutoscalingPolicy(
                    policy_function=_POLICY, policy_kwargs={"sessions_each": settings.sessions_each}
                ),
            ),
        )
        app = deployment.bind(str(path), tuple(splits), (model_hash, version), server, settings.threads)
        with _without_sigterm():
            self._handle = serve.run(app, name=_NAME, route_prefix=None)

    async def open_session(self, hello: Hello, device: Device) -> Welcome | Refused:
        reply = decode(await self._asked(hello.session, "open_session", encode(hello), device))
        if not isinstance(reply, (Welcome, Refused)):
            raise ProtocolError("a replica answers something else", got=type(reply).__name__)
        return reply

    async def handle(self, caller: Caller, message: Message) -> Message:
        return decode(await self._asked(caller.session, "handle", caller, encode(message)))

    async def _asked(self, session: bytes, method: str, *args: Any) -> bytes:
        from ray.exceptions import RayActorError
        from ray.serve.exceptions import RayServeException

        handle = self._handle.options(session_id=session.hex())
        try:
            reply: bytes = await getattr(handle, method).remote(*args)
            return reply
        except (RayActorError, RayServeException) as problem:
            raise ProtocolError(
                "the session's replica is gone", got=type(problem).__name__, do="connect again: it is sent anew"
            ) from problem

    def close(self) -> None:
        """Take the replicas down; Ray itself goes on."""
        _ray_serve()[0].delete(_NAME)


@contextmanager
def _without_sigterm() -> Iterator[None]:
    """What is started meanwhile takes no SIGTERM, as Ray sees to for SIGINT: one for the whole process group is for us,
    who then let it finish what is under way; without it, to end it would be waited for in vain."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ray_serve() -> tuple[Any, Any]:
    """ray.serve and its config, whose types are not what its documentation says."""
    try:
        return import_module("ray.serve"), import_module("ray.serve.config")
    except ImportError as problem:
        do = 'pip install "edgemem-runtime[fleet]"'
        raise SettingsError("a fleet needs Ray Serve", got=problem, do=do) from problem


class SessionPolicy:
    """For Ray Serve: as many replicas as the sessions held ask for; the limits are its own."""

    def __init__(self, sessions_each: int) -> None:
        self._sessions_each = sessions_each

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        held = sum((context.aggregated_metrics or {}).get(_SESSIONS, {}).values())
        return max(1, math.ceil(held / self._sessions_each)), {}
