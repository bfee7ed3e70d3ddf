//! Function bodies: scopes, declarations, labels, calls; every instruction goes to `lower` at once.

use std::collections::HashMap;

use super::cursor::Cursor;
use super::lexer::Tok;
use super::module::{Globals, Param, declaration, type_bytes};
use super::operand::{Operand, RegType, Var};
use crate::code::{Address, Class, Inst, Op, Place, TRUE};
use crate::fault::ParseError;
use crate::lower;
use crate::module::Constant;

/// Per-thread memory (`.local`, call parameters) begins at this generic address.
pub(crate) const LOCAL_WINDOW: i64 = 0x0200_0000_0000_0000;
/// Shared memory's generic addresses: its 32-bit address on top of this.
pub(crate) const SHARED_WINDOW: i64 = 0x0300_0000_0000_0000;
/// The entry's parameters.
pub(crate) const PARAM_WINDOW: i64 = 0x0400_0000_0000_0000;

/// Nested scopes of one function.
const DEEPEST_SCOPE: usize = 200;
/// Registers of one class, all inlined calls included.
const MOST_REGISTERS: u32 = 1 << 20;

/// A position in the source: numbers of `.file` (0 if there is none) and lines.
#[derive(Clone, Copy, Default)]
pub(crate) struct Loc {
    pub file: u32,
    pub line: u32,
    /// Where the function was inlined.
    pub caller: Option<(u32, u32)>,
}

#[derive(Default)]
pub(super) struct Scope {
    regs: HashMap<String, (Place, RegType)>,
    /// `%r<100>`: prefix to first register, count, type.
    ranges: HashMap<String, (Place, u32, RegType)>,
    pub(super) vars: HashMap<String, Var>,
    labels: HashMap<String, u32>,
    tables: HashMap<String, Vec<String>>,
    /// Branches to labels not seen yet.
    pending: Vec<Pending>,
}

struct Pending {
    name: String,
    inst: usize,
    slot: usize,
    line: u32,
}

/// A function's code while it is being read.
pub(crate) struct Body<'a, 't> {
    pub(super) globals: &'t Globals<'a, 't>,
    pub(super) scopes: Vec<Scope>,
    pub code: Vec<Inst>,
    /// PTX line and `.loc` of each instruction.
    pub lines: Vec<(u32, Loc)>,
    pub registers: [u32; 3],
    constants: HashMap<(Class, Constant), u32>,
    pub shared_end: i64,
    pub dynamic_align: i64,
    pub local_bytes: i64,
    pub(super) loc: Loc,
    /// Where `ret` goes in an inlined function: jumps to be patched.
    pub(super) returns: Vec<Vec<usize>>,
    pub line: u32,
    pub(super) guard: (u32, bool),
}

impl<'a, 't> Body<'a, 't> {
    /// Reads the body of an entry that starts at token `at`.
    pub fn entry(globals: &'t Globals<'a, 't>, params: &[Param], at: usize) -> Result<Self, ParseError> {
        let mut body = Body {
            globals,
            scopes: vec![Scope::default()],
            code: Vec::new(),
            lines: Vec::new(),
            // Predicates: always true, and the sink; word and long: the sink.
            registers: [2, 1, 1],
            constants: HashMap::new(),
            shared_end: globals.static_shared,
            dynamic_align: globals.dynamic_align,
            local_bytes: 0,
            loc: Loc::default(),
            returns: Vec::new(),
            line: 0,
            guard: (TRUE, false),
        };
        let mut offset = 0;
        for param in params {
            offset = round_up(offset, param.align as i64);
            body.scopes[0].vars.insert(param.name.clone(), Var::Param(offset));
            offset += param.bytes as i64;
        }
        let mut cursor = Cursor::new(globals.tokens, at);
        body.block(&mut cursor)?;
        body.emit(Op::Exit);
        Ok(body)
    }

    pub fn constants(&self) -> Vec<(Class, u32, Constant)> {
        self.constants.iter().map(|(&(class, constant), &reg)| (class, reg, constant)).collect()
    }

