"""Sounds that a test can tell apart: hands at work crackle, backgrounds hum, others beep now and then."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from edgemem.runtime.capture.audio import RATE_HZ, Samples
from edgemem.runtime.capture.yamnet import CLASSES, EMBEDDING, Heard
from edgemem.tools.hands.clip_scores import HAND_CLASSES

KINDS = ("drawer", "plates")


def crackle(seconds: float, seed: int, *, lead_s: float = 0.0, level: float = 0.05) -> Samples:
    """White noise after `lead_s` of silence."""
    samples = np.random.default_rng(seed).normal(scale=level, size=round(seconds * RATE_HZ)).astype(np.float32)
    samples[: round(lead_s * RATE_HZ)] = 0
    return samples


def hum(seconds: float, hertz: float, level: float = 0.02) -> Samples:
    at = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    return (level * np.sqrt(2) * np.sin(2 * np.pi * hertz * at)).astype(np.float32)


def beep(seconds: float, hertz: float) -> Samples:
    """A tone in the middle third, nothing around it."""
    samples = hum(seconds, hertz, 0.1)
    samples[: len(samples) // 3] = samples[-(len(samples) // 3) :] = 0
    return samples


class CrackleEar:
    """embedding[0]: how often the sound changes its sign, which noise does in every second sample and a hum hardly."""

    class_names = (*HAND_CLASSES, *(f"class {index}" for index in range(CLASSES - len(HAND_CLASSES))))

    def __init__(self) -> None:
        self.heard = 0

    def hear(self, samples: Samples) -> Heard:
        self.heard += 1
        changes = float((np.diff(np.signbit(samples)) != 0).mean())
        embedding, scores = np.zeros(EMBEDDING, np.float32), np.full(CLASSES, 0.1, np.float32)
        embedding[0] = changes
        scores[0] = min(1.0, 2 * changes)
        return Heard(embedding, scores)


def clips_folder(folder: Path) -> Path:
    """A folder with a metadata.csv: 8 groups of hands at work of two kinds, and 8 of backgrounds and beeps."""
    rows = ["file,label,cls,source,group,tier"]
    for index in range(8):
        kind = KINDS[index % 2]
        _write(folder / f"hoi{index}.wav", crackle(2.0, index, lead_s=0.25))
        rows.append(f"hoi{index}.wav,hoi,{kind},made up,h{index},")
        _write(folder / f"hum{index}.wav", hum(3.0, 100.0 + 20 * index))
        _write(folder / f"beep{index}.wav", beep(1.5, 300.0 + 20 * index))
        rows += [f"{name}{index}.wav,bg,{name},made up,b{index}," for name in ("hum", "beep")]
    (folder / "metadata.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def _write(path: Path, samples: Samples) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE_HZ)
        file.writeframes((np.clip(samples, -1, 1) * 32767).astype("<i2").tobytes())
