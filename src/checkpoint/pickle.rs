//! A walk over a pickle's instructions that builds nothing: where it ends, what it imports, and that it is no bomb.
//!
//! The reader builds every value, and copies one each time it is memoized or fetched again: it takes over a hundred
//! times a pickle's size, and without bounds where values hold each other's copies. The walk keeps, of each value on
//! the stack, only how many bytes of the pickle went into it. The instructions, of protocols 0 to 5, are those of
//! <https://github.com/python/cpython/blob/main/Lib/pickletools.py>.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

/// The longest pickle that is read. That of a large ResNet with its optimizer takes a megabyte.
pub(super) const MAX_BYTES: usize = 16 << 20;

/// The most instructions. PyTorch's pickles have 35 for a tensor; the reader takes up to 350 bytes for one.
const MAX_INSTRUCTIONS: usize = 2 << 20;

/// The most bytes of a pickle that may be copied. PyTorch's come to five times their size.
const MAX_COPIED: u64 = 64 << 20;

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

/// What pickles name outside themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Named {
    /// Everything that they import, be it used or not.
    pub imports: BTreeSet<Global>,
    /// Whether the class of a module is there with its source, as the legacy layout has it of `torch.save(module)`.
    pub modules: bool,
}

impl Named {
    pub fn extend(&mut self, other: Self) {
        self.imports.extend(other.imports);
        self.modules |= other.modules;
    }
}

/// How a walk ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With the pickle.
    Whole,
    /// Where the bytes do.
    Cut,
    /// At what is no instruction.
    Damaged,
}

/// What a walk has found.
pub(super) struct Scan<'a> {
    pub end: End,
    /// Bytes that it went over.
    pub length: usize,
    /// What it names outside itself.
    pub named: Named,
    result: Option<Value<'a>>,
}

impl Scan<'_> {
    /// The result, where it is an integer that is not negative, written as protocol 2 and later do.
    pub fn number(&self) -> Option<u64> {
        let value = self.result?;
        let binary = matches!(value.opcode, b'J' | b'K' | b'M' | 0x8a) && value.argument.len() <= 8;
        binary.then(|| little_endian(value.argument))
    }
}

/// A value on the stack: the instruction that made it, and the bytes of the pickle that went into it.
#[derive(Clone, Copy, Default)]
struct Value<'a> {
    opcode: u8,
    /// Of a tuple that of its first item.
    argument: &'a [u8],
    size: u64,
    /// Where it was memoized.
    memo: Option<u32>,
    /// Where in the pickle it was made, which tells containers apart.
    place: usize,
}

impl Value<'_> {
    /// The value if it is a string. Escapes stay as they are.
    fn text(&self) -> Option<String> {
        let text = String::from_utf8_lossy(self.argument);
        match self.opcode {
            b'T' | b'U' | b'V' | b'X' | 0x8c | 0x8d => Some(text.into_owned()),
            b'S' => Some(text.trim_matches(['\'', '"']).to_owned()),
            _ => None,
        }
    }

    /// The integer that the value is, or whose digits it is a string of, and whether it is the string.
    fn digits(&self) -> Option<(i64, bool)> {
        let line = || -> Option<i64> { str::from_utf8(self.argument).ok()?.trim_end_matches('L').parse().ok() };
        let signed = |bits: u32| (little_endian(self.argument) << (64 - bits)) as i64 >> (64 - bits);
        let number = match (self.opcode, self.argument.len()) {
            (b'I' | b'L', _) => line(),
            (b'K' | b'M', _) => Some(little_endian(self.argument) as i64),
            (b'J', _) => Some(signed(32)),
            (0x8a, 0) => Some(0),
            (0x8a, bytes @ 1..=8) => Some(signed(8 * bytes as u32)),
            _ => None,
        };
        let text = || self.text().and_then(|text| text.parse::<i64>().ok().filter(|number| number.to_string() == text));
        number.map(|number| (number, false)).or_else(|| Some((text()?, true)))
    }
}

