import json
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console

from rlspeech.catalog import entries
from rlspeech.config import AlignConfig, DistillConfig, RlbrConfig, SftConfig
from rlspeech.config_dpo import DpoConfig
from rlspeech.errors import UserError
from rlspeech.recipe import load
from rlspeech.stages.machine import GIB, Machine, machine
from rlspeech.stages.plan import check_can_run, longest_audio_s, make_plan
from rlspeech.stages.plan_memory import activations_gib, kv_gib, learner_gib
from rlspeech.stages.plan_problems import check_engines
from rlspeech.stages.plan_show import show

LAPTOP = Machine(memory_gib=16.0, gpus_gib=())
SERVER = Machine(memory_gib=2000.0, gpus_gib=(80.0, 80.0))
ONE_PROCESS = {  # phi4mm/distill is a recipe for a cluster
    "cluster": "none",
    **{f"engines.{role}": "transformers" for role in ("rollouts", "teacher")},
    "engines.learner": "torch",
}


@pytest.fixture(autouse=True)
def _empty_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("RLSPEECH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def train(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text('{"duration_s": 4.0}\nnot json\n[1]\n{"duration": 10}\n{"duration_s": "x"}\n')
    return path


def config(train, kind=DistillConfig, **flags: str):
    given = {"student": "tiny", "run_dir": "x", "data.train": str(train), "optim.steps": "3"}
    if kind is DistillConfig:
        given["teacher"] = "tiny-llm"
    return load(kind, None, given | {name.replace("__", "."): value for name, value in flags.items()})


def printed(plan) -> str:
    out = StringIO()
    show(plan, Console(file=out, width=160))
    return out.getvalue()


def test_the_longest_audio_of_the_first_rows_is_taken(train, tmp_path):
    assert longest_audio_s(train) == 10.0
    assert longest_audio_s(tmp_path / "none.jsonl") is None
    (tmp_path / "bare.jsonl").write_text("{}\n")
    assert longest_audio_s(tmp_path / "bare.jsonl") is None


def test_memory_of_a_role_follows_from_shapes(train):
    plan = make_plan(config(train, optim__micro_batch="2", sampling__n="3", sampling__max_tokens="36"), LAPTOP)
    learner, rollouts, teacher = (role.memory_gib for role in plan.roles)
    tiny = entries()["tiny"]
    adapter = 30 * 16 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))  # layers, rank, sides of seven layers
    learns = adapter + 2 * 576**2
    assert learner["weights"] == pytest.approx(4 * (tiny.parameters * 1e9 + adapter) / GIB)
    assert learner["gradients"] == pytest.approx(4 * learns / GIB)
    assert learner["optimizer"] == pytest.approx(8 * learns / GIB)
    tokens = 250 + 64 + 36  # ten seconds of audio, the instruction, the reply
    assert learner["activations"] == pytest.approx(activations_gib(tiny, 6, tokens))
    assert rollouts == {"KV cache": pytest.approx(kv_gib(tiny, 24, tokens))}
    assert teacher["KV cache"] == pytest.approx(kv_gib(entries()["tiny-llm"], 32, 40 + 64 + 36))


def test_without_an_adapter_the_whole_language_model_learns(train):
    plan = make_plan(config(train, kind=SftConfig, lora="none"), LAPTOP)
    tiny = entries()["tiny"]
    language_model = (tiny.parameters - tiny.rest) * 1e9
    assert plan.roles[0].memory_gib["gradients"] == pytest.approx(4 * (language_model + 2 * 576**2) / GIB)


def test_align_learns_the_projector_and_on_request_the_encoder(train):
    small, large = (
        make_plan(config(train, kind=AlignConfig, train_encoder=value), LAPTOP).roles[0].memory_gib["optimizer"]
        for value in ("false", "true")
    )
    assert small == pytest.approx(8 * 2 * 576**2 / GIB)
    assert large == pytest.approx(8 * entries()["tiny"].rest * 1e9 / GIB)


