"""Moving average of the weights and learning-rate schedule."""

import pytest
import torch
from torch import nn

from training.config import ScheduleSection
from training.ema import ExponentialMovingAverage
from training.trainer import learning_rate_factor

SCHEDULE = ScheduleSection(
    epochs=2,
    batch_size=1,
    learning_rate=1.0,
    weight_decay=0.0,
    warmup_steps=4,
    average_decay=0.5,
    gradient_clip=1.0,
)


def test_the_average_starts_with_the_initial_weights_and_a_small_decay() -> None:
    network = nn.BatchNorm1d(1)
    average = ExponentialMovingAverage(network, 0.15)
    expected = 1.0
    for step, decay in enumerate([1 / 10, 0.15, 0.15], start=1):
        nn.init.constant_(network.weight, 10.0 * step)
        network.num_batches_tracked.fill_(step)
        average.update_parameters(network)
        expected = decay * expected + (1 - decay) * 10 * step
        assert float(average.module.weight) == pytest.approx(expected)
        assert int(average.module.num_batches_tracked) == step
        assert average.updates == step
    assert not average.module.training
    assert not any(weight.requires_grad for weight in average.module.parameters())


def test_the_learning_rate_warms_up_linearly_and_decays_to_zero() -> None:
    factors = torch.tensor(
        [learning_rate_factor(step, schedule=SCHEDULE, total_steps=12) for step in range(13)]
    )
    torch.testing.assert_close(factors[:4], torch.tensor([0.25, 0.5, 0.75, 1.0]))
    assert factors[4] == 1
    assert factors[8] == pytest.approx(0.5)
    assert factors[12] == pytest.approx(0.0, abs=1e-6)
    assert (factors[4:].diff() < 0).all()
