//! Module-level PTX: directives, variables, entries and functions.

use std::collections::HashMap;

use super::body::Body;
use super::cursor::{Cursor, describe};
use super::lexer::{Tok, Token, tokens};
use crate::fault::ParseError;
use crate::flow::finish;
use crate::module::{Entry, Limits, ModuleVar};

/// A `.func`, kept as tokens: each call parses its body anew, in place.
pub(crate) struct Function {
    /// Names, sizes and alignments of its return values and parameters.
    pub returns: Vec<Param>,
    pub params: Vec<Param>,
    /// The token after the body's `{`; none if only declared.
    pub body: Option<usize>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Param {
    pub name: String,
    pub bytes: usize,
    pub align: usize,
}

/// What function bodies can refer to.
#[derive(Default)]
pub(crate) struct Globals<'a, 't> {
    pub tokens: &'t [Token<'a>],
    pub vars: Vec<ModuleVar>,
    pub by_name: HashMap<String, super::operand::Var>,
    pub functions: HashMap<String, Function>,
    pub static_shared: i64,
    pub dynamic_align: i64,
}

/// Everything that a module's text says.
pub(crate) struct Parsed {
    pub vars: Vec<ModuleVar>,
    pub entries: Vec<(String, Entry)>,
}

/// Shared addresses start here, as they do on devices that keep 1 KiB for the system: null stays invalid.
pub(crate) const SHARED_BASE: i64 = 0x400;

/// Bytes of the largest variable that is taken seriously.
const LARGEST: usize = 1 << 28;

pub(crate) fn parse(text: &str) -> Result<Parsed, ParseError> {
    let tokens = tokens(text)?;
    let mut globals = Globals { tokens: &tokens, static_shared: SHARED_BASE, dynamic_align: 16, ..Globals::default() };
    let mut cursor = Cursor::new(&tokens, 0);
    let mut files = HashMap::new();
    let mut entries = Vec::new();
    while cursor.peek().is_some() {
        let word = cursor.word()?;
        match word {
            ".version" | ".target" | ".address_size" => cursor.skip_line(),
            ".file" => {
                let number = cursor.integer()?;
                if let Tok::Str(path) = cursor.next()? {
                    files.insert(number as u32, path.to_string());
                }
                // Perhaps a time and a size.
                while cursor.take(b',') {
                    cursor.integer()?;
                }
            }
            ".section" => {
                cursor.word()?;
                cursor.expect(b'{')?;
                cursor.skip_braces()?;
            }
            ".visible" | ".extern" | ".weak" | ".common" => {}
            ".entry" => {
                let name = cursor.word()?.to_string();
                let params = if cursor.take(b'(') { param_list(&mut cursor)? } else { Vec::new() };
                let limits = limits(&mut cursor)?;
                cursor.expect(b'{')?;
                entries.push((name, params, limits, cursor.at));
                cursor.skip_braces()?;
            }
            ".func" => {
                let (name, function, end) = function(cursor.clone())?;
                cursor = Cursor::new(&tokens, end);
                let declared = globals.functions.get(&name).is_some_and(|f| f.body.is_some());
                if !declared {
                    globals.functions.insert(name, function);
                }
            }
            ".global" | ".const" | ".shared" => module_var(&mut cursor, word, &mut globals)?,
            ".pragma" => {
                while !cursor.take(b';') {
                    cursor.next()?;
                }
            }
            other => return Err(cursor.error(format!("unknown directive `{other}`"))),
        }
    }
    let mut lowered = Vec::new();
    for (name, params, limits, at) in entries {
        let body = Body::entry(&globals, &params, at)?;
        let entry = finish(body, &name, params, limits, &files)?;
        lowered.push((name, entry));
    }
    Ok(Parsed { vars: globals.vars, entries: lowered })
}

