"""Foundation models of pathology whose networks timm has.

Sources: the models' own repositories and cards on GitHub and the hub, and the code of TRIDENT, slide2vec, STAMP, eva,
LazySlide and AtlasPatch where these are silent or the tools differ.
"""

from typing import Any

from ..backbone import HALF, HOPTIMUS, LUNIT, Backbone, vit

_CC = "CC-BY-NC-ND-4.0"
_SWIGLU = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_VIT = {"num_classes": 0, "dynamic_img_size": True, "img_size": 224}
_LARGE = {**_VIT, "patch_size": 16, "init_values": 1e-5}
_VIRCHOW = {**_VIT, **_SWIGLU, "init_values": 1e-5, "mlp_ratio": 5.3375, "global_pool": ""}
_HOPT = {"num_classes": 0, "init_values": 1e-5, "dynamic_img_size": False, "img_size": 224, "global_pool": "token"}
_SCALES = (0.5, 0.25, 1.0, 2.0)

_MAHMOOD = (
    vit(
        "uni", "vit_large_patch16_224", "hf-hub:MahmoodLab/UNI", 1024, file="pytorch_model.bin", tile_px=256,
        revision="77ffbca1ee1cdcee6e87f6deebd2db8a5888c721", interpolation="bilinear", patch_px=16, gated=True,
        options=_LARGE, licence=_CC, paper="https://doi.org/10.1038/s41591-024-02857-3",
        notes="Bilinear, as in the authors' code; STAMP follows the hub's configuration.",
    ),
    vit(
        "uni2-h", "vit_giant_patch14_224", "hf-hub:MahmoodLab/UNI2-h", 1536, file="pytorch_model.bin", tile_px=256,
        revision="d517a8dd47902dd7c308b3c36f63bce47e7b9a43", interpolation="bilinear", patch_px=14, prefix_tokens=9,
        gated=True, precision="bf16",
        options={
            **_VIT, **_SWIGLU, "patch_size": 14, "depth": 24, "num_heads": 24, "embed_dim": 1536,
            "init_values": 1e-5, "mlp_ratio": 2.66667 * 2, "no_embed_class": True, "reg_tokens": 8,
        },
        licence=_CC, paper="https://doi.org/10.1038/s41591-024-02857-3",
        notes="Bilinear, as in the authors' code; STAMP follows the hub's configuration. TRIDENT runs it in bf16, "
              "slide2vec in fp16.",
    ),
)  # fmt: skip

_PAIGE = (
    vit(
        "virchow", "vit_huge_patch14_224", "hf-hub:paige-ai/Virchow", 1280, pooling="cls+mean", gated=True,
        revision="19eebc84ae33e79f1b2d866e6ff90ae50e522f9a",
        patch_px=14, options=_VIRCHOW, licence="Apache-2.0", paper="https://doi.org/10.1038/s41591-024-03141-0",
        notes="cls+mean (2560), as on the authors' card; STAMP's `virchow` is cls (1280), its `virchow-full` ours.",
    ),
    vit(
        "virchow2", "vit_huge_patch14_224", "hf-hub:paige-ai/Virchow2", 1280, pooling="cls+mean", gated=True,
        revision="3158645804b69e3f3bc4439d4116edddf0840a72",
        mpp=_SCALES, patch_px=14, prefix_tokens=5, options={**_VIRCHOW, "reg_tokens": 4},
        licence=_CC, paper="https://arxiv.org/abs/2408.00738",
        notes="cls+mean (2560) without the registers, as on the authors' card; STAMP, eva and TRIDENT's "
              "`virchow2-cls` take cls (1280).",
    ),
)  # fmt: skip

_GIGAPATH = vit(
    "prov-gigapath", "vit_giant_patch14_dinov2", "hf-hub:prov-gigapath/prov-gigapath", 1536,
    revision="eba85dd46097c3eedfcc2a3a9a930baecb6bcc19", file="pytorch_model.bin", tile_px=256, resize_px=256,
    patch_px=16, gated=True,
    options={
        **_VIT, "patch_size": 16, "embed_dim": 1536, "depth": 40, "num_heads": 24, "mlp_ratio": 5.33334,
    },
    licence="Apache-2.0 with conditions", paper="https://doi.org/10.1038/s41586-024-07441-w",
    notes="Resized to 256 px, then the central 224, as in the authors' code; LazySlide and timm shrink the whole "
          "tile to 224 px.",
)  # fmt: skip

