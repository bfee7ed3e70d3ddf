//! Strings and integers, as the instructions write them.

use super::Value;

/// The string of an instruction.
pub(super) fn text(opcode: u8, bytes: &[u8]) -> String {
    match opcode {
        b'V' => unescaped(bytes),
        b'S' => String::from_utf8_lossy(bytes).trim_matches(['\'', '"']).to_owned(),
        _ => String::from_utf8_lossy(bytes).into_owned(),
    }
}

/// What Python's `raw-unicode-escape` stands for: Latin-1, and `\uXXXX` or `\UXXXXXXXX` for all else.
fn unescaped(mut bytes: &[u8]) -> String {
    let mut text = String::new();
    while let Some((&first, rest)) = bytes.split_first() {
        let digits = match (first, rest.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => 0,
        };
        let code = rest.get(1..=digits).filter(|_| digits > 0).and_then(|digits| str::from_utf8(digits).ok());
        let escaped = code.and_then(|code| u32::from_str_radix(code, 16).ok()).and_then(char::from_u32);
        text.push(escaped.unwrap_or(char::from(first)));
        bytes = if escaped.is_some() { &rest[1 + digits..] } else { rest };
    }
    text
}

pub(super) fn integer(opcode: u8, bytes: &[u8]) -> Value {
    const LARGE: Value = Value::Plain("a large integer");
    let signed = |bits: u32| (little_endian(bytes) << (64 - bits)) as i64 >> (64 - bits);
    match (opcode, bytes.len()) {
        // How protocol 0 writes truth values.
        (b'I', _) if matches!(bytes, b"00" | b"01") => Value::Bool(bytes == b"01"),
        (b'I' | b'L', _) => {
            let digits = str::from_utf8(bytes).ok().map(|text| text.trim_end_matches('L'));
            digits.and_then(|digits| digits.parse().ok()).map_or(LARGE, Value::Int)
        }
        (b'K' | b'M', _) => Value::Int(little_endian(bytes) as i64),
        (_, 0) => Value::Int(0),
        (_, count @ 1..=8) => Value::Int(signed(8 * count as u32)),
        _ => LARGE,
    }
}

/// The little-endian number of at most eight bytes.
pub(super) fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &digit| number << 8 | u64::from(digit))
}
