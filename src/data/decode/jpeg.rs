//! What a JPEG file's markers tell before its pixels are decoded.

/// The bytes that a JPEG file starts with.
pub(super) const START: &[u8] = &[0xFF, 0xD8, 0xFF];

/// The build of a JPEG file, as far as its markers show.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Markers {
    /// The first frame: how it is coded, and its number of components.
    frame: Option<(u8, u8)>,
    /// Whether the end marker is reached. The decoder fills what is missing from a broken download with grey, and
    /// calls that a success.
    pub whole: bool,
}

impl Markers {
    /// Walks from marker to marker. Thumbnails lie within segments, and whatever follows the end does not matter.
    pub fn read(bytes: &[u8]) -> Self {
        let mut markers = Self::default();
        let mut at = 2;
        while let Some(offset) = bytes.get(at..).and_then(|rest| rest.iter().position(|&byte| byte == 0xFF)) {
            at += offset + 1;
            match bytes.get(at..) {
                Some([0xD9, ..]) => return Self { whole: true, ..markers },
                // Filling; the next byte is the marker.
                Some([0xFF, ..]) => {}
                // A literal 0xFF among the pixels, and markers without a segment.
                Some([0x00 | 0x01 | 0xD0..=0xD8, ..]) => at += 1,
                Some([marker, high, low, segment @ ..]) => {
                    // Beside frames: Huffman tables, an extension, arithmetic conditioning.
                    if matches!(marker, 0xC0..=0xCF) && !matches!(marker, 0xC4 | 0xC8 | 0xCC) {
                        // Bits per sample, height and width come before the number of components.
                        let components = segment.get(5).copied().unwrap_or(0);
                        markers.frame.get_or_insert((*marker, components));
                    }
                    at += 1 + usize::from(u16::from_be_bytes([*high, *low]));
                }
                _ => break,
            }
        }
        markers
    }

    /// The name of a coding that is not supported.
    pub fn unsupported(&self) -> Option<&'static str> {
        match self.frame?.0 {
            0xC0..=0xC2 => None,
            0xC3 => Some("lossless JPEG"),
            0xC9..=0xCB => Some("JPEG with arithmetic coding"),
            _ => Some("hierarchical JPEG"),
        }
    }

    /// Bytes per pixel that the decoder needs beside its output: a progressive image keeps every coefficient (two
    /// bytes) until its last scan.
    pub fn bytes_per_pixel(&self) -> u64 {
        match self.frame {
            Some((0xC2, components)) => 2 * u64::from(components),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start, an application segment that holds a thumbnail, a frame of two components, a scan, the end.
    fn file(coding: u8) -> Vec<u8> {
        let mut bytes = vec![0xFF, 0xD8, 0xFF, 0xE1, 0, 8, 0xFF, 0xD8, 0xFF, 0xC3, 0xFF, 0xD9];
        bytes.extend([0xFF, coding, 0, 14, 8, 0, 16, 0, 16, 2, 1, 0x11, 0, 2, 0x11, 0]);
        bytes.extend([0xFF, 0xDA, 0, 2, 17, 0xFF, 0x00, 0xFF, 0xD0, 0xFF, 0xFF, 0xD9, 1, 2, 3]);
        bytes
    }

    #[test]
    fn the_frame_is_found_past_a_thumbnail() {
        for (coding, unsupported, extra) in [
            (0xC0, None, 0),
            (0xC2, None, 4),
            (0xC3, Some("lossless JPEG"), 0),
            (0xC9, Some("JPEG with arithmetic coding"), 0),
            (0xC5, Some("hierarchical JPEG"), 0),
        ] {
            let markers = Markers::read(&file(coding));
            assert!(markers.whole);
            assert_eq!((markers.unsupported(), markers.bytes_per_pixel()), (unsupported, extra));
        }
    }

    #[test]
    fn no_cut_hides() {
        let bytes = file(0xC0);
        let end = bytes.len() - 3;
        for length in 0..end {
            assert!(!Markers::read(&bytes[..length]).whole, "{length}");
        }
        assert!(Markers::read(&bytes[..end]).whole);
    }
}
