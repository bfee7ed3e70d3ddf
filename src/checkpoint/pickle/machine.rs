//! The machine that a pickle is a program of: a stack of values, marks on it, and a memo.

use std::collections::{BTreeSet, HashMap};

use super::{
    End, Global, Id, MAX_BYTES, MAX_INSTRUCTIONS, Object, Pickle, Value,
    literals::{integer, little_endian, text},
};

/// Takes apart the pickle that `bytes` begin with.
///
/// # Errors
/// Why it should not be read. A pickle that is cut off or damaged is no error here, see [`Pickle::end`].
pub(in super::super) fn parse(bytes: &[u8]) -> Result<Pickle, String> {
    let mut machine = Machine { rest: bytes, ..Machine::default() };
    for _ in 0..MAX_INSTRUCTIONS {
        let end = match machine.step() {
            Ok(()) => continue,
            Err(Stop::End(end)) => end,
            Err(Stop::Refused(why)) => return Err(why),
        };
        let root = machine.stack.pop();
        return Ok(Pickle {
            end: if end == End::Whole && root.is_none() { End::Damaged } else { end },
            length: bytes.len() - machine.rest.len(),
            imports: machine.imports,
            root: root.unwrap_or_default(),
            values: machine.values,
        });
    }
    Err(format!("has a pickle of more than {MAX_INSTRUCTIONS} instructions: refused"))
}

/// Why the machine stops.
enum Stop {
    End(End),
    Refused(String),
}

const CUT: Stop = Stop::End(End::Cut);
const DAMAGED: Stop = Stop::End(End::Damaged);

/// What follows an instruction's byte.
#[derive(Clone, Copy)]
enum Argument {
    Bytes(usize),
    /// A length of so many bytes, then as many bytes as it says.
    Counted(usize),
    Lines(usize),
}

/// What follows each instruction; `None` for a byte that is none.
fn argument(opcode: u8) -> Option<Argument> {
    use Argument::{Bytes, Counted, Lines};
    Some(match opcode {
        b'F' | b'I' | b'L' | b'P' | b'S' | b'V' | b'g' | b'p' => Lines(1),
        b'c' | b'i' => Lines(2),
        b'K' | b'h' | b'q' | 0x80 | 0x82 => Bytes(1),
        b'M' | 0x83 => Bytes(2),
        b'J' | b'j' | b'r' | 0x84 => Bytes(4),
        b'G' | 0x95 => Bytes(8),
        b'C' | b'U' | 0x8a | 0x8c => Counted(1),
        b'B' | b'T' | b'X' | 0x8b => Counted(4),
        0x8d | 0x8e | 0x96 => Counted(8),
        b'(' | b')' | b'.' | b'0' | b'1' | b'2' | b'N' | b'Q' | b'R' | b']' | b'}' => Bytes(0),
        b'a' | b'b' | b'd' | b'e' | b'l' | b'o' | b's' | b't' | b'u' => Bytes(0),
        0x81 | 0x85..=0x89 | 0x8f..=0x94 | 0x97 | 0x98 => Bytes(0),
        _ => return None,
    })
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    imports: BTreeSet<Global>,
    /// Bytes of the names of classes.
    named: usize,
    copied: usize,
}

