"""Word errors of rare words apart: the published counts, a plain scorer beside ours, and cases by hand."""

import json
import random
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from rlspeech.cli import main
from rlspeech.maths.biasing import BiasedEdits, biased_edits, found_phrases, phrase_runs, summed
from rlspeech.maths.edits import Edits

SYSTEMS = ["b1.rnnt_baseline", "s1.b1+db-rnnt.biasing_100", "s4.s3+nnlm.biasing_100"]


def plainly(reference: Sequence[str], hypothesis: Sequence[str], rare: Collection[str]) -> BiasedEdits:
    """Single rare words, by a table of costs and a walk back through it."""
    cost = [[3 * (i + j) for j in range(len(hypothesis) + 1)] for i in range(len(reference) + 1)]
    for i, said in enumerate(reference, 1):
        for j, heard in enumerate(hypothesis, 1):
            apart = 0 if said == heard else 4
            cost[i][j] = min(cost[i - 1][j - 1] + apart, cost[i][j - 1] + 3, cost[i - 1][j] + 3)
    counts = {(side, kind): 0 for side in (False, True) for kind in ("sub", "ins", "del")}
    i, j = len(reference), len(hypothesis)
    while i or j:
        apart = 0 if i and j and reference[i - 1] == hypothesis[j - 1] else 4
        if i and j and cost[i][j] == cost[i - 1][j - 1] + apart:
            i, j = i - 1, j - 1
            counts[reference[i] in rare, "sub"] += apart > 0
        elif j and cost[i][j] == cost[i][j - 1] + 3:
            j -= 1
            counts[hypothesis[j] in rare, "ins"] += 1
        else:
            i -= 1
            counts[reference[i] in rare, "del"] += 1
    sides = {}
    for side in (False, True):
        length = sum((word in rare) == side for word in reference)
        sides[side] = Edits(*(counts[side, kind] for kind in ("sub", "ins", "del")), length)
    both = [getattr(sides[False], name) + getattr(sides[True], name) for name in Edits._fields]
    return BiasedEdits(Edits(*both), sides[False], sides[True])


def test_a_plain_scorer_counts_the_same() -> None:
    """Few words and much repetition: most alignments have a rival of the same cost."""
    rng = random.Random(0)
    pairs = [[rng.choices("abcd", k=rng.randint(0, rng.choice([9, 9, 40]))) for _ in range(2)] for _ in range(2000)]
    rare = [rng.sample("abcd", rng.randint(0, 2)) for _ in pairs]
    references, hypotheses = [one for one, _ in pairs], [other for _, other in pairs]
    listed = [[(word,) for word in words] for words in rare]
    expected = [plainly(*pair, words) for pair, words in zip(pairs, rare, strict=True)]
    assert [*biased_edits(references, hypotheses, listed)] == expected
    found = biased_edits(references, hypotheses, listed, workers=2)
    assert (len(found), found[3], found[5:7]) == (2000, expected[3], expected[5:7])
    assert summed(found) == summed(expected)


def test_words_of_any_characters_are_told_apart() -> None:
    """Numbers that stand for words are those of their bytes, and the byte that parts them may be in one."""
    for odd in ("a\0b", "", "\ud800", "😀"):
        (found,) = biased_edits([[odd, "a", "b"]], [["a", "b", odd]], [[(odd,)]])
        assert (found.biased, found.unbiased) == (Edits(0, 1, 1, 1), Edits(0, 0, 0, 2))


@pytest.mark.parametrize("system", SYSTEMS)
def test_the_published_counts_come_out_to_the_last_one(system: str, shared: Path, capsys, tmp_path: Path) -> None:
    data = shared / "data" / "librispeech_biasing"
    hyps, out = data / f"hyp/test-clean.{system}.tsv", tmp_path / "scores.json"
    refs = data / "ref/test-clean.biasing_100.tsv"
    assert main(["score", "biasing", f"--refs={refs}", f"--hyps={hyps}", f"--out={out}"]) == 0
    published = (data / f"results/{hyps.name}.result").read_text().strip()
    assert capsys.readouterr().out.startswith(published + "\n")
    told = json.loads(out.read_text())[hyps.name]
    assert f"dels={told['b_wer']['deletions']}" in published.splitlines()[2]
    assert told["phrases"]["recall"] == pytest.approx(1 - told["b_wer"]["error_rate"], abs=0.002)


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rare", "others", "biased"),
    [
        ("call ann lee now", "call an lee now", ["ann lee"], (0, 0, 0, 2), (1, 0, 0, 2)),
        ("call ann", "call ann lee", ["ann lee"], (0, 0, 0, 2), (0, 1, 0, 0)),  # half of the phrase is none
        ("the start", "the art start", ["art"], (0, 0, 0, 2), (0, 1, 0, 0)),
        ("start", "start", ["art"], (0, 0, 0, 1), (0, 0, 0, 0)),
        ("a b", "", ["b"], (0, 0, 1, 1), (0, 0, 1, 1)),
        ("", "a b", ["b"], (0, 1, 0, 0), (0, 1, 0, 0)),
        ("", "", ["b"], (0, 0, 0, 0), (0, 0, 0, 0)),
        ("b b", "b", ["b"], (0, 0, 0, 0), (0, 0, 1, 2)),
        ("the bank of america", "of the bank of america", ["bank of america"], (0, 1, 0, 1), (0, 0, 0, 3)),
        ("call kowalski is", "is call kowalski is", ["kowalski is"], (0, 1, 0, 1), (0, 0, 0, 2)),  # of "Kowalski's"
        ("call", "call bank of america", ["bank of america"], (0, 0, 0, 1), (0, 3, 0, 0)),
        ("call", "call of", ["bank of america", "of"], (0, 0, 0, 1), (0, 1, 0, 0)),
        ("call", "call bank", ["bank of america"], (0, 1, 0, 1), (0, 0, 0, 0)),
    ],
)
def test_counts_by_hand(reference: str, hypothesis: str, rare: list[str], others, biased) -> None:
    phrases = [tuple(phrase.split()) for phrase in rare]
    (found,) = biased_edits([reference.split()], [hypothesis.split()], [phrases])
    assert found.unbiased == Edits(*others)
    assert found.biased == Edits(*biased)


