"""What images may be given as: every kind gives the pixels that a path gives, or an error that names it."""

import http.server
import io
import threading
import time

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from zoo.data.loading import ImageReadError, read_image
from zoo.inference.sources import SourceOptions, count, expand, fetch

RGB = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)


def load(value, **options):
    return [item.load() for item in expand(value, SourceOptions(**options))]


def one(value, **options):
    (image,) = load(value, **options)
    return image


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "b").mkdir()
    Image.fromarray(RGB).save(tmp_path / "a.png")
    Image.fromarray(RGB[::-1].copy()).save(tmp_path / "b" / "c.png")
    (tmp_path / "b" / "notes.txt").write_text("no image")
    (tmp_path / ".hidden.png").write_bytes(b"")
    return tmp_path


def test_paths_folders_and_patterns(folder):
    assert np.array_equal(one(folder / "a.png"), RGB)
    names = [i.source for i in expand(str(folder))]
    assert names == [str(folder / "a.png"), str(folder / "b" / "c.png")]
    assert [i.source for i in expand(str(folder / "**" / "c.*"))] == [str(folder / "b" / "c.png")]
    assert [i.source for i in expand([folder / "a.png", folder / "b"])] == names
    assert count([str(folder), folder / "a.png"]) == 3
    for missing in ("none.png", "*.jpg"):
        with pytest.raises(FileNotFoundError, match=missing.replace("*", r"\*")):
            list(expand(str(folder / missing)))
    (folder / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no images"):
        list(expand(folder / "empty"))


ALPHA = np.random.default_rng(1).integers(0, 256, (12, 17), dtype=np.uint8)
SHARE = ALPHA[..., None] / 255
OVER = np.rint(RGB * SHARE + 255 * (1 - SHARE)).astype(np.uint8)
GREY = np.repeat(RGB[:, :, :1], 3, axis=2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB),
        (RGB.astype(np.float32) / 255, RGB),
        (RGB.astype(np.float64) / 255, RGB),
        (RGB.astype(np.uint16) * 256 + 37, RGB),
        (RGB[:, :, 0], GREY),
        (RGB[:, :, :1], GREY),
        (RGB[:, :, 0] > 100, np.where(GREY > 100, 255, 0)),
        (np.dstack([RGB, ALPHA]), OVER),
        (np.dstack([RGB[:, :, 0], ALPHA]), np.rint(GREY * SHARE + 255 * (1 - SHARE))),
        (RGB[:, ::-1], RGB[:, ::-1]),  # not contiguous
    ],
)
def test_arrays_and_tensors(array, expected):
    assert np.array_equal(one(array), expected)
    if array.dtype != np.uint16:
        tensor = torch.from_numpy(array.copy())
        assert np.array_equal(one(tensor.permute(2, 0, 1) if array.ndim == 3 else tensor), expected)


def test_batches_are_split():
    batch = np.stack([RGB, RGB[::-1]])
    assert np.array_equal(np.stack(load(batch)), batch)
    assert np.array_equal(np.stack(load(torch.from_numpy(batch).permute(0, 3, 1, 2))), batch)
    assert [i.source for i in expand(batch)] == ["image[0]", "image[1]"]
    assert count(batch) == 2
    assert np.array_equal(one(torch.from_numpy(RGB).permute(2, 0, 1).bfloat16() / 256 * 0), RGB * 0)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (RGB.transpose(2, 0, 1), "channels come last"),
        (torch.from_numpy(RGB), "channels come first"),
        (np.zeros((4, 4, 5), np.uint8), r"1 to 4 channels"),
        (np.zeros((0, 4, 3), np.uint8), r"\(0, 4, 3\)"),
        (np.zeros(5, np.uint8), r"\(5,\)"),
        (RGB.astype(np.float32), "floats between 0 and 255"),
        (RGB / 255 * 4 - 2, "normalisation"),
        (np.full((2, 2, 3), np.nan), "nan"),
        (RGB.astype(np.int64), "int64"),
    ],
)
def test_ambiguous_arrays_are_refused(array, words):
    with pytest.raises(ValueError, match=words):
        load([array])


@pytest.mark.parametrize("value", [3, None, {"a": RGB}, object()])
def test_what_is_no_image_is_refused(value):
    with pytest.raises(TypeError, match="image 1 is a"):
        load([RGB, value])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1", "LA", "I;16"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_pil_images_bytes_and_paths_agree(tmp_path, mode, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(RGB).convert("RGB" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(RGB[:, :, 0].astype(np.uint16) * 256)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path, exif=exif)
    expected = read_image(path)
    assert expected.shape == ((17, 12, 3) if orientation == 6 else (12, 17, 3))
    assert np.array_equal(one(Image.open(path)), expected)
    assert np.array_equal(one(path.read_bytes()), expected)
    opened = Image.open(path)
    assert next(iter(expand([opened]))).source == str(path)


