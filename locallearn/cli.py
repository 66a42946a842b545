"""The command line: each command reads its options and calls one function. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import Any

import click

INTERRUPTED = 130
CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 80}

path_argument = click.argument("path", type=click.Path(path_type=Path))
sets_option = click.option("--set", "sets", metavar="KEY=VALUE", multiple=True, help="Change one setting; may be repeated.")
only_option = click.option("--only", metavar="KEY=VALUE", multiple=True, help="Only the runs with this value; may be repeated.")
runs_option = click.option(
    "--runs",
    type=click.Path(path_type=Path),
    default="runs",
    show_default=True,
    help="Where results go.",
    callback=lambda ctx, parameter, value: value.expanduser(),
)
data_option = click.option("--data", metavar="DIR", envvar="LOCALLEARN_DATA", help="Folder of published data sets, or LOCALLEARN_DATA.")
format_option = click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
quiet_option = click.option("-q", "--quiet", is_flag=True, help="Print nothing but errors.")
on_option = click.option(
    "--on",
    type=click.Choice(["local", "eager", "ray"]),
    default="local",
    show_default=True,
    help="local: one compiled program; eager: message by message; ray: one actor for each shard.",
)
address_option = click.option(
    "--address", metavar="HOST:PORT", help="A Ray that runs already: each run goes there, as a task, or as actors with --on ray."
)
transport_option = click.option(
    "--transport",
    type=click.Choice(["socket", "ray"]),
    help="Between actors, in place of the file's: sockets, or calls of Ray where ports are closed.",
)
network_option = click.option(
    "--network", metavar="NAME", help="Emulated between actors, in place of the file's: 1mbit, or `1 Mbit/s, 20 ms`."
)


class _Group(click.Group):
    """Commands in the order in which one needs them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


@click.group(cls=_Group, context_settings=CONTEXT)
@click.version_option(package_name="locallearn", prog_name="locallearn")
def cli() -> None:
    """Which learning rule, cut over many machines, with which messages, reaches
    which accuracy, for how many bytes?

    \b
    Example:
      locallearn new --rule backprop
      locallearn run backprop.yaml
    """


@cli.command()
@click.argument("path", required=False, type=click.Path(path_type=Path))
@click.option("--rule", metavar="NAME", default="backprop", show_default=True, help="The learning rule: `locallearn rules` lists them.")
@click.option("--data", metavar="NAME", default="fashion14", show_default=True, help="The data set: `locallearn datasets` lists them.")
def new(path: Path | None, rule: str, data: str) -> None:
    """Write a commented file that runs.

    All settings of the rule are in it. Nothing is overwritten; the file is
    RULE.yaml unless PATH says otherwise.

    \b
    Example:
      locallearn new --rule predictive_coding
    """
    from locallearn.commands.newfile import write_new

    click.echo(write_new(path, rule, data))


@cli.command()
@click.argument("paths", nargs=-1, required=True, type=click.Path(path_type=Path))
def check(paths: tuple[Path, ...]) -> int:
    """Find every mistake in runs and sweeps.

    Nothing is run; each mistake is shown with its line.

    \b
    Example:
      locallearn check experiments/*.yaml
    """
    from locallearn.commands.checking import check_files

    return check_files(paths)


@cli.command()
@path_argument
@sets_option
@data_option
@format_option
def plan(path: Path, sets: tuple[str, ...], data: str | None, form: str) -> None:
    """Count the bytes of a run or sweep.

    Bytes and messages by message and link, known before anything runs.

    \b
    Example:
      locallearn plan backprop.yaml --set model.shards=4
    """
    from locallearn.commands.inspection import plan_text
    from locallearn.data.files import use_data

    use_data(data)
    click.echo(plan_text(path, sets, form))


@cli.command()
@path_argument
@sets_option
@on_option
@address_option
@transport_option
@network_option
@click.option("--fresh", is_flag=True, help="Move an earlier run to ...~1 and begin anew.")
@runs_option
@data_option
@quiet_option
def run(path: Path, on: str, address: str | None, transport: str | None, network: str | None, data: str | None, **options: Any) -> int:
    """Train one configuration.

    The same command goes on with what was interrupted, and shows what is
    finished.

    \b
    Example:
      locallearn run backprop.yaml --set train.batch=32
    """
    from locallearn.commands import running
    from locallearn.data.files import use_data

    use_data(data)
    return running.run(path, how={"on": on, "address": address, "transport": transport, "network": network}, **options)


