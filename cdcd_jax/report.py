"""python -m cdcd_jax.report --workdir=runs/demo: writes report.html and report.json into the workdir and prints what was reached."""

from absl import flags
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdcd_jax import doors
from cdcd_jax.reporting import page
from cdcd_jax.reporting.records import Recorded

WORKDIR = flags.DEFINE_string("workdir", None, "The folder of a run, or gs://bucket/folder.", required=True)
PICTURE = flags.DEFINE_string("picture", None, "Also draw the README's picture, to this .svg or .png file.")


def show(run: Recorded, console: Console) -> None:
    """Prints what was reached, what is absent with the command that makes it, and where things lie."""
    table = Table(title=f"{run.workdir}", title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False)
    facts = page.facts(run)
    for fact in facts:
        table.add_row(Text(fact.name), Text("absent", "yellow") if fact.value is None else Text(fact.value, "bold"), Text(fact.note, "dim"))
    console.print(table)
    absent: dict[str, list[str]] = {}
    for name, command in [(fact.name, fact.command) for fact in facts if fact.value is None] + page.absent_parts(run):
        absent.setdefault(command, []).append(name)
    for command, names in absent.items():
        console.print(Text(f"absent: {', '.join(names)}; made by {command}"), soft_wrap=True)
    console.print("Where things lie:")
    for name in ("report.html", "report.json", "samples", "eval", "checkpoints", "metrics.jsonl", "telemetry.jsonl"):
        if (run.workdir / name).exists():
            console.print(Text(f"  {run.workdir / name}"), soft_wrap=True)


def main() -> int:
    run = page.write(WORKDIR.value, PICTURE.value)
    show(run, Console())
    return 0


if __name__ == "__main__":
    doors.run(main)
