"""The command `scrubjay`."""

from __future__ import annotations

import click

from scrubjay import __version__
from scrubjay.cli.chaos import chaos
from scrubjay.cli.conf import conf
from scrubjay.cli.data import export, forget, stats
from scrubjay.cli.demo import demo
from scrubjay.cli.doctor import doctor
from scrubjay.cli.flush import flush
from scrubjay.cli.migrate import migrate
from scrubjay.cli.receipt import receipt
from scrubjay.cli.replay import replay
from scrubjay.cli.shell import EXIT_CODES, Cli
from scrubjay.cli.size import size
from scrubjay.cli.top import top
from scrubjay.cli.warm import warm


@click.group(
    cls=Cli,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(__version__, prog_name="scrubjay", message="%(prog)s %(version)s")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """The context layer between an LLM application and its data.

    Every option of a connection can also come from the environment (SCRUBJAY_STORE, SCRUBJAY_CACHE,
    SCRUBJAY_DATA_DIR, …) or from the file scrubjay.toml.

    \b
    Examples:
      scrubjay demo                                see what it does, in a few seconds
      scrubjay replay chats.jsonl.gz               run your own conversations through it
      scrubjay migrate --store postgresql://…      create or update the schema
      scrubjay stats                               hit rate, latencies, memory
      scrubjay top                                 the same, as it happens
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (demo, replay, receipt, stats, top, doctor, warm, flush, forget, export, migrate, conf, size, chaos):
    cli.add_command(command)


def main() -> None:
    """Run the command line and exit."""
    cli(prog_name="scrubjay")
