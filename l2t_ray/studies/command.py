"""The command line of every study."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.text import Text

from l2t_ray.command_line import Parser
from l2t_ray.exit_codes import FAILED, exit_codes
from l2t_ray.extras import Need, need
from l2t_ray.interfaces import StoppedError, UserError
from l2t_ray.masking import masked
from l2t_ray.reports.spread import spread
from l2t_ray.reports.study import notes, table
from l2t_ray.reports.tables import markdown
from l2t_ray.run import working_directory
from l2t_ray.run.ready_experiment import check_installed
from l2t_ray.settings.tree import parsed
from l2t_ray.shipped import config_file
from l2t_ray.studies.declaration import MOST_TRIALS, OWN_KEYS, SizeName, Study, load_study
from l2t_ray.studies.log import StudyLog
from l2t_ray.studies.search import Search, check_search
from l2t_ray.studies.study_results import collect, write_study_results
from l2t_ray.studies.sweep import Sweep, run_in_turn
from l2t_ray.studies.trials import axes, check_trials


def main(
    doc: str | None, argv: Sequence[str] | None = None, *, config: Path | None = None, prog: str | None = None
) -> None:
    """Runs a study from the command line.

    Args:
        doc: what `--help` says.
        argv: the arguments; None: those of this process.
        config: the study's file; None: to be given with `--config`.
        prog: what the command is called.
    """
    parser = Parser(prog=prog, description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    if config is None:
        parser.add_argument("--config", help="the study to run: a file, or a name such as studies/example")
    parser.add_argument("--size", choices=get_args(SizeName), help="one of the study's sizes (default: its first)")
    parser.add_argument("--resume", type=Path, metavar="STUDY_DIR", help="go on with an interrupted study instead")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where its directory goes (default: runs)")
    parser.add_argument("--seeds", type=int, metavar="N", help="seeds 0 to N-1 instead of the study's own")
    parser.add_argument("--at-once", type=int, metavar="N", help="at most N trials side by side (default: what fits)")
    parser.add_argument("--in-turn", action="store_true", help="one trial after the other in this process, without Ray")
    parser.add_argument("--quiet", action="store_true", help="show nothing but the table")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings of every trial")
    arguments = parser.parse_intermixed_args(argv)
    with exit_codes():
        for option in ("seeds", "at_once"):
            flag, number = f"--{option.replace('_', '-')}", getattr(arguments, option)
            if number is not None and number < 1:
                raise UserError(f"{flag} must be at least 1, got {number}.")
            if number is not None and number > MOST_TRIALS:
                raise UserError(f"{flag} must be at most {MOST_TRIALS:,}, got {number}.")
        path = config or arguments.config
        if arguments.resume is not None:
            if arguments.overrides or arguments.seeds or arguments.size:
                raise UserError(
                    "--resume goes on with the study as it was begun; leave overrides, --seeds, --size out."
                )
            sweep = Sweep.resume(arguments.resume)
            check_trials(sweep.planned)
        elif path is None:
            raise UserError("which study? give --config FILE, or --resume STUDY_DIR.")
        else:
            study = load_study(working_directory() / config_file(path))
            study = study.at(arguments.size or next(iter(study.sizes), None))
            study = overridden(study, arguments.overrides, arguments.seeds)
            if study.search == "optuna":
                check_search(study)
            sweep = Sweep.start(study, arguments.runs)
        if not arguments.in_turn:
            need(Need("ray", "a study", "give --in-turn"))
        check_installed(sweep.planned[0].config, tracks=True, draws=False)
        if prog is None:
            words = ["python", *_without_resume(sys.argv if argv is None else ["", *argv])]
        else:
            words = [*prog.split(), *(argv or ())]
        command = " ".join(shlex.quote(masked(word)) for word in words)
        failures = run(
            sweep, command=command, in_turn=arguments.in_turn, at_once=arguments.at_once, quiet=arguments.quiet
        )
    if failures:
        raise SystemExit(FAILED)


def overridden(study: Study, overrides: Sequence[str], seeds: int | None) -> Study:
    """The study with settings for all of its trials, and other seeds.

    Raises:
        UserError: if an override is malformed, or of a key that the study varies.
    """
    settings = parsed(overrides)
    for key in settings:
        if key.split(".")[0] in OWN_KEYS:
            raise UserError(f"override {key} is of a key that the study sets itself; leave it out.")
        if key in study.grid or key in study.distributions or any(key in case for case in study.cases.values()):
            raise UserError(f"override {key} is of a key that the study varies; edit a copy of its file.")
    return study.model_copy(
        update={
            "settings": {**study.settings, **settings},
            "seeds": study.seeds if seeds is None else tuple(range(seeds)),
        }
    )


def run(sweep: Sweep, *, command: str, in_turn: bool, at_once: int | None, quiet: bool) -> list[str]:
    """Runs what is left of a study and writes its results; returns what failed."""
    console = Console(highlight=False)

    def say(text: str) -> None:
        if not quiet:
            console.print(Text(text), soft_wrap=True)

    command = _begun_with(sweep.directory, command)
    study, config, total = sweep.study, sweep.planned[0].config, len(sweep.planned)
    say(f"study {sweep.directory}: {total - len(sweep.outcomes())} of {total} trials to run")
    log = StudyLog(
        sweep.directory,
        lambda: sweep.trials,
        total=total,
        tracking=config.tracking,
        axes=axes(study),
        metric=sweep.metric,
        tags={"study": str(study.name), "size": study.size or "", "table": study.table},
        params={"study": study.model_dump(mode="json", exclude={"sizes"})},
        say=say,
    )
    status, paths = "KILLED", []
    try:
        log.catch_up()
        search = Search(sweep, log) if study.search == "optuna" else None
        listener = search or log
        if in_turn:
            run_in_turn(search.trials() if search else sweep.pending(), listener)
        else:
            from l2t_ray.studies.on_tune import run_on_tune  # Ray takes seconds to import

            run_on_tune(
                search or sweep.pending(),
                listener,
                state=sweep.directory / "tune",
                config=config,
                metric=sweep.metric,
                asha=study.asha,
                at_once=at_once,
            )
        status = "FAILED" if log.failures else "FINISHED"
    except (KeyboardInterrupt, StoppedError):
        raise StoppedError(f"stopped; go on with --resume {sweep.directory}") from None
    finally:
        paths = write_study_results(sweep, command=command)
        results = collect(sweep, command=command)
        means = {", ".join(c["cell"]): s.mean for c in results["cells"] if (s := spread(c["values"])) is not None}
        log.close(status, paths, means)
    console.print(Text(markdown(*table(results))), soft_wrap=True)
    for note in [*notes(results), f"results in {sweep.directory}"]:
        say(note)
    for failure in log.failures:
        console.print(Text(f"failed: {failure}"), soft_wrap=True)
    if log.failures:
        console.print(
            f"{len(log.failures)} trials failed; try them again with --resume {sweep.directory}", soft_wrap=True
        )
    return log.failures


def _begun_with(directory: Path, command: str) -> str:
    """The command that the study was begun with: a resumed one keeps it."""
    path = directory / "command.txt"
    if not path.exists():
        path.write_text(command + "\n")
    return path.read_text().strip()


def _without_resume(arguments: Sequence[str]) -> list[str]:
    """The script as it is called from the repository, and its arguments."""
    script, *rest = arguments
    return [f"jobs/{Path(script).name}" if script else "jobs/study.py", *rest]