_BIOPTIMUS = (
    vit(
        "h-optimus-0", "vit_giant_patch14_reg4_dinov2", "hf-hub:bioptimus/H-optimus-0", 1536, norm=HOPTIMUS,
        revision="b145cc1e6c6b30d3251aa8b1f844e6974188a743",
        patch_px=14, prefix_tokens=5, gated=True, options=_HOPT, licence="Apache-2.0",
        paper="https://github.com/bioptimus/releases/tree/main/models/h-optimus/v0",
        notes="Its authors take tiles of 224 px as they are. Others are resized, bicubic as in slide2vec; TRIDENT is "
              "bilinear, STAMP does not resize. The hub asks for an acceptance, though the licence is free.",
    ),
    vit(
        "h-optimus-1", "vit_giant_patch14_reg4_dinov2", "hf-hub:bioptimus/H-optimus-1", 1536, norm=HOPTIMUS,
        revision="3592cb220dec7a150c5d7813fb56e68bd57473b9",
        patch_px=14, prefix_tokens=5, gated=True, options=_HOPT, licence=_CC,
        paper="https://huggingface.co/bioptimus/H-optimus-1",
        notes="As h-optimus-0: tiles of 224 px as they are, others resized bicubic; TRIDENT is bilinear.",
    ),
    vit(
        "h0-mini", "vit_base_patch14_reg4_dinov2", "hf-hub:bioptimus/H0-mini", 768,
        revision="5b5cc0505d19ae558270045eb0df8c34df4d9609", file="model.safetensors",
        norm=HOPTIMUS, patch_px=14, prefix_tokens=5, gated=True,
        options={**_VIT, **_SWIGLU, "mlp_ratio": 5.33334, "global_pool": ""},
        licence=_CC, paper="https://arxiv.org/abs/2501.16239",
        notes="cls (768), as in the authors' own benchmark (plismbench) and TRIDENT; slide2vec, LazySlide and "
              "AtlasPatch take cls+mean (1536), which the authors' card also shows: `--variant cls+mean`. The width of "
              "its SwiGLU layers follows from the size of its file.",
    ),
)  # fmt: skip


def _kaiko(name: str, size: str, patch: int, width: int, revision: str) -> Backbone:
    large = size == "large"
    hub = f"vit_{size}_patch{patch}_{'reg4_' if large else ''}224.kaiko_ai_towards_large_pathology_fms"
    return vit(
        f"kaiko-{name}", "vit_large_patch14_reg4_dinov2" if large else f"vit_{size}_patch{patch}_224",
        f"hf-hub:1aurent/{hub}", width, revision=revision, file="model.safetensors", norm=HALF, precision="fp32",
        mpp=_SCALES, interpolation="bilinear", patch_px=patch, prefix_tokens=5 if large else 1, options=_VIT,
        licence="Kaiko non-commercial 1.0", paper="https://arxiv.org/abs/2404.15217",
        notes="Bilinear to 224 px, as in the authors' code; TRIDENT advises tiles of 256 px at 0.5 µm/px."
              + (" The hub's `…_reg4_dinov2…` is the older name of the same repository." if large else ""),
    )  # fmt: skip


_KAIKO = (
    _kaiko("vits16", "small", 16, 384, "48560ea39969fe44b7b2ab057de01484243a7d43"),
    _kaiko("vits8", "small", 8, 384, "003775444da0119f90ca63e2b86e454fd06ba797"),
    _kaiko("vitb16", "base", 16, 768, "797c524a94c7fdae8ea33064d0ac6966ed8956bb"),
    _kaiko("vitb8", "base", 8, 768, "978ce1a67276e7a944d02cac6f9defe442f434b9"),
    _kaiko("vitl14", "large", 14, 1024, "d86df45eccdb957aa7869bab7d11f8e158dcbda2"),
)

_LUNIT: dict[str, Any] = {
    "precision": "fp32",
    "mpp": (0.5, 0.25),
    "licence": "Lunit non-commercial",
    "paper": "https://arxiv.org/abs/2212.04690",
}


