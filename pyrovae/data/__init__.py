"""The data that a user passes, as rows: arrays, tables, loaders and files.

``as_batches`` turns each of them into minibatches of rows in a known order, and ``load`` reads
files. Row n of every result is row n of the input; data for which that can't be promised are
refused. Start with ``batches.py``, the one place that knows what a batch is.
"""

from pyrovae.data.batches import (
    ArrayBatches,
    Batch,
    Batches,
    Data,
    DatasetBatches,
    LoaderBatches,
    Transform,
    all_rows,
    as_batch,
    as_batches,
    check_arguments,
    repeat_rows,
    row_count,
    row_kinds,
    take_rows,
)
from pyrovae.data.blocks import Blocks, Sliced, as_blocks
from pyrovae.data.columns import (
    Column,
    TableInfo,
    TableOptions,
    as_frame,
    as_plain,
    from_plain,
    in_words,
)
from pyrovae.data.datasets import (
    Dataset,
    as_dataset,
    categories_of,
    check,
    check_near,
    check_values,
    default_likelihood,
    load,
    needs_mixed,
    numbers_of_parts,
    read_table,
    split,
    units,
    with_obs_mask,
)
from pyrovae.data.files import expanded
from pyrovae.data.images import is_image, size_in_words

__all__ = [
    "ArrayBatches",
    "Batch",
    "Batches",
    "Blocks",
    "Column",
    "Data",
    "Dataset",
    "DatasetBatches",
    "LoaderBatches",
    "Sliced",
    "TableInfo",
    "TableOptions",
    "Transform",
    "all_rows",
    "as_batch",
    "as_batches",
    "as_blocks",
    "as_dataset",
    "as_frame",
    "as_plain",
    "categories_of",
    "check",
    "check_arguments",
    "check_near",
    "check_values",
    "default_likelihood",
    "expanded",
    "from_plain",
    "in_words",
    "is_image",
    "load",
    "needs_mixed",
    "numbers_of_parts",
    "read_table",
    "repeat_rows",
    "row_count",
    "row_kinds",
    "size_in_words",
    "split",
    "take_rows",
    "units",
    "with_obs_mask",
]
