"""Who sits where on a cluster, how much memory that takes, and what is refused. Nothing is loaded."""

from dataclasses import replace
from io import StringIO
from itertools import product

import pytest
from rich.console import Console

from rlspeech.catalog import entries
from rlspeech.config import DistillConfig
from rlspeech.config_engines import DeepspeedConfig, VllmConfig
from rlspeech.errors import UserError
from rlspeech.recipe import load
from rlspeech.stages.machine import GIB, Machine
from rlspeech.stages.plan import check_can_run, make_plan
from rlspeech.stages.plan_fits import misfits, no_start
from rlspeech.stages.plan_memory import Rank, VllmEngine, zero_gib
from rlspeech.stages.plan_placement import Placement, in_process
from rlspeech.stages.plan_show import Plan, show

LAPTOP = Machine(memory_gib=24.0, gpus_gib=())
BILLION_GIB = 1e9 / GIB  # of a billion bytes
BIG = {"teacher": "llama-70b"}
RECIPES = ("phi4mm/distill", "phi4mm/distill_16x80")


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSPEECH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def planned(recipe="phi4mm/distill", here=LAPTOP, **flags: str) -> Plan:
    given = BIG | {name.replace("__", "."): value for name, value in flags.items()}
    return make_plan(load(DistillConfig, recipe, given), here)


def placed(recipe="phi4mm/distill", here=LAPTOP, **flags: str) -> Placement:
    placement = planned(recipe, here, **flags).placement
    assert placement is not None
    return placement


def refused(here=LAPTOP, **flags: str) -> list[str]:
    return list(misfits(placed(here=here, **flags), here))


def seats(placement: Placement) -> list[list[str]]:
    return [[role.name for role in device.roles] for device in placement.devices]


def printed(plan: Plan) -> str:
    out = StringIO()
    show(plan, Console(file=out, width=160, highlight=False))
    return out.getvalue()


def total(rank: Rank) -> float:
    return sum(rank.device_gib.values())


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.88)])
def test_a_rank_holds_what_the_zero_paper_tells(stage, gigabytes):
    """arXiv 1910.02054, figure 1: 7.5 billion parameters in 16 bits on 64 devices."""
    rank = zero_gib(7.5, 7.5, ranks=64, settings=DeepspeedConfig(zero=stage), bytes_each=2)
    assert total(rank) / BILLION_GIB == pytest.approx(gigabytes, rel=5e-3)


def test_in_float32_a_copy_is_kept_where_deepspeed_keeps_one():
    def optimizer(stage):
        settings = DeepspeedConfig(zero=stage)
        return zero_gib(1.0, 1.0, ranks=1, settings=settings, bytes_each=4).device_gib["optimizer"] / BILLION_GIB

    assert [optimizer(stage) for stage in (0, 1, 2, 3)] == pytest.approx([8, 12, 12, 8])


def test_offloading_moves_the_optimizer_and_the_parameters_to_the_host():
    settings = DeepspeedConfig(zero=3, offload_optimizer=True, offload_parameters=True)
    rank = zero_gib(8.0, 2.0, ranks=4, settings=settings, bytes_each=2)
    assert dict(rank.device_gib) == {"gradients": pytest.approx(2 * 2 / 4 * BILLION_GIB)}
    expected = {"weights": 2 * 8 / 4, "gradients": 4 * 2 / 4, "optimizer": 12 * 2 / 4}
    assert dict(rank.host_gib) == pytest.approx({name: size * BILLION_GIB for name, size in expected.items()})


def test_more_ranks_never_hold_more_each():
    for stage, offload, kept, lora in product((0, 1, 2, 3), ("false", "true"), ("false", "true"), ("none", "{}")):
        if stage == 0 and offload == "true":
            continue
        deepspeed = f"{{zero = {stage}, offload_optimizer = {offload}, activation_checkpointing = {kept}}}"
        sums = []
        for ranks in (1, 2, 3, 4, 8, 32):
            rank = placed(deepspeed=deepspeed, cluster__learners=str(ranks), lora=lora).rank
            assert rank is not None
            sums.append(total(rank))
        assert sums == sorted(sums, reverse=True), (stage, offload, kept, lora)


