# make demo   a real model answers on this machine
# make test   the whole suite
PYTHON ?= python3
BIN := .venv/bin
SOURCES := pyproject.toml CMakeLists.txt $(wildcard kernels/cpu/*)
MODEL ?= smollm2-135m
PROMPT ?= Why is the sky blue? Answer in two sentences.

.PHONY: demo test lint types check wheel bench bench-peers bench-memory native-sanitize native-arm links clean

demo: .venv/installed
	$(BIN)/edgemem pull $(MODEL)
	$(BIN)/edgemem compile $(MODEL)
	$(BIN)/edgemem run -m $(MODEL) -p "$(PROMPT)" -n 128

test: .venv/installed-dev links
	$(BIN)/pytest

lint: .venv/installed-dev links
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	PYTHONPATH=.links $(BIN)/lint-imports

types: .venv/installed-dev links
	$(BIN)/mypy -p edgemem

check: lint types test

# A plain wheel, installed alone into an empty environment, must run a model without the compiler's libraries.
wheel: .venv/installed-dev
	rm -rf dist build/smoke
	$(BIN)/pip wheel -q --no-deps -w dist .
	$(PYTHON) -m venv build/smoke
	build/smoke/bin/pip install -q dist/*.whl
	$(BIN)/python tests/tiny_package.py build/smoke/tiny.edgemem
	cd build/smoke && bin/edgemem --version && bin/edgemem doctor && bin/edgemem profile devices >devices.txt && \
	  bin/edgemem run -m tiny.edgemem -p "smoke" --raw -n 8 --ignore-eos --json

bench: .venv/installed-dev
	$(BIN)/edgemem pull $(MODEL)
	$(BIN)/edgemem compile $(MODEL) -o build/bench.edgemem
	$(BIN)/python -m edgemem.tools.bench build/bench.edgemem

# The same model files in llama.cpp, onnxruntime-genai and OpenVINO GenAI, each in an environment of its own. Takes long.
bench-peers: .venv/installed-dev
	$(BIN)/python -m edgemem.tools.bench_peers --md --out profiles/results

# Peak memory of compiling at two depths of two shapes.
bench-memory: .venv/installed-dev
	$(BIN)/python -m edgemem.tools.compile_memory

# The native module under AddressSanitizer and UndefinedBehaviorSanitizer: its tests, and its fuzz target for longer.
SANITIZED := build/sanitize
SANITIZERS := LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 \
  UBSAN_OPTIONS=print_stacktrace=1 PYTHONPATH=tests:tests/fuzz EDGEMEM_NATIVE_BUILD=$$(ls $(SANITIZED)/_native*.so)
native-sanitize: .venv/installed-dev
	PATH=$(CURDIR)/$(BIN):$$PATH cmake -S . -B $(SANITIZED) -G Ninja -DEDGEMEM_SANITIZE=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
	PATH=$(CURDIR)/$(BIN):$$PATH cmake --build $(SANITIZED)
	$(SANITIZERS) $(BIN)/pytest -p sanitized_native tests/test_native_kernels.py tests/test_native_sampler.py \
	  tests/test_native_engine.py tests/test_native_together.py tests/test_native.py tests/test_engines.py tests/fuzz -k "not onnx and not fork and not taken and not transformers"
	$(SANITIZERS) $(BIN)/python -c "import sanitized_native, runpy, sys; sys.argv = ['fuzz', '20000']; \
	  runpy.run_path('tests/fuzz/fuzz_native.py', run_name='__main__')"

# The paths of another processor against the plain one, under an emulator (Debian: g++-aarch64-linux-gnu, qemu-user-static).
CPU := kernels/cpu
native-arm:
	@mkdir -p build/arm
	aarch64-linux-gnu-g++ -std=c++17 -O3 -ffp-contract=off -Wall -Wextra -Wshadow -march=armv8.2-a+dotprod -static -pthread \
	  $(CPU)/features.cpp $(CPU)/kv_cache.cpp $(CPU)/pack.cpp $(CPU)/path*.cpp $(CPU)/team.cpp tests/native/check_paths.cpp \
	  -o build/arm/check_paths
	qemu-aarch64-static build/arm/check_paths

# Static tools do not follow the editable install's import hook.
links:
	@mkdir -p .links/edgemem
	@for name in kernels runtime profiles split compiler tools; do ln -sfn ../../$$name .links/edgemem/$$name; done

.venv/bin/python:
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --upgrade pip

.venv/installed: .venv/bin/python $(SOURCES)
	$(BIN)/pip install -q -e ".[compile]"
	@touch $@

.venv/installed-dev: .venv/bin/python $(SOURCES)
	$(BIN)/pip install -q -e ".[dev]"
	@touch $@ .venv/installed

clean:
	rm -rf .venv .links build dist
