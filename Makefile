# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test check docs clean ffmpeg

demo: $(VENV)/installed ffmpeg  ## the whole chain on generated video files, in a few minutes on two CPU cores
	$(BIN)/stjepa demo

test: $(VENV)/installed-dev ffmpeg  ## lint, types and tests
	$(BIN)/ruff check stjepa_cli tests
	$(BIN)/ruff format --check stjepa_cli tests
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto

check: $(VENV)/installed-dev ffmpeg  ## `make test` with the slow tests
	$(BIN)/ruff check stjepa_cli tests
	$(BIN)/ruff format --check stjepa_cli tests
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/pytest --slow

docs: $(VENV)/installed-dev  ## write the generated reference pages
	$(BIN)/python docs/generate.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "stjepa needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/installed

# torchcodec decodes with FFmpeg's libraries; install them where that is allowed, else say how
ffmpeg:
	@command -v ffmpeg >/dev/null 2>&1 \
	|| { command -v apt-get >/dev/null 2>&1 && [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -q -y ffmpeg; } \
	|| { command -v apt-get >/dev/null 2>&1 && sudo -n true 2>/dev/null && sudo apt-get update -q && sudo apt-get install -q -y ffmpeg; } \
	|| { echo "FFmpeg is missing: type 'sudo apt-get install ffmpeg' or 'conda install ffmpeg', then run make again." >&2; exit 1; }

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache
