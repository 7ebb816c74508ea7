"""Shows that compile memory does not grow with the number of layers: `python -m edgemem.tools.compile_memory`.

Writes random bf16 checkpoints in the shapes of Qwen2.5-0.5B and 1.5B, at their full depth and at a quarter of it,
compiles each in a fresh process, and prints the peak of its own memory (mapped files are the page cache's).
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_SHAPES: dict[str, dict[str, int]] = {
    "qwen2.5-0.5b": {"hidden": 896, "intermediate": 4864, "layers": 24, "heads": 14, "kv_heads": 2},
    "qwen2.5-1.5b": {"hidden": 1536, "intermediate": 8960, "layers": 28, "heads": 12, "kv_heads": 2},
}
_VOCABULARY = 151936
_SPECIAL = ("<|endoftext|>", "<|im_end|>")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--check-tokens", type=int, default=0, help="also compare on so many tokens (default 0)")
    parser.add_argument("--compile", nargs=2, metavar=("SOURCE", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile:
        print(json.dumps(_compile_watched(Path(args.compile[0]), Path(args.compile[1]), args.check_tokens)))
        return 0
    results = []
    for name, shape in _SHAPES.items():
        for layers in (shape["layers"] // 4, shape["layers"]):
            memory = _measure({**shape, "layers": layers}, args.check_tokens)
            results.append({"shape": name, "layers": layers, **memory})
            if not args.json:
                print(f"{name} {layers:2} layers: {memory['source_mb']:6.0f} MB in, peak {memory['peak_mb']:5.0f} MB")
    if args.json:
        print(json.dumps(results))
    return 0


def _measure(shape: dict[str, int], check_tokens: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        write_random_checkpoint(source, shape)
        command = [sys.executable, "-m", "edgemem.tools.compile_memory", "--check-tokens", str(check_tokens)]
        command += ["--compile", str(source), str(Path(folder) / "out.edgemem")]
        child = subprocess.run(command, check=True, capture_output=True, text=True)
        result: dict[str, float] = json.loads(child.stdout)
        return {"source_mb": (source / "model.safetensors").stat().st_size / 1e6, **result}


def _compile_watched(source: Path, out: Path, check_tokens: int) -> dict[str, float]:
    from edgemem.compiler.build import CompileOptions, compile_model

    peak_kib, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak_kib
        while not done.is_set():
            status = Path("/proc/self/status").read_text()
            peak_kib = max(peak_kib, int(re.findall(r"RssAnon:\s+(\d+)", status)[0]))
            time.sleep(0.005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        compile_model(source, out, CompileOptions(check_tokens=check_tokens))
    finally:
        done.set()
        watcher.join()
    return {"peak_mb": peak_kib * 1024 / 1e6, "seconds": time.perf_counter() - started}


def write_random_checkpoint(folder: Path, shape: dict[str, int]) -> None:
    """A Hugging Face folder of the Qwen2 family with random bf16 weights and a minimal tokenizer, written in pieces."""
    folder.mkdir(parents=True)
    head_dim = shape["hidden"] // shape["heads"]
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["intermediate"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "tie_word_embeddings": True,
        "vocab_size": _VOCABULARY,
        "eos_token_id": 1,
    }
    (folder / "config.json").write_text(json.dumps(config))
    _write_tokenizer(folder)
    tensors = list(_tensors(shape, head_dim))
    header: dict[str, Any] = {}
    offset = 0
    for name, dims in tensors:
        size = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    generator = np.random.default_rng(0)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, dims in tensors:
            left = int(np.prod(dims))
            while left:
                count = min(left, 1 << 22)
                values = generator.standard_normal(count, dtype=np.float32) * np.float32(0.02)
                file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
                left -= count


def _tensors(shape: dict[str, int], head_dim: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    hidden, intermediate, keys = shape["hidden"], shape["intermediate"], shape["kv_heads"] * head_dim
    yield "model.embed_tokens.weight", (_VOCABULARY, hidden)
    for layer in range(shape["layers"]):
        at = f"model.layers.{layer}"
        for name, rows in (("q", hidden), ("k", keys), ("v", keys)):
            yield f"{at}.self_attn.{name}_proj.weight", (rows, hidden)
            yield f"{at}.self_attn.{name}_proj.bias", (rows,)
        yield f"{at}.self_attn.o_proj.weight", (hidden, hidden)
        yield f"{at}.mlp.gate_proj.weight", (intermediate, hidden)
        yield f"{at}.mlp.up_proj.weight", (intermediate, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, intermediate)
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)


def _write_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *letters))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in _SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": _SPECIAL[1]}))


if __name__ == "__main__":
    sys.exit(main())