    /// Reads statements up to the `}` that ends the innermost scope.
    pub(super) fn block(&mut self, cursor: &mut Cursor<'a, 't>) -> Result<(), ParseError> {
        loop {
            self.line = cursor.line();
            if cursor.take(b'}') {
                return self.close_scope();
            } else if cursor.take(b'{') {
                if self.scopes.len() > DEEPEST_SCOPE {
                    return Err(cursor.error("scopes nest too deep"));
                }
                self.scopes.push(Scope::default());
                self.block(cursor)?;
            } else if cursor.take(b';') {
            } else if cursor.peek() == Some(Tok::Punct(b'@')) {
                self.instruction(cursor)?;
            } else if let Some(Tok::Word(word)) = cursor.peek() {
                if cursor.peek_second() == Some(Tok::Punct(b':')) {
                    cursor.at += 2;
                    self.label(word, cursor)?;
                } else if word.starts_with('.') {
                    cursor.at += 1;
                    self.directive(word, cursor)?;
                } else {
                    self.instruction(cursor)?;
                }
            } else {
                return Err(cursor.error(format!("unexpected {}", super::cursor::describe(cursor.peek()))));
            }
        }
    }

    fn label(&mut self, name: &str, cursor: &mut Cursor<'a, 't>) -> Result<(), ParseError> {
        if cursor.take_word(".branchtargets") {
            let mut targets = vec![cursor.word()?.to_string()];
            while cursor.take(b',') {
                targets.push(cursor.word()?.to_string());
            }
            self.scope().tables.insert(name.into(), targets);
            return cursor.expect(b';');
        }
        let pc = self.code.len() as u32;
        if self.scope().labels.insert(name.into(), pc).is_some() {
            return Err(cursor.error(format!("label `{name}` is there twice")));
        }
        Ok(())
    }

    fn close_scope(&mut self) -> Result<(), ParseError> {
        let scope = self.scopes.pop().unwrap_or_default();
        for pending in scope.pending {
            if let Some(&target) = scope.labels.get(&pending.name) {
                match &mut self.code[pending.inst].op {
                    Op::Bra { target: t } => *t = target,
                    Op::BraTable { targets, .. } => targets[pending.slot] = target,
                    _ => return Err(ParseError::new(pending.line, "a branch was lost")),
                }
            } else if let Some(outer) = self.scopes.last_mut() {
                outer.pending.push(pending);
            } else {
                return Err(ParseError::new(pending.line, format!("no label `{}` is in scope", pending.name)));
            }
        }
        Ok(())
    }

    fn scope(&mut self) -> &mut Scope {
        if self.scopes.is_empty() {
            self.scopes.push(Scope::default());
        }
        let last = self.scopes.len() - 1;
        &mut self.scopes[last]
    }

    fn directive(&mut self, word: &str, cursor: &mut Cursor<'a, 't>) -> Result<(), ParseError> {
        match word {
            ".reg" => self.registers_declared(cursor),
            ".local" | ".param" => {
                loop {
                    let var = declaration(cursor)?;
                    let at = self.local(var.bytes, var.align);
                    self.scope().vars.insert(var.name, Var::Local(at));
                    if !cursor.take(b',') {
                        break;
                    }
                }
                cursor.expect(b';')
            }
            ".shared" => {
                let var = declaration(cursor)?;
                let place = if var.bytes == 0 {
                    self.dynamic_align = self.dynamic_align.max(var.align as i64);
                    Var::DynamicShared
                } else {
                    let at = round_up(self.shared_end, var.align as i64);
                    self.shared_end = at + var.bytes as i64;
                    Var::Shared(at)
                };
                self.scope().vars.insert(var.name, place);
                cursor.expect(b';')
            }
            ".loc" => {
                // `.loc file line column, function_name name, inlined_at file line column`
                let line = cursor.last_line();
                self.loc = Loc { file: cursor.integer()? as u32, line: cursor.integer()? as u32, caller: None };
                cursor.integer()?;
                while cursor.peek().is_some() && cursor.line() == line {
                    if cursor.next()? == Tok::Word("inlined_at") {
                        self.loc.caller = Some((cursor.integer()? as u32, cursor.integer()? as u32));
                    }
                }
                Ok(())
            }
            ".pragma" => {
                while !cursor.take(b';') {
                    cursor.next()?;
                }
                Ok(())
            }
            ".file" => {
                cursor.skip_line();
                Ok(())
            }
            other => Err(cursor.error(format!("unknown directive `{other}` in a function"))),
        }
    }

    /// Space in each thread's memory.
    fn local(&mut self, bytes: usize, align: usize) -> i64 {
        let at = round_up(self.local_bytes, align.max(1) as i64);
        self.local_bytes = at + bytes as i64;
        at
    }

