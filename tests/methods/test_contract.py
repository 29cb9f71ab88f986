"""What every method owes the loop, L2T-DLN included. A new one joins by one line of METHODS."""

import io
import threading
from functools import cache
from unittest.mock import patch

import pytest
import torch
from small_problem import small_student
from torch import nn

from l2t_ray.assembly.images import load_dataset
from l2t_ray.assembly.methods import build_arm
from l2t_ray.assembly.source import ImageSource
from l2t_ray.assembly.students import build_schedule
from l2t_ray.assembly.teachers import build_teacher
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.core.loss import network
from l2t_ray.core.student import Trainee
from l2t_ray.interfaces import MethodState, StudentState, Weighing
from l2t_ray.methods import mentornet
from l2t_ray.methods.parts import Parts
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings.experiment import NoiseConfig, validate
from l2t_ray.students.initialise import seeded
from l2t_ray.tasks.classification import Classification
from l2t_ray.training.evaluate import evaluate

NUM_ROUNDS = 3
METHODS = {
    "l2t_dln": {"name": "l2t_dln", "loss": {"hidden": 6}, "teacher": "adam"},
    "l2t_dln-mixed": {"name": "l2t_dln", "loss": {"hidden": 6}, "teacher": "adam", "clean_images": "mixed"},
    "l2t_dln-fine_tuned": {"name": "l2t_dln", "loss": {"hidden": 6}, "clean_images": "fine_tuned"},
    "l2t_dln-trusted": {
        "name": "l2t_dln",
        "loss": {"hidden": 6},
        "clean_images": "trusted",
        "clean_folds": 2,
    },
    "l2t_dln-channel": {
        "name": "l2t_dln",
        "label": "l2t_dln-channel",
        "loss": {"hidden": 6, "label_entries": "channel"},
        "clean_images": "trusted",
        "clean_folds": 2,
        "warm_share": 0.3,
        "channel_estimates": 2,
    },
    "l2t_dln-channel_alone": {
        "name": "l2t_dln",
        "label": "l2t_dln-channel_alone",
        "loss": {"layers": 0, "label_entries": "channel"},
        "clean_images": "trusted",
        "clean_folds": 2,
        "warm_share": 0.3,
    },
    "l2t_dln-memory": {
        "name": "l2t_dln",
        "label": "l2t_dln-memory",
        "loss": {"layers": 0, "label_entries": "channel", "memory": 1},
        "clean_images": "trusted",
        "clean_folds": 2,
        "warm_share": 0.3,
    },
    "l2t_dln-warm_reweighted": {
        "name": "l2t_dln",
        "label": "l2t_dln-warm_reweighted",
        "loss": {"hidden": 6},
        "warm_share": 0.3,
        "reweight": {"metric": "cosine"},
    },
    "l2t_dln-memory_beside_layers": {
        "name": "l2t_dln",
        "label": "l2t_dln-memory_beside_layers",
        "loss": {"hidden": 6, "memory": 1},
    },
    "l2t_dln-adjusted": {
        "name": "l2t_dln",
        "label": "l2t_dln-adjusted",
        "loss": {
            "name": "adjusted",
            "start": "counted",
            "smoothing": True,
            "power": True,
            "channel": True,
            "memory": 1,
        },
        "teacher": "adam",
    },
    "cross_entropy": {"name": "cross_entropy"},
    "cross_entropy-mixed": {"name": "cross_entropy", "clean_images": "mixed"},
    "cross_entropy-fine_tuned": {"name": "cross_entropy", "clean_images": "fine_tuned"},
    "task_loss": {"name": "task_loss"},
    "task_loss-trusted": {"name": "task_loss", "clean_images": "trusted"},
    "gce": {"name": "gce"},
    "gce-trusted": {"name": "gce", "clean_images": "trusted"},
    "static_dln": {"name": "static_dln", "loss": {"hidden": 6}},
    "static_dln-trusted": {
        "name": "static_dln",
        "loss": {"layers": 0, "label_entries": "channel", "memory": 1},
        "clean_images": "trusted",
        "warm_share": 0.3,
        "channel_estimates": 2,
    },
    "static_dln-memory_alone": {
        "name": "static_dln",
        "label": "static_dln-memory_alone",
        "loss": {"layers": 0, "label_entries": "constant", "memory": 3},
    },
    "forward_correction": {"name": "forward_correction"},
    "balanced_softmax": {"name": "balanced_softmax"},
    "true_labels": {"name": "true_labels"},
    "class_balanced-trusted": {"name": "class_balanced", "clean_images": "trusted"},
    "glc": {"name": "glc"},
    "mw_net": {"name": "mw_net"},
    "mentornet": {"name": "mentornet"},
    "mentornet-dd": {"name": "mentornet", "curriculum": "data_driven", "label": "mentornet-dd"},
    "l2r": {"name": "l2r", "horizon": 2},
    "slf": {"name": "slf"},
    "slf-single": {"name": "slf", "mode": "single", "label": "slf-single"},
}


