"""Batches of a vision-language judge: TRL's collator, with the photos opened as the engines open them."""

from dataclasses import dataclass
from typing import Any

from PIL import Image
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from lore.data.images import bounded, load_image
from lore.engines.chat import prompt_text, turn_end, visible
from lore.train.common.arrow_rows import IGNORE


@dataclass
class PhotoCollator(DataCollatorForVisionLanguageModeling):
    """Rows {prompt, completion, images: [{bytes, path}]} to padded tensors; loss on the completion alone.

    max_photo_pixels: as the prompt's, see lore.engines.chat.open_photo.
    always_photo: a batch without any photo gets one more row, a grey photo without loss. Several processes need it: a
    vision tower that runs in some of them only leaves DeepSpeed's processes with different gradients to add up.
    """

    completion_only_loss: bool = True
    always_photo: bool = False
    max_photo_pixels: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        opened = [{**row, "images": [self._open(image) for image in row["images"]]} for row in examples]
        if not self.always_photo or any(row["images"] for row in opened):
            return super().torch_call(opened)
        batch = super().torch_call([*opened, self._grey_row()])
        batch["labels"][-1] = IGNORE
        return batch

    def _open(self, image: dict[str, Any]) -> Any:
        return visible(bounded(load_image(image), self.max_photo_pixels))

    def _grey_row(self) -> dict[str, Any]:
        grey = Image.new("RGB", (56, 56), (128, 128, 128))
        prompt, images = prompt_text(self.processor, [{"role": "user", "content": [{"type": "image", "image": grey}]}])
        return {"prompt": prompt, "completion": turn_end(self.processor), "images": images}
