"""Meta-Weight-Net against plain autograd, written out from the method's description."""

import torch
import torch.nn.functional as F
from small_problem import small_round, small_student, small_trainee
from torch.func import functional_call

from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.core.adam import Learned
from l2t_ray.methods.mw_net import MWNet
from l2t_ray.parallel.group import SingleProcess

RATE, MOMENTUM, DECAY, ADAM_RATE = 0.3, 0.9, 1e-2, 0.05


def weigh(net, losses):
    """1-h-1 with a rectified hidden layer and a sigmoid, from its four parameters."""
    w1, b1, w2, b2 = net
    return ((losses[:, None] @ w1.T + b1).relu() @ w2.T + b2).sigmoid()[:, 0]


def test_round_is_virtual_step_adam_and_real_step():
    trainee, batches, h = small_trainee(RATE, MOMENTUM, DECAY), small_round(), 5
    method = MWNet(trainee, hidden=h, learning_rate=ADAM_RATE, weight_decay=1e-4, seed=1)
    state = method.init()
    # The default initialisation leaves weights too alike to tell mistakes apart.
    spread = 3 * state.extra["weights"].double()
    state = state._replace(extra={**state.extra, **Learned.begin(spread)._asdict()})

    actual, metrics = method.round(state, batches, 0)

    student = small_student().double()
    theta = {name: p.detach().requires_grad_() for name, p in student.named_parameters()}
    velocity = {name: torch.zeros_like(p) for name, p in theta.items()}
    shapes = [(h, 1), (h,), (1, h), (1,)]
    net = [p.reshape(s).clone().requires_grad_() for p, s in zip(spread.split([h, h, h, 1]), shapes, strict=True)]
    adam = torch.optim.Adam(net, lr=ADAM_RATE, weight_decay=1e-4)
    norms = []
    for step, batch in enumerate(batches.train):
        rate = RATE / (1 + step)
        losses = F.cross_entropy(functional_call(student, theta, batch.inputs), batch.targets, reduction="none")
        loss = (weigh(net, losses.detach()) * losses).mean()
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
        virtual = {name: p - rate * g for (name, p), g in zip(theta.items(), gradients, strict=True)}
        error = F.cross_entropy(functional_call(student, virtual, batches.val.inputs), batches.val.targets)
        adam.zero_grad()
        error.backward(inputs=net)
        norms.append(torch.cat([p.grad.reshape(-1) for p in net]).norm().item())
        adam.step()
        with torch.no_grad():
            values = weigh(net, losses)
        losses = F.cross_entropy(functional_call(student, theta, batch.inputs), batch.targets, reduction="none")
        gradients = torch.autograd.grad((values * losses).mean(), list(theta.values()))
        for (name, p), g in zip(list(theta.items()), gradients, strict=True):
            velocity[name] = MOMENTUM * velocity[name] + g + DECAY * p.detach()
            theta[name] = (p.detach() - rate * velocity[name]).requires_grad_()
    flat = torch.cat([p.detach().reshape(-1) for p in theta.values()])
    torch.testing.assert_close(actual.student.theta, flat)
    torch.testing.assert_close(actual.extra["weights"], torch.cat([p.detach().reshape(-1) for p in net]))
    torch.testing.assert_close(torch.tensor(metrics["hypergradient_norm"]), torch.tensor(norms).mean())


def test_virtual_steps_leave_batch_norm_statistics_alone():
    """They count real steps only."""
    trainee = small_trainee()
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(4), small_student()).double()
    trainee = type(trainee)(FlatModule(net), trainee.task, trainee.schedule, SingleProcess())
    method = MWNet(trainee, hidden=5)
    state = method.init()
    state = state._replace(extra={k: v.double() if v.is_floating_point() else v for k, v in state.extra.items()})
    after, _ = method.round(state, small_round(), 0)
    net.train()
    for batch in small_round().train:
        net(batch.inputs)
    torch.testing.assert_close(after.student.buffers["0.running_mean"], net[0].running_mean)
    assert after.student.buffers["0.num_batches_tracked"] == 3