@pytest.fixture(scope="module")
def digits():
    config = configuration("cross_entropy")
    return load_dataset(config.data)


def configuration(method, num_rounds=NUM_ROUNDS, **training):
    return validate(
        {
            "data": {
                "name": "digits",
                "num_validation": 60,
                "num_train": 300,
                "noise": {"kind": "flip_to_two", "rate": 0.4},
                "augment": "flip",
            },
            "training": {
                "num_rounds": num_rounds,
                "num_steps": 4,
                "val_batch_size": 30,
                "momentum": 0.9,
                "weight_decay": 1e-3,
                **training,
            },
            "method": METHODS[method],
            "controls": [],
        },
        source="the test",
    )


class BatchNormStudent(nn.Module):
    """With running statistics, which are part of the state too."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(16)
        self.first, self.last = nn.Linear(64, 16), nn.Linear(16, 10)

    def forward(self, x, with_embedding=False):
        features = self.norm(self.first(x.flatten(1))).relu()
        return (self.last(features), features) if with_embedding else self.last(features)


def batch_norm_student():
    return seeded(BatchNormStudent, 0)


@pytest.fixture(scope="module", autouse=True)
def loss_networks_are_fitted_once():
    """The fit of a loss network's first weights takes seconds, and is the same for all."""
    known = cache(network.initial_weights)
    with pytest.MonkeyPatch.context() as context:
        context.setattr(network, "initial_weights", lambda *key: known(*key).clone())
        yield


ONE_AT_A_TIME = threading.Lock()  # first weights are drawn from PyTorch's one global generator


def make_arm(config, digits, group=None, student=None):
    with ONE_AT_A_TIME:
        return unguarded_arm(config, digits, group, student)


def unguarded_arm(config, digits, group, student):
    group, device = group or SingleProcess(), torch.device("cpu")
    student = FlatModule(student or small_student(64, 10, 16))
    trainee = Trainee(student, Classification(), build_schedule(config.training), group, device)

    def make_teacher(method, facts):
        teacher = build_teacher(method, facts)
        return teacher if group.size == 1 else SharedTeacher(teacher, group)

    source = ImageSource(config, digits, group=group, device=device)
    parts = Parts(trainee, source, config.training.num_rounds, config.seed)
    with patch.object(mentornet, "FIT_STEPS", 40):
        arm = build_arm(config.method, parts, make_teacher)
    if arm.teacher is not None:
        arm.teacher.begin(None)
    return arm


class SharedTeacher:
    """A teacher for each of several workers, kept alike by summing what they send."""

    def __init__(self, teacher, group):
        self._teacher, self._group = teacher, group
        self.begin, self.read, self.state_dict = teacher.begin, teacher.read, teacher.state_dict

    def propose(self, version, hypergradient, error):
        return self._teacher.propose(version, self._group.sum(hypergradient.clone()), error)

    def learn(self, version, hypergradient=None):
        self._teacher.learn(version, hypergradient)


def run(arm, num_rounds=NUM_ROUNDS, state=None, start=0):
    state = state or arm.method.init()
    rows = []
    for index in range(start, num_rounds):
        state, metrics = arm.method.round(state, arm.data.round(index), index)
        rows.append(metrics)
    return state, rows


def tensors(state):
    return [state.student.theta, state.student.velocity, *state.student.buffers.values(), *state.extra.values()]


def assert_identical(actual, expected):
    assert actual.extra.keys() == expected.extra.keys()
    for a, b in zip(tensors(actual), tensors(expected), strict=True):
        assert torch.equal(a, b)


@pytest.fixture(params=METHODS)
def method(request):
    return request.param


def test_same_seed_same_run(method, digits):
    first, second = (run(make_arm(configuration(method), digits)) for _ in range(2))
    assert_identical(first[0], second[0])
    assert first[1] == second[1]
    for metrics in first[1]:
        assert {"train_loss", "val_error", "gradient_norm", "logit_gradient_sum", "lr"} <= metrics.keys()


def test_a_round_leaves_its_argument_alone(method, digits):
    arm = make_arm(configuration(method), digits, student=batch_norm_student())
    state = arm.method.init()
    before = [tensor.clone() for tensor in tensors(state)]
    run(arm, 2, state)
    assert all(torch.equal(a, b) for a, b in zip(tensors(state), before, strict=True))


