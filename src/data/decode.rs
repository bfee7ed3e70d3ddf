//! From a file to RGB pixels the right way up.
//!
//! The pixels are those of Pillow's `convert('RGB')`, on which the pretrained networks were trained: transparency is
//! dropped (what a transparent pixel hides, shows), colour profiles are not applied, CMYK is converted without one.
//! Different are 16-bit greys, which are scaled (Pillow clips them, to white for the most part), and EXIF
//! orientation, which is applied.

mod format;
mod jpeg;

use std::fs;
use std::io::{Cursor, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use image::metadata::Orientation;
use image::{
    ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult, Limits, RgbImage,
};

use crate::files::write_atomically;
use crate::{Error, Result};
pub(super) use format::check_start;
use format::{CONVERT, recognise};
use jpeg::Markers;

/// Bytes that one decoding may take, the file's own included: a small file can promise billions of pixels. A loader
/// decodes as many files at once as it has threads.
const MAX_BYTES: u64 = 1 << 30;
/// Longest side, in pixels.
const MAX_SIDE: u32 = 1 << 16;

/// Reads the image file at `path` as 8-bit RGB, turned upright by its EXIF orientation.
///
/// The format (JPEG, PNG, GIF, BMP, WebP, TIFF) is recognised by content, whatever the name. Of an animation the
/// first frame is read. Transparency is dropped and colour profiles are not applied, as by Pillow's
/// `convert('RGB')`; 16-bit samples are scaled to 8.
///
/// # Errors
/// [`Error::Io`] if the file cannot be read; [`Error::Image`] if it is no image, is of a format that is not
/// supported, is damaged or cut off, has a side of more than 65,536 pixels, or would take more than 1 GiB of memory:
/// that is told from its header, before the memory is taken.
pub fn decode(path: impl AsRef<Path>) -> Result<RgbImage> {
    let path = path.as_ref();
    // A named pipe would block for ever.
    let metadata = fs::metadata(path).map_err(|e| Error::io(path, e))?;
    if !metadata.is_file() {
        return Err(Error::image(path, "not a regular file"));
    }
    // Before a large file is read whole.
    check_start(path).map_err(|reason| Error::image(path, reason))?;
    if metadata.len() > MAX_BYTES {
        return Err(Error::image(path, format!("larger than {} MiB", MAX_BYTES >> 20)));
    }
    decode_bytes(&fs::read(path).map_err(|e| Error::io(path, e))?, path)
}

/// Writes `image` as a PNG file, whole or not at all.
///
/// # Errors
/// [`Error::Io`] if it cannot be written, [`Error::Image`] if it cannot be encoded.
pub fn save_png(image: &RgbImage, path: impl AsRef<Path>) -> Result<()> {
    let path = path.as_ref();
    let mut bytes = Cursor::new(Vec::new());
    image
        .write_to(&mut bytes, ImageFormat::Png)
        .map_err(|error| Error::image(path, format!("cannot be encoded: {error}")))?;
    write_atomically(path, |file| file.write_all(bytes.get_ref()))
}

/// As [`decode`], from the bytes of a file; `name` stands for it in errors.
///
/// # Errors
/// [`Error::Image`], as [`decode`].
pub fn decode_bytes(bytes: &[u8], name: impl AsRef<Path>) -> Result<RgbImage> {
    // Decoders of hostile formats have had bugs that panic; one file must not end a long training.
    let decoded = catch_unwind(AssertUnwindSafe(|| upright_rgb(bytes)))
        .unwrap_or_else(|_| Err("damaged in a way that its decoder cannot handle".into()));
    decoded.map_err(|reason| Error::image(name, reason))
}

fn upright_rgb(bytes: &[u8]) -> Result<RgbImage, String> {
    let format = recognise(bytes)?;
    let markers = if bytes.starts_with(jpeg::START) { Markers::read(bytes) } else { Markers::default() };
    if let Some(kind) = markers.unsupported() {
        return Err(format!("is {kind}, which is not supported: {CONVERT}"));
    }
    let explain = |error| explain(format, &error);
    let mut decoder = open(bytes, format).map_err(explain)?;
    if format == ImageFormat::Jpeg && !markers.whole {
        return Err("cut off: the file ends before the image does; fetch it again".into());
    }
    let orientation = orientation(&mut decoder);
    let working = match format {
        ImageFormat::Jpeg => markers.bytes_per_pixel(),
        // Planes of colour, or pixels with alpha.
        ImageFormat::WebP => 4,
        // Its decoder reads into a buffer of its own.
        ImageFormat::Tiff => u64::from(decoder.color_type().bytes_per_pixel()),
        _ => 0,
    };
    let (width, height) = decoder.dimensions();
    // A JPEG's bytes are copied by its decoder.
    let file = bytes.len() as u64 * if format == ImageFormat::Jpeg { 2 } else { 1 };
    let needed = file + u64::from(width) * u64::from(height) * peak(decoder.color_type(), orientation, working);
    if needed > MAX_BYTES {
        let needed = needed.div_ceil(1 << 20);
        let most = MAX_BYTES >> 20;
        return Err(format!(
            "{width}×{height} pixels take {needed} MiB to decode, over the {most} allowed: scale it down"
        ));
    }
    let mut image = DynamicImage::ImageRgb8(DynamicImage::from_decoder(decoder).map_err(explain)?.into_rgb8());
    image.apply_orientation(orientation);
    let image = image.into_rgb8();
    if image.is_empty() { Err("has no pixels".into()) } else { Ok(image) }
}

fn open(bytes: &[u8], format: ImageFormat) -> ImageResult<impl ImageDecoder> {
    let mut limits = Limits::default();
    (limits.max_image_width, limits.max_image_height) = (Some(MAX_SIDE), Some(MAX_SIDE));
    limits.max_alloc = Some(MAX_BYTES);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits.clone());
    let mut decoder = reader.into_decoder()?;
    // What the decoder takes beside the pixels themselves.
    limits.reserve(decoder.total_bytes())?;
    decoder.set_limits(limits)?;
    Ok(decoder)
}

