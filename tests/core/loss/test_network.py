"""The loss network against an explicit stack of layers, its initial weights, and what its hypergradient can see."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from l2t_ray.bilevel.hypergradient import hypergradient
from l2t_ray.core.loss.channel import FLOOR
from l2t_ray.core.loss.network import DynamicLossNetwork, LossNetworkSpec, initial_weights
from l2t_ray.core.loss.pair_loss import PairLoss

GENERATOR_SEED = 0


def draws(*shape, seed=GENERATOR_SEED):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def explicit_network(phi, widths=(4, 40, 40, 40, 40, 1), activation=None):
    """Bias-free linear layers with activations between them, filled from `phi` in order."""
    layers: list[nn.Module] = []
    start = 0
    for inputs, outputs in pairwise(widths):
        linear = nn.Linear(inputs, outputs, bias=False, dtype=torch.float64)
        size = inputs * outputs
        linear.weight = nn.Parameter(phi[start : start + size].detach().clone().view(outputs, inputs))
        layers += [linear, activation or nn.LeakyReLU(0.01)]
        start += size
    return nn.Sequential(*layers[:-1])


def double_network(**options):
    return DynamicLossNetwork(**options).double()


# -- the function


def test_defaults_have_the_papers_5000_weights():
    network = DynamicLossNetwork()
    assert [p.numel() for p in network.parameters()] == [5_000]
    assert 4 * 40 + 3 * 40 * 40 + 40 == 5_000


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
def test_forward_equals_an_explicit_stack_on_rows_with_label_entries(activation):
    network = double_network(activation=activation, seed=5)
    stack = explicit_network(network.phi, activation=nn.SiLU() if activation == "silu" else None)
    pairs = draws(3, 6, 2).sigmoid()
    rows = torch.cat((pairs, torch.ones(3, 6, 1).double(), torch.zeros(3, 6, 1).double()), dim=-1)
    torch.testing.assert_close(network(pairs), stack(rows)[..., 0])
    entries = draws(3, 6, seed=1)
    rows = torch.cat((pairs, torch.ones(3, 6, 1).double(), entries[..., None]), dim=-1)
    torch.testing.assert_close(network(pairs, entries), stack(rows)[..., 0])


def test_other_depths_and_widths():
    network = double_network(hidden=3, layers=2, seed=1)
    pairs = draws(5, 2).sigmoid()
    rows = torch.cat((pairs, torch.ones(5, 1).double(), torch.zeros(5, 1).double()), dim=-1)
    torch.testing.assert_close(network(pairs), explicit_network(network.phi, (4, 3, 1))(rows)[:, 0])


def test_released_mean_equals_the_zeroed_row_of_the_true_class():
    """The released code makes C rows a sample, zeroes the true class's and averages over all B C of them."""
    network = double_network(mean="released", seed=2)
    stack = explicit_network(network.phi)
    logits, labels = draws(6, 4), torch.tensor([0, 3, 1, 2, 2, 0])
    p = logits.sigmoid()
    rows = torch.zeros(6, 4, 4, dtype=torch.float64)
    for i in range(6):
        for j in range(4):
            if j != labels[i]:
                rows[i, j] = torch.stack((p[i, labels[i]], p[i, j], p.new_tensor(1.0), p.new_tensor(0.0)))
    torch.testing.assert_close(network.loss(logits, labels), stack(rows.view(24, 4)).mean())
    plain = double_network(mean="pairs", seed=2)
    torch.testing.assert_close(network.losses(logits, labels), 3 / 4 * plain.losses(logits, labels))


def test_loss_is_the_weighted_sum_or_the_plain_mean_of_rows():
    network = double_network(seed=3)
    logits, labels = draws(4, 3), torch.tensor([0, 1, 2, 1])
    rows = [network.losses(logits[i : i + 1], labels[i : i + 1]).item() for i in range(4)]
    pairs = [[(0, 1), (0, 2)], [(1, 0), (1, 2)], [(2, 0), (2, 1)], [(1, 0), (1, 2)]]
    for i, row in enumerate(pairs):
        scores = torch.stack([logits[i, list(pair)].sigmoid() for pair in row])
        assert rows[i] == pytest.approx(network(scores).mean().item(), rel=1e-12)
    assert network.loss(logits, labels).item() == pytest.approx(sum(rows) / 4, rel=1e-12)
    weights = [0.5, 0.25, 0.0, 2.0]
    expected = sum(w * row for w, row in zip(weights, rows, strict=True))
    actual = network.loss(logits, labels, torch.tensor(weights, dtype=torch.float64)).item()
    assert actual == pytest.approx(expected, rel=1e-12)


