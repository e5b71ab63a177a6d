"""The `ingestor` command: one function per command, no logic.

Imports stand inside functions: a container asks `ingestor health` every few seconds and must not load boto3 for it.
Exit codes: 0 well, 1 failed or something is missing, 2 the configuration or the command line is wrong.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ingestor import __version__
from ingestor.core.errors import ConfigError, IngestorError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from ingestor.config import Config

BAD_CONFIG = 2


class Commands(click.Group):
    """Turns our own errors into a message and an exit code; a bug keeps its traceback."""

    def invoke(self, context: click.Context) -> object:
        """Run a command."""
        try:
            return super().invoke(context)
        except ConfigError as error:
            for problem in error.problems:
                click.echo(problem, err=True)
            context.exit(BAD_CONFIG)
        except IngestorError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(1)


def configured(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--config`, which takes a file, or the name of a configuration that comes with the program."""
    return click.option(
        "--config",
        "config_name",
        metavar="FILE",
        required=True,
        help="YAML file, or `local` or `production` for those that come with the program. "
        "INGESTOR__SECTION__KEY environment variables win over it.",
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
    """Binance spot market data into AWS Kinesis, so that nothing is missing, and it can be proven."""


@main.command()
@configured
def run(config_name: str) -> None:
    """Run the service until SIGTERM or SIGINT."""
    config = load_config(config_name)
    from ingestor import app  # noqa: PLC0415

    sys.exit(app.run(config))


@main.command()
@configured
def check(config_name: str) -> None:
    """Say everything that is wrong with a configuration, or print what it amounts to."""
    config = load_config(config_name)
    from ingestor.config import to_yaml  # noqa: PLC0415

    click.echo(to_yaml(config), nl=False)
    click.echo(f"{config_name}: valid", err=True)


@main.command()
@click.option("--live", "path", flag_value="/live", help="Ask whether the loop turns.")
@click.option("--started", "path", flag_value="/started", help="Ask whether it is live and has been ready once.")
@click.option("--ready", "path", flag_value="/ready", help="Ask whether everything flows now.")
@click.option("--host", envvar="INGESTOR__HEALTH__HOST", default="127.0.0.1", show_default=True, show_envvar=True)
@click.option("--port", envvar="INGESTOR__HEALTH__PORT", default=8080, show_default=True, show_envvar=True)
@click.option("--timeout", "timeout_s", default=4.0, show_default=True, help="Seconds to wait.")
def health(path: str | None, host: str, port: int, timeout_s: float) -> None:
    """Ask a running service how it is; exit 0 or 1, for container health checks."""
    from ingestor.probe import ask  # noqa: PLC0415

    is_good, text = ask(host, port, path or "/health", timeout_s)
    click.echo(text)
    sys.exit(0 if is_good else 1)