def test_characters_have_the_side_of_their_word() -> None:
    (found,) = biased_edits([["call", "ann"]], [["cal", "anna"]], [[("ann",)]], unit="characters")
    assert found.unbiased == Edits(0, 1, 1, 4)  # "anna" is no rare word, so its last letter is not
    assert found.biased == Edits(0, 0, 0, 3)


def test_a_text_is_not_taken_for_its_words() -> None:
    with pytest.raises(TypeError, match="lists of words"):
        biased_edits(["ann"], [["ann"]], [[]])  # type: ignore[list-item]
    for strings in (["a"], "ab", {"a"}):
        with pytest.raises(TypeError, match="phrases of words"):
            biased_edits([["ann"]], [["ann"]], [strings])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="unit must be words or characters, got 'letters'"):
        biased_edits([["ann"]], [["ann"]], [[]], unit="letters")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="2 references, 1 hypotheses"):
        biased_edits([["a"], ["b"]], [["a"]], [[], []])


def test_phrases_are_found_as_runs_of_words_one_for_one() -> None:
    listed = [{("ann", "lee"), ("art",), ("bo",)}]
    found = found_phrases([["ann", "lee", "and", "ann", "lee"]], [["start", "ann", "lee", "bo"]], listed)
    assert found == (2, 2, 1)
    assert (found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5)
    assert phrase_runs(["start"], {("art",)}) == []


def test_sums_are_those_of_the_parts() -> None:
    parts = biased_edits([["a", "b"], ["a"]], [["a"], ["b"]], [[("b",)], [("b",)]])
    assert summed(parts).total == Edits(1, 0, 1, 3)
    assert summed([]).total == Edits(0, 0, 0, 0)


@pytest.fixture
def files(tmp_path: Path):
    def written(refs: str, hyps: str) -> list[str]:
        (tmp_path / "refs.tsv").write_text(refs)
        (tmp_path / "hyps.tsv").write_text(hyps)
        return ["score", "biasing", f"--refs={tmp_path}/refs.tsv", f"--hyps={tmp_path}/hyps.tsv"]

    return written


GOOD = 'u1\tcall ann\t["ann"]\t["ann", "bo"]\n'


@pytest.mark.parametrize(
    ("refs", "hyps", "line"),
    [
        (GOOD, "", "hyps.tsv: empty"),
        (GOOD, "u2\tcall\n", "hyps.tsv:1: 'u2' is not among the references"),
        (GOOD, "u1\ta\nu1\tb\n", "hyps.tsv:2: 'u1' comes twice"),
        (GOOD * 2, "u1\ta\n", "refs.tsv:2: 'u1' comes twice"),
        ("u1\tcall\n", "u1\ta\n", "refs.tsv:1: 2 columns; want id, text, rare words and biasing words"),
        ("u1\tcall\t[ann]\n", "u1\ta\n", "refs.tsv:1: not a JSON list: [ann]"),
        ("u1\tcall\t[1]\n", "u1\ta\n", "refs.tsv:1: not a JSON list of words: [1]"),
        (GOOD + "u2\ta\t[]\n", "u1\ta\n", "hyps.tsv: no transcript of u2 (of 1); --lenient leaves them out"),
    ],
)
def test_a_bad_file_is_one_line(refs: str, hyps: str, line: str, files, capsys) -> None:
    assert main(files(refs, hyps)) == 2
    told = capsys.readouterr().err.strip()
    assert told.endswith(line)
    assert "\n" not in told


def test_lenient_leaves_out_what_has_no_transcript(files, capsys) -> None:
    assert main([*files(GOOD + "u2\ta\t[]\n", "u1\n"), "--lenient"]) == 0
    told = capsys.readouterr()
    assert told.out.startswith("WER: error_rate=100.0, ref_words=2, subs=0, ins=0, dels=2\n")
    assert "1 of 2 references have no transcript" in told.err


