//! Loads, stores and atomics.

use super::{Lowered, Mods, Operands, Sort, wrong};
use crate::code::{Access, Address, AtomOp, AtomType, Atomic, Class, Extend, Op, Order, Place, Space};
use crate::ptx::body::Body;
use crate::ptx::operand::{Operand, Var};

pub(crate) fn lower(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    match name {
        "ld" | "ldu" | "st" => access(body, name, mods, ops),
        "atom" | "red" => atomic(body, name, mods, ops),
        "prefetch" if mods.take("tensormap") => super::asynchronous::prefetch_tensormap(body, mods, ops),
        // Hints without an effect on results.
        "prefetch" | "prefetchu" => {
            mods.one_of(&["global", "local"]);
            mods.one_of(&["L1", "L2", "L2::evict_last", "L2::evict_normal"]).ok_or("no cache level")?;
            mods.finish()?;
            ops.count(1..=1)
        }
        _ => Err("this opcode is not supported".into()),
    }
}

pub(crate) fn space(mods: &mut Mods) -> Space {
    let name = mods.one_of(&[
        "global",
        "shared::cta",
        "shared::cluster",
        "shared",
        "local",
        "const",
        "param::entry",
        "param::func",
        "param",
    ]);
    match name {
        Some("global") => Space::Global,
        Some("shared" | "shared::cta") => Space::Shared,
        Some("shared::cluster") => Space::Cluster,
        Some("local") => Space::Local,
        Some("const") => Space::Const,
        Some(_) => Space::Param,
        None => Space::Generic,
    }
}

/// The address operand and the space it really is in: parameters of inlined calls are thread-local.
pub(crate) fn address(operand: &Operand, space: Space) -> Lowered<(Address, Space)> {
    let Operand::Memory(address, var) = operand else { return wrong(operand, "an address") };
    let space = match (space, var) {
        (Space::Param, Some(Var::Local(_))) => Space::Local,
        (Space::Param, Some(Var::Param(_))) => Space::Param,
        (Space::Param, _) => Space::Generic,
        (Space::Shared | Space::Cluster, Some(Var::Shared(_) | Var::DynamicShared) | None) => space,
        (Space::Local, Some(Var::Local(_)) | None) => Space::Local,
        (Space::Global | Space::Const, Some(Var::Module(_)) | None) => space,
        (Space::Generic, Some(Var::Module(_)) | None) => space,
        _ => return Err("the variable is not in this state space".into()),
    };
    if address.base.is_some_and(|b| b.class == Class::Word) && !matches!(space, Space::Shared | Space::Cluster) {
        return Err("a 32-bit address outside of shared memory".into());
    }
    Ok((*address, space))
}

/// Order and scope of an access; scopes wider than the block need no more than the block's here.
fn order(mods: &mut Mods) -> Order {
    let name = mods.one_of(&["weak", "volatile", "relaxed", "acquire", "release", "acq_rel", "mmio"]);
    mods.one_of(&["cta", "cluster", "gpu", "sys"]);
    match name {
        None | Some("weak") => Order::default(),
        Some("acquire") => Order { strong: true, acquire: true, release: false },
        Some("release") => Order { strong: true, acquire: false, release: true },
        Some("acq_rel") => Order { strong: true, acquire: true, release: true },
        Some(_) => Order { strong: true, ..Order::default() },
    }
}

