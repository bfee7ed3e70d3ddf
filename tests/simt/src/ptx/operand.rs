//! Operands as they are written, with names resolved.

use crate::code::{Address, Place, Special};

/// Where a variable lives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Var {
    /// Statically sized shared memory, at this shared address.
    Shared(i64),
    /// `extern .shared`: behind the static part.
    DynamicShared,
    /// A parameter of the entry, at this offset.
    Param(i64),
    /// Memory of one thread, at this offset: `.local`, and parameters of calls.
    Local(i64),
    /// A variable of the module, by its index.
    Module(usize),
}

/// An operand of an instruction.
#[derive(Clone, Debug)]
pub(crate) enum Operand {
    Reg(Place, RegType),
    /// A predicate with `!`.
    NotPred(u32),
    Int(i64),
    F32(u32),
    F64(u64),
    Special(Special),
    /// A variable's address, plus an offset.
    Symbol(Var, i64),
    Vector(Vec<Operand>),
    /// `[address]`.
    Memory(Address, Option<Var>),
    /// `[map, {x, y}]`: a tensor map and coordinates.
    Tensor(Address, Vec<Operand>),
    /// `a|b`.
    Pair(Box<Operand>, Box<Operand>),
    /// A label, or a name that is not known.
    Name(String),
    Sink,
}

/// The declared width of a register in bits; 1 for predicates.
pub(crate) type RegType = u32;

impl Operand {
    pub fn describe(&self) -> String {
        match self {
            Operand::Reg(_, 1) => "a predicate register".into(),
            Operand::Reg(_, bits) => format!("a {bits}-bit register"),
            Operand::NotPred(_) => "a negated predicate".into(),
            Operand::Int(value) => format!("the integer {value}"),
            Operand::F32(bits) => format!("the f32 {}", f32::from_bits(*bits)),
            Operand::F64(bits) => format!("the f64 {}", f64::from_bits(*bits)),
            Operand::Special(special) => format!("the special register {special:?}"),
            Operand::Symbol(..) => "the address of a variable".into(),
            Operand::Vector(parts) => format!("a vector of {}", parts.len()),
            Operand::Memory(..) => "an address in brackets".into(),
            Operand::Tensor(_, at) => format!("a tensor map with {} coordinates", at.len()),
            Operand::Pair(..) => "a pair".into(),
            Operand::Name(name) => format!("`{name}`, which is not declared"),
            Operand::Sink => "`_`".into(),
        }
    }
}

/// A special register by its name.
pub(crate) fn special(word: &str) -> Option<Special> {
    let axis = |s: &str| match s {
        "x" => Some(0),
        "y" => Some(1),
        "z" => Some(2),
        _ => None,
    };
    Some(match word.strip_prefix('%')? {
        "laneid" => Special::Laneid,
        "warpid" => Special::Warpid,
        "nwarpid" => Special::Nwarpid,
        "smid" => Special::Smid,
        "nsmid" => Special::Nsmid,
        "gridid" => Special::Gridid,
        "clock" | "clock_hi" => Special::Clock,
        "clock64" | "globaltimer" => Special::Clock64,
        "lanemask_eq" => Special::LanemaskEq,
        "lanemask_le" => Special::LanemaskLe,
        "lanemask_lt" => Special::LanemaskLt,
        "lanemask_ge" => Special::LanemaskGe,
        "lanemask_gt" => Special::LanemaskGt,
        "cluster_ctarank" => Special::ClusterCtarank,
        "cluster_nctarank" => Special::ClusterNctarank,
        "is_explicit_cluster" => Special::IsExplicitCluster,
        "dynamic_smem_size" => Special::DynamicShared,
        "total_smem_size" => Special::TotalShared,
        other => match other.split_once('.')? {
            ("tid", a) => Special::Tid(axis(a)?),
            ("ntid", a) => Special::Ntid(axis(a)?),
            ("ctaid", a) => Special::Ctaid(axis(a)?),
            ("clusterid", a) => Special::Clusterid(axis(a)?),
            ("nclusterid", a) => Special::Nclusterid(axis(a)?),
            ("cluster_ctaid", a) => Special::ClusterCtaid(axis(a)?),
            ("cluster_nctaid", a) => Special::ClusterNctaid(axis(a)?),
            ("nctaid", a) => Special::Nctaid(axis(a)?),
            _ => return None,
        },
    })
}
