"""python -m cdcd_jax.train --config=configs/demo.py --workdir=runs/demo [--config.train.num_steps=200 ...]: trains a run, or goes on with it."""

import errno

from absl import flags
from ml_collections import config_flags

from cdcd_jax import doors
from cdcd_jax.config import from_dict
from cdcd_jax.data import files
from cdcd_jax.parallel import agreement, hosts
from cdcd_jax.parallel.watch import Watch
from cdcd_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", None, "The config, a file of configs/; any key: --config.section.key=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run, or gs://bucket/folder; made if absent, gone on with if it holds this run.")
GO_BACK_TO = flags.DEFINE_integer("go_back_to", None, "Go on from the checkpoint of this step, and set later ones aside.", lower_bound=0)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    config, workdir = from_dict(CONFIG.value), files.locate(WORKDIR.value)
    with Watch(config.hosts) as clock:
        try:
            code = train(config, workdir, clock, GO_BACK_TO.value)
            clock.enter("checkpoint")  # the others may still save
            agreement.barrier("the end")
            return hosts.depart(code)
        except files.failures() as error:  # a full disk, or a folder or bucket that may not be written any more
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)  # a write to an open file does not name it
            named = getattr(error, "filename", None) or ""
            if not (full or files.in_bucket(workdir) or str(named).startswith(str(workdir))):
                raise
            done = "reached" if files.transient(error) else "written"
            raise files.failed(error, f"{named or workdir} cannot be {done} ({files.reason(error)}); what was saved before is whole.") from error


if __name__ == "__main__":
    doors.run(main)