/// `(ret) name (params) directives { body }` or `;`; returns also the token after it.
fn function(mut cursor: Cursor) -> Result<(String, Function, usize), ParseError> {
    let returns = if cursor.take(b'(') { param_list(&mut cursor)? } else { Vec::new() };
    let name = cursor.word()?.to_string();
    let params = if cursor.take(b'(') { param_list(&mut cursor)? } else { Vec::new() };
    limits(&mut cursor)?;
    let mut body = None;
    if !cursor.take(b';') {
        cursor.expect(b'{')?;
        body = Some(cursor.at);
        cursor.skip_braces()?;
    }
    Ok((name, Function { returns, params, body }, cursor.at))
}

/// `.maxntid 256, 1, 1` and the like.
fn limits(cursor: &mut Cursor) -> Result<Limits, ParseError> {
    let mut limits = Limits::default();
    let number = |cursor: &mut Cursor| cursor.integer().map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    while let Some(Tok::Word(word)) = cursor.peek() {
        match word {
            ".maxntid" | ".reqntid" => {
                cursor.at += 1;
                let mut threads = cursor.integer()?;
                while cursor.take(b',') {
                    threads = threads.saturating_mul(cursor.integer()?);
                }
                limits.threads = Some((u32::try_from(threads).unwrap_or(u32::MAX), word == ".reqntid"));
            }
            ".minnctapersm" | ".maxnctapersm" => {
                cursor.at += 1;
                let blocks = number(cursor)?;
                if word == ".minnctapersm" {
                    limits.blocks_at_once = Some(blocks);
                }
            }
            ".maxnreg" => {
                cursor.at += 1;
                limits.registers = Some(number(cursor)?);
            }
            ".reqnctapercluster" => {
                cursor.at += 1;
                let mut shape = [number(cursor)?, 1, 1];
                for axis in 1..3 {
                    if cursor.take(b',') {
                        shape[axis] = number(cursor)?;
                    }
                }
                limits.cluster = Some(shape);
            }
            ".maxclusterrank" => {
                cursor.at += 1;
                limits.blocks_in_cluster = Some(number(cursor)?);
            }
            // That the kernel must be launched in clusters: `.reqnctapercluster` says of how many blocks.
            ".explicitcluster" | ".noreturn" => cursor.at += 1,
            ".pragma" => {
                cursor.at += 1;
                cursor.next()?;
                cursor.expect(b';')?;
            }
            other => return Err(cursor.error(format!("unknown directive `{other}` on a function"))),
        }
    }
    Ok(limits)
}

fn param_list(cursor: &mut Cursor) -> Result<Vec<Param>, ParseError> {
    let mut params = Vec::new();
    while !cursor.take(b')') {
        if !cursor.take_word(".param") {
            return Err(cursor.error("expected `.param`: parameters in registers are not supported"));
        }
        params.push(declaration(cursor)?);
        cursor.take(b',');
    }
    Ok(params)
}

/// The bytes of a fundamental type, `.pred` aside.
pub(crate) fn type_bytes(ty: &str) -> Option<usize> {
    Some(match ty.strip_prefix('.').unwrap_or(ty) {
        "b8" | "u8" | "s8" => 1,
        "b16" | "u16" | "s16" | "f16" | "bf16" => 2,
        "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" => 4,
        "b64" | "u64" | "s64" | "f64" => 8,
        _ => return None,
    })
}

