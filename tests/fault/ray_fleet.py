"""A conversation over a fleet of two replicas, both killed while it talks, one after the other; prints one JSON object.

Run in a process of its own: Ray leaves threads and sockets behind.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import ray
from ray import serve

from edgemem.runtime.engine import Engine
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling
from edgemem.split.codec import CodecSettings
from edgemem.split.listener import Listener
from edgemem.split.opening import dial_to, open_split_engine
from edgemem.split.peers import Server
from edgemem.split.ray_app import Fleet, FleetSettings
from edgemem.split.remote_session import Wire
from edgemem.split.server import ServerSettings

PROMPT = np.arange(3, 15, dtype=np.int32)
TOKENS, KILLS = 30, (8, 18)


def main(path: Path) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    with Package.open(path) as package:
        fleet = two_replicas(path, package.manifest.model_hash)
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        listener = Listener(
            "127.0.0.1", 0, roll=None, open_session=fleet.open_session, handle=fleet.handle, version="test"
        )
        asyncio.run_coroutine_threadsafe(listener.start(), loop).result(20)
        server = Server("fleet", "127.0.0.1", listener.port, None)
        reach = dial_to(server, None)
        dialled: list[Wire] = []

        def dial() -> Wire:
            dialled.append(reach())
            return dialled[-1]

        engine, _ = open_split_engine(
            package, 1, dial, version="test", codec=CodecSettings("fp32"), capacity=128, threads=1
        )
        replicas = replica_names()
        killed, talked = [], []
        for place, token in enumerate(talk(engine)):
            talked.append(token)
            if place in KILLS:
                killed.append(replicas[len(killed)])
                ray.kill(ray.get_actor(killed[-1], namespace="serve"), no_restart=True)
        engine.close()
        alone = NativeEngine(package, capacity=128, threads=1)
        wanted = list(talk(alone))
        alone.close()
        asyncio.run_coroutine_threadsafe(listener.drain(0.1), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
    serve.shutdown()
    ray.shutdown()
    print(json.dumps({"talked": talked, "wanted": wanted, "killed": killed, "links": len(dialled)}))


def two_replicas(path: Path, model_hash: str) -> Fleet:
    settings = FleetSettings(replicas=(2, 2), threads=1, cores=0.5)
    return Fleet(path, [1], model_hash=model_hash, version="test", server=ServerSettings(slots=128), settings=settings)


def talk(engine: Engine) -> Iterator[int]:
    engine.extend(PROMPT)
    for token in engine.decode(Sampler(Sampling()), TOKENS):
        yield token.id


def replica_names() -> list[str]:
    """In order. Of those at the beginning one has the session: to kill both is to kill its own."""
    there = (actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True))
    return sorted(name for name in there if "edgemem-split" in name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
