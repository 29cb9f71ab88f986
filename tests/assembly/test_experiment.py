"""How the parts of a run follow from its configuration."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from l2t_ray.assembly import run as run_module
from l2t_ray.assembly.images import build_policy, data_root, load_dataset, observed_labels
from l2t_ray.assembly.inspection import check_hypergradient
from l2t_ray.assembly.run import build_run
from l2t_ray.assembly.source import fold_epochs
from l2t_ray.assembly.sources import source_of
from l2t_ray.data.splits import Split
from l2t_ray.interfaces import UserError
from l2t_ray.methods.glc import noise_matrix
from l2t_ray.methods.l2t_dln import L2TDLNConfig
from l2t_ray.methods.learned_loss import estimated_channel
from l2t_ray.methods.parts import Parts
from l2t_ray.methods.static_dln import StaticDLN
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.sections import TrainingConfig


def experiment(**sections):
    return configuration.validate({"ray": {"enabled": False}, **sections}, source="test")


def test_a_root_that_is_named_wins_over_the_environment():
    assert data_root("/elsewhere", Path("data")) == Path("data")
    assert data_root("/elsewhere", None) == Path("/elsewhere") and data_root(None, None) == Path("data")


def test_own_labels_reach_training_and_leave_validation_clean(tmp_path):
    config = experiment(data={"num_validation": 100})
    clean = load_dataset(config.data).train.labels
    wrong = (np.arange(10) // 2 * 2 + 2) % 10  # for two classes one label: no other numbering of the classes
    np.save(tmp_path / "labels.npy", wrong[clean])
    noise = {"kind": "labels", "file": str(tmp_path / "labels.npy")}
    config = experiment(
        data={"num_validation": 100, "noise": noise, "augment": "none"}, method="cross_entropy", controls=[]
    )
    run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
    batches = run.data.round(0)
    for batch in batches.train:
        assert batch.targets.tolist() == wrong[clean[batch.indices.numpy()]].tolist()
    assert batches.val.targets.tolist() == clean[batches.val.indices.numpy()].tolist()
    _, matrix = observed_labels(config, load_dataset(config.data))
    assert (matrix == np.eye(10)[wrong]).all()


def test_training_and_validation_images_never_overlap_in_a_round():
    """In what the student is really given, under either division of the images."""
    for split in ("fixed", "redivide"):
        config = experiment(
            data={"num_validation": 400, "split": split}, method="cross_entropy", controls=[],
            training={"num_rounds": 9, "num_steps": 5},
        )  # fmt: skip
        run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
        for index in range(9):
            batches = run.data.round(index)
            judged = set(batches.val.indices.tolist())
            for batch in batches.train:
                assert not judged & set(batch.indices.tolist())
        policy = build_policy(config, load_dataset(config.data))
        for epoch in range(3):
            assert not set(policy.at(epoch).train) & set(policy.at(epoch).validation)


def test_reweighting_without_an_image_of_a_class_is_refused():
    config = experiment(
        data={"num_validation": 12, "split": "redivide"}, method={"name": "l2t_dln", "reweight": {}}, controls=[],
        training={"val_batch_size": 12},
    )  # fmt: skip
    with pytest.raises(UserError, match=r"method\.reweight needs each class .* enlarge data\.num_validation"):
        build_run(config, group=SingleProcess(), device=torch.device("cpu"))


def test_similar_classes_are_known_for_cifar_alone():
    config = experiment(data={"noise": {"kind": "flip_to_similar", "rate": 0.2}})
    with pytest.raises(UserError, match="knows cifar10 and cifar100 alone, not digits"):
        observed_labels(config, load_dataset(config.data))


def test_clean_images_are_not_trusted_by_a_method_without_a_loss_of_its_own():
    config = experiment(data={"num_validation": 100}, method={"name": "mw_net", "clean_images": "trusted"}, controls=[])
    with pytest.raises(UserError, match="needs a method with a loss of its own, and 'mw_net' has none"):
        build_run(config, group=SingleProcess(), device=torch.device("cpu"))


class _GroupOfTwo:
    """A worker of two, as it is seen in what it gives to a sum."""

    size = 2

    def __init__(self, rank):
        self.rank, self.given = rank, []

    def sum(self, tensor):
        self.given.append(tensor.clone())
        return tensor


def test_the_channel_is_estimated_by_one_worker_for_all():
    """After a short warm-up on digits it lies near the matrix that the labels were drawn from."""
    config = experiment(
        data={"num_validation": 200, "noise": {"kind": "flip_to_two", "rate": 0.4}, "augment": "none"},
        student={"name": "resnet8"}, training={"num_rounds": 10, "learning_rate": 0.1},
        method="cross_entropy", controls=[],
    )  # fmt: skip
    run = build_run(config, group=SingleProcess(), device=torch.device("cpu"))
    method = run.arms[0].method
    state = method.init()
    for index in range(5):
        state, _ = method.round(state, run.data.round(index), index)
    dataset = load_dataset(config.data)
    _, matrix = observed_labels(config, dataset)
    first, second = (
        Parts(replace(method._trainee, group=_GroupOfTwo(rank)), source_of(config), num_rounds=10, seed=0)
        for rank in (0, 1)
    )
    found = estimated_channel(state.student, first, 0)
    truth = torch.from_numpy(matrix).to(found)
    answers = noise_matrix(method._trainee, state.student, run.data, 0)
    assert (found - truth).abs().sum(1).mean() < 0.25 < 0.35 < (answers - truth).abs().sum(1).mean()
    assert not estimated_channel(state.student, second, 0).any()
    assert len(first.group.given) == len(second.group.given) == 1


def test_a_fold_holds_a_validation_minibatch():
    method = {"clean_images": "trusted", "clean_folds": 4}
    run = {"group": SingleProcess(), "device": torch.device("cpu")}
    config = experiment(data={"num_validation": 100}, training={"val_batch_size": 26}, method=method, controls=[])
    with pytest.raises(UserError, match=r"val_batch_size=26 is more than the 25 images of a fold.*clean_folds=4"):
        build_run(config, **run)
    training = config.training.model_copy(update={"val_batch_size": 25})
    fits = build_run(config.model_copy(update={"training": training}), **run)
    assert len(fits.arms[0].data.round(0).val.targets) == 25


def test_the_check_of_the_hypergradient_sees_what_autograd_takes_for_zero(monkeypatch):
    """A student whose own function detaches in its backward pass: engine and naive autograd agree on the wrong."""
    config = experiment(method={"name": "l2t_dln"}, training={"num_rounds": 2, "num_steps": 3}, controls=[])
    built = run_module.build_student

    class Detached(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x.tanh()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * (1 - ctx.saved_tensors[0].detach().tanh() ** 2)

    def with_detached(*arguments, **options):
        student = built(*arguments, **options)
        student.register_forward_hook(lambda module, inputs, outputs: Detached.apply(outputs))
        return student

    monkeypatch.setattr(run_module, "build_student", with_detached)
    with pytest.raises(UserError, match=r"second derivative is missing.*Detached.*set method.engine=finite_difference"):
        check_hypergradient(config)


@pytest.mark.parametrize("engine", ["store", "forward_over_reverse"])
def test_the_check_of_the_hypergradient_sees_the_memory(engine):
    """A memory alone is all that this loss has to learn."""
    loss = {"layers": 0, "label_entries": "constant", "memory": 1}
    method = {"name": "l2t_dln", "loss": loss, "engine": engine}
    config = experiment(method=method, training={"num_rounds": 2, "num_steps": 3}, controls=[])
    errors, is_exact = check_hypergradient(config)
    assert is_exact and errors["float64"] < 1e-9 and errors["float32"] < 1e-2
    assert errors["finite differences"] < 1e-3


def test_the_hypergradient_is_checked_in_whichever_phase_it_is_taken():
    method = {"name": "l2t_dln", "warm_share": 0.3, "clean_images": "fine_tuned"}
    config = experiment(method=method, training={"num_rounds": 4, "num_steps": 2}, controls=[])
    errors, is_exact = check_hypergradient(config)
    assert is_exact and errors["float64"] < 1e-9


SMALL = {"data": {"num_train": 240, "num_validation": 100}, "training": {"num_rounds": 40, "num_steps": 4,
         "batch_size": 10, "val_batch_size": 10}, "controls": []}  # fmt: skip


def test_a_fold_judges_for_a_pass_through_what_is_trained_on():
    """320 images in rounds of 40, and 20 of 100 judge in epochs of 2 rounds: a turn is 8 rounds."""
    method = {"name": "l2t_dln", "clean_images": "trusted", "clean_folds": 5}
    data = build_run(experiment(method=method, **SMALL), group=SingleProcess(), device=torch.device("cpu")).arms[0].data
    judges, taught = [], []
    for turn in range(5):
        rounds = [data.round(8 * turn + i) for i in range(8)]
        judges.append(set(torch.cat([one.val.indices for one in rounds]).tolist()))
        taught = torch.cat([batch.indices for one in rounds for batch in one.train]).tolist()
        assert len(judges[-1]) == 20 and len(taught) == len(set(taught)) == 320
        assert not judges[-1] & set(taught)
    assert len(set.union(*judges)) == 100


@pytest.mark.parametrize(("warm_share", "first"), [(0.25, 10), (0, 12)])
def test_static_dln_trains_on_all_clean_images_once_the_warm_rounds_are_over(warm_share, first):
    """Without warm rounds `trusted_share`, 0.7, says when. Their loss is cross-entropy."""
    method = {"name": "static_dln", "clean_images": "trusted", "warm_share": warm_share}
    run = build_run(experiment(method=method, **SMALL), group=SingleProcess(), device=torch.device("cpu"))
    arm, clean = run.arms[0], set(torch.cat([batch.indices for batch in run.data.validation(0)]).tolist())
    rounds = [[batch.indices for batch in arm.data.round(index).train] for index in range(40)]
    seen = [set(torch.cat(batches).tolist()) & clean for batches in rounds]
    assert not any(seen[:first]) and seen[first] and set.union(*seen) == clean
    batch = next(batch for batch in arm.data.round(first).train if set(batch.indices.tolist()) & clean)
    is_clean = torch.tensor([index in clean for index in batch.indices.tolist()])
    method = arm.method.at(first).method
    assert isinstance(method, StaticDLN)
    state, objective = method.init(), method._objective
    phi, student = method.learned_loss(state), state.student
    loss, logits = objective.problem(state).inner_loss(student.theta, phi, dict(student.buffers), batch)
    plain = torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")
    learned = objective.loss.network.losses_at(phi, logits, batch.targets)
    torch.testing.assert_close(loss, torch.where(is_clean, plain, learned).mean())


@pytest.mark.parametrize(
    ("num_steps", "epochs"),
    [(15, 8), (150, 1), (1500, 1), (1, 116)],  # 5,800 images in batches of 25; an epoch is 2 rounds
)
def test_a_fold_judges_for_about_a_pass(num_steps, epochs):
    training = TrainingConfig(num_steps=num_steps, batch_size=25, val_batch_size=100)
    assert fold_epochs(5, training, Split(np.arange(5_000), np.arange(1_000))) == epochs


@pytest.mark.parametrize(
    ("settings", "num_rounds", "expected"),
    [
        ({"warm_share": 0.15, "channel_estimates": 4}, 400, [60, 107, 153, 200]),
        ({"warm_share": 0.3}, 400, [120]),
        ({"warm_share": 0.7, "channel_estimates": 3}, 100, [70]),
        ({"warm_share": 0.3, "channel_estimates": 9}, 10, [3, 4, 5]),
        ({"warm_share": 0.15, "channel_estimates": 4}, 2, [1]),
    ],
)
def test_rounds_of_the_estimates(settings, num_rounds, expected):
    assert L2TDLNConfig(**settings).estimate_rounds(num_rounds) == expected
