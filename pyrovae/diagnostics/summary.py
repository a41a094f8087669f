"""A table of estimates that fits the page of a notebook."""

from __future__ import annotations

import pandas as pd

DIGITS = 4  # of a number in a notebook


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
        left = 'style="text-align: left; white-space: normal; overflow-wrap: anywhere; '
        return page.replace("<td>", f'<td {left}max-width: 16em">').replace("<th>", f'<th {left}">')
