//! From a parsed instruction to an operation. Every modifier is taken by name; one left over is an error.

pub(crate) mod arith;
pub(crate) mod asynchronous;
pub(crate) mod control;
pub(crate) mod convert;
pub(crate) mod float;
pub(crate) mod logic;
pub(crate) mod matrix;
pub(crate) mod memory;
pub(crate) mod scalar;
pub(crate) mod special;

use crate::code::{Class, Op, Place, SINK, Special, TRUE};
use crate::module::Constant;
use crate::ptx::body::Body;
use crate::ptx::operand::Operand;
use scalar::ScalarFn;

/// Lowering errors say what about the instruction is not understood; the caller adds where.
pub(crate) type Lowered<T = ()> = Result<T, String>;

/// Kinds of types.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Sort {
    Bits,
    Unsigned,
    Signed,
    Float,
    Bf16,
    /// `f16x2` and `bf16x2`.
    F16x2,
    Bf16x2,
    Tf32,
    Pred,
}

/// A type as a modifier names it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ty {
    pub sort: Sort,
    pub bits: u32,
}

impl Ty {
    pub fn parse(name: &str) -> Option<Ty> {
        use Sort::*;
        let (sort, bits) = match name {
            "b8" => (Bits, 8),
            "b16" => (Bits, 16),
            "b32" => (Bits, 32),
            "b64" => (Bits, 64),
            "u8" => (Unsigned, 8),
            "u16" => (Unsigned, 16),
            "u32" => (Unsigned, 32),
            "u64" => (Unsigned, 64),
            "s8" => (Signed, 8),
            "s16" => (Signed, 16),
            "s32" => (Signed, 32),
            "s64" => (Signed, 64),
            "f16" => (Float, 16),
            "f32" => (Float, 32),
            "f64" => (Float, 64),
            "bf16" => (Bf16, 16),
            "f16x2" => (F16x2, 32),
            "bf16x2" => (Bf16x2, 32),
            "tf32" => (Tf32, 32),
            "pred" => (Pred, 1),
            _ => return None,
        };
        Some(Ty { sort, bits })
    }

    pub fn is(self, sort: Sort, bits: u32) -> bool {
        self.sort == sort && self.bits == bits
    }

    pub fn integer(self) -> bool {
        matches!(self.sort, Sort::Bits | Sort::Unsigned | Sort::Signed)
    }

    pub fn signed(self) -> bool {
        self.sort == Sort::Signed
    }

    pub fn class(self) -> Class {
        match self.bits {
            1 => Class::Pred,
            64 => Class::Long,
            _ => Class::Word,
        }
    }
}

/// The modifiers of an opcode that have not been understood yet.
pub(crate) struct Mods<'m> {
    left: Vec<&'m str>,
}

impl<'m> Mods<'m> {
    pub fn take(&mut self, name: &str) -> bool {
        let at = self.left.iter().position(|&m| m == name);
        at.is_some_and(|at| {
            self.left.remove(at);
            true
        })
    }

    pub fn one_of(&mut self, names: &[&'static str]) -> Option<&'static str> {
        names.iter().find(|name| self.take(name)).copied()
    }

    /// What stands behind `prefix` in the modifier that begins with it.
    pub fn starting(&mut self, prefix: &str) -> Option<&'m str> {
        let at = self.left.iter().position(|m| m.starts_with(prefix))?;
        self.left.remove(at).strip_prefix(prefix)
    }

    /// The next modifier, if it is a type.
    pub fn try_ty(&mut self) -> Option<Ty> {
        let at = self.left.iter().position(|m| Ty::parse(m).is_some())?;
        Ty::parse(self.left.remove(at))
    }

    pub fn ty(&mut self) -> Lowered<Ty> {
        self.try_ty().ok_or_else(|| "no type among the modifiers".to_string())
    }

    pub fn finish(&self) -> Lowered {
        match self.left.first() {
            None => Ok(()),
            Some(left) => Err(format!("unknown modifier or combination `.{left}`")),
        }
    }
}

/// The operands of an instruction, with a complaint for each wrong one.
pub(crate) struct Operands(pub Vec<Operand>);

impl Operands {
    pub fn count(&self, allowed: std::ops::RangeInclusive<usize>) -> Lowered {
        if allowed.contains(&self.0.len()) {
            return Ok(());
        }
        Err(format!("{} operands where {allowed:?} are expected", self.0.len()))
    }

    pub fn get(&self, index: usize) -> Lowered<&Operand> {
        self.0.get(index).ok_or_else(|| format!("operand {} is missing", index + 1))
    }
}

fn wrong<T>(operand: &Operand, what: &str) -> Lowered<T> {
    Err(format!("{} cannot be {}", what, operand.describe()))
}

const B32: Ty = Ty { sort: Sort::Bits, bits: 32 };

/// Takes modifiers that must be there.
fn require(mods: &mut Mods, names: &[&str]) -> Lowered {
    for name in names {
        if !mods.take(name) {
            return Err(format!("`.{name}` is missing"));
        }
    }
    Ok(())
}

/// A vector of 32-bit registers.
fn words(body: &mut Body, operand: &Operand, count: usize, store: bool) -> Lowered<Vec<u32>> {
    let parts = match operand {
        Operand::Vector(parts) if parts.len() == count => parts.as_slice(),
        other if count == 1 => std::slice::from_ref(other),
        other => return wrong(other, &format!("a vector of {count}")),
    };
    parts.iter().map(|p| Ok(if store { body.src(p, B32)? } else { body.dst(p, B32)? }.reg)).collect()
}

pub(crate) fn sink(class: Class) -> u32 {
    if class == Class::Pred { SINK } else { 0 }
}

impl Body<'_, '_> {
    /// A register that holds the value of a source operand of type `ty`; registers must be exactly as wide.
    pub fn src(&mut self, operand: &Operand, ty: Ty) -> Lowered<Place> {
        if let Operand::Reg(_, bits) = operand
            && *bits != ty.bits
        {
            return wrong(operand, &format!("an operand of {} bits", ty.bits));
        }
        self.loose_src(operand, ty)
    }