def test_a_rank_of_phi4mm_worked_by_hand():
    """ZeRO 2 over 2 ranks, bfloat16: the adapter (rank 320) and the projector learn."""
    rank = placed().rank
    adapter = 32 * 320 * (3072 + 5120 + 3072 + 3072 + 3072 + 16384 + 8192 + 3072)  # fused: qkv, o, gate and up, down
    learns = adapter + 2 * 3072**2
    parameters = entries()["phi4mm"].parameters * 1e9 + adapter
    tokens = 30 * 12.5 + 64 + 512
    assert rank is not None
    assert rank.host_gib == {}
    assert rank.device_gib == {
        "weights": pytest.approx(2 * parameters / GIB),
        "gradients": pytest.approx(2 * learns / 2 / GIB),
        "optimizer": pytest.approx(12 * learns / 2 / GIB),
        "activations": pytest.approx(34 * 4 * tokens * 3072 * 32 / GIB),
    }
    fewer = placed(deepspeed="{activation_checkpointing = true}").rank
    assert fewer is not None
    assert fewer.device_gib["activations"] == pytest.approx(4 * tokens * 3072 * (2 * 32 + 34) / GIB)


def test_a_70b_teacher_on_two_gpus_worked_by_hand():
    """70.55 billion parameters of 2 bytes are 131.4 GiB; a token's KV cache 2 x 80 x 8 x 128 x 2 bytes, 320 KiB."""
    one = VllmEngine(entries()["llama-70b"], VllmConfig(), gpu_gib=80.0)
    two = replace(one, tensor_parallel=2)
    assert one.weights_gib == pytest.approx(131.414, abs=1e-3)
    assert one.sequence_gib(4096) == 1.25
    assert (two.weights_gib, two.sequence_gib(4096)) == (pytest.approx(65.707, abs=1e-3), 0.625)
    assert two.cache_gib == pytest.approx(0.9 * 80 - 65.707, abs=1e-3)
    assert replace(one, tensor_parallel=16).sequence_gib(4096) == 1.25 / 8  # 8 KV heads: two GPUs hold each


def test_encoders_are_whole_on_every_gpu_of_an_engine():
    student = entries()["phi4mm"]
    half = VllmEngine(student, VllmConfig(), gpu_gib=80.0, tensor_parallel=2)
    assert half.weights_gib == pytest.approx(((student.parameters - student.rest) / 2 + student.rest) * 2 * BILLION_GIB)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("teacher", ["llama-70b", "qwen2.5-72b", "phi4-mini"])
def test_the_recipes_fit_their_gpus_with_activations_and_leave_none_idle(recipe, teacher):
    placement = placed(recipe, teacher=teacher)
    assert list(misfits(placement, LAPTOP)) == []
    assert len(placement.devices) == len(placement.gpus_gib) == placement.wanted
    assert all(device.roles and device.total_gib <= 80 for device in placement.devices)


def test_every_role_has_its_gpus():
    assert seats(placed()) == [
        ["learner 0"],
        ["learner 1"],
        ["rollouts 0"],
        ["rollouts 1"],
        *[[f"teacher 0, {part} of 4"] for part in (1, 2, 3, 4)],
    ]


def test_colocated_rollouts_sit_with_the_learners():
    placement = placed(cluster__colocated="true", cluster__gpus="7")
    assert seats(placement)[:3] == [["learner 0", "rollouts 0"], ["learner 1", "rollouts 1"], ["teacher 0, 1 of 4"]]
    assert seats(placement)[6] == []
    three = seats(placed(cluster__colocated="true", cluster__learners="3"))
    assert three[2:4] == [["learner 2"], ["teacher 0, 1 of 4"]]
    assert "nothing sits on GPU 6" in printed(planned(cluster__colocated="true", cluster__gpus="7"))


