"""Credentials in a text, replaced by `***`: whatever is written or shown goes through here."""

import os
import re
from collections.abc import Mapping

MASK = "***"

_SECRET_WORDS = (
    r"pass(?:word|wd|phrase)|pwd|secret|token|credential|signature|authorization|"
    r"(?:api|access|account|private|shared|encryption)[_-]?key"
)
_VALUE = r"""(?:"[^"]*"|'[^']*'|[^&;,\s'"<>()\[\]{}]+)"""
_RULES = (
    # The user's part of a URI. A password may hold a slash or an @ that somebody forgot to quote.
    (re.compile(r"(\w://)[^\s/@:'\"]+:[^\s'\"]*@"), rf"\1{MASK}@"),
    # Alone it may be a token; on Azure it is the container.
    (re.compile(r"(?i)\b((?!abfss?:|wasbs?:)\w[\w+.-]*://)[^\s/@'\"]+@"), rf"\1{MASK}@"),
    # name=value and name: value, where the name says it: token, X-Amz-Signature, AWS_SECRET_ACCESS_KEY, AccountKey.
    (re.compile(rf"(?i)\b([\w.-]*(?:{_SECRET_WORDS})[\w.-]*)(['\"]?\s*=\s*){_VALUE}"), rf"\1\2{MASK}"),
    # The same in JSON and in YAML, where a key alone may be an ordinary word: what follows must look like one.
    (re.compile(rf"(?i)(['\"][\w-]*(?:{_SECRET_WORDS})[\w-]*['\"]\s*:\s*){_VALUE}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)\b([\w-]*(?:{_SECRET_WORDS})[\w-]*:\s*)(?=\S*[\d+/=_])(?!/)[^\s'\",]{{12,}}"), rf"\1{MASK}"),
    (re.compile(rf"(?i)([?&;])(sig|key|auth|pass|code|sas)={_VALUE}"), rf"\1\2={MASK}"),
    (re.compile(rf"(?i)\b(sig)={_VALUE}"), rf"\1={MASK}"),
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w+/=.~-]{8,}"), rf"\1 {MASK}"),
    # Keys that say themselves what they are: Amazon, Hugging Face, GitHub, Google, Slack, and JSON web tokens.
    (
        re.compile(
            r"\b(?:A(?:KIA|SIA|ROA|IDA)[A-Z0-9]{12,}|hf_\w{20,}|gh[opsur]_\w{20,}|github_pat_\w{20,}|"
            r"AIza[\w-]{30,}|xox[abeprs]-[\w-]{10,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
        ),
        MASK,
    ),
)
_ENVIRONMENT = re.compile(rf"(?i)(?:^|_)(?:{_SECRET_WORDS})(?:_|$)")
_SHORTEST = 8
"""Values of the environment that are shorter would be found in ordinary words."""


def masked(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without credentials: in its URIs, in what is named like a secret or is one by its form, and wherever
    the value of a variable of the environment stands that is named like one (AWS_SECRET_ACCESS_KEY, HF_TOKEN).

    >>> masked("storage=s3://KEY:SECRET@bucket/runs?token=abc")
    'storage=s3://***@bucket/runs?token=***'
    """
    for name, value in (os.environ if environment is None else environment).items():
        if len(value) >= _SHORTEST and value in text and _ENVIRONMENT.search(name) and not _is_place(value):
            text = text.replace(value, MASK)
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
