"""A training in phases: who trains when, on what, and what is changed in between."""

import pytest
import torch
from small_problem import NUM_CLASSES, small_batch, small_round, small_trainee

from l2t_ray.core.loss.memory import DECAY, Memory
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.core.loss.pair_loss import PairLoss
from l2t_ray.core.meta_step import L2TDLN
from l2t_ray.core.objective import OFFSET, LearnedObjective, shifted
from l2t_ray.core.student import cross_entropy
from l2t_ray.core.teacher import AdamRule, LocalTeacher
from l2t_ray.interfaces import MethodState, StudentState
from l2t_ray.methods.fixed_loss import FixedLoss
from l2t_ray.methods.phases import Phase, PhasedData, Phases
from l2t_ray.methods.static_dln import StaticDLN

BETA = 0.05


class Adds:
    """A method anybody can see through: each round adds a number to the student, and counts itself."""

    def __init__(self, number, name):
        self._number, self._name = number, name

    def init(self):
        return MethodState(StudentState(torch.zeros(1), torch.zeros(1), {}), {self._name: torch.zeros(1)})

    def round(self, state, batches, index):
        student = state.student._replace(theta=state.student.theta + self._number)
        counted = {self._name: state.extra[self._name] + 1}
        return MethodState(student, {**state.extra, **counted}), {"val_error": 0.0}


class Named:
    """Data that can be told apart by what it serves."""

    num_classes = 3

    def __init__(self, name, rounds_per_epoch=1):
        self.name, self._rounds_per_epoch = name, rounds_per_epoch
        self.whole = [small_batch(4, 0)]

    def round(self, index):
        return small_round(index)._replace(val=self.whole[0])

    def epoch(self, index):
        return index // self._rounds_per_epoch

    def validation(self, epoch):
        return self.whole

    def test(self):
        return self.whole


def train(method, num_rounds, state=None, start=0):
    state = state or method.init()
    for index in range(start, start + num_rounds):
        state, _ = method.round(state, small_round(index), index)
    return state


def test_each_phase_trains_its_rounds_and_keeps_what_the_others_carry():
    phases = [Phase(0, Adds(1.0, "a"), Named("first")), Phase(3, Adds(10.0, "b"), Named("then"))]
    state = train(Phases(phases), 5)
    assert state.student.theta.item() == 3 * 1 + 2 * 10
    assert (state.extra["a"].item(), state.extra["b"].item()) == (3, 2)


def test_a_phase_changes_the_state_once_where_it_begins_also_after_a_resume():
    entered = []

    def on_enter(state, index):
        entered.append(index)
        return state._replace(student=state.student._replace(theta=state.student.theta * 0))

    phases = Phases([Phase(0, Adds(1.0, "a"), Named("x")), Phase(2, Adds(10.0, "b"), Named("x"), on_enter)])
    half = train(phases, 2)
    assert entered == [] and half.student.theta.item() == 2
    whole = train(phases, 2, half, start=2)
    assert entered == [2] and whole.student.theta.item() == 20
    train(phases, 1, whole, start=4)
    assert entered == [2]


def test_data_is_each_phases_own_and_epochs_are_the_first_ones():
    method = Adds(1.0, "a")
    first, then = Named("first", rounds_per_epoch=2), Named("then")
    data = PhasedData([Phase(0, method, first), Phase(2, method, then)])
    served = [data.round(index).val for index in range(4)]
    assert [batch is first.whole[0] for batch in served] == [True, True, False, False]
    assert served[2] is served[3] is then.whole[0]
    assert data.epoch(3) == 1 and data.validation(1) is first.whole and data.test() is first.whole
    assert data.num_classes == 3


def test_phases_weigh_where_their_method_does_and_say_which_loss_is_learned():
    learner, _, phi = taught()
    phases = Phases([Phase(0, FixedLoss(small_trainee(), cross_entropy), Named("x")), Phase(2, learner, Named("x"))])
    state, batch = phases.init(), small_batch(7, 0)
    assert phases.sample_weights(state, batch, 1) is None
    torch.testing.assert_close(phases.sample_weights(state, batch, 2), learner.sample_weights(state, batch, 2))
    assert torch.equal(phases.learned_loss(state), phi)
    plain = Phases([Phase(0, FixedLoss(small_trainee(), cross_entropy), Named("x"))])
    assert plain.learned_loss(plain.init()) is None


# -- warm-up and estimates: the offset of the loss

MEMORY = {"label_table": NUM_CLASSES, "pairs": "softmax", "activation": "silu", "memory": 2.0}


