"""The commands. Each parses, imports what it needs, calls, prints: `frontdesk --help` loads nothing heavy."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from bot.errors import FrontdeskError
from bot.messages import Platform

app = typer.Typer(
    name="frontdesk",
    help="A front desk for a small business: one small model answers, reads the mood, and calls a human.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
model_app = typer.Typer(help="The model's files.", no_args_is_help=True)
db_app = typer.Typer(help="The database.", no_args_is_help=True)
export_app = typer.Typer(help="What was learned from customers.", no_args_is_help=True)
slack_app = typer.Typer(help="Setting up Slack.", no_args_is_help=True)
app.add_typer(model_app, name="model")
app.add_typer(db_app, name="db")
app.add_typer(export_app, name="export")
app.add_typer(slack_app, name="slack")


class Role(StrEnum):
    """Roles that answer with a label."""

    SENTIMENT = "sentiment"
    INTENT = "intent"


Of = Annotated[Platform, typer.Argument(help="Where the customer writes.")]
CustomerId = Annotated[str, typer.Argument(help="The platform's id of the customer; cards show it beside the name.")]
Config = Annotated[Path, typer.Option("--config", help="The settings; .env is read beside it.")]
CONFIG = Path("config.toml")


def main() -> None:
    """Run one command. What a person can mend is one red sentence and exit code 2, never a traceback."""
    try:
        app()
    except FrontdeskError as error:
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, soft_wrap=True).print(Text(str(error), style="red"))
        sys.exit(2)


@app.command()
def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Stop after the script; exit code 1 if one got no answer.")
    ] = False,
    model: Annotated[str | None, typer.Option(help="A hub id, a directory, or bundled.")] = None,
    port: Annotated[int | None, typer.Option(help="Of the chat page.", min=0, max=65_535)] = None,
    config: Config = CONFIG,
) -> None:
    """See it work: three customers write, then the chat page is served. Needs no account and no token."""
    from bot.demo import run_demo

    raise typer.Exit(run_demo(once, model, port, config))


@app.command()
def run(
    config: Config = CONFIG,
    serve: Annotated[
        str, typer.Option(help="all; or one of several processes on PostgreSQL: adapters, worker.")
    ] = "all",
    port: Annotated[int | None, typer.Option(help="Instead of web.port, for several processes on a machine.")] = None,
) -> None:
    """Serve every configured platform until Ctrl-C or SIGTERM."""
    from bot.app import Serve, run
    from bot.config import load

    if serve not in (known := [str(each) for each in Serve]):
        raise FrontdeskError(f"--serve {serve} is unknown: use {', '.join(known)}")
    settings = load(config)
    if port is not None:
        settings = settings.model_copy(update={"web": settings.web.model_copy(update={"port": port})})
    raise typer.Exit(run(settings, Serve(serve)))


@app.command()
def init(config: Config = CONFIG) -> None:
    """Write config.toml and .env by asking; every token is tested as it is typed."""
    from bot.init import init

    init(config)


@app.command()
def doctor(config: Config = CONFIG) -> None:
    """Check the settings, database, model, tokens and rights; exit code 1 if anything is wrong."""
    from bot.doctor import examine

    raise typer.Exit(examine(config))


@app.command()
def trace(message_id: Annotated[int, typer.Argument(help="As the log names it.")], config: Config = CONFIG) -> None:
    """Show one message's way from its arrival to its answer."""
    from rich.console import Console

    from bot.config import load
    from bot.trace import print_trace

    print_trace(load(config), message_id, Console())


@app.command("eval")
def evaluate(
    file: Annotated[Path, typer.Argument(help="CSV, TSV or JSON lines with a text and a label.")],
    text_column: Annotated[str, typer.Option(help="Its name, or its number where there is no heading.")] = "",
    label_column: Annotated[str, typer.Option(help="The same for the label.")] = "",
    role: Annotated[Role, typer.Option(help="What is judged.")] = Role.SENTIMENT,
    model: Annotated[
        str | None, typer.Option(help="A hub id, a directory, or bundled; else the configured one.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Judge so many messages, drawn at random.", min=1)] = None,
    balanced: Annotated[bool, typer.Option("--balanced", help="As many messages of each label.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a picture here: confusion matrix and reliability.")] = None,
    fit_threshold: Annotated[
        float | None, typer.Option(help="Propose the threshold for this escalation precision.", min=0, max=1)
    ] = None,
    config: Config = CONFIG,
) -> None:
    """Measure how well a model reads moods on your own labelled messages."""
    from bot.config import Settings, load_without_tokens
    from bot.evaluate import evaluate as run

    settings = load_without_tokens(config) if config.exists() else Settings()
    if model is not None:
        chosen = settings.engine.model_copy(update={"model": model, "revision": ""})
        settings = settings.model_copy(update={"engine": chosen})
    run(
        settings,
        file,
        role=role,
        text_column=text_column,
        label_column=label_column,
        limit=limit,
        balanced=balanced,
        json_file=json_file,
        plot_file=plot,
        precision=fit_threshold,
    )


