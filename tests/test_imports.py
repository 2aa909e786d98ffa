"""The plan of the house, read from the source: imports run one way, signs re-export nothing, no error is swallowed, files are reached by epath."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "cdcd_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# What each room may import from besides itself. Whatever lies in the package's own folder but these two is a door, and may import everything.
ROOMS: dict[str, set[str]] = {
    "interrupts": set(),
    "config": set(),
    "data": {"config"},
    "model": set(),
    "diffusion": set(),
    "parallel": {"config", "interrupts"},
    "training": {"config", "interrupts", "data", "model", "diffusion", "parallel"},
    "evaluation": {"config", "data", "model", "diffusion", "parallel", "training"},
    "reporting": {"config", "data", "model", "diffusion", "parallel", "training", "evaluation"},
}
FORBIDDEN = {"diffusion": {"flax", "ml_collections"}, "data": {"jax", "flax"}, "reporting": {"jax", "flax"}}
# Ways to files that know no bucket, or go round epath.
OTHER_WAYS = {"codecs.open", "fileinput", "fsspec", "glob", "gzip", "io.FileIO", "io.open", "open", "os.path", "pathlib", "shutil", "tempfile"}
OTHER_WAYS |= {
    f"os.{name}"
    for name in """access chdir chmod chown fdopen fwalk getcwd link listdir lstat makedirs mkdir mkfifo open readlink remove removedirs
    rename renames replace rmdir scandir stat statvfs symlink truncate unlink utime walk""".split()
}
OTHER_WAYS |= {f"np.{name}" for name in ("fromfile", "genfromtxt", "load", "loadtxt", "memmap", "save", "savetxt", "savez", "savez_compressed")}
# The few places where a way is right that is not epath's.
RIGHT = {
    ("cdcd_jax.data.beam", "tempfile"): "where Beam makes the folders that it leaves on this machine",
    ("cdcd_jax.data.files", "fsspec"): "what epath stands on, for what it has no word for: a glob in one request, what lies at a path",
    ("cdcd_jax.data.files", "tempfile"): "large files, written on this machine before they are copied into a bucket",
    ("cdcd_jax.doors", "os.path"): "the --config file, which is Python and run from this machine's disk",
    ("cdcd_jax.parallel.agreement", "pathlib"): "the package's own source, whose digest the processes compare",
    ("cdcd_jax.training.checkup", "shutil"): "how much of this machine's disk is free",
    ("cdcd_jax.training.journal", "tempfile"): "TensorBoard's events, written on this machine before they are copied into a bucket",
    ("cdcd_jax.training.lock", "fsspec"): "an object that is created only if it is not there, for which epath has no word",
    ("cdcd_jax.training.seal", "fsspec"): "sizes and checksums of a whole folder in one listing",
    ("cdcd_jax.training.folders", "fsspec"): "what a folder holds now, and to remove or copy a whole one",
    ("cdcd_jax.training.lock", "os.readlink"): "/proc, about processes of this machine",
    ("cdcd_jax.training.lock", "pathlib"): "/proc, about processes of this machine",
}


def name_of(file: Path) -> str:
    return ".".join(file.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")


def room_of(module: str) -> str:
    """The room of a module of the package; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def imported(tree: ast.AST, module: str) -> Iterator[str]:
    """The full names that a module imports, wherever in the file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")[: -node.level] if node.level else []
            base = ".".join([*parts, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_faults(source: str, module: str) -> list[str]:
    """What a module imports that its room may not."""
    room, found = room_of(module), []
    for name in imported(ast.parse(source), module):
        top = name.split(".")[0]
        if top in FORBIDDEN.get(room, set()):
            found.append(f"{module} imports {name}")
        if top == "cdcd_jax" and room in ROOMS and room_of(name) not in ROOMS[room] | {room}:
            found.append(f"{module} imports {name}")
    return found


def other_faults(source: str, module: str) -> list[str]:
    """Errors swallowed whole, and config keys read with a silent default."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ExceptHandler):
            caught = ast.unparse(node.type) if node.type else "everything"
            if node.type is None or {"Exception", "BaseException"} & {part.strip(" ()") for part in caught.split(",")}:
                found.append(f"{module}:{node.lineno} catches {caught}")
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            default = isinstance(node.func, ast.Attribute) and node.func.attr == "get"
            if (default and (module == "cdcd_jax.config" or "config" in called)) or (
                called == "getattr" and len(node.args) == 3 and "config" in ast.unparse(node.args[0])
            ):
                found.append(f"{module}:{node.lineno} reads a config with a default: {ast.unparse(node)}")
    return found


