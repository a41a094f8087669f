"""One run of a Pyro function, read row by row: which sites there are and what each row has there.

A *row* is one datum. The data plate may be any of the plates around a site; the dimensions of all
other plates count as event dimensions of one row.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any, Literal

import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.nn import PyroModule
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor, nn

from pyrovae.data import Batch, row_count, row_kinds, take_rows
from pyrovae.errors import InputError
from pyrovae.mixture import families
from pyrovae.mixture.families import declared, has_support
from pyrovae.pairs.masks import elements, redrawn, unmasked
from pyrovae.pairs.reachable_modules import check_dtypes
from pyrovae.pairs.restore import AsFound, PyroFunction, modules_in_reach

Node = Mapping[str, Any]
Part = Literal["present", "absent", "all"]


class OtherRows(InputError):
    """A site has another number of rows than the batch."""


@dataclass(frozen=True)
class Reading:
    """One run of a function: its sample sites, and what each row has there.

    Args:
        nodes: the sample sites by name, in the order of the run, without those of plates.
        rows: number of rows in the run.
        batch_rows: the number B of those that belong to the batch; a subsampling plate of fixed
            size may be given more to fill it.
        role: ``"model"`` or ``"guide"``, for errors.
        data_plate: name of the data plate, if given.
        grows: by name of a plate, whether its size grows with the number of rows; only for plates
            of which that had to be found out.
        indices: the rows that a subsampling plate was told to choose.
    """

    nodes: Mapping[str, Node]
    rows: int
    batch_rows: int
    role: str
    data_plate: str | None = None
    grows: Mapping[str, bool] = field(default_factory=dict)
    indices: Tensor | None = None

    @cached_property
    def latent(self) -> list[str]:
        """Names of the latent sites."""
        return [name for name, node in self.nodes.items() if not node["is_observed"]]

    @cached_property
    def observed(self) -> list[str]:
        """Names of the observed sites."""
        return [name for name, node in self.nodes.items() if node["is_observed"]]

    @cached_property
    def shared(self) -> list[str]:
        """Names of the sites that are one for all rows: those in no plate over the data."""
        return [name for name, plates in self._over_data.items() if not plates]

    @cached_property
    def data_sites(self) -> list[str]:
        """Names of the observed sites with data in each row: no ``pyro.factor``."""
        shared = self.shared
        return [
            name
            for name in self.observed
            if name not in shared and not isinstance(self.nodes[name]["fn"], dist.Unit)
        ]

    def observed_site(self, named: str | None) -> str:
        """The observed site with data in each row, or that of them which is named.

        Raises:
            InputError: with the names of all such sites, if it is not one.
        """
        names = self.data_sites
        if named is not None:
            for name in (named, f"{named}_observed"):
                if name in names:
                    return name
            raise InputError(
                f"expected an observed site {named!r} in the model; got {names}. Name one "
                "of those with observed=."
            )
        if len(names) != 1:
            raise InputError(
                f"expected one observed site in the model; got {names}. Give the site obs=, or "
                "name the one that is meant with observed=."
            )
        return names[0]

    @property
    def ambiguous(self) -> set[str]:
        """Names of plates as large as the batch, where it is not known which are over the data."""
        plates = [{f.name for f in frames} for frames in self._over_data.values()]
        if self.data_plate is not None:
            plates = [names for names in plates if self.data_plate not in names]
        names = set().union(*plates)
        several = len(names) > (self.data_plate is None)
        return names - set(self.grows) if several else set()

    def node(self, site: str) -> Node:
        """The latent site of that name.

        Raises:
            InputError: with the names of the latent sites, if there is none.
        """
        if site not in self.nodes:
            raise InputError(
                f"expected a latent site {site!r} in the {self.role}; got {self.latent}. Name one "
                "of those with site=."
            )
        if site not in self.latent:
            raise InputError(
                f"expected site {site!r} of the {self.role} to be latent; got an observed one. "
                f"Latent are {self.latent}: name one of those with site=."
            )
        return self.nodes[site]

    def distribution(self, site: str, *, flatten: bool = True) -> dist.Distribution:
        """The distribution at a site, batch shape ``(B,)``; event shape ``(D,)`` if flattened.

        It covers whole rows, whatever a mask leaves out; see `present`.

        Raises:
            InputError: if the site is in no data plate, or its family can't be laid out in rows.
        """
        node = self.nodes[site]
        fn = unmasked(node["fn"])
        try:
            by_row = declared(families.rows_first(fn, self.dim(site), flatten=flatten))
        except ValueError as error:
            raise InputError(f"{error} It stands at the {self.role}'s site {site!r}.") from error
        if self.batch_rows < self.rows:
            by_row = families.take(by_row, slice(0, self.batch_rows))
        return by_row

    def density(self, site: str) -> dist.Distribution:
        """The density at a latent site; for an autoguide's point, that at its auxiliary site."""
        name = self.carrier(site)
        fn = self.nodes[name]["fn"]
        if is_discrete(fn):
            raise InputError(
                f"expected a continuous latent at the {self.role}'s site {site!r}; got "
                f"{type(innermost(fn)).__name__}, which is discrete. {self._continuous(site)}"
            )
        return self.distribution(name)

    def carrier(self, site: str) -> str:
        """The site that carries a latent site's density: itself, or an autoguide's auxiliary site.

        Raises:
            InputError: if there is no latent site of that name, or it is a point.
        """
        if not isinstance(innermost(self.node(site)["fn"]), dist.Delta):
            return site
        auxiliary = f"{site}_unconstrained"
        if auxiliary not in self.nodes or not torch.equal(self.code(site), self.code(auxiliary)):
            raise InputError(
                f"expected a density at the {self.role}'s site {site!r}; got a point. Draw it "
                "from a distribution with pyro.sample, such as a Normal."
            )
        return auxiliary

    def present(self, site: str) -> Tensor | None:
        """Which units of each row a mask leaves in, shape ``(B, D)``; ``None`` if all."""
        base, mask = elements(self.nodes[site])
        if mask is None:
            return None
        by_row = mask.movedim(self._element_dim(site, base), 0).reshape(self.rows, -1)
        return by_row.repeat_interleave(base.event_shape.numel(), 1)[: self.batch_rows]

    def log_density(self, site: str, part: Part = "present") -> Tensor:
        """Log density of each row at a site, shape ``(B,)``, never scaled.

        Args:
            site: its name.
            part: which part of a row counts: what masks leave in, what they leave out, or all.
        """
        node = self.nodes[site]
        fn = node["fn"]
        if part == "absent":
            base, mask = elements(node)
            values = base.log_prob(node["value"])
            present = torch.ones_like(values, dtype=torch.bool) if mask is None else mask
            values = torch.where(present.to(values.device), 0.0, values)
            dim = self._element_dim(site, base)
        else:
            fn = fn if part == "present" else unmasked(fn)
            values = fn.log_prob(node["value"], *node["args"], **node["kwargs"])
            values = scale_and_mask(values, 1.0, node["mask"] if part == "present" else None)
            values = values.expand(torch.broadcast_shapes(values.shape, fn.batch_shape))
            dim = self.dim(site)
        return values.movedim(dim, 0).reshape(self.rows, -1).sum(1)[: self.batch_rows]

    def code(self, site: str) -> Tensor:
        """The value of each row at a site as a vector, shape ``(B, D)``."""
        return self.value(site).reshape(self.batch_rows, -1)

    def value(self, site: str) -> Tensor:
        """The value of each row at a site, shape ``(B, ...)``."""
        node = self.nodes[site]
        batch_shape = node["fn"].batch_shape
        value = node["value"].expand(batch_shape + node["fn"].event_shape)
        return value.movedim(len(batch_shape) + self.dim(site), 0)[: self.batch_rows]

    def seen(self, site: str) -> Tensor:
        """The value of each row at a site, with NaN for what a mask leaves out of it."""
        value, present = self.value(site), self.present(site)
        if present is None or not value.is_floating_point():
            return value
        return value.where(present.reshape(value.shape), torch.nan)

    def dim(self, site: str) -> int:
        """The batch dimension of the data plate at a site, counted from the right.

        Raises:
            InputError: if no plate around the site, or more than one, has a row for each datum.
        """
        node = self.nodes[site]
        over_data = self._over_data[site]
        if len(over_data) == 1:
            return int(over_data[0].dim)
        plates = {f.name: _size(f, node) for f in _frames(node)}
        if len(over_data) > 1:
            raise InputError(
                f"expected one plate of {self.rows} rows around the {self.role}'s site {site!r}; "
                f"got {plates}. Name the one over the data with data_plate=."
            )
        if not plates:
            raise InputError(
                f"expected a plate over the data around the {self.role}'s site {site!r}; got "
                'none, so that no row has a value of its own. Put it under with pyro.plate("data", '
                "len(x)):."
            )
        raise OtherRows(
            f"expected a plate of {self.rows} rows, as many as the batch, around the {self.role}'s "
            f'site {site!r}; got plates {plates}. Write pyro.plate("data", len(x)), or, if the '
            "plate has a fixed size, give as many rows as that: to encode and aggregate all of "
            "them at once, with batch_size= their number."
        )

    def _continuous(self, site: str) -> str:
        """What to do about a discrete site: which continuous ones to name in its place."""
        names = [
            name
            for name in self.latent
            if name not in self.shared
            and not isinstance(innermost(self.nodes[name]["fn"]), dist.Delta)
            and not is_discrete(self.nodes[name]["fn"])
        ]
        if not names:
            return (
                "Draw a continuous one with pyro.sample, such as a Normal, and name it with site=."
            )
        return (
            f"Name continuous ones of {names} with site=; {site!r} is then summed over, or drawn."
        )

    def _element_dim(self, site: str, base: dist.Distribution) -> int:
        """`dim`, counted when every element of the site has a batch dimension."""
        return self.dim(site) + len(self.nodes[site]["fn"].batch_shape) - len(base.batch_shape)

    @cached_property
    def _over_data(self) -> dict[str, list[Any]]:
        """By site, the plates around it that are over the data, as far as is known."""
        over_data = {}
        for name, node in self.nodes.items():
            frames = [frame for frame in node["cond_indep_stack"] if frame.dim is not None]
            named = [frame for frame in frames if frame.name == self.data_plate]
            over_data[name] = [
                frame
                for frame in named or frames
                if _size(frame, node) == self.rows and self.grows.get(frame.name, True)
            ]
        return over_data


