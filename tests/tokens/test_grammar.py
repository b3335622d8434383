from __future__ import annotations

import pickle
import time
import unicodedata

import pytest

from partcraft_lit.core.errors import UserError
from partcraft_lit.core.types import PartToken
from partcraft_lit.tokens.grammar import PartVocabulary, parse, render

BIRD = PartVocabulary(["background", "head", "left-wing", "tail", "crest"], [4, 20, 20, 10, 0])


@pytest.mark.parametrize(
    ("prompt", "pieces"),
    [
        ("", []),
        ("<head:17>", [PartToken(1, 17)]),
        ("<2:17>", [PartToken(2, 17)]),
        ("<0:3>", [PartToken(0, 3)]),
        ("<background:3>", [PartToken(0, 3)]),
        ("< head : 17 >", [PartToken(1, 17)]),
        ("<\thead:\n017>", [PartToken(1, 17)]),
        ("<HEAD:0>", [PartToken(1, 0)]),
        ("< Left-Wing :5>", [PartToken(2, 5)]),
        ("a <head:1>, <tail:2> bird.", ["a ", PartToken(1, 1), ", ", PartToken(3, 2), " bird."]),
        ("<head:1><head:2>", [PartToken(1, 1), PartToken(1, 2)]),
        ("a<head:1>b", ["a", PartToken(1, 1), "b"]),
        ("<head:1>*1.3 bird", [PartToken(1, 1, 1.3), " bird"]),
        ("<head:1>*.5<head:2>*2.", [PartToken(1, 1, 0.5), PartToken(1, 2, 2.0), "."]),
        ("<head:1>*1, <head:1> *x", [PartToken(1, 1), ", ", PartToken(1, 1), " *x"]),
    ],
)
def test_a_prompt_splits_into_text_and_tokens(prompt, pieces):
    assert parse(prompt, BIRD) == pieces


@pytest.mark.parametrize(
    "text", ["a photo of a bird", "I <3 birds", "x < y", "a -> b", "at 10:30, ratio 16:9", " ", "<headphones"]
)
def test_text_is_left_as_it_stands(text):
    assert parse(text, BIRD) == [text]


@pytest.mark.parametrize("named", [False, True])
def test_rendering_is_the_inverse_of_parsing(named):
    pieces = ["a photo of a ", PartToken(1, 17), " ", PartToken(2, 0, 0.75), PartToken(2, 19), ", flying"]
    prompt = render(pieces, BIRD if named else None)
    assert parse(prompt, BIRD) == pieces
    written = "<head:17> <left-wing:0>*0.75<left-wing:19>" if named else "<1:17> <2:0>*0.75<2:19>"
    assert prompt == f"a photo of a {written}, flying"


@pytest.mark.parametrize("weight", [0.0, 0.00001, 1.23456789, 3.9999999999999996])
def test_a_weight_is_written_so_that_it_is_read_again(weight):
    pieces = [PartToken(1, 17, weight)]
    assert parse(render(pieces, BIRD), BIRD) == pieces


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("a <head:17>*x bird", r"'<head:17>\*x bird' in the prompt: '\*' is followed by the part's weight"),
        ("a <haed:17> bird", r"'<haed:17>' in the prompt: There is no part called 'haed'. Did you mean 'head'\?"),
        ("<HAED:17>", r"Did you mean 'head'\?"),
        ("<lora:thing:0.8>", r"no part called 'lora'.*Parts are 0 background, 1 head, 2 left-wing, 3 tail, 4 crest"),
        ("<5:0>", r"There is no part 5; parts are 0 background, 1 head"),
        ("<-1:0>", r"no part called '-1'"),
        ("<head:1>*5", r"the weight 5 is out of range; it is from 0 to 4"),
        ("<head:1>*-1", r"the weight -1 is out of range"),
        ("<head:20>", r"'head' has no code 20; its codes are 0 to 19. Did you mean '<head:19>'\?"),
        ("<3:10>", r"'tail' has no code 10; its codes are 0 to 9"),
        ("<crest:0>", r"'crest' has no codes, because no image shows it"),
        ("<head>", r"'<head>' in the prompt: the code is missing; codes of 'head' are 0 to 19, as in '<head:19>'"),
        ("<head:>", r"the code is missing"),
        ("<head:x>", r"must be a whole number, got 'x'; codes of 'head' are 0 to 19"),
        ("<head:-3>", r"must be a whole number, got '-3'"),
        ("<head:1.5>", r"must be a whole number, got '1.5'"),
        ("<head:1:2>", r"must be a whole number, got '1:2'"),
        ("<head:١>", r"must be a whole number"),
        (f"<head:{'9' * 5000}>", r"must be a whole number"),
        ("<:17>", r"'<:17>' names no part; a part token is written '<head:19>' or '<1:0>'"),
        ("<>", r"'<>' names no part"),
        ("a <head:17 bird", r"near '<head:17 bird' lacks its '>'"),
        ("a <left-wing bird", r"near '<left-wing bird' lacks its '>'"),
        ("a <head:17 <tail:1> bird", r"near '<head:17' lacks its '>'"),
        ("a head:17> bird", r"near 'head:17> bird' lacks its '<'"),
        ("<|endoftext|>", r"no part called '|endoftext|'"),
    ],
)
def test_a_mistake_is_named_with_the_nearest_valid_token(prompt, message):
    with pytest.raises(UserError, match=message):
        parse(prompt, BIRD)


