//! Which convolutions the kernels of Hopper take, of those that `mma` is asked for.

use super::{
    super::super::mma::table::{Generation, Gpu, Product},
    *,
};
use crate::autograd::Packed;

/// The layers of a ResNet-50, for a batch of 64, on an H200.
#[test]
fn layers_of_networks_take_the_tile_that_suits_them() {
    let gpu = |generation| Gpu { generation, multiprocessors: 132 };
    let forward = |extents| Tile::choose(gpu(Generation::Hopper), Product::Forward, Factors::Bf16, &extents);
    let grad = |extents| Tile::choose(gpu(Generation::Hopper), Product::InputGrad, Factors::Bf16, &extents);
    let (narrow, wide) = (case([64, 56, 56, 256, 64, 1]), case([64, 56, 56, 64, 256, 1]));
    assert_eq!((forward(narrow), grad(narrow)), (Some(Tile::Narrow), Some(Tile::Wide)));
    assert_eq!((forward(wide), grad(wide)), (Some(Tile::Wide), Some(Tile::Narrow)));
    // A projecting shortcut: its gradient is computed without the stride, then added by whoever it is for.
    let strided = case([64, 56, 56, 256, 512, 2]);
    assert_eq!((forward(strided), grad(strided)), (Some(Tile::Wide), None));
    // 13 pairs of rows: two columns of them leave multiprocessors idle, eight do not.
    assert_eq!(forward(case([64, 7, 7, 2048, 512, 1])), Some(Tile::Narrow));
    assert_eq!(forward(case([64, 7, 7, 512, 2048, 1])), Some(Tile::Wide));
    // The kernel is the same for any batch.
    assert_eq!(forward(case([1, 7, 7, 512, 2048, 1])), Some(Tile::Narrow));
    // What is no whole number of steps deep, not 1×1, grouped, or too wide a stride.
    assert_eq!(forward(case([64, 56, 56, 72, 256, 1])), None);
    assert_eq!(forward(case([64, 56, 56, 64, 256, 9])), None);
    for other in [Extents { r: 3, ..wide }, Extents { padding: 1, ..wide }, Extents { groups: 2, ..wide }] {
        assert_eq!(forward(other), None);
    }
    // TF32, weight gradients, other GPUs.
    assert_eq!(Tile::choose(gpu(Generation::Hopper), Product::Forward, Factors::Tf32, &wide), None);
    assert_eq!(Tile::choose(gpu(Generation::Hopper), Product::WeightGrad, Factors::Bf16, &wide), None);
    for other in [Generation::Ampere, Generation::Ada, Generation::Blackwell, Generation::DesktopBlackwell] {
        assert_eq!(Tile::choose(gpu(other), Product::Forward, Factors::Bf16, &wide), None);
    }
}

/// The same calls run one kernel or the other, as the shape and the GPU say.
#[test]
fn other_convolutions_fall_back() -> Result<()> {
    let (Some(hopper), Some(ampere)) = (Hopper::new(0, AsyncCopies::Late), emulated(Settings::default())) else {
        return Ok(());
    };
    let ampere = Hopper { device: ampere.0, driver: ampere.1 };
    let taken = [2, 14, 14, 64, 256, 1];
    for (gpu, shape, prefix) in
        [(&hopper, taken, "conv_1x1"), (&hopper, [2, 14, 14, 72, 264, 1], "conv_mma"), (&ampere, taken, "conv_mma")]
    {
        let extents = case(shape);
        let Forward { input, weight, .. } = Forward::new(gpu, &extents);
        let Extents { n, h, w, c, k, .. } = extents;
        let flipped = Some(gpu.values("flipped", [c, 1, 1, k]));
        let packed = Packed { forward: weight, flipped, groups: 1 };
        let before = gpu.driver.counters();
        let launched = || {
            let ran = |(entry, counters)| (before.get(&entry) != Some(&counters)).then_some(entry);
            gpu.driver.counters().into_iter().filter_map(ran).collect::<Vec<String>>()
        };
        let output = mma::forward(&input, &packed, Geometry::default(), Epilogue::default())?;
        assert_rounded("forward", &wide(&output), &extents.products(&wide(&input), &wide(&packed.forward)));
        let (again, moments) = mma::forward_with_moments(&input, &packed, Geometry::default())?;
        assert!(wide(&output) == wide(&again) && moments.rows == extents.rows());
        let grad = gpu.values("grad", extents.output());
        mma::input_grad(&grad, &packed, [n, h, w, c].into(), Geometry::default(), mma::GradFinish::default())?;
        let launched = launched();
        let expected = launched.iter().all(|entry| entry.starts_with(prefix));
        assert!(expected && launched.len() == 2, "{shape:?} ran {launched:?}");
    }
    Ok(())
}
