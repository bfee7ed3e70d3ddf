//! Files made byte by byte, and what they must decode to by their formats' rules.

use std::io::Cursor;

use image::{DynamicImage, ExtendedColorType, ImageFormat, Rgb};
use unfreeze::data::{RgbImage, decode_bytes};

const WIDE: u32 = 60_000;

/// A picture whose every pixel tells its place.
pub fn gradient(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| Rgb([(x % 256) as u8, (y % 256) as u8, 77]))
}

fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn pixels(bytes: &[u8]) -> Vec<[u8; 3]> {
    decode_bytes(bytes, "made").unwrap().pixels().map(|pixel| pixel.0).collect()
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _| if crc & 1 == 1 { crc >> 1 ^ 0xEDB8_8320 } else { crc >> 1 };
    !bytes.iter().fold(u32::MAX, |crc, &byte| (0..8).fold(crc ^ u32::from(byte), step))
}

/// A PNG of `rows`, each led by its filter byte, as one stored block; `chunks` come before the pixels.
fn png((width, height): (u32, u32), depth: u8, color: u8, chunks: &[(&[u8], &[u8])], rows: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x89PNG\r\n\x1A\n".to_vec();
    let mut chunk = |name: &[u8], data: &[u8]| {
        bytes.extend((data.len() as u32).to_be_bytes());
        let body = [name, data].concat();
        bytes.extend(&body);
        bytes.extend(crc32(&body).to_be_bytes());
    };
    chunk(b"IHDR", &[&width.to_be_bytes()[..], &height.to_be_bytes(), &[depth, color, 0, 0, 0]].concat());
    chunks.iter().for_each(|(name, data)| chunk(name, data));
    let (a, b) = rows.iter().fold((1, 0), |(a, b), &x| ((a + u32::from(x)) % 65521, (b + a + u32::from(x)) % 65521));
    let length = rows.len() as u16;
    let sum = (b << 16 | a).to_be_bytes();
    chunk(b"IDAT", &[&[0x78, 0x01, 0x01][..], &length.to_le_bytes(), &(!length).to_le_bytes(), rows, &sum].concat());
    chunk(b"IEND", &[]);
    bytes
}

#[test]
fn png_of_every_kind() {
    // Greys of 1, 2, 4, 8 bits spread over the full range.
    assert_eq!(pixels(&png((3, 1), 1, 0, &[], &[0, 0b0100_0000])), [[0; 3], [255; 3], [0; 3]]);
    assert_eq!(pixels(&png((3, 1), 2, 0, &[], &[0, 0b0001_1000])), [[0; 3], [85; 3], [170; 3]]);
    assert_eq!(pixels(&png((2, 1), 4, 0, &[], &[0, 0x3F])), [[51; 3], [255; 3]]);
    assert_eq!(pixels(&png((2, 1), 8, 0, &[], &[0, 7, 200])), [[7; 3], [200; 3]]);
    // 16 bits are scaled: Pillow would make 255 of the second.
    assert_eq!(pixels(&png((3, 1), 16, 0, &[], &[0, 0, 0, 0x80, 0x80, 0xFF, 0xFF])), [[0; 3], [128; 3], [255; 3]]);
    assert_eq!(pixels(&png((1, 1), 16, 2, &[], &[0, 10, 10, 20, 20, 30, 30])), [[10, 20, 30]]);
    // Transparency is dropped: what is hidden shows, as in Pillow's convert('RGB').
    assert_eq!(pixels(&png((2, 1), 8, 4, &[], &[0, 9, 0, 200, 128])), [[9; 3], [200; 3]]);
    assert_eq!(pixels(&png((2, 1), 8, 6, &[], &[0, 1, 2, 3, 0, 4, 5, 6, 255])), [[1, 2, 3], [4, 5, 6]]);
    let palette: [(&[u8], &[u8]); 2] = [(b"PLTE", &[1, 2, 3, 4, 5, 6]), (b"tRNS", &[0])];
    assert_eq!(pixels(&png((2, 1), 8, 3, &palette[..1], &[0, 1, 0])), [[4, 5, 6], [1, 2, 3]]);
    assert_eq!(pixels(&png((2, 1), 8, 3, &palette, &[0, 1, 0])), [[4, 5, 6], [1, 2, 3]]);
    assert_eq!(pixels(&png((2, 1), 1, 3, &palette, &[0, 0b0100_0000])), [[1, 2, 3], [4, 5, 6]]);
}