def test_the_tiny_pair_lacks_nothing_on_a_laptop(train):
    plan = make_plan(config(train), LAPTOP)
    assert plan.problems == ()
    assert plan.not_in_cache == ()
    assert "nothing: it can run" in printed(plan)
    check_can_run(config(train))


def test_dpo_learns_from_two_replies_a_pair_however_many_are_sampled():
    online = {"online": "true", "sampling.n": "6"}
    kept, fresh = (make_plan(load(DpoConfig, "tiny/dpo", given), LAPTOP) for given in ({}, online))
    assert "8 steps of 12 pairs = 96 pairs" in printed(kept)
    assert "8 steps of 12 audios x 6 replies = 576 replies of at most 24 tokens" in printed(fresh)
    pair, group = (
        learner_gib(load(config, f"tiny/{verb}", {"sampling.n": "6"}), entries()["tiny"], 100)["activations"]
        for config, verb in ((DpoConfig, "dpo"), (RlbrConfig, "rlbr"))
    )
    each = load(DpoConfig, "tiny/dpo", {}).optim.micro_batch / load(RlbrConfig, "tiny/rlbr", {}).optim.micro_batch
    assert pair / group == pytest.approx(2 / 6 * each)


def test_a_plan_names_models_data_work_memory_and_what_is_missing():
    text = printed(make_plan(load(DistillConfig, "phi4mm/distill", {"teacher": "llama-70b", **ONE_PROCESS}), LAPTOP))
    for part in (
        "llama-70b  70.55 B parameters, bfloat16  meta-llama/Llama-3.3-70B-Instruct: not in the cache",
        "starts from the checkpoint of 'sft'",
        "1,000 steps of 64 audios = 64,000 replies of at most 512 tokens",
        "this machine has 16 GiB and no GPU",
        "131.41",
        "llama-70b needs about 131 GiB for its weights alone (not in the cache)",
        "teacher: cross-tokenizer (phi4-mini of the student, llama3 of the teacher)",
        "teacher: reverse_kl on the top 64 tokens where a token stands alone on both sides, elsewhere the sampled k1",
        "data.train: no data/phi4mm/instructions.jsonl, and no data.synth to make it",
    ):
        assert part in text


def test_a_machine_with_room_is_not_told_that_it_lacks_memory():
    recipe = load(DistillConfig, "phi4mm/distill", {"teacher": "llama-70b", **ONE_PROCESS})
    assert not any("GiB" in problem for problem in make_plan(recipe, SERVER).problems)
    gpus_only = Machine(memory_gib=8.0, gpus_gib=(80.0, 80.0))
    assert any("and GPUs of 80, 80 GiB" in problem for problem in make_plan(recipe, gpus_only).problems)


def test_models_that_fit_alone_but_not_together_are_refused(train):
    recipe = config(train, student="qwen2-audio", teacher="qwen2.5-7b")
    problems = make_plan(recipe, Machine(memory_gib=20.0, gpus_gib=())).problems
    assert any(problem.startswith("weights, gradients and optimizer need about 3") for problem in problems)


def test_one_tokenizer_is_told():
    plan = make_plan(load(DistillConfig, "phi4mm/distill", {"teacher": "phi4-mini"}), SERVER)
    assert plan.scores == ("teacher: one tokenizer (phi4-mini); reverse_kl",)


def test_two_tokenizers_that_are_not_here_cannot_be_measured():
    plan = make_plan(load(DistillConfig, "phi4mm/distill", {"teacher": "llama-70b"}), SERVER, measure=True)
    assert plan.scores[2] == "teacher: one-to-one share not measured: phi4mm and llama-70b not at hand"


def test_two_tokenizers_want_samples_of_the_student_as_it_is():
    recipe = load(DistillConfig, "phi4mm/distill", {"teacher": "llama-70b", "sampling.temperature": "0.7"})
    assert any(
        "sampling wants temperature 1 and top_p 1, got 0.7 and 1" in p for p in make_plan(recipe, SERVER).problems
    )


