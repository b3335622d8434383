"""The workspace and the report of W&B for some runs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import wandb_workspaces.reports.v2 as wr
import wandb_workspaces.workspaces as ws
from wandb_workspaces import expr

from partcraft_lit.commands.dashboard.content import Content, Parameter, Score
from partcraft_lit.loggers.run_logger import STEP

Panels = list[Any]

#: Width of the grid of a report, in its units, and the height of a row.
_WIDE, _HIGH = 24, 8


def workspace_of(content: Content, entity: str, project: str) -> ws.Workspace:
    """Sections from the question to the images; every panel shows the runs of the group."""
    sections = [
        ws.Section(name="Parameters and scores", panels=_parameter_panels(content), is_open=True),
        ws.Section(name="Curves", panels=_curve_panels(content, content.curves), is_open=True),
        ws.Section(name="Parts", panels=_part_panels(content), is_open=True),
        ws.Section(name="Samples and attention at equal steps", panels=_image_panels(content), is_open=True),
        ws.Section(name="Parts, hybrids and tokens", panels=_still_panels(content)),
        ws.Section(name="Tables", panels=_table_panels(content)),
    ]
    workspace = ws.Workspace(
        name=content.title,
        entity=entity,
        project=project,
        auto_generate_panels=False,
        sections=[section for section in sections if section.panels],
        settings=ws.WorkspaceSettings(x_axis=STEP, max_runs=50),
        runset_settings=ws.RunsetSettings(
            filters=_of_group(content),
            pinned_columns=[
                *(f"config:{parameter.name}" for parameter in content.parameters),
                *(f"summary:{score.key}" for score in content.scores),
            ],
        ),
    )
    digest = hashlib.sha256(f"{project}/{content.title}".encode()).hexdigest()[:11]
    workspace._internal_name = f"nw-{digest}-v"  # of its own: made again, it takes the place of the former
    return workspace


def report_of(content: Content, entity: str, project: str, *, online: bool) -> wr.Report:
    """The table, and the panels that answer the question, with text between them.

    Args:
        content: what is shown.
        entity: user or team.
        project: of W&B.
        online: whether its runs are named by a project that W&B is asked for; else by the one the report is in.
    """

    def grid(panels: Panels) -> wr.PanelGrid:
        place = (entity, project) if online else ("", "")
        runset = wr.Runset(entity=place[0], project=place[1], name=content.title, filters=_of_group(content))
        return wr.PanelGrid(runsets=[runset], panels=_laid_out(panels))

    varied = ", ".join(parameter.name for parameter in content.parameters) or "nothing"
    blocks: list[Any] = [
        wr.P(text=f"Runs of {content.title}. They differ in: {varied}."),
        wr.H1(text="Scores"),
        wr.MarkdownBlock(text=content.table),
        wr.P(text="Means over runs with equal settings, with the standard deviation over their seeds."),
    ]
    if content.unfinished:
        lines = [f"- {name}: {reason}" for name, reason in content.unfinished.items()]
        blocks.append(wr.MarkdownBlock(text="\n".join(["Not in the table:", "", *lines])))
    for title, panels in (
        ("Parameters and scores", _parameter_panels(content)),
        ("Curves", _curve_panels(content, content.curves)),
        ("Parts", _part_panels(content)),
        ("Samples and attention at equal steps", _image_panels(content)),
        ("Parts, hybrids and tokens", _still_panels(content)),
    ):
        if panels:
            blocks += [wr.H1(text=title), grid(panels)]
    return wr.Report(entity=entity, project=project, title=content.title[:128], blocks=blocks, width="fluid")


def _of_group(content: Content) -> Any:
    return "" if content.group is None else expr.And(expr.Metric("Group") == content.group)


def _parameter_panels(content: Content) -> Panels:
    if not content.scores:
        return []
    panels: Panels = []
    if content.parameters:
        axes = [*map(_parameter_axis, content.parameters), *map(_score_axis, content.scores)]
        panels.append(wr.ParallelCoordinatesPlot(title="Parameters and scores", columns=axes))
        panels.append(wr.ParameterImportancePlot(with_respect_to=content.scores[0].key))
    for parameter in content.parameters:
        if parameter.name != "seed":
            panels += [_scatter(parameter, score) for score in content.scores]
    return panels


def _parameter_axis(parameter: Parameter) -> wr.ParallelCoordinatesPlotColumn:
    return wr.ParallelCoordinatesPlotColumn(
        metric=wr.Config(name=parameter.name), display_name=parameter.name, log=parameter.log
    )


def _score_axis(score: Score) -> wr.ParallelCoordinatesPlotColumn:
    name = score.key.removeprefix("eval/")
    return wr.ParallelCoordinatesPlotColumn(
        metric=wr.SummaryMetric(name=score.key), display_name=name, inverted=score.lower
    )


def _scatter(parameter: Parameter, score: Score) -> wr.ScatterPlot:
    title = f"{score.key.removeprefix('eval/')} by {parameter.name}{' (lower is better)' if score.lower else ''}"
    return wr.ScatterPlot(
        title=title,
        x=wr.Config(name=parameter.name),
        y=wr.SummaryMetric(name=score.key),
        log_x=parameter.log,
        running_ymean=True,
    )


def _curve_panels(content: Content, curves: Sequence[str]) -> Panels:
    """A panel for each curve; runs that differ in their seed alone are one line with its range."""
    first = next((parameter for parameter in content.parameters if parameter.name != "seed"), None)
    grouping: dict[str, Any] = {}
    if first is not None:
        grouping = {"groupby": wr.Config(name=first.name), "groupby_aggfunc": "mean", "groupby_rangefunc": "minmax"}
    return [wr.LinePlot(title=key, x=STEP, y=[key], max_runs_to_show=50, **grouping) for key in curves]


def _part_panels(content: Content) -> Panels:
    return [
        wr.LinePlot(title=f"{name} of each part", x=STEP, y=list(curves), max_runs_to_show=10)
        for name, curves in content.part_curves.items()
    ]


def _image_panels(content: Content) -> Panels:
    """Rows are runs and columns are steps, alike in all of them."""
    return [
        wr.MediaBrowser(title=key, media_keys=[key], mode="grid", grid_x_axis="step", grid_y_axis="run")
        for key in content.panels
    ]


def _still_panels(content: Content) -> Panels:
    return [wr.MediaBrowser(title=key, media_keys=[key], mode="gallery", gallery_axis="run") for key in content.stills]


def _table_panels(content: Content) -> Panels:
    return (
        [wr.WeavePanelSummaryTable(table_name=key) for key in ("eval/parts", "eval/images")] if content.tables else []
    )


def _laid_out(panels: Panels) -> Panels:
    """Two in a row."""
    half = _WIDE // 2
    for index, panel in enumerate(panels):
        panel.layout = wr.Layout(x=half * (index % 2), y=_HIGH * (index // 2), w=half, h=_HIGH)
    return panels
