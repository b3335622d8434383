"""Every method on two processes, without an option for parameters that get no gradient."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

#: Methods; the second process has no part token in its batch, as happens where a crop shows no part.
METHODS = {
    "partcraft": (),
    "textual_inversion": (),
    "dreambooth": ("method.text_encoder=true",),
    "dreambooth_lora": (),
    "custom_diffusion": (),
    "break_a_scene": ("trainer.max_steps=4",),
    "disendiff": ("parts.names=[head,wing]", "method.captions.background=false"),
}

NOTHING = (-1, -1, -1)


@pytest.mark.parametrize("codes", [(1, 2, 0), NOTHING])
def test_all_that_trains_gets_a_gradient(each_fresh_backbone, tools, codes):
    """Text encoders too: of the two of SDXL the first is read before its last layer, which does not train then."""
    module = tools.build(each_fresh_backbone, "method=break_a_scene")
    module.log_dict = lambda *args, **kwargs: None
    module.training_step(tools.batch_of(module, prior=True, codes=codes), 0).backward()
    assert not [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.slow
def test_every_method_trains_on_two_processes(tiny_backbone, tools, tmp_path):
    work = {}
    for name, overrides in METHODS.items():
        module = tools.build(copy.deepcopy(tiny_backbone), f"method={name}", *overrides)
        module.method._prepare = None  # done, and no function of this process can be sent to another
        prior = name not in ("partcraft", "textual_inversion")
        work[name] = module, [tools.batch_of(module, prior, codes=codes) for codes in ((1, 2, 0), NOTHING)]
    torch.save(work, tmp_path / "work.pt")
    script = Path(__file__).with_name("on_two_processes.py")
    pair = [
        subprocess.Popen([sys.executable, script, str(rank), tmp_path], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    said = [process.communicate(timeout=500)[1] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said[0] + said[1]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys() == work.keys()
    for name, state in first.items():
        before = work[name][0].state_dict()
        assert all(torch.equal(value, second[name][key]) for key, value in state.items()), name
        assert any(not torch.equal(value, before[key]) for key, value in state.items()), name
