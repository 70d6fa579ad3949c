"""The engines of the opponents: started as the configuration says, all of them behind one ``Opponents``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from actors.faults import Faults
from actors.pool import remote_call
from actors.sampler import SamplerPool
from actors.weights import keep_version
from configs.opponents import DataPlayer, ModelPlayer, PastPlayer
from configs.runs import RunConfig
from pipelines.data.encode import model_encoder
from pipelines.data.rules import DataRules
from pipelines.play.guests import Limits, data_responses, translator
from pipelines.play.opponents import Guest, Opponents, Past
from pipelines.play.versions import Versions, keep_here
from pipelines.prompts import PromptSet
from pipelines.stages import Observer, Sampler
from preference.types import Written

DIRECTORY = "players"  # in the run's directory


class Lineup:
    """Engines begin to start when it is made; ``ready`` waits for them. Without opponents there are none."""

    def __init__(self, config: RunConfig, run_dir: Path, log_dir: Path, done: int, faults: Faults) -> None:
        """``done``: steps that the weights of this attempt begin with."""
        self._config, self._run_dir, self._done = config, run_dir, done
        group = config.resources.opponents
        self._node = ""
        self._past: SamplerPool | None = None
        if any(isinstance(o, PastPlayer) for o in config.opponents):
            self._past = SamplerPool(config, log_dir, faults, group, "opponents")
        self._guests: dict[str, SamplerPool] = {}
        for o in config.opponents:
            if isinstance(o, ModelPlayer):
                theirs = config.model_copy(update={"model": config.model.model_copy(update={"path": o.path})})
                self._guests[o.name] = SamplerPool(theirs, log_dir, faults, group, f"opponent-{o.name}")

    async def ready(self, node: str) -> None:
        """Wait for every engine. ``node``: where published weights can be seen."""
        self._node = node
        for pool in (self._past, *self._guests.values()):
            if pool is not None:
                await pool.ready()

    def opponents(self, policy: Sampler, prompts: PromptSet, observer: Observer) -> tuple[PromptSet, Opponents | None]:
        """The prompts that can be played, and who plays them; None without opponents. Raises PromptError."""
        config = self._config
        if not config.opponents:
            return prompts, None
        limits = Limits(config.sampling.max_tokens, config.sampling.max_model_len)
        data: dict[str, Written] = {}
        if any(isinstance(o, DataPlayer) for o in config.opponents):
            encoder = model_encoder(config.model.path, DataRules())
            stop = config.prompts.too_long == "stop"
            prompts, data = data_responses(
                prompts, config.prompts.train, encoder, limits, stop=stop, say=observer.message
            )
        guests = {
            o.name: Guest(self._guests[o.name], translator(o.name, o.path, config.model.path, limits))
            for o in config.opponents
            if isinstance(o, ModelPlayer)
        }
        past = None
        if self._past is not None:
            keep = partial(_keep, self._node, config.deadlines.call_s)
            past = Past(self._past, Versions(self._run_dir / DIRECTORY, Path(config.model.path), self._done, keep))
        return prompts, Opponents(config, policy, past, guests, data, observer)

    def close(self) -> None:
        for pool in (self._past, *self._guests.values()):
            if pool is not None:
                pool.close()


async def _keep(node: str, seconds: float, published: Path, target: Path) -> None:
    """Here, or on the node whose shared memory holds the weights."""
    if published.exists():
        return await keep_here(published, target)
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    task: Any = ray.remote(keep_version)
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    ref = task.options(num_cpus=0, scheduling_strategy=strategy).remote(published, target)
    await remote_call(ref, who=f"keeping {published.name} for opponents", seconds=seconds)
    return None
