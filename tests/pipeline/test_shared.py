"""Runs whose table and plans are shared out: the same as in one process, resumed by any number, refused in time."""

import functools
from contextlib import closing

import pytest

import mixbit as mb
from mixbit.core import Engine, InvalidInput, Journal, MaxDrop, MixbitError, runtime_threads
from mixbit.graph import Case
from mixbit.pipeline import auto, network
from mixbit.pipeline.others import Others
from mixbit.pipeline.settings import Settings
from mixbit.pipeline.trials import Scoring, Trying, cheapest_plan, searched_plan
from mixbit.quantization import calibrate
from mixbit.quantization.shared import Shared
from mixbit.targets import latency
from tests.pipeline.shared_run import agreeing, case, given, score, setup

#: A drop that needs many plans, on data of which few are answered wrongly.
DROP = mb.Budget(max_drop=0.04)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Latencies are taken from few rounds."""
    monkeypatch.setattr(latency, "ROUNDS", 3)


@pytest.fixture
def run(tmp_path):
    """Run auto_quantize with target packed, shared out, into the folder `name`; further arguments are settings."""

    def call(name="out", engine=Engine(), budget=DROP, plan=None, target="packed", **settings):  # noqa: B008 frozen
        model, calibration, evaluation = given()
        return mb.auto_quantize(
            model,
            calibration,
            target=target,
            budget=budget,
            plan=plan,
            out=tmp_path / name,
            eval_batches=evaluation,
            settings=Settings(**settings),
            shared=Shared(setup, engine),
        )

    return call


def assert_same_files(one, two):
    for name in ("plan.json", "sensitivity.json", "model.safetensors"):
        assert (one.folder / name).read_bytes() == (two.folder / name).read_bytes(), name
    assert one.result.chosen == two.result.chosen


class Tried:
    """Plans tried by so many processes, each once, with what a search in this process makes of them."""

    def __init__(self, engine, how, journal=None):
        graph, batches, evaluation, task = case()
        self.calibration = calibrate(graph, batches)
        self.table = mb.measure(graph, self.calibration, target="packed", task=task)
        self.case = Case(graph, batches, task, 0, evaluation)
        self.journal = journal or Journal()
        answers = functools.partial(Shared(case, engine).answers, how, self.case, self.calibration)
        self.others = Others(answers, self.journal, engine.processes)

    def scoring(self, score):
        data = self.case.evaluation
        return Scoring(self.case.graph, data, self.case.task, never, score, journal=self.journal, others=self.others)


def never(plan):
    raise AssertionError("simulated in this process")


@pytest.mark.slow
def test_two_processes_choose_what_plain_trials_choose_and_end_what_hangs():
    tried = Tried(Engine(processes=2), Trying(None, "nearest", "at_once", agreeing, 3.0))

    def simulate(plan):
        return mb.quantize(tried.case.graph, plan, tried.calibration)

    plain = Scoring(tried.case.graph, tried.case.evaluation, tried.case.task, simulate, agreeing)
    drop = MaxDrop(0.04)
    with closing(tried.others):
        found = cheapest_plan(tried.table, tried.scoring(agreeing), drop)
        assert found == cheapest_plan(tried.table, plain, drop)
        assert tried.journal.scores.items() >= plain.journal.scores.items(), "some are tried ahead"
        with pytest.raises(MixbitError) as error:
            tried.scoring(agreeing).simulated(found[0])
    assert str(error.value) == f"the evaluation of {found[0].made_by} took more than 3.0 s (--eval-timeout)"


@pytest.mark.parametrize("count", [1, 3, 4])
def test_autoq_in_rounds_learns_the_same_from_any_order_of_answers(count):
    pytest.importorskip("stable_baselines3")
    graph, batches, _, task = case()
    calibration = calibrate(graph, batches)
    table = mb.measure(graph, calibration, target="packed", task=task, metric="weight_error")
    score = Trying(1.0, "nearest", "at_once", None, None)(Case(graph, batches, task), calibration)

    def answers(trials):
        while some := [trial for trial in (next(trials) for _ in range(count)) if trial is not None]:
            yield from ((trial, score(trial)) for trial in reversed(some))

    def simulate(plan):
        return mb.quantize(graph, plan, calibration)

    journal, budget, method = Journal(), mb.Budget(mean_bits=4), "autoq:episodes=9,parallel=4"
    plain = Scoring(graph, batches, task, simulate)
    others = Scoring(graph, batches, task, never, journal=journal, others=Others(answers, journal, count))
    found = searched_plan(table, lambda: others, budget, method)
    assert found == searched_plan(table, lambda: plain, budget, method)
    assert journal.scores == plain.journal.scores


@pytest.mark.slow
def test_a_run_begun_in_one_process_goes_on_in_two_and_ends_alike(run, tmp_path, monkeypatch, caplog):
    whole = run("whole")
    with monkeypatch.context() as patched:
        patched.setattr(auto, "deploy", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run("half")
    journal = tmp_path / "half.trials.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert len(lines) == 1 + int(whole.result.chosen.partition(" plans were tried")[0].rpartition("; ")[2])
    journal.write_text("".join(lines[: len(lines) // 2]))
    with caplog.at_level("INFO", "mixbit"):
        half = run("half", Engine(processes=2))
    assert "tried plans in" in caplog.text
    assert_same_files(whole, half)
    assert not journal.exists()


@pytest.mark.slow
@pytest.mark.parametrize("engine", [Engine(processes=2), Engine(processes=4), Engine("ray", 2)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"score": score, "equalize": False, "samples": 100},
        {"rounding": "gptq", "budget": mb.Budget(max_drop=0.1)},
        {"budget": mb.Budget(mean_bits=4), "search": "autoq:episodes=20,parallel=4", "eval_subset_ratio": 0.5},
        {"target": "onnxruntime"},
        {"target": "openvino"},
    ],
)
def test_every_engine_ends_as_one_process_does(run, engine, settings):
    if engine.name == "ray":
        pytest.importorskip("ray")
    drop = {"budget": mb.Budget(max_drop=0.5)} if "score" in settings else {}
    one, two = run("one", **settings | drop), run("two", engine, **settings | drop)
    assert one.plan == two.plan
    assert one.result.chosen == two.result.chosen
    assert one.result.deployed["weight_bytes"] == two.result.deployed["weight_bytes"]


@pytest.mark.slow
def test_other_weights_in_a_worker_are_named(tmp_path):
    model, calibration, evaluation = given()
    shared = Shared(functools.partial(setup, 0.5), Engine(processes=2))
    with pytest.raises(InvalidInput, match="setup: returns other weights than at the caller"):
        mb.auto_quantize(
            model,
            calibration,
            target="packed",
            budget=DROP,
            out=tmp_path / "out",
            eval_batches=evaluation,
            shared=shared,
        )


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (
            {"budget": mb.Budget(mean_bits=4), "metric": "hawq"},
            "shared: metric hawq is measured at once, and search ilp tries no plans at once, so that nothing can be",
        ),
        (
            {"budget": mb.Budget(mean_bits=4), "metric": "hawq", "search": "autoq"},
            r"take a metric that is a mean over samples, as fisher, or --search autoq:parallel=4, or leave shared out",
        ),
        (
            {"budget": mb.Budget(mean_bits=4), "prune_channels": 0.3, "target": "onnxruntime"},
            "prune_channels=0.3: other processes do not prune",
        ),
        ({"score": lambda model, batches: 0.0}, r"score: cannot go to other processes \(.*functions at a module's top"),
    ],
)
def test_what_cannot_be_shared_out_is_refused_at_once(run, monkeypatch, options, problem):
    monkeypatch.setattr(network, "capture_all", None)
    with pytest.raises(InvalidInput, match=problem):
        run("out", Engine(processes=2), **options)


def test_of_a_plan_that_is_given_blocks_are_shared_out_where_some_are_learned(run, monkeypatch):
    graph = mb.capture(given()[0], given()[1][0][0])
    table = mb.measure(graph, [x for x, _ in given()[1]], target="packed", metric="weight_error")
    plan, answers, shared_out = mb.search(table, mb.Budget(mean_bits=4)), Shared.answers, []

    def counted(self, work, case, calibration, jobs):
        for job, answer in answers(self, work, case, calibration, jobs):
            shared_out.append(job)
            yield job, answer

    monkeypatch.setattr(Shared, "answers", counted)
    with pytest.raises(InvalidInput, match="rounding nearest: is not shared out, since it learns no blocks; take ada"):
        run(budget=None, plan=plan)
    result = run(budget=None, plan=plan, rounding="adaround:inputs=float,iterations=5").result
    assert shared_out == [0, 1, 2, 3]
    assert "adaround:inputs=float" in result.chosen


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
def test_runtimes_take_one_thread_for_a_trial(target, monkeypatch):
    pytest.importorskip(target)
    threads = []
    graph, batches, evaluation, task = case()
    calibration = calibrate(graph, batches)
    plan = mb.search(mb.measure(graph, calibration, target=target, metric="weight_error"), mb.Budget(mean_bits=4))
    if target == "openvino":
        from openvino import Core

        compile_model = Core.compile_model
        monkeypatch.setattr(
            Core,
            "compile_model",
            lambda core, model, *words: (
                threads.append((made := compile_model(core, model, *words)).get_property("INFERENCE_NUM_THREADS"))
                or made
            ),
        )
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession
        monkeypatch.setattr(
            onnxruntime,
            "InferenceSession",
            lambda source, options, **words: (
                threads.append(options.intra_op_num_threads) or session(source, options, **words)
            ),
        )
    try_plan = Trying(None, "nearest", "at_once", None, None)(Case(graph, batches, task, 0, evaluation), calibration)
    assert 0.5 < try_plan(("deployed", plan)) <= 1
    assert threads == [1]
    assert runtime_threads() is None
