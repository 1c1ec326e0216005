"""Ray as a run uses it: on loopback alone, by an address, and gone afterwards."""

import subprocess
import sys

import psutil
import pytest

from rlspeech.config_engines import ClusterConfig
from rlspeech.engines.cluster import Cluster
from rlspeech.errors import UserError


def listening() -> dict[str, set[str]]:
    """Addresses that this process and all that it has started listen on, by process."""
    found: dict[str, set[str]] = {}
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            name = f"{process.pid} {process.name()}"
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(name, set()).add(connection.laddr.ip)
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return found


def test_every_port_of_ray_is_on_loopback(cluster: Cluster) -> None:
    addresses = listening()
    assert any("gcs_server" in line for line in addresses)
    assert set().union(*addresses.values()) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}, addresses


JOIN = """
import sys
from rlspeech.config_engines import ClusterConfig
from rlspeech.engines.cluster import Cluster, Worker

class Adder(Worker):
    def add(self, a, b):
        return a + b

cluster = Cluster.start(ClusterConfig(address=sys.argv[1]), threads=1)
actor = cluster.actor(Adder, name="adder 0")
print(cluster.all({actor.call("add", 20, 22): actor}))
cluster.close()
"""


def test_a_running_cluster_is_joined_by_its_address_and_left_running(cluster: Cluster) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    done = subprocess.run([sys.executable, "-c", JOIN, address], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[42]"
    assert ray.cluster_resources()["CPU"] >= 2  # it still answers


def test_an_address_where_nothing_answers_is_one_line() -> None:
    code = (
        "from rlspeech.config import ClusterConfig; from rlspeech.engines.cluster import Cluster; "
        "Cluster.start(ClusterConfig(address='127.0.0.1:1'), threads=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"{UserError.__module__}.UserError: cluster.address = '127.0.0.1:1': no Ray cluster answers")


@pytest.mark.parametrize("setting", ["rollout_workers", "learners", "teachers"])
def test_every_role_has_at_least_one_worker(setting: str) -> None:
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        ClusterConfig(**{setting: 0})
