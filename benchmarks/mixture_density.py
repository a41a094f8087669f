"""Log density of large mixtures of diagonal normals: this library against its peers.

    python benchmarks/mixture_density.py                    # the cases of the documentation
    python benchmarks/mixture_density.py --cases 60000,40,2048 --json figures.json
    python benchmarks/mixture_density.py --few-units        # maps, by tiles and by the search

Every row is one case (components N, units D, queries B) in float32: codes with scales from 0.05 to
0.3, queries drawn from the mixture. Times are the best of several runs; ways that would take
minutes are timed on fewer queries and scaled up, which is marked by ~. The floor is the bare
product of a (B, 2D+1) and a (2D+1, N) matrix in chunks, which any way that uses matrix products
must at least do.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from unittest.mock import patch

import pyro.distributions as dist
import torch
from torch import Tensor

from pyrovae.mixture.divergence import divergence
from pyrovae.mixture.kernel import few_units
from pyrovae.mixture.kernel.scalar_product import constants, keys, queries
from pyrovae.mixture.kernel.search import evaluate
from pyrovae.mixture.mixture import Mixture
from pyrovae.mixture.reduction import reduce

CASES = [
    (size, dim, 512 if size == 1_000_000 else 2048)
    for size in (1_000, 10_000, 60_000, 1_000_000)
    for dim in (2, 10, 40, 128)
]
MEMORY_CASES = [(60_000, 40, 10_000), (1_000_000, 40, 4_096)]
SMALL_CASES = [(100, 2, 16), (100, 40, 16), (500, 40, 100)]
PATIENCE = 20.0  # seconds that a single run of a peer may take before it is timed on fewer queries

CLOCK = time.perf_counter


@dataclass(frozen=True)
class Row:
    """Seconds of one way in one case, and the largest error against float64 brute force."""

    way: str
    components: int
    units: int
    queries: int
    seconds: float
    scaled: bool
    error: float | None


@dataclass(frozen=True)
class Case:
    """A mixture and queries, and its exact log density at some of them."""

    loc: Tensor
    scale: Tensor
    z: Tensor

    @property
    def mixture(self) -> Mixture:
        logits = torch.zeros(len(self.loc), device=self.loc.device)
        return Mixture(
            dist.Categorical(logits=logits), dist.Normal(self.loc, self.scale).to_event(1)
        )


def make(size: int, dim: int, points: int, device: str) -> Case:
    """Components with scales from 0.05 to 0.3 and queries drawn from the mixture."""
    generator = torch.Generator().manual_seed(0)
    loc = torch.randn(size, dim, generator=generator)
    scale = 0.05 + 0.25 * torch.rand(size, dim, generator=generator)
    index = torch.randint(size, (points,), generator=generator)
    z = loc[index] + scale[index] * torch.randn(points, dim, generator=generator)
    return Case(loc.to(device), scale.to(device), z.to(device))


def chunked(
    case: Case, use: Callable[[Tensor, Tensor], Tensor], rows: int = 256
) -> Callable[[Tensor], Tensor]:
    """A way that computes all scores of some queries at once as a matrix product."""
    log_weight = torch.full_like(case.loc[:, 0], -math.log(len(case.loc)))
    key = keys(case.loc, case.scale, constants(case.scale, log_weight)).mT.contiguous()

    def run(z: Tensor) -> Tensor:
        return torch.cat([use(queries(part), key) for part in z.split(rows)])

    return run


def torch_mixture(case: Case) -> Callable[[Tensor], Tensor]:
    """torch's own mixture, as many queries at once as 16 million numbers allow."""
    peer = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=torch.zeros(len(case.loc), device=case.loc.device)),
        torch.distributions.Independent(torch.distributions.Normal(case.loc, case.scale), 1),
    )
    rows = max(1, (1 << 24) // case.loc.numel())
    return lambda z: torch.cat([peer.log_prob(part) for part in z.split(rows)])


def keops(case: Case) -> Callable[[Tensor], Tensor]:
    """KeOps: a symbolic B × N × D tensor, reduced by log-sum-exp."""
    from pykeops.torch import LazyTensor

    loc, scale = (LazyTensor(t.unsqueeze(0).contiguous()) for t in (case.loc, case.scale))
    constant = -math.log(len(case.loc)) - case.scale.log().sum(-1)
    constant = constant - 0.5 * math.log(2 * math.pi) * case.loc.shape[-1]
    offset = LazyTensor(constant.view(1, -1, 1))
    return lambda z: (
        offset - (((LazyTensor(z.unsqueeze(1)) - loc) / scale) ** 2).sum(-1) / 2
    ).logsumexp(1)[:, 0]


def peers(case: Case) -> dict[str, Callable[[Tensor], Tensor]]:
    """The ways to compute the log density, ours first."""
    mixture = case.mixture
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "pyrovae log_prob": mixture.log_prob,
        "pyrovae log_prob and score": lambda z: evaluate(mixture.diagonal_normals(), z).log_prob,
        "matrix product (floor)": chunked(case, lambda query, key: (query @ key)[:, 0]),
        "addmm + logsumexp, chunked": chunked(case, lambda query, key: (query @ key).logsumexp(-1)),
        "torch MixtureSameFamily, chunked": torch_mixture(case),
    }
    if importlib.util.find_spec("pykeops") is not None:
        ways["KeOps LazyTensor"] = keops(case)
    return ways


