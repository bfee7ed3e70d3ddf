//! Control flow, barriers, fences and the collectives of a warp.

use super::{Lowered, Mods, Operands, Sort, Ty, require, wrong};
use crate::code::asynchronous::Asynchronous;
use crate::code::{Bar, BarKind, Class, Collective, Op, Place, ReduxOp, SINK, ShflMode, VoteMode};
use crate::ptx::body::Body;
use crate::ptx::operand::Operand;

const B32: Ty = Ty { sort: Sort::Bits, bits: 32 };
const PRED: Ty = Ty { sort: Sort::Pred, bits: 1 };

pub(crate) fn lower(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    match name {
        "bra" => {
            mods.take("uni");
            mods.finish()?;
            ops.count(1..=1)?;
            let Operand::Name(label) = &ops.0[0] else { return wrong(&ops.0[0], "a label") };
            body.branch(label);
            Ok(())
        }
        "brx" => {
            if !mods.take("idx") {
                return Err("`.idx` is missing".into());
            }
            mods.take("uni");
            mods.finish()?;
            ops.count(2..=2)?;
            let index = body.src(&ops.0[0], B32)?.reg;
            let Operand::Name(table) = &ops.0[1] else { return wrong(&ops.0[1], "a table of labels") };
            body.branch_table(index, table)
        }
        "ret" | "exit" | "trap" => {
            mods.take("uni");
            mods.finish()?;
            ops.count(0..=0)?;
            match name {
                "ret" => body.ret(),
                "exit" => body.emit(Op::Exit),
                _ => body.emit(Op::Trap),
            }
            Ok(())
        }
        "bar" | "barrier" => barrier(body, name, mods, ops),
        "membar" => {
            mods.one_of(&["cta", "gl", "sys"]).ok_or("no scope among the modifiers")?;
            mods.finish()?;
            ops.count(0..=0)?;
            body.emit(Op::Fence { acquire: true, release: true });
            Ok(())
        }
        "fence" if mods.take("proxy") => {
            // Other proxies (`alias`, `tensormap`) are not modelled.
            require(mods, &["async"])?;
            mods.one_of(&["global", "shared::cta", "shared::cluster"]);
            mods.finish()?;
            ops.count(0..=0)?;
            body.emit(Op::Asynchronous(Box::new(Asynchronous::ProxyFence)));
            Ok(())
        }
        "fence" if mods.take("mbarrier_init") => {
            require(mods, &["release", "cluster"])?;
            mods.finish()?;
            ops.count(0..=0)?;
            body.emit(Op::Asynchronous(Box::new(Asynchronous::MbarrierInitFence)));
            Ok(())
        }
        "fence" => {
            let kind = mods.one_of(&["sc", "acq_rel", "acquire", "release"]).unwrap_or("acq_rel");
            mods.one_of(&["cta", "cluster", "gpu", "sys"]).ok_or("no scope among the modifiers")?;
            mods.finish()?;
            ops.count(0..=0)?;
            body.emit(Op::Fence { acquire: kind != "release", release: kind != "acquire" });
            Ok(())
        }
        "activemask" => {
            let ty = mods.ty()?;
            mods.finish()?;
            ops.count(1..=1)?;
            let d = body.dst(&ops.0[0], ty)?.reg;
            body.emit(Op::Activemask { d });
            Ok(())
        }
        "nanosleep" => {
            mods.ty()?;
            mods.finish()?;
            ops.count(1..=1)?;
            body.emit(Op::Nop);
            Ok(())
        }
        _ => collective(body, name, mods, ops),
    }
}

fn barrier(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    if mods.take("warp") {
        if !mods.take("sync") {
            return Err("`.sync` is missing".into());
        }
        mods.finish()?;
        ops.count(1..=1)?;
        let mask = body.src(&ops.0[0], B32)?.reg;
        body.emit(Op::Collective { mask, op: Box::new(Collective::Sync) });
        return Ok(());
    }
    if name == "barrier" && mods.take("cluster") {
        let arrives = mods.one_of(&["arrive", "wait"]).ok_or("`.arrive` or `.wait` is missing")? == "arrive";
        let order = mods.one_of(if arrives { &["release", "relaxed"] } else { &["acquire"] });
        let aligned = mods.take("aligned");
        mods.finish()?;
        ops.count(0..=0)?;
        let release = order != Some("relaxed");
        let op = if arrives {
            Asynchronous::ClusterArrive { release, aligned }
        } else {
            Asynchronous::ClusterWait { aligned }
        };
        body.emit(Op::Asynchronous(Box::new(op)));
        return Ok(());
    }
    mods.take("cta");
    let aligned = mods.take("aligned") | (name == "bar");
    let kind = match mods.one_of(&["sync", "arrive", "red"]) {
        Some("sync") => BarKind::Sync,
        Some("arrive") => BarKind::Arrive,
        Some(_) => match mods.one_of(&["popc", "and", "or"]) {
            Some("popc") => BarKind::RedPopc,
            Some("and") => BarKind::RedAnd,
            Some(_) => BarKind::RedOr,
            None => return Err("`.popc`, `.and` or `.or` is missing".into()),
        },
        None => return Err("`.sync`, `.arrive` or `.red` is missing".into()),
    };
    let reduces = matches!(kind, BarKind::RedPopc | BarKind::RedAnd | BarKind::RedOr);
    let ty = if reduces { Some(mods.ty()?) } else { None };
    mods.finish()?;
    let skip = usize::from(reduces);
    ops.count(skip + 1 + skip..=skip + 2 + skip)?;
    let d = match ty {
        None => None,
        Some(ty) if (ty.sort == Sort::Pred) == (kind != BarKind::RedPopc) => Some(body.dst(&ops.0[0], ty)?),
        Some(_) => return Err("the type does not fit the reduction".into()),
    };
    let last = ops.0.len() - skip;
    let p = if reduces { Some(body.predicate_src(&ops.0[last])?) } else { None };
    let id = body.src(&ops.0[skip], B32)?;
    let count = if last > skip + 1 { Some(body.src(&ops.0[skip + 1], B32)?) } else { None };
    if kind == BarKind::Arrive && count.is_none() {
        return Err("arriving needs a number of threads".into());
    }
    body.emit(Op::Bar(Box::new(Bar { kind, aligned, id, count, d, p })));
    Ok(())
}