def test_losses_at_other_weights_is_that_network():
    network, other = double_network(seed=0), double_network(seed=9)
    logits, labels = draws(4, 3), torch.tensor([0, 1, 2, 1])
    assert torch.equal(network.losses_at(other.phi, logits, labels), other.losses(logits, labels))
    assert not torch.equal(network.losses(logits, labels), other.losses(logits, labels))


@pytest.mark.parametrize("layer", range(5))
def test_is_positively_homogeneous_of_degree_one_in_the_input_of_each_layer(layer):
    """Without biases, LeakyReLU(a x) = a LeakyReLU(x) for a > 0; scaling a layer's weights scales what it reads."""
    network = double_network(seed=4)
    pairs = draws(8, 2).sigmoid()
    scaled = network.phi.detach().clone()
    network.spec.parts.network.matrices(scaled)[layer].mul_(2.5)
    expected = 2.5 * network(pairs)
    network.phi.data = scaled
    torch.testing.assert_close(network(pairs), expected)


def test_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match="layers >= 2, or 0 with a channel or memory, got hidden=40, layers=1"):
        DynamicLossNetwork(layers=1)
    with pytest.raises(ValueError, match="hidden >= 1 and layers >= 2, or 0 with a channel or memory, got hidden=0"):
        DynamicLossNetwork(hidden=0)
    network = DynamicLossNetwork(hidden=3)
    with pytest.raises(ValueError, match="has 42 weights, got a vector of 41"):
        network.losses_at(network.phi[:-1], torch.zeros(1, 3), torch.tensor([0]))


# -- initial weights


def test_released_init_is_kaiming_normal_fan_out():
    """gain / sqrt(fan out), gain^2 = 2 / (1 + 0.01^2): std 0.2236 for the 40-wide layers, 1.414 for the last.

    Bands are five standard errors: std / sqrt(2 n) of a standard deviation, std / sqrt(n) of a mean.
    """
    network = LossNetworkSpec().parts.network
    stacks = [network.matrices(DynamicLossNetwork(seed=seed).phi.detach()) for seed in range(20)]
    for layer, std in enumerate([0.2236, 0.2236, 0.2236, 0.2236, 1.414]):
        values = torch.cat([stack[layer].flatten() for stack in stacks])
        n = values.numel()
        assert abs(values.std().item() - std) < 5 * std / math.sqrt(2 * n)
        assert abs(values.mean().item()) < 5 * std / math.sqrt(n)


TARGETS = {
    ("linear", "sigmoid"): lambda p, q: 1 - p + q,
    ("linear", "softmax"): lambda p, q: 1 - p + q,
    ("cross_entropy", "sigmoid"): lambda p, q: -p.log() - (1 - q).log(),
    ("cross_entropy", "softmax"): lambda p, q: -p.log() + 0 * q,
    ("gce", "sigmoid"): lambda p, q: (1 - p**0.7) / 0.7 + 0 * q,
    ("gce", "softmax"): lambda p, q: (1 - p**0.7) / 0.7 + 0 * q,
}
SLOPE_SCALE = {"linear": 0.5, "gce": 0.5, "cross_entropy": 3.0}


@pytest.mark.parametrize("activation", ["leaky_relu", "silu"])
@pytest.mark.parametrize(("init", "pairs"), TARGETS)
def test_fitted_init_is_near_its_target_with_the_right_slopes_on_every_seed(init, pairs, activation):
    """Values within 2 % of the target's range on average and 8 % anywhere; slopes of the right sign wherever the
    target is steep. Where a logarithm is flat (slope below 3, of up to 20 here) a LeakyReLU fit may ripple.
    """
    line = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    points = torch.cartesian_prod(line, line)
    if pairs == "softmax":
        points = points[points.sum(dim=1) <= 1]
    points.requires_grad_()
    goal = TARGETS[init, pairs](points[:, 0], points[:, 1])
    (goal_slopes,) = torch.autograd.grad(goal.sum(), points)
    scale = (goal.max() - goal.min()).item()
    is_steep = goal_slopes.abs() >= SLOPE_SCALE[init]
    assert is_steep.any()
    for seed in range(2):
        losses = double_network(init=init, pairs=pairs, activation=activation, seed=seed)(points)
        (slopes,) = torch.autograd.grad(losses.sum(), points)
        error = (losses - goal).detach().abs()
        assert error.mean() < 0.02 * scale
        assert error.max() < 0.08 * scale
        assert (slopes.sign() == goal_slopes.sign())[is_steep].all()