@cli.command()
@path_argument
@only_option
@click.option("--dry-run", is_flag=True, help="List the runs and their bytes; run nothing.")
@click.option("--retry-failed", is_flag=True, help="Try failed runs again.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first failure.")
@click.option(
    "-j",
    "--jobs",
    metavar="N",
    type=click.IntRange(1),
    help="Runs at a time. By default 1; with --address as many as there is room for on the cluster.",
)
@click.option("--keep-going", is_flag=True, help="Go on even if the first runs all fail alike.")
@on_option
@address_option
@transport_option
@network_option
@runs_option
@data_option
@quiet_option
def sweep(
    path: Path, on: str, address: str | None, transport: str | None, network: str | None, data: str | None, dry_run: bool, **options: Any
) -> int:
    """Train every combination of a sweep.

    Finished runs are skipped, interrupted ones go on; a run that fails is
    noted, and the sweep goes on. Results are written here, wherever it runs.

    \b
    Example:
      locallearn sweep experiments/quickstart.yaml --only rule.name=backprop
      locallearn sweep experiments/quickstart.yaml --jobs 4
      locallearn sweep experiments/quickstart.yaml --address 10.0.0.1:6379
    """
    from locallearn.data.files import use_data

    use_data(data)
    if dry_run:
        from locallearn.commands.inspection import dry_run_text

        click.echo(dry_run_text(path, options["only"]))
        return 0
    from locallearn.commands import running

    flags = {name: options.pop(name) for name in ("retry_failed", "fail_fast", "keep_going")}
    return running.sweep(path, how={"on": on, "address": address, "transport": transport, "network": network}, flags=flags, **options)


@cli.command()
@path_argument
@click.option("--address", metavar="URL", envvar="RAY_API_SERVER_ADDRESS", required=True, help="Of the dashboard: http://HOST:8265")
@sets_option
@only_option
@click.option("--retry-failed", is_flag=True, help="Try failed runs of a sweep again.")
@click.option("--on", type=click.Choice(["ray", "local", "eager"]), default="ray", show_default=True, help="As for `run`.")
@transport_option
@network_option
@click.option("--runs", metavar="DIR", default="~/locallearn-runs", show_default=True, help="Where results go on the cluster.")
@click.option("--data", metavar="DIR", help="Folder of published data sets on the cluster.")
@click.option("--into", type=click.Path(path_type=Path), default="runs", show_default=True, help="Where results come to here.")
@click.option("--checkpoints", is_flag=True, help="Bring weights, too.")
@click.option("--no-fetch", is_flag=True, help="Leave results on the cluster.")
@click.option("--no-wait", is_flag=True, help="Do not follow the job.")
@click.option(
    "--working-dir", type=click.Path(path_type=Path, file_okay=False, exists=True), default=".", show_default=True, help="What travels."
)
@click.option("--submission-id", metavar="ID", help="In place of one made from file, identity and time.")
@click.option("--dry-run", is_flag=True, help="Print the command; send nothing.")
def submit(
    path: Path,
    on: str,
    transport: str | None,
    network: str | None,
    sets: tuple[str, ...],
    only: tuple[str, ...],
    retry_failed: bool,
    address: str,
    runs: str,
    data: str | None,
    working_dir: Path,
    into: Path,
    no_fetch: bool,
    no_wait: bool,
    **options: Any,
) -> int:
    """Run a file on a Ray cluster.

    Prints and runs the `ray job submit` that you could type, follows the log
    and brings the results here, without weights. The same command follows a
    job that still runs, and goes on with what was interrupted.

    \b
    Example:
      locallearn submit backprop.yaml --address http://localhost:8265
    """
    from locallearn.submission.job import job_of
    from locallearn.submission.submit import submit as hand_over

    words = [*(["--retry-failed"] if retry_failed else []), *(["--data", data] if data else [])]
    how = {"on": on, "transport": transport, "network": network}
    job = job_of(path, address=address, working_dir=working_dir, runs=runs, how=how, sets=sets, only=only, options=words)
    return hand_over(job, wait=not no_wait, into=None if no_fetch else into, **options)


