"""The native engine against transformers and the NumPy reference, and what is its own: paths, threads, memory."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from leftovers import comes_to_nothing, tasks
from numpy.typing import NDArray
from runnable_packages import plain_model, rich_model, rope, runnable_package, same_precision
from tiny_models import FAMILIES, VOCABULARY, hf_logits, tiny_folder, tiny_hf_model

from edgemem.compiler.build import CompileOptions, compile_model
from edgemem.compiler.reference import ReferenceDecoder
from edgemem.kernels.native import native
from edgemem.kernels.rotary import move_keys
from edgemem.runtime.budget import native_budget
from edgemem.runtime.errors import BudgetError, ContextError, EngineError, PackageError, SettingsError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.open import default_engine, open_engine
from edgemem.runtime.package import Package
from edgemem.runtime.sampling import Sampler, Sampling

PATHS = native().paths()  # type: ignore[union-attr]  # the suite runs where it is built


class HalfKvReference(ReferenceDecoder):
    """The reference with keys and values rounded to fp16, as the native engine's cache has them."""

    def _attend(self, query: Any, key: Any, value: Any, window: int, mixed: Any) -> None:
        key, value = (part.astype(np.float16).astype(np.float32) for part in (key, value))
        super()._attend(query, key, value, window, mixed)


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    """A model with every feature, quantised."""
    model = rich_model()
    precision = same_precision(model, "int4-g32-min", embedding="int8-g32", down="int8-g64", value="int8-g32")
    path = runnable_package(tmp_path_factory.mktemp("rich") / "p.edgemem", model, precision, max_context=4096)
    with Package.open(path) as package:
        yield package


def some_tokens(count: int, vocabulary: int = 97, seed: int = 5) -> NDArray[np.int32]:
    return np.random.default_rng(seed).integers(0, vocabulary, count).astype(np.int32)


def logits_of(engine: NativeEngine, tokens: NDArray[np.int32]) -> NDArray[np.float32]:
    logits = engine.extend(tokens).logits
    assert logits is not None
    return logits


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(tmp_path: Path, family: str, tied: bool) -> None:
    source = tiny_folder(tmp_path, family, tied=tied)
    options = CompileOptions(weights="fp32", head="fp32", check_tokens=0, max_context=64)
    compile_model(source, tmp_path / "p.edgemem", options)
    tokens = some_tokens(40, VOCABULARY)
    outside = hf_logits(tiny_hf_model(source), tokens)
    with Package.open(tmp_path / "p.edgemem") as package:
        same_cache = HalfKvReference(package).logits(tokens)
        engine = NativeEngine(package, threads=2)
        prefilled = logits_of(engine, tokens)
        engine.truncate(0)
        stepped = np.array([logits_of(engine, tokens[i : i + 1]) for i in range(40)])
        engine.close()
    greatest = np.abs(outside).max()
    for got, place in ((stepped, slice(None)), (prefilled, -1)):
        # Keys and values in fp16 are all that is lost: with them rounded alike, 2e-4 remains, where a value that falls
        # between two halves goes up here and down there.
        assert np.abs(got - outside[place]).max() < 5e-3 * greatest
        assert np.abs(got - same_cache[place]).max() < 1e-3 * greatest
        assert np.sqrt(np.mean((got - same_cache[place]) ** 2)) < 1e-4 * greatest


@pytest.mark.parametrize(
    "text",
    [
        "fp16",
        "bf16",
        "int4-g32",
        "int4-g32-min",
        "int4-g64",
        "int4-g64-min",
        "int8-g32",
        "int8-g32-min",
        "int8-g64-min",
    ],
)
@pytest.mark.parametrize("path", PATHS)
def test_logits_are_those_of_the_dequantised_weights(tmp_path: Path, text: str, path: str) -> None:
    model = rich_model()
    written = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, text))
    tokens = some_tokens(30)
    with Package.open(written) as package:
        wanted = HalfKvReference(package).logits(tokens)
        engine = NativeEngine(package, threads=1, path=path)
        assert engine.path == path
        got = np.array([logits_of(engine, tokens[i : i + 1]) for i in range(30)])
        engine.truncate(0)
        at_once = logits_of(engine, tokens)
        engine.close()
    # Four layers of int8 activations; float weights are exact.
    limit = 0.04 if text.startswith("int") else 1e-3
    assert np.sqrt(np.mean((got - wanted) ** 2)) / np.std(wanted) < limit
    assert np.sqrt(np.mean((at_once - wanted[-1]) ** 2)) / np.std(wanted) < 2 * limit


