"""Which role of a cluster sits on which device, and what each device holds.

On GPUs: a rank of the learner has one, a rollout engine `rollout_tensor_parallel`, a teacher's engine
`teacher_tensor_parallel`. Colocated rollout engines sit on the ranks' GPUs and take turns with them: the engine sleeps
while the ranks learn. Without a GPU all roles share the memory of the host.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from rlspeech.catalog import Resolved
from rlspeech.config import OnPolicyStage
from rlspeech.config_engines import ClusterConfig
from rlspeech.errors import UserError
from rlspeech.stages.machine import Machine
from rlspeech.stages.plan_memory import Lengths, Rank, Role, VllmEngine, learnt, rank_gib

VLLM_RUNTIME_GIB = 1.5  # on a CPU: what a vLLM process holds beside weights and KV cache
TORCH_RUNTIME_GIB = 0.5  # of any other process of ours
ROLLOUTS = "rollouts"


@dataclass(frozen=True)
class Device:
    """A GPU, or the host. `size_gib` None: not known; 0: it is wanted and not there."""

    name: str
    size_gib: float | None
    roles: tuple[Role, ...] = ()
    in_turns: bool = False  # the first role learns while the others sleep

    @property
    def total_gib(self) -> float:
        """The most that is held at one time."""
        if not self.in_turns:
            return sum(role.total_gib for role in self.roles)
        return max(self.roles[0].total_gib, self.awake_gib)

    @property
    def certain_gib(self) -> float:
        """Of that, what is no estimate."""
        return sum(role.certain_gib for role in self.roles)

    @property
    def awake_gib(self) -> float:
        """Taking turns: what is held while the others are awake and the first role waits."""
        return self.roles[0].certain_gib + sum(role.total_gib for role in self.roles[1:])


@dataclass(frozen=True)
class Fleet:
    """The vLLM engines of one model, all alike. `engine` is None where the model's shape is not known."""

    name: str
    setting: str | None  # of [cluster], which tells the GPUs of one engine; None in one process
    model: Resolved
    count: int
    tensor_parallel: int
    tokens: int  # of the longest prompt and reply
    engine: VllmEngine | None

    @property
    def gpus(self) -> int:
        return self.count * self.tensor_parallel

    def roles(self, runtime_gib: float = 0.0) -> list[Role]:
        """One for each GPU (each process, on a CPU), engine by engine."""
        memory = dict(self.engine.memory_gib) if self.engine else {}
        if memory and runtime_gib:
            memory["runtime"] = runtime_gib
        parts = self.tensor_parallel
        return [
            Role(f"{self.name} {i}" + (f", {part + 1} of {parts}" if parts > 1 else ""), memory, reserved=True)
            for i in range(self.count)
            for part in range(parts)
        ]


@dataclass(frozen=True)
class Placement:
    config: OnPolicyStage
    devices: tuple[Device, ...]
    gpus_gib: tuple[float, ...]  # planned for; none on a CPU
    wanted: int  # GPUs
    student: Resolved
    rank: Rank | None
    fleets: tuple[Fleet, ...]  # the rollouts, then the teachers

    @property
    def cluster(self) -> ClusterConfig:
        assert self.config.cluster is not None
        return self.config.cluster

    @property
    def total_gib(self) -> float:
        return sum(device.total_gib for device in self.devices)

    @property
    def smallest_gib(self) -> float:
        return min(self.gpus_gib)


def place(config: OnPolicyStage, models: Mapping[str, Resolved], lengths: Lengths, here: Machine) -> Placement:
    """`models` by role: "student" and the teachers that are no URL.

    Raises UserError where the GPUs to plan for are told by half.
    """
    cluster = config.cluster
    assert cluster is not None
    gpus = planned_gpus(cluster, here)
    student = models["student"]
    on_gpu = bool(gpus)
    rank = student.entry and rank_gib(config, student.entry, lengths.student, ranks=cluster.learners, on_gpu=on_gpu)
    fleets = tuple(_fleets(config, cluster, models, lengths, min(gpus, default=None)))
    wanted = sum(fleet.gpus for fleet in fleets) + cluster.learners
    if cluster.colocated:
        wanted = max(cluster.learners, fleets[0].gpus) + sum(fleet.gpus for fleet in fleets[1:])
    empty = Placement(config, (), gpus, wanted, student, rank, fleets)
    devices = (*_gpus(empty), *_offloaded(empty, here)) if gpus else (_host(empty, here),)
    return replace(empty, devices=devices)


