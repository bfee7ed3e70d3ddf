//! Which of this engine's networks a graph computes, and which of its tensors are which. Names say little: exporters
//! that fold batchnorm into the convolutions give the result a new name, or keep the old one. So the graph is followed
//! from the first convolution on, beside each architecture, and has to do what that does.

use std::collections::BTreeMap;

use super::{
    EPS,
    fold::FOLDED_VARIANCE,
    graph::{Graph, Node},
    input::Input,
    tensor::OnnxTensor,
    view::{MAX_LAYERS, Step, View, operators, output},
};
use crate::{
    Error, Result,
    checkpoint::{FileDtype, FileTensor, StoredTensor, names::short_name},
    nn::{Arch, BlockStructure, ConvLayer, ShortcutLayer, Structure},
    ops::{conv::Geometry, pool::Window},
};

const AVERAGES: [&str; 3] = ["GlobalAveragePool", "ReduceMean", "AveragePool"];
const MAXIMA: [&str; 3] = ["GlobalMaxPool", "ReduceMax", "MaxPool"];

/// What may turn logits into probabilities.
const ENDS: [&str; 3] = ["Softmax", "Sigmoid", "LogSoftmax"];

/// More channels than any convolution has.
const MAX_BIAS: usize = 1 << 16;

/// Where a tensor of a network comes from.
#[derive(Clone, Debug)]
pub(super) enum Origin {
    /// The file.
    Stored(OnnxTensor),
    /// The file, where it is a matrix with rows and columns exchanged.
    Transposed(OnnxTensor),
    /// Batchnorm that the file does not have any more, or a bias that it never had: as many equal numbers.
    Constant(f32, usize),
}

impl Origin {
    /// The tensor, to be read when it is asked for.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] if its type is not supported.
    pub fn stored(self) -> Result<StoredTensor> {
        Ok(match self {
            Origin::Stored(tensor) => {
                StoredTensor::new(tensor.known_dtype()?, tensor.shape.clone(), move || tensor.load())
            }
            Origin::Transposed(tensor) => {
                let shape = tensor.shape.iter().rev().copied().collect();
                StoredTensor::new(tensor.known_dtype()?, shape, move || tensor.load()?.transposed())
            }
            Origin::Constant(value, count) => StoredTensor::new(FileDtype::F32, vec![count], move || {
                FileTensor::from_f32(vec![count], vec![value; count])
            }),
        })
    }
}

/// The tensors of a graph, and what it computes beside the network.
#[derive(Default)]
pub(super) struct Found {
    pub tensors: BTreeMap<String, Origin>,
    pub notes: Vec<String>,
    pub input: Input,
}

/// The tensors of `graph`: under torchvision's names if it is a network of this engine, else under its own, with a note
/// of the node that does not fit the nearest.
///
/// # Errors
/// [`Error::Checkpoint`] if it has the tensors of a network, but computes something else with them.
pub(super) fn tensors(graph: &Graph, path: &std::path::Path) -> Result<Found> {
    let view = View::new(graph);
    let convolutions = graph.nodes.iter().filter(|node| node.op == "Conv").count();
    let mut furthest: Option<(usize, String)> = None;
    for arch in Arch::ALL.into_iter().filter(|arch| arch.convolutions().len() == convolutions) {
        let named = |(name, shape): &(String, Vec<usize>)| graph.tensors.get(name).is_some_and(|t| t.shape == *shape);
        match view.follow(arch) {
            Ok(found) => return Ok(found),
            Err((_, reason)) if arch.convolutions().iter().all(named) => {
                let message = format!("has the tensors of {arch}, but computes something else: {reason}");
                return Err(Error::checkpoint(path, message));
            }
            Err((fitting, reason)) => {
                if furthest.as_ref().is_none_or(|(most, _)| fitting > *most) {
                    furthest = Some((fitting, format!("the nearest is {arch}, but {reason}")));
                }
            }
        }
    }
    let why = furthest.map_or_else(|| view.unlike(convolutions), |(_, why)| why);
    let stored = graph.tensors.iter().map(|(name, tensor)| (name.clone(), Origin::Stored(tensor.clone())));
    let notes = vec![format!("its graph computes none of the known networks: {why}")];
    Ok(Found { tensors: stored.collect(), notes, ..Found::default() })
}