def test_several_teachers_are_each_placed_and_one_by_url_is_not():
    routes = '{sums = {model = "llama-8b"}, talk = {model = "http://127.0.0.1:1"}}'
    placement = placed(teachers=routes, cluster="{gpus = 4, gpu_gib = 80, teachers = 1}", teacher="http://x")
    assert seats(placement) == [["learner 0"], ["rollouts 0"], ["teacher 'sums' 0"], []]


def test_a_device_sums_its_roles_and_colocated_ones_take_turns():
    apart = placed(deepspeed="{zero = 3, offload_optimizer = true}", cluster__gpus="9")
    assert apart.devices[-1].name == "host"
    for device in apart.devices:
        assert device.total_gib == pytest.approx(sum(sum(role.memory_gib.values()) for role in device.roles))
    learner, rollouts = placed(cluster__colocated="true").devices[0].roles
    awake = learner.total_gib - learner.memory_gib["activations"] + rollouts.total_gib
    first = placed(cluster__colocated="true").devices[0]
    assert first.total_gib == pytest.approx(max(awake, learner.total_gib))
    assert first.total_gib < learner.total_gib + rollouts.total_gib


def test_without_a_gpu_all_roles_share_the_host():
    (host,) = placed(cluster="{learners = 2, teachers = 2, object_store_mib = 2048}", teacher="phi4-mini").devices
    roles = ["this process and Ray", "learner 0", "learner 1", "rollouts 0", "teacher 0", "teacher 1"]
    assert [role.name for role in host.roles] == roles
    assert host.roles[0].total_gib == 0.5 + 2
    assert dict(host.roles[4].memory_gib) == {
        "weights": pytest.approx(entries()["phi4-mini"].parameters * 4 * BILLION_GIB),  # float32 on a CPU
        "KV cache": 1.0,
        "runtime": 1.5,
    }
    assert host.size_gib == LAPTOP.memory_gib
    assert host.total_gib == pytest.approx(sum(role.total_gib for role in host.roles))


def test_a_teacher_too_large_for_its_gpus_is_told_by_how_much_and_what_would_do():
    assert refused(cluster__teacher_tensor_parallel="1") == [
        "teacher llama-70b needs 131 GiB of weights on 1 GPU of 80 GiB: 51 GiB too much; teacher_tensor_parallel = 2 "
        "would do"
    ]
    assert refused(cluster__teacher_tensor_parallel="2", cluster__gpu_gib="24") == [
        "teacher llama-70b needs 66 GiB of weights on each of 2 GPUs of 24 GiB: 42 GiB too much; "
        "teacher_tensor_parallel = 8 would do"
    ]


def test_gpus_that_are_too_few_are_counted():
    assert refused(cluster__learners="4") == [
        "10 GPUs wanted (4 learners, 2 rollouts, 4 for the teacher), 8 there: 2 too many"
    ]
    both = {"cluster__rollout_tensor_parallel": "2", "teachers": '{sums = {model = "llama-8b"}}'}
    assert refused(**both) == [
        "14 GPUs wanted (2 learners, 4 for 2 rollouts, 4 for the teacher, 4 for the teacher 'sums'), 8 there: "
        "6 too many"
    ]
    shared = {"cluster__colocated": "true", "vllm__gpu_memory_utilization": "0.8"}
    assert refused(**shared, cluster__gpus="5") == [
        "6 GPUs wanted (2 that learners and rollouts share, 4 for the teacher), 5 there: 1 too many"
    ]
    assert refused(**shared, cluster__rollout_workers="3") == [
        "colocated: the rollouts want 3 GPUs and the learners, which they share with, have 2: 1 too many"
    ]
    assert "not there" in printed(planned(cluster__learners="4"))


def test_heads_that_a_tensor_parallel_size_does_not_divide_are_refused():
    assert refused(cluster__rollout_tensor_parallel="3", cluster__rollout_workers="1", cluster__learners="1") == [
        "rollouts phi4mm: rollout_tensor_parallel = 3 does not divide its 24 heads and 8 KV heads; 1, 2, 4, "
        "8 or 24 would"
    ]


