"""A conversation over a fleet of two replicas, one after the other killed while it talks; prints one JSON object.

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
from edgemem.split.server import ServerSettings

PROMPT = np.arange(3, 15, dtype=np.int32)
TOKENS, KILLS = 30, (8, 18)


def main(path: Path) -> None:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    with Package.open(path) as package:
        model_hash = package.manifest.model_hash
        fleet = Fleet(
            path,
            [1],
            model_hash=model_hash,
            version="test",
            server=ServerSettings(slots=128),
            settings=FleetSettings(replicas=(2, 2), threads=1, cores=0.5),
        )
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        listener = Listener(
            "127.0.0.1", 0, roll=None, open_session=fleet.open_session, handle=fleet.handle, version="test"
        )
        asyncio.run_coroutine_threadsafe(listener.start(), loop).result(20)
        server = Server("fleet", "127.0.0.1", listener.port, None)
        engine, _ = open_split_engine(
            package, 1, dial_to(server, None), version="test", codec=CodecSettings("fp32"), capacity=128, threads=1
        )
        killed = []
        talked = []
        for place, token in enumerate(talk(engine)):
            talked.append(token)
            if place in KILLS:
                killed.append(kill_one(len(killed)))
        engine.close()
        alone = NativeEngine(package, capacity=128, threads=1)
        wanted = list(talk(alone))
        alone.close()
        asyncio.run_coroutine_threadsafe(listener.drain(0.1), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
    serve.shutdown()
    ray.shutdown()
    print(json.dumps({"talked": talked, "wanted": wanted, "killed": killed}))


def talk(engine: Engine) -> Iterator[int]:
    engine.extend(PROMPT)
    for token in engine.decode(Sampler(Sampling()), TOKENS):
        yield token.id


def kill_one(place: int) -> str:
    """One of the replicas that live, by name: first the one that comes first, then the one that comes last."""
    there = (actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True))
    name = sorted(name for name in there if "edgemem-split" in name)[-place]
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)
    return str(name)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