@pytest.mark.parametrize(
    ("heads", "kv_heads", "head_dim"), [(9, 1, 16), (6, 2, 8), (8, 8, 10), (16, 1, 64), (2, 1, 24)]
)
def test_heads_of_every_kind(tmp_path: Path, heads: int, kv_heads: int, head_dim: int) -> None:
    ropes = (rope(head_dim // 2),)
    model = plain_model(layers=2, heads=heads, kv_heads=kv_heads, head_dim=head_dim, ropes=ropes)
    written = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "fp32"))
    tokens = some_tokens(40)
    with Package.open(written) as package:
        wanted = HalfKvReference(package).logits(tokens)[-1]
        for threads in (1, 3):
            engine = NativeEngine(package, threads=threads)
            engine.extend(tokens[:33])
            for token in tokens[33:]:
                got = logits_of(engine, np.array([token]))
            np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-3 * np.abs(wanted).max())
            engine.close()


def test_long_prompts_go_in_chunks_over_any_number_of_threads(rich: Package) -> None:
    tokens = some_tokens(600)
    wanted = HalfKvReference(rich).logits(tokens)
    wide = wanted.astype(np.float64)
    likelihoods = wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))
    given: list[NDArray[np.float32]] = []
    scores: list[NDArray[np.float32]] = []
    for threads in (1, 2, 5):
        engine = NativeEngine(rich, threads=threads)
        step = engine.extend(tokens, surprisal=True)
        assert step.logits is not None
        assert step.surprisal is not None
        logits, surprisal = step.logits.copy(), step.surprisal.copy()
        assert np.abs(surprisal[1:] + likelihoods[np.arange(599), tokens[1:]]).mean() < 0.1
        assert np.sqrt(np.mean((logits - wanted[-1]) ** 2)) < 0.08 * np.std(wanted)
        engine.truncate(590)
        alone = [logits_of(engine, tokens[i : i + 1]) for i in range(590, 600)]
        assert np.sqrt(np.mean((alone[-1] - wanted[-1]) ** 2)) < 0.08 * np.std(wanted)
        given.append(np.array([logits, *alone]))
        scores.append(surprisal)
        engine.close()
    # To the last bit: the engine may run with fewer threads at times.
    for other in (1, 2):
        np.testing.assert_array_equal(given[0], given[other])
        np.testing.assert_array_equal(scores[0], scores[other])


def test_a_cache_of_bytes_is_near_one_of_halves_and_comes_back_bit_for_bit(rich: Package) -> None:
    halves, small, other = (NativeEngine(rich, threads=2, kv=kv) for kv in ("fp16", "int8", "int8"))
    tokens = some_tokens(100)
    wanted, got = (np.array([logits_of(e, tokens[i : i + 1]) for i in range(100)]) for e in (halves, small))
    assert np.sqrt(np.mean((got - wanted) ** 2)) < 0.05 * np.std(wanted)
    state = small.state()
    assert state.keys.dtype == np.float32
    assert np.abs(state.keys - halves.state().keys.astype(np.float32)).max() < 0.05 * np.abs(state.keys).max()
    other.restore(state)
    again = other.state()
    np.testing.assert_array_equal(again.keys, state.keys)
    np.testing.assert_array_equal(again.values, state.values)
    np.testing.assert_array_equal(logits_of(other, tokens[:3]), logits_of(small, tokens[:3]))
    small.keep(np.arange(1, 90))
    assert np.abs(small.state().values - state.values[:, :, 1:90]).max() == 0
    assert small.traffic().kv_write == halves.traffic().kv_write * (32 + 4) // (2 * 32)
    with pytest.raises(PackageError, match="not of this engine"):
        small.restore(halves.state())
    with pytest.raises(SettingsError, match=r"int3(.|\n)*int8"):
        NativeEngine(rich, kv="int3")


