# Every target is a visible command; `make help` lists them. Variables: RECIPE DATA RUN RUNS SPLIT ARGS PYTHON (for
# some: KOBEST FILE NAME STOPWORDS),
# and for several GPUs: NUM_GPUS (of each machine) NUM_MACHINES MACHINE_RANK MAIN_IP MAIN_PORT.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= scripts/recipes/qlora_12.8b.yaml
RUN ?= runs/$(basename $(notdir $(RECIPE)))
RUNS ?= $(RUN)
SPLIT ?= test
DATA ?=
KOBEST ?= data/kobest
FILE ?= test.csv
NAME ?= ablation
STOPWORDS ?=
ARGS ?=
NUM_GPUS ?= $(or $(shell nvidia-smi -L 2>/dev/null | grep -c ^GPU | grep -v '^0$$'),2)
NUM_MACHINES ?= 1
MACHINE_RANK ?= 0
MAIN_IP ?= 127.0.0.1
MAIN_PORT ?= 29500
MACHINES = --num_processes $$(($(NUM_GPUS) * $(NUM_MACHINES))) --num_machines $(NUM_MACHINES) --machine_rank $(MACHINE_RANK) --main_process_ip $(MAIN_IP) --main_process_port $(MAIN_PORT)
# Seconds that the launcher gives its processes to save when it is told to stop; torchrun's own are 30.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT ?= 300
# A thread that waits for another sleeps: it would spin on the core that the other needs when the machine is busy.
export OMP_WAIT_POLICY ?= PASSIVE
DATA_FLAG = $(if $(DATA),--data $(DATA))
LAUNCH := $(BIN)/accelerate launch --quiet --config_file

# Variables that are given to this make are not for another one that a test starts.
MAKEOVERRIDES :=
unexport GPU MEMORY MODEL HOURS RECIPE RUN RUNS SPLIT DATA KOBEST FILE NAME STOPWORDS ARGS NUM_GPUS NUM_MACHINES MACHINE_RANK MAIN_IP MAIN_PORT

.DEFAULT_GOAL := help
.PHONY: help install demo quick test test-optional test-kernels test-distributed soak lint format train train-qlora train-ddp train-zero2 train-zero3 train-zero3-optimizer-offload train-zero3-offload plan dry-run export eval eval-kobest tune ablation submit ask chat install-chat serve install-serve clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | sed -E 's/^([a-z0-9-]+):[^#]*## /\1\t/' | expand -t 31

$(VENV)/installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $(PYTHON) is older than 3.11, which transformers 5.23 needs: set PYTHON=python3.11 or newer" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps -e .
	@touch $@

install: $(VENV)/installed ## create .venv with the pinned requirements

# Their commands do not say which command comes next.
demo eval: export LLM_QA_IS_STEP := 1

demo: $(VENV)/installed ## the whole job on the embedded model and the bundled data, on any machine
	$(BIN)/python scripts/prepare_data.py --out data/demo --test 0.2
	$(LAUNCH) accelerate_configs/single_gpu.yaml scripts/train.py scripts/recipes/demo.yaml --data data/demo --run runs/demo
	$(BIN)/python scripts/evaluate.py --run runs/demo --base
	$(BIN)/python scripts/ask.py --run runs/demo "벽지가 들뜨는 이유는 무엇인가요?"
	$(BIN)/python scripts/report.py runs/demo --out reports/demo

train: $(VENV)/installed ## train RECIPE on DATA with one process
	$(LAUNCH) accelerate_configs/single_gpu.yaml scripts/train.py $(RECIPE) $(DATA_FLAG) --run $(RUN) $(ARGS)

train-qlora: train ## polyglot-ko-12.8b in 4 bits on one GPU: DATA=train.csv

train-ddp: $(VENV)/installed ## RECIPE on NUM_GPUS GPUs, the whole model on each
	$(LAUNCH) accelerate_configs/ddp.yaml $(MACHINES) scripts/train.py $(RECIPE) $(DATA_FLAG) --run $(RUN) $(ARGS)

train-zero2: $(VENV)/installed ## the same, gradients and optimizer shared out
	$(LAUNCH) accelerate_configs/zero2.yaml $(MACHINES) scripts/train.py $(RECIPE) $(DATA_FLAG) --run $(RUN) $(ARGS)

train-zero3: $(VENV)/installed ## the same, weights shared out too; NUM_MACHINES= MACHINE_RANK= MAIN_IP= for several nodes
	$(LAUNCH) accelerate_configs/zero3.yaml $(MACHINES) scripts/train.py $(RECIPE) $(DATA_FLAG) --run $(RUN) $(ARGS)

train-zero3-optimizer-offload: $(VENV)/installed ## the same, optimizer states kept in the machine's memory
	$(LAUNCH) accelerate_configs/zero3_optimizer_offload.yaml $(MACHINES) scripts/train.py $(RECIPE) $(DATA_FLAG) --run $(RUN) $(ARGS)

train-zero3-offload: $(VENV)/installed ## the same, weights and optimizer kept in the machine's memory
	$(LAUNCH) accelerate_configs/zero3_offload.yaml $(MACHINES) scripts/train.py $(RECIPE) $(DATA_FLAG) --run $(RUN) $(ARGS)

