"""A loss that is learned while Lightning trains."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from l2t_ray.interfaces import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # Lightning's own, of loaders and workers


@pytest.fixture(scope="module")
def lightning():
    return pytest.importorskip("lightning")


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    inputs = torch.randn(90, 2, generator=generator) + 3 * torch.eye(3)[labels, :2]
    return DataLoader(TensorDataset(inputs[:60], labels[:60]), batch_size=6), (inputs[60:], labels[60:])


@pytest.fixture
def fitted(lightning, data, tmp_path):
    """`fitted(epochs, ...)`: module, trainer and callback after a fit."""
    from l2t_ray.lightning import LearnLoss

    class Module(lightning.LightningModule):
        def __init__(self, attribute="criterion", num_optimizers=1):
            super().__init__()
            self.net, self.num_optimizers = nn.Linear(2, 3), num_optimizers
            self.automatic_optimization = num_optimizers == 1  # Lightning's own condition
            setattr(self, attribute, nn.CrossEntropyLoss())

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, number):
            return self.criterion(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return [torch.optim.AdamW(self.parameters(), 0.05) for _ in range(self.num_optimizers)]

    def fit(epochs, *, module=None, learning=None, ckpt_path=None, **options):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = Module(**(module or {}))
        callback = LearnLoss(data[1], **(learning or {"every": 2}))
        trainer = lightning.Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **options,
        )
        trainer.fit(module, data[0], ckpt_path=ckpt_path)
        return module, trainer, callback

    return fit


def test_the_trainers_own_loop_learns_the_loss_and_keeps_the_modules(fitted):
    module, trainer, callback = fitted(
        3, precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=0.1, learning={"every": 2}
    )
    assert callback.teacher.num_changes == 6  # of 15 steps, two of which are warm
    assert callback.loss.phi.any() and not callback.loss.phi.requires_grad
    assert isinstance(module.criterion, nn.CrossEntropyLoss)
    assert set(module.state_dict()) == {"net.weight", "net.bias"}
    logged = trainer.callback_metrics
    assert logged["learned_loss/hypergradient_norm"] > 0 and "learned_loss/validation_error" in logged


def test_a_fit_that_goes_on_from_a_checkpoint_ends_as_the_undisturbed_one(fitted, tmp_path):
    learning = {"every": 2, "warm_steps": 6, "teacher": "lstm"}
    whole, _, expected = fitted(2, learning=learning)
    _, trainer, _ = fitted(1, learning=learning)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _, callback = fitted(2, learning=learning, ckpt_path=tmp_path / "half.ckpt")
    assert callback.teacher.num_changes == expected.teacher.num_changes == 7
    assert torch.equal(callback.loss.phi, expected.loss.phi) and callback.loss.phi.any()
    assert torch.equal(resumed.net.weight, whole.net.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"module": {"attribute": "other"}}, "the module has no loss in its attribute 'criterion'"),
        ({"module": {"num_optimizers": 2}}, "learned through one optimizer, and the module has 2"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_before_its_first_step(fitted, options, message):
    with pytest.raises(UserError, match=message):
        fitted(1, **options)


def test_an_endless_fit_asks_for_the_warm_steps(fitted):
    with pytest.raises(UserError, match="nobody knows how long the trainer trains"):
        fitted(-1, learning={})


def test_a_callback_that_has_fitted_nothing_says_so(lightning):
    from l2t_ray.lightning import LearnLoss

    with pytest.raises(UserError, match="no loss has been learned yet"):
        _ = LearnLoss(None).loss
