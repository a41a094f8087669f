"""What a user hands in, as rows: arrays, tables, loaders and files.

``as_batches`` turns all of them into minibatches of rows whose order and number are known, and
``load`` reads files. Row n of every answer of this library is row n of what came in, or the input
is refused. Start with ``batches.py``, the one place that knows what a batch is.
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
    take_rows,
)
from pyrovae.data.datasets import Dataset, check, check_near, default_likelihood, load, split, units

__all__ = [
    "ArrayBatches",
    "Batch",
    "Batches",
    "Data",
    "Dataset",
    "DatasetBatches",
    "LoaderBatches",
    "Transform",
    "all_rows",
    "as_batch",
    "as_batches",
    "check",
    "check_arguments",
    "check_near",
    "default_likelihood",
    "load",
    "repeat_rows",
    "split",
    "take_rows",
    "units",
]
