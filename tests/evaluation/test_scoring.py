"""What a run is scored by, before any picture is drawn."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from partcraft_lit.core.progress import Stages
from partcraft_lit.evaluation.scoring import Scorer, Scores


def test_two_classes_give_no_hybrids_of_four(tmp_path, capsys):
    """The settings as shipped ask for up to four species; a folder with two classes is scored without an error."""
    settings = SimpleNamespace(reconstructions=2, compositions=3, species=(1, 2, 3, 4), seed=0)
    codes = torch.zeros(6, 6, dtype=torch.long)
    scorer = Scorer(settings, SimpleNamespace(retired=()), codes, torch.arange(6) % 2, tmp_path)
    assert list(scorer.protocols()) == ["reconstruction", "1 species", "2 species"]
    scorer.log_left_out(Stages())
    assert "eval.species: 3, 4 left out; 6 images, 2 classes and 6 parts" in capsys.readouterr().out
    alike = Scorer(settings, SimpleNamespace(retired=()), codes, None, tmp_path)
    assert list(alike.protocols())[-1] == "4 species"
    alike.log_left_out(Stages())
    assert not capsys.readouterr().out


def test_effective_numbers_of_codes_are_scores():
    assert Scores(codes={"head": 3}).flat() == {"codes/head": 3.0}
    assert Scores().flat() == {}