@dataclass(frozen=True)
class Reader:
    """Runs one function of a pair on a batch and reads its sites.

    Args:
        function: the model or the guide.
        role: ``"model"`` or ``"guide"``, for errors.
        data_plate: name of the data plate, if given.
        allows_joint_density: whether a guide may have one density over all rows at once.
    """

    function: PyroFunction
    role: str
    data_plate: str | None = None
    allows_joint_density: bool = False
    _grows: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)
    _by_rows: dict[str, bool] = field(default_factory=dict, repr=False, compare=False)
    # By kind of rows; not for a reader made of this one, which may be asked of another function.
    _any_number: dict[tuple[object, ...], bool] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def read(
        self,
        batch: Batch,
        *,
        codes: Mapping[str, Tensor] | None = None,
        values: Mapping[str, Tensor] | None = None,
        indices: Tensor | None = None,
        until: Collection[str] = (),
        redraw: Collection[str] = (),
    ) -> list[Reading]:
        """Run the function, more than once if its plate takes only a few rows at a time.

        Args:
            batch: the arguments.
            codes: values to put at latent sites, a vector for each row, shape ``(B, D)``.
            values: the same, in the shape of the site.
            indices: the rows that a subsampling plate has to choose; in order if not given.
            until: sites after which the run stops, once it has passed all of them.
            redraw: sites among ``values`` at which the function draws what a mask leaves out.
        """
        place = partial(
            _Place,
            codes=codes or {},
            values=values or {},
            redraw=frozenset(redraw),
        )
        ends = frozenset(until)
        first = self._run(batch, indices, place, ends)
        if isinstance(first, Reading):
            return [first]
        readings = []
        for part in torch.arange(row_count(batch)).split(first):
            padded = part[torch.arange(first) % len(part)]
            part_codes = {name: code[padded] for name, code in (codes or {}).items()}
            reading = self._run(batch, padded, partial(place, codes=part_codes), ends)
            if isinstance(reading, Reading):
                readings.append(replace(reading, batch_rows=len(part)))
        return readings

    def takes_any_number_of_rows(self, batch: Batch) -> bool:
        """Whether the function takes any number of rows, so that rows can be repeated.

        A few rows are enough to tell. What the function sets up in a first run for fewer rows than
        there are in ``batch`` is undone.
        """
        kinds = tuple(row_kinds(batch))
        if kinds not in self._any_number:
            self._any_number[kinds] = self._takes_any_number(batch)
        return self._any_number[kinds]

    def _takes_any_number(self, batch: Batch) -> bool:
        with torch.no_grad(), torch.random.fork_rng():
            with self._put_back() as state:
                takes_others = self._takes(batch, 2) and (state.changed or self._takes(batch, 3))
                first_run = state.changed
            if first_run and takes_others:  # unless it has set itself up for as many
                with self._put_back():
                    takes_others = all(self._takes(batch, rows) for rows in (4, 2, 3))
            if not takes_others:
                self.read(batch)  # raises an error that has nothing to do with the number of rows
                if first_run:
                    with self._put_back():
                        takes_others = all(self._takes(batch, rows) for rows in (2, 3))
        return takes_others

    @contextmanager
    def _put_back(self) -> Iterator[AsFound]:
        """Undo what runs set up meanwhile."""
        state = AsFound(modules_in_reach(self.function))
        try:
            yield state
        finally:
            state.put_back()

    def _takes(self, batch: Batch, rows: int) -> bool:
        index = torch.arange(rows, device=batch[0].device) % row_count(batch)
        try:
            reading = self.read(take_rows(batch, index))[0]
            by_row = [reading.dim(site) for site in reading.nodes if site not in reading.shared]
        except OtherRows:
            return False
        except (ValueError, RuntimeError, IndexError, AssertionError):  # a size fixed in its code
            return False
        shared_in_plate = any(_frames(reading.nodes[site]) for site in reading.shared)
        # A plate of fixed size is over all rows of the data, or over something else.
        return bool(by_row) and (
            not shared_in_plate or reading.shared == self.read(batch)[0].shared
        )

    def _sites_of_run(self, batch: Batch, tracing: Any) -> dict[str, Node]:
        """The sites of one run, as far as it goes.

        What a run that ends early has set up in a guide, half of its plates, say, is undone.
        """
        before = AsFound(self._guides, store=False) if self._guides else None
        try:
            tracing(*batch)
            if self.data_plate is not None:
                self._check_plate(_sites(tracing.trace.nodes))
        except BaseException as end:
            if before is not None:
                before.put_back()
            if not isinstance(end, _Passed):
                raise
        return _sites(tracing.trace.nodes)

    @cached_property
    def _guides(self) -> list[nn.Module]:
        """Pyro's modules, which set up state in a run, and half of it if the run is stopped."""
        roots = modules_in_reach(self.function)
        return [r for r in roots if any(isinstance(m, PyroModule) for m in r.modules())]

    def _run(
        self,
        batch: Batch,
        indices: Tensor | None,
        place: Callable[..., _Place],
        ends: frozenset[str],
    ) -> Reading | int:
        """One run; or the size of a data plate that takes fewer rows at a time than there are."""
        rows = row_count(batch)
        count = rows if indices is None else len(indices)
        blank = Reading({}, count, count, self.role, self.data_plate, self._grows, indices)
        placed = place(blank, rows)(self.function)
        tracing = poutine.trace(_StopAfter(ends)(placed) if ends else placed)
        try:
            reading = replace(blank, nodes=self._sites_of_run(batch, tracing))
            if names := reading.ambiguous:
                raise _Ambiguous(names)
            self._check_shared(reading, batch)
        except _Window as window:
            return window.size
        except _Ambiguous as plates:
            self._note_growth(plates.names, batch)
            return self._run(batch, indices, place, ends)
        except RuntimeError as error:
            check_dtypes(error, batch, self.function)
            raise
        except ValueError as error:
            if isinstance(error.__cause__, InputError):  # Pyro appends the shapes in its trace
                raise error.__cause__ from None
            reason = str(error).splitlines()[0]
            if "invalid shape of pyro.param" in reason:
                raise OtherRows(
                    f"expected as many rows as the {self.role} has parameters for; got {rows}: "
                    f"{reason}. Give all rows that it was trained on at once: to encode and "
                    "aggregate with batch_size= their number."
                ) from error
            if not reason.startswith("Shape mismatch inside plate"):
                raise
            raise InputError(
                f"expected the dimensions of one row to be event dimensions in the {self.role}; "
                f"got {reason}. Declare them with .to_event(1), or give them a plate of their own."
            ) from error
        return reading

    def _check_plate(self, nodes: Mapping[str, Node]) -> None:
        """Raise if a complete run had plates, but none with the name of the data plate."""
        plates = list(dict.fromkeys(f.name for node in nodes.values() for f in _frames(node)))
        if plates and self.data_plate not in plates:
            raise InputError(
                f"expected a plate {self.data_plate!r} in the {self.role}; got {plates}. Name one "
                "of those with data_plate=, the same in model and guide, or leave it out."
            )

    def _note_growth(self, names: set[str], batch: Batch) -> None:
        """Find out which of several plates are over the data: those that one more row enlarges."""
        longer = self._with_one_more_row(batch)
        grown = {
            frame.name
            for node in (longer or {}).values()
            for frame in _frames(node)
            if _size(frame, node) == row_count(batch) + 1
        }
        # If none grows, the number of rows is fixed, and any of them may be over the data.
        self._grows.update((name, name in grown or not grown) for name in names)

    def _check_shared(self, reading: Reading, batch: Batch) -> None:
        """Raise unless a site in no plate over the data is the same for all rows.

        Raises:
            InputError: naming a site that depends on the rows but is not in their plate.
        """
        if self.role == "guide" and not self.allows_joint_density:
            _check_guide(reading)
        for name in reading.shared:
            node = reading.nodes[name]
            shape = (*node["fn"].batch_shape, *node["fn"].event_shape)
            multiple_of_rows = any(size % reading.rows == 0 for size in shape)
            factor = isinstance(node["fn"], dist.Unit)
            if multiple_of_rows or (node["is_observed"] and not factor):
                if name not in self._by_rows:
                    self._by_rows[name] = self._depends_on_rows(name, node, batch)
                if self._by_rows[name]:
                    reading.dim(name)  # raises the error that fits

    def _depends_on_rows(self, name: str, node: Node, batch: Batch) -> bool:
        """Whether a site differs for other rows, as far as one more run can tell."""
        longer = self._with_one_more_row(batch)
        if longer is None or name not in longer:
            return True
        other = longer[name]
        if node["is_observed"] and not isinstance(node["fn"], dist.Unit):
            value, other_value = node["value"], other["value"]
            return value.shape != other_value.shape or not torch.equal(value, other_value)
        shapes = [site["fn"].batch_shape + site["fn"].event_shape for site in (node, other)]
        return shapes[0] != shapes[1]

    def _with_one_more_row(self, batch: Batch) -> Mapping[str, Node] | None:
        """The sites for one row more, in another order; none if the function can't take it."""
        count = row_count(batch)
        index = (torch.arange(count + 1, device=batch[0].device) + 1) % count
        try:
            with self._put_back(), torch.no_grad(), torch.random.fork_rng():
                trace = poutine.trace(self.function).get_trace(*take_rows(batch, index))
        except (ValueError, RuntimeError, IndexError, AssertionError):  # a size fixed in its code
            return None
        return _sites(trace.nodes)


