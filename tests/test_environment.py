from __future__ import annotations

import json

from partcraft_lit import environment


def test_it_names_versions_and_machine_and_no_variables(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_TOKEN", "secret-value")
    written = environment.write(tmp_path)
    text = (tmp_path / "environment.json").read_text()
    assert json.loads(text) == json.loads(json.dumps(written))
    assert written["packages"]["torch"].startswith("2.") and written["cpu_count"] >= 1
    assert "secret-value" not in text


def test_a_continued_run_keeps_its_earlier_starts(tmp_path):
    environment.write(tmp_path)
    environment.write(tmp_path)
    third = environment.write(tmp_path)
    assert len(third["earlier"]) == 2 and "earlier" not in third["earlier"][0]
