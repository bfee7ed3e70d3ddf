//! What a pickle holds for a checkpoint: tensors by name, those that are not read, and whether there is anything else.

use std::collections::{HashMap, HashSet};

use super::{
    super::pickle::{Id, MAX_BYTES, Object, Pickle, Value},
    no_dictionary, short,
    view::{Made, Read, made, makes_tensors},
};

/// The most dictionaries and lists around a tensor.
const MAX_DEPTH: usize = 256;

/// The most values on the way to tensors, counted as often as they are reached.
const MAX_VISITS: usize = 4 << 20;

/// The most tensors. Those of ResNet-152 with an optimizer are three thousand.
const MAX_TENSORS: usize = 1 << 16;

/// The most calls around a tensor: `Parameter(tensor)`.
const MAX_CALLS: usize = 8;

/// Tensors that an object holds of which nothing is known.
const INSIDE: &str = "inside an object that is not interpreted";

/// A file's pickle.
pub(super) struct Contents {
    pub pickle: Pickle,
    /// The tensors of a tar archive, which its pickle refers to.
    tensors: Option<HashMap<String, Read>>,
    /// Whether a value has a tensor within it.
    holds: Vec<bool>,
}

/// What a value is to a checkpoint.
enum Meaning {
    Tensor(Read),
    /// Values by name, and whether the value is more than them.
    Entries(Vec<(Name, Id)>, bool),
    Else,
}

/// A key.
struct Name {
    text: String,
    is_text: bool,
}

/// All tensors of a file.
#[derive(Default)]
pub(super) struct Found {
    /// By dotted name.
    pub tensors: Vec<(String, Read)>,
    /// Whether there is anything else.
    pub other: bool,
    names: HashSet<String>,
    /// Of all names.
    bytes: usize,
    visits: usize,
}

impl Contents {
    pub fn new(pickle: Pickle, tensors: Option<HashMap<String, Read>>) -> Self {
        let holds = holds(&pickle, tensors.is_some());
        Self { pickle, tensors, holds }
    }

    /// All tensors, by the keys on the way to each.
    ///
    /// # Errors
    /// What the file is if it is no dictionary; a name that two tensors have; what only a hostile file has.
    pub fn find(&self) -> Result<Found, String> {
        let mut found = Found::default();
        match self.meaning(self.pickle.root, &mut found)? {
            Meaning::Entries(..)
                if !matches!(self.pickle.value(self.pickle.root), Value::List(_) | Value::Tuple(_)) => {}
            Meaning::Tensor(Ok(view)) => return Err(no_dictionary(&format!("a single tensor of {:?}", view.shape))),
            Meaning::Tensor(Err(why)) if why != INSIDE => {
                return Err(no_dictionary(why.split_once(',').map_or(why, |(what, _)| what)));
            }
            _ => return Err(no_dictionary(&self.pickle.kind(self.pickle.root))),
        }
        self.walk(self.pickle.root, &mut Vec::new(), 0, &mut found)?;
        Ok(found)
    }

    /// What is in the dictionary or module `id` under `key`, if that is one too.
    pub fn below(&self, id: Id, key: &str) -> Option<Id> {
        let (_, value) = self.named(id)?.into_iter().find(|(name, _)| name.text == key)?;
        self.named(value).map(|_| value)
    }

    /// Whether it is a dictionary, and no module.
    pub fn is_dictionary(&self, id: Id) -> bool {
        matches!(self.pickle.value(id), Value::Dict(_) | Value::Object(Object { contents: Some(_), .. }))
    }

    /// The entries of a dictionary or module.
    fn named(&self, id: Id) -> Option<Vec<(Name, Id)>> {
        let is_list = matches!(self.pickle.value(id), Value::List(_) | Value::Tuple(_));
        match self.meaning(id, &mut Found::default()) {
            Ok(Meaning::Entries(entries, _)) if !is_list => Some(entries),
            _ => None,
        }
    }