def _check_guide(reading: Reading) -> None:
    """Raise unless a guide has a density for each row by itself.

    Raises:
        InputError: for a ``pyro.factor`` in each row, or an autoguide's one density over all rows.
    """
    shared = reading.shared
    factors = [name for name in reading.observed if name not in shared]
    if factors and isinstance(reading.nodes[factors[0]]["fn"], dist.Unit):
        raise InputError(
            f"expected a guide that is a density, which integrates to one; got the factor "
            f"{factors[0]!r} in each row. Put it into the model."
        )
    auxiliary = [n for n in shared if reading.nodes[n]["infer"].get("is_auxiliary")]
    for name in reading.latent if auxiliary else ():
        point = isinstance(innermost(reading.nodes[name]["fn"]), dist.Delta)
        by_row = name not in shared and f"{name}_unconstrained" not in reading.nodes
        if point and by_row:
            raise InputError(
                f"expected a guide with a density for each row at the site {name!r}; got one over "
                f"all rows at once, {auxiliary[0]!r}. Write a guide that encodes each row, or take "
                "pyro.infer.autoguide.AutoNormal, which has parameters for each."
            )


def innermost(distribution: dist.Distribution) -> dist.Distribution:
    """A distribution without its masks and its ``Independent`` wrapping."""
    while isinstance(distribution, torch.distributions.Independent | dist.MaskedDistribution):
        distribution = distribution.base_dist
    return distribution


