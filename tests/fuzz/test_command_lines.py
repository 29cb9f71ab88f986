"""Every job with arguments that mean nothing, files that are none and places that cannot be: one sentence, code 2."""

import os
import random
import runpy
import sys
from pathlib import Path

import pytest
from harness import in_child, judged

REPOSITORY = Path(__file__).parents[2]

CONFIGS = (
    *("none.yaml", "", ".", "/", "file/x.yaml", "pipe", "loop.yaml", "binary", "/dev/zero", "\udcff.yaml", "a" * 300),
    *("nul\\0", "~nobody-here/x.yaml", "bomb.yaml", "deep.yaml", "list.yaml", "twice.yaml", "latin.yaml"),
    *("two.yaml", "tab.yaml", "tagged.yaml", "base_loop.yaml", "base_none.yaml", "big.yaml", "two words.yaml"),
)
DIRECTORIES = ("none", "", "file", "empty", "loop", "pipe", "half", "folded", "cut", "\udcff", "a" * 300, "~nobody/x")
UNWRITABLE = ("file", "file/x", "/proc/none", "loop", "pipe", "/dev/null", "~nobody-here/x", "a" * 300)
OVERRIDES = (
    *("", "=x", "seed", "a..b=1", "seed=", "seed=nope", "seed=-1", "seed=true", "trainig.momentum=0", "name=../x"),
    *("training.learning_rate=.inf", "training=3", "method=magic", "controls=[magic]", "student=resnet8", "seed=[1"),
    *("data.num_validation=5", "data.num_validation=99999", "data.num_train=99999", "training.batch_size=9999"),
    *("training.val_batch_size=9999", "data.image_size=3000", "data.image_size=7"),
    *("data.name=cifar10 data.download=false", "data.name=folder data.root=file", "data.name=folder data.root=empty"),
    *("data.name=folder", "data.name=mnist data.root=/proc/none", "device=cuda", "ray.num_workers=0", "\udcff=1"),
    *("data.noise.kind=labels data.noise.file=none.npy", "data.noise.kind=labels data.noise.file=binary"),
    *("data.noise.kind=matrix data.noise.file=file", "data.noise.kind=flip_to_similar data.noise.rate=0.4"),
    *("storage=nonsense://x", "storage=file", "storage=://", "storage=s3:/", "runs=~nobody-here/x"),
)
NUMBERS = ("0", "-1", "x", "", "1.5", "nan", "99999999999999999999")

TINY = ("--quiet", "ray.enabled=false", "tracking.mlflow=false", "data.download=false")
STUDY = (
    *(["--size", size] for size in ("huge", "")),
    *(["--seeds", number] for number in NUMBERS),
    *(["--at-once", number] for number in NUMBERS),
    *(["--runs", place] for place in UNWRITABLE),
    *(["--resume", directory] for directory in DIRECTORIES),
    *(["--nonsense"], ["seed=3"], ["seed"], ["=x"], ["a b=1"], ["training.num_rounds=many"], ["method=magic"]),
)
ARGUMENTS: dict[str, list[list[str]]] = {
    "cifar": [
        *([*TINY, "--config", config] for config in CONFIGS),
        *([*TINY, *override.split(" ")] for override in OVERRIDES),
        *([*TINY, f"runs={place}"] for place in UNWRITABLE),
        *(["--quiet", "--resume", directory] for directory in DIRECTORIES if directory != "cut"),
        *(["--nonsense"], ["--config"], ["--resume"], ["--resume", "half", "seed=3"], ["--quiet=3"], ["--", "--x"]),
        [*TINY, "--check-hypergradient", "method=cross_entropy", "controls=[]"],
    ],
    "noisy_labels": [
        *([*TINY, "--config", config] for config in CONFIGS),
        *([*TINY, "--config", "good.yaml", *override.split(" ")] for override in OVERRIDES if "seed=" not in override),
        *([*TINY, "--config", "good.yaml", "--seeds", number] for number in (*NUMBERS[1:], "1,1", "1,x", ",")),
        *([*TINY, "--config", "good.yaml", f"runs={place}"] for place in UNWRITABLE),
        *([], ["--config"], ["--nonsense"], [*TINY, "--config", "good.yaml", "--only", "magic"], ["--budget", "x"]),
    ],
    "study": [
        *([], ["--config"]),
        *(["--in-turn", "--config", config] for config in (*CONFIGS, "good.yaml")),
        *(["--in-turn", "--config", "fine.yaml", *arguments] for arguments in STUDY),
    ],
    "ablation": [["--in-turn", *arguments] for arguments in STUDY[::4]],
    "gradients": [["--size", "huge"], ["--nonsense"], ["--in-turn", "--resume", "none"], ["seed=3"]],
    "lr_robustness": [["--size", "huge"], ["--nonsense"], ["--in-turn", "--resume", "none"], ["seed=3"]],
    "similarity": [["--size", "huge"], ["--nonsense"], ["--in-turn", "--resume", "none"], ["seed=3"]],
    "convergence": [
        *(["--quick", "--no-mlflow", "--hessians", number] for number in NUMBERS),
        *(["--quick", "--no-mlflow", "--seed", number] for number in NUMBERS if number != "0"),
        *(["--quick", "--no-mlflow", "--out", place] for place in UNWRITABLE if "~" not in place),
        *(["--nonsense"], ["x"]),
    ],
    "report": [
        *(["--runs", place] for place in DIRECTORIES),
        *(["--uri", uri] for uri in ("nonsense://x", "sqlite:////proc/none/x.db", "sqlite:///binary", "://", "")),
        *(["--nonsense"], ["x"], ["--runs", "full"], ["--runs", "torn"]),
    ],
}
CASES = [(job, arguments) for job, choices in ARGUMENTS.items() for arguments in choices]


