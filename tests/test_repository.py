"""What must stay true of the repository itself: layout, README, pins, and where heavy imports live."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import click
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
UNDERSTUDY = ROOT / "serving" / "understudy"
SOURCE_ROOTS = (ROOT / "serving", ROOT / "kernels")

TOP_LEVEL = {"LICENSE", "Makefile", "NOTICE", "README.md", "pyproject.toml"} | {
    "benchmarks", "deploy", "kernels", "serving", "tests",
}  # fmt: skip
LEFT_BEHIND = {"build", "dist", "understudy-data", "understudy-spool"}  # by tools and runs; .gitignore has them
NOT_INSTALLED = {
    "torchaudio",
    "torchcodec",
    "torchvision",
}  # vLLM asks for them, text models do not need them

# Where a heavy package may be imported, relative to serving/understudy, and where only inside functions.
HOMES = {
    "vllm": ("engines/", "fork.py", "openai_app.py"),
    "ray": ("app.py", "deployment.py", "ray_metrics.py"),
    "torch": ("demo/", "engines/"),
}
LAZY_HOMES = {"ray": ("commands/", "launch.py")}
JOURNEY_KNOWS_NOTHING_OF = ("fastapi", "ray", "torch", "vllm")

MAX_HELP_CPU_S = 1.0


# Layout


def top_level() -> set[str]:
    """What the repository has at its top: git's list, or the folder's where it is no git checkout."""
    if (ROOT / ".git").exists():
        listing = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True)
        return {PurePosixPath(path).parts[0] for path in listing.stdout.splitlines()}
    return {path.name for path in ROOT.iterdir()} - LEFT_BEHIND


def test_the_top_level_holds_nothing_else() -> None:
    unexpected = {name for name in top_level() if not name.startswith(".")} - TOP_LEVEL
    assert not unexpected, f"move these into a folder, or add them to TOP_LEVEL: {sorted(unexpected)}"


# README


@cache
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def code_in_readme() -> list[str]:
    """The README's fenced blocks and inline code, since only these are commands."""
    fenced = re.findall(r"^```[^\n]*\n(.*?)^```", readme(), flags=re.MULTILINE | re.DOTALL)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", readme(), flags=re.MULTILINE | re.DOTALL))
    return fenced + inline


def commands_in_readme(program: str) -> list[list[str]]:
    """The words after each mention of a program at the start of a command."""
    pattern = rf"(?:^|&& |[$] ?|/){program}((?: +[\w./:-]+)+)"
    return [words.split() for code in code_in_readme() for words in re.findall(pattern, code, flags=re.MULTILINE)]


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {words[0] for words in commands_in_readme("make")}
    assert named, "the README names no make target"
    assert named <= targets


def test_every_subcommand_in_the_readme_exists() -> None:
    from understudy.cli import cli

    named = commands_in_readme("understudy")
    assert named, "the README names no understudy command"
    for words in named:
        command: click.Command | None = cli
        for word in words:
            if word.startswith("-") or not isinstance(command, click.Group):
                break  # options, and the command's own arguments
            command = command.get_command(click.Context(command), word)
            assert command is not None, f"README: understudy {' '.join(words)}: no such command: {word}"


def paths_in_tree(block: str) -> Iterator[str]:
    """The paths of a README tree, where indentation means "inside" and a line starts with its names."""
    folders: list[tuple[int, str]] = []
    for line in block.splitlines():
        drawn = re.match(r"[\s│├└─]*", line)
        indent = len(drawn.group()) if drawn else 0
        names = re.match(r"(?:[\w.-]+(?:/[\w.-]+)*(?:/|\.\w+),? *)+(?= |$)", line[indent:])
        if names is None:
            continue
        while folders and folders[-1][0] >= indent:
            folders.pop()
        inside = folders[-1][1] if folders else ""
        for name in re.split(r",? +", names.group().strip()):
            yield inside + name
            if name.endswith("/"):
                folders.append((indent, inside + name))


def tree_of_readme() -> set[str]:
    blocks = [code for code in code_in_readme() if "serving/" in code and "journey.py" in code and "\n" in code]
    assert len(blocks) == 1, "the README has one fenced tree, with serving/ and journey.py in it"
    return {path.removesuffix("/") for path in paths_in_tree(blocks[0])}


def test_every_path_in_the_readme_tree_exists() -> None:
    missing = {path for path in tree_of_readme() if not (ROOT / path).exists()}
    assert not missing


def test_every_package_has_a_line_in_the_readme_tree() -> None:
    packages = {path.parent for path in UNDERSTUDY.glob("*/__init__.py")}
    missing = {path.relative_to(ROOT).as_posix() for path in packages} - tree_of_readme()
    assert not missing


def test_every_document_that_the_code_names_is_here() -> None:
    there = {path.name for path in ROOT.rglob("*.md")}
    for root in ("serving/understudy", "kernels", "tests", "benchmarks"):
        for path in sorted((ROOT / root).rglob("*.py")):
            named = set(re.findall(r"\b[A-Z][A-Z_]+\.md\b", path.read_text(encoding="utf-8")))
            assert named <= there, f"{path.relative_to(ROOT)} names {named - there}"


def test_every_law_that_the_code_names_is_in_the_readme() -> None:
    section = (ROOT / "serving" / "README.md").read_text(encoding="utf-8").partition("## The five laws")[2]
    laws = set(re.findall(r"^(\d)\. \*\*", section.partition("\n## ")[0], re.MULTILINE))
    named = {
        number
        for path in sorted(UNDERSTUDY.rglob("*.py"))
        for number in re.findall(r"\blaw (\d)\b", path.read_text(encoding="utf-8"), re.IGNORECASE)
    }
    assert named
    assert named <= laws