def is_discrete(distribution: dist.Distribution) -> bool:
    """Whether the draws at a site are discrete."""
    base = innermost(distribution)
    return not isinstance(base, dist.Delta) and has_support(base) and base.support.is_discrete


class _Window(Exception):
    """A plate subsamples: it takes fewer rows at a time than there are."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.size = size


class _Ambiguous(Exception):
    """Several plates are as large as the batch."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(names)
        self.names = names


class _Passed(Exception):
    """The run has passed all sites that are needed."""


class _StopAfter(Messenger):
    """Ends a run once it has passed all of some sites."""

    def __init__(self, ends: frozenset[str]) -> None:
        super().__init__()
        self.ahead = set(ends)

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        self.ahead.discard(msg["name"])
        if not self.ahead:
            raise _Passed


class _Place(Messenger):
    """Puts values at latent sites and rows into subsampling plates."""

    def __init__(
        self,
        blank: Reading,
        rows: int,
        *,
        codes: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        redraw: frozenset[str],
    ) -> None:
        super().__init__()
        self.blank, self.rows, self.codes, self.values = blank, rows, codes, values
        self.redraw = redraw

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if type(msg["fn"]) is _Subsample:
            if msg["value"] is None and msg["fn"].subsample_size is not None:
                self._choose_rows(msg)
        elif name in self.values and not msg["is_observed"]:
            value = self.values[name]
            msg["value"] = redrawn(msg, value) if name in self.redraw else value
            msg["done"] = True
        elif name in self.codes:
            reading = replace(self.blank, nodes={name: msg})
            if msg["is_observed"]:
                reading.node(name)  # raises the error that fits
            if names := reading.ambiguous:
                raise _Ambiguous(names)
            dim = reading.dim(name)
            msg["value"] = _as_value(self.codes[name], msg["fn"], dim, name)
            msg["done"] = True

    def _choose_rows(self, msg: dict[str, Any]) -> None:
        size, chosen = msg["fn"].size, msg["fn"].subsample_size
        if chosen == self.rows:  # the batch is the subsample
            msg["value"], msg["done"] = torch.arange(chosen, device=msg["fn"].device), True
        elif chosen < size == self.rows:
            if self.blank.indices is None:
                raise _Window(chosen)
            msg["value"], msg["done"] = self.blank.indices, True


