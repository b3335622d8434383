"""Random prompts through grammar and tokenizer: ``python tools/fuzz_prompts.py [COUNT] [SEED]``, 20,000 unless given.

A prompt is read or refused with a UserError within a second; what was read is written and read again as the same.
Anything else is printed with its prompt, and the exit code is 1.
"""

from __future__ import annotations

import random
import sys
import time
from collections import Counter

from partcraft_lit.backbones.loading import packaged_weights, tokenizers_without_networks
from partcraft_lit.core.errors import UserError
from partcraft_lit.tokens.grammar import PartVocabulary, parse, render
from partcraft_lit.tokens.tokenize import PromptTokenizer

VOCABULARY = PartVocabulary(["background", "head", "left wing", "tail", "crest"], [4, 20, 20, 10, 0])
FRAGMENTS = (
    *(
        "<head:3>",
        "<2:5>",
        "<left wing:19>",
        "<tail:9>*1.3",
        "<head:1>*.00001",
        "<1:1>*1.23456789",
        "<head:1>*",
        "<crest:0>",
        "<HEAD : 07 >",
        "<head",
        "wing:3>",
    ),
    *(
        "a photo of a",
        "bird",
        "I <3 birds",
        "10:30",
        "<lora:x:0.8>",
        "<|endoftext|>",
        "{}",
        "%s",
        "$HOME",
        "\\",
        '"',
        "'",
    ),
    *("<", ">", ":", "*", " ", "  ", "\n", "\t", "\0", "-1", "1e9", "٣", "é", "e\u0301", "☃", "\U0001f600", "\u200d"),
    *("\ud800", "\udfff", "\ufeff", "\u2028", "ß", "ſ", "İ"),
)
SECONDS = 1.0


def random_prompt(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.7:
        return "".join(draw.choice(FRAGMENTS) for _ in range(draw.randrange(12)))
    if kind < 0.98:
        return "".join(
            chr(draw.randrange(0x250 if draw.random() < 0.7 else 0x110000)) for _ in range(draw.randrange(60))
        )
    return draw.choice(FRAGMENTS) * draw.randrange(1, 2_000)


def outcome(prompt: str, tokenizer: PromptTokenizer) -> str:
    """ "read" or "refused"; AssertionError where a prompt is not the same after a round trip."""
    try:
        pieces = parse(prompt, VOCABULARY)
        assert parse(render(pieces, VOCABULARY), VOCABULARY) == pieces, "changed by render and parse"
        tokenizer([prompt])
    except UserError as error:
        str(error).encode()
        return "refused"
    return "read"


def main(count: int = 20_000, seed: int = 0) -> int:
    draw = random.Random(seed)
    tokenizer = PromptTokenizer(VOCABULARY, tokenizers_without_networks(packaged_weights("mini")))
    outcomes: Counter[str] = Counter()
    for _ in range(count):
        prompt, start = random_prompt(draw), time.perf_counter()
        try:
            found = outcome(prompt, tokenizer)
        except Exception as error:  # what is searched for
            found = "failed"
            print(f"{prompt[:200]!r}: {type(error).__name__}: {error}")
        if time.perf_counter() - start > SECONDS:
            found = "slow"
            print(f"{prompt[:200]!r} ({len(prompt)} characters): {time.perf_counter() - start:.1f} s")
        outcomes[found] += 1
    print(
        f"{count} prompts, seed {seed}: " + ", ".join(f"{number} {name}" for name, number in sorted(outcomes.items()))
    )
    return 1 if outcomes["failed"] or outcomes["slow"] else 0


if __name__ == "__main__":
    from closed_pipe import until_the_reader_leaves

    with until_the_reader_leaves():
        sys.exit(main(*map(int, sys.argv[1:])))
