//! Pictures inside a page: small copies of image files, and data addresses.

use std::{io::Cursor, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use image::{ImageFormat, imageops};

use crate::{
    Error, Result,
    data::{decode, short_side},
};

/// Short side of a thumbnail, in pixels.
const SHORT_SIDE: u32 = 112;

/// `data:` address of a picture of the given type, such as `image/png`.
pub(super) fn data_url(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", BASE64_STANDARD.encode(bytes))
}

/// Address of a small copy of an image file.
///
/// # Errors
/// As [`decode`].
pub(super) fn thumbnail(path: &Path) -> Result<String> {
    let image = decode(path)?;
    // Of long strips the middle is shown.
    let short = image.width().min(image.height());
    let (width, height) = (image.width().min(2 * short), image.height().min(2 * short));
    let (x, y) = ((image.width() - width) / 2, (image.height() - height) / 2);
    let image = imageops::crop_imm(&image, x, y, width, height).to_image();
    let small = short_side(&image, SHORT_SIDE)?;
    let mut jpeg = Cursor::new(Vec::new());
    small.write_to(&mut jpeg, ImageFormat::Jpeg).map_err(|error| Error::image(path, error.to_string()))?;
    Ok(data_url("image/jpeg", &jpeg.into_inner()))
}
