"""Backbones whose authors' files or networks are not timm's: ViTs made for transformers, CTransPath, cut ResNets.

Sources: the models' own repositories and cards, and the code of published pipelines where these are silent.
"""

from ..backbone import HALF, HIBOU, PHOTOGRAPHS, Backbone, vit_variants

_OWKIN = "Owkin non-commercial"
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}


def _hibou(size: str, hub: str, width: int, mlp_ratio: float, revision: str | None = None) -> Backbone:
    return Backbone(
        f"hibou-{size[0]}", f"vit_{size}_patch14_reg4_dinov2", f"hf-hub:histai/{hub}", width,
        family="transformers-vit", revision=revision, file="model.safetensors", norm=HIBOU, patch_px=14,
        prefix_tokens=5, variants=vit_variants(width), gated=True,
        options={**_SWIGLU, "mlp_ratio": mlp_ratio, "norm_eps": 1e-6},
        licence="Apache-2.0", paper="https://arxiv.org/abs/2406.05074",
        notes="Class token after the last layer norm, which is the authors' pooler_output. The authors' own code on "
              "the hub is not run: it asks for transformers below 5. Run in fp16 by some tools, in fp32 by others.",
        precision="fp32",
    )  # fmt: skip


_TRANSFORMERS_VITS = (
    Backbone(
        "phikon", "vit_base_patch16_224", "hf-hub:owkin/phikon", 768, family="transformers-vit",
        revision="057cc0295895c2df3dd7681a89680da6015cbefe", file="model.safetensors", interpolation="bilinear",
        precision="fp32", patch_px=16, variants=vit_variants(768), options={"norm_eps": 1e-6},
        licence=_OWKIN, paper="https://doi.org/10.1101/2023.07.21.23292757",
        notes="The authors' processor stretches the patch to 224 px, bilinear. They corrected the norms' epsilon in "
              "their configuration, from 1e-12 to 1e-6; copies older than that have the wrong one.",
    ),
    Backbone(
        "phikon-v2", "vit_large_patch16_224", "hf-hub:owkin/phikon-v2", 1024, family="transformers-vit",
        revision="2ae989a9c40cffaa27f0a6cb29cc94d1d6f9a5fd", file="model.safetensors", precision="fp32", patch_px=16,
        variants=vit_variants(1024), options={"init_values": 1e-5, "norm_eps": 1e-6},
        licence=_OWKIN, paper="https://arxiv.org/abs/2409.09173",
        notes="Position embeddings of another grid are resized as transformers 5 does; its older versions resized "
              "them to a grid larger by a tenth of a patch.",
    ),
    Backbone(
        "midnight-12k", "vit_giant_patch14_dinov2", "hf-hub:kaiko-ai/midnight", 3072, family="transformers-vit",
        revision="adc6b15679c981cce6f9b018bbad09d16eeeda9f", norm=HALF, mpp=(0.5, 0.25, 1.0, 2.0),
        interpolation="bilinear", pooling="cls+mean", patch_px=14, variants=vit_variants(1536),
        options={"norm_eps": 1e-6}, licence="MIT", paper="https://arxiv.org/abs/2504.05186",
        notes="The authors' vector for classification is cls+mean; TRIDENT's default is cls (1536).",
    ),
    # SwiGLU: gate and value of 2048 each
    _hibou("base", "hibou-b", 768, 5.33334, "7fdc8cce365ebfd9e7e60ee6ee9a8d4d59388f3c"),
    _hibou("large", "hibou-L", 1024, 5.34375),  # 2736 each
)  # fmt: skip

_CTRANSPATHS = (
    Backbone(
        "ctranspath", "swin_tiny_patch4_window7_224",
        "file:https://drive.google.com/file/d/1DoDx_70_TLj98gTf6YTXnu4tFhsFocDX", 768, family="ctranspath",
        file="ctranspath.pth", sha256="7c998680060c8743551a412583fac689db43cec07053b72dfec6dcd810113539",
        mpp=(1.0,), interpolation="bilinear", pooling="pool", precision="fp32",
        licence="GPL-3.0", paper="https://doi.org/10.1016/j.media.2022.102559",
        notes="The first weights, of Wang et al. 2022. TRIDENT's `ctranspath` is not this but chief-ctranspath. The "
              "authors advise 1.0 µm/px first; STAMP cuts 224 px of 256 µm (1.14 µm/px).",
    ),
    Backbone(
        "chief-ctranspath", "swin_tiny_patch4_window7_224",
        "file:https://drive.google.com/file/d/1_vgRF1QXa8sPCOpJ1S9BihwZhXQMOVJc", 768, family="ctranspath",
        file="CHIEF_CTransPath.pth", sha256="1646f23001214f74cf432ef0e80b808ee6605143802ae6ed53a87564ddc4924a",
        tile_px=256, mpp=(1.0,), interpolation="bilinear", pooling="pool", precision="fp32",
        licence="AGPL-3.0", paper="https://doi.org/10.1038/s41586-024-07894-z",
        notes="CTransPath's network with the weights of CHIEF (Wang et al. 2024), which CHIEF's slide encoder needs. "
              "TRIDENT calls it `ctranspath`, STAMP `chief-ctranspath`, LazySlide `chief`.",
    ),
)  # fmt: skip

_RESNETS = (
    Backbone(
        "resnet50-trunc", "resnet50", "hf-hub:timm/resnet50.tv_in1k", 1024, family="resnet",
        revision="78f3ecfdb38e06d9b8397f662e7ab8fee96026fa", file="model.safetensors", tile_px=256,
        interpolation="bilinear", pooling="pool", precision="fp32", options={"stages": 3}, domain=PHOTOGRAPHS,
        licence="BSD-3-Clause", paper="https://arxiv.org/abs/1512.03385",
        notes="Average of the third stage's map, as in CLAM (`resnet50_trunc`) and TRIDENT (`resnet50`). CLAM's older "
              "releases did not resize 256 px patches.",
    ),
    Backbone(
        "retccl", "resnet50", "file:https://drive.google.com/drive/folders/1AhstAFVqtTqxeS9WlBpU41BV08LYFUnL", 2048,
        family="resnet", file="best_ckpt.pth",
        sha256="931956f31d3f1a3f6047f3172b9e59ee3460d29f7c0c2bb219cbc8e9207795ff",
        tile_px=256, mpp=(1.0,), input_px=256, resize_px=256, interpolation="bilinear", pooling="pool",
        precision="fp32", licence="GPL-3.0", paper="https://doi.org/10.1016/j.media.2022.102645",
        notes="The authors advise 1.0 µm/px first, and do not crop the 256 px patch.",
    ),
)  # fmt: skip

OWN_NETWORKS = (
    *_TRANSFORMERS_VITS,
    *_CTRANSPATHS,
    *_RESNETS,
    Backbone(
        "pathdino", "vit_small_patch16_224",
        "file:https://huggingface.co/spaces/Saghir/PathDino/resolve/main/PathDino512.pth", 384,
        file="PathDino512.pth", tile_px=512, input_px=512, resize_px=512, interpolation="bilinear", precision="fp32",
        patch_px=16, variants=vit_variants(384),
        options={"num_classes": 0, "img_size": 512, "depth": 5, "global_pool": ""},
        licence="Apache-2.0 (code; none stated for the weights)", paper="https://arxiv.org/abs/2311.08359",
        notes="PathDino-512: ViT-S/16 with five blocks; its file is in timm's own layout.",
    ),
)  # fmt: skip
