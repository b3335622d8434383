"""Trains to the trainer's last step, from the beginning or from a checkpoint."""

from __future__ import annotations

import functools
import warnings

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import Checkpoint

from partcraft_lit.callbacks.binding import NeedsRun
from partcraft_lit.callbacks.live_score import read_best
from partcraft_lit.callbacks.loss_terms import AddLossTerm
from partcraft_lit.commands.train.context import RunContext
from partcraft_lit.commands.train.examples import prior_examples, probe_batch, training_set
from partcraft_lit.commands.train.memory import offloaded
from partcraft_lit.data.datamodule import PartDataModule
from partcraft_lit.data.latents import posterior


def fit(run: RunContext) -> None:
    run.probe_batch = probe_batch(run)
    callbacks = bound_callbacks(run)
    with offloaded(run.features, run.settings.hardware, run.store.root):
        trainer = run.training.make_trainer(
            logger=list(run.training.loggers),
            callbacks=callbacks,
            default_root_dir=run.folder,
            use_distributed_sampler=False,  # the data module deals samples out itself
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks),  # else Lightning would add its own
        )
        data = _data_module(run, trainer.accumulate_grad_batches)
        if run.resume_from is not None:
            run.stages.log(f"Continuing from {run.resume_from}")
        groups = run.module.trainable_groups()
        counts = [f"{name} {sum(p.numel() for p in group):,}" for name, group in groups.items()]
        run.stages.log("  trainable parameters: " + ", ".join(counts))
        with run.stages.stage("train"), warnings.catch_warnings():
            # Frozen networks are in evaluation mode on purpose; the other is about Lightning's own code.
            warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")
            warnings.filterwarnings("ignore", message=".*LeafSpec.*deprecated.*")
            trainer.fit(run.module, datamodule=data, ckpt_path=run.resume_from, weights_only=True)
    run.module.to(next(run.backbone.unet.parameters()).device).eval()
    if best := read_best(run.folder / "checkpoints"):
        run.stages.log(f"  {best['why']}")


def bound_callbacks(run: RunContext) -> list[Callback]:
    """The callbacks of the run, with what they ask it for, and the loss terms of its method."""
    callbacks = [*run.training.callbacks, *map(AddLossTerm, run.module.method.loss_terms())]
    for callback in callbacks:
        if isinstance(callback, NeedsRun):
            callback.bind(run)
    return callbacks


def _data_module(run: RunContext, accumulate: int) -> PartDataModule:
    data = run.settings.data
    return PartDataModule(
        training_set(run),
        run.module.method.tokenize,
        data.batch_size,
        data.num_workers,
        accumulate,
        prior_examples(run),
        functools.partial(posterior, run.backbone) if data.crops == "encode" else None,
    )
