"""Teaches orbax to keep arrays in s3:// (docs/DESIGN.md, 10).

orbax writes arrays through tensorstore, which knows S3, but builds addresses for disks and gs:// only: `s3://bucket/x` is refused as no absolute
path. Three functions that build an address are replaced by ones that know one more kind; every other path goes through orbax's own. What they are
called is orbax's affair, so the lock file pins its version, and tests/test_bucket.py trains, kills and resumes a run in such a bucket.
"""

import functools
import os
from collections.abc import Callable
from typing import Any

from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from cdcd_jax.config import UserError

SCHEME = "s3://"
PLACES = ((tensorstore_utils, "_use_gcs_driver"), (tensorstore_utils, "_normalize_path"), (gcs_utils, "get_kvstore_for_gcs"))


@functools.cache
def teach_orbax() -> None:
    """Replaces the three functions, once in a process. Raises UserError if this orbax has them no more."""
    here: list[Callable[[str], Any]] = [lambda path: True, lambda path: path.rstrip("/"), address]
    for (module, name), ours in zip(PLACES, here, strict=True):
        theirs = getattr(module, name, None)
        if theirs is None:
            raise UserError(f"this release of orbax-checkpoint cannot be taught s3:// (it has no {name}): install the one of requirements.lock.")
        setattr(module, name, _either(theirs, ours))


def _either(theirs: Callable[[str], Any], ours: Callable[[str], Any]) -> Callable[[str], Any]:
    @functools.wraps(theirs)
    def choose(path: str) -> Any:
        return ours(str(path)) if str(path).startswith(SCHEME) else theirs(path)

    return choose


def address(path: str) -> dict[str, Any]:
    """tensorstore's address of s3://bucket/path. It reads credentials and region as Amazon's tools do, but not the endpoint of other stores."""
    bucket, _, key = path.removeprefix(SCHEME).partition("/")
    spec: dict[str, Any] = {"driver": "s3", "bucket": bucket, "path": key}
    environment = os.environ
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if endpoint:
        spec |= {"endpoint": endpoint, "aws_region": region or "us-east-1"}
    if "AWS_ACCESS_KEY_ID" in environment:
        spec["aws_credentials"] = {"type": "environment"}  # they come first anyway; asked for alone, no missing file is complained of
    return spec
