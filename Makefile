# `make run` and `make test` are all a fresh Debian 12 machine with Rust needs; each installs what is missing.
SHELL := /bin/bash
CARGO ?= cargo

.PHONY: run test install lint bench bench-peers profile bench-core large soak soak-sim sim mutants fuzz model twins twins-faults check-dashboards

# What `make sim` runs.
PROTOCOL ?= minbft
SEEDS ?= 1000
SECONDS_OF_FUZZING = $(if $(SECONDS),$(SECONDS),60)

## TPC-C with two warehouses through the proxy for 30 s on a new cluster, checked and reported.
run: install
	$(CARGO) build --release --locked --bin cloudbft
	scripts/run-tpcc target/release/cloudbft

## Every test, after formatting, lints and documentation.
test: install lint
	$(CARGO) build --locked --bin cloudbft --features lying-voter,byzantine-primary
	cp target/debug/cloudbft target/debug/cloudbft-lying
	$(CARGO) build --locked --bin cloudbft
	CARGO=$(CARGO) scripts/run-tests

## Formatting, clippy, rustdoc, what the dependencies may be, that citations lead somewhere, and that faults can be put back.
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	$(CARGO) clippy -p cluster --features byzantine-primary --locked -- -D warnings
	$(CARGO) fmt --manifest-path tests/bench-core/Cargo.toml --check
	$(CARGO) clippy --manifest-path tests/bench-core/Cargo.toml --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet
	scripts/check-dependencies
	scripts/check-references
	for patch in tests/twins/faults/*.patch; do git apply --check "$$patch" || exit 1; done

## TPC-C on plain PostgreSQL against the cluster, in alternating rounds of one run.
bench: install
	$(CARGO) build --release --locked --bin cloudbft
	target/release/cloudbft bench compare --warehouses 2 --terminals 8 --seconds 20

## The same on Pgpool-II in native replication mode too, with prepared statements and with texts. SHARE=0.3 holds each machine (a
## server, and the node beside it) to that part of a processor, by control groups: as root.
bench-peers:
	scripts/install --peers
	$(CARGO) build --release --locked --bin cloudbft
	target/release/cloudbft bench compare --pgpool --protocol both --warehouses 2 --terminals 8 --seconds 20 \
	  $(if $(SHARE),--share $(SHARE)) $(OPTIONS)

## Where each microsecond of a node and of the proxy goes: OPTIONS="--machine m0 --answers at_commit" (scripts/profile --help).
profile:
	scripts/install --profile
	RUSTFLAGS="-C force-frame-pointers=yes" $(CARGO) build --release --locked --bin cloudbft --target-dir target/profile
	scripts/profile target/profile/release/cloudbft $(OPTIONS)

## The dashboards and alerts of grafana/, on a cluster with faults that a Prometheus scrapes: every query must have data.
check-dashboards: install
	scripts/install --prometheus
	$(CARGO) build --release --locked --bin cloudbft
	scripts/check-dashboards target/release/cloudbft

## The agreement core alone, in one thread, beside the crate `minbft`: orders per second.
bench-core:
	@$(CARGO) run --release --locked --quiet --manifest-path tests/bench-core/Cargo.toml

## Memory and logs stay bounded: TPC-C for MINUTES=10 on a cluster with a small log, looked at every minute.
soak: install
	$(CARGO) build --release --locked --bin cloudbft
	scripts/soak target/release/cloudbft $(if $(MINUTES),$(MINUTES),10)

## 1 GB (MEGABYTES=1000) by COPY in and out and by pg_dump, beside plain PostgreSQL: times, and the peak memory of each process.
large: install
	$(CARGO) build --release --locked --bin cloudbft
	scripts/large target/release/cloudbft $(if $(MEGABYTES),$(MEGABYTES),1000)

## Clusters in virtual time, faults and adversaries drawn from seeds: SEEDS=10000, or one with its event log: SEED=n.
## PROTOCOL=minbft; OPTIONS="faults=2 loss_percent=0" overrides what the seeds draw. Exit code: 2 safety, 3 liveness.
sim:
	@$(CARGO) run --release --locked --quiet -p simulator -- --protocol $(PROTOCOL) \
	  $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(OPTIONS)

## One long run in virtual time: logs are cut, a machine is away for a tenth of it, all are restarted in turn: ORDERS=1000000.
soak-sim:
	@$(CARGO) run --release --locked --quiet -p simulator -- --protocol $(PROTOCOL) --soak $(if $(ORDERS),$(ORDERS),1000000)

## What is broken on purpose must be found: a rule of the agreement by the test named after it, a counter or one liar too
## many by the simulator's checkers.
mutants:
	scripts/mutants
	@$(CARGO) run --release --locked --quiet -p simulator -- --hunt

## Arbitrary bytes for the codec, arbitrary messages for `step`: SECONDS=600.
fuzz:
	@$(CARGO) run --release --locked --quiet -p simulator -- --protocol $(PROTOCOL) --fuzz $(SECONDS_OF_FUZZING)

## Every interleaving of small configurations of the agreement and of voters: SECONDS for each scenario, FAMILY=agreement or voters for one
## of the two.
model:
	@$(CARGO) run --release --locked --quiet -p model -- $(if $(SECONDS),$(SECONDS),600) $(FAMILY)

## Three real voters on three real servers under one fake order, honest and lying clients: SEEDS=2000, or one with its trace:
## SEED=n. OPTIONS="--without crashes --jobs 2". Exit code: 1 when something was violated.
twins: install
	@$(CARGO) run --release --locked --quiet -p twins -- $(if $(SEED),--seed $(SEED),--seeds $(SEEDS)) $(OPTIONS)

## Faults of earlier versions, put back one at a time in a scratch copy: the twins must find each.
twins-faults: install
	scripts/twins-faults $(FAULTS)

install:
	scripts/install
