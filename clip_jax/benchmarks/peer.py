"""open_clip's own training step, in the interpreter of another environment that has it, one step a call."""

import subprocess
import time
from typing import Any

# Given name, batch size and image size it answers each line with "done", a step later.
PROGRAM = """
import sys, torch
library = torch.library.Library("torchvision", "DEF")  # torchvision has no CPU build
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
import open_clip
name, batch_size, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
model = open_clip.create_model(name, force_quick_gelu=True).train()
loss_fn = open_clip.loss.ClipLoss()
decayed = [p for p in model.parameters() if p.ndim >= 2]
others = [p for p in model.parameters() if p.ndim < 2]
groups = [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}]
optimizer = torch.optim.AdamW(groups, lr=5e-4, betas=(0.9, 0.98), eps=1e-6)
images = torch.randn(batch_size, 3, size, size)
text = torch.randint(1, 49405, (batch_size, 77))
text[:, -1] = 49407
for line in sys.stdin:
    optimizer.zero_grad()
    loss_fn(*model(images, text)).backward()
    optimizer.step()
    print("done", flush=True)
"""


class OpenClipStep:
    """A runner of one step in float32 on the CPU: random pictures, text of 77 positions, AdamW.

    The first call starts it. Raises ValueError where the interpreter cannot run it.
    """

    def __init__(self, python: str, published: str, batch_size: int, image_size: int):
        self._python = python
        self._arguments = [published.replace("/", "-").removesuffix("@336px"), str(batch_size), str(image_size)]
        self._process: Any = None

    def __call__(self) -> float:
        if self._process is None:
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
            try:
                self._process = subprocess.Popen([self._python, "-c", PROGRAM, *self._arguments], **pipes)
            except OSError as error:
                raise ValueError(f"--peer_python={self._python} is no interpreter that runs: {error}") from error
        start = time.perf_counter()
        try:
            self._process.stdin.write("go\n")
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if answer != "done\n":
            raise ValueError(f"--peer_python={self._python} cannot run open_clip; its message stands above")
        return time.perf_counter() - start

    def close(self) -> None:
        """Ends the process."""
        if self._process:
            self._process.communicate()
