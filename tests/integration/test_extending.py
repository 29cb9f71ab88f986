"""The page on bringing one's own keeps its word: its files run as printed, and their hypergradient is exact."""

import json
import shutil
from contextlib import ExitStack, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pages import PAGES

import l2t_ray
from l2t_ray.bilevel.engines import ENGINES
from l2t_ray.bilevel.flat import FlatModule
from l2t_ray.bilevel.hypergradient import hypergradient, naive_hypergradient
from l2t_ray.bilevel.optimizers import Sgd
from l2t_ray.core.loss.family import LossFamily
from l2t_ray.core.objective import LearnedObjective
from l2t_ray.core.student import StudentSchedule, Trainee
from l2t_ray.interfaces import Data, Method, Task
from l2t_ray.parallel.group import SingleProcess
from l2t_ray.run import Experiment
from l2t_ray.tasks.classification import Classification
from l2t_ray.tracking.metrics import read_rows

CONFIGS = Path(__file__).parents[2] / "configs"
PAGE = PAGES["docs/extending.md"]


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    """What the page's last file defines, run once from a directory that has all of them, and what it printed."""
    directory = tmp_path_factory.mktemp("page")
    with ExitStack() as stack:
        with redirect_stdout(StringIO()) as printed:
            ran = stack.enter_context(PAGE.ran(directory))
        yield SimpleNamespace(**vars(ran.modules["assembly"]), printed=printed.getvalue(), directory=directory)


def test_each_file_is_short():
    assert sorted(PAGE.modules) == [
        "assembly",
        "corpus",
        "sentences",
        "small_loss",
        "smoothing",
        "tagger",
        "tagging",
        "thumbnails",
    ]
    lengths = {name: len(text.splitlines()) for name, text in PAGE.files.items() if name.endswith(".py")}
    assert {name: length for name, length in lengths.items() if not 10 <= length <= 40} == {}


def test_every_fenced_example_is_one_of_the_files():
    assert all(block.file for block in PAGE.python)


def test_the_assembly_trains_both_arms(assembly):
    rows = {
        name: [row for row in assembly.checkpoint.rows if row["arm"] == name] for name in ("smoothing", "small_loss")
    }
    for own in rows.values():
        assert len(own) == 3 and own[-1]["test_accuracy"] > max(own[0]["test_accuracy"], 0.5)  # chance is a quarter
    amounts = [row["smoothing"] for row in rows["smoothing"]]
    assert amounts[0] == pytest.approx(0.1) and amounts[0] != amounts[1] != amounts[2]
    assert len(assembly.printed.splitlines()) == 6


def command_with(part):
    """Configuration and overrides of the page's command that has this part."""
    (command,) = (words for words in PAGE.commands if part in " ".join(words))
    return command[3:]


PLAIN = ["ray.enabled=false", "tracking.mlflow=false", "name=page"]


@pytest.fixture(scope="module")
def whole(assembly):
    """The page's job, in this process, with everything that it leaves behind."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(assembly.directory)
        yield Experiment.from_yaml("own.yaml", PLAIN).run(quiet=True)


def test_the_page_trains_as_a_job_with_nothing_but_parts_of_ones_own(whole):
    learned = whole.summaries[-1]
    assert [one["arm"] for one in whole.summaries] == ["cross_entropy", "SmallLossConfig", "l2t_dln"]
    assert min(one["test_accuracy"] for one in whole.summaries) > 0.6  # chance is a quarter
    assert len({one["val_error"] for one in whole.summaries}) == 3
    amounts = [row["smoothing"] for row in read_rows(whole.directory / "metrics.parquet") if row["arm"] == "l2t_dln"]
    assert amounts[0] == pytest.approx(0.1) and len(set(amounts)) == 4
    with np.load(whole.directory / "confusion.npz") as confusions:
        confusion = confusions["l2t_dln"]
    assert confusion.shape == (4, 4) and confusion.sum() < 150 * 12  # padding is no word
    assert confusion.trace() / confusion.sum() == pytest.approx(learned["test_accuracy"])
    assert (whole.directory / "figures/confusion.png").exists()


@pytest.fixture(scope="module")
def ended(assembly):
    """The page's job without controls, with a checkpoint after each of its last rounds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(assembly.directory)
        parts = ["name=ended", "training.checkpoint_every=1", "controls=[]"]
        yield Experiment.from_yaml("own.yaml", [*PLAIN, *parts]).run(quiet=True, figures=False)


