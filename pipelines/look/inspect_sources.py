"""What ``rondo inspect`` reads: an online run's ledger (under way or finished), or any file of preference data.

Neither a model nor Ray is needed. A run's lengths are sampled tokens; a file's are words, since it has no tokens yet.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipelines.data.containers import records, spans
from pipelines.data.load import parse
from pipelines.data.records import Context, Parsed, Preference, detect, filled
from pipelines.data.report import Unfit
from pipelines.data.rules import DataError, DataRules, Format
from pipelines.data.runs import judged_prompts, prompt_file, record_of, recorded_rules, steps_of
from pipelines.ledger.events import PreparedStep
from pipelines.ledger.ledger import RunRecord
from pipelines.prompts import PromptError, check_file
from preference.diagnostics import Answer, Corpus, Graded, Preferred
from preference.pairing import Made, PairingRules, make_items, scores
from preference.texts import words
from preference.types import JudgedGroup, Message, Pair, Prompt, Response, content_id


def read_corpus(path: Path, rules: DataRules | None = None) -> Corpus:
    """A run's directory or a file of data as a corpus. Raises DataError naming what is wrong with either."""
    if not path.exists():
        raise DataError(f"{path}: there is no such file, nor a run of that name (--root says where runs lie)")
    return read_run(path) if path.is_dir() else read_file(path, rules or DataRules())


def read_run(run_dir: Path) -> Corpus:
    """Everything that was judged in complete steps, with the items that the run's own rules make of it."""
    record = record_of(run_dir)
    if "pairing.strategy" not in record.fields:
        source = record.fields.get("data.train", "its data")
        raise DataError(f"{run_dir} was trained from files, not from judged samples: inspect {source} instead")
    rules = recorded_rules(record)
    complete = {event.step for event in steps_of(run_dir) if isinstance(event, PreparedStep)}
    prompts = _prompt_texts(record)
    found = (j for j in judged_prompts(run_dir, prompts) if j.step in complete)
    judged = [(f"step {j.step}, {j.group.group.prompt.id}", j.group) for j in found]
    if not judged:
        raise DataError(f"{run_dir}: nothing has been judged yet; try again after the first step")
    return corpus_of(run_dir.name, judged, rules)


def corpus_of(source: str, judged: Sequence[tuple[str, JudgedGroup]], rules: PairingRules) -> Corpus:
    """Judged prompts, each under a name that tells its occurrences apart, as a corpus."""
    answers: list[Answer] = []
    pairs: list[Preferred] = []
    labels: list[Graded] = []
    fates: Counter[str] = Counter()
    for place, group in judged:
        known = scores(group)
        own = {c.id: _answer(place, c, known) for c in group.group.candidates}
        answers += own.values()
        made: Made = make_items(group, rules)
        fates[made.fate.value] += 1
        for item in made.items:
            if isinstance(item, Pair):
                two = own[item.chosen.id], own[item.rejected.id]
                pairs.append(Preferred(place, *two, item.margin, item.probability, item.tied))
            else:
                labels.append(Graded(own[item.response.id], item.desirable))
    groups = tuple(group for _, group in judged)
    return Corpus(source, "tokens", "prompts", tuple(answers), tuple(pairs), tuple(labels), fates, len(judged), groups)


def _answer(place: str, response: Response, known: Mapping[str, float]) -> Answer:
    return Answer(place, response.text, len(response.token_ids), known.get(response.id, float("nan")))


class _Texts(dict[str, Prompt]):
    """Prompts by id; one whose text is unknown goes by its id, for nothing here depends on it."""

    def __missing__(self, name: str) -> Prompt:
        return Prompt(name, (Message("user", name),), ())

    def __contains__(self, name: object) -> bool:
        return True


def _prompt_texts(record: RunRecord) -> _Texts:
    try:
        texts = check_file(prompt_file(record, None))
    except (DataError, PromptError):
        return _Texts()
    return _Texts({i: Prompt(i, (Message("user", text),), ()) for i, text in texts.items()})


def read_file(path: Path, rules: DataRules) -> Corpus:
    """Every record that is a preference or a graded response; others are counted by what is wrong with them."""
    format: Format | None = None if rules.format == "auto" else rules.format
    found: list[Parsed] = []
    fates: Counter[str] = Counter()
    for span in spans(path):
        for place, record in records(span):
            try:
                format = format or detect(record)
                found.append(parse(filled(record), format, rules, chat=True))
                fates["kept"] += 1
            except Unfit as unfit:
                fates[unfit.reason.value] += 1
            except ValueError as error:
                raise DataError(f"{place}: {error}") from None
    if not found:
        raise DataError(f"{path}: no record can be used: {dict(fates) or 'the file is empty'}")
    return _of_texts(path.name, found, fates)


def _of_texts(source: str, found: Sequence[Parsed], fates: Mapping[str, int]) -> Corpus:
    answers: dict[tuple[str, str], Answer] = {}
    pairs: list[Preferred] = []
    labels: list[Graded] = []

    def answer(prompt: str, text: str) -> Answer:
        return answers.setdefault((prompt, text), Answer(prompt, text, len(words(text))))

    for parsed in found:
        prompt = _asked(parsed.context)
        if isinstance(parsed, Preference):
            two = answer(prompt, parsed.chosen), answer(prompt, parsed.rejected)
            pairs.append(Preferred(prompt, *two, parsed.margin, parsed.probability, parsed.tied))
        else:
            labels.append(Graded(answer(prompt, parsed.response), parsed.desirable))
    prompts = len({a.prompt for a in answers.values()})
    return Corpus(
        source, "words", "records", tuple(answers.values()), tuple(pairs), tuple(labels), dict(fates), prompts
    )


def _asked(context: Context) -> str:
    """What tells prompts apart."""
    prompt = context.prompt
    return prompt if isinstance(prompt, str) else content_id([(m.role, m.content) for m in prompt])
