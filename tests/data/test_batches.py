"""Row n of a result is row n of the data set, or the data set is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.sparse import csr_matrix
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

import pyrovae as pv
from pyrovae.data.batches import all_rows, as_batches
from pyrovae.testing import linear_gaussian_vae

EXACT = 4, 2


class Rows(Dataset[Any]):
    """The rows of one array or of several, one by one."""

    def __init__(self, *arrays: Any) -> None:
        self.arrays = arrays

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, number: int) -> Any:
        item = tuple(array[number] for array in self.arrays)
        return item if len(item) > 1 else item[0]


class Stream(IterableDataset[Tensor]):
    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.rows)


class Sized(Stream):
    def __len__(self) -> int:
        return len(self.rows)


class Backwards(DataLoader[Any]):
    def __iter__(self) -> Any:
        return iter(list(super().__iter__())[::-1])


def fewer(items: list[Tensor]) -> Tensor:
    batch: Tensor = default_collate([item for item in items if item[0] > 0])
    return batch


def loader(x: Tensor, **options: Any) -> DataLoader[Any]:
    options = {"batch_size": 7} | options
    return DataLoader(options.pop("dataset", TensorDataset(x)), **options)


IN_ORDER: dict[str, Callable[[Tensor], Any]] = {
    "data set": TensorDataset,
    "rows": Rows,
    "NumPy rows": lambda x: Rows(x.numpy()),
    "subset": lambda x: Subset(TensorDataset(torch.cat([x, x])), list(range(len(x)))),
    "two of them": lambda x: ConcatDataset([Rows(x[:10]), Rows(x[10:])]),
    "loader": loader,
    "one batch": lambda x: loader(x, batch_size=100),
    "shuffles": lambda x: loader(x, shuffle=True),
    "shuffles by its own generator": lambda x: loader(
        x, shuffle=True, generator=torch.Generator().manual_seed(3)
    ),
    "drops the last": lambda x: loader(x, drop_last=True),
    "shuffles and drops": lambda x: loader(x, shuffle=True, drop_last=True),
    "random sampler": lambda x: loader(x, sampler=RandomSampler(range(len(x)))),
    "batch sampler": lambda x: loader(
        x, batch_size=1, batch_sampler=BatchSampler(RandomSampler(x), 9, drop_last=True)
    ),
    "no batches": lambda x: loader(x, dataset=Rows(x.view(-1, 2, 4)), batch_size=None),
    "no batches, shuffled": lambda x: loader(
        x, dataset=Rows(x.view(-1, 2, 4)), batch_size=None, shuffle=True
    ),
    "its own collate": lambda x: loader(x, dataset=Rows(x), shuffle=True, collate_fn=torch.stack),
}


@pytest.mark.parametrize("kind", IN_ORDER)
def test_row_n_of_an_answer_is_row_n_of_the_data_set(kind: str) -> None:
    exact = linear_gaussian_vae(*EXACT)
    vae, x = exact.vae(), exact.sample(30)
    data = IN_ORDER[kind](x)
    generator = getattr(data, "generator", None)
    states = [torch.get_rng_state(), None if generator is None else generator.get_state()]
    values = pv.log_evidence(vae.model, vae.guide, data, draws=2).values
    torch.testing.assert_close(torch.as_tensor(values), exact.log_prob(x))
    torch.testing.assert_close(pv.encode(vae.guide, data).mean, exact.posterior(x).mean)
    mean = pv.aggregate(vae.guide, data).component(17).mean
    torch.testing.assert_close(mean, exact.posterior(x).mean[17])
    assert torch.equal(torch.get_rng_state(), states[0])  # looking at rows draws nothing
    assert generator is None or torch.equal(generator.get_state(), states[1])


def batches_of(x: Tensor) -> BatchSampler:
    return type("Buckets", (BatchSampler,), {})(SequentialSampler(x), 5, drop_last=False)


WITHOUT_ORDER: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "part, shuffled": (lambda x: loader(x, sampler=SubsetRandomSampler(range(9))), "SubsetRandom"),
    "resampled": (
        lambda x: loader(x, sampler=WeightedRandomSampler([1.0] * len(x), len(x))),
        "WeightedRandomSampler",
    ),
    "drawn again": (lambda x: loader(x, sampler=RandomSampler(x, replacement=True)), "RandomS"),
    "some of them": (lambda x: loader(x, sampler=RandomSampler(x, num_samples=9)), "RandomS"),
    "the first of them": (lambda x: loader(x, sampler=SequentialSampler(x[:9])), "Sequential"),
    "distributed": (
        lambda x: loader(x, sampler=DistributedSampler(TensorDataset(x), 2, 0)),
        "DistributedSampler",
    ),
    "a list of numbers": (lambda x: loader(x, sampler=list(range(len(x)))[::-1]), "list"),
    "batches of one's own": (
        lambda x: loader(x, batch_size=1, batch_sampler=batches_of(x)),
        "Buckets",
    ),
    "listed batches": (lambda x: loader(x, batch_size=1, batch_sampler=[[3, 4], [0]]), "list"),
    "loader of its own": (Backwards, "Backwards"),
    "stream": (lambda x: loader(x, dataset=Sized(x)), "a stream, Sized"),
    "collate that filters": (
        lambda x: loader(x, dataset=Rows(x), collate_fn=fewer),
        "collate_fn makes one row of each item",
    ),
}


@pytest.mark.parametrize("kind", WITHOUT_ORDER)
def test_rows_without_an_order_are_measured_nowhere_but_train(kind: str) -> None:
    make, words = WITHOUT_ORDER[kind]
    exact = linear_gaussian_vae(*EXACT)
    x = exact.sample(30)
    data, vae = make(x), exact.vae()
    for measure in (
        lambda: pv.encode(vae.guide, data),
        lambda: pv.aggregate(vae.guide, data),
        lambda: pv.log_evidence(vae.model, vae.guide, data, draws=2),
        lambda: pv.diagnose(vae.model, vae.guide, x, held_out=data),
    ):
        with pytest.raises(pv.InputError, match=words):
            measure()
    trained = pv.VAE(
        pv.mlp_encoder((4,), 2, hidden=(8,)),
        pv.mlp_decoder(2, (4,), "normal", hidden=(8,)),
        pv.StandardNormal(2),
    )
    assert np.isfinite(pv.fit(trained.model, trained.guide, data, epochs=2).history.train).all()
    # the remedies that the error names
    if isinstance(data.dataset, TensorDataset):
        assert len(all_rows(data.dataset)[0]) == 30
        (subset,) = all_rows(Subset(data.dataset, [4, 2]))
        assert torch.equal(subset, x[[4, 2]])


def test_workers_keep_the_order() -> None:
    x = torch.randn(30, 4)
    (rows,) = all_rows(loader(x, dataset=Rows(x), shuffle=True, num_workers=2, drop_last=True))
    assert torch.equal(rows, x)


@pytest.mark.parametrize("kind", [Stream, Sized])
def test_the_error_for_a_stream_says_what_to_do(kind: Any) -> None:
    x = torch.randn(30, 4)
    for data in (kind(x), *([loader(x, dataset=kind(x))] if kind is Stream else [])):
        with pytest.raises(pv.InputError, match=r"torch\.stack\(list\(dataset\)\)"):
            as_batches(data, 10)
    assert torch.equal(all_rows(torch.stack(list(kind(x))))[0], x)


def test_items_that_cannot_be_rows() -> None:
    x = torch.randn(30, 4)
    ragged = [x[i, : 1 + i % 3] for i in range(30)]
    for data, words in (
        (Rows(ragged), "items are tensors of one shape"),
        (Rows([{"x": row} for row in x]), r"got \['dict'\]"),
        (Rows([object()] * 30), "got object"),
        (Rows(np.ma.masked_greater(x.numpy(), 0)), "masked array that hides"),
        (Rows(x, np.ma.masked_greater(np.arange(60).reshape(30, 2), 40)), "hides"),
    ):
        with pytest.raises(pv.InputError, match=words):
            all_rows(data)


@pytest.mark.parametrize("data", [Rows, lambda x: loader(x, shuffle=True)])
def test_rows_of_a_data_set_that_are_not_finite_are_named(data: Any) -> None:
    x = torch.randn(30, 4)
    x[17, 2] = torch.inf
    with pytest.raises(pv.InputError, match=r"got inf in row 17, position \(2,\)"):
        all_rows(data(x))


# -- the arguments of a pair -----------------------------------------------------------------------


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))


def model(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.repeat(1, 2), scale).to_event(1), obs=x)


def needs_two(x: Tensor, y: Tensor) -> None:
    guide(x + y)


LABELLED = {
    "tensors": lambda x, y: TensorDataset(x, y),
    "rows": Rows,
    "tuple": lambda x, y: (x, y),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_are_refused_by_a_pair_that_takes_rows_alone(kind: str) -> None:
    x, y = torch.randn(30, 4), torch.arange(30) % 3
    data = LABELLED[kind](x, y)
    for call in (
        lambda: pv.fit(model, guide, data, epochs=1),
        lambda: pv.encode(guide, data),
        lambda: pv.log_evidence(model, guide, data),
        lambda: pv.diagnose(model, guide, data, held_out=data),
    ):
        with pytest.raises(pv.InputError, match=r"takes \(x.*\).*got 2 for each row.* rows alone"):
            call()
    with pytest.raises(pv.InputError, match=r"takes \(x.*y.*\).*got 1 for each row"):
        pv.encode(needs_two, x)
    pv.fit(model, guide, x, epochs=1)
    pv.encode(needs_two, (x, x))


@pytest.mark.filterwarnings("ignore:For .* k̂")  # the pair has hardly been trained
@pytest.mark.parametrize("kind", LABELLED)
def test_labels_are_not_taken_for_row_numbers(kind: str) -> None:
    x, y, numbers = torch.randn(40, 4), torch.arange(40) % 3, torch.arange(40)
    encoder = pv.mlp_encoder((4,), 2, hidden=(8,))
    decoder = pv.mlp_decoder(2, (4,), "normal", hidden=(8,))
    vae = pv.VAE(encoder, decoder, pv.ExemplarPrior(encoder, x))
    with pytest.raises(pv.InputError, match=r"each at most once in a batch; got . for .* rows, as"):
        pv.fit(vae.model, vae.guide, LABELLED[kind](x, y), epochs=1)
    pv.fit(vae.model, vae.guide, LABELLED[kind](x, numbers), epochs=1)
    # a prior that doesn't use row numbers ignores labels, too
    plain = vae.with_prior(pv.StandardNormal(2))
    values = [
        pv.log_evidence(plain.model, plain.guide, data, draws=10).values
        for data in (LABELLED[kind](x, y), x)
    ]
    assert torch.equal(*map(torch.as_tensor, values))


def test_data_sets_with_different_arguments_are_refused() -> None:
    x, y = torch.randn(30, 4), torch.randn(30, 4)

    def two(x: Tensor, y: Tensor) -> None:
        model(x)

    for held_out in ((x, y[:, :2]), (x, y.float()), (x, torch.arange(30))):
        with pytest.raises(pv.InputError, match="same arguments in each data set"):
            pv.diagnose(two, needs_two, (x, y), held_out=held_out)


# -- parts of minibatches --------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 5])
@pytest.mark.parametrize("kind", [torch.Tensor.clone, Rows, lambda x: csr_matrix(x.numpy())])
def test_parts_of_every_minibatch_are_the_whole(kind: Callable[[Tensor], Any], count: int) -> None:
    data = as_batches(kind(torch.arange(42.0).reshape(21, 2)), 5)  # the last one has a single row
    for one_pass in ("ordered", "shuffled"):
        passes = []
        for batches in (data, *(data.part(index, count) for index in range(count))):
            torch.manual_seed(3)
            passes.append([x for (x,) in getattr(batches, one_pass)()])
        whole, *parts = passes
        assert [len(part) for part in parts] == [5] + [4] * (count - 1)
        together = zip_longest(*parts, fillvalue=torch.empty(0, 2))
        for minibatch, pieces in zip(whole, together, strict=True):
            assert torch.equal(minibatch, torch.cat(pieces))


def test_a_minibatch_has_a_row_for_every_part_and_a_loader_has_none() -> None:
    rows = torch.zeros(9, 2)
    with pytest.raises(pv.InputError, match="batch_size=3 or more"):
        as_batches(rows, 2).part(0, 3)
    with pytest.raises(pv.InputError, match=r"Pass its data set, loader\.dataset"):
        as_batches(DataLoader(TensorDataset(rows), 4), 1).part(0, 3)
    with pytest.raises(pv.InputError, match="a stream"):
        as_batches(DataLoader(Sized(rows), 4), 1).part(0, 3)
