# Everything that a fresh machine needs is Python 3.11+ with venv, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TEST_PROCESSES ?= 2

.PHONY: quickstart test lint install clean image-test lint-k8s

quickstart: install  ## the whole way on this machine: images, shards in S3, 2 workers, 3 stages, MLflow, pulled weights
	$(BIN)/dira-dist quickstart

test: install  ## every test; those on real images skip themselves where the images are absent
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --durations=25

lint: install  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint docker/Dockerfile docker/mlflow.Dockerfile

image-test:  ## the images really built and used, as root with buildah and debootstrap; half an hour, outside the CI
	docker/image-test.sh

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later with venv is needed; on Debian: apt-get install python3 python3-venv" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) quickstart .pytest_cache .mypy_cache .ruff_cache .hypothesis
