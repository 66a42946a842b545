"""The command line: each command reads its options and calls one function. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 80}
FORMATS = click.Choice(["table", "json", "csv"])

path_argument = click.argument("path", type=click.Path(path_type=Path))
sets_option = click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, help="Change one setting; may be repeated.")
on_option = click.option("--on", type=click.Choice(["local", "eager", "ray"]), default="local", show_default=True, help="How to run.")
address_option = click.option("--address", metavar="A", help="A running Ray to use, with --on ray.")
runs_option = click.option("--runs", type=click.Path(path_type=Path), default="runs", show_default=True, help="Where results go.")
data_option = click.option("--data", type=click.Path(), envvar="LOCALLEARN_DATA", help="Folder of published data sets [LOCALLEARN_DATA].")
format_option = click.option("--format", "form", type=FORMATS, default="table", show_default=True)
quiet_option = click.option("--quiet", "-q", is_flag=True, help="Print nothing but errors.")


class _Group(click.Group):
    """Commands in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, context_settings=CONTEXT)
@click.version_option(package_name="locallearn", prog_name="locallearn")
def cli() -> None:
    """Which learning rule, cut over many machines, with which messages, reaches which accuracy, for how many bytes?

    \b
    Example:
      locallearn run experiments/first.yaml
    """


@cli.command()
@path_argument
@sets_option
@on_option
@address_option
@click.option("--fresh", is_flag=True, help="Move an earlier run of the same kind to ...~1 and begin anew.")
@runs_option
@data_option
@quiet_option
def run(path: Path, quiet: bool, data: str | None, **options: Any) -> None:
    """Train one configuration.

    The same command goes on with what was interrupted, and shows what is finished.

    \b
    Example:
      locallearn run experiments/first.yaml --set train.batch=32
    """
    from locallearn.experiment import commands

    commands.use_data(data)
    commands.run(path, quiet=quiet, **options)


def main() -> None:
    """The entry point: errors that a user can act on are printed without a traceback."""
    from locallearn.errors import LocallearnError

    try:
        code = cli(standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        code = 130
    except LocallearnError as error:
        code = _told(error)
    sys.exit(code)


def _told(error: Exception) -> int:
    from locallearn.errors import ConfigError

    print(error, file=sys.stderr)
    if isinstance(error, ConfigError):
        return 2
    return 130 if type(error).__name__ == "Interrupted" else 1
