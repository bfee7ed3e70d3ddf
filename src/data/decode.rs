//! From a file to RGB pixels the right way up.

use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, ImageResult, Limits, RgbImage};

use crate::{Error, Result};

/// Bytes that a file, and its decoded pixels, may each take: a small file can promise billions of pixels.
const MAX_BYTES: u64 = 512 << 20;
/// Longest side, in pixels.
const MAX_SIDE: u32 = 1 << 16;
/// Bytes by which every format is recognised.
const START: usize = 16;
/// The bytes that a JPEG file starts with.
const JPEG: &[u8] = &[0xFF, 0xD8, 0xFF];

/// Reads the image file at `path` as 8-bit RGB, turned upright by its EXIF orientation.
///
/// The format (JPEG, PNG, GIF, BMP, WebP, TIFF) is recognised by content, whatever the name. Of an animation the
/// first frame is read; transparency is dropped.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Image`] if it is no image, is damaged, or is larger than
/// 512 MiB or 65,536 pixels a side.
pub fn decode(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    // A named pipe would block for ever.
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() {
        return Err(Error::image(path, "not a regular file"));
    }
    if metadata.len() > MAX_BYTES {
        return Err(Error::image(path, format!("larger than {} MiB", MAX_BYTES >> 20)));
    }
    decode_bytes(&fs::read(path).map_err(|e| Error::io(path, e))?, path)
}

/// As [`decode`], from the bytes of a file; `name` stands for it in errors.
///
/// # Errors
/// [`Error::Image`], as [`decode`].
pub fn decode_bytes(bytes: &[u8], name: impl AsRef<Path>) -> Result<RgbImage> {
    let name = name.as_ref();
    recognise(bytes).map_err(|reason| Error::image(name, reason))?;
    // Decoders of hostile formats have had bugs that panic; one file must not end a long training.
    match catch_unwind(AssertUnwindSafe(|| upright_rgb(bytes))) {
        Ok(Ok(image)) if image.is_empty() => Err(Error::image(name, "has no pixels")),
        // Asked last: where the decoder complains itself, it knows better.
        Ok(Ok(_)) if bytes.starts_with(JPEG) && !jpeg_is_whole(bytes) => {
            Err(Error::image(name, "cut off: the file ends before the image does"))
        }
        Ok(decoded) => decoded.map_err(|e| Error::image(name, e.to_string())),
        Err(_) => Err(Error::image(name, "damaged in a way that its decoder cannot handle")),
    }
}

fn upright_rgb(bytes: &[u8]) -> ImageResult<RgbImage> {
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    limits.max_alloc = Some(MAX_BYTES);

    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    // Broken EXIF data says nothing about the pixels.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder)?;
    image.apply_orientation(orientation);
    Ok(image.into_rgb8())
}

/// Whether the file at `path` starts as a readable image does, at the cost of reading 16 bytes; if not, why.
pub(super) fn check_start(path: &Path) -> Result<(), String> {
    let mut start = Vec::with_capacity(START);
    let file = File::open(path).map_err(|e| e.to_string())?;
    file.take(START as u64).read_to_end(&mut start).map_err(|e| e.to_string())?;
    recognise(&start)
}

fn recognise(bytes: &[u8]) -> Result<(), String> {
    if bytes.is_empty() {
        return Err("the file is empty".into());
    }
    match image::guess_format(&bytes[..bytes.len().min(START)]) {
        Ok(format) if format.reading_enabled() => Ok(()),
        Ok(format) => Err(format!("the format {format:?} is not supported")),
        Err(_) => Err("not an image: its content is of no known format".into()),
    }
}

/// Whether a JPEG file reaches its end marker. The decoder fills what is missing from a broken download with grey,
/// and calls that a success. Thumbnails lie within segments, and whatever follows the end does not matter.
fn jpeg_is_whole(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xFF)) {
        at += offset + 1;
        match bytes.get(at..) {
            Some([0xD9, ..]) => return true,
            // Filling; the next byte is the marker.
            Some([0xFF, ..]) => {}
            // A literal 0xFF among the pixels, and markers without a segment.
            Some([0x00 | 0x01 | 0xD0..=0xD8, ..]) => at += 1,
            Some([_, high, low, ..]) => at += 1 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => return false,
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn png(image: &RgbImage) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn png_round_trip() {
        let image = RgbImage::from_fn(5, 3, |x, y| image::Rgb([x as u8 * 40, y as u8 * 80, 7]));
        assert_eq!(decode_bytes(&png(&image), "x.png").unwrap(), image);
    }

    #[test]
    fn cut_off_jpegs_are_errors_and_trailers_are_not() {
        let mut bytes = Cursor::new(Vec::new());
        crate::data::tests::noise(40, 30, 1).write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
        let mut bytes = bytes.into_inner();
        for length in [3, bytes.len() / 10, bytes.len() - 2] {
            assert!(decode_bytes(&bytes[..length], "x.jpg").is_err(), "{length}");
        }
        let message = decode_bytes(&bytes[..bytes.len() - 40], "x.jpg").unwrap_err().to_string();
        assert!(message.contains("cut off"), "{message}");
        bytes.extend([7; 9000]);
        assert!(decode_bytes(&bytes, "x.jpg").is_ok());
    }

    #[test]
    fn errors_name_the_file_and_the_cause() {
        let whole = png(&RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * y) as u8, (x * 7) as u8, y as u8])));
        for (bytes, cause) in [
            (&b""[..], "empty"),
            (b"<html>no image</html>", "no known format"),
            (b"\0\0\0\x20ftypavif\0\0\0\0", "Avif"),
            (&whole[..whole.len() / 2], ""),
        ] {
            let message = decode_bytes(bytes, "some/file.jpg").unwrap_err().to_string();
            assert!(message.starts_with("some/file.jpg: ") && message.contains(cause), "{message}");
        }
    }
}
