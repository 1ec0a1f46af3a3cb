"""Options of embedding: which backbone, how it is computed, and what is done to patches before."""

from pathlib import Path
from typing import Annotated

from .options import COMPUTING, Setting, at, option

BACKBONES, COLOURS = "Backbone", "Patches before they are embedded"

BACKBONE = {
    "backbone": Setting(
        Annotated[
            str | None,
            option("One of `wsi backbones list`; by default efficientnet-lite0", "--backbone", "-b", panel=BACKBONES,
                   takes="NAME"),
        ],
        at("embed.backbone"),
    ),
    "strict": Setting(
        Annotated[
            bool | None,
            option("Refuse tiles of another size or scale than the backbone's own; else warn", "--strict/--no-strict",
                   panel=BACKBONES),
        ],
        at("embed.strict"),
    ),
}  # fmt: skip
VECTORS = {
    **BACKBONE,
    "variant": Setting(
        Annotated[
            str | None,
            option("cls, mean, cls+mean, dense, projected; by default its own", panel=BACKBONES, takes="NAME"),
        ],
        at("embed.variant"),
    ),
    "weights": Setting(
        Annotated[Path | None, option("File or folder with its weights", panel=BACKBONES, takes="FILE")],
        at("embed.weights"),
    ),
    "own_weights": Setting(
        Annotated[
            bool | None,
            option(
                "They are not those that the authors published, but your own",
                "--own-weights/--no-own-weights",
                panel=BACKBONES,
            ),
        ],
        at("embed.own_weights"),
    ),
    "adapter": Setting(
        Annotated[
            Path | None, option("Folder that `wsi finetune` made, over the weights", panel=BACKBONES, takes="FOLDER")
        ],
        at("embed.adapter"),
    ),
    "precision": Setting(
        Annotated[str | None, option("auto, fp32, bf16 or fp16", panel=COMPUTING, takes="KIND")], at("embed.precision")
    ),
    "engine": Setting(
        Annotated[
            str | None,
            option("torch, or openvino, which is faster for convnets on a CPU", panel=COMPUTING, takes="NAME"),
        ],
        at("embed.engine"),
    ),
    "dtype": Setting(
        Annotated[str | None, option("Embeddings are kept in float16 or float32", panel=BACKBONES, takes="KIND")],
        at("embed.dtype"),
    ),
    "views": Setting(
        Annotated[int | None, option("Embed 1 to 8 flips and turns of each patch", panel=COLOURS, takes="N")],
        at("embed.views"),
    ),
    "stain": Setting(
        Annotated[str | None, option("Normalise stains: macenko, reinhard or vahadane", panel=COLOURS, takes="METHOD")],
        at("embed.stain.method"),
    ),
    "stain_target": Setting(
        Annotated[Path | None, option("Picture whose stains are the reference", panel=COLOURS, takes="FILE")],
        at("embed.stain.target"),
    ),
    "stain_jitter": Setting(
        Annotated[
            float | None, option("Change each patch's stains at random, by up to this", panel=COLOURS, takes="SHARE")
        ],
        at("embed.stain.jitter"),
    ),
    "device": Setting(
        Annotated[str | None, option("auto, cpu, mps, cuda, or several: cuda:0,cuda:1", panel=COMPUTING, takes="NAME")],
        at("embed.device"),
    ),
    "offline": Setting(
        Annotated[bool | None, option("Make no network call", "--offline/--no-offline", panel=BACKBONES)],
        at("embed.offline"),
    ),
}
EMBED = {
    **VECTORS,
    "batch": Setting(
        Annotated[int | None, option("Patches a step; by default suits the device", panel=COMPUTING, takes="N")],
        at("embed.batch"),
    ),
    "compile": Setting(
        Annotated[str | None, option("torch.compile: auto, on or off", panel=COMPUTING, takes="WHEN")],
        at("embed.compile"),
    ),
}
