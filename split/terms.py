"""What both sides must have alike, and the refusal that shows both where they do not."""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.split.fields import printable
from edgemem.split.frames import PROTOCOL, TEXT_BYTES, Hello, Refused, Stranger


@dataclass(frozen=True)
class Terms:
    """A server's side. version: of edgemem. model: sha256 of the weights. splits: first layers of a back stage that it
    can hold. layers: of the whole model. capacity: slots that a session may have at most."""

    version: str
    model: str
    splits: frozenset[int]
    layers: int
    capacity: int


def refusal(hello: Hello, terms: Terms) -> Refused | None:
    """Why this session cannot be held here; None where it can."""
    if hello.model != terms.model:
        return _refused(
            "model",
            "the two sides hold different models",
            f"weights {hello.model[:16]}",
            f"weights {terms.model[:16]}",
            "give both the same package, or halves that were cut from one",
        )
    if hello.layers != terms.layers or hello.split not in terms.splits:
        there = ", ".join(str(split) for split in sorted(terms.splits)) or "none"
        return _refused(
            "split",
            "the server has no back stage from that layer on",
            f"layer {hello.split} of {hello.layers}",
            f"layer {there} of {terms.layers}",
            "choose a split that the server has, or give it the other half",
        )
    if hello.capacity > terms.capacity:
        return _refused(
            "capacity",
            "the server gives a session fewer slots",
            f"{hello.capacity} slots",
            f"at most {terms.capacity}",
            "choose a smaller context on the device, or allow more on the server",
        )
    return None


def stranger_refusal(stranger: Stranger, version: str) -> Refused:
    """To a device that speaks another protocol. version: of edgemem, here."""
    older = "device" if stranger.protocol < PROTOCOL else "server"
    return _refused(
        "protocol",
        "the two sides speak different protocols",
        f"protocol {stranger.protocol}, edgemem {stranger.version}",
        f"protocol {PROTOCOL}, edgemem {version}",
        f"update edgemem on the {older}",
    )


def _refused(code: str, what: str, device: str, server: str, do: str) -> Refused:
    return Refused(code, printable(f"{what}\ndevice: {device}\nserver: {server}\ndo: {do}", TEXT_BYTES))
