"""A teacher with another tokenizer: it reads the student's bytes in its own tokens, and its answers come in spans.

Any teacher will do: it is asked about token ids of its own. S spans of a reply, T the student's tokens, M the
teacher's, K top tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from rlspeech.engines.retokenise import Reread, Rereader
from rlspeech.protocols import Teacher
from rlspeech.types import Completion, Sample, Scored

log = logging.getLogger(__name__)


@dataclass
class CrossTeacher:
    """`inner` tells its top tokens (it has no `head`): they are matched with the student's by their bytes."""

    inner: Teacher
    rereader: Rereader
    _told: set[str] = field(default_factory=set, repr=False)  # reasons that were warned of

    def messages(self, sample: Sample) -> list[dict[str, str]]:
        return self.inner.messages(sample)

    def head(self) -> None:
        """None: two vocabularies have no common axis."""

    def reply(self, samples: Sequence[Sample], *, max_tokens: int) -> list[str]:
        return self.inner.reply(samples, max_tokens=max_tokens)

    def score(self, samples: Sequence[Sample], replies: Sequence[Completion]) -> list[Scored]:
        """Log-probs [S] of spans; top tokens [S, K] in the student's ids where a span is one token on both sides.

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
            alone=alone_S,
            unread=read.reason,
        )

    def _matched(self, theirs: Scored, alone_S: Tensor, alone_M: Tensor) -> tuple[Tensor, Tensor]:
        """The teacher's lists in the student's ids; what has no match, or belongs to a longer span, is absent."""
        assert theirs.topk_ids is not None
        assert theirs.topk_logprobs is not None
        ids_MK = self._matches(theirs.topk_ids)
        absent_AK = ids_MK[alone_M] < 0
        ids_AK = ids_MK[alone_M].clamp(min=0)
        values_AK = theirs.topk_logprobs[alone_M].float().masked_fill(absent_AK, -torch.inf)
        ids_SK = ids_AK.new_zeros(len(alone_S), ids_AK.shape[1])
        values_SK = values_AK.new_full(ids_SK.shape, -torch.inf)
        ids_SK[alone_S], values_SK[alone_S] = ids_AK, values_AK
        return ids_SK, values_SK

    def _matches(self, ids_MK: Tensor) -> Tensor:
        """The student's token of the same bytes for each of the teacher's, or -1; no two of them have the same."""
        nobody = torch.full((1,), -1)  # of what a padded output projection has besides the vocabulary
        everywhere, at_start = (
            torch.cat([torch.from_numpy(table), nobody])
            for table in (self.rereader.vocabulary, self.rereader.vocabulary_at_start)
        )
        ids_MK = ids_MK.clamp(max=len(everywhere) - 1)
        return torch.cat([at_start[ids_MK[:1]], everywhere[ids_MK[1:]]])

    def _warn(self, sample: Sample, read: Reread) -> None:
        """Once for each reason; metrics count them all."""
        if read.reason and read.reason not in self._told:
            self._told.add(read.reason)
            note = "%s: the teacher reads %d of the reply's tokens, no further (%s); align/%s counts such replies"
            log.warning(note, sample.id, read.readable, read.reason, read.reason)
