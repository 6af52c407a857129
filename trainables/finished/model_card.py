"""Write the model card: the manifest of a retrained model as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from trainables.config import DEFAULT_METHOD

START = {
    "teacher": "the teacher's weights where blocks are kept",
    "library": "the teacher's weights and modules from the library",
    "none": "random weights",
}


def model_card(manifest: Mapping[str, Any]) -> str:
    """Return a card with intended use, data, training, results, and how to load the model.

    Args:
        manifest: as `retrain_one` writes it.
    """
    config, teacher, data, results = (manifest[key] for key in ("config", "teacher", "data", "results"))
    made = manifest["made"]
    classes = data["classes"]
    shown = ", ".join(classes[:12]) + (", …" if len(classes) > 12 else "")
    sections = {
        "": [f"{_subject(config)} of {teacher['arch']} (weights `{teacher['hash']}`) that classifies images "
             f"of shape {'×'.join(map(str, teacher['image_shape']))} into {len(classes)} classes: {shown}."],
        "Architecture": _architecture(manifest),
        "Training": _training(config, data, manifest),
        "Results": _results(results, data),
        "Use": [
            "```python",
            "from trainables import load_model",
            "",
            'model, manifest = load_model("this folder")  # eval mode, on the CPU',
            "```",
            "",
            f"Inputs: RGB in 0..1, minus {_numbers(data['mean'])}, over {_numbers(data['std'])}, (batch, "
            "3, H, W). Outputs: logits. `ama evaluate` scores it on a folder of images, `ama export` writes "
            "ONNX and `torch.export` files that need none of this.",
        ],
        "Limits": [
            "It was chosen on validation images and tested on images of the same source: expect lower "
            "accuracy on other images. Biases of the data or of the teacher were not corrected; the student "
            "learns to repeat them."
        ],
        "Made with": _made(manifest, made),
    }  # fmt: skip
    lines = [f"# {manifest['kind']}, seed {results['seed']}"]
    for title, part in sections.items():
        lines += ["", *([f"## {title}", ""] if title else []), *part]
    return "\n".join(lines) + "\n"


def _subject(config: Mapping[str, Any]) -> str:
    arch = config.get("student", {}).get("arch")
    return f"A student of the architecture {arch}, taught by the outputs" if arch else "A student"


def _architecture(manifest: Mapping[str, Any]) -> list[str]:
    if arch := manifest["config"].get("student", {}).get("arch"):
        return [f"{arch}, a network of its own: none of its weights are the teacher's."]
    widths = manifest["config"]["student"]["widths"]
    names = [block["name"] for block in manifest["blocks"]]
    if not widths:
        return ["The teacher's architecture: no block is replaced."]
    joined = ", adjacent blocks of equal width by one module" if manifest["config"]["student"]["fuse"] else ""
    rows = [
        f"| {name} | {f'AMA module, width {widths[name]:g}' if name in widths else 'kept'} |"
        for name in names
    ]
    head = f"{len(widths)} of {len(names)} blocks are replaced by AMA modules{joined}."
    return [head, "", "| block | |", "|---|---|", *rows]


def _training(config: Mapping[str, Any], data: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    optim, images = config["optim"], data["images"]
    start = "none" if config.get("student", {}).get("arch") else config["warm_start"]
    return [
        f"- Data: {data['name']}, {images['train']:,} training and {images['val']:,} validation images "
        f"(hash `{manifest['data_hash']}`)",
        f"- Start: {START[start]}; trained: {config['train']}",
        *_method(config),
        f"- SGD, peak learning rate {optim['lr']:g}, weight decay {optim['weight_decay']:g}, batches of "
        f"{optim['batch_size']}, {config['epochs']} epochs, seed {config['seed']}",
    ]


def _method(config: Mapping[str, Any]) -> list[str]:
    """List the method with its settings, and the loss in words if the method is `ama`."""
    name, settings = config.get("method", DEFAULT_METHOD), config["loss"]  # version 0.1 names no method
    listed = ", ".join(f"{key} {_setting(value)}" for key, value in settings.items())
    lines = [f"- Method: {name}" + (f" ({listed})" if listed else "")]
    return [*lines, f"- Loss: {_ama_loss(settings)}"] if name == DEFAULT_METHOD else lines


def _ama_loss(loss: Mapping[str, Any]) -> str:
    terms = [f"{1 - loss['alpha']:g} × cross-entropy"]
    if loss["alpha"]:
        terms.append(f"{loss['alpha']:g} × logits of the teacher (temperature {loss['tau']:g})")
    if loss["beta"]:
        terms.append(f"{loss['beta']:g} × activation maps of the teacher ({loss['supervision']})")
    return " + ".join(terms)


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_setting(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_setting, value)) + "]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _results(results: Mapping[str, Any], data: Mapping[str, Any]) -> list[str]:
    tested = f"test accuracy ({data['images']['test']:,} images, read once)"
    return [
        "| | |",
        "|---|---|",
        f"| {tested} | {100 * results['test_accuracy']:.2f} % |",
        f"| test loss (cross-entropy) | {results['test_loss']:.4f} |",
        f"| validation accuracy | {100 * results['val_accuracy']:.2f} % |",
        f"| parameters | {results['params']:,} |",
        f"| FLOPs of one image (a multiply-accumulate is two) | {results['flops']:,} |",
        f"| training | {results['epochs']} epochs, {results['seconds']:.0f} s |",
    ]


def _made(manifest: Mapping[str, Any], made: Mapping[str, Any]) -> list[str]:
    lines = [f"- {name}: {value}" for name, value in manifest["versions"].items()]
    lines.append(f"- device: {manifest['device']}, {manifest['precision']}")
    lines += [f"- {name}: {_text(value)}" for name, value in made.items() if value not in (None, [], "")]
    return lines


def _text(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _numbers(values: Any) -> str:
    return f"({', '.join(f'{value:g}' for value in values)})"
