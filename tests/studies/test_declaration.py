"""Studies are read from YAML, and a bad one is refused in one sentence that says what to do."""

import os
from pathlib import Path

import pytest

from l2t_ray.interfaces import UserError
from l2t_ray.reports.paper_accuracies import ABLATION, LEARNING_RATES, SIMILARITY
from l2t_ray.studies.command import overridden
from l2t_ray.studies.declaration import load_study
from l2t_ray.studies.sweep import Sweep
from l2t_ray.studies.trials import axes, trials
from l2t_ray.tasks.classification import Classification
from l2t_ray.tasks.segmentation import Segmentation

SHIPPED = sorted((Path(__file__).parents[2] / "configs/studies").glob("*.yaml"))


def reads_files(path):
    """Whether its trials cannot be put together without image files: their anchors are found among the boxes."""
    return path.stem.startswith("bccd_")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.data] if reads_files(path) else [], id=path.stem) for path in SHIPPED],
)
def test_all_trials_of_the_shipped_studies_are_possible_experiments(path, tmp_path):
    study = load_study(path)
    if reads_files(path) and not (Path(os.environ["L2T_DATA"]) / "bccd").is_dir():
        pytest.skip("no BCCD there")
    for size in [*study.sizes] or [None]:
        found = trials(study.at(size), tmp_path, source=path.name)
        assert len({trial.name for trial in found}) == len(found)
        assert len(found) % len(study.at(size).seeds) == 0
        assert all(trial.config.controls == () and trial.config.data.root.is_absolute() for trial in found)
        what_runs = {trial.config.model_copy(update={"name": None}).to_yaml() for trial in found}
        assert len(what_runs) == len(found)  # a case that its base overrules would run as another one


def test_digits_has_five_seeds_and_no_ray_train():
    for path in SHIPPED:
        if "digits" in (study := load_study(path)).sizes:
            assert len(study.at("digits").seeds) >= 5 and study.at("digits").settings["ray.enabled"] is False


def test_the_papers_numbers_are_those_of_the_report_on_noise():
    folder = SHIPPED[0].parent
    similarity, ablation, rates = (
        load_study(folder / f"{name}.yaml").paper for name in ("similarity", "ablation", "lr_robustness")
    )
    names = {"cosine": "cosine", "dot": "dot", "Minkowski": "minkowski", "SNR": "snr"}
    assert {k: similarity[n] for n, k in names.items()} == {k: p.accuracy for k, p in SIMILARITY.items()}
    rows = {"DLN (Adam)": (False, False), "DLN + LSTM": (True, False), "DLN + DR": (False, True)}
    rows["DLN + LSTM + DR"] = (True, True)
    assert {k: ablation[n] for n, k in rows.items()} == {k: p.accuracy for k, p in ABLATION.items()}
    for row, arm in {"SLF": "slf", "L2T-DLN": "l2t_dln"}.items():
        assert {float(k): v for k, v in rates[row].items()} == {k: p.accuracy for k, p in LEARNING_RATES[arm].items()}


def test_trials_are_all_combinations_and_seeds_vary_slowest(start):
    sweep = start(seeds=[3, 5])
    assert axes(sweep.study) == ["case", "training.learning_rate"]
    assert [(trial.cell, trial.seed) for trial in sweep.trials] == [
        ((case, rate), seed) for seed in (3, 5) for case in ("cross-entropy", "learned") for rate in ("0.05", "0.1")
    ]
    last = sweep.trials[-1].config
    assert (last.seed, last.training.learning_rate, last.method.name) == (5, 0.1, "l2t_dln")
    assert sweep.trials[0].config.method.name == "cross_entropy"


def test_a_size_replaces_what_it_names(write):
    study = load_study(
        write(
            sizes={
                "digits": {"seeds": 2, "settings": {"training.num_rounds": 7}},
                "full": {"grid": {"data.name": ["mnist"]}},
            }
        )
    )
    assert study.at("digits").seeds == (0, 1) and study.at("digits").settings["training.num_rounds"] == 7
    assert study.at("full").seeds == (0,) and list(study.at("full").grid) == ["training.learning_rate", "data.name"]
    with pytest.raises(UserError, match=r"--size is small; this study's sizes are: digits, full\."):
        study.at("small")


