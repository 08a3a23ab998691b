# Pointsman. `make help` lists the targets. Needs make, gcc and Rust (https://rustup.rs); rustup fetches the
# toolchain that rust-toolchain.toml names.

# rustup's default place, for shells that have not read its environment file yet.
export PATH := $(PATH):$(HOME)/.cargo/bin

WORKERS ?= 4
ARGS ?=
SECONDS ?= 60
SOAK_PROFILE ?= --release
PREFIX ?= /usr/local
DESTDIR ?=
DOC = $(PREFIX)/share/doc/pointsman
CARGO_FLAGS ?=
# Property tests take the same cases in each run, so that the same code gives the same outcome; `make explore` takes others.
export PROPTEST_RNG_SEED ?= 1
TARGET_DIR = $(or $(CARGO_TARGET_DIR),target)
BENCH_PACKAGES = wrk nginx libnginx-mod-stream haproxy python3

.DEFAULT_GOAL := help
.PHONY: help run build test check explore bench soak continuity install clean tools

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "  make run WORKERS=2 ARGS='--backend 127.0.0.1:9001'   options are passed on to master"
	@echo "  make bench BENCH_ROUNDS=5 BENCH_ONLY=keepalive,1m    its settings are explained in benches/compare.py"
	@echo "  make install PREFIX=/usr DESTDIR=/tmp/package"

run: build ## Build (release) and run `master --workers 4`; without a backend it is a demo
	@exec $(TARGET_DIR)/release/master --workers $(WORKERS) $(ARGS)

build: tools ## Build the release binary, target/release/master
	cargo build --release $(CARGO_FLAGS) --bin master

test: tools ## Run all tests
	cargo test --workspace $(CARGO_FLAGS)

explore: SEED := $(shell date +%s)
explore: tools ## Look for what tests may have missed: property tests with new cases, the model for SECONDS=60
	@echo "seed $(SEED)"
	PROPTEST_RNG_SEED=$(SEED) MODEL_SECONDS=$(SECONDS) cargo test $(SOAK_PROFILE) $(CARGO_FLAGS) --workspace --lib --bins

check: tools ## Check formatting and lints
	cargo fmt --all --check
	cargo clippy --workspace --all-targets $(CARGO_FLAGS) -- -D warnings

bench: build ## Compare with nginx and HAProxy (about 20 minutes); writes docs/benchmarks.md
	cargo build --release $(CARGO_FLAGS) --example bench_backend --example bench_relay
	@sh tests/packages.sh $(BENCH_PACKAGES)
	@# Either counts system calls; without both the column says n/a.
	@command -v perf >/dev/null || command -v strace >/dev/null || sh tests/packages.sh linux-perf || sh tests/packages.sh strace || true
	@python3 benches/compare.py
	@exec python3 benches/forward.py

soak: tools ## All traffic at once with kills, reloads, upgrades, masters killed, for SECONDS=60
	SOAK_SECONDS=$(SECONDS) cargo test $(SOAK_PROFILE) $(CARGO_FLAGS) --test it -- --ignored --exact --nocapture soak::soak

continuity: build ## Compare what kills and reloads cost with nginx and HAProxy (about 6 minutes); writes docs/continuity.md
	@sh tests/packages.sh nginx libnginx-mod-stream haproxy python3
	@exec python3 benches/continuity.py

install: build ## Install under DESTDIR and PREFIX (/usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(DOC)/docs $(DESTDIR)$(DOC)/examples
	install -m 755 $(TARGET_DIR)/release/master $(DESTDIR)$(PREFIX)/bin/master
	install -m 644 README.md LICENSE $(DESTDIR)$(DOC)
	install -m 644 docs/*.md $(DESTDIR)$(DOC)/docs
	install -m 644 examples/*.toml examples/pointsman.service $(DESTDIR)$(DOC)/examples

clean: tools ## Remove everything that was built
	cargo clean

# No target of its own: says what is missing before cargo does it in more words.
tools:
	@command -v cargo >/dev/null || { \
		echo "cargo is missing: install Rust from https://rustup.rs, or: curl --proto '=https' -sSf https://sh.rustup.rs | sh" >&2; exit 1; }
	@command -v cc >/dev/null || { echo "a C linker is missing: apt-get install gcc libc6-dev" >&2; exit 1; }
