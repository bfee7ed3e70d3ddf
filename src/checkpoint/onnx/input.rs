//! What a graph does to its images before its network: a normalisation, which a model file can hold, or something else.

use super::{graph::Node, view::View};
use crate::checkpoint::short_name;

/// The most operators before a network.
const MAX_STEPS: usize = 16;

/// A mean or standard deviation beyond this is of values from 0 to 255.
const UNIT: f64 = 2.0;

/// What a file does to its images before its network.
#[derive(Clone, Debug, Default)]
pub(in crate::checkpoint) struct Input {
    /// The operators, in words; empty if there are none.
    pub steps: String,
    /// What they come to.
    pub effect: Effect,
    /// The side of its images, where those are square and of one size.
    pub size: Option<usize>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(in crate::checkpoint) enum Effect {
    /// The network takes images as they come.
    #[default]
    Nothing,
    /// It takes them less a mean and divided by a standard deviation, per channel, of values from 0 to 1.
    Normalises { mean: [f32; 3], std: [f32; 3] },
    /// It takes blue first.
    Flips,
    /// Something that is not understood.
    Unknown,
}

/// Where the channels are among the extents of images.
#[derive(Clone, Copy, PartialEq)]
enum Layout {
    ChannelsFirst,
    ChannelsLast,
}

/// What one operator does.
enum Step {
    /// `factor · x + shift` per channel.
    Affine([f64; 3], [f64; 3]),
    /// Another order of the extents before it.
    Layout(Layout),
    Flips,
    Unknown,
}

impl Input {
    /// That of a graph whose first convolution takes `images`: the operators are gone through backwards.
    pub(super) fn of(view: &View, images: &str) -> Self {
        let (mut value, mut layout, mut words) = (images, Layout::ChannelsFirst, Vec::new());
        let (mut factor, mut shift) = ([1.0; 3], [0.0; 3]);
        let (mut flips, mut unknown) = (false, false);
        while let Some(node) = view.producer(value) {
            let constants = view.small_constants(node).map(|numbers| format!(" {numbers:?}"));
            words.push(short_name(&node.op).into_owned() + &constants.collect::<String>());
            match step(view, node, layout) {
                Step::Affine(by, plus) => {
                    for channel in 0..3 {
                        shift[channel] += factor[channel] * plus[channel];
                        factor[channel] *= by[channel];
                    }
                }
                Step::Layout(before) => layout = before,
                Step::Flips => flips = true,
                Step::Unknown => unknown = true,
            }
            let mut inputs = (0..node.inputs.len()).filter_map(|position| view.input(node, position));
            match inputs.find(|name| !view.is_tensor(name)).filter(|_| words.len() < MAX_STEPS) {
                Some(next) => value = next,
                None => {
                    unknown = true;
                    break;
                }
            }
        }
        words.reverse();
        let extents = view.extents(value).filter(|extents| extents.len() == 4 && !unknown);
        let sides = extents.map(|extents| if layout == Layout::ChannelsFirst { &extents[2..] } else { &extents[1..3] });
        Self {
            steps: words.join(", "),
            effect: match (flips, unknown) {
                (true, _) => Effect::Flips,
                (_, true) => Effect::Unknown,
                _ => normalisation(factor, shift),
            },
            size: sides.filter(|sides| sides[0] == sides[1] && sides[0] > 0).map(|sides| sides[0]),
        }
    }

    /// That it takes images with blue first, if it does.
    pub fn blue_first(&self) -> Option<String> {
        let steps = &self.steps;
        (self.effect == Effect::Flips)
            .then(|| format!("takes images with blue first (it computes {steps} before its network)"))
    }

