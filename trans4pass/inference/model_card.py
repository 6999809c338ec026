"""The README of a model on the hub, made from the run that the model comes from: data, settings, figures, licence."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from trans4pass import hub
from trans4pass.models import Segmentor
from trans4pass.storage import recall_json

from .open import Described

TOY_WORLD = "toy_world.json"  # lies where the renderer has written
CARD = """---
library_name: trans4pass
pipeline_tag: image-segmentation
tags: [semantic-segmentation, panorama]
---
# {title}

`{model}` with {parameters:.1f} million parameters: semantic segmentation of panoramas into {labels.num_classes} classes
({labels.name}): {classes}.

```python
from trans4pass import load_model

model = load_model("<user>/<repo>"{plugins})
result = model.predict("panorama.jpg")  # .labels, .classes, .confidence
result.overlay().save("overlay.png")
```

{run}## Licence

{licence}
"""


def model_card(described: Described, network: Segmentor) -> str:
    """A model card. Without a finished run around the checkpoint's folder it has no figures, data and settings."""
    run, stage = described.path.parent.parent, described.path.parent.name
    summary = recall_json(run / "summary.json", ("name", "seed", "stages"), "the card goes without figures")
    config = yaml.safe_load((run / "config.yaml").read_text()) if summary and (run / "config.yaml").is_file() else {}
    model, labels = described.model, described.labels
    return CARD.format(
        title=summary["name"] if summary else model.get("name", "Model"),
        model=model.get("name"),
        parameters=sum(parameter.numel() for parameter in network.parameters()) / 1e6,
        labels=labels,
        classes=", ".join(labels.classes),
        plugins=f", plugins={list(described.plugins)}" if described.plugins else "",
        run="".join(sections(summary, config, stage, described.path.name)) if summary else "",
        licence=licence(config, network.encoder),
    )


def sections(summary: Mapping[str, Any], config: Mapping[str, Any], stage: str, file: str) -> Iterator[str]:
    """Figures, data and settings of the run."""
    yield "## Figures\n\nmIoU in % on the validation sets, after each stage's last step; one run, "
    yield f"seed {summary['seed']}. This is `{stage}`'s `{file}`"
    best, sides = summary["stages"].get(stage, {}).get("best") or {}, summary.get("sides", [])
    if file == "best.pt" and best:
        figures = ", ".join(f"{side} {best[side]:.2f}" for side in sides if side in best)
        yield f", of step {best['step']}, picked by validation labels: {figures}"
    yield ".\n\n" + row("stage", *sides) + row(*["---"] * (1 + len(sides)))
    for name, values in summary["stages"].items():
        if any(side in values for side in sides):
            yield row(name, *(f"{values[side]:.2f}" if side in values else "" for side in sides))
    if not config:
        return
    yield "\n## Data\n\n" + row("side", "data set") + row("---", "---")
    for side, data in config["data"].items():
        yield row(side, data_set(data["dataset"], config.get("prepare_data") or {}))
    yield "\n## Training\n\n" + row("stage", "steps", "images per step", "learning rates", "terms (weights)")
    yield row(*["---"] * 5)
    for name, settings in config["stages"].items():
        if settings.get("enabled", True) and "method" in settings:
            yield row(name, *training(settings, summary["stages"].get(name, {})))
    yield "\n"


def data_set(dataset: Mapping[str, Any], prepared: Mapping[str, Any]) -> str:
    """What a run's data is called: the toy world, whose layouts are real data sets', by its own name."""
    family, root = dataset["_target_"].rpartition(".")[2], Path(dataset.get("root") or "")
    renders = str(prepared.get("_target_")).startswith("trans4pass.toy_world")
    if (renders and root.is_relative_to(prepared["root"])) or (root.parent / TOY_WORLD).is_file():
        return f"rendered toy world (trans4pass.toy_world), laid out as {family}"
    return f"{family} ({root.name})" if root.name else family


def training(stage: Mapping[str, Any], result: Mapping[str, Any]) -> Iterator[str]:
    """A training stage's cells of the table."""
    yield str(result.get("steps", ""))
    domains, terms = stage.get("domains", {}), stage["method"].get("terms", {})
    shared = stage.get("global_batch")
    yield ", ".join(f"{name} {domain['batch_size'] or shared}" for name, domain in domains.items())
    yield ", ".join(f"{name} {optim['lr']:g}" for name, optim in stage.get("optim", {}).items())
    yield ", ".join(f"{name} {term['weight']:g}" for name, term in terms.items() if term.get("weight"))


def licence(config: Mapping[str, Any], encoder: Any) -> str:
    """What is known of the licence of what the training started from."""
    model = config.get("model", {})
    inits = [settings.get("init") for settings in config.get("stages", {}).values() if settings.get("enabled", True)]
    starts = [model.get("weights"), *(init for init in inits if init and not init.startswith(("previous", "stages.")))]
    lines = []
    for start in dict.fromkeys(filter(None, starts)):
        name = hub.hub_name(start)
        known = hub.licence(name, ask=False) if name else None
        shown = f"[{name.repo}](https://huggingface.co/{name.repo})" if name else f"`{Path(start).name}`"
        lines.append(f"Training started from {shown}, licence: {known or 'to be looked up'}.")
    if model.get("pretrained"):
        known = getattr(encoder, "licence", None) or "to be looked up"
        lines.append(f"Training started from timm's weights of `{encoder.name}`, licence: {known}.")
    return " ".join([*lines, "Licences of the training data apply as well; choose one that they allow."])


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"
