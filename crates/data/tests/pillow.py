"""The Python side of pillow.rs: pictures, and what Pillow and NumPy make of them.

    pillow.py OUT    writes OUT/pictures/NAME.png and OUT/CASE/NAME.npy, and arrays in OUT/arrays
"""

import pathlib
import sys

import numpy as np
from PIL import Image

FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def torchvision(picture, size, crop, resampling):
    """Resize(size), then CenterCrop(crop), by torchvision's formulas."""
    width, height = picture.size
    longer = int(size * max(width, height) / min(width, height))
    picture = picture.resize((size, longer) if width < height else (longer, size), resampling)
    width, height = picture.size
    left, top = int(round((width - crop) / 2.0)), int(round((height - crop) / 2.0))
    return picture.crop((left, top, left + crop, top + crop))


def pictures(rng):
    """Noise, gradients and edges in every mode that PNG has."""
    y, x = np.mgrid[0:331, 0:417]
    smooth = np.stack([x * 255 / 416, y * 255 / 330, (x + y) % 256], -1).astype(np.uint8)
    noise = rng.integers(0, 256, (300, 301, 3), np.uint8)
    alpha = np.dstack([smooth, rng.integers(0, 256, smooth.shape[:2], np.uint8)])
    edges = np.where((x // 7 + y // 5) % 2 == 0, 255, 0).astype(np.uint8)
    yield "smooth", Image.fromarray(smooth)
    yield "noise", Image.fromarray(noise)
    yield "alpha", Image.fromarray(alpha)
    yield "gray", Image.fromarray(edges)
    yield "gray_alpha", Image.fromarray(np.dstack([edges, alpha[..., 3]]), "LA")
    yield "palette", Image.fromarray(smooth).quantize(64)
    yield "bits", Image.fromarray(edges).convert("1")
    yield "small", Image.fromarray(noise[:40, :50])


def main(out):
    rng = np.random.default_rng(5)
    for name, picture in pictures(rng):
        (out / "pictures").mkdir(exist_ok=True)
        picture.save(out / "pictures" / f"{name}.png")
        rgb = picture.convert("RGB")
        cases = {f"resize_{name}": rgb.resize((96, 64), f) for name, f in FILTERS.items()}
        cases |= {f"shorter_{name}": torchvision(rgb, 73, 64, f) for name, f in FILTERS.items()}
        cases["gray"] = picture.convert("RGB").convert("L")
        cases["rgb"] = rgb
        for case, made in cases.items():
            (out / case).mkdir(exist_ok=True)
            pixels = np.asarray(made, np.float32)
            pixels = pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
            np.save(out / case / f"{name}.npy", np.ascontiguousarray(pixels))

    arrays = out / "arrays"
    arrays.mkdir()
    for dtype in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "c8", "c16", ">f4", ">i2"]:
        values = np.arange(24).reshape(2, 3, 4).astype(dtype)
        np.save(arrays / f"{dtype.replace('>', 'big_').replace('?', 'bool')}.npy", values)
    values = np.arange(24, dtype="f4").reshape(2, 3, 4)
    np.save(arrays / "fortran.npy", np.asfortranarray(values))
    np.save(arrays / "scalar.npy", np.float32(7))
    np.save(arrays / "vector.npy", np.arange(3, dtype="f4"))
    np.savez(arrays / "stored.npz", a=values, b=np.arange(2))
    np.savez_compressed(arrays / "packed.npz", a=values, b=np.arange(2))
    np.savez(arrays / "unnamed.npz", values)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
