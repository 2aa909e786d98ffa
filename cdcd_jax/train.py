"""python -m cdcd_jax.train --config=configs/demo.py --workdir=runs/demo [--config.train.num_steps=200 ...]: trains a run, or goes on with it."""

import errno

from absl import flags
from etils import epath
from ml_collections import config_flags

from cdcd_jax import doors
from cdcd_jax.config import UserError, from_dict
from cdcd_jax.training.loop import train

CONFIG = config_flags.DEFINE_config_file("config", None, "The config, a file of configs/; any key: --config.section.key=value.")
WORKDIR = flags.DEFINE_string("workdir", None, "The folder of the run; made if absent, gone on with if it holds this run.")
GO_BACK_TO = flags.DEFINE_integer("go_back_to", None, "Go on from the checkpoint of this step, and set later ones aside.", lower_bound=0)
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    workdir = epath.Path(WORKDIR.value)
    try:
        return train(from_dict(CONFIG.value), workdir, GO_BACK_TO.value)
    except OSError as error:  # a full disk, or a folder that may not be written any more
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # a write to an open file does not name it
        if not full and not str(error.filename or "").startswith(str(workdir)):
            raise
        raise UserError(f"{error.filename or workdir} cannot be written ({error.strerror}); what was saved before is whole.") from error


if __name__ == "__main__":
    doors.run(main)
