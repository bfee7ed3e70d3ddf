//! A part of an image, and the picture that is taken from it: an affine map in fixed point, reflected at the image's
//! borders. Processor and GPU do the same integer arithmetic, so their pixels are equal.

/// Red, green, blue bytes of a part of an image, and where the pixels of a picture lie in it. A finished picture is
/// its own patch.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// Rows of `width` pixels.
    pixels: Vec<u8>,
    width: u32,
    placement: Placement,
}

/// From pixel (column, row) of a picture to a point of an image that is padded and continued by reflection. Pairs are
/// column and row, or width and height.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    /// Of the picture.
    extents: [u32; 2],
    /// The patch's first pixel on the image; it holds all that the picture reaches.
    pub origin: [u32; 2],
    /// Extents of the image.
    pub image: [u32; 2],
    /// Pixels by which it is continued on each side before it is reflected as a whole.
    pub pad: u32,
    /// The point of the first pixel, with 32 bits after the point. Whole numbers are the centres of pixels; floor and
    /// remainder are a shift and a mask, where floating point would call a function for each pixel.
    pub start: [i64; 2],
    /// The step to the next pixel of a row.
    pub across: [i64; 2],
    /// The step to the next row.
    pub down: [i64; 2],
}

/// What an affine map does: where the first pixel lies, and the steps to the next one and to the next row.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Steps {
    pub start: [f64; 2],
    pub across: [f64; 2],
    pub down: [f64; 2],
}

impl Patch {
    /// The picture that is the patch itself.
    pub(crate) fn whole(pixels: Vec<u8>, width: u32, height: u32) -> Self {
        Self { pixels, width, placement: Placement::whole([width, height]) }
    }

    /// The picture that is the patch with left and right exchanged.
    pub(crate) fn mirrored(pixels: Vec<u8>, width: u32, height: u32) -> Self {
        Self { pixels, width, placement: Placement::mirrored([width, height]) }
    }

    /// The patch in rows of `width` pixels.
    pub(crate) fn new(pixels: Vec<u8>, width: u32, placement: Placement) -> Self {
        Self { pixels, width, placement }
    }

    /// The patch's bytes: of a finished picture, `[height, width, 3]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Whether they are the picture.
    pub fn is_finished(&self) -> bool {
        self.placement == Placement::whole(self.placement.extents)
    }

    /// Width and height of the picture.
    pub fn extents(&self) -> [usize; 2] {
        self.placement.extents.map(|side| side as usize)
    }

    pub(super) fn width(&self) -> u32 {
        self.width
    }

    pub(super) fn placement(&self) -> &Placement {
        &self.placement
    }

    /// As [`pixels`](Self::pixels), given up.
    pub fn into_pixels(self) -> Vec<u8> {
        self.pixels
    }

    /// The picture, its pixels looked up.
    pub fn finish(mut self) -> Self {
        if self.is_finished() {
            return self;
        }
        let [columns, rows] = self.placement.extents;
        let width = columns as usize;
        if self.placement == Placement::mirrored([columns, rows]) {
            for row in self.pixels.chunks_exact_mut(3 * width) {
                (0..width / 2).for_each(|x| (0..3).for_each(|k| row.swap(3 * x + k, 3 * (width - 1 - x) + k)));
            }
            return Self::whole(self.pixels, columns, rows);
        }
        let mut picture = vec![0; 3 * width * rows as usize];
        self.draw(&mut picture, |_, byte| byte);
        Self::whole(picture, columns, rows)
    }

