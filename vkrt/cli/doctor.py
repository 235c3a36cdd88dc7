"""`vkrt doctor`: what this machine has, what would run, what is missing, and a model's memory."""

from __future__ import annotations

import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any

import typer

from vkrt.cli import generate_options as options
from vkrt.cli.doctor_export import describe_export, look_at_exports, show_refused
from vkrt.cli.doctor_plan import plan_generation, show_plan
from vkrt.cli.generate_request import Recipe
from vkrt.cli.output import AsJson, print_json, print_table
from vkrt.cli.segment import Backend, Device
from vkrt.errors import UnknownModelError
from vkrt.options import parse_bytes

__all__ = ["doctor", "examine"]

# What each package is for, and the extra that brings it.
OPTIONAL = {
    "torch": ("torch", "runs checkpoints and exports them: vkrt export"),
    "onnxruntime": ("cpu", "runs the demo model and other bundles, without torch"),
    "openvino": (
        "openvino",
        "encodes photos faster on some CPUs, with --backend openvino; auto never takes it",
    ),
    "av": ("video", "reads and writes video files, and cameras: vkrt track"),
    "huggingface_hub": ("hub", "fetches official weights: vkrt pull"),
    "scikit-image": ("demo", "has the photos of the demo: python -m vkrt.demo"),
}
NOTHING_RUNS = 1


ModelName = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        help="A model that makes pictures: tell how much memory that takes, stage by stage.",
    ),
]
Count = Annotated[
    int | None,
    typer.Option(min=1, max=options.MAX_PICTURES, help="Pictures of a call.  [default: 1]"),
]


def doctor(
    model: ModelName = None,
    checkpoint: options.Checkpoint = None,
    size: options.Size = None,
    count: Count = None,
    steps: options.Steps = None,
    guidance: options.GuidanceScale = None,
    t5_length: options.T5Length = None,
    control_model: options.ControlModel = None,
    clip_l: options.ClipL = None,
    clip_g: options.ClipG = None,
    t5: options.T5 = None,
    vae: options.Vae = None,
    tokenizers: options.TokenizerFolder = None,
    precision: options.Precision = None,
    memory_limit: options.MemoryLimit = None,
    backend: Backend = "auto",
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Tell what this machine has, what would run and why, and what is missing.

    With MODEL, tell what a generation takes of memory; the options are of that. Exits with 1 if
    nothing can run here, or if the generation does not fit its --memory-limit.
    """
    asked = Recipe.of(
        **options.parse_size(size),
        checkpoint=checkpoint,
        steps=steps,
        guidance=guidance,
        t5_length=t5_length,
        control_model=control_model,
        clip_l=clip_l,
        clip_g=clip_g,
        t5=t5,
        vae=vae,
        tokenizers=tokenizers,
        precision=precision,
    )
    if model is None:
        if asked.said or count or memory_limit:
            raise UnknownModelError("these options are of a model: give vkrt doctor MODEL")
        return look(as_json)
    settings: dict[str, Any] = {"backend": backend, "device": device}
    if memory_limit is not None:
        settings["memory_limit"] = parse_bytes(memory_limit)
    report = plan_generation(asked.over(Recipe.of(model=model)), count or 1, settings)
    if as_json:
        print_json(report)
    else:
        show_plan(report)
    return 0 if report["fits"] else NOTHING_RUNS


def look(as_json: bool) -> int:
    """Tell what this machine has, and return the exit code."""
    report = examine()
    if as_json:
        print_json(report)
    else:
        show(report)
    return 0 if report["would_run"]["backend"] else NOTHING_RUNS


def examine() -> dict[str, Any]:
    """Return what this machine has; imports torch only if it is installed."""
    from vkrt import __version__
    from vkrt.options import cache_folder, usable_cores, usable_memory

    native, run = look_at_native(), would_run()
    return {
        "vkrt": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cpu": {"model": cpu_model(), "cores": usable_cores()},
        "memory_bytes": usable_memory(),
        "torch": look_at_torch(),
        "onnxruntime": look_at_onnxruntime(),
        "openvino": installed("openvino"),
        "native": native,
        "would_run": run,
        "exports": look_at_exports(),
        "missing": missing(native),
        "demo_model": look_at_demo_model(run["backend"]),
        "cache": str(cache_folder()),
    }


def installed(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Return what the CPU calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, "") or platform.processor() or platform.machine()


def look_at_torch() -> dict[str, Any] | None:
    """Return torch's version, threads and GPUs; None if it is not installed."""
    if installed("torch") is None:
        return None
    try:
        import torch
    except (ImportError, OSError) as error:
        return {"version": installed("torch"), "broken": str(error)}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "version": torch.__version__,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "gpus": gpus,
    }


def look_at_onnxruntime() -> dict[str, Any] | None:
    """Return ONNX Runtime's version and execution providers; None if it is not installed."""
    stated = installed("onnxruntime") or installed("onnxruntime-gpu")
    if stated is None:
        return None
    try:
        import onnxruntime
    except (ImportError, OSError) as error:
        return {"version": stated, "broken": str(error)}
    return {
        "version": onnxruntime.__version__,
        "providers": onnxruntime.get_available_providers(),
    }


def look_at_native() -> dict[str, Any]:
    """Return whether the C++ part is there, or why not, and what attention is computed with."""
    from vkrt.kernels import host_attention
    from vkrt.media import native
    from vkrt.steps import PRECISIONS

    return {
        "available": native.available(),
        "why_missing": native.why_missing() or None,
        "attention": {name: host_attention.instructions(name) for name in PRECISIONS},
    }


