"""What a command says of its stages."""

from __future__ import annotations

from partcraft_lit.core.progress import Stages


def test_stages_of_one_name_are_told_apart_and_added_up(capsys):
    stages = Stages()
    for protocol in ("reconstruction", "4 species"):
        with stages.stage("score", protocol):
            pass
    with stages.stage("write report"):
        pass
    said = capsys.readouterr().out.splitlines()
    assert said == ["score, reconstruction: 0.0 s", "score, 4 species: 0.0 s", "write report: 0.0 s"]
    assert list(stages.seconds) == ["score", "write report"]
