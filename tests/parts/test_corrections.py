"""``parts.yaml``: what it may say, what it means, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from partcraft_lit.core.errors import UserError
from partcraft_lit.parts.corrections import Corrections, MovedRegion, resolve, untrained_codes
from partcraft_lit.parts.corrections_file import (
    CorrectionsFile,
    find_file,
    load_corrections,
    parse_corrections,
    to_yaml,
)

NAMES = ("background", "part1", "part2", "part3", "part4", "part5")


def plan_of(text: str):
    return resolve(parse_corrections(text), NAMES)


def test_numbers_stay_whatever_becomes_of_others():
    plan = plan_of("merge: [[2, 5]]\nrename: {1: head, 2: wing}\ndrop: 3\nbackground: [part4]")
    assert plan.names[:3] == ("background", "head", "wing")
    assert plan.owners == (0, 1, 2, -1, 0, 2)
    assert plan.retired == {5: "it was merged into part 2 (wing)", 3: "it was dropped", 4: "it is background"}


def test_pieces_are_appended_and_may_be_merged():
    plan = plan_of("split: {4: 2, 1: 3}\nrename: {4: body, part4_2: tail}\nmerge: [[part5, tail]]")
    assert plan.splits == {4: 2, 1: 3}
    assert plan.names[4:] == ("body", "part5", "tail", "part1_2", "part1_3")  # a name that is merged away may be used
    assert plan.owners == (0, 1, 2, 3, 4, 5, 5, 7, 8)
    assert plan.piece_ids == {(4, 1): 6, (1, 1): 7, (1, 2): 8}


def test_pieces_keep_the_numbers_that_they_had():
    plan = resolve(Corrections().divided(1, 2).divided(4, 2), NAMES, {(4, 1): 6}, first_free=9)
    assert plan.names == (*NAMES, "part4_2", "part7", "part8", "part1_2")
    assert set(plan.retired) == {7, 8}


def test_a_retired_part_leaves_its_name():
    plan = plan_of("merge: [[2, 5]]\nrename: {2: part5}")
    assert plan.names == ("background", "part1", "part5", "part3", "part4", "part5_5")


def test_names_may_be_the_old_or_the_new_ones():
    assert plan_of("rename: {1: head}\nmerge: [[Head, part2]]").owners == (0, 1, 1, 3, 4, 5)
    assert plan_of("rename: {1: part2, 2: part1}").names[1:3] == ("part2", "part1")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("merge: [2, 5]", r"one group is written 'merge: \[\[2, 5\]\]'"),
        ("merge: [[2]]", "groups of two parts or more"),
        ("merge: [[0, 2]]", r"To make a part background, write background: \[2\]"),
        ("merge: [[2, 5], [5, 3]]", r"part 5 \(part5\) is in merge \[2, 5\] and in merge \[5, 3\]"),
        ("merge: [[2, 5]]\ndrop: [5]", r"is in merge \[2, 5\] and in drop"),
        ("merge: [[2, 5]]\nlock: [2]", r"part 2 \(part2\) is locked, and merge \[2, 5\] would change it"),
        ("lock: all\nsplit: {4: 2}", "is locked, and split would change it"),
        ("split: {9: 2}", "split names part 9, and there is none. Parts are 0 background, 1 part1"),
        ("split: {pat4: 2}", "Did you mean 'part4'"),
        ("split: {4: 1}", r"split.4 is 1. .* 'split: \{4: 2\}'"),
        ("split: {4: 2, part4: 3}", "twice"),
        ("split: {4: 2, 4: 3}", "line 1, column 9: '4' stands there twice"),
        ("rename: {1: a, 2: A}", "'a' is taken twice"),
        ("rename: {1: a b}", "cannot name a part"),
        ("rename: {0: ground}", "the background cannot be renamed"),
        ("rename: {1: part2, 2: part1}\ndrop: [part1]", "old name of one part and the new name of another"),
        ("drop: [1, 2, 3, 4, 5]", "no part would be left"),
        ("drop: [0]", "drop names the background itself"),
        ("lock: [no]", "put names like these in quotes"),
        ("mrge: [[2, 5]]", "there is no correction 'mrge'. Did you mean 'merge'"),
        ("move: [{image: a.png, frm: 2}]", "a move has no 'frm'. Did you mean 'from'"),
        ("move: [{image: a.png, from: 2}]", "a move lacks 'to'"),
        ("move: [{image: a.png, from: 2, to: 2}]", "goes from a part to itself"),
        ("move: [{image: a.png, from: 2, to: 3}]\ndrop: [3]", "which is dropped"),
        ("- merge", "wanted keys such as"),
        ("merge: [[2, 5]", "line 1, column 15|line 2, column 1"),
        ("merge: !!python/object/apply:os.system [ls]", "line 1, column 8: tags such as"),
        ("drop: &a [1]\nbackground: *a", r"aliases \(\*name\) are not read"),
    ],
)
def test_wrong_entries(text: str, message: str):
    with pytest.raises(UserError, match=message):
        plan_of(text)


def test_files_say_what_was_clicked(tmp_path: Path):
    clicked = Corrections().renamed(1, "head").merged([2, 5]).merged([5, 3]).divided(4, 2).locked("head")
    clicked = clicked.moved("a/b.png", 1, "part4_2", (3.5, 4)).dropped(3).as_background(2)
    assert clicked.merge == ((2, 5, 3),)
    assert clicked.move == (MovedRegion("a/b.png", 1, "part4_2", (3.5, 4)),)
    assert parse_corrections(to_yaml(clicked)) == clicked
    assert parse_corrections("") == Corrections()


def test_undo_goes_back_step_by_step(tmp_path: Path):
    file = CorrectionsFile(tmp_path / "parts.yaml")
    first, second = Corrections().renamed(1, "head"), Corrections().renamed(1, "head").merged([2, 5])
    file.save(first)
    file.save(second)
    file.save(second)  # nothing new, nothing to undo
    assert file.load() == second
    assert file.undo() == first
    assert file.can_undo
    assert file.undo() == Corrections()
    assert not file.path.exists()
    with pytest.raises(UserError, match="nothing to undo"):
        file.undo()


def test_where_the_file_is_looked_for(tmp_path: Path):
    run, data = tmp_path / "run", tmp_path / "data"
    run.mkdir()
    data.mkdir()
    assert find_file("auto", run, None, data) is None
    (data / "parts.yaml").write_text("drop: [1]", encoding="utf-8")
    assert find_file("auto", run, data) == CorrectionsFile(data / "parts.yaml")
    (run / "parts.yaml").write_text("drop: [2]", encoding="utf-8")
    assert find_file("auto", run, data) == CorrectionsFile(run / "parts.yaml")
    assert find_file(None, run, data) is None
    assert find_file(data) == find_file(data / "parts.yaml") == CorrectionsFile(data / "parts.yaml")
    with pytest.raises(UserError, match=r"no such file. Did you mean 'parts.yaml'"):
        find_file(data / "part.yaml")
    with pytest.raises(UserError, match="no parts/ of a run"):
        find_file(tmp_path)
    (data / "parts.yaml").write_bytes(b"#" * (5 << 20))
    with pytest.raises(UserError, match="a few lines"):
        load_corrections(data / "parts.yaml")


def test_untrained_are_codes_beyond_those_that_were_trained():
    assert untrained_codes([2, 3, 3], [2, 3, 0, 2]) == {3: [0, 1]}
    assert untrained_codes([2, 0], [2, 2]) == {1: [0, 1]}
    assert untrained_codes([2, 3], [2, 5]) == {1: [3, 4]}