/// The EXIF orientation. Broken EXIF data says nothing about the pixels.
fn orientation(decoder: &mut impl ImageDecoder) -> Orientation {
    // WebP files often carry the prefix that belongs to JPEG alone.
    let exif = decoder.exif_metadata().ok().flatten().unwrap_or_default();
    let prefixed = exif.strip_prefix(b"Exif\0\0").and_then(Orientation::from_exif_chunk);
    prefixed.or_else(|| decoder.orientation().ok()).unwrap_or(Orientation::NoTransforms)
}

/// Bytes per pixel when decoding takes the most: inside the decoder, in the conversion to RGB, or in the turning.
fn peak(color: ColorType, orientation: Orientation, working: u64) -> u64 {
    const RGB: u64 = 3;
    let decoded = u64::from(color.bytes_per_pixel());
    let converted = decoded + if color == ColorType::Rgb8 { 0 } else { RGB };
    let in_place =
        [Orientation::NoTransforms, Orientation::FlipHorizontal, Orientation::FlipVertical, Orientation::Rotate180];
    let turned = RGB + if in_place.contains(&orientation) { 0 } else { RGB };
    (decoded + working).max(converted).max(turned)
}

/// What a decoder's complaint means for the file's owner.
fn explain(format: ImageFormat, error: &ImageError) -> String {
    match error {
        ImageError::Unsupported(cause) => format!("a kind of {format:?} that cannot be decoded ({cause}): {CONVERT}"),
        ImageError::Limits(cause) => format!("too large to decode ({cause}): scale it down"),
        // Some causes end in a line break.
        cause => format!("damaged ({}): fetch it again or remove it", cause.to_string().trim()),
    }
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
            (b"<html>no image</html>", "web page"),
            (b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
            (&whole[..whole.len() / 2], "damaged"),
        ] {
            let message = decode_bytes(bytes, "some/file.jpg").unwrap_err().to_string();
            assert!(message.starts_with("some/file.jpg: ") && message.contains(cause), "{message}");
        }
    }
}
