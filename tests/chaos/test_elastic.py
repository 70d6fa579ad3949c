"""Every kind of trainer state from two workers to one and three: what tests/integration/test_elastic.py leaves out."""

import pytest

from tests.integration import test_elastic as quick
from tests.integration.elastic_worker import CASES

REST = (*(case for case in CASES if case not in quick.CASES), "lora")  # whose checkpoint another model refuses


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict]:
    return quick.written_and_read(tmp_path_factory.mktemp("elastic"), REST)


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("case", REST)
def test_losses_go_on_as_if_nothing_had_happened(found, case, ranks):
    quick.goes_on(found, case, ranks)
