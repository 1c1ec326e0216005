"""Every student family on two ranks of DeepSpeed's ZeRO 3 learns what one process learns, audio or none."""

from dataclasses import replace
from typing import Any

import pytest
from families.common import Folder
from ranks import Case, batches_of, check_alike, in_one_process, student_of


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "lora", "encoder"),
    [("align", None, True), ("distill", {"rank": 4, "alpha": 8.0, "dropout": 0.0}, False)],
    ids=["encoder", "adapter"],
)
def test_ranks_with_and_without_audio_keep_in_step(
    family: str, pair: Any, folders: Folder, stage: str, lora, encoder: bool
) -> None:
    """Audio of several windows, of one, and none meet in one turn: all ranks gather the same parameters.

    An adapter around the language model hangs on no family; one within the model does.
    """
    if not encoder and family not in ("tiny", "phi4mm", "granite_speech"):
        pytest.skip("its adapter is peft's around the language model, as that of tiny")
    case = Case(folders(), stage=stage, lora=lora, train_encoder=encoder, lr=1e-3, steps=2, micro_batch=1)
    case = replace(case, silent=(0, 1), longest_s=70.0, windows_at_once=1)
    batches = batches_of(case, student_of(case), ranks=2)
    heard_s = [sum(len(wave) for p in batch.features for wave in p.features or ()) / 16_000 for batch in batches]
    turns = list(zip(heard_s[::2], heard_s[1::2], strict=True))
    assert any(max(turn) > 60 and 0 < min(turn) < 2 for turn in turns)
    assert any(max(turn) > 0 and min(turn) == 0 for turn in turns)
    expected = in_one_process(case)
    still = {name for name, moved in expected.moved.items() if not moved}
    assert len(still) < len(expected.moved) / 4, still
    check_alike(pair(replace(case, settings={"zero": 3})), expected, weight=0.005)
