//! The graph of an ONNX file: its nodes, and its tensors without their values. Field numbers are those of
//! <https://github.com/onnx/onnx/blob/main/onnx/onnx.proto>. Subgraphs and functions, which no ResNet needs, are passed
//! over, so that nothing nests.

use std::{
    collections::{BTreeMap, HashMap, btree_map::Entry},
    path::Path,
};

use super::{
    tensor::{OnnxTensor, entry},
    wire::{Message, Reader},
};
use crate::{Error, Result, checkpoint::short_name};

/// External files hold tensors once, or shared ones a few times.
const MAX_SHARING: u64 = 8;

/// An operation.
#[derive(Debug, Default)]
pub(super) struct Node {
    /// The operator, after its domain unless that is ONNX's own.
    pub op: String,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    attributes: HashMap<String, Attribute>,
}

#[derive(Debug, Default)]
struct Attribute {
    float: Option<f32>,
    int: Option<i64>,
    ints: Vec<i64>,
    text: String,
}

impl Node {
    /// The attribute `name`, or its `default`.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attributes.get(name).and_then(|attribute| attribute.int).unwrap_or(default)
    }

    /// The attribute `name`, or its `default`.
    pub fn float(&self, name: &str, default: f32) -> f32 {
        self.attributes.get(name).and_then(|attribute| attribute.float).unwrap_or(default)
    }

    /// Whether the attribute `name` is `count` times `value`, as where it is not given if that is its `default`.
    pub fn all_are(&self, name: &str, value: usize, count: usize, default: usize) -> bool {
        match self.attributes.get(name) {
            Some(Attribute { ints, .. }) => ints.len() == count && ints.iter().all(|int| *int == value as i64),
            None => value == default,
        }
    }

    /// The attribute `name`, if it is a list.
    pub fn ints(&self, name: &str) -> Option<&[i64]> {
        self.attributes.get(name).map(|attribute| attribute.ints.as_slice())
    }

    /// Whether padding is as the attribute `pads` says.
    pub fn pads_explicitly(&self) -> bool {
        self.attributes.get("auto_pad").is_none_or(|attribute| matches!(attribute.text.as_str(), "" | "NOTSET"))
    }
}

/// What is of interest in an ONNX file.
#[derive(Debug, Default)]
pub(super) struct Graph {
    /// In an order in which they can be computed.
    pub nodes: Vec<Node>,
    /// Initialisers and constants by name.
    pub tensors: BTreeMap<String, OnnxTensor>,
    /// Extents of its inputs by name; 0 for one that may be anything.
    pub inputs: BTreeMap<String, Vec<usize>>,
    /// The model's `metadata_props`.
    pub metadata: BTreeMap<String, String>,
}

impl Graph {
    /// Reads a file, but for the values of its tensors.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Checkpoint`] if it is damaged or no ONNX file.
    pub fn read(path: &Path) -> Result<Self> {
        let mut reader = Reader::open(path)?;
        let mut graph = Self::default();
        let mut found = false;
        let mut message = reader.message();
        while let Some(field) = reader.field(&mut message)? {
            match field.number {
                7 => {
                    found = true;
                    graph.read_graph(&mut reader, field.range)?;
                }
                14 => graph.metadata.extend([entry(&mut reader, field.range)?]),
                _ => {}
            }
        }
        if !found {
            return Err(reader.bad("it has no graph"));
        }
        graph.check_order().map_err(|message| reader.bad(message))?;
        graph.check_external(path)?;
        Ok(graph)
    }