/// What follows an instruction's byte.
#[derive(Clone, Copy)]
enum Argument {
    Bytes(usize),
    /// A length of so many bytes, then as many bytes as it says.
    Counted(usize),
    Lines(usize),
}

/// What an instruction does.
#[derive(Clone, Copy)]
enum Effect {
    Nothing,
    Push,
    /// Makes one value of the topmost.
    Replace(usize),
    /// Makes a reference to something beside the pickle of the topmost.
    Refer,
    /// Puts the topmost into the one below.
    Absorb(usize),
    /// Makes one value of all above the mark.
    Collect,
    /// Puts all above the mark into the one below.
    Extend,
    /// Gives the value below the topmost its state, in the memo too.
    Build,
    Mark,
    Pop,
    PopMark,
    Duplicate,
    Get,
    Put,
    Memoize,
    Global,
    StackGlobal,
    /// As `Global`, and calls it with all above the mark.
    Instance,
    Stop,
}

/// The table of instructions.
fn instruction(opcode: u8) -> Option<(Argument, Effect)> {
    use Argument::{Bytes, Counted, Lines};
    use Effect::*;
    Some(match opcode {
        // Numbers, strings and empty containers.
        b'F' | b'I' | b'L' | b'P' | b'S' | b'V' => (Lines(1), Push),
        b')' | b'N' | b']' | b'}' | 0x88 | 0x89 | 0x8f | 0x97 => (Bytes(0), Push),
        b'K' | 0x82 => (Bytes(1), Push),
        b'M' | 0x83 => (Bytes(2), Push),
        b'J' | 0x84 => (Bytes(4), Push),
        b'G' => (Bytes(8), Push),
        b'C' | b'U' | 0x8a | 0x8c => (Counted(1), Push),
        b'B' | b'T' | b'X' | 0x8b => (Counted(4), Push),
        0x8d | 0x8e | 0x96 => (Counted(8), Push),
        // Containers and calls.
        b'Q' => (Bytes(0), Refer),
        0x85 | 0x98 => (Bytes(0), Replace(1)),
        b'R' | 0x81 | 0x86 => (Bytes(0), Replace(2)),
        0x87 | 0x92 => (Bytes(0), Replace(3)),
        b'd' | b'l' | b'o' | b't' | 0x91 => (Bytes(0), Collect),
        b'a' => (Bytes(0), Absorb(1)),
        b's' => (Bytes(0), Absorb(2)),
        b'e' | b'u' | 0x90 => (Bytes(0), Extend),
        b'b' => (Bytes(0), Build),
        // The stack and the memo.
        b'(' => (Bytes(0), Mark),
        b'0' => (Bytes(0), Pop),
        b'1' => (Bytes(0), PopMark),
        b'2' => (Bytes(0), Duplicate),
        b'g' => (Lines(1), Get),
        b'h' => (Bytes(1), Get),
        b'j' => (Bytes(4), Get),
        b'p' => (Lines(1), Put),
        b'q' => (Bytes(1), Put),
        b'r' => (Bytes(4), Put),
        0x94 => (Bytes(0), Memoize),
        // Imports.
        b'c' => (Lines(2), Global),
        b'i' => (Lines(2), Instance),
        0x93 => (Bytes(0), StackGlobal),
        // Protocol, frame, end.
        0x80 => (Bytes(1), Nothing),
        0x95 => (Bytes(8), Nothing),
        b'.' => (Bytes(0), Stop),
        _ => return None,
    })
}

/// Walks over the pickle that `bytes` begin with.
///
/// # Errors
/// Why it should not be read. A pickle that is cut off or damaged is no error here: the reader stops at the same place.
pub(super) fn scan(bytes: &[u8]) -> Result<Scan<'_>, String> {
    let mut walk = Walk { rest: bytes, ..Walk::default() };
    for _ in 0..MAX_INSTRUCTIONS {
        if let Some(end) = walk.step()? {
            let result = walk.stack.pop().filter(|_| end == End::Whole);
            return Ok(Scan { end, length: bytes.len() - walk.rest.len(), named: walk.named, result });
        }
    }
    Err(format!("has a pickle of more than {MAX_INSTRUCTIONS} instructions: refused"))
}

