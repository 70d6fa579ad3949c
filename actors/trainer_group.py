"""The driver's handle on the trainer: starts Ray Train, appends commands, awaits their results."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import ray

from actors.commands import (
    Checkpoint,
    CheckpointDone,
    Command,
    Done,
    Evaluate,
    EvaluateDone,
    Publish,
    PublishDone,
    Stop,
    Train,
    TrainDone,
)
from actors.faults import ActorLost, Faults, in_short
from actors.nodes import Process, kill_process
from actors.pool import process_env, remote_call
from actors.quiet import quiet_env, redirect_output
from actors.stream import Broken, CommandStream, TrainerFailed, TrainerLost
from actors.trainer import train_worker
from actors.zero import TrainerSetup
from configs.runs import TrainingConfig
from preference.batching import Batch
from preference.reports import TrainMetrics
from preference.types import Version


@ray.remote(num_cpus=0)
class TrainRun:
    """Holds ``TorchTrainer.fit``, which blocks and wants a main thread; the driver's belongs to the loop."""

    def __init__(self, log_file: str) -> None:
        redirect_output(Path(log_file))

    def fit(self, config: TrainingConfig, setup: TrainerSetup, stream: Any, name: str, storage: str) -> None:
        from ray.train import FailureConfig, ScalingConfig
        from ray.train import RunConfig as TrainRunConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        group = config.resources.trainer
        env = {**process_env(group), "DS_ACCELERATOR": "cuda" if group.gpus else "cpu"}
        resources = {"CPU": group.cpus, **({"GPU": group.gpus} if group.gpus else {}), **group.custom}
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"setup": setup, "stream": stream},
            torch_config=TorchConfig(backend="nccl" if group.gpus else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=group.actors, use_gpu=group.gpus > 0, resources_per_worker=resources
            ),
            # A fresh name per attempt: Ray Train's own auto-resume is never the authority.
            run_config=TrainRunConfig(
                name=name,
                storage_path=storage,
                failure_config=FailureConfig(max_failures=0),
                worker_runtime_env={"env_vars": env},
            ),
        )
        trainer.fit()


class TrainerGroup:
    """``ranks`` ZeRO-3 workers behind train / publish / checkpoint.

    A group that has lost a worker is of no use any more: its calls raise TrainerLost until ``restart``.
    """

    def __init__(
        self, config: TrainingConfig, steps: int, run_dir: Path, attempt: str, checkpoint: str, faults: Faults
    ) -> None:
        self._config, self._steps, self._run_dir = config, steps, run_dir
        self._attempt, self._faults, self._starts = attempt, faults, 0
        self.ranks = config.resources.trainer.actors
        self._start_s, self._call_s = config.deadlines.start_s, config.deadlines.call_s
        self._begin(checkpoint)

    def _begin(self, checkpoint: str) -> None:
        self._starts += 1
        self._checkpoint = checkpoint
        self._workers: tuple[Process, ...] = ()
        config, run_dir = self._config, self._run_dir
        group = config.resources.trainer
        stream: Any = CommandStream
        run: Any = TrainRun
        self._stream: Any = stream.remote(group.actors)
        # Nothing here listens to warnings of preemption: a process less.
        env = {**quiet_env(), "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
        self._run: Any = run.options(runtime_env={"env_vars": env}).remote(str(run_dir / "logs" / "train-run.log"))
        setup = TrainerSetup(
            model=config.model,
            objective=config.objective,
            optimizer=config.optimizer,
            batching=config.batching,
            steps=self._steps,
            seed=config.run.seed,
            bucket_bytes=config.weights.bucket_mb * 2**20,
            checkpoint=checkpoint,
            log_dir=str(run_dir / "logs"),
            on_gpu=group.gpus > 0,
            threads=group.threads,
        )
        name = f"{self._attempt}-{self._starts}"  # Ray Train's own
        self._fit = self._run.fit.remote(config, setup, self._stream, name, str(run_dir / "ray-train"))
        self._watch = asyncio.ensure_future(self._report_death(self._fit, self._stream))

    async def _report_death(self, fit: Any, stream: Any) -> None:
        """Ray Train ending early, for whatever reason, ends every wait for a result at once.

        A worker that raises says so itself, and first: what comes from Ray Train alone is a loss.
        """
        try:
            await fit
            cause = "the trainer ended before it was told to stop"
        except Exception as error:
            cause = f"trainer: {in_short(error)}"
        stream.fail.remote(Broken(cause, lost=True))

    async def ready(self) -> list[str]:
        """Wait for every rank's engine; returns the node each runs on."""
        while True:
            try:
                self._workers = await self._answer(self._stream.ready.remote(), "starting", self._start_s)
                return [worker.node for worker in self._workers]
            except TrainerLost as error:
                self._replace(error, self._checkpoint)

    async def restart(self, error: TrainerLost, checkpoint: str) -> None:
        """Give up what is left of a lost group and start another from ``checkpoint``, if that is within the budget.

        What was trained since is to be trained again, by whoever knows the order.
        """
        self._replace(error, checkpoint)
        await self.ready()

    def _replace(self, error: TrainerLost, checkpoint: str) -> None:
        self._faults.survive("trainer", error)
        self._kill()
        self._begin(checkpoint)

    async def train(self, step: int, batch: Batch) -> TrainDone:
        done = await self._do(Train(step, self._shares(batch), batch.size, batch.waiting))
        assert isinstance(done, TrainDone)
        return done

    async def evaluate(self, batch: Batch) -> TrainMetrics:
        done = await self._do(Evaluate(self._shares(batch), batch.size))
        assert isinstance(done, EvaluateDone)
        return done.metrics

    def _shares(self, batch: Batch) -> tuple[Any, ...]:
        return tuple(ray.put(batch.rank(r)) for r in range(self.ranks))

    async def publish(self, version: Version, directory: Path) -> PublishDone:
        done = await self._do(Publish(version, str(directory)))
        assert isinstance(done, PublishDone)
        return done

    async def checkpoint(self, step: int, directory: Path) -> CheckpointDone:
        done = await self._do(Checkpoint(step, str(directory)))
        assert isinstance(done, CheckpointDone)
        return done

    async def _do(self, command: Command) -> Done:
        what = type(command).__name__.lower()
        index = await self._answer(self._stream.append.remote(command), what, self._call_s)
        done: Done = await self._answer(self._stream.result.remote(index), what, self._call_s)
        return done

    async def _answer(self, ref: Any, what: str, seconds: float) -> Any:
        try:
            answer = await remote_call(ref, who=f"trainer ({what})", seconds=seconds)
        except ActorLost as error:
            raise TrainerLost(str(error)) from error
        if isinstance(answer, Broken):
            raise (TrainerLost if answer.lost else TrainerFailed)(answer.cause)
        return answer

    async def close(self) -> None:
        """Stop the workers after what they are doing; a group that does not answer is killed."""
        self._watch.cancel()
        try:
            await self._do(Stop())
            await remote_call(self._fit, who="trainer (stopping)", seconds=30)
            self._workers = ()
        except Exception:  # it is going away either way; the cause was raised where it mattered
            pass
        finally:
            self._kill()

    def _kill(self) -> None:
        self._watch.cancel()
        ray.kill(self._run, no_restart=True)
        ray.kill(self._stream, no_restart=True)
        for worker in self._workers:  # with its owner a worker ends by itself, unless it hangs
            kill_process(worker)
        self._workers = ()
