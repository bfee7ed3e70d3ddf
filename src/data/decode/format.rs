//! Which format a file has, told by its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use image::ImageFormat;

/// Bytes by which every format is recognised.
const START: usize = 16;
/// What to do with a file that is an image, but not for us.
pub(super) const CONVERT: &str = "convert it to PNG or JPEG";

/// Formats that are met in collections of photographs but not read: where their mark lies, the mark, the name.
const UNREAD: [(usize, &[u8], &str); 16] = [
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (4, b"ftyphe", "HEIC"),
    (4, b"ftypmif1", "HEIF"),
    (4, b"ftypmsf1", "HEIF"),
    (4, b"ftyp", "a video"),
    (0, b"\0\0\0\x0CjP  ", "JPEG 2000"),
    (0, b"\xFF\x4F\xFF\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0CJXL ", "JPEG XL"),
    (0, b"\xFF\x0A", "JPEG XL"),
    (0, b"8BPS", "Photoshop"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"\x76\x2F\x31\x01", "OpenEXR"),
    (0, b"\0\0\x01\0", "a Windows icon"),
    (0, b"\x01\xDA", "SGI"),
    (0, b"%PDF", "PDF"),
];

/// The format of a file that starts with these bytes; if it is none that can be read, why.
pub(super) fn recognise(bytes: &[u8]) -> Result<ImageFormat, String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    let start = &bytes[..bytes.len().min(START)];
    // TIFF for files beyond 4 GiB, which smaller files use too; `image` knows it only once told.
    if start.starts_with(b"II\x2B\0\x08\0") || start.starts_with(b"MM\0\x2B\0\x08") {
        return Ok(ImageFormat::Tiff);
    }
    match image::guess_format(start) {
        Ok(format) if format.reading_enabled() => return Ok(format),
        _ => {}
    }
    let marked = |(at, mark, _): &&(usize, &[u8], &str)| start.get(*at..).is_some_and(|rest| rest.starts_with(mark));
    if let Some((_, _, name)) = UNREAD.iter().find(marked) {
        return Err(format!("is {name}, a format that is not supported: {CONVERT}"));
    }
    let text = start.trim_ascii_start();
    if text.starts_with(b"<svg") || text.starts_with(b"<?xml") {
        return Err(format!("is SVG or other XML, which has no pixels: {CONVERT}"));
    }
    if text.starts_with(b"<") {
        return Err("is a web page, not an image: fetch it again".into());
    }
    Err("not an image: its content is of no known format".into())
}

/// Whether the file at `path` starts as a readable image does, at the cost of reading 16 bytes; if not, why.
pub(in crate::data) fn check_start(path: &Path) -> Result<(), String> {
    let mut start = Vec::with_capacity(START);
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(START as u64).read_to_end(&mut start).map_err(|e| e.to_string())?;
    recognise(&start).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_decides() {
        for (bytes, format) in [
            (&b"\xFF\xD8\xFF\xE0"[..], ImageFormat::Jpeg),
            (b"\x89PNG\r\n\x1A\n", ImageFormat::Png),
            (b"GIF89a", ImageFormat::Gif),
            (b"BM......", ImageFormat::Bmp),
            (b"RIFF....WEBPVP8 ", ImageFormat::WebP),
            (b"II*\0\x08\0\0\0", ImageFormat::Tiff),
            (b"MM\0\x2B\0\x08\0\0", ImageFormat::Tiff),
        ] {
            assert_eq!(recognise(bytes), Ok(format));
        }
    }

    #[test]
    fn what_is_not_read_is_named() {
        for (bytes, name) in [
            (&b""[..], "empty"),
            (b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
            (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC"),
            (b"\0\0\0\x18ftypisom\0\0\0\0", "video"),
            (b"\0\0\0\x0CjP  \r\n", "JPEG 2000"),
            (b"\n<svg xmlns=", "SVG"),
            (b"<!DOCTYPE html>", "web page"),
            (b"\0\0\x01\0\x01\0", "icon"),
            (b"P. S. a letter", "no known format"),
        ] {
            let reason = recognise(bytes).unwrap_err();
            assert!(reason.contains(name), "{reason}");
        }
    }
}
