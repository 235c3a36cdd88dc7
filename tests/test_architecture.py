"""The house rules, read from the source with `ast`: who may import what, and what each file has."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PLACES = {"vkrt": "vkrt", "kernels": "vkrt.kernels", "export": "vkrt.export"}

# Plain data and the interfaces that everything may speak of.
PLAIN = {
    "arguments",
    "errors",
    "options",
    "stage",
    "catalog",
    "models.sam2.config",
    "models.sd35.config",
    "models.sd35.known",
    "models.sd35.layout",
    "temporary",
    "weights.safety_limits",
    "limited",
    "forks",
}
BELOW_LOADING = PLAIN | {"backends", "engines", "kernels", "media", "memory", "models", "weights"}

# Each part and the parts it may import, itself aside. A module belongs to its longest prefix here;
# "" is vkrt/__init__.py. Everything points down.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "arguments": {"errors"},
    "stage": set(),
    "models.sam2.config": set(),
    "models.sd35.config": set(),
    "models.sd35.known": {"models.sd35.config"},
    "models.sd35.layout": {"models.sd35.config"},
    "temporary": {"errors"},
    "weights.safety_limits": set(),
    "options": {"arguments", "errors"},
    "catalog": {
        "arguments",
        "errors",
        "models.sam2.config",
        "models.sd35.config",
        "models.sd35.known",
    },
    "_native": set(),
    "kernels": {"_native", "kernels.host_attention", "kernels.host_attention.tensors"},
    "kernels.host_attention": {"_native"},
    "kernels.host_attention.tensors": {"kernels.host_attention"},
    "forks": {"errors"},
    "media": {
        "arguments",
        "errors",
        "forks",
        "_native",
        "limited",
        "protobuf",
        "temporary",
        "weights.safety_limits",
    },
    "models": {
        "kernels",
        "stage",
        "models.sam2.config",
        "models.sd35.config",
        "models.sd35.known",
        "models.sd35.layout",
    },
    "memory": {"arguments", "errors", "forks", "stage", "models.sd35.config", "models.sd35.layout"},
    "limited": {"weights.safety_limits"},
    "protobuf": set(),
    "onnx_graph": set(),
    "onnx_file": {"errors", "onnx_graph", "protobuf", "weights.safety_limits"},
    "operators": {"onnx_graph", "weights.safety_limits"},
    "array_rules": {"onnx_graph", "operators"},
    "array_sizes": {"array_rules", "onnx_graph", "stage", "steps", "weights.safety_limits"},
    "graph_ports": {"onnx_graph", "stage", "steps"},
    "verified": {"errors", "manifest", "onnx_file", "onnx_graph", "protobuf"},
    "steps": set(),
    "manifest": {"errors", "limited", "stage", "steps", "weights.safety_limits"},
    "bundle": {
        "array_sizes",
        "errors",
        "stage",
        "steps",
        "catalog",
        "graph_ports",
        "manifest",
        "onnx_graph",
        "temporary",
        "operators",
        "verified",
        "weights.safety_limits",
    },
    "backends": {
        "errors",
        "forks",
        "options",
        "stage",
        "steps",
        "bundle",
        "kernels.host_attention",
    },
    "weights": {*PLAIN, "models", "media"},
    # A scene is made of its seed, and of nothing else here.
    "demo.shapes": set(),
    "demo.textures": set(),
    "demo.scenes": {"demo.shapes", "demo.textures"},
    "demo.exposure": {"demo.motion", "demo.shapes", "demo.textures"},
    "demo.motion": {"demo.shapes"},
    "demo.actors": {"demo.motion", "demo.scenes", "demo.shapes", "demo.textures"},
    "demo.clips": {
        "demo.actors",
        "demo.exposure",
        "demo.motion",
        "demo.scenes",
        "demo.shapes",
        "demo.textures",
    },
    # A checkpoint becomes a bundle and is held against ONNX Runtime, an int8 one to the masks that
    # the engine gives on scenes and clips too; "" has the version.
    "export": {*BELOW_LOADING, "bundle", "manifest", "demo.clips", "demo.scenes", "steps", ""}
    - {"memory"},
    "export.__main__": {"cli"},
    "engines": {*PLAIN, "media", "memory", "backends", "bundle"},
    "meant": {*PLAIN, "bundle", "load_arguments", "manifest", "weights"},
    "fitness": {"backends", "bundle", "errors", "export"},
    "loading_sam2": BELOW_LOADING | {"bundle", "export", "fitness", "manifest", "meant"},
    "loading_sd35": BELOW_LOADING | {"bundle", "fitness", "manifest", "meant"},
    "load_arguments": {"arguments", "errors", "models.sam2.config"},
    "loading": {*PLAIN, "engines", "load_arguments", "loading_sam2", "loading_sd35", "meant"},
    "exporting": {*PLAIN, "backends", "bundle", "export", "load_arguments", "meant"},
    "": {*PLAIN, "loading", "engines"},
    **{
        part: {*BELOW_LOADING, "bundle", "export", "exporting", "loading", "loading_sam2", ""}
        for part in ("compat", "demo", "bench", "serve", "scale", "cli")
    },
}
USES_DEMO = {"bench", "cli"}
for _part in USES_DEMO:
    MAY_IMPORT[_part].add("demo")
MAY_IMPORT["demo"] |= {"demo.clips", "demo.scenes"}
MAY_IMPORT["cli"] |= {"meant", "steps", "kernels.host_attention"}

TORCH_FREE = (
    "",
    "array_rules",
    "array_sizes",
    "arguments",
    "bundle",
    "catalog",
    "cli",
    "engines",
    "errors",
    "forks",
    "export.progress",
    "kernels.host_attention",
    "limited",
    "manifest",
    "media",
    "memory",
    "models.sam2.config",
    "models.sd35.config",
    "models.sd35.known",
    "models.sd35.layout",
    "graph_ports",
    "onnx_file",
    "onnx_graph",
    "operators",
    "options",
    "protobuf",
    "stage",
    "steps",
    "temporary",
    "verified",
    "weights.safety_limits",
)
HEAVY = {"torch", "transformers", "triton", "onnx", "huggingface_hub", "skimage"}
BACKEND_NAMES = {"eager", "compiled", "onnx", "openvino", "fake"}


@dataclass
class Import:
    """Say that a module imports another one.

    Attributes:
        when: "load" at module level, "call" in a function, "types" under TYPE_CHECKING.
    """

    target: str
    line: int
    when: str


@dataclass
class Source:
    """Hold a module: its dotted name, its file and its syntax tree."""

    name: str
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


def read_tree(root: Path) -> dict[str, Source]:
    """Return every module below the places of `root`, by its installed name."""
    found = {}
    for folder, package in PLACES.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join((package, *(p for p in parts if p != "__init__")))
            found[name] = Source(name, path, ast.parse(path.read_text(encoding="utf-8")))
    return found


def statements(node: ast.AST, when: str = "load") -> Iterator[tuple[ast.stmt, str]]:
    """Give every import statement below a node with the time at which it runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, when
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield from statements(child, "call")
        elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            yield from statements(child, "types")
        else:
            yield from statements(child, when)


