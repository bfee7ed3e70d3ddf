//! The demo's pictures: a shape on a gradient, at any place, size, angle and colour, with specks and noise. Only the
//! outline tells the class.

use unfreeze::{data::RgbImage, random::Random};

/// Side of a picture in pixels.
pub const SIDE: u32 = 32;
/// Samples per pixel and axis, for smooth edges.
const SAMPLES: u32 = 4;
/// Half the extent of a shape, in pixels.
const RADIUS: (f32, f32) = (8.5, 13.0);
/// Range of each channel of the background, and of the shape: it is always the brighter one.
const GROUND: (f32, f32) = (0.0, 0.5);
const FILL: (f32, f32) = (0.5, 1.0);
/// Standard deviation of each channel of each pixel.
const NOISE: f32 = 0.04;

/// A kind of figure.
pub struct Shape {
    /// Name of its class.
    pub name: &'static str,
    /// Whether a point belongs to it; the figure lies within the circle of radius 1.1 or so, y up.
    inside: fn(f32, f32) -> bool,
}

/// The classes, in the order of their names, as the folders are read.
pub const SHAPES: [Shape; 8] = [
    Shape { name: "arrow", inside: arrow },
    Shape { name: "crescent", inside: |x, y| x.hypot(y) < 1.0 && (x - 0.45).hypot(y) > 0.75 },
    Shape { name: "cross", inside: |x, y| x.abs().max(y.abs()) < 0.95 && x.abs().min(y.abs()) < 0.27 },
    Shape { name: "heart", inside: heart },
    Shape { name: "ring", inside: |x, y| (0.5..0.95).contains(&x.hypot(y)) },
    Shape { name: "square", inside: |x, y| x.abs().max(y.abs()) < 0.75 },
    Shape { name: "star", inside: star },
    Shape { name: "triangle", inside: |x, y| y > -0.55 && y < 1.05 - 1.75 * x.abs() },
];

fn star(x: f32, y: f32) -> bool {
    const WAIST: f32 = 0.42;
    // Folded into half a sector, from a tip at angle 0 to a notch, whose edge is a straight line.
    let half = std::f32::consts::PI / 5.0;
    let angle = ((x.atan2(y) + half).rem_euclid(2.0 * half) - half).abs();
    let (along, across) = (x.hypot(y) * angle.cos(), x.hypot(y) * angle.sin());
    let (notch_along, notch_across) = (WAIST * half.cos(), WAIST * half.sin());
    (notch_along - 1.0) * across > notch_across * (along - 1.0)
}

fn arrow(x: f32, y: f32) -> bool {
    let shaft = x.abs() < 0.2 && (-0.95..0.2).contains(&y);
    shaft || (y > 0.05 && y < 1.0 - 1.2 * x.abs())
}

fn heart(x: f32, y: f32) -> bool {
    let (x, y) = (1.25 * x, 1.25 * y + 0.1);
    (x * x + y * y - 1.0).powi(3) < x * x * y.powi(3)
}

type Colour = [f32; 3];

/// Draws one picture of `shape`; everything but the shape comes from `random`.
pub fn draw(shape: &Shape, random: &mut Random) -> RgbImage {
    let side = SIDE as f32;
    let ground = [(); 2].map(|()| colour(random, GROUND));
    let fill = colour(random, FILL);
    let slope = direction(random);
    let radius = random.uniform(RADIUS.0, RADIUS.1);
    let [x, y] = [(); 2].map(|()| random.uniform(radius, side - radius));
    let turn = direction(random);
    let specks: Vec<_> = (0..random.uniform(0.0, 5.0) as usize).map(|_| speck(random)).collect();

    let mut image = RgbImage::new(SIDE, SIDE);
    for (column, row, pixel) in image.enumerate_pixels_mut() {
        let mut sum = [0.0; 3];
        for sample in 0..SAMPLES * SAMPLES {
            let offset = |index: u32| (index as f32 + 0.5) / SAMPLES as f32;
            let (px, py) = (column as f32 + offset(sample % SAMPLES), row as f32 + offset(sample / SAMPLES));
            let (dx, dy) = ((px - x) / radius, (py - y) / radius);
            let (u, v) = (turn[0] * dx + turn[1] * dy, turn[1] * dx - turn[0] * dy);
            let share = 0.5 + ((px / side - 0.5) * slope[0] + (py / side - 0.5) * slope[1]) / std::f32::consts::SQRT_2;
            let spot = specks.iter().find(|speck| (px - speck.at[0]).hypot(py - speck.at[1]) < speck.radius);
            let seen = match spot {
                _ if (shape.inside)(u, v) => fill,
                Some(speck) => speck.colour,
                None => [0, 1, 2].map(|channel| ground[0][channel] * (1.0 - share) + ground[1][channel] * share),
            };
            sum = [0, 1, 2].map(|channel| sum[channel] + seen[channel]);
        }
        for (byte, sum) in pixel.0.iter_mut().zip(sum) {
            let level = sum / (SAMPLES * SAMPLES) as f32 + NOISE * random.normal_pair()[0];
            *byte = (255.0 * level).round().clamp(0.0, 255.0) as u8;
        }
    }
    image
}

struct Speck {
    at: [f32; 2],
    radius: f32,
    colour: Colour,
}

fn speck(random: &mut Random) -> Speck {
    let at = [(); 2].map(|()| random.uniform(0.0, SIDE as f32));
    Speck { at, radius: random.uniform(0.7, 2.0), colour: colour(random, (0.0, 1.0)) }
}

/// A colour whose channels are within `range`.
fn colour(random: &mut Random, range: (f32, f32)) -> Colour {
    [(); 3].map(|()| random.uniform(range.0, range.1))
}

fn direction(random: &mut Random) -> [f32; 2] {
    let angle = random.uniform(0.0, std::f32::consts::TAU);
    [angle.cos(), angle.sin()]
}
