"""Pillow, torchvision and PyTorch, as their users write it: the full AlexNet, with a DataLoader."""

from typing import Any

import torch
import torchvision
from PIL import Image
from serve import Answer, Opened, main
from torchvision import transforms

BATCH = 64
LABELS = ("happy", "sad")
to_input = transforms.Compose(
    [
        transforms.Resize((224, 224)),
        transforms.ToTensor(),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    ]
)


class Pictures(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        tensor: torch.Tensor = to_input(Image.open(self.paths[index]).convert("RGB"))
        return tensor


def open_peer(options: dict[str, Any]) -> Opened:
    torch.manual_seed(0)
    torch.set_num_threads(options["threads"])
    model: Any = torchvision.models.alexnet(num_classes=2).eval()
    if options.get("compile"):
        model = torch.compile(model, dynamic=True)
    workers = options["threads"]

    def answer(paths: list[str]) -> list[Answer]:
        found = []
        with torch.inference_mode():
            for images in torch.utils.data.DataLoader(Pictures(paths), BATCH, num_workers=workers):
                scores, indices = model(images).softmax(1).max(1)
                pairs = zip(indices.tolist(), scores.tolist(), strict=True)
                found += [Answer(LABELS[index], score) for index, score in pairs]
        return found

    how = "torch.compile" if options.get("compile") else "eager"
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    what = f"full AlexNet, FP32, {how}, Pillow and torchvision, DataLoader with {workers} workers"
    return Opened(answer, what, bool(options.get("model")), versions)


if __name__ == "__main__":
    main(open_peer)