#[derive(Default)]
struct Walk<'a> {
    rest: &'a [u8],
    stack: Vec<Value<'a>>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Value<'a>>,
    /// Keys of dictionaries that are integers or their digits: where the dictionary was made, the integer, and whether
    /// it is a string.
    keys: HashMap<(usize, i64), bool>,
    copied: u64,
    named: Named,
}

impl<'a> Walk<'a> {
    /// Takes one instruction, if the walk does not end at it.
    fn step(&mut self) -> Result<Option<End>, String> {
        let place = self.rest.len();
        let Some(&[opcode]) = self.bytes(1) else { return Ok(Some(End::Cut)) };
        let Some((argument, effect)) = instruction(opcode) else { return Ok(Some(End::Damaged)) };
        let Some([argument, second]) = self.argument(argument) else { return Ok(Some(End::Cut)) };
        let size = 1 + (argument.len() + second.len()) as u64;
        let mut made = Value { opcode, argument, size, memo: None, place };

        match effect {
            Effect::Nothing => {}
            Effect::Push => self.stack.push(made),
            Effect::Replace(count) => {
                made.size += self.take(self.stack.len().saturating_sub(count));
                self.stack.push(made);
            }
            Effect::Refer => {
                let to = self.stack.pop().unwrap_or_default();
                self.named.modules |= to.opcode == b't' && to.argument == b"module";
                made.size += to.size;
                self.stack.push(made);
            }
            Effect::Collect => {
                let mark = self.marks.pop().unwrap_or_default();
                made.argument = self.stack.get(mark).map_or(&[], |first| first.argument);
                if opcode == b'd' {
                    self.note_keys(place, mark)?;
                }
                made.size += self.take(mark);
                self.stack.push(made);
            }
            Effect::Absorb(count) => {
                let height = self.stack.len().saturating_sub(count);
                self.set_items(opcode, height)?;
                self.absorb(height);
            }
            Effect::Extend => {
                let mark = self.marks.pop().unwrap_or_default();
                self.set_items(opcode, mark)?;
                self.absorb(mark);
            }
            Effect::Build => {
                self.absorb(self.stack.len().saturating_sub(1));
                if let Some(&built) = self.stack.last()
                    && let Some(index) = built.memo
                {
                    self.copy(built)?;
                    self.memo.insert(index, built);
                }
            }
            Effect::Mark => self.marks.push(self.stack.len()),
            Effect::Pop if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            Effect::Pop => drop(self.stack.pop()),
            Effect::PopMark => {
                let mark = self.marks.pop().unwrap_or_default();
                self.stack.truncate(mark);
            }
            Effect::Duplicate => {
                let top = self.stack.last().copied().unwrap_or_default();
                self.copy(top)?;
                self.stack.push(top);
            }
            Effect::Get => {
                let value = self.memo.get(&index(opcode, argument)).copied().unwrap_or_default();
                self.copy(value)?;
                self.stack.push(value);
            }
            Effect::Put => self.put(index(opcode, argument))?,
            Effect::Memoize => self.put(self.memo.len() as u32)?,
            Effect::Global => {
                self.import(String::from_utf8_lossy(argument).into(), String::from_utf8_lossy(second).into());
                self.stack.push(made);
            }
            Effect::Instance => {
                self.import(String::from_utf8_lossy(argument).into(), String::from_utf8_lossy(second).into());
                let mark = self.marks.pop().unwrap_or_default();
                made.size += self.take(mark);
                self.stack.push(made);
            }
            Effect::StackGlobal => {
                let (name, module) = (self.stack.pop().unwrap_or_default(), self.stack.pop().unwrap_or_default());
                let (Some(module_name), Some(name_text)) = (module.text(), name.text()) else {
                    return Err("imports something whose name it computes: refused, nothing was run".into());
                };
                self.import(module_name, name_text);
                made.size += name.size + module.size;
                self.stack.push(made);
            }
            Effect::Stop => return Ok(Some(End::Whole)),
        }
        Ok(None)
    }

