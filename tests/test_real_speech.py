"""Real recordings (LibriVox) from the sound to WER, U-WER and B-WER: the student of `tiny`, untrained, hears them."""

import json
import re
from pathlib import Path

import pytest

from rlspeech.cli import main

RARE = {"0870": ["john dashwood", "prudently"], "0880": ["ill disposed"], "0890": ["cold hearted", "ill disposed"]}


@pytest.fixture(scope="module")
def spoken_book(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of the recordings with their rare words."""
    folder = shared / "data" / "librivox"
    rows = []
    for text, name in re.findall(r"<s> (.+) </s> \((\S+)\)", (folder / "transcription").read_text()):
        row = {"id": name, "audio": f"{folder / name}.wav", "instruction": "Transcribe the speech."}
        row |= {"transcript": text, "reference": text, "tags": {"kind": "transcribe"}}
        rows.append({**row, "rare_words": RARE.get(name[-4:], [])})
    manifest = tmp_path_factory.mktemp("librivox") / "book.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return manifest


def test_real_speech_is_heard_with_lists_and_scored_by_one_scorer(spoken_book, tiny_folder, tmp_path, capsys) -> None:
    """What `evaluate` says of its replies is what `rlspeech score biasing` says of the same ones."""
    command = ["evaluate", "tiny/evaluate_calls", f"--student={tiny_folder}", "--lists.pool=None", "--quiet"]
    command += ["--data={synth = 'tiny/synth_calls'}", f"--data.tests.book={spoken_book}", f"--run-dir={tmp_path}/e"]
    assert main([*command, "--lists.sizes=[3]", "--evaluation.max-tokens=16"]) == 0
    found = json.loads((tmp_path / "e/evaluation.json").read_text())
    told = found["sets"]["book_3"]["student"]
    assert told["samples"] == 5
    assert told["b_wer"] > 0.5  # its projector has learned nothing
    rows = [json.loads(line) for line in spoken_book.read_text().splitlines()]
    replies = {row["id"].partition("/")[0]: row["reply"].replace("\n", " ") for row in found["samples"]}
    refs = [f"{row['id']}\t{row['reference']}\t{json.dumps(row['rare_words'])}\t[]" for row in rows]
    (tmp_path / "refs.tsv").write_text("\n".join(refs) + "\n")
    (tmp_path / "hyps.tsv").write_text("".join(f"{key}\t{text}\n" for key, text in replies.items()))
    files = [f"--refs={tmp_path}/refs.tsv", f"--hyps={tmp_path}/hyps.tsv", f"--out={tmp_path}/scores.json"]
    capsys.readouterr()
    assert main(["score", "biasing", *files, "--normalise=english"]) == 0
    scored = json.loads((tmp_path / "scores.json").read_text())["hyps.tsv"]
    for name in ("wer", "u_wer", "b_wer"):
        assert scored[name]["error_rate"] == pytest.approx(told[name])
    assert capsys.readouterr().out.startswith("WER: error_rate=")
