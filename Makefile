# `make run` and `make test` are all a fresh Debian 12 machine with Rust needs; each installs what is missing.
SHELL := /bin/bash
CARGO ?= cargo

.PHONY: run test install lint bench mutants

## TPC-C with two warehouses through the proxy for 30 s on a new cluster, checked and reported.
run: install
	$(CARGO) build --release --locked --bin cloudbft
	scripts/run-tpcc target/release/cloudbft

## Every test, after formatting, lints and documentation.
test: install lint
	$(CARGO) build --locked --bin cloudbft --features lying-voter
	cp target/debug/cloudbft target/debug/cloudbft-lying
	$(CARGO) build --locked --bin cloudbft
	$(CARGO) test --workspace --locked

## Takes out one rule of the agreement at a time: the test named after it must fail.
mutants:
	scripts/mutants

## Formatting, clippy, rustdoc, and what the dependencies may be.
lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet
	scripts/check-dependencies

## TPC-C on plain PostgreSQL against the cluster, in alternating rounds of one run.
bench: install
	$(CARGO) build --release --locked --bin cloudbft
	target/release/cloudbft bench compare --warehouses 2 --terminals 8 --seconds 20

install:
	scripts/install