tune: $(VENV)/installed ## learning rate, batch and epochs that fit DATA, by 6 to 12 short trainings of RECIPE
	$(BIN)/python scripts/tune.py $(RECIPE) $(DATA_FLAG) $(ARGS)

plan: $(VENV)/installed ## what fits which GPU, how long it takes: DATA= GPU="RTX 4090" or "T4:2" NUM_MACHINES= MEMORY= MODEL= HOURS=
	$(BIN)/python scripts/plan.py $(DATA_FLAG) $(if $(GPU),--gpu "$(GPU)") $(if $(MEMORY),--memory $(MEMORY)) $(if $(MODEL),--model $(MODEL)) $(if $(HOURS),--hours $(HOURS)) --machines $(NUM_MACHINES) $(ARGS)

dry-run: $(VENV)/installed ## parameters, tokens and steps of RECIPE; no weights are read
	$(BIN)/python scripts/train.py $(RECIPE) $(DATA_FLAG) --dry-run $(ARGS)

eval: $(VENV)/installed ## score RUNS (base and tuned) on SPLIT and write the report
	for run in $(RUNS); do $(BIN)/python scripts/evaluate.py --run $$run --base --split $(SPLIT) $(DATA_FLAG) $(ARGS) || exit; done
	$(BIN)/python scripts/report.py $(RUNS) --out reports/$(notdir $(firstword $(RUNS)))$(if $(DATA),-$(notdir $(DATA:/=))) --split $(SPLIT) $(DATA_FLAG)

export: $(VENV)/installed ## RUN as a plain model folder in exports/, LoRA merged into 16-bit weights, for other programs
	$(BIN)/python scripts/export.py --run $(RUN) $(ARGS)

eval-kobest: $(VENV)/installed ## score RUN on KoBEST: KOBEST=folder of skt/kobest_v1 as JSON lines
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[kobest]' -c requirements.txt
	$(BIN)/python scripts/evaluate_kobest.py --run $(RUN) --kobest-dir $(KOBEST) $(ARGS)

submit: $(VENV)/installed ## the competition's submission.csv: RUN=, FILE=test.csv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[submission]' -c requirements.txt
	$(BIN)/python scripts/submit.py --run $(RUN) --file $(FILE) $(ARGS)

ablation: $(VENV)/installed ## does preprocessing help? NAME=, DATA=raw files, STOPWORDS=file, RECIPE (tiny.yaml)
	$(BIN)/python scripts/ablation.py $(DATA) --name $(NAME) $(if $(filter file,$(origin RECIPE)),,--recipe $(RECIPE)) $(if $(STOPWORDS),--stopwords $(STOPWORDS)) $(ARGS)

ask: $(VENV)/installed ## ask RUN's model at a prompt
	$(BIN)/python scripts/ask.py --run $(RUN) $(ARGS)

install-chat: $(VENV)/installed ## the packages that chat needs, into .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[chat]' -c requirements.txt

chat: install-chat ## a page in the browser: ask RUN's model, see its base beside, mark answers; at 127.0.0.1:7860
	$(BIN)/python scripts/chat.py --run $(RUN) $(ARGS)

install-serve: $(VENV)/installed ## the packages that serve needs, into .venv
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[serve]' -c requirements.txt

serve: install-serve ## RUN's model for programs that speak OpenAI's API, at 127.0.0.1:8000
	$(BIN)/python scripts/serve.py --run $(RUN) $(ARGS)

# The page itself, benchmarks and the static decoder take a third of the time, and few changes touch them.
NOT_QUICK = tests/evaluation/report/test_report_page.py tests/benchmark tests/inference/test_static_decoder.py
quick: $(VENV)/installed ## the tests that start no command or process, in a minute and a half: for every change
	$(BIN)/python -m pytest -n 2 --dist worksteal $(NOT_QUICK:%=--ignore %) -m "quick or not (starts or distributed or gpu or slow or optional)" $(ARGS)

test: $(VENV)/installed ## every test but the distributed, gpu and slow ones
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not distributed and not gpu and not slow" $(ARGS)

test-optional: $(VENV)/installed ## the tests that need an extra's packages, which it installs into .venv first
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[kobest,submission,tracking,notebook,serve,chat,serve-tests]' -c requirements.txt
	$(BIN)/python -m pytest -m "optional and not slow" $(ARGS)

test-kernels: $(VENV)/installed ## the GPU's kernels in Triton's interpreter, which it installs into .venv first
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[interpreter]' -c requirements.txt
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -m interpreter $(ARGS)

test-distributed: $(VENV)/installed ## every recipe on every strategy, on processes of this machine (about a quarter of an hour on 2 cores)
	$(BIN)/python -m pytest tests/distributed -m distributed $(ARGS)

soak: $(VENV)/installed ## the long tests: hundreds of kills, thousands of bad inputs (three quarters of an hour on 2 cores)
	$(BIN)/python -m pytest -s -m slow $(ARGS)

lint: $(VENV)/installed ## ruff: rules and format; mypy: types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/installed ## let ruff fix what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove the environment; data, runs and reports stay
	rm -rf $(VENV)
