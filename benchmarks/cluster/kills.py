"""Random kills of workers and nodes of a Ray cluster, while it evaluates plans: no result is wrong, none is lost.

Three nodes in two network namespaces, each with an address of its own (needs root and `ip`): the head, beside the
caller, and two that come and go. Every few seconds a worker or one of these two nodes is killed (SIGKILL); a node comes
back under a new name. Answers are compared, byte by byte, with those of one process:

    python -m benchmarks.cluster.kills --kills 30
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.cluster import digits
from mixbit.core import Engine, run_jobs

ADDRESSES, PORT = ("10.77.0.1", "10.77.0.2"), 6379
#: Plans of a round; rounds follow until all kills are done.
PLANS = 120
#: How often the start of a node is tried.
TRIES = 5
#: Nothing is sent; nobody else reaches the namespaces; workers do not wait for whatever else runs here.
RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}


def sh(*words: str, environment: dict[str, str] | None = None, tries: int = 1) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True, env=environment)
    if done.returncode and tries > 1:
        sh(*words, environment=environment, tries=tries - 1)
    elif done.returncode:
        sys.exit(f"{' '.join(words)}: {(done.stderr or done.stdout).strip()}")


def inside(side: int) -> list[str]:
    """The beginning of a command that runs in the namespace of that number."""
    return ["ip", "netns", "exec", f"mixbit{side}"]


@contextmanager
def namespaces() -> Iterator[None]:
    """Two network namespaces, joined by a pair of virtual devices."""
    for side in (0, 1):
        sh("ip", "netns", "add", f"mixbit{side}")
    try:
        sh("ip", "link", "add", "mixbit0", "netns", "mixbit0", "type", "veth", "peer", "mixbit1", "netns", "mixbit1")
        for side, address in enumerate(ADDRESSES):
            sh(*inside(side), "ip", "address", "add", f"{address}/24", "dev", f"mixbit{side}")
            for device in ("lo", f"mixbit{side}"):
                sh(*inside(side), "ip", "link", "set", device, "up")
        yield
    finally:
        for side in (0, 1):
            sh("ip", "netns", "delete", f"mixbit{side}")


def processes() -> dict[int, str]:
    """Process -> command line, of all in the namespaces but these benchmarks."""
    found = {}
    for side in (0, 1):
        listed = subprocess.run(["ip", "netns", "pids", f"mixbit{side}"], check=True, capture_output=True, text=True)
        for number in map(int, listed.stdout.split()):
            with suppress(OSError):
                line = Path(f"/proc/{number}/cmdline").read_bytes()
                found[number] = line.replace(b"\0", b" ").decode(errors="replace")
    return {number: line for number, line in found.items() if "benchmarks.cluster" not in line and line}


def ray_start(side: int, *words: str) -> None:
    """Start a node in the namespace of that number."""
    environment = os.environ | RAY
    command = [*inside(side), sys.executable, "-m", "ray.scripts.scripts", "start", *words]
    named = f"--node-ip-address={ADDRESSES[side]}", "--object-store-memory=100000000"
    sh(*command, *named, environment=environment, tries=TRIES)  # on a busy machine a node may not begin in time


def join(side: int) -> None:
    ray_start(side, f"--address={ADDRESSES[0]}:{PORT}", "--num-cpus=2")


def work(out: Path, stop: Path) -> None:
    """The caller: evaluate rounds of plans until told to stop; every answer is a line of the file."""
    engine, number = Engine("ray", 3, f"{ADDRESSES[0]}:{PORT}"), 0
    with out.open("a", encoding="utf-8") as file:
        while number == 0 or not stop.exists():
            jobs = digits.plans(PLANS, number)
            print(json.dumps(["round", number]), file=file, flush=True)
            for plan, answer in run_jobs(engine, digits.start, jobs):
                print(json.dumps([number, plan.layers, answer]), file=file, flush=True)
            number += 1


def victims() -> dict[str, list[int]]:
    """What may be killed: workers that answer jobs, and nodes other than the head."""
    running = processes()
    return {
        "worker": [number for number, line in running.items() if line.startswith("ray::Worker")],
        "node": [
            number
            for number, line in running.items()
            if "/raylet/raylet" in line and "--head" not in line.split() and "is_head_node=true" not in line
        ],
    }


def kill_often(kills: int, seed: int, out: Path, caller: subprocess.Popen[bytes]) -> dict[str, int]:
    """Kill after every few answers; returns how many of each kind."""
    rng, done = random.Random(seed), {"worker": 0, "node": 0}
    seen = 0
    while sum(done.values()) < kills:
        if caller.poll() is not None:
            break
        lines = out.read_bytes().count(b"\n") if out.exists() else 0
        if lines <= seen + 3:  # some answers came since the last kill
            time.sleep(0.2)
            continue
        time.sleep(rng.uniform(0, 3))
        kind = "node" if rng.random() < 0.3 else "worker"
        some = victims()[kind]
        if not some:
            continue
        victim = rng.choice(some)
        side = 1 if ADDRESSES[1] in processes().get(victim, "") else 0
        with suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
            done[kind] += 1
            print(f"kill {sum(done.values())}: {kind} {victim}", flush=True)
        seen = out.read_bytes().count(b"\n")
        if kind == "node":
            join(side)
    return done


def judged(out: Path) -> tuple[int, int, int]:
    """Answers, those that differ from one process's, and those of finished rounds that are missing."""
    rounds: dict[int, dict[str, str]] = {}
    answers = wrong = lost = 0
    for line in out.read_text(encoding="utf-8").splitlines():
        number, *rest = json.loads(line)
        if number == "round":
            rounds[rest[0]] = {}
        else:
            layers, answer = rest
            wrong += json.dumps(layers) in rounds[number]  # a job is answered once
            rounds[number][json.dumps(layers)] = answer
    for number, found in rounds.items():
        jobs = digits.plans(PLANS, number)
        truth = {json.dumps(plan.layers): answer for plan, answer in run_jobs(Engine(), digits.start, jobs)}
        answers += len(found)
        wrong += sum(truth[layers] != answer for layers, answer in found.items())
        lost += len(truth) - len(found)
    return answers, wrong, lost


