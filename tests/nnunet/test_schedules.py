"""Learning rates, compared with torch's and nnU-Net's and across a resumed run."""

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler

from rehrseg_nnunet.nnunet.schedules import ConstantRate, PhasedOneCycle, PolynomialRate, one_cycle

PEAK = 2e-3


def optimizer(groups=2):
    return torch.optim.Adam([{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)], lr=1.0)


def phased(*epochs, steps=5):
    return PhasedOneCycle(optimizer(), peak=PEAK, phase_epochs=epochs, steps_per_epoch=steps)


def test_landmarks():
    assert one_cycle(0, PEAK) == pytest.approx(PEAK / 25)
    assert one_cycle(0.15, PEAK) == pytest.approx((PEAK / 25 + PEAK) / 2)
    assert one_cycle(0.3, PEAK) == pytest.approx(PEAK)
    assert one_cycle(0.65, PEAK) == pytest.approx((PEAK + PEAK / 1000) / 2)
    assert one_cycle(1, PEAK) == pytest.approx(PEAK / 1000)


def test_it_is_torchs_one_cycle():
    steps = 101  # torch puts its last step at the end of the cycle, and the peak at pct_start * steps - 1
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        sgd, max_lr=PEAK, total_steps=steps, pct_start=31 / steps, div_factor=25, final_div_factor=40
    )
    for step in range(steps):
        assert sgd.param_groups[0]["lr"] == pytest.approx(one_cycle(step / 100, PEAK), rel=1e-9)
        sgd.step()
        if step + 1 < steps:
            schedule.step()


def test_every_phase_has_a_cycle_of_its_own():
    schedule = phased(4, 10)
    rates = [[schedule.rate(epoch, step) for step in range(5)] for epoch in range(14)]
    first, second = sum(rates[:4], []), sum(rates[4:], [])  # noqa: RUF017
    assert first[0] == second[0] == pytest.approx(PEAK / 25)
    assert max(first) == first[6] == pytest.approx(PEAK)  # 30 % of 20 steps
    assert max(second) == second[15] == pytest.approx(PEAK)
    assert min(first[-1], second[-1]) < PEAK / 20


@pytest.mark.parametrize("epochs", [(7,), (7, 0), (0, 7)])
def test_phases_of_no_epochs_are_skipped(epochs):
    assert [phased(*epochs).rate(e) for e in range(9)] == [phased(7).rate(e) for e in range(9)]


def test_after_the_end_the_rate_stays():
    assert phased(3).rate(3) == phased(3).rate(50, 4) == pytest.approx(PEAK / 1000)


def test_step_sets_every_group_and_leaves_the_momenta():
    schedule = phased(4)
    schedule.step(1, 1)
    for group in schedule.optimizer.param_groups:
        assert group["lr"] == pytest.approx(PEAK)
        assert group["betas"] == (0.9, 0.999)


def test_nnunets_call_per_epoch_is_the_epochs_first_step():
    schedule = phased(4)
    schedule.step(2)
    assert schedule.optimizer.param_groups[0]["lr"] == schedule.rate(2, 0)


def test_a_constant_rate_is_set_for_every_group_and_step():
    adam = optimizer()
    schedule = ConstantRate(adam, learning_rate=PEAK)
    for epoch, step in ((0, 0), (3, 2)):
        for group in adam.param_groups:
            group["lr"] = 1.0
        schedule.step(epoch, step)
        assert [group["lr"] for group in adam.param_groups] == [PEAK, PEAK] == [schedule.rate(epoch, step)] * 2


def test_the_polynomial_rate_is_nnunets_for_steps():
    own, theirs = optimizer(), optimizer()
    schedule = PolynomialRate(own, peak=PEAK, epochs=3, steps_per_epoch=4)
    nnunets = PolyLRScheduler(theirs, PEAK, 12)
    for step in range(12):
        schedule.step(*divmod(step, 4))
        nnunets.step(step)
        rates = [group["lr"] for group in own.param_groups]
        assert rates == pytest.approx([group["lr"] for group in theirs.param_groups])
        assert rates[0] > 0


def test_the_polynomial_rate_ends_at_0():
    schedule = PolynomialRate(optimizer(), peak=PEAK, epochs=3, steps_per_epoch=4)
    assert schedule.rate(0) == PEAK
    assert schedule.rate(3) == schedule.rate(4, 2) == 0
