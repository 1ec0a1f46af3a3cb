# make demo   the whole road on a synthetic cohort, into demo/
# make viewer the pages of the browser viewer (`wsi view`), into viewer/static
# make test   lint, types and all tests
# All make .venv first. With a GPU: make demo TORCH=cuda

PYTHON ?= python3
export TORCH

.PHONY: demo viewer test clean

WEB = viewer/web
PAGES = viewer/static/index.html
PAGE_SOURCES = $(shell find $(WEB)/src $(WEB)/public -type f) \
	$(addprefix $(WEB)/, index.html package-lock.json package.json tsconfig.json vite.config.ts \
		vite-annotorious.ts licences.mjs)

demo: .venv/installed
	.venv/bin/wsi demo --out demo

viewer: $(PAGES)

$(PAGES): $(PAGE_SOURCES) | .venv/installed
	.venv/bin/python $(WEB)/build.py $(BUILD)

# Without a network the tests that need the pages are skipped, and say so.
test: BUILD = --optional
test: .venv/installed-dev $(PAGES)
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
	rm -rf viewer/static viewer/web/node_modules .venv demo .cache .mypy_cache .ruff_cache .pytest_cache
