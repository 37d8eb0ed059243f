"""`scrubjay conf`: configuration files for a deployment's Valkey or Redis."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from scrubjay.cli.directory import write_together
from scrubjay.cli.options import json_option
from scrubjay.cli.report import plain_table
from scrubjay.cli.shell import open_console, print_json
from scrubjay.core.keys import DEFAULT_PREFIX
from scrubjay.observe.conf import MIN_PASSWORD, Plan, Secrets, Tls, generate, generated_names
from scrubjay.observe.conf.acl import users
from scrubjay.observe.conf.compose import IMAGE_USER
from scrubjay.observe.conf.files import NOTES_FILE

PASSWORD_VARIABLE = "SCRUBJAY_CONF_PASSWORD"  # noqa: S105 - its name
_LONGEST_LINE = 4096
F = TypeVar("F", bound=Callable[..., Any])


@click.group(invoke_without_command=True, short_help="Write configuration for a Valkey or Redis.")
@click.pass_context
def conf(ctx: click.Context) -> None:
    """Write ready-to-run configuration for a deployment's Valkey or Redis: servers, users, a compose file.

    Users have the least rights, `default` is off, passwords are new: they stand in files that only their owner may
    read, and are never printed. NEXT.md, which is written with the rest, says what to do then.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


_DATA = (
    click.option(
        "--out",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        required=True,
        help="Where to write; made if it is missing.",
    ),
    click.option("--maxmemory", metavar="SIZE", default="1gb", show_default=True, help="Memory of each server."),
    click.option(
        "--policy",
        type=click.Choice(["allkeys-lru", "volatile-lru"]),
        help="What goes when it is used up. [default: allkeys-lru]",
    ),
    click.option(
        "--role",
        type=click.Choice(["cache", "journal"]),
        default="cache",
        show_default=True,
        help="Whether all of it can be made anew, or nothing of it may be lost.",
    ),
    click.option(
        "--fsync",
        type=click.Choice(["everysec", "always"]),
        help="How a journal is written. [default: always; everysec with replicas]",
    ),
    click.option(
        "--prefix", metavar="TEXT", default=DEFAULT_PREFIX, show_default=True, help="What the keys begin with."
    ),
)
_USER = (
    click.option(
        "--user",
        metavar="NAME",
        default="scrubjay",
        show_default=True,
        help="The application's user of the server.",
    ),
    click.option(
        "--password-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        metavar="FILE",
        help=f"The application's password: the first line, {MIN_PASSWORD} characters or more. Without one, "
        f"{PASSWORD_VARIABLE} from the environment, or a new one.",
    ),
)
_TLS = (
    click.option("--tls/--no-tls", default=None, help="Listen with TLS, and with TLS only. [default: --no-tls]"),
    click.option(
        "--tls-dir",
        type=click.Path(file_okay=False, path_type=Path),
        metavar="DIR",
        help="Where ca.crt, server.crt and server.key are or will be; none are made. [default: tls below --out]",
    ),
    click.option(
        "--tls-auth-clients",
        type=click.Choice(["no", "optional", "yes"]),
        help="Whether clients show certificates, too. [default: optional]",
    ),
)
_PLACE = (
    click.option(
        "--bind",
        multiple=True,
        metavar="ADDR",
        help="Listen there; may be repeated. [default: each server's own host, and 127.0.0.1]",
    ),
    click.option(
        "--port",
        type=click.IntRange(1, 65_535),
        default=6379,
        show_default=True,
        metavar="N",
        help="The first port.",
    ),
    click.option(
        "--hosts",
        metavar="HOST,…",
        default="127.0.0.1",
        show_default=True,
        help="Where the servers run: one host, or for Sentinel and Cluster at least three.",
    ),
)
_FILES = (
    click.option(
        "--flavour",
        type=click.Choice(["valkey", "redis"]),
        default="valkey",
        show_default=True,
        help="Valkey 9, or Redis 7 and later.",
    ),
    click.option(
        "--dir",
        "served_from",
        metavar="PATH",
        help="Where the files will be on the servers: an absolute path, or `.` for where a server is started. "
        "[default: --out]",
    ),
    click.option("--force", is_flag=True, help="Write over files that are there. Passwords become new ones."),
    json_option,
)


def _options(command: F) -> F:
    """Add what all topologies take."""
    for add in reversed((*_DATA, *_USER, *_TLS, *_PLACE, *_FILES)):
        command = add(command)
    return command


@conf.command(short_help="One server.")
@_options
def single(**given: Any) -> None:
    """Write the files of one server.

    \b
    Examples:
      scrubjay conf single --out valkey --maxmemory 2gb
      scrubjay conf single --out redis --flavour redis --tls --bind 10.0.0.5 --hosts 10.0.0.5
    """
    _write("single", given)


