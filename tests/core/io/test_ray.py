"""Jobs on a Ray cluster of several nodes: every job once, errors as they are, and what is lost is done again."""

import functools
import resource
import socket
import sys
import threading
import time
import types
from contextlib import closing

import pytest

from mixbit.core import Engine, InvalidInput, MixbitError, check_engine
from mixbit.core.errors import InfeasibleBudget
from mixbit.core.io import ray_jobs
from mixbit.core.io.ray_jobs import on_ray
from tests.core.io.jobs import answering, check_kept, failing, faulting, lengthy, once, slowly

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*unclosed.*:ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(scope="module")
def cluster():
    """A head and another node, of one CPU each; the tests are its caller."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture
def engine(cluster):
    """Two workers; connected already, which saves seconds."""
    if not ray.is_initialized():
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    return Engine("ray", 2, cluster.address)


@pytest.fixture
def start(tmp_path):
    return functools.partial(answering, str(tmp_path / "started"))


def answered(start, jobs, engine):
    with on_ray(engine) as crew:
        yield from crew.answers(start, jobs)


def test_a_worker_keeps_what_it_frees_for_its_next_tensors(engine):
    assert dict(answered(faulting, [4], engine))[4] < 2**26 // resource.getpagesize()


def test_every_job_is_answered_once(cluster, start, tmp_path):
    ray.shutdown()
    engine = Engine("ray", 2, cluster.address)
    answers = list(answered(start, range(40), engine))
    assert sorted(job for job, _ in answers) == list(range(40))
    assert all(answer == job**2 for job, (answer, _) in answers)
    assert {process for _, (_, process) in answers} <= {*map(int, (tmp_path / "started").read_text().split())}
    assert not ray.is_initialized(), "the connection ends with the jobs"


def test_workers_are_kept_from_their_preparation_on(engine, tmp_path):
    with on_ray(engine) as crew:
        check_kept(crew, tmp_path)


def test_work_amid_other_work_takes_the_same_workers(engine, start, tmp_path):
    with on_ray(engine) as crew, closing(crew.answers(functools.partial(slowly, 0.5), range(4))) as answers:
        first = dict([next(answers)])
        assert dict(crew.answers(start, range(8))).keys() == {*range(8)}
        assert first | dict(answers) == {job: job**2 for job in range(4)}
    assert len({*(tmp_path / "started").read_text().split()}) <= 2


def test_what_is_killed_or_hangs_is_done_by_another(engine, tmp_path):
    jobs = ["die", "sleep", *map(str, range(20))]
    began = time.monotonic()
    answers = dict(answered(functools.partial(once, str(tmp_path)), jobs, engine))
    assert answers.keys() == {*jobs}
    assert all(answer == job for job, (answer, _) in answers.items())
    assert time.monotonic() - began < 300, "nobody waits for the one that sleeps"


@pytest.mark.slow
def test_errors_of_jobs_arrive_as_they_are(engine, start):
    with pytest.raises(InfeasibleBudget, match="no plan") as error:
        list(answered(start, [-1], engine))
    assert error.value.binding == (2,)


@pytest.mark.slow
def test_a_failing_start_names_the_node(engine):
    with pytest.raises(MixbitError, match=r"^node [\d.]+: ZeroDivisionError: at the start"):
        list(answered(failing, [1], engine))


@pytest.mark.slow
def test_a_worker_that_cannot_import_the_start_says_so(engine, monkeypatch):
    module = types.ModuleType("only_here")
    exec("def start(): return abs", module.__dict__)
    module.start.__module__ = "only_here"
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(MixbitError, match=r"^node [\d.]+: ModuleNotFoundError: No module named 'only_here'"):
        list(answered(module.start, [1], engine))


@pytest.mark.parametrize("name", ["mixbit", pytest.param("torch", marks=pytest.mark.slow)])
def test_a_node_with_another_version_is_refused_by_name(engine, start, monkeypatch, name):
    others = ray_jobs.versions() | {name: "0.0.1"}
    monkeypatch.setattr(ray_jobs, "versions", lambda: others)
    with pytest.raises(InvalidInput, match=rf"^node [\d.]+ has {name} \S+, and the caller 0\.0\.1"):
        list(answered(start, [1], engine))


@pytest.mark.slow
def test_a_job_that_ends_its_workers_is_named(engine, start, monkeypatch):
    monkeypatch.setattr(ray_jobs, "MOST_LOSSES", 2)
    with pytest.raises(MixbitError, match=r"^node [\d.]+: 2 workers ended with the job -2.*the same call continues"):
        list(answered(start, [-2], engine))


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1:1", "no Ray cluster answers there within 15 s .*refused"),
        ("ray://127.0.0.1:1", "no Ray cluster answers there within 15 s .*refused"),
        ("somewhere", "give auto, HOST:PORT, or ray://HOST:PORT"),
    ],
)
def test_an_address_where_nothing_answers_is_told_at_once(start, address, problem):
    ray.shutdown()
    with pytest.raises(InvalidInput, match=f"--ray-address {address}: {problem}"):
        list(answered(start, [1], Engine("ray", 2, address)))
    with pytest.raises(InvalidInput, match=f"--ray-address {address}: {problem}"):
        check_engine(Engine("ray", 2, address))


def test_auto_is_the_cluster_of_this_machine_or_none(cluster, monkeypatch):
    ray.shutdown()
    check_engine(Engine("ray", 2, "auto"))
    ray_jobs._check_answers.cache_clear()
    monkeypatch.setattr(ray_jobs.subprocess, "run", lambda *_, **__: types.SimpleNamespace(returncode=1))
    with pytest.raises(InvalidInput, match="--ray-address auto: no Ray cluster answers there within 15 s"):
        check_engine(Engine("ray", 2, "auto"))


@pytest.mark.slow
def test_something_that_listens_and_is_no_cluster_is_told_within_20_s(start):
    ray.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(InvalidInput, match="though something listens"):
            list(answered(start, [1], Engine("ray", 2, address)))
        assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_node_that_goes_takes_no_answer_along(cluster, engine, start):
    node = cluster.add_node(num_cpus=4)
    timer = threading.Timer(15, cluster.remove_node, (node, False))
    timer.start()
    jobs = [number / 8 for number in range(160)]
    answers = dict(answered(functools.partial(slowly, 0.5), jobs, Engine("ray", 6, cluster.address)))
    timer.join()
    assert answers == {job: job**2 for job in jobs}


@pytest.mark.slow
def test_what_does_not_fit_the_object_store_goes_to_the_disk():
    """Ray's smallest store, 75 MB, with a start and answers of 90 MB each."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    store = {"num_cpus": 2, "include_dashboard": False, "object_store_memory": 80 * 10**6}
    small, length = Cluster(initialize_head=True, head_node_args=store), 90 * 10**6
    try:
        engine = Engine("ray", 2, small.address)
        found = {}
        for job, answer in answered(functools.partial(lengthy, bytes(length)), range(4), engine):
            found[job] = len(answer), answer[0], answer[-1]
        assert found == {job: (length, job, job) for job in range(4)}
    finally:
        ray.shutdown()
        small.shutdown()
