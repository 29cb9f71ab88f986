"""Credentials in a text, replaced by `***`: whatever is written or shown goes through here."""

import os
import re
from collections.abc import Mapping
from urllib.parse import quote, quote_plus

MASK = "***"

_PASSWORD = r"pass(?:word|wd|phrase)|pwd|secret"
_SECRET_WORDS = (
    rf"{_PASSWORD}|token(?!s|i[sz])|credential|signature|authorization|"
    r"(?:api|access|account|private|shared|encryption|ssh|signing)[_-]?key"
)
# Within a value a quotation mark is one of its letters; around it, it is not.
_VALUE = r"""(?:"[^"]*"|'[^']*'|(?:[^&;,\s'"<>()\[\]{}]|\b['"](?=\w))+)"""
_USER = r"""(\w://)(?:[^\s/@:'"]|['"](?=\w))"""
_RULES = (
    # The user's part of a URI. A password may hold what somebody forgot to quote: a slash, an @, a quotation mark,
    (re.compile(rf"""{_USER}*:(?:[^\s'"]|['"](?![\s,;:)}}\]]))*@"""), rf"\1{MASK}@"),
    # or spaces. What begins with a port is none.
    (
        re.compile(rf"{_USER}+:(?!\d+(?:[^\w@]|$))(?=\S)(?:(?!\w://)[^\n@]){{1,80}}@(?:\S*@)?(?=[\w.\[-])"),
        rf"\1{MASK}@",
    ),
    # Alone it may be a token; on Azure it is the container.
    (re.compile(r"(?i)\b((?!abfss?:|wasbs?:)\w[\w+.-]*://)[^\s/@'\"]+@"), rf"\1{MASK}@"),
    # name=value and name: value, where the name says it: token, X-Amz-Signature, AWS_SECRET_ACCESS_KEY, AccountKey.
    (re.compile(rf"(?i)\b([\w.-]*(?:{_SECRET_WORDS})[\w.-]*)(['\"]?\s*=\s*){_VALUE}"), rf"\1\2{MASK}"),
    (re.compile(rf"\b([A-Z][A-Z0-9_]*_(?:PASS|PAT|PW))(\s*=\s*){_VALUE}"), rf"\1\2{MASK}"),
    (re.compile(rf"(?i)(--[\w-]*(?:{_SECRET_WORDS})[\w-]*\s+)(?!-){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)\b([\w-]*(?:{_PASSWORD})[\w-]*:[ \t]*)(?!/){_VALUE}"), rf"\1{MASK}"),
    # The same in JSON and in YAML, where a key alone may be an ordinary word: what follows must look like one.
    (re.compile(rf"(?i)(['\"][\w-]*(?:{_SECRET_WORDS})[\w-]*['\"]\s*:\s*){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)\b([\w-]*(?:{_SECRET_WORDS})[\w-]*:\s*)(?=\S*[\d+/=_])(?!/)[^\s'\",]{{12,}}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)([?&;])(sig|key|auth|pass|code|sas)={_VALUE}"), rf"\1\2={MASK}"),
    (re.compile(rf"(?i)\b(sig)={_VALUE}"), rf"\1={MASK}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w+/=.~-]{8,}"), rf"\1 {MASK}"),
    # Keys that say themselves what they are: Amazon, Hugging Face, GitHub, Google, Slack, OpenAI, GitLab, npm, PyPI,
    # Databricks, and JSON web tokens.
    (
        re.compile(
            r"\b(?:A(?:KIA|SIA|ROA|IDA)[A-Z0-9]{12,}|hf_\w{20,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|"
            r"AIza[\w-]{30,}|xox[abeprs]-[\w-]{10,}|"
            r"sk[-_](?=[\w-]*\d)[\w-]{14,}|glpat-[\w-]{8,}|(?:npm_|pypi-)[\w-]{16,}|dapi[0-9a-f]{16,}(?:-\d+)?|"
            r"eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
        ),
        MASK,
    ),
)
_ENVIRONMENT = re.compile(rf"(?i)(?:^|_)(?:{_SECRET_WORDS}|pass|pat|pw)(?:_|$)|passw(?:or)?d|secret")
_SHORTEST = 8
"""Values of the environment that are shorter would be found in ordinary words."""


def masked(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without credentials: in its URIs, in what is named like a secret or is one by its form, and wherever
    the value of a variable of the environment stands that is named like one (AWS_SECRET_ACCESS_KEY, HF_TOKEN).

    >>> masked("storage=s3://KEY:SECRET@bucket/runs?token=abc")
    'storage=s3://***@bucket/runs?token=***'
    """
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= _SHORTEST and _ENVIRONMENT.search(name) and not _is_place(value):
            for written in (value, quote(value, safe=""), quote(value), quote_plus(value)):  # as in a URI
                text = text.replace(written, MASK)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def masked_tree(value: object) -> object:
    """Nested mappings and lists as YAML and JSON hold them, with every text in them `masked`."""
    match value:
        case str():
            return masked(value)
        case Mapping():
            return {key: masked_tree(item) for key, item in value.items()}
        case list() | tuple():
            return [masked_tree(item) for item in value]
    return value


def is_masked(text: str | None) -> bool:
    """Whether something was taken out of the text, which cannot be used as it stands then."""
    return text is not None and MASK in text


def _is_place(value: str) -> bool:
    """Variables such as AWS_WEB_IDENTITY_TOKEN_FILE name a file, which is no secret."""
    return value.startswith(("/", "~", ".")) or value.isdigit()
