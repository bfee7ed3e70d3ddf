//! Line charts as PNG pictures: the one place that knows the plotting crate, with [`super::confusion`].

use std::{
    io::{self, Cursor},
    ops::Range,
    sync::Once,
};

use image::{ImageFormat, RgbImage};
use plotters::{
    coord::Shift,
    prelude::*,
    style::{FontStyle, register_font},
};

/// Everything is drawn this many times as large and then averaged down, which smooths edges.
pub(super) const SCALE: u32 = 2;

/// The grey of text that explains, and of lines that mark.
pub(super) const GREY: RGBColor = RGBColor(110, 110, 110);
/// The colour of what matters most.
pub(super) const BLUE: RGBColor = RGBColor(0, 94, 168);
/// The colour to tell from it; distinct for the colour-blind too.
pub(super) const ORANGE: RGBColor = RGBColor(213, 94, 0);
/// The colour of raw data behind its smoothed line.
pub(super) const LIGHT: RGBColor = RGBColor(170, 200, 226);

pub(super) type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
pub(super) type Drawn<T = ()> = Result<T, DrawingAreaErrorKind<<BitMapBackend<'static> as DrawingBackend>::ErrorType>>;

/// Text of so many pixels in the embedded font.
pub(super) fn text_style<'a>(size: u32, colour: &'a RGBColor) -> TextStyle<'a> {
    TextStyle::from(("unfreeze", size * SCALE)).color(colour)
}

/// Draws a picture of `width` by `height` pixels and encodes it as PNG.
pub(super) fn picture(width: u32, height: u32, draw: impl FnOnce(&Area) -> Drawn) -> io::Result<Vec<u8>> {
    static FONT: Once = Once::new();
    // A font that could not be read would show as an error of the first text drawn.
    FONT.call_once(|| drop(register_font("unfreeze", FontStyle::Normal, include_bytes!("font/DejaVuSans.ttf"))));
    let large = (width * SCALE, height * SCALE);
    let mut pixels = vec![255; (large.0 * large.1 * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, large).into_drawing_area();
        let drawn = draw(&area).and_then(|()| area.present());
        drawn.map_err(|error| io::Error::other(format!("drawing failed: {error}")))?;
    }
    let row = (large.0 * 3) as usize;
    let image = RgbImage::from_fn(width, height, |x, y| {
        let at = (y * SCALE) as usize * row + (x * SCALE * 3) as usize;
        image::Rgb([0, 1, 2].map(|channel| {
            let pixel = |dx: usize, dy: usize| u16::from(pixels[at + channel + dy * row + dx * 3]);
            ((pixel(0, 0) + pixel(1, 0) + pixel(0, 1) + pixel(1, 1) + 2) / 4) as u8
        }))
    });
    let mut png = Cursor::new(Vec::new());
    image.write_to(&mut png, ImageFormat::Png).map_err(io::Error::other)?;
    Ok(png.into_inner())
}

/// Text cut to `most` characters, the middle replaced by an ellipsis.
pub(super) fn shortened(text: &str, most: usize) -> String {
    let letters: Vec<char> = text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect();
    if letters.len() <= most.max(1) {
        return letters.into_iter().collect();
    }
    let kept = most.max(1) - 1;
    let (start, end) = (kept - kept / 2, kept / 2);
    let ends = [&letters[..start], &['…'], &letters[letters.len() - end..]];
    ends.concat().into_iter().collect()
}

/// An axis: its label, and from where to where it goes.
pub(super) struct Axis {
    pub label: &'static str,
    pub range: Range<f64>,
    /// Whether decades are equally long.
    pub log: bool,
}

impl Axis {
    pub fn linear(label: &'static str, range: Range<f64>) -> Self {
        Self { label, range, log: false }
    }