def test_seed_decides_the_weights_and_the_global_generator_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    options = {"hidden": 4, "layers": 2}
    for init in ("released", "linear", "cross_entropy", "gce"):
        first, again, other = (DynamicLossNetwork(**options, init=init, seed=seed) for seed in (1, 1, 2))
        assert torch.equal(first.phi, again.phi)
        assert not torch.equal(first.phi, other.phi)
    assert torch.equal(torch.rand(3), expected)


def test_unknown_init_is_refused():
    spec = LossNetworkSpec()
    with pytest.raises(Exception, match="init"):  # by type under the run-time checks, else by value
        initial_weights(spec, "zeros", 0)


# -- the label-pair table


def with_random_table(num_classes, **options):
    network = double_network(label_table=num_classes, seed=1, **options)
    table = 0.1 * draws(num_classes, num_classes, seed=7)
    with torch.no_grad():
        network.phi[-(num_classes**2) :] = table.flatten()
    return network, table


@pytest.mark.parametrize("num_classes", [2, 5, 11])
def test_table_entry_of_label_and_other_class_is_read_ten_fold(num_classes):
    network, table = with_random_table(num_classes)
    logits, labels = draws(7, num_classes), torch.arange(7) % num_classes
    stack = explicit_network(network.phi)
    expected = []
    for i, y in enumerate(labels.tolist()):
        pairs = [
            [logits[i, y].sigmoid().item(), logits[i, j].sigmoid().item(), 1.0, 10 * table[y, j].item()]
            for j in range(num_classes)
            if j != y
        ]
        expected.append(stack(torch.tensor(pairs, dtype=torch.float64)).mean().item())
    torch.testing.assert_close(network.losses(logits, labels), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("init", ["released", "linear"])
def test_table_starts_without_effect(init):
    options = {"hidden": 6, "init": init, "seed": 3}
    plain, table = double_network(**options), double_network(label_table=4, **options)
    assert table.phi.numel() == plain.phi.numel() + 16
    logits, labels = draws(5, 4), torch.tensor([0, 1, 2, 3, 0])
    assert torch.equal(table.losses(logits, labels), plain.losses(logits, labels))


def test_table_is_for_its_own_number_of_classes():
    network = DynamicLossNetwork(label_table=4)
    with pytest.raises(ValueError, match=r"learned for 4 classes .* got logits of 3 classes"):
        network.loss(torch.zeros(2, 3), torch.tensor([0, 1]))


# -- the channel


MATRIX = torch.tensor([[0.6, 0.2, 0.2], [0.0, 0.9, 0.1], [0.3, 0.1, 0.6]], dtype=torch.float64)


def channel_network(**options):
    return double_network(channel=3, pairs="softmax", seed=1, **options)


def channel_of(network, phi):
    parts = network.spec.parts
    return parts.channel.log_matrix(parts.split(phi).channel).exp()


def test_a_channel_pairs_the_probabilities_of_noisy_labels():
    network = channel_network()
    logits, labels = draws(7, 3), torch.arange(7) % 3
    learned = network.phi.detach().clone()
    learned[-9:] = torch.linspace(-1, 1, 9)
    phi = learned + network.spec.parts.shift_to(MATRIX, learned)
    assert torch.equal(phi[:-9], learned[:-9])
    floored = (MATRIX + FLOOR) / (MATRIX + FLOOR).sum(dim=1, keepdim=True)
    torch.testing.assert_close(channel_of(network, phi), floored)
    seen = (logits.softmax(dim=1) @ floored).tolist()
    stack = explicit_network(network.phi)
    expected = []
    for p, y in zip(seen, labels.tolist(), strict=True):
        pairs = torch.tensor([[p[y], p[j], 1.0, 0.0] for j in range(3) if j != y], dtype=torch.float64)
        expected.append(stack(pairs).mean().item())
    actual = network.losses_at(phi, logits, labels)
    torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float64))


