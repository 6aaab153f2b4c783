"""Pillow, torchvision and PyTorch, as their users write it: the full AlexNet, with a DataLoader."""

from typing import Any

import torch
import torchvision
from PIL import Image
from serve import UNREAD, Answer, Opened, main
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


class Pictures(torch.utils.data.Dataset[tuple[torch.Tensor, bool]]):
    """The network's input, and whether the picture could be read."""

    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, bool]:
        try:
            return to_input(Image.open(self.paths[index]).convert("RGB")), True
        except Exception:  # Pillow may raise anything; one picture must not end the job
            return torch.zeros(3, 224, 224), False


def open_peer(options: dict[str, Any]) -> Opened:
    torch.manual_seed(0)
    torch.set_num_threads(options["threads"])
    device = torch.device(options["device"])
    dtype = torch.float16 if options.get("half") else torch.float32
    model: Any = torchvision.models.alexnet(num_classes=2).eval().to(device, dtype)
    if options.get("compile"):
        model = torch.compile(model, dynamic=True)
    workers = options["threads"]

    def answer(paths: list[str]) -> list[Answer]:
        found = []
        pinned = device.type == "cuda"
        loader = torch.utils.data.DataLoader(Pictures(paths), BATCH, num_workers=workers, pin_memory=pinned)
        with torch.inference_mode():
            for images, read in loader:
                scores, indices = model(images.to(device, dtype, non_blocking=pinned)).softmax(1).max(1)
                rows = zip(read.tolist(), indices.tolist(), scores.tolist(), strict=True)
                found += [Answer(LABELS[index], score) if good else UNREAD for good, index, score in rows]
        return found

    how = "torch.compile" if options.get("compile") else "eager"
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    precision = "FP16" if options.get("half") else "FP32"
    what = f"full AlexNet, {precision}, {how}, {where}, Pillow and torchvision, DataLoader with {workers} workers"
    return Opened(answer, what, False, versions)


if __name__ == "__main__":
    main(open_peer)
