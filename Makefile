# `make demo` and `make test` both create `.venv` first.
PYTHON ?= python3
BIN := .venv/bin
RUN := runs/demo

.PHONY: demo test lint docs bench-table clean

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[offline,faster,cleaning,tune,explain,docs,dev]'
	touch $@

demo: .venv/ready
	rm -rf $(RUN)
	$(BIN)/mmemo corpus table demo/clips.csv --out $(RUN)/manifest.csv --constants language=en \
	    --columns path=file emotion=label speaker=voice gender=sex split=set
	$(BIN)/mmemo check $(RUN)/manifest.csv
	$(BIN)/mmemo transcribe $(RUN)/manifest.csv --language en
	$(BIN)/mmemo fit --config configs/demo.yaml
	$(BIN)/mmemo test --config configs/demo.yaml
	$(BIN)/mmemo predict --config configs/demo.yaml
	$(BIN)/python demo/show.py $(RUN)

test: .venv/ready
	$(BIN)/pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench-table: .venv/ready
	$(BIN)/python benchmarks/table.py

clean:
	rm -rf .venv runs build dist site *.egg-info
