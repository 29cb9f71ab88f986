import torch
from small_problem import NUM_CLASSES, small_round, small_trainee
from torch import nn

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.core.student import Trainee, cross_entropy
from l2t_ray.interfaces import Batch
from l2t_ray.methods.glc import ForwardCorrected, forward_corrected, noise_matrix

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
    return Trainee(FlatModule(Table()), small.task, small.schedule, small.group)


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
    return trainee, ForwardCorrected(trainee, data, is_clean, **options)


def test_the_matrix_is_estimated_where_the_phase_begins_and_stays():
    _, method = make(torch.zeros(8, dtype=torch.bool))
    state = method.init()
    assert torch.equal(state.extra["matrix"], torch.eye(3))
    begun = method.begin(state, 2)
    assert not torch.equal(begun.extra["matrix"], torch.eye(3))
    torch.testing.assert_close(begun.extra["matrix"].sum(1), torch.ones(3))
    after, _ = method.round(begun, small_round(2), 2)
    assert torch.equal(after.extra["matrix"], begun.extra["matrix"])
    assert torch.equal(begun.student.theta, state.student.theta)


def test_noisy_images_are_corrected_and_clean_ones_are_not():
    is_clean = torch.tensor([True, False, True, False, False, False, True, False])
    trainee, method = make(is_clean)
    batch, theta = small_round().train[0], trainee.initial().theta
    loss, logits = method._loss(theta, CHANNEL.reshape(-1), {}, batch)
    plain, corrected = cross_entropy(logits, batch.targets), forward_corrected(logits, batch.targets, CHANNEL)
    torch.testing.assert_close(loss, torch.where(is_clean[:7], plain, corrected).mean())
    assert not torch.allclose(plain, corrected)


def test_restart_trains_a_new_student():
    trainee, method = make(torch.zeros(8, dtype=torch.bool), restarts=True)
    warm, _ = method.round(method.init(), small_round(), 1)
    begun = method.begin(warm, 2)
    assert torch.equal(begun.student.theta, trainee.initial().theta) and not begun.student.velocity.any()
    expected = noise_matrix(trainee, warm.student, method._data, 0)  # of the warm student, before it goes
    torch.testing.assert_close(begun.extra["matrix"], expected)
