"""Credentials of a run are in memory alone: not in its files, not on the screen, not in MLflow."""

import json
import sqlite3

import pytest
from tiny_runs import CONFIG, TINY

from l2t_ray.interfaces import UserError
from l2t_ray.run import Experiment, exit_codes
from l2t_ray.run.written import with_credentials
from l2t_ray.training.mirror import Mirror

SECRET = "XYZZYsecret"
STORAGE = f"mock://KEY:{SECRET}@bucket/x"  # pyarrow's filesystem in memory


def holding(directory, text):
    return [path for path in directory.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.fixture(scope="module")
def kept(tiny, tmp_path_factory):
    """The directory of a run with credentials in both of its URIs; tracking is off, for it needs seconds."""
    runs = tmp_path_factory.mktemp("secret")
    uris = [f"storage={STORAGE}", f"tracking.uri=http://user:{SECRET}@127.0.0.1:1"]
    return tiny(runs, *uris, "controls=[]", "training.num_rounds=1").run(quiet=True, figures=False).directory


def test_nothing_that_a_run_writes_holds_a_credential(kept):
    assert holding(kept, SECRET) == []
    text = (kept / "config.yaml").read_text()
    assert "storage: mock://***@bucket/x" in text and "uri: http://***@127.0.0.1:1" in text


def test_a_resumed_run_asks_for_what_was_not_written(kept):
    with pytest.raises(UserError, match=rf"storage was mock://\*\*\*@bucket/x, .*--resume {kept} storage="):
        Experiment.resume(kept)
    assert Experiment.resume(kept, [f"storage={STORAGE}"]).config.storage == STORAGE


def test_tracking_credentials_may_come_from_the_environment(kept, monkeypatch):
    settings = [f"storage={STORAGE}", "tracking.mlflow=true"]
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match=r"tracking\.uri was http://\*\*\*@127"):
        Experiment.resume(kept, settings)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@elsewhere:1")
    with pytest.raises(UserError, match=r"tracking\.uri was"):
        Experiment.resume(kept, settings)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:{SECRET}@127.0.0.1:1")
    assert Experiment.resume(kept, settings).config.tracking.uri is None  # the environment's is used then


def test_a_run_without_credentials_needs_none(whole):
    config = Experiment.resume(whole).config
    assert with_credentials(config, remedy="") is config


def test_errors_and_warnings_are_shown_without_credentials(capsys):
    with pytest.raises(SystemExit), exit_codes():
        Mirror.at(f"nowhere://KEY:{SECRET}@bucket/x")
    with pytest.raises(SystemExit), exit_codes():
        raise UserError(f"override 'tracking.uri=http://u:{SECRET}@host' is wrong")
    said = capsys.readouterr()
    assert SECRET not in said.out + said.err and "nowhere://***@bucket/x" in said.err


def test_a_message_of_the_library_itself_holds_no_credentials():
    with pytest.raises(UserError) as error:
        Mirror.at(f"nowhere://KEY:{SECRET}@bucket/x")
    assert SECRET not in str(error.value)


@pytest.mark.parametrize("runs", ["a b", "50%", "a%20b", "what?", "a#b", "ünï", "a?b=c&d", "a;b", "it's"])
def test_the_store_lies_in_the_folder_of_runs_whatever_it_is_called(tmp_path, runs):
    """The database itself is opened, as MLflow will: that takes seconds less than MLflow."""
    from sqlalchemy import create_engine, text

    from l2t_ray.tracking.stores import absolute_uri, artifact_location, opened_alone, sqlite_path

    folder = tmp_path / runs
    folder.mkdir()
    uri = absolute_uri("", folder)
    assert sqlite_path(uri) == folder / "mlflow.db"
    with opened_alone(uri), create_engine(uri).begin() as connection:
        connection.execute(text("CREATE TABLE here (x INTEGER)"))
    with sqlite3.connect(folder / "mlflow.db") as store:
        assert store.execute("SELECT name FROM sqlite_master").fetchall() == [("here",)]
    assert [path.name for path in tmp_path.iterdir()] == [runs]
    location = artifact_location(uri, folder)
    assert location is not None and location.startswith("file:///") and not set("?# ") & set(location)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")
def test_mlflow_itself_writes_there_and_nowhere_else(tmp_path):
    settings = [*TINY, "tracking.mlflow=true", "name=x", f"runs={json.dumps(str(tmp_path / 'a%20b?#c'))}"]
    Experiment.from_yaml(CONFIG, [*settings, "controls=[]"]).run(quiet=True, figures=False)
    assert [path.name for path in tmp_path.iterdir()] == ["a%20b?#c"]
    assert {"mlflow.db", "artifacts", "x"} <= {path.name for path in (tmp_path / "a%20b?#c").iterdir()}


@pytest.mark.parametrize("name", ["-x", " x", "x ", "..", "a/b", "a%b", "a?b", "a#b", "ü" * 100, "x" * 200, "", ".x"])
def test_a_name_that_is_no_plain_directory_is_one_sentence(tmp_path, name):
    with pytest.raises(UserError, match="must be a plain directory name"):
        Experiment.from_yaml(CONFIG, [*TINY, f"runs={tmp_path}", f"name={json.dumps(name)}"])


def test_a_configuration_file_of_any_name_gives_a_run_that_can_be_resumed(tmp_path):
    odd = tmp_path / "-my config (50%) #1?.yaml"
    odd.write_text(CONFIG.read_text())
    experiment = Experiment.from_yaml(odd, [*TINY, f"runs={tmp_path}", "controls=[]", "training.num_rounds=1"])
    directory = experiment.run(quiet=True, figures=False).directory
    assert directory.name.startswith("my_config_50_1_-") and Experiment.resume(directory).directory == directory