def taught(schedule="pipelined", shift=0.0, has_offset=False, **options):
    network = DynamicLossNetwork(5, 3, seed=1, **options).double()
    trainee, phi = small_trainee(), network.phi.detach() + shift
    teacher = LocalTeacher(phi, AdamRule(phi.numel(), step_size=BETA, dtype=torch.float64))
    memory = Memory(trainee, 10, NUM_CLASSES)
    objective = LearnedObjective(trainee, PairLoss(network, trainee.task), has_offset=has_offset, memory=memory)
    return L2TDLN(objective, teacher, schedule=schedule), teacher, phi


@pytest.mark.parametrize("schedule", ["pipelined", "lookahead"])
def test_the_teacher_rests_while_the_student_warms_up_and_goes_on_from_the_offset(schedule):
    learner, teacher, phi = taught(schedule, has_offset=True)
    plain = FixedLoss(small_trainee(), cross_entropy)

    def on_enter(state, index):
        return shifted(state, torch.full_like(phi, 0.01))

    method = Phases([Phase(0, plain, Named("x")), Phase(2, learner, Named("x"), on_enter)])
    warm = train(method, 2)
    assert teacher.read().version == 0 and not warm.extra[OFFSET].any()
    torch.testing.assert_close(warm.student.theta, train(plain, 2).student.theta)

    other, shifted_teacher, _ = taught(schedule, shift=0.01)
    expected = train(other, 2, MethodState(warm.student, {}), start=2)
    actual = train(method, 2, warm, start=2)
    torch.testing.assert_close(actual.student.theta, expected.student.theta)
    torch.testing.assert_close(method.learned_loss(actual), shifted_teacher.read().phi)


def test_an_estimate_takes_the_place_of_what_was_learned_until_then():
    learner, teacher, phi = taught(has_offset=True)
    asked = []

    def on_enter(state, index):
        asked.append((index, teacher.read().phi.clone()))
        return shifted(state, 0.01 * index - teacher.read().phi)

    plain = FixedLoss(small_trainee(), cross_entropy)
    method = Phases([Phase(0, plain, Named("x")), *(Phase(r, learner, Named("x"), on_enter) for r in (1, 3))])
    state = train(method, 3)
    before = teacher.read().phi.clone()
    assert not torch.equal(before, phi)
    state = train(method, 1, state, start=3)
    assert [index for index, _ in asked] == [1, 3]
    assert torch.equal(asked[0][1], phi) and torch.equal(asked[1][1], before)
    torch.testing.assert_close(before + state.extra[OFFSET], torch.full_like(phi, 0.03))


def test_warm_rounds_are_remembered_too():
    learner, _, _ = taught(**MEMORY)
    memory = Memory(small_trainee(), 10, NUM_CLASSES)
    plain = FixedLoss(small_trainee(), cross_entropy, memory=memory)
    state = train(Phases([Phase(0, plain, Named("x")), Phase(2, learner, Named("x"))]), 2)
    torch.testing.assert_close(state.extra["memory"].sum(1)[:7], torch.full((7,), 1 - DECAY**2))
    torch.testing.assert_close(state.extra["tally"].sum(1)[:7], torch.full((7,), 1.0 + 2.0))


def test_a_checkpoint_of_before_there_was_a_tally_goes_on_from_its_memory():
    learner, _, _ = taught(**MEMORY)
    state = train(learner, 2)
    memory = state.extra["memory"]
    del state.extra["tally"]
    tally = train(learner, 1, state, start=2).extra["tally"]
    assert ((tally - memory)[:7] >= 0).all() and (tally - memory)[:7].sum(1).min() > 1


def test_without_a_teacher_the_student_trains_under_the_loss_as_it_is():
    """As one that is taught in steps of nothing."""
    network = DynamicLossNetwork(5, 3, seed=1, **MEMORY).double()
    phi, trainee = network.phi.detach(), small_trainee()
    objective = LearnedObjective(
        trainee, PairLoss(network, trainee.task), has_offset=True, memory=Memory(trainee, 10, NUM_CLASSES)
    )
    still = LocalTeacher(phi, AdamRule(phi.numel(), step_size=1e-30, dtype=torch.float64))
    ends, rows = [], []
    for method in (L2TDLN(objective, still), StaticDLN(objective)):
        state = shifted(method.init(), torch.full_like(phi, 0.02))
        numbers = []
        for index in range(4):
            state, metrics = method.round(state, small_round(index), index)
            numbers.append(metrics)
        ends.append(state)
        rows.append(numbers)
    torch.testing.assert_close(ends[0].student.theta, ends[1].student.theta)
    for taught_row, static_row in zip(*rows, strict=True):
        for name in ("train_loss", "val_error", "gradient_norm", "logit_gradient_sum", "lr"):
            assert static_row[name] == pytest.approx(taught_row[name], rel=1e-6), name
