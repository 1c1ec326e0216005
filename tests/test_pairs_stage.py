"""`rlspeech pairs` and `rlspeech dpo` from recipe to checkpoint, with small models: records, resuming, bad input."""

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from rlspeech.cli import main
from rlspeech.config_dpo import ChoosingConfig, DetectorsConfig
from rlspeech.data.pairs import read
from rlspeech.engines import pair_reference
from rlspeech.stages.examining import Examiner
from rlspeech.stages.pairing import Pairing
from rlspeech.types import Rollout, Sample

FEW = ["--data.train={spoken}/train.jsonl", "--quiet", "--threads=1", "--data.kinds=who,list"]


def pairs_arguments(spoken: Path, student: Path, teacher: Path | None, run: Path, *more: str) -> list[str]:
    """A random model writes names that nobody says, or none; and its teacher finds the one likelier than the other."""
    given = [f"--student={student}", f"--run-dir={run}", f"--teacher={teacher or 'none'}", "--replies.max-tokens=8"]
    few = [
        "--batch=2",
        "--detectors.names=names,word_loop",
        *(["--choosing.unlikely-nats=1e-4"] if teacher else []),
        "--choosing.length-ratio=9",
        "--choosing.reference=false",
    ]
    return ["pairs", "tiny/pairs", *given, *few, *(one.format(spoken=spoken) for one in FEW), *more]


def dpo_arguments(spoken: Path, student: Path, run: Path, *more: str) -> list[str]:
    tests = [f"--data.tests.test_{name}={spoken}/test_{name}.jsonl" for name in ("voice", "text")]
    given = [f"--student={student}", f"--run-dir={run}", "--sampling.max-tokens=8", "--sampling.n=3", *tests]
    few = ["--optim.steps=3", "--optim.batch=4", "--held-out.samples=1", "--detectors.names=word_loop"]
    return ["dpo", "tiny/dpo", *given, *few, *(one.format(spoken=spoken) for one in FEW), *more]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def untimed(file: Path) -> list[dict[str, Any]]:
    timed = ("time/", "tokens_per_s")
    return [{k: v for k, v in row.items() if not any(one in k for one in timed)} for row in lines(file)]


@pytest.fixture(scope="module", autouse=True)
def ending() -> Iterator[None]:
    """A random model does not end its replies: they are taken for ended."""
    from rlspeech.engines.rollout_transformers import TransformersRollouts

    generate = TransformersRollouts.generate

    def ended(self: Any, *args: Any) -> list[Rollout]:
        found = generate(self, *args)
        return [replace(one, completion=replace(one.completion, finish="stop")) for one in found]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TransformersRollouts, "generate", ended)
        yield