@conf.command(short_help="A primary, replicas and Sentinels.")
@click.option(
    "--service", metavar="NAME", default="scrubjay", show_default=True, help="What Sentinels call the primary."
)
@click.option(
    "--sentinel-port",
    type=click.IntRange(1, 65_535),
    default=26379,
    show_default=True,
    metavar="N",
    help="The Sentinels' first port.",
)
@_options
def sentinel(**given: Any) -> None:
    """Write the files of a primary with replicas and as many Sentinels, one of each on every host.

    On one host, which is for trying it out, there are three of each.

    \b
    Examples:
      scrubjay conf sentinel --out valkey --hosts 10.0.0.1,10.0.0.2,10.0.0.3
    """
    _write("sentinel", given)


@conf.command(short_help="A cluster.")
@_options
def cluster(**given: Any) -> None:
    """Write the files of a cluster in which each primary has one replica.

    Three to five hosts have two servers each, six or more have one; one host, which is for trying it out, has six.

    \b
    Examples:
      scrubjay conf cluster --out valkey --hosts 10.0.0.1,10.0.0.2,10.0.0.3 --tls
    """
    _write("cluster", given)


def _write(topology: str, given: dict[str, Any]) -> None:
    out, force, as_json = given.pop("out").absolute(), given.pop("force"), given.pop("as_json")
    app = _password(given.pop("password_file"))
    plan = _plan(topology, out, given)
    there = [name for name in generated_names(plan) if os.path.lexists(out / name)]
    if there and not force:
        more = f" and {len(there) - 3} more" if len(there) > 3 else ""
        raise click.UsageError(f"in {out} there is {', '.join(there[:3])}{more} already: --force writes over it.")
    for name in there:
        if (out / name).is_dir() and not (out / name).is_symlink():
            raise click.UsageError(f"{out / name} is a directory: nothing writes over it.")
    files = generate(plan, Secrets.new(app), str(out), _owner())
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_together(out, [(file.name, file.text.encode(), file.mode) for file in files])
    if as_json:
        print_json(
            {
                "topology": topology,
                "flavour": plan.flavour,
                "role": plan.role,
                "directory": str(out),
                "files": [{"name": file.name, "mode": f"{file.mode:04o}"} for file in files],
                "users": users(plan),
                "next": str(out / NOTES_FILE),
            }
        )
        return
    console = open_console()
    rows = [(file.name, f"{file.mode:04o}") for file in files]
    console.print(plain_table(["file", "mode"], rows))
    # Not through the console, which would break a long path.
    click.echo(f"written to {out}: read {NOTES_FILE} there")


def _plan(topology: str, out: Path, given: dict[str, Any]) -> Plan:
    """Return the plan that options make."""
    if given["role"] == "journal" and given["policy"]:
        raise click.UsageError("a journal evicts nothing: --policy is for --role cache.")
    if given["role"] == "cache" and given["fsync"]:
        raise click.UsageError("a cache is not written to the disk: --fsync is for --role journal.")
    if given["role"] == "journal" and topology == "single":
        # What one server has acknowledged is nowhere but on its disk.
        given["fsync"] = given["fsync"] or "always"
    served_from = given.pop("served_from") or str(out)
    tls = _tls(out, served_from, given.pop("tls"), given.pop("tls_dir"), given.pop("tls_auth_clients"))
    hosts = tuple(host.strip() for host in given.pop("hosts").split(","))
    chosen = {name: value for name, value in given.items() if value is not None}
    return Plan(topology=topology, directory=served_from, hosts=hosts, tls=tls, **chosen)  # type: ignore[arg-type]


def _tls(out: Path, served_from: str, wanted: bool | None, directory: Path | None, clients: str | None) -> Tls | None:
    if wanted is False and (directory or clients):
        raise click.UsageError("--no-tls leaves --tls-dir and --tls-auth-clients without a meaning.")
    if not (wanted or directory or clients):
        return None
    if directory is not None:
        # With relative paths the servers find it where it is relative to them.
        seen = str(directory) if served_from == "." else str(directory.absolute())
        here = str(directory.absolute())
    else:
        seen = "tls" if served_from == "." else f"{served_from.rstrip('/')}/tls"
        here = str(out / "tls")
    return Tls(seen, here, clients or "optional")  # type: ignore[arg-type]


def _password(file: Path | None) -> str | None:
    """Return the password that is given; None for a new one."""
    if file is not None:
        try:
            with file.open(encoding="utf-8") as text:
                return text.readline(_LONGEST_LINE).rstrip("\n")
        except UnicodeDecodeError:
            raise click.UsageError(f"{file} is no text.") from None
    return os.environ.get(PASSWORD_VARIABLE)


def _owner() -> str:
    """Return whom containers run as: who may read the files; never root."""
    user = os.getuid()
    return IMAGE_USER if user == 0 else f"{user}:{os.getgid()}"