def planned_gpus(cluster: ClusterConfig, here: Machine) -> tuple[float, ...]:
    """Memory of each GPU to plan for, in GiB: as the recipe says, else those of this machine."""
    count = len(here.gpus_gib) if cluster.gpus is None else cluster.gpus
    if cluster.gpus is None and cluster.gpu_gib and not here.gpus_gib:
        raise UserError(f"cluster.gpu_gib = {cluster.gpu_gib:g}: no GPU is here to count; set cluster.gpus too")
    if count and not (cluster.gpu_gib or here.gpus_gib):
        raise UserError(f"cluster.gpus = {count}: no GPU is here to tell its memory; set cluster.gpu_gib too")
    if cluster.gpus is None and not cluster.gpu_gib:
        return here.gpus_gib
    return (cluster.gpu_gib or min(here.gpus_gib),) * count if count else ()


def in_process(
    config: OnPolicyStage, models: Mapping[str, Resolved], lengths: Lengths, here: Machine
) -> dict[str, Fleet]:
    """vLLM engines of one process, by role; on a GPU where there is one."""
    gpu_gib = max(here.gpus_gib, default=None)
    found = {}
    for role, model in models.items():
        kind = config.engines.rollouts if role == "student" else config.engines.teacher
        if kind == "vllm":
            tokens = lengths.student if role == "student" else lengths.teacher
            engine = model.entry and VllmEngine(model.entry, config.vllm, gpu_gib)
            found[role] = Fleet(ROLLOUTS if role == "student" else role, None, model, 1, 1, tokens, engine)
    return found


def _fleets(
    config: OnPolicyStage,
    cluster: ClusterConfig,
    models: Mapping[str, Resolved],
    lengths: Lengths,
    gpu_gib: float | None,
) -> list[Fleet]:
    def fleet(name: str, role: str, model: Resolved, count: int, parts: int, tokens: int) -> Fleet:
        adapter = (
            learnt(config, model.entry)[0] if model.entry and name == ROLLOUTS and cluster.sync == "adapter" else 0
        )
        engine = model.entry and VllmEngine(model.entry, config.vllm, gpu_gib, parts, adapter)
        return Fleet(name, f"{role}_tensor_parallel", model, count, parts, tokens, engine)

    student, parts = models["student"], cluster.teacher_tensor_parallel
    return [
        fleet(ROLLOUTS, "rollout", student, cluster.rollout_workers, cluster.rollout_tensor_parallel, lengths.student),
        *(
            fleet(name, "teacher", model, cluster.teachers, parts, lengths.teacher)
            for name, model in models.items()
            if name != "student"
        ),
    ]


def _gpus(plan: Placement) -> list[Device]:
    """The GPUs planned for, and those that are wanted beyond them."""
    cluster = plan.cluster
    memory = plan.rank.device_gib if plan.rank else {}
    seats: list[list[Role]] = [[] for _ in range(max(plan.wanted, len(plan.gpus_gib)))]
    for number in range(cluster.learners):
        seats[number].append(Role(f"learner {number}", memory))
    free = 0 if cluster.colocated else cluster.learners
    for fleet in plan.fleets:
        for seat, role in enumerate(fleet.roles(), start=free):
            seats[seat].append(role)
        free = max(free + fleet.gpus, cluster.learners)
    sizes = (*plan.gpus_gib, *[0.0] * len(seats))
    return [Device(f"GPU {i}", sizes[i], tuple(roles), len(roles) > 1) for i, roles in enumerate(seats)]


def _offloaded(plan: Placement, here: Machine) -> list[Device]:
    """The host of the ranks, where it holds anything. What it has is known where the GPUs are this machine's."""
    if not plan.rank or not plan.rank.host_gib:
        return []
    size = here.memory_gib if plan.cluster.gpus is None else None
    ranks = range(plan.cluster.learners)
    return [Device("host", size, tuple(Role(f"learner {number}, offloaded", plan.rank.host_gib) for number in ranks))]


def _host(plan: Placement, here: Machine) -> Device:
    """Everything is a process of this machine."""
    runtime = {"runtime": TORCH_RUNTIME_GIB}
    memory = {}
    if plan.rank:  # what is offloaded goes from the host to the host
        columns = [*plan.rank.device_gib, *plan.rank.host_gib]
        both = {name: plan.rank.device_gib.get(name, 0) + plan.rank.host_gib.get(name, 0) for name in columns}
        memory = both | runtime
    stage = TORCH_RUNTIME_GIB
    if plan.cluster.address is None:
        stage += plan.cluster.object_store_mib / 1024
    roles = [
        Role("this process and Ray", {"runtime": stage}),
        *(Role(f"learner {number}", memory) for number in range(plan.cluster.learners)),
        *(role for fleet in plan.fleets for role in fleet.roles(VLLM_RUNTIME_GIB)),
    ]
    return Device("host", here.memory_gib, tuple(roles))
