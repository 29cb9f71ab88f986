"""`fit` works on a copy: the module that it is given stays as it was, whatever happens."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from l2t_ray.assembly.fit import fit
from l2t_ray.core.loss.network import DynamicLossNetwork
from l2t_ray.interfaces import DivergenceError, UserError

WIDTH = 6


def examples(num, classes=(0, 1, 2)):
    generator = torch.Generator().manual_seed(num)
    labels = torch.tensor(classes)[torch.arange(num) % len(classes)]
    return torch.randn(num, WIDTH, generator=generator) + 3 * F.one_hot(labels, WIDTH), labels


def fitted(model, **arguments):
    sizes = {"num_rounds": 4, "num_steps": 2, "batch_size": 6, "val_batch_size": 6, "warm_share": 0.5}
    return fit(model, **({"train": examples(24), "validation": examples(12)} | sizes | arguments))


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def partly_frozen():
    model = nn.Sequential(nn.Linear(WIDTH, 8), nn.BatchNorm1d(8), nn.Dropout(0.1), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    model[1].eval()
    model[0].register_forward_hook(lambda *_: None)
    return model


def stands(model):
    """All that a user could find changed."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    facts = [
        (child.training, len(child._forward_hooks), len(child._forward_pre_hooks), sorted(vars(child)))
        for child in model.modules()
    ]
    needs = [(id(p), p.requires_grad, p.grad is None) for p in model.parameters()]
    return tensors, (facts, needs)


def raise_in_round_two(row):
    if row["round"] == 1:
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("arguments", "ends"),
    [
        ({}, None),
        ({"batch_size": 25}, UserError),
        ({"learning_rate": 1e9}, DivergenceError),
        ({"on_row": raise_in_round_two}, None),
        ({"on_row": lambda row: {}["nothing"]}, KeyError),
    ],
    ids=["trained", "refused", "diverged", "interrupted", "failed"],
)
def test_the_users_module_comes_back_bit_for_bit(arguments, ends):
    model = seeded(partly_frozen)
    tensors, facts = stands(model)
    if ends is None:
        assert not torch.equal(fitted(model, **arguments).model[3].weight, model[3].weight)
    else:
        with pytest.raises(ends):
            fitted(model, **arguments)
    after, facts_after = stands(model)
    assert facts_after == facts
    assert all(torch.equal(after[name], tensor) for name, tensor in tensors.items())


def test_a_module_in_evaluation_mode_stays_in_it():
    model = seeded(partly_frozen).eval()
    fitted(model)
    assert not any(child.training for child in model.modules())


