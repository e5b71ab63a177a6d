"""The `ingestor` command: one function per command, no logic.

Imports stand inside functions: a container asks `ingestor health` every few seconds and must not load boto3 for it.
Exit codes: 0 well, 1 failed or something is missing, 2 the configuration or the command line is wrong, 130 interrupted.
"""

from __future__ import annotations

import math
import os
import signal
import sys
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ingestor import __version__
from ingestor.core.errors import ConfigError, IngestorError
from ingestor.core.wording import printable, printable_lines, redactor, secrets_in

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ingestor.config import Config

BAD_CONFIG = 2
INTERRUPTED = 130  # what a shell reports for SIGINT
NEW_FILE = click.Path(dir_okay=False, path_type=Path)
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class Moment(click.ParamType[int]):
    """An ISO 8601 time as milliseconds since the epoch; without an offset it is UTC."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Read the text of an option."""
        if isinstance(value, int):
            return value
        try:
            at = datetime.fromisoformat(value)
            at_ms = round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)
            datetime.fromtimestamp(at_ms / 1000, UTC)  # in UTC, or rounded, it may be in a year that none can be
        except ValueError:
            self.fail(f"{value!r} is no time such as 2026-01-31 or 2026-01-31T12:00:00Z", param, ctx)
        return at_ms


MOMENT = Moment()


class NumberRange(click.FloatRange):
    """A range of numbers without `nan`: it compares with nothing, so that no bound would stop it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Read the text of an option."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is no number", param, ctx)
        return number


class Commands(click.Group):
    """Turns our own errors into a message and an exit code; a bug keeps its traceback."""

    def invoke(self, ctx: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            for problem in error.problems:
                complain(problem)
            ctx.exit(BAD_CONFIG)
        except IngestorError as error:
            complain(f"error: {error}")
            ctx.exit(1)
        except KeyboardInterrupt:
            complain("interrupted")
            ctx.exit(INTERRUPTED)
        except BaseExceptionGroup as group:  # out of nurseries
            ctx.exit(complain_of_group(group))


def complain_of_group(group: BaseExceptionGroup[BaseException]) -> int:
    """Write what is in a group and return the exit code; raises the group when not all of it is known."""
    from ingestor.logs import leaves  # noqa: PLC0415 - see above

    if group.split((IngestorError, KeyboardInterrupt))[1] is not None:
        raise group
    if group.subgroup(KeyboardInterrupt) is not None:
        complain("interrupted")
        return INTERRUPTED
    for error in leaves(group):
        complain(f"error: {error}")
    return 1


def complain(text: str) -> None:
    """Write what is wrong, whoever worded it, without what must not be shown."""
    redact = redactor(secrets_in(os.environ))
    click.echo(printable_lines(redact(text)), err=True)


@contextmanager
def while_somebody_reads() -> Iterator[None]:
    """End quietly when whoever reads our output has gone, as `head` does."""
    try:
        yield
    except* BrokenPipeError:
        with suppress(OSError):  # what is left to be flushed has nowhere to go
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


CONFIG_HELP = (
    "YAML file, or `local` or `production` for those that come with the program. INGESTOR__SECTION__KEY environment "
    "variables win over it; `ingestor check --keys` lists them all."
)


def configured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config`, which takes a file, or the name of a configuration that comes with the program."""
    return click.option("--config", "config_name", metavar="FILE", required=True, help=CONFIG_HELP)(command)


