"""Trains to the trainer's last step, from the beginning or from a checkpoint."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from partcraft_lit.callbacks.binding import NeedsRun
from partcraft_lit.callbacks.checkpoint import newest_good
from partcraft_lit.callbacks.graceful_stop import GracefulStop
from partcraft_lit.callbacks.live_score import read_best
from partcraft_lit.callbacks.loss_terms import AddLossTerm
from partcraft_lit.callbacks.nonfinite import NonFiniteTraining, SkipNonFinite
from partcraft_lit.commands.train.context import RunContext
from partcraft_lit.commands.train.examples import prior_examples, probe_batch, training_set
from partcraft_lit.commands.train.predictor import part_prediction_term
from partcraft_lit.core import stopping
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.finite import first_nonfinite
from partcraft_lit.data.datamodule import PartDataModule
from partcraft_lit.data.latents import posterior
from partcraft_lit.runs.memory import offloaded

_DIVERGED = (
    "Training stops here. Lower the learning rates (optim.*_lr), train in trainer.precision=32-true, or look at the "
    "images that are named."
)


def fit(run: RunContext) -> None:
    """Trains what is there to train; goes back to the last good checkpoint once where the loss is not finite any more.

    Raises:
        UserError: if training is not finite again, or there is nothing to go back to.
        Stopped: where a signal stopped it.
        TimeLimitReached: where ``trainer.max_time`` did.
    """
    run.probe_batch = probe_batch(run)
    if not run.module.trainable_groups():
        run.stages.log("  nothing trains with this method")
        run.module.to(next(run.backbone.denoiser.parameters()).device).eval()
        return
    stop = GracefulStop(run.training.max_seconds)
    callbacks = [*bound_callbacks(run), stop]
    with offloaded(run.features, run.settings.hardware, run.store.root):
        try:
            _fit(run, callbacks, stop, run.resume_from)
        except NonFiniteTraining as error:
            checkpoint = newest_good(run.folder / "checkpoints")
            if checkpoint is None:
                raise UserError(f"{error} {_DIVERGED}") from error
            run.stages.log(f"{error} Training goes back to {checkpoint}, with half the learning rates.")
            run.module.scale_rates(0.5)
            try:
                _fit(run, callbacks, stop, checkpoint)
            except NonFiniteTraining as again:
                raise UserError(f"{again} {_DIVERGED}") from again
    run.module.to(next(run.backbone.denoiser.parameters()).device).eval()
    if best := read_best(run.folder / "checkpoints"):
        run.stages.log(f"  {best['why']}")


def _fit(run: RunContext, callbacks: list[Callback], stop: GracefulStop, resume_from: Path | None) -> None:
    trainer = run.training.make_trainer(
        logger=list(run.training.loggers),
        callbacks=callbacks,
        default_root_dir=run.folder,
        use_distributed_sampler=False,  # the data module deals samples out itself
        max_time=None,  # GracefulStop has it
        enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),  # else Lightning would add its own
    )
    if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
        stopping.follow(lambda: launcher.procs)
    data = _data_module(run, trainer.accumulate_grad_batches, trainer.world_size)
    if resume_from is not None:
        run.stages.log(f"Continuing from {resume_from}")
    groups = run.module.trainable_groups()
    counts = [f"{name} {sum(p.numel() for p in group):,}" for name, group in groups.items()]
    run.stages.log("  trainable parameters: " + ", ".join(counts))
    with run.stages.stage("train"), warnings.catch_warnings():
        # Frozen networks are in evaluation mode on purpose; the other is about Lightning's own code.
        warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
        trainer.fit(run.module, datamodule=data, ckpt_path=resume_from, weights_only=True)
    _end_if_stopped(stop, trainer)
    if name := first_nonfinite(run.module.state_dict()):
        raise NonFiniteTraining(f"The weights are not finite after step {trainer.global_step} ({name}).")


def _end_if_stopped(stop: GracefulStop, trainer: Trainer) -> None:
    """Raises Stopped or TimeLimitReached where training ended so, in all processes alike."""
    by_time = stop.by_time and not 0 < trainer.max_steps <= trainer.global_step
    if stop.signal is None and not by_time:
        return
    reached = f"at step {trainer.global_step}" + (f" of {trainer.max_steps}" if trainer.max_steps > 0 else "")
    if stop.signal is not None:
        raise stopping.Stopped(stop.signal, reached, agreed=True)
    raise stopping.TimeLimitReached(reached)


def bound_callbacks(run: RunContext) -> list[Callback]:
    """The callbacks of the run, with what they ask it for, and the loss terms of its method."""
    terms = [*run.module.method.loss_terms(), *filter(None, [part_prediction_term(run)])]
    callbacks = [SkipNonFinite(), *run.training.callbacks, *map(AddLossTerm, terms)]
    for callback in callbacks:
        if isinstance(callback, NeedsRun):
            callback.bind(run)
    return callbacks


def _data_module(run: RunContext, accumulate: int, processes: int) -> PartDataModule:
    data = run.settings.data
    total_samples = run.settings.optim.total_steps * accumulate * data.batch_size * processes
    return PartDataModule(
        training_set(run, total_samples),
        run.module.method.tokenize,
        data.batch_size,
        data.num_workers,
        accumulate,
        prior_examples(run),
        functools.partial(posterior, run.backbone) if data.crops == "encode" else None,
    )