def test_the_trained_model_can_be_copied_and_shares_nothing_with_the_users():
    model = seeded(partly_frozen)
    trained = fitted(model).model
    mine = {tensor.data_ptr() for tensor in model.state_dict().values()}
    assert mine.isdisjoint(tensor.data_ptr() for tensor in trained.state_dict().values())
    assert not trained.training and torch.equal(trained[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("optimizer", "rate"),
    [("sgd", 0.1), ("adam", 1e-3), ("adamw", 1e-3), ({"name": "adamw", "betas": (0.9, 0.99), "clip": 1.0}, 1e-3)],
)
def test_each_optimizer_learns_and_has_a_learning_rate_of_its_own(optimizer, rate):
    model = seeded(lambda: nn.Linear(WIDTH, 3))
    fit = fitted(model, optimizer=optimizer, num_rounds=60, num_steps=4, warm_share=0.2)
    assert fit.rows[0]["lr"] == pytest.approx(rate, rel=1e-3) and fit.rows[-1]["hypergradient_norm"] > 0
    inputs, labels = examples(300)
    before, after = (F.cross_entropy(m(inputs), labels).item() for m in (model, fit.model))
    assert after < 0.9 * before
    given = fitted(seeded(lambda: nn.Linear(WIDTH, 3)), optimizer=optimizer, learning_rate=rate, num_rounds=3)
    default = fitted(seeded(lambda: nn.Linear(WIDTH, 3)), optimizer=optimizer, num_rounds=3)
    assert torch.equal(given.model.weight, default.model.weight)


def test_a_loss_network_that_is_given_stays_as_it_is():
    loss_network = DynamicLossNetwork(layers=0, pairs="softmax", channel=3)
    before = loss_network.phi.detach().clone()
    learned = fitted(seeded(partly_frozen), loss=loss_network).loss
    assert torch.equal(loss_network.phi, before) and loss_network.phi.requires_grad
    assert not torch.equal(learned.phi, before)


def test_a_graph_that_a_forward_pass_left_on_the_module_does_not_stop_its_copy():
    model = seeded(lambda: nn.Linear(WIDTH, 3))
    model.aux = model(torch.ones(2, WIDTH)).sum()
    trained = fitted(model).model
    assert trained.aux.is_leaf and not model.aux.is_leaf


@pytest.mark.parametrize("setting", [torch.no_grad, torch.inference_mode])
def test_it_trains_where_gradients_are_switched_off(setting):
    model = seeded(partly_frozen)
    expected = fitted(model).rows[-1]["train_loss"]
    with setting(), torch.random.fork_rng():
        assert torch.isfinite(torch.tensor(fitted(model).rows[-1]["train_loss"]))
    assert expected > 0


def test_a_class_that_never_occurs_is_one_without_examples(caplog):
    """Labels 0, 1 and 4: what was learned of 2 and 3 is that they do not come."""
    sets = {"train": examples(24, (0, 1, 4)), "validation": examples(12, (0, 1, 4))}
    result = fitted(seeded(lambda: nn.Linear(WIDTH, 5)), **sets, num_rounds=10, num_steps=5)
    assert set(result.model(sets["train"][0]).argmax(dim=1).tolist()) <= {0, 1, 4}
    assert result.loss.family.spec.channel == 5


def test_a_half_precision_model_learns_as_a_single_precision_one_does():
    sets = {"train": examples(24), "validation": examples(12)}
    halved = {name: (inputs.bfloat16(), labels) for name, (inputs, labels) in sets.items()}
    model = seeded(lambda: nn.Linear(WIDTH, 3))
    single, half = fitted(model, **sets), fitted(model.bfloat16(), **halved)
    assert half.model.weight.dtype == torch.bfloat16
    assert half.rows[-1]["val_error"] == pytest.approx(single.rows[-1]["val_error"], rel=0.1)


def test_advice_on_divergence_is_in_the_arguments_of_fit_and_knows_large_inputs():
    inputs, labels = examples(24)
    with pytest.raises(DivergenceError, match=r"try a smaller learning_rate\.$"):
        fitted(seeded(lambda: nn.Linear(WIDTH, 3)), learning_rate=1e9)
    with pytest.raises(DivergenceError, match=r"smaller learning_rate, or scale the inputs, which reach \d+"):
        fitted(seeded(lambda: nn.Linear(WIDTH, 3)), train=(inputs * 1e3, labels), learning_rate=1e9)


def hooked():
    model = nn.Linear(4, 3)
    model.weight.register_hook(lambda gradient: gradient * 0)
    return model


class ItsOwnCopy(nn.Linear):
    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (hooked, "model has a hook on its parameter weight, which would not run"),
        (lambda: ItsOwnCopy(4, 3), "a copy of model shares its weights"),
    ],
)
def test_what_a_copy_would_lose_or_share_is_refused(make, sentence):
    examples = torch.randn(60, 4), torch.arange(60) % 3
    with pytest.raises(UserError, match=sentence):
        fit(make(), train=examples, validation=examples, num_rounds=2, batch_size=10, val_batch_size=20)


def test_threads_that_fit_models_with_dropout_train_what_one_does_alone():
    model = seeded(lambda: nn.Sequential(nn.Linear(WIDTH, 8), nn.Dropout(0.5), nn.Linear(8, 3)))

    def trained(seed):
        found = fitted(model, method="cross_entropy", warm_share=None, seed=seed, try_first=False)
        return torch.cat([parameter.flatten() for parameter in found.model.parameters()])

    alone = [trained(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(trained, range(3)))
    assert all(map(torch.equal, alone, together))
