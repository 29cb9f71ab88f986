"""What is estimated from, and when."""

import torch

from l2t_ray.core.readout import told
from l2t_ray.loops.noise_watch import MOST, NoiseWatch


def answers(count, sure=5.0, seed=0):
    """Logits that know the class, and the classes."""
    labels = torch.arange(count) % 3
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return sure * torch.eye(3)[labels] + noise, labels


def test_answers_tell_all_nothing_or_a_part_of_the_labels():
    (sure, labels), (unsure, _), (part, _) = (answers(90, sure=s) for s in (20.0, 0.0, 2.0))
    assert told(sure, labels, num_classes=3) > 0.85
    assert told(unsure, labels, num_classes=3) < 0.1
    assert 0.2 < told(part, labels, num_classes=3) < 0.8


def test_estimates_come_after_the_warm_steps_and_each_time_the_steps_have_doubled():
    watch, steps, clean = NoiseWatch(8), [], answers(60)
    for step in range(40):
        watch.see(step, *answers(40, seed=step))
        if watch.is_due(step + 1):
            steps.append(step + 1)
            assert watch.estimate(step + 1, *clean) is not None
    assert steps == [8, 16, 32] and not watch.is_over and watch.num_estimates == 3


def test_an_estimate_from_too_little_is_put_off_by_a_quarter():
    watch, clean = NoiseWatch(8), answers(60, sure=0.0)
    watch.see(7, *answers(40))
    assert watch.estimate(8, *clean) is None and not watch.is_due(10)
    watch.see(9, *answers(4))
    assert watch.is_due(10) and watch.estimate(10, *answers(60)) is None  # four answers for three classes
    assert watch.num_estimates == 0


def test_only_the_latest_answers_count():
    watch = NoiseWatch(100)
    watch.see(74, *answers(40))
    assert not watch.is_due(100)
    for step in range(75, 100):
        watch.see(step, *answers(400, seed=step))
    kept = sum(len(labels) for _, labels in watch.state_dict()["seen"])
    assert MOST <= kept < MOST + 400 and watch.is_due(100)


def test_it_goes_on_from_its_state():
    watch, other = NoiseWatch(8), NoiseWatch(1)
    watch.see(7, *answers(40))
    other.load_state_dict(watch.state_dict())
    estimates = [each.estimate(8, *answers(60)) for each in (watch, other)]
    assert torch.equal(estimates[0].channel, estimates[1].channel)
    assert other.state_dict() == watch.state_dict()
