"""What discovery writes for people: codes of every image, and masks that can be corrected and read back."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from discovery import dataset_parts
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.visualization import to_pil
from partcraft_lit.data.folder import ImageFolder
from partcraft_lit.parts.color import ColorFeatures
from partcraft_lit.runs.discovery import write_codes, write_masks

SIZES = ((64, 96), (96, 64), (40, 640))  # the last is longer than what label maps cover


@pytest.fixture
def folder(tmp_path):
    """Photographs with masks of two parts; the second image does not show the tail."""
    for index, (height, width) in enumerate(SIZES):
        labels = torch.zeros(height, width, dtype=torch.uint8)
        middle = width // 2
        labels[8:24, middle - 16 : middle] = 1
        if index != 1:
            labels[8:24, middle : middle + 16] = 2
        colors = torch.tensor([[90, 90, 90], [220, 30, 30], [20, 20, 200]], dtype=torch.uint8)
        for place, image in (("photos", to_pil(colors[labels.long()].permute(2, 0, 1))), ("masks", None)):
            path = tmp_path / place / "sub" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            (image or Image.fromarray(labels.numpy())).save(path)
    (tmp_path / "masks" / "parts.txt").write_text("head\ntail\n", encoding="utf-8")
    return tmp_path


def source_of(folder, masks):
    return ImageFolder(folder / "photos", masks=folder / masks)


def test_masks_are_read_back_as_the_same_parts(folder):
    source, features = source_of(folder, "masks"), ColorFeatures(grid=16, bias=0.5)
    found = dataset_parts(source, features, source="masks", K=2)
    write_masks(folder / "saved", source, found)
    with Image.open(folder / "saved" / "sub" / "0.png") as image:
        assert image.mode == "P" and image.size == (96, 64)
        assert image.convert("RGB").getpixel((40, 16)) == (230, 159, 0)  # a person sees the part's colour
    again = source_of(folder, "saved")
    assert again.part_names == ["head", "tail"]
    read = dataset_parts(again, features, source="masks", K=2)
    assert torch.equal(read.codes == -1, found.codes == -1)
    for mine, theirs in zip(read.label_maps, found.label_maps, strict=True):
        assert torch.equal(mine, theirs)


def test_two_images_of_one_stem_are_refused(folder):
    source = source_of(folder, "masks")
    found = dataset_parts(source, ColorFeatures(grid=16, bias=0.5), source="masks", K=2)
    names = ["sub/0.jpg", "sub/0.png", "x.png"]
    source.name = names.__getitem__
    with pytest.raises(UserError, match=r"sub/0.jpg and sub/0.png would share the mask sub/0.png"):
        write_masks(folder / "saved", source, found)


def test_codes_say_what_every_image_shows(folder):
    source = source_of(folder, "masks")
    found = dataset_parts(source, ColorFeatures(grid=16, bias=0.5), source="masks", K=2)
    write_codes(folder / "codes.csv", source, found)
    with (folder / "codes.csv").open(encoding="utf-8", newline="") as lines:
        head, *rows = csv.reader(lines)
    assert head == ["image", "background", "head", "tail"]
    assert [row[0] for row in rows] == ["sub/0.png", "sub/1.png", "sub/2.png"]
    for row, codes in zip(rows, found.codes.tolist(), strict=True):
        assert row[1:] == ["" if code < 0 else str(code) for code in codes]
    assert rows[1][3] == ""  # no tail in sight


def test_a_run_writes_codes_pages_and_on_request_masks(tiny_run):
    names = {path.name for path in (tiny_run / "parts").iterdir()}
    assert {"codes.csv", "atlas.png", "atlas_part0.png", "atlas_part1.png", "atlas_part2.png", "masks.png"} <= names
    assert "masks" not in names


@pytest.mark.slow
def test_torchrun_finds_what_one_process_finds(new_workshop, tmp_path, free_port):
    """Both passes are shared; the first process writes, into the folder that all are told."""
    place = new_workshop()
    asked = [text for text in place.arguments if text.startswith(("dataset", "parts", "features"))]
    runs = {name: tmp_path / name / "run" for name in ("one", "two")}
    own = {name: (f"paths.store={run.parent / 'store'}", f"hydra.run.dir={run}") for name, run in runs.items()}
    ended = place("discover", *asked, *own["one"])
    assert ended.code == 0, ended.out
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port}"]
    shared = subprocess.run(
        [*torchrun, "-m", "partcraft_lit", "discover", "trainer=cpu", *asked, *own["two"]],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert shared.returncode == 0, shared.stdout + shared.stderr
    assert shared.stdout.count("Parts: ") == 1
    parts = [{path.name: path.read_bytes() for path in (run / "parts").iterdir()} for run in runs.values()]
    reports = [json.loads(files.pop("discovery.json")) for files in parts]
    assert parts[0] == parts[1] and "codes.csv" in parts[0]
    for report in reports:
        del report["seconds"], report["from_store"]  # the other may have been done first
    assert reports[0] == reports[1]