def test_an_engine_without_room_for_one_sequence_is_refused():
    """vLLM does not start with a KV cache that holds less than one sequence of max_model_len."""
    tight = {"cluster__teacher_tensor_parallel": "2", "vllm__gpu_memory_utilization": "0.82"}
    assert refused(**tight) == [
        "teacher llama-70b needs 66 GiB of weights and 0.62 GiB of KV cache for one sequence of vllm.max_model_len = "
        "4096, and vllm.gpu_memory_utilization = 0.82 gives 66 GiB of a GPU of 80 GiB: 0.73 GiB too much; "
        "teacher_tensor_parallel = 4 would do"
    ]
    line, _ = refused(vllm__max_model_len="20000000")  # 72 - 10.386 GiB hold 504,743 tokens of 128 KiB
    assert line.endswith(" too much; vllm.max_model_len = 504743 would do")


def test_the_engines_that_are_told_to_do_do():
    for parts, size, share in product((1, 2, 4), ("24", "40", "80"), ("0.5", "0.9")):
        given = {"cluster__gpu_gib": size, "vllm__gpu_memory_utilization": share, "cluster__gpus": "400"}
        told = [line for line in refused(cluster__teacher_tensor_parallel=str(parts), **given) if "teacher_" in line]
        for line in told:
            better = line.partition("teacher_tensor_parallel = ")[2].split()[0]
            after = refused(cluster__teacher_tensor_parallel=better, **given)
            assert not any(other.startswith("teacher") for other in after), (line, after)


def test_a_rank_that_cannot_hold_its_share_is_refused():
    whole = {"lora": "none", "deepspeed": "{zero = 0}", "cluster__gpu_gib": "40", "cluster__learners": "4"}
    assert refused(**whole, cluster__gpus="10") == [
        "learner phi4mm needs 61 GiB of weights, gradients and optimizer on each of 4 GPUs of 40 GiB: 21 GiB too much; "
        "deepspeed.zero = 1 would do"
    ]
    alone = whole | {"cluster__learners": "1"}
    assert refused(**alone, cluster__gpus="7")[0].endswith(
        "on 1 GPU of 40 GiB: 21 GiB too much; deepspeed.zero = 1 with deepspeed.offload_optimizer = true would do"
    )


def test_rollouts_that_wake_must_fit_beside_the_learner():
    both = {"cluster__colocated": "true", "lora": "none", "deepspeed": "{zero = 2}"}
    assert refused(**both) == [
        "colocated: rollouts that wake take 72 GiB (vllm.gpu_memory_utilization = 0.9) beside 36 GiB of the learner on "
        "a GPU of 80 GiB: 28 GiB too much; vllm.gpu_memory_utilization = 0.55 would do"
    ]
    assert refused(**both, vllm__gpu_memory_utilization="0.55") == []
    assert refused(**both, vllm__gpu_memory_utilization="0.56") != []


def test_a_host_without_room_for_what_is_offloaded_is_refused():
    here = Machine(memory_gib=32.0, gpus_gib=(80.0,) * 8)
    found = {"cluster": "{learners = 2, rollout_workers = 2, teacher_tensor_parallel = 4}"}
    offloaded = {"lora": "none", "deepspeed": "{zero = 2, offload_optimizer = true}"}
    (line,) = refused(here, **found, **offloaded)
    assert line == "the host is to hold 57 GiB that the learners offload and has 32 GiB: 25 GiB too much"
    assert refused(replace(here, memory_gib=64.0), **found, **offloaded) == []


def test_a_host_without_room_for_all_roles_is_refused():
    cluster = {"cluster": "{learners = 2}", "teacher": "phi4-mini", "vllm__max_model_len": "1024"}
    (line,) = refused(**cluster)
    assert line == (
        "without a GPU all roles share the host: 2 learners, 1 rollout engine, 1 engine of the teacher need 94 GiB, "
        "this machine has 24 GiB and no GPU: 70 GiB too much"
    )


