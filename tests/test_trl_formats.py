"""TRL's data formats: read as samples, written from samples, taken by TRL itself; what no sample holds is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from rlspeech.data import manifest
from rlspeech.data.foreign import as_row, as_trl
from rlspeech.data.pairs import read as read_pairs
from rlspeech.data.rows import rows_of
from rlspeech.errors import UserError
from rlspeech.types import Audio, Sample, Turn, Word

DOCS = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text()
JSON = [line for block in re.findall(r"```json\n(.*?)```", DOCS, re.DOTALL)[1:] for line in block.splitlines()]
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
ASKED, SAID = {"role": "user", "content": "Who came?"}, {"role": "assistant", "content": "Anna."}
SYSTEM = {"role": "system", "content": "Be brief."}
HEARD = [{"type": "audio"}, {"type": "text", "text": "Who "}, {"type": "text", "text": "came?"}]
FILE = {"type": "audio", "path": "audio/1.wav"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "audio").mkdir()
    for name in ("1", "2"):
        soundfile.write(tmp_path / "audio" / f"{name}.wav", 0.1 * np.ones(16_000), 16_000)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def written(folder: Path, *rows: Any, name: str = "train.jsonl") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def samples(folder: Path) -> tuple[Sample, ...]:
    """All that a row may tell, two instructions about one recording, one without an answer, and two audios."""
    first = Audio(folder / "audio" / "1.wav", 0.25, 0.75)
    common = {
        "audio": first,
        "transcript": "Anna came.",
        "lang": "de",
        "biasing_words": ("Anna", "Otto"),
        "rare_words": ("Anna",),
        "turns": (Turn("A", "Anna came.", "en-us", pause_s=0.5),),
        "words": (Word("Anna", 0, 0.4), Word("came.", 0.4, 0.5)),
        "teacher": "large",
    }
    who = {"split": "train", "kind": "who", "key": "Anna"}
    both = {"audio": Audio(folder / "audio/1.wav"), "more_audio": (Audio(folder / "audio/2.wav"),)}
    return (
        Sample("r1/who", "Who came?", reference="Anna „5“.", tags=who, **common),
        Sample("r1/who-2", "Who did not?", tags={"split": "train", "kind": "who"}, **common),
        Sample(
            "r2/other", "Which is longer?", reference="", tags={"kind": "other", "text": "told", "image": "a"}, **both
        ),
    )


@pytest.mark.parametrize(
    ("row", "reference", "files"),
    [
        ({"messages": [ASKED, SAID]}, "Anna.", 1),
        (
            {"messages": [{**ASKED, "content": HEARD}, {**SAID, "content": [{"type": "text", "text": "Anna."}]}]},
            "Anna.",
            1,
        ),
        ({"prompt": [ASKED], "completion": [SAID]}, "Anna.", 1),
        ({"prompt": "Who came?", "completion": "Anna."}, "Anna.", 1),
        ({"prompt": [ASKED], "completion": None}, None, 1),
        ({"prompt": "Who came?"}, None, 1),
        ({"prompt": "Who came?", "answer": "Anna."}, "Anna.", 1),
        ({"prompt": "Who came?", "audio": ["audio/1.wav", "audio/2.wav"]}, None, 2),
        ({"prompt": "Who came?", "more_audio": ["audio/2.wav"]}, None, 2),
        ({"prompt": [{**ASKED, "content": [FILE, *HEARD[1:]]}], "audio": None}, None, 1),
        ({"prompt": [{**ASKED, "content": [FILE, *HEARD[1:]]}]}, None, 1),
        (
            {
                "prompt": [{**ASKED, "content": [*HEARD[1:], FILE, {"type": "audio", "url": "audio/2.wav"}]}],
                "audio": None,
            },
            None,
            2,
        ),
        ({"prompt": [{**ASKED, "content": HEARD}], "audio": None, "audio_filepath": "audio/1.wav"}, None, 1),
    ],
)
def test_each_of_trls_forms_is_one_instruction_and_its_answer(folder: Path, row: dict, reference: str, files: int):
    (sample,) = manifest.read(written(folder, {"audio": "audio/1.wav", **row})).samples
    assert (sample.id, sample.instruction, sample.reference) == ("line-1/other", "Who came?", reference)
    assert [one.path for one in (sample.audio, *sample.more_audio)] == [
        folder / f"audio/{n + 1}.wav" for n in range(files)
    ]


def test_keys_of_ours_and_tags_stand_beside_trls(folder: Path):
    row = {
        "prompt": [ASKED],
        "audio": "audio/1.wav",
        "start_s": 0.5,
        "transcript": "Anna came.",
        "lang": "de",
        "kind": "who",
        "id": 7,
        "solution": "Anna",
        "level": 3,
        "tags": {"split": "a"},
    }
    (sample,) = manifest.read(written(folder, row), needs=("audio", "transcript")).samples
    assert sample == Sample(
        "7/who",
        "Who came?",
        Audio(folder / "audio/1.wav", 0.5),
        transcript="Anna came.",
        lang="de",
        tags={"solution": "Anna", "level": "3", "split": "a", "kind": "who"},
    )


MORE = "a sample is one instruction and its answer"
BAD = [
    (
        {"messages": [SYSTEM, ASKED, SAID]},
        f"'messages' has a message of role 'system'; {MORE}: put its text into the user's",
    ),
    ({"prompt": [SYSTEM, ASKED]}, "'prompt' has a message of role 'system'"),
    (
        {"messages": [ASKED, SAID, ASKED, SAID]},
        f"'messages' has several turns (user, assistant, user, assistant); {MORE}: make a row of each that",
    ),
    (
        {"prompt": [ASKED, SAID, ASKED], "completion": [SAID]},
        "'prompt' has several turns (user, assistant, user, assistant)",
    ),
    ({"prompt": [ASKED, SAID], "completion": [SAID]}, "'prompt' has several turns (user, assistant, assistant)"),
    ({"messages": [SAID]}, "'messages' has no message of a user"),
    ({"messages": []}, "'messages' must be a text or a list of messages"),
    ({"messages": ["Who?"]}, "'messages[0]' must be a message with role and content"),
    ({"messages": [ASKED, {"role": "assistant", "tool_calls": []}]}, "'messages[1]' has no content"),
    ({"prompt": " "}, "'prompt': the user's message has no text"),
    ({"completion": "Anna."}, "'prompt' missing beside 'completion'"),
    ({"prompt": "Who?", "messages": [ASKED]}, "both 'messages' and 'prompt'; keep one"),
    ({"prompt": "Who?", "instruction": "When?"}, "both 'prompt' and 'instruction'; keep one"),
    (
        {"prompt": "Who?", "completion": "Anna.", "answer": "Bo."},
        "both a reply in the conversation and 'answer'; keep one",
    ),
    ({"prompt": "Who?", "tools": [{"name": "f"}]}, "'tools' changes what is asked, and a sample has no place for it"),
    ({"prompt": "Who?", "completion": "Bo.", "label": False}, "label false: the completion is not one to learn"),
    (
        {"prompt": "Who?", "chosen": "Anna.", "rejected": "Bo."},
        "'chosen': a pair of replies, which `rlspeech dpo --pairs`",
    ),
    ({"prompt": "Who?", "audio": None}, "audio missing: the row names none"),
    ({"prompt": "Who?", "audio": ["audio/1.wav", "gone.wav"]}, "audio missing: {folder}/gone.wav"),
    ({"prompt": "Who?", "audio": {"bytes": ""}}, "'audio' must be the path of a file"),
    ({"prompt": "Who?", "more_audio": "audio/2.wav"}, "'more_audio' must be a list of paths"),
    (
        {"prompt": [{**ASKED, "content": HEARD}], "audio": None},
        "an audio part names no file, and the row has no 'audio'",
    ),
    ({"prompt": [{**ASKED, "content": HEARD}], "audio": ["a", "b"]}, "'audio' names 2 of the 1 audio parts"),
    (
        {"prompt": [{**ASKED, "content": [FILE, *HEARD[1:]]}], "audio": "b"},
        "'audio' names 'b' and the conversation 'audio/1.wav'",
    ),
    ({"prompt": [{**ASKED, "content": [{"type": "image"}]}]}, "'prompt[0].content[0]' must be a part of type text"),
    ({"prompt": [{**ASKED, "content": [{**FILE, "url": "x"}]}]}, "'prompt[0].content[0]' must name one file"),
    ({"messages": [ASKED, {**SAID, "content": HEARD}]}, "'messages' has audio in the reply; a reply is text"),
]


@pytest.mark.parametrize(("row", "message"), BAD, ids=[message for _, message in BAD])
def test_what_a_sample_cannot_hold_is_one_line_with_its_place(folder: Path, row: dict, message: str):
    path = written(folder, {"prompt": "Who?", "audio": "audio/1.wav"}, {"audio": "audio/1.wav", **row})
    with pytest.raises(UserError) as error:
        manifest.read(path)
    assert str(error.value).startswith(f"{path}:2: {message.format(folder=folder)}")
    assert "\n" not in str(error.value)
    assert len(manifest.read(path, skip_bad=True).skipped) == 1


def test_columns_of_a_hugging_face_folder_may_be_trls(folder: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setenv("RLSPEECH_CACHE", str(folder / "cache"))
    rows = [{"audio": f"audio/{n}.wav", "text": "Anna came.", "messages": [ASKED, SAID]} for n in (1, 2)]
    rows[1]["messages"] = [SYSTEM, ASKED]
    datasets.Dataset.from_list(rows).cast_column("audio", datasets.Audio()).save_to_disk(folder / "set")
    loaded = manifest.read(folder / "set", skip_bad=True)
    ((sample,), (skipped,)) = loaded.samples, loaded.skipped
    assert (sample.id, sample.instruction, sample.reference) == ("row-0/other", "Who came?", "Anna.")
    assert sample.transcript == "Anna came."
    assert skipped.startswith(f"{folder}/set[1]: 'messages' has a message of role 'system'")


def test_what_is_written_for_trl_is_read_as_the_same_samples(folder: Path):
    path = folder / "trl.jsonl"
    manifest.write(path, map(as_trl, samples(folder)))
    assert manifest.read(path).samples == samples(folder)
    first, second, _ = (json.loads(line) for line in path.read_text().splitlines())
    assert first["prompt"] == [ASKED]
    assert first["completion"] == [{"role": "assistant", "content": "Anna „5“."}]
    assert (first["audio"], first["split"], first["key"]) == ("audio/1.wav", "train", "Anna")
    assert "completion" not in second
    manifest.write(
        folder / "ours.jsonl", rows_of(manifest.read(path).samples)
    )  # two rows of one recording are one again
    assert manifest.read(folder / "ours.jsonl").samples == samples(folder)
    assert len((folder / "ours.jsonl").read_text().splitlines()) == 2


def test_a_row_of_trls_that_could_not_be_read_back_is_not_written(folder: Path):
    with pytest.raises(UserError, match="several turns"):
        manifest.write(folder / "a.jsonl", [{"messages": [ASKED, SAID, ASKED]}])
    assert not (folder / "a.jsonl").exists()


def test_trl_takes_the_file_as_its_conversational_prompt_completion_format(folder: Path):
    """And its text of the prompt is the one that the student's family renders, its completion ours with an end."""
    from datasets import load_dataset
    from real_tokenizers import fresh_smollm2
    from trl import maybe_extract_prompt
    from trl.data_utils import apply_chat_template, is_conversational

    manifest.write(folder / "trl.jsonl", map(as_trl, samples(folder)))
    rows = load_dataset("json", data_files=str(folder / "trl.jsonl"), split="train", cache_dir=str(folder / "c"))
    tokenizer = fresh_smollm2()
    assert len(rows) == 3
    for row, sample in zip(rows, samples(folder), strict=True):
        row = {key: value for key, value in row.items() if value is not None}
        assert is_conversational(row)
        assert maybe_extract_prompt(row) == row
        told = apply_chat_template({key: row[key] for key in ("prompt", "completion") if key in row}, tokenizer)
        asked = [{"role": "user", "content": sample.instruction}]
        assert told["prompt"] == tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert told.get("completion") == (None if sample.reference is None else f"{sample.reference}<|im_end|>\n")
        assert as_row(row, "")["instruction"] == sample.instruction  # with what `datasets` makes of the columns


def test_the_examples_of_the_docs_are_read_and_run(folder: Path):
    *rows, pair = JSON
    told = [manifest.read(written(folder, row)).samples[0] for row in rows]
    assert [(one.instruction, one.reference, len(one.more_audio)) for one in told] == [
        ("Who came?", "Anna.", 0),
        ("Who came?", "Anna.", 0),
        ("Who came?", "Anna.", 1),
        ("Who came?", None, 0),
    ]
    assert [one.rejected for one in read_pairs(written(folder, pair, name="pairs.jsonl"))] == ["Peter."]
    manifest.write(folder / "data" / "train.jsonl", rows_of(samples(folder)))
    exec(EXAMPLE, {})
    first, *_ = manifest.read(folder / "trl" / "train.jsonl").samples
    assert (first.id, first.reference) == ("r1/who", "Anna „5“.")