fn access(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    let order = order(mods);
    let space = space(mods);
    let constant = mods.take("nc") | (name == "ldu");
    // Cache hints change no result.
    mods.one_of(&["ca", "cg", "cs", "lu", "cv", "wb", "wt"]);
    mods.one_of(&["L1::evict_normal", "L1::evict_unchanged", "L1::evict_first", "L1::evict_last", "L1::no_allocate"]);
    mods.one_of(&["L2::64B", "L2::128B", "L2::256B"]);
    let count = match mods.one_of(&["v2", "v4", "v8"]) {
        None => 1,
        Some("v2") => 2,
        Some("v4") => 4,
        Some(_) => 8,
    };
    let ty = mods.ty()?;
    mods.finish()?;
    ops.count(2..=2)?;
    let store = name == "st";
    let (place, value) = if store { (&ops.0[0], &ops.0[1]) } else { (&ops.0[1], &ops.0[0]) };
    if store && (constant || matches!(space, Space::Const)) {
        return Err("a store to constant memory".into());
    }
    if matches!(ty.sort, Sort::Pred | Sort::Tf32) || count * ty.bits > 256 {
        return Err("this type cannot be in memory".into());
    }
    let (address, space) = address(place, space)?;
    if store && space == Space::Param {
        return Err("a store to a parameter of the kernel".into());
    }
    let parts = match value {
        Operand::Vector(parts) if parts.len() == count as usize && count > 1 => parts.as_slice(),
        other if count == 1 => std::slice::from_ref(other),
        other => return wrong(other, &format!("a vector of {count}")),
    };
    let mut extend = Extend::Zero;
    let mut regs = Vec::new();
    for part in parts {
        let place = if store {
            match part {
                Operand::Reg(place, bits) if *bits >= ty.bits && *bits > 1 => *place,
                other => body.loose_src(other, ty)?,
            }
        } else {
            let (place, bits) = body.loose_dst(part, ty)?;
            if ty.signed() && bits > ty.bits {
                extend = match bits {
                    64 => Extend::SignLong,
                    16 => Extend::SignHalf,
                    _ => Extend::Sign,
                };
            }
            place
        };
        regs.push(place);
    }
    let access = Box::new(Access { space, address, width: ty.bits / 8, extend, order, constant, regs });
    body.emit(if store { Op::Store(access) } else { Op::Load(access) });
    Ok(())
}

fn atomic(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    let order = Order { strong: true, ..order(mods) };
    let space = space(mods);
    if !matches!(space, Space::Generic | Space::Global | Space::Shared | Space::Cluster) {
        return Err("atomics are on global and shared memory".into());
    }
    let op = match mods.one_of(&["add", "min", "max", "and", "or", "xor", "inc", "dec", "exch", "cas"]) {
        Some("add") => AtomOp::Add,
        Some("min") => AtomOp::Min,
        Some("max") => AtomOp::Max,
        Some("and") => AtomOp::And,
        Some("or") => AtomOp::Or,
        Some("xor") => AtomOp::Xor,
        Some("inc") => AtomOp::Inc,
        Some("dec") => AtomOp::Dec,
        Some("exch") => AtomOp::Exch,
        Some(_) => AtomOp::Cas,
        None => return Err("no operation among the modifiers".into()),
    };
    let noftz = mods.take("noftz");
    let ty = mods.ty()?;
    mods.finish()?;
    let atom_type = match (ty.sort, ty.bits) {
        (Sort::Unsigned | Sort::Bits, 32) => AtomType::U32,
        (Sort::Signed, 32) => AtomType::S32,
        (Sort::Unsigned | Sort::Bits, 64) => AtomType::U64,
        (Sort::Signed, 64) => AtomType::S64,
        (Sort::Float, 32) => AtomType::F32,
        (Sort::Float, 64) => AtomType::F64,
        (Sort::F16x2, _) if noftz => AtomType::F16x2,
        (Sort::Bf16x2, _) if noftz => AtomType::Bf16x2,
        (Sort::Float, 16) if noftz => AtomType::F16,
        (Sort::Bf16, _) if noftz => AtomType::Bf16,
        (Sort::Bits, 16) if op == AtomOp::Cas => AtomType::B16,
        _ => return Err("this type is not supported".into()),
    };
    let float = !ty.integer();
    if float && op != AtomOp::Add || matches!(op, AtomOp::Inc | AtomOp::Dec) && atom_type != AtomType::U32 {
        return Err("this operation does not fit the type".into());
    }
    let skip = usize::from(name == "atom");
    let with_c = op == AtomOp::Cas;
    if with_c && name == "red" {
        return Err("unknown modifier `.cas`".into());
    }
    let expected = skip + 2 + usize::from(with_c);
    ops.count(expected..=expected)?;
    let d = match name {
        "atom" if matches!(ops.0[0], Operand::Sink) => None,
        "atom" => Some(body.dst(&ops.0[0], ty)?),
        _ => None,
    };
    let (address, space) = address(&ops.0[skip], space)?;
    let b = body.src(&ops.0[skip + 1], ty)?;
    let c: Option<Place> = if with_c { Some(body.src(&ops.0[skip + 2], ty)?) } else { None };
    body.emit(Op::Atomic(Box::new(Atomic { op, ty: atom_type, space, address, order, d, b, c })));
    Ok(())
}