def test_a_cache_on_a_cpu_that_holds_no_sequence_is_refused():
    here = Machine(memory_gib=2000.0, gpus_gib=())
    assert refused(here, cluster="{}", teacher="phi4-mini", vllm__max_model_len="8192") == [
        f"{role} needs 2 GiB of KV cache, vllm.kv_cache_gib = 1: 1 GiB too much; vllm.kv_cache_gib = 2 would do"
        for role in (
            "rollouts phi4mm: one sequence of vllm.max_model_len = 8192",
            "teacher phi4-mini: one sequence of vllm.max_model_len = 8192",
        )
    ]


def test_an_engine_in_this_process_must_hold_a_sequence_too():
    given = {"teacher": "phi4-mini", "cluster": "none", "engines.learner": "torch", "engines.teacher": "transformers"}
    config = load(DistillConfig, "phi4mm/distill", given | {"vllm.max_model_len": "8192"})
    plan = make_plan(config, LAPTOP)
    fleets = in_process(config, plan.models, plan.lengths, LAPTOP)
    (line,) = no_start(fleets.values(), LAPTOP)
    assert line in plan.problems
    assert line.startswith("rollouts phi4mm: one sequence of vllm.max_model_len = 8192 needs 2 GiB of KV cache")


def test_gpus_planned_for_that_this_machine_has_not_are_told():
    line = "8 GPUs of 80 GiB are planned for, this machine has no GPU; cluster.address names a cluster of others"
    assert line in planned().problems
    assert not any("planned for" in problem for problem in planned(cluster__address="auto").problems)
    server = Machine(2000.0, (79.6,) * 8)  # what an H100 of 80 GB tells
    assert not any("planned for" in problem for problem in planned(here=server).problems)
    assert any("planned for" in problem for problem in planned(here=Machine(2000.0, (40.0,) * 8)).problems)


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ("{gpus = 8}", "cluster.gpus = 8: no GPU is here to tell its memory; set cluster.gpu_gib too"),
        ("{gpu_gib = 80}", "cluster.gpu_gib = 80: no GPU is here to count; set cluster.gpus too"),
    ],
)
def test_gpus_told_by_half_are_refused(cluster, expected):
    with pytest.raises(UserError) as caught:
        planned(cluster=cluster)
    assert str(caught.value) == expected


def test_a_run_that_cannot_fit_is_refused_before_any_model_loads():
    config = load(DistillConfig, "phi4mm/distill", BIG | {"cluster.teacher_tensor_parallel": "1"})
    with pytest.raises(UserError, match="51 GiB too much; teacher_tensor_parallel = 2 would do"):
        check_can_run(config)


@pytest.mark.parametrize(("recipe", "gpus"), [(RECIPES[0], 8), (RECIPES[1], 16)])
def test_the_table_has_a_row_for_each_gpu(recipe, gpus):
    text = printed(planned(recipe))
    assert f"Placement and memory, GiB: an estimate for audio of 30 s; {gpus} GPUs of 80 GiB" in text
    rows = [line.split() for line in text.splitlines() if line.strip().startswith("GPU ")]
    assert [row[1] for row in rows] == [str(number) for number in range(gpus)]
    assert all(row[-1] == "80" for row in rows)
    assert rows[-1][-4:] == ["-", "39.15", "72.00", "80"]  # a quarter of llama-70b leaves so much of nine tenths
    assert "teacher: the KV cache of an engine holds 737 of the longest prompts with their replies, 696 tokens" in text
    assert max(map(len, text.splitlines())) <= 160


def test_a_refused_placement_is_still_printed():
    text = printed(planned(cluster__learners="4"))
    assert text.count("not there") == 2
    assert "  - 10 GPUs wanted (4 learners, 2 rollouts, 4 for the teacher), 8 there: 2 too many" in text


def test_the_tables_tell_turns_offloading_and_what_may_be_too_much():
    text = printed(planned(cluster__colocated="true", deepspeed="{zero = 3, offload_optimizer = true}"))
    assert "in turns" in text
    assert "learners: ZeRO 3, bfloat16, optimizer offloaded" in text
    assert "learner 1, offloaded" in text
    assert "GPU 0 comes to 109 GiB of 80, perhaps too many" in printed(planned(optim__micro_batch="32"))