@cli.command(hidden=True)
@click.argument("runs", type=click.Path(path_type=Path))
@click.argument("results", type=click.Path(path_type=Path))
@click.option("--checkpoints", is_flag=True)
def pack(runs: Path, results: Path, checkpoints: bool) -> None:
    """Print results as text, for `submit` to unpack elsewhere.

    \b
    Example:
      locallearn pack ~/locallearn-runs backprop
    """
    from locallearn.submission.results import pack as packed

    click.echo(packed(runs, results, checkpoints))


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
@format_option
@click.option("-w", "--watch", is_flag=True, help="Look again every second, until all runs are over.")
@click.option("--address", metavar="URL", help="Of a cluster's dashboard: look at the runs that are there.")
def status(folder: Path | None, form: str, watch: bool, address: str | None) -> int:
    """Show the state of all runs in a folder, by default `runs`.

    Of runs on actors that go on it tells who waits for whom. With --watch a
    terminal is redrawn; a pipe gets a line for each change. With --address it
    is ~/locallearn-runs on the cluster, where `submit` lets results go, or a
    folder below it.

    \b
    Example:
      locallearn status runs/quickstart --watch
      locallearn status --address http://localhost:8265 --watch
    """
    if watch and form != "table":
        raise click.UsageError("--watch has no --format: a pipe gets a line for each change")
    if address:
        from locallearn.submission.watching import folder_there, status_there

        return status_there(address, [folder_there(folder), *(["--watch"] if watch else ["--format", form])])
    from locallearn.commands import status as states

    folder = (folder or Path("runs")).expanduser()
    if watch:
        states.watch(folder, sys.stdout)
    else:
        click.echo(states.status_text(folder, form))
    return 0


@cli.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def show(folder: Path, form: str) -> None:
    """Show one run: settings, curve, traffic.

    \b
    Example:
      locallearn show runs/backprop/backprop-1a2b3c4d/seed-0
    """
    from locallearn.commands.inspection import show_text

    click.echo(show_text(folder, form))


@cli.command()
@click.argument("folders", metavar="RUN RUN...", nargs=-1, required=True, type=click.Path(path_type=Path))
@format_option
def compare(folders: tuple[Path, ...], form: str) -> None:
    """Show in what runs differ, and what came out.

    Settings that are not the same in all of them, then each result, compared
    with the first.

    \b
    Example:
      locallearn compare runs/backprop/backprop-1a2b3c4d/seed-*
    """
    from locallearn.commands.comparing import compare_text

    click.echo(compare_text(folders, form))


@cli.command()
@click.argument("folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--network", "networks", metavar="NAME", multiple=True, help="A network's name, or `1 Mbit/s, 20 ms`; may be repeated.")
@click.option("--shards", metavar="N", type=click.IntRange(1), multiple=True, help="Other numbers of shards; may be repeated.")
@click.option("--accuracy", type=click.FloatRange(0, 1), help="Until this validation accuracy, not to the end.")
@click.option("--step", type=click.FloatRange(0, min_open=True), help="Seconds that a step computes, if not as measured.")
@format_option
def time(folder: Path, networks: tuple[str, ...], shards: tuple[int, ...], accuracy: float | None, step: float | None, form: str) -> None:
    """Tell how long a run would take on a network.

    The dependencies of its step are replayed on clocks, with the time that
    the run took to compute. With more shards, its middle blocks recur.

    \b
    Example:
      locallearn time runs/backprop/backprop-1a2b3c4d/seed-0 --network 1mbit
    """
    from locallearn.commands.timing import time_text

    click.echo(time_text(folder, networks, shards, accuracy, step, form))


