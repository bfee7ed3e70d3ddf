//! Tensor maps: what `cuTensorMapEncodeTiled` and `cuTensorMapEncodeIm2col` take, in an encoding of this crate's own,
//! and which bytes of global memory a copy moves where.

/// What the elements of a tensor are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TensorType {
    /// 8 bits.
    U8,
    /// 16 bits.
    U16,
    /// 32 bits.
    U32,
    /// Half precision.
    F16,
    /// bfloat16.
    BF16,
    /// Single precision.
    F32,
    /// Single precision, rounded to TF32 on the way to shared memory.
    TF32,
}

const TYPES: [TensorType; 7] = {
    use TensorType::*;
    [U8, U16, U32, F16, BF16, F32, TF32]
};

impl TensorType {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            TensorType::U8 => 1,
            TensorType::U16 | TensorType::F16 | TensorType::BF16 => 2,
            _ => 4,
        }
    }
}

/// How the 16-byte chunks of a row are permuted in shared memory, against bank conflicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Within 32 bytes: address bit 4 is exclusive-ored with bit 7.
    B32,
    /// Within 64 bytes: bits 4 and 5 with bits 7 and 8.
    B64,
    /// Within 128 bytes: bits 4 to 6 with bits 7 to 9.
    B128,
}

const SWIZZLES: [Swizzle; 4] = [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128];

impl Swizzle {
    /// The bytes within which it permutes.
    pub fn bytes(self) -> usize {
        match self {
            Swizzle::None => 16,
            Swizzle::B32 => 32,
            Swizzle::B64 => 64,
            Swizzle::B128 => 128,
        }
    }

    /// Where a byte of an unpermuted layout is, by its address in shared memory.
    pub fn apply(self, address: u64) -> u64 {
        let chunks = (self.bytes() / 16 - 1) as u64;
        address ^ (address >> 7 & chunks) << 4
    }
}

/// What a copy takes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TensorMode {
    /// A box of these extents, fastest first.
    Tiled {
        /// Elements along each dimension, steps over elements included.
        extents: Vec<u32>,
    },
    /// Pixels one after the other out of the images of a tensor of channels, width, (height, (depth,)) number.
    Im2col {
        /// The first pixel along width, height, depth.
        lower: Vec<i32>,
        /// The last one, from the last of the image on.
        upper: Vec<i32>,
        /// Channels of each pixel.
        channels: u32,
        /// Pixels.
        pixels: u32,
    },
}

/// A tensor in global memory, and the boxes that copies take of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// What its elements are.
    pub element: TensorType,
    /// Where it begins.
    pub address: u64,
    /// Its extents in elements, fastest first: one to five.
    pub extents: Vec<u64>,
    /// Bytes from one element to the next along each dimension but the first.
    pub strides: Vec<u64>,
    /// Every how many elements one is taken, along each dimension; that of the first dimension does not count.
    pub steps: Vec<u32>,
    /// Which elements make a box.
    pub mode: TensorMode,
    /// The layout in shared memory.
    pub swizzle: Swizzle,
}

/// Consecutive bytes of a box that are inside of the tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The first byte's place in the box, before swizzling.
    pub at: usize,
    pub address: u64,
    pub bytes: usize,
}

const MAGIC: [u8; 4] = *b"TMAP";

impl TensorMap {
    /// The 128 bytes to pass as a `const __grid_constant__` parameter aligned to 64 bytes.
    ///
    /// # Errors
    /// What the driver would refuse, saying why: the limits stand in the CUDA driver API's description of
    /// `cuTensorMapEncodeTiled` and `cuTensorMapEncodeIm2col`.
    pub fn encode(&self) -> Result<[u8; 128], String> {
        self.check()?;
        let mut bytes = MAGIC.to_vec();
        let index = |found: Option<usize>| found.unwrap_or(0) as u8;
        bytes.push(index(TYPES.iter().position(|&t| t == self.element)));
        bytes.push(self.extents.len() as u8);
        bytes.push(index(SWIZZLES.iter().position(|&s| s == self.swizzle)));
        bytes.push(u8::from(matches!(self.mode, TensorMode::Im2col { .. })));
        bytes.extend(self.address.to_le_bytes());
        self.extents.iter().for_each(|extent| bytes.extend(((extent - 1) as u32).to_le_bytes()));
        self.strides.iter().for_each(|stride| bytes.extend(stride.to_le_bytes()));
        bytes.extend(self.steps.iter().map(|&step| step as u8));
        match &self.mode {
            TensorMode::Tiled { extents } => {
                extents.iter().for_each(|&extent| bytes.extend((extent as u16).to_le_bytes()))
            }
            TensorMode::Im2col { lower, upper, channels, pixels } => {
                lower.iter().chain(upper).for_each(|&corner| bytes.extend((corner as i16).to_le_bytes()));
                bytes.extend((*channels as u16).to_le_bytes());
                bytes.extend((*pixels as u16).to_le_bytes());
            }
        }
        let mut blob = [0; 128];
        blob[..bytes.len()].copy_from_slice(&bytes);
        Ok(blob)
    }

