"""One method after another: each gets its rounds, and the second one the student of the first."""

import torch

from l2t_ray.baselines.in_turn import MethodInTurn
from l2t_ray.interfaces import MethodState, RoundBatches, StudentState


class Adds:
    """A method that adds a number to the student and counts its own rounds."""

    def __init__(self, number):
        self._number = number

    def init(self):
        return MethodState(StudentState(torch.zeros(2), torch.zeros(2), {}), {"rounds": torch.zeros(())})

    def round(self, state, batches, index):
        student = state.student._replace(theta=state.student.theta + self._number)
        extra = {name: value + 1 for name, value in state.extra.items()}
        return MethodState(student, extra), {"train_loss": float(self._number)}


def test_the_second_method_goes_on_with_the_student_of_the_first():
    method = MethodInTurn(Adds(1.0), Adds(10.0), switch=3)
    state, losses = method.init(), []
    for index in range(5):
        state, metrics = method.round(state, RoundBatches([], None), index)
        losses.append(metrics["train_loss"])
    assert losses == [1.0, 1.0, 1.0, 10.0, 10.0]
    assert state.student.theta.tolist() == [23.0, 23.0]
    assert state.extra["rounds"] == 3  # what the first one carries rests, and is still there for a checkpoint