    /// As [`Self::src`], where a wider register is allowed too (`cvt`, `st`): only its class counts.
    pub fn loose_src(&mut self, operand: &Operand, ty: Ty) -> Lowered<Place> {
        let class = ty.class();
        let constant = |body: &mut Self, value: u64| {
            Ok(Place { class, reg: body.constant(class, Constant::Bits(value & (u64::MAX >> (64 - ty.bits)))) })
        };
        match operand {
            Operand::Reg(place, _) if place.class == class => Ok(*place),
            Operand::Int(value) if ty.integer() => constant(self, *value as u64),
            Operand::Int(value) if class == Class::Pred => self.predicate(*value != 0),
            Operand::F32(bits) if ty.bits == 32 => constant(self, u64::from(*bits)),
            Operand::F64(bits) if ty.bits == 64 => constant(self, *bits),
            Operand::Special(special) if class != Class::Pred => {
                let d = self.fresh(class, 1);
                self.special(*special, d)?;
                Ok(d)
            }
            Operand::Symbol(var, offset) if ty.bits >= 32 => self.address_of(*var, *offset, class),
            other => wrong(other, &format!("a source operand of type {:?} {}", ty.sort, ty.bits)),
        }
    }

    fn special(&mut self, which: Special, d: Place) -> Lowered {
        if which == Special::Clock64 && d.class != Class::Long {
            return Err("a 64-bit clock needs a 64-bit register".into());
        }
        self.emit(Op::Special { which, d });
        Ok(())
    }

    fn predicate(&mut self, value: bool) -> Lowered<Place> {
        if value {
            return Ok(Place { class: Class::Pred, reg: TRUE });
        }
        let reg = self.constant(Class::Pred, Constant::Bits(0));
        Ok(Place { class: Class::Pred, reg })
    }

    /// The register that a result of type `ty` goes to.
    pub fn dst(&mut self, operand: &Operand, ty: Ty) -> Lowered<Place> {
        match operand {
            Operand::Reg(place, bits) if *bits == ty.bits => Ok(*place),
            Operand::Sink => Ok(Place { class: ty.class(), reg: sink(ty.class()) }),
            other => wrong(other, &format!("a result of {} bits", ty.bits)),
        }
    }

    /// As [`Self::dst`], where the register may be wider than the type (`ld`, `cvt`).
    pub fn loose_dst(&mut self, operand: &Operand, ty: Ty) -> Lowered<(Place, u32)> {
        match operand {
            Operand::Reg(place, bits) if *bits >= ty.bits && *bits > 1 => Ok((*place, *bits)),
            Operand::Sink => Ok((Place { class: ty.class(), reg: sink(ty.class()) }, ty.bits)),
            other => wrong(other, &format!("a result of {} bits", ty.bits)),
        }
    }

    pub fn scalar(&mut self, f: ScalarFn, d: Place, s: Vec<Place>) -> Lowered {
        self.emit(Op::Scalar(Box::new(crate::code::Scalar { f, d, s })));
        Ok(())
    }
}

pub(crate) fn instruction(body: &mut Body, opcode: &str, operands: Vec<Operand>) -> Lowered {
    let mut parts = opcode.split('.');
    let name = parts.next().unwrap_or_default();
    let mut mods = Mods { left: parts.collect() };
    let operands = &Operands(operands);
    let mods = &mut mods;
    match name {
        "add" | "sub" | "mul" | "mad" | "fma" | "div" | "rem" | "min" | "max" | "abs" | "neg" | "mul24" | "mad24"
        | "sad" | "copysign" | "testp" | "rcp" | "sqrt" | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "addc"
        | "subc" | "dp4a" | "dp2a" | "madc" => arith::lower(body, name, mods, operands),
        "and" | "or" | "xor" | "not" | "cnot" | "shl" | "shr" | "shf" | "lop3" | "prmt" | "bfe" | "bfi" | "popc"
        | "clz" | "brev" | "bfind" | "setp" | "set" | "selp" | "slct" | "fns" | "bmsk" | "szext" => {
            logic::lower(body, name, mods, operands)
        }
        "mov" | "cvt" | "cvta" | "isspacep" => convert::lower(body, name, mods, operands),
        "ld" | "ldu" | "st" | "atom" | "red" | "prefetch" | "prefetchu" | "discard" | "applypriority" => {
            memory::lower(body, name, mods, operands)
        }
        "bra" | "brx" | "ret" | "exit" | "trap" | "bar" | "barrier" | "membar" | "fence" | "shfl" | "vote"
        | "match" | "redux" | "activemask" | "nanosleep" | "elect" => control::lower(body, name, mods, operands),
        "mbarrier" | "wgmma" | "mapa" | "setmaxnreg" | "griddepcontrol" => {
            asynchronous::lower(body, name, mods, operands)
        }
        "mma" | "ldmatrix" | "stmatrix" | "cp" => matrix::lower(body, name, mods, operands),
        _ => Err("unknown opcode".into()),
    }
}
