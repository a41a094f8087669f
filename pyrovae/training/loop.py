"""The training loop: epochs of steps, held-out ELBO, early stopping, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import copy, deepcopy
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar, cast

import pyro
import torch
from torch import Tensor

from pyrovae.data import Batch, Batches, Transform, row_count
from pyrovae.errors import InputError
from pyrovae.pairs import AsFound, PyroFunction, check_dtypes
from pyrovae.progress import Bar
from pyrovae.randomness import seeded_everywhere
from pyrovae.saving import check_room
from pyrovae.torch_modes import alone
from pyrovae.training.averaging import EpochMean, merged, statistics_anew
from pyrovae.training.captured import Capture, Results, Steps
from pyrovae.training.checkpoint import Checkpoint, load, save
from pyrovae.training.distributed import Ranks
from pyrovae.training.fingerprint import described, of_optimizer, of_pair
from pyrovae.training.fused_adam import update_of
from pyrovae.training.history import Fit, History, Stopped
from pyrovae.training.objectives import Objective, elbo, log_density, paired_traces
from pyrovae.training.replay import NotRepeatable
from pyrovae.training.trainable import Survey, Trainable, survey

T = TypeVar("T")

_COLUMNS = ("train", "validation", "kl_weight", "seconds")


class NonFiniteLoss(ArithmeticError):
    """Training met a loss that is NaN or infinite.

    Args:
        epoch, step: where it happened, counted from 1; step 0 is the validation after the epoch.
        sites: sample sites whose log density is not finite there.
        parameters: parameters that are not finite themselves, after a gradient that wasn't.
    """

    def __init__(
        self, epoch: int, step: int, sites: tuple[str, ...], parameters: tuple[str, ...] = ()
    ) -> None:
        place = f"epoch {epoch}, step {step}" if step else f"the validation after epoch {epoch}"
        source = f"the log density at {', '.join(sites)}" if sites else "the sum over finite sites"
        if parameters:
            source += f", with parameters that are no longer finite ({', '.join(parameters[:5])})"
        super().__init__(
            f"expected a finite loss; got NaN or infinity in {place}, from {source}. Try a smaller "
            "learning rate, clip_norm=, or a scale that is bounded away from 0."
        )
        self.epoch, self.step = epoch, step
        self.sites, self.parameters = sites, parameters

    def __reduce__(self) -> tuple[type[NonFiniteLoss], tuple[Any, ...]]:
        return type(self), (self.epoch, self.step, self.sites, self.parameters)


@dataclass(frozen=True)
class Settings:
    """The numbers that set up a run; see :func:`pyrovae.training.fit.fit`."""

    epochs: int
    kl_warmup: int
    clip_norm: float | None
    patience: int | None
    seed: int
    average: int = 0
    lr_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("kl_warmup", 0), ("patience", 1), ("average", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"expected {name} ≥ {least}; got {value}. Choose a larger number.")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(
                f"expected clip_norm > 0; got {self.clip_norm}. Pass None for no clipping."
            )

    def stalled(self, epoch: int, best_epoch: int) -> bool:
        """Whether validation has not improved for as many epochs as ``patience`` says."""
        stale_epochs = epoch - max(best_epoch, self.kl_warmup)
        return self.patience is not None and stale_epochs >= self.patience

    def kl_weight(self, epoch: int) -> float:
        """Weight on the latent sites in an epoch: epoch / kl_warmup, at most 1."""
        return min(1.0, epoch / self.kl_warmup) if self.kl_warmup else 1.0


@dataclass
class Evaluator:
    """Computes the mean objective per datum of a batch."""

    model: PyroFunction
    guide: PyroFunction
    objective: Objective
    transform: Transform | None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _plate_sizes: dict[int, int] = field(default_factory=dict)

    def __call__(self, batch: Batch, kl_weight: float = 1.0) -> Tensor:
        """Mean objective per datum, in nats, shape ``()``."""
        count = row_count(batch)
        if count not in self._plate_sizes:
            self.survey(batch)
        total = self.objective(self.model, self.guide, *batch, kl_weight=kl_weight)
        return total / self._plate_sizes[count]

    def survey(self, batch: Batch) -> Survey:
        """Run the pair on a batch to see what can be trained and how large its plate is."""
        run = partial(survey, self.objective, self.model, self.guide, batch)
        try:
            result = run()
        except RuntimeError as error:
            check_dtypes(error, batch, self.model, self.guide)
            raise
        except ValueError as error:
            result = unchecked(run, error)  # the step that follows says where a NaN is
        self._plate_sizes[row_count(batch)] = result.plate_size
        return result

    def prepared(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Batches on the device, transformed with draws from torch's current random state."""
        generator = None
        for batch in batches:
            x, *others = (array.to(self.device, non_blocking=True) for array in batch)
            if self.transform is not None:
                if generator is None:
                    generator = torch.Generator(self.device)
                    generator.manual_seed(int(torch.randint(1 << 62, ())))
                x = self.transform(x, generator)
            yield (x, *others)

    def prepared_once(self, batch: Batch) -> Batch:
        """One batch, prepared without changing the draws of the steps that follow."""
        restore_random_state = _random_state(self.device)
        with torch.no_grad():
            (prepared,) = self.prepared(iter([batch]))
        restore_random_state()
        return prepared

    def non_finite_sites(self, batch: Batch) -> tuple[str, ...]:
        """Sample sites whose log density is not finite, with draws from the current state."""
        with torch.no_grad(), argument_checks(False):
            model_trace, guide_trace = paired_traces(self.model, self.guide, batch)
            sites = []
            for trace in (model_trace, guide_trace):
                for name, node in trace.nodes.items():
                    if node["type"] == "sample":
                        log_prob = log_density(node)
                        if not bool(log_prob.isfinite().all()):
                            sites.append(name)
        return tuple(dict.fromkeys(sites))


