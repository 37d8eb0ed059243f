"""`scrubjay replay --compare`: strategies of assembly side by side, at a simulated provider. No server, no store."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from scrubjay.assembly.providers import providers, rules_for
from scrubjay.assembly.simulate import Comparison, Setting
from scrubjay.assembly.simulate.compare import Summarise
from scrubjay.cli.replay_compare_report import build_report, show_report
from scrubjay.cli.replay_input import BadLine, Conversation, ConversationFile
from scrubjay.cli.replay_plot import check_plot, plot
from scrubjay.cli.replay_progress import progress
from scrubjay.cli.replay_questions import evidence_of, read_questions, times_of
from scrubjay.cli.shell import Failure, open_console, print_json
from scrubjay.core.errors import InvalidInput
from scrubjay.core.records import Message
from scrubjay.models.extractive import ExtractiveSummarizer
from scrubjay.models.tokenizers import tokenizer_for

F = TypeVar("F", bound=Callable[..., Any])
SUMMARY_TOKENS: Final = 300
"""How long the summary of what is cut may be, as in a session."""
TOKENIZER: Final = "o200k_base"
"""What counts. The vocabularies of most providers are not published; so that figures compare, all have the same."""
ELSEWHERE: Final = ("budget", "concurrency", "agent_less", "keep", "store", "cache", "data_dir")
"""Options of a replay that have no meaning for a comparison."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line asks of a comparison.

    Attributes:
        compare: Whether it is one.
        provider: A provider, or a model.
        static_tokens: How long the agent's prompt is.
        history_tokens: What is left for the chat.
        memory_tokens: How much is retrieved for each turn.
        summaries: Whether what is cut is summarised.
        gap_s: Seconds between turns.
        real_gaps: Whether messages have their own times.
        questions: A file of questions.
        plot: Where to draw.
    """

    compare: bool
    provider: str
    static_tokens: int
    history_tokens: int
    memory_tokens: int
    summaries: bool
    gap_s: float
    real_gaps: bool
    questions: str | None
    plot: str | None


def _tokens(name: str, default: int, help: str) -> Callable[[F], F]:
    kind = click.IntRange(0, 1_000_000)
    return click.option(name, type=kind, default=default, show_default=True, metavar="N", help=help)


_OPTIONS: Final[tuple[Callable[[Any], Any], ...]] = (
    click.option("--compare", is_flag=True, help="Compare strategies of assembly at a simulated provider; see above."),
    click.option(
        "--provider",
        default="anthropic",
        show_default=True,
        metavar="NAME",
        help=f"Whose rules and prices: {', '.join(providers())}, or a model's name.",
    ),
    _tokens("--static-tokens", 3_000, "How long the agent's prompt is, at the beginning of each prompt."),
    _tokens("--history-tokens", 8_000, "What is left for the chat."),
    _tokens("--memory-tokens", 700, "What is retrieved for each turn, something else each time."),
    click.option("--summaries", is_flag=True, help="Let `blocks` summarise what it cuts, as a session does."),
    click.option(
        "--gap-s",
        type=click.FloatRange(min=0),
        default=0.0,
        show_default=True,
        metavar="N",
        help="Seconds between turns; at 0 the provider forgets nothing.",
    ),
    click.option("--real-gaps", is_flag=True, help="Take the times of messages, where they have some."),
    click.option(
        "--questions",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Questions, one a line: `user` and `evidence`, ids of messages. Is it in the last prompt?",
    ),
    click.option(
        "--plot",
        type=click.Path(dir_okay=False),
        metavar="FILE",
        help="Draw cost and hit rate: PNG or SVG; needs matplotlib.",
    ),
)


def compare_options(command: F) -> F:
    """Add the options of a comparison."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_options(context: click.Context, options: Options) -> None:
    """Raise if options are given that have no meaning together."""
    given = [name for name in context.params if context.get_parameter_source(name) is not ParameterSource.DEFAULT]
    if options.compare:
        wrong = [name for name in given if name in ELSEWHERE]
        if wrong:
            raise click.UsageError(f"{_flag(wrong[0])} has no meaning with --compare.", context)
        if options.gap_s and options.real_gaps:
            raise click.UsageError("Give --gap-s or --real-gaps, not both.", context)
        return
    wrong = [name for name in given if name in Options.__slots__]
    if wrong:
        raise click.UsageError(f"{_flag(wrong[0])} needs --compare.", context)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def compare(
    options: Options, files: Sequence[str], *, limit: int | None, history: int | None, skip_bad: bool, as_json: bool
) -> None:
    """Compare strategies over files, and report.

    Args:
        options: What is asked for.
        files: The files.
        limit: The most conversations.
        history: The most messages of a prompt's chat; None for as many as fit.
        skip_bad: Whether lines and messages that cannot be read are counted and passed over.
        as_json: Print one JSON object, and no table.
    """
    if options.plot:
        check_plot()
    questions = read_questions(options.questions) if options.questions else {}
    counter = tokenizer_for(TOKENIZER)
    setting = Setting(
        rules_for(options.provider),
        counter,
        options.static_tokens,
        options.history_tokens,
        options.memory_tokens,
        history,
        options.gap_s,
    )
    with _summarise(ExtractiveSummarizer(counter)) if options.summaries else _nothing() as summarise:
        reader = _Reader(files, limit, skip_bad=skip_bad)
        comparison = Comparison(setting, summarise)
        with progress(files, limit, show=sys.stderr.isatty() and not as_json) as done:
            for conversation, position in reader.conversations():
                messages = conversation.messages
                comparison.play(
                    messages,
                    times_of(messages) if options.real_gaps else None,
                    evidence_of(questions.get(conversation.user, ()), messages),
                    lambda at, error: reader.refuse_message(conversation, at, error),  # noqa: B023 -- used at once
                )
                done(position)
    report = build_report(setting, comparison.spent, reader.counts(), real_gaps=options.real_gaps)
    if options.plot:
        plot(options.plot, comparison.spent, setting)
    if as_json:
        print_json(report)
    else:
        show_report(report, open_console())
    invalid = sum(one["invalid_windows"] for one in report["strategies"].values())
    if invalid:
        raise Failure(f"{invalid:,} windows were not valid: please report this", "invalid_window", 1)