    fn registers_declared(&mut self, cursor: &mut Cursor<'a, 't>) -> Result<(), ParseError> {
        let ty = cursor.word()?;
        let (class, bits) = if ty == ".pred" {
            (Class::Pred, 1)
        } else {
            match type_bytes(ty) {
                Some(8) => (Class::Long, 64),
                Some(bytes) => (Class::Word, 8 * bytes as u32),
                None => return Err(cursor.error(format!("registers of type `{ty}` are not supported"))),
            }
        };
        loop {
            let name = cursor.word()?.to_string();
            if cursor.take(b'<') {
                let count = cursor.integer()?;
                if !(0..i64::from(MOST_REGISTERS - self.registers[class as usize])).contains(&count) {
                    return Err(cursor.error(format!("`{name}<{count}>`: more registers than are supported")));
                }
                let count = count as u32;
                cursor.expect(b'>')?;
                let first = self.fresh(class, count);
                self.scope().ranges.insert(name, (first, count, bits));
            } else {
                let place = self.fresh(class, 1);
                self.scope().regs.insert(name, (place, bits));
            }
            if !cursor.take(b',') {
                return cursor.expect(b';');
            }
        }
    }

    /// `count` new registers; returns the first.
    pub fn fresh(&mut self, class: Class, count: u32) -> Place {
        let next = &mut self.registers[class as usize];
        let reg = *next;
        *next += count;
        Place { class, reg }
    }

    /// The register that holds a constant.
    pub fn constant(&mut self, class: Class, constant: Constant) -> u32 {
        if let Some(&reg) = self.constants.get(&(class, constant)) {
            return reg;
        }
        let reg = self.fresh(class, 1).reg;
        self.constants.insert((class, constant), reg);
        reg
    }

    /// Adds an instruction under the current guard.
    pub fn emit(&mut self, op: Op) {
        self.code.push(Inst { op, guard: self.guard.0, flip: self.guard.1, tracked: false });
        self.lines.push((self.line, self.loc));
    }

    /// Adds a branch to a label, or to labels of a table.
    pub fn branch(&mut self, name: &str) {
        let (inst, line) = (self.code.len(), self.line);
        self.scope().pending.push(Pending { name: name.into(), inst, slot: 0, line });
        self.emit(Op::Bra { target: u32::MAX });
    }

    pub fn branch_table(&mut self, index: u32, name: &str) -> Result<(), String> {
        let table = self.scopes.iter().rev().find_map(|s| s.tables.get(name)).cloned();
        let table = table.ok_or_else(|| format!("no `.branchtargets` named `{name}` before it"))?;
        let (inst, line) = (self.code.len(), self.line);
        for (slot, target) in table.iter().enumerate() {
            self.scope().pending.push(Pending { name: target.clone(), inst, slot, line });
        }
        self.emit(Op::BraTable { index, targets: vec![u32::MAX; table.len()].into() });
        Ok(())
    }

    /// `ret`: the end of the thread, or of the inlined call.
    pub fn ret(&mut self) {
        match self.returns.last_mut() {
            None => self.emit(Op::Exit),
            Some(returns) => {
                returns.push(self.code.len());
                self.emit(Op::Bra { target: u32::MAX });
            }
        }
    }

    fn instruction(&mut self, cursor: &mut Cursor<'a, 't>) -> Result<(), ParseError> {
        self.guard = (TRUE, false);
        if cursor.take(b'@') {
            let flip = cursor.take(b'!');
            let name = cursor.word()?;
            match self.register(name) {
                Some((Place { class: Class::Pred, reg }, _)) => self.guard = (reg, flip),
                _ => return Err(cursor.error(format!("the guard `{name}` is no predicate register"))),
            }
        }
        let line = cursor.line();
        self.line = line;
        let opcode = cursor.word()?;
        if opcode == "call" || opcode.starts_with("call.") {
            return self.call(opcode, cursor);
        }
        let mut operands = Vec::new();
        if !cursor.take(b';') {
            loop {
                operands.push(self.operand(cursor)?);
                if cursor.take(b';') {
                    break;
                }
                cursor.expect(b',')?;
            }
        }
        lower::instruction(self, opcode, operands)
            .map_err(|message| ParseError::new(line, format!("`{opcode}`: {message}")))?;
        self.guard = (TRUE, false);
        Ok(())
    }

    fn operand(&mut self, cursor: &mut Cursor<'a, 't>) -> Result<Operand, ParseError> {
        if cursor.take(b'{') {
            let mut parts = Vec::new();
            while !cursor.take(b'}') {
                parts.push(self.simple(cursor)?);
                cursor.take(b',');
            }
            return Ok(Operand::Vector(parts));
        }
        if cursor.take(b'[') {
            return self.memory(cursor);
        }
        if cursor.take(b'!') {
            let name = cursor.word()?;
            return match self.register(name) {
                Some((Place { class: Class::Pred, reg }, _)) => Ok(Operand::NotPred(reg)),
                _ => Err(cursor.error(format!("`!{name}`: not a predicate register"))),
            };
        }
        let first = self.simple(cursor)?;
        if cursor.take(b'|') {
            let second = self.simple(cursor)?;
            return Ok(Operand::Pair(Box::new(first), Box::new(second)));
        }
        Ok(first)
    }