@pytest.mark.parametrize("kv", ["fp16", "int8"])
@pytest.mark.parametrize("path", PATHS)
def test_kept_keys_are_those_of_the_numpy_rotation_on_every_path(rich: Package, path: str, kv: str) -> None:
    engine = NativeEngine(rich, threads=2, kv=kv, path=path)
    engine.extend(some_tokens(230))
    before = engine.state()
    kept = np.sort(np.random.default_rng(3).choice(230, 170, replace=False)).astype(np.int64)
    kept[:9] = np.arange(9)
    engine.keep(kept)
    after = engine.state()
    np.testing.assert_array_equal(after.values, before.values[:, :, kept])
    for layer, index in enumerate(rich.model.layer_ropes):
        frequencies = rich.model.ropes[index].inverse_frequencies
        keys = before.keys[layer][:, kept].astype(np.float32)
        wanted = move_keys(keys, np.arange(170) - kept, frequencies)
        np.testing.assert_allclose(
            after.keys[layer], wanted, atol=(2e-3 if kv == "fp16" else 0.02) * np.abs(wanted).max()
        )
        np.testing.assert_array_equal(after.keys[layer][:, :9], before.keys[layer][:, :9])


@pytest.mark.parametrize("kv", ["fp16", "int8"])
def test_what_was_in_the_slots_makes_no_difference(rich: Package, kv: str) -> None:
    tokens = some_tokens(300)
    cold, warm = NativeEngine(rich, threads=2, kv=kv), NativeEngine(rich, threads=2, kv=kv)
    wanted = logits_of(cold, tokens)
    logits_of(warm, some_tokens(90))
    warm.truncate(0)
    logits_of(warm, tokens[:128])
    logits_of(warm, tokens[128:200])
    warm.truncate(128)
    np.testing.assert_array_equal(logits_of(warm, tokens[128:]), wanted)


def test_draws_are_those_of_the_numpy_sampler_on_the_same_logits(rich: Package) -> None:
    engine, stepped = NativeEngine(rich, threads=1), NativeEngine(rich, threads=1)
    settings = Sampling(temperature=0.9, top_k=20, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=11)
    prompt = some_tokens(12)
    ours, theirs = Sampler(settings, prompt.tolist()), Sampler(settings, prompt.tolist())
    engine.extend(prompt)
    decoded = [token.id for token in engine.decode(ours, 60)]
    logits, wanted = logits_of(stepped, prompt), []
    for _ in range(60):
        wanted.append(theirs.sample(logits))
        logits = logits_of(stepped, np.array(wanted[-1:], dtype=np.int32))
    assert decoded == wanted
    assert ours.draws == theirs.draws == 60
    np.testing.assert_array_equal(ours.penalised_tokens(97), theirs.penalised_tokens(97))


def test_a_decode_that_was_left_goes_on_from_the_last_token_yielded(rich: Package) -> None:
    engine, whole = NativeEngine(rich, threads=1), NativeEngine(rich, threads=1)
    for opened in (engine, whole):
        opened.extend(some_tokens(9))
    wanted = [token.id for token in whole.decode(Sampler(Sampling()), 20)]
    decoding = engine.decode(Sampler(Sampling()), 20)
    got = [next(decoding).id for _ in range(6)]
    decoding.close()
    assert engine.length == 9 + 5  # whatever the kernels had run ahead
    engine.extend(np.array(got[-1:], dtype=np.int32))
    got += [token.id for token in engine.decode(Sampler(Sampling()), 14)]
    assert got == wanted