    /// Fills `picture` with what `level` makes of each pixel's channels, 0 to 2, and their bytes.
    pub(super) fn draw<T>(&self, picture: &mut [T], level: impl Fn(usize, u8) -> T) {
        let put = |to: &mut [T], pixel: &[u8]| (0..3).for_each(|k| to[k] = level(k, pixel[k]));
        if self.is_finished() {
            picture.chunks_exact_mut(3).zip(self.pixels.chunks_exact(3)).for_each(|(to, pixel)| put(to, pixel));
            return;
        }
        let Placement { extents: [columns, _], start, across, down, .. } = self.placement;
        let [mut left, mut top] = start;
        for row in picture.chunks_exact_mut(3 * columns as usize) {
            let (mut x, mut y) = (left, top);
            for to in row.chunks_exact_mut(3) {
                put(to, &self.sample(x, y));
                (x, y) = (x + across[0], y + across[1]);
            }
            (left, top) = (left + down[0], top + down[1]);
        }
    }

    /// The bilinear value at (x, y).
    fn sample(&self, x: i64, y: i64) -> [u8; 3] {
        let Placement { image, origin, pad, .. } = self.placement;
        let column = |i: i64| 3 * (on_image(i, image[0], pad) - origin[0]) as usize;
        let row = |j: i64| 3 * (on_image(j, image[1], pad) - origin[1]) as usize * self.width as usize;
        let (left, right) = (column(x >> 32), column((x >> 32) + 1));
        let (top, bottom) = (row(y >> 32), row((y >> 32) + 1));

        let pixel = |row: usize, column: usize| &self.pixels[row + column..row + column + 3];
        let (a, b, c, d) = (pixel(top, left), pixel(top, right), pixel(bottom, left), pixel(bottom, right));
        // Weights of 12 bits: 8 + 12 + 12 fill 32 bits, and are off by less than a tenth of a grey level.
        let weight = |x: i64| ((x >> 20) & 0xFFF) as u32;
        let mix = |a: u32, b: u32, t: u32| a * (4096 - t) + b * t;
        std::array::from_fn(|k| {
            let upper = mix(a[k].into(), b[k].into(), weight(x));
            let lower = mix(c[k].into(), d[k].into(), weight(x));
            ((mix(upper, lower, weight(y)) + (1 << 23)) >> 24) as u8
        })
    }
}

impl Placement {
    /// The longest side of an image, padding included, for which 32 bits before the point hold every coordinate.
    pub const MAX_SIDE: u32 = 1 << 29;

    /// A picture of `extents` on an image of `image` pixels, padded by `pad`, of which the patch begins at `origin`.
    pub fn new(extents: [u32; 2], steps: Steps, origin: [u32; 2], image: [u32; 2], pad: u32) -> Self {
        let [start, across, down] = [steps.start, steps.across, steps.down].map(|pair| pair.map(fixed));
        Self { extents, origin, image, pad, start, across, down }
    }

    fn whole(extents: [u32; 2]) -> Self {
        let steps = Steps { start: [0.0; 2], across: [1.0, 0.0], down: [0.0, 1.0] };
        Self::new(extents, steps, [0; 2], extents, 0)
    }

    fn mirrored(extents: [u32; 2]) -> Self {
        let steps = Steps { start: [f64::from(extents[0]) - 1.0, 0.0], across: [-1.0, 0.0], down: [0.0, 1.0] };
        Self::new(extents, steps, [0; 2], extents, 0)
    }
}

fn fixed(x: f64) -> i64 {
    (x * (1u64 << 32) as f64).round() as i64
}

/// Position of index `i` on a side of `len` pixels continued as in OpenCV's `BORDER_REFLECT`: `cba|abc|cba`.
pub(crate) fn reflect(i: i64, len: u32) -> u32 {
    let len = i64::from(len);
    if (0..len).contains(&i) {
        return i as u32;
    }
    let i = i.rem_euclid(2 * len);
    i.min(2 * len - 1 - i) as u32
}

/// Position of index `i` of a canvas on the image of `len` pixels in it: the canvas is continued by reflection, and so
/// is the image on the `pad` pixels beside it.
pub(crate) fn on_image(i: i64, len: u32, pad: u32) -> u32 {
    reflect(i64::from(reflect(i, len + 2 * pad)) - i64::from(pad), len)
}
