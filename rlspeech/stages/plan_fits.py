"""What of a placement cannot fit: a line for each, which says by how much and what would do.

Activations are estimates, so that only what is certain is refused: weights, gradients, optimizer, and the memory that a
vLLM engine takes when it starts.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from math import ceil, floor

from rlspeech.stages.machine import Machine
from rlspeech.stages.plan_memory import VllmEngine, rank_gib
from rlspeech.stages.plan_placement import ROLLOUTS, Fleet, Placement

LARGEST = 64  # tensor-parallel size, and number of ranks, that a remedy is looked for in


def misfits(plan: Placement, here: Machine) -> Iterator[str]:
    """Lines about what the devices planned for cannot hold."""
    if not plan.gpus_gib:
        yield from _host_misfits(plan, here)
        yield from (line for fleet in plan.fleets if (line := _short_cache(fleet)))
        return
    yield from _too_many(plan)
    yield from _rank_misfits(plan)
    for fleet in plan.fleets:
        line = _undivided(fleet) or _heavy(fleet, plan.smallest_gib) or _no_sequence(fleet, plan.smallest_gib)
        if line:
            yield line
        elif fleet is plan.fleets[0]:
            yield from _not_beside(plan, fleet)


def no_start(fleets: Iterable[Fleet], here: Machine) -> Iterator[str]:
    """Lines about engines of one process that hold no sequence. Whether weights fit is told with all else it holds."""
    for fleet in fleets:
        size_gib = max(here.gpus_gib, default=0.0)
        line = _no_sequence(fleet, size_gib) if size_gib else _short_cache(fleet)
        if line and not (size_gib and fleet.engine and fleet.engine.weights_gib > size_gib):
            yield line


def absent(plan: Placement, here: Machine) -> Iterator[str]:
    """GPUs that are planned for and that the cluster, which this machine alone would be, has not got."""
    cluster, planned = plan.cluster, len(plan.gpus_gib)
    if cluster.address is not None or cluster.gpus is None or not planned:
        return
    fit = [gib for gib in here.gpus_gib if round(gib) >= round(plan.smallest_gib)]
    if len(fit) < planned:
        there = f"GPUs of {', '.join(f'{gib:.0f}' for gib in here.gpus_gib)} GiB" if here.gpus_gib else "no GPU"
        yield (
            f"{planned} GPUs of {plan.smallest_gib:.0f} GiB are planned for, this machine has {there}; "
            "cluster.address names a cluster of others"
        )


def _too_many(plan: Placement) -> Iterator[str]:
    cluster, rollouts = plan.cluster, plan.fleets[0]
    there = len(plan.gpus_gib)
    if cluster.colocated and rollouts.gpus > cluster.learners:
        over = rollouts.gpus - cluster.learners
        yield (
            f"colocated: the rollouts want {rollouts.gpus} GPUs and the learners, which they share with, have "
            f"{cluster.learners}: {over} too many"
        )
    if plan.wanted <= there:
        return
    learners = f"{cluster.learners} {_plural('learner', cluster.learners)}"
    parts = [learners, *(_share(fleet) for fleet in plan.fleets)]
    if cluster.colocated:
        parts[:2] = [f"{max(rollouts.gpus, cluster.learners)} that learners and rollouts share"]
    yield f"{plan.wanted} GPUs wanted ({', '.join(parts)}), {there} there: {plan.wanted - there} too many"


def _share(fleet: Fleet) -> str:
    """As `2 rollouts`, `4 for 2 rollouts`, `4 for the teacher`."""
    if fleet.name == ROLLOUTS:
        engines = f"{fleet.count} {_plural('rollout', fleet.count)}"
        return engines if fleet.tensor_parallel == 1 else f"{fleet.gpus} for {engines}"
    return f"{fleet.gpus} for the {fleet.name}"


def _rank_misfits(plan: Placement) -> Iterator[str]:
    size = plan.smallest_gib
    learners = [role for device in plan.devices for role in device.roles if role.name == "learner 0"]
    needed = sum(role.certain_gib for role in learners)
    if needed > size:
        each = f"each of {plan.cluster.learners} GPUs" if plan.cluster.learners > 1 else "1 GPU"
        yield (
            f"learner {plan.student.name} needs {_gib(needed)} of weights, gradients and optimizer on {each} of "
            f"{size:.0f} GiB: {_gib(needed - size)} too much; {_lighter_rank(plan)}"
        )
    for device in plan.devices:
        size_gib, held = device.size_gib, device.certain_gib
        if device.name == "host" and size_gib is not None and held > size_gib:
            yield (
                f"the host is to hold {_gib(held)} that the learners offload and has {size_gib:.0f} GiB: "
                f"{_gib(held - size_gib)} too much"
            )


def _lighter_rank(plan: Placement) -> str:
    """The mildest setting with which the ranks fit: a higher stage of ZeRO, offloading, more ranks."""
    entry, ranks = plan.student.entry, plan.cluster.learners
    assert entry is not None
    config = plan.config
    now = config.deepspeed.model_dump()
    ways = [({"zero": stage}, ranks) for stage in range(config.deepspeed.zero + 1, 4) if ranks > 1]
    offloaded = {"offload_optimizer": True}
    ways += [({"zero": max(1, config.deepspeed.zero)} | offloaded, ranks), ({"zero": 3} | offloaded, ranks)]
    ways += [({"zero": 3}, more) for more in range(ranks + 1, LARGEST + 1)]
    for changes, count in ways:
        settings = type(config.deepspeed).model_validate(now | changes)
        rank = rank_gib(config.model_copy(update={"deepspeed": settings}), entry, 1, ranks=count, on_gpu=True)
        if sum(gib for name, gib in rank.device_gib.items() if name != "activations") <= plan.smallest_gib:
            words = [f"deepspeed.{key} = {str(value).lower()}" for key, value in changes.items() if now[key] != value]
            words += [f"learners = {count}"] * (count != ranks)
            return f"{' with '.join(words)} would do"
    return "no stage of ZeRO and no number of learners would do"


def _undivided(fleet: Fleet) -> str | None:
    engine = fleet.engine
    if engine is None or engine.divides:
        return None
    sizes = [n for n in range(1, LARGEST + 1) if replace(engine, tensor_parallel=n).divides]
    heads = f"{engine.entry.heads} heads and {engine.entry.kv_heads} KV heads"
    return (
        f"{fleet.name} {fleet.model.name}: {fleet.setting} = {fleet.tensor_parallel} does not divide its {heads}; "
        f"{_or(sizes)} would"
    )


def _heavy(fleet: Fleet, size_gib: float) -> str | None:
    engine, parts = fleet.engine, fleet.tensor_parallel
    if engine is None or engine.weights_gib <= size_gib:
        return None
    on = "1 GPU" if parts == 1 else f"each of {parts} GPUs"
    return (
        f"{fleet.name} {fleet.model.name} needs {_gib(engine.weights_gib)} of weights on {on} of {size_gib:.0f} GiB: "
        f"{_gib(engine.weights_gib - size_gib)} too much; {_wider(fleet) or 'no tensor-parallel size would do'}"
    )


def _no_sequence(fleet: Fleet, size_gib: float) -> str | None:
    """vLLM starts only with room for one sequence of max_model_len."""
    engine = fleet.engine
    if engine is None or _starts(engine):
        return None
    assert engine.share_gib is not None
    settings = engine.settings
    sequence = engine.sequence_gib(settings.max_model_len)
    over = engine.weights_gib + sequence - engine.share_gib
    room = engine.share_gib - engine.weights_gib
    shorter = floor(room / engine.sequence_gib(1)) if room > 0 else 0
    fuller = ceil((engine.weights_gib + sequence) / size_gib * 100) / 100
    remedy = _wider(fleet) or (
        f"vllm.max_model_len = {shorter} would do"
        if shorter >= fleet.tokens
        else f"vllm.gpu_memory_utilization = {fuller:g} would do"
        if fuller <= 0.95
        else "no setting of vLLM would do"
    )
    return (
        f"{fleet.name} {fleet.model.name} needs {_gib(engine.weights_gib)} of weights and {_gib(sequence)} of KV cache "
        f"for one sequence of vllm.max_model_len = {settings.max_model_len}, and vllm.gpu_memory_utilization = "
        f"{settings.gpu_memory_utilization:g} gives {_gib(engine.share_gib)} of a GPU of {size_gib:.0f} GiB: "
        f"{_gib(over)} too much; {remedy}"
    )


def _not_beside(plan: Placement, rollouts: Fleet) -> Iterator[str]:
    """Colocated: the engine that wakes takes its whole share beside what the learner keeps."""
    engine = rollouts.engine
    if not plan.cluster.colocated or engine is None or plan.rank is None:
        return
    size, share = plan.smallest_gib, engine.share_gib
    assert share is not None
    kept = sum(gib for name, gib in plan.rank.device_gib.items() if name != "activations")
    if share + kept <= size or kept > size:
        return
    largest = floor((size - kept) / size * 100) / 100
    settings = engine.settings.model_copy(update={"gpu_memory_utilization": largest})
    others = [replace(fleet.engine, settings=settings) for fleet in plan.fleets if fleet.engine]
    fits = largest > 0 and all(_starts(other) for other in others)
    yield (
        f"colocated: rollouts that wake take {_gib(share)} (vllm.gpu_memory_utilization = "
        f"{engine.settings.gpu_memory_utilization:g}) beside {_gib(kept)} of the learner on a GPU of {size:.0f} GiB: "
        f"{_gib(share + kept - size)} too much; "
        + (
            f"vllm.gpu_memory_utilization = {largest:g} would do"
            if fits
            else f"colocated = false would do, with {plan.wanted + rollouts.gpus} GPUs"
        )
    )


def _host_misfits(plan: Placement, here: Machine) -> Iterator[str]:
    (host,) = plan.devices
    needed = host.certain_gib
    if needed > here.memory_gib:
        counts = [(plan.cluster.learners, "learner"), (plan.fleets[0].count, "rollout engine")]
        counts += [(fleet.count, f"engine of the {fleet.name}") for fleet in plan.fleets[1:]]
        roles = ", ".join(f"{count} {_plural(name, count)}" for count, name in counts)
        yield (
            f"without a GPU all roles share the host: {roles} need {_gib(needed)}, {here}: "
            f"{_gib(needed - here.memory_gib)} too much"
        )


def _short_cache(fleet: Fleet) -> str | None:
    """On a CPU."""
    engine = fleet.engine
    if engine is None:
        return None
    if not engine.divides:
        return _undivided(fleet)
    sequence = engine.sequence_gib(engine.settings.max_model_len)
    if sequence <= engine.cache_gib:
        return None
    return (
        f"{fleet.name} {fleet.model.name}: one sequence of vllm.max_model_len = {engine.settings.max_model_len} needs "
        f"{_gib(sequence)} of KV cache, vllm.kv_cache_gib = {engine.cache_gib:g}: {_gib(sequence - engine.cache_gib)} "
        f"too much; vllm.kv_cache_gib = {ceil(sequence * 10) / 10:g} would do"
    )


def _wider(fleet: Fleet) -> str | None:
    """The smallest larger tensor-parallel size with which an engine starts."""
    assert fleet.engine is not None
    if fleet.setting is None:
        return None
    for parts in range(fleet.tensor_parallel + 1, LARGEST + 1):
        wider = replace(fleet.engine, tensor_parallel=parts)
        if wider.divides and _starts(wider):
            return f"{fleet.setting} = {parts} would do"
    return None


def _starts(engine: VllmEngine) -> bool:
    """Whether its share of a GPU holds its weights and one sequence."""
    assert engine.share_gib is not None
    return engine.weights_gib + engine.sequence_gib(engine.settings.max_model_len) <= engine.share_gib


def _gib(gib: float) -> str:
    """
    >>> _gib(131.41), _gib(2.34), _gib(0.041)
    ('131 GiB', '2.3 GiB', '0.041 GiB')
    """
    return f"{gib:.0f} GiB" if gib >= 10 else f"{gib:.2g} GiB"


def _plural(word: str, count: int) -> str:
    """
    >>> _plural("engine of the teacher", 2)
    'engines of the teacher'
    """
    first, of, rest = word.partition(" of ")
    return f"{first}{'s' * (count != 1)}{of}{rest}"


def _or(numbers: list[int]) -> str:
    """
    >>> _or([1, 2, 4])
    '1, 2 or 4'
    """
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