def test_the_tree_reader_reads_trees() -> None:
    block = """
    serving/understudy/
      journey.py       answer() and shadow(): read this first
      types.py errors.py, config.py
      lane/            admission, queue.py is not a path here
    kernels/understudy_kernels/   score, divergence
    ├── reference/     the oracle
    benchmarks/ tests/ deploy/
    """
    assert list(paths_in_tree(block)) == [
        "serving/understudy/", "serving/understudy/journey.py", "serving/understudy/types.py",
        "serving/understudy/errors.py", "serving/understudy/config.py", "serving/understudy/lane/",
        "kernels/understudy_kernels/", "kernels/understudy_kernels/reference/",
        "benchmarks/", "tests/", "deploy/",
    ]  # fmt: skip


# Pins


@cache
def project() -> dict[str, list[Requirement]]:
    """The requirements in pyproject.toml: "" for the base, else the extra's name."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = {"": table["dependencies"], **table["optional-dependencies"]}
    return {name: [Requirement(line) for line in lines] for name, lines in groups.items()}


@cache
def locked(device: str) -> dict[str, str]:
    """The versions of a pinned list by canonical name; every line must pin one with ``==``."""
    lines = (ROOT / "deploy" / f"requirements-{device}.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line and not line.startswith("#")]
    pins: dict[str, str] = {}
    for requirement in requirements:
        (pin,) = requirement.specifier
        assert pin.operator == "==", requirement
        assert "*" not in pin.version, requirement
        pins[canonicalize_name(requirement.name)] = pin.version
    assert len(pins) == len(requirements), "a package is listed twice"
    return pins


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_the_lists_have_what_pyproject_pins(device: str) -> None:
    for requirement in [*project()[""], *project()["dev"], *project()[device]]:
        version = locked(device)[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} is {version} in requirements-{device}.txt"


def test_the_lists_agree_with_each_other() -> None:
    cpu, gpu = locked("cpu"), locked("gpu")
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == {"torch"}  # 2.13.0+cpu, 2.13.0
    assert not NOT_INSTALLED & (cpu.keys() | gpu.keys())


def installed_device() -> str:
    try:
        distribution("vllm")
    except PackageNotFoundError:
        return "cpu"
    return "gpu"


def test_the_list_is_complete() -> None:
    """Whatever the listed packages require here is listed too: --no-deps would not fetch it."""
    device = installed_device()
    waiting = [*project()[""], *project()["dev"], *project()[device]]
    seen: set[tuple[str, str]] = set()
    missing: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name not in locked(device):
            missing.add(name)
            continue
        extras = {(name, extra) for extra in ("", *requirement.extras)} - seen
        seen |= extras
        if extras:
            needed = [Requirement(line) for line in distribution(name).requires or []]
            waiting += [
                each
                for each in needed
                if each.marker is None or any(each.marker.evaluate({"extra": extra}) for _, extra in extras)
            ]
    assert missing <= NOT_INSTALLED


# Imports


class Import(NamedTuple):
    """One import statement: which file, which top-level module, and whether it is inside a function."""

    path: Path
    module: str
    is_lazy: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)} imports {self.module}"


def imports_in(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    lazy = {id(inner) for function in functions for inner in ast.walk(function)}
    for node in ast.walk(tree):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        for module in modules:
            yield Import(path, module.partition(".")[0], id(node) in lazy)


@cache
def imports() -> tuple[Import, ...]:
    paths = [path for root in SOURCE_ROOTS for path in sorted(root.rglob("*.py"))]
    return tuple(found for path in paths for found in imports_in(path))


def is_in(path: Path, homes: tuple[str, ...]) -> bool:
    if not path.is_relative_to(UNDERSTUDY):
        return False
    relative = path.relative_to(UNDERSTUDY).as_posix()
    return any(relative.startswith(home) if home.endswith("/") else relative == home for home in homes)


@pytest.mark.parametrize("module", HOMES)
def test_heavy_imports_have_one_home(module: str) -> None:
    homes, lazy_homes = HOMES[module], LAZY_HOMES.get(module, ())
    strays = [
        str(found)
        for found in imports()
        if found.module == module
        and not is_in(found.path, homes)
        and not (found.is_lazy and is_in(found.path, lazy_homes))
        and not (module == "torch" and found.path.is_relative_to(ROOT / "kernels"))
    ]
    assert not strays


def test_every_import_is_a_declared_dependency() -> None:
    groups = ["", installed_device(), *sorted(project().keys() - {"", "cpu", "gpu", "dev"})]  # extras included
    declared = {canonicalize_name(requirement.name) for group in groups for requirement in project()[group]}
    providers = packages_distributions()
    known = sys.stdlib_module_names | {"understudy", "understudy_kernels", "__future__"}
    undeclared = {
        str(found)
        for found in imports()
        if found.module not in known
        and not declared & {canonicalize_name(name) for name in providers.get(found.module, [])}
    }
    assert not undeclared


def run_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT / "serving", capture_output=True, text=True, check=False
    )


def test_the_journey_knows_no_framework() -> None:
    """Not even through what it imports."""
    code = f"import sys, understudy.journey; print(*({set(JOURNEY_KNOWS_NOTHING_OF)!r} & set(sys.modules)))"
    done = run_python("-c", code)
    assert (done.returncode, done.stdout.split()) == (0, []), done.stderr


def test_help_answers_at_once() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_python("-m", "understudy.cli", "--help")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert cpu_s < MAX_HELP_CPU_S
