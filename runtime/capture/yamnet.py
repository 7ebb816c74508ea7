"""The ear: YAMNet, which hears 521 classes of sound in 0.975 s of audio. The only user of ONNX Runtime here.

The model ships with the package and is checked by its hash before it is run; compiler.yamnet makes it. Knows no hands:
that is the head's matter.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgemem.runtime.capture.audio import WINDOW_SAMPLES, Samples
from edgemem.runtime.errors import EngineError, FileError, NumericError, SettingsError, shown
from edgemem.runtime.finite import find_not_finite
from edgemem.runtime.onnx_session import import_onnxruntime

EMBEDDING, CLASSES = 1024, 521
LOUDEST = 16.0  # 24 dB over full scale; more is no sound from -1 to 1 but, most likely, 16-bit samples as floats
MODEL_BYTES = 4_261_859
MODEL_SHA256 = "686a6f7ace3d0843ddf93b9b3d1f3c75fd123126cbe14e01d4bc9a6f1507760f"
_DATA = "edgemem.runtime.capture"


@dataclass(frozen=True, eq=False)
class Heard:
    """embedding: (1024,) float32, 0 to 5.7. scores: (521,) float32, 0 to 1, of the ear's class_names."""

    embedding: NDArray[np.float32]
    scores: NDArray[np.float32]


class Ear:
    """The model, opened, for one core. Any number of threads may hear with it."""

    def __init__(self, session: Any, class_names: tuple[str, ...]) -> None:
        self._session, self.class_names = session, class_names

    @classmethod
    def open(cls, path: Path | None = None) -> Ear:
        """path: another copy of the same model file. Raises FileError where it is missing or altered, EngineError where
        ONNX Runtime is missing or cannot open it."""
        names = files(_DATA).joinpath("data", "yamnet_classes.txt").read_text(encoding="ascii").splitlines()
        return cls(_session(_checked_model(path)), tuple(names))

    def hear(self, samples: Samples) -> Heard:
        """samples: (15600,) float32, 16 kHz mono, -1 to 1.

        Raises SettingsError for another shape or dtype, NumericError for values that are not finite or over LOUDEST,
        EngineError if the ear is closed or ONNX Runtime fails.
        """
        _check(samples)
        session = self._session  # another thread may close it meanwhile
        if session is None:
            raise EngineError("the ear is closed", do="open another")
        try:
            embedding, scores = session.run(["embedding", "scores"], {"wave": samples})
        except Exception as problem:  # onnxruntime raises classes of its own that share only Exception
            raise EngineError("ONNX Runtime failed to hear", got=problem, do="free memory if that ran out") from problem
        return Heard(embedding, scores)

    def close(self) -> None:
        self._session = None


def _checked_model(path: Path | None) -> bytes:
    source = files(_DATA).joinpath("data", "yamnet.onnx") if path is None else path
    do = "install edgemem-runtime again" if path is None else "leave the path out, for the model of the package"
    try:
        with source.open("rb") as file:
            content = file.read(MODEL_BYTES + 1)
    except OSError as problem:
        raise FileError("cannot read the ear's model", where=source, got=problem, do=do) from problem
    if hashlib.sha256(content).hexdigest() != MODEL_SHA256:
        got = f"{len(content)} bytes" if len(content) < MODEL_BYTES else "other bytes"
        raise FileError("the ear's model was altered", where=source, got=got, wanted=f"sha256 {MODEL_SHA256}", do=do)
    return content


def _session(model: bytes) -> Any:
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_cpu_mem_arena = False  # it would keep more than it saves
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"], enable_fallback=False)
    except Exception as problem:  # as in hear()
        do = 'pip install -U "onnxruntime>=1.23"'
        raise EngineError("ONNX Runtime cannot open the ear's model", got=problem, do=do) from problem


def _check(samples: Samples) -> None:
    if not isinstance(samples, np.ndarray) or samples.dtype != np.float32 or samples.shape != (WINDOW_SAMPLES,):
        got = f"{samples.dtype} {samples.shape}" if isinstance(samples, np.ndarray) else shown(samples)
        raise SettingsError("the ear cannot hear this", got=got, wanted=f"float32 ({WINDOW_SAMPLES},), 16 kHz mono")
    loudest = float(np.abs(samples).max())
    if loudest <= LOUDEST:
        return
    if bad := find_not_finite(samples):
        raise NumericError("samples are NaN or infinite", got=bad, do="drop the window")
    do = "divide 16-bit samples by 32768"
    raise NumericError("samples are far too loud", got=f"up to {loudest:g}", wanted="-1 to 1", do=do)
