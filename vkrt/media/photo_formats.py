"""Files that are no photo of a readable format: what they are, and what to do with them."""

from __future__ import annotations

__all__ = ["HEAD_BYTES", "READABLE", "describe"]

READABLE = "give a JPEG, PNG, WebP, AVIF, BMP, TIFF, GIF or PPM file"
HEAD_BYTES = 64

WITH_PILLOW = "open it with Pillow and give that picture, or convert it to PNG"
CONVERT = "convert it to PNG or JPEG"
HEIF = (
    "pip install pillow-heif and call pillow_heif.register_heif_opener() first, or convert it to "
    "JPEG"
)
# (where it begins, what is there, what that is, what to do)
SIGNATURES = (
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 file", WITH_PILLOW),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 file", WITH_PILLOW),
    (0, b"\0\0\x01\0", "an icon (ICO)", WITH_PILLOW),
    (0, b"icns", "an icon (ICNS)", WITH_PILLOW),
    (0, b"8BPS", "a Photoshop file", WITH_PILLOW),
    (0, b"DDS ", "a DDS texture", WITH_PILLOW),
    (0, b"qoif", "a QOI file", WITH_PILLOW),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL file", CONVERT),
    (0, b"\xff\x0a", "a JPEG XL file", CONVERT),
    (0, b"v/1\x01", "an OpenEXR file", CONVERT),
    (0, b"%PDF", "a PDF", "export the page as PNG"),
    (0, b"\x93NUMPY", "a numpy array", "give numpy.load(path)"),
    (0, b"PK\x03\x04", "a zip archive", "unpack it first"),
    (0, b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (0, b"\x1aE\xdf\xa3", "a video (MKV or WebM)", "give one of its frames, or track the clip"),
    (0, b"version https://git-lfs", "a pointer of Git LFS", "get the file itself by git lfs pull"),
    (8, b"AVI ", "a video (AVI)", "give one of its frames, or track the clip"),
)
HEIF_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
AVIF_BRANDS = {b"avif", b"avis"}
PAGES = (b"<!doctype", b"<html", b"<?xml", b"<svg")
# A TGA file has no signature at its begin: colour map, kind of picture, and depth must fit.
TGA_KINDS = {1, 2, 3, 9, 10, 11}
TGA_DEPTHS = {8, 15, 16, 24, 32}


def describe(head: bytes) -> str:
    """Return what a file is that is no readable photo, and what to do, as one phrase.

    Args:
        head: its first HEAD_BYTES.
    """
    if head[4:8] == b"ftyp":
        return describe_boxes(head)
    for place, signature, kind, remedy in SIGNATURES:
        if head.startswith(signature, place):
            return f"is {kind}; {remedy}"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(PAGES):
        return "is a web page or SVG, not a photo; check the download, or convert it to PNG"
    if is_tga(head):
        return f"is not a picture of a readable format, perhaps a TGA; {WITH_PILLOW}"
    return f"is not a picture, or its header is damaged; {READABLE}"


def describe_boxes(head: bytes) -> str:
    """Return what a file of the MP4 family is, by its brands."""
    size = min(max(int.from_bytes(head[:4], "big"), 12), len(head))
    brands = {head[place : place + 4] for place in (8, *range(16, size, 4))}
    # AVIF first: its files also claim the general brand of HEIF.
    if brands & AVIF_BRANDS:
        return "is damaged, or an AVIF that this Pillow can't read; update Pillow, or " + CONVERT
    if brands & HEIF_BRANDS:
        return f"is a HEIC photo, which Pillow alone can't read; {HEIF}"
    return "is a video (MP4 or MOV); give one of its frames, or track the clip"


def is_tga(head: bytes) -> bool:
    """Tell whether a file's first bytes may be those of a TGA."""
    return len(head) > 17 and head[1] <= 1 and head[2] in TGA_KINDS and head[16] in TGA_DEPTHS
