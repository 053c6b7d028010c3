"""The faults that tests/planted.py plants are faults of the code as it is."""

from __future__ import annotations

import pytest

from tests.planted import FAULTS, ROOT, Fault


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_replaces_what_stands_in_the_source(fault: Fault) -> None:
    """The text that a fault replaces is there, once: code that moves takes its fault along."""
    source = (ROOT / "src" / "accountlink" / fault.file).read_text(encoding="utf-8")
    assert 1 == source.count(fault.old)
    assert (ROOT / "tests" / fault.test).is_file()