class _Reader:
    """Reads conversations, and decides about what is bad.

    Args:
        files: The files.
        limit: The most conversations.
        skip_bad: Whether what cannot be read is counted and passed over.
    """

    def __init__(self, files: Sequence[str], limit: int | None, *, skip_bad: bool) -> None:
        self._files = files
        self._limit = limit
        self._skip_bad = skip_bad
        self._counts = dict.fromkeys(("conversations", "messages", "bad_lines", "bad_messages"), 0)

    def counts(self) -> Mapping[str, int]:
        """Return what was read."""
        return self._counts

    def conversations(self) -> Iterator[tuple[Conversation, int]]:
        """Yield conversations up to the limit, each with the bytes that were read so far."""
        past = position = 0
        for ordinal, name in enumerate(self._files, 1):
            for item, position in ConversationFile(name, ordinal).conversations():
                if isinstance(item, BadLine):
                    self._refuse("bad_lines", item.where, item.error)
                    continue
                self._counts["conversations"] += 1
                self._counts["messages"] += len(item.messages)
                yield item, past + position
                if self._counts["conversations"] == self._limit:
                    return
            past += position
            position = 0

    def refuse_message(self, conversation: Conversation, at: int, error: InvalidInput) -> None:
        """Raise for a bad message, naming its place, unless such are skipped."""
        self._refuse("bad_messages", f"{conversation.where}: message {at + 1}", error)
        self._counts["messages"] -= 1

    def _refuse(self, kind: str, where: str, error: InvalidInput) -> None:
        if not self._skip_bad:
            raise type(error)(f"{where}: {error} (--skip-bad counts such ones and goes on)") from error
        self._counts[kind] += 1


@contextmanager
def _summarise(summarizer: ExtractiveSummarizer) -> Iterator[Summarise]:
    with asyncio.Runner() as runner:

        def summarise(messages: Sequence[Message], previous: str) -> str:
            return runner.run(summarizer.summarize(messages, max_tokens=SUMMARY_TOKENS, previous=previous or None))

        yield summarise


@contextmanager
def _nothing() -> Iterator[None]:
    yield None
