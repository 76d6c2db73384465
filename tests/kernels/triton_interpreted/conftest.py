"""These tests need triton's interpreter, which must be chosen before triton is imported, by whomever.

    TRITON_INTERPRET=1 python -m pytest tests/kernels/triton_interpreted

Within a run of all tests, test_triton.py does that in a process of its own; there nothing is collected here.
"""

import os

collect_ignore_glob = [] if os.environ.get("TRITON_INTERPRET") == "1" else ["test_*.py"]
