"""Rows in blocks that share one draw of the sites that are one for all rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor

from pyrovae.data import Batch, row_count, take_rows
from pyrovae.pairs.traits import Traits

TOGETHER = 16  # rows that share one draw of a site that is one for all rows


def together(
    traits: Traits, batch: Batch, codes: Mapping[str, Tensor], *, draw_shared: bool = True
) -> Iterator[tuple[Batch, Mapping[str, Tensor], dict[str, Tensor]]]:
    """Rows with their codes, in blocks that share one draw of what is one for all rows.

    Args:
        traits: the pair's.
        batch: rows.
        codes: by site.
        draw_shared: whether to draw that from the guide; it is the third of each block.
    """
    if not traits.draws_for_all(batch):
        yield batch, codes, {}
        return
    rows = row_count(batch)
    size = TOGETHER if traits.takes_any_number_of_rows(batch) else max(1, rows)
    for start in range(0, rows, size):
        block = slice(start, start + size)
        part = take_rows(batch, block)
        values = {}
        if draw_shared:
            guide = traits.guide.read(part)[0]
            values = {n: guide.nodes[n]["value"] for n in guide.latent if n in guide.shared}
        yield part, {site: code[block] for site, code in codes.items()}, values