@pytest.mark.parametrize(
    "prompt", ["a" * 10_000, "1" * 10_000 + ">", "." * 10_000, "\0" * 10_000, "a" * 10_000 + ":", "<" + "x" * 10_000]
)
def test_a_long_word_takes_linear_time(prompt):
    start = time.process_time()
    assert parse(prompt, BIRD) == [prompt]
    assert time.process_time() - start < 0.5  # 4 s in quadratic time


@pytest.mark.parametrize("prompt", [f"<{'x' * 10_000}:1>", f"<head:{'1' * 10_000}>", f"<head:1>*{'1' * 10_000}"])
def test_a_message_quotes_the_beginning_of_a_long_mistake(prompt):
    with pytest.raises(UserError) as caught:
        parse(prompt, BIRD)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(("prompt", "place"), [("a \ud800 b", 3), ("\udfff", 1), ("<he\udc80ad:1>", 4)])
def test_a_lone_surrogate_is_refused_and_its_message_can_be_printed(prompt, place):
    with pytest.raises(UserError, match=rf"Character {place} of the prompt is .*the text was not UTF-8") as caught:
        parse(prompt, BIRD)
    str(caught.value).encode()


@pytest.mark.parametrize(
    ("names", "num_codes", "error", "message"),
    [
        (["head", "background"], [1, 1], UserError, "Part 0 must be called 'background'"),
        ([], [], UserError, "Part 0 must be called 'background'"),
        (["background", "head", "Head"], [1, 1, 1], UserError, "'head' is taken twice"),
        (["background", "3"], [1, 1], UserError, "'3' cannot name a part"),
        (["background", "he\ud800ad"], [1, 1], UserError, "cannot name a part"),
        (["background", "a:b"], [1, 1], UserError, "'a:b' cannot name a part"),
        (["background", " head"], [1, 1], UserError, "cannot name a part"),
        (["background", ""], [1, 1], UserError, "cannot name a part"),
        (["background", "head"], [1], ValueError, "one count of codes, 0 or more, for each of the 2 parts"),
        (["background", "head"], [1, -1], ValueError, "one count of codes"),
    ],
)
def test_a_vocabulary_that_no_prompt_could_name_is_refused(names, num_codes, error, message):
    with pytest.raises(error, match=message):
        PartVocabulary(names, num_codes)


def test_a_vocabulary_counts_compares_and_travels():
    assert (BIRD.num_parts, BIRD.max_codes) == (4, 20)
    assert BIRD.index("Tail") == BIRD.index("3") == 3
    assert pickle.loads(pickle.dumps(BIRD)) == BIRD
    assert hash(PartVocabulary(("background",), (1,))) == hash(PartVocabulary(["background"], [1]))


@pytest.mark.parametrize("token", [PartToken(-1, 0), PartToken(5, 0), PartToken(1, -1), PartToken(1, 20)])
def test_a_token_from_elsewhere_is_checked_too(token):
    with pytest.raises(UserError, match=r"There is no part|has no code"):
        BIRD.check(token)


def test_accents_are_spelled_in_two_ways() -> None:
    """macOS types and names files in NFD, others in NFC."""
    vocabulary = PartVocabulary(["background", "schwänzchen"], [1, 3])
    assert parse(unicodedata.normalize("NFD", "<schwänzchen:2>"), vocabulary) == [PartToken(1, 2)]