impl<'a> Machine<'a> {
    /// Takes one instruction.
    fn step(&mut self) -> Result<(), Stop> {
        let opcode = self.bytes(1)?[0];
        let (bytes, second) = match argument(opcode).ok_or(DAMAGED)? {
            Argument::Bytes(count) => (self.bytes(count)?, &[][..]),
            Argument::Counted(digits) => {
                let count = little_endian(self.bytes(digits)?);
                (self.bytes(usize::try_from(count).map_err(|_| CUT)?)?, &[][..])
            }
            Argument::Lines(1) => (self.line()?, &[][..]),
            Argument::Lines(_) => (self.line()?, self.line()?),
        };
        match opcode {
            b'.' => return Err(Stop::End(End::Whole)),
            // The protocol, and the length of a frame.
            0x80 | 0x95 => {}
            b'N' => self.push(Value::Plain("None")),
            0x88 | 0x89 => self.push(Value::Bool(opcode == 0x88)),
            b'F' | b'G' => self.push(Value::Plain("a number")),
            b'B' | b'C' | 0x8e | 0x96 | 0x97 => self.push(Value::Plain("bytes")),
            // Of the registry of extensions.
            0x82..=0x84 => self.push(Value::Plain("an extension")),
            b'I' | b'L' | b'J' | b'K' | b'M' | 0x8a | 0x8b => self.push(integer(opcode, bytes)),
            b'S' | b'T' | b'U' | b'V' | b'X' | 0x8c | 0x8d => self.push(Value::Text(text(opcode, bytes))),

            b')' => self.push(Value::Tuple(Vec::new())),
            b']' | 0x8f => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b't' => self.collect(Value::Tuple)?,
            b'l' | 0x91 => self.collect(Value::List)?,
            0x85..=0x87 => {
                let height = self.stack.len().checked_sub(usize::from(opcode) - 0x84).ok_or(DAMAGED)?;
                let items = self.above(height)?;
                self.push(Value::Tuple(items));
            }
            b'd' => {
                let entries = pairs(&self.above_mark()?)?;
                self.push(Value::Dict(entries));
            }
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' | 0x90 => {
                let items = self.above_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set_items(vec![(key, value)])?;
            }
            b'u' => {
                let entries = pairs(&self.above_mark()?)?;
                self.set_items(entries)?;
            }

            b'(' => self.marks.push(self.stack.len()),
            b'0' if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.above_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'g' | b'h' | b'j' => {
                let value = *self.memo.get(&index(opcode, bytes)?).ok_or(DAMAGED)?;
                self.stack.push(value);
            }
            b'p' | b'q' | b'r' => drop(self.memo.insert(index(opcode, bytes)?, self.top()?)),
            0x94 => drop(self.memo.insert(self.memo.len() as u32, self.top()?)),
            // A buffer that may not be written.
            0x98 => drop(self.top()?),

            b'c' => {
                let class = self.import(Global { module: text(opcode, bytes), name: text(opcode, second) });
                self.push(class);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let (Value::Text(module), Value::Text(name)) = (self.value(module), self.value(name)) else {
                    let why = "imports something whose name it computes: refused, nothing was run";
                    return Err(Stop::Refused(why.into()));
                };
                // A few bytes fetch long names again and again.
                let named = self.named + module.len() + name.len();
                if named > MAX_BYTES {
                    return Err(Stop::Refused(format!("imports names of more than {MAX_BYTES} bytes: refused")));
                }
                let global = Global { module: module.clone(), name: name.clone() };
                self.named = named;
                let class = self.import(global);
                self.push(class);
            }
            b'P' => {
                self.push(Value::Text(text(opcode, bytes)));
                let name = self.pop()?;
                self.push(Value::Outside(name));
            }
            b'Q' => {
                let name = self.pop()?;
                self.push(Value::Outside(name));
            }
            b'R' | 0x81 => {
                let (arguments, class) = (self.pop()?, self.pop()?);
                self.call(class, arguments)?;
            }
            0x92 => {
                let (_keywords, arguments, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(class, arguments)?;
            }
            b'i' => {
                let class = self.import(Global { module: text(opcode, bytes), name: text(opcode, second) });
                let arguments = self.above_mark()?;
                let class = self.add(class);
                let arguments = self.add(Value::Tuple(arguments));
                self.call(class, arguments)?;
            }
            b'o' => {
                let mut arguments = self.above_mark()?;
                if arguments.is_empty() {
                    return Err(DAMAGED);
                }
                let class = arguments.remove(0);
                let arguments = self.add(Value::Tuple(arguments));
                self.call(class, arguments)?;
            }
            b'b' => {
                let state = self.pop()?;
                self.build(state)?;
            }
            _ => return Err(DAMAGED),
        }
        Ok(())
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        let (bytes, rest) = self.rest.split_at_checked(count).ok_or(CUT)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<&'a [u8], Stop> {
        let end = self.rest.iter().position(|&byte| byte == b'\n').ok_or(CUT)?;
        let line = self.bytes(end)?;
        self.rest = &self.rest[1..];
        Ok(line.strip_suffix(b"\r").unwrap_or(line))
    }

