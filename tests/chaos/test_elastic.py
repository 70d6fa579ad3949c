"""Two trainer workers' checkpoint read by one and by three: same weights, same losses. Without Ray."""

import pytest

from tests.chaos.elastic_worker import CASES, READERS, WRITERS
from tests.integration.conftest import in_ranks


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[int, dict]:
    """What the ranks found, by their number."""
    return in_ranks("tests.chaos.elastic_worker", tmp_path_factory.mktemp("elastic"), (WRITERS, *READERS))


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("case", CASES)
def test_losses_go_on_as_if_nothing_had_happened(found, case, ranks):
    gone_on, expected = found[ranks][case], found[WRITERS][case]
    assert gone_on["weights"]  # bit by bit
    assert len(set(expected["following"])) == 4
    if case != "dropout":  # which drops other elements where there are other ranks
        # Gradients are summed in another order: the last bits of a float.
        rounding = {"abs": 1e-6, "rel": 1e-5} if case != "bf16" else {"rel": 0.05}
        assert gone_on["following"] == pytest.approx(expected["following"], **rounding)
    assert gone_on["rewritten"] == pytest.approx(gone_on["following"], abs=1e-7)  # random numbers included
    assert found[WRITERS][case]["apart"] < 1e-6  # what a checkpoint exports is what samplers had


def test_a_checkpoint_holds_twelve_bytes_a_trained_parameter(found):
    """fp32 weights and two moments, nothing twice; adapters alone where there are adapters."""
    for case, most in (("dpo", 2e6), ("lora", 0.2e6)):
        files = found[WRITERS][case]["files"]
        assert {f.split("-")[1] for f in files if "rank" in f} == {"00000", "00001"}
        assert 0 < sum(files.values()) < most, files


def test_refusals_are_answers(found):
    assert "trainer rank 0" in found[WRITERS]["refused"]
    for ranks in (1, 3):
        assert "it is of another model, or of other adapters" in found[ranks]["refused"]