    /// The argument, or both lines of it.
    fn argument(&mut self, argument: Argument) -> Option<[&'a [u8]; 2]> {
        match argument {
            Argument::Bytes(count) => Some([self.bytes(count)?, &[]]),
            Argument::Counted(digits) => {
                let count = little_endian(self.bytes(digits)?);
                Some([self.bytes(usize::try_from(count).ok()?)?, &[]])
            }
            Argument::Lines(1) => Some([self.line()?, &[]]),
            Argument::Lines(_) => Some([self.line()?, self.line()?]),
        }
    }

    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(bytes)
    }

    fn line(&mut self) -> Option<&'a [u8]> {
        let end = self.rest.iter().position(|&byte| byte == b'\n')?;
        let line = self.bytes(end)?;
        self.rest = &self.rest[1..];
        Some(line.strip_suffix(b"\r").unwrap_or(line))
    }

    /// Removes the values above a height, and returns their size.
    fn take(&mut self, height: usize) -> u64 {
        self.stack.drain(height.min(self.stack.len())..).map(|value| value.size).sum()
    }

    /// Puts the values above a height into the one below.
    fn absorb(&mut self, height: usize) {
        let size = self.take(height);
        if let Some(below) = self.stack.last_mut() {
            below.size += size;
        }
    }

    /// Notes the keys above a height, if they are put into the dictionary below.
    fn set_items(&mut self, opcode: u8, height: usize) -> Result<(), String> {
        let below = height.checked_sub(1).and_then(|below| self.stack.get(below));
        match below.filter(|_| matches!(opcode, b's' | b'u')) {
            Some(&Value { place, .. }) => self.note_keys(place, height),
            None => Ok(()),
        }
    }

    /// Refuses an integer and its digits as keys of the dictionary made at `place`, which above `height` takes keys and
    /// values: the reader gives both the same name, and keeps one value.
    fn note_keys(&mut self, place: usize, height: usize) -> Result<(), String> {
        for (key, is_text) in self.stack.iter().skip(height).step_by(2).filter_map(Value::digits) {
            if *self.keys.entry((place, key)).or_insert(is_text) != is_text {
                return Err(format!("has the keys {key} and \"{key}\" in one dictionary: rename one of them"));
            }
        }
        Ok(())
    }

    fn put(&mut self, index: u32) -> Result<(), String> {
        let Some(top) = self.stack.last_mut() else { return Ok(()) };
        top.memo = Some(index);
        let top = *top;
        self.memo.insert(index, top);
        self.copy(top)
    }

    fn copy(&mut self, value: Value<'_>) -> Result<(), String> {
        self.copied += value.size;
        if self.copied > MAX_COPIED {
            return Err(format!("has a pickle that copies its values to more than {MAX_COPIED} bytes: refused"));
        }
        Ok(())
    }

    fn import(&mut self, module: String, name: String) {
        self.named.imports.insert(Global { module, name });
    }
}

/// A place in the memo, in digits or binary.
fn index(opcode: u8, argument: &[u8]) -> u32 {
    match opcode {
        b'g' | b'p' => str::from_utf8(argument).ok().and_then(|digits| digits.parse().ok()).unwrap_or_default(),
        _ => little_endian(argument) as u32,
    }
}

