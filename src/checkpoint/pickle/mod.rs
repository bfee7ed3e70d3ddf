//! Pickles, taken apart: the values that one describes and what it imports. Nothing that it asks to call is called; a
//! call is a value too.
//!
//! Values lie in one list and hold each other by their places in it, so that a value that is fetched again, or holds
//! itself, is no copy: an instruction takes at most some hundred bytes. The instructions, of protocols 0 to 5, are
//! those of <https://github.com/python/cpython/blob/main/Lib/pickletools.py>.

mod literals;
mod machine;
#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, fmt};

pub(super) use machine::parse;

/// The longest pickle that is read. That of a large ResNet with its optimizer takes a megabyte.
pub(super) const MAX_BYTES: usize = 16 << 20;

/// The most instructions. PyTorch's pickles have 35 for a tensor.
pub(super) const MAX_INSTRUCTIONS: usize = 2 << 20;

/// A class or function that a pickle imports by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Global {
    /// Dotted.
    pub module: String,
    /// Dotted where it is inside a class.
    pub name: String,
}

impl fmt::Display for Global {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

/// The place of a value in its pickle's list.
pub(super) type Id = u32;

/// A value; the values that it holds are named by their places.
#[derive(Debug)]
pub(super) enum Value {
    /// One that decides nothing here, and what it is.
    Plain(&'static str),
    Bool(bool),
    Int(i64),
    Text(String),
    /// A list or set.
    List(Vec<Id>),
    Tuple(Vec<Id>),
    /// A dictionary, ordered or not: keys and values.
    Dict(Vec<(Id, Id)>),
    Class(Global),
    Object(Object),
    /// A reference to something beside the pickle: a storage, or in a tar archive a tensor.
    Outside(Id),
}

/// What Python would make by a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Object {
    /// What would be called.
    pub class: Id,
    /// The arguments, a tuple.
    pub arguments: Id,
    /// What it would be given as its attributes.
    pub state: Option<Id>,
    /// The dictionary or list of what would be put into it.
    pub contents: Option<Id>,
}

/// How a pickle ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With its result.
    Whole,
    /// Where the bytes do.
    Cut,
    /// At what is no instruction, or one that lacks what it needs.
    Damaged,
}

/// A pickle, up to where it ends.
#[derive(Debug)]
pub(super) struct Pickle {
    pub end: End,
    /// Bytes that it takes.
    pub length: usize,
    /// Everything that it imports, be it used or not.
    pub imports: BTreeSet<Global>,
    /// The result, of one that is whole.
    pub root: Id,
    values: Vec<Value>,
}

impl Pickle {
    pub fn value(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    pub fn values(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }

    /// The integer that a value is, if it is none below zero.
    pub fn number(&self, id: Id) -> Option<usize> {
        match *self.value(id) {
            Value::Int(number) => number.try_into().ok(),
            _ => None,
        }
    }

    /// Whether a value is this string.
    pub fn is_text(&self, id: Id, text: &str) -> bool {
        matches!(self.value(id), Value::Text(own) if own == text)
    }

    /// What a storage or a tensor beside the pickle is called: PyTorch writes numbers, as digits or as such. Nothing if
    /// it is longer than any of these: a pickle may name one thing again and again.
    pub fn name(&self, id: Id) -> Option<String> {
        const LONGEST: usize = 64;
        let is_short = !matches!(self.value(id), Value::Text(text) if text.len() > LONGEST);
        is_short.then(|| self.key(id)).flatten()
    }

    /// The string that a value is, or the digits of the integer that it is.
    pub fn key(&self, id: Id) -> Option<String> {
        match self.value(id) {
            Value::Text(text) => Some(text.clone()),
            Value::Int(number) => Some(number.to_string()),
            _ => None,
        }
    }

    /// The items of a tuple or list; none of anything else.
    pub fn items(&self, id: Id) -> &[Id] {
        match self.value(id) {
            Value::Tuple(items) | Value::List(items) => items,
            _ => &[],
        }
    }

    /// The value of the dictionary `id` under `key`.
    pub fn get(&self, id: Id, key: &str) -> Option<Id> {
        let Value::Dict(entries) = self.value(id) else { return None };
        let is_key = |(name, _): &&(Id, Id)| self.is_text(*name, key);
        entries.iter().rev().find(is_key).map(|(_, value)| *value)
    }

    /// What a value is, in words.
    pub fn kind(&self, id: Id) -> String {
        match self.value(id) {
            Value::Plain(what) => (*what).into(),
            Value::Bool(_) => "a truth value".into(),
            Value::Int(_) => "an integer".into(),
            Value::Text(_) => "text".into(),
            Value::List(_) => "a list".into(),
            Value::Tuple(_) => "a tuple".into(),
            Value::Dict(_) => "a dictionary".into(),
            Value::Class(global) => format!("the class {global}"),
            Value::Object(object) => match self.value(object.class) {
                Value::Class(global) => format!("an object of {global}"),
                _ => "an object".into(),
            },
            Value::Outside(_) => "a storage".into(),
        }
    }
}
