"""The toolkit behind one function, the intervals, the diagnostics, and validation scores."""

from random import Random

import numpy as np
import pytest

from evaluation import bootstrap
from evaluation.diagnostics import diagnose
from evaluation.prepared import PreparedReferences
from evaluation.toolkit import score, score_tokens, tokenize
from evaluation.validation import Validator, tokenize_without_java
from evaluation.validation_process import ValidatorProcess
from features.errors import UserError
from tests.pictures import read_flickr8k

# PTB tokenizations that the approximation without Java must get right.
HARD = [
    "A dog's bone; the dogs' bones, and it isn't (really) theirs!",
    'She said "no way" ... and left: 5:30 p.m. -- or later',
    "A T-shirt, rock-climbing and/or 1,000 [old] {new} 3.5 things",
    "He can't, won't, I'm, we've, they'll, you'd, o'clock",
    "cannot #1 & 50 % off * U.S. café ’quoted’ “twice” – yes — no…",
    "",
    " . ",
]


def test_human_captions_of_flickr8k_have_their_known_scores_and_resampling_agrees_with_the_jar(
    flickr8k, monkeypatch
):
    monkeypatch.delenv("JAVA_HOME")  # METEOR reads its whole table of paraphrases
    # First caption against the other four, on 360 validation images, by pycocoevalcap 1.2.
    split = read_flickr8k(flickr8k, "Flickr_8k.devImages.txt")
    captions = dict(enumerate(list(split.values())[270:630]))
    scores = score(
        {image: texts[1:] for image, texts in captions.items()},
        {image: texts[0] for image, texts in captions.items()},
    )
    assert scores.corpus == pytest.approx(
        {
            "Bleu_1": 0.6135974566,
            "Bleu_2": 0.4285264973,
            "Bleu_3": 0.2950020854,
            "Bleu_4": 0.2049839119,
            "METEOR": 0.2486159751,
            "ROUGE_L": 0.4844175270,
            "CIDEr": 0.8069031431,
        },
        abs=1e-9,
    )
    # Three of these captions equal a reference, which METEOR treats as a special case.
    statistics = scores.statistics["METEOR"]
    assert (bootstrap.countable(statistics) != statistics).any(axis=1).sum() == 3
    once = np.ones((1, len(captions)), dtype=np.int64)
    drawn = bootstrap.resample(scores.per_image, scores.statistics, once)
    assert {name: values[0] for name, values in drawn.items()} == pytest.approx(
        scores.corpus, abs=1e-12
    )
    # Each image alone, for the two scores that are not means.
    one_each = np.eye(len(captions), dtype=np.int64)
    alone = bootstrap.resample(scores.per_image, scores.statistics, one_each)
    for name in ("METEOR", "Bleu_4"):
        assert alone[name] == pytest.approx(list(scores.per_image[name].values()), abs=1e-12)
    first, second = (
        bootstrap.intervals(scores.per_image, scores.statistics, 200, seed=3) for _ in range(2)
    )
    assert first == second


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation():
    values = np.random.default_rng(0).normal(0.5, 0.2, 400)
    of_image = dict(enumerate(values.tolist()))
    low, high = bootstrap.intervals({"CIDEr": of_image}, {}, 4000, seed=0)["CIDEr"]
    expected = 1.96 * values.std() / np.sqrt(len(values))
    assert high - values.mean() == pytest.approx(expected, rel=0.1)
    assert values.mean() - low == pytest.approx(expected, rel=0.1)


def test_no_character_breaks_a_caption_into_two_lines():
    captions = {
        code: [f"a {chr(code)} b", f"a{chr(code)}b"]
        for code in range(0x10000)
        if not 0xD800 <= code < 0xE000
    }
    for first, second in tokenize(captions).values():
        assert first.startswith("a")
        assert first.endswith("b")
        assert second.startswith("a")
        assert second.endswith("b")


def test_empty_captions_keep_their_places():
    captions = {3: ["", "A dog .", ""], 1: ["..."], 2: [], 4: [""]}
    assert tokenize(captions) == {3: ["", "a dog", ""], 1: [""], 2: [], 4: [""]}
    assert tokenize({}) == {}


def test_ids_that_differ_and_references_without_a_word_are_refused():
    with pytest.raises(UserError, match="2 images have a caption but no reference: 1, 3"):
        score_tokens({1: [], 2: ["a"]}, {1: "a", 2: "b", 3: "c"})
    with pytest.raises(UserError, match="1 images have references but no caption: 2"):
        score_tokens({1: ["a"], 2: ["a"]}, {1: "a"})
    with pytest.raises(UserError, match="no reference caption has a word"):
        score_tokens({1: [""], 2: [""]}, {1: "a", 2: ""})
    with pytest.raises(UserError, match="no caption to score"):
        score_tokens({}, {})