    fn value(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    fn add(&mut self, value: Value) -> Id {
        self.values.push(value);
        (self.values.len() - 1) as Id
    }

    fn push(&mut self, value: Value) {
        let id = self.add(value);
        self.stack.push(id);
    }

    fn top(&self) -> Result<Id, Stop> {
        let is_mark = self.marks.last() == Some(&self.stack.len());
        self.stack.last().copied().filter(|_| !is_mark).ok_or(DAMAGED)
    }

    fn pop(&mut self) -> Result<Id, Stop> {
        self.top()?;
        self.stack.pop().ok_or(DAMAGED)
    }

    /// Takes the values above a height.
    fn above(&mut self, height: usize) -> Result<Vec<Id>, Stop> {
        let is_free = self.marks.last().is_none_or(|mark| *mark <= height) && height <= self.stack.len();
        if is_free { Ok(self.stack.split_off(height)) } else { Err(DAMAGED) }
    }

    /// Takes the values above the last mark, and the mark.
    fn above_mark(&mut self) -> Result<Vec<Id>, Stop> {
        let mark = self.marks.pop().ok_or(DAMAGED)?;
        self.above(mark)
    }

    /// Makes one value of all above the last mark.
    fn collect(&mut self, make: fn(Vec<Id>) -> Value) -> Result<(), Stop> {
        let items = self.above_mark()?;
        self.push(make(items));
        Ok(())
    }

    fn import(&mut self, global: Global) -> Value {
        self.imports.insert(global.clone());
        Value::Class(global)
    }

    /// Appends to the topmost.
    fn append(&mut self, items: &[Id]) -> Result<(), Stop> {
        let list = self.contents(|| Value::List(Vec::new()))?;
        match &mut self.values[list as usize] {
            Value::List(list) => list.extend(items),
            _ => return Err(DAMAGED),
        }
        Ok(())
    }

    /// Puts keys and values into the topmost.
    fn set_items(&mut self, entries: Vec<(Id, Id)>) -> Result<(), Stop> {
        let dict = self.contents(|| Value::Dict(Vec::new()))?;
        match &mut self.values[dict as usize] {
            Value::Dict(dict) => dict.extend(entries),
            _ => return Err(DAMAGED),
        }
        Ok(())
    }

    /// The topmost, or if it is an object what holds its contents.
    fn contents(&mut self, empty: fn() -> Value) -> Result<Id, Stop> {
        let top = self.top()?;
        match self.value(top) {
            Value::Object(Object { contents: Some(contents), .. }) => return Ok(*contents),
            Value::Object(_) => {}
            _ => return Ok(top),
        }
        let made = self.add(empty());
        if let Value::Object(object) = &mut self.values[top as usize] {
            object.contents = Some(made);
        }
        Ok(made)
    }

    /// Pushes what a call would make: of the plain containers these, of anything else an object.
    fn call(&mut self, class: Id, arguments: Id) -> Result<(), Stop> {
        let first = match self.value(arguments) {
            Value::Tuple(items) => items.first().copied(),
            _ => None,
        };
        let function = match self.value(class) {
            Value::Class(global) => (global.module.as_str(), global.name.as_str()),
            _ => ("", ""),
        };
        match (function, first) {
            (("builtins" | "__builtin__", "set" | "frozenset"), Some(list)) => self.stack.push(list),
            (("builtins" | "__builtin__", "set" | "frozenset"), None) => self.push(Value::List(Vec::new())),
            (("collections", "OrderedDict"), _) => {
                let entries = self.ordered(first)?;
                self.push(Value::Dict(entries));
            }
            _ => self.push(Value::Object(Object { class, arguments, state: None, contents: None })),
        }
        Ok(())
    }

    /// The entries of a list of pairs.
    fn ordered(&mut self, list: Option<Id>) -> Result<Vec<(Id, Id)>, Stop> {
        let Some(list) = list else { return Ok(Vec::new()) };
        let (Value::List(items) | Value::Tuple(items)) = self.value(list) else { return Err(DAMAGED) };
        let pair = |id: &Id| match self.value(*id) {
            Value::List(pair) | Value::Tuple(pair) => <[Id; 2]>::try_from(pair.as_slice()).ok(),
            _ => None,
        };
        // The one thing that is copied: a pickle may give one list to many calls.
        let copied = self.copied + items.len();
        if copied > MAX_INSTRUCTIONS {
            return Err(Stop::Refused("has a pickle that copies one list again and again: refused".into()));
        }
        let entries = items.iter().map(|id| pair(id).map(|[key, value]| (key, value)).ok_or(DAMAGED)).collect();
        self.copied = copied;
        entries
    }

    /// Gives the topmost its attributes. Those of a dictionary are none of its entries: `_metadata` of a state dict.
    fn build(&mut self, state: Id) -> Result<(), Stop> {
        let top = self.top()?;
        if let Value::Object(object) = &mut self.values[top as usize] {
            object.state = Some(state);
        }
        Ok(())
    }
}

/// Keys and values that take turns.
fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>, Stop> {
    let pairs = items.chunks_exact(2);
    if !pairs.remainder().is_empty() {
        return Err(DAMAGED);
    }
    Ok(pairs.map(|pair| (pair[0], pair[1])).collect())
}

/// A place in the memo, in digits or binary.
fn index(opcode: u8, bytes: &[u8]) -> Result<u32, Stop> {
    match opcode {
        b'g' | b'p' => str::from_utf8(bytes).ok().and_then(|digits| digits.parse().ok()).ok_or(DAMAGED),
        _ => Ok(little_endian(bytes) as u32),
    }
}
