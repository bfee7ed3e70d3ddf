//! Calls: the function's body, in place.

use super::body::{Body, Scope};
use super::cursor::Cursor;
use super::operand::Var;
use crate::code::{Op, TRUE};
use crate::fault::ParseError;

/// Calls nest at most this deep; recursion cannot be run in place.
const DEEPEST_CALL: usize = 64;

impl<'a, 't> Body<'a, 't> {
    /// `call.uni (results), name, (arguments);`: the function's body, in place.
    pub fn call(&mut self, opcode: &str, cursor: &mut Cursor<'a, 't>) -> Result<(), ParseError> {
        let line = cursor.line();
        if !matches!(opcode, "call" | "call.uni") {
            return Err(cursor.error(format!("`{opcode}`: unknown modifier of call")));
        }
        let list = |body: &Self, cursor: &mut Cursor<'a, 't>| -> Result<Vec<Var>, ParseError> {
            let mut vars = Vec::new();
            while !cursor.take(b')') {
                let name = cursor.word()?;
                vars.push(body.var(name).ok_or_else(|| {
                    cursor.error(format!("`{opcode}`: argument `{name}` is no `.param` variable in scope"))
                })?);
                cursor.take(b',');
            }
            Ok(vars)
        };
        let results = if cursor.take(b'(') { list(self, cursor)? } else { Vec::new() };
        cursor.take(b',');
        let name = cursor.word()?;
        let arguments = if cursor.take(b',') && cursor.take(b'(') { list(self, cursor)? } else { Vec::new() };
        if !cursor.take(b';') {
            return Err(ParseError::new(line, format!("`{opcode}`: a call through a pointer is not supported")));
        }
        let globals = self.globals;
        let function = globals.functions.get(name);
        let (function, at) = function.and_then(|f| Some((f, f.body?))).ok_or_else(|| {
            ParseError::new(line, format!("`{opcode}`: `{name}` has no body in this module (a pointer, or external)"))
        })?;
        if function.params.len() != arguments.len() || function.returns.len() != results.len() {
            return Err(ParseError::new(line, format!("`{opcode}`: `{name}` takes other arguments")));
        }
        if self.returns.len() >= DEEPEST_CALL {
            return Err(ParseError::new(line, format!("`{opcode}`: calls of `{name}` nest too deep (recursion?)")));
        }
        let mut scope = Scope::default();
        let names = function.params.iter().chain(&function.returns).map(|p| p.name.clone());
        scope.vars = names.zip(arguments.into_iter().chain(results)).collect();
        let guard = std::mem::replace(&mut self.guard, (TRUE, false));
        let skip = (guard.0 != TRUE).then(|| {
            self.guard = (guard.0, !guard.1);
            self.emit(Op::Bra { target: u32::MAX });
            self.guard = (TRUE, false);
            self.code.len() - 1
        });
        let outer = std::mem::replace(&mut self.scopes, vec![scope]);
        let loc = self.loc;
        self.returns.push(Vec::new());
        self.block(&mut Cursor::new(globals.tokens, at))?;
        self.scopes = outer;
        self.loc = loc;
        let end = self.code.len() as u32;
        for at in self.returns.pop().into_iter().flatten().chain(skip) {
            self.code[at].op = Op::Bra { target: end };
        }
        // A place for the returns to meet, whatever follows.
        self.emit(Op::Nop);
        Ok(())
    }
}
