PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test verify check clean

demo: $(VENV)/demo.stamp  ## learn from a year of flights and write demo-run/report.html
	$(BIN)/adasel-stream demo

test: check  ## everything that CI runs
	$(BIN)/python -m pytest -m "not verify and not gpu"
	$(BIN)/python -m benchmarks.evidence --quick

verify: $(VENV)/dev.stamp  ## the longer proofs
	$(BIN)/python -m pytest -m "verify"

check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	PYTHONPATH=connectors $(BIN)/lint-imports

# torch comes first and alone: its constraint keeps later steps from choosing another build
$(VENV)/torch.stamp: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "adasel_stream needs Python 3.11 or newer, this is " + sys.version)'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	@touch $@

$(VENV)/demo.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) install --quiet --constraint constraints.txt --editable '.[demo]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/torch.stamp pyproject.toml
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) dist build