def test_goes_on_from_a_file_bit_for_bit(method, digits):
    """Nothing is carried outside the state and the teacher's: a new method goes on where the old one stopped."""
    config = configuration(method)
    arm = make_arm(config, digits, student=batch_norm_student())
    state, files = arm.method.init(), []
    for index in range(NUM_ROUNDS):
        state, _ = arm.method.round(state, arm.data.round(index), index)
        files.append(saved(arm, state))
    for stop, file in enumerate(files[:-1], start=1):
        again = make_arm(config, digits, student=batch_norm_student())
        resumed, _ = run(again, state=loaded(again, file), start=stop)
        assert_identical(resumed, state)


def saved(arm, state):
    file = io.BytesIO()
    teacher = None if arm.teacher is None else arm.teacher.state_dict()
    torch.save([state.student._asdict(), dict(state.extra), teacher], file)
    file.seek(0)
    return file


def loaded(arm, file):
    student, extra, teacher = torch.load(file, weights_only=True)
    if arm.teacher is not None:
        arm.teacher.begin(teacher)
    return MethodState(StudentState(**student), extra)


def test_two_workers_are_one(method, digits, run_on_two_workers):
    """The same up to the order of summation: 25 images do not divide by 2, so that unequal slices are met."""
    config = configuration(method)
    alone, rows = run(make_arm(config, digits))
    both = run_on_two_workers(lambda group: run(make_arm(config, digits, group)))
    for state, worker_rows in both:
        assert state.extra.keys() == alone.extra.keys()
        torch.testing.assert_close(state.student.theta, alone.student.theta, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(state.student.velocity, alone.student.velocity, rtol=1e-4, atol=1e-5)
        for name, value in alone.extra.items():
            # Adam's first steps are its rate times the gradient's sign: where that is rounding, so is the step. The
            # moments show what the gradients were.
            atol = 3e-3 if name == "weights" else 1e-5
            torch.testing.assert_close(state.extra[name], value, rtol=1e-3, atol=atol)
        for row, other in zip(rows, worker_rows, strict=True):
            assert other["train_loss"] == pytest.approx(row["train_loss"], rel=1e-4)
            assert other["val_error"] == pytest.approx(row["val_error"], rel=1e-4)
    assert torch.equal(both[0][0].student.theta, both[1][0].student.theta)


def test_learns_what_is_easy(method, digits):
    """Digits without noise: far above chance (0.1) after 80 steps."""
    config = configuration(method, num_rounds=20)
    config = config.model_copy(update={"data": config.data.model_copy(update={"noise": NoiseConfig()})})
    arm = make_arm(config, digits)
    state, rows = run(arm, 20)
    assert rows[-1]["val_error"] < 0.6 * rows[0]["val_error"]
    student = FlatModule(small_student(64, 10, 16))
    scores = evaluate(student, state.student, Classification(), arm.data.test(), SingleProcess())
    assert scores["accuracy"] > 0.6


WEIGHING = [
    *("l2t_dln", "l2t_dln-channel", "l2t_dln-channel_alone", "l2t_dln-memory", "l2t_dln-memory_beside_layers"),
    *("l2t_dln-warm_reweighted", "l2t_dln-adjusted"),
    *("static_dln", "static_dln-trusted", "mw_net", "mentornet", "mentornet-dd", "l2r"),
]


@pytest.mark.parametrize("name", WEIGHING)
def test_weights_can_be_asked_for_without_a_trace(name, digits):
    arm = make_arm(configuration(name), digits)
    state, _ = run(arm)
    before = [tensor.clone() for tensor in tensors(state)]
    batch = arm.data.round(0).train[0]
    weights = arm.method.sample_weights(state, batch, NUM_ROUNDS - 1)
    assert weights.shape == (len(batch.targets),) and weights.isfinite().all() and (weights >= 0).all()
    assert not weights.requires_grad
    for tensor, old in zip(tensors(state), before, strict=True):
        assert torch.equal(tensor, old)


def test_methods_without_weights_claim_none(digits):
    def weighs(name):
        arm = make_arm(configuration(name), digits)
        batch = arm.data.round(0).train[0]
        is_able = isinstance(arm.method, Weighing)
        return is_able and arm.method.sample_weights(arm.method.init(), batch, NUM_ROUNDS - 1) is not None

    assert [name for name in METHODS if weighs(name)] == [
        name for name in METHODS if name in (*WEIGHING, "l2t_dln-mixed", "l2t_dln-trusted", "static_dln-memory_alone")
    ]


def test_a_loss_that_starts_as_cross_entropy_weighs_all_alike(digits, monkeypatch):
    """Its gradient at the logits is that of cross-entropy, up to the error of the fit; a reweighted one's is not."""
    arm = make_arm(configuration("l2t_dln"), digits)
    batch = arm.data.round(0).train[0]
    weights = arm.method.sample_weights(arm.method.init(), batch, 0)
    torch.testing.assert_close(weights, torch.ones_like(weights), rtol=0.2, atol=0)
