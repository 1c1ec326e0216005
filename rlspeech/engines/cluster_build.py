"""The engines of a recipe on Ray: DeepSpeed ranks, vLLM engines that write, vLLM engines that score."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlspeech.catalog import is_url
from rlspeech.config import DistillConfig, OnPolicyStage, TeacherConfig
from rlspeech.config_dpo import PairsConfig
from rlspeech.config_engines import ClusterConfig
from rlspeech.engines.build import Engines, Writers, build_reader, build_teachers, reading_of, schedule
from rlspeech.engines.cluster import Actor, Cluster
from rlspeech.engines.cluster_learner import ClusterLearner, Task
from rlspeech.engines.cluster_rollouts import ClusterRollouts
from rlspeech.engines.cluster_teacher import ClusterTeacher
from rlspeech.engines.loading import StudentPlace
from rlspeech.engines.measure import Objective
from rlspeech.engines.pool import Pool
from rlspeech.engines.vllm_engine import Layout
from rlspeech.engines.weight_transfer import backend
from rlspeech.engines.workers import RolloutWorker, TeacherWorker
from rlspeech.protocols import Teacher

log = logging.getLogger(__name__)


@contextmanager
def build_on_cluster(
    config: OnPolicyStage, settings: ClusterConfig, place: StudentPlace, prepare: Mapping[str, Any]
) -> Iterator[Engines]:
    """All roles load side by side. After the block no process of the run is left."""
    with _site(config, settings, learners=settings.learners) as site:
        if settings.colocated and not site.cluster.gpus:
            log.info("cluster.colocated: there is no GPU to take turns on, so sleeping and waking do nothing")
        student = place.load(weights=False)
        lora = config.lora.rank if config.lora and settings.sync == "adapter" else 0
        rollouts = site.rollouts(place, adapter_rank=lora)
        teacher = build_teachers(config, student, site.teacher) if isinstance(config, DistillConfig) else None
        learner = site.learner(config, place, prepare)
        site.await_start()
        learner.await_start()
        yield Engines(student, rollouts, learner, teacher, interrupt=site.cluster.interrupt)


@contextmanager
def build_writers_on_cluster(config: PairsConfig, settings: ClusterConfig, place: StudentPlace) -> Iterator[Writers]:
    """As above, with nobody who learns."""
    with _site(config, settings, learners=0) as site:
        student = place.load(weights=False)
        rollouts = site.rollouts(place)
        teacher = build_reader(config, student, site.teacher) if config.teacher else None
        site.await_start()
        yield Writers(student, rollouts, teacher)


@contextmanager
def _site(config: OnPolicyStage | PairsConfig, settings: ClusterConfig, *, learners: int) -> Iterator[Site]:
    cores = config.threads or len(os.sched_getaffinity(0))
    cluster = Cluster.start(settings, threads=cores)
    try:
        site = Site(config, settings, cluster, cores, learners)
        cluster.place(site.bundles)
        yield site
    finally:
        cluster.close()


class Site:
    """Who sits where. GPUs are reserved in the order: learners, rollout workers where apart, teachers."""

    def __init__(
        self, config: OnPolicyStage | PairsConfig, settings: ClusterConfig, cluster: Cluster, cores: int, learners: int
    ) -> None:
        self.config, self.settings, self.cluster, self.cores, self.learners = config, settings, cluster, cores, learners
        self.pools: list[Pool] = []
        self.own_rollouts = 0 if settings.colocated else settings.rollout_workers
        served = [config.teacher] if isinstance(config, DistillConfig | PairsConfig) and config.teacher else []
        if isinstance(config, DistillConfig):
            served += [route.model for route in config.teachers.values()]
        self.next_teacher = learners + self.own_rollouts
        self.bundles = [
            *[1] * learners,
            *[settings.rollout_tensor_parallel] * self.own_rollouts,
            *[settings.teacher_tensor_parallel] * (settings.teachers * sum(not is_url(model) for model in served)),
        ]

    def await_start(self) -> None:
        for pool in self.pools:
            pool.await_start()

    def threads(self, workers: int) -> int:
        """CPU threads of each worker of a role, whose workers work at the same time."""
        return max(1, self.cores // workers)

    def learner(self, config: OnPolicyStage, place: StudentPlace, prepare: Mapping[str, Any]) -> ClusterLearner:
        ranks = self.learners
        task = Task(
            place,
            prepare,
            schedule(config),
            config.deepspeed,
            Objective.of(config),
            seed=config.seed,
            threads=self.threads(ranks),
        )
        return ClusterLearner.begin(self.cluster, ranks, task, gpus=0.5 if self.settings.colocated else 1)

    def rollouts(self, place: StudentPlace, *, adapter_rank: int = 0) -> ClusterRollouts:
        settings, config = self.settings, self.config
        layout = Layout(
            tensor_parallel=settings.rollout_tensor_parallel,
            threads=self.threads(settings.rollout_workers),
            adapter_rank=adapter_rank,
            colocated=settings.colocated,
            transfer=backend(gpus=self.cluster.gpus, colocated=settings.colocated),
        )

        def make(number: int) -> Actor:
            gpus, bundle = (0.5, number) if settings.colocated else (layout.tensor_parallel, self.learners + number)
            arguments = (place, config.vllm, layout)
            return self.cluster.actor(RolloutWorker, *arguments, name=f"rollout {number}", gpus=gpus, bundle=bundle)

        pool = self._pool("rollout", make, settings.rollout_workers)
        return ClusterRollouts(
            pool,
            config.vllm.max_num_seqs,
            bucket_mib=settings.sync_bucket_mib,
            adapter_only=settings.sync == "adapter",
            colocated=settings.colocated,
            tensor_parallel=layout.tensor_parallel,
            transfer=layout.transfer,
        )

    def teacher(
        self, config: DistillConfig | PairsConfig, folder: Path, reading: TeacherConfig, top_k: int | None
    ) -> Teacher:
        """Workers of one teacher. `top_k` says how it stands among others: a served teacher always has its own."""
        settings, first = self.settings, self.next_teacher
        self.next_teacher += settings.teachers
        layout = Layout(
            tensor_parallel=settings.teacher_tensor_parallel, threads=self.threads(settings.teachers), teacher=True
        )
        how = reading_of(reading)

        def make(number: int) -> Actor:
            arguments = (folder, how, top_k or reading.top_k, config.vllm, layout)
            place = {"gpus": layout.tensor_parallel, "bundle": first + number}
            return self.cluster.actor(TeacherWorker, *arguments, name=f"teacher {number}", **place)

        return ClusterTeacher(self._pool("teacher", make, settings.teachers), how, config.vllm.max_num_seqs)

    def _pool(self, role: str, make: Any, size: int) -> Pool:
        pool = Pool.begin(role, self.cluster, make, size)
        self.pools.append(pool)
        return pool
