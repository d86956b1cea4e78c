# Everything that a fresh machine needs is Python 3.11+ with venv, and make.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CHECKOV := 3.3.30
LIGHTLY := 1.6.0
TEST_PROCESSES ?= 2
# Packages of our environment, read by another one after its own: a line of an `ours.pth` there.
PURELIB := python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
LINKED = $(BIN)/$(PURELIB)

.PHONY: quickstart test lint docs wheel install lightly clean image-test lint-k8s k8s-test

quickstart: install  ## the whole way on this machine: images, shards in S3, 2 workers, 3 stages, MLflow, pulled weights
	$(BIN)/dira-dist quickstart

test: install lightly  ## every test; those on real images skip themselves where the images are absent
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations=25

lint: install  ## style, types, and the floors of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hadolint docker/Dockerfile docker/mlflow.Dockerfile

docs: install  ## the documentation site, build/site/index.html; no warning is let through, nothing is fetched
	$(BIN)/python docs/pages.py
	$(BIN)/zensical build --clean --strict >build/docs.log 2>&1 || { cat build/docs.log; exit 1; }
	@! grep -E '^(griffe|mkdocstrings|autorefs): ' build/docs.log  # zensical tells these and does not count them

wheel: install  ## the distribution built, and tried away from the checkout: its own files alone, others' from our environment
	rm -rf build/dist $(VENV)/wheel && mkdir -p build
	$(BIN)/python -m build --no-isolation --outdir build/dist . >build/wheel.log 2>&1 || { cat build/wheel.log; exit 1; }
	$(BIN)/python -m venv $(VENV)/wheel
	$(VENV)/wheel/bin/pip install --quiet --disable-pip-version-check --no-deps build/dist/*.whl
	$(LINKED) > $$($(VENV)/wheel/bin/$(PURELIB))/ours.pth
	$(VENV)/wheel/bin/python .ci/try_wheel.py

lint-k8s: install  ## checkov over images and rendered manifests, in an environment of its own, for its pins clash with ours
	$(PYTHON) -m venv $(VENV)/checkov
	$(VENV)/checkov/bin/pip install --quiet --disable-pip-version-check checkov==$(CHECKOV)
	rm -rf $(VENV)/rendered && mkdir $(VENV)/rendered && cp docker/Dockerfile docker/mlflow.Dockerfile $(VENV)/rendered
	$(BIN)/python k8s/lint.py $(VENV)/rendered
	$(VENV)/checkov/bin/checkov --directory $(VENV)/rendered --config-file k8s/checkov.yaml

k8s-test: install  ## manifests and rendered jobs on a real control plane; wants DIRA_K8S_BIN, see tests/k8s_real
	@test -n "$(DIRA_K8S_BIN)" || { echo "DIRA_K8S_BIN must name a folder of Kubernetes' binaries: tests/k8s_real/conftest.py lists them" >&2; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:xdist -rs tests/k8s_real

lightly: $(VENV)/lightly/.$(LIGHTLY)  ## a public library that the methods are held against, in an environment of its own

# Its pins clash with ours (antlr4), and what it needs of them for its losses and heads is there: torch, torchvision,
# numpy, tqdm. So it is installed alone, and reads our environment after its own.
$(VENV)/lightly/.$(LIGHTLY): $(VENV)/.installed
	$(BIN)/python -m venv --clear $(VENV)/lightly
	$(VENV)/lightly/bin/pip install --quiet --disable-pip-version-check --no-deps lightly==$(LIGHTLY)
	$(LINKED) > $$($(VENV)/lightly/bin/$(PURELIB))/ours.pth
	@touch $@

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
	rm -rf $(VENV) build quickstart .cache .import_linter_cache .pytest_cache .mypy_cache .ruff_cache .hypothesis
