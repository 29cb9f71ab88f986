"""A loss that is learned while Hugging Face's Trainer trains a tiny transformer, made from a configuration."""

import pytest
import torch

from l2t_ray.core.loss.learned import LearnedLoss
from l2t_ray.interfaces import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # those of transformers itself


def items(count):
    """Sequences of 8 tokens whose first one says the class."""
    generator = torch.Generator().manual_seed(count)
    tokens = torch.randint(3, 17, (count, 8), generator=generator)
    tokens[:, 0] = torch.arange(count) % 3
    return [{"input_ids": row, "labels": int(row[0])} for row in tokens]


@pytest.fixture
def make(tmp_path):
    """`make(**arguments)`: a trainer of a fresh model."""
    transformers = pytest.importorskip("transformers")
    from l2t_ray.huggingface import LearnedLossTrainer

    def trainer(directory="out", learning=None, more=None, **arguments):
        transformers.set_seed(0)
        config = transformers.BertConfig(
            vocab_size=17,
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=8,
            num_labels=3,
        )
        model = transformers.AutoModelForSequenceClassification.from_config(config)
        given = {
            "max_steps": 8,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-2,
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 2,
        }
        return LearnedLossTrainer(
            model,
            transformers.TrainingArguments(str(tmp_path / directory), **given | arguments),
            train_dataset=items(48),
            clean_dataset=items(21),
            learning={"every": 2} | (learning or {}),
            **more or {},
        )

    return trainer


def test_the_trainers_own_loop_learns_the_loss(make):
    """Through attention, AdamW in two groups, clipping, accumulation and bf16."""
    trainer = make(gradient_accumulation_steps=2, bf16=True, max_grad_norm=0.1)
    trainer.train()
    assert trainer.teacher.num_changes == 3 and trainer.loss.phi.any()
    logged = [entry for entry in trainer.state.log_history if "learned_loss_hypergradient_norm" in entry]
    assert logged and all(entry["learned_loss_hypergradient_norm"] > 0 for entry in logged)
    assert trainer.evaluate(items(9))["eval_loss"] > 0


def test_a_checkpoint_holds_the_loss_and_goes_on_to_the_bit(make, tmp_path):
    whole = make("whole")
    whole.train()
    half = make("half", save_strategy="steps", save_steps=4)
    half.train()
    resumed = make("resumed")
    checkpoint = tmp_path / "half/checkpoint-4"
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert resumed.teacher.num_changes == whole.teacher.num_changes
    assert torch.equal(resumed.loss.phi, whole.loss.phi)
    for own, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(own, other)
    kept = LearnedLoss.load(checkpoint / "loss.safetensors").phi
    assert kept.any() and not torch.equal(kept, whole.loss.phi)
    (checkpoint / "loss_teacher.pt").unlink()
    with pytest.raises(UserError, match=r"has no loss_teacher\.pt: no loss was learned there"):
        make("again").train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1 is for the Trainer's own loss"),
        ({"more": {"compute_loss_func": print}}, "compute_loss_func is another loss than the one that is learned"),
        ({"optim": "adafactor"}, "optimizer must be torch.optim.SGD, Adam or AdamW, .* got Adafactor"),
    ],
)
def test_what_does_not_go_with_a_learned_loss_is_refused(make, options, message):
    with pytest.raises(UserError, match=message):
        make(**options).train()


def test_a_trainer_that_has_trained_nothing_says_so(make):
    with pytest.raises(UserError, match="no loss has been learned yet"):
        _ = make().loss