def _sites(nodes: Mapping[str, Node]) -> dict[str, Node]:
    return {
        name: node
        for name, node in nodes.items()
        if node["type"] == "sample"
        and type(node["fn"]) is not _Subsample
        and not node["infer"].get("_deterministic")
    }


def _frames(node: Node) -> list[Any]:
    """The plates around a site that have a dimension."""
    return [frame for frame in node["cond_indep_stack"] if frame.dim is not None]


def _size(frame: Any, node: Node) -> int:
    """Size of a plate around a site; ``pyro.plate("data")`` takes that of the site."""
    size, shape = int(frame.size), node["fn"].batch_shape
    return int(shape[frame.dim]) if size < 0 and len(shape) >= -frame.dim else size


def _as_value(code: Tensor, fn: dist.Distribution, dim: int, site: str) -> Tensor:
    """Vectors, one for each row, in the shape of the values at a site."""
    axis = len(fn.batch_shape) + dim
    others = torch.Size([n for i, n in enumerate(fn.batch_shape) if i != axis])
    units = (others + fn.event_shape).numel()
    if code.shape != (fn.batch_shape[axis], units):
        raise InputError(
            f"expected codes of shape {(fn.batch_shape[axis], units)} at the model's site "
            f"{site!r}; got {tuple(code.shape)}. Give guide and model as many latent units there."
        )
    return code.reshape(-1, *others, *fn.event_shape).movedim(0, axis)