@cli.command()
@click.argument("folder", type=click.Path(path_type=Path), default="runs")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Another folder than FOLDER, or the page's file: `x/report.html`.")
@click.option("--tensorboard", is_flag=True, help="Write event files for TensorBoard, too.")
@click.option("--network", metavar="NAME", default="1mbit", show_default=True, help="For accuracy against time: a network, as in `time`.")
def report(folder: Path, out: Path | None, tensorboard: bool, network: str) -> int:
    """Show what runs reached, for how many bytes.

    Writes report.html, one page to read in a browser, results.csv, and the
    figures as SVG and PDF with their numbers beside them.

    \b
    Example:
      locallearn report runs/quickstart
    """
    from locallearn.commands import running

    return running.report(folder, out, tensorboard, network)


@cli.command()
@click.argument("name", required=False)
@format_option
def rules(name: str | None, form: str) -> None:
    """List the learning rules, or print one's page.

    By family: what each sends, assumes and costs. With a name: its equations,
    hyperparameters and messages.

    \b
    Example:
      locallearn rules direct_feedback
    """
    from locallearn.commands import listing

    if name is not None:
        from locallearn.commands.rulepage import rule_page, rule_parts

        click.echo(rule_page(name) if form == "table" else listing.shown([rule_parts(name)], form))
    elif form == "table":
        for line in listing.rule_lines(listing.rule_rows()):
            click.echo(line)
    else:
        click.echo(listing.shown([*listing.rule_rows()], form))


@cli.command()
@click.argument("name", required=False)
@click.option("--data", metavar="NAME", default="mnist", show_default=True, help="The data set that sizes are for.")
@format_option
def models(name: str | None, data: str, form: str) -> None:
    """List the models, or print one's page.

    Options, blocks and parameters of each. With a name: how large each block
    is, and what it passes on.

    \b
    Example:
      locallearn models resnet18 --data cifar10
    """
    from locallearn.commands import listing
    from locallearn.commands.models import block_rows, model_page, model_rows, models_text

    if form != "table":
        click.echo(listing.shown([*model_rows(data)] if name is None else block_rows(name, data), form))
    elif name is not None:
        click.echo(model_page(name, data))
    else:
        for line in models_text(model_rows(data)):
            click.echo(line)


@cli.command()
@click.argument("name", required=False)
@format_option
def codecs(name: str | None, form: str) -> None:
    """List the codecs, or print one's page.

    Arguments, bits for each number, and what each suits. With a name: its
    size, its error bound and its source, too.

    \b
    Example:
      locallearn codecs topk
    """
    from locallearn.commands import listing

    text = listing.codecs_text if name is None else listing.codec_page
    click.echo(listing.listed(listing.codec_rows(name), form, text))


@cli.command()
@data_option
@format_option
def datasets(data: str | None, form: str) -> None:
    """List the data sets.

    \b
    Example:
      locallearn datasets --data ~/data
    """
    from locallearn.commands import listing
    from locallearn.data.files import use_data

    use_data(data)
    click.echo(listing.listed(listing.dataset_rows(), form, listing.datasets_text))


@cli.command()
@runs_option
def doctor(runs: Path) -> int:
    """Look whether this machine is ready.

    \b
    Example:
      locallearn doctor
    """
    from locallearn.commands.doctor import doctor_text

    text, well = doctor_text(runs)
    click.echo(text)
    return 0 if well else 1


def main() -> None:
    """The entry point: errors that a user can act on are printed without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # raised while JAX is imported, KeyboardInterrupt becomes an ImportError, or is lost
    gc.set_threshold(100_000)  # importing JAX makes so many objects that looking for cycles among them takes a tenth of a second
    code = code_of(sys.argv[1:])
    if code == INTERRUPTED:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # all is closed; threads in which XLA still compiles would crash as Python ends
    sys.exit(code)


def code_of(words: list[str]) -> int:
    """Run a command line and give its exit code: 0 well, 1 a run failed, 2 a mistake in usage or configuration, 130 interrupted."""
    from locallearn.errors import LocallearnError

    try:
        return cli.main(words, prog_name="locallearn", standalone_mode=False) or 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; the same command goes on from the last checkpoint", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has left; say nothing more
        return 1
    except LocallearnError as error:
        click.echo(str(error), err=True)
        return error.exit_code
