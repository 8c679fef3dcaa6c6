# Everything a person types here. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# A Go or Node.js that .ci/deps fetched because the machine had none that would do goes first.
export PATH := $(CURDIR)/tmp/.go/bin:$(CURDIR)/tmp/.node/node_modules/.bin:$(PATH):/usr/local/go/bin

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -X main.version=$(VERSION)
GOLANGCI_LINT := go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
BUF := go tool buf

# How many inputs each fuzz target runs; what `make demo`, `make bench` and `make bench-peers` hand to the program.
FUZZINPUTS ?= 100000
DEMO_FLAGS ?=
BENCH_FLAGS ?=
PEERS_FLAGS ?=
TEST_FLAGS ?=

##@ See it

.PHONY: demo
demo: deps build ## Run workflows on failing services, killed workers, a killed server and a service that is down
	bin/tasker demo $(DEMO_FLAGS)

.PHONY: bench
bench: deps-go deps-postgres build ## Measure this machine: the server beside the bare statements, in one run
	bin/tasker bench $(BENCH_FLAGS)

# The peers are modules of their own, so that ours needs nothing of theirs. Ours may have moved on: -mod=mod lets theirs follow.
.PHONY: bench-peers
bench-peers: deps-go deps-postgres deps-node build ## Measure River, DBOS, graphile-worker and pg-boss beside us; write docs/benchmarks.md
	go build -o bin/peers/ ./bench/peers/tasker ./bench/peers/cmd/peers
	go -C bench/peers/go build -mod=mod -o $(CURDIR)/bin/peers/ ./river ./dbos
	bin/peers/peers $(PEERS_FLAGS)

##@ Build

.PHONY: build
build: deps-go ## Build bin/tasker
	CGO_ENABLED=0 go build -trimpath -pgo=cmd/tasker/cpu.pgo -ldflags '$(LDFLAGS)' -o bin/tasker ./cmd/tasker

# The compiler inlines and lays out by it what is run most. An old one is no mistake: what has changed since is compiled without.
.PHONY: profile
profile: deps-go deps-postgres build ## Record anew where the processor's time goes: cmd/tasker/cpu.pgo, by which bin/tasker is compiled
	mkdir -p tmp
	bin/tasker bench --scenario B1 --cpu-profile tmp/load.pprof -- --cpu-profile tmp/server.pprof
	@# Whose machine it was is nobody's business: the program's path is crossed out, letter by letter, so that lengths stay right.
	go tool pprof -proto -output tmp/cpu.pgo tmp/load.pprof tmp/server.pprof
	gunzip < tmp/cpu.pgo | perl -pe 's|\Q$(CURDIR)\E/|"x" x length($$&)|ge' | gzip -9n > tmp/crossed.pgo
	mv tmp/crossed.pgo cmd/tasker/cpu.pgo

.PHONY: image
image: deps-go deps-postgres deps-image ## Build the container image with buildah and run it
	test/image/build.sh

.PHONY: generate
generate: deps-go ## Write gen/ anew from proto/
	$(BUF) generate

##@ Check

.PHONY: test
test: deps ## Run all tests, with the race detector, on a real Postgres
	go test -race -timeout 30m $(TEST_FLAGS) ./...

.PHONY: test-short
test-short: deps-go deps-postgres ## Run the tests without the long ones and without the race detector
	go test -short -timeout 10m $(TEST_FLAGS) ./...

.PHONY: lint
lint: deps-go ## Look for mistakes in the Go code and for code that gofumpt would write otherwise
	go vet ./...
	$(GOLANGCI_LINT) run ./...

.PHONY: proto-lint
proto-lint: deps-go ## Check the contract's style, format, and that it breaks no client of main
	$(BUF) lint
	$(BUF) format --diff --exit-code
	.ci/breaking

.PHONY: format
format: deps-go ## Format the Go and proto files in place
	$(GOLANGCI_LINT) fmt ./...
	$(BUF) format --write

.PHONY: fuzz
fuzz: deps-go ## Run every fuzz target with FUZZINPUTS (100000) inputs
	.ci/fuzz $(FUZZINPUTS)

.PHONY: mutants
mutants: deps ## Break the code in the ways of test/mutants and see that the tests notice each
	test/mutants/run

##@ Keep house

.PHONY: deps deps-go deps-cc deps-postgres deps-python deps-node deps-image
deps: ## Install what the targets need and the machine lacks: Go, a C compiler, PostgreSQL, Python packages
	@.ci/deps go cc postgres python
deps-go deps-cc deps-postgres deps-python deps-node deps-image:
	@.ci/deps $(@:deps-%=%)

.PHONY: clean
clean: ## Remove what was built or fetched into this directory
	rm -rf bin tmp .venv bench/peers/node/node_modules

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@ / { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
