"""python -m cdcd_jax.doctor [--workdir=runs/demo] [--config=configs/demo.py]: whether a run could start here; exit 1: something is to be mended."""

from absl import flags
from ml_collections import config_flags
from rich.console import Console
from rich.text import Text

from cdcd_jax import doors
from cdcd_jax.config import from_dict
from cdcd_jax.training import checkup

CONFIG = config_flags.DEFINE_config_file("config", None, "The config of the run; any key: --config.section.key=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run, or gs://bucket/folder.")


def main() -> int:
    console, well = Console(), True
    config = None if CONFIG.value is None else from_dict(CONFIG.value)
    given = []
    if config is not None:  # as it may be given to prepare
        name, values = doors.given_config()
        given = [f"--config={name}", *(f"--config.{key}={value}" for key, value in values.items())]
    for finding in checkup.findings(WORKDIR.value, config, given):
        well = well and finding.good
        console.print(
            Text.assemble(("ok    " if finding.good else "MEND  ", "green" if finding.good else "bold red"), f"{finding.name}: {finding.said}"),
            soft_wrap=True,
        )
        if not finding.good:
            console.print(Text(f"      {finding.mend}", "yellow"), soft_wrap=True)
    return 0 if well else 1


if __name__ == "__main__":
    doors.run(main)
