import torch
from small_problem import NUM_CLASSES, small_round, small_trainee
from torch import nn

from l2t_ray.baselines.glc import GoldLossCorrection, forward_corrected, noise_matrix
from l2t_ray.baselines.trainee import Trainee, cross_entropy
from l2t_ray.core.flat import FlatModule
from l2t_ray.interfaces import Batch

CHANNEL = torch.tensor([[0.6, 0.2, 0.2], [0.0, 0.9, 0.1], [0.3, 0.1, 0.6]], dtype=torch.float64)


class Table(nn.Module):
    """A student that has learned the noisy labels perfectly: its softmax is the row of the image's class."""

    def __init__(self):
        super().__init__()
        self.log_p = nn.Parameter(CHANNEL.clamp(min=1e-12).log())

    def forward(self, x):
        return self.log_p[x[:, 0].long()] + x[:, 1:2]  # a shift of all logits changes no probability


class Validation:
    num_classes = NUM_CLASSES

    def __init__(self, classes):
        self.batches = [self.batch(classes[::2]), self.batch(classes[1::2])]

    @staticmethod
    def batch(classes):
        labels = torch.tensor(classes)
        inputs = torch.stack((labels.double(), torch.randn(len(labels), dtype=torch.float64)), 1)
        return Batch(inputs, labels, torch.ones(len(labels)) / len(labels), torch.arange(len(labels)))

    def epoch(self, index):
        return 0

    def validation(self, epoch):
        return self.batches

    def round(self, index):
        raise AssertionError

    def test(self):
        return []


def table_trainee():
    small = small_trainee()
    return Trainee(FlatModule(Table()), small.task, small.sgd, small.group)


def test_estimate_on_a_known_channel():
    trainee = table_trainee()
    actual = noise_matrix(trainee, trainee.initial(), Validation([0, 0, 1, 2, 2, 2, 1]), 0)
    torch.testing.assert_close(actual.double(), CHANNEL, atol=1e-6, rtol=1e-5)  # summed in float32


def test_a_class_without_clean_images_is_taken_as_clean():
    trainee = table_trainee()
    actual = noise_matrix(trainee, trainee.initial(), Validation([0, 2, 2]), 0)
    assert actual[1].tolist() == [0, 1, 0]
    torch.testing.assert_close(actual[2].double(), CHANNEL[2], atol=1e-6, rtol=1e-5)


def make(is_clean, **options):
    trainee = small_trainee()
    data = Validation([0, 1, 2])
    data.batches = [small_round().val]
    return trainee, GoldLossCorrection(trainee, data, is_clean, **{"warm_rounds": 2, **options})


def test_warm_rounds_are_cross_entropy_then_the_matrix_is_estimated_once():
    _, method = make(torch.zeros(8, dtype=torch.bool))
    state, matrices = method.init(), []
    for index in range(4):
        state, _ = method.round(state, small_round(index), index)
        matrices.append(state.extra["matrix"])
    assert torch.equal(matrices[1], torch.eye(3)) and not torch.equal(matrices[2], torch.eye(3))
    assert torch.equal(matrices[3], matrices[2])
    torch.testing.assert_close(matrices[2].sum(1), torch.ones(3))


def test_noisy_images_are_corrected_and_clean_ones_are_not():
    is_clean = torch.tensor([True, False, True, False, False, False, True, False])
    trainee, method = make(is_clean)
    batch, theta = small_round().train[0], trainee.initial().theta
    loss, logits = method._loss(theta, CHANNEL.reshape(-1), {}, batch)
    plain, corrected = cross_entropy(logits, batch.targets), forward_corrected(logits, batch.targets, CHANNEL)
    torch.testing.assert_close(loss, torch.where(is_clean[:7], plain, corrected).mean())
    assert not torch.allclose(plain, corrected)


def test_restart_trains_a_new_student():
    batches = small_round()
    ends = []
    for is_old in (False, True):
        trainee, method = make(torch.zeros(8, dtype=torch.bool), restarts=True)
        state = method.init()
        if is_old:
            state, _ = method.round(state, batches, 1)
        matrix = noise_matrix(trainee, state.student, method._data, 0)
        ends.append((method.round(state, batches, 2)[0], matrix))
    (new, _), (old, matrix) = ends
    torch.testing.assert_close(old.extra["matrix"], matrix)
    assert not torch.equal(new.student.theta, old.student.theta)  # the matrices differ, and so do the students
    assert old.student.velocity.norm() < 10