def end(kind: signal.Signals, seconds: int) -> dict[int, str]:
    """End the processes so, as `ray stop` does, since agents outlive a raylet that is killed; those that stay."""
    for number in processes():
        with suppress(ProcessLookupError):
            os.kill(number, kind)
    time.sleep(seconds)
    return processes()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.work is not None:
        work(given.work, given.work.with_suffix(".stop"))
        return
    with TemporaryDirectory() as scratch, namespaces():
        out = Path(scratch) / "answers"
        try:
            ray_start(0, "--head", f"--port={PORT}", "--num-cpus=1", "--include-dashboard=false")
            for side in (0, 1):
                join(side)
            began = time.monotonic()
            command = [*inside(0), sys.executable, "-m", "benchmarks.cluster.kills", "--work", str(out)]
            with subprocess.Popen(command, env=os.environ | RAY) as caller:
                try:
                    done = kill_often(given.kills, given.seed, out, caller)
                finally:
                    out.with_suffix(".stop").touch()
                status = caller.wait()
            seconds = time.monotonic() - began
            time.sleep(5)
            workers = victims()["worker"]
        finally:
            ended = [end(kind, seconds) for kind, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 1))]
        answers, wrong, lost = judged(out)
    print(
        f"{done['worker']} workers and {done['node']} nodes killed in {seconds:.0f} s; the caller ended with {status}"
    )
    print(f"{answers} answers, {wrong} wrong, {lost} lost; left when it had ended: {len(workers)} of its workers")
    outlived, left = ended
    names = ", ".join(line.split()[0].rpartition("/")[2] for line in outlived.values())
    print(f"processes of Ray's: {len(outlived)} outlive SIGTERM ({names}), {len(left)} SIGKILL")
    sys.exit(bool(wrong or lost or workers or left or status or sum(done.values()) < given.kills))


if __name__ == "__main__":
    main()