def timed(
    run: Callable[[Tensor], Tensor], z: Tensor, repeats: int, *, linear: bool = False
) -> tuple[float, bool, Tensor]:
    """Best time, whether it was scaled up from fewer queries, and the values.

    Args:
        linear: the way's cost is in proportion to the queries, so that it may be scaled up.
    """

    def once(points: Tensor) -> tuple[float, Tensor]:
        start = CLOCK()
        values = run(points)
        if values.is_cuda:
            torch.cuda.synchronize()
        return CLOCK() - start, values

    once(z[:16])
    probe, values = once(z[:64])
    if linear and probe * len(z) / 64 > PATIENCE:
        return probe * len(z) / 64, True, values
    times, values = zip(*(once(z) for _ in range(repeats)), strict=True)
    return min(times), False, values[0]


def exact(case: Case, points: int = 16) -> Tensor:
    """float64 brute force at the first queries."""
    rows = []
    for z in case.z[:points].double():
        normal = torch.distributions.Normal(case.loc.double(), case.scale.double())
        rows.append(normal.log_prob(z).sum(-1).logsumexp(0) - math.log(len(case.loc)))
    return torch.stack(rows)


def measure(size: int, dim: int, points: int, device: str, repeats: int) -> list[Row]:
    """Time every way in one case."""
    case = make(size, dim, points, device)
    truth = exact(case)
    rows = []
    with torch.no_grad():
        for way, run in peers(case).items():
            linear = way.startswith("torch")
            seconds, scaled, values = timed(run, case.z, repeats, linear=linear)
            error = float((values[: len(truth)].double() - truth).abs().max())
            floor = way.startswith("matrix")
            rows.append(Row(way, size, dim, points, seconds, scaled, None if floor else error))
    return rows


def isotropic(size: int, dim: int, points: int) -> list[Row]:
    """scikit-learn's KernelDensity evaluates the case of one scale for all units and components."""
    from sklearn.neighbors import KernelDensity

    case = make(size, dim, points, "cpu")
    case = Case(case.loc, torch.full_like(case.scale, 0.3), case.z)
    peer = KernelDensity(bandwidth=0.3).fit(case.loc.numpy())
    ways = {
        "pyrovae log_prob, isotropic": case.mixture.log_prob,
        "scikit-learn KernelDensity": lambda z: torch.as_tensor(peer.score_samples(z.numpy())),
    }
    rows = []
    truth = exact(case)
    for way, run in ways.items():
        seconds, scaled, values = timed(run, case.z, 3)
        error = float((values[: len(truth)].double() - truth).abs().max())
        rows.append(Row(way, size, dim, points, seconds, scaled, error))
    return rows


def small(size: int, dim: int, points: int) -> list[Row]:
    """Milliseconds count where a learned prior takes thousands of small steps."""
    case = make(size, dim, points, "cpu")
    parameters = [t.clone().requires_grad_() for t in (case.loc, case.scale)]

    def step(kind: type) -> Callable[[Tensor], Tensor]:
        def run(z: Tensor) -> Tensor:
            components = dist.Normal(*parameters).to_event(1)
            mixture = kind(dist.Categorical(logits=torch.zeros(size)), components)
            point = z.clone().requires_grad_()
            values = mixture.log_prob(point)
            values.sum().backward()
            return values.detach()

        return run

    rows = []
    ways = {"pyrovae": Mixture, "torch": torch.distributions.MixtureSameFamily}
    for name, kind in ways.items():
        fixed = kind(
            dist.Categorical(logits=torch.zeros(size)),
            dist.Normal(case.loc, case.scale).to_event(1),
        )
        with torch.no_grad():
            rows.append(
                Row(
                    f"{name} log_prob",
                    size,
                    dim,
                    points,
                    *timed(fixed.log_prob, case.z, 500)[:2],
                    None,
                )
            )
        rows.append(
            Row(
                f"{name} training step",
                size,
                dim,
                points,
                *timed(step(kind), case.z, 300)[:2],
                None,
            )
        )
    return rows


def reduction(size: int, dim: int, components: int, *, peer: bool = True) -> None:
    """`reduce` against scikit-learn's GaussianMixture fitted to as many draws as codes."""
    from sklearn.mixture import GaussianMixture

    generator = torch.Generator().manual_seed(0)
    centre = torch.randn(30, dim, generator=generator)
    loc = centre[torch.randint(30, (size,), generator=generator)]
    loc = loc + 0.4 * torch.randn(size, dim, generator=generator)
    scale = 0.05 + 0.25 * torch.rand(size, dim, generator=generator)
    mixture = Case(loc, scale, loc).mixture
    start = CLOCK()
    ours = reduce(mixture, components)
    print(f"N = {size}, D = {dim} reduced to K = {components}: KL from the whole")
    print(f"  pyrovae reduce               {ours.divergence} nats, {CLOCK() - start:.1f} s")
    if not peer:
        return
    start = CLOCK()
    fitted = GaussianMixture(components, covariance_type="diag", random_state=0, reg_covar=1e-6)
    fitted.fit(mixture.sample((size,)).numpy())
    seconds = CLOCK() - start
    weights, means, variances = (
        torch.as_tensor(t, dtype=loc.dtype)
        for t in (fitted.weights_, fitted.means_, fitted.covariances_)
    )
    theirs = Mixture(dist.Categorical(weights), dist.Normal(means, variances.sqrt()).to_event(1))
    print(f"  scikit-learn GaussianMixture {divergence(mixture, theirs)} nats, {seconds:.1f} s")