    /// What a user should know of it; nothing if the network takes images as they come.
    pub fn note(&self) -> Option<String> {
        let how = match self.effect {
            Effect::Normalises { mean, std } => {
                format!(
                    "by mean {mean:?} and standard deviation {std:?} of values from 0 to 1, which a model takes over"
                )
            }
            _ => "(--mean and --std of `convert` say how)".into(),
        };
        (!self.steps.is_empty()).then(|| {
            format!(
                "the file computes {} before its first convolution, which is left out: images are to be normalised \
                 before {how}",
                self.steps
            )
        })
    }
}

fn step(view: &View, node: &Node, layout: Layout) -> Step {
    let [first, second] = [0, 1].map(|position| per_channel(view, node, position, layout));
    let (zeros, ones) = ([0.0; 3], [1.0; 3]);
    match (node.op.as_str(), first, second) {
        ("Sub", None, Some(mean)) => Step::Affine(ones, mean.map(|value| -value)),
        ("Div", None, Some(std)) => Step::Affine(std.map(|value| 1.0 / value), zeros),
        ("Add", None, Some(shift)) | ("Add", Some(shift), None) => Step::Affine(ones, shift),
        ("Mul", None, Some(factor)) | ("Mul", Some(factor), None) => Step::Affine(factor, zeros),
        ("Transpose", ..) => match (layout, node.ints("perm")) {
            (Layout::ChannelsFirst, Some([0, 3, 1, 2])) => Step::Layout(Layout::ChannelsLast),
            (Layout::ChannelsLast, Some([0, 2, 3, 1])) => Step::Layout(Layout::ChannelsFirst),
            _ => Step::Unknown,
        },
        // `x[:, [2, 1, 0]]`, and `x.flip(1)`.
        ("Gather", ..) if is_channel(node.int("axis", 0), layout) => match view.ints(node, 1).as_deref() {
            Some([2, 1, 0]) => Step::Flips,
            _ => Step::Unknown,
        },
        ("Slice", ..) => match (view.ints(node, 3).as_deref(), view.ints(node, 4).as_deref()) {
            (Some(&[axis]), Some([-1])) if is_channel(axis, layout) => Step::Flips,
            _ => Step::Unknown,
        },
        _ => Step::Unknown,
    }
}

/// Whether `axis`, which may count from the end, is that of the channels of images.
fn is_channel(axis: i64, layout: Layout) -> bool {
    match layout {
        Layout::ChannelsFirst => matches!(axis, 1 | -3),
        Layout::ChannelsLast => matches!(axis, 3 | -1),
    }
}

/// The constant that is an input of `node`, for each channel; nothing if it is none, or varies otherwise.
fn per_channel(view: &View, node: &Node, position: usize, layout: Layout) -> Option<[f64; 3]> {
    let (shape, values) = view.small(node, position)?;
    let after = shape.iter().rev().take_while(|extent| **extent == 1).count();
    let channels_are_after = if layout == Layout::ChannelsFirst { 2 } else { 0 };
    match values[..] {
        [value] => Some([value.into(); 3]),
        [red, green, blue] if after == channels_are_after => Some([red, green, blue].map(f64::from)),
        _ => None,
    }
}

/// `factor · x + shift` as `(x - mean) / std`, of values from 0 to 1.
fn normalisation(factor: [f64; 3], shift: [f64; 3]) -> Effect {
    if (factor, shift) == ([1.0; 3], [0.0; 3]) {
        return Effect::Nothing;
    }
    let mut mean = [0, 1, 2].map(|channel| 0.0 - shift[channel] / factor[channel]);
    let mut std = factor.map(|factor| 1.0 / factor);
    if mean.iter().chain(&std).any(|value| value.abs() > UNIT) {
        [&mut mean, &mut std].into_iter().flatten().for_each(|value| *value /= 255.0);
    }
    let (mean, std) = (mean.map(|value| value as f32), std.map(|value| value as f32));
    match mean.iter().all(|value| value.is_finite()) && std.iter().all(|value| value.is_finite() && *value > 0.0) {
        true => Effect::Normalises { mean, std },
        false => Effect::Unknown,
    }
}
