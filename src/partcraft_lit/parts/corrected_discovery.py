"""Discovery with corrections: which dictionary is corrected, and by what."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.store import Store
from partcraft_lit.core.types import ImageSource, PatchFeatures
from partcraft_lit.parts.correcting import apply_corrections
from partcraft_lit.parts.corrections import Corrections, resolve
from partcraft_lit.parts.corrections_file import FILE_NAME, CorrectionsFile, find_file
from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.parts.discovery import Discovery, discover
from partcraft_lit.parts.segmentation import Progress
from partcraft_lit.parts.settings import PartsSettings


@dataclass(frozen=True)
class CorrectionSources:
    """Where corrections, and the dictionary that they are about, come from.

    Attributes:
        file: what is to be applied; None for no corrections.
        run: folder of a run whose tokens are trained or go on training: its dictionary is the one that is corrected.
    """

    file: CorrectionsFile | None = None
    run: Path | None = None

    @classmethod
    def find(cls, given: str | None, folder: Path, dataset_dir: Path | None, run: Path | None) -> CorrectionSources:
        """Those of a command.

        Args:
            given: ``parts.corrections``; with None nothing is kept, whatever the run was trained with.
            folder: in which the command works.
            dataset_dir: folder of the data set, if it has one.
            run: that is continued, if one is.

        Raises:
            UserError: if what is named is not there, or its file says something wrong.
        """
        file = find_file(given, folder, run, dataset_dir)
        sources = cls(file, run if given is not None else None)
        corrections, base = sources.corrections, sources.base()
        if base is not None:
            resolve(corrections, base.names)  # numbers of pieces apart, it is rejected now or never
        return sources

    @property
    def given(self) -> bool:
        """Whether parts are read with a dictionary that exists, or corrected."""
        return self.file is not None or self._kept is not None

    @property
    def corrections(self) -> Corrections:
        return Corrections() if self.file is None else self.file.load()

    def base(self) -> PartDictionary | None:
        """The dictionary that is corrected; None if it is still to be discovered.

        Raises:
            UserError: if the file is about another one than that of the run.
        """
        own = None if self._kept is None else self._kept.base()
        other = None if self.file is None else self.file.base()
        if own is not None and other is not None and own.hash != other.hash and self.corrections.plain():
            assert self.file is not None
            raise UserError(
                f"{self.file.path} corrects other parts than those that {self.run} was trained with: their numbers do "
                f"not mean the same. Write corrections of this run into {self.run}/{FILE_NAME}."
            )
        return own or other

    def applied(self) -> list[PartDictionary]:
        """What came out of corrections before, the newest first; the run's own come first."""
        files = [file for file in (self._kept, self.file) if file is not None]
        return [dictionary for file in dict.fromkeys(files) for dictionary in file.applied()]

    @property
    def _kept(self) -> CorrectionsFile | None:
        if self.run is None:
            return None
        file = CorrectionsFile(self.run / FILE_NAME)
        return file if file.base() is not None else None


def discover_corrected(
    source: ImageSource,
    features: PatchFeatures,
    settings: PartsSettings,
    sources: CorrectionSources,
    *,
    seed: int,
    store: Store | None = None,
    progress: Progress | None = None,
) -> tuple[Discovery, PartDictionary]:
    """Discovers parts, unless a dictionary is to be kept, and corrects them.

    Args:
        source, features, settings, seed, store, progress: as in ``discovery.discover``.
        sources: corrections and the dictionary that they are about.

    Returns:
        the discovery, and the dictionary that was corrected.

    Raises:
        UserError: as ``discovery.discover`` and ``apply_corrections``.
    """
    base = sources.base()
    if base is None:
        base = discover(source, features, settings, seed=seed, store=store, progress=progress).dictionary
    discovery = apply_corrections(
        sources.corrections,
        base,
        source,
        features,
        settings,
        seed=seed,
        applied=sources.applied(),
        store=store,
        progress=progress,
    )
    return discovery, base
