"""Training from files: the same loop and trainer, fed with preference pairs, labelled responses or demonstrations.

    file ──> items ──> reference ──> (pipelines.loop: trainer ──> model)

``rondo offline`` is preference training, ``rondo sft`` supervised fine-tuning, ``rondo reward-model`` the training of
a reward model; an ``sft:`` section in the configuration of an online or an offline run puts the second before it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from configs.loading import ConfigError
from configs.runs import OfflineConfig, RewardModelConfig, RunConfig, SftConfig, TrainingConfig
from configs.schema import Data, RunDirectory
from pipelines.data import DataRules, Items, load_items, split
from pipelines.doctor import refuse_unfit
from pipelines.judging.reward_model import conversations
from pipelines.ledger.ledger import Ledger
from pipelines.order import epoch_slice
from pipelines.progress import Progress
from pipelines.scoring import Scorer
from pipelines.session import ResumeMode, Session, run_session
from pipelines.stages import Evaluator, Observer, Prepared, Source, Trainer
from pipelines.timing import Stopwatch
from preference.batching import collate
from preference.objectives import REGISTRY
from preference.types import Fate, Item, Labelled, Pair, Version

C = TypeVar("C", RunConfig, OfflineConfig)


class FileSource:
    """Consecutive slices of a seeded permutation of the items, an epoch after the other."""

    def __init__(self, data: Data, seed: int, items: Sequence[Item], scorer: Scorer, ledger: Ledger) -> None:
        self._data, self._seed, self._scorer, self._ledger = data, seed, scorer, ledger
        self._items = {item.id: item for item in items}
        self._total = round(data.epochs * len(items))
        self._prepared = ledger.prepared_steps()

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run; the last one may hold fewer items."""
        return max(1, -(-self._total // self._data.batch_size))

    def served(self, step: int, version: Version) -> None:
        """Files do not change with the weights."""

    def rewind(self) -> None:
        self._prepared = self._ledger.prepared_steps()

    async def prepare(self, step: int, watch: Stopwatch) -> Prepared:
        size = self._data.batch_size
        start, end = (step - 1) * size, min(step * size, max(self._total, 1))
        ids = epoch_slice(sorted(self._items), start, end, self._seed)
        items = [self._items[i] for i in ids]
        scored, mismatched = await self._scorer.score(step, items, watch)
        fates = Counter({Fate.TRAINED: len(items)})
        if step not in self._prepared:
            self._ledger.prepared(step, ids, fates)
        return Prepared(fates, scored, mismatched, None, None, (), watch)


class HeldoutItems:
    """Loss and rewards on items that are never trained on."""

    def __init__(
        self,
        config: OfflineConfig,
        steps: int,
        items: Sequence[Item],
        scorer: Scorer,
        trainer: Trainer,
        observer: Observer,
    ) -> None:
        self._config, self._steps, self._items = config, steps, items
        self._scorer, self._trainer, self._observer = scorer, trainer, observer

    async def after(self, step: int, version: Version) -> None:
        every = self._config.data.evaluate_every
        if self._items and (step == self._steps or (every and step % every == 0)):
            scored, mismatched = await self._scorer.score(0, self._items, Stopwatch())
            budget = self._config.batching.micro_batch_tokens
            batch = collate(scored, self._trainer.ranks, budget, mismatched)
            self._observer.heldout(step, await self._trainer.evaluate(batch))


async def run_offline(config: OfflineConfig, resume: ResumeMode, progress: Progress) -> None:
    """``rondo offline`` and ``rondo sft``: the whole attempt."""
    refuse_unfit(config)

    async def body(session: Session) -> None:
        await _offline(await after_sft(config, session), session)

    await run_session(config, resume, progress, body)


async def _offline(config: OfflineConfig, session: Session) -> None:
    reference = session.reference(config)
    trainer = None
    try:
        session.progress.message(f"reading {config.data.train}")
        items, heldout = await asyncio.to_thread(load_all_items, config, session.progress)
        # The steps of the run follow from the data, and the trainer's schedule from the steps.
        ranks = config.resources.trainer.actors
        scorer = Scorer(config, reference, ranks, session.ledger, session.watchers)
        source = FileSource(config.data, config.run.seed, items, scorer, session.ledger)
        trainer = session.trainer(config, source.steps)
        if reference is not None:
            await reference.ready()
        nodes = await trainer.ready()
        evaluator = HeldoutItems(config, source.steps, heldout, scorer, trainer, session.watchers)

        async def build() -> tuple[Source, Evaluator]:
            return source, evaluator

        # What comes next is known beforehand: the reference scores a step while the trainer takes the one before.
        ahead = 1 if config.reference.refresh == "fixed" else 0
        await session.learn(config, source.steps, ahead, trainer, reference, [], nodes, build)
    finally:
        if trainer is not None:
            await trainer.close()
        if reference is not None:
            reference.close()


def load_all_items(config: OfflineConfig, progress: Progress) -> tuple[tuple[Item, ...], tuple[Item, ...]]:
    """Items to train on and held-out items; says what became of every record. Raises DataError or ConfigError."""
    data = config.data
    loaded = _load(config, data.train, progress)
    refuse_unfit_items(config, loaded)
    if data.heldout:
        return loaded.items, _load(config, data.heldout, progress).items
    train, heldout = split(loaded.items, data.heldout_share, config.run.seed)
    return tuple(train), tuple(heldout)


def _load(config: OfflineConfig, path: str, progress: Progress) -> Items:
    data = config.data
    rules = DataRules(
        format=data.format,
        template=data.template,
        missing_eos=data.missing_eos,
        truncation=data.truncation,
        max_prompt_tokens=data.max_prompt_tokens,
        max_response_tokens=data.max_response_tokens,
        max_item_tokens=config.batching.micro_batch_tokens,
    )
    loaded = load_items(
        path,
        model_path=config.model.path,
        rules=rules,
        cpus=config.resources.data_cpus,
        prompts_path=data.prompts or None,
    )
    for line in loaded.report.lines():
        progress.message(line)
    if isinstance(config, SftConfig) and loaded.kind == "pairs":
        progress.message("  supervised fine-tuning takes the chosen responses")
        chosen = tuple(Labelled(i.id, i.prompt, i.chosen, True) for i in loaded.items if isinstance(i, Pair))
        return replace(loaded, items=chosen, kind="labels")
    if isinstance(config, RewardModelConfig):
        return conversations(loaded, config, progress)
    return loaded


def refuse_unfit_items(config: TrainingConfig, loaded: Items) -> None:
    """Raise ConfigError where an objective needs other data than there is."""
    for term in config.terms:
        if term.objective.data == "pairs" and loaded.kind != "pairs":
            raise ConfigError(
                f"objective {term.objective.name} learns from pairs, but {loaded.report.source} holds {loaded.kind}: "
                f"use objective.name=kto for labelled responses or objective.name=sft for demonstrations"
            )
        ties = sum(isinstance(i, Pair) and i.tied for i in loaded.items)
        if ties and not term.objective.ties:
            known = ", ".join(sorted(n for n, o in REGISTRY.items() if o.ties))
            raise ConfigError(
                f"{ties} pairs of {loaded.report.source} are ties, which objective {term.objective.name} does not "
                f"know: use one that does ({known}), or leave them out of the file"
            )
        if term.objective.reference_samples and not any(
            r.player == "reference" for item in loaded.items for r in item.responses
        ):
            raise ConfigError(
                f"objective {term.objective.name} learns from pairs of which the reference wrote a response, and "
                f"{loaded.report.source} names none: mark the writer of responses, or use objective.name=dpo"
            )


async def after_sft(config: C, session: Session) -> C:
    """``config`` with the model that its ``sft:`` phase makes; trained first, once, in a run directory of its own."""
    if config.sft is None:
        return config
    phase = sft_config(config, session.run_dir)
    model = session.run_dir / phase.run.name / "model"
    if not (model / "config.json").exists():
        session.progress.message("supervised fine-tuning first")
        await run_session(phase, "auto", session.progress, lambda inner: _offline(phase, inner))
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(model)})})


def sft_config(config: RunConfig | OfflineConfig, run_dir: Path) -> SftConfig:
    """The ``sft:`` section as a run of its own inside ``run_dir``."""
    assert config.sft is not None
    tracking = config.tracking
    uri = tracking.uri or f"sqlite:///{Path(config.run.root) / 'mlflow.db'}"
    storage = config.checkpoint.storage and f"{config.checkpoint.storage.rstrip('/')}/{config.run.name}"
    checkpoint = config.checkpoint.model_copy(update={"storage": storage, "keep_best": 0})
    return SftConfig(
        run=RunDirectory(
            name="sft", root=str(run_dir), seed=config.run.seed, min_free_disk_gb=config.run.min_free_disk_gb
        ),
        model=config.model,
        optimizer=config.sft.optimizer,
        data=config.sft.data,
        batching=config.batching,
        resources=config.resources,
        weights=config.weights,
        tracking=tracking.model_copy(update={"uri": uri, "registered_model": f"{config.run.name}-sft"}),
        checkpoint=checkpoint,
        deadlines=config.deadlines,
    )