def test_draws_are_the_same_every_time_and_within_their_bounds(start):
    distributions = {
        "training.learning_rate": {"log_uniform": ["1e-3", 1]},  # YAML 1.1 reads 1e-3 as text
        "training.momentum": {"uniform": [0, 0.9]},
        "training.num_steps": {"integers": [1, 2]},
        "training.decay": {"choice": ["constant", "cosine"]},
    }
    options = {"cases": {}, "grid": {}, "distributions": distributions, "samples": 30}
    drawn, again = ([trial.config.training for trial in start(runs, **options).trials] for runs in ("first", "second"))
    assert drawn == again
    assert all(1e-3 <= t.learning_rate <= 1 and t.momentum <= 0.9 for t in drawn)
    assert {t.num_steps for t in drawn} == {1, 2} and {t.decay for t in drawn} == {"constant", "cosine"}
    assert sum(t.learning_rate < 0.0316 for t in drawn) in range(6, 25)  # the median, within 3 standard deviations


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grids": {}}, r"unknown key grids in .*tiny\.yaml, line \d+; did you mean grid\?"),
        ({"grid": {"training.learning_rte": [1]}}, r"unknown key training\.learning_rte in trial .*; did you mean"),
        ({"grid": {"training.learning_rate": [-1]}}, r"training\.learning_rate in trial 'cross-entropy, -1' .*greater"),
        ({"grid": {"training.learning_rate": []}}, r"grid\.training\.learning_rate in .*at least 1"),
        ({"grid": {"seed": [1, 2]}}, r"seed is set by the study itself; take it out"),
        ({"cases": {}, "grid": {}}, r"a study varies something; give cases, a grid or distributions"),
        ({"seeds": 0}, r"seeds must be a number of seeds or a list of them, got 0 \(in .*tiny\.yaml, line \d+\)"),
        ({"metric": "accuracy"}, r"metric in .*'test_accuracy'"),
        ({"base": "nowhere.yaml"}, r"cannot read the configuration .*nowhere\.yaml"),
        ({"distributions": {"training.momentum": {"uniform": [0, 1], "choice": [1]}}}, r"exactly one of uniform"),
        ({"distributions": {"training.momentum": {"uniform": [1, 0]}}}, r"uniform goes from low to high, got \[1"),
        ({"distributions": {"training.learning_rate": {"uniform": [0, 1]}}}, r"in the grid and in the distributions"),
        ({"sizes": {"tiny": {}}}, r"sizes\.tiny"),
        ({"seeds": "five"}, r"seeds must be a number of seeds or a list of them, got 'five'"),
        ({"seeds": [1, 1]}, r"seeds has a seed twice"),
        ({"grid": {"training.learning_rate": 0.1}}, r"a list of values for each key, or labels and values, got 0\.1"),
        ({"grid": {"training.learning_rate": [0.1, 0.10]}}, r"the grid has a value twice"),
        (
            {"grid": {"ray.enabled": [True, False]}},
            r"ray\.enabled is the same for all trials; give it under `settings`",
        ),
        (
            {"cases": ["cross_entropy"]},
            r"cases in .*tiny\.yaml, line \d+: must hold keys and values, got \['cross_entropy'\]",
        ),
        ({"base": "tiny.yaml"}, r"base in .*tiny\.yaml names this file itself"),
        ({"asha": True}, r"asha in .*tiny\.yaml, line \d+ is a section with the keys grace_rounds, reduction"),
        ({"search": "tpe"}, r"search in .*'random' or 'optuna', got 'tpe'"),
        ({"search": "optuna"}, r"search: optuna chooses among distributions alone; take cases and grid out"),
        ({"paper": {"cross entropy": {"0.1": 1}}}, r"has a row 'cross entropy'; its rows are cross-entropy, learned"),
        ({"paper": {"learned": {"0.3": 1}}}, r"has a column '0\.3'; its columns are 0\.05, 0\.1"),
        ({"paper": {"learned": 90}}, r"paper\.learned of the study tiny must be a number for each column"),
        ({"grid": {}, "paper": {"learned": {"0.1": 1}}}, r"paper\.learned of the study tiny must be one number"),
        (
            {"sizes": {"digits": {"setings": {}}}},
            r"unknown key sizes\.digits\.setings .*did you mean sizes\.digits\.settings",
        ),
    ],
)
def test_a_bad_study_gets_one_sentence_and_leaves_nothing_behind(write, tmp_path, changes, message):
    with pytest.raises(UserError, match=message) as caught:
        Sweep.start(load_study(write(**changes)), tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_an_experiment_is_not_a_study(write):
    with pytest.raises(UserError, match=r"experiment\.yaml holds an experiment, not a study; name it as `base`"):
        load_study(write().parent / "experiment.yaml")
    (path := write()).write_text("title: Nothing else\n")
    with pytest.raises(UserError, match=r"tiny\.yaml lacks base, which must be given\."):
        load_study(path)


def test_overrides_are_settings_of_all_trials(write):
    study = load_study(write())
    changed = overridden(study, ["training.num_rounds=2"], 3)
    assert changed.settings["training.num_rounds"] == 2 and changed.seeds == (0, 1, 2)
    with pytest.raises(UserError, match=r"override training\.learning_rate is of a key that the study varies"):
        overridden(study, ["training.learning_rate=1"], None)


def test_a_study_is_begun_once(start, tmp_path):
    sweep = start()
    with pytest.raises(UserError, match=r"holds a study already; go on with --resume"):
        start()
    (tmp_path / "experiment.yaml").write_text("training: {num_rounds: 77}")  # too late
    again = Sweep.resume(sweep.directory)
    assert [trial.name for trial in again.trials] == [trial.name for trial in sweep.trials]
    assert [trial.config for trial in again.trials] == [trial.config for trial in sweep.trials]
    with pytest.raises(UserError, match=r"holds no study"):
        Sweep.resume(tmp_path)


@pytest.mark.parametrize(
    ("metric", "of_classification", "of_segmentation"),
    [
        ("headline", "test_accuracy", "test_miou"),
        ("best_headline", "best_test_accuracy", "best_test_miou"),
        ("test_accuracy", "test_accuracy", "test_accuracy"),
        ("val_error", "val_error", "val_error"),
    ],
)
def test_the_metric_is_a_final_metric_of_the_task(write, metric, of_classification, of_segmentation):
    study = load_study(write(metric=metric))
    assert study.final_metric(Classification.metrics) == of_classification
    assert study.final_metric(Segmentation.metrics) == of_segmentation


def test_a_metric_that_the_task_has_not_is_refused(write):
    study = load_study(write(metric="best_test_accuracy"))
    with pytest.raises(UserError, match=r"tiny is best_test_accuracy, .* have test_miou, .*; set headline or best_"):
        study.final_metric(Segmentation.metrics)


def test_a_study_is_about_the_headline_unless_it_says_otherwise(start, write):
    assert start().metric == "test_accuracy" and start("others", metric="val_error").metric == "val_error"