#[test]
fn png_and_webp_are_turned_upright() {
    // A little-endian EXIF directory of one entry: orientation 6, to be turned clockwise.
    let exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let rows = [0, 1, 1, 1, 2, 2, 2];
    let turned = decode_bytes(&png((2, 1), 8, 2, &[(b"eXIf", exif)], &rows), "made").unwrap();
    assert_eq!((turned.dimensions(), turned.as_raw().as_slice()), ((1, 2), &[1, 1, 1, 2, 2, 2][..]));
    // Cut off or senseless EXIF leaves the picture as it is.
    for broken in [&exif[..12], b"nonsense", b"", b"II*\0\xFF\xFF\xFF\xFF"] {
        assert_eq!(pixels(&png((2, 1), 8, 2, &[(b"eXIf", broken)], &rows)), [[1; 3], [2; 3]]);
    }

    // The extended form of WebP: a header chunk that announces EXIF, the picture, the EXIF data.
    let simple = encode(gradient(40, 30), ImageFormat::WebP);
    for prefix in [&b""[..], b"Exif\0\0"] {
        let exif = [prefix, exif].concat();
        let header = [8, 0, 0, 0, 39, 0, 0, 29, 0, 0];
        let mut body = b"WEBPVP8X\x0A\0\0\0".to_vec();
        body.extend(header);
        body.extend(&simple[12..]);
        body.extend(b"EXIF");
        body.extend((exif.len() as u32).to_le_bytes());
        body.extend(exif);
        let bytes = [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat();
        let turned = decode_bytes(&bytes, "made").unwrap();
        assert_eq!(turned, image::imageops::rotate90(&gradient(40, 30)));
    }
}

/// One block of 8 × 8 pixels of one colour in four components, of which the second to fourth are the first's kind.
fn cmyk_jpeg(adobe: Option<u8>, stored: [u8; 4]) -> Vec<u8> {
    let mut bytes = vec![0xFF, 0xD8];
    if let Some(transform) = adobe {
        bytes.extend(b"\xFF\xEE\0\x0EAdobe\0\x64\0\0\0\0");
        bytes.push(transform);
    }
    bytes.extend([0xFF, 0xDB, 0, 67, 0]);
    bytes.extend([1; 64]);
    bytes.extend([0xFF, 0xC0, 0, 20, 8, 0, 8, 0, 8, 4]);
    (1..=4).for_each(|component| bytes.extend([component, 0x11, 0]));
    // Code words of 4 bits for the lengths 0 to 11 of a mean, and one bit for the end of a block.
    bytes.extend([0xFF, 0xC4, 0, 31, 0x00, 0, 0, 0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(0..12);
    bytes.extend([0xFF, 0xC4, 0, 20, 0x10, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0xFF, 0xDA, 0, 14, 4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0]);
    let mut bits = String::new();
    for level in stored {
        let mean = (i32::from(level) - 128) * 8;
        let length = (32 - mean.unsigned_abs().leading_zeros()) as usize;
        let code = if mean < 0 { mean + (1 << length) - 1 } else { mean };
        bits += &format!("{length:04b}");
        bits += &if length > 0 { format!("{code:0length$b}") } else { String::new() };
        bits += "0";
    }
    while !bits.len().is_multiple_of(8) {
        bits.push('1');
    }
    for at in (0..bits.len()).step_by(8) {
        let byte = u8::from_str_radix(&bits[at..at + 8], 2).unwrap();
        bytes.extend(if byte == 0xFF { &[0xFF, 0][..] } else { std::slice::from_ref(&byte) });
    }
    bytes.extend([0xFF, 0xD9]);
    bytes
}

#[test]
fn cmyk_jpeg_is_taken_as_inverted() {
    // All programs write CMYK the way Adobe's do: 255 is no ink. Then red is cyan · black.
    let product = |a: u8, k: u8| (u32::from(a) * u32::from(k)) as f64 / 255.0;
    let close = |bytes: &[u8], expected: [f64; 3]| {
        let image = pixels(bytes);
        assert_eq!(image.len(), 64);
        let far = |pixel: &[u8; 3]| (0..3).map(|k| (f64::from(pixel[k]) - expected[k]).abs()).fold(0.0, f64::max);
        assert!(image.iter().all(|pixel| far(pixel) <= 2.0), "{:?} {expected:?}", image[0]);
    };
    for stored in [[255; 4], [0, 255, 255, 255], [200, 100, 50, 180], [90, 90, 90, 0]] {
        let [c, m, y, k] = stored;
        let expected = [product(c, k), product(m, k), product(y, k)];
        close(&cmyk_jpeg(None, stored), expected);
        close(&cmyk_jpeg(Some(0), stored), expected);
    }
    // YCCK: the first three are the luma and chroma of the inverse of the stored cyan, magenta and yellow.
    let [luma, blue, red, k] = [120, 150, 100, 200];
    let (y, b, r) = (f64::from(luma), f64::from(blue) - 128.0, f64::from(red) - 128.0);
    let inverse = [y + 1.402 * r, y - 0.344136 * b - 0.714136 * r, y + 1.772 * b];
    let rgb = inverse.map(|level| (255.0 - level) * f64::from(k) / 255.0);
    close(&cmyk_jpeg(Some(2), [luma, blue, red, k]), rgb);
}

#[test]
fn other_formats_keep_their_pixels() {
    let image = gradient(33, 20);
    for format in [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP] {
        assert_eq!(decode_bytes(&encode(image.clone(), format), "picture.jpg").unwrap(), image, "{format:?}");
    }
    // 16 bits of grey in TIFF, and a palette in BMP.
    let gray16 = image::ImageBuffer::<image::Luma<u16>, _>::from_raw(2, 1, vec![0x4040, 0xFFFF]).unwrap();
    assert_eq!(pixels(&encode(gray16, ImageFormat::Tiff)), [[64; 3], [255; 3]]);
    let bmp = |bits: u8, row: &[u8]| {
        let mut bytes = b"BM\0\0\0\0\0\0\0\0\x3E\0\0\0\x28\0\0\0\x02\0\0\0\x01\0\0\0\x01\0".to_vec();
        bytes.extend([&[bits, 0][..], &[0; 16], &[2, 0, 0, 0, 0, 0, 0, 0], &[3, 2, 1, 0, 6, 5, 4, 0], row].concat());
        bytes
    };
    assert_eq!(pixels(&bmp(8, &[1, 0, 0, 0])), [[4, 5, 6], [1, 2, 3]]);
    assert_eq!(pixels(&bmp(1, &[0b0100_0000, 0, 0, 0])), [[1, 2, 3], [4, 5, 6]]);
}

#[test]
fn of_an_animation_the_first_frame_is_read() {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for level in [50, 200] {
        encoder.encode(&[level; 4 * 3 * 3], 4, 3, ExtendedColorType::Rgb8).unwrap();
    }
    drop(encoder);
    assert_eq!(pixels(&bytes), [[50; 3]; 12]);
}

#[test]
fn the_smallest_and_the_longest_images_decode() {
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::Gif, ImageFormat::WebP, ImageFormat::Tiff] {
        let sides = [(1, 1), (1, 3000), (3000, 1)];
        for (width, height) in sides {
            let image = decode_bytes(&encode(gradient(width, height), format), "made").unwrap();
            assert_eq!(image.dimensions(), (width, height), "{format:?}");
        }
    }
    assert_eq!(pixels(&png((WIDE, 1), 1, 0, &[], &[0; 1 + WIDE as usize / 8])).len(), WIDE as usize);
}

/// Small files that promise more pixels than memory holds, by name.
pub fn bombs() -> Vec<(&'static str, Vec<u8>)> {
    let png = |depth, color| png((WIDE, WIDE), depth, color, &[], &[0; 100]);
    let mut bmp = encode(gradient(4, 4), ImageFormat::Bmp);
    bmp[18..26].copy_from_slice(&[WIDE.to_le_bytes(), WIDE.to_le_bytes()].concat());
    let mut gif = encode(gradient(4, 4), ImageFormat::Gif);
    gif[6..10].fill(0xFF);
    let jpeg = |coding: u8| {
        let mut bytes = encode(gradient(16, 16), ImageFormat::Jpeg);
        let frame = bytes.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
        bytes[frame + 1] = coding;
        bytes[frame + 5..frame + 9].fill(0xF0);
        bytes
    };
    // 14 bits for each side, less one, from the fifth byte of the picture on.
    let mut webp = encode(gradient(16, 16), ImageFormat::WebP);
    webp[21..25].copy_from_slice(&(16_000u32 | 16_000 << 14).to_le_bytes());
    let mut tiff = encode(gradient(4, 4), ImageFormat::Tiff);
    for tag in [[0x00, 0x01], [0x01, 0x01]] {
        let entry = tiff.windows(4).rposition(|bytes| bytes[..2] == tag && matches!(bytes[2..], [3 | 4, 0])).unwrap();
        tiff[entry + 2] = 4;
        tiff[entry + 8..entry + 12].copy_from_slice(&WIDE.to_le_bytes());
    }
    vec![
        ("rgb.png", png(8, 2)),
        ("rgba16.png", png(16, 6)),
        ("bit.png", png(1, 0)),
        ("bomb.bmp", bmp),
        ("bomb.gif", gif),
        ("baseline.jpg", jpeg(0xC0)),
        ("progressive.jpg", jpeg(0xC2)),
        ("bomb.webp", webp),
        ("bomb.tif", tiff),
    ]
}

#[test]
fn promises_of_pixels_are_refused_by_their_header() {
    for (name, bytes) in bombs() {
        let message = decode_bytes(&bytes, name).unwrap_err().to_string();
        assert!(message.starts_with(name) && message.contains("scale it down"), "{message}");
    }
}
