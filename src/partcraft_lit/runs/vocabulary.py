"""The vocabulary of prompts that a dictionary of parts gives."""

from __future__ import annotations

from partcraft_lit.parts.dictionary import PartDictionary
from partcraft_lit.tokens.grammar import PartVocabulary


def vocabulary_of(dictionary: PartDictionary) -> PartVocabulary:
    """Names and numbers of codes that a prompt may hold."""
    base_codes = dictionary.metadata.get("base_codes")
    if base_codes is None:
        return PartVocabulary(dictionary.names, dictionary.codes_per_part)
    retired = {int(part): str(reason) for part, reason in dictionary.metadata["retired"].items()}
    most = max(*base_codes, int(dictionary.settings.get("K", 0)))
    return PartVocabulary(dictionary.names, dictionary.codes_per_part, retired, most)
