"""Configurations: what is accepted, and the one sentence for each thing that is not."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from l2t_ray.assembly.students import build_optimizer
from l2t_ray.bilevel.optimizers import Adam, Sgd
from l2t_ray.interfaces import UserError
from l2t_ray.methods.cross_entropy import CrossEntropyConfig
from l2t_ray.methods.gce import GCEConfig
from l2t_ray.methods.l2t_dln import AdamConfig, L2TDLNConfig, LstmConfig
from l2t_ray.settings import experiment as configuration
from l2t_ray.settings.experiment import ExperimentConfig

CONFIGS = sorted(path for path in Path("configs").rglob("*.yaml") if path.parent.name != "studies")


@pytest.fixture
def load(tmp_path):
    def load(text: str, *overrides: str) -> ExperimentConfig:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return configuration.load(path, overrides)

    return load


@pytest.mark.parametrize("path", CONFIGS, ids=str)
def test_every_shipped_configuration_is_valid(path):
    # The comparisons train two learned losses, one run each; in one run on Ray there is one teacher.
    is_comparison = any(word in path.stem for word in ("noise", "cifar10n", "longtail"))
    config = configuration.load(path, ["ray.enabled=false"] if is_comparison else [])
    assert isinstance(config, ExperimentConfig)
    assert configuration.validate(yaml.safe_load(config.to_yaml()), source="round trip") == config


def test_empty_file_is_the_default_experiment(load):
    assert load("") == ExperimentConfig()


def test_overrides_win_over_the_file(load):
    config = load("training: {learning_rate: 0.3, momentum: 0.5}", "training.learning_rate=1e-3")
    assert config.training.learning_rate == 1e-3
    assert config.training.momentum == 0.5


def test_extends_merges_over_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text("seed: 3\ntraining: {momentum: 0.5, learning_rate: 0.3}\n")
    (tmp_path / "own.yaml").write_text("extends: base.yaml\ntraining: {momentum: 0.9}\n")
    config = configuration.load(tmp_path / "own.yaml")
    assert (config.seed, config.training.momentum, config.training.learning_rate) == (3, 0.9, 0.3)


@pytest.mark.parametrize("override", ["method.teacher=adam", "method.teacher.name=adam"])
def test_another_variant_drops_the_options_of_the_old_one(load, override):
    config = load("method: {engine: recompute, teacher: {name: lstm, horizon: 3}}", override)
    assert isinstance(config.method, L2TDLNConfig)
    assert config.method.teacher == AdamConfig()
    assert config.method.engine == "recompute"


def test_a_section_without_a_name_means_the_default_variant(load):
    config = load("method: {teacher: {step_size: 0.01}}")
    assert config.method.name == "recommended" and config.method.teacher == AdamConfig(step_size=0.01)
    config = load("method: {name: l2t_dln, teacher: {horizon: 3}}")
    assert isinstance(config.method.teacher, LstmConfig) and config.method.teacher.horizon == 3


@pytest.mark.parametrize(
    ("override", "kept"),
    [
        ("method.loss.slope=free", ("channel", 0, 1.0)),
        ("method.loss.memory=2", ("channel", 0, 2.0)),
        ("method.loss={layers: 3}", ("channel", 3, 1.0)),
    ],
)
def test_one_setting_of_the_recommended_loss_leaves_the_others(load, override, kept):
    method = load("", override).method
    loss = method.loss
    assert (method.name, loss.label_entries, loss.layers, loss.memory) == ("recommended", *kept)


def test_a_setting_of_the_recommended_teacher_leaves_it_what_it_is(load):
    assert load("", "method.teacher.step_size=0.01").method.teacher == AdamConfig(step_size=0.01)


def test_controls_are_a_list_of_methods(load):
    assert load("").controls == (CrossEntropyConfig(),)
    assert list(load("", "controls=[]").arms()) == list(load("", "controls=null").arms()) == ["recommended"]
    config = load(
        "", "controls=[cross_entropy, {name: gce, q: 0.5}, {clean_images: mixed}, {name: gce, label: mae, q: 1}]"
    )
    assert list(config.arms()) == ["cross_entropy", "gce", "cross_entropy-mixed", "mae", "recommended"]
    assert config.arms()["gce"] == GCEConfig(q=0.5)
    assert list(load("controls: [gce, glc]", "controls=mw_net").arms()) == ["mw_net", "recommended"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.lerning_rate=1"], "unknown key training.lerning_rate .* did you mean training.learning_rate?"),
        (["image_size=32"], "unknown key image_size .* did you mean data.image_size?"),
        (["num_rounds=3"], "unknown key num_rounds .* did you mean training.num_rounds?"),
        (["data.rate=0.3"], "unknown key data.rate .* did you mean data.noise.rate?"),
        (["trainig.momentum=0"], "unknown key trainig .* did you mean training?"),
        (["method.engin=store"], "unknown key method.engin .* did you mean method.engine?"),
        (["method.teacher.stepsize=1"], "did you mean method.teacher.step_size?"),
        (["training.momentum=1.5"], "training.momentum .* should be less than 1, got 1.5"),
        (["training.optimizer=adamax"], "training.optimizer on the command line: .*'sgd'.*, got 'adamax'"),
        (
            ["training.optimizer=adamw", "training.learning_rate=0.001", "training.momentum=0.9"],
            r"training.momentum is 0.9, and is not read with training.optimizer=adamw; leave it out, or set .*=sgd",
        ),
        (["training.betas=[0.5,0.9]"], r"training.betas is \[0.5, 0.9\], .*training.optimizer=sgd; .*=adam or adamw"),
        (["training.eps=1e-3"], "training.eps is 0.001, and is not read with training.optimizer=sgd"),
        (["training.nesterov=true"], "training.nesterov looks ahead along the momentum, and training.momentum is 0"),
        (["training.optimizer=adam"], "training.learning_rate is 0.1, which is for sgd; set that of adam"),
        (["training.clip=0"], "training.clip on the command line: .*greater than 0"),
        (
            ["training.optimizer=adam", "training.learning_rate=0.001", "training.betas=[0.9,1]"],
            "training.betas.* should be less than 1",
        ),
        (["training.num_rounds=many"], "training.num_rounds on the command line: must be a number, got 'many'"),
        (["method.name=magic"], "method.name .* must be one of .*'l2t_dln'.*, got 'magic'"),
        (["data.noise.rate=0.4"], "noise.rate is 0.4 but noise.kind is 'none'; set noise.kind=flip_to_two"),
        (["ray.num_workers=30"], "training.batch_size is 25, fewer than ray.num_workers=30"),
        (["method=cross_entropy"], "two of controls and method are both called 'cross_entropy'"),
        (["controls=[{name: gce, qq: 1}]"], r"unknown key controls.0.qq .* did you mean controls.0.q\?"),
        (["controls=[{name: magic}]"], "controls.0.name .* must be one of .*'gce'.*, got 'magic'"),
        (["controls=[gce, {name: gce, label: ../x}]"], "controls.1.label"),
        (["controls=[glc]", "data.split=redivide"], "glc trains on validation images"),
        (["controls=[{name: l2t_dln, label: other}]"], "on Ray l2t_dln can be the method alone"),
        (["method=l2t_dln", "method.teacher.head=hidden"], "needs a last cell of 1 unit, got teacher.cells"),
        (["name=../elsewhere"], "name '../elsewhere' must be a plain directory name"),
        ([f"name={'x' * 300}"], "must be a plain directory name"),
        (["training.learning_rate=.inf"], "training.learning_rate on the command line: must be a number, got '.inf'"),
        (["method=l2t_dln", "method.teacher.cells=[]"], "method.teacher.cells .* at least 1"),
        (["device=cuda"], "device=cuda is for runs without Ray"),
        (["student.sync_batchnorm=true", "method.engine=forward_over_reverse"], "cannot be differentiated forward"),
        (["seed"], "override 'seed' is not of the form key.sub=value"),
        (["a..b=1"], "override 'a..b=1' is not of the form key.sub=value"),
        (["seed=[1"], "is not valid YAML"),
        (
            ["tracking=sq"],
            r"tracking on the command line is a section with the keys mlflow, .*; set for instance tracking.mlflow=sq",
        ),
        (["data.imbalance.factor=10"], "imbalance.factor is 10 but imbalance.kind is 'none'; set imbalance.kind="),
        (["data.imbalance.kind=step"], "imbalance.kind is 'step'; set imbalance.factor too, for instance to 100"),
        (["data.imbalance={kind: step, factor: 2000}"], "data.imbalance.factor"),
        (
            ["data.imbalance={kind: step, factor: 20}", "data.split=redivide"],
            "with data.split=redivide every image is trained on in turn; set data.split=fixed",
        ),
        (["data.noise.kind=labels"], "noise.kind is 'labels'; set noise.file"),
        (["data.noise.file=x.npy"], "noise.file and noise.column are not read with noise.kind=none"),
        (["data.noise.kind=labels", "data.noise.file=x.npy", "data.noise.rate=0.2"], "the file decides; remove it"),
        (
            ["method.loss.layers=1"],
            "loss cannot be made with layers=1, .* needs hidden >= 1 and layers >= 2, .*; set loss",
        ),
        (
            ["method=l2t_dln", "method.loss.layers=0", "method.loss.label_entries=constant"],
            "without channel and memory it has nothing to learn; set loss.layers to 2 or more, or ",
        ),
        (
            ["method.loss.layers=0", "method.loss.init=gce"],
            "layers is 0, cross-entropy on softmax pairs, and loss.pairs is 'softmax', loss.init 'gce'",
        ),
        (
            ["method.loss.memory=yes"],
            "method.loss.memory on the command line: must be a number, got True",
        ),
        (["training.num_rounds=true"], "training.num_rounds on the command line: must be a number, got True"),
        (
            ["method.loss.memory=1", "method.batch_norm_buffers=dropped"],
            "no answers to remember; set method.batch_norm_buffers=kept or loss.memory=null",
        ),
        (
            ["method=l2t_dln", "method.loss.layers=0"],
            "layers is 0, and a table needs layers to read it; set loss.label_en",
        ),
        (["controls=glc", "data.validation_labels=observed"], "glc learns from clean validation labels"),
        (
            ["method=mentornet", "method.curriculum=data_driven", "data.validation_labels=observed"],
            "mentornet learns from clean validation labels",
        ),
    ],
)
def test_a_mistake_gets_one_sentence(load, overrides, message):
    with pytest.raises(UserError, match=message) as error:
        load("", *overrides)
    assert "\n" not in str(error.value)


def test_problems_with_files(tmp_path):
    with pytest.raises(UserError, match=r"cannot read the configuration .*none.yaml: No such file"):
        configuration.load(tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [1")
    with pytest.raises(UserError, match="is not valid YAML"):
        configuration.load(bad)
    bad.write_text("- 1")
    with pytest.raises(UserError, match="must hold keys and values, got a list"):
        configuration.load(bad)
    bad.write_text("extends: 5")
    with pytest.raises(UserError, match="must be the path of another configuration, got 5"):
        configuration.load(bad)
    bad.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="is not a text file in UTF-8"):
        configuration.load(bad)
    bad.write_text("extends: bad.yaml")
    with pytest.raises(UserError, match="extends itself"):
        configuration.load(bad)


def test_released_configuration_is_the_released_code():
    """The sizes that the released code has, from the numbers of its own source."""
    config = configuration.load(Path("configs/released/cifar10_resnet8.yaml"))
    training, method = config.training, config.method
    assert isinstance(method, L2TDLNConfig) and isinstance(method.teacher, LstmConfig)
    assert (training.num_steps, training.batch_size, training.val_batch_size) == (15, 25, 100)
    assert (training.learning_rate, training.momentum, training.weight_decay, training.decay) == (0.1, 0, 0, "constant")
    assert training.num_rounds == 10 * (25_000 // 100)
    assert method.schedule == "lookahead" and method.batch_norm_buffers == "dropped"
    assert method.teacher.cells == (64, 64, 64, 1) and method.teacher.horizon == 1
    assert method.loss.pairs == "sigmoid" and method.loss.label_entries == "constant"


def test_an_optimizer_is_built_as_it_is_set(load):
    lines = "training: {optimizer: adamw, learning_rate: 0.001, betas: [0.8, 0.99], weight_decay: 0.1, clip: 2}"
    expected = Adam((0.8, 0.99), weight_decay=0.1, decoupled=True, clip=2.0)
    assert build_optimizer(load(lines).training) == expected
    coupled = load(lines, "training.optimizer=adam", "training.eps_root=1e-6", "training.eps=1e-4").training
    assert build_optimizer(coupled) == replace(expected, decoupled=False, eps=1e-4, eps_root=1e-6)
    nesterov = load("training: {momentum: 0.9, nesterov: true, weight_decay: 0.1, clip: 1}").training
    assert build_optimizer(nesterov) == Sgd(0.9, 0.1, nesterov=True, clip=1.0)
