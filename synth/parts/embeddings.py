"""What networks see in images before their heads."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dd_bench.models import Classifier, images_at_once
from dd_bench.run import Run
from synth.base import Task
from synth.parts.teachers import Teacher, TeacherPlan, obtain_teachers

_BATCH = 500


@torch.no_grad()
def embed_images(model: Classifier, images: Tensor, *, mirrored: bool = False) -> Tensor:
    """Returns the features (N, D) of images (N, C, H, W) uint8, on the CPU; the model is in evaluation mode."""
    device = next(model.parameters()).device
    parts = []
    for part in torch.split(images, images_at_once(_BATCH, images.shape[1:])):
        pixels = part.to(device).float() / 255
        parts.append(model.embed(pixels.flip(-1) if mirrored else pixels).cpu())
    return torch.cat(parts)


def embed_training(plan: TeacherPlan, task: Task, run: Run) -> tuple[Tensor, Teacher]:
    """Returns what the plan's first teacher sees in the training images, (N, D) float64 rows of length 1, and it.

    Of length 1 as iCaRL has them (Rebuffi et al., CVPR 2017), so that how sure a network is of an image does not count.
    """
    (teacher,) = obtain_teachers(plan.only_first(), task)
    assert isinstance(teacher.model, Classifier)
    with run.unsaved(f"features of {teacher.facts.architecture}", 1) as progress:
        rows = F.normalize(embed_images(teacher.model, task.images.images).double())
        progress.update(1)
    return rows, teacher