def look_at_demo_model(backend: str | None) -> dict[str, Any]:
    """Return the packaged model, whether its weights are in this install, and what would run it.

    Args:
        backend: what runs models here for which no bundle ships; None if nothing does.

    Returns:
        name; present: whether its weights are here; bundle: whether what runs is its bundle;
        backend: what runs it, or None; broken: why it can't be used, where that is so.
    """
    from vkrt import catalog
    from vkrt.errors import VkrtError
    from vkrt.loading_sam2 import packaged_bundle
    from vkrt.options import Options, default_backend
    from vkrt.weights.hub import find_local

    demo = next(model for model in map(catalog.find, catalog.names()) if model.packaged)
    report = {"name": demo.name, "present": find_local(demo) is not None, "bundle": False}
    try:
        found = packaged_bundle(demo.name, None, Options(backend=default_backend()))
    except VkrtError as error:
        return {**report, "backend": None, "broken": str(error)}
    if found is None:
        return {**report, "backend": backend}
    return {**report, "bundle": True, "backend": "onnx"}


def would_run() -> dict[str, Any]:
    """Return the backend and device that "auto" gives here, and why."""
    from vkrt import backends
    from vkrt.errors import BackendError
    from vkrt.options import Options, default_backend

    tried = [
        {"backend": c.name, "usable": c.usable, "why": c.reason} for c in backends.candidates()
    ]
    try:
        wanted = default_backend()
        chosen = backends.choose(wanted)
        backend = backends.create(Options(backend=wanted))
    except (BackendError, ImportError, OSError) as error:
        return {"backend": None, "device": None, "why": str(error), "tried": tried}
    first = "the first that can run" if wanted == "auto" else "VKRT_BACKEND names it"
    why = f"{first}: {chosen.reason}"
    return {"backend": backend.name, "device": backend.device, "why": why, "tried": tried}


def missing(native: dict[str, Any]) -> list[dict[str, str]]:
    """Return what is not here, what it is for and the command that installs it."""
    found = [
        {"what": package, "for": use, "command": f"pip install 'vkrt[{extra}]'"}
        for package, (extra, use) in OPTIONAL.items()
        if installed(package) is None and installed(f"{package}-gpu") is None
    ]
    if not native["available"]:
        found.append(
            {
                "what": "vkrt's C++",
                "for": "resizes photos and finishes masks several times faster",
                "command": "install a C++17 compiler, then in vkrt's source folder: "
                "pip install --force-reinstall --no-deps .",
            }
        )
    return found


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    cpu, memory, torch = report["cpu"], report["memory_bytes"], report["torch"]
    run, demo, native = report["would_run"], report["demo_model"], report["native"]
    rows = [
        ("vkrt", f"{report['vkrt']}, Python {report['python']}"),
        ("system", report["system"]),
        ("cpu", f"{cpu['model']}, {cpu['cores']} cores"),
        ("memory", "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"),
        ("torch", describe_torch(torch)),
        ("onnxruntime", describe_onnxruntime(report["onnxruntime"])),
        ("openvino", describe_openvino(report["openvino"])),
        ("C++", "yes" if native["available"] else f"NO, numpy serves: {native['why_missing']}"),
        ("attention", describe_attention(native["attention"])),
        ("would run", f"{run['backend']} on {run['device']}" if run["backend"] else "NOTHING"),
        ("because", run["why"]),
        ("checkpoints", describe_export(report["exports"])),
        ("demo model", f"{demo['name']}, {describe_demo_model(demo)}"),
        ("cache", report["cache"]),
    ]
    print_table(["", ""], rows, 1)
    show_refused(report["exports"])
    for item in report["missing"]:
        print(f"missing: {item['what']}, which {item['for']}\n    {item['command']}")
    if not native["available"]:
        print(
            "vkrt: the C++ extension is missing; masks are the same but slower to finish",
            file=sys.stderr,
        )


def describe_demo_model(demo: dict[str, Any]) -> str:
    """Return the demo model's part of the report as one line, without its name."""
    if "broken" in demo:
        return f"packaged, but {demo['broken']}"
    if not demo["bundle"] and not demo["present"]:
        return "NOT in this install"
    if demo["backend"] is None:
        return "packaged, but nothing here runs it"
    return f"packaged, {demo['backend']} runs its {'bundle' if demo['bundle'] else 'weights'}"


def describe_attention(instructions: dict[str, str]) -> str:
    """Return what computes attention on the CPU as one line."""
    return ", ".join(f"{precision} on {name}" for precision, name in instructions.items())


def describe_torch(torch: dict[str, Any] | None) -> str:
    """Return torch's part of the report as one line."""
    if torch is None:
        return "not installed"
    if "broken" in torch:
        return f"{torch['version']}, but it can't be imported: {torch['broken']}"
    gpus = ", ".join(torch["gpus"]) or "no GPU"
    cuda = f"CUDA {torch['cuda']}" if torch["cuda"] else "built without CUDA"
    return f"{torch['version']}, {torch['threads']} threads, {cuda}, {gpus}"


def describe_openvino(version: str | None) -> str:
    """Return OpenVINO's part of the report as one line."""
    if version is None:
        return "not installed"
    return f"{version}; auto never takes it, even where it is faster: --backend openvino does"


def describe_onnxruntime(runtime: dict[str, Any] | None) -> str:
    """Return ONNX Runtime's part of the report as one line."""
    if runtime is None:
        return "not installed"
    if "broken" in runtime:
        return f"{runtime['version']}, but it can't be imported: {runtime['broken']}"
    return f"{runtime['version']}, {', '.join(runtime['providers'])}"