@app.command()
def escalations(config: Config = CONFIG) -> None:
    """List who waits for a human."""
    from rich.console import Console

    from bot.config import load_without_tokens
    from bot.escalations import print_escalations

    print_escalations(load_without_tokens(config), Console())


@app.command()
def stats(
    days: Annotated[int, typer.Option(help="So many, up to now; 0 for everything.", min=0, max=36_500)] = 30,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with times in seconds.")] = False,
    config: Config = CONFIG,
) -> None:
    """Show how the desk fared: what needed no human, how long customers waited, what they thought of it."""
    from rich.console import Console

    from bot.config import load_without_tokens
    from bot.stats import print_stats

    print_stats(load_without_tokens(config), days, as_json, Console())


@app.command()
def forget(
    platform: Of,
    customer_id: CustomerId,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: Config = CONFIG,
) -> None:
    """Erase one customer, as /forget does; while no service runs. Exit code 1 if you say no."""
    from rich.console import Console

    from bot.config import load_without_tokens
    from bot.privacy import forget

    sure = forget(
        load_without_tokens(config), platform, customer_id, lambda asked: yes or typer.confirm(asked), Console()
    )
    raise typer.Exit(0 if sure else 1)


@app.command("export-customer")
def export_customer(
    platform: Of,
    customer_id: CustomerId,
    file: Annotated[Path, typer.Argument(help="The JSON file to write.")],
    config: Config = CONFIG,
) -> None:
    """Write all that is stored about one customer: the answer to who asks for their data."""
    from bot.config import load_without_tokens
    from bot.privacy import export_customer

    held = export_customer(load_without_tokens(config), platform, customer_id, file)
    typer.echo(f"{held} in {file}")


@export_app.command("labels")
def export(
    file: Annotated[Path, typer.Argument(help="The CSV file to write.")] = Path("labels.csv"), config: Config = CONFIG
) -> None:
    """Write the messages that agents said are not negative, for `frontdesk eval`."""
    from bot.config import load_without_tokens
    from bot.export import export_labels

    count = export_labels(load_without_tokens(config), file)
    typer.echo(f"{count} {'message' if count == 1 else 'messages'} in {file}")


@app.command()
def bench(
    shape: Annotated[
        str, typer.Option(help="Whose sizes the random weights have: qwen1.5-0.5b or tiny.")
    ] = "qwen1.5-0.5b",
    customers: Annotated[str, typer.Option(help="How many write at once, one run each.")] = "1,8,16",
    model: Annotated[
        str | None, typer.Option(help="Measure this model instead: a hub id that is here, a directory, or bundled.")
    ] = None,
    precision: Annotated[str, typer.Option(help="Of this engine; several are separated by commas.")] = "fp32,int8",
    against: Annotated[
        str, typer.Option(help="What is measured beside it: textbook, llama.cpp, or nothing.")
    ] = "textbook",
    messages: Annotated[int, typer.Option(help="Of each customer, after one that warms up.", min=1)] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here.")] = None,
) -> None:
    """Measure how fast the engine is on this machine. Takes some minutes."""
    from bot.bench import bench as run
    from engine.load import resolve

    if not all(count.isdecimal() and int(count) for count in customers.split(",")):
        raise FrontdeskError(f"--customers {customers}: use numbers separated by commas, such as 1,8,16")
    counts, peers = [int(count) for count in customers.split(",")], [each for each in against.split(",") if each]
    if model is not None:
        found = resolve(model)
        if found is None:
            raise FrontdeskError(f"{model} is not on this disk: `frontdesk model pull {model}` downloads it")
        shape = str(found)
    run(shape, counts, precision.split(","), peers, messages, json_file)


