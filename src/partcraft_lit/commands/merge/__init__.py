"""``partcraft merge``: merges separately trained concepts of Custom Diffusion into one run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from partcraft_lit.commands.merge.settings import MergeSettings
from partcraft_lit.config import compose as config
from partcraft_lit.config import factories, targets
from partcraft_lit.core import environment, rundir
from partcraft_lit.core.errors import UserError
from partcraft_lit.core.files import atomic_write
from partcraft_lit.runs import stored
from partcraft_lit.runs.settings import TrainSettings

#: Mapper settings of one embedding per concept.
_TOKENS_ALONE = {"layers": 0, "position": False, "norm_match": False}


def check(values: Mapping[str, Any]) -> MergeSettings:
    own = {key: value for key, value in values.items() if key != "parts"}  # some data sets bring their number of parts
    settings = factories.settings_of(MergeSettings, own)
    if settings.captions_file is not None and not settings.captions_file.is_file():
        raise UserError(f"captions_file={settings.captions_file}: there is no such file.")
    folders = _folders(settings)
    if len(folders) < 2:
        raise UserError(
            f"runs={[folder.name for folder in folders]}: wanted are two runs or more, 'runs=[FIRST,SECOND]'."
        )
    for folder in folders:
        if folders.count(folder) > 1:
            raise UserError(f"runs: {folder.name} is named twice.")
        _check_run(folder, trust=values["trust"])
    return settings


def choose_folder(values: Mapping[str, Any]) -> tuple[Path, str]:
    if values["output_dir"] is not None:
        return Path(values["output_dir"]).expanduser(), ""
    settings = check(values)
    digest = rundir.settings_hash({"runs": [folder.name for folder in _folders(settings)]}, ())
    return rundir.new_folder(_root(settings), digest), ""


def main(values: Mapping[str, Any], folder: Path) -> Any:
    settings = check(values)
    if (folder / rundir.FINISHED).exists():
        raise UserError(f"output_dir={folder} holds a finished run already; name another folder.")
    folders = _folders(settings)
    trained = [stored.values_of_run(run, trust=values["trust"]) for run in folders]

    from partcraft_lit.parts.dictionary import PartDictionary
    from partcraft_lit.parts.merge import check_mergeable

    dictionaries = [PartDictionary.load(run / "parts") for run in folders]
    check_mergeable(dictionaries)
    merged = merged_values(trained, [dictionary.names[1:] for dictionary in dictionaries], values.get("dataset"))
    environment.write(folder)

    from partcraft_lit.commands.merge.merge import Trained, merge

    facts = merge(
        settings,
        folder,
        runs=[
            Trained(run, factories.settings_of(TrainSettings, own)) for run, own in zip(folders, trained, strict=True)
        ],
        merged=factories.settings_of(TrainSettings, merged),
        load_backbone=factories.backbone_loader({**merged, "trainer": values["trainer"]}),
    )
    atomic_write(folder / ".hydra" / "config.yaml", config.to_yaml(merged))
    rundir.mark_finished(folder, merged=facts["runs"])
    return facts


def merged_values(
    trained: Sequence[Mapping[str, Any]], names: Sequence[Sequence[str]], dataset: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Configuration of the merged run: that of the first, with the concepts of all.

    Args:
        trained: configuration of each run.
        names: parts of each run, without the background.
        dataset: for evaluation; None for that of the first run.
    """
    merged: dict[str, Any] = copy.deepcopy(dict(trained[0]))
    together = [name for own in names for name in own]
    merged["parts"] |= {"M": len(together), "K": max(own["parts"]["K"] for own in trained), "names": together}
    merged["mapper"] |= _TOKENS_ALONE
    merged["method"]["tokens"] = {"init": [], "trained": True}
    if "names" in merged["method"]:  # DisenDiff's nouns
        merged["method"]["names"] = together
    if dataset is not None:
        merged["dataset"] = dict(dataset)
    return merged


def _check_run(folder: Path, *, trust: bool) -> None:
    """Raises a UserError unless a run trained cross-attention keys and values and nothing else of the model."""
    from partcraft_lit.methods.custom_diffusion import CustomDiffusion

    values = stored.values_of_run(folder, trust=trust)
    if not isinstance(values.get("method"), dict):
        raise UserError(f"{folder.name}: its configuration names no method, so it is not one of a training run.")
    recipe = targets.make(values["method"], "method")
    if not isinstance(recipe, CustomDiffusion) or recipe.unet != "cross_kv" or recipe.text_encoder:
        raise UserError(
            f"{folder.name} was trained by method={values['method']['name']} with method.unet="
            f"{values['method']['unet']}; only runs of method=custom_diffusion or disendiff can be merged, which train "
            "tokens and cross-attention keys and values."
        )
    if recipe.tokens.inject == "after" or not factories.reads_clip(values["backbone"]):
        raise UserError(
            f"{folder.name} cannot be merged: that is for Stable Diffusion with part vectors in front of its text "
            "encoder (method.tokens.inject=before)."
        )


def _folders(settings: MergeSettings) -> list[Path]:
    return [rundir.find_run(run, _root(settings)) for run in settings.runs]


def _root(settings: MergeSettings) -> Path:
    return settings.paths.logs.expanduser() / "train" / "runs"
