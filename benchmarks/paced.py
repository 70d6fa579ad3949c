"""Stages that take the time they are told to: real Ray actors that sleep, behind the real loop and the real pools."""

from __future__ import annotations

import asyncio
import json
import pickle
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import ray

from actors.commands import Checkpoint, CheckpointDone, Publish, PublishDone, Stop, Stopped, Train, TrainDone
from actors.faults import Faults
from actors.nodes import Process
from actors.pool import ActorPool, Crew, remote_call
from actors.requests import Health, Sampled, SampleRequest
from configs.runs import RunConfig
from preference.reports import StepReport, TrainMetrics
from preference.types import CandidateGroup, Fate, FinishReason, JudgedGroup, JudgeInfo, Pair, Rating, Scored, Version

PACE_FILE = "pace.json"


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds of every call, and how long responses are."""

    sample_s: float
    judge_s: float
    reference_s: float
    train_s: float
    publish_s: float
    load_s: float
    tokens: int

    @classmethod
    def read(cls, log_file: str) -> Pace:
        """Where the actor's log lies; the pools hand their actors nothing else that a benchmark chooses."""
        return cls(**json.loads((Path(log_file).parent / PACE_FILE).read_text()))

    def write(self, log_dir: Path) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        (log_dir / PACE_FILE).write_text(json.dumps({f.name: getattr(self, f.name) for f in fields(self)}))


def no_metrics() -> TrainMetrics:
    """Of a step that nothing was learned in."""
    values: dict[str, Any] = {f.name: 0 if f.name in ("items", "tokens") else 0.0 for f in fields(TrainMetrics)}
    return TrainMetrics(**values | {"scalars": {}})


class Stamps:
    """What an actor was asked and when it worked on it: a line a call, beside its log."""

    def __init__(self, log_file: str) -> None:
        self._file = Path(log_file).with_suffix(".calls").open("a", buffering=1)

    @contextmanager
    def call(self, what: str, given: object) -> Iterator[list[object]]:
        """Time the block; what it appends to the list was returned."""
        started, answer = time.time(), []  # type: ignore[var-annotated]
        yield answer
        sizes = [len(pickle.dumps(given)), sum(len(pickle.dumps(a)) for a in answer)]
        self._file.write(json.dumps([what, started, time.time(), *sizes]) + "\n")


# -- actors that stand in for those of the pools: same constructors, same methods --------------------------------------


class PacedSampler:
    """In the place of actors.sampler.SamplerActor: any number of requests at once, each ends within ``sample_s``."""

    def __init__(self, model: object, sampling: object, seed: int, on_gpu: bool, log_file: str) -> None:
        self._pace, self._stamps = Pace.read(log_file), Stamps(log_file)
        self._due: list[tuple[float, SampleRequest]] = []
        self._version = Version(0, 0)

    def submit(self, requests: Sequence[SampleRequest]) -> None:
        with self._stamps.call("submit", requests):
            for r in requests:
                self._due.append((time.monotonic() + self._pace.sample_s * random.Random(r.seed).uniform(0.5, 1), r))
            self._due.sort(key=lambda d: d[0], reverse=True)

    def poll(self, seconds: float) -> list[Sampled]:
        with self._stamps.call("poll", seconds) as answer:
            if self._due:
                time.sleep(max(0.0, min(seconds, self._due[-1][0] - time.monotonic())))
            done = []
            while self._due and self._due[-1][0] <= time.monotonic():
                done.append(self._sampled(self._due.pop()[1]))
            answer.append(done)
            return done

    def _sampled(self, r: SampleRequest) -> Sampled:
        draw, n = random.Random(r.seed), self._pace.tokens
        ids = tuple(draw.randrange(3, 30_000) for _ in range(n))
        logprobs = tuple(-draw.random() for _ in range(n))
        return Sampled(r.id, ids, logprobs, "word " * n, FinishReason.STOP, self._version, self._version)

    def abort(self, request_ids: Sequence[str]) -> None:
        self._due = [d for d in self._due if d[1].id not in set(request_ids)]

    def load(self, directory: str) -> Health:
        with self._stamps.call("load", directory):
            time.sleep(self._pace.load_s)
            self._version = Version.parse(Path(directory).name.rpartition("-")[2])
        return self.health()

    def health(self) -> Health:
        return Health(self._version, len(self._due), 0, 0.0)

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


