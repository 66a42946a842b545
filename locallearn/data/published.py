"""The table of published files: addresses, sizes and checksums. A data set more is an entry more."""

from __future__ import annotations

from typing import NamedTuple


class PublishedFile(NamedTuple):
    """One gzipped file as its authors published it; `unpacked_*` describe what is in it.

    unpacked_sha256: None where nobody told it: then a file packed again by somebody else is not accepted.
    """

    name: str
    size: int  # bytes
    sha256: str
    unpacked_size: int
    unpacked_sha256: str | None

    @property
    def unpacked_name(self) -> str:
        """The file's name without .gz."""
        return self.name.removesuffix(".gz")


class Archive(NamedTuple):
    """A .tar.gz file that holds all files of a data set, in a folder of that name."""

    name: str
    size: int
    sha256: str


class Published(NamedTuple):
    """The files of one data set; `urls` are folders that hold all of them, the first that answers is used.

    archive: what is downloaded in their place, where the authors publish them together.
    """

    folder: str
    urls: tuple[str, ...]
    files: tuple[PublishedFile, ...]
    archive: Archive | None = None


def _plain(name: str, size: int, sha256: str) -> PublishedFile:
    """A file that is not packed."""
    return PublishedFile(name, size, sha256, size, sha256)


# Images are 16 and labels 8 bytes of IDX header, then one byte a value.
_TRAIN_IMAGES, _TRAIN_LABELS, _TEST_IMAGES, _TEST_LABELS = 47040016, 60008, 7840016, 10008

_CIFAR_10 = 10000 * 3073  # a byte for the label, 32x32 for each of red, green and blue

PUBLISHED = {
    "mnist": Published(
        folder="mnist",
        urls=(
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        files=(
            PublishedFile(
                "train-images-idx3-ubyte.gz",
                9912422,
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                _TRAIN_IMAGES,
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            ),
            PublishedFile(
                "train-labels-idx1-ubyte.gz",
                28881,
                "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                _TRAIN_LABELS,
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            ),
            PublishedFile(
                "t10k-images-idx3-ubyte.gz",
                1648877,
                "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                _TEST_IMAGES,
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            ),
            PublishedFile(
                "t10k-labels-idx1-ubyte.gz",
                4542,
                "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
                _TEST_LABELS,
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
    ),
    "fashion_mnist": Published(
        folder="fashion-mnist",
        urls=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        files=(
            PublishedFile(
                "train-images-idx3-ubyte.gz",
                26421880,
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                _TRAIN_IMAGES,
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            ),
            PublishedFile(
                "train-labels-idx1-ubyte.gz",
                29515,
                "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                _TRAIN_LABELS,
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            ),
            PublishedFile(
                "t10k-images-idx3-ubyte.gz",
                4422102,
                "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                _TEST_IMAGES,
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            ),
            PublishedFile(
                "t10k-labels-idx1-ubyte.gz",
                5148,
                "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
                _TEST_LABELS,
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
    ),
    # The sum of train-images is the one that tensorflow-datasets and others verify; the other three were verified on the files.
    "kmnist": Published(
        folder="kmnist",
        urls=("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
        files=(
            PublishedFile(
                "train-images-idx3-ubyte.gz",
                18165135,
                "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4",
                _TRAIN_IMAGES,
                None,
            ),
            PublishedFile(
                "train-labels-idx1-ubyte.gz",
                29497,
                "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17",
                _TRAIN_LABELS,
                "2a16eeae62da984b8bd24fa32e31d47291f01dac3fe84d5594f304f71e7d374b",
            ),
            PublishedFile(
                "t10k-images-idx3-ubyte.gz",
                3041136,
                "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5",
                _TEST_IMAGES,
                "76fbd229ce87db80dd281af5e6670de4ad0e42fb30a7bd643972994c47c1f42e",
            ),
            PublishedFile(
                "t10k-labels-idx1-ubyte.gz",
                5120,
                "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c",
                _TEST_LABELS,
                "a11dc742be8e781a40a92f53d6a4957e7b7d36df2faa097659131ebfd8fd60c6",
            ),
        ),
    ),
    "tiny_shakespeare": Published(
        folder="tiny-shakespeare",
        urls=("https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",),
        files=(_plain("input.txt", 1115394, "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"),),
    ),
    # The sums of the two CIFAR sets are those that independent loaders (torchvision for Ruby, GoMLX, MLDatasets.jl) verify when they
    # download. The authors' page gives MD5 sums of the archives: c32a1d4ab5d03f1284b67883e8d87530 and 03b5dce01913d631647c71ecec9e9cb8.
    "cifar10": Published(
        folder="cifar-10-batches-bin",
        urls=("https://www.cs.toronto.edu/~kriz/",),
        files=(
            _plain("data_batch_1.bin", _CIFAR_10, "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5"),
            _plain("data_batch_2.bin", _CIFAR_10, "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed"),
            _plain("data_batch_3.bin", _CIFAR_10, "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67"),
            _plain("data_batch_4.bin", _CIFAR_10, "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48"),
            _plain("data_batch_5.bin", _CIFAR_10, "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add"),
            _plain("test_batch.bin", _CIFAR_10, "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b"),
        ),
        archive=Archive(
            "cifar-10-binary.tar.gz",
            170052171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
    ),
    "cifar100": Published(
        folder="cifar-100-binary",
        urls=("https://www.cs.toronto.edu/~kriz/",),
        files=(
            _plain("train.bin", 50000 * 3074, "f31298fc616915fa142368359df1c4ca2ae984d6915ca468b998a5ec6aeebf29"),
            _plain("test.bin", 10000 * 3074, "d8b1e6b7b3bee4020055f0699b111f60b1af1e262aeb93a0b659061746f8224a"),
        ),
        archive=Archive(
            "cifar-100-binary.tar.gz",
            168513733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    ),
}
