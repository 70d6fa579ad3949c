"""DPO against worked numbers and identities."""

import math

import pytest
import torch

from preference.losses import PairLogps, dpo, sum_by_sequence


def pairs(chosen, rejected, chosen_ref, rejected_ref, dtype=torch.float64):
    values = [torch.tensor(x, dtype=dtype) for x in (chosen, rejected, chosen_ref, rejected_ref)]
    ones = torch.ones(len(chosen), dtype=torch.int64)
    return PairLogps(*values, ones, ones)


def test_worked_numbers():
    logps = pairs([-0.5, -10.0, -1.0], [-0.1, -30.0, -21.0], [-0.5, -10.1, -0.1], [-0.1, -20.1, -0.1])
    assert dpo(logps, beta=0.1).tolist() == pytest.approx([0.693147, 0.313262, 0.126928], abs=1e-6)


def test_second_set_of_worked_numbers():
    logps = pairs([-12.3, -45, -30.2, -8], [-15.1, -40, -33.3, -9.5], [-13, -44, -31, -8.2], [-14, -42.5, -30, -9])
    assert dpo(logps, beta=0.1).tolist() == pytest.approx([0.607192, 0.883382, 0.509014, 0.658760], abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.49])
def test_is_ln2_where_policy_is_reference(smoothing):
    logps = pairs([-3.0, -70.0], [-9.0, -2.0], [-3.0, -70.0], [-9.0, -2.0])
    assert dpo(logps, 0.3, smoothing).tolist() == pytest.approx([math.log(2)] * 2, abs=1e-12)


def test_smoothing_mixes_a_pair_with_its_swap():
    a = pairs([-3.0], [-5.0], [-4.0], [-4.5])
    b = pairs([-5.0], [-3.0], [-4.5], [-4.0])
    assert dpo(a, 0.2, 0.25).item() == pytest.approx(0.75 * dpo(a, 0.2).item() + 0.25 * dpo(b, 0.2).item())


def test_is_finite_with_finite_gradients_at_extremes():
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    zero = torch.zeros(2)
    loss = dpo(PairLogps(chosen, zero, zero, zero, zero, zero), 1.0)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert chosen.grad.isfinite().all()


def test_gradcheck():
    values = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    refs = [torch.randn(4, dtype=torch.float64) for _ in range(2)]
    ones = torch.ones(4)
    assert torch.autograd.gradcheck(lambda c, r: dpo(PairLogps(c, r, *refs, ones, ones), 0.3, 0.1), values)


def test_sums_by_sequence():
    assert sum_by_sequence(torch.arange(6.0), torch.tensor([1, 3, 2])).tolist() == [0.0, 6.0, 9.0]