def imports(source: Source, known: set[str]) -> list[Import]:
    """Return what a module imports; `from a import b` is a.b where that is a module."""
    found = []
    for statement, when in statements(source.tree):
        if isinstance(statement, ast.Import):
            targets = [alias.name for alias in statement.names]
        else:
            assert isinstance(statement, ast.ImportFrom)
            base = statement.module or ""
            if statement.level:
                parts = source.name.split(".")
                kept = len(parts) - statement.level + source.is_package
                base = ".".join([*parts[:kept], *([base] if base else [])])
            full = [f"{base}.{alias.name}" for alias in statement.names]
            targets = [name if name in known else base for name in full]
        found += [Import(target, statement.lineno, when) for target in dict.fromkeys(targets)]
    return found


def part_of(name: str) -> str | None:
    """Return the longest part of MAY_IMPORT that holds a module of vkrt, None if none does."""
    rest = name.removeprefix("vkrt").removeprefix(".")
    while rest not in MAY_IMPORT:
        if "." not in rest:
            return None
        rest = rest.rpartition(".")[0]
    return rest


def is_own(name: str) -> bool:
    return name == "vkrt" or name.startswith("vkrt.")


def layering(sources: dict[str, Source]) -> list[str]:
    """Return each import that points up, and each module that belongs to no part."""
    wrong = []
    for source in sources.values():
        part = part_of(source.name)
        if part is None:
            wrong.append(f"{source.name} belongs to no part of MAY_IMPORT")
            continue
        for item in imports(source, set(sources)):
            if is_own(item.target):
                other = part_of(item.target)
                if other != part and other not in MAY_IMPORT[part]:
                    wrong.append(f"{source.name}:{item.line} must not import {item.target}")
            elif item.target.partition(".")[0] in ("kernels", "export"):
                wrong.append(f"{source.name}:{item.line} imports a bare {item.target}")
    return wrong


