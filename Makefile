PYTHON ?= python3
TOOL = .venv/bin/tune2ollama
RECIPE_OPTIONS ?=
# Some containers set it; every stage is a process, and would compile all that it imports again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup medical alpaca tools r1 polite car_insurance test lint bench ollama clean

help: ## show this list
	@sed -n 's/^\([a-z0-9_]*\):.*## /\1  /p' $(MAKEFILE_LIST) | awk '{ printf "make %-14s", $$1; $$1 = ""; print }'

setup: ## make .venv and compile llama.cpp; quick when that was done before
	@$(PYTHON) -m toolkit.setup.bootstrap

medical: setup ## a medical model, from spreadsheet to `ollama run medical`
	@$(TOOL) run recipes/medical.yaml $(RECIPE_OPTIONS)

alpaca: setup ## the same from instruction / input / output rows
	@$(TOOL) run recipes/alpaca.yaml $(RECIPE_OPTIONS)

tools: setup ## a service desk that calls functions, certified with its calls: `ollama run desk`
	@$(TOOL) run recipes/tools.yaml $(RECIPE_OPTIONS)

r1: setup ## a model that reasons before it answers, by GRPO on word problems: `ollama run r1`
	@$(TOOL) run recipes/r1.yaml $(RECIPE_OPTIONS)

polite: setup ## courteous answers, by preference pairs (DPO) on top of fine-tuning: `ollama run polite`
	@$(TOOL) run recipes/polite.yaml $(RECIPE_OPTIONS)

car_insurance: setup ## photos in an Excel sheet to a model that sees: `ollama run car_insurance ./photo.png`
	@$(TOOL) run recipes/car_insurance.yaml $(RECIPE_OPTIONS)

ollama: setup ## build a real Ollama server from its Go module (needs Go)
	@.venv/bin/python -m toolkit.setup.ollama_build $(VERSION)

test: setup ## prove it; builds an Ollama server first where there is Go but no Ollama
	@command -v ollama || .venv/bin/python -m toolkit.setup.ollama_build || echo "Going on without an Ollama server."
	@.venv/bin/python -m pytest -m "not gpu" -n auto --dist loadfile --no-loadscope-reorder

lint: setup ## ruff and mypy
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

bench: setup ## how fast an adapter becomes a GGUF file, beside what others do by hand; half an hour, 8 GB of disk
	@.venv/bin/python -m tests.bench.speed

clean: ## remove results and tool caches; keeps .venv and the cache folder
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis unsloth_compiled_cache
