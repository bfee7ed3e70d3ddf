//! A graph that can be walked from a value to what computes it and to what uses it.

use std::collections::{BTreeSet, HashMap};

use super::{
    graph::{Graph, Node},
    tensor::OnnxTensor,
};
use crate::checkpoint::{
    FileDtype,
    names::{listed, short_name},
};

/// Operators whose output is their first input, as far as this network is concerned.
const TRANSPARENT: [&str; 5] = ["Identity", "Dropout", "Cast", "CastLike", "Expand"];
/// Those that pass features on in the same order.
const RESHAPING: [&str; 3] = ["Flatten", "Reshape", "Squeeze"];

/// More than a head has of anything, so that a graph in circles comes to an end.
pub(super) const MAX_LAYERS: usize = 16;

/// A graph that can be walked.
pub(super) struct View<'a> {
    pub graph: &'a Graph,
    /// What values are, of those that are another under a new name.
    aliases: HashMap<&'a str, &'a str>,
    users: HashMap<&'a str, Vec<&'a Node>>,
}

/// Why a graph is not a network.
pub(super) type Step<T> = std::result::Result<T, String>;

impl<'a> View<'a> {
    pub fn new(graph: &'a Graph) -> Self {
        let mut view = Self { graph, aliases: HashMap::new(), users: HashMap::new() };
        for node in &graph.nodes {
            if let (true, Some(input), Some(output)) =
                (TRANSPARENT.contains(&node.op.as_str()), node.inputs.first(), node.outputs.first())
            {
                let input = view.resolve(input);
                view.aliases.insert(output, input);
                continue;
            }
            for input in node.inputs.iter().filter(|input| !input.is_empty()) {
                let input = view.resolve(input);
                let users = view.users.entry(input).or_default();
                // Once, even if it is all the inputs of a node: whoever looks for one goes through the list.
                if users.last().is_none_or(|last| !std::ptr::eq(*last, node)) {
                    users.push(node);
                }
            }
        }
        view
    }

    /// A value by its first name; nodes come after what they use.
    pub fn resolve(&self, name: &'a str) -> &'a str {
        self.aliases.get(name).copied().unwrap_or(name)
    }

    pub fn input(&self, node: &'a Node, position: usize) -> Option<&'a str> {
        node.inputs.get(position).filter(|name| !name.is_empty()).map(|name| self.resolve(name))
    }

    /// The tensor that is an input of `node`.
    pub fn tensor(&self, node: &'a Node, position: usize) -> Option<&'a OnnxTensor> {
        self.graph.tensors.get(self.input(node, position)?)
    }

    pub fn users(&self, value: &str) -> &[&'a Node] {
        self.users.get(value).map_or(&[], Vec::as_slice)
    }

    /// The user of `value` that is one of `ops`.
    pub fn user(&self, value: &str, ops: &[&str]) -> Option<&'a Node> {
        self.users(value).iter().find(|node| ops.contains(&node.op.as_str())).copied()
    }

    /// The operators that use `value`, in words.
    pub fn uses(&self, value: &str) -> String {
        operators(self.users(value).iter().copied())
    }

    /// The node that computes `value`.
    pub fn producer(&self, value: &str) -> Option<&'a Node> {
        self.graph.nodes.iter().find(|node| node.outputs.iter().any(|name| name == value))
    }

    /// The extents of the graph's input `name`; 0 for one that may be anything.
    pub fn extents(&self, name: &str) -> Option<&'a [usize]> {
        self.graph.inputs.get(name).map(Vec::as_slice)
    }

    pub fn is_tensor(&self, name: &str) -> bool {
        self.graph.tensors.contains_key(name)
    }

    /// Shape and values of an input of `node` that is a tensor of the size of a mean or standard deviation of images.
    pub fn small(&self, node: &'a Node, position: usize) -> Option<(&'a [usize], Vec<f32>)> {
        let tensor = self.tensor(node, position)?;
        let is_small = tensor.elements() <= 3 && tensor.dtype.is_ok_and(FileDtype::is_float);
        Some((&tensor.shape, is_small.then(|| tensor.load().ok())??.to_f32()))
    }

    /// The values of all such inputs.
    pub fn small_constants(&self, node: &'a Node) -> impl Iterator<Item = Vec<f32>> {
        (0..node.inputs.len()).filter_map(|position| self.small(node, position)).map(|(_, values)| values)
    }

    /// The output of `op` on `value`.
    pub fn after(&self, value: &str, op: &str) -> Step<&'a str> {
        let missing = || format!("{op} does not follow {}, but {}", short_name(value), self.uses(value));
        self.user(value, &[op]).ok_or_else(missing).and_then(output)
    }

    /// `value` after operators that keep the order of features.
    pub fn reshaped(&self, value: &'a str) -> &'a str {
        let next = |value: &&'a str| self.user(value, &RESHAPING)?.outputs.first().map(String::as_str);
        std::iter::successors(Some(value), next).take(MAX_LAYERS).last().unwrap_or(value)
    }

    /// Whether `value` is `input` with fewer pixels and `channels` more on each side.
    pub fn is_padded(&self, value: &str, input: &str, stride: usize, channels: usize) -> bool {
        let strided = self.users(input).iter().filter(|node| match node.op.as_str() {
            "Slice" => {
                [vec![0; 2], vec![2, 3], vec![stride as i64; 2]]
                    == [1, 3, 4].map(|at| self.ints(node, at).unwrap_or_default())
            }
            _ => false,
        });
        let pads = vec![0, channels as i64, 0, 0, 0, channels as i64, 0, 0];
        strided.filter_map(|slice| self.user(slice.outputs.first()?, &["Pad"])).any(|pad| {
            pad.outputs.first().is_some_and(|output| output == value) && self.ints(pad, 1).as_ref() == Some(&pads)
        })
    }

    /// The values of a small input of `node` that is a list of integers.
    pub fn ints(&self, node: &'a Node, position: usize) -> Option<Vec<i64>> {
        let tensor = self.tensor(node, position).filter(|tensor| tensor.dtype == Ok(FileDtype::I64))?;
        let values = (tensor.elements() <= 16).then(|| tensor.load().ok())??;
        Some(bytemuck::pod_collect_to_vec(values.bytes()))
    }
}

pub(super) fn output(node: &Node) -> Step<&str> {
    node.outputs.first().map(String::as_str).ok_or_else(|| format!("a {} has no output", node.op))
}

/// The different operators of `nodes`, in words.
pub(super) fn operators<'a>(nodes: impl IntoIterator<Item = &'a Node>) -> String {
    let names: BTreeSet<&str> = nodes.into_iter().map(|node| node.op.as_str()).collect();
    let names: Vec<String> = names.into_iter().map(|name| short_name(name).into_owned()).collect();
    if names.is_empty() { "nothing".into() } else { listed(&names) }
}