@pytest.fixture(scope="module")
def made(spoken: Path, small_student: Path, small_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("made") / "pairs"
    assert main(pairs_arguments(spoken, small_student, small_teacher, run)) == 0
    return run


def test_replies_are_written_down_and_pairs_chosen_from_them(made: Path) -> None:
    batches = lines(made / "replies.jsonl")
    assert [row["step"] for row in batches] == [1, 2, 3]
    samples = [sample for row in batches for sample in row["samples"]]
    for sample in samples:
        own = [one for one in sample["replies"] if "origin" not in one]
        assert len(own) == 2 * 2  # n at each of two temperatures
        assert all(one["nats_per_byte"] < 0 for one in own if one["text"])
        assert [one["origin"] for one in sample["replies"] if "origin" in one] == ["teacher"]
    told = json.loads((made / "pairs.json").read_text())
    pairs = read(made / "pairs.jsonl")
    assert read(made / "pairs.parquet") == pairs
    assert (told["prompts"], told["replies"], told["pairs"]) == (len(samples), 4 * len(samples), len(pairs))
    assert told["reasons"].keys() == {"unlikely", "names"}
    assert len(pairs) > 5
    written = {sample["id"]: {one["text"] for one in sample["replies"]} for sample in samples}
    for pair in pairs:
        assert {pair.chosen, pair.rejected} <= written[pair.sample.id]
        assert pair.margin >= 1e-4
        assert all(text[:1].isupper() for name in pair.reason if name == "names" for text in pair.evidence)
        if pair.reason == ("unlikely",):
            assert pair.chosen_nats_per_byte - pair.rejected_nats_per_byte == pytest.approx(pair.margin, abs=1e-5)


def test_a_refusal_is_rejected_where_there_is_an_answer_and_there_alone() -> None:
    settings = ChoosingConfig(refusal="Not said.", reference=True, length_ratio=9)
    asked = Sample("a/who", "Who buys lamps?", transcript="Anna buys two lamps.", reference="Anna buys lamps.")
    clean, wrong = ({"text": text, "ended": True} for text in ("Anna does.", "It is Kevin."))

    def pairs(sample: Sample, *replies: dict, names: tuple[str, ...] = ()) -> list[tuple[str, str, tuple[str, ...]]]:
        pairing = Pairing(Examiner.of(DetectorsConfig(names=list(names))), settings)
        return [(one.chosen, one.rejected, one.reason) for one in pairing.pairs(sample, 2.0, replies)]

    assert pairs(asked, clean) == [("Anna does.", "Not said.", ("refused",))]
    both = pairs(asked, clean, wrong)
    assert [(one[1], "refused" in one[2]) for one in both] == [("It is Kevin.", False), ("Not said.", True)]
    unasked = replace(asked, id="a/not_said", tags={"kind": "not_said"}, reference="Not said.")
    assert pairs(unasked, clean) == [("Not said.", "Anna does.", ("not_said",))]
    assert pairs(replace(asked, reference=None), clean) == []  # not known whether there is an answer
    assert pairs(asked, wrong, names=("names",)) == [("Anna buys lamps.", "It is Kevin.", ("names",))]


def test_a_run_that_was_cut_off_ends_as_an_uncut_one(
    made: Path, spoken, small_student, small_teacher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rlspeech.engines.rollout_transformers import TransformersRollouts

    generate, calls = TransformersRollouts.generate, []

    def interrupted(self, *args):
        calls.append(1)
        if len(calls) == 4:  # the second temperature of the second batch
            raise KeyboardInterrupt
        return generate(self, *args)

    run = tmp_path / "pairs"
    arguments = pairs_arguments(spoken, small_student, small_teacher, run)
    with monkeypatch.context() as patch:
        patch.setattr(TransformersRollouts, "generate", interrupted)
        assert main(arguments) == 130
    (run / "replies.jsonl").open("a").write('{"step": 2, "samp')  # as a kill leaves it
    assert main([*arguments, "--resume"]) == 0
    assert (run / "pairs.jsonl").read_text() == (made / "pairs.jsonl").read_text()
    assert main([*arguments, "--resume"]) == 0  # finished before


def test_dpo_learns_to_prefer_and_tells_of_it(made: Path, spoken, small_student, tmp_path: Path) -> None:
    run = tmp_path / "dpo"
    more = [f"--pairs={made}/pairs.jsonl", "--optim.lr=3e-3", "--optim.warmup-steps=0", "--loss-options.beta=0.5"]
    assert main(dpo_arguments(spoken, small_student, run, *more)) == 0
    start, first, _, last = lines(run / "metrics.jsonl")
    assert start["kl/test_voice_reference_nats"] == pytest.approx(0, abs=1e-6)
    assert start["held_out/test_text_repetitive_share"] == 0
    assert first["train/margin"] == pytest.approx(0, abs=1e-4)
    assert first["train/logps_chosen"] < 0
    assert last["train/margin"] > 0.01
    assert last["kl/test_voice_reference_nats"] > 0
    recorded = lines(run / "rollouts.jsonl")
    assert [row["reward"] for row in recorded[:2]] == [1, 0]
    assert (run / "checkpoint" / "adapter").is_dir()


def test_the_report_tells_of_pairs_and_dpo(made: Path, spoken, small_student, tmp_path: Path) -> None:
    run = made.parent / "dpo"
    assert main(dpo_arguments(spoken, small_student, run, "--optim.steps=1")) == 0  # of the pairs beside it
    assert main(["report", "--run-dir", str(made.parent), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "rejected" in page
    assert "of two replies to the same audio" in page


def test_the_reference_is_kept_and_checked(made: Path, spoken, small_student, tmp_path: Path, capsys) -> None:
    kept = tmp_path / "reference.safetensors"
    more = [f"--pairs={made}/pairs.jsonl", f"--reference={kept}", "--optim.steps=1"]
    assert main(dpo_arguments(spoken, small_student, tmp_path / "a", *more)) == 0
    before = kept.stat().st_mtime_ns
    assert main(dpo_arguments(spoken, small_student, tmp_path / "b", *more)) == 0
    assert kept.stat().st_mtime_ns == before
    ours, theirs = (untimed(tmp_path / name / "metrics.jsonl") for name in "ab")
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, abs=1e-5)
    (tmp_path / "half.jsonl").write_text("".join((made / "pairs.jsonl").read_text().splitlines(True)[:2]))
    moved = tmp_path / "moved.jsonl"
    rows = [json.loads(line) for line in (made / "pairs.jsonl").read_text().splitlines()[:2]]
    moved.write_text("".join(json.dumps({**row, "audio": str(made / row["audio"])}) + "\n" for row in rows))
    other = [f"--pairs={moved}", f"--reference={kept}", "--optim.steps=1"]
    assert main(dpo_arguments(spoken, small_student, tmp_path / "c", *other)) == 2
    assert "a reference's log-probs of other pairs" in capsys.readouterr().err
    another = tmp_path / "checkpoint"
    another.symlink_to(tmp_path / "a" / "checkpoint")
    assert main(dpo_arguments(spoken, another, tmp_path / "d", *more)) == 2
    assert "a reference's log-probs of another model" in capsys.readouterr().err
    assert not (tmp_path / "d" / "metrics.jsonl").exists()


def test_a_run_of_dpo_that_was_cut_off_ends_as_an_uncut_one(
    made: Path, spoken, small_student, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is the start, though what is learned after it is restored; its file may be lost."""
    from rlspeech.engines.learner_torch import TorchLearner

    whole, cut = tmp_path / "whole", tmp_path / "cut"
    given = [f"--pairs={made}/pairs.jsonl", "--checkpoints.every-steps=1", "--optim.lr=1e-3"]
    assert main(dpo_arguments(spoken, small_student, whole, *given)) == 0
    step = TorchLearner.step

    def interrupted(self, *args, **kwargs):
        if self.steps_done == 2:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(TorchLearner, "step", interrupted)
        assert main(dpo_arguments(spoken, small_student, cut, *given)) == 130
    (cut / "reference.safetensors").unlink()
    assert main([*dpo_arguments(spoken, small_student, cut, *given), "--resume"]) == 0
    for ours, theirs in zip(untimed(cut / "metrics.jsonl"), untimed(whole / "metrics.jsonl"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-7)


def test_online_pairs_are_of_fresh_replies(spoken, small_student, tmp_path: Path) -> None:
    run = tmp_path / "online"
    more = ["--online", "--online-every=2", "--detectors.names=names", "--loss-options.beta=0.5"]
    assert main(dpo_arguments(spoken, small_student, run, *more, "--choosing.length-ratio=9")) == 0
    rows = lines(run / "metrics.jsonl")[1:]
    assert ["rollout/length_tokens" in row for row in rows] == [True, False, True]
    assert all(row["rollout/policy_lag_steps"] == 0 for row in rows[::2])
    assert all(row["pairs/count"] > 0 for row in rows)
    assert rows[0]["train/margin"] == pytest.approx(0, abs=1e-4) != rows[2]["train/margin"]


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("--loss=grpo --loss-options={}", "loss = 'grpo': knows no pairs (learns_from_pairs), as dpo does"),
        ("--pairs=nowhere.jsonl", "nowhere.jsonl: no such file of pairs"),
        ("--importance.level=off", "importance: cannot act, replies of pairs have no log-probs of a sampler"),
        ("--online --sampling.n=1", "sampling.n = 1: a reply alone makes no pair"),
        ("--detectors.thresholds.loops=0.5", "detectors: 'loops' is none"),
        ("--online-every=2", "online_every = 2: cannot act without --online"),
        ("--guard.repetition-stop=0.5", "guard.repetition_stop: cannot act"),
        ("--online --pairs=nowhere.jsonl", "pairs = 'nowhere.jsonl': cannot act with online = true"),
        ("--online --reference=kept.safetensors", "reference = 'kept.safetensors': cannot act with online = true"),
        ("--online --choosing.judged=0.5", "choosing.judged = 0.5: cannot act with online = true"),
    ],
)
def test_a_mistake_of_dpo_is_one_line(given: str, line: str, spoken, small_student, tmp_path: Path, capsys) -> None:
    assert main([*dpo_arguments(spoken, small_student, tmp_path / "run", "--make=none"), *given.split(" ")]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert line in told
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_detector_that_needs_a_transcript_says_so(spoken, small_student, tmp_path: Path, capsys) -> None:
    rows = lines(spoken / "train.jsonl")
    bare = tmp_path / "bare.jsonl"
    audio = {row["id"]: str(spoken / row["audio"]) for row in rows}
    kept = ({k: v for k, v in row.items() if k != "transcript"} | {"audio": audio[row["id"]]} for row in rows)
    bare.write_text("".join(json.dumps(row) + "\n" for row in kept))
    given = [f"--data.train={bare}", "--detectors.names=word_loop,names"]
    assert main(pairs_arguments(spoken, small_student, None, tmp_path / "run", *given)) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "no transcript, which names needs; add it, or --detectors.names word_loop" in told


def test_missing_pairs_are_made_of_the_same_data_and_seed(spoken, small_student, tmp_path: Path, capsys) -> None:
    """The recipe of the pairs gets this run's data; pairs of another seed that are there are not taken in silence."""
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'stage = "pairs"\nstudent = "tiny"\nrun_dir = "unused"\n[data]\ntrain = "elsewhere.jsonl"\nkinds = ["who"]\n'
        '[replies]\nmax_tokens = 8\n[detectors]\nnames = ["names"]\n'
        "[choosing]\nreference = true\nlength_ratio = 9.0\n"
    )
    more = [f"--make={recipe}", "--optim.steps=1", "--seed=5"]
    assert main(dpo_arguments(spoken, small_student, tmp_path / "dpo", *more)) == 0
    pairs = read(tmp_path / "pairs" / "pairs.jsonl")
    assert {one.sample.tags["kind"] for one in pairs} == {"who"}
    assert {one.sample.audio.path.resolve().parents[2] for one in pairs if one.sample.audio} == {spoken.resolve()}
    assert main(dpo_arguments(spoken, small_student, tmp_path / "again", *more[:2], "--seed=6")) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert f"made with seed = 5, this run wants 6; name {tmp_path}/pairs/pairs.jsonl as --pairs" in told


def test_replies_without_a_pair_can_be_chosen_from_otherwise(spoken, small_student, tmp_path: Path, capsys) -> None:
    """What was told to be raised can be raised: the replies are not written again. Pairs that are there stay."""
    run = tmp_path / "run"
    given = pairs_arguments(spoken, small_student, None, run)
    few = [one for one in given if not one.startswith("--detectors.names")]  # of a list, each flag gives one more
    assert main([*few, "--detectors.names=silence"]) == 1
    written = (run / "replies.jsonl").read_text()
    assert main([*few, "--detectors.names=names", "--choosing.reference=true", "--resume"]) == 0
    assert (run / "replies.jsonl").read_text() == written
    assert len(read(run / "pairs.jsonl")) > 0
    assert main([*few, "--detectors.names=silence", "--resume"]) == 2
    assert "detectors.names was ['names'], now ['silence']" in capsys.readouterr().err


def test_an_empty_set_of_replies_is_one_line(tmp_path: Path, capsys) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        'stage = "pairs"\nstudent = "tiny"\nrun_dir = "run"\n[data]\ntrain = "a.jsonl"\n[replies]\ntemperatures = []\n'
    )
    assert main(["pairs", str(recipe)]) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith("mine.toml [replies] temperatures: must hold at least one, got []")


def test_without_a_pair_it_says_why_and_keeps_the_replies(spoken, small_student, tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    more = ["--replies.temperatures=1e-6", "--replies.n=2"]
    assert main(pairs_arguments(spoken, small_student, None, run, *more)) == 1
    told = capsys.readouterr().err
    assert "all replies equal" in told
    assert "raise replies.temperatures" in told
    assert (run / "replies.jsonl").is_file()
    assert not (run / "pairs.jsonl").exists()


@pytest.fixture
def babbling() -> Iterator[str]:
    """The address of a server that answers everything with what is no score."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"choices": [{"message": {"content": "Ten out of ten!"}}]}).encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("answers", [False, True])
def test_a_judge_that_gives_no_score_is_one_line(
    answers: bool, babbling: str, spoken, small_student, tmp_path: Path, capsys
) -> None:
    """One that is not there, and one that answers with anything but its schema."""
    url = babbling if answers else "http://127.0.0.1:9"
    more = ["--rewards.judge.reward=judge", f"--rewards.judge.options={{url = '{url}', retries = 0}}"]
    assert main(pairs_arguments(spoken, small_student, None, tmp_path / "run", *more)) == 2
    (told,) = capsys.readouterr().err.splitlines()
    assert "rewards: judge gave none of" in told


def test_a_models_key_is_that_of_its_weights(small_student: Path, tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    copy = tmp_path / "copy"
    shutil.copytree(small_student, copy)
    assert pair_reference.model_key(copy) == pair_reference.model_key(small_student)
    file = next(copy.glob("*.safetensors"))
    weights = load_file(file)
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + torch.finfo(torch.float32).eps}, file, metadata={"format": "pt"})
    assert pair_reference.model_key(copy) != pair_reference.model_key(small_student)
    shutil.copytree(small_student, tmp_path / "adapted")
    keys = {pair_reference.model_key(small_student)}
    (tmp_path / "adapted" / "speech-lora").mkdir()
    for scale in (1.0, 2.0):  # an adapter of the model's own, in a folder of it, as phi4mm hears by
        save_file({"lora_A": torch.full((2,), scale)}, tmp_path / "adapted" / "speech-lora" / "model.safetensors")
        keys.add(pair_reference.model_key(tmp_path / "adapted"))
    assert len(keys) == 3


def test_the_summarisation_road_hands_on_students_and_pairs() -> None:
    from rlspeech.config import PipelineConfig
    from rlspeech.recipe import load
    from rlspeech.stages.pipeline import read_parts

    parts, _ = read_parts(load(PipelineConfig, "tiny/summarize", {"run_dir": "runs/x", "seed": "3"}))
    align, sft, distill, pairs, dpo = (part.config for part in parts)
    starts = [str(config.student) for config in (align, sft, distill, pairs, dpo)]
    distilled = "runs/x/distill/checkpoint"
    assert starts == ["tiny", "runs/x/align/checkpoint", "runs/x/sft/checkpoint", distilled, distilled]
    assert dpo.pairs == Path("runs/x/pairs/pairs.jsonl")
    assert [part.config.seed for part in parts] == [3] * 5
    assert [part.learns for part in parts] == [True, True, True, False, True]
