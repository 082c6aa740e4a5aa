"""--engine ray on a real cluster of several nodes on this machine, one of which is killed in the
middle.
"""

import pytest

from tests.extract.engines.conftest import command, digests, ended, start, wait_for_shards

pytestmark = pytest.mark.slow
cluster_utils = pytest.importorskip("ray.cluster_utils", reason="the package ray is not installed")


@pytest.fixture
def cluster():
    """Return a cluster of a head without CPUs for tasks and two nodes of two each."""
    found = cluster_utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    yield found
    found.shutdown()


def test_a_cluster_makes_the_same_cache(raw, undisturbed, tmp_path, cluster):
    for _ in range(2):
        cluster.add_node(num_cpus=2)
    code, output, errors = ended(
        start(command(raw, tmp_path, "--engine", "ray"), RAY_ADDRESS=cluster.address)
    )
    assert code == 0, errors
    assert "ray: 2 pairs of CPUs on 3 nodes, 16 parts" in output
    assert "2,400 rows in = 2,327 rows out + 73 quarantined" in output
    assert digests(tmp_path) == undisturbed


def test_a_cluster_makes_the_caches_of_several_teachers(raw, undisturbed, tmp_path, cluster):
    cluster.add_node(num_cpus=2)
    words = command(raw, tmp_path, "--engine", "ray", "--teacher", "RN-mini-32/random:1")
    code, output, errors = ended(start(words, RAY_ADDRESS=cluster.address))
    assert code == 0, errors
    assert output.count("2,400 rows in = 2,327 rows out + 73 quarantined") == 2
    assert digests(tmp_path / "ResNet-mini-64_random_0") == undisturbed


def test_parts_of_a_node_that_dies_are_done_on_another(raw, undisturbed, tmp_path, cluster):
    nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
    whole = start(command(raw, tmp_path, "--engine", "ray"), RAY_ADDRESS=cluster.address)
    wait_for_shards(tmp_path, 10, whole)
    cluster.remove_node(nodes[0], allow_graceful=False)
    code, output, errors = ended(whole)
    assert code == 0, errors
    assert "2,327 rows out" in output
    assert digests(tmp_path) == undisturbed


def test_a_mistake_of_the_user_is_one_line(raw, tmp_path, cluster):
    cluster.add_node(num_cpus=2)
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/manifest.json").write_text("{}")
    code, _, errors = ended(
        start(command(raw, tmp_path, "--engine", "ray"), RAY_ADDRESS=cluster.address)
    )
    assert code == 1
    assert errors.strip().splitlines()[-1].startswith("Error: ")
    assert "manifest.json" in errors.strip().splitlines()[-1]
