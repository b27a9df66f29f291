"""Batches for a vision-language judge: TRL's collator, with photos opened the same way as in the engines."""

from dataclasses import dataclass
from typing import Any

import datasets
import pyarrow.compute as pc
import torch
from PIL import Image
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from lore.codec.chat_template import answer_ids
from lore.data.images import bounded, load_image
from lore.engines.chat import prompt_text, turn_end, visible
from lore.train.common.arrow_rows import IGNORE

ABSENT = object()


class AnswerProcessor:
    """A multimodal processor as TRL's collators call it: with photos for prompts, without for answers.

    Answers get their token ids behind a prompt. A processor would tokenize them as texts of their own, whose first token differs
    where the template's end and the answer share one.
    """

    def __init__(self, processor: Any):
        self.processor = processor
        self.tokenizer = processor.tokenizer

    def __call__(self, text: list[str], images: Any = ABSENT, **options: Any) -> Any:
        if images is not ABSENT:
            return self.processor(text=text, images=images, **options)
        rows = {"input_ids": [answer_ids(self.processor, answer) for answer in text]}
        padding = {key: options[key] for key in ("padding", "padding_side", "return_tensors")}
        batch = self.tokenizer.pad(rows, **padding)
        batch["token_type_ids"] = torch.zeros_like(batch["input_ids"])  # TRL reads them if the prompts have them
        return batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)


def any_photo(rows: datasets.Dataset) -> bool:
    """Whether any row has a photo in its column `images`."""
    return bool(pc.any(pc.greater(pc.list_value_length(rows.data.column("images")), 0)).as_py())


def gray_photo() -> Image.Image:
    """The photo that stands in where a batch has none."""
    return Image.new("RGB", (56, 56), (128, 128, 128))


@dataclass
class PhotoCollator(DataCollatorForVisionLanguageModeling):
    """Collates rows {prompt, completion, images: [{bytes, path}]} into padded tensors, with loss on the completion only.

    max_photo_pixels: as in the prompt section, see lore.engines.chat.open_photo.
    always_photo: adds a gray photo without loss to a batch without photos. Required with several processes: under DeepSpeed all
    processes must reduce the same gradients, so the vision tower must run in each of them.
    """

    completion_only_loss: bool = True
    always_photo: bool = False
    max_photo_pixels: int | None = None

    def __post_init__(self) -> None:
        self.processor = AnswerProcessor(self.processor)

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        opened = [{**row, "images": [self.open_photo(image) for image in row["images"]]} for row in examples]
        if not self.always_photo or any(row["images"] for row in opened):
            return super().torch_call(opened)
        batch = super().torch_call([*opened, self._gray_row()])
        batch["labels"][-1] = IGNORE
        return batch

    def open_photo(self, image: dict[str, Any]) -> Image.Image:
        """The photo as the engines show it, with at most max_photo_pixels."""
        return visible(bounded(load_image(image), self.max_photo_pixels))

    def _gray_row(self) -> dict[str, Any]:
        content = [{"type": "image", "image": gray_photo()}]
        prompt, images = prompt_text(self.processor.processor, [{"role": "user", "content": content}])
        return {"prompt": prompt, "completion": turn_end(self.processor.processor), "images": images}