    fn simple(&mut self, cursor: &mut Cursor<'a, 't>) -> Result<Operand, ParseError> {
        Ok(match cursor.peek() {
            Some(Tok::Punct(b'-')) | Some(Tok::Int(_)) => Operand::Int(cursor.integer()?),
            Some(Tok::F32(bits)) => {
                cursor.at += 1;
                Operand::F32(bits)
            }
            Some(Tok::F64(bits)) => {
                cursor.at += 1;
                Operand::F64(bits)
            }
            Some(Tok::Word("_")) => {
                cursor.at += 1;
                Operand::Sink
            }
            Some(Tok::Word(word)) => {
                cursor.at += 1;
                if let Some((place, bits)) = self.register(word) {
                    Operand::Reg(place, bits)
                } else if let Some(special) = super::operand::special(word) {
                    Operand::Special(special)
                } else if word.starts_with('%') {
                    return Err(cursor.error(format!("register `{word}` is not declared or not known")));
                } else if let Some(var) = self.var(word) {
                    let offset = if matches!(cursor.peek(), Some(Tok::Punct(b'+' | b'-'))) {
                        cursor.take(b'+');
                        cursor.integer()?
                    } else {
                        0
                    };
                    Operand::Symbol(var, offset)
                } else {
                    Operand::Name(word.into())
                }
            }
            other => return Err(cursor.error(format!("expected an operand, found {}", super::cursor::describe(other)))),
        })
    }

    /// An address, after its `[`.
    fn memory(&mut self, cursor: &mut Cursor<'a, 't>) -> Result<Operand, ParseError> {
        let (mut var, mut base, mut offset) = (None, None, 0);
        match self.simple(cursor)? {
            Operand::Reg(place, _) if place.class != Class::Pred => base = Some(place),
            Operand::Symbol(symbol, more) => {
                var = Some(symbol);
                (base, offset) = self.symbol_address(symbol, more);
            }
            Operand::Int(value) => offset = value,
            other => return Err(cursor.error(format!("an address cannot be {}", other.describe()))),
        }
        if matches!(cursor.peek(), Some(Tok::Punct(b'+' | b'-'))) {
            cursor.take(b'+');
            offset = offset.wrapping_add(cursor.integer()?);
        }
        if cursor.take(b',') {
            let coordinates = match self.operand(cursor)? {
                Operand::Vector(parts) => parts,
                other => return Err(cursor.error(format!("coordinates cannot be {}", other.describe()))),
            };
            cursor.expect(b']')?;
            return Ok(Operand::Tensor(Address { base, offset }, coordinates));
        }
        cursor.expect(b']')?;
        Ok(Operand::Memory(Address { base, offset }, var))
    }

    /// A variable's address in its own space, as a base register and an offset.
    pub fn symbol_address(&mut self, var: Var, offset: i64) -> (Option<Place>, i64) {
        let long = |reg| Some(Place { class: Class::Long, reg });
        match var {
            Var::Shared(at) => (None, at.wrapping_add(offset)),
            Var::Param(at) => (None, (PARAM_WINDOW + at).wrapping_add(offset)),
            Var::Local(at) => (None, (LOCAL_WINDOW + at).wrapping_add(offset)),
            Var::DynamicShared => (long(self.constant(Class::Long, Constant::DynamicShared(0))), offset),
            Var::Module(index) => (long(self.constant(Class::Long, Constant::Module(index, 0))), offset),
        }
    }

    fn register(&self, name: &str) -> Option<(Place, RegType)> {
        let prefix = name.trim_end_matches(|c: char| c.is_ascii_digit());
        let number: Option<u32> = name[prefix.len()..].parse().ok();
        for scope in self.scopes.iter().rev() {
            if let Some(&found) = scope.regs.get(name) {
                return Some(found);
            }
            if let (Some(&(first, count, bits)), Some(number)) = (scope.ranges.get(prefix), number)
                && number < count
            {
                return Some((Place { class: first.class, reg: first.reg + number }, bits));
            }
        }
        None
    }

    pub(super) fn var(&self, name: &str) -> Option<Var> {
        let local = self.scopes.iter().rev().find_map(|s| s.vars.get(name)).copied();
        local.or_else(|| self.globals.by_name.get(name).copied())
    }
}

pub(crate) fn round_up(value: i64, to: i64) -> i64 {
    (value + to - 1) / to * to
}