def furnish(directory: Path) -> None:
    """Files and directories that are not what they are taken for."""
    (directory / "configs").symlink_to(REPOSITORY / "configs")
    (directory / "file").write_text("x")
    (directory / "empty.txt").touch()
    (directory / "binary").write_bytes(bytes(range(256)) * 8)
    os.mkfifo(directory / "pipe")
    for name in ("loop", "loop.yaml"):
        (directory / name).symlink_to(name)
    for name in ("empty", "half/checkpoints", "folded/config.yaml", "folded/study.yaml", "cut", "full", "torn"):
        (directory / name).mkdir(parents=True)
    (directory / "half/config.yaml").write_text("training: {num_rounds: 2")
    (directory / "half/study.yaml").write_text("title: x\n")
    (directory / "cut/config.yaml").touch()
    (directory / "cut/study.yaml").touch()
    (directory / "full/mlflow.db").touch()
    (directory / "torn/mlflow.db").write_bytes(b"SQLite format 3\0" + bytes(range(200)))
    texts = {
        "good": "data: {num_validation: 100}\ntraining: {num_rounds: 2}\n",
        "bomb": "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "deep": "a: " + "[" * 5000,
        "fine": "title: x\nbase: good.yaml\ncases: {a: {method: gce}}\nsettings: {ray.enabled: false}\n",
        "list": "- 1\n",
        "twice": "seed: 1\nseed: 2\n",
        "two": "seed: 1\n---\nseed: 2\n",
        "tab": "training:\n\tmomentum: 0\n",
        "tagged": "seed: !!python/object/apply:os.getcwd []\n",
        "base_loop": "extends: base_loop.yaml\n",
        "base_none": "extends: none.yaml\n",
        "big": "# " + "x" * 300_000,
        "two words": "seed: 1 seed: 2\n",
    }
    for name, text in texts.items():
        (directory / f"{name}.yaml").write_text(text)
    (directory / "latin.yaml").write_bytes("name: \u00e9".encode("latin-1"))


def run_job(job: str, arguments: list[str]) -> None:
    sys.argv = [f"jobs/{job}.py", *arguments]
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    runpy.run_path(str(REPOSITORY / "jobs" / f"{job}.py"), run_name="__main__")


def try_command_lines(tally, tmp_path: Path, cases: list[tuple[str, list[str]]]) -> None:
    for index, (job, arguments) in enumerate(cases):
        directory = tmp_path / str(index)
        directory.mkdir()
        furnish(directory)
        ending = in_child(run_job, [job, arguments], directory, timeout=120)
        verdict = judged(ending, lambda: False, may_show_usage=True)  # none of these is to be done
        tally.add(f"jobs/{job}.py {' '.join(map(repr, arguments))}", verdict, ending.err + ending.out)


def test_commands_that_mean_nothing(tally, tmp_path):
    counted = tally("command lines")
    try_command_lines(counted, tmp_path, random.Random(0).sample(CASES, 16))
    counted.check(at_least=16)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_commands_that_mean_nothing(tally, tmp_path):
    counted = tally("command lines")
    try_command_lines(counted, tmp_path, CASES)
    counted.check(at_least=len(CASES))