def peak_megabytes(size: int, dim: int, points: int) -> tuple[float, float]:
    """Peak memory of a process that evaluates one case, beyond that of making the case; seconds."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import mixture_density as m;"
        f"m.report_peak({size}, {dim}, {points})"
    )
    folder = str(Path(__file__).resolve().parent)
    done = subprocess.run(
        [sys.executable, "-c", code, folder], capture_output=True, text=True, check=True
    )
    peak, seconds = done.stdout.split()
    return float(peak), float(seconds)


def report_peak(size: int, dim: int, points: int) -> None:
    """Print the peak memory of this process and the seconds of one evaluation."""
    mixture, z = (case := make(size, dim, points, "cpu")).mixture, case.z
    start = CLOCK()
    mixture.log_prob(z)
    seconds = CLOCK() - start
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, seconds)


def memory_rows() -> list[dict[str, object]]:
    """Print and return the peak memory of the large cases."""
    rows: list[dict[str, object]] = []
    for case in MEMORY_CASES:
        peak, seconds = peak_megabytes(*case)
        rows.append({"case": case, "megabytes": peak, "seconds": seconds})
        print(f"N, D, B = {case}: {seconds:.1f} s, peak of the whole process {peak:.0f} MB")
    return rows


def by_tiles(size: int, dim: int, points: int, repeats: int) -> None:
    """Time a grid over ±4 and draws, by tiles of points and by the search, in turns."""
    case = make(size, dim, points, "cpu")
    side = torch.linspace(-4, 4, round(points ** (1 / dim)))
    grid = torch.cartesian_prod(*[side] * dim).view(-1, dim)
    mixture = case.mixture
    for name, z in (("grid", grid), ("draws", case.z)):
        tiles = search = math.inf
        for _ in range(1 + repeats):  # the first lays the mixture out
            start = CLOCK()
            mixture.log_prob(z)
            tiles = min(tiles, CLOCK() - start)
            with patch.object(few_units, "UNITS", 0):
                start = CLOCK()
                mixture.log_prob(z)
                search = min(search, CLOCK() - start)
        print(
            f"D = {dim}, N = {size:6,}, {len(z):6,} of the {name:5}: tiles {tiles:.3f} s, search "
            f"{search:.3f} s, ratio {search / tiles:.1f}",
            flush=True,
        )


def table(rows: list[Row]) -> None:
    """Print rows; the ratio is to the first way of a case."""
    ours: dict[tuple[int, int, int], float] = {}
    print(f"{'way':34} {'N':>9} {'D':>4} {'B':>6} {'seconds':>10} {'ratio':>8} {'max error':>10}")
    for row in rows:
        case = (row.components, row.units, row.queries)
        ours.setdefault(case, row.seconds)
        mark = "~" if row.scaled else " "
        error = "" if row.error is None else f"{row.error:10.1e}"
        ratio = row.seconds / ours[case]
        print(
            f"{row.way:34} {row.components:9,} {row.units:4} {row.queries:6} "
            f"{mark}{row.seconds:9.4f} {ratio:8.2f} {error:>10}"
        )


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cases", nargs="*", metavar="N,D,B", help="cases to time instead")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, help="torch threads; all cores if not given")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time, for one thread on a busy machine"
    )
    parser.add_argument("--few-units", action="store_true", help="by tiles and by the search")
    options = parser.parse_args()
    if options.cpu_time:
        global CLOCK
        CLOCK = time.process_time
    if options.threads:
        torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}")
    if options.few_units:
        for dim in (1, 2):
            for size in (1_000, 10_000, 50_000):
                for points in (4_096, 65_536):
                    by_tiles(size, dim, points, options.repeats)
        return
    chosen = [tuple(map(int, c.split(","))) for c in options.cases] if options.cases else CASES
    memory = [] if options.cases else memory_rows()  # first: a child begins with its parent's peak
    every: list[Row] = []
    for case in chosen:
        rows = measure(*case, options.device, options.repeats)
        table(rows)
        every += rows
    if not options.cases:
        for extra in (
            *(small(*case) for case in SMALL_CASES),
            isotropic(60_000, 2, 2048),
            isotropic(60_000, 40, 2048),
        ):
            table(extra)
            every += extra
        reduction(20_000, 40, 100)
        reduction(60_000, 40, 1_000, peer=False)
    if options.json:
        options.json.write_text(json.dumps({"rows": [asdict(r) for r in every], "memory": memory}))


if __name__ == "__main__":
    main()
