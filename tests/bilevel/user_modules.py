"""Modules as people write them, one line a kind: `Kind(name, make, input_shape)`.

`make` gives a module whose outputs, flattened behind the batch, have at least `NUM_CLASSES` values. An input shape
that begins with `TOKENS` is of whole numbers below it. A module that draws random numbers, or that cannot be
differentiated twice, says so.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

NUM_CLASSES = 4
TOKENS = 11


class Kind(NamedTuple):
    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    is_random: bool = False
    has_second: bool = True
    precision: float = 1e-6  # of what is computed


def seq(*parts):
    return nn.Sequential(*parts)


def conv_net(norm, conv=nn.Conv2d, channels=6):
    return seq(conv(2, channels, 3), norm(channels), nn.Tanh(), nn.Flatten(), nn.Linear(channels * 9, NUM_CLASSES))


def head(features, body=None, after=None):
    """A linear layer, a part, and `after` outputs, or the classes."""
    return seq(
        nn.Linear(5, features), nn.Tanh(), body or nn.Identity(), nn.Linear(after or features, after or NUM_CLASSES)
    )


class Of(nn.Module):
    """A module from a function of its parts: `Of(lambda m, x: ..., part=module, weight=tensor)`."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, torch.Tensor) else part)

    def forward(self, x):
        return self.function(self, x)


def with_buffer(module, **buffers):
    for name, value in buffers.items():
        module.register_buffer(name, value)
    return module


def changed(module, *changes):
    for change in changes:
        change(module)
    return module


def called(module, *shape):
    module(torch.zeros(3, *shape))
    return module


def frozen(module):
    return changed(module.requires_grad_(False), nn.Module.eval)


def plain_attributes(module, **values):
    vars(module).update(values)
    return module


def attend(m, x):
    x = x.unflatten(1, (3, 5))
    query, key, value = m.qkv(x).chunk(3, dim=-1)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return m.out(F.scaled_dot_product_attention(query, key, value).mean(1))


def encoded(m, x):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return m.out(m.layer(x.unflatten(1, (3, 8))).mean(1))


class AssignedNorm(nn.Module):
    """Batch normalisation that assigns its statistics anew and uses those of before, without and with `detach`."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        y = (x - self.mean) / (1 + self.steps)
        if self.training:
            self.mean = torch.lerp(self.mean, x.mean(0), 0.1).detach()
            self.steps = self.steps + 1
        return y


class MovingScale(nn.Module):
    """Divides by a statistic that it moves in place first."""

    def __init__(self):
        super().__init__()
        self.register_buffer("square", torch.ones(6))

    def forward(self, x):
        with torch.no_grad():
            self.square.mul_(0.9).add_(x.square().mean(0), alpha=0.1)
        return x / self.square


class OwnLinear(torch.autograd.Function):
    """Looks its weight up on the way back, and can be differentiated again."""

    @staticmethod
    def forward(ctx, x, weight, module):
        ctx.save_for_backward(x)
        ctx.module = module
        return x @ weight.T

    @staticmethod
    def backward(ctx, gradient):
        return gradient @ ctx.module.weight, gradient.T @ ctx.saved_tensors[0], None


def scaled_gradient(m, x):
    y = m.linear(x)
    y.register_hook(lambda gradient: gradient * (1 + m.linear.bias.detach().square().sum()) / (1 + m.steps))
    m.steps += 1
    return y


def mixed_experts(m, x):
    shares = m.gate(x).softmax(1)
    return sum(shares[:, i : i + 1] * expert(x) for i, expert in enumerate(m.experts))


class Counting(nn.Module):
    """Keeps plain Python state."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls, self.log = nn.Linear(5, 4), 0, []

    def forward(self, x):
        self.calls += 1
        self.log = [*self.log[-3:], self.calls]
        return self.linear(x)


class Frozen(nn.Sequential):
    """Keeps its batch norm in evaluation mode by its own `train`."""

    def train(self, mode=True):
        super().train(mode)
        self[1].eval()
        return self


def autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return m.body(x).double()


