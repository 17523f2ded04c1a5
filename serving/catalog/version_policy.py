"""The version policy in the text of a config.pbtxt, read and replaced; everything else stays as its author wrote it."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from normfold.protos import model_config as mc
from normfold.serving.catalog import config
from normfold.serving.errors import ConfigError

#: How many lower versions are tried where none of the chosen ones loads. A load may take long before it fails.
MOST_STAND_INS = 3

#: Comments and strings, in which braces mean nothing; braces; names.
_TOKEN = re.compile(r"""#[^\n]*|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[{}<>]|[A-Za-z_][\w.]*""")


def described(settings: mc.ModelConfig) -> str:
    """The policy for people: "the highest version", "version 2", "versions 1, 2", "all versions".

    >>> described(config.parse("version_policy { specific { versions: [3] } }"))
    'version 3'
    """
    policy = settings.version_policy
    if policy.HasField("all"):
        return "all versions"
    if policy.HasField("specific"):
        numbers = sorted(policy.specific.versions)
        return f"version{'s' if len(numbers) != 1 else ''} {', '.join(map(str, numbers)) or 'none'}"
    number = policy.latest.num_versions or 1
    return "the highest version" if number == 1 else f"the {number} highest versions"


def stand_ins(settings: mc.ModelConfig, present: Collection[int], chosen: Sequence[int]) -> list[int]:
    """The versions that may answer where none of the ``chosen`` loads, the highest first: the next lower ones.

    There are none where the policy names versions: then no other is meant.

    >>> stand_ins(mc.ModelConfig(), [1, 2, 3], [3])
    [2, 1]
    """
    policy = settings.version_policy
    if policy.HasField("specific") or not chosen:
        return []
    return sorted((number for number in present if number < min(chosen)), reverse=True)[:MOST_STAND_INS]


def with_policy(text: str, versions: Sequence[int] | None) -> str:
    """``text`` with a policy that puts just ``versions`` in service; None: the highest version, the default.

    Raises ConfigError for a text that is no configuration.
    """
    config.parse(text)
    for begin, end in reversed(_policies(text)):
        text = text[:begin].rstrip(" \t") + text[end:].lstrip(" \t")
    text = text.strip("\n")
    if versions is not None:
        numbers, separator = ", ".join(map(str, versions)), "\n" if text else ""
        text += f"{separator}version_policy {{ specific {{ versions: [{numbers}] }} }}"
    text = f"{text}\n" if text else ""
    settings = config.parse(text)
    wanted = sorted(versions or [])
    if sorted(settings.version_policy.specific.versions) != wanted or settings.version_policy.HasField("all"):
        raise ConfigError("config.pbtxt: its version_policy could not be replaced; change it by hand")
    return text


def _policies(text: str) -> list[tuple[int, int]]:
    """Where the version policies in ``text`` begin and end."""
    found, depth, begin = [], 0, -1
    for token in _TOKEN.finditer(text):
        mark = token[0]
        if mark in "{<":
            depth += 1
        elif mark in "}>":
            depth -= 1
            if depth == 0 and begin >= 0:
                found.append((begin, token.end()))
                begin = -1
        elif depth == 0:
            begin = token.start() if mark == "version_policy" else -1
    return found
