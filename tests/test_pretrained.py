"""Really pretrained networks and real images through the pipeline."""

import csv
import json
import re
import shutil

import pytest
import torch
from scratch import execute, project

from xai_utils import networks


def class_folders(samples, rows, folder):
    """The images of `rows` held out, in folders called by their synsets."""
    for row in rows:
        (folder / "val" / row["synset"]).mkdir(parents=True)
        shutil.copy(samples / "images" / row["file"], folder / "val" / row["synset"])


def one_table(samples, rows, folder):
    """The images of `rows` in one folder, and their part of labels.csv as it is."""
    (folder / "images").mkdir(parents=True)
    for row in rows:
        shutil.copy(samples / "images" / row["file"], folder / "images")
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def save_mobilenet(real, rows, folder):
    """MobileNetV2 as a checkpoint in `folder` that calls its classes by synset, as far as `rows` tell them."""
    from safetensors.torch import load_file

    names = {int(row["class_index"]): row["synset"] for row in rows}
    target = networks.build(
        "tf_mobilenet_v2", [names.get(i, f"class {i}") for i in range(1000)], mean=[0.5] * 3, std=[0.5] * 3
    )
    weights = load_file(real / "mobilenet_v2" / "mobilenet_v2_tf2_ptq.fp16.safetensors")
    target.network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    networks.save(target.eval(), folder)


@pytest.mark.real
@pytest.mark.parametrize(
    ("target", "laid_out"), [("mobilenet", class_folders), ("efficientnet_lite0", one_table)], ids=["file", "installed"]
)
def test_a_pretrained_network_explains_real_images(target, laid_out, real, tmp_path):
    """No training: a checkpoint, and the network that comes trained, are right on ImageNet, and beat random maps."""
    rows = list(csv.DictReader((real / "imagenet-samples" / "labels.csv").open()))
    laid_out(real / "imagenet-samples", rows[::40], tmp_path / "images")
    folder = project(
        tmp_path / "p",
        **{
            "dataset": str(tmp_path / "images"),
            "target": target,
            "scale": "smoke",
            "compute.threads": 1,
            "finetune_target.epochs": 0,
            "prepare_data.image_size": 224,
            "explain.images": 10,
            "explain.methods": ["grad_cam", "random"],
            "explain.rows": {},
            "explain.mosaics.number": 0,
            "evaluate.metrics": ["insertion", "deletion", "pointing_game"],
            "evaluate.sanity_images": 0,
        },
    )
    save_mobilenet(real, rows, folder / "data" / "weights" / "mobilenet")
    (folder / "reports").mkdir()
    for stage in ("prepare_data", "finetune_target", "explain", "evaluate"):
        execute(folder, stage)
    assert json.loads((folder / "reports" / "finetune_target.json").read_text())["top1"] >= 0.7
    summary = json.loads((folder / "reports" / "metrics.json").read_text())
    assert list(summary["metrics"]) == ["insertion", "deletion"]  # there are no boxes
    assert "Left out, for no image has a score: pointing_game." in summary["protocol"]
    assert int(re.search(r"right on (\d+)% of the images", summary["protocol"])[1]) >= 70  # labels matched by name
    insertion = {method: row["insertion"]["mean"] for method, row in summary["methods"].items()}
    assert insertion["grad_cam"] > insertion["random"] + 0.05
    assert torch.isfinite(torch.tensor(list(insertion.values()))).all()
