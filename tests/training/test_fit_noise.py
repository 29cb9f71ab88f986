"""What `fit` says of the label noise that it found."""

import pytest
import torch
from torch import nn

from l2t_ray.assembly.fit import fit


@pytest.mark.parametrize("warm_share", [0.0, 0.5])
def test_fit_gives_the_estimate_back_with_its_errors(warm_share, caplog):
    """Twelve to one training examples without any noise, judged by as many of either class."""
    caplog.set_level("INFO", logger="l2t_ray")
    generator = torch.Generator().manual_seed(0)

    def blobs(*counts):
        labels = torch.repeat_interleave(torch.arange(2), torch.tensor(counts))
        return torch.randn(len(labels), 2, generator=generator) + 3 * nn.functional.one_hot(labels, 2), labels

    model = nn.Linear(2, 2)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    sizes = {"num_rounds": 8, "num_steps": 10, "batch_size": 20, "val_batch_size": 40}
    noise = fit(model, train=blobs(600, 50), validation=blobs(100, 100), warm_share=warm_share, **sizes).noise
    if warm_share == 0:
        assert noise is None
        return
    assert noise.shares[1] == pytest.approx(1 / 13, abs=0.02)  # the validation set has 1/2
    assert (noise.channel.diagonal() > 0.9).all()
    assert noise.channel_error.isfinite().all() and (noise.channel_error > 0).all()
    assert f"label noise: {noise}" in caplog.messages