    fn check(&self) -> Result<(), String> {
        let rank = self.extents.len();
        let size = self.element.bytes();
        let refuse = |text: String| Err(format!("tensor map: {text}"));
        if !(1..=5).contains(&rank) {
            return refuse(format!("{rank} dimensions: must be 1 to 5"));
        }
        if self.strides.len() != rank - 1 || self.steps.len() != rank {
            return refuse(format!(
                "{} strides and {} steps for {rank} dimensions",
                self.strides.len(),
                self.steps.len()
            ));
        }
        if !self.address.is_multiple_of(16) {
            return refuse(format!("address {:#x} is no multiple of 16", self.address));
        }
        if let Some(extent) = self.extents.iter().find(|&&extent| extent == 0 || extent > 1 << 32) {
            return refuse(format!("an extent of {extent}: must be 1 to 2^32"));
        }
        if let Some(stride) = self.strides.iter().find(|&&stride| !stride.is_multiple_of(16) || stride >= 1 << 40) {
            return refuse(format!("a stride of {stride} bytes: must be a multiple of 16 below 2^40"));
        }
        if let Some(step) = self.steps.iter().find(|&&step| !(1..=8).contains(&step)) {
            return refuse(format!("a step of {step}: must be 1 to 8"));
        }
        match &self.mode {
            TensorMode::Tiled { extents } => {
                if extents.len() != rank {
                    return refuse(format!("a box of {} dimensions of a tensor of {rank}", extents.len()));
                }
                if let Some(extent) = extents.iter().find(|&&extent| !(1..=256).contains(&extent)) {
                    return refuse(format!("a box's extent of {extent}: must be 1 to 256"));
                }
            }
            TensorMode::Im2col { lower, upper, channels, pixels } => {
                if rank < 3 || lower.len() != rank - 2 || upper.len() != rank - 2 {
                    return refuse(format!("corners of {} and {} dimensions of {rank}", lower.len(), upper.len()));
                }
                let limit = [1 << 15, 1 << 7, 1 << 4][rank - 3];
                if let Some(corner) = lower.iter().chain(upper).find(|&&c| !(-limit..limit).contains(&c)) {
                    return refuse(format!("a corner of {corner}: must be {} to {}", -limit, limit - 1));
                }
                if !(1..=256).contains(channels) || !(1..=1024).contains(pixels) {
                    return refuse(format!("{channels} channels of {pixels} pixels: at most 256 and 1024"));
                }
            }
        }
        let row = self.row_bytes();
        if !row.is_multiple_of(16) {
            return refuse(format!("rows of {row} bytes ({size} for an element): must be a multiple of 16"));
        }
        if self.swizzle != Swizzle::None && row > self.swizzle.bytes() {
            return refuse(format!("rows of {row} bytes in a swizzle of {}", self.swizzle.bytes()));
        }
        Ok(())
    }