def standardised(m, x):
    weight = (m.weight - m.weight.mean((1, 2, 3), keepdim=True)) / m.weight.std((1, 2, 3), keepdim=True)
    return F.conv2d(x, weight).mean((2, 3))


def squeeze_excite(m, x):
    y = m.conv(x)
    return m.out((y * m.gate(y.mean((2, 3)))[:, :, None, None].sigmoid()).mean((2, 3)))


def listed(m):
    return plain_attributes(m, kept=[m.a, m.b], by_name={"a": [m.a]})


IMAGE, FEATURES, SERIES = (2, 5, 5), (5,), (3, 5)

KINDS = [
    Kind("mlp", lambda: head(8), FEATURES),
    Kind("deep", lambda: seq(seq(nn.Linear(5, 6), seq(nn.GELU(), nn.Linear(6, 6))), seq(nn.Linear(6, 4))), FEATURES),
    Kind("conv", lambda: conv_net(nn.Identity), IMAGE),
    Kind("relu", lambda: seq(nn.Conv2d(2, 6, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(54, 4)), IMAGE),
    Kind("batch_norm", lambda: conv_net(nn.BatchNorm2d), IMAGE),
    Kind("cumulative_norm", lambda: conv_net(lambda c: nn.BatchNorm2d(c, momentum=None)), IMAGE),
    Kind("batch_norm_1d", lambda: head(6, nn.BatchNorm1d(6)), FEATURES),
    Kind("group_norm", lambda: conv_net(lambda c: nn.GroupNorm(3, c)), IMAGE),
    Kind("layer_norm", lambda: head(6, nn.LayerNorm(6)), FEATURES),
    Kind("rms_norm", lambda: head(6, nn.RMSNorm(6)), FEATURES),
    Kind("instance_norm", lambda: conv_net(lambda c: nn.InstanceNorm2d(c, affine=True)), IMAGE),
    Kind("tracked_instance_norm", lambda: conv_net(lambda c: nn.InstanceNorm2d(c, track_running_stats=True)), IMAGE),
    Kind("local_response", lambda: conv_net(lambda c: nn.LocalResponseNorm(2)), IMAGE),
    Kind("sync_batch_norm", lambda: nn.SyncBatchNorm.convert_sync_batchnorm(conv_net(nn.BatchNorm2d)), IMAGE),
    Kind("rnn", lambda: Of(lambda m, x: m.rnn(x)[0][:, -1], rnn=nn.RNN(5, 4, batch_first=True)), SERIES),
    Kind("lstm", lambda: Of(lambda m, x: m.rnn(x)[0][:, -1], rnn=nn.LSTM(5, 4, 2, batch_first=True)), SERIES),
    Kind(
        "gru", lambda: Of(lambda m, x: m.rnn(x)[1][-1], rnn=nn.GRU(5, 4, bidirectional=True, batch_first=True)), SERIES
    ),
    Kind("lstm_cell", lambda: Of(lambda m, x: m.cell(x)[0], cell=nn.LSTMCell(5, 4)), FEATURES),
    Kind("attention", lambda: Of(attend, qkv=nn.Linear(5, 12), out=nn.Linear(4, 4)), (15,)),
    Kind(
        "multihead", lambda: Of(lambda m, x: m.a(x, x, x)[0], a=nn.MultiheadAttention(4, 2, batch_first=True)), (3, 4)
    ),
    Kind(
        "encoder_layer",
        lambda: Of(encoded, layer=nn.TransformerEncoderLayer(8, 2, 9, 0.0, batch_first=True), out=nn.Linear(8, 4)),
        (24,),
    ),
    Kind("embedding", lambda: seq(nn.Embedding(TOKENS, 3), nn.Flatten(), nn.Linear(21, 4)), (TOKENS, 7)),
    Kind("padded_embedding", lambda: seq(nn.Embedding(TOKENS, 3, 0), nn.Flatten(), nn.Linear(21, 4)), (TOKENS, 7)),
    Kind("embedding_bag", lambda: seq(nn.EmbeddingBag(TOKENS, 3), nn.Linear(3, 4)), (TOKENS, 7), has_second=False),
    Kind("tied", lambda: changed(head(5, after=5), lambda m: setattr(m[3], "weight", m[0].weight)), FEATURES),
    Kind("weight_norm", lambda: head(6, parametrizations.weight_norm(nn.Linear(6, 6))), FEATURES),
    Kind("old_weight_norm", lambda: head(6, nn.utils.weight_norm(nn.Linear(6, 6))), FEATURES),
    Kind("spectral_norm", lambda: head(6, parametrizations.spectral_norm(nn.Linear(6, 6))), FEATURES),
    Kind("old_spectral_norm", lambda: head(6, nn.utils.spectral_norm(nn.Linear(6, 6))), FEATURES),
    Kind(
        "orthogonal", lambda: head(6, parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="cayley")), FEATURES
    ),
    Kind("pruned", lambda: changed(head(6), lambda m: prune.random_unstructured(m[0], "weight", 0.5)), FEATURES),
    Kind("dropout", lambda: head(8, nn.Dropout(0.5)), FEATURES, is_random=True),
    Kind("dropout_2d", lambda: conv_net(lambda c: nn.Dropout2d(0.5)), IMAGE, is_random=True),
    Kind("noise", lambda: Of(lambda m, x: m.body(x + torch.randn_like(x)), body=head(6)), FEATURES, is_random=True),
    Kind(
        "parameter_list",
        lambda: Of(
            lambda m, x: (x @ m.w[0]).tanh() @ m.w[1], w=nn.ParameterList([torch.randn(5, 6), torch.randn(6, 4)])
        ),
        FEATURES,
    ),
    Kind(
        "parameter_dict",
        lambda: Of(
            lambda m, x: x @ m.w["a"] + m.w["b"], w=nn.ParameterDict({"a": torch.randn(5, 4), "b": torch.randn(4)})
        ),
        FEATURES,
    ),
    Kind(
        "module_dict",
        lambda: Of(
            lambda m, x: m.d["b"](m.d["a"](x).tanh()), d=nn.ModuleDict({"a": nn.Linear(5, 6), "b": nn.Linear(6, 4)})
        ),
        FEATURES,
    ),
    Kind("lazy", lambda: called(seq(nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.Tanh(), nn.LazyLinear(4)), 5), FEATURES),
    Kind("channels_last", lambda: conv_net(nn.BatchNorm2d).to(memory_format=torch.channels_last), IMAGE),
    Kind("autocast", lambda: Of(autocast, body=conv_net(nn.BatchNorm2d)), IMAGE, precision=1e-2),
    Kind(
        "checkpointed",
        lambda: Of(
            lambda m, x: m.out(checkpoint(m.body, x, use_reentrant=False)),
            body=seq(nn.Linear(5, 6), nn.Tanh()),
            out=nn.Linear(6, 4),
        ),
        FEATURES,
    ),
    Kind(
        "checkpointed_conv",
        lambda: Of(
            lambda m, x: checkpoint(m.body, x, use_reentrant=False), body=conv_net(lambda c: nn.GroupNorm(2, c))
        ),
        IMAGE,
    ),
    Kind(
        "checkpointed_lambda",
        lambda: Of(
            lambda m, x: checkpoint(lambda x: (x @ m.w).tanh() @ m.v, x, use_reentrant=False),
            w=torch.randn(5, 6),
            v=torch.randn(6, 4),
        ),
        FEATURES,
    ),
    Kind(
        "checkpointed_batch_norm",
        lambda: Of(
            lambda m, x: m.out(checkpoint(m.body, x, use_reentrant=False)),
            body=seq(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU(), nn.Flatten()),
            out=nn.Linear(36, 4),
        ),
        IMAGE,
    ),
    Kind(
        "checkpoint_sequential",
        lambda: Of(lambda m, x: checkpoint_sequential(m.body, 2, x, use_reentrant=False), body=head(6)),
        FEATURES,
    ),
    Kind(
        "checkpointed_dropout",
        lambda: Of(lambda m, x: checkpoint(m.body, x, use_reentrant=False), body=head(6, nn.Dropout(0.3))),
        FEATURES,
        is_random=True,
    ),
    Kind("assigned_buffers", lambda: head(6, AssignedNorm(6)), FEATURES),
    Kind("moving_scale", lambda: head(6, MovingScale()), FEATURES),
    Kind("frozen_part", lambda: changed(head(6), lambda m: m[0].requires_grad_(False)), FEATURES),
    Kind("frozen_weight", lambda: changed(head(6), lambda m: m[0].weight.requires_grad_(False)), FEATURES),
    Kind("frozen_batch_norm", lambda: changed(conv_net(nn.BatchNorm2d), lambda m: frozen(m[1])), IMAGE),
    Kind("batch_norm_in_eval", lambda: changed(conv_net(nn.BatchNorm2d), lambda m: m[1].eval()), IMAGE),
    Kind("batch_norm_frozen_by_train", lambda: Frozen(*conv_net(nn.BatchNorm2d)), IMAGE),
    Kind(
        "residual",
        lambda: Of(lambda m, x: m.out(x + m.body(x)), body=seq(nn.Linear(5, 5), nn.Tanh()), out=nn.Linear(5, 4)),
        FEATURES,
    ),
    Kind(
        "dense",
        lambda: Of(lambda m, x: m.b(torch.cat((x, m.a(x).tanh()), 1)), a=nn.Linear(5, 3), b=nn.Linear(8, 4)),
        FEATURES,
    ),
    Kind("depthwise", lambda: conv_net(nn.Identity, lambda i, o, k: nn.Conv2d(i, o, k, groups=i)), IMAGE),
    Kind("transposed", lambda: seq(nn.ConvTranspose2d(2, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(108, 4)), IMAGE),
    Kind("conv_1d", lambda: seq(nn.Conv1d(3, 4, 3, padding="same"), nn.MaxPool1d(2), nn.Flatten()), SERIES),
    Kind("conv_3d", lambda: seq(nn.Conv3d(1, 4, 2), nn.AdaptiveAvgPool3d(1), nn.Flatten()), (1, 3, 3, 3)),
    Kind("reflected", lambda: seq(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), nn.AvgPool2d(2)), IMAGE),
    Kind("pixel_shuffle", lambda: seq(nn.Conv2d(2, 4, 3, stride=2), nn.PixelShuffle(2), nn.Flatten()), IMAGE),
    Kind("upsampled", lambda: seq(nn.Conv2d(2, 1, 3), nn.Upsample(scale_factor=2, mode="bilinear")), IMAGE),
    Kind("bilinear", lambda: Of(lambda m, x: m.b(x, x), b=nn.Bilinear(5, 5, 4)), FEATURES),
    Kind("prelu", lambda: seq(nn.Linear(5, 6), nn.PReLU(6), nn.Linear(6, 4)), FEATURES),
    Kind(
        "complex_inside",
        lambda: Of(lambda m, x: (torch.view_as_complex(m.w) * x[:, None]).abs().sum(2), w=torch.randn(4, 5, 2)),
        FEATURES,
    ),
    Kind("fourier", lambda: Of(lambda m, x: m.a(torch.fft.rfft(x).abs()), a=nn.Linear(3, 4)), FEATURES),
    Kind("einsum", lambda: Of(lambda m, x: torch.einsum("ni,nj,ijk->nk", x, x, m.w), w=torch.randn(5, 5, 4)), FEATURES),
    Kind(
        "own_function",
        lambda: Of(lambda m, x: OwnLinear.apply(x, m.weight, m).tanh(), weight=torch.randn(4, 5)),
        FEATURES,
    ),
    Kind(
        "forward_hook",
        lambda: changed(head(6), lambda m: m[0].register_forward_hook(lambda m, x, y: y * m.bias)),
        FEATURES,
    ),
    Kind(
        "forward_pre_hook",
        lambda: changed(head(6), lambda m: m[0].register_forward_pre_hook(lambda m, x: (x[0] * m.weight.mean(),))),
        FEATURES,
    ),
    Kind(
        "full_backward_pre_hook",
        lambda: changed(
            nn.Linear(5, 4),
            lambda m: m.register_full_backward_pre_hook(lambda m, g: (g[0] * m.weight.detach().norm(),)),
        ),
        FEATURES,
    ),
    Kind(
        "full_backward_hook",
        lambda: changed(
            head(6), lambda m: m[1].register_full_backward_hook(lambda _, g, __: (g[0] * m[0].weight.detach().norm(),))
        ),
        FEATURES,
    ),
    Kind(
        "tensor_hook", lambda: with_buffer(Of(scaled_gradient, linear=nn.Linear(5, 4)), steps=torch.tensor(0)), FEATURES
    ),
    Kind(
        "hypernetwork",
        lambda: Of(lambda m, x: (m.make(x).view(-1, 4, 5) @ x[:, :, None]).squeeze(2), make=nn.Linear(5, 20)),
        FEATURES,
    ),
    Kind("standardised_weights", lambda: Of(standardised, weight=torch.randn(4, 2, 3, 3)), IMAGE),
    Kind(
        "mixture_of_experts",
        lambda: Of(mixed_experts, gate=nn.Linear(5, 3), experts=nn.ModuleList([nn.Linear(5, 4) for _ in range(3)])),
        FEATURES,
    ),
    Kind(
        "shared_module",
        lambda: Of(lambda m, x: m.out(m.a(m.a(x).tanh())), a=nn.Linear(5, 5), out=nn.Linear(5, 4)),
        FEATURES,
    ),
    Kind(
        "shared_batch_norm",
        lambda: Of(lambda m, x: m.out(m.a(m.a(x).tanh())), a=nn.BatchNorm1d(5), out=nn.Linear(5, 4)),
        FEATURES,
    ),
    Kind("python_state", Counting, FEATURES),
    Kind(
        "weights_in_lists",
        lambda: listed(
            Of(lambda m, x: (x @ m.by_name["a"][0]).tanh() @ m.kept[1], a=torch.randn(5, 6), b=torch.randn(6, 4))
        ),
        FEATURES,
    ),
    Kind(
        "highway",
        lambda: Of(
            lambda m, x: m.out(torch.lerp(x, m.a(x).relu(), m.gate(x).sigmoid())),
            a=nn.Linear(5, 5),
            gate=nn.Linear(5, 5),
            out=nn.Linear(5, 4),
        ),
        FEATURES,
    ),
    Kind(
        "squeeze_excite",
        lambda: Of(squeeze_excite, conv=nn.Conv2d(2, 6, 3), gate=nn.Linear(6, 6), out=nn.Linear(6, 4)),
        IMAGE,
    ),
    Kind(
        "temperature",
        lambda: Of(lambda m, x: m.a(x) * m.scale.exp(), a=nn.Linear(5, 4), scale=torch.zeros(())),
        FEATURES,
    ),
    Kind("cosine_head", lambda: Of(lambda m, x: F.normalize(x) @ F.normalize(m.w).T, w=torch.randn(4, 5)), FEATURES),
    Kind(
        "euler_steps",
        lambda: Of(
            lambda m, x: m.out(x + m.a(x).tanh() + m.a(x + m.a(x).tanh()).tanh()),
            a=nn.Linear(5, 5),
            out=nn.Linear(5, 4),
        ),
        FEATURES,
    ),
    Kind(
        "several_inputs",
        lambda: Of(lambda m, x: m.a(x[:, :2]) * m.b(x[:, 2:]), a=nn.Linear(2, 4), b=nn.Linear(3, 4)),
        FEATURES,
    ),
    Kind(
        "parametrized",
        lambda: changed(
            head(6), lambda m: parametrize.register_parametrization(m[0], "weight", Of(lambda _, w: w.triu()))
        ),
        FEATURES,
    ),
    Kind("sliced_weights", lambda: Of(lambda m, x: x @ m.w[:5] + m.w[5], w=torch.randn(6, 4)), FEATURES),
    Kind(
        "empty_parameter",
        lambda: Of(lambda m, x: m.a(x) + m.none.sum(), a=nn.Linear(5, 4), none=torch.zeros(0, 3)),
        FEATURES,
    ),
]
