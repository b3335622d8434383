"""What a run is scored by, before any image is drawn."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.progress import Stages
from partcraft_lit.evaluation.image_scores import differences, score_differences
from partcraft_lit.evaluation.scorer import Scorer, held_out_images
from partcraft_lit.evaluation.scores import HELD_OUT, Scores
from partcraft_lit.evaluation.scoring import _subtract_floor
from partcraft_lit.world.creatures import Creatures


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


def test_the_floor_of_an_error_is_that_of_the_true_drawing():
    nan = float("nan")
    rows = [
        {"part_accuracy/all": 0.25, "part_accuracy/head": 0.0},
        {"part_accuracy/all": 1.0, "part_accuracy/head": nan},
    ]
    true = [
        {"part_accuracy/all": 0.75, "part_accuracy/head": 1.0},
        {"part_accuracy/all": 0.5, "part_accuracy/head": nan},
    ]
    assert _subtract_floor(rows, true) == 0.0  # 0.75 - 0.25 of the first, 0.5 - 1 of the second
    assert rows[0]["excess_error/all"] == 0.5 and rows[0]["excess_error/head"] == 1.0
    assert rows[1]["true_part_accuracy/all"] == 0.5 and rows[1]["excess_error/all"] == -0.5


def test_scores_from_before_there_were_floors_are_verified_without_them():
    old = [{"protocol": "4 species", "index": 0, "part_accuracy/all": 0.5}]
    new = [{**old[0], "true_part_accuracy/all": 1.0, "excess_error/all": 0.5}]
    assert not differences(old, new) and differences([{**new[0], "excess_error/all": 0.4}], new)
    assert len(differences(old, [{**old[0], "emr/all": 0.5}])) == 1
    assert not score_differences({"a": 1.0}, {"a": 1.0, "truth/excess_error@4_species": 0.5})


class Reader:
    """Reads code 3 everywhere."""

    retired = ()

    def predict(self, images):
        return SimpleNamespace(codes=torch.full((len(images), 6), 3))


def test_held_out_images_are_asked_for_by_the_codes_that_are_read_off_them(tmp_path):
    settings = SimpleNamespace(reconstructions=2, held_out=5, compositions=0, species=(), seed=0)
    source = Creatures(species=3, images_per_species=2)
    held_out = held_out_images(settings, source, Reader(), (), {"quality": {"match": {"head": 1}}})
    assert held_out.pictures is None
    scorer = Scorer(settings, Reader(), torch.zeros(6, 6, dtype=torch.long), None, tmp_path, held_out=held_out)
    targets = scorer.protocols()[HELD_OUT]
    assert len(targets) == 5 and bool((targets.codes == 3).all())
    assert len(set(targets.sources[:, 0].tolist())) == 5 and int(targets.sources.max()) < 6
    assert scorer.of(HELD_OUT).truth is held_out.truth and scorer.of("reconstruction") is scorer
    assert held_out_images(SimpleNamespace(held_out=0), source, Reader(), (), {}) is None
    with pytest.raises(UserError, match=r"eval\.held_out=5: this data set knows no images"):
        held_out_images(settings, object(), Reader(), (), {})
