"""Trains methods in turn as one of two processes: ``python on_two_processes.py RANK FOLDER``.

FOLDER holds ``work.pt``: for each method its module and the batches of both processes. ``RANK.pt`` gets the weights
after the last step.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from partcraft_lit.core.types import TrainingBatch
from partcraft_lit.module import PersonalizationModule

#: The second step is where torch notices that a parameter got no gradient in the first.
STEPS = 2


class Loss(nn.Module):
    """What Lightning wraps too: the training step as a forward pass."""

    def __init__(self, module: PersonalizationModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: TrainingBatch) -> Tensor:
        return self.module.training_step(batch, 0)


def train(module: PersonalizationModule, batch: TrainingBatch) -> dict[str, Tensor]:
    module.log_dict = lambda *args, **kwargs: None  # there is no trainer
    for term in module.method.loss_terms():
        module.request_attention()
        module.add_loss_term(term)
    made = module.configure_optimizers()
    optimizer = made["optimizer"] if isinstance(made, dict) else made  # with a schedule, where there are phases
    parallel = DistributedDataParallel(Loss(module))
    for _ in range(STEPS):
        optimizer.zero_grad()
        parallel(batch).backward()
        optimizer.step()
    return module.state_dict()


if __name__ == "__main__":
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    work = torch.load(folder / "work.pt", weights_only=False)
    torch.save({name: train(module, batches[rank]) for name, (module, batches) in work.items()}, folder / f"{rank}.pt")
    distributed.destroy_process_group()