@pytest.mark.parametrize(
    ("text", "heard", "errors"),
    [
        ("Große Bären!", "grosse bären", 1),
        ("नमस्ते, दुनिया!", "नमस्ते दुनिया", 0),
        ("你好，世界", "你好世间", 1),  # noqa: RUF001
        ("สวัสดี", "สวัสดี", 0),
    ],
)
def test_the_neutral_normaliser_empties_no_script(text: str, heard: str, errors: int, files, tmp_path) -> None:
    out = tmp_path / "scores.json"
    assert main([*files(f"u1\t{text}\t[]\n", f"u1\t{heard}\n"), "--normalise=neutral", f"--out={out}"]) == 0
    (told,) = json.loads(out.read_text()).values()
    assert told["wer"]["words"] > 0
    assert sum(told["wer"][kind] for kind in ("substitutions", "insertions", "deletions")) == errors


def test_systems_of_one_file_name_are_told_apart_by_their_paths(tmp_path: Path, capsys) -> None:
    (tmp_path / "refs.tsv").write_text(GOOD)
    for folder, text in (("a", "call ann"), ("b", "call")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test.tsv").write_text(f"u1\t{text}\n")
    (tmp_path / "other.tsv").write_text("u1\t\n")
    files = [f"{tmp_path}/{name}" for name in ("a/test.tsv", "b/test.tsv", "other.tsv")]
    words = ["score", "biasing", f"--refs={tmp_path}/refs.tsv", *[f"--hyps={file}" for file in files]]
    assert main([*words, f"--out={tmp_path}/out.json"]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert {name: one["wer"]["error_rate"] for name, one in told.items()} == {
        files[0]: 0.0,
        files[1]: 0.5,
        "other.tsv": 1.0,
    }
    assert [line[2:] for line in capsys.readouterr().out.splitlines() if line[:1] == "#"] == [*files[:2], "other.tsv"]
    assert main([*words, f"--hyps={files[0]}"]) == 2
    assert "hyps: " + files[0] + " is given twice" in capsys.readouterr().err


def test_a_line_ends_at_its_end_alone_and_a_mark_of_byte_order_is_no_text(tmp_path: Path, capsys) -> None:
    odd = "a\u2028b\u0085c\x0bd\x0ce"
    (tmp_path / "refs.tsv").write_bytes(f"\ufeffu1\t{odd}\t[]\r\nu2\tcall\t[]\r\n".encode())
    (tmp_path / "hyps.tsv").write_bytes(f"u1\t{odd}\r\nu2\tcall".encode())
    assert main(["score", "biasing", f"--refs={tmp_path}/refs.tsv", f"--hyps={tmp_path}/hyps.tsv"]) == 0
    assert capsys.readouterr().out.startswith("WER: error_rate=0.0, ref_words=6, subs=0, ins=0, dels=0\n")


def test_a_rare_word_that_is_another_one_in_its_sentence_is_told(files, capsys) -> None:
    refs = 'u1\tseventeen hundred men and ann\t["seventeen", "ann"]\n'
    assert main([*files(refs, "u1\tmen\n"), "--normalise=english"]) == 0
    told = capsys.readouterr()
    assert "1 of 2 rare words are not in their reference as it is split, and count as others" in told.err
    assert "the first: 'seventeen' of u1" in told.err
    assert "B-WER: error_rate=100.0, ref_words=1," in told.out
    assert main(files(refs, "u1\tmen\n")) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("column", "said", "heard", "right"),
    [("", 1, 1, 1), ("\t[]", 0, 0, 0), ('\t["call", "bo"]', 1, 2, 1)],
)
def test_phrases_are_those_of_the_fourth_column_even_where_it_has_none(column, said, heard, right, files, tmp_path):
    out = tmp_path / "out.json"
    assert main([*files(f'u1\tcall ann\t["ann"]{column}\n', "u1\tcall ann bo\n"), f"--out={out}"]) == 0
    (told,) = json.loads(out.read_text()).values()
    assert [told["phrases"][name] for name in ("said", "heard", "right")] == [said, heard, right]


@pytest.mark.parametrize(("out", "line"), [("", "a folder, where a file is"), ("/refs.tsv/x", "refs.tsv is no folder")])
def test_a_file_that_cannot_be_written_is_told_before_anything_is_read(out, line, files, tmp_path, capsys) -> None:
    """The transcripts are bad, too, which is not told."""
    assert main([*files(GOOD, "u9\t\n"), f"--out={tmp_path}{out}"]) == 2
    told = capsys.readouterr().err
    assert line in told
    assert "u9" not in told


def test_text_in_brackets_is_text_of_the_english_normaliser_too(files, capsys) -> None:
    assert main([*files("u1\tcall ann\t[]\n", "u1\tCall Ann [Bo] (zz)\n"), "--normalise=english"]) == 0
    assert capsys.readouterr().out.startswith("WER: error_rate=100.0, ref_words=2, subs=0, ins=2, dels=0\n")