    fn walk(&self, id: Id, keys: &mut Vec<String>, length: usize, found: &mut Found) -> Result<(), String> {
        if !self.holds[id as usize] {
            found.other |= !self.is_empty(id);
            return Ok(());
        }
        if keys.len() > MAX_DEPTH {
            return Err(format!("has tensors in dictionaries {MAX_DEPTH} deep: refused"));
        }
        match self.meaning(id, found)? {
            Meaning::Else => found.other = true,
            Meaning::Tensor(read) => {
                found.bytes += length;
                if found.bytes > MAX_BYTES {
                    return Err(format!("names its tensors in more than {MAX_BYTES} bytes: refused"));
                }
                let name = keys.join(".");
                if found.tensors.len() == MAX_TENSORS {
                    return Err(format!("holds more than {MAX_TENSORS} tensors: refused"));
                }
                if !found.names.insert(name.clone()) {
                    let name = short(&name);
                    return Err(format!(
                        "holds two tensors {name}, one under a key with a dot or digits: rename one of them"
                    ));
                }
                found.tensors.push((name, read));
            }
            Meaning::Entries(entries, more) => {
                found.other |= more;
                let mut numbers: HashMap<String, bool> = HashMap::new();
                for (Name { text, is_text }, value) in entries {
                    if *numbers.entry(text.clone()).or_insert(is_text) != is_text {
                        let text = short(&text);
                        return Err(format!(
                            "has the keys {text} and \"{text}\" in one dictionary: rename one of them"
                        ));
                    }
                    let length = length + text.len() + 1;
                    keys.push(text);
                    self.walk(value, keys, length, found)?;
                    keys.pop();
                }
            }
        }
        Ok(())
    }

    fn meaning(&self, mut id: Id, found: &mut Found) -> Result<Meaning, String> {
        let pickle = &self.pickle;
        for _ in 0..MAX_CALLS {
            let object = match pickle.value(id) {
                Value::Dict(_) | Value::List(_) | Value::Tuple(_) => return self.entries(id, false, found),
                Value::Outside(name) => return Ok(Meaning::Tensor(self.outside(*name)?)),
                Value::Object(object) => object,
                _ => return Ok(Meaning::Else),
            };
            match made(pickle, object.class, object.arguments)? {
                Made::Tensor(read) => return Ok(Meaning::Tensor(read)),
                Made::Same(as_this) => id = as_this,
                Made::Else => return self.object(id, object, found),
            }
        }
        Err("has a tensor in calls within calls: refused".into())
    }

    /// What is beside the pickle: the tensor of a tar archive, or a storage that is no tensor's.
    fn outside(&self, name: Id) -> Result<Read, String> {
        let Some(tensors) = &self.tensors else { return Ok(Err("a storage without a shape, which is not read")) };
        let key = self.pickle.name(name).unwrap_or_default();
        tensors.get(&key).cloned().ok_or_else(|| format!("refers to a tensor {}, which is not there", short(&key)))
    }

    /// A dictionary with a class of its own, a module, or what is not interpreted.
    fn object(&self, id: Id, object: &Object, found: &mut Found) -> Result<Meaning, String> {
        if let Some(contents) = object.contents {
            return self.entries(contents, true, found);
        }
        if let Some(state) = object.state
            && let Some(tables) = self.module(state, found)?
        {
            return Ok(tables);
        }
        Ok(if self.holds[id as usize] { Meaning::Tensor(Err(INSIDE)) } else { Meaning::Else })
    }

    /// What `state_dict()` of a module with these attributes has: its parameters, its buffers but those that it says
    /// not to keep, and its modules.
    fn module(&self, state: Id, found: &mut Found) -> Result<Option<Meaning>, String> {
        self.count(state, found)?;
        let [Some(parameters), Some(buffers), Some(modules)] =
            ["_parameters", "_buffers", "_modules"].map(|table| self.pickle.get(state, table))
        else {
            return Ok(None);
        };
        let passing = self.pickle.get(state, "_non_persistent_buffers_set");
        passing.map_or(Ok(()), |set| self.count(set, found))?;
        let passing: HashSet<String> =
            passing.into_iter().flat_map(|set| self.pickle.items(set)).filter_map(|id| self.pickle.key(*id)).collect();
        let mut all = Vec::new();
        for table in [parameters, buffers, modules] {
            let Meaning::Entries(entries, _) = self.entries(table, true, found)? else { return Ok(None) };
            all.extend(entries.into_iter().filter(|(name, _)| table != buffers || !passing.contains(&name.text)));
        }
        Ok(Some(Meaning::Entries(all, true)))
    }