/// `d|p` or `d`.
fn with_predicate(body: &mut Body, operand: &Operand, ty: Ty) -> Lowered<(Place, u32)> {
    match operand {
        Operand::Pair(d, p) => Ok((body.dst(d, ty)?, body.dst(p, PRED)?.reg)),
        d => Ok((body.dst(d, ty)?, SINK)),
    }
}

fn collective(body: &mut Body, name: &str, mods: &mut Mods, ops: &Operands) -> Lowered {
    if !mods.take("sync") {
        return Err("`.sync` is missing: forms without it are gone from sm_70 on".into());
    }
    let (op, mask) = match name {
        "shfl" => {
            let mode = match mods.one_of(&["up", "down", "bfly", "idx"]) {
                Some("up") => ShflMode::Up,
                Some("down") => ShflMode::Down,
                Some("bfly") => ShflMode::Bfly,
                Some(_) => ShflMode::Idx,
                None => return Err("no mode among the modifiers".into()),
            };
            let ty = mods.ty()?;
            mods.finish()?;
            ops.count(5..=5)?;
            if ty.bits != 32 {
                return Err("shfl is on b32".into());
            }
            let (d, p) = with_predicate(body, &ops.0[0], ty)?;
            let s = (1..5).map(|i| body.src(&ops.0[i], B32)).collect::<Lowered<Vec<_>>>()?;
            (Collective::Shfl { mode, d: d.reg, p, a: s[0].reg, b: s[1].reg, c: s[2].reg }, s[3].reg)
        }
        "vote" => {
            let mode = match mods.one_of(&["all", "any", "uni", "ballot"]) {
                Some("all") => VoteMode::All,
                Some("any") => VoteMode::Any,
                Some("uni") => VoteMode::Uni,
                Some(_) => VoteMode::Ballot,
                None => return Err("no mode among the modifiers".into()),
            };
            let ty = mods.ty()?;
            mods.finish()?;
            ops.count(3..=3)?;
            if (ty.sort == Sort::Pred) == (mode == VoteMode::Ballot) {
                return Err("the type does not fit the vote".into());
            }
            let d = body.dst(&ops.0[0], ty)?;
            let (a, flip) = body.predicate_src(&ops.0[1])?;
            (Collective::Vote { mode, d, a, flip }, body.src(&ops.0[2], B32)?.reg)
        }
        "match" => {
            let all = mods.take("all");
            if !all && !mods.take("any") {
                return Err("`.any` or `.all` is missing".into());
            }
            let ty = mods.ty()?;
            mods.finish()?;
            ops.count(3..=3)?;
            let (d, p) = with_predicate(body, &ops.0[0], B32)?;
            let a = body.src(&ops.0[1], ty)?;
            let op = if all { Collective::MatchAll { d: d.reg, p, a } } else { Collective::MatchAny { d: d.reg, a } };
            (op, body.src(&ops.0[2], B32)?.reg)
        }
        "redux" => {
            let name = mods.one_of(&["add", "min", "max", "and", "or", "xor"]).ok_or("no operation")?;
            let ty = mods.ty()?;
            mods.finish()?;
            ops.count(3..=3)?;
            let op = match (name, ty.sort) {
                ("add", Sort::Unsigned | Sort::Signed) => ReduxOp::AddU,
                ("min", Sort::Unsigned) => ReduxOp::MinU,
                ("max", Sort::Unsigned) => ReduxOp::MaxU,
                ("min", Sort::Signed) => ReduxOp::MinS,
                ("max", Sort::Signed) => ReduxOp::MaxS,
                ("and", Sort::Bits) => ReduxOp::And,
                ("or", Sort::Bits) => ReduxOp::Or,
                ("xor", Sort::Bits) => ReduxOp::Xor,
                _ => return Err("the operation does not fit the type".into()),
            };
            let (d, a) = (body.dst(&ops.0[0], ty)?, body.src(&ops.0[1], ty)?);
            if d.class != Class::Word || a.class != Class::Word {
                return Err("redux is on 32 bits".into());
            }
            (Collective::Redux { op, d: d.reg, a: a.reg }, body.src(&ops.0[2], B32)?.reg)
        }
        _ => {
            mods.finish()?;
            ops.count(2..=2)?;
            let (d, p) = with_predicate(body, &ops.0[0], B32)?;
            (Collective::Elect { d: d.reg, p }, body.src(&ops.0[1], B32)?.reg)
        }
    };
    body.emit(Op::Collective { mask, op: Box::new(op) });
    Ok(())
}
