# make demo: restore three photographs and a face with the priors that ship here
# make test: run the tests
# make lint: check the style
# Each sets up .venv from nothing first, and again when the requirements change.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean
demo: $(VENV)/.installed
	$(BIN)/python sample_condition.py --model_config=configs/demo_model_config.yaml \
		--diffusion_config=configs/demo_diffusion_config.yaml \
		--task_config=configs/inpainting_config.yaml \
		--set task.data.name=skimage --limit 3 --save_dir results/demo
	$(BIN)/python -m util.make_table configs/tables/demo_face.yaml \
		--out results/demo --cache results/demo/cells
	@echo "Look at results/demo/inpainting/contact_sheet.png (photographs) and"
	@echo "results/demo/demo_face.png (a face, five tasks)"

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

$(VENV)/.installed: requirements.txt
	@echo "Setting up $(VENV): torch and others, a few minutes"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed requirements-metrics.txt requirements-hub.txt \
		requirements-test.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements-metrics.txt \
		-r requirements-hub.txt -r requirements-test.txt
	touch $@

clean:
	rm -rf $(VENV)
