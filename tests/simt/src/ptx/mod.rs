//! Reading PTX: tokens, module-level declarations, function bodies.

pub(crate) mod body;
pub(crate) mod call;
pub(crate) mod cursor;
pub(crate) mod lexer;
pub(crate) mod module;
pub(crate) mod operand;
