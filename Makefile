# pgtenant: `make` says what there is.

SHELL := /bin/sh
# rustup's place, for a shell that has not been opened anew since Rust was installed.
export PATH := $(PATH):$(HOME)/.cargo/bin

.DEFAULT_GOAL := help
.PHONY: help demo test isolation chaos model fuzz traffic drivers soak lint bench migrate-bench migrate-schemas clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## a throwaway PostgreSQL with the proxy before it, and psql lines to paste (ARGS=--once for a guided tour)
	@deploy/prerequisites.sh
	cargo run --locked --release -- demo $(ARGS)

test: ## all tests, against every PostgreSQL version there is
	@deploy/prerequisites.sh psql
	@tests/postgres-versions.sh
	@tests/squawk.sh
	cargo test --locked

isolation: ## the attacks of tests/it/isolation beside another pooler (ARGS="--target pgbouncer"); writes its RESULTS.md
	@deploy/prerequisites.sh psql $(if $(findstring /,$(ARGS)),,pgbouncer)
	tests/isolation.sh $(ARGS)

chaos: ## faults, SIGTERM, noisy neighbours, storms of connections, a soak, at full size (ARGS="--only faults"); tests/chaos/RESULTS.md
	@deploy/prerequisites.sh psql
	tests/chaos.sh $(ARGS)

model: ## random interleavings of clients, tokens, transactions and errors against a model: a million steps, half an hour
	@deploy/prerequisites.sh psql
	MODEL_STEPS=$(or $(STEPS),500000) cargo test --locked --release --test it -- model --nocapture

traffic: ## the tests of large traffic at full size: values of 1 GB, COPYs of 10 GB
	@deploy/prerequisites.sh psql
	TRAFFIC_MB=10000 cargo test --locked --release --test it -- traffic --test-threads 1

drivers: ## real drivers and their own test suites, directly and through the proxy (ARGS="--only 'asyncpg;pgx'")
	@deploy/prerequisites.sh psql
	tests/drivers/run.py $(ARGS)

soak: ## those drivers all at once for ten minutes: memory, servers and errors of the proxy (ARGS="--soak 1m")
	@deploy/prerequisites.sh psql
	tests/drivers/run.py --soak 10m $(ARGS)

# For how long each fuzz target runs.
SECONDS ?= 60

fuzz: ## the fuzz targets, a minute each (SECONDS=600 ARGS="lexer guard"): fuzz/README.md
	@deploy/prerequisites.sh libclang
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	fuzz/run.sh --seconds $(SECONDS) $(ARGS)

lint: ## format, clippy; cargo-deny and shellcheck where they are installed
	cargo fmt --check
	cargo clippy --all-targets --locked -- -D warnings
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	@if command -v cargo-deny >/dev/null; then cargo deny --locked check bans licenses sources; \
	else echo "cargo-deny is not installed: dependencies are not checked"; fi
	@if command -v shellcheck >/dev/null; then find . -name '*.sh' -not -path './target/*' -exec shellcheck -s bash {} + \
	&& shellcheck .ci/run; else echo "shellcheck is not installed: scripts are not checked"; fi

bench: ## throughput, CPU, memory and the goals, side by side with other poolers (ARGS="--rounds 3 --pg-doorman PATH")
	@deploy/prerequisites.sh psql pgbench openssl strace $(if $(findstring pgbouncer,$(ARGS)),,pgbouncer)
	benches/side_by_side.sh $(ARGS)

migrate-bench: ## pgtenant migrate killed in every step, and on ten million rows under load: stalls, errors, throughput (ARGS="--rows 1000000")
	@deploy/prerequisites.sh psql
	for victim in pgtenant postgres; do \
	MIGRATE_EVERY=1 MIGRATE_VICTIM=$$victim cargo test --locked --test it -- migrate::killed --nocapture || exit 1; done
	benches/migrate.sh $(ARGS)

migrate-schemas: ## schemas of real applications, out of Debian's packages, made multi-tenant and back; tests/it/migrate/RESULTS.md
	@deploy/prerequisites.sh psql
	tests/migrate-schemas.sh $(ARGS)

clean: ## removes what was built
	cargo clean