def for_inspection(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config` to a command that looks at what a service wrote: in production, unless it is told otherwise."""
    return click.option(
        "--config", "config_name", metavar="FILE", default="production", show_default=True, help=CONFIG_HELP
    )(command)


def load_config(name: str) -> Config:
    """Read the configuration called `name`; an existing file wins over a packaged name."""
    from ingestor.config import load  # noqa: PLC0415 - see above
    from ingestor.resources import config_path  # noqa: PLC0415

    packaged = config_path(f"{name}.yaml")
    is_packaged = name in ("local", "production") and not Path(name).is_file()
    return load(packaged if is_packaged else Path(name), os.environ)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__)
def main() -> None:
    """Binance spot market data into AWS Kinesis, so that nothing is missing, and it can be proven.

    Begin with `ingestor demo`: it needs neither an account nor a network.

    Exit codes: 0 well, 1 failed or something is missing, 2 the configuration or the command line is wrong, 130
    interrupted.
    """


@contextmanager
def ready_to_end() -> Iterator[None]:
    """End at once and well when SIGTERM comes before the service listens itself: there is nothing to drain yet.

    Loading takes a second, and the first process of a container ignores what it has no handler for; it would be killed
    at the end of its grace.
    """
    before = signal.signal(signal.SIGTERM, end_at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_at_once(*_: object) -> None:
    """Leave without a word to anybody but the reader of the log."""
    os.write(2, b"stopped before it began\n")
    os._exit(0)


@main.command()
@configured
def run(config_name: str) -> None:
    """Run the service.

    SIGTERM or SIGINT ends it: it drains, and exits with 0. SIGHUP has it read its configuration again.
    """
    from ingestor.hangup import hold_hangups  # noqa: PLC0415

    hold_hangups()  # before the file is read, so that no wish to read it again is missed
    with ready_to_end():
        config = load_config(config_name)
        from ingestor import app  # noqa: PLC0415

        exit_code = app.run(config, partial(load_config, config_name))
    sys.exit(exit_code)


@main.command()
@click.option(
    "--seconds", type=NumberRange(min=1), default=30.0, metavar="S", show_default=True, help="How long it runs."
)
@click.option("--replay", type=EXISTING_FILE, help="Play a recording (JSON lines, also gzipped) instead of a model.")
@click.option("--chaos", is_flag=True, help="Break connections, messages and REST answers on the way.")
@click.option(
    "--port", type=click.IntRange(0, 65535), metavar="N", help="Port of the page.  [default: 8080, or a free one]"
)
def demo(seconds: float, replay: Path | None, port: int | None, *, chaos: bool) -> None:
    """Run everything on this machine, and prove it complete.

    A simulated venue, an embedded Kinesis, and the real service with its page between them. What was delivered is read
    back in the end; the exit code is 1 if anything is missing.
    """
    from ingestor.local.demo import run_demo  # noqa: PLC0415

    sys.exit(run_demo(seconds=seconds, replay=replay, chaos=chaos, port=port))


@main.command()
@click.option(
    "--symbol",
    "symbols",
    metavar="S",
    multiple=True,
    default=("BTCUSDT", "ETHUSDT"),
    show_default=True,
    help="May be given again.",
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same market.")
@click.option(
    "--orders", type=NumberRange(0.01, 1_000), default=10.0, show_default=True, help="Orders a second and symbol."
)
@click.option(
    "--past", type=NumberRange(0, 240), default=0.0, help="Hours that the market has lived already.  [default: 0]"
)
@click.option("--replay", type=EXISTING_FILE, help="Play a recording (JSON lines, also gzipped) instead of a model.")
@click.option("--speed", type=NumberRange(min=0), default=1.0, show_default=True, help="Of the recording; 0: at once.")
@click.option("--chaos", is_flag=True, help="Break connections, messages and REST answers on the way.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, metavar="N", help="Port; 0 takes a free one.  [default: 0]"
)
def simulate(
    *,
    symbols: tuple[str, ...],
    seed: int,
    orders: float,
    past: float,
    replay: Path | None,
    speed: float,
    chaos: bool,
    host: str,
    port: int,
) -> None:
    """Serve a simulated venue to other programs.

    WebSocket, REST and archive are on one port of this machine, in plain text.
    """
    from ingestor.local.simulate import run_simulator  # noqa: PLC0415

    sys.exit(
        run_simulator(
            symbols=[symbol.upper() for symbol in symbols],
            seed=seed,
            orders_per_s=orders,
            past_h=past,
            replay=replay,
            speed=speed,
            with_chaos=chaos,
            host=host,
            port=port,
        )
    )


@main.command()
@click.option("--config", "config_name", metavar="FILE", default="production", show_default=True, help="As for `run`.")
@click.option("--symbol", "symbols", metavar="S", multiple=True, required=True, help="May be given again.")
@click.option("--stream", "stream", type=click.Choice(["trade", "kline"]), required=True, help="Trades or candles.")
@click.option("--interval", metavar="I", help="Of the klines.  [default: 1m]")
@click.option("--start", type=MOMENT, help="From then on, such as 2026-01-31T12:00:00Z.")
@click.option("--end", type=MOMENT, help="Before then.")
@click.option("--from-id", type=click.IntRange(0), metavar="ID", help="From this trade id on.")
@click.option("--to-id", type=click.IntRange(0), metavar="ID", help="Up to this trade id.")
@click.option(
    "--via",
    type=click.Choice(["rest", "archive"]),
    default="rest",
    show_default=True,
    help="Over REST, or from the files of the public archive, which is faster for days and months.",
)
@click.option("--to", "output", type=NEW_FILE, metavar="FILE", help="Into an Avro object container file instead.")
@click.option("--state", type=NEW_FILE, metavar="FILE", help="Where progress is kept.  [default: named by the command]")
@click.option("--plain", is_flag=True, help="Lines instead of a live display.")
@click.option("--dry-run", is_flag=True, help="Only say how many requests, how much weight, how long.")
def backfill(config_name: str, *, plain: bool, dry_run: bool, **asked: Any) -> None:
    """Load a past range into the stream or a file; resumable.

    The range is --start to --end, or --from-id to --to-id for trades. Run the same command again to continue it.
    """
    from ingestor.loading import read_request, run_command  # noqa: PLC0415

    try:
        request = read_request(**asked)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    sys.exit(run_command(request, load_config(config_name), plain=plain, dry_run=dry_run, out=sys.stdout))


@main.command()
@for_inspection
@click.option("--stream", metavar="NAME", help="Another stream than the configured one, such as ingestor-heartbeat.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per record.")
def tail(config_name: str, stream: str | None, *, as_json: bool) -> None:
    """Show decoded records of a stream as they arrive."""
    config = load_config(config_name)
    import trio  # noqa: PLC0415

    from ingestor import inspection  # noqa: PLC0415

    with suppress(KeyboardInterrupt), while_somebody_reads():  # the way to end it
        trio.run(partial(inspection.tail, config, stream=stream, as_json=as_json, out=sys.stdout))


@main.command()
@for_inspection
@click.option("--symbol", metavar="S", help="Only this symbol.")
@click.option("--start", type=MOMENT, help="Only what arrived from then on, such as 2026-01-31T12:00:00Z.")
@click.option("--end", type=MOMENT, help="Only what arrived until then; later records may still fill holes.")
@click.option("--cross-check", is_flag=True, help="Hold the newest ids against the venue.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def audit(
    config_name: str, symbol: str | None, start: int | None, end: int | None, *, cross_check: bool, as_json: bool
) -> None:
    """Prove that nothing is missing, or list what is.

    Reads the stream back: every hole, gap and duplicate. The exit code is 1 if ids are missing and not declared.
    """
    config = load_config(config_name)
    import trio  # noqa: PLC0415

    from ingestor import inspection  # noqa: PLC0415

    proof = partial(
        inspection.audit,
        config,
        symbol=None if symbol is None else symbol.upper(),
        start_ms=start,
        end_ms=end,
        as_json=as_json,
        cross_check=cross_check,
        out=sys.stdout,
    )
    sys.exit(trio.run(proof))


@main.group("dead-letter")
def dead_letter() -> None:
    """Look at what was given up, and send it again."""


def choosing(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose letters."""
    for option in (
        click.option("--symbol", metavar="S", help="Only letters of this symbol."),
        click.option("--reason", metavar="R", help="Only letters with this reason, such as encoding."),
    ):
        command = option(command)
    return command


@dead_letter.command("list")
@for_inspection
@choosing
@click.option("--json", "as_json", is_flag=True, help="One JSON object per letter.")
def list_letters(config_name: str, reason: str | None, symbol: str | None, *, as_json: bool) -> None:
    """List the letters in the configured directory, and in the queue if there is one."""
    config = load_config(config_name)
    import trio  # noqa: PLC0415

    from ingestor import replay  # noqa: PLC0415

    choice = replay.Choice(reason, symbol)
    trio.run(partial(replay.list_letters, config, choice, as_json=as_json, out=sys.stdout))


@dead_letter.command("show")
@for_inspection
@click.option("--raw", "as_raw", is_flag=True, help="Only the bytes, as they came.")
@click.argument("letter_id", metavar="ID")
def show_letter(config_name: str, letter_id: str, *, as_raw: bool) -> None:
    """Show all that is known of a letter.

    The beginning of its id is enough.
    """
    config = load_config(config_name)
    import trio  # noqa: PLC0415

    from ingestor import replay  # noqa: PLC0415

    show = partial(replay.show_letter, config, letter_id, as_raw=as_raw, out=sys.stdout, raw_out=sys.stdout.buffer)
    trio.run(show)


@dead_letter.command("replay")
@for_inspection
@choosing
@click.option("--force", "is_forced", is_flag=True, help="Also what Kinesis refused, or what is not configured.")
@click.option("--dry-run", "is_dry", is_flag=True, help="Only say what would be sent.")
@click.argument("ids", metavar="[ID]...", nargs=-1)
def replay_letters(
    config_name: str, ids: tuple[str, ...], reason: str | None, symbol: str | None, *, is_forced: bool, is_dry: bool
) -> None:
    """Send letters again, each once.

    Each is decoded and encoded with today's code. What still does not fit is refused, and the exit code is 1.
    """
    config = load_config(config_name)
    import trio  # noqa: PLC0415

    from ingestor import replay  # noqa: PLC0415

    choice = replay.Choice(reason, symbol, ids)
    sys.exit(trio.run(partial(replay.replay, config, choice, is_forced=is_forced, is_dry=is_dry, out=sys.stdout)))


def print_keys(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    """Print every key with its meaning, and end."""
    if not wanted:
        return
    from ingestor.config import keys  # noqa: PLC0415

    for key in keys():
        default = f", default {key.default}" if key.default else ""
        click.echo(f"{key.path}  ({key.kind}{default})\n    {key.meaning}")
    ctx.exit()


def print_schema(ctx: click.Context, _param: click.Parameter, wanted: bool) -> None:
    """Print the JSON Schema of a configuration file, and end."""
    if not wanted:
        return
    import json  # noqa: PLC0415

    from ingestor.config import Config  # noqa: PLC0415

    click.echo(json.dumps(Config.model_json_schema(), indent=2))
    ctx.exit()


@main.command()
@configured
@click.option(
    "--keys",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_keys,
    help="List every key with its type, default and meaning, and exit.",
)
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=print_schema,
    help="Print the JSON Schema of a configuration file, for editors, and exit.",
)
@click.option(
    "--connect", is_flag=True, help="Also reach the venue, Kinesis and the dead letters; exit 1 if one fails."
)
def check(config_name: str, *, connect: bool) -> None:
    """Check a configuration, and with --connect what it needs.

    Every mistake is told at once, with its path, and the exit code is 2; a valid one is printed with all its values.
    """
    config = load_config(config_name)
    if connect:
        from ingestor import preflight  # noqa: PLC0415

        sys.exit(preflight.run(config, sys.stdout))
    from ingestor.config import to_yaml  # noqa: PLC0415

    click.echo(to_yaml(config), nl=False)
    click.echo(f"{config_name}: valid", err=True)


@main.command()
@click.option("--live", "path", flag_value="/live", help="Only whether its loop turns.")
@click.option("--started", "path", flag_value="/started", help="Whether it is live and has been ready once.")
@click.option("--ready", "path", flag_value="/ready", help="Whether everything flows now.")
@click.option(
    "--host",
    envvar="INGESTOR__HEALTH__HOST",
    default="127.0.0.1",
    show_default=True,
    show_envvar=True,
    help="Where it listens.",
)
@click.option(
    "--port",
    envvar="INGESTOR__HEALTH__PORT",
    type=click.IntRange(1, 65535),
    metavar="N",
    default=8080,
    show_default=True,
    show_envvar=True,
    help="And on which port.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=NumberRange(min=0, max=86_400, min_open=True),
    metavar="S",
    default=4.0,
    show_default=True,
    help="Seconds to wait.",
)
def health(path: str | None, host: str, port: int, timeout_s: float) -> None:
    """Ask a running service how it is.

    The exit code is 0 or 1, for the health checks of containers. Without an option: whether it works at all.
    """
    from ingestor.probe import ask  # noqa: PLC0415

    is_good, text = ask(host, port, path or "/health", timeout_s)
    click.echo(printable(text))
    sys.exit(0 if is_good else 1)