    /// Reads what [`TensorMap::encode`] wrote.
    pub(crate) fn decode(blob: &[u8; 128]) -> Option<TensorMap> {
        let mut at = 0;
        let mut next = |bytes: usize| {
            at += bytes;
            blob.get(at - bytes..at)
                .map(|part| part.iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte)))
        };
        if next(4)? != u64::from(u32::from_le_bytes(MAGIC)) {
            return None;
        }
        let element = *TYPES.get(next(1)? as usize)?;
        let rank = next(1)? as usize;
        if !(1..=5).contains(&rank) {
            return None;
        }
        let swizzle = *SWIZZLES.get(next(1)? as usize)?;
        let im2col = next(1)? == 1;
        let address = next(8)?;
        let extents = (0..rank).map(|_| next(4).map(|extent| extent + 1)).collect::<Option<_>>()?;
        let strides = (1..rank).map(|_| next(8)).collect::<Option<_>>()?;
        let steps = (0..rank).map(|_| next(1).map(|step| step as u32)).collect::<Option<_>>()?;
        let mode = if im2col {
            let mut corner = || (2..rank).map(|_| next(2).map(|c| i32::from(c as i16))).collect::<Option<_>>();
            let (lower, upper) = (corner()?, corner()?);
            TensorMode::Im2col { lower, upper, channels: next(2)? as u32, pixels: next(2)? as u32 }
        } else {
            TensorMode::Tiled { extents: (0..rank).map(|_| next(2).map(|e| e as u32)).collect::<Option<_>>()? }
        };
        Some(TensorMap { element, address, extents, strides, steps, mode, swizzle })
    }

    /// Whether elements are rounded on their way to shared memory.
    pub(crate) fn rounds(&self) -> bool {
        self.element == TensorType::TF32
    }

    /// Bytes of a box along its fastest dimension.
    pub(crate) fn row_bytes(&self) -> usize {
        let elements = match &self.mode {
            TensorMode::Tiled { extents } => extents[0],
            TensorMode::Im2col { channels, .. } => *channels,
        };
        elements as usize * self.element.bytes()
    }

    /// Elements of a box along each dimension but the fastest.
    fn counts(&self) -> Vec<i64> {
        match &self.mode {
            TensorMode::Tiled { extents } => {
                let along = extents.iter().zip(&self.steps).skip(1);
                along.map(|(extent, step)| i64::from(extent.div_ceil(*step))).collect()
            }
            TensorMode::Im2col { pixels, .. } => vec![i64::from(*pixels)],
        }
    }

    /// Bytes of a box in shared memory.
    pub(crate) fn box_bytes(&self) -> usize {
        self.counts().iter().product::<i64>() as usize * self.row_bytes()
    }

    /// The part of a row that is inside of the tensor; `at` is the row's first element.
    fn row(&self, number: usize, at: &[i64]) -> Option<Row> {
        let size = self.element.bytes();
        let inside = |(&at, &extent): (&i64, &u64)| at >= 0 && (at as u64) < extent;
        if !at[1..].iter().zip(&self.extents[1..]).all(inside) {
            return None;
        }
        let length = self.row_bytes() / size;
        let first = at[0].max(0);
        let end = (at[0] + length as i64).min(self.extents[0] as i64);
        if first >= end {
            return None;
        }
        // Tensors larger than memory have addresses that wrap, and are in no buffer.
        let along = at[1..].iter().zip(&self.strides).map(|(&at, &stride)| (at as u64).wrapping_mul(stride));
        let outer = along.fold(self.address, u64::wrapping_add);
        Some(Row {
            at: number * self.row_bytes() + (first - at[0]) as usize * size,
            address: outer.wrapping_add(first as u64 * size as u64),
            bytes: (end - first) as usize * size,
        })
    }

    /// What a copy moves whose box begins at these coordinates; `offsets` are added to those of every pixel (im2col).
    pub(crate) fn rows(&self, at: &[i64], offsets: &[i64]) -> Vec<Row> {
        let count = self.counts().iter().product::<i64>() as usize;
        let mut rows = Vec::with_capacity(count);
        let mut position = at.to_vec();
        for number in 0..count {
            let mut shifted = position.clone();
            shifted[1..].iter_mut().zip(offsets).for_each(|(at, offset)| *at += offset);
            rows.extend(self.row(number, &shifted));
            self.advance(&mut position, at);
        }
        rows
    }

    /// To the next row: along the second dimension, and on to the next one behind the box's or the image's end.
    fn advance(&self, position: &mut [i64], start: &[i64]) {
        let rank = position.len();
        for i in 1..rank {
            position[i] += i64::from(self.steps[i]);
            let (begin, end) = match &self.mode {
                TensorMode::Tiled { extents } => (start[i], start[i] + i64::from(extents[i])),
                TensorMode::Im2col { lower, upper, .. } if i < rank - 1 => {
                    (i64::from(lower[i - 1]), self.extents[i] as i64 + i64::from(upper[i - 1]))
                }
                TensorMode::Im2col { .. } => return,
            };
            if position[i] < end {
                return;
            }
            position[i] = begin;
        }
    }
}

/// The bits of an f32 rounded to TF32's ten bits of fraction: to nearest, ties away from zero.
pub(crate) fn to_tf32(bits: u32) -> u32 {
    if f32::from_bits(bits).is_finite() { bits.wrapping_add(0x1000) & !0x1FFF } else { bits }
}
