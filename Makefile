# Every target is one line of `make help`. Nothing here needs a GNU make newer than 3.81, the one of macOS.

PYTHON = python3
PROFILE = miniature
SEEDS = 0
DATA =
CORES =

# the book is built by Snakemake through tools/pipeline.py, which says what runs and how long it takes
pipeline = .venv/bin/python tools/pipeline.py
settings = --config "profile=$(PROFILE)" "seeds=$(SEEDS)" $(if $(DATA),"data=$(DATA)") $(if $(CORES),--cores "$(CORES)")
page = build/$(PROFILE)/book/_build/html/index.html

.PHONY: help book redraw data records backbone links test lint environment clean distclean

help: ## this list
	@echo "make TARGET [PROFILE=miniature] [SEEDS=0] [DATA=folder] [CORES=all] [PYTHON=python3]"
	@echo
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  %-13s%s\n", $$1, $$2 }'
	@echo
	@echo "  PROFILE      smoke (seconds), miniature (minutes on a CPU) or paper (days on a GPU)"
	@echo "  SEEDS        the seeds to run, for example SEEDS=\"0 1 2\""
	@echo "  DATA         the folder of the real, prepared datasets; without it, small ones are rendered"
	@echo "  CORES        how many threads to use at once; without it, all"

book: environment ## recompute everything that is not up to date and build the book
	@$(pipeline) book $(settings)
	@echo "The book: $(CURDIR)/$(page)"

redraw: environment ## draw every table and figure again from records/, and build the book; no training
	@$(pipeline) redraw $(settings)
	@echo "The book: $(CURDIR)/$(subst /book/,/redraw/,$(page))"

data: environment ## prepare the datasets: render the miniature, or check the folder DATA
	@$(pipeline) data $(settings)

records: SEEDS = 0 1 2
records: environment ## recompute all three seeds and copy their results to records/
	@$(pipeline) records $(settings)

backbone: environment ## pretrain the miniature's encoder again, into build/backbone; simo/weights holds it
	@.venv/bin/python -m data_scripts.backbone --out build/backbone/miniature_vit.safetensors

links: redraw ## check that every link of the book leads somewhere; needs the network
	@.venv/bin/jupyter-book build build/$(PROFILE)/redraw/source --path-output build/$(PROFILE)/redraw --builder linkcheck

test: lint ## check style, then run every test
	@.venv/bin/python -m pytest tests notebooks/nyuv2.ipynb --nbval-lax --nbval-current-env

lint: environment ## check style only
	@.venv/bin/python -m ruff check .
	@.venv/bin/python -m ruff format --check .

environment: ## make .venv with all packages, or bring it up to date; the other targets do so, too
	@"$(PYTHON)" tools/bootstrap.py

clean: ## remove build/, with every result that is not in records/
	rm -rf build .snakemake

distclean: clean ## remove .venv, too
	rm -rf .venv
