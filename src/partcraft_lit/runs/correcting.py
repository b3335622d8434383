"""Corrections of a run that exists: seen before they are applied, applied in place, and taken back."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from pathlib import Path

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.progress import Stages
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import ImageSource, PatchFeatures
from partcraft_lit.parts.corrected_discovery import CorrectionSources
from partcraft_lit.parts.correcting import Effect, apply_corrections, effect_of
from partcraft_lit.parts.corrections import Corrections
from partcraft_lit.parts.corrections_file import FILE_NAME, CorrectionsFile
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.discovery import Discovery, DiscoveryReport, read_parts
from partcraft_lit.runs.assembly import trained_codes
from partcraft_lit.runs.discovery import discover_into
from partcraft_lit.runs.settings import DiscoverSettings


class RunCorrector:
    """The parts of a run, and corrections of them.

    Args:
        run_folder: of a run with ``parts/``, trained or only discovered.
        settings: of its discovery.
        source: its images.
        load_features: loads the network that describes patches; asked for once, when it is needed.
        stages: logs progress.
    """

    def __init__(
        self,
        run_folder: Path,
        settings: DiscoverSettings,
        source: ImageSource,
        load_features: Callable[[], PatchFeatures],
        stages: Stages | None = None,
    ) -> None:
        if settings.parts.source != "discover":
            raise UserError(
                f"The parts of {run_folder} are those of its data set (parts.source={settings.parts.source}): correct "
                "its masks or classes."
            )
        self.run_folder, self.file = run_folder, CorrectionsFile(run_folder / FILE_NAME)
        self._settings, self._source, self._load_features = settings, source, load_features
        self._stages = stages or Stages()
        self._store = Store(settings.paths.store)
        self._sources = CorrectionSources(self.file, run_folder)

    @cached_property
    def _features(self) -> PatchFeatures:
        return self._load_features()

    def current(self) -> Discovery:
        """The parts as the run has them now."""
        dictionary = PartDictionary.load(self.run_folder / "parts")
        label_maps, codes, part_features = read_parts(self._source, self._features, dictionary, store=self._store)
        report = DiscoveryReport(len(self._source), 0, {})
        return Discovery(dictionary, label_maps, codes, part_features, report)

    def preview(self, corrections: Corrections, before: Discovery | None = None) -> tuple[Discovery, Effect]:
        """What corrections would make of the parts; nothing is written.

        Args:
            corrections: in place of those in the file.
            before: what they are compared with; None for ``current``.

        Raises:
            UserError: as ``apply_corrections``.
        """
        base = self._sources.base()
        if base is None:
            raise UserError(f"The run {self.run_folder} has no parts to correct; discover or train first.")
        after = apply_corrections(
            corrections,
            base,
            self._source,
            self._features,
            self._settings.parts,
            seed=self._settings.seed,
            applied=self._sources.applied(),
            store=self._store,
        )
        return after, effect_of(before or self.current(), after, trained_codes(self.run_folder))

    def apply(self, corrections: Corrections | None = None) -> Effect:
        """Writes ``parts.yaml`` and everything in ``parts/`` anew.

        Args:
            corrections: None for those in the file.

        Raises:
            UserError: as ``apply_corrections``; then nothing is changed.
        """
        wanted = self._sources.corrections if corrections is None else corrections
        before = self.current()
        _, effect = self.preview(wanted, before)  # rejects what is wrong before the file is written
        if corrections is not None:
            self.file.save(corrections)
        self._write()
        return effect

    def undo(self) -> Corrections:
        """Goes back to the former file, and to the very same parts and codes.

        Raises:
            UserError: if there is nothing to undo.
        """
        former = self.file.undo()
        self._write()
        return former

    def _write(self) -> None:
        discover_into(
            self.run_folder,
            self._settings.parts,
            self._settings.seed,
            self._source,
            self._features,
            self._store,
            self._stages,
            self._sources,
        )
