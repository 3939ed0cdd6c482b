"""What each image data set is: shape, classes and normalisation, written down once."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetSpec:
    """The facts of an image data set that models and augmentations need.

    Attributes:
        name: as typed, for example ``cifar10`` or ``cifar10@200``.
        image_shape: (C, H, W).
        num_classes: K.
        mean: per-channel mean of the training pixels in [0, 1]; (C,).
        std: per-channel standard deviation of the training pixels in [0, 1]; (C,). The only home of mean and std:
            published code bases disagree on CIFAR-10's (0.2023… is an average of per-image deviations, 0.2470… the
            deviation over all pixels), so images are stored in pixel space and models carry their own normaliser.
            A subset keeps those of its full data set, so a model means the same by a pixel on both.
        mirror: whether a horizontally flipped image keeps its class (true for photographs, false for digits).
        class_names: K names in label order.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mirror: bool
    class_names: tuple[str, ...]


_CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"

_CIFAR100_CLASSES = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle
    bowl boy bridge bus butterfly camel can castle caterpillar cattle
    chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur
    dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
    mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree
    plain plate poppy porcupine possum rabbit raccoon ray road rocket
    rose sea seal shark shrew skunk skyscraper snail snake spider
    squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""

_FASHION_CLASSES = "T-shirt/top trouser pullover dress coat sandal shirt sneaker bag ankle_boot"

SPECS: dict[str, DatasetSpec] = {
    spec.name: spec
    for spec in (
        DatasetSpec(
            name="digits",
            image_shape=(1, 8, 8),
            num_classes=10,
            mean=(0.3056,),
            std=(0.3763,),
            mirror=False,
            class_names=tuple("0123456789"),
        ),
        DatasetSpec(
            name="digits-low",
            image_shape=(1, 8, 8),
            num_classes=5,
            mean=(0.3051,),
            std=(0.3785,),
            mirror=False,
            class_names=tuple("01234"),
        ),
        DatasetSpec(
            name="digits-high",
            image_shape=(1, 8, 8),
            num_classes=5,
            mean=(0.3060,),
            std=(0.3740,),
            mirror=False,
            class_names=tuple("56789"),
        ),
        DatasetSpec(
            name="cifar10",
            image_shape=(3, 32, 32),
            num_classes=10,
            mean=(0.4914, 0.4822, 0.4465),
            std=(0.2470, 0.2435, 0.2616),
            mirror=True,
            class_names=tuple(_CIFAR10_CLASSES.split()),
        ),
        DatasetSpec(
            name="cifar100",
            image_shape=(3, 32, 32),
            num_classes=100,
            mean=(0.5071, 0.4865, 0.4409),
            std=(0.2673, 0.2564, 0.2762),
            mirror=True,
            class_names=tuple(_CIFAR100_CLASSES.split()),
        ),
        DatasetSpec(
            name="tinyimagenet",
            image_shape=(3, 64, 64),
            num_classes=200,
            mean=(0.4802, 0.4481, 0.3975),
            std=(0.2770, 0.2691, 0.2821),
            mirror=True,
            class_names=tuple(map(str, range(200))),
        ),
        DatasetSpec(
            name="mnist",
            image_shape=(1, 28, 28),
            num_classes=10,
            mean=(0.1307,),
            std=(0.3081,),
            mirror=False,
            class_names=tuple("0123456789"),
        ),
        DatasetSpec(
            name="fashionmnist",
            image_shape=(1, 28, 28),
            num_classes=10,
            mean=(0.2860,),
            std=(0.3530,),
            mirror=True,
            class_names=tuple(_FASHION_CLASSES.split()),
        ),
        DatasetSpec(
            name="svhn",
            image_shape=(3, 32, 32),
            num_classes=10,
            mean=(0.4377, 0.4438, 0.4728),
            std=(0.1980, 0.2010, 0.1970),
            mirror=False,
            class_names=tuple("0123456789"),
        ),
    )
}
"""The data sets by base name; mean and std are those of the complete training split, rounded to four digits.

Ours are measured; those of MNIST, Fashion-MNIST, SVHN and Tiny-ImageNet are the ones that the literature agrees on (DC,
MTT). Classes of Tiny-ImageNet are numbered in the order of their WordNet ids.
"""
