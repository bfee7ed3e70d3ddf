//! Copies of the kernel from which one barrier, wait, fence or count is taken: the emulator must find each of them, or
//! that a correct kernel passes would say little.

use super::*;

/// A change to the kernel's text, and what the fault must say.
struct Bug {
    what: &'static str,
    from: &'static str,
    to: &'static str,
    says: &'static str,
}

const BUGS: &[Bug] = &[
    Bug {
        what: "a stage is multiplied before it has come",
        from: "mbarrier_wait(memory + T::FULL + 8 * turn.stage, turn.parity);",
        to: "",
        says: "is still to fill",
    },
    Bug {
        what: "a stage is filled before it has been read",
        from: "mbarrier_wait(memory + T::EMPTY + 8 * turn.stage, turn.parity ^ 1);",
        to: "",
        says: "its phase was not waited for",
    },
    Bug {
        what: "a stage is said to be full when half of it has come",
        from: "mbarrier_arrive_expect(full, T::STAGE);",
        to: "mbarrier_arrive_expect(full, T::STAGE / 2);",
        says: "its phase may end before they do",
    },
    Bug {
        what: "more bytes are waited for than come",
        from: "mbarrier_arrive_expect(full, T::STAGE);",
        to: "mbarrier_arrive_expect(full, T::STAGE + 16);",
        says: "every warp waits for a barrier that cannot complete",
    },
    Bug {
        what: "the other block's consumers are not waited for",
        from: "CONSUMERS * (WARPGROUP / 32) * BLOCKS",
        to: "CONSUMERS * (WARPGROUP / 32)",
        says: "a bulk copy fills, without having waited for its mbarrier",
    },
    Bug {
        what: "each block copies the same half of the weights",
        from: "const u32 row = tiles.row(rank), half = rank * (T::COLS / BLOCKS)",
        to: "const u32 row = tiles.row(rank), half = 0",
        says: "is still to fill",
    },
    Bug {
        what: "sums are touched before products begin",
        from: "products_begin();",
        to: "",
        says: "no wgmma.fence in between",
    },
    Bug {
        what: "sums are read before they are there",
        from: "products_wait<0>();",
        to: "",
        says: "a matrix instruction (wgmma) is still computing",
    },
    Bug {
        what: "a stage is released while it is being multiplied",
        from: "products_wait<1>();\n            if (step > 0) release(before);\n            before = turn.stage;",
        to: "release(turn.stage);",
        says: "a matrix instruction or bulk store of warp 4 is still reading",
    },
    Bug {
        what: "barriers are used before the other block has made them",
        from: "    cluster_sync();\n    // The same in all lanes",
        to: "    __syncthreads();\n    // The same in all lanes",
        says: "initialised with no barrier in between",
    },
    Bug {
        what: "a block goes while the other arrives at it",
        from: "    cluster_sync();\n}",
        to: "}",
        says: "returns, the last of its block",
    },
    Bug {
        what: "sums are laid out over those that are being finished",
        from: "            barrier();\n            lay_out",
        to: "            lay_out",
        says: "read with no barrier in between",
    },
    Bug {
        what: "sums are finished before they are laid out",
        from: "            barrier();\n            Finish",
        to: "            Finish",
        says: "not yet because a barrier is missing",
    },
];

/// Five steps, so that the ring of three stages goes round, in two pairs of tiles of one column.
const SHAPE: [usize; 6] = [1, 30, 10, 320, 256, 1];

/// The forward kernels of another text.
fn kernels(name: String, text: String) -> [Kernel<Conv1x1ForwardParams>; 2] {
    // Only these are compiled.
    let text: String = text.split_inclusive('\n').filter(|line| !line.starts_with("KERNEL(conv_1x1_input")).collect();
    let source: &'static Source = Box::leak(Box::new(Source {
        name: name.leak(),
        text: text.leak(),
        archs: SOURCE.archs,
        entries: SOURCE.entries,
        layouts: SOURCE.layouts,
    }));
    FORWARD.each_ref().map(|kernel| Kernel::new(source, kernel.entry, THREADS).clustered(BLOCKS as u32))
}

/// Runs them; a result that is wrong is an error too.
fn outcome(
    hopper: &Hopper,
    kernels: &[Kernel<Conv1x1ForwardParams>; 2],
    change: impl FnOnce(&Forward, Conv1x1Product) -> Conv1x1Product,
) -> Result<(), String> {
    let (extents, cuda) = (case(SHAPE), hopper.cuda());
    let operands = Forward::new(hopper, &extents);
    let output = Factors::Bf16.uninit(extents.output(), cuda).unwrap();
    let [mean, m2] = sums(cuda, extents.rows(), extents.k).unwrap();
    let moments = TileMoments { rows: extents.rows(), rows_per_tile: ROWS_PER_SUM, mean, m2 };
    let finish = ForwardFinish::with_moments(cuda, Factors::Bf16, &output, &moments).unwrap();
    let Forward { input, weight, .. } = &operands;
    let params = |product| Conv1x1ForwardParams { product: change(&operands, product), finish };
    launch(cuda, kernels, [input, weight], &extents, Tile::Wide, params).map_err(|error| error.to_string())?;
    let actual = output.to_vec::<bf16>().map_err(|error| error.to_string())?;
    let right = forward(cuda, Tile::Wide, input, weight, &extents, Epilogue::default()).unwrap();
    (actual == right.to_vec::<bf16>().unwrap()).then_some(()).ok_or_else(|| "a wrong result".into())
}

#[test]
fn each_bug_is_found() {
    let Some(hopper) = Hopper::new(0, AsyncCopies::Late) else { return };
    outcome(&hopper, &kernels("unchanged".into(), SOURCE.text.into()), |_, product| product)
        .expect("the kernel as it is");
    for (number, Bug { what, from, to, says }) in BUGS.iter().enumerate() {
        assert_eq!(SOURCE.text.matches(from).count(), 1, "{what}: the text has changed");
        let changed = kernels(format!("planted_{number}"), SOURCE.text.replace(from, to));
        let fault = outcome(&hopper, &changed, |_, product| product).expect_err(what);
        assert!(fault.contains(says), "{what}: {fault}");
    }
}

#[test]
fn another_swizzle_than_the_products_is_found() {
    let Some(hopper) = Hopper::new(0, AsyncCopies::Late) else { return };
    let unswizzled = |case: &Forward, product| {
        let map = TensorMap {
            element: TensorType::Bf16,
            address: case.input.pointer::<bf16>(hopper.cuda()).unwrap(),
            extents: vec![320, 300],
            strides: vec![640],
            steps: vec![1; 2],
            mode: TensorMode::Tiled { extents: vec![64, 128] },
            swizzle: Swizzle::None,
        };
        Conv1x1Product { input: hopper.driver.tensor_map(&map).unwrap(), ..product }
    };
    assert_eq!(outcome(&hopper, &FORWARD, unswizzled), Err("a wrong result".into()));
}
