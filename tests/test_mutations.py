"""The list of faults fits the code; that tests catch them takes longer: make mutations."""

from __future__ import annotations

import pytest

from tests.mutations import FAULTS, ROOT, TESTS, Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_every_fault_still_has_its_one_place_and_its_tests(fault: Fault) -> None:
    assert (ROOT / fault.file).read_text().count(fault.old) == 1
    assert all((ROOT / test).is_file() for test in TESTS[fault.file])