    fn entries(&self, id: Id, more: bool, found: &mut Found) -> Result<Meaning, String> {
        self.count(id, found)?;
        let entries = match self.pickle.value(id) {
            Value::Dict(entries) => {
                entries.iter().enumerate().map(|(index, (key, value))| (self.name(*key, index), *value)).collect()
            }
            Value::List(items) | Value::Tuple(items) => {
                let name = |index: usize| Name { text: index.to_string(), is_text: false };
                items.iter().enumerate().map(|(index, value)| (name(index), *value)).collect()
            }
            _ => return Ok(Meaning::Else),
        };
        Ok(Meaning::Entries(entries, more))
    }

    /// Counts what is in a container, each time that it is looked into: containers may hold each other, or themselves,
    /// and many may have one long key.
    fn count(&self, id: Id, found: &mut Found) -> Result<(), String> {
        let size = |key: Id| match self.pickle.value(key) {
            Value::Text(text) => 1 + text.len() / 16,
            _ => 1,
        };
        let length: usize = match self.pickle.value(id) {
            Value::Dict(entries) => entries.iter().map(|(key, _)| size(*key)).sum(),
            _ => self.pickle.items(id).iter().map(|item| size(*item)).sum(),
        };
        found.visits = found.visits.saturating_add(length + 1);
        if found.visits > MAX_VISITS {
            return Err("has values that hold each other again and again: refused".into());
        }
        Ok(())
    }

    /// What a key is called; one that is neither text nor an integer by its place.
    fn name(&self, key: Id, index: usize) -> Name {
        let text = match self.pickle.value(key) {
            Value::Bool(true) => "True".into(),
            Value::Bool(false) => "False".into(),
            _ => self.pickle.key(key).unwrap_or_else(|| format!("(key {index})")),
        };
        Name { text, is_text: matches!(self.pickle.value(key), Value::Text(_)) }
    }

    fn is_empty(&self, id: Id) -> bool {
        match self.pickle.value(id) {
            Value::Dict(entries) => entries.is_empty(),
            Value::List(items) | Value::Tuple(items) => items.is_empty(),
            _ => false,
        }
    }
}

/// Of each value whether there is a tensor within it: looked for from the tensors outwards.
fn holds(pickle: &Pickle, all_outside: bool) -> Vec<bool> {
    let mut around: Vec<Vec<Id>> = vec![Vec::new(); pickle.values().count()];
    let (mut holds, mut rest) = (vec![false; around.len()], Vec::new());
    for (value, id) in pickle.values().zip(0..) {
        let mut within = |inner: Id| around[inner as usize].push(id);
        match value {
            Value::List(items) | Value::Tuple(items) => items.iter().copied().for_each(&mut within),
            Value::Dict(entries) => entries.iter().for_each(|(_, value)| within(*value)),
            Value::Object(object) => {
                let parts = [Some(object.class), Some(object.arguments), object.state, object.contents];
                parts.into_iter().flatten().for_each(&mut within);
                if makes_tensors(pickle, object.class) {
                    rest.push(id);
                }
            }
            // In the legacy layout also the class of a module, beside its source.
            Value::Outside(name)
                if all_outside || pickle.items(*name).first().is_some_and(|tag| pickle.is_text(*tag, "storage")) =>
            {
                rest.push(id);
            }
            _ => {}
        }
    }
    while let Some(id) = rest.pop() {
        if !std::mem::replace(&mut holds[id as usize], true) {
            rest.append(&mut around[id as usize]);
        }
    }
    holds
}