impl<'a> View<'a> {
    /// Why a graph of so many convolutions, which no network has, is none.
    fn unlike(&self, convolutions: usize) -> String {
        let apart = |arch: &Arch| arch.convolutions().len().abs_diff(convolutions);
        let nearest = Arch::ALL.into_iter().min_by_key(apart).filter(|_| convolutions > 0);
        let reason = nearest.and_then(|arch| Some((arch, self.follow(arch).err()?.1)));
        match reason {
            Some((arch, reason)) => {
                let expected = arch.convolutions().len();
                format!("it has {convolutions} convolutions, {arch}, the nearest, {expected}, and {reason}")
            }
            None => format!(
                "it has no Conv, only {}; of a file that was quantised or optimised for one runtime take the one that it \
                 was made from",
                operators(&self.graph.nodes)
            ),
        }
    }

    /// Walks through the graph beside `arch`; where it does not fit, how many tensors did before, and why.
    fn follow(&self, arch: Arch) -> std::result::Result<Found, (usize, String)> {
        let mut walk = Walk { view: self, tensors: BTreeMap::new() };
        let found = self.walk(&mut walk, arch);
        found.map_err(|reason| (walk.tensors.len(), reason))
    }

    fn walk(&self, walk: &mut Walk<'a>, arch: Arch) -> Step<Found> {
        let structure = Structure::new(arch);
        let first = self.graph.nodes.iter().find(|node| node.op == "Conv").ok_or("it has no convolution")?;
        let images = self.input(first, 0).ok_or("its first convolution has no input")?;
        let mut x = walk.convolution(images, &structure.stem, "Relu")?;
        x = self.after(x, "Relu")?;
        if structure.pooled {
            let pool = self.user(x, &["MaxPool"]).filter(|node| is_stem_pool(node));
            x = output(pool.ok_or_else(|| format!("the stem does not end in its max pool, but in {}", self.uses(x)))?)?;
        }
        for block in &structure.blocks {
            x = walk.block(x, block)?;
        }
        let input = Input::of(self, images);
        let mut notes: Vec<String> = input.note().into_iter().collect();
        match walk.head(x, arch.features()) {
            Ok(logits) => notes.extend(
                self.users(logits)
                    .first()
                    .map(|end| format!("the file ends in {}, which is left out: what is read ends in logits", end.op)),
            ),
            // A head that is none of ours is left out, as a whole.
            Err(reason) => {
                walk.tensors.retain(|name, _| !name.starts_with("fc.") && !name.starts_with("head."));
                notes.push(format!("what follows the last block is left out: {reason}"));
            }
        }
        Ok(Found { tensors: std::mem::take(&mut walk.tensors), notes, input })
    }

    /// The linear layer on `x`, which may be transposed, and have its bias in a node of its own or none.
    fn linear(&self, x: &str, inputs: usize) -> Step<Linear<'a>> {
        let node = self.user(x, &["Gemm", "MatMul"]).ok_or("there is no linear layer")?;
        let is_gemm = node.op == "Gemm";
        let is_plain = node.int("transA", 0) == 0 && node.float("alpha", 1.0) == 1.0 && node.float("beta", 1.0) == 1.0;
        let name = self.input(node, 1).filter(|_| is_plain && self.input(node, 0) == Some(x));
        let name = name.ok_or("a linear layer is of another form")?;
        let turned = self
            .producer(name)
            .filter(|node| node.op == "Transpose" && matches!(node.ints("perm"), None | Some([1, 0])));
        let weight = match turned {
            Some(node) => self.tensor(node, 0),
            None => self.graph.tensors.get(name),
        };
        let weight = weight.ok_or("a linear layer lacks its weight")?;
        // As a product with the weight on its left, or its transpose.
        let is_transposed = (is_gemm && node.int("transB", 0) == 1) == turned.is_some();
        let outputs = match (weight.shape.as_slice(), is_transposed) {
            (&[from, to], true) | (&[to, from], false) if from == inputs => to,
            _ => return Err("a linear layer is of another form".into()),
        };
        let weight = if is_transposed { Origin::Transposed } else { Origin::Stored }(weight.clone());

        let add = self.user(output(node)?, &["Add"]).filter(|_| !is_gemm);
        let given = match add {
            Some(add) => {
                [0, 1].into_iter().find_map(|position| self.tensor(add, position)).ok_or("no bias is added")?.into()
            }
            None if is_gemm => self
                .input(node, 2)
                .map(|name| self.graph.tensors.get(name).ok_or("a linear layer lacks its bias"))
                .transpose()?,
            None => None,
        };
        let bias = match given {
            Some(bias) if bias.shape == [outputs] => Origin::Stored(bias.clone()),
            Some(_) => return Err("a linear layer has a bias of another shape".into()),
            None => Origin::Constant(0.0, outputs),
        };
        Ok(Linear { weight, bias, outputs, value: output(add.unwrap_or(node))? })
    }
}

