//! The confusion matrix as a picture.

use std::io;

use plotters::{
    prelude::*,
    style::{
        FontTransform,
        text_anchor::{HPos, Pos, VPos},
    },
};

use super::chart::{Area, Drawn, GREY, SCALE, picture, shortened, text_style};
use crate::learner::Confusion;

/// With more classes than this, cells are too small for numbers.
const MOST_NUMBERED: usize = 30;
/// Letters of a class name that are shown.
const LETTERS: usize = 18;

/// Rows are true classes, columns predictions; colours show shares of the true class.
pub(super) fn confusion_matrix(confusion: &Confusion, classes: &[String]) -> io::Result<Vec<u8>> {
    let layout = Layout::new(classes);
    picture(layout.width, layout.height, |area| draw(area, confusion, classes, &layout))
}

/// Pixels of the picture, before scaling.
struct Layout {
    cell: u32,
    names: u32,
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    font: u32,
    /// Every so many class names are written.
    every: usize,
}

impl Layout {
    fn new(classes: &[String]) -> Self {
        let count = classes.len().max(1) as u32;
        let cell = match count {
            1..=4 => 120,
            5..=10 => 64,
            11..=20 => 40,
            21..=30 => 32,
            _ => (960 / count).max(2),
        };
        let font: u32 = if cell >= 14 { 13 } else { 11 };
        let letters = classes.iter().map(|name| name.chars().count().min(LETTERS)).max().unwrap_or(1) as u32;
        let names = (letters * 15 / 2 + 12).max(60);
        let (left, top) = (names + 34, 56);
        let matrix = cell * count;
        // To the right: the scale of colours; below: names, and what they are.
        let (width, height) = ((left + matrix + 130).max(900), (top + matrix + names + 40).max(500));
        // A picture wider than it must be has its matrix in the middle.
        let left = left + (width - (left + matrix + 130)) / 2;
        let every = (font + 2).div_ceil(cell) as usize;
        Self { cell, names, left, top, width, height, font, every }
    }
}

fn draw(area: &Area, confusion: &Confusion, classes: &[String], layout: &Layout) -> Drawn {
    let s = SCALE as i32;
    let (cell, left, top) = (layout.cell as i32 * s, layout.left as i32 * s, layout.top as i32 * s);
    let count = confusion.classes();
    let side = cell * count as i32;
    area.draw_text("Confusion matrix of the validation set", &text_style(20, &BLACK), (20 * s, 14 * s))?;

    let numbered = count <= MOST_NUMBERED;
    let widest = |digits: usize| (cell as f64 / (digits.max(2) as f64 * 0.62)) as u32 / SCALE;
    for label in 0..count {
        let support = confusion.class(label).support.max(1) as f64;
        for predicted in 0..count {
            let found = confusion.count(label, predicted);
            let share = found as f64 / support;
            let (x, y) = (left + predicted as i32 * cell, top + label as i32 * cell);
            area.draw(&Rectangle::new([(x, y), (x + cell - 1, y + cell - 1)], colour(share).filled()))?;
            if numbered && found > 0 {
                let text = found.to_string();
                let ink = if share > 0.35 { WHITE } else { BLACK };
                let style = text_style(widest(text.len()).min(16), &ink).pos(Pos::new(HPos::Center, VPos::Center));
                area.draw_text(&text, &style, (x + cell / 2, y + cell / 2))?;
            }
        }
    }
    if numbered {
        for line in 0..=count as i32 {
            let at = line * cell;
            let grid = RGBColor(225, 225, 225).stroke_width(1);
            area.draw(&PathElement::new([(left + at, top), (left + at, top + side)], grid))?;
            area.draw(&PathElement::new([(left, top + at), (left + side, top + at)], grid))?;
        }
    }
    area.draw(&Rectangle::new([(left, top), (left + side, top + side)], GREY.stroke_width(SCALE)))?;

    let names = text_style(layout.font, &BLACK);
    let row = names.pos(Pos::new(HPos::Right, VPos::Center));
    // Turned by a quarter to the left, text that ends at the top ends at its right.
    let column = names.transform(FontTransform::Rotate270).pos(Pos::new(HPos::Right, VPos::Center));
    for (at, name) in classes.iter().enumerate().step_by(layout.every) {
        let middle = at as i32 * cell + cell / 2;
        let name = shortened(name, LETTERS);
        area.draw_text(&name, &row, (left - 6 * s, top + middle))?;
        area.draw_text(&name, &column, (left + middle, top + side + 6 * s))?;
    }
    let title = text_style(15, &BLACK).pos(Pos::new(HPos::Center, VPos::Top));
    let below = top + side + (layout.names as i32 + 6) * s;
    area.draw_text("predicted class", &title, (left + side / 2, below))?;
    let title = text_style(15, &BLACK).transform(FontTransform::Rotate270).pos(Pos::new(HPos::Center, VPos::Top));
    area.draw_text("true class", &title, (left - (layout.names as i32 + 26) * s, top + side / 2))?;
    scale(area, (left + side + 28 * s, top), side.min(260 * s))
}

/// What the colours mean.
fn scale(area: &Area, (x, y): (i32, i32), height: i32) -> Drawn {
    let s = SCALE as i32;
    for row in 0..height {
        let share = 1.0 - f64::from(row) / f64::from(height - 1);
        area.draw(&Rectangle::new([(x, y + row), (x + 16 * s, y + row + 1)], colour(share).filled()))?;
    }
    area.draw(&Rectangle::new([(x, y), (x + 16 * s, y + height)], GREY.stroke_width(1)))?;
    let style = text_style(12, &BLACK);
    for share in [1.0, 0.5, 0.0] {
        let at = y + ((1.0 - share) * f64::from(height)) as i32;
        area.draw_text(
            &format!("{:.0} %", share * 100.0),
            &style.pos(Pos::new(HPos::Left, VPos::Center)),
            (x + 22 * s, at),
        )?;
    }
    area.draw_text("of the", &style, (x, y + height + 10 * s))?;
    area.draw_text("true class", &style, (x, y + height + 25 * s))
}

/// White to dark blue. Small shares are lifted, so that rare confusions are seen.
fn colour(share: f64) -> RGBColor {
    let depth = share.clamp(0.0, 1.0).powf(0.6);
    let mix = |from: f64, to: f64| (from + (to - from) * depth) as u8;
    RGBColor(mix(255.0, 8.0), mix(255.0, 64.0), mix(255.0, 129.0))
}
