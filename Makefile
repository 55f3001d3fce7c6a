# Each target does its own set-up: nothing but Python 3.11 or newer is needed.
PYTHON ?= python3
VENV ?= .venv
RUN = TF_CPP_MIN_LOG_LEVEL=3 $(VENV)/bin/python
# Two processes of tests: threads of OpenBLAS that spin would only get in one another's way.
TESTS = OPENBLAS_NUM_THREADS=1 $(RUN) -m pytest -n 2

.PHONY: bench demo test test-quick torch test-torch mutants format clean

demo: $(VENV)/.installed
	$(RUN) examples/digits.py --workdir=runs/digits --overwrite
	$(RUN) -m keras_layer_entropy.prune --model runs/digits/saved_model --output runs/digits/pruned --report runs/digits/pruning.html --overwrite
	$(RUN) -m keras_layer_entropy.prune --model runs/digits/saved_model --remove=units --target_flops=0.5 --epochs=0 --output runs/digits/half --overwrite

bench: $(VENV)/.installed-test
	$(VENV)/bin/python -m pip install --quiet ripser
	$(RUN) benchmarks/bench.py

test: $(VENV)/.installed-test
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy keras_layer_entropy
	$(TESTS)
	KERAS_BACKEND=jax $(TESTS) -m "not tensorflow and not inside_fit"

test-quick: $(VENV)/.installed-test
	FITS_ONCE=1 $(TESTS) -m "not slow"

# An installed PyTorch, or else its CPU build, where there is one for this machine.
torch: $(VENV)/.installed-test
	$(VENV)/bin/python -c "import torch" 2> /dev/null || { \
		echo "Installing the CPU build of PyTorch: 190 MB to load, 750 MB on disk."; \
		$(VENV)/bin/python -m pip install --quiet "torch==2.13.0+cpu"; }

test-torch: torch
	KERAS_BACKEND=torch $(TESTS) -m "not tensorflow"

mutants: $(VENV)/.installed-test
	$(VENV)/bin/python -m pip install --quiet --editable '.[test,mutants]'
	$(RUN) tests/mutants.py

format: $(VENV)/.installed-test
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.installed: setup.py
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(VENV)/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
