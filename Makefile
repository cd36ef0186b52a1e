# Two commands: `make demo` and `make test`.  Both install what they need (root on Debian) or print
# what is missing, build, and run.
SHELL := /bin/bash
.DELETE_ON_ERROR:

.PHONY: help
help:
	@echo 'make demo    build, serve a small model on the CPU, chat with it once over gRPC;'
	@echo '             DEVICE=cuda: on a Hopper GPU'
	@echo 'make test    everything that continuous integration runs'
	@echo 'make clients what test does with openai, xai-sdk, the router SMG and our Python client, and aiperf and lm-eval'
	@echo 'make soak    two hours of mixed traffic at a server; its memory must not grow'
	@echo 'make abuse   what abuses of HTTP/2 and HTTP/1.1 cost the server, seven minutes'
	@echo 'make limits  how soon the server starts, refuses, frees and says that it is well, five minutes'
	@echo 'make fairness  what a long prompt beside running streams costs them and takes itself, ten minutes'
	@echo 'make build   the optimised binary, build/dsa'
	@echo 'make test-needles  two data ranks of the small model find a fact in 1,000 tokens each'
	@echo 'make setup   install the Debian packages that the build needs'
	@echo 'make format  reformat the sources'

.PHONY: setup
setup:
	@tools/setup.sh docker/packages-build.txt

.PHONY: setup-test
setup-test:
	@tools/setup.sh docker/packages-build.txt docker/packages-test.txt

DEVICE ?= cpu
preset = $(if $(filter cuda%,$(DEVICE)),cuda,cpu)

.PHONY: build
build: setup
	@tools/build.sh $(preset) dsa
	@ln -sf $(preset)/dsa build/dsa

.PHONY: demo
demo: build
	@tools/demo.sh build/dsa $(DEVICE)

.PHONY: test
test: setup-test
	@tools/test.sh

# Two data ranks of the small model, a fact in 1,000 tokens each.
.PHONY: test-needles
test-needles: setup-test
	@tools/build.sh cpu e2e_tests
	@build/cpu/tests/e2e/e2e_tests '[.data_rank_needles]'

.PHONY: clients
clients: setup-test build
	@tools/clients.sh build/dsa
	@tools/benchmark_clients.sh build/dsa

.PHONY: abuse
abuse: setup-test
	@tools/build.sh cpu dsa_abuse
	@build/cpu/tests/abuse/dsa_abuse full 2>build/abuse.log
	@build/cpu/tests/abuse/dsa_abuse latency
	@python3 tests/abuse/http1.py build/cpu/tests/abuse/dsa_abuse

.PHONY: limits
limits: setup-test
	@tools/build.sh cpu dsa dsa_abuse api_tests
	@tools/limits.sh build/cpu/dsa build/cpu/tests/abuse/dsa_abuse build/cpu/tests/api/api_tests

# Five pairs, ten minutes.
.PHONY: fairness
fairness: build
	@tools/fairness.sh build/dsa 5 build/fairness

# Two hours.
.PHONY: soak
soak: setup-test
	@tools/build.sh cpu dsa dsa_soak
	@tools/soak.sh build/cpu/dsa build/cpu/tests/soak/dsa_soak 7200 10 build/soak

.PHONY: format
format: setup-test
	@git ls-files '*.h' '*.cpp' '*.cu' '*.cuh' | xargs clang-format-14 -i
