"""python -m cdcd_jax.report --workdir=runs/demo: writes report.html and report.json into the workdir and prints what was reached."""

import json
import sys

from absl import app, flags
from etils import epath
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cdcd_jax.config import UserError
from cdcd_jax.reporting import page, pictures, workdir


def write(folder: epath.PathLike, picture: str | None = None) -> workdir.Run:
    """Reads the workdir, writes report.html and report.json into it, and the README's picture to `picture` (.svg or .png). Raises UserError."""
    kind = epath.Path(picture).suffix[1:] if picture else None
    if picture and kind not in ("svg", "png"):
        raise UserError(f"--picture={picture} must end in .svg or .png.")
    run = workdir.load(folder)
    if picture and run.trajectory is None:
        raise UserError(f"--picture needs samples/trajectory.json, which {run.workdir} lacks: make it with {workdir.commands(run.workdir)['trajectory']}.")
    files = {run.workdir / "report.html": page.render(run).encode(), run.workdir / "report.json": (json.dumps(page.summary(run), indent=2) + "\n").encode()}
    if picture:
        files[epath.Path(picture)] = pictures.readme_picture(run.trajectory, run.telemetry[-1] if run.telemetry else None, kind)
    for path, content in files.items():
        page.write_atomically(path, content)
    return run


def show(run: workdir.Run, picture: str | None, console: Console) -> None:
    """Prints the closing table, what is absent with the command that makes it, and where things lie."""
    table = Table(title=f"{run.workdir}", title_justify="left", title_style="bold", box=None, pad_edge=False, show_header=False)
    facts = page.facts(run)
    for fact in facts:
        value = Text("absent", style="yellow") if fact.value is None else Text(fact.value, style="bold")
        table.add_row(Text(fact.name), value, Text(fact.note, style="dim"))
    console.print(table)
    absent: dict[str, list[str]] = {}
    for name, command in [(fact.name, fact.command) for fact in facts if fact.value is None] + page.absent_parts(run):
        absent.setdefault(command, []).append(name)
    for command, names in absent.items():
        console.print(Text(f"absent: {', '.join(names)}; made by {command}"), soft_wrap=True)
    lies = ["report.html", "report.json", *(name for name in ("samples", "eval", "checkpoints", "metrics.jsonl") if (run.workdir / name).exists())]
    for path in [*(run.workdir / name for name in lies), *([picture] if picture else [])]:
        console.print(Text(f"  {path}"), soft_wrap=True)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"{argv[1]!r} is no flag: write --workdir=runs/demo.")
    if not flags.FLAGS.workdir:
        raise UserError("--workdir is missing: name the folder of a run, as --workdir=runs/demo.")
    run = write(flags.FLAGS.workdir, flags.FLAGS.picture)
    show(run, flags.FLAGS.picture, Console())


def parse(argv: list[str]) -> list[str]:
    """absl's parser, with its error as one sentence."""
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(" ".join(str(error).split())) from error


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "The folder of the run.")
    flags.DEFINE_string("picture", None, "Also write the README's picture there (.svg or .png).")
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
