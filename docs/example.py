"""From a teacher to a front, without the command: a notebook in cells (`# %%`), for VS Code or Jupytext.

A minute on two CPU cores, on scikit-learn's handwritten digits: `python docs/example.py`. It writes a
teacher, a run directory, a picture of the front and a retrained model into the working directory.
"""

# %% Imports, and how much is trained
import os

import matplotlib.pyplot as plt

from analysis import hypervolume, load, pick
from search import load_experiment, search
from trainables import (
    DataConfig,
    DistillConfig,
    RuntimeConfig,
    Setup,
    StudentSpec,
    TeacherConfig,
    baselines,
    distill,
    evaluate,
    find_blocks,
    load_data,
    load_model,
    measure_costs,
    resolve,
    retrain_one,
    train_teacher,
)

# AMA_EXAMPLE="2 1 2" makes it a matter of seconds, in which nothing is learnt.
TEACHER_EPOCHS, EPOCHS, TRIALS = map(int, os.environ.get("AMA_EXAMPLE", "15 4 10").split())

# %% Data and a teacher
data = load_data(DataConfig(name="digits", val_fraction=0.15), test=True)
runtime = resolve(RuntimeConfig(threads=1))  # images of 8 pixels gain nothing from more
config = TeacherConfig(arch="cifar_resnet20", epochs=TEACHER_EPOCHS, batch_size=32)
teacher = train_teacher(config, data, runtime, "teacher.safetensors")
print(f"teacher: validation accuracy {teacher.record.val_accuracy:.3f} on {len(data.val)} images")

# %% Its blocks, and the prices of students that nobody has trained yet
blocks = find_blocks(teacher.model, data.image_shape)
costs = measure_costs(teacher.model, blocks, [0.25, 0.5], True, data.image_shape, runtime, seconds=1)
wide = StudentSpec(widths={block.name: 0.5 for block in blocks})
deep = StudentSpec(widths={block.name: 0.25 for block in blocks if block.name.startswith("layer3")})
for name, spec in {"all blocks, width 0.5": wide, "last stage, width 0.25": deep}.items():
    price = costs.price(spec)
    print(f"{name}: {price.flops / costs.teacher.flops:.0%} of the FLOPs, {price.params:,} params")

# %% Two distillations by hand, and what the second would be without the teacher's help
setup = Setup.of(teacher.model, blocks, data, runtime)
by_hand = {}
for spec in (wide, deep):
    result = distill(DistillConfig(student=spec, epochs=EPOCHS), setup)
    by_hand[costs.price(spec).flops] = result.history[-1].val_accuracy
    print(f"{len(spec.widths)} blocks replaced: {[round(e.val_accuracy, 3) for e in result.history]}")
plain = distill(baselines(DistillConfig(student=deep, epochs=EPOCHS))["finetune"], setup)
print(f"fine-tuned with cross-entropy alone: {evaluate(plain.student, data).accuracy:.3f}")

# %% A small search, which takes the same teacher
overrides = [
    "data.val_fraction=0.15",
    "teacher.checkpoint=teacher.safetensors",
    f"budget.trials={TRIALS}",
    f"budget.epochs={EPOCHS}",
    f"budget.grace_epochs={min(2, EPOCHS)}",
    "costs.seconds=1",
]
outcome = search(load_experiment("digits", overrides, out="runs/example"))
print(f"search: {outcome.reason}")

# %% The front
run = load("runs/example")
best = run.front()
print(best[["number", "val_accuracy", "flops", "replaced"]].to_string(index=False))
print(f"hypervolume {hypervolume(run.points(best), run.box):.3f}")
done = run.trials[run.trials["state"] == "COMPLETE"]
figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
axes.scatter(done["flops"], done["val_accuracy"], color="0.7", label="fully trained")
axes.step(best["flops"][::-1], best["val_accuracy"][::-1], where="post", marker="o", label="front")
axes.scatter(list(by_hand), list(by_hand.values()), marker="x", color="C1", label="by hand")
axes.scatter(costs.teacher.flops, teacher.record.val_accuracy, marker="*", s=120, color="C2", label="teacher")
axes.set(xlabel="FLOPs of one image", ylabel="validation accuracy")
axes.legend()
figure.savefig("front.png", dpi=120)

# %% Pick one, and retrain it for longer
(chosen,) = pick(run, knee=True)
print(f"trial {chosen.number}: {chosen.reason}")
searched = DistillConfig.model_validate(chosen.config)
final = searched.model_copy(update={"epochs": 2 * EPOCHS, "seed": 1})
retrained = retrain_one(final, teacher, blocks, data, runtime, "model")

# %% Load it again
model, manifest = load_model("model")
again = evaluate(model, data, split="test")
print(f"retrained: test accuracy {retrained.test_accuracy:.4f}, loaded again: {again.accuracy:.4f}")