def test_what_stands_against_a_run_is_one_line():
    with pytest.raises(UserError) as caught:
        check_can_run(load(DistillConfig, "phi4mm/distill", {"teacher": "qwen2.5-72b", **ONE_PROCESS}))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("distill cannot run here: ")
    assert line.endswith(" more, listed by --dry-run")


def test_data_is_here_or_made_or_missing(train, tmp_path):
    (tmp_path / "synth.toml").write_text("stage = 'synth'")
    flags = {"data__tests__voice": str(tmp_path / "voice.jsonl")}
    plan = make_plan(config(train, **flags), LAPTOP)
    assert [come for _, come in plan.data.values()] == ["here", "missing"]
    assert plan.problems == (f"data.tests.voice: no {tmp_path}/voice.jsonl, and no data.synth to make it",)
    made = make_plan(config(train, **flags, data__synth=str(tmp_path / "synth.toml")), LAPTOP)
    assert made.data["tests.voice"][1].startswith("made by `rlspeech synth ")
    assert made.problems == ()
    with pytest.raises(UserError, match="no such recipe"):
        make_plan(config(train, **flags, data__synth=str(tmp_path / "no.toml")), LAPTOP)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"student": "tny"}, "tny: no speech model of this name"),
        ({"teacher": "llama-70"}, "did you mean 'llama-70b'?"),
        ({"loss": "reverse_k"}, "--loss: no loss 'reverse_k'; did you mean 'reverse_kl'?"),
        ({"loss": "mine.py:Loss"}, "--loss: no such file mine.py"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_is_planned(train, flags, expected):
    with pytest.raises(UserError) as caught:
        make_plan(config(train, **flags), LAPTOP)
    assert expected in str(caught.value)


def test_vllm_in_process_holds_a_copy_of_its_own(train):
    both = {"engines__rollouts": "vllm", "engines__teacher": "vllm", "vllm__kv_cache_gib": "2"}
    _, rollouts, teacher = make_plan(config(train, **both), LAPTOP).roles
    sizes = [4 * entries()[name].parameters * 1e9 / GIB for name in ("tiny", "tiny-llm")]  # float32 on a CPU
    assert rollouts.memory_gib == {"weights": pytest.approx(sizes[0]), "KV cache": 2.0}
    assert teacher.memory_gib == {"weights": pytest.approx(sizes[1]), "KV cache": 2.0}


def test_two_vllm_engines_cannot_both_fill_one_gpu(train):
    both = {"engines__rollouts": "vllm", "engines__teacher": "vllm"}
    gpu = Machine(memory_gib=2000.0, gpus_gib=(80.0,))
    (problem,) = make_plan(config(train, **both), gpu).problems
    assert problem.startswith(
        "weights, gradients, optimizer and the KV caches of vLLM need about 145 GiB, this machine"
    )
    assert make_plan(config(train, **both, vllm__gpu_memory_utilization="0.4"), gpu).problems == ()


def test_packages_of_the_engines_are_looked_for(train, monkeypatch):
    monkeypatch.setattr("rlspeech.stages.plan_problems.find_spec", lambda name: None if name in ABSENT else name)
    given = {"engines__rollouts": "vllm", "engines__learner": "deepspeed", "cluster": "{}"}
    assert "not installed: vllm, deepspeed, ray" in make_plan(config(train, **given), LAPTOP).problems
    assert make_plan(config(train), LAPTOP).problems == ()
    by_url = config(train, teacher="http://127.0.0.1:1", engines__teacher="vllm")
    assert make_plan(by_url, LAPTOP).problems == ()


ABSENT = ("vllm", "deepspeed", "ray")


def test_a_teacher_by_url_is_not_resolved_and_has_no_memory_here(train):
    routes = '{sums = {model = "https://me:secret@teacher.example/v1"}, talk = {model = "tiny-llm"}}'
    plan = make_plan(config(train, teacher="http://127.0.0.1:8000", teachers=routes), LAPTOP)
    assert list(plan.models) == ["student", "teacher 'talk'"]
    assert [role.name for role in plan.roles] == ["learner: student", "rollouts: student", "teacher 'talk'"]
    rows = [line.split() for line in printed(plan).splitlines() if "by URL" in line]
    assert rows == [
        ["teacher", "by", "URL", "http://127.0.0.1:8000", "no", "memory", "here"],
        ["teacher", "'sums'", "by", "URL", "https://teacher.example/v1", "no", "memory", "here"],
    ]


CLUSTER = {
    "engines__rollouts": "vllm",
    "engines__teacher": "vllm",
    "engines__learner": "deepspeed",
    "cluster": "{learners = 2}",
}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"engines__learner": "torch"}, "[cluster] wants engines.learner = 'deepspeed', got 'torch'"),
        ({"engines__rollouts": "transformers"}, "[cluster] wants engines.rollouts = 'vllm', got 'transformers'"),
        (
            {"engines__teacher": "transformers"},
            "[cluster] wants engines.teacher = 'vllm' or a URL as teacher, got 'transformers' for tiny-llm",
        ),
        (
            {"cluster": "none"},
            "engines.learner = 'deepspeed': ranks are Ray actors; add a [cluster] table (learners = 1 for one)",
        ),
        (
            {"max_policy_lag": "1", "cluster": "{colocated = true}"},
            "max_policy_lag = 1 with cluster.colocated: rollouts and learners take turns, so sampling cannot run "
            "ahead; set max_policy_lag = 0 or colocated = false",
        ),
        (
            {"cluster": "{learners = 2, colocated = true, rollout_tensor_parallel = 2}"},
            "cluster.rollout_tensor_parallel = 2 with cluster.colocated: an engine shares the one GPU of a learner; "
            "set rollout_tensor_parallel = 1 or colocated = false",
        ),
        (
            {"lora": "none", "cluster": '{sync = "adapter"}'},
            "cluster.sync = 'adapter' without [lora]: there is no adapter to send; set 'merged'",
        ),
        (
            {"optim__batch": "1"},
            "optim.batch = 1 is less than cluster.learners = 2: a rank would have nothing to learn from",
        ),
        ({"deepspeed__offload_parameters": "true"}, "deepspeed.offload_parameters wants deepspeed.zero = 3, got 2"),
        (
            {"deepspeed": "{zero = 0, offload_optimizer = true}"},
            "deepspeed.offload_optimizer wants deepspeed.zero = 1, 2 or 3, got 0",
        ),
        (
            {"sampling__max_tokens": "4096"},
            "sampling.max_tokens = 4096 leaves no room for a prompt in vllm.max_model_len = 4096",
        ),
    ],
)
def test_engines_that_cannot_go_together_are_one_line(train, flags, expected):
    together = config(train, **CLUSTER)
    assert list(check_engines(together)) == []
    apart = config(train, **(CLUSTER | flags))
    assert list(check_engines(apart)) == [expected]
    assert expected in make_plan(apart, LAPTOP).problems


def test_sampling_runs_ahead_on_a_cluster_only(train):
    assert list(check_engines(config(train, max_policy_lag="2"))) == [
        "max_policy_lag = 2: sampling runs ahead on a cluster; add a [cluster] table"
    ]
    assert list(check_engines(config(train, max_policy_lag="2", **CLUSTER))) == []


def test_a_url_serves_a_cluster_whatever_the_teachers_engine(train):
    given = CLUSTER | {"teacher": "http://127.0.0.1:8000", "engines__teacher": "transformers"}
    assert list(check_engines(config(train, **given))) == []


def test_this_machine_has_memory():
    assert machine().memory_gib > 0.5


def test_a_dry_run_loads_no_model_and_no_torch(train):
    code = (
        "import sys; from rlspeech.cli import main\n"
        f"rc = main(['distill', 'phi4mm/distill', '--teacher', 'llama-70b', '--data.train', {json.dumps(str(train))},"
        " '--dry-run'])\n"
        "print(rc, [m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 []", done.stderr
