# make demo   the whole road on a synthetic cohort, into demo/
# make test   lint, types and all tests
# Both make .venv first. With a GPU: make demo TORCH=cuda

PYTHON ?= python3
export TORCH

.PHONY: demo test clean

demo: .venv/installed
	.venv/bin/wsi demo --out demo

test: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest -n 2 --dist loadfile

.venv/installed: pyproject.toml constraints/cpu.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'slidestream needs Python 3.11 or newer')"
	$(PYTHON) -m venv .venv
	.venv/bin/python constraints/install.py
	touch $@

.venv/installed-dev: .venv/installed
	.venv/bin/python constraints/install.py dev
	touch $@

clean:
	rm -rf .venv demo .cache .mypy_cache .ruff_cache .pytest_cache