    /// A logarithmic axis over the whole decades that hold the positive ones of `values`.
    pub fn log(label: &'static str, values: impl Iterator<Item = f64>) -> Self {
        let values = values.filter(|value| value.is_finite() && *value > 0.0);
        let (low, high) = values.fold((f64::INFINITY, 0f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if high > 0.0 { (low, high) } else { (1e-3, 1e-1) };
        // Values beside a decade by rounding belong to it.
        let (mut low, mut high) = ((low.log10() + 1e-6).floor(), (high.log10() - 1e-6).ceil());
        while high - low < 2.0 {
            (low, high) = (low - f64::from(high - low < 1.0), high + 1.0);
        }
        Self { label, range: 10f64.powf(low)..10f64.powf(high), log: true }
    }

    /// Where a value lies, in the units of the drawing; `None` if nowhere.
    fn place(&self, value: f64) -> Option<f64> {
        let place = if self.log { value.log10() } else { value };
        place.is_finite().then_some(place)
    }

    fn places(&self) -> Range<f64> {
        if self.log { self.range.start.log10()..self.range.end.log10() } else { self.range.clone() }
    }

    fn ticks(&self) -> usize {
        if self.log { (self.places().end - self.places().start).round() as usize + 1 } else { 10 }
    }

    fn tick(&self, place: f64) -> String {
        match self.log {
            true if (place - place.round()).abs() > 1e-6 => String::new(),
            true if (-1.5..2.5).contains(&place) => 10f64.powf(place.round()).to_string(),
            true => format!("1e{place:.0}"),
            // Twelve digits are enough to tell ticks apart, and few enough to hide the rounding of 0.1 + 0.2.
            false => ((place * 1e12).round() / 1e12).to_string(),
        }
    }
}

/// A line of a chart. Points that are no numbers leave gaps.
pub(super) struct Line {
    pub name: String,
    pub colour: RGBColor,
    /// Thickness in half pixels.
    pub width: u32,
    /// Whether each point is a dot, too.
    pub dots: bool,
    pub points: Vec<(f64, f64)>,
}

/// A chart with a title, a legend above the lines, and phases marked along the x axis.
pub(super) struct Chart {
    pub title: &'static str,
    pub x: Axis,
    pub y: Axis,
    pub lines: Vec<Line>,
    /// Where each phase starts, and its name.
    pub phases: Vec<(f64, String)>,
    /// A place on the x axis to point out, and what it is.
    pub mark: Option<(f64, String)>,
}

impl Chart {
    /// The picture, as PNG.
    pub fn png(&self) -> io::Result<Vec<u8>> {
        picture(1100, 620, |area| self.draw(area))
    }

    fn draw(&self, area: &Area) -> Drawn {
        let s = SCALE as i32;
        area.draw_text(self.title, &text_style(20, &BLACK), (20 * s, 14 * s))?;
        let legend = self.legend(area)?;
        let (_, area) = area.split_vertically(legend);
        let mut chart = ChartBuilder::on(&area)
            .margin_right(30 * s)
            .margin_top(6 * s)
            .margin_left(10 * s)
            .margin_bottom(8 * s)
            .x_label_area_size(48 * s)
            .y_label_area_size(72 * s)
            .build_cartesian_2d(self.x.places(), self.y.places())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .bold_line_style(RGBColor(226, 226, 226).stroke_width(SCALE))
            .axis_style(GREY.stroke_width(SCALE))
            .x_labels(self.x.ticks())
            .y_labels(self.y.ticks())
            .x_label_formatter(&|place| self.x.tick(*place))
            .y_label_formatter(&|place| self.y.tick(*place))
            .label_style(text_style(14, &BLACK))
            .axis_desc_style(text_style(15, &BLACK))
            .x_desc(self.x.label)
            .y_desc(self.y.label)
            .draw()?;
        for line in &self.lines {
            let style = line.colour.stroke_width(line.width);
            let inside = |point: &&(f64, f64)| self.y.places().contains(&point.1);
            let points = self.points(line);
            for pair in points.windows(2) {
                if let [Some(from), Some(to)] = *pair
                    && let Some(ends) = clipped(from, to, &self.y.places())
                {
                    chart.draw_series([PathElement::new(ends, style)])?;
                }
            }
            // The joints of thick lines are round.
            let joint = |&point: &(f64, f64)| Circle::new(point, line.width as i32 / 2, line.colour.filled());
            chart.draw_series(points.iter().flatten().filter(inside).map(joint))?;
            for (at, point) in points.iter().enumerate() {
                let alone = at.checked_sub(1).is_none_or(|before| points[before].is_none())
                    && points.get(at + 1).is_none_or(Option::is_none);
                if let Some(point) = point.as_ref().filter(inside)
                    && (line.dots || alone)
                {
                    let radius = line.width as i32 + s;
                    chart.draw_series([Circle::new(*point, radius, line.colour.filled())])?;
                }
            }
        }

        let plot = chart.plotting_area();
        let (columns, rows) = plot.get_pixel_range();
        let column = |x: f64| self.x.place(x).map(|x| plot.map_coordinate(&(x, self.y.places().start)).0);
        let style = text_style(13, &GREY);
        for (at, (start, name)) in self.phases.iter().enumerate() {
            let Some(left) = column(*start) else { continue };
            let right = self.phases.get(at + 1).and_then(|(next, _)| column(*next)).unwrap_or(columns.end);
            if at > 0 {
                dashed(&area, left, &rows, &RGBColor(160, 160, 160))?;
            }
            // As much of the name as there is room for.
            let fits = |most: &usize| {
                let (width, _) = area.estimate_text_size(&shortened(name, *most), &style).unwrap_or_default();
                (width as i32) < right - left - 8 * s
            };
            if let Some(most) = (6..=40).rev().find(fits) {
                plot_text(&area, &shortened(name, most), &style, (left + 5 * s, rows.start + 4 * s))?;
            }
        }
        if let Some((x, name)) = &self.mark
            && let Some(left) = column(*x)
        {
            dashed(&area, left, &rows, &ORANGE)?;
            let style = text_style(15, &ORANGE);
            let (width, _) = area.estimate_text_size(name, &style)?;
            let room = columns.end - left > width as i32 + 10 * s;
            let text = if room { left + 6 * s } else { left - width as i32 - 6 * s };
            plot_text(&area, name, &style, (text, rows.start + 26 * s))?;
        }
        Ok(())
    }

    /// Draws the legend in rows; the height below which the chart may start.
    fn legend(&self, area: &Area) -> Drawn<i32> {
        let s = SCALE as i32;
        let style = text_style(14, &BLACK);
        let right = area.dim_in_pixel().0 as i32 - 20 * s;
        let (mut x, mut y) = (20 * s, 46 * s);
        for line in &self.lines {
            let name = shortened(&line.name, 60);
            let width = area.estimate_text_size(&name, &style)?.0 as i32;
            if x > 20 * s && x + 34 * s + width > right {
                (x, y) = (20 * s, y + 20 * s);
            }
            let middle = y + 7 * s;
            area.draw(&PathElement::new(
                [(x, middle), (x + 26 * s, middle)],
                line.colour.stroke_width(line.width.max(4)),
            ))?;
            if line.dots {
                area.draw(&Circle::new((x + 13 * s, middle), line.width as i32 + s, line.colour.filled()))?;
            }
            area.draw_text(&name, &style, (x + 33 * s, y))?;
            x += 33 * s + width + 26 * s;
        }
        Ok(y + 24 * s)
    }

    /// A line's points as they are drawn; `None` where there are none.
    fn points(&self, line: &Line) -> Vec<Option<(f64, f64)>> {
        line.points.iter().map(|&(x, y)| Some((self.x.place(x)?, self.y.place(y)?))).collect()
    }
}

/// The part of a line from `a` to `b` that lies in `rows`.
fn clipped(a: (f64, f64), b: (f64, f64), rows: &Range<f64>) -> Option<[(f64, f64); 2]> {
    let reaches = |row: f64| if a.1 == b.1 { 0.0 } else { (row - a.1) / (b.1 - a.1) };
    let at = |way: f64| (a.0 + way * (b.0 - a.0), a.1 + way * (b.1 - a.1));
    if a.1.max(b.1) < rows.start || a.1.min(b.1) > rows.end {
        return None;
    }
    let end = |own: (f64, f64)| match own.1 {
        y if y < rows.start => (at(reaches(rows.start)).0, rows.start),
        y if y > rows.end => (at(reaches(rows.end)).0, rows.end),
        _ => own,
    };
    Some([end(a), end(b)])
}

/// A dashed line from top to bottom.
fn dashed(area: &Area, x: i32, rows: &Range<i32>, colour: &RGBColor) -> Drawn {
    let (x, top) = strip(area, x, rows.start);
    for y in (0..rows.end - rows.start).step_by(12 * SCALE as usize) {
        let end = (y + 7 * SCALE as i32).min(rows.end - rows.start);
        area.draw(&PathElement::new([(x, top + y), (x, top + end)], colour.stroke_width(SCALE)))?;
    }
    Ok(())
}

fn plot_text(area: &Area, text: &str, style: &TextStyle, at: (i32, i32)) -> Drawn {
    area.draw_text(text, style, strip(area, at.0, at.1))
}

/// A pixel of the whole picture, as a pixel of an area in it.
fn strip(area: &Area, x: i32, y: i32) -> (i32, i32) {
    let (columns, rows) = area.get_pixel_range();
    (x - columns.start, y - rows.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_text_loses_its_middle() {
        assert_eq!(shortened("abc", 3), "abc");
        assert_eq!(shortened("abcdefgh", 5), "ab…gh");
        assert_eq!(shortened("größenwahn", 4), "gr…n");
        assert_eq!(shortened("abc", 0), "…");
        assert_eq!(shortened("a\nb", 9), "a\u{fffd}b");
    }

    #[test]
    fn log_axes_hold_whole_decades() {
        let range = |values: &[f64]| Axis::log("", values.iter().copied()).range;
        let near = |range: Range<f64>, low: f64, high: f64| {
            assert!((range.start / low - 1.0).abs() < 1e-9 && (range.end / high - 1.0).abs() < 1e-9, "{range:?}");
        };
        near(range(&[1e-5, 10.0]), 1e-5, 10.0);
        near(range(&[3e-4, 0.0, f64::NAN, 2.0]), 1e-4, 10.0);
        near(range(&[f64::from(1e-2f32)]), 1e-3, 1e-1);
        near(range(&[]), 1e-3, 1e-1);
        let axis = Axis::log("", [1.0].into_iter());
        assert_eq!((axis.place(100.0), axis.place(-1.0), axis.place(f64::NAN)), (Some(2.0), None, None));
    }

    #[test]
    fn lines_end_where_they_leave_the_chart() {
        let rows = 0.0..1.0;
        assert_eq!(clipped((0.0, 0.5), (1.0, 2.5), &rows), Some([(0.0, 0.5), (0.25, 1.0)]));
        assert_eq!(clipped((0.0, -1.0), (4.0, 3.0), &rows), Some([(1.0, 0.0), (2.0, 1.0)]));
        assert_eq!(clipped((0.0, 1.5), (1.0, 9.0), &rows), None);
        assert_eq!(clipped((0.0, 1.0), (1.0, 1.0), &rows), Some([(0.0, 1.0), (1.0, 1.0)]));
    }
}
