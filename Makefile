# Every target sets up what it needs. Needed on the machine: Python >= 3.11 and make.
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := $(CURDIR)
export PYTHONUTF8 = 1# text and the names of files, in every locale
export GOMP_SPINCOUNT ?= 20000# PyTorch's threads that wait leave their cores to onnxruntime's, as in the stages
$(if $(findstring :,$(CURDIR)),$(error $(CURDIR) has a colon in it, which PATH and PYTHONPATH cannot hold: move the checkout))
# a home folder that is missing or cannot be written: what libraries keep in one, they keep here
HOMES = IPYTHONDIR JUPYTER_CONFIG_DIR JUPYTER_DATA_DIR JUPYTER_RUNTIME_DIR MPLCONFIGDIR XDG_CACHE_HOME
ifeq ($(shell test -w "$$HOME" || echo no), no)
$(foreach name,$(HOMES),$(eval export $(name) = $$(CURDIR)/.runs/home))
endif
unexport PYTHONDONTWRITEBYTECODE # without .pyc files every process parses torch anew: 10 s instead of 4

.PHONY: demo repro plan rehearse test faults bench report lab inspect notebooks site publish keep compare lint lock readme networks-table help setup data clean

demo: setup ## look at photographs through a trained network, by every method that trains nothing: reports/demo.html
	python -m xai_utils.widgets.demo

repro: setup data ## run the whole pipeline: reports/index.html
	python -m xai_utils.pipeline --check
	dvc repro --quiet
	python -m xai_utils.pipeline --headlines

plan: setup data ## trainings, images, hours and disk of a run on this machine: make plan [SET="scale=paper dataset=folder"]
	python -m xai_utils.pipeline --plan --set $(SET)

rehearse: setup data ## the papers' scale on a handful of images: make rehearse [DATASET=folder] [TARGET=network]
	python -m xai_utils.pipeline.rehearsal --dataset="$$DATASET" --target="$$TARGET"

test: setup data ## run the tests
	python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

faults: setup ## kill every stage, fill the disk, run twice at once, and compare the results; at most 30 min
	python tests/faults.py

bench: setup ## measure our maps beside other libraries', one benchmark after the other
	for name in speed transformer_cams data_path memory rise; do python benchmarks/$$name.py --json benchmarks/$$name.json || exit 1; done
	python benchmarks/growth.py --json benchmarks/growth.json --docs docs
	python benchmarks/rise.py --docs docs

report: setup data ## maps, scores and checks of your own: make report IMAGES=folder TARGET=network; docs/own-data.md
	@python -m xai_utils.pipeline.own_report "$$IMAGES" "$$TARGET" --name="$$NAME" --methods="$$METHODS" --limit="$$LIMIT" --size="$$SIZE"

lab: setup data ## open the project in JupyterLab: notebooks, parameters, reports
	jupyter lab --FileContentsManager.pre_save_hook=xai_utils.pipeline.by_hand.keep_source

inspect: setup ## look at single images: a page for you alone; of your own folders: make inspect FOLDERS="/photos /data"
	python -m xai_utils.widgets.server $(FOLDERS) $(HOSTS:%=--host=%)

notebooks: setup ## after a change of params.yaml: the parameters cells; after new imports: what dvc.yaml depends on
	python -m xai_utils.pipeline --write

RUNS =
COMPARED = $(if $(wildcard runs/*/run.json),compare)
compare: setup data ## kept runs on one page, build/compare.html: make compare [RUNS="pets tiny"]
	python -m xai_utils.pipeline.compare $(RUNS)

site: setup $(COMPARED) ## make site/ of the reports of the last run: open site/index.html
	python -m xai_utils.pipeline.site build

BRANCH = gh-pages
publish: setup $(COMPARED) ## make publish REMOTE=origin: make the site and push it to a branch of its own
	python -m xai_utils.pipeline.site publish "$(REMOTE)" "$(BRANCH)"

NAME = # given by hand: some systems set it for every process
REV =
FROM =
FORCE =
keep: setup ## keep the last run as numbers, or another: make keep NAME=pets [REV=revision | FROM=folder] [FORCE=1]
	python -m xai_utils.pipeline.kept "$$NAME" $${REV:+--rev "$$REV"} $${FROM:+--from "$$FROM"} $(if $(filter 1,$(FORCE)),--force)

lint: setup
	ruff check . && ruff format --check .

lock: setup ## pin anew what pyproject.toml asks for
	uv pip compile -q --upgrade --universal --python-version 3.11 --all-extras --no-annotate --custom-compile-command "make lock" pyproject.toml -o requirements.lock

readme: setup ## put the result table of the last run, and the kept runs beside it, into README.md; runs/README.md
	python -m xai_utils.pipeline --readme
	python -m xai_utils.pipeline.compare --list

networks-table: setup ## put which method explains which network into docs/networks.md; about 10 min
	python tests/networks_table.py

help: ## this list
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\n    \2/p' Makefile

setup: .venv/complete

.venv/complete: requirements.lock
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Python {v[0]}.{v[1]} is too old: 3.11 or newer is needed; name one with make PYTHON=/path/to/python3.11")'
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install -q --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	.venv/bin/uv pip install -q --python .venv/bin/python -r requirements.lock
	touch $@

data: data/raw ## what data.dvc names, and the links to it
data/raw: data.dvc | setup
	dvc pull -q data.dvc && touch data/raw
	@git checkout -q -- $$(git ls-files --deleted data)

clean: ## forget everything derived (not the environment, not the data)
	rm -rf build site .runs .checkpoints
