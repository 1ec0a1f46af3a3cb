"""Image towers of models that were trained with text; `projected` is the variant that text is compared with.

Sources: the models' own repositories and cards; for CONCH v1.5 that of TITAN. Revisions and digests are those of the
authors' files on the hub.
"""

from ..backbone import HALF, OPENAI, Backbone

VISION_LANGUAGE = (
    Backbone(
        "conch", "vit_base_patch16_224", "hf-hub:MahmoodLab/CONCH", 512, family="conch", gated=True,
        revision="f9ca9f877171a28ade80228fb195ac5d79003357", file="pytorch_model.bin",
        sha256="40a9644b9ba0e83a74576e0a5e5f7313599fa9c9cdaf3c20f8a3e271b0e9ae7c",
        tile_px=512, input_px=448, resize_px=448, norm=OPENAI, patch_px=16, precision="fp32",
        pooling="pool", variants={"pool": 512, "projected": 512},
        options={
            "trunk": {"dynamic_img_size": True}, "width": 512, "bias": True, "projection": True,
            "positions": "bilinear",
        },
        licence="CC-BY-NC-ND-4.0", paper="https://doi.org/10.1038/s41591-024-02856-4",
        notes="pool is the authors' choice for features (not projected, not normalised); projected is of unit length "
              "and is for text. LazySlide: 224 px, ImageNet's mean and std, projected",
    ),
    Backbone(
        "conch-v1.5", "vit_large_patch16_224", "hf-hub:MahmoodLab/conchv1_5", 768, family="conch", gated=True,
        revision="3e5766a5d1500d53c73c03005e24c30c1f27be13", file="pytorch_model_vision.bin",
        tile_px=512, input_px=448, resize_px=448, interpolation="bilinear", patch_px=16, precision="fp16",
        pooling="pool",
        options={
            "trunk": {"dynamic_img_size": True, "init_values": 1.0}, "width": 768, "bias": False,
            "projection": False, "positions": "dino",
        },
        licence="CC-BY-NC-ND-4.0", paper="https://arxiv.org/abs/2411.19666",
        notes="its authors resize bilinearly; LazySlide bicubically. The published file has no text tower",
    ),
    Backbone(
        "musk", "beit3_large_patch16_224", "hf-hub:xiangjx/musk", 2048, family="musk", gated=True,
        revision="de1ffed28608c197d2903f6fa42b491a3fbf0fb8", file="model.safetensors",
        tile_px=384, mpp=(0.5, 0.25, 1.0), input_px=384, resize_px=384, norm=HALF, patch_px=16,
        precision="fp16", pooling="ms_aug", variants={"ms_aug": 2048, "cls": 1024},
        licence="CC-BY-NC-ND-4.0", paper="https://doi.org/10.1038/s41586-024-08378-w",
        notes="ms_aug is the authors' choice for features of slides and costs five passes a patch. TRIDENT: cls. "
              "LazySlide: ImageNet's mean and std, with the head for text",
    ),
    Backbone(
        "biomedclip", "vit_base_patch16_224", "hf-hub:microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224", 512,
        family="open-clip", revision="9f341de24bfb00180f1b847274256e9b65a3a32e", file="open_clip_pytorch_model.bin",
        sha256="52cc993c5c5ff962bd0c60931874bc001e7e9b41666a385530f4a036294576be",
        norm=OPENAI, patch_px=16, precision="fp32", pooling="projected", variants={"projected": 512, "pool": 768},
        options={"num_classes": 512}, domain="figures of biomedical papers",
        licence="MIT", paper="https://arxiv.org/abs/2303.00915",
        notes="its authors name no scale of tiles; projected is not normalised, as open_clip's encode_image gives it",
    ),
    Backbone(
        "plip", "vit_base_patch32_clip_quickgelu_224", "hf-hub:vinid/plip", 512, family="open-clip",
        revision="67ade53ddd32195868f422585f72698ef5d15094", file="pytorch_model.bin",
        sha256="98a7f8d2a1f4a8fc8f6dedb3a16ff7efbe02a7ef67c93904c80bca9767c69630",
        norm=OPENAI, patch_px=32, precision="fp32", pooling="projected", variants={"projected": 512, "pool": 768},
        options={"num_classes": 512}, domain="pathology pictures of Twitter",
        licence="none stated; for research by its card", paper="https://doi.org/10.1038/s41591-023-02504-3",
        notes="its authors name no scale of tiles; projected is not normalised, as their encode_images gives it",
    ),
)  # fmt: skip
