#!/bin/sh
# The tests of the native kernels under AddressSanitizer and UndefinedBehaviorSanitizer, every warning an error.
# From the root of the repository, with the interpreter of an environment that has the package's requirements:
#   PYTHON=.venv/bin/python tests/kernels/run_sanitizers.sh [arguments of pytest]   (make sanitize does that)
set -eu

PYTHON=$(command -v "${PYTHON:-python3}")
case $PYTHON in /*) ;; *) PYTHON=$PWD/$PYTHON ;; esac
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT

# A copy, so that the library in use stays as it is.
cp -R kernels roast_optim tests setup.py pyproject.toml README.md LICENSE "$copy"
cd "$copy"
rm -f kernels/native/*.so
CXXFLAGS="-Werror -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all" \
    "$PYTHON" setup.py --quiet build_ext --inplace
ls kernels/native/*.so  # the extension is optional: a failed build is no error to setup.py

# The runtimes must be the first libraries of the process; libstdc++ too, or exceptions of torch are not intercepted.
compiler=${CXX:-g++}
export LD_PRELOAD="$($compiler -print-file-name=libasan.so) $($compiler -print-file-name=libstdc++.so)"
export ASAN_OPTIONS=detect_leaks=0 # Python frees little at exit
export UBSAN_OPTIONS=print_stacktrace=1
"$PYTHON" -m pytest -q -p no:cacheprovider --capture=sys tests/kernels/test_native*.py tests/kernels/test_backends.py \
    tests/kernels/test_stochastic_rounding.py tests/kernels/test_gradient_factor.py "$@"
"$PYTHON" -m pytest -q -p no:cacheprovider --capture=sys tests/roast_optim/test_random_training.py \
    tests/roast_optim/test_step_plans.py -k native "$@"
