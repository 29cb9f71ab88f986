"""Which labels look wrong, from what a student has said of each example."""

import pytest
import torch

from l2t_ray.core.loss.memory import by_image, nothing_remembered, tallied
from l2t_ray.core.suspects import suspects

TALLY = torch.tensor([[0.6, 0.1, 0.1], [0.0, 0.2, 0.6], [0.0, 0.0, 0.0], [0.3, 0.3, 0.0], [0.1, 0.0, 0.0]])
NOISE = torch.full((3, 3), 1 / 3)
GIVEN = torch.tensor([0, 1, 2, 1, 2])


def test_the_label_that_the_answers_are_least_for_comes_first_and_what_was_never_seen_last():
    found = suspects(TALLY, GIVEN)
    assert found.places.tolist() == [4, 1, 3, 0, 2]
    assert found.given.tolist() == [2, 1, 1, 0, 2]
    assert found.scores[:-1].tolist() == pytest.approx([1.0, 0.75, 0.5, 0.25])
    assert found.scores[-1].isnan()


def test_another_class_is_suggested_only_where_it_was_said_oftener():
    found = suspects(TALLY, GIVEN)
    assert found.suggested.tolist() == [0, 2, 1, 0, 2]  # the third is a tie, the last was never seen
    assert found.differs.tolist() == [True, True, False, False, False]


def test_with_a_channel_of_noise_the_score_is_the_probability_that_the_label_is_wrong():
    """By drawing classes and labels: of the pairs with that label, those with another class."""
    answer = torch.tensor([0.5, 0.2, 0.3])
    channel = torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.0, 0.7]])
    generator = torch.Generator().manual_seed(0)
    classes = answer.multinomial(400_000, replacement=True, generator=generator)
    labels = channel[classes].multinomial(1, generator=generator)[:, 0]
    found = suspects(3 * answer.repeat(3, 1), torch.arange(3), channel)
    wrong = [(classes[labels == label] != label).double().mean().item() for label in found.given.tolist()]
    assert found.scores.tolist() == pytest.approx(wrong, abs=5e-3)


def test_a_channel_of_noise_judges_what_is_suggested():
    tally, given = torch.tensor([[0.6, 0.4], [0.9, 0.1]]), torch.tensor([1, 1])
    assert suspects(tally, given).suggested.tolist() == [0, 0]
    never = torch.tensor([[0.95, 0.05], [0.0, 1.0]])  # one label in twenty of the first class is changed
    assert suspects(tally, given, never).suggested.tolist() == [1, 1]
    much = torch.tensor([[0.5, 0.5], [0.0, 1.0]])
    assert suspects(tally, given, much).suggested.tolist() == [0, 1]  # 0.9 * 0.5 > 0.1, and 0.6 * 0.5 < 0.4


def test_of_labels_that_the_student_has_learned_by_heart_the_one_that_others_contest_comes_first():
    tally = torch.tensor([[1.0, 1e-20, 0.0], [1.0, 1e-18, 0.0], [1.0, 1e-19, 0.0]])
    assert suspects(tally, torch.zeros(3, dtype=torch.int64)).places.tolist() == [1, 2, 0]


def test_an_example_that_was_seen_once_is_judged_as_one_that_was_seen_often():
    answer = torch.tensor([[0.2, 0.8], [0.2, 0.8]])
    tally = tallied(nothing_remembered(2, 2, "cpu"), by_image(torch.tensor([0, 1]), answer))
    for _ in range(20):
        tally = tallied(tally, by_image(torch.tensor([1]), answer[1:]))
    found = suspects(tally, torch.tensor([0, 0]))
    assert found.scores.tolist() == pytest.approx([0.8, 0.8], abs=1e-6)


def test_equals_stand_in_the_order_of_the_examples():
    found = suspects(torch.full((50, 2), 0.5), torch.zeros(50, dtype=torch.int64))
    assert found.places.tolist() == list(range(50))


def test_labels_are_called_wrong_only_where_the_noise_was_estimated():
    assert str(suspects(TALLY, GIVEN, NOISE)).startswith("2 of 5 training labels look wrong to the student")
    unknown = str(suspects(TALLY, GIVEN))
    assert unknown.startswith("2 of 5 training labels are not what the student mostly said") and "wrong" not in unknown
