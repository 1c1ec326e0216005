"""Which token is heard in which audio frame, from the times of words."""

from collections.abc import Sequence

from rlspeech.types import Word

SILENCE = -1


def frame_labels(
    words: Sequence[Word], token_ids: Sequence[Sequence[int]], *, frames: int, frame_s: float
) -> list[int]:
    """A token id for each frame, SILENCE outside words. A word's tokens share its time evenly.

    A frame is labelled by what is heard at its middle. Raises ValueError where a word has no token ids.

    >>> frame_labels([Word("hello", 0.04, 0.2)], [[7, 8]], frames=6, frame_s=0.04)
    [-1, 7, 7, 8, 8, -1]
    """
    labels = [SILENCE] * frames
    for word, ids in zip(words, token_ids, strict=True):
        if not len(ids):
            raise ValueError(f"the word {word.text!r} has no tokens")
        share_s = (word.end_s - word.start_s) / len(ids)
        for frame in range(max(0, int(word.start_s / frame_s)), min(frames, int(word.end_s / frame_s) + 1)):
            middle_s = (frame + 0.5) * frame_s
            if word.start_s <= middle_s < word.end_s:
                labels[frame] = ids[min(len(ids) - 1, int((middle_s - word.start_s) / share_s))]
    return labels