@pytest.fixture
def stopped(ended, assembly, tmp_path, monkeypatch):
    """A directory of the same job, stopped one round before its end."""
    monkeypatch.chdir(assembly.directory)
    shutil.copytree(ended.directory, tmp_path / "stopped")
    for path in sorted((tmp_path / "stopped/checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    (tmp_path / "stopped/summary.json").unlink()
    return tmp_path / "stopped"


def test_the_page_s_job_goes_on_where_it_was_stopped_bit_for_bit(whole, ended, stopped, capsys):
    again = Experiment.resume(stopped).run(figures=False)
    assert "from round 3 of l2t_dln" in " ".join((said := capsys.readouterr().out).split())
    assert "changed since" not in said
    assert again.summaries[-1]["val_error"] == ended.summaries[-1]["val_error"] == whole.summaries[-1]["val_error"]


def test_a_run_whose_modules_changed_goes_on_with_a_warning_that_names_them(stopped, assembly, capsys):
    """`tagging` is named by the job and imported by `corpus`, which stays as it was."""
    code = json.loads((stopped / "fingerprint.json").read_text())["code"]
    assert {"tagging", "corpus", "tagger", "smoothing"} <= code.keys() and "l2t_ray.interfaces" not in code
    path = assembly.directory / "tagging.py"
    text = path.read_text()
    path.write_text(text + "# mended\n")
    try:
        Experiment.resume(stopped).run(figures=False)
    finally:
        path.write_text(text)
    (said,) = " ".join(capsys.readouterr().out.split()).split("warning: ")[1:]
    assert said.startswith("tagging changed since the checkpoint was written: from here on the run is trained by what")


def test_the_hypergradient_of_the_page_s_job_is_exact(whole, assembly, monkeypatch):
    monkeypatch.chdir(assembly.directory)
    errors, is_exact = Experiment.from_yaml("own.yaml", [*PLAIN, "name=checked"]).check_hypergradient()
    assert is_exact and errors["float64"] < 1e-9


def test_the_job_takes_the_student_by_its_import_path(assembly, monkeypatch):
    config, *overrides = command_with("student=")
    few = ["training={num_rounds: 1, num_steps: 2}", "method=cross_entropy", "controls=[]"]
    monkeypatch.chdir(assembly.directory)
    experiment = Experiment.from_yaml(
        CONFIGS / Path(config).name, [*overrides, *few, "ray.enabled=false", "tracking.mlflow=false", "name=student"]
    )
    assert experiment.run(quiet=True, figures=False).summaries[0]["rounds"] == 1
    assert Experiment.resume(experiment.directory).config.student.options() == {"width": 32, "bias": True}


def test_the_job_takes_the_method_by_its_import_path(assembly, monkeypatch):
    """As the page's command says, in this process and for a few steps; it goes on from what it wrote down."""
    config, *overrides = command_with("method=small_loss")
    few = ["training={num_rounds: 2, num_steps: 2}", "student.name=lenet", "data.num_train=60"]
    plain = ["ray.enabled=false", "tracking.mlflow=false", "name=own", "controls=[small_loss:SmallLossConfig]"]
    monkeypatch.chdir(assembly.directory)
    experiment = Experiment.from_yaml(CONFIGS / Path(config).name, [*overrides, "method.label=easy", *few, *plain])
    result = experiment.run(quiet=True, figures=False)
    assert [summary["arm"] for summary in result.summaries] == ["SmallLossConfig", "easy"]
    assert result.summaries[0]["test_error"] != result.summaries[1]["test_error"]
    (result.directory / "summary.json").unlink()
    again = Experiment.resume(result.directory)
    assert again.config.method == experiment.config.method and again.config.method.share == 0.6
    assert again.run(quiet=True, figures=False).summaries == result.summaries


def test_the_job_takes_the_loss_family_by_its_import_path(assembly, monkeypatch):
    config, *overrides = command_with("method.loss=")
    few = ["training={num_rounds: 2, num_steps: 2}", "student.name=lenet", "data.num_train=60", "controls=[]"]
    monkeypatch.chdir(assembly.directory)
    experiment = Experiment.from_yaml(
        CONFIGS / Path(config).name, [*overrides, *few, "ray.enabled=false", "tracking.mlflow=false", "name=family"]
    )
    result = experiment.run(quiet=True, figures=False)
    amounts = read_rows(result.directory / "metrics.parquet")
    assert amounts[0]["smoothing"] == pytest.approx(0.2) != amounts[1]["smoothing"]
    assert Experiment.resume(result.directory).config.method == experiment.config.method


def test_fit_takes_the_loss_family_as_an_object_and_by_its_import_path(assembly):
    inputs, labels = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3
    sets = {"train": (inputs, labels), "validation": (inputs, labels), "num_rounds": 3, "num_steps": 2}
    model = torch.nn.Linear(4, 3)
    family = assembly.loss.__class__(Classification(), 0.1)
    results = [
        l2t_ray.fit(model, **sets, val_batch_size=20, method="l2t_dln", loss=loss)
        for loss in (family, "smoothing:SmoothingConfig")
    ]
    first, second = ([row["smoothing"] for row in result.rows] for result in results)
    assert first == second and first[0] == pytest.approx(0.1) and len(set(first)) == 3
    assert torch.equal(results[0].loss.phi, results[1].loss.phi) and results[0].loss.family is family
    with pytest.raises(TypeError, match="Smoothing lacks what a loss that is used outside its training has"):
        results[0].loss.save("loss.safetensors")


def test_its_classes_keep_the_protocols(assembly):
    assert isinstance(assembly.task, Task) and isinstance(assembly.data, Data)
    assert isinstance(assembly.loss, LossFamily)
    assert all(isinstance(arm.method, Method) for arm in assembly.arms)


def test_padding_is_no_row_and_weights_add_up_to_one(assembly):
    batch = assembly.data.round(0).train[0]
    outputs = torch.randn(*batch.targets.shape, 4)
    elsewhere = torch.where((batch.targets == assembly.PADDING)[..., None], outputs + 1, outputs)
    rows, same = (assembly.task.terms(x, batch).rows for x in (outputs, elsewhere))
    assert rows.weights.sum().item() == pytest.approx(1)
    assert len(rows.labels) == assembly.task.num_rows(batch.targets).sum() < batch.targets.numel()
    assert torch.equal(rows.logits, same.logits)


def in_double(batch):
    return batch._replace(weights=batch.weights.double())


@pytest.mark.parametrize("engine", ENGINES)
def test_the_hypergradient_of_its_family_is_that_of_autograd(assembly, engine):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        student = FlatModule(assembly.Tagger(50, 4).double())
    trainee = Trainee(student, assembly.task, StudentSchedule(lambda step: 0.5, 3, Sgd(momentum=0.9)), SingleProcess())
    train, val = assembly.data.round(0)
    train, val = [in_double(batch) for batch in train[:3]], in_double(val)
    objective = LearnedObjective(trainee, assembly.loss)
    problem, phi = objective.problem(objective.init()), assembly.loss.phi.double()
    arguments = (problem, trainee.initial(), phi, train, val)
    exact = naive_hypergradient(*arguments, rates=[0.5] * 3).gradient
    found = hypergradient(*arguments, rates=[0.5] * 3, engine=engine).gradient
    assert exact.abs() > 1e-5
    assert found.item() == pytest.approx(exact.item(), rel=1e-10)
