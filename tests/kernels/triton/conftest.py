"""These tests need a GPU or triton's interpreter, which must be chosen before triton is imported, by whomever.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/triton
    ROAST_TEST_DEVICE=cuda python -m pytest tests/kernels/triton

`make test` does the first in a run of its own; where the tests run on the CPU without the interpreter nothing is
collected here.
"""

from tests.support.devices import BACKENDS

collect_ignore_glob = [] if "triton" in BACKENDS else ["test_*.py"]
