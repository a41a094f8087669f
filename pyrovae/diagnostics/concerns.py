"""Concerns about several densities as one sentence."""

from __future__ import annotations

import re
from collections.abc import Sequence

ABOUT_DENSITY = re.compile(r"log p\(x\) under (?P<density>[^:]+): (?P<rest>.+)", re.DOTALL)
ABOUT_POINTS = re.compile(r"for (?P<some>\d+) of (?P<all>\d+) data points (?P<rest>.+)", re.DOTALL)


def grouped(sentences: Sequence[str]) -> list[str]:
    """Concerns about log p(x) under several densities merged if only their numbers differ.

    >>> grouped(["log p(x) under p: for 2 of 9 data points it fails.",
    ...          "log p(x) under q_agg: for 3 of 9 data points it fails."])
    ['log p(x): for 2 (p) and 3 (q_agg) of 9 data points it fails.']
    """
    groups: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for sentence in sentences:
        density = ABOUT_DENSITY.fullmatch(sentence)
        if density is None:
            groups.setdefault((sentence, ""), [])
            continue
        points = ABOUT_POINTS.fullmatch(density["rest"])
        key = (density["rest"], "") if points is None else (points["rest"], points["all"])
        some = "" if points is None else points["some"]
        groups.setdefault(key, []).append((density["density"], some))
    return [_merged(rest, size, members) for (rest, size), members in groups.items()]


def _merged(rest: str, size: str, members: list[tuple[str, str]]) -> str:
    """One sentence for all its members, each a density's name and its number of data points."""
    if not members:
        return rest
    names = [name for name, _ in members]
    if not size:
        return f"log p(x) under {listed(names)}: {rest}"
    if len({some for _, some in members}) == 1:
        return f"log p(x) under {listed(names)}: for {members[0][1]} of {size} data points {rest}"
    numbers = listed([f"{some} ({name})" for name, some in members])
    return f"log p(x): for {numbers} of {size} data points {rest}"


def listed(words: Sequence[str]) -> str:
    """Words with commas and an "and" between them.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
