"""The subjects by name."""

from importlib import import_module
from importlib.util import find_spec

from benchmarks.zoo.subject import Subject

#: Module -> the functions there that make a subject.
FAMILIES = {
    "vision": (
        "resnet", "resnext", "regnet", "densenet", "squeezenet", "inception", "mobilenet_v2", "mobilenet_v3",
        "efficientnet", "shufflenet_v2", "ghostnet", "repvgg", "mlp_mixer", "siamese", "pointnet",
    ),
    "pictures": (
        "unet_transposed", "unet_upsampling", "deeplab", "hrnet", "super_resolution", "autoencoder", "vae_decoder",
        "crnn",
    ),
    "detection": ("yolo", "fpn_detector", "multi_task"),
    "audio": ("ds_cnn", "lstm", "gru", "tcn", "wavenet", "conformer", "denoiser"),
    "tables": ("dlrm", "ncf", "gcn", "mixture_of_experts", "text_cnn"),
    "transformers_": (
        "bert", "distilbert", "gpt2", "llama", "qwen3", "t5", "whisper", "wav2vec2", "vit", "swin", "convnextv2",
        "segformer", "detr", "clip", "mamba",
    ),
}  # fmt: skip
#: Name -> module.
NAMES = {name: module for module, names in FAMILIES.items() for name in names}


def available() -> list[str]:
    """The names whose packages are installed."""
    return [name for name, module in NAMES.items() if module != "transformers_" or find_spec("transformers")]


def make(name: str) -> Subject:
    """Train the subject of that name."""
    return getattr(import_module(f"benchmarks.zoo.{NAMES[name]}"), name)()