def test_two_threads_at_once_are_refused_and_harm_nothing(rich: Package) -> None:
    engine = NativeEngine(rich, threads=1)
    problems: list[Exception] = []

    def use() -> None:
        for _ in range(30):
            try:
                engine.extend(some_tokens(64))
                engine.truncate(0)
            except (EngineError, SettingsError) as problem:
                problems.append(problem)

    threads = [threading.Thread(target=use) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all("cannot run now" in str(problem) or "length" in str(problem) for problem in problems)
    engine.close()


_FORK = """
import os, sys
import numpy as np
from edgemem.runtime.errors import EngineError
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package

engine = NativeEngine(Package.open(sys.argv[1]), threads=2)
engine.extend(np.array([1, 2, 3]))
child = os.fork()
if child == 0:
    try:
        engine.extend(np.array([4]))
    except EngineError as problem:
        engine.close()
        del engine
        os._exit(7 if "forked" in str(problem) else 8)
    os._exit(9)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
engine.extend(np.array([4]))
print(engine.length, flush=True)
"""


def test_a_forked_process_is_told_and_does_not_hang(rich: Package) -> None:
    done = subprocess.run([sys.executable, "-c", _FORK, str(rich.path)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout.strip()) == (0, "4"), done.stderr


_INTERRUPT = """
import signal, sys, threading, os
import numpy as np
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package

engine = NativeEngine(Package.open(sys.argv[1]), threads=2)
engine.extend(np.array([1, 2, 3]))
tokens = np.arange(4000) % 97
threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    while True:
        engine.extend(tokens)
        engine.truncate(3)
except KeyboardInterrupt:
    print("interrupted", engine.length in (3, 4003), flush=True)
engine.truncate(3)
engine.extend(tokens[:1])
print(engine.length, flush=True)
"""


def test_an_interrupt_ends_a_long_call_and_leaves_the_engine_usable(rich: Package) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPT, str(rich.path)], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["interrupted", "True", "4"], done.stderr


def test_closing_ends_the_threads(rich: Package) -> None:
    before = tasks()
    engine = NativeEngine(rich, threads=4)
    assert len(tasks() - before) == 3
    engine.close()
    engine.close()
    assert comes_to_nothing(lambda: tasks() - before)


def test_memory_that_is_not_there_is_refused_with_the_table(rich: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgemem.runtime.native_engine.available_memory", lambda: 1 << 20)
    with pytest.raises(BudgetError, match=r"1,048,576 bytes available(.|\n)*KV cache"):
        NativeEngine(rich)


_MEASURE = """
import sys
import numpy as np
from edgemem.runtime.native_engine import NativeEngine
from edgemem.runtime.package import Package

def resident(kind):
    with open("/proc/self/smaps_rollup") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(kind))

package = Package.open(sys.argv[1])
before = resident("Anonymous:"), resident("Rss:")
engine = NativeEngine(package, threads=2)
opened = resident("Rss:") - before[1]
engine.extend(np.arange(engine.capacity) % package.model.vocabulary, surprisal=True)
print(resident("Anonymous:") - before[0], opened)
"""


@pytest.mark.parametrize("text", ["int4-g32-min", "fp16"])
def test_what_is_taken_is_what_was_computed(tmp_path: Path, text: str) -> None:
    model = plain_model(
        layers=4, hidden=512, intermediate=1536, heads=8, kv_heads=4, head_dim=64, vocabulary=8000, ropes=(rope(32),)
    )
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, text), max_context=512)
    with Package.open(path) as package:
        budget = native_budget(package, 512, (0, 4), 2)
    answer = subprocess.check_output([sys.executable, "-c", _MEASURE, str(path)], text=True)
    taken, opened = map(int, answer.split())
    lines = dict(budget.lines)
    assert (lines["weights, packed"] + lines["KV cache"]) * 0.9 < taken < budget.total
    # Opened, it holds the packed weights and little else: what was mapped to be packed is given back.
    assert opened < 1.15 * lines["weights, packed"] + (4 << 20)


def test_what_rows_of_several_conversations_attend_with_is_counted(tmp_path: Path) -> None:
    model = plain_model(hidden=256, heads=16, kv_heads=2, head_dim=16, ropes=(rope(8),))
    path = runnable_package(tmp_path / "p.edgemem", model, same_precision(model, "int8-g32"))
    threads, pieces, group = 16, 65536 // 512 + 1, model.heads // model.kv_heads
    with Package.open(path) as package:
        lines = dict(native_budget(package, 65536, (0, model.layers), threads).lines)
    assert lines["attention, piece by piece"] >= threads * pieces * group * (4 * model.head_dim + 32)