def test_generators_are_read_as_needed_and_not_kept():
    taken = []

    def images():
        for i in range(5):
            taken.append(i)
            yield RGB

    items = expand(images())
    assert [next(items).again, next(items).again] == [False, False]
    assert taken == [0, 1]
    assert next(iter(expand([RGB]))).again
    assert count(images()) is None


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (32, 24))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for level in range(20):
        writer.write(np.full((24, 32, 3), (10 * level, 255 - 10 * level, 128), np.uint8))  # blue, green, red
    writer.release()
    return path


@pytest.mark.parametrize("stride", [1, 3])
def test_video_frames_in_order(video, stride):
    items = list(expand(video, SourceOptions(video_stride=stride)))
    assert [i.frame for i in items] == list(range(0, 20, stride))
    for item in items:
        expected = np.array([128, 255 - 10 * item.frame, 10 * item.frame])
        assert np.abs(item.load().astype(int) - expected).max() <= 6
    assert count(str(video)) is None


def test_videos_that_are_none(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video at all" * 20)
    with pytest.raises(ImageReadError, match=r"bad\.mp4"):
        load(tmp_path / "bad.mp4")


def test_a_video_left_in_the_middle_ends_its_thread(video):
    items = expand(video)
    next(items)
    items.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("zoo-video")]


def test_frames_of_animations(tmp_path):
    frames = [Image.new("RGB", (8, 6), c) for c in ("red", "lime", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert len(load(tmp_path / "a.gif")) == 1
    for source in (tmp_path / "a.gif", Image.open(tmp_path / "a.gif"), (tmp_path / "a.gif").read_bytes()):
        items = list(expand(source, SourceOptions(frames="all")))
        assert [i.frame for i in items] == [0, 1, 2]
        assert [tuple(i.load()[0, 0]) for i in items] == [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames[0].save(tmp_path / "still.png")
    (still,) = expand(tmp_path / "still.png", SourceOptions(frames="all"))
    assert still.frame is None
    (tmp_path / "bad.gif").write_bytes(b"GIF89a")
    (bad,) = expand(tmp_path / "bad.gif", SourceOptions(frames="all"))
    with pytest.raises(ImageReadError, match=r"bad\.gif"):
        bad.load()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers of a server: good, and of all the bad kinds."""

    def do_GET(self):
        out = io.BytesIO()
        Image.fromarray(RGB).save(out, "PNG")
        data = out.getvalue()
        kind = self.path.strip("/")
        if kind in ("file", "ftp", "loop", "other"):
            to = {"file": "file:///etc/hostname", "ftp": "ftp://localhost/a", "loop": "/loop", "other": "/good"}[kind]
            self.send_response(302)
            self.send_header("Location", to)
            self.end_headers()
            return
        if kind == "missing":
            self.send_error(404)
            return
        self.send_response(200)
        if kind == "huge":
            self.send_header("Content-Length", str(10**12))
        elif kind in ("short", "good"):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        try:
            if kind == "endless":
                while True:
                    self.wfile.write(b"x" * 100_000)
            if kind == "slow":
                for byte in data:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                    time.sleep(0.05)
            if kind == "silent":
                time.sleep(3)
            self.wfile.write(data[: len(data) // 2] if kind == "short" else b"text" if kind == "text" else data)
        except OSError:
            pass  # the client has gone

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}"
    running.shutdown()
    running.server_close()


def test_addresses_are_fetched_where_allowed(server):
    for path in ("good", "other"):
        assert np.array_equal(one(f"{server}/{path}", allow_urls=True), RGB)
    with pytest.raises(ValueError, match="allow_urls=True"):
        load(f"{server}/good")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://localhost/a.png", "data://x"])
def test_other_schemes_are_refused(url):
    with pytest.raises(ValueError, match="accepted are http and https"):
        load(url, allow_urls=True)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("file", "'file:///etc/hostname' is not allowed"),
        ("ftp", "redirects to the scheme 'ftp'"),
        ("loop", "302"),
        ("missing", "404"),
        ("huge", "more than url_max_bytes"),
        ("endless", "more than url_max_bytes"),
        ("short", "the connection ended|IncompleteRead"),
        ("slow", "not complete after 0.6 seconds"),
        ("silent", "not complete after 0.6 seconds"),
        ("text", "no known image format"),
    ],
)
def test_bad_answers_are_one_clear_message(server, path, words):
    started = time.monotonic()
    with pytest.raises(ImageReadError, match=words) as caught:
        load(f"{server}/{path}", allow_urls=True, url_timeout=0.6, url_max_bytes=10**6)
    assert f"{server}/{path}" in str(caught.value)
    assert time.monotonic() - started < 3


def test_no_server():
    with pytest.raises(ImageReadError, match="127.0.0.1:9"):
        fetch("http://127.0.0.1:9/a.png", 1.0, 1000)


@pytest.mark.parametrize(
    "options", [dict(frames="some"), dict(url_timeout=0), dict(video_stride=0), dict(url_max_bytes=-1)]
)
def test_wrong_options(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        SourceOptions(**options)