@dataclass
class Trainer:
    """A training run that can be interrupted after any epoch; threads take turns by the epoch."""

    evaluator: Evaluator
    trainable: Trainable
    new_optimizer: Callable[[], torch.optim.Optimizer]
    train: Batches
    validation: Batches | None
    settings: Settings
    ranks: Ranks
    in_order: bool = False
    capture: Capture = "auto"
    compile: bool = False
    epoch: int = 0
    best_epoch: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    columns: dict[str, list[float]] = field(default_factory=lambda: {c: [] for c in _COLUMNS})
    averaged_epochs: int = 0
    averaged_steps: int = 0
    mean: dict[str, Tensor] = field(default_factory=dict)
    known_names: set[str] = field(default_factory=lambda: set(pyro.get_param_store().keys()))

    def __post_init__(self) -> None:
        self.optimizer = self.new_optimizer()
        objective = self.evaluator.objective
        # Only of the library's own objective is it known that the weight may be a tensor.
        any_weight = self.settings.kl_warmup > 0 and getattr(objective, "func", objective) is elbo
        self.steps = Steps(self.evaluator, self.trainable, self.capture, any_weight, self.compile)
        if self.settings.lr_factors:
            self.rates = rates_of(self.optimizer)

    def run(self, bar: Bar, path: Path | None) -> Fit:
        """Train until the last epoch or until validation stalls, average, and keep the best."""
        while not self._stalled() and self.epoch - self.averaged_epochs < self.settings.epochs:
            self._run_epoch(self._train_and_validate, bar, path)
        stopped: Stopped = "patience" if self._stalled() else "epochs"
        while self.averaged_epochs < self.settings.average:
            self._run_epoch(self._train_and_average, bar, path)
        history = History.from_lists(self.columns, self.averaged_epochs)
        return Fit(history, self._keep_best(), stopped, self.settings.seed, self.steps.account)

    def _run_epoch(
        self, epoch: Callable[[Bar], tuple[float, float]], bar: Bar, path: Path | None
    ) -> None:
        start = time.perf_counter()
        self.epoch += 1
        with alone(), argument_checks(self.epoch == 1):
            train, validation = epoch(bar)
        self._note(train, validation, time.perf_counter() - start)
        held_out = "" if math.isnan(validation) else f" · validation {validation:.2f}"
        bar.update(f"epoch {self.epoch} · ELBO {train:.2f}{held_out}")
        if path is not None:
            self.ranks.from_first(lambda: save(self._checkpoint(), path))

    def _train_and_validate(self, bar: Bar) -> tuple[float, float]:
        self._set_rates(self.epoch)
        return self._train_epoch(bar), self._validate()

    def _train_and_average(self, bar: Bar) -> tuple[float, float]:
        """One epoch more for the mean, which is validated; training goes on from the last step."""
        trainable = self.trainable
        if not self.averaged_epochs:
            if self.validation is not None:
                trainable.load(self.best)
            self.optimizer = self.new_optimizer()  # what the old one knows is of a later epoch
        self._set_rates(self.best_epoch)
        before = {name: buffer.clone() for name, buffer in trainable.buffers.items()}
        epoch = EpochMean(trainable.parameters)
        train = self._train_epoch(bar, epoch)
        last = trainable.state()
        trainable.load(last | merged(self.mean, self.averaged_steps, epoch))
        if not all(torch.equal(buffer, last[name]) for name, buffer in before.items()):
            self._renew_buffers()
        validation = self._validate()
        self.averaged_epochs += 1
        self.averaged_steps += epoch.steps
        self.mean = trainable.state()
        trainable.load(last)
        return train, validation

    def _renew_buffers(self) -> None:
        """Bring the buffers up to date with the parameters by a pass without steps."""
        draws = seeded_everywhere(self.settings.seed, "pass for the buffers", self.epoch)
        self.trainable.train(True)
        weight = self.settings.kl_weight(self.epoch)
        with torch.no_grad(), draws, statistics_anew(self.trainable.modules):
            batches = self.train.ordered() if self.in_order else self.train.shuffled()
            for batch in self.evaluator.prepared(batches):
                self._evaluate(batch, weight, 0)

    def _keep_best(self) -> int:
        """Give the pair the mean parameters or those of the best epoch; the epoch they are of."""
        validation = self.columns["validation"]
        if self.averaged_epochs and not validation[-1] < validation[self.best_epoch - 1]:
            self.trainable.load(self.mean)
            return self.epoch
        if self.validation is not None:
            self.trainable.load(self.best)
        return self.best_epoch

    def _set_rates(self, epoch: int) -> None:
        """Give every group of the optimizer its learning rate times the factor of an epoch."""
        if self.settings.lr_factors:
            factor = self.settings.lr_factors[epoch - 1]
            for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
                group["lr"] = rate * factor

    def begin(self, path: Path) -> None:
        """Check that checkpoints can be written to ``path``, and resume from one that is there.

        Raises:
            InputError: if the disk has no room for it, the order of the data can't be repeated, or
                the checkpoint is of another run or of more epochs than this one may have.
        """
        checkpoint = self.ranks.from_first(lambda: self._found(path))
        if checkpoint is not None:
            self._load(checkpoint)

    def _found(self, path: Path) -> Checkpoint | None:
        exists = path.exists()
        # While a new checkpoint is written, the old one is still there.
        check_room(path.parent, self._least_size() * (1 if exists else 2))
        fingerprint = self.fingerprint  # taken now, as steps may change the optimizer's settings
        return load(path, fingerprint) if exists else None

    def _least_size(self) -> int:
        """The least size of a checkpoint in bytes, with the moments of Adam and its variants."""
        state_bytes = sum(tensor.nbytes for tensor in self.trainable.state().values())
        moment_bytes = sum(
            2 * tensor.nbytes
            for group in self.optimizer.param_groups
            for tensor in group["params"]
            if "betas" in group
        )
        copies = 1 + (self.validation is not None) + (self.settings.average > 0)
        return state_bytes * copies + moment_bytes

    def _load(self, checkpoint: Checkpoint) -> None:
        done = checkpoint.epoch - checkpoint.averaged_epochs
        for name, least in (("epochs", done), ("average", checkpoint.averaged_epochs)):
            value = getattr(self.settings, name)
            if value < least:
                raise InputError(
                    f"expected {name} ≥ {least}, as many as the checkpoint has; got {value}. "
                    f"Raise {name}, or name another checkpoint."
                )
        stalled = self.settings.stalled(done, checkpoint.best_epoch)
        if checkpoint.averaged_epochs and not stalled and self.settings.epochs > done:
            raise InputError(
                f"expected epochs={done}, as before the average that the checkpoint has begun; got "
                f"{self.settings.epochs}. Leave epochs as it was, or train anew into another file."
            )
        self._check_factors(checkpoint.lr_factors or [1.0] * done)
        self.trainable.load(checkpoint.state)
        self._check_probe(*checkpoint.probe)
        self.optimizer.load_state_dict(checkpoint.optimizer)
        self.epoch, self.best_epoch = checkpoint.epoch, checkpoint.best_epoch
        self.best, self.columns = checkpoint.best, checkpoint.history
        self.averaged_epochs, self.mean = checkpoint.averaged_epochs, checkpoint.mean
        self.averaged_steps = checkpoint.averaged_steps

    def _check_factors(self, before: list[float]) -> None:
        """Raise if an epoch that is done had another learning rate than it would have now."""
        now = self.settings.lr_factors[: len(before)] or (1.0,) * len(before)
        for epoch, (factor, former) in enumerate(zip(now, before, strict=True), 1):
            if factor != former:
                raise InputError(
                    "expected the lr_schedule that the checkpoint was written with; got the factor "
                    f"{factor:.6g} for epoch {epoch} where it was {former:.6g}. Resume with the "
                    "same one, or train anew into another file or folder."
                )

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """What a resumed run must share with the interrupted one, beside the schedule.

        Only ``epochs`` and ``average`` may grow.
        """
        settings, evaluator = self.settings, self.evaluator
        return {
            "seed": str(settings.seed),
            "kl_warmup": str(settings.kl_warmup),
            "clip_norm": str(settings.clip_norm),
            "patience": str(settings.patience),
            "objective": described(evaluator.objective),
            "transform": described(evaluator.transform),
            **of_optimizer(self.optimizer, self.trainable),
            "train": self.train.fingerprint(),
            "validation": str(self.validation and self.validation.fingerprint()),
            **of_pair(self.trainable),
        }

    def _train_epoch(self, bar: Bar, mean: EpochMean | None = None) -> float:
        """One pass with steps; anew, if what was replayed in it turns out to be something else.

        Ranks replay or compute their steps each as it can, as both give the same bits; they begin
        anew together.
        """
        settings = self.settings
        to_come = settings.epochs + settings.average - self.epoch + 1
        replays = self.steps.begin(self.epoch, to_come, settings.kl_weight(self.epoch))
        if not any(self.ranks.total(replays)):
            return self._pass(bar, mean)
        state, found = self.trainable.state(), AsFound(self.trainable.modules)
        optimizer_state = deepcopy(self.optimizer.state_dict())
        try:
            with self.ranks.failing_together(NotRepeatable):
                return self._pass(bar, mean)
        except NotRepeatable as error:
            self.ranks.go_on()
            self.trainable.load(state)
            found.put_back()
            self.optimizer.load_state_dict(optimizer_state)
            self.steps.give_up(str(error))
            return self._pass(bar, mean)

    def _pass(self, bar: Bar, mean: EpochMean | None) -> float:
        self.trainable.train(True)
        weight, update = self.settings.kl_weight(self.epoch), update_of(self.optimizer)
        total, count, step, ticks = 0.0, 0, 0, 0
        if mean is not None:
            mean.steps = 0
        order = seeded_everywhere(self.settings.seed, "training epoch", self.epoch)
        try:
            with order, self.ranks.batches(self.train, in_order=self.in_order) as batches:
                for step, batch in enumerate(self.evaluator.prepared(batches), 1):
                    total += self._step(batch, weight, step, update) * row_count(batch)
                    count += row_count(batch)
                    if mean is not None:
                        mean.add()
                    bar.tick()
                    ticks = step
                self.steps.end()
                for _ in self.ranks.steps_without_rows(step, len(self.train)):
                    self.optimizer.zero_grad()
                    self._update(0, update)
                    if mean is not None:
                        mean.add()
            total, all_rows = self.ranks.total(total, count)
        except NotRepeatable:
            bar.tick(-ticks)
            raise
        if self.trainable.buffers:
            self.ranks.align()
        late_names = set(pyro.get_param_store().keys()) - self.known_names
        if late_names:
            raise InputError(
                f"expected every pyro.param statement to be run on the first batch; got "
                f"{late_names} later, which were not trained. Run the statements on every batch."
            )
        return total / all_rows

    def _step(self, batch: Batch, weight: float, step: int, update: Callable[[], object]) -> float:
        captured = self.steps.captured(batch)
        mean = None if captured is None else self._replay(captured, batch, weight, step)
        if mean is None:
            evaluator = self.evaluator
            with self.steps.watching(evaluator.model, evaluator.guide, evaluator.objective):
                mean = self._evaluate(batch, weight, step)
            self.optimizer.zero_grad()
            (-mean).backward()
        self._update(row_count(batch), update)
        return mean.item()

    def _update(self, rows: int, update: Callable[[], object]) -> None:
        """One update of all parameters, by the gradient of this many rows and of other ranks'."""
        self.ranks.average_gradients(rows)
        if self.settings.clip_norm is not None:
            parameters = self.trainable.parameters.values()
            torch.nn.utils.clip_grad_norm_(parameters, self.settings.clip_norm)
        update()

    def _replay(
        self, captured: Callable[[Batch, float], Results], batch: Batch, weight: float, step: int
    ) -> Tensor | None:
        """The mean objective, checked to be finite, with the gradients where an update finds them.

        None if the pair has to compute this step.

        Raises:
            NotRepeatable: if it is not finite, and the pair's is.
        """
        restore_random_state = _random_state(self.evaluator.device)
        results = captured(batch, weight)
        if not results:
            restore_random_state()
            return None
        mean, *gradients = results
        if not math.isfinite(mean.item()):
            restore_random_state()
            self._evaluate(batch, weight, step)
            raise NotRepeatable("its loss is finite where the one replayed is not")
        if not type(self.optimizer).__module__.startswith("torch.optim."):
            gradients = [g if g is None else g.clone() for g in gradients]  # it may keep them
        for parameter, gradient in zip(self.trainable.parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        return cast(Tensor, mean)

    def _validate(self) -> float:
        if self.validation is None:
            return math.nan
        self.trainable.train(False)
        total, count = 0.0, 0
        draws = seeded_everywhere(self.settings.seed, "validation")
        with torch.no_grad(), draws, self.ranks.batches(self.validation, in_order=True) as batches:
            for batch in self.evaluator.prepared(batches):
                total += self._evaluate(batch, 1.0, 0).item() * row_count(batch)
                count += row_count(batch)
        total, all_rows = self.ranks.total(total, count)
        return total / all_rows

    def _evaluate(self, batch: Batch, weight: float, step: int) -> Tensor:
        """The mean objective, checked to be finite before it can reach a parameter."""
        restore_random_state = _random_state(self.evaluator.device)

        def explanation() -> NonFiniteLoss:
            restore_random_state()
            return self._non_finite(batch, step)

        try:
            mean = self.evaluator(batch, weight)
        except ValueError as error:  # Pyro's and torch's argument checks see a NaN first
            loss_error = unchecked(explanation, error)
            if not loss_error.sites:
                raise
            raise loss_error from error
        if not math.isfinite(mean.item()):
            raise explanation()
        return mean

    def _non_finite(self, batch: Batch, step: int) -> NonFiniteLoss:
        """The error for a loss that is not finite, with the draws of the current random state."""
        sites = self.evaluator.non_finite_sites(batch)
        tensors = self.trainable.parameters.items()
        parameters = tuple(name for name, tensor in tensors if not tensor.isfinite().all())
        return NonFiniteLoss(self.epoch, step, sites, parameters)

    def _note(self, train: float, validation: float, seconds: float) -> None:
        weight = self.settings.kl_weight(self.epoch)
        for name, value in zip(_COLUMNS, (train, validation, weight, seconds), strict=True):
            self.columns[name].append(value)
        if self.averaged_epochs:
            return  # the mean is judged when it is whole
        if self.validation is None:
            self.best_epoch = self.epoch
        elif self.epoch == 1 or validation > self.columns["validation"][self.best_epoch - 1]:
            self.best_epoch, self.best = self.epoch, self.trainable.state()

    def _stalled(self) -> bool:
        return self.settings.stalled(self.epoch - self.averaged_epochs, self.best_epoch)

    def _checkpoint(self) -> Checkpoint:
        probe = self._probe()
        return Checkpoint(
            fingerprint=self.fingerprint,
            epoch=self.epoch,
            state=self.trainable.state(),
            probe=(probe.device.type, probe.item()),
            optimizer=self.optimizer.state_dict(),
            best_epoch=self.best_epoch,
            best=self.best,
            history=self.columns,
            averaged_epochs=self.averaged_epochs,
            averaged_steps=self.averaged_steps,
            mean=self.mean,
            lr_factors=list(self.settings.lr_factors[: self.epoch - self.averaged_epochs]),
        )

    @cached_property
    def _sample(self) -> Batch:
        """A minibatch that a resumed run draws again."""
        with seeded_everywhere(self.settings.seed, "rows to compare"):
            return next(self.train.shuffled())

    def _probe(self) -> Tensor:
        """The objective at the current parameters, always of the same rows and draws."""
        self.trainable.train(False)
        draws = seeded_everywhere(self.settings.seed, "draws to compare")
        with torch.no_grad(), argument_checks(False), draws:
            (batch,) = self.evaluator.prepared(iter([self._sample]))
            return self.evaluator(batch)

    def _check_probe(self, device: str, before: float) -> None:
        """Raise if the objective has changed, so that the same parameters mean something else."""
        probe = self._probe()
        now, tolerance = probe.item(), torch.finfo(probe.dtype).eps ** 0.5
        if probe.device.type != device or str(now) == str(before):  # devices differ in their draws
            return
        if not math.isclose(now, before, rel_tol=tolerance, abs_tol=tolerance):
            raise InputError(
                "expected the pair, objective and transform that the checkpoint was written with; "
                f"got {now:.6g} nats per datum at its parameters where it was {before:.6g}. Resume "
                "with the same ones, or train anew into another file or folder."
            )


def rates_of(optimizer: torch.optim.Optimizer) -> list[float]:
    """The learning rate of every group.

    Raises:
        InputError: if a group has none.
    """
    if any("lr" not in group for group in optimizer.param_groups):
        raise InputError(
            f"expected an optimizer with a learning rate for lr_schedule; got "
            f"{type(optimizer).__name__}, which has none. Leave lr_schedule out."
        )
    return [copy(group["lr"]) for group in optimizer.param_groups]  # it may be a tensor


def argument_checks(on: bool) -> AbstractContextManager[object]:
    """Leave Pyro's and torch's argument checks as they are, or turn them off for a while."""
    if on:
        return nullcontext()
    names = ("distributions_pyro", "distributions_torch", "infer", "poutine")
    context: AbstractContextManager[object] = pyro.settings.context(
        **{f"validate_{name}": False for name in names}
    )
    return context


def unchecked(run: Callable[[], T], refusal: ValueError) -> T:
    """The result of ``run`` without the argument checks that have refused it.

    Raises:
        InputError: the refusal itself, if it is the library's own, which says what to do.
        ValueError: the refusal itself, if torch can't run without the checks either, as with an
            unknown category.
    """
    if isinstance(refusal, InputError):
        raise refusal
    try:
        with argument_checks(False):
            return run()
    except (RuntimeError, IndexError):
        raise refusal from None


def _random_state(device: torch.device) -> Callable[[], None]:
    """A function that puts torch's random state back to where it is now."""
    cpu_state = torch.get_rng_state()
    if device.type != "cuda":
        return lambda: torch.set_rng_state(cpu_state)
    cuda_state = torch.cuda.get_rng_state(device)

    def restore() -> None:
        torch.set_rng_state(cpu_state)
        torch.cuda.set_rng_state(cuda_state, device)

    return restore