def test_models_and_settings_that_it_does_not_run_are_refused(tmp_path: Path, rich: Package) -> None:
    narrow = plain_model(hidden=40, heads=5, kv_heads=5, head_dim=8, ropes=(rope(4),))
    path = runnable_package(tmp_path / "narrow.edgemem", narrow, same_precision(narrow, "fp32"))
    with Package.open(path) as package, pytest.raises(EngineError, match=r"hidden 40(.|\n)*onnx"):
        NativeEngine(package)
    with pytest.raises(SettingsError, match=r"abacus(.|\n)*plain"):
        NativeEngine(rich, path="abacus")


def test_without_the_kernels_the_default_is_onnx(rich: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_engine() == "native"
    opened = open_engine(rich, capacity=None, providers=None)
    assert opened.name == "native"
    opened.close()
    assert open_engine(rich, capacity=16, providers=["CPUExecutionProvider"]).name == "onnx"
    monkeypatch.setattr("edgemem.runtime.open.native", lambda: None)
    monkeypatch.setattr("edgemem.runtime.native_engine.native", lambda: None)
    assert default_engine() == "onnx"
    with pytest.raises(EngineError, match="not built"):
        NativeEngine(rich)


def opened(package: Package, **settings: Any) -> closing[NativeEngine]:
    return closing(NativeEngine(package, capacity=256, threads=1, **settings))


def test_conversations_over_one_engine_do_not_know_of_each_other(rich: Package) -> None:
    with opened(rich) as engine, opened(rich) as alone:
        texts = [some_tokens(40, seed=seed) for seed in (3, 50, 90)]
        waiting = [engine.conversation(64 if place else None) for place in range(2)]
        for text in texts[:2]:
            engine.extend(text[:20])
            engine.exchange(waiting[0])
            waiting.append(waiting.pop(0))
        engine.extend(texts[2][:20])
        assert [one.length for one in waiting] == [20, 20]
        for text in (texts[2], *texts[:2]):
            step = engine.extend(text[20:])
            alone.truncate(0)
            alone.extend(text[:20])
            np.testing.assert_array_equal(step.logits, alone.extend(text[20:]).logits)
            np.testing.assert_array_equal(engine.state().keys, alone.state().keys)
            engine.exchange(waiting[0])
            waiting.append(waiting.pop(0))


def test_a_conversation_has_its_own_slots_and_its_maker(rich: Package) -> None:
    with opened(rich) as engine, opened(rich) as other:
        small = engine.conversation(5)
        with pytest.raises(EngineError, match="another decoder"):
            other.exchange(small)
        engine.extend(np.arange(9, dtype=np.int32))
        engine.exchange(small)
        assert (engine.length, engine.capacity, small.length) == (0, 5, 9)
        with pytest.raises(ContextError):
            engine.extend(np.arange(6, dtype=np.int32))
        engine.exchange(small)
        assert (engine.length, engine.capacity) == (9, other.capacity)
        for capacity in (0, other.capacity + 1, True):
            with pytest.raises(SettingsError, match="capacity"):
                engine.conversation(capacity)


def test_a_back_stage_scores_the_tokens_that_states_are_of(rich: Package) -> None:
    tokens = some_tokens(143)
    with (
        opened(rich) as whole,
        opened(rich, layers=(0, 1)) as front,
        opened(rich, layers=(1, rich.model.layers)) as back,
    ):
        states = front.extend(tokens).hidden
        assert states is not None
        wanted, got = whole.extend(tokens, surprisal=True), back.extend(states, surprisal=True, tokens=tokens)
        np.testing.assert_array_equal(got.surprisal, wanted.surprisal)
        np.testing.assert_array_equal(got.logits, wanted.logits)
        for bad in (None, tokens[:8]):
            with pytest.raises(SettingsError):
                back.extend(states[:9], surprisal=True, tokens=bad)
