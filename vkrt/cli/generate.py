"""`vkrt generate`: a prompt becomes pictures, which say how they were made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vkrt.cli import generate_options as options
from vkrt.cli.generate_bar import stepped
from vkrt.cli.generate_request import Recipe, read_recipe
from vkrt.cli.output import AsJson, print_json, print_table, progress
from vkrt.cli.segment import Backend, Device, Threads, timed
from vkrt.cli.track import plain_warnings
from vkrt.errors import GenerationError, OutputError, UnknownModelError
from vkrt.options import parse_bytes

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["enough_memory", "generate", "load"]


def generate(
    prompt: options.PromptText = None,
    model: options.ModelName = None,
    checkpoint: options.Checkpoint = None,
    negative: options.Negative = None,
    size: options.Size = None,
    steps: options.Steps = None,
    guidance: options.GuidanceScale = None,
    seed: options.Seed = None,
    count: options.Count = 1,
    image: options.Start = None,
    strength: options.Strength = None,
    mask: options.Mask = None,
    control: options.Control = None,
    control_model: options.ControlModel = None,
    control_scale: options.ControlScale = None,
    lora: options.Loras = None,
    sampler: options.SamplerName = None,
    shift: options.Shift = None,
    profile: options.Profile = None,
    t5_length: options.T5Length = None,
    skip_layers: options.SkipLayers = None,
    skip_scale: options.SkipScale = None,
    clip_l: options.ClipL = None,
    clip_g: options.ClipG = None,
    t5: options.T5 = None,
    vae: options.Vae = None,
    tokenizers: options.TokenizerFolder = None,
    out: options.Out = None,
    earlier: options.Earlier = None,
    as_json: AsJson = False,
    precision: options.Precision = None,
    memory_limit: options.MemoryLimit = None,
    threads: Threads = None,
    backend: Backend = "auto",
    device: Device = "auto",
) -> None:
    """Generate pictures of a prompt; each says how it was made, so that --from makes it again."""
    asked = Recipe.of(
        prompt=prompt,
        negative=negative,
        **options.parse_size(size),
        steps=steps,
        guidance=guidance,
        seed=seed,
        image=image,
        strength=strength,
        mask=mask,
        control=control,
        control_scale=control_scale,
        sampler=sampler,
        shift=shift,
        profile=profile,
        t5_length=t5_length,
        skip_layers=options.parse_layers(skip_layers),
        skip_scale=skip_scale,
        loras=options.parse_loras(lora),
        model=model,
        checkpoint=checkpoint,
        control_model=control_model,
        clip_l=clip_l,
        clip_g=clip_g,
        t5=t5,
        vae=vae,
        tokenizers=tokenizers,
        precision=precision,
    )
    settings = {"backend": backend, "device": device, "threads": threads}
    if memory_limit is not None:
        settings["memory_limit"] = parse_bytes(memory_limit)
    recipe = asked if earlier is None else asked.over(read_recipe(earlier))
    recipe = recipe.with_seed()
    recipe.check()
    targets = plan(recipe, out, count)
    check_targets(targets, [*recipe.inputs(), *([earlier] if earlier else [])])
    with plain_warnings(), enough_memory():
        report = run(recipe, targets, settings)
    if as_json:
        print_json(report)
    else:
        show(report)


def plan(recipe: Recipe, out: Path | None, count: int) -> list[Path]:
    """Return the file of each picture; with several, NAME.png stands for NAME-1.png, ...

    Raises:
        OutputError: the name has another ending.
    """
    if out is None:
        out = Path(f"generated-{recipe.said['seed']}.png")
    if out.suffix.lower() != ".png":
        raise OutputError(f"--out {out} must end in .png, which says how the picture was made")
    if count == 1:
        return [out]
    return [out.with_stem(f"{out.stem}-{number}") for number in range(1, count + 1)]


def check_targets(targets: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Refuse what can't be written, and what would replace an input, before any long work.

    Raises:
        OutputError: naming the file.
    """
    from vkrt.media.files import check_writable

    taken = {path.resolve() for path in inputs}
    for path in targets:
        if path.resolve() in taken:
            raise OutputError(f"{path} is also an input; name another file")
        check_writable(path)


@contextmanager
def enough_memory() -> Iterator[None]:
    """Say what to do where the memory does not suffice.

    Raises:
        GenerationError: it does not.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise GenerationError(
                "out of memory; give --memory-limit, such as 8GiB, or a smaller --size or --count "
                "(`vkrt doctor MODEL` tells what a generation takes)"
            ) from error
        raise


def load(recipe: Recipe, settings: dict[str, Any]) -> Any:
    """Return the model of a recipe.

    Args:
        recipe: names it and its files.
        settings: how to run it, as vkrt.load takes them.

    Raises:
        UnknownModelError: it makes no pictures.
    """
    import vkrt

    with progress(f"loading {recipe.model}"):
        model: Any = vkrt.load(recipe.model, **recipe.loading(), **settings)
        if not hasattr(model, "generate"):
            raise UnknownModelError(
                f"{recipe.model} makes no pictures; take a model of Stable Diffusion 3.5, which "
                "`vkrt models` lists"
            )
        for lora in recipe.loras:
            model.load_lora(Path(lora["file"]), lora["scale"])
    return model


def run(recipe: Recipe, targets: Sequence[Path], settings: dict[str, Any]) -> dict[str, Any]:
    """Load the model, generate the pictures and write them.

    Returns:
        What was done, as JSON has it.
    """
    pictures = recipe.read_pictures()
    ms: dict[str, float] = {}
    with timed(ms, "load"):
        model = load(recipe, settings)
    with closing(model), stepped() as on_step, timed(ms, "generate"):
        made = model.generate(**recipe.asking(), **pictures, count=len(targets), on_step=on_step)
    stored = [
        recipe.stored(picture.info.get("parameters", {}), index)
        for index, picture in enumerate(made)
    ]
    with timed(ms, "write"):
        write(made, targets, stored)
    return describe(model.name, made, targets, stored, ms)


def write(made: Sequence[Image], targets: Sequence[Path], stored: Sequence[dict[str, Any]]) -> None:
    """Write each picture with what makes it again.

    Raises:
        OutputError: one can't be written.
    """
    from vkrt.media.picture import save_png

    for picture, path, parameters in zip(made, targets, stored, strict=True):
        save_png(picture, path, parameters)


def describe(
    name: str,
    made: Sequence[Image],
    targets: Sequence[Path],
    stored: Sequence[dict[str, Any]],
    ms: dict[str, float],
) -> dict[str, Any]:
    """Return what was done, as JSON has it; the parameters are those of the first picture."""
    return {
        "model": name,
        "images": [
            {
                "file": str(path),
                "width": picture.width,
                "height": picture.height,
                "seed": parameters["seed"],
            }
            for picture, path, parameters in zip(made, targets, stored, strict=True)
        ],
        "parameters": stored[0],
        "ms": ms,
    }


def show(report: dict[str, Any]) -> None:
    """Print the report for a person."""
    said = report["parameters"]
    known = [f"{name} {said[name]}" for name in ("steps", "guidance", "sampler") if name in said]
    print(", ".join([report["model"], *known]))
    print_table(
        ["file", "size", "seed"],
        [
            [each["file"], f"{each['width']}x{each['height']}", str(each["seed"])]
            for each in report["images"]
        ],
        0,
    )
    print(", ".join(f"{name} {value:g} ms" for name, value in report["ms"].items()))