/// A linear layer.
struct Linear<'a> {
    weight: Origin,
    bias: Origin,
    outputs: usize,
    /// Its output.
    value: &'a str,
}

/// What has been found on the way.
struct Walk<'a> {
    view: &'a View<'a>,
    tensors: BTreeMap<String, Origin>,
}

impl<'a> Walk<'a> {
    /// Finds the convolution of `layer` on `input`, with its batchnorm if it has one, and the operator `then` after it.
    fn convolution(&mut self, input: &str, layer: &ConvLayer, then: &str) -> Step<&'a str> {
        let view = self.view;
        let takes_input = |node: &&&Node| node.op == "Conv" && view.input(node, 0) == Some(input);
        let candidates = view.users(input).iter().filter(takes_input).copied();
        let fitting = candidates.clone().filter(|node| difference(view, node, layer).is_none());
        let followed = fitting.clone().find_map(|node| {
            let plain = output(node).ok()?;
            let norm = view.user(plain, &["BatchNormalization"]);
            let value = norm.map_or(Ok(plain), output).ok()?;
            view.user(value, &[then]).map(|_| (node, norm, value))
        });
        let (node, norm, value) = followed.ok_or_else(|| {
            let value = |node: &Node| short_name(output(node).unwrap_or_default()).into_owned();
            let other = || candidates.min_by_key(|node| view.tensor(node, 1).is_none_or(|w| w.shape != layer.shape));
            match (fitting.clone().next(), other()) {
                (Some(node), _) => format!("{then} does not follow {}, which is {}", layer.conv, value(node)),
                (None, Some(node)) => {
                    let how = difference(view, node, layer).unwrap_or_default();
                    format!("{} is where {} would be, but {how}", value(node), layer.conv)
                }
                _ => format!("{} is where the convolution {} would be", view.uses(input), layer.conv),
            }
        })?;
        let weight = view.tensor(node, 1).ok_or("a weight is not in the file")?;
        self.tensors.insert(format!("{}.weight", layer.conv), Origin::Stored(weight.clone()));
        self.normalise(&layer.norm, layer.shape[0], norm, bias(view, node)?)?;
        Ok(value)
    }

    /// Notes the tensors of a batchnorm, which may have become the `bias` of what is before it.
    fn normalise(&mut self, name: &str, channels: usize, norm: Option<&'a Node>, bias: Option<Origin>) -> Step<()> {
        let constant = |value| Origin::Constant(value, channels);
        // Such a variance that the factor, 1 / √(variance + ε), is 1.
        let [mut weight, mut mean, mut variance] = [1.0, 0.0, FOLDED_VARIANCE].map(constant);
        let mut shift = constant(0.0);
        match (norm, bias) {
            (None, bias) => shift = bias.unwrap_or(shift),
            (Some(_), Some(_)) => return Err(format!("there are a bias and a batchnorm where {name} is")),
            (Some(node), None) => {
                if (node.float("epsilon", EPS) - EPS).abs() > 1e-3 * EPS {
                    return Err(format!("{name} has an epsilon other than {EPS}"));
                }
                for (position, place) in [&mut weight, &mut shift, &mut mean, &mut variance].into_iter().enumerate() {
                    let tensor = self.view.tensor(node, position + 1).filter(|tensor| tensor.shape == [channels]);
                    *place = Origin::Stored(tensor.ok_or_else(|| format!("{name} lacks a tensor"))?.clone());
                }
            }
        }
        let parts = [("weight", weight), ("bias", shift), ("running_mean", mean), ("running_var", variance)];
        self.tensors.extend(parts.map(|(part, origin)| (format!("{name}.{part}"), origin)));
        Ok(())
    }

    fn block(&mut self, x: &'a str, block: &BlockStructure) -> Step<&'a str> {
        let view = self.view;
        let mut y = x;
        for (index, layer) in block.convolutions.iter().enumerate() {
            if index + 1 == block.convolutions.len() {
                y = self.convolution(y, layer, "Add")?;
            } else {
                y = self.convolution(y, layer, "Relu")?;
                y = view.after(y, "Relu")?;
            }
        }
        let add = view.user(y, &["Add"]).ok_or("an addition is missing")?;
        let other = [0, 1].into_iter().filter_map(|position| view.input(add, position)).find(|input| *input != y);
        let other = other.ok_or("an addition has one input")?;
        let fits = match &block.shortcut {
            ShortcutLayer::Identity => other == x,
            ShortcutLayer::Projection(layer) => other == self.convolution(x, layer, "Add")?,
            ShortcutLayer::Padding { stride, channels } => view.is_padded(other, x, *stride, *channels),
        };
        match fits {
            true => view.after(output(add)?, "Relu"),
            false => Err(format!("{} has another shortcut", block.name)),
        }
    }

    /// Finds the linear layers after the last activation, and returns their last output.
    fn head(&mut self, x: &'a str, features: usize) -> Step<&'a str> {
        let view = self.view;
        let pooled = |ops: &[&str]| view.user(x, ops).and_then(|node| output(node).ok()).map(|y| view.reshaped(y));
        let mut x = pooled(&AVERAGES).ok_or("there is no average pool")?;
        let mut inputs = features;
        let concat = view.user(x, &["Concat"]);
        if let Some(concat) = concat {
            let maximum = pooled(&MAXIMA).filter(|maximum| view.input(concat, 0) == Some(maximum));
            maximum.ok_or("the first half of the features is no maximum")?;
            x = view.reshaped(output(concat)?);
            inputs *= 2;
        }
        for index in 0..MAX_LAYERS {
            let norm = view.user(x, &["BatchNormalization"]);
            let value = norm.map_or(Ok(x), output)?;
            let Linear { weight, bias, outputs, value } = view.linear(value, inputs)?;
            let name = match concat {
                None if norm.is_none() && index == 0 => "fc".into(),
                None => return Err("the head is neither torchvision's nor fastai's".into()),
                Some(_) => {
                    self.normalise(&format!("head.{}", 4 * index + 1), inputs, norm, None)?;
                    format!("head.{}", 4 * index + 3)
                }
            };
            self.tensors.extend([(format!("{name}.weight"), weight), (format!("{name}.bias"), bias)]);
            match view.user(value, &["Relu"]) {
                Some(relu) => (x, inputs) = (output(relu)?, outputs),
                None if view.users(value).iter().all(|node| ENDS.contains(&node.op.as_str())) => return Ok(value),
                None => return Err("something follows the linear layers".into()),
            }
        }
        Err("there are too many linear layers".into())
    }
}

/// In what the convolution `node` is not like `layer`; nothing if it is.
fn difference<'a>(view: &View<'a>, node: &'a Node, layer: &ConvLayer) -> Option<String> {
    let Geometry { stride, padding, groups } = layer.geometry;
    let shown = |numbers: &dyn std::fmt::Debug| short_name(&format!("{numbers:?}")).into_owned();
    match view.tensor(node, 1) {
        Some(weight) if weight.shape == layer.shape => {}
        Some(weight) => return Some(format!("its weight is {}, not {:?}", shown(&weight.shape), layer.shape)),
        None => return Some("its weight is not in the file as it is".into()),
    }
    if node.int("group", 1) != groups as i64 {
        return Some(format!("it is of {} groups, not {groups}", node.int("group", 1)));
    }
    for (name, value, count, default) in [("strides", stride, 2, 1), ("pads", padding, 4, 0), ("dilations", 1, 2, 1)] {
        if !node.all_are(name, value, count, default) {
            let found = node.ints(name).map_or("not given".into(), |numbers| shown(&numbers));
            return Some(format!("its {name} are {found}, not {value}"));
        }
    }
    (!node.pads_explicitly()).then(|| "its padding is automatic".into())
}

