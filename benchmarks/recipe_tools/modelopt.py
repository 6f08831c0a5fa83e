"""ModelOpt on a small network of all kinds: `load_recipe` reads the file, and the quantizers have the bits."""

from pathlib import Path

from benchmarks.recipe_tools._read import TORCH, Read, levels

REQUIREMENTS, ALONE = (TORCH, "nvidia-modelopt==0.47.0", "huggingface_hub", "requests"), ()
FLOAT = "float32"
PLAN = {
    "table.weight": "w8",
    "stem.weight": "w8a8",
    "blocks.0.weight": "w3a8",
    "blocks.1.weight": "float",
    "blocks.10.weight": "w6a8",
    "fc1.weight": "w4g32",
    "fc10.weight": "w5a8dr",
    "fc2.weight": "w2a16d",
    "head.weight": "w7ta4",
}


def apply(recipe: Path) -> dict[str, Read]:
    """Quantize by the file, and read the quantizers back."""
    import torch
    from modelopt.recipe import load_recipe
    from modelopt.torch import quantization
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.stem = nn.Embedding(64, 256), nn.Conv2d(1, 32, 3, padding=1)
            blocks = [nn.Conv2d(32, 32, 3, padding=1, groups=1 if number else 2) for number in range(11)]
            self.blocks = nn.Sequential(*blocks)
            self.fc1, self.fc10, self.fc2 = (nn.Linear(256, 256) for _ in range(3))
            self.head = nn.Linear(256, 10)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            x = self.table(words)
            image = self.blocks(self.stem(x.reshape(-1, 1, 16, 16)))
            return self.head(self.fc2(self.fc10(self.fc1(x))) + image.mean((1, 2, 3))[:, None])

    torch.manual_seed(0)
    model, words = Net().eval(), torch.randint(0, 64, (32,))
    settings = load_recipe(recipe.absolute()).quantize.model_dump()
    model = quantization.quantize(model, settings, lambda network: network(words))
    model(words)
    read = {}
    for layer in PLAN:
        module = model.get_submodule(layer.removesuffix(".weight"))
        weight, inputs = module.weight_quantizer, module.input_quantizer
        bits = (quantizer.num_bits if quantizer.is_enabled else FLOAT for quantizer in (weight, inputs))
        groups = module.weight.shape[-1] // weight.block_sizes[-1] if weight.block_sizes else 1
        read[layer] = Read(*bits, levels(weight(module.weight), groups))
    others = [
        name
        for name, module in model.named_modules()
        if hasattr(module, "weight_quantizer") and f"{name}.weight" not in PLAN
        if module.weight_quantizer.is_enabled or module.input_quantizer.is_enabled
    ]
    if others:
        raise RuntimeError(f"quantized, but not in the plan: {', '.join(others)}")
    return read
