# Everything a newcomer types; `make help` lists it.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo setup-mmcv toy-recipes toy-ablation toy-encoders toy-losses toy-policies gpu test test-slow soak mutation lint format docs benchmark

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# compat: beside a clone called trans4pass, Python would take its folder for the package.
INSTALL := $(BIN)/python -m pip install --constraint constraints.txt --config-settings editable_mode=compat --editable

# With BIN=<folder of a python> an environment of one's own is used as it is.
setup: $(if $(filter command,$(origin BIN)),,$(VENV)/.ready)  ## make the virtual environment and install the tested versions

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) ".[dev]"
	@touch $@

setup-mmcv: setup  ## also build mmcv's operators, for deform_backend=mmcv (about 12 minutes)
	$(BIN)/python -m pip install "setuptools<80" wheel ninja
	MMCV_WITH_OPS=1 $(BIN)/python -m pip install --no-build-isolation --constraint constraints.txt mmcv==2.2.0

demo: setup  ## train and adapt on the toy world, print the mIoU table (minutes; goes on where it was stopped)
	$(BIN)/python tools/train.py experiment=pin2pan_toy_teacher resume=true

ABLATION := $(BIN)/python tools/train.py -m experiment=toy_ablation resume=true

toy-recipes: setup  ## measure the tables of docs/adaptation.md and docs/toy_world.md (three seeds, one to two hours)
	$(BIN)/python tools/train.py -m experiment=pin2pan_toy_recipes seed=0,1,2 resume=true
	$(BIN)/python tools/compare.py runs=[runs/pin2pan_toy_recipes_0,runs/pin2pan_toy_recipes_1,runs/pin2pan_toy_recipes_2]

toy-ablation: setup  ## measure the model zoo's table of heads and options on the toy world (about two hours)
	$(ABLATION) model=trans4pass_micro,trans4pass_plus_micro,danet_micro,danet_resnet50
	$(ABLATION) model.head=fpn,coarse_to_fine
	$(ABLATION) model.ecrm=true
	$(ABLATION) model.edges=true
	$(BIN)/python tools/compare.py "runs=['runs/toy_ablation_*']"

ENCODERS := $(BIN)/python tools/train.py -m experiment=toy_encoders resume=true model.head=segformer,linear,dmlp seed=0,1,2

toy-encoders: setup  ## measure the model zoo's table of encoders and their heads on the toy world (three seeds, about two hours)
	$(ENCODERS)
	$(ENCODERS) model=timm model.encoder=resnet18,convnext_atto
	$(BIN)/python tools/compare.py "runs=['runs/toy_encoders_*']"

TOY := $(BIN)/python tools/train.py experiment=pin2pan_toy resume=true
LOSS := stages.source.method.terms.supervised.loss
SCHEDULE := stages.source.schedule
ADAPTATION_OFF := stages.warmup.enabled=false stages.pseudo_labels.enabled=false stages.mpa.enabled=false

toy-losses: setup  ## measure the model zoo's table of source losses on the toy world (about 45 minutes)
	$(TOY) name=toy_loss_cross_entropy
	$(TOY) name=toy_loss_focal loss@$(LOSS)=focal
	$(TOY) name=toy_loss_hard_pixel loss@$(LOSS)=hard_pixel $(LOSS).mining_steps=400
	$(TOY) name=toy_loss_ohem loss@$(LOSS)=ohem $(LOSS).min_kept=8000
	$(TOY) name=toy_loss_dice loss@$(LOSS)=dice
	$(TOY) name=toy_loss_cross_entropy_dice loss@$(LOSS)=cross_entropy_dice
	$(TOY) name=toy_loss_mask_edge loss@$(LOSS)=cross_entropy_dice '~$(LOSS).terms.dice' +loss@$(LOSS).terms.mask_edge=mask_edge
	$(BIN)/python tools/compare.py "runs=['runs/toy_loss_*']"

toy-policies: setup  ## measure the model zoo's table of learning-rate policies on the toy world (20 minutes)
	$(TOY) name=toy_policy_poly $(ADAPTATION_OFF)
	$(TOY) name=toy_policy_cosine $(ADAPTATION_OFF) schedule@$(SCHEDULE)=cosine
	$(TOY) name=toy_policy_fixed $(ADAPTATION_OFF) schedule@$(SCHEDULE)=fixed
	$(TOY) name=toy_policy_step $(ADAPTATION_OFF) schedule@$(SCHEDULE)=step $(SCHEDULE).size=150
	$(TOY) name=toy_policy_multistep $(ADAPTATION_OFF) schedule@$(SCHEDULE)=multistep $(SCHEDULE).milestones=[250,350]
	$(TOY) name=toy_policy_exp $(ADAPTATION_OFF) schedule@$(SCHEDULE)=exp $(SCHEDULE).gamma=0.99
	$(TOY) name=toy_policy_inv $(ADAPTATION_OFF) schedule@$(SCHEDULE)=inv $(SCHEDULE).gamma=0.01
	$(TOY) name=toy_policy_sigmoid $(ADAPTATION_OFF) schedule@$(SCHEDULE)=sigmoid $(SCHEDULE).gamma=-0.02 $(SCHEDULE).middle=250
	$(BIN)/python tools/compare.py "runs=['runs/toy_policy_*']"

JOBS ?= 2

test: setup  ## the daily tests, a few files at a time (minutes; JOBS=2)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile

test-slow: setup  ## the longer tests (JOBS=2)
	$(BIN)/python -m pytest -m slow -n $(JOBS) --dist loadfile --durations=20

soak: setup  ## what runs on demand only: damaged files and random kills (FUZZ=10000 KILLS=50)
	$(BIN)/python -m pytest -m soak -s

SAMPLE ?= 0
SEED ?= 0

mutation: setup  ## change the code in thousands of small ways and list those that no test notices (SAMPLE=600 SEED=0 JOBS=2)
	$(INSTALL) ".[mutation]"
	$(BIN)/python tests/mutate.py --sample $(SAMPLE) --seed $(SEED) --jobs $(JOBS)

lint: setup  ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: setup  ## fix style and format where it can be done automatically
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## build the guide into build/docs; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet -c docs . build/docs
	@echo "open build/docs/docs/index.html"

benchmark: setup  ## ratios of the deformable convolution's backends on this machine
	$(BIN)/python tools/benchmark.py

gpu: setup  ## what only a GPU can tell, and a table of every method's steps to paste (not run on one yet)
	@mkdir -p build && rm -f build/gpu_failed
	CUBLAS_WORKSPACE_CONFIG=:4096:8 $(BIN)/python -m pytest tests/gpu --junitxml=build/gpu.xml || touch build/gpu_failed
	$(BIN)/python tools/benchmark.py device=cuda network=trans4pass_tiny 'size=[1024,512]' 'precisions=[fp32,tf32,bf16,fp16]' || touch build/gpu_failed
	$(BIN)/python tools/benchmark_steps.py device=cuda outcomes=build/gpu.xml
	@test ! -e build/gpu_failed || (echo "tests/gpu or tools/benchmark.py has failed: see above the tables"; exit 1)