def cycles(sources: dict[str, Source]) -> list[str]:
    """Return a cycle of imports, in whatever function they stand; imports for types alone pass."""
    graph = {
        source.name: {
            item.target
            for item in imports(source, set(sources))
            if item.target in sources and item.when != "types"
        }
        for source in sources.values()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return [" -> ".join(error.args[1])]
    return []


def loaded_by(name: str, sources: dict[str, Source]) -> dict[str, str]:
    """Return every module that importing `name` loads, each with who asked for it."""
    loaded: dict[str, str] = {}
    waiting = [(name, "")]
    while waiting:
        current, asker = waiting.pop()
        if current in loaded:
            continue
        loaded[current] = asker
        if current not in sources:
            continue
        # A package's own __init__.py runs before any module in it.
        waiting += [(current.rpartition(".")[0], current)] if "." in current else []
        waiting += [
            (item.target, current)
            for item in imports(sources[current], set(sources))
            if item.when == "load"
        ]
    return loaded


def heavy_imports(sources: dict[str, Source]) -> list[str]:
    """Return each torch-free module that loads a heavy package, itself or through others."""
    wrong = []
    for name in sources:
        if part_of(name) in TORCH_FREE:
            for target, asker in loaded_by(name, sources).items():
                if target.partition(".")[0] in HEAVY:
                    wrong.append(f"{name} loads {target} (through {asker})")
    return wrong


def names_a_backend(node: ast.AST) -> bool:
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(names_a_backend, node.elts))
    return isinstance(node, ast.Constant) and node.value in BACKEND_NAMES


def backend_branches(sources: dict[str, Source]) -> list[str]:
    """Return each comparison with a backend's name outside the places that choose one."""
    wrong = []
    for source in sources.values():
        if part_of(source.name) in ("backends", "loading_sam2", "loading_sd35"):
            continue
        for node in ast.walk(source.tree):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            if any(map(names_a_backend, sides)):
                wrong.append(f"{source.name}:{node.lineno} asks which backend it runs on")
    return wrong


def bound_names(body: list[ast.stmt]) -> set[str]:
    """Return the names that statements at module level bind."""
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.If | ast.Try | ast.With):
            names |= bound_names([n for n in ast.walk(node) if isinstance(n, ast.stmt)][1:])
        else:
            names |= {
                n.id
                for n in ast.walk(node)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
    return names


def is_lazy(source: Source) -> bool:
    """Return whether names are resolved when asked for (PEP 562)."""
    return "__getattr__" in bound_names(source.tree.body)


def public_names(sources: dict[str, Source]) -> list[str]:
    """Return each public module without a true, sorted `__all__`."""
    wrong = []
    for source in sources.values():
        body = source.tree.body
        only_docs = all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in body)
        if only_docs or source.path.stem in ("__main__", "_native"):
            continue
        lists = [
            node.value
            for node in body
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        ]
        if not lists:
            wrong.append(f"{source.name} has no __all__")
            continue
        stated = set(ast.literal_eval(lists[0]))
        absent = stated - bound_names(body)
        if absent and not is_lazy(source):
            wrong.append(f"{source.name} has in __all__ what it does not define: {sorted(absent)}")
    return wrong


def lacking_init(root: Path) -> list[str]:
    """Return each folder with modules in it that has no __init__.py."""
    folders = {path.parent for place in PLACES for path in (root / place).rglob("*.py")}
    tops = {root / place for place in PLACES}
    every = folders | {
        up for f in folders for up in f.parents if any(t in up.parents for t in tops)
    }
    return [
        str(f.relative_to(root)) for f in sorted(every | tops) if not (f / "__init__.py").exists()
    ]


@pytest.fixture(scope="module")
def sources() -> dict[str, Source]:
    return read_tree(ROOT)


def test_the_tree_is_read(sources: dict[str, Source]) -> None:
    assert {"vkrt", "vkrt.errors", "vkrt.models.sam2.model", "vkrt.cli.main"} <= set(sources)


def test_imports_point_down(sources: dict[str, Source]) -> None:
    assert not layering(sources)


def test_imports_make_no_cycle(sources: dict[str, Source]) -> None:
    assert not cycles(sources)


def test_light_modules_load_nothing_heavy(sources: dict[str, Source]) -> None:
    assert not heavy_imports(sources)


def test_only_loading_knows_the_backends(sources: dict[str, Source]) -> None:
    assert not backend_branches(sources)


def test_every_module_states_its_public_names(sources: dict[str, Source]) -> None:
    assert not public_names(sources)


