//! Splits PTX text into tokens, each with its line.

use crate::fault::ParseError;

/// One token of PTX.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Tok<'a> {
    /// An identifier, register, opcode or directive: opcodes keep their dots and `::`.
    Word(&'a str),
    /// An integer literal without sign.
    Int(u64),
    /// `0f3F800000`, as bits.
    F32(u32),
    /// `0d3FF0000000000000`, as bits.
    F64(u64),
    /// A string literal, without its quotes.
    Str(&'a str),
    /// Any other character.
    Punct(u8),
}

/// A token and the line (from 1) that it stands on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'a> {
    pub tok: Tok<'a>,
    pub line: u32,
}

/// All tokens of `text`; comments are dropped.
pub(crate) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let bytes = text.as_bytes();
    let (mut at, mut line, mut out) = (0, 1u32, Vec::new());
    while at < bytes.len() {
        let start = at;
        let tok = match bytes[at] {
            b'\n' => {
                line += 1;
                at += 1;
                continue;
            }
            c if c.is_ascii_whitespace() || c == 0 => {
                at += 1;
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at += bytes[at..].iter().position(|&c| c == b'\n').unwrap_or(bytes.len() - at);
                continue;
            }
            b'/' if bytes.get(at + 1) == Some(&b'*') => {
                let end = text[at + 2..].find("*/").ok_or_else(|| ParseError::new(line, "a comment never ends"))?;
                line += bytes[at..at + 2 + end].iter().filter(|&&c| c == b'\n').count() as u32;
                at += end + 4;
                continue;
            }
            b'"' => {
                let end = bytes[at + 1..].iter().position(|&c| c == b'"');
                let end = end.ok_or_else(|| ParseError::new(line, "a string never ends"))?;
                at += end + 2;
                Tok::Str(&text[start + 1..at - 1])
            }
            c if c.is_ascii_digit() => {
                while at < bytes.len() && bytes[at].is_ascii_alphanumeric() {
                    at += 1;
                }
                number(&text[start..at]).ok_or_else(|| {
                    ParseError::new(line, format!("`{}` is not a number that PTX allows", &text[start..at]))
                })?
            }
            c if is_word(c) => {
                while at < bytes.len() {
                    if is_word(bytes[at]) {
                        at += 1;
                    } else if bytes[at..].starts_with(b"::") {
                        at += 2;
                    } else {
                        break;
                    }
                }
                Tok::Word(&text[start..at])
            }
            c if c.is_ascii() => {
                at += 1;
                Tok::Punct(c)
            }
            _ => return Err(ParseError::new(line, "PTX is ASCII text, and this byte is not")),
        };
        out.push(Token { tok, line });
    }
    Ok(out)
}

fn is_word(c: u8) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, b'_' | b'$' | b'.' | b'%')
}

fn number(text: &str) -> Option<Tok<'_>> {
    let lower = text.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0f") {
        return (hex.len() == 8).then(|| u32::from_str_radix(hex, 16).ok().map(Tok::F32))?;
    }
    if let Some(hex) = lower.strip_prefix("0d") {
        return (hex.len() == 16).then(|| u64::from_str_radix(hex, 16).ok().map(Tok::F64))?;
    }
    let digits = lower.strip_suffix('u').unwrap_or(&lower);
    let (digits, radix) = match (digits.strip_prefix("0x"), digits.strip_prefix("0b")) {
        (Some(hex), _) => (hex, 16),
        (_, Some(binary)) => (binary, 2),
        _ if digits.len() > 1 && digits.starts_with('0') => (&digits[1..], 8),
        _ => (digits, 10),
    };
    u64::from_str_radix(digits, radix).ok().map(Tok::Int)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_numbers_and_lines() {
        let all = tokens("@!%p1 ld.global.L2::128B.u32 %r1, [%rd2+-0x10]; // x\nL: mov.f32 %f1, 0f3F800000;").unwrap();
        let toks: Vec<_> = all.iter().map(|t| t.tok).collect();
        assert_eq!(toks[0], Tok::Punct(b'@'));
        assert_eq!(toks[3], Tok::Word("ld.global.L2::128B.u32"));
        assert!(toks.contains(&Tok::Int(16)) && toks.contains(&Tok::F32(0x3F80_0000)));
        assert_eq!(all.last().unwrap().line, 2);
        assert!(tokens("mov.u32 %r1, 12abc;").is_err());
    }
}