/// The little-endian number of at most eight bytes.
fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &digit| number << 8 | u64::from(digit))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Python pickled, and what its own unpickler imports for it; written by `tests/checkpoints/pickles.py`.
    #[derive(serde::Deserialize)]
    struct Original {
        what: String,
        hex: String,
        imports: BTreeSet<String>,
    }

    fn unhex(text: &str) -> Vec<u8> {
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).expect("is hex")).collect()
    }

    #[test]
    fn pythons_own_pickles_end_and_import_what_python_says() {
        let originals: Vec<Original> =
            serde_json::from_str(include_str!("../../tests/checkpoints/fixtures/pickles.json")).expect("parses");
        assert!(originals.len() > 100);
        for Original { what, hex, imports } in originals {
            let pickle = unhex(&hex);
            let scan = scan(&[&pickle, &b"cos\nsystem\n"[..]].concat()).map(|scan| {
                let found: BTreeSet<String> = scan.named.imports.iter().map(Global::to_string).collect();
                (scan.end, scan.length, found)
            });
            assert_eq!(scan, Ok((End::Whole, pickle.len(), imports)), "{what}");
            for cut in (0..pickle.len()).step_by(1 + pickle.len() / 100) {
                assert!(super::scan(&pickle[..cut]).is_ok_and(|scan| scan.end == End::Cut), "{what} cut at {cut}");
            }
        }
    }

    #[test]
    fn hidden_imports_are_found() {
        let imports = |pickle: &[u8]| -> Vec<String> {
            scan(pickle).expect("scans").named.imports.iter().map(Global::to_string).collect()
        };
        assert_eq!(imports(b"cos\nsystem\n(S'x'\ntR0N."), ["os.system"]);
        assert_eq!(imports(b"(S'x'\nios\nsystem\n."), ["os.system"]);
        // The names come from the memo, in another order than they were made, past a value that is thrown away.
        let memo = b"\x80\x04\x8c\x06system\x94\x8c\x02os\x94N00h\x01h\x00\x93.";
        assert_eq!(imports(memo), ["os.system"]);
        assert_eq!(imports(b"\x80\x04(\x8c\x02os\x8c\x06system2001\x8c\x02os\x8c\x06system\x93."), ["os.system"]);
        assert!(scan(b"\x80\x04\x8c\x02os\x8c\x03sys\x85\x93.").is_err(), "a computed name");
    }

    #[test]
    fn numbers_are_told() {
        let number = |pickle: &[u8]| scan(pickle).expect("scans").number();
        assert_eq!(number(b"\x80\x02K\x07."), Some(7));
        assert_eq!(number(b"\x80\x02M\x00\x02."), Some(512));
        assert_eq!(number(b"\x80\x02J\x00\x00\x01\x00."), Some(65536));
        assert_eq!(number(b"\x80\x02]."), None);
        assert_eq!(number(b"\x80\x02K\x07"), None);
    }

    #[test]
    fn copies_and_instructions_are_bounded() {
        // A long name of a class, fetched again and again: the reader would hold each copy.
        let mut names = [b"c", &[b'x'; 100_000][..], b"\ny\nq\0"].concat();
        names.extend(b"h\0".repeat(10_000));
        assert!(scan(&names).is_err_and(|error| error.contains("copies")));
        // Lists of two lists of two lists …
        let mut laughs = b"]q\0".to_vec();
        for level in 0..60u8 {
            laughs.extend([b'(', b'h', level, b'h', level, b'l', b'q', level + 1]);
        }
        assert!(scan(&laughs).is_err_and(|error| error.contains("copies")));
        // An object that grows by its state after it was memoized.
        let mut built = b"}q\0}(U\x01x(".to_vec();
        built.extend(b"K\x01".repeat(100_000));
        built.extend(b"tub");
        built.extend(b"h\0".repeat(1000));
        assert!(scan(&built).is_err_and(|error| error.contains("copies")));
        assert!(scan(&vec![b']'; MAX_INSTRUCTIONS + 1]).is_err_and(|error| error.contains("instructions")));
    }

    #[test]
    fn lengths_beyond_the_end_are_no_pickle() {
        for pickle in
            [&b"\x8b\xff\xff\xff\xffx."[..], b"\x8e\xff\xff\xff\xff\xff\xff\xff\xff.", b"T\xff\xff\xff\x7f.", b"S'x'"]
        {
            assert!(scan(pickle).is_ok_and(|scan| scan.end == End::Cut));
        }
        for nonsense in [&b"tttuuueee000111222RRRbbb\x93"[..], b"((((0000001e", b"g1\nh\x07jxxxxq\0r\0\0\0\0"] {
            let _ = scan(nonsense);
        }
    }
}
