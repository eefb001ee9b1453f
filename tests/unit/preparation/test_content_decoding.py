"""Images and sounds of files that may be anything."""

import io
import os
import struct
import zlib

import numpy as np
import pytest

from diffmm_dist.errors import UserError
from diffmm_dist.preparation.content.images import read_image
from diffmm_dist.preparation.content.sounds import read_windows, windows_of

pytest.importorskip("PIL")
from PIL import Image


def png(width, height):
    """A few bytes that promise an image of any size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


def encoded(image, kind="PNG", **more):
    buffer = io.BytesIO()
    image.save(buffer, kind, **more)
    return buffer.getvalue()


def read(data, tmp_path):
    (tmp_path / "image").write_bytes(data)
    return np.asarray(read_image(str(tmp_path / "image")))


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8))


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"<html>not found</html>", "it is no image of JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is no image of"),
        (encoded(NOISE)[:3000], "it cannot be decoded: "),
        (encoded(NOISE, "JPEG")[:900], "it cannot be decoded: .*truncated"),
        (png(9_000, 10_000), "more than 89,478,485 pixels"),
        (png(60_000, 60_000), "more than 89,478,485 pixels"),
    ],
    ids=["empty", "page", "PostScript", "cut PNG", "cut JPEG", "large", "bomb"],
)
def test_damaged_images_have_a_reason(data, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        read(data, tmp_path)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(UserError, match="no regular file"):
        read_image(str(tmp_path / "pipe.png"))
    with pytest.raises(UserError, match="does not exist"):
        read_image(str(tmp_path / "none.png"))


def test_images_are_as_they_are_shown(tmp_path):
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((0, 0), (255, 0, 0, 255))
    assert read(encoded(clear), tmp_path).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    turned = Image.new("L", (2, 1), 0)
    turned.putpixel((0, 0), 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right
    assert read(encoded(turned, exif=exif), tmp_path).shape == (2, 1, 3)
    deep = Image.fromarray(np.full((1, 1), 40_000, np.uint16))
    assert read(encoded(deep), tmp_path).tolist() == [[[156, 156, 156]]]
    first = Image.new("P", (1, 1), 0)
    assert read(encoded(first, "GIF", save_all=True, append_images=[first]), tmp_path).shape == (1, 1, 3)


def test_windows_cover_a_sound():
    samples = np.arange(25, dtype=np.float32)
    windows = windows_of(samples, 10)
    assert [len(window) for window in windows] == [10, 10, 10]
    assert sorted(set(np.concatenate(windows).tolist())) == samples.tolist()
    assert [len(window) for window in windows_of(samples, 25)] == [25]


def sound(path, samples, rate=8000, **more):
    soundfile = pytest.importorskip("soundfile", reason="the extra `features` is not installed")
    soundfile.write(path, samples, rate, **more)
    return str(path)


def test_sounds_are_heard_in_one_channel_at_the_models_rate(tmp_path):
    times = np.arange(8000) / 8000
    tone = np.sin(2 * np.pi * 300 * times)
    path = sound(tmp_path / "a.flac", np.stack([tone, np.zeros(8000)], axis=1))
    (window,) = read_windows(path, rate=16_000, max_seconds=60)
    assert window.shape == (16_000,)
    assert window.dtype == np.float32
    expected = 0.5 * np.sin(2 * np.pi * 300 * np.arange(16_000) / 16_000)
    np.testing.assert_allclose(window[500:-500], expected[500:-500], atol=0.01)
    assert len(read_windows(sound(tmp_path / "b.wav", np.zeros(8000 * 25)), rate=8000, max_seconds=60)) == 3
    (window,) = read_windows(str(tmp_path / "b.wav"), rate=8000, max_seconds=4)
    assert len(window) == 32_000


@pytest.mark.parametrize(
    ("samples", "reason"),
    [(np.zeros(80), "shorter than 0.1 s"), (np.full(8000, np.nan), "NaN or infinite"), (None, "cannot be decoded")],
    ids=["short", "NaN", "no sound"],
)
def test_damaged_sounds_have_a_reason(samples, reason, tmp_path):
    path = sound(tmp_path / "a.wav", np.zeros(9) if samples is None else samples, subtype="FLOAT")
    if samples is None:
        (tmp_path / "a.wav").write_bytes(b"RIFF and nothing else")
    with pytest.raises(UserError, match=reason):
        read_windows(path, rate=8000, max_seconds=60)
