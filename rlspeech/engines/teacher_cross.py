"""A teacher with another tokenizer: it reads the student's bytes in its own tokens, and its answers come in spans.

Any teacher will do: it is asked about token ids of its own. S spans of a reply, T the student's tokens, M the
teacher's, K top tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from rlspeech.engines.retokenise import Reread, Rereader
from rlspeech.engines.token_classes import NO_CLASS
from rlspeech.protocols import Teacher
from rlspeech.types import Answer, Completion, Sample, Scored

log = logging.getLogger(__name__)


@dataclass
class CrossTeacher:
    """`inner` tells its top tokens (it has no `head`): they are compared with the student's by token_classes."""

    inner: Teacher
    rereader: Rereader
    _told: set[str] = field(default_factory=set, repr=False)  # reasons that were warned of

    def messages(self, sample: Sample) -> list[dict[str, str]]:
        return self.inner.messages(sample)

    def head(self) -> None:
        """None: two vocabularies have no common axis."""

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[Answer]:
        return self.inner.reply(samples, max_tokens=max_tokens)

    def score(self, samples: Sequence[Sample], replies: Sequence[Completion]) -> list[Scored]:
        """Log-probs [S] of spans; top classes [S, K] where a span is one token on both sides.

        The spans tile what both tokenizers have byte for byte; `Scored.unread` says why it is not the whole reply.
        """
        read = self.rereader.read([reply.token_ids for reply in replies])
        asked = [at for at, one in enumerate(read) if one.teacher_ids]
        theirs = [replace(replies[at], token_ids=tuple(read[at].teacher_ids), logprobs=()) for at in asked]
        told = self.inner.score([samples[at] for at in asked], theirs)
        found = dict(zip(asked, told, strict=True))
        for sample, one in zip(samples, read, strict=True):
            self._warn(sample, one)
        return [self._ours(one, found.get(at)) for at, one in enumerate(read)]

    def _ours(self, read: Reread, theirs: Scored | None) -> Scored:
        if theirs is None:  # there is nothing to read
            none = torch.zeros(0)
            listed = none.reshape(0, 1)
            return Scored((), none, listed.long(), listed, alone=none.bool(), unread=read.reason)
        other_M = torch.from_numpy(read.spans.right)
        alone_S = torch.from_numpy(read.spans.alone())
        ids, values = self._matched(theirs, alone_S, alone_S[other_M])
        return Scored(
            tuple((start, end) for start, end in read.spans.left_ranges().tolist()),
            torch.zeros(read.spans.number).index_add_(0, other_M, theirs.logprobs.float()),
            topk_ids=ids,
            topk_logprobs=values,
            weight=theirs.weight,
            classes=self._classes,
            alone=alone_S,
            unread=read.reason,
        )

    def _matched(self, theirs: Scored, alone_S: Tensor, alone_M: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's lists as classes; what has no match, or belongs to a longer span, is absent."""
        assert theirs.topk_ids is not None
        assert theirs.topk_logprobs is not None
        ids_AK = self._matches(theirs.topk_ids)[alone_M]
        values_AK = theirs.topk_logprobs[alone_M].float().masked_fill(ids_AK < 0, -torch.inf)
        ids_AK, values_AK = joined(ids_AK.clamp(min=0), values_AK)
        ids_SK = ids_AK.new_zeros(len(alone_S), ids_AK.shape[1])
        values_SK = values_AK.new_full(ids_SK.shape, -torch.inf)
        ids_SK[alone_S], values_SK[alone_S] = ids_AK, values_AK
        return ids_SK, values_SK

    def _matches(self, ids_MK: Tensor) -> Tensor:
        """The class of each of the teacher's tokens, or -1. Where a tokenizer has a space that it puts before a text,
        the first token of a reply is another than in the middle: there, of the same bytes."""
        nobody = torch.full((1,), NO_CLASS)  # of what a padded output projection has besides the vocabulary
        everywhere = torch.cat([torch.from_numpy(self.rereader.classes[1]), nobody])
        ids_MK = ids_MK.clamp(max=len(everywhere) - 1)
        if self.rereader.vocabulary_at_start is self.rereader.vocabulary:
            return everywhere[ids_MK]
        at_start = torch.cat([torch.from_numpy(self.rereader.vocabulary_at_start), nobody])
        return torch.cat([at_start[ids_MK[:1]], everywhere[ids_MK[1:]]])

    @cached_property
    def _classes(self) -> Tensor:
        return torch.from_numpy(self.rereader.classes[0])

    def _warn(self, sample: Sample, read: Reread) -> None:
        """Once for each reason; metrics count them all."""
        if read.reason and read.reason not in self._told:
            self._told.add(read.reason)
            note = "%s: the teacher reads %d of the reply's tokens, no further (%s); align/%s counts such replies"
            log.warning(note, sample.id, read.readable, read.reason, read.reason)


def joined(ids_SK: Tensor, values_SK: Tensor) -> tuple[Tensor, Tensor]:
    """Lists in which an id stands once: of several entries, the first has their joint probability, the rest none."""
    ids_SK, order_SK = ids_SK.sort(dim=-1)
    values_SK = values_SK.gather(-1, order_SK)
    for place in range(ids_SK.shape[1] - 1, 0, -1):
        same_S = ids_SK[:, place] == ids_SK[:, place - 1]
        if same_S.any():
            both_S = torch.logaddexp(values_SK[:, place], values_SK[:, place - 1])
            values_SK[:, place - 1] = torch.where(same_S, both_S, values_SK[:, place - 1])
            values_SK[:, place] = values_SK[:, place].masked_fill(same_S, -torch.inf)
    return ids_SK, values_SK