class PacedReference:
    """In the place of actors.reference.ReferenceActor."""

    def __init__(self, model: object, batching: object, threads: int, on_gpu: bool, log_file: str) -> None:
        self._pace, self._stamps = Pace.read(log_file), Stamps(log_file)

    def score(self, packed: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
        with self._stamps.call("score", packed) as answer:
            time.sleep(self._pace.reference_s)
            answer.append(np.full(len(packed.target), -1.0, np.float32))
            return answer[0]  # type: ignore[return-value]

    def pid(self) -> int:
        return 0


@ray.remote(num_cpus=0)
class PacedJudge:
    def __init__(self, log_file: str) -> None:
        self._pace, self._stamps = Pace.read(log_file), Stamps(log_file)

    def judge(self, group: CandidateGroup) -> list[float]:
        with self._stamps.call("judge", group) as answer:
            time.sleep(self._pace.judge_s)
            answer.append([float(len(c.token_ids) + c.index) for c in group.candidates])
            return answer[0]  # type: ignore[return-value]

    def pid(self) -> int:
        return 0


class PacedJudges:
    """A Judge of the loop over a real pool of actors."""

    name = "paced"
    _info = JudgeInfo("paced", "0")

    def __init__(self, config: RunConfig, log_dir: Path, faults: Faults) -> None:
        def start(index: int) -> Any:
            return PacedJudge.remote(str(log_dir / f"judge-{index}.log"))  # type: ignore[attr-defined]

        async def ready(index: int, actor: Any) -> None:
            await remote_call(actor.pid.remote(), who=f"judge {index}", seconds=config.deadlines.start_s)

        self._crew: Crew[Any] = Crew("judge", config.resources.judge.actors, start, ready, config.deadlines, faults)
        self._pool = ActorPool(self._crew)

    async def ready(self) -> None:
        await self._crew.ready()

    async def judge(self, step: int, group: CandidateGroup) -> JudgedGroup:
        scores = await self._pool.call("judge", lambda actor: actor.judge.remote(group))
        return JudgedGroup(
            group, tuple(Rating(c.id, s, self._info) for c, s in zip(group.candidates, scores, strict=True))
        )

    def restore(self, waiting: object) -> None:
        pass

    async def settle(self, step: int) -> list[JudgedGroup]:
        return []

    def waiting(self, step: int) -> list[JudgedGroup]:
        return []

    async def consumed(self, step: int) -> None:
        pass

    def close(self) -> None:
        self._pool.kill()


@ray.remote(num_cpus=0)
class PacedWorker:
    """A trainer rank that follows the real command stream."""

    def follow(self, stream: Any, rank: int, log_file: str) -> None:
        pace, stamps, index = Pace.read(log_file), Stamps(log_file), 0
        while True:
            command = ray.get(stream.take.remote(index, rank, Process.this()))
            done: Any = Stopped()
            match command:
                case Train():
                    with stamps.call("train", ray.get(command.batch[rank])):
                        time.sleep(pace.train_s)
                    done = TrainDone(no_metrics(), pace.train_s)
                case Publish():
                    with stamps.call("publish", command):
                        time.sleep(pace.publish_s)
                    done = PublishDone(command.version, command.directory, 0, 0.0, pace.publish_s)
                case Checkpoint():
                    done = CheckpointDone(command.step, command.directory, 0.0, ())
            ray.get(stream.report.remote(index, rank, done))
            if isinstance(command, Stop):
                return
            index += 1


@ray.remote(num_cpus=0)
class PacedTrainRun:
    """In the place of actors.trainer_group.TrainRun: actors instead of Ray Train's workers."""

    def __init__(self, log_file: str) -> None:
        self._log_dir = Path(log_file).parent

    def fit(self, config: RunConfig, setup: object, stream: Any, name: str, storage: str) -> None:
        ranks = range(config.resources.trainer.actors)
        workers = [PacedWorker.remote() for _ in ranks]  # type: ignore[attr-defined]
        ray.get(
            [
                w.follow.remote(stream, r, str(self._log_dir / f"trainer-{r}.log"))
                for r, w in zip(ranks, workers, strict=True)
            ]
        )


# -- the loop's other neighbours ---------------------------------------------------------------------------------------


class Notes:
    """An observer that remembers when each step was done, and how old what it trained was."""

    def __init__(self) -> None:
        self.done: list[float] = []
        self.ages: Counter[int] = Counter()
        self.pairs: list[int] = []

    def stage(self, *args: object) -> None:
        pass

    def step_done(self, report: StepReport) -> None:
        self.done.append(time.monotonic())
        self.ages.update(report.ages)
        self.pairs.append(report.fates[Fate.TRAINED])

    def evaluated(self, report: object) -> None:
        pass

    def heldout(self, step: int, metrics: object) -> None:
        pass

    def message(self, text: str) -> None:
        print(text)


class NoEvaluation:
    """An evaluator that has nothing to evaluate and no probe."""

    async def after(self, step: int, version: Version) -> None:
        await asyncio.sleep(0)

    async def probe(self, step: int, watch: object) -> None:
        return None


def some_pair(prompt: Any, version: Version, number: int) -> Scored:
    """A small scored pair that ``version`` sampled."""
    from preference.types import Candidate

    def candidate(index: int) -> Candidate:
        ids = tuple(range(10 + index, 14 + index))
        name = f"{number}/{index}"
        return Candidate(name, prompt.id, index, ids, (-1.0,) * 4, "", FinishReason.STOP, version, version)

    pair = Pair(f"pair{number}", prompt, candidate(0), candidate(1), 1.0)
    return Scored(pair, (np.full(4, -1.5, np.float32), np.full(4, -2.5, np.float32)))
