"""The teacher's own words in the student's tokens, and whose reply a sample gets."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from rlspeech.config import DistillConfig
from rlspeech.engines.teacher_written import teacher_rollouts
from rlspeech.errors import UserError
from rlspeech.losses.k1 import Loss as K1
from rlspeech.losses.reverse_kl import Loss as ReverseKl
from rlspeech.protocols import Sampling
from rlspeech.stages.mixture import Mixture, check_mixture, is_on_policy
from rlspeech.stages.token_shares import token_shares
from rlspeech.students.tiny import Student
from rlspeech.types import Answer, Completion, Prompt, Rollout, Sample

PROMPT = Prompt((1, 2))


@pytest.fixture(scope="module")
def student(tiny_folder) -> Student:
    return Student.load(tiny_folder, weights=False)


def settings(**given: Any) -> DistillConfig:
    common = {"student": "s", "teacher": "t", "run_dir": "r", "data": {"train": "d"}, "optim": {"steps": 1}}
    return DistillConfig.model_validate(common | given)


def written(student: Student, text: str, max_tokens: int = 64) -> Completion:
    (rollout,) = teacher_rollouts(student, [Sample("a", "?")], [PROMPT], [text], max_tokens=max_tokens, version=3)
    assert rollout.origin == "teacher"
    assert rollout.completion.logprobs == ()
    assert rollout.completion.policy_version == 3
    return rollout.completion


@pytest.mark.parametrize(
    "text", ["Anna meets Ben at 5:30.", "  \u5317\u4eac \u00e9\n\U0001f600", "", "<|im_end|> and <sound>"]
)
def test_a_reply_is_the_texts_own_bytes_and_the_end_of_turn(student: Student, text: str) -> None:
    """Nothing in the text becomes a special token: no second end of turn, no placeholder of audio."""
    reply = written(student, text)
    *ids, end = reply.token_ids
    assert end == student.end_token_id
    assert student.end_token_id not in ids
    assert student.placeholder_id not in ids
    assert student.tokenizer.decode(ids) == text
    assert reply.finish == "stop"


def test_a_reply_that_is_too_long_with_its_end_is_cut_and_has_none(student: Student) -> None:
    whole = written(student, "one two three")
    count = len(whole.token_ids)
    assert written(student, "one two three", count) == whole
    cut = written(student, "one two three", count - 1)
    assert cut.token_ids == whole.token_ids[:-1]
    assert cut.finish == "length"


@dataclass
class Engines:
    """A teacher that says the sample's id, a student that says two tokens; both note what they were asked."""

    student: Student
    asked: list[list[str]] = field(default_factory=list)
    sampled: list[list[str]] = field(default_factory=list)
    longest: int = 0

    @property
    def teacher(self) -> "Engines":
        return self

    @property
    def rollouts(self) -> "Engines":
        return self

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[Answer]:
        self.asked.append([sample.id for sample in samples])
        self.longest = max_tokens
        return [Answer(sample.id, ended=True) for sample in samples]

    def generate(self, samples: Sequence[Sample], prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        self.sampled.append([sample.id for sample in samples])
        reply = Completion((5, 6), (-1.0, -2.0), "", "length")
        pairs = zip(samples, prompts, strict=True)
        return [Rollout(sample, prompt, reply) for sample, prompt in pairs for _ in range(sampling.n)]


def mixture(student: Student, **mixed: float) -> tuple[Mixture, Engines]:
    engines = Engines(student)
    return Mixture(settings(mixed=mixed), engines), engines


SAMPLES = [Sample(f"{index}", "?") for index in range(20)]
PROMPTS = [PROMPT] * 20


def test_a_teacher_that_is_not_to_write_is_not_asked(student: Student) -> None:
    made, engines = mixture(student)
    replies = made.replies(SAMPLES, PROMPTS, Sampling(9, n=2), 0)
    assert len(replies.scored) == 40
    assert replies.written == []
    assert engines.asked == []
    assert replies.metrics == {}


def test_every_sample_has_a_reply_by_one_of_the_two(student: Student) -> None:
    made, engines = mixture(student, on_policy_share=0.5)
    replies = made.replies(SAMPLES, PROMPTS, Sampling(9, n=2), 4)
    ours = [r.sample.id for r in replies.scored if r.origin == "sampled"]
    theirs = [r.sample.id for r in replies.scored if r.origin == "teacher"]
    assert [*engines.sampled[0], *theirs] != [sample.id for sample in SAMPLES]
    assert sorted([*ours[::2], *theirs]) == sorted(sample.id for sample in SAMPLES)
    assert ours[::2] == ours[1::2]
    assert theirs == engines.asked[0]
    assert replies.written == []
    assert replies.metrics["rollout/teacher_share"] == len(theirs) / 20
    assert all(r.completion.token_ids[-1] == student.end_token_id for r in replies.scored if r.origin == "teacher")


def test_the_teacher_is_asked_once_for_a_sample_in_a_run_and_with_room(student: Student) -> None:
    made, engines = mixture(student, sft_weight=0.5)
    first = made.replies(SAMPLES[:3], PROMPTS[:3], Sampling(9), 0)
    again = made.replies([*SAMPLES[1:4], SAMPLES[3]], PROMPTS[:4], Sampling(9), 1)
    assert engines.asked == [["0", "1", "2"], ["3"]]
    assert [r.sample.id for r in again.written] == ["1", "2", "3", "3"]
    assert first.written[1].completion.token_ids == again.written[0].completion.token_ids
    assert engines.longest == 2 * 64
    assert [r.origin for r in first.scored] == ["sampled"] * 3


def test_no_reply_of_the_students_is_sampled_where_its_share_is_nothing(student: Student) -> None:
    made, engines = mixture(student, on_policy_share=0, sft_weight=1)
    replies = made.replies(SAMPLES, PROMPTS, Sampling(9, n=4), 0)
    assert engines.sampled == []
    assert len(replies.scored) == 20
    assert replies.written == []  # those that are scored are learned by cross-entropy too


def test_the_choice_is_a_draw_by_seed_step_and_sample() -> None:
    def drawn(seed: int, step: int, share: float = 0.3) -> list[bool]:
        many = [Sample(f"{index}", "?") for index in range(2000)]
        return [is_on_policy(sample, share=share, seed=seed, step=step) for sample in many]

    first = drawn(1, 1)
    assert first == drawn(1, 1)
    assert first != drawn(1, 2)
    assert first != drawn(2, 1)
    assert sum(first) / 2000 == pytest.approx(0.3, abs=0.05)
    assert all(drawn(1, 1, share=1))
    assert not any(drawn(1, 1, share=0))


def test_settings_that_cannot_act_together_are_refused() -> None:
    half = settings(mixed={"on_policy_share": 0.5}, loss="k1")
    check_mixture(settings(mixed={"sft_weight": 1.0}, loss="k1"), K1())
    check_mixture(half, ReverseKl())
    with pytest.raises(UserError, match=r"mixed\.on_policy_share = 0\.5"):
        check_mixture(half, K1())
    narrow = settings(mixed={"sft_weight": 1}, engines={"teacher": "vllm"}, vllm={"max_model_len": 128})
    with pytest.raises(UserError, match="may write 128 tokens"):
        check_mixture(narrow, ReverseKl())
    with pytest.raises(UserError, match=r"guard\.repetition_stop"):
        check_mixture(settings(mixed={"on_policy_share": 0}, guard={"repetition_stop": 0.5}), ReverseKl())


def replies_of(student: Student, *texts: str) -> list[Rollout]:
    samples = [Sample(f"{index}", "?", biasing_words=("zebra",)) for index in range(len(texts))]
    return teacher_rollouts(student, samples, [PROMPT] * len(texts), texts, max_tokens=64, version=0)


def test_shares_are_those_of_the_scheme(student: Student) -> None:
    made = replies_of(student, "we saw a zebra in Paris")
    assert token_shares(settings(), student, made) is None
    assert token_shares(settings(weighting={"scheme": "divergence"}), student, made) is None
    (early,) = token_shares(settings(weighting={"scheme": "early", "gain": 3, "half_life_tokens": 1}), student, made)
    assert early[:3].tolist() == [3, 2, 1.5]
    (entity,) = token_shares(settings(weighting={"scheme": "entity", "gain": 3}), student, made)
    words = [student.tokenizer.decode([token]) for token in made[0].completion.token_ids]
    heavy = "".join(word for word, share in zip(words, entity.tolist(), strict=True) if share == 3)
    assert heavy == " zebra Paris"
    assert entity[-1] == 1  # the end of turn


def test_what_the_teacher_wrote_counts_for_the_replies_it_stands_for(student: Student) -> None:
    made = replies_of(student, "so it is")
    sampled = Rollout(made[0].sample, PROMPT, Completion((5, 6), (-1.0, -1.0), "", "length"))
    shares = token_shares(settings(sampling={"n": 3}), student, [sampled, *made])
    assert shares[0].tolist() == [1, 1]
    assert set(shares[1].tolist()) == {3}


def test_a_token_that_is_not_in_the_table_is_no_text(student: Student) -> None:
    odd = SimpleNamespace(sample=Sample("a", "?"), completion=Completion((10**6,), (), "", "length"), origin="sampled")
    (shares,) = token_shares(settings(weighting={"scheme": "entity"}), student, [odd])
    assert shares.tolist() == [1]