    fn read_graph(&mut self, reader: &mut Reader, mut message: Message) -> Result<()> {
        while let Some(field) = reader.field(&mut message)? {
            match field.number {
                1 => self.read_node(reader, field.range)?,
                5 => {
                    let tensor = OnnxTensor::read(reader, field.range)?;
                    self.insert(reader, tensor)?;
                }
                11 => {
                    let (mut name, mut extents) = (String::new(), Vec::new());
                    input(reader, field.range, &[2, 1, 2, 1], &mut name, &mut extents)?;
                    self.inputs.insert(name, extents);
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn insert(&mut self, reader: &Reader, tensor: OnnxTensor) -> Result<()> {
        match self.tensors.entry(tensor.name.clone()) {
            Entry::Occupied(_) => Err(reader.bad(format!("there are two tensors {}", tensor.name))),
            Entry::Vacant(place) => {
                place.insert(tensor);
                Ok(())
            }
        }
    }

    fn read_node(&mut self, reader: &mut Reader, mut message: Message) -> Result<()> {
        let (mut node, mut domain, mut value) = (Node::default(), String::new(), None);
        while let Some(field) = reader.field(&mut message)? {
            match field.number {
                1 => node.inputs.push(reader.text(&field.range)?),
                2 => node.outputs.push(reader.text(&field.range)?),
                4 => node.op = reader.text(&field.range)?,
                5 => {
                    let (name, attribute, tensor) = attribute(reader, field.range)?;
                    value = if name == "value" { tensor } else { value };
                    node.attributes.insert(name, attribute);
                }
                7 => domain = reader.text(&field.range)?,
                _ => {}
            }
        }
        if !matches!(domain.as_str(), "" | "ai.onnx") {
            node.op = format!("{domain}.{}", node.op);
        }
        if let ("Constant", Some(mut tensor), Some(name)) = (node.op.as_str(), value, node.outputs.first()) {
            tensor.name.clone_from(name);
            return self.insert(reader, tensor);
        }
        self.nodes.push(node);
        Ok(())
    }

    /// Refuses nodes that use what a later one computes, as in a circle.
    fn check_order(&self) -> std::result::Result<(), String> {
        let mut computed = HashMap::new();
        for (place, node) in self.nodes.iter().enumerate() {
            for name in &node.outputs {
                computed.entry(name).or_insert(place);
            }
        }
        for (place, node) in self.nodes.iter().enumerate() {
            let is_late = |name: &&String| computed.get(name).is_some_and(|computed| *computed >= place);
            if let Some(name) = node.inputs.iter().filter(|name| !name.is_empty()).find(is_late) {
                let name = short_name(name);
                return Err(format!(
                    "the operator {} uses {name} before it is computed: a circle, or out of order",
                    node.op
                ));
            }
        }
        Ok(())
    }

    /// Refuses tensors that take far more memory than the files beside this one.
    fn check_external(&self, path: &Path) -> Result<()> {
        let (mut files, mut declared) = (HashMap::new(), 0u64);
        for tensor in self.tensors.values().filter(|tensor| tensor.is_external()) {
            let length = || std::fs::metadata(&tensor.file).map_or(0, |metadata| metadata.len());
            files.entry(&tensor.file).or_insert_with(length);
            declared = declared.saturating_add(tensor.bytes());
        }
        let present: u64 = files.into_values().sum();
        match declared > present.saturating_mul(MAX_SHARING) {
            true => {
                let message = format!("declares {declared} bytes of tensors in files of {present} bytes: refused");
                Err(Error::checkpoint(path, message))
            }
            false => Ok(()),
        }
    }
}

/// A `ValueInfoProto`: its name, and the extents at the end of the `path` of field numbers (type, tensor, shape,
/// dimension).
fn input(
    reader: &mut Reader,
    mut message: Message,
    path: &[u64],
    name: &mut String,
    extents: &mut Vec<usize>,
) -> Result<()> {
    if path.is_empty() {
        extents.push(0);
    }
    while let Some(field) = reader.field(&mut message)? {
        match path.split_first() {
            Some((number, rest)) if field.number == *number => input(reader, field.range, rest, name, extents)?,
            Some(_) if path.len() == 4 && field.number == 1 => *name = reader.text(&field.range)?,
            None if field.number == 1 => {
                let extent = field.varint.and_then(|extent| usize::try_from(extent).ok());
                *extents.last_mut().unwrap_or(&mut 0) = extent.unwrap_or(0);
            }
            _ => {}
        }
    }
    Ok(())
}

/// An `AttributeProto`: its name, what it is, and the tensor in it.
fn attribute(reader: &mut Reader, mut message: Message) -> Result<(String, Attribute, Option<OnnxTensor>)> {
    let (mut name, mut attribute, mut tensor) = (String::new(), Attribute::default(), None);
    while let Some(field) = reader.field(&mut message)? {
        match field.number {
            1 => name = reader.text(&field.range)?,
            2 => attribute.float = reader.bytes(&field.range)?.first_chunk().map(|bytes| f32::from_le_bytes(*bytes)),
            3 => attribute.int = field.varint.map(|number| number as i64),
            // Only short ones mean anything here.
            4 if field.range.end - field.range.start < 64 => {
                attribute.text = String::from_utf8_lossy(&reader.bytes(&field.range)?).into_owned();
            }
            5 => tensor = Some(OnnxTensor::read(reader, field.range)?),
            8 => reader.numbers(&field, &mut attribute.ints)?,
            _ => {}
        }
    }
    Ok((name, attribute, tensor))
}