/// `.align 8 .b8 name[48]`, after the state space: name, size (0 for `[]`), alignment.
pub(crate) fn declaration(cursor: &mut Cursor) -> Result<Param, ParseError> {
    let (mut align, mut vector) = (None, 1);
    loop {
        let word = cursor.word()?;
        match word {
            ".align" => align = Some(cursor.integer()? as usize),
            ".v2" => vector = 2,
            ".v4" => vector = 4,
            ".ptr" => {
                // `.ptr .global .align 4`: what the pointer points to; a promise about the caller.
                while matches!(cursor.peek(), Some(Tok::Word(".global" | ".const" | ".local" | ".shared"))) {
                    cursor.at += 1;
                }
                if cursor.take_word(".align") {
                    cursor.integer()?;
                }
            }
            ".attribute" => {
                return Err(cursor.error("`.attribute` on a variable is not supported"));
            }
            ty => {
                let bytes =
                    type_bytes(ty).ok_or_else(|| cursor.error(format!("unknown type or directive `{ty}`")))? * vector;
                if cursor.take_word(".ptr") {
                    while matches!(cursor.peek(), Some(Tok::Word(".global" | ".const" | ".local" | ".shared"))) {
                        cursor.at += 1;
                    }
                    if cursor.take_word(".align") {
                        cursor.integer()?;
                    }
                }
                let name = cursor.word()?.to_string();
                let mut total = bytes;
                while cursor.take(b'[') {
                    let empty = cursor.peek() == Some(Tok::Punct(b']'));
                    let count = if empty { 0 } else { cursor.integer()? };
                    let count = usize::try_from(count).ok();
                    total = count
                        .and_then(|count| total.checked_mul(count))
                        .filter(|&t| t <= LARGEST)
                        .ok_or_else(|| cursor.error(format!("`{name}` has a size that no device could hold")))?;
                    cursor.expect(b']')?;
                }
                let align = align.unwrap_or(bytes);
                if !align.is_power_of_two() || align > LARGEST {
                    return Err(
                        cursor.error(format!("`{name}` has alignment {align}: not a power of two, or too large"))
                    );
                }
                return Ok(Param { name, bytes: total, align });
            }
        }
    }
}

fn module_var(cursor: &mut Cursor, space: &str, globals: &mut Globals) -> Result<(), ParseError> {
    let start = cursor.clone();
    let var = declaration(cursor)?;
    let place = match space {
        ".shared" if var.bytes == 0 => {
            globals.dynamic_align = globals.dynamic_align.max(var.align as i64);
            super::operand::Var::DynamicShared
        }
        ".shared" => {
            let at = (globals.static_shared + var.align as i64 - 1) & -(var.align as i64);
            globals.static_shared = at + var.bytes as i64;
            super::operand::Var::Shared(at)
        }
        _ => {
            let element = element_bytes(start)?;
            let contents = if cursor.take(b'=') { initialiser(cursor, element, var.bytes)? } else { Vec::new() };
            let contents = if contents.is_empty() { vec![0; var.bytes] } else { contents };
            globals.vars.push(ModuleVar {
                name: var.name.clone(),
                align: var.align,
                contents,
                constant: space == ".const",
            });
            super::operand::Var::Module(globals.vars.len() - 1)
        }
    };
    globals.by_name.insert(var.name, place);
    cursor.expect(b';')
}

fn element_bytes(mut cursor: Cursor) -> Result<usize, ParseError> {
    loop {
        match cursor.next()? {
            Tok::Word(word) => {
                if let Some(bytes) = type_bytes(word) {
                    return Ok(bytes);
                }
            }
            Tok::Int(_) => {}
            other => return Err(cursor.error(format!("unexpected {} in a declaration", describe(Some(other))))),
        }
    }
}

/// `{1, 2, {3, 4}}` or one value, as little-endian bytes.
fn initialiser(cursor: &mut Cursor, element: usize, total: usize) -> Result<Vec<u8>, ParseError> {
    let (mut out, mut depth) = (Vec::with_capacity(total), 0);
    loop {
        if cursor.take(b'{') {
            depth += 1;
            continue;
        }
        let negative = cursor.take(b'-');
        let bits = match cursor.next()? {
            Tok::Int(value) if negative => value.wrapping_neg(),
            Tok::Int(value) => value,
            Tok::F32(bits) => u64::from(bits),
            Tok::F64(bits) => bits,
            other => {
                return Err(cursor.error(format!("{} in an initialiser is not supported", describe(Some(other)))));
            }
        };
        out.extend_from_slice(&bits.to_le_bytes()[..element]);
        while depth > 0 && cursor.take(b'}') {
            depth -= 1;
        }
        cursor.take(b',');
        if depth == 0 {
            break;
        }
    }
    if out.len() > total {
        return Err(cursor.error("more initial values than the variable has elements"));
    }
    out.resize(total, 0);
    Ok(out)
}
