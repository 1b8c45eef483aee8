"""lm-eval (EleutherAI's lm-evaluation-harness) asks a subject of ours: its tasks, its few-shot prompts, its scores.

Most of its tasks fetch their data from a hub; tasks of your own, with data of your own, need none.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from toolkit.errors import ExternalToolError, ToolkitError, UsageError
from toolkit.evaluate.readers import Reader
from toolkit.models.reference import TeacherForced
from toolkit.parity.checks.tokens import encode
from toolkit.parity.golden.export_answers import Asked

NEW_TOKENS = 256
"""Of an answer at most, where a task does not say."""
CONTEXT = 2048
"""Tokens that are read at most: of a longer context the beginning is left out, as lm-eval's own models do it."""


def require() -> None:
    """Raises ExternalToolError where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ExternalToolError(
            "lm-eval is not installed", ".venv/bin/pip install 'lm-eval>=0.4.13' (the extra `evaluation`)"
        )


def run(reader: Reader, tokenizer: Any, tasks: str, folder: Path | None, limit: int | None) -> dict[str, Any]:
    """Have lm-eval run tasks.

    Args:
        tasks: names, with commas between them.
        folder: with tasks of the user's own (YAML).
        limit: examples of each task at most.

    Returns:
        task → metric → value, under `results`.

    Raises:
        UsageError: it knows no such task.
        ExternalToolError: it cannot run one, most often since its data would have to be fetched.
    """
    require()
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    names = [name.strip() for name in tasks.split(",") if name.strip()]
    # Its own tasks are thousands of files: they are read only where the folder does not have all that is named.
    manager = TaskManager(include_path=str(folder), include_defaults=False) if folder is not None else TaskManager()
    if folder is not None and not all(manager.match_tasks([name]) for name in names):
        manager = TaskManager(include_path=str(folder))
    unknown = [name for name in names if not manager.match_tasks([name])]
    if unknown or not names:
        raise UsageError(
            f"lm-eval knows no task {', '.join(unknown) or '(none was named)'}",
            "All that it knows: lm-eval ls tasks. Tasks of your own: --task-folder FOLDER",
        )
    try:
        found = simple_evaluate(
            _model(reader, tokenizer), tasks=names, task_manager=manager, limit=limit, log_samples=False,
            bootstrap_iters=1000,
        )  # fmt: skip
    except ToolkitError:
        raise
    except Exception as error:  # data sets, hubs and tasks fail in ways of their own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ExternalToolError(
            f"lm-eval could not run {', '.join(names)}: {reason}",
            "Most of its tasks fetch their data from a hub. Where there is none, name tasks with data of your own: --task-folder",
        ) from error
    return {"results": {name: _plain(values) for name, values in (found or {"results": {}})["results"].items()}}


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    # "acc,none" is the metric behind its filter.
    return {
        key.removesuffix(",none"): float(value) if isinstance(value, float | int) else str(value)
        for key, value in values.items()
    }


def _model(reader: Reader, tokenizer: Any) -> Any:
    from lm_eval.api.model import TemplateLM

    class Ours(TemplateLM):  # type: ignore[misc]
        """A reader, as lm-eval asks one."""

        @property
        def eot_token_id(self) -> int:
            return int(next(t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if t is not None))

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return encode(tokenizer, string)

        def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
            wanted = []
            for _texts, context, continuation in requests:
                ids = [*context, *continuation][-CONTEXT:]
                wanted.append(TeacherForced(ids, max(1, len(ids) - len(continuation))))
            return [(float(read.nats.sum()), read.greedy) for read in reader.read(wanted)]

        def loglikelihood_rolling(self, requests: list[Any], **_: Any) -> list[float]:
            wanted = []
            for request in requests:
                ids = encode(tokenizer, request.args[0])
                for start in range(0, len(ids), CONTEXT - 1):
                    before = ids[start - 1] if start else self.eot_token_id
                    wanted.append(TeacherForced([before, *ids[start : start + CONTEXT - 1]], 1))
            read = iter(reader.read(wanted))
            return [
                sum(float(next(read).nats.sum()) for _ in range(0, len(encode(tokenizer, r.args[0])), CONTEXT - 1))
                for r in requests
            ]

        def generate_until(self, requests: list[Any], **_: Any) -> list[str]:
            found = []
            for request in requests:
                context, told = request.args
                until = told.get("until") or []
                most = int(told.get("max_gen_toks", NEW_TOKENS))
                if told.get("do_sample") and told.get("temperature", 1.0):
                    raise UsageError("this task samples its answers; here they are greedy", "Choose another task.")
                if not reader.answers:
                    raise UsageError("the model does not fit into memory, so it cannot answer", "Name its GGUF: --gguf")
                (said,) = reader.say([Asked(encode(tokenizer, context)[-CONTEXT:])], most)
                text = str(tokenizer.decode(said.tokens, skip_special_tokens=True))
                for mark in [until] if isinstance(until, str) else until:
                    text = text.split(mark, maxsplit=1)[0] if mark else text
                found.append(text)
            return found

    return Ours()
