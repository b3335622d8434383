"""The report: complete, self-contained, safe, and whole with any part of it missing."""

from __future__ import annotations

import base64
import dataclasses
import functools
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from partcraft_lit.metrics.composition import PartScores
from partcraft_lit.report import html
from partcraft_lit.report.charts import ChartImage, line_chart
from partcraft_lit.report.html import duration, render, write_report
from partcraft_lit.report.sections import (
    Chart,
    Composition,
    Curve,
    PartSummary,
    Plate,
    Report,
    ScoreRow,
    Stage,
    Stat,
    WholeImageRow,
    attention_rows,
    discovered_image,
    source_part,
    training_charts,
)

NAMES = ["background", "head", "wing"]
VOID = {"meta", "img", "br", "wbr", "path", "source"}


def noise(height: int = 12, width: int = 12, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def label_map(height: int = 4, width: int = 4) -> Tensor:
    labels = torch.zeros(height, width, dtype=torch.uint8)
    labels[1:3, 0], labels[1:3, 1:3] = 1, 2
    return labels


def scores(value: float) -> PartScores:
    entries = {"all": value, "without_background": value, **{f"part/{name}": value for name in NAMES}}
    return PartScores(emr=entries, cosim=entries, num_images=12)


def full_report() -> Report:
    source = source_part(1, noise(), label_map(), 2, "species_04", matched=True)
    other = source_part(2, noise(12, 30), label_map(4, 10), 2, "species_05", matched=False)
    maps = torch.rand(1, 3, 4, 4)
    return Report(
        title="Birds & <others>",
        summary="What was found.",
        part_names=NAMES,
        stats=[Stat("0.62", "EMR", "ceiling 0.88")],
        compositions=[
            Composition([source, other], noise(), "a photo of a <head:4> <2:5> <beak:1>", noise(seed=1), "seed 3")
        ],
        discovered=[discovered_image(noise(10, 20), label_map(2, 4)[:2], 2, "species_04/003")],
        parts=[PartSummary(1, 0.05, 598, 20)],
        atlas=[Plate(noise(300, 2400), "Kinds of heads")],
        attention=attention_rows(
            noise()[None], label_map()[None].long(), maps, torch.tensor([[1, 2, 1]]), ["<head:1> <wing:2> <head:7>"], 2
        ),
        charts=[Chart("Diffusion loss", [Curve("train/loss", [(0, 1.0), (1, 0.5)])])],
        samples=[Plate(noise(), "step 100")],
        scores=[ScoreRow("4 species", scores(0.41), ceiling=scores(0.88), untrained=scores(0.06))],
        whole_images=[
            WholeImageRow("Reconstruction", "tf-299", {"fid": 12.5, "kid": 0.002, "kid_error": 0.0005}, {"fid": 1.25}),
            WholeImageRow("2 species", "tf-299", {"kid": float("nan"), "new": 0.5}),
            WholeImageRow("Reconstruction", "clip", {"clip-t": 0.25}),
        ],
        stages=[Stage("Training", 372, "700 steps"), Stage("Report", 3.14)],
        settings={"seed": 0, "optim": {"betas": [0.9, 0.999]}},
        environment={"python": "3.11"},
        command="python train.py dataset=creatures",
        notes=["2 images could not be read."],
        created="2026-01-10",
    )


class Page(HTMLParser):
    """Checks that tags close in order, and collects what a browser would load and show."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.attributes += [(tag, key, value) for key, value in attrs]
        self.loads += [
            value or "" for key, value in attrs if key in ("src", "href", "srcset", "action", "data", "poster")
        ]
        self.ids += [value or "" for key, value in attrs if key == "id"]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, key, value) for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_everything_is_on_the_page() -> None:
    page = Page(render(full_report()))
    assert page.ids == ["compositions", "parts", "attention", "training", "scores", "images", "making"]
    for wanted in [
        *("Birds & <others>", "What was found.", "0.62", "ceiling 0.88", "species_04", "seed 3", "True rendering"),
        *("species_04/003", "598", "5.0%", "Kinds of heads", "Diffusion loss", "step 100", "4 species"),
        *("From 1 to 0.5.", "12 images"),
        *("0.410", "0.880", "0.060", "700 steps", "6 min 12 s", "6 min 15 s", "optim.betas", "0.9, 0.999", "3.11"),
        *("python train.py dataset=creatures", "2 images could not be read.", "2026-01-10", "✓", "✗"),
    ]:
        assert wanted in page.text, wanted


def test_nothing_is_loaded_from_anywhere() -> None:
    text = render(full_report())
    page = Page(text)
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    without_images = re.sub(r"data:image/(jpeg|svg\+xml);base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<script|<link|<iframe|\son\w+=", without_images)
    assert "default-src 'none'; img-src data:" in text


def test_images_are_embedded_with_size_and_words() -> None:
    page = Page(render(full_report()))
    every = [value for tag, key, value in page.attributes if (tag, key) == ("img", "src")]
    images = [value for value in every if value and not value.startswith("data:image/svg+xml")]
    assert len(every) == len(images) + 1  # the chart
    assert len(images) == 2 + 2 + 2 + 1 + 3 + 1  # sources, results, found parts, atlas, attention, samples
    for source in images:
        assert source is not None
        with Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as picture:
            assert max(picture.size) in (256, 1800)  # small ones enlarged, large ones reduced
    alts = [value for tag, key, value in page.attributes if (tag, key) == ("img", "alt")]
    assert len(alts) == len(every)
    assert all(alts)


def test_tokens_wear_the_colours_of_their_parts() -> None:
    text = render(full_report())
    assert '<mark style="--c:#e69f00">&lt;head:4&gt;</mark>' in text
    assert '<mark style="--c:#0072b2">&lt;2:5&gt;</mark>' in text  # by number
    assert "<mark>&lt;beak:1&gt;</mark>" in text  # no such part


OPTIONAL = [field.name for field in dataclasses.fields(Report) if field.name not in ("title", "part_names")]


@pytest.fixture
def drawn_once(monkeypatch):
    """Charts take longer than the rest of a page."""
    monkeypatch.setattr(html, "line_chart", _chart)


@functools.cache
def _drawn() -> ChartImage | None:
    return line_chart(full_report().charts[0])


def _chart(chart: Chart) -> ChartImage | None:
    return _drawn()


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("missing", OPTIONAL)
def test_any_part_may_be_missing(missing: str) -> None:
    report = full_report()
    empty: Any = getattr(Report("x"), missing)
    Page(render(dataclasses.replace(report, **{missing: empty})))


def test_a_report_of_a_title_alone_has_no_sections() -> None:
    page = Page(render(Report("Only this")))
    assert page.ids == []
    assert "Only this" in page.text


@pytest.mark.usefixtures("drawn_once")
@pytest.mark.parametrize("kept", OPTIONAL)
def test_any_part_may_stand_alone(kept: str) -> None:
    report = Report("x", part_names=NAMES, **{kept: getattr(full_report(), kept)})
    page = Page(render(report))
    assert len(page.ids) <= 1


def test_without_truth_marks_ceiling_and_baseline() -> None:
    report = full_report()
    hybrid = report.compositions[0]
    plain = dataclasses.replace(
        hybrid, truth=None, sources=[dataclasses.replace(source, matched=None) for source in hybrid.sources]
    )
    row = ScoreRow("Reconstruction", scores(float("nan")))
    page = Page(render(dataclasses.replace(report, compositions=[plain], scores=[row])))
    assert "True rendering" not in page.text
    assert "✓" not in page.text
    assert "–" in page.text
    assert "nan" not in page.text


def test_captions_cannot_break_out() -> None:
    nasty = '"><script>alert(1)</script><img src=http://x/y onerror=z>'
    report = dataclasses.replace(
        full_report(),
        title=nasty,
        part_names=["background", nasty, "wing"],
        notes=[nasty],
        settings={nasty: nasty},
        compositions=[Composition([source_part(1, noise(), label_map(), 2, nasty)], noise(), nasty)],
        scores=(),
    )
    page = Page(render(report))
    assert all(load.startswith(("data:image/", "#")) for load in page.loads)
    assert not any(tag == "script" or key.startswith("on") for tag, key, _ in page.attributes)


def test_it_is_written_in_one_step(tmp_path: Path) -> None:
    path = write_report(tmp_path / "run" / "report.html", Report("x"))
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8").startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.04, "0.0 s"), (9.96, "10.0 s"), (12, "12 s"), (59.7, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_charts_of_a_run_come_in_order_and_leave_other_numbers_out() -> None:
    points = [(0, 1.0), (1, 0.5)]
    curves = dict.fromkeys(
        ["train/loss_zeta", "train/loss_attn", "train/loss", "perf/images_per_s", "parts/attention_inside_wing"], points
    )
    charts = training_charts(curves, NAMES)
    assert [chart.title for chart in charts] == [
        "Total loss",
        "Attention loss",
        "Loss zeta",
        "Attention on the own part",
    ]
    assert [(curve.name, curve.part) for curve in charts[-1].curves] == [("wing", 2)]


def test_attention_rows_sum_tokens_of_a_part_and_measure_the_inside() -> None:
    maps = torch.zeros(1, 3, 4, 4)
    maps[0, 0, 1, 0] = 1.0  # head token on the head
    maps[0, 2, 0, 0] = 3.0  # another head token on the background
    row = attention_rows(
        noise()[None], label_map()[None].long(), maps, torch.tensor([[1, 2, 1]]), ["<head:1>"], num_parts=2
    )[0]
    assert [(item.part, item.inside) for item in row.maps] == [(1, 0.25), (2, None)]


def test_whole_images_have_a_table_for_each_network_with_the_ceiling_beside():
    page = render(full_report()).replace(' scope="row"', "").replace(' scope="col"', "").replace("\n", "")
    tf, clip = page.split('id="images"')[1].split('id="making"')[0].split("By tf-299")[1].split("By clip")
    assert "FID ↓" in tf and "<b>12.500</b><small>ceiling 1.250</small>" in tf
    assert "KID × 1000 ↓" in tf and "<b>2.000</b> ± 0.500" in tf and "kid_error" not in tf
    assert '<th>2 species</th><td class="num"><b>–</b>' in tf and '<th class="num">new</th>' in tf
    assert "CLIP-T ↑" in clip and "FID" not in clip
