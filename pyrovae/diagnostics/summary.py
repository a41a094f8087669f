"""A table of estimates that fits the page of a notebook."""

from __future__ import annotations

import re

import pandas as pd

DIGITS = 4  # of a number in a notebook
NUMERIC = set("0123456789.+-einfa")  # with "inf" and "nan"
CELL = re.compile(r"<(td|th)>(.*?)</\1>", re.DOTALL)


class Summary(pd.DataFrame):
    """A DataFrame like any other, shown in a notebook with four digits and lines that wrap.

    Columns of text in which nothing stands are left out there, and an index without a name.
    """

    @property
    def _constructor(self) -> type[Summary]:
        return Summary

    def _repr_html_(self) -> str:
        empty = [name for name in self.columns if len(self) and self[name].eq("").all()]
        page = self.drop(columns=empty).to_html(
            border=0, index=any(self.index.names), notebook=True,
            float_format=f"{{:.{DIGITS}g}}".format, max_rows=pd.get_option("display.max_rows"),
        )  # fmt: skip
        return CELL.sub(_cell, page)


def _cell(match: re.Match[str]) -> str:
    """A number whole in its line, words on several lines, and keys broken between their parts."""
    tag, text = match.groups()
    if tag == "td" and set(text) <= NUMERIC:
        return f'<td style="text-align: right; white-space: nowrap">{text}</td>'
    style = "text-align: left; white-space: normal; max-width: 16em"
    return f'<{tag} style="{style}">{text.replace("_", "_<wbr>").replace(".", ".<wbr>")}</{tag}>'
