"""Judged groups as records of the ledger's journals, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import TypeAdapter

from preference.types import CandidateGroup, JudgedGroup, Judgement, Prompt, Response

Record = dict[str, Any]
response_type: TypeAdapter[Response] = TypeAdapter(Response)
_judgement: TypeAdapter[Judgement] = TypeAdapter(Judgement)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A group as a step left it. ``waiting``: people had been asked and had not decided; a later step has it again."""

    step: int
    name: str
    """Id of its first candidate: a prompt may come again, and two of its groups be in one step."""
    prompt_id: str
    responses: tuple[Response, ...]
    judgements: tuple[Judgement, ...]
    overruled: tuple[Judgement, ...]
    waiting: bool

    def judged(self, prompt: Prompt) -> JudgedGroup:
        return JudgedGroup(CandidateGroup(prompt, self.responses), self.judgements, self.overruled)


def candidate_records(step: int, judged: JudgedGroup) -> Iterator[Record]:
    name = judged.group.candidates[0].id
    for response in judged.group.candidates:
        yield {"step": step, "group": name, **response_type.dump_python(response, mode="json")}


def judgement_record(step: int, judged: JudgedGroup, state: Literal["decided", "waiting"]) -> Record:
    return {
        "step": step,
        "group": judged.group.candidates[0].id,
        "state": state,
        "prompt_id": judged.group.prompt.id,
        "judgements": [_judgement.dump_python(j, mode="json") for j in judged.judgements],
        "overruled": [_judgement.dump_python(j, mode="json") for j in judged.overruled],
    }


def read_groups(candidates: Iterable[Record], judgements: Iterable[Record]) -> list[Recorded]:
    """Groups in the order in which they were first judged; a step that was done again counts as it was last.

    Raises KeyError and pydantic's ValidationError on records of another version of Rondo.
    """
    responses: dict[tuple[int, str], dict[str, Response]] = {}
    for r in candidates:
        step, name = int(r["step"]), str(r["group"])
        response = response_type.validate_python({k: v for k, v in r.items() if k not in ("step", "group")})
        responses.setdefault((step, name), {})[response.id] = response
    found: dict[tuple[int, str], Recorded] = {}
    for r in judgements:
        key = int(r["step"]), str(r["group"])
        if key in responses:
            judged, overruled = (tuple(map(_judgement.validate_python, r[k])) for k in ("judgements", "overruled"))
            waiting = r["state"] == "waiting"
            found[key] = Recorded(*key, str(r["prompt_id"]), tuple(responses[key].values()), judged, overruled, waiting)
    return list(found.values())


def undecided(groups: Iterable[Recorded], prompts: Mapping[str, Prompt]) -> list[Recorded]:
    """What people were asked about and no step has decided since; the newest record of each."""
    known = [g for g in groups if g.prompt_id in prompts]
    decided = {g.name for g in known if not g.waiting}
    return list({g.name: g for g in known if g.waiting and g.name not in decided}.values())