def test_nothing_is_printed_by_the_toolkit(capsys):
    score_tokens({1: ["a dog"], 2: ["a cat"]}, {1: "a dog", 2: ""}, ("Bleu", "ROUGE_L", "CIDEr"))
    assert capsys.readouterr() == ("", "")


def test_the_approximate_tokenizer_agrees_with_the_official_one():
    captions = {0: HARD}
    official = tokenize(captions)[0]
    for caption, ours, theirs in zip(
        HARD, tokenize_without_java(captions)[0], official, strict=True
    ):
        assert ours == theirs, caption


def test_the_approximate_tokenizer_differs_on_less_than_one_in_a_thousand_real_captions(flickr8k):
    captions = dict(enumerate(read_flickr8k(flickr8k, "Flickr_8k.trainImages.txt").values()))
    ours, theirs = tokenize_without_java(captions), tokenize(captions)
    pairs = [pair for i in captions for pair in zip(ours[i], theirs[i], strict=True)]
    assert len(pairs) == 30000
    assert sum(a != b for a, b in pairs) < 30


REFERENCES = {1: ["A dog's bone.", "the bone"], 2: ["Two cats!"], 3: ["a man isn't here"]}
CANDIDATES = {1: "a dog's bone", 2: "two dogs", 3: "a man is here"}


def test_validation_scores_are_those_of_the_toolkit():
    scores = Validator(REFERENCES).score(CANDIDATES)
    expected = score(REFERENCES, CANDIDATES, metrics=("Bleu", "CIDEr", "ROUGE_L")).corpus
    assert scores == expected
    assert scores["CIDEr"] > 0


def test_validation_continues_when_java_fails_and_warns_once(fake_java, caplog):
    expected = Validator(REFERENCES).score(CANDIDATES)
    validator = Validator(REFERENCES)
    fake_java("echo broken >&2; exit 1")
    assert validator.score(CANDIDATES) == expected
    assert Validator(REFERENCES).score(CANDIDATES) == expected
    assert validator.score(CANDIDATES) == expected
    warnings = [r.message for r in caplog.records if "without the official tokenizer" in r.message]
    assert len(warnings) == 2  # one for each validator
    assert "broken" in warnings[0]


def test_another_process_gives_the_same_scores_and_its_end_stops_nothing(caplog):
    greedy = {1: "the bone", 2: "two cats", 3: "a cat"}
    validator = Validator(REFERENCES)
    expected = validator.score(CANDIDATES, greedy)
    assert expected["greedy_CIDEr"] == validator.score(greedy)["CIDEr"] > 0
    beside = ValidatorProcess(REFERENCES)
    with pytest.raises(UserError, match="2 images have references but no caption: 1, 3"):
        beside.score({2: "two cats"})
    assert beside.score(CANDIDATES, greedy) == expected
    assert "warning" not in caplog.text.lower()
    assert beside._process is not None
    beside._process.result().kill()
    beside._java = False  # from here on, to save time
    assert beside.score(CANDIDATES, greedy) == expected
    assert "their process ended with status -9" in caplog.text
    beside.close()


def test_references_counted_once_give_the_last_digit_of_the_toolkits_scores():
    random = Random(3)
    words = ["a", "a", "a", "the", "dog", "dog", "cat", "runs", "on", "in", "red", "big"]
    captions = {n: [_some(words, random) for _ in range(1 + n % 5)] for n in range(60)}
    prepared = PreparedReferences(captions)
    for _ in range(2):
        candidates = {n: _some(words, random) for n in captions}
        wanted = score_tokens(captions, candidates, ("CIDEr", "Bleu", "ROUGE_L")).corpus
        assert prepared.score(candidates) == wanted
        assert prepared.cider(candidates) == wanted["CIDEr"] > 0.1


def _some(words: list[str], random: Random) -> str:
    return " ".join(random.choices(words, k=random.randrange(12)))


def test_validation_on_one_image_warns_and_gives_a_number(caplog):
    assert Validator({1: ["a dog"]}).score({1: "a dog"})["CIDEr"] == 0
    assert "it needs two or more" in caplog.text


def test_diagnostics_count_endings_words_and_repeats():
    assert diagnose(["a man on a", "a dog runs", "a dog runs", ""]) == {
        "bad_endings": 0.5,
        "distinct_words": 5,
        "distinct_captions": 0.75,
        "mean_length": 2.5,
        "repeated_phrases": 0.0,
    }