def test_a_channel_begins_as_the_identity():
    network, plain = channel_network(), double_network(pairs="softmax", seed=1)
    logits, labels = draws(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(network.phi[-9:], torch.zeros(9, dtype=torch.float64))
    torch.testing.assert_close(network.losses(logits, labels), plain.losses(logits, labels), rtol=0, atol=20 * FLOOR)


def test_a_channel_is_for_its_own_number_of_classes_and_for_probabilities():
    with pytest.raises(ValueError, match=r"learned for 3 classes .* got logits of 4 classes"):
        channel_network().loss(torch.zeros(2, 4), torch.tensor([0, 1]))
    for options in ({"pairs": "sigmoid"}, {"pairs": "softmax", "label_table": 3}):
        with pytest.raises(ValueError, match=r"a channel needs softmax pairs and no label-pair table"):
            DynamicLossNetwork(channel=3, **options)


def test_a_channel_alone_is_the_likelihood_of_the_noisy_label():
    network = channel_network(layers=0)
    assert network.phi.shape == (9,)
    logits, labels = draws(7, 3), torch.arange(7) % 3
    phi = network.phi + network.spec.parts.shift_to(MATRIX, network.phi)
    seen = logits.softmax(dim=1) @ channel_of(network, phi)
    expected = -seen[torch.arange(7), labels].log()
    torch.testing.assert_close(network.losses_at(phi, logits, labels), expected)
    torch.testing.assert_close(network(seen[:, :2]), -seen[:, 0].log())


def test_a_channel_alone_stays_finite_where_probabilities_vanish():
    network = DynamicLossNetwork(layers=0, pairs="softmax", channel=3)
    logits = torch.tensor([[200.0, 0.0, 0.0]], requires_grad=True)
    network.loss(logits, torch.tensor([1])).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


def test_without_layers_channel_and_memory_nothing_is_learned():
    with pytest.raises(ValueError, match="without channel and memory it has nothing to learn"):
        DynamicLossNetwork(layers=0, pairs="softmax")
    with pytest.raises(ValueError, match="cross-entropy, which is of softmax pairs"):
        DynamicLossNetwork(layers=0, pairs="sigmoid", memory=1.0)
    with pytest.raises(ValueError, match="cross-entropy, which reads no label-pair table"):
        DynamicLossNetwork(layers=0, pairs="softmax", memory=1.0, label_table=3)


# -- the memory

KINDS = {
    "layers": {"pairs": "sigmoid"},
    "released_mean": {"pairs": "sigmoid", "mean": "released"},
    "table": {"label_table": 3, "pairs": "softmax"},
    "channel": {"channel": 3, "pairs": "softmax"},
    "channel_alone": {"channel": 3, "pairs": "softmax", "layers": 0},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_adds_its_share_and_leaves_the_rest_alone(kind):
    network, plain = (double_network(hidden=4, seed=1, **KINDS[kind], **more) for more in ({"memory": 1.5}, {}))
    num_layers = plain.spec.parts.network.num_weights
    phi = 0.05 * draws(plain.phi.numel()) + plain.phi.detach()
    entry = torch.tensor([0.03], dtype=torch.float64)
    phi_with = torch.cat((phi[:num_layers], entry, phi[num_layers:]))
    logits, labels, memory = draws(6, 3), torch.arange(6) % 3, 0.8 * draws(6, 3, seed=5).softmax(dim=1)
    bare = plain.losses_at(phi, logits, labels)
    torch.testing.assert_close(network.losses_at(phi_with, logits, labels), bare)
    agreement = (1 - (logits.softmax(dim=1) * memory).sum(dim=1)).log()
    weight = 3 / (1 + math.exp(-10 * 0.03))
    torch.testing.assert_close(network.losses_at(phi_with, logits, labels, memory), bare + weight * agreement)


def memory_weight(network, phi):
    return PairLoss(network).report(phi)["memory_weight"]


@pytest.mark.parametrize("init", ["released", "linear"])
def test_the_memorys_weight_starts_where_it_is_said_to_and_stays_between_0_and_twice_that(init):
    network = DynamicLossNetwork(hidden=4, init=init, label_table=3, memory=0.7)
    assert memory_weight(network, network.phi) == pytest.approx(0.7)
    moved = network.phi.detach().clone()
    for entry, expected in ((-20.0, 0.0), (20.0, 1.4)):
        moved[-10] = entry  # 9 entries of the table lie behind it
        assert memory_weight(network, moved) == pytest.approx(expected, abs=1e-6)


def test_a_memory_alone_is_early_learning_regularisation():
    network = double_network(layers=0, pairs="softmax", memory=3.0)
    logits, labels, memory = draws(6, 3), torch.arange(6) % 3, draws(6, 3, seed=5).softmax(dim=1)
    p = logits.softmax(dim=1)
    expected = -p[torch.arange(6), labels].log() + 3 * (1 - (p * memory).sum(dim=1)).log()
    torch.testing.assert_close(network.losses(logits, labels, memory), expected)
    torch.testing.assert_close(network.loss(logits, labels, memory=memory), expected.mean())


def test_a_loss_without_memory_is_given_none():
    with pytest.raises(ValueError, match="this loss has no memory: leave the argument `memory` out"):
        DynamicLossNetwork().losses(torch.zeros(2, 3), torch.tensor([0, 1]), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="memory must start above 0, got -1"):
        DynamicLossNetwork(memory=-1.0)


def test_a_loss_with_memory_is_one_file(tmp_path):
    network = DynamicLossNetwork(layers=0, pairs="softmax", channel=3, memory=2.0)
    network.phi.data = torch.linspace(-0.1, 0.1, 10)
    network.save(tmp_path / "loss.safetensors")
    loaded = DynamicLossNetwork.load(tmp_path / "loss.safetensors")
    logits, labels, memory = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.rand(4, 3) / 3
    assert loaded.spec == network.spec
    assert torch.equal(loaded.losses(logits, labels, memory), network.losses(logits, labels, memory))


# -- what the hypergradient can see


def first_layer_columns(make_problem, activation):
    p = make_problem(num_steps=3, activation=activation, layers=3)
    size = 16  # the 4 x 4 table starts at zero: give it values, so that its column is not zero for that reason alone
    p.phi[-size:] = 0.1 * draws(size, seed=8)
    gradient = hypergradient(p.problem, p.start, p.phi, p.batches, p.val, rates=p.rates).gradient
    return gradient[: 8 * 4].view(8, 4).abs().amax(dim=0), gradient[-size:].abs().max()


def test_a_piecewise_linear_loss_is_blind_to_its_label_entries(make_problem):
    """The student sees the loss's slope in p alone, which a shifted kink leaves as it is: exactly zero, not small."""
    columns, table = first_layer_columns(make_problem, "leaky_relu")
    assert columns[:2].min() > 1e-6
    assert columns[2:].max() <= 1e-12 * columns[:2].max()
    assert table <= 1e-12 * columns[:2].max()


def test_a_smooth_loss_sees_its_label_entries(make_problem):
    columns, table = first_layer_columns(make_problem, "silu")
    assert columns[2:].min() > 1e-3 * columns[:2].max()
    assert table > 1e-3 * columns[:2].max()


# -- the file


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"channel": 5, "pairs": "softmax"},
        {"hidden": 7, "layers": 3, "pairs": "softmax", "activation": "silu", "label_table": 5, "mean": "released"},
        {"layers": 0, "pairs": "softmax", "channel": 5},
    ],
)
def test_save_and_load_give_the_same_loss(tmp_path, options):
    network = DynamicLossNetwork(seed=6, **options)
    network.save(tmp_path / "loss.safetensors")
    loaded = DynamicLossNetwork.load(tmp_path / "loss.safetensors")
    assert loaded.spec == network.spec
    assert isinstance(loaded.phi, nn.Parameter) and torch.equal(loaded.phi, network.phi)
    logits, labels = draws(4, 5).float(), torch.tensor([0, 4, 2, 2])
    assert torch.equal(loaded.loss(logits, labels), network.loss(logits, labels))