def test_every_folder_is_a_package() -> None:
    assert not lacking_init(ROOT)


# What the rules find in a small made-up tree: each case breaks one of them.


def make_tree(root: Path, **files: str) -> dict[str, Source]:
    """Write a tree from "folder__stem" names and return its modules."""
    for name, text in files.items():
        path = root / f"{name.replace('__', '/')}.py"
        for parent in path.relative_to(root).parents:
            (root / parent).mkdir(parents=True, exist_ok=True)
            if str(parent) != ".":
                (root / parent / "__init__.py").touch()
        path.write_text(text)
    return read_tree(root)


def test_a_clean_tree_passes(tmp_path: Path) -> None:
    tree = make_tree(
        tmp_path,
        vkrt__errors="__all__ = ['Oops']\nclass Oops(Exception): ...\n",
        vkrt__media__image="from vkrt.errors import Oops\n__all__ = ['f']\n"
        "def f(name):\n    import torch\n    raise Oops(name == 'fake news')\n",
        kernels__norm="import torch\n__all__ = ['x']\nx, y = 1, 2\n",
    )
    assert set(tree) == {
        *("vkrt", "vkrt.errors", "vkrt.media", "vkrt.media.image"),
        *("vkrt.kernels", "vkrt.kernels.norm"),
    }
    for rule in (layering, cycles, heavy_imports, backend_branches, public_names):
        assert not rule(tree)


@pytest.mark.parametrize(
    "files",
    [
        {"vkrt__engines__image": "from vkrt.cli import main\n", "vkrt__cli__main": ""},
        {"vkrt__engines__image": "def f():\n    import vkrt.weights.sam2\n"},
        {"vkrt__media__image": "from ..engines import image\n", "vkrt__engines__image": ""},
        {"vkrt__engines__image": "from vkrt.models.sam2.model import Sam2\n"},
        {"kernels__norm": "from vkrt.errors import VkrtError\n"},
        {"vkrt__models__layers": "from kernels import norm\n"},
        {"vkrt__unheard_of": ""},
    ],
)
def test_an_upward_import_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    assert len(layering(make_tree(tmp_path, **files))) == 1


def test_a_cycle_is_found(tmp_path: Path) -> None:
    tree = make_tree(
        tmp_path,
        vkrt__media__a="from vkrt.media import b\n",
        vkrt__media__b="def f():\n    from vkrt.media.c import g\n",
        vkrt__media__c="import vkrt.media.a\n",
    )
    assert "vkrt.media.a" in cycles(tree)[0]


@pytest.mark.parametrize(
    "text",
    [
        "import torch\n",
        "from torch.nn import functional\n",
        "try:\n    import torch\nexcept ImportError: ...\n",
        "class A:\n    import torch\n",
        "from vkrt.backends import eager\n",
        "from vkrt.models.sam2.config import A\n",
    ],
)
def test_a_heavy_import_is_found(tmp_path: Path, text: str) -> None:
    tree = make_tree(
        tmp_path,
        vkrt__engines__image=text,
        vkrt__backends__eager="import torch\n",
        vkrt__models__sam2__config="",
        vkrt__models__sam2__model="import torch\n",
    )
    (tmp_path / "vkrt/models/sam2/__init__.py").write_text("from . import model\n")
    assert any(
        "vkrt.engines.image loads torch" in line for line in heavy_imports(read_tree(tmp_path))
    )
    assert tree


@pytest.mark.parametrize("test", ["name == 'eager'", "'onnx' != b.name", "name in ('fake', 'x')"])
def test_a_backend_branch_is_found(tmp_path: Path, test: str) -> None:
    text = f"def f(name, b):\n    return {test}\n"
    tree = make_tree(tmp_path, vkrt__engines__image=text, vkrt__backends__pick=text)
    assert len(backend_branches(tree)) == 1


@pytest.mark.parametrize("text", ["x = 1\n", "__all__ = ['y']\nx = 1\n", "def f(): ...\n"])
def test_a_wrong_all_is_found(tmp_path: Path, text: str) -> None:
    assert len(public_names(make_tree(tmp_path, vkrt__media__image=text))) == 1


def test_a_folder_without_init_is_found(tmp_path: Path) -> None:
    make_tree(tmp_path, vkrt__media__deep__image="", kernels__norm="", export__onnx="")
    assert not lacking_init(tmp_path)
    (tmp_path / "vkrt/media/__init__.py").unlink()
    assert lacking_init(tmp_path) == ["vkrt/media"]