def other_ways(source: str) -> set[str]:
    """The ways to files in a module that are not epath's, whether a function is named in full or imported by name."""
    tree, found = ast.parse(source), set()
    names = {name for name in imported(tree, "") if name.split(".")[0] != "cdcd_jax"}
    names |= {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    for name in names:
        parts = name.split(".")
        found |= {".".join(parts[: i + 1]) for i in range(len(parts))} & OTHER_WAYS
    return found


def test_there_is_something_to_read() -> None:
    """Every room of the plan exists, and every folder is a room of the plan."""
    assert {room for room in ROOMS if room not in ("config", "interrupts")} == {file.parent.name for file in PACKAGE.glob("*/__init__.py")}
    assert len(FILES) > 30


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_run_one_way(file: Path) -> None:
    assert import_faults(file.read_text(), name_of(file)) == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_error_is_swallowed_and_no_config_key_has_a_silent_default(file: Path) -> None:
    assert other_faults(file.read_text(), name_of(file)) == []


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_files_are_reached_by_epath_alone(file: Path) -> None:
    """So that a workdir, and text, may lie in a bucket. Nothing stands in RIGHT that is not used."""
    assert other_ways(file.read_text()) == {way for module, way in RIGHT if module == name_of(file)}


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*/__init__.py")), ids=name_of)
def test_a_rooms_sign_is_a_docstring_and_nothing_else(file: Path) -> None:
    body = ast.parse(file.read_text()).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant) and len(str(body[0].value.value)) > 40


def test_the_package_exports_load_run_alone() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    assert "__all__ = ['load_run']" in [ast.unparse(node) for node in tree.body]
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {name.split(".")[-1] for node in tree.body for name in imported(node, "cdcd_jax") if isinstance(node, ast.ImportFrom)}
    assert names - {"TYPE_CHECKING"} == {"load_run"}


def test_every_module_says_what_it_is_and_none_is_named_utils() -> None:
    for file in FILES:
        assert ast.get_docstring(ast.parse(file.read_text())), file
        assert file.stem not in ("utils", "util", "helpers", "misc", "common")


def test_one_maker_of_denoisers() -> None:
    """kernel.make_denoise is called in one place, and the network is applied in one place: no room can go round the kernel."""
    called = {"kernel.make_denoise": set(), "network.apply": set()}
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                for known in called:
                    if name == known or (name.endswith(".apply") and known == "network.apply"):
                        called[known].add(name_of(file))
    assert called == {"kernel.make_denoise": {"cdcd_jax.training.loss"}, "network.apply": {"cdcd_jax.training.step"}}


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("cdcd_jax.diffusion.kernel", "import flax.linen as nn"),
        ("cdcd_jax.diffusion.kernel", "from cdcd_jax.config import Config"),
        ("cdcd_jax.diffusion.kernel", "from cdcd_jax import config"),
        ("cdcd_jax.diffusion.kernel", "from ..model import denoiser"),
        ("cdcd_jax.model.layers", "def f():\n    from cdcd_jax.diffusion import kernel"),
        ("cdcd_jax.training.loss", "import cdcd_jax.evaluation.metrics"),
        ("cdcd_jax.data.sources", "from cdcd_jax.training import loop"),
        ("cdcd_jax.data.sources", "import jax.numpy as jnp"),
        ("cdcd_jax.evaluation.model", "from cdcd_jax import load_run"),
        ("cdcd_jax.config", "from cdcd_jax.data import sources"),
    ],
)
def test_these_imports_would_be_found(module: str, source: str) -> None:
    assert import_faults(source, module)


@pytest.mark.parametrize(
    "source",
    [
        "try:\n    f()\nexcept:\n    pass",
        "try:\n    f()\nexcept Exception as error:\n    pass",
        "try:\n    f()\nexcept (OSError, Exception):\n    pass",
        "config.get('width', 3)",
        "getattr(config.model, 'width', 3)",
    ],
)
def test_these_faults_would_be_found(source: str) -> None:
    assert other_faults(source, "cdcd_jax.training.loop")


@pytest.mark.parametrize(
    "source, way",
    [
        ("with open(path) as file:\n    pass", "open"),
        ("import os\nos.path.exists(path)", "os.path"),
        ("from os import path\npath.exists(p)", "os.path"),
        ("from os.path import join", "os.path"),
        ("import os\nf = os.makedirs", "os.makedirs"),
        ("from os import rename as move", "os.rename"),
        ("import pathlib", "pathlib"),
        ("from pathlib import Path", "pathlib"),
        ("def f():\n    import glob", "glob"),
        ("import io\nio.open(path)", "io.open"),
        ("from shutil import copytree", "shutil"),
        ("import tempfile as t", "tempfile"),
        ("import fsspec.core", "fsspec"),
    ],
)
def test_these_ways_to_files_would_be_found(source: str, way: str) -> None:
    assert other_ways(source) == {way}


def test_these_are_no_other_ways_to_files() -> None:
    assert not other_ways("import os\nfrom etils import epath\nwith epath.Path(p).open() as f:\n    os.environ['A'] = os.fspath(p)\nimage.open(f)")