@model_app.command("pull")
def model_pull(
    model: Annotated[str | None, typer.Argument(help="A hub id; the configured model when left out.")] = None,
    config: Config = CONFIG,
) -> None:
    """Download the model; an interrupted download continues. HF_ENDPOINT names a mirror."""
    from rich.console import Console

    from bot.config import Settings, load
    from bot.model import pull
    from engine.load import size_on_disk

    settings = load(config) if config.exists() else Settings()
    if model is None and settings.engine.backend == "openai":
        raise FrontdeskError("the configured model is run by its server, and nothing of it is needed here")
    name, revision = (model, "") if model else (settings.engine.model, settings.engine.revision)
    console = Console(soft_wrap=True)
    path = pull(name, revision, console)
    console.print(f"{name} is here: {size_on_disk(path) / 1e6:,.0f} MB in {path}", highlight=False)


@model_app.command("check")
def model_check(
    model: Annotated[
        str | None, typer.Argument(help="A hub id, a directory or bundled; the configured model when left out.")
    ] = None,
    config: Config = CONFIG,
) -> None:
    """Compare the model in 8 bits with itself in 32: `engine.precision = "auto"` serves it as is found good."""
    from rich.console import Console

    from bot.config import Settings, load
    from bot.model import check_precision, model_path, precision_table

    settings = load(config) if config.exists() else Settings()
    if model:
        chosen = settings.engine.model_copy(update={"model": model, "revision": ""})
        settings = settings.model_copy(update={"engine": chosen})
    console = Console(soft_wrap=True)
    report = check_precision(model_path(settings, console), settings.engine.model, console)
    console.print(precision_table(report))
    console.print(f"served in {report.sentence}", highlight=False)


@db_app.command("upgrade")
def db_upgrade(config: Config = CONFIG) -> None:
    """Bring the database to the newest schema; `run` does it by itself."""
    from bot.config import load
    from bot.store.database import name_of, single_writer, upgrade

    settings = load(config)
    url = settings.database.url
    with single_writer(url):
        upgrade(url, tokens=settings.queue.backend == "procrastinate")
    typer.echo(f"{name_of(url)} has the newest schema.")


@db_app.command("check")
def db_check() -> None:
    """Check that the migrations make the tables of this program, on a database of its own."""
    import tempfile

    from bot.store.database import schema_drift

    with tempfile.TemporaryDirectory() as folder:
        drift = schema_drift(f"sqlite:///{folder}/check.db")
    for line in drift or ["The migrations and the models agree."]:
        typer.echo(line)
    raise typer.Exit(1 if drift else 0)


@db_app.command("backup")
def db_backup(
    file: Annotated[Path, typer.Argument(help="The copy to make; must not exist.")], config: Config = CONFIG
) -> None:
    """Copy the database, also while a service runs on it."""
    from rich.console import Console

    from bot.backup import write_backup
    from bot.config import load_without_tokens

    write_backup(load_without_tokens(config), file, Console(soft_wrap=True))


@db_app.command("copy")
def db_copy(
    to: Annotated[str, typer.Option(help="An empty database: postgresql+psycopg://USER@HOST:PORT/DATABASE.")],
    config: Config = CONFIG,
) -> None:
    """Copy everything from SQLite to PostgreSQL, while no service runs."""
    from rich.console import Console

    from bot.backup import write_copy
    from bot.config import load_without_tokens

    write_copy(load_without_tokens(config), to, Console(soft_wrap=True))


@slack_app.command("manifest")
def slack_manifest(
    webhook: Annotated[str, typer.Option(help="The public address of slack.webhook; without it, Socket Mode.")] = "",
) -> None:
    """Print the app manifest to paste at api.slack.com/apps."""
    from importlib.resources import files

    text = (files("adapters") / "slack_manifest.yaml").read_text(encoding="utf-8")
    if webhook:
        text = text.replace("socket_mode_enabled: true", "socket_mode_enabled: false")
        for section in ("event_subscriptions", "interactivity"):
            text = text.replace(f"{section}:\n", f"{section}:\n    request_url: {webhook}\n")
        text = text.replace("command: /frontdesk\n", f"command: /frontdesk\n      url: {webhook}\n")
    typer.echo(text)
