"""Credentials are found by where they stand, by their names, by their forms and by the environment."""

import pytest

from l2t_ray.masking import is_masked, masked, masked_tree


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pass@host:5000/x", "http://***@host:5000/x"),
        ("no postgresql+psycopg2://u:p/w@r@db/mlflow now", "no postgresql+psycopg2://***@db/mlflow now"),
        ("hdfs://token@host/x", "hdfs://***@host/x"),
        ("s3://KEY:SECRET@bucket?endpoint_override=minio:9000", "s3://***@bucket?endpoint_override=minio:9000"),
        ("http://host/?token=abc&x=1", "http://host/?token=***&x=1"),
        ("https://a.blob.core.windows.net/c?sv=2022&sig=ab%2Fc%3D&se=1", "https://a.blob.core.windows.net/c?sv=2022&sig=***&se=1"),
        ("AccountName=a;AccountKey=abc==;x", "AccountName=a;AccountKey=***;x"),
        ("X-Amz-Signature=0af&X-Amz-Date=1", "X-Amz-Signature=***&X-Amz-Date=1"),
        ("AWS_SECRET_ACCESS_KEY='a b'", "AWS_SECRET_ACCESS_KEY=***"),
        ('{"secret_key": "abc", "region": "x"}', '{"secret_key": ***, "region": "x"}'),
        ("token: hf_abcdefghijklmnopqrstuvwxyz", "token: ***"),
        ("key AKIAABCDEFGHIJKLMNOP is unknown", "key *** is unknown"),
        ("postgresql://me:p'w@h/db", "postgresql://***@h/db"),
        ('see "postgresql://me:p"w@h/db"', 'see "postgresql://***@h/db"'),
        ("postgresql://me:p w@h/db is down", "postgresql://***@h/db is down"),
        ("redis://:pw@h/0", "redis://***@h/0"),
        ("DB_PASS=abc GITHUB_PAT=abc PGPASSWORD=p'w", "DB_PASS=*** GITHUB_PAT=*** PGPASSWORD=***"),
        ("password: hunter2", "password: ***"),
        ("--password hunter2 --seed 3", "--password *** --seed 3"),
        ("'password=abc' is unknown", "'password=***' is unknown"),
        ("no sk-proj-abc123def456ghi789 here", "no *** here"),
        ("no glpat-abcDEF123456ghijkl7 here", "no *** here"),
        ("no npm_abcdefghijklmnopqrstuvwxyz0123456789 here", "no *** here"),
        ("no dapi0123456789abcdef0123456789abcdef here", "no *** here"),
        ("Authorization: Bearer abcdefgh.ijkl", "Authorization: Bearer ***"),
    ],
)  # fmt: skip
def test_credentials_are_masked(text, shown):
    assert masked(text, {}) == shown
    assert masked(shown, {}) == shown
    assert is_masked(shown)


@pytest.mark.parametrize(
    "text",
    [
        "sqlite:////data/@me/mlflow.db",
        "http://host:5000",
        "s3://bucket/exp@v2/x",
        "abfss://container@account.dfs.core.windows.net/x",
        "method.teacher.step_size=0.1 seed=3; set another name=",
        "unknown key training.tokens in x.yaml; did you mean",
        "the tokens: none",
        "tokenizer=bert",
        "tokens=512 --max-tokens 3",
        "first_pass=3 pattern=x path=/a",
        "http://host:5000 is down; write to me@example.org",
        "'s3://bucket/a': no such file",
        "/home/me/a@b:c/d",
    ],
)
def test_everything_else_is_left_alone(text):
    assert masked(text, {}) == text and not is_masked(text)


def test_values_of_the_environment_are_masked_where_their_names_say_so():
    environment = {"HF_TOKEN": "abcdefgh", "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token", "HOME": "/home/somebody"}
    assert masked("got abcdefgh from /var/run/token in /home/somebody", environment) == (
        "got *** from /var/run/token in /home/somebody"
    )


def test_every_text_of_a_tree_is_masked():
    tree = {"uri": "http://u:p@h", "list": ["?sig=x", 1, None], "nested": {"seed": 3}}
    assert masked_tree(tree) == {"uri": "http://***@h", "list": ["?sig=***", 1, None], "nested": {"seed": 3}}


@pytest.mark.parametrize("name", ["PGPASSWORD", "DB_PASS", "GITHUB_PAT", "SECRETKEY", "SSH_KEY", "MY_PAT", "X_PASS_2"])
def test_a_variable_with_any_usual_name_of_a_secret_is_masked_as_it_is_and_quoted(name):
    shown = masked("a b/c@d e, a%20b%2Fc%40d%20e, a+b%2Fc%40d+e", {name: "a b/c@d e"})
    assert shown == "***, ***, ***"


@pytest.mark.parametrize("name", ["PATH", "COMPASS", "TOKENIZERS", "PATTERN", "KEYBOARD"])
def test_a_variable_with_another_name_is_not_masked(name):
    assert masked("see something", {name: "something"}) == "see something"
