//! A position in a token stream, with the small reading steps that all parts of the parser share.

use super::lexer::{Tok, Token};
use crate::fault::ParseError;

#[derive(Clone)]
pub(crate) struct Cursor<'a, 't> {
    tokens: &'t [Token<'a>],
    pub at: usize,
}

impl<'a, 't> Cursor<'a, 't> {
    pub fn new(tokens: &'t [Token<'a>], at: usize) -> Self {
        Cursor { tokens, at }
    }

    pub fn peek(&self) -> Option<Tok<'a>> {
        self.tokens.get(self.at).map(|t| t.tok)
    }

    pub fn peek_second(&self) -> Option<Tok<'a>> {
        self.tokens.get(self.at + 1).map(|t| t.tok)
    }

    /// The line of the next token, or of the last one.
    pub fn line(&self) -> u32 {
        self.tokens.get(self.at).or(self.tokens.last()).map_or(1, |t| t.line)
    }

    pub fn error(&self, message: impl Into<String>) -> ParseError {
        ParseError::new(self.line(), message)
    }

    pub fn next(&mut self) -> Result<Tok<'a>, ParseError> {
        let tok = self.peek().ok_or_else(|| self.error("the text ends in the middle of a statement"))?;
        self.at += 1;
        Ok(tok)
    }

    pub fn take(&mut self, punct: u8) -> bool {
        let found = self.peek() == Some(Tok::Punct(punct));
        self.at += usize::from(found);
        found
    }

    pub fn take_word(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Tok::Word(word));
        self.at += usize::from(found);
        found
    }

    pub fn expect(&mut self, punct: u8) -> Result<(), ParseError> {
        if self.take(punct) {
            return Ok(());
        }
        Err(self.error(format!("expected `{}`, found {}", punct as char, describe(self.peek()))))
    }

    pub fn word(&mut self) -> Result<&'a str, ParseError> {
        match self.peek() {
            Some(Tok::Word(word)) => {
                self.at += 1;
                Ok(word)
            }
            other => Err(self.error(format!("expected a name, found {}", describe(other)))),
        }
    }

    /// An integer with an optional sign, wrapped to 64 bits.
    pub fn integer(&mut self) -> Result<i64, ParseError> {
        let negative = self.take(b'-');
        match self.peek() {
            Some(Tok::Int(value)) => {
                self.at += 1;
                let value = value as i64;
                Ok(if negative { value.wrapping_neg() } else { value })
            }
            other => Err(self.error(format!("expected an integer, found {}", describe(other)))),
        }
    }

    /// Skips to after the `}` that closes a `{` just read.
    pub fn skip_braces(&mut self) -> Result<(), ParseError> {
        let mut depth = 1;
        while depth > 0 {
            match self.next()? {
                Tok::Punct(b'{') => depth += 1,
                Tok::Punct(b'}') => depth -= 1,
                _ => {}
            }
        }
        Ok(())
    }

    /// The line of the token just read.
    pub fn last_line(&self) -> u32 {
        self.tokens.get(self.at.wrapping_sub(1)).map_or(1, |t| t.line)
    }

    /// Skips to the end of the line of the token just read: `.file`, `.loc` and DWARF have no terminator.
    pub fn skip_line(&mut self) {
        let line = self.last_line();
        while self.at < self.tokens.len() && self.tokens[self.at].line == line {
            self.at += 1;
        }
    }
}

pub(crate) fn describe(tok: Option<Tok>) -> String {
    match tok {
        None => "the end of the text".into(),
        Some(Tok::Word(word)) => format!("`{word}`"),
        Some(Tok::Int(value)) => format!("`{value}`"),
        Some(Tok::F32(bits)) => format!("`0f{bits:08X}`"),
        Some(Tok::F64(bits)) => format!("`0d{bits:016X}`"),
        Some(Tok::Str(text)) => format!("\"{text}\""),
        Some(Tok::Punct(c)) => format!("`{}`", c as char),
    }
}
