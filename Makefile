# Everything a reader needs: `make demo` shows Gantry at work, `make test` proves it.
# Both install what they need on a Debian 12 machine with root and a Rust toolchain.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# What the build and the tests need beside a Rust toolchain: program, then the Debian package it comes from.
BUILD_TOOLS := protoc:protobuf-compiler cc:gcc
NODE_TOOLS  := nft:nftables ip:iproute2
TEST_TOOLS  := skopeo:skopeo docker-registry:docker-registry busybox:busybox-static kubectl:kubernetes-client curl:curl htpasswd:apache2-utils faketime:faketime prometheus:prometheus
VM_TOOLS    := qemu-system-x86_64:qemu-system-x86 debootstrap:debootstrap mkfs.ext4:e2fsprogs busybox:busybox-static xz:xz-utils strip:binutils
BENCH_TOOLS := crun:crun iperf3:iperf3
STORE_BENCH_TOOLS := etcd:etcd-server

HOST    := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
RELEASE := target/$(HOST)/release
# One static file that runs on any Linux, and a pod shim with little private memory (docs/benchmarks.md).
STATIC  := CARGO_TARGET_$(shell echo $(HOST) | tr 'a-z-' 'A-Z_')_RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static"

# $(call install,TOOLS): installs the packages whose programs are missing.
define install
	@missing=(); for pair in $(1); do \
	  command -v "$${pair%%:*}" >/dev/null 2>&1 || PATH="$$PATH:/usr/sbin:/sbin" command -v "$${pair%%:*}" >/dev/null 2>&1 || missing+=("$${pair##*:}"); \
	done; \
	if (( $${#missing[@]} )); then \
	  echo "installing $${missing[*]}"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi
endef

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: tools-build
tools-build:
	@command -v cargo >/dev/null || { echo "a Rust toolchain is missing: install it from your distribution or with rustup, then run make again"; exit 1; }
	$(call install,$(BUILD_TOOLS))

.PHONY: tools-node
tools-node:
	@[[ $$(id -u) == 0 ]] || { echo "Gantry runs containers through the kernel and needs root: run 'sudo make $(MAKECMDGOALS)'"; exit 1; }
	$(call install,$(NODE_TOOLS))

.PHONY: tools-test
tools-test: tools-build tools-node
	$(call install,$(TEST_TOOLS))
	@command -v cargo-nextest >/dev/null || cargo install cargo-nextest --locked
	@command -v cargo-deny >/dev/null || cargo install cargo-deny --locked --debug

.PHONY: build
build: tools-build ## Build the static release binary
	$(STATIC) cargo build --release --target $(HOST) -p gantry -p gantry-demo
	@echo "built $(RELEASE)/gantry"

# A build for a first look takes a third of the time of a release.
.PHONY: demo
demo: tools-build tools-node ## Start a cluster and watch it scale, roll and roll back
	@command -v curl >/dev/null || apt-get install -y -qq curl >/dev/null
	$(STATIC) cargo build --profile demo --target $(HOST) -p gantry -p gantry-demo
	GANTRY=target/$(HOST)/demo/gantry DEMO=target/$(HOST)/demo e2e/demo.sh

.PHONY: test
test: tools-test lint ## Lints, unit, contract and end-to-end tests
	cargo build --workspace --bins
	cargo nextest run --workspace --no-fail-fast
	cargo test --workspace --doc --quiet

.PHONY: reaction
reaction: tools-test ## How soon replicas follow load, and rollouts take themselves back (docs/benchmarks.md)
	cargo build --workspace --bins
	GANTRY_REACTION=full cargo nextest run --workspace --no-capture -E 'binary(reaction) or binary(idle) or binary(rollbacks)'

.PHONY: attack
attack: tools-test ## Attack clusters from a pod, as a node, as a user, as nobody: one line each (docs/security.md)
	cargo build --workspace --bins
	GANTRY_ATTACK=full cargo nextest run -p gantry-e2e --test attacks --no-fail-fast

# A fuzzer's runtime is C++, and its instrumentation is not yet stable in the compiler.
.PHONY: fuzz
fuzz: tools-build ## Give every decoder made-up inputs: SECONDS=n for each, TARGET=name for one
	$(call install,g++:g++)
	@command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked --debug
	@for target in $(or $(TARGET),$(basename $(notdir $(wildcard fuzz/fuzz_targets/*.rs)))); do \
	  echo "fuzzing $$target"; \
	  RUSTC_BOOTSTRAP=1 cargo fuzz run "$$target" --sanitizer none -- \
	    -max_total_time=$(or $(SECONDS),60) -timeout=10 -rss_limit_mb=2048 -max_len=65536 -verbosity=0; \
	done

.PHONY: tools-vm
tools-vm: tools-build tools-node
	$(call install,$(VM_TOOLS))

.PHONY: test-vm
test-vm: tools-vm build ## Try a node on stock Debians with systemd and cgroup v2, in software emulation: SUITES="bookworm trixie"
	cargo build --workspace --bins
	RUNTIME_TESTS=1 GANTRY=$(RELEASE)/gantry DEMO=$(RELEASE)/gantry-demo e2e/vm/test.sh $(or $(SUITES),bookworm trixie)

.PHONY: power-cuts
power-cuts: tools-vm build ## Take the power from a machine under writers and look what it has lost: ROUNDS=n SEED=n
	e2e/vm/base.sh bookworm target/vm
	$(STATIC) cargo build --release --target $(HOST) -p gantry-e2e --bin gantry-power-cuts
	$(RELEASE)/gantry-power-cuts target/vm/bookworm $(or $(ROUNDS),50) $(SEED)

.PHONY: sim
sim: tools-build ## Simulate clusters with faults: SEEDS=n runs that many, SEED=n replays one
	cargo test -p gantry-store --lib simulation -- --nocapture

.PHONY: lint
lint: tools-build ## Formatting, clippy and the dependency policy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo deny --log-level error check bans licenses sources

.PHONY: audit
audit: ## Check dependencies against the advisory database (needs the internet)
	cargo deny check advisories

.PHONY: bench
bench: tools-node build ## Measure what docs/benchmarks.md reports
	$(call install,$(BENCH_TOOLS))
	$(STATIC) cargo bench --target $(HOST) -p gantry-store -p gantry-apiserver -p gantry-runtime -p gantry-network -p gantry-dns -p gantry-agent --bench store --bench authorisation --bench run --bench network --bench throughput --bench services --bench dns
	$(STATIC) cargo run --release --target $(HOST) -p gantry-e2e --bin gantry-bench -- $(RELEASE)/gantry

.PHONY: bench-store
bench-store: tools-build ## Measure the store beside etcd: BENCH_DIR=on-a-disk BENCH_SECONDS=n BENCH_ROUNDS=n
	$(call install,$(STORE_BENCH_TOOLS))
	$(STATIC) cargo run --release --target $(HOST) -p gantry-e2e --bin gantry-bench-store

.PHONY: bench-network
bench-network: tools-node build ## Measure 1,000 services on three nodes
	$(call install,busybox:busybox-static kubectl:kubernetes-client)
	$(STATIC) cargo run --release --target $(HOST) -p gantry-e2e --bin gantry-bench-network
