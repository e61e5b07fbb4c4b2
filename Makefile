# What a newcomer types. Each target installs what it needs and is missing, and says what it installs.
#
#   make demo                      a cluster on this machine, skewed load, and the load levelling itself
#   make demo ARGS='--chaos'       flags are passed on: see target/release/evenkeel demo --help
#   make test                      the whole test suite
#   make test TEST=faults          one program of it; ARGS='PART OF A NAME' picks from it
#   make soak-simulation SEEDS=N   any number of seeds of the simulation
#   make soak                      the same, then hours of clusters under faults, and failovers (SEEDS, SOAK_RUNS, SOAK_SECONDS, SOAK_TRIALS)
#   make bench                     beside plain PostgreSQL with synchronous standbys, and beside nginx
#   make bench-size                gigabytes: loads, moves, restarts, re-seeding (about 25 minutes and 60 GB of disk; TRACE=FILE, ARGS)

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
ARGS ?=
# Seconds of load per run, and runs, of `make soak`.
SOAK_SECONDS ?= 300
SOAK_RUNS ?= 3
# Trials of each kind of failover.
SOAK_TRIALS ?= 50

EVENKEEL := target/release/evenkeel

# Seeds of the simulation in `make soak`, and the first of them.
SEEDS ?= 10000
FIRST_SEED ?= 1

.PHONY: help build demo test bench bench-size soak soak-simulation fmt lint doc

help:
	@sed -n 's/^#   //p' Makefile

build:
	@scripts/install-missing cc libclang postgresql
	$(CARGO) build --release --locked -p evenkeel

demo: build
	$(EVENKEEL) demo $(ARGS)

# The integration tests run the very binary that the demonstration runs. Packages are tested one after another: several of them
# start PostgreSQL servers, and on two cores they would only wait for each other.
# Everything is built in one go: building the program by itself first would build it twice, as the tests' libraries have other features.
# With `TEST` the command line's tests come along, since the program that the others run is built with them.
test:
	@scripts/install-missing cc libclang postgresql
	EVENKEEL_BIN=$(CURDIR)/$(EVENKEEL) $(CARGO) test --release --locked --workspace --no-fail-fast \
	    $(if $(TEST),--test cli --test $(TEST),--tests) $(ARGS)

bench: build
	@scripts/install-missing wrk nginx
	$(EVENKEEL) bench $(ARGS)

# A recorded trace of large blocks is used where one lies, else a pattern that is made.
TRACE ?= $(wildcard ../shared/traces/blocks-100k.csv.gz)
bench-size: build
	$(EVENKEEL) bench size --json bench-size.json $(if $(TRACE),--trace $(TRACE)) $(ARGS)

# Long runs with faults, each with another seed: of the simulation first, which is the fastest to find something.
soak: build soak-simulation
	for run in $$(seq 1 $(SOAK_RUNS)); do \
	    for workload in mixgraph hotspot-jump zipf:1.1 ycsb-a; do \
	        $(EVENKEEL) demo --chaos --workload $$workload --seed $$run --duration $(SOAK_SECONDS) $(ARGS); \
	    done; \
	done
	$(EVENKEEL) bench failover --trials $(SOAK_TRIALS)

# Any number of seeds of the simulation: make soak-simulation SEEDS=100000 FIRST_SEED=1
soak-simulation:
	SEEDS=$(SEEDS) FIRST_SEED=$(FIRST_SEED) $(CARGO) test --release --locked -p evenkeel-simulation --test seeds every_seed_holds -- --nocapture

fmt:
	$(CARGO) fmt --all

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets --release -- -D warnings

doc:
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --release