def _lunit_vit(patch: int, revision: str | None = None) -> Backbone:
    return vit(
        f"lunit-vits{patch}", f"vit_small_patch{patch}_224", f"hf-hub:1aurent/vit_small_patch{patch}_224.lunit_dino",
        384, revision=revision, file="model.safetensors", norm=LUNIT, patch_px=patch, options=_VIT, **_LUNIT,
        notes="The whole tile and the mean and std that the authors trained with, as in eva and in newer LazySlide and "
              "slide2vec (which crops: 248 px, central 224). TRIDENT, AtlasPatch and older versions follow the hub's "
              "configuration, which is timm's own: ImageNet's for ViT-S/8, 0.5 for ViT-S/16.",
    )  # fmt: skip


def _lunit_resnet(method: str) -> Backbone:
    file = f"{method}_rn50_ep200.torch"
    return Backbone(
        f"lunit-resnet50-{method}", "resnet50",
        f"file:https://github.com/lunit-io/benchmark-ssl-pathology/releases/download/pretrained-weights/{file}", 2048,
        family="resnet", file=file, pooling="pool", **_LUNIT,
        notes="The authors' own file: the copy on the hub, 1aurent/resnet50.lunit_…, is reported to differ in the "
              "statistics of its batch norms. Sources disagree on mean and std: ImageNet's here, as on the hub and in "
              "raw2features, since eva read the authors' others as those of the ViTs; LazySlide takes these for all. "
              "The whole tile, as in LazySlide; AtlasPatch follows the hub: 235 px and the central 224.",
    )  # fmt: skip


_LUNITS = (
    _lunit_vit(16),
    _lunit_vit(8, "c23bc01cfbe022bc1f2a8a9306125a07818e4eb4"),
    _lunit_resnet("bt"),
    _lunit_resnet("mocov2"),
    _lunit_resnet("swav"),
)

_OTHERS = (
    vit(
        "gpfm", "vit_large_patch14_dinov2", "hf-hub:majiabo/GPFM", 1024, file="GPFM.pth", tile_px=512, mpp=(0.25,),
        patch_px=14, precision="fp32", options=_VIT,
        licence=_CC, paper="https://doi.org/10.1038/s41551-025-01488-4",
        notes="Tiles of 512 px at full resolution, shrunk to 224, as in the authors' code; slide2vec cuts 224 px at "
              "0.5 µm/px. The licence is the repository's; slide2vec says MIT.",
    ),
    vit(
        "mstar", "vit_large_patch16_224", "hf-hub:Wangyh/mSTAR", 1024, tile_px=256, interpolation="bilinear",
        patch_px=16, gated=True, precision="fp32", options=_LARGE,
        licence=_CC, paper="https://arxiv.org/abs/2407.15362",
        notes="Bilinear to 224 px, as in the authors' code and STAMP; slide2vec follows the hub's configuration: "
              "248 px and the central 224.",
    ),
    vit(
        "pathorchestra", "vit_large_patch16_224", "hf-hub:AI4Pathology/PathOrchestra", 1024, tile_px=256,
        interpolation="bilinear", patch_px=16, gated=True, precision="fp32", options=_LARGE,
        licence=_CC, paper="https://arxiv.org/abs/2503.24345",
        notes="Bilinear to 224 px, as in the authors' readme, which also offers the hub's configuration. The size and "
              "scale of tiles are convention: the readme names none.",
    ),
    vit(
        "openmidnight", "vit_giant_patch14_reg4_dinov2", "hf-hub:SophontAI/OpenMidnight", 1536,
        file="teacher_checkpoint_load.pt", mpp=_SCALES, interpolation="bilinear", patch_px=14, prefix_tokens=5,
        gated=True, options=_VIT, licence="Apache-2.0", paper="https://sophont.med/blog/openmidnight",
        notes="Bilinear to 224 px and the class token, as in TRIDENT and LazySlide. A replication of Midnight-12k "
              "with registers: its vectors are not Midnight's.",
    ),
)  # fmt: skip

PATHOLOGY = (*_MAHMOOD, *_PAIGE, _GIGAPATH, *_BIOPTIMUS, *_KAIKO, *_LUNITS, *_OTHERS)