fn is_stem_pool(node: &Node) -> bool {
    let Window { size, stride, padding } = Window::STEM;
    node.all_are("kernel_shape", size, 2, 1)
        && node.all_are("strides", stride, 2, 1)
        && node.all_are("pads", padding, 4, 0)
        && node.all_are("dilations", 1, 2, 1)
        && node.int("ceil_mode", 0) == 0
        && node.pads_explicitly()
}

/// The bias of a convolution; none if it is zero, as exporters that do not simplify write it.
fn bias<'a>(view: &View<'a>, node: &'a Node) -> Step<Option<Origin>> {
    let Some(name) = view.input(node, 2) else { return Ok(None) };
    let tensor = view.tensor(node, 2).ok_or_else(|| format!("the bias {name} is not in the file"))?;
    let outputs = view.tensor(node, 1).and_then(|weight| weight.shape.first());
    let is_zero = || tensor.load().is_ok_and(|bias| bias.to_f32().iter().all(|value| *value == 0.0));
    match tensor.shape.as_slice() {
        _ if tensor.elements() <= MAX_BIAS && is_zero() => Ok(None),
        [count] if Some(count) == outputs => Ok(Some(Origin::Stored(tensor.clone()))),
        shape => Err(format!("the bias {name} is {shape:?}")),
    }
}
