# lumbung needs Go (the version in go.mod) and gcc. Everything else is built or
# installed here; nothing is written outside this folder and Go's own caches.

BUILD    := build
GOARCH   := $(shell go env GOARCH)
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X main.version=$(VERSION)
PAYLOAD  := job/sandbox/payload/runsc-linux-$(GOARCH)
RUNSC    := $(BUILD)/runsc
FORWARDER := $(BUILD)/forwarder
TOOL     := go tool -modfile=.ci/tools/go.mod
TAGS     := payload
FUZZTIME ?= 5s
KILLS    ?= 500
DEMO     ?=

# go-nvml's headers deprecate what the binding still offers.
export CGO_CFLAGS := -Wno-deprecated-declarations
export LUMBUNG_RUNSC := $(CURDIR)/$(RUNSC)

.PHONY: all build payload tiles test race kills lint vuln fuzz bench e2e demo gpu-kit gpu-check generate cross fresh clean
all: build

# --- building ---------------------------------------------------------------

build: $(BUILD)/lumbung tiles

.PHONY: $(BUILD)/lumbung
$(BUILD)/lumbung: need-cc $(PAYLOAD).zst
	go build -trimpath -tags $(TAGS) -ldflags "$(LDFLAGS)" -o $@ ./cmd/lumbung

# gVisor's runsc with our gofer: static, for it re-executes itself in an empty
# root. About two minutes on two cores, once.
$(RUNSC): $(wildcard job/sandbox/runsc/*.go job/sandbox/runsc/outbound/*.go) job/sandbox/runsc/go.mod job/sandbox/runsc/go.sum
	@mkdir -p $(BUILD)
	@echo "building gVisor (once, about two minutes)"
	cd job/sandbox/runsc && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $(CURDIR)/$@ .

# The program that reaches into a container's ports: static, as any image may be
# around it.
$(FORWARDER): $(wildcard job/sandbox/internal/forwarder/*.go job/sandbox/internal/portmux/*.go) go.mod
	@mkdir -p $(BUILD)
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $@ ./job/sandbox/internal/forwarder

payload: $(PAYLOAD).zst
$(PAYLOAD).zst: $(RUNSC) $(FORWARDER)
	@mkdir -p $(dir $@)
	CGO_ENABLED=0 go run ./job/sandbox/internal/pack -in $(FORWARDER) -out $(dir $@)forwarder-linux-$(GOARCH)
	CGO_ENABLED=0 go run ./job/sandbox/internal/pack -in $(RUNSC) -out $(PAYLOAD)
	@touch $@

# The example program: static, so that it can be an image of its own.
.PHONY: tiles
tiles:
	@mkdir -p $(BUILD)
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o $(BUILD)/tiles ./examples/tiles

.PHONY: need-cc
need-cc:
	@command -v $${CC:-gcc} >/dev/null || { echo "no C compiler: install gcc (Debian: apt-get install gcc libc6-dev)" >&2; exit 1; }

# --- running ----------------------------------------------------------------

demo: build
	@mkdir -p out
	$(BUILD)/lumbung demo --out out/demo.png $(DEMO)

# All that a machine with an NVIDIA GPU and nothing else needs to be tried: one
# folder, and a tar of it to take there. GPUCHECK=report keeps the report there.
GPUKIT := $(BUILD)/gpu-check
gpu-kit: build
	@mkdir -p $(GPUKIT)
	$${CC:-gcc} -std=gnu11 -Wall -O2 -DKERNELS='"examples/cuda/kernels/kernels.ptx"' -o $(GPUKIT)/cudacheck examples/cuda/cudacheck.c -ldl
	examples/cuda/make-image $(GPUKIT)/cudacheck $(GPUKIT)/image
	cp $(BUILD)/lumbung examples/cuda/gpu-check $(GPUKIT)/
	tar -C $(BUILD) -cf $(GPUKIT).tar gpu-check

gpu-check:
	@test -x $(GPUKIT)/gpu-check || $(MAKE) gpu-kit
	$(GPUKIT)/gpu-check $(GPUCHECK)

# --- checking ---------------------------------------------------------------

test: need-cc $(PAYLOAD).zst
	go test -tags $(TAGS) -timeout 60m ./...
	cd job/sandbox/runsc && go test ./outbound

race: need-cc $(PAYLOAD).zst
	go test -race -tags $(TAGS) -timeout 60m $$(go list ./... | grep -v /lumbung/job$$)
	@# On one processor: the race detector itself crashes where timers of a synctest
	@# bubble fire on two at once (golang/go#78156). It sees races all the same.
	go test -race -cpu 1 -timeout 60m ./job
	cd job/sandbox/runsc && go test -race ./outbound

e2e: build
	go test -tags "$(TAGS) e2e" -count 1 -timeout 20m ./cmd/lumbung

# Real containers, each ended at a random moment in a random way. KILLS=5000 for
# longer; a failure names the seed to repeat it with.
kills: $(PAYLOAD).zst
	SANDBOX_TEST_KILLS=$(KILLS) go test -tags $(TAGS) -count 1 -timeout 60m -run '^TestRandomKills$$' -v ./job/sandbox

lint:
	go vet ./...
	go vet -tags e2e ./cmd/lumbung
	cd job/sandbox/runsc && go vet ./...
	$(TOOL) golangci-lint run ./...

vuln:
	$(TOOL) govulncheck ./...

# Every fuzzer for a short time; FUZZTIME=1m for longer.
fuzz: $(PAYLOAD).zst
	@set -e; for dir in . job/sandbox/runsc; do ( cd $$dir; \
	for pkg in $$(go list ./...); do \
	  list=$$(go test -list '^Fuzz' $$pkg) || { echo "$$list"; exit 1; }; \
	  for f in $$(echo "$$list" | grep '^Fuzz' || true); do \
	    echo "fuzz $$pkg $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x $$pkg; \
	  done; \
	done ); done

# What docs/performance.md is written from, as one table at the end. BENCH=Killed
# runs those with that in their names; LUMBUNG_BENCH_MIB=64 makes all smaller.
bench: build
	go run ./docs/bench $(BENCH)

# Renters on other systems need no cgo and no sandbox.
cross:
	CGO_ENABLED=0 GOOS=linux GOARCH=arm64 go build -o /dev/null ./cmd/lumbung
	CGO_ENABLED=0 GOOS=darwin GOARCH=arm64 go build -o /dev/null ./cmd/lumbung
	CGO_ENABLED=0 GOOS=windows GOARCH=amd64 go build -o /dev/null ./cmd/lumbung

generate:
	cd protocol && go run ./gen
	go test ./node/api -run OpenAPI -update

# go.mod lists nothing unused.
fresh:
	go mod tidy -diff

clean:
	rm -rf $(BUILD) out job/sandbox/payload
