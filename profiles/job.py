"""What a worker process is told, and what it gives back for each arm."""

from __future__ import annotations

from dataclasses import dataclass

from edgemem.profiles.record import CellKey, Session, StepBytes


@dataclass(frozen=True)
class Job:
    """sha256: as package_sha256 gave it when the run began. keys: the arms, of one engine, target, context and threads.
    number: the session's. seed: of prompt and order."""

    package: str
    sha256: str
    keys: tuple[CellKey, ...]
    steps: int
    number: int
    seed: int


@dataclass(frozen=True)
class ArmResult:
    """What one arm gave: a session and the bytes of its middle step, or why not."""

    key: CellKey
    number: int
    session: Session | None
    bytes: StepBytes | None
    failure: str | None

    def __post_init__(self) -> None:
        if len({self.session is None, self.bytes is None, self.failure is not None}) > 1:
            raise ValueError("wanted a session with its bytes, or a failure")
        if self.session is not None and self.session.number != self.number:
            raise ValueError("the session's number is another")
